//! Command line and environment, as typed. `config` merges them with the configuration file and checks the sum.

use std::{net::IpAddr, path::PathBuf};

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

    /// Address that the kubelet API listens on.
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

    /// Seconds that a shutdown may take. Pods go on running.
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    pub shutdown_grace_seconds: u64,

    /// Telemetry and the admin endpoint.
    #[command(flatten)]
    pub daemon: DaemonArgs,
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
    fn a_certificate_needs_its_key() {
        let error = Args::try_parse_from(["spillway-vk", "--tls-cert-file", "/c"]).unwrap_err();
        assert!(error.to_string().contains("--tls-private-key-file"), "{error}");
    }
}
