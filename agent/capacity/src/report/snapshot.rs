//! What a report is made of: a cluster at one moment, with no more of each object than is looked at. Made of the API's objects by
//! [`crate::cluster`].

mod names;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    Affinity, NodeSelector, PodAffinityTerm, Taint, Toleration, TopologySpreadConstraint,
};
use serde::Deserialize;

pub use self::names::{Amounts, Names, ResourceId};

/// Labels of an object.
pub type Labels = BTreeMap<Arc<str>, Arc<str>>;

/// A node as it is.
#[derive(Debug, Clone, Default)]
pub struct Node {
    /// Its name.
    pub name: Arc<str>,
    /// Its labels.
    pub labels: Arc<Labels>,
    /// What keeps pods off that don't tolerate it.
    pub taints: Vec<Taint>,
    /// Whether it is cordoned.
    pub cordoned: bool,
    /// Why it isn't Ready, where it isn't.
    pub not_ready: Option<String>,
    /// What it has.
    pub capacity: Amounts,
    /// What pods may have of it.
    pub allocatable: Amounts,
    /// The largest groups that can be had together, by resource, where Spillway's agent tells them (`spillway.dev/largest-group`).
    pub groups: BTreeMap<String, Group>,
    /// Who provides it, where it is a virtual one.
    pub provider: Option<Arc<str>>,
}

/// A kubelet's `topologyManagerPolicy`, by what it does with a pod whose devices are on several NUMA nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NumaPolicy {
    /// `none`, `best-effort`: it runs.
    Lenient,
    /// `restricted`: it is refused if fewer NUMA nodes could hold as many devices, were they free.
    Restricted,
    /// `single-numa-node`: it is refused.
    SingleNode,
}

/// How many free devices of one resource can be had together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
pub struct Group {
    /// Connected by `NVLink`, where that is known.
    pub nvlink: Option<i64>,
    /// On one NUMA node.
    pub numa: Option<i64>,
    /// On the machine.
    pub node: Option<i64>,
}

/// How far a pod is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Phase {
    /// Not all of it has started.
    #[default]
    Pending,
    /// It runs, or nobody knows.
    Running,
    /// It has ended, well or not, and holds nothing.
    Ended,
}

/// A pod as it is.
#[derive(Debug, Clone, Default)]
pub struct Pod {
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
    /// Its labels.
    pub labels: Arc<Labels>,
    /// What made it: `Job/train`; nothing where a person did.
    pub owner: Option<Arc<str>>,
    /// Where it is bound to.
    pub node: Option<Arc<str>>,
    /// How far it is.
    pub phase: Phase,
    /// Whether it was told to end.
    pub ending: bool,
    /// Whether the scheduler told it so, for another of higher priority.
    pub preempted: bool,
    /// When it was made.
    pub created: Option<Timestamp>,
    /// Since when it has its node.
    pub bound: Option<Timestamp>,
    /// What the scheduler sets aside for it.
    pub requests: Amounts,
    /// Its containers that ask for extended resources and do not run: why, and since when. Only where none of them runs.
    pub stands: Option<Stands>,
    /// Why it can't start though it has its machine; of pending ones only.
    pub stuck: Option<Stuck>,
    /// Its priority.
    pub priority: i32,
    /// Ports of the host that it takes.
    pub ports: Vec<HostPort>,
    /// Whom it refuses to have near, whoever comes second.
    pub refuses: Vec<PodAffinityTerm>,
    /// Where it may go; of those that wait only.
    pub wish: Option<Box<Wish>>,
}

/// A container that stands still.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stands {
    /// In Kubernetes' word: `ImagePullBackOff`.
    pub why: String,
    /// Since when.
    pub since: Option<Timestamp>,
}

/// A container that its machine can't start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stuck {
    /// The container's name.
    pub container: String,
    /// In Kubernetes' word: `ImagePullBackOff`.
    pub why: String,
    /// The kubelet's words.
    pub said: Option<String>,
}

/// A port of the host: address, protocol, number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostPort {
    /// `0.0.0.0` is every one.
    pub address: String,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
    /// From 1.
    pub port: i32,
}

/// Where a pod that waits may go.
#[derive(Debug, Clone, Default)]
pub struct Wish {
    /// Labels that its node must have.
    pub selector: BTreeMap<String, String>,
    /// Of nodes and of other pods.
    pub affinity: Affinity,
    /// Taints that it stands.
    pub tolerations: Vec<Toleration>,
    /// How its like shall be spread.
    pub spread: Vec<TopologySpreadConstraint>,
    /// What must be taken away before anybody looks for a node.
    pub gates: Vec<String>,
    /// Who looks for a node.
    pub scheduler: String,
    /// What that one said last.
    pub said: Option<String>,
    /// Whether it ends nobody, whatever its priority (`preemptionPolicy: Never`).
    pub polite: bool,
    /// Where others are being ended for it.
    pub nominated: Option<Arc<str>>,
    /// What it claims, and must have before it can start.
    pub claims: Vec<ClaimName>,
    /// The `PodGroup` that it names.
    pub group: Option<Arc<str>>,
}

impl Wish {
    /// Whether another one demands the same; what the scheduler said when, and what claims are called, may differ.
    pub fn same(&self, other: &Self) -> bool {
        let Self {
            selector,
            affinity,
            tolerations,
            spread,
            gates,
            scheduler,
            said: _,
            polite,
            nominated,
            claims: _,
            group,
        } = self;
        *selector == other.selector
            && *affinity == other.affinity
            && *tolerations == other.tolerations
            && *spread == other.spread
            && *gates == other.gates
            && *scheduler == other.scheduler
            && *polite == other.polite
            && *nominated == other.nominated
            && *group == other.group
    }
}

/// What a claim is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ClaimOf {
    /// A volume (`PersistentVolumeClaim`).
    Volume,
    /// Devices, by dynamic resource allocation (`ResourceClaim`).
    Devices,
}

/// A claim that a pod names, in its own namespace.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ClaimName {
    /// What it is of.
    pub of: ClaimOf,
    /// Its name. `None`: a claim that is yet to be made of a template.
    pub name: Option<Arc<str>>,
}

/// How far a claim is.
#[derive(Debug, Clone, PartialEq)]
pub enum ClaimState {
    /// Nothing that keeps a pod from starting is known of it.
    Well,
    /// It does not exist.
    Missing,
    /// What it had is gone.
    Lost,
    /// The class that it names does not exist.
    NoClass(String),
    /// It names no class, and nothing that is there fits it.
    Classless,
    /// It has nothing yet, and somebody is to make it; of this class.
    Unbound {
        /// The class.
        class: String,
        /// Who makes what is claimed.
        by: String,
    },
    /// It has nothing yet; that is decided when a machine is found. Of this class.
    WaitsForMachine {
        /// The class.
        class: String,
    },
    /// Only these machines reach what it has.
    Within(NodeSelector),
}

/// By what a pod is known to belong to a gang.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Member {
    /// It names its `PodGroup`, of Volcano or of the coscheduling plugin.
    Group(Arc<str>),
    /// It, or what made it, owns a `Workload` that Kueue has not admitted: `Pod/train-0`, `Job/train`.
    Owner(Arc<str>),
}

/// Pods that start together or not at all, as whoever schedules them sees it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Gang {
    /// What it is: `PodGroup train`.
    pub name: String,
    /// How many have to start together.
    pub pods: Option<i64>,
    /// How many of them run already.
    pub running: i64,
    /// What is said of why it waits.
    pub said: Option<String>,
    /// The queue that it is in.
    pub queue: Option<String>,
    /// Since when it is there.
    pub since: Option<Timestamp>,
}

/// A quota of a namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quota {
    /// Where.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// By resource as the quota calls it (`requests.nvidia.com/gpu`): what is used and what may be, in thousandths.
    pub milli: BTreeMap<String, (i64, i64)>,
}

/// Pods that the API server refused to make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Where.
    pub namespace: String,
    /// Who wanted to make them: `Job/train`.
    pub owner: String,
    /// The API server's words.
    pub message: String,
    /// When it said so last.
    pub at: Option<Timestamp>,
}

/// What a pod does with accelerators that it holds.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Use {
    /// How much it computes, in devices: 1.5 is one whole and half of another. `None`: nobody can tell.
    pub computes: Option<f64>,
    /// Whether it uses nothing of them at the moment.
    pub idle: bool,
    /// For how long it has used nothing, in seconds, where that is known.
    pub idle_s: Option<f64>,
    /// CPU that it uses, in thousandths of a core, where metrics-server tells.
    pub cpu_milli: Option<i64>,
    /// Memory that it uses, in bytes, where metrics-server tells.
    pub memory_bytes: Option<i64>,
}

/// What is read of a cluster beside its nodes and pods.
#[derive(Debug, Clone, Default)]
pub struct Beside {
    /// Pods that were not made.
    pub refusals: Vec<Refusal>,
    /// Quotas, of namespaces with refusals.
    pub quotas: Vec<Quota>,
    /// Claims of pods that wait, by namespace, where they could be looked at.
    pub claims: HashMap<(Arc<str>, ClaimName), ClaimState>,
    /// What kubelets do with pods whose devices are on several NUMA nodes, where that matters and could be looked at.
    pub numa_policies: HashMap<Arc<str>, NumaPolicy>,
    /// The labels of namespaces, where pods name others by such and they could be looked at.
    pub namespaces: Option<HashMap<Arc<str>, Labels>>,
    /// What pods that start together, or not at all, wait for: by namespace and by what they are known by.
    pub gangs: HashMap<(Arc<str>, Member), Gang>,
    /// What pods do, by namespace and name.
    pub usage: HashMap<(Arc<str>, Arc<str>), Use>,
    /// What was seen beside nodes and pods: `spillway-agent on 3 nodes`.
    pub seen: Vec<String>,
    /// What was not, and what would show it.
    pub not_seen: Vec<String>,
}

/// A cluster at one moment.
#[derive(Debug)]
pub struct Snapshot {
    /// When.
    pub at: Timestamp,
    /// Names of resources and the like.
    pub names: Names,
    /// All nodes.
    pub nodes: Vec<Node>,
    /// All pods but those that have ended.
    pub pods: Vec<Pod>,
    /// Whether nodes could be listed; if not, nothing is known of machines.
    pub machines_seen: bool,
    /// The one namespace whose pods could be listed, where not all could: what others hold of the machines is not known then.
    pub pods_only_in: Option<String>,
    /// Machines whose kubelet has refused pods because what they asked for is not on one NUMA node (`TopologyAffinityError`).
    pub numa_refused: HashSet<Arc<str>>,
    /// What was read beside nodes and pods.
    pub beside: Beside,
    /// How long it took to read nodes and pods, in seconds.
    pub lists_s: f64,
    /// How long it took to read all else, in seconds.
    pub beside_s: f64,
}

impl Default for Snapshot {
    /// Nothing is there, and all of it was seen.
    fn default() -> Self {
        Self {
            at: Timestamp::default(),
            names: Names::default(),
            nodes: Vec::new(),
            pods: Vec::new(),
            machines_seen: true,
            pods_only_in: None,
            numa_refused: HashSet::new(),
            beside: Beside::default(),
            lists_s: 0.0,
            beside_s: 0.0,
        }
    }
}

impl Snapshot {
    /// What is known of each claim that a pod names.
    pub fn claims_of<'a>(&'a self, pod: &'a Pod) -> impl Iterator<Item = Option<&'a ClaimState>> {
        let claims = pod.wish.iter().flat_map(|wish| &wish.claims);
        claims.map(|claim| self.beside.claims.get(&(pod.namespace.clone(), claim.clone())))
    }
}
