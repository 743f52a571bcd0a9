//! A serverless runtime: a machine with containerd and kube-proxy, no kubelet, and beside them `spillway-vk` started as the systemd unit
//! in `deploy/systemd` starts it.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};

use super::{
    Cluster, STEP,
    control_plane::{BOOTSTRAP_TOKEN, SERVER},
    machine::Machine,
    network,
    node::{start_kube_proxy, start_with_runtime, wait_ready},
    pki::Pki,
    process::Process,
    write,
};
use crate::{Fatal, image::Image};

/// Two devices that pods may ask for: `/dev/null` under other names.
const HARMLESS_DEVICES: &str = r#"{ "cdiVersion": "0.6.0", "kind": "spillway.test/null", "devices": [
    { "name": "0", "containerEdits": { "env": ["SPILLWAY_NULL=0"],
        "deviceNodes": [{ "path": "/dev/spillway-null0", "hostPath": "/dev/null", "type": "c", "major": 1, "minor": 3 }] } },
    { "name": "1", "containerEdits": { "env": ["SPILLWAY_NULL=1"],
        "deviceNodes": [{ "path": "/dev/spillway-null1", "hostPath": "/dev/null", "type": "c", "major": 1, "minor": 3 }] } }
] }
"#;

/// A serverless runtime as it shall be.
#[derive(Debug, Clone)]
pub struct Options {
    /// Its name, and that of its virtual node.
    pub name: String,
    /// How many pods the virtual node takes.
    pub pods: u32,
    /// Whether its virtual node has the taint that keeps other pods off.
    pub taint: bool,
    /// Whether to start `spillway-vk` and wait for the virtual node.
    pub start_vk: bool,
    /// Another `spillway-vk` than the one beside this program.
    pub program: Option<PathBuf>,
}

impl Options {
    /// A runtime whose virtual node takes a thousand pods.
    pub fn named(name: &str) -> Self {
        Self { name: name.to_owned(), pods: 1000, taint: true, start_vk: true, program: None }
    }
}

pub(super) fn start(
    cluster: &Cluster,
    pki: &Pki,
    options: &Options,
    index: usize,
    images: &[Image],
) -> anyhow::Result<()> {
    let name = options.name.as_str();
    let machine = start_with_runtime(cluster, name, index, images)?;

    let etc = machine.path("/etc/spillway");
    write(&etc.join("bootstrap.kubeconfig"), &pki.bootstrap_kubeconfig(BOOTSTRAP_TOKEN, SERVER)?)?;
    write(&etc.join("vk.yaml"), &configuration(cluster, options, index))?;
    write(&machine.path("/etc/cdi/spillway-test.json"), HARMLESS_DEVICES)?;
    let unit = crate::repository().join("deploy/systemd/spillway-vk.service");
    let text = fs::read_to_string(&unit).with_context(|| format!("can't read {}", unit.display()))?;
    let (mut arguments, environment) = exec_start(&text).with_context(|| format!("in {}", unit.display()))?;
    if let Some(program) = &options.program {
        arguments[0] = install(&machine, program)?;
    }
    if !options.taint {
        arguments.push("--disable-taint".to_owned());
    }
    let process = Process {
        machine: name.to_owned(),
        name: "spillway-vk".to_owned(),
        arguments,
        environment,
        log: cluster.folder().join("log").join(format!("{name}-spillway-vk.log")),
        id: None,
    };
    if options.start_vk {
        cluster.add_process(process)?;
        approve_serving_certificate(cluster, name)?;
        wait_ready(cluster, name, "spillway-vk")?;
    } else {
        cluster.update(|record| record.processes.push(process))?;
    }
    // It looks up its node's address when it starts.
    start_kube_proxy(cluster, pki, &machine)
}

/// Puts a program into a machine, and tells where it is there.
pub(crate) fn install(machine: &Machine, program: &Path) -> anyhow::Result<String> {
    let name = program.file_name().context("a program is a file")?.display();
    let inside = format!("/opt/spillway/{name}");
    let copied = fs::copy(program, machine.path(&inside));
    copied.with_context(|| format!("can't copy {} to {}", program.display(), machine.name))?;
    Ok(inside)
}

fn configuration(cluster: &Cluster, options: &Options, index: usize) -> String {
    let (name, pods, address) = (&options.name, options.pods, network::address(index));
    let (dns, domain, cgroup_root) = (network::DNS, network::DOMAIN, cluster.cgroup_root(name));
    format!(
        "nodeName: {name}
nodeIP: {address}
clusterDNS: [{dns}]
clusterDomain: {domain}
capacity: {{cpu: \"1000\", memory: 4Ti, pods: \"{pods}\", ephemeral-storage: 10Ti}}
evictionHard: {{}}
# The host's disk is shared with whatever else runs there.
imageGCHighThresholdPercent: 100
cri:
  cgroupRoot: {cgroup_root}
  devices: {{spillway.test/null: [spillway.test/null=0, spillway.test/null=1]}}
"
    )
}

/// The command and environment of a systemd unit, with its program replaced by the one that was just built.
fn exec_start(unit: &str) -> anyhow::Result<(Vec<String>, BTreeMap<String, String>)> {
    let unit = unit.replace("\\\n", " ");
    let mut arguments = Vec::new();
    let mut environment = BTreeMap::new();
    for line in unit.lines() {
        if let Some(command) = line.strip_prefix("ExecStart=") {
            arguments = command.split_whitespace().map(str::to_owned).collect();
        } else if let Some((name, value)) =
            line.strip_prefix("Environment=").and_then(|rest| rest.split_once('='))
        {
            environment.insert(name.trim_matches('"').to_owned(), value.trim_matches('"').to_owned());
        }
    }
    match arguments.first_mut() {
        Some(program) if program.ends_with("/spillway-vk") => {
            "/opt/spillway/build/spillway-vk".clone_into(program);
        }
        _ => bail!("ExecStart= doesn't start spillway-vk"),
    }
    Ok((arguments, environment))
}

/// What an administrator does once for a new virtual node: nothing in Kubernetes approves serving certificates.
///
/// # Errors
/// When no request appears, or it can't be approved.
pub fn approve_serving_certificate(cluster: &Cluster, node: &str) -> anyhow::Result<()> {
    let user = format!("system:node:{node}");
    crate::wait_for(&format!("the serving certificate request of {node}"), STEP, || {
        let process = cluster.process(node, "spillway-vk")?;
        if !process.running() {
            return Err(Fatal(format!("spillway-vk has ended:\n{}", process.log_tail(20))).into());
        }
        let listed = cluster.kubectl(&[
            "get", "csr", "-o",
            "jsonpath={range .items[*]}{.metadata.name} {.spec.signerName} {.spec.username} {.status.conditions[*].type}{'\\n'}{end}",
        ])?;
        for line in listed.lines() {
            if let [request, "kubernetes.io/kubelet-serving", requestor] =
                line.split_whitespace().collect::<Vec<_>>()[..]
                && requestor == user {
                    cluster.kubectl(&["certificate", "approve", request])?;
                    return Ok(Some(()));
                }
        }
        Ok(None)
    })
    .with_context(|| cluster.log_tails(15, Some("spillway-vk")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_unit_in_deploy_starts_spillway_vk() {
        let unit = "[Service]\nEnvironment=\"A=b\"\nExecStart=/usr/local/bin/spillway-vk --config \\\n  /etc/spillway/vk.yaml\n";
        let (arguments, environment) = exec_start(unit).unwrap();
        assert_eq!(arguments, ["/opt/spillway/build/spillway-vk", "--config", "/etc/spillway/vk.yaml"]);
        assert_eq!(environment.get("A").map(String::as_str), Some("b"));
        assert!(exec_start("[Service]\nExecStart=/bin/true\n").is_err());
    }
}
