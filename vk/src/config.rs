//! What the daemon shall do: the command line merged with the configuration file, checked. Nothing else reads either, and nothing
//! here touches the network.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use k8s_openapi::{api::core::v1::Taint, apimachinery::pkg::api::resource::Quantity};

use crate::{args::Args, provider::cri::CriConfig};

mod file;

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

/// The whole configuration.
#[derive(Debug, Clone)]
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
    /// What a shutdown may take.
    pub shutdown_grace: Duration,
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
    /// Merges flags, environment and file.
    pub fn load(args: &Args) -> Result<Self, ConfigError> {
        let mut file = match &args.config {
            Some(path) => file::parse::<file::File>(path, &read(path)?)?,
            None => file::File::default(),
        };
        let provider = match args.provider.clone().or(file.provider.take()).as_deref() {
            None | Some("cri") => {
                let settings = match &args.provider_config {
                    Some(path) => file::parse::<CriConfig>(path, &read(path)?)?,
                    None => file.cri.take().unwrap_or_default(),
                };
                ProviderConfig::Cri(settings)
            }
            Some("none") => ProviderConfig::None,
            Some(other) => {
                return Err(ConfigError::Value(format!(
                    "unknown provider {other:?}: choose `cri` or `none`"
                )));
            }
        };
        let name = match args.nodename.clone().or(file.node_name.take()) {
            Some(name) => name,
            None => nix::unistd::gethostname()
                .map_err(|errno| ConfigError::HostName(errno.into()))?
                .to_string_lossy()
                .to_lowercase(),
        };
        if !is_dns_subdomain(&name) {
            return Err(ConfigError::Value(format!(
                "node name {name:?} is no DNS name (a-z, 0-9, '-' and '.', 253 at most): choose another with --nodename"
            )));
        }
        let taints = taints(args, file.taints, provider.name())?;
        Ok(Self {
            node: NodeConfig {
                name,
                address: args.node_ip.or(file.node_ip),
                labels: file.labels,
                annotations: file.annotations,
                taints,
                capacity: file.capacity.into_iter().map(|(name, amount)| (name, amount.into())).collect(),
            },
            provider,
            identity: IdentityConfig {
                kubeconfig: args.kubeconfig.clone(),
                bootstrap_kubeconfig: args.bootstrap_kubeconfig.clone(),
                cert_dir: args.cert_dir.clone(),
            },
            kubelet_api: (args.kubelet_port != 0).then(|| kubelet_api(args)),
            cluster_dns: file.cluster_dns,
            cluster_domain: args
                .cluster_domain
                .clone()
                .or(file.cluster_domain)
                .unwrap_or_else(|| "cluster.local".to_owned()),
            shutdown_grace: Duration::from_secs(args.shutdown_grace_seconds),
        })
    }
}

fn kubelet_api(args: &Args) -> KubeletApiConfig {
    let serving = match (&args.tls_cert_file, &args.tls_private_key_file) {
        (Some(certificate), Some(key)) => {
            ServingSource::Files { certificate: certificate.clone(), key: key.clone() }
        }
        _ if args.self_signed => ServingSource::SelfSigned,
        _ => ServingSource::Csr,
    };
    KubeletApiConfig {
        address: SocketAddr::new(args.kubelet_address, args.kubelet_port),
        client_ca_file: args.client_ca_file.clone(),
        serving,
    }
}

/// The provider's taint unless it is disabled, then the file's.
fn taints(args: &Args, file: Vec<file::FileTaint>, provider: &str) -> Result<Vec<Taint>, ConfigError> {
    let own = if args.disable_taint {
        None
    } else {
        let effect = args.taint_effect.clone().unwrap_or_else(|| "NoSchedule".to_owned());
        let effect = file::Effect::try_from(effect).map_err(|message| {
            ConfigError::Value(format!("--taint-effect (VKUBELET_TAINT_EFFECT): {message}"))
        })?;
        Some(Taint {
            key: args.taint_key.clone().unwrap_or_else(|| "virtual-kubelet.io/provider".to_owned()),
            value: Some(args.taint_value.clone().unwrap_or_else(|| provider.to_owned())),
            effect: effect.into(),
            time_added: None,
        })
    };
    Ok(own.into_iter().chain(file.into_iter().map(Taint::from)).collect())
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
