//! What the daemon shall do: the command line merged with the configuration file, checked. Nothing else reads either, and nothing
//! here touches the network.
//!
//! A file without `nodes` describes one virtual node. With it each entry is one, and what stands beside `nodes` holds for all of them.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use k8s_openapi::{api::core::v1::Taint, apimachinery::pkg::api::resource::Quantity};

use crate::{args::Args, node::pressure::Thresholds, pod::image_gc::ImageGc, provider::cri::CriConfig};

mod devices;
mod file;
mod metadata;
mod nodes;
pub mod reload;
mod resources;
mod taints;

/// Why there is no configuration. Each is one line that says where and what.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file can't be read.
    #[error("can't read configuration file {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// The file is no valid configuration.
    #[error("{}:{line}:{column}: {message}", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// Line, from 1; 0 when unknown.
        line: u64,
        /// Column, from 1.
        column: u64,
        /// What is wrong, naming the key.
        message: String,
    },
    /// A flag or variable has a value that can't be.
    #[error("{0}")]
    Value(String),
    /// This machine's host name is of no use.
    #[error("this machine's host name can't be read: name the node with --nodename")]
    HostName(#[source] std::io::Error),
}

/// The whole configuration of one virtual node.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// The node that we are.
    pub node: NodeConfig,
    /// What runs the pods.
    pub provider: ProviderConfig,
    /// Who we are towards the API server.
    pub identity: IdentityConfig,
    /// The kubelet API; `None` does not serve it.
    pub kubelet_api: Option<KubeletApiConfig>,
    /// Addresses of the cluster's DNS service.
    pub cluster_dns: Vec<IpAddr>,
    /// DNS domain of the cluster.
    pub cluster_domain: String,
    /// The machine's resolver configuration.
    pub resolv_conf: PathBuf,
    /// When unused images go.
    pub image_gc: ImageGc,
    /// Folder for pods' volumes.
    pub root_dir: PathBuf,
    /// How many pods may be started or removed at a time.
    pub pod_sync_workers: usize,
    /// How often the provider's complete list is read.
    pub full_resync_period: Duration,
    /// How replicas agree on who acts for the node; `None`: there is one process.
    pub leader_election: Option<LeaderElection>,
    /// What a shutdown may take.
    pub shutdown_grace: Duration,
}

/// How replicas agree on who acts. Retry < renew deadline < lease duration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeaderElection {
    /// How long a lease that is not renewed is left alone.
    pub lease_duration: Duration,
    /// How long its holder acts after the last renewal.
    pub renew_deadline: Duration,
    /// Between tries.
    pub retry_period: Duration,
}

/// The node object.
#[derive(Debug, Clone, PartialEq)]
pub struct NodeConfig {
    /// Its name.
    pub name: String,
    /// Its `InternalIP`; found by the route to the API server without.
    pub address: Option<IpAddr>,
    /// Labels beside the well-known ones.
    pub labels: BTreeMap<String, String>,
    /// Annotations.
    pub annotations: BTreeMap<String, String>,
    /// All its taints at registration.
    pub taints: Vec<Taint>,
    /// Capacity as configured; what is missing of cpu, memory, pods and ephemeral-storage is the machine's.
    pub capacity: BTreeMap<String, Quantity>,
    /// What the node offers at most, whatever its capacity.
    pub quota: BTreeMap<String, Quantity>,
    /// When it is short of what pods share.
    pub thresholds: Thresholds,
}

/// What runs the pods, and its settings.
#[derive(Debug, Clone, PartialEq)]
pub enum ProviderConfig {
    /// A container runtime beside us.
    Cri(CriConfig),
    /// Nothing.
    None,
}

impl ProviderConfig {
    /// The provider's name, as in flags, labels and taints.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Cri(_) => "cri",
            Self::None => "none",
        }
    }
}

/// Who we are towards the API server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdentityConfig {
    /// Kubeconfig to use, or to write after a bootstrap.
    pub kubeconfig: Option<PathBuf>,
    /// Kubeconfig to get the first certificate with.
    pub bootstrap_kubeconfig: Option<PathBuf>,
    /// Folder of certificates and keys.
    pub cert_dir: PathBuf,
}

/// The kubelet API.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KubeletApiConfig {
    /// Where it listens.
    pub address: SocketAddr,
    /// CA bundle for clients' certificates; the cluster's own without.
    pub client_ca_file: Option<PathBuf>,
    /// Where the serving certificate comes from.
    pub serving: ServingSource,
}

/// Where the serving certificate comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServingSource {
    /// Asked of the cluster.
    Csr,
    /// Files of the admin's.
    Files {
        /// PEM chain.
        certificate: PathBuf,
        /// PEM key.
        key: PathBuf,
    },
    /// Made here.
    SelfSigned,
}

impl Config {
    /// Merges flags, environment and file: one configuration a virtual node, at least one.
    pub fn load(args: &Args) -> Result<Vec<Self>, ConfigError> {
        let mut file = match &args.config {
            Some(path) => file::parse::<file::File>(path, &read(path)?)?,
            None => file::File::default(),
        };
        let leader_election = leader_election(args)?;
        let (entries, several) = if let Some(nodes) = file.nodes.take() {
            (nodes::check(args, &file, nodes)?, true)
        } else {
            let name = node_name(args, file.node_name.take())?;
            (vec![file::FileNode { name, ..Default::default() }], false)
        };
        let base = nodes::Base { args, file: &file, leader_election, several };
        let configs = entries.iter().map(|entry| base.node(entry)).collect::<Result<Vec<_>, _>>()?;
        nodes::check_together(&configs)?;
        Ok(configs)
    }
}

fn node_name(args: &Args, file: Option<String>) -> Result<String, ConfigError> {
    match args.nodename.clone().or(file) {
        Some(name) => Ok(name),
        None => Ok(nix::unistd::gethostname()
            .map_err(|errno| ConfigError::HostName(errno.into()))?
            .to_string_lossy()
            .to_lowercase()),
    }
}

fn leader_election(args: &Args) -> Result<Option<LeaderElection>, ConfigError> {
    let election = LeaderElection {
        lease_duration: args.leader_elect_lease_duration,
        renew_deadline: args.leader_elect_renew_deadline,
        retry_period: args.leader_elect_retry_period,
    };
    // A lease says its duration in whole seconds.
    if election.lease_duration < Duration::from_secs(1)
        || election.lease_duration <= election.renew_deadline
        || election.renew_deadline <= election.retry_period
    {
        return Err(ConfigError::Value(
            "--leader-elect-lease-duration must be more than --leader-elect-renew-deadline and at least 1s, and that more than \
             --leader-elect-retry-period"
                .to_owned(),
        ));
    }
    Ok(args.leader_elect.then_some(election))
}

fn read(path: &Path) -> Result<String, ConfigError> {
    std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })
}

/// RFC 1123, as Kubernetes checks the name of a node.
fn is_dns_subdomain(name: &str) -> bool {
    let label = |label: &str| {
        label.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
            && !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    name.len() <= 253 && name.split('.').all(label)
}

#[cfg(test)]
mod tests;
