//! Command line and environment, as typed. `config` merges them with the configuration file and checks the sum.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    num::NonZeroUsize,
    path::PathBuf,
    time::Duration,
};

use clap::Parser;
use spillway_daemon::DaemonArgs;

/// A virtual kubelet: registers a Kubernetes node whose pods run on serverless containers.
///
/// Beside a container runtime (`--provider cri`, the default) it asks for a node's certificate with --bootstrap-kubeconfig, as a
/// kubelet does. In a cluster it uses its pod's service account, which needs the right to impersonate the user `system:node:NAME`
/// and the group `system:nodes`, and nothing else. Flags and environment variables win over the file given by --config.
#[derive(Debug, Clone, Parser)]
#[command(name = "spillway-vk", version, max_term_width = 110)]
pub struct Args {
    /// YAML file with the node's capacity, labels, taints, cluster DNS and provider settings.
    #[arg(long, value_name = "FILE", env = "SPILLWAY_VK_CONFIG")]
    pub config: Option<PathBuf>,

    /// Name of the node. Default: this machine's host name, in lower case.
    #[arg(long, value_name = "NAME", env = "DEFAULT_NODE_NAME", help_heading = "Node")]
    pub nodename: Option<String>,

    /// Address that the API server and others reach this node at (its `InternalIP`). Default: the address that this machine's route to
    /// the API server starts from.
    #[arg(long, value_name = "IP", env = "VKUBELET_POD_IP", help_heading = "Node")]
    pub node_ip: Option<IpAddr>,

    /// DNS domain of the cluster, for the search path of pods. Default: cluster.local.
    #[arg(long, value_name = "DOMAIN", help_heading = "Node")]
    pub cluster_domain: Option<String>,

    /// The machine's resolver configuration, which pods get by `dnsPolicy: Default`. Default: /etc/resolv.conf. Where that names a resolver
    /// on loopback, which pods can't reach (127.0.0.53 of systemd-resolved, say), give the file behind it:
    /// /run/systemd/resolve/resolv.conf.
    #[arg(long, value_name = "FILE", help_heading = "Node")]
    pub resolv_conf: Option<PathBuf>,

    /// Pods that the node takes at most. Default: 110, or what the file says.
    #[arg(long, value_name = "N", help_heading = "Node")]
    pub max_pods: Option<u32>,

    /// Register without the taint that keeps other pods off.
    #[arg(long, help_heading = "Node")]
    pub disable_taint: bool,

    /// Key of the taint. Default: virtual-kubelet.io/provider.
    #[arg(long, value_name = "KEY", env = "VKUBELET_TAINT_KEY", help_heading = "Node")]
    pub taint_key: Option<String>,

    /// Value of the taint. Default: the provider's name.
    #[arg(long, value_name = "VALUE", env = "VKUBELET_TAINT_VALUE", help_heading = "Node")]
    pub taint_value: Option<String>,

    /// Effect of the taint: `NoSchedule` (the default), `NoExecute` or `PreferNoSchedule`. A node may set its taints only when it registers.
    #[arg(long, value_name = "EFFECT", env = "VKUBELET_TAINT_EFFECT", help_heading = "Node")]
    pub taint_effect: Option<String>,

    /// What runs the pods: `cri`, a container runtime on this machine (the default), or `none`, which runs nothing and calls every pod
    /// running.
    #[arg(long, value_name = "PROVIDER", help_heading = "Provider")]
    pub provider: Option<String>,

    /// YAML file with the provider's settings alone: what --config has under the provider's name.
    #[arg(long, value_name = "FILE", help_heading = "Provider")]
    pub provider_config: Option<PathBuf>,

    /// How many pods may be started or removed at a time.
    #[arg(long, value_name = "N", default_value = "8", help_heading = "Provider")]
    pub pod_sync_workers: NonZeroUsize,

    /// How often all that the provider has is compared with all pods of the node, although its news should tell every change.
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = positive_duration, help_heading = "Provider")]
    pub full_resync_period: Duration,

    /// How to reach the API server. With --bootstrap-kubeconfig: where to write the resulting kubeconfig (default: kubeconfig in the certificate folder).
    #[arg(long, value_name = "FILE", env = "KUBECONFIG", help_heading = "Identity")]
    pub kubeconfig: Option<PathBuf>,

    /// Kubeconfig with a bootstrap token: used to get a client certificate as `system:node:NAME` when there is no valid one in the
    /// certificate folder.
    #[arg(long, value_name = "FILE", help_heading = "Identity")]
    pub bootstrap_kubeconfig: Option<PathBuf>,

    /// Folder for certificates, keys and the resulting kubeconfig.
    #[arg(
        long,
        value_name = "FOLDER",
        default_value = "/var/lib/spillway-vk/pki",
        help_heading = "Identity"
    )]
    pub cert_dir: PathBuf,

    /// Folder for pods' volumes, and for what the nodes of a list keep. Two processes on one machine share it only where they are replicas of
    /// the same nodes.
    #[arg(long, value_name = "FOLDER", default_value = "/var/lib/spillway-vk", help_heading = "Provider")]
    pub root_dir: PathBuf,

    /// Address that the kubelet API listens on. `0.0.0.0` and `::` are both every address, of IPv4 and IPv6.
    #[arg(long, value_name = "IP", default_value = "0.0.0.0", help_heading = "Kubelet API")]
    pub kubelet_address: IpAddr,

    /// Port of the kubelet API; 0 does not serve it.
    #[arg(
        long,
        value_name = "PORT",
        default_value_t = 10250,
        env = "KUBELET_PORT",
        help_heading = "Kubelet API"
    )]
    pub kubelet_port: u16,

    /// CA bundle that clients' certificates are checked with. Default: the cluster's own, from
    /// kube-system/extension-apiserver-authentication.
    #[arg(long, value_name = "FILE", help_heading = "Kubelet API")]
    pub client_ca_file: Option<PathBuf>,

    /// Serving certificate (PEM chain), watched for changes. Default: asked of the cluster with a CSR for the signer
    /// kubernetes.io/kubelet-serving, which an admin approves.
    #[arg(
        long,
        value_name = "FILE",
        env = "APISERVER_CERT_LOCATION",
        requires = "tls_private_key_file",
        help_heading = "Kubelet API"
    )]
    pub tls_cert_file: Option<PathBuf>,

    /// Key of the serving certificate (PEM).
    #[arg(
        long,
        value_name = "FILE",
        env = "APISERVER_KEY_LOCATION",
        requires = "tls_cert_file",
        help_heading = "Kubelet API"
    )]
    pub tls_private_key_file: Option<PathBuf>,

    /// Serve with a certificate of our own making. API servers with --kubelet-certificate-authority refuse it, others don't look.
    #[arg(long, conflicts_with = "tls_cert_file", help_heading = "Kubelet API")]
    pub self_signed: bool,

    /// Only act for a node while holding its lease, so that several processes can stand by for one node. Each needs a certificate folder
    /// of its own, and on one machine a kubelet port and an admin address of its own.
    #[arg(
        long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_value_t = false, default_missing_value = "true",
        action = clap::ArgAction::Set, help_heading = "Leader election"
    )]
    pub leader_elect: bool,

    /// How long others leave a lease alone that is not renewed.
    #[arg(long, value_name = "DURATION", default_value = "15s", value_parser = positive_duration, help_heading = "Leader election")]
    pub leader_elect_lease_duration: Duration,

    /// How long the holder acts after its last renewal. Less than the lease's duration.
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = positive_duration, help_heading = "Leader election")]
    pub leader_elect_renew_deadline: Duration,

    /// How long to wait between tries to get or renew the lease.
    #[arg(long, value_name = "DURATION", default_value = "2s", value_parser = positive_duration, help_heading = "Leader election")]
    pub leader_elect_retry_period: Duration,

    /// Fail when not everything that /readyz asks for holds so long after the start. 0s: wait for ever.
    #[arg(long, value_name = "DURATION", default_value = "0s", value_parser = duration)]
    pub startup_timeout: Duration,

    /// Seconds that a shutdown may take. Pods go on running.
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    pub shutdown_grace_seconds: u64,

    /// The admin endpoint under the name that other virtual kubelets give it; wins over --admin-address. `:PORT` is every address, of IPv4 and IPv6.
    #[arg(long, value_name = "ADDRESS", value_parser = metrics_address, help_heading = "Telemetry")]
    pub metrics_addr: Option<SocketAddr>,

    /// Telemetry and the admin endpoint.
    #[command(flatten)]
    pub daemon: DaemonArgs,
}

impl Args {
    /// Where the admin endpoint listens, if it does.
    pub fn admin_address(&self) -> Option<SocketAddr> {
        self.metrics_addr.or(self.daemon.admin_address.0)
    }
}

fn metrics_address(text: &str) -> Result<SocketAddr, String> {
    let everywhere = text.strip_prefix(':').and_then(|port| port.parse().ok());
    match everywhere {
        Some(port) => Ok(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port)),
        None => {
            text.parse().map_err(|_| "expected ADDRESS:PORT or :PORT, such as 127.0.0.1:10255".to_owned())
        }
    }
}

fn positive_duration(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        Duration::ZERO => Err("it must be more than nothing".to_owned()),
        duration => Ok(duration),
    }
}

/// As Go writes durations, and so all flags of Kubernetes: `15s`, `1m30s`, `500ms`, `1.5h`.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let problem = || format!("{text:?} is no duration, such as 15s, 1m30s or 500ms");
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let mut rest = text;
    let mut sum = Duration::ZERO;
    while !rest.is_empty() {
        let end = rest.find(|next: char| !next.is_ascii_digit() && next != '.').ok_or_else(problem)?;
        let (number, after) = rest.split_at(end);
        let end = after.find(|next: char| next.is_ascii_digit() || next == '.').unwrap_or(after.len());
        let (unit, after) = after.split_at(end);
        let seconds = match unit {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" => 1e-6,
            "ns" => 1e-9,
            _ => return Err(problem()),
        };
        let number: f64 = number.parse().map_err(|_| problem())?;
        let part = Duration::try_from_secs_f64(number * seconds).map_err(|_| problem())?;
        sum = sum.checked_add(part).ok_or_else(problem)?;
        rest = after;
    }
    if text.is_empty() { Err(problem()) } else { Ok(sum) }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn command_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn durations_are_written_as_go_writes_them() {
        for (text, milliseconds) in
            [("15s", 15_000), ("1m30s", 90_000), ("500ms", 500), ("1.5h", 5_400_000), ("0", 0), ("0s", 0)]
        {
            assert_eq!(duration(text), Ok(Duration::from_millis(milliseconds)), "{text}");
        }
        for text in ["", "15", "s", "1d", "-1s", "1s2", "1..5s", "999999999999999999999h", "15 s"] {
            assert!(duration(text).is_err(), "{text}");
        }
        assert!(positive_duration("0s").is_err());
    }

    #[test]
    fn flags_of_others_are_taken_as_they_are_written_there() {
        let parse = |flags: &[&str]| Args::parse_from([&["spillway-vk"], flags].concat());
        assert!(!parse(&[]).leader_elect);
        assert!(parse(&["--leader-elect"]).leader_elect);
        assert!(!parse(&["--leader-elect=false"]).leader_elect);
        let address = |flags: &[&str]| parse(flags).admin_address().map(|address| address.to_string());
        assert_eq!(address(&["--metrics-addr", ":10255"]).as_deref(), Some("0.0.0.0:10255"));
        assert_eq!(address(&["--admin-address", "off"]), None);
        assert_eq!(address(&[]).as_deref(), Some("127.0.0.1:9400"));
    }

    #[test]
    fn a_certificate_needs_its_key() {
        let error = Args::try_parse_from(["spillway-vk", "--tls-cert-file", "/c"]).unwrap_err();
        assert!(error.to_string().contains("--tls-private-key-file"), "{error}");
    }
}
