//! Memory of the daemons in a running cluster, as the kernel counts it.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context as _, bail};
use k8s_openapi::api::core::v1::Node;

use crate::{
    cluster::{self, Cluster, current_binaries, node},
    image,
};

const DEDICATED: &str = "dedicated-1";
const VIRTUAL: &str = "virtual-1";
const STEP: Duration = Duration::from_mins(5);
/// What comes after a burst of pods, status updates and the like, is over by then.
const SETTLE: Duration = Duration::from_secs(15);

/// Starts a pool, measures the agent with `gpus` GPUs and `spillway-vk` with `pods` pods, prints a table, ends the pool.
pub(super) fn run(gpus: u32, pods: u32) -> anyhow::Result<()> {
    let cluster = Cluster::up(&cluster::Options {
        nodes: vec![node::Options { gpus, ..node::Options::named(DEDICATED) }],
        ..cluster::Options::default()
    })?;
    cluster.install_chart(&[])?;
    crate::wait_for(&format!("{gpus} GPUs on node {DEDICATED}"), STEP, || {
        let node: Node = serde_json::from_str(&cluster.kubectl(&["get", "node", DEDICATED, "-o", "json"])?)?;
        let allocatable = node.status.and_then(|status| status.allocatable).unwrap_or_default();
        Ok(allocatable.get("nvidia.com/gpu").filter(|amount| amount.0 == gpus.to_string()).map(drop))
    })?;
    let idle = virtual_kubelet(&cluster)?;
    cluster.say(&format!("starting {pods} sleeping pods on the virtual node"));
    cluster.apply(&sleepers(pods))?;
    cluster.kubectl(&["rollout", "status", "deployment/sleepers", "--timeout=600s"])?;
    std::thread::sleep(SETTLE);
    let rows = [
        (format!("spillway-agent, {gpus} GPUs"), agent(&cluster)?),
        ("spillway-vk, no pods".to_owned(), idle),
        (format!("spillway-vk, {pods} running pods"), virtual_kubelet(&cluster)?),
    ];

    let profile = current_binaries()?.file_name().map(|name| name.display().to_string()).unwrap_or_default();
    println!("Memory in MiB ({profile} build; `private` is without the pages of the program file)\n");
    println!("  {:34}{:>10}{:>10}{:>10}", "", "resident", "private", "peak");
    for (what, memory) in rows {
        let mebibytes = |kibibytes: u64| format!("{}.{}", kibibytes / 1024, kibibytes % 1024 * 10 / 1024);
        let Memory { resident, private, peak } = memory;
        println!("  {what:34}{:>10}{:>10}{:>10}", mebibytes(resident), mebibytes(private), mebibytes(peak));
    }
    cluster.down()
}

fn sleepers(pods: u32) -> String {
    let image = image::BUSYBOX;
    format!(
        "apiVersion: apps/v1
kind: Deployment
metadata: {{name: sleepers, namespace: default}}
spec:
  replicas: {pods}
  selector: {{matchLabels: {{app: sleepers}}}}
  template:
    metadata: {{labels: {{app: sleepers}}}}
    spec:
      nodeSelector: {{kubernetes.io/hostname: {VIRTUAL}}}
      tolerations: [{{key: virtual-kubelet.io/provider, operator: Exists}}]
      terminationGracePeriodSeconds: 0
      containers:
      - {{name: sleep, image: \"{image}\", imagePullPolicy: Never, command: [sleep, '86400']}}
"
    )
}

/// Kibibytes of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Memory {
    pub(super) resident: u64,
    pub(super) private: u64,
    pub(super) peak: u64,
}

fn virtual_kubelet(cluster: &Cluster) -> anyhow::Result<Memory> {
    let process = cluster.process(VIRTUAL, "spillway-vk")?;
    let id = process.id.filter(|id| id.alive()).context("spillway-vk is not running")?;
    of(Path::new(&format!("/proc/{}/status", id.pid)))
}

/// The agent runs in a pod: it is found by its name among the processes that its machine sees.
fn agent(cluster: &Cluster) -> anyhow::Result<Memory> {
    let processes = cluster.machine(DEDICATED)?.live_path("/proc");
    for entry in
        fs::read_dir(&processes).with_context(|| format!("can't list {}", processes.display()))?.flatten()
    {
        if fs::read_to_string(entry.path().join("comm")).is_ok_and(|name| name.trim() == "spillway-agent") {
            return of(&entry.path().join("status"));
        }
    }
    bail!("no spillway-agent runs on {DEDICATED}")
}

pub(super) fn of(status: &Path) -> anyhow::Result<Memory> {
    let text = fs::read_to_string(status).with_context(|| format!("can't read {}", status.display()))?;
    parse(&text).with_context(|| format!("{} doesn't tell the process' memory", status.display()))
}

/// Reads `/proc/PID/status` (proc(5)).
fn parse(status: &str) -> Option<Memory> {
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        line.trim().strip_suffix(" kB")?.parse().ok()
    };
    Some(Memory { resident: field("VmRSS")?, private: field("RssAnon")?, peak: field("VmHWM")? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_from_what_the_kernel_writes() {
        let status = "Name:\tx\nVmHWM:\t   20480 kB\nVmRSS:\t   10240 kB\nRssAnon:\t    4096 kB\n";
        assert_eq!(parse(status), Some(Memory { resident: 10_240, private: 4096, peak: 20_480 }));
        assert_eq!(parse("Name:\tkthreadd\n"), None);
        assert!(of(Path::new("/proc/self/status")).unwrap().resident > 0);
    }
}
