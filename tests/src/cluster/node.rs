//! A dedicated node: a machine with containerd, kubelet and kube-proxy, and whatever stand-ins for accelerators it shall have.

use std::{fs, path::Path};

use anyhow::Context as _;

use super::{
    Cluster, STEP,
    control_plane::{self, SERVER, arguments},
    machine::Machine,
    network,
    pki::Pki,
    registry, write,
};
use crate::{Fatal, image::Image, standin};

/// A dedicated node as it shall be.
#[derive(Debug, Clone)]
pub struct Options {
    /// Its name.
    pub name: String,
    /// GPUs of the NVML stand-in.
    pub gpus: u32,
    /// FPGAs of the sysfs stand-in.
    pub fpgas: u32,
    /// The kubelet's CPU manager policy: `none` or `static`.
    pub cpu_manager_policy: String,
    /// The kubelet's topology manager policy: `none`, `best-effort`, `restricted` or `single-numa-node`.
    pub topology_manager_policy: String,
    /// How many pods the kubelet takes.
    pub max_pods: u32,
}

impl Options {
    /// A node with two GPUs and one FPGA, and the kubelet's default policies.
    pub fn named(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            gpus: 2,
            fpgas: 1,
            cpu_manager_policy: "none".to_owned(),
            topology_manager_policy: "none".to_owned(),
            max_pods: 250,
        }
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
    standin::install(
        &machine.path("/opt/spillway-standin"),
        &super::current_binaries()?,
        options.gpus,
        options.fpgas,
    )?;
    for (path, major, minor) in standin::device_nodes(options.gpus, options.fpgas) {
        machine.shell(&format!("mkdir -p $(dirname {path}); mknod -m 666 {path} c {major} {minor}"))?;
    }

    let address = network::address(index);
    let user = format!("system:node:{name}");
    pki.sign(name, &user, &["system:nodes"], &[&address, name])?;
    let etc = machine.path("/etc/kubernetes");
    fs::create_dir_all(etc.join("manifests")).context("can't make the folder of static pods")?;
    write(&etc.join("kubelet.conf"), &pki.kubeconfig(name, SERVER)?)?;
    for (from, to) in [
        ("ca.crt".to_owned(), "ca.crt"),
        (format!("{name}.crt"), "kubelet.crt"),
        (format!("{name}.key"), "kubelet.key"),
    ] {
        write(&etc.join(to), &pki.read(&from)?)?;
    }
    let manifests = etc.join("manifests");
    fs::create_dir_all(&manifests).with_context(|| format!("can't create {}", manifests.display()))?;
    write(&etc.join("kubelet.yaml"), &kubelet_configuration(cluster, options))?;
    cluster.start_process(&machine, "kubelet", &arguments(&format!(
        "kubelet --config=/etc/kubernetes/kubelet.yaml --kubeconfig=/etc/kubernetes/kubelet.conf --hostname-override={name} \
         --node-ip={address} --node-labels=spillway.dev/accelerators=true --v=2"
    )))?;
    start_kube_proxy(cluster, pki, &machine)?;
    wait_ready(cluster, name, "kubelet")
}

fn kubelet_configuration(cluster: &Cluster, options: &Options) -> String {
    let (cgroup_root, dns, domain) = (cluster.cgroup_root(&options.name), network::DNS, network::DOMAIN);
    let (cpu, topology) = (&options.cpu_manager_policy, &options.topology_manager_policy);
    let max_pods = options.max_pods;
    format!(
        "apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication: {{anonymous: {{enabled: false}}, webhook: {{enabled: true}}, x509: {{clientCAFile: /etc/kubernetes/ca.crt}}}}
authorization: {{mode: Webhook}}
tlsCertFile: /etc/kubernetes/kubelet.crt
tlsPrivateKeyFile: /etc/kubernetes/kubelet.key
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
failCgroupV1: false
failSwapOn: false
# Raising a score needs a capability that sandboxed hosts lack.
oomScoreAdj: 0
cgroupDriver: cgroupfs
staticPodPath: /etc/kubernetes/manifests
cgroupRoot: {cgroup_root}
cpuManagerPolicy: {cpu}
topologyManagerPolicy: {topology}
# The static CPU manager wants something reserved.
kubeReserved: {{cpu: 100m}}
clusterDNS: [{dns}]
clusterDomain: {domain}
# The host's disk is shared with whatever else runs there: its fullness says nothing about this node.
evictionHard: {{memory.available: \"0%\", nodefs.available: \"0%\", imagefs.available: \"0%\", nodefs.inodesFree: \"0%\"}}
imageGCHighThresholdPercent: 100
imageGCLowThresholdPercent: 99
maxPods: {max_pods}
nodeStatusUpdateFrequency: 2s
# By default from Kubernetes 1.36 on.
featureGates: {{ResourceHealthStatus: true}}
"
    )
}

/// Starts a machine on the cluster's network, with its cgroups and a containerd that has the images.
pub(super) fn start_with_runtime(
    cluster: &Cluster,
    name: &str,
    index: usize,
    images: &[Image],
) -> anyhow::Result<Machine> {
    let machine = cluster.start_machine(name)?;
    network::connect(&cluster.machine(control_plane::MACHINE)?, &machine, index)?;
    make_cgroups(&cluster.cgroup_root(name))?;
    start_containerd(cluster, &machine, index, images)?;
    Ok(machine)
}

/// Makes a machine's cgroup in every hierarchy, so that its runtime's cgroups are below it and several kubelets don't end each other's
/// pods.
fn make_cgroups(root: &str) -> anyhow::Result<()> {
    for hierarchy in registry::cgroup_hierarchies() {
        let mut path = hierarchy.clone();
        for part in Path::new(root.trim_start_matches('/')) {
            let parent = path.clone();
            path.push(part);
            fs::create_dir_all(&path).with_context(|| format!("can't make cgroup {}", path.display()))?;
            // A new v1 cpuset has no CPUs and no memory, and no process can enter it.
            for file in ["cpuset.cpus", "cpuset.mems"] {
                let (from, to) = (parent.join(file), path.join(file));
                if parent.join("cpuset.cpu_exclusive").exists() || path.join("cpuset.cpu_exclusive").exists()
                {
                    let value = fs::read_to_string(&from)
                        .with_context(|| format!("can't read {}", from.display()))?;
                    fs::write(&to, value.trim()).with_context(|| format!("can't write {}", to.display()))?;
                }
            }
            // On v2, controllers are handed down one level at a time.
            let (offered, handed) =
                (parent.join("cgroup.controllers"), parent.join("cgroup.subtree_control"));
            if let Ok(controllers) = fs::read_to_string(offered) {
                for controller in controllers.split_whitespace() {
                    let _ = fs::write(&handed, format!("+{controller}"));
                }
            }
        }
    }
    Ok(())
}

/// Starts a machine's containerd, and loads the images into it.
fn start_containerd(
    cluster: &Cluster,
    machine: &Machine,
    index: usize,
    images: &[Image],
) -> anyhow::Result<()> {
    write(&machine.path("/etc/cni/net.d/10-spillway.conflist"), &network::cni(index))?;
    write(&machine.path("/etc/containerd/config.toml"), CONTAINERD)?;
    cluster.start_process(
        machine,
        "containerd",
        &arguments("containerd --config /etc/containerd/config.toml"),
    )?;
    crate::wait_for(&format!("containerd on {}", machine.name), STEP, || {
        let process = cluster.process(&machine.name, "containerd")?;
        if !process.running() {
            return Err(Fatal(format!("it has ended:\n{}", process.log_tail(20))).into());
        }
        machine.run("ctr", &["version"]).map(|_| Some(()))
    })?;
    load_images(machine, images)
}

/// Loads images into a machine's runtime.
pub(super) fn load_images(machine: &Machine, images: &[Image]) -> anyhow::Result<()> {
    for image in images {
        let name = image.tar.file_name().context("an image is a file")?;
        let inside = machine.path("/var/tmp").join(name);
        // A link where the file system allows, so that a hundred megabytes are not copied per machine.
        if fs::hard_link(&image.tar, &inside).is_err() {
            fs::copy(&image.tar, &inside).with_context(|| format!("can't copy {}", image.tar.display()))?;
        }
        machine.run("ctr", &["-n", "k8s.io", "images", "import", &format!("/var/tmp/{}", name.display())])?;
        fs::remove_file(&inside).with_context(|| format!("can't delete {}", inside.display()))?;
    }
    Ok(())
}

const CONTAINERD: &str = r#"version = 3
[plugins.'io.containerd.cri.v1.images'.pinned_images]
sandbox = "spillway.test/pause:dev"
[plugins.'io.containerd.cri.v1.images'.registry]
config_path = "/etc/containerd/certs.d"
[plugins.'io.containerd.cri.v1.runtime']
# Raising a score needs a capability that sandboxed hosts lack.
restrict_oom_score_adj = true
enable_cdi = true
[plugins.'io.containerd.cri.v1.runtime'.cni]
bin_dirs = ["/usr/lib/cni"]
conf_dir = "/etc/cni/net.d"
"#;

/// Starts a machine's kube-proxy, so that its pods reach services.
pub(super) fn start_kube_proxy(cluster: &Cluster, pki: &Pki, machine: &Machine) -> anyhow::Result<()> {
    let etc = machine.path("/etc/kubernetes");
    write(&etc.join("kube-proxy.conf"), &pki.kubeconfig("kube-proxy", SERVER)?)?;
    let (pods, name) = (network::PODS, &machine.name);
    write(
        &etc.join("kube-proxy.yaml"),
        &format!(
            "apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: iptables
clientConnection: {{kubeconfig: /etc/kubernetes/kube-proxy.conf}}
clusterCIDR: {pods}
hostnameOverride: {name}
# The limits belong to the host, which this must not change.
conntrack: {{maxPerCore: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}}
iptables: {{minSyncPeriod: 0s}}
healthzBindAddress: 127.0.0.1:10256
metricsBindAddress: 127.0.0.1:10249
"
        ),
    )?;
    cluster
        .start_process(
            machine,
            "kube-proxy",
            &arguments("kube-proxy --config=/etc/kubernetes/kube-proxy.yaml"),
        )
        .map(drop)
}

/// Waits until a node is Ready; `component` is who makes it so.
pub(crate) fn wait_ready(cluster: &Cluster, name: &str, component: &str) -> anyhow::Result<()> {
    crate::wait_for(&format!("node {name} to be Ready"), STEP, || {
        let process = cluster.process(name, component)?;
        if !process.running() {
            return Err(Fatal(format!("{component} has ended:\n{}", process.log_tail(20))).into());
        }
        let ready = cluster.kubectl(&[
            "get",
            "node",
            name,
            "-o",
            "jsonpath={.status.conditions[?(@.type=='Ready')].status}",
            "--ignore-not-found",
        ])?;
        Ok((ready == "True").then_some(()))
    })
    .with_context(|| cluster.log_tails(15, Some(component)))?;
    cluster.say(&format!("node {name} is Ready"));
    Ok(())
}
