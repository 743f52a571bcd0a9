//! etcd, kube-apiserver, kube-controller-manager and kube-scheduler on a machine of their own, and what an administrator applies first.

use std::{fs, net::SocketAddr, time::Duration};

use anyhow::{Context as _, bail};

use crate::Fatal;

use super::{Cluster, STEP, current_binaries, forward, network, pki::Pki, write};

/// Name of the control plane's machine.
pub const MACHINE: &str = "control-plane";
/// Where components on other machines reach the API server.
pub const SERVER: &str = "https://10.201.0.1:6443";
/// The administrator's kubeconfig on this machine.
pub const ADMIN_CONF: &str = "/etc/kubernetes/admin.conf";
/// The bootstrap token of virtual nodes, good for this cluster alone.
pub const BOOTSTRAP_TOKEN: &str = "spilly.0123456789abcdef";

const MANIFESTS: &[&str] = &[
    include_str!("../../cluster/manifests/bootstrap.yaml"),
    include_str!("../../../deploy/systemd/rbac.yaml"),
];

const DNS_MANIFEST: &str = include_str!("../../cluster/manifests/coredns.yaml");

pub(super) fn start(cluster: &Cluster, pki: &Pki, dns: bool) -> anyhow::Result<()> {
    pki.sign(
        "apiserver",
        "kube-apiserver",
        &[],
        &[
            network::CONTROL_PLANE,
            "127.0.0.1",
            "10.96.0.1",
            "localhost",
            "kubernetes",
            "kubernetes.default",
            "kubernetes.default.svc",
            "kubernetes.default.svc.cluster.local",
        ],
    )?;
    pki.sign("apiserver-kubelet", "kube-apiserver-kubelet-client", &["system:masters"], &[])?;
    pki.sign("front-proxy", "front-proxy-client", &[], &[])?;
    pki.sign("admin", "admin", &["system:masters"], &[])?;
    pki.sign("controller-manager", "system:kube-controller-manager", &[], &[])?;
    pki.sign("scheduler", "system:kube-scheduler", &[], &[])?;
    pki.sign("kube-proxy", "system:kube-proxy", &[], &[])?;

    let machine = cluster.start_machine(MACHINE)?;
    network::make_bridge(&machine)?;
    let etc = machine.path("/etc/kubernetes");
    fs::create_dir_all(&etc)?;
    for entry in fs::read_dir(cluster.folder().join("pki"))? {
        let entry = entry?;
        fs::copy(entry.path(), etc.join(entry.file_name()))?;
    }
    write(&machine.path(ADMIN_CONF), &pki.kubeconfig("admin", SERVER)?)?;
    write(&etc.join("controller-manager.conf"), &pki.kubeconfig("controller-manager", SERVER)?)?;
    write(&etc.join("scheduler.conf"), &pki.kubeconfig("scheduler", SERVER)?)?;

    cluster.start_process(
        &machine,
        "etcd",
        &arguments(
            "etcd --data-dir=/var/lib/etcd --unsafe-no-fsync --listen-client-urls=http://127.0.0.1:2379 \
         --advertise-client-urls=http://127.0.0.1:2379 --listen-peer-urls=http://127.0.0.1:2380",
        ),
    )?;
    cluster.start_process(&machine, "kube-apiserver", &arguments(&format!(
        "kube-apiserver --etcd-servers=http://127.0.0.1:2379 --bind-address={address} --advertise-address={address} \
         --secure-port=6443 --service-cluster-ip-range={services} --allow-privileged=true --authorization-mode=Node,RBAC \
         --enable-admission-plugins=NodeRestriction --enable-bootstrap-token-auth=true --endpoint-reconciler-type=lease \
         --tls-cert-file={etc}/apiserver.crt --tls-private-key-file={etc}/apiserver.key --client-ca-file={etc}/ca.crt \
         --kubelet-certificate-authority={etc}/ca.crt --kubelet-client-certificate={etc}/apiserver-kubelet.crt \
         --kubelet-client-key={etc}/apiserver-kubelet.key --kubelet-preferred-address-types=InternalIP,Hostname \
         --service-account-issuer=https://kubernetes.default.svc.cluster.local --service-account-key-file={etc}/sa.pub \
         --service-account-signing-key-file={etc}/sa.key --requestheader-client-ca-file={etc}/ca.crt \
         --requestheader-allowed-names=front-proxy-client --requestheader-username-headers=X-Remote-User \
         --requestheader-group-headers=X-Remote-Group --requestheader-extra-headers-prefix=X-Remote-Extra- \
         --proxy-client-cert-file={etc}/front-proxy.crt --proxy-client-key-file={etc}/front-proxy.key \
         --enable-aggregator-routing=true --feature-gates=ResourceHealthStatus=true",
        address = network::CONTROL_PLANE,
        services = network::SERVICES,
        etc = "/etc/kubernetes",
    )))?;

    let target: SocketAddr = format!("{}:6443", network::CONTROL_PLANE).parse()?;
    let xtask = current_binaries()?.join("xtask");
    if !xtask.exists() {
        bail!("{} is not built: run through `cargo xtask`, which builds it", xtask.display());
    }
    let log = cluster.folder().join("log/forwarder.log");
    let (forwarder, port) = forward::start(&xtask, &machine, target, &log)?;
    cluster.update(|record| record.forwarder = Some(forwarder))?;
    let kubeconfig = cluster.kubeconfig();
    write(&kubeconfig, &pki.kubeconfig("admin", &format!("https://127.0.0.1:{port}"))?)?;
    fs::set_permissions(&kubeconfig, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;

    wait_ready(cluster)?;
    // The controllers' own request limit would cap a Job near ten pods a second.
    cluster.start_process(&machine, "kube-controller-manager", &arguments(&format!(
        "kube-controller-manager --kubeconfig={etc}/controller-manager.conf \
         --authentication-kubeconfig={etc}/controller-manager.conf --authorization-kubeconfig={etc}/controller-manager.conf \
         --service-account-private-key-file={etc}/sa.key --root-ca-file={etc}/ca.crt --use-service-account-credentials \
         --controllers=*,bootstrapsigner,tokencleaner --cluster-signing-cert-file={etc}/ca.crt \
         --cluster-signing-key-file={etc}/ca.key --leader-elect=false --bind-address=127.0.0.1 --kube-api-qps=200 \
         --kube-api-burst=400",
        etc = "/etc/kubernetes",
    )))?;
    cluster.start_process(&machine, "kube-scheduler", &arguments(
        "kube-scheduler --kubeconfig=/etc/kubernetes/scheduler.conf \
         --authentication-kubeconfig=/etc/kubernetes/scheduler.conf --authorization-kubeconfig=/etc/kubernetes/scheduler.conf \
         --leader-elect=false --bind-address=127.0.0.1 --kube-api-qps=200 --kube-api-burst=400",
    ))?;
    for manifest in MANIFESTS.iter().chain(dns.then_some(&DNS_MANIFEST)) {
        // The namespaces are made by the API server a moment after it is ready.
        crate::wait_for("the first manifests to be taken", Duration::from_mins(1), || {
            cluster.apply(manifest).map(Some)
        })?;
    }
    Ok(())
}

/// Waits until the API server says that it is ready.
fn wait_ready(cluster: &Cluster) -> anyhow::Result<()> {
    crate::wait_for("the API server to be ready", STEP, || {
        for name in ["etcd", "kube-apiserver"] {
            let process = cluster.process(MACHINE, name)?;
            if !process.running() {
                return Err(Fatal(format!("{name} has ended:\n{}", process.log_tail(20))).into());
            }
        }
        cluster.kubectl(&["get", "--raw", "/readyz"]).map(|_| Some(()))
    })
    .with_context(|| cluster.log_tails(10, Some("kube-apiserver")))
}

/// Splits a command line at its spaces.
pub(super) fn arguments(line: &str) -> Vec<String> {
    line.split_whitespace().map(str::to_owned).collect()
}
