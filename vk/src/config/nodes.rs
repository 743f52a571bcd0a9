//! From the file and the flags to each virtual node's configuration. Flags win over what holds for all nodes; what an entry of `nodes` says
//! itself wins over both.

use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf, time::Duration};

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use super::{
    Config, ConfigError, IdentityConfig, KubeletApiConfig, LeaderElection, NodeConfig, ProviderConfig,
    ServingSource, devices,
    file::{self, File, FileNode},
    is_dns_subdomain,
    metadata::MAX_NAME,
    read, taints,
};
use crate::{
    args::Args,
    node::pressure::{self, Signal, Thresholds},
    pod::image_gc::ImageGc,
    provider::cri::CriConfig,
};

/// The label that is a node's name where nothing else is said.
const HOSTNAME: &str = "kubernetes.io/hostname";

/// What all nodes share.
pub(super) struct Base<'a> {
    pub(super) args: &'a Args,
    pub(super) file: &'a File,
    pub(super) leader_election: Option<LeaderElection>,
    /// The nodes come from a list, so that each has folders of its own.
    pub(super) several: bool,
}

/// What can't stand beside a list of nodes.
pub(super) fn check(args: &Args, file: &File, nodes: Vec<FileNode>) -> Result<Vec<FileNode>, ConfigError> {
    let problem = |text: &str| Err(ConfigError::Value(text.to_owned()));
    if nodes.is_empty() {
        return problem("nodes: the list is empty: name at least one node, or leave the key out");
    }
    if args.nodename.is_some() {
        return problem(
            "--nodename (DEFAULT_NODE_NAME) names one node, and the file has a list, `nodes`: leave one of them out",
        );
    }
    if file.node_name.is_some() {
        return problem("nodeName names one node, and the file has a list, `nodes`: leave one of them out");
    }
    if args.bootstrap_kubeconfig.is_some() && args.kubeconfig.is_some() {
        return problem(
            "--kubeconfig (KUBECONFIG) is where a bootstrap writes one node's kubeconfig; with a list, `nodes`, leave it out: each node's is \
             in its folder below --cert-dir",
        );
    }
    Ok(nodes)
}

/// What can't be in two nodes of one process.
pub(super) fn check_together(configs: &[Config]) -> Result<(), ConfigError> {
    for (index, one) in configs.iter().enumerate() {
        for other in &configs[..index] {
            let (name, before) = (&one.node.name, &other.node.name);
            if name == before {
                return Err(ConfigError::Value(format!("nodes: there are two called {name:?}")));
            }
            if let (Some(one), Some(other)) = (&one.kubelet_api, &other.kubelet_api)
                && one.address.port() == other.address.port()
                && (one.address.ip() == other.address.ip()
                    || one.address.ip().is_unspecified()
                    || other.address.ip().is_unspecified())
            {
                return Err(ConfigError::Value(format!(
                    "nodes {before:?} and {name:?} both listen on port {}: paths of the kubelet API name no node, so give each a kubeletPort",
                    one.address.port()
                )));
            }
            if let (ProviderConfig::Cri(one), ProviderConfig::Cri(other)) = (&one.provider, &other.provider)
                && let Some(device) = devices::shared(&one.devices, &other.devices)
            {
                return Err(ConfigError::Value(format!(
                    "nodes {before:?} and {name:?} both offer device {device:?}: it goes to one container only, so list it once"
                )));
            }
            if let (ProviderConfig::Cri(one), ProviderConfig::Cri(other)) = (&one.provider, &other.provider)
                && one.cgroup_root == other.cgroup_root
            {
                return Err(ConfigError::Value(format!(
                    "nodes {before:?} and {name:?} have the same cri.cgroupRoot {:?}: give each one of its own, or none",
                    one.cgroup_root
                )));
            }
        }
    }
    Ok(())
}

impl Base<'_> {
    pub(super) fn node(&self, entry: &FileNode) -> Result<Config, ConfigError> {
        let (args, file) = (self.args, self.file);
        let name = entry.name.clone();
        if !is_dns_subdomain(&name) {
            let remedy = if self.several { "in nodes" } else { "with --nodename" };
            return Err(ConfigError::Value(format!(
                "node name {name:?} is no DNS name (a-z, 0-9, '-' and '.', 253 at most): choose another {remedy}"
            )));
        }
        let provider = self.provider(entry)?;
        let taints = taints::of(&name, args, provider.name(), file.taints.iter().chain(&entry.taints))?;
        let labels = merged(&file.labels, &entry.labels);
        if name.len() > MAX_NAME && !labels.contains_key(HOSTNAME) {
            return Err(ConfigError::Value(format!(
                "node name {name:?} has more than the {MAX_NAME} characters that the label {HOSTNAME} can have: choose a shorter one, or set that label"
            )));
        }
        let mut capacity = file.capacity.with(&entry.capacity);
        if let Some(pods) = entry.max_pods.or(args.max_pods).or(file.max_pods) {
            capacity.insert("pods".to_owned(), Quantity(pods.to_string()));
        }
        if let ProviderConfig::Cri(settings) = &provider {
            devices::offer(&settings.devices, &mut capacity)?;
        }
        let own_folder = |folder: PathBuf| if self.several { folder.join(&name) } else { folder };
        let port = entry.kubelet_port.unwrap_or(args.kubelet_port);
        let address = entry.kubelet_address.unwrap_or(args.kubelet_address);
        Ok(Config {
            node: NodeConfig {
                address: entry.node_ip.or(args.node_ip).or(file.node_ip),
                labels,
                annotations: merged(&file.annotations, &entry.annotations),
                taints,
                capacity,
                quota: file.quota.with(&entry.quota),
                thresholds: thresholds(file),
                name: name.clone(),
            },
            provider,
            identity: IdentityConfig {
                kubeconfig: args.kubeconfig.clone(),
                bootstrap_kubeconfig: args.bootstrap_kubeconfig.clone(),
                cert_dir: own_folder(args.cert_dir.clone()),
            },
            kubelet_api: (port != 0).then(|| kubelet_api(args, SocketAddr::new(address, port))),
            cluster_dns: file.cluster_dns.clone(),
            cluster_domain: args
                .cluster_domain
                .clone()
                .or(file.cluster_domain.clone())
                .unwrap_or_else(|| "cluster.local".to_owned()),
            resolv_conf: args
                .resolv_conf
                .clone()
                .or(file.resolv_conf.clone())
                .unwrap_or_else(|| PathBuf::from("/etc/resolv.conf")),
            image_gc: image_gc(file)?,
            root_dir: if self.several {
                own_folder(args.root_dir.join("nodes"))
            } else {
                args.root_dir.clone()
            },
            pod_sync_workers: args.pod_sync_workers.get(),
            full_resync_period: args.full_resync_period,
            leader_election: self.leader_election,
            shutdown_grace: Duration::from_secs(args.shutdown_grace_seconds),
        })
    }

    fn provider(&self, entry: &FileNode) -> Result<ProviderConfig, ConfigError> {
        let (args, file) = (self.args, self.file);
        match entry
            .provider
            .as_ref()
            .or(args.provider.as_ref())
            .or(file.provider.as_ref())
            .map(String::as_str)
        {
            None | Some("cri") => {
                let mut settings = match (&entry.cri, &args.provider_config) {
                    (Some(settings), _) => settings.clone(),
                    (None, Some(path)) => file::parse::<CriConfig>(path, &read(path)?)?,
                    (None, None) => file.cri.clone().unwrap_or_default(),
                };
                let own_root =
                    entry.cri.as_ref().is_some_and(|cri| cri.cgroup_root != CriConfig::default().cgroup_root);
                if self.several && !own_root {
                    settings.cgroup_root =
                        format!("{}/{}", settings.cgroup_root.trim_end_matches('/'), entry.name);
                }
                Ok(ProviderConfig::Cri(settings))
            }
            Some("none") => Ok(ProviderConfig::None),
            Some(other) => {
                Err(ConfigError::Value(format!("unknown provider {other:?}: choose `cri` or `none`")))
            }
        }
    }
}

fn merged<K: Clone + Into<String>, V: Clone + Into<String>>(
    all: &BTreeMap<K, V>,
    own: &BTreeMap<K, V>,
) -> BTreeMap<String, String> {
    all.iter().chain(own).map(|(key, value)| (key.clone().into(), value.clone().into())).collect()
}

/// As a kubelet's `evictionHard`: what is named replaces all of the defaults.
fn thresholds(file: &File) -> Thresholds {
    match &file.eviction_hard {
        Some(given) => given.iter().map(|(signal, limit)| (signal.0, limit.0)).collect(),
        None => pressure::defaults(),
    }
}

/// As a kubelet's settings of the same names, which also are its defaults.
fn image_gc(file: &File) -> Result<ImageGc, ConfigError> {
    let usual = ImageGc::default();
    let high_percent = file.image_gc_high_threshold_percent.map_or(usual.high_percent, |percent| percent.0);
    let low_percent = file.image_gc_low_threshold_percent.map_or(usual.low_percent, |percent| percent.0);
    if low_percent >= high_percent {
        return Err(ConfigError::Value(format!(
            "imageGCLowThresholdPercent ({low_percent}) must be less than imageGCHighThresholdPercent ({high_percent})"
        )));
    }
    let minimum_age = file.image_minimum_gc_age.map_or(usual.minimum_age, |age| age.0);
    let maximum_age = file.image_maximum_gc_age.map_or(usual.maximum_age, |age| age.0);
    if !maximum_age.is_zero() && maximum_age <= minimum_age {
        return Err(ConfigError::Value(format!(
            "imageMaximumGCAge ({maximum_age:?}) must be more than imageMinimumGCAge ({minimum_age:?}), or 0s: never"
        )));
    }
    Ok(ImageGc {
        high_percent,
        low_percent,
        minimum_age,
        maximum_age,
        all_images: file.image_gc_all_images,
        shortage: thresholds(file).get(&Signal::ImageFs).copied(),
    })
}

fn kubelet_api(args: &Args, address: SocketAddr) -> KubeletApiConfig {
    let serving = match (&args.tls_cert_file, &args.tls_private_key_file) {
        (Some(certificate), Some(key)) => {
            ServingSource::Files { certificate: certificate.clone(), key: key.clone() }
        }
        _ if args.self_signed => ServingSource::SelfSigned,
        _ => ServingSource::Csr,
    };
    KubeletApiConfig { address, client_ca_file: args.client_ca_file.clone(), serving }
}
