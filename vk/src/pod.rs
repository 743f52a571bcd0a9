//! The pods of the node: what the API server wants of them against what the provider has of them, until they agree.
//!
//! One task per pod UID ([`worker`]) observes, decides by pure functions over values, acts, and writes the status. Nothing is
//! kept on disk but the pods' own files: after a restart everything follows from the API server and the provider's complete list.
//! Only what the provider marks as this node's and what no complete list of the API server has is ever cleaned up.

mod access;
mod admission;
mod allocation;
mod devices;
pub mod env;
pub(crate) mod ephemeral;
mod events;
mod files;
mod fit;
mod host_path;
pub mod image_gc;
mod leaving;
mod ledger;
mod lifecycle;
mod mounts;
mod network;
mod objects;
mod ports;
mod probe;
mod pull;
pub(crate) mod resources;
mod run;
mod slim;
mod spec;
mod status;
mod storage;
mod store;
pub mod subpath;
mod volumes;
mod worker;

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use k8s_openapi::api::core::v1::Pod;

use self::image_gc::ImageGc;
use crate::{lead::Lead, provider::Provider};

pub use probe::counts::{BOUNDS, Count as ProbeCount, Probed};

/// What the pods have to know of their node.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Name of the node.
    pub node_name: String,
    /// Addresses of the machine that the pods run on: one, or one of each family.
    pub host_ips: Vec<IpAddr>,
    /// Addresses of the cluster's DNS service; none: pods use the machine's DNS.
    pub cluster_dns: Vec<IpAddr>,
    /// DNS domain of the cluster.
    pub cluster_domain: String,
    /// The machine's resolver configuration, for pods that use its DNS.
    pub resolv_conf: PathBuf,
    /// The kernel's file that says whether it enforces `AppArmor` profiles.
    pub apparmor: PathBuf,
    /// Folder for volumes; on the machine that the pods run on.
    pub root_dir: PathBuf,
    /// CDI names of the devices that the node offers, by resource.
    pub devices: BTreeMap<String, Vec<String>>,
    /// How many pods may be started or removed at a time.
    pub concurrent_changes: usize,
    /// How often the provider's complete list is read, although its news should tell everything.
    pub relist: Duration,
    /// When unused images go.
    pub image_gc: ImageGc,
    /// Whether this process may act.
    pub lead: Lead,
}

impl Settings {
    /// Defaults, for a node of this name at these addresses.
    pub fn new(node_name: &str, host_ips: Vec<IpAddr>) -> Self {
        Self {
            node_name: node_name.to_owned(),
            host_ips,
            cluster_dns: Vec::new(),
            cluster_domain: "cluster.local".to_owned(),
            resolv_conf: PathBuf::from("/etc/resolv.conf"),
            apparmor: PathBuf::from("/sys/module/apparmor/parameters/enabled"),
            root_dir: PathBuf::from("/var/lib/spillway-vk"),
            devices: BTreeMap::new(),
            concurrent_changes: 8,
            relist: Duration::from_secs(30),
            image_gc: ImageGc::default(),
            lead: Lead::always(),
        }
    }
}

/// Why the pods can't be looked after any longer.
#[derive(Debug, thiserror::Error)]
pub enum PodsError {
    /// The folder for volumes can't be made.
    #[error("can't make folder {}", path.display())]
    RootDir {
        /// The folder.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// A part of this ended although nobody asked it to.
    #[error("{0} ended although nothing asked it to")]
    Ended(&'static str),
}

/// All pods of the node.
pub struct Pods {
    client: kube::Client,
    provider: Provider,
    settings: Settings,
    store: store::Store,
    probed: Arc<probe::counts::Counts>,
}

impl Pods {
    /// Nothing happens before [`Pods::run`].
    pub fn new(client: kube::Client, provider: Provider, settings: Settings) -> Self {
        Self { client, provider, settings, store: store::Store::default(), probed: Arc::default() }
    }

    /// The newest state of a pod that the API server has, by name.
    pub fn get(&self, namespace: &str, name: &str) -> Option<Arc<Pod>> {
        self.store.by_name(namespace, name)
    }

    /// The newest state of all pods that the API server has.
    pub fn list(&self) -> Vec<Arc<Pod>> {
        self.store.pods()
    }

    /// How many of these are in each phase.
    pub fn phases(&self) -> HashMap<String, usize> {
        self.store.phases()
    }

    /// What the pods' probes have found, where they are asked here and not by the provider.
    pub fn probed(&self) -> Vec<Probed> {
        self.probed.list()
    }
}
