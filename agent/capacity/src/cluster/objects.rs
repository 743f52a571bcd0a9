//! Nodes, pods and events of the Kubernetes API with no more of them than a report looks at: fifty thousand pods must fit into memory. What
//! a pod asks for is summed as the scheduler sums it (`component-helpers/resource/helpers.go`, `PodRequests`).

use std::{borrow::Cow, collections::BTreeMap, sync::Arc};

use k8s_openapi::{
    api::core::v1::{Affinity, Taint, Toleration, TopologySpreadConstraint},
    apimachinery::pkg::{
        api::resource::Quantity,
        apis::meta::v1::{MicroTime, OwnerReference, Time},
    },
};
use kube::{Resource, core::ObjectMeta};
use serde::{Deserialize, Deserializer};

use super::usage::{Exporter, Kind};
use crate::report::{
    quantity,
    snapshot::{self, Amounts, HostPort, Names, Phase, ResourceId, Stands, Wish},
};

/// The annotation in which Spillway's agent tells the largest groups of devices that can be had together.
const GROUPS: &str = "spillway.dev/largest-group";

/// Where exporters of accelerators' metrics listen, unless they say otherwise.
const EXPORTER_PORT: u16 = 9400;

type Quantities = BTreeMap<String, Quantity>;

/// Metadata without what nobody reads here: who set which field is often half of an object.
fn lean<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ObjectMeta, D::Error> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Lean {
        name: Option<String>,
        namespace: Option<String>,
        uid: Option<String>,
        resource_version: Option<String>,
        labels: Option<BTreeMap<String, String>>,
        annotations: Option<Annotations>,
        owner_references: Option<Vec<OwnerReference>>,
        creation_timestamp: Option<Time>,
        deletion_timestamp: Option<Time>,
    }
    #[derive(Deserialize)]
    struct Annotations {
        #[serde(rename = "spillway.dev/largest-group")]
        groups: Option<String>,
    }
    let lean = Lean::deserialize(deserializer)?;
    let groups = lean.annotations.and_then(|annotations| annotations.groups);
    Ok(ObjectMeta {
        name: lean.name,
        namespace: lean.namespace,
        uid: lean.uid,
        resource_version: lean.resource_version,
        labels: lean.labels,
        annotations: groups.map(|groups| BTreeMap::from([(GROUPS.to_owned(), groups)])),
        owner_references: lean.owner_references,
        creation_timestamp: lean.creation_timestamp,
        deletion_timestamp: lean.deletion_timestamp,
        ..ObjectMeta::default()
    })
}

/// A node.
#[derive(Debug, Clone, Deserialize)]
pub struct Node {
    #[serde(deserialize_with = "lean")]
    metadata: ObjectMeta,
    #[serde(default)]
    spec: NodeSpec,
    #[serde(default)]
    status: NodeStatus,
}

#[derive(Debug, Clone, Default, Deserialize)]
struct NodeSpec {
    taints: Option<Vec<Taint>>,
    unschedulable: Option<bool>,
}

#[derive(Debug, Clone, Default, Deserialize)]
struct NodeStatus {
    capacity: Option<Quantities>,
    allocatable: Option<Quantities>,
    conditions: Option<Vec<Condition>>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Condition {
    #[serde(rename = "type")]
    kind: String,
    status: String,
    reason: Option<String>,
    message: Option<String>,
    last_transition_time: Option<Time>,
}

/// A pod.
#[derive(Debug, Clone, Deserialize)]
pub struct Pod {
    #[serde(deserialize_with = "lean")]
    metadata: ObjectMeta,
    #[serde(default)]
    spec: PodSpec,
    #[serde(default)]
    status: PodStatus,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct PodSpec {
    node_name: Option<String>,
    #[serde(default)]
    containers: Vec<Container>,
    init_containers: Option<Vec<Container>>,
    overhead: Option<Quantities>,
    resources: Option<Requirements>,
    node_selector: Option<BTreeMap<String, String>>,
    affinity: Option<Affinity>,
    tolerations: Option<Vec<Toleration>>,
    topology_spread_constraints: Option<Vec<TopologySpreadConstraint>>,
    scheduling_gates: Option<Vec<Gate>>,
    scheduler_name: Option<String>,
    priority: Option<i32>,
    resource_claims: Option<Vec<serde::de::IgnoredAny>>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Container {
    name: String,
    resources: Option<Requirements>,
    ports: Option<Vec<Port>>,
    restart_policy: Option<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
struct Requirements {
    requests: Option<Quantities>,
    limits: Option<Quantities>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Port {
    name: Option<String>,
    #[serde(rename = "containerPort")]
    number: Option<u16>,
    #[serde(rename = "hostPort")]
    of_host: Option<i32>,
    #[serde(rename = "hostIP")]
    address: Option<String>,
    protocol: Option<String>,
}

#[derive(Debug, Clone, Deserialize)]
struct Gate {
    name: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct PodStatus {
    phase: Option<String>,
    start_time: Option<Time>,
    conditions: Option<Vec<Condition>>,
    nominated_node_name: Option<String>,
    container_statuses: Option<Vec<ContainerStatus>>,
    init_container_statuses: Option<Vec<ContainerStatus>>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ContainerStatus {
    name: String,
    state: Option<State>,
    resources: Option<Requirements>,
    allocated_resources: Option<Quantities>,
}

#[derive(Debug, Clone, Deserialize)]
struct State {
    running: Option<serde::de::IgnoredAny>,
    waiting: Option<Waiting>,
    terminated: Option<Terminated>,
}

#[derive(Debug, Clone, Deserialize)]
struct Waiting {
    reason: Option<String>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Terminated {
    reason: Option<String>,
    finished_at: Option<Time>,
}

/// Something that happened to an object.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Event {
    #[serde(deserialize_with = "lean")]
    metadata: ObjectMeta,
    involved_object: Reference,
    message: Option<String>,
    last_timestamp: Option<Time>,
    #[serde(rename = "eventTime")]
    at: Option<MicroTime>,
    series: Option<Series>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Series {
    last_observed_time: Option<MicroTime>,
}

#[derive(Debug, Clone, Default, Deserialize)]
struct Reference {
    kind: Option<String>,
    name: Option<String>,
}

impl Event {
    /// As pods that were not made.
    pub fn refusal(self) -> snapshot::Refusal {
        let seen = self.series.and_then(|series| series.last_observed_time).or(self.at);
        let at = seen.map(|time| time.0).max(self.last_timestamp.map(|time| time.0));
        snapshot::Refusal {
            namespace: self.metadata.namespace.unwrap_or_default(),
            owner: format!(
                "{}/{}",
                self.involved_object.kind.unwrap_or_default(),
                self.involved_object.name.unwrap_or_default()
            ),
            message: self.message.unwrap_or_default(),
            at: at.or(self.metadata.creation_timestamp.map(|time| time.0)),
        }
    }
}

/// The same resource of the API as the whole object.
macro_rules! same_as {
    ($part:ty, $whole:ty) => {
        impl Resource for $part {
            type DynamicType = ();
            type Scope = <$whole as Resource>::Scope;

            fn kind((): &()) -> Cow<'_, str> {
                <$whole as Resource>::kind(&())
            }

            fn group((): &()) -> Cow<'_, str> {
                <$whole as Resource>::group(&())
            }

            fn version((): &()) -> Cow<'_, str> {
                <$whole as Resource>::version(&())
            }

            fn plural((): &()) -> Cow<'_, str> {
                <$whole as Resource>::plural(&())
            }

            fn meta(&self) -> &ObjectMeta {
                &self.metadata
            }

            fn meta_mut(&mut self) -> &mut ObjectMeta {
                &mut self.metadata
            }
        }
    };
}

same_as!(Node, k8s_openapi::api::core::v1::Node);
same_as!(Pod, k8s_openapi::api::core::v1::Pod);
same_as!(Event, k8s_openapi::api::core::v1::Event);

fn amounts(names: &mut Names, quantities: Option<&Quantities>) -> Amounts {
    let mut amounts = Amounts::default();
    for (name, quantity) in quantities.into_iter().flatten() {
        let resource = names.resource(name);
        let parts = if resource == ResourceId::CPU { 1000 } else { 1 };
        // What is no quantity the API server doesn't take.
        amounts.set(resource, quantity::parse(&quantity.0, parts).unwrap_or(0));
    }
    amounts
}

impl Requirements {
    /// What is requested; a limit without a request is one.
    fn asked(&self, names: &mut Names) -> Amounts {
        let mut asked = amounts(names, self.limits.as_ref());
        for (resource, amount) in amounts(names, self.requests.as_ref()).iter() {
            asked.set(resource, amount);
        }
        asked
    }
}

impl Node {
    /// As a report looks at it.
    pub fn shown(self, names: &mut Names) -> snapshot::Node {
        let metadata = self.metadata;
        let labels = names.labels(&metadata.labels.unwrap_or_default());
        let taints = self.spec.taints.unwrap_or_default();
        let provider = provider(&labels, &taints);
        let groups = metadata.annotations.and_then(|all| serde_json::from_str(all.get(GROUPS)?).ok());
        snapshot::Node {
            name: names.word(&metadata.name.unwrap_or_default()),
            provider: provider.map(|provider| names.word(&provider)),
            labels,
            taints,
            cordoned: self.spec.unschedulable == Some(true),
            not_ready: not_ready(self.status.conditions.as_deref().unwrap_or_default()),
            capacity: amounts(names, self.status.capacity.as_ref()),
            allocatable: amounts(names, self.status.allocatable.as_ref()),
            groups: groups.unwrap_or_default(),
        }
    }
}

/// Who is behind a virtual node: by the marks that virtual kubelets, Fargate and Liqo put on theirs.
fn provider(labels: &snapshot::Labels, taints: &[Taint]) -> Option<String> {
    let label = |key: &str| labels.get(key).map(|value| &**value);
    if label("eks.amazonaws.com/compute-type") == Some("fargate") {
        return Some("fargate".to_owned());
    }
    if let Some(taint) = taints.iter().find(|taint| taint.key == "virtual-kubelet.io/provider") {
        return Some(
            taint.value.clone().filter(|value| !value.is_empty()).unwrap_or("virtual-kubelet".to_owned()),
        );
    }
    if label("liqo.io/type") == Some("virtual-node") {
        return Some("liqo".to_owned());
    }
    (label("type") == Some("virtual-kubelet")).then(|| "virtual-kubelet".to_owned())
}

fn not_ready(conditions: &[Condition]) -> Option<String> {
    let Some(ready) = conditions.iter().find(|condition| condition.kind == "Ready") else {
        return Some("it has never said that it is Ready".to_owned());
    };
    if ready.status == "True" {
        return None;
    }
    let why = [ready.reason.as_deref(), ready.message.as_deref()];
    Some(why.into_iter().flatten().find(|text| !text.is_empty()).unwrap_or("no reason is told").to_owned())
}

impl Pod {
    /// Whether it tells what accelerators do, by the labels that charts give such pods.
    pub(super) fn exporter(&self) -> Option<Exporter> {
        let labels = self.metadata.labels.as_ref()?;
        let is = |key: &str, value: &str| labels.get(key).is_some_and(|found| found == value);
        let kind = if is("app.kubernetes.io/name", "spillway") && is("app.kubernetes.io/component", "agent") {
            Kind::Agent
        } else if ["app", "app.kubernetes.io/name", "k8s-app"]
            .iter()
            .any(|key| is(key, "nvidia-dcgm-exporter") || is(key, "dcgm-exporter"))
        {
            Kind::Dcgm
        } else {
            return None;
        };
        if self.status.phase.as_deref() != Some("Running") {
            return None;
        }
        let mut ports = self.spec.containers.iter().flat_map(|container| container.ports.iter().flatten());
        let named = ports.find(|port| matches!(port.name.as_deref(), Some("admin" | "metrics")));
        Some(Exporter {
            kind,
            namespace: self.metadata.namespace.clone()?,
            pod: self.metadata.name.clone()?,
            port: named.and_then(|port| port.number).unwrap_or(EXPORTER_PORT),
        })
    }

    /// As a report looks at it.
    pub fn shown(mut self, names: &mut Names) -> snapshot::Pod {
        let phase = match self.status.phase.as_deref() {
            Some("Succeeded" | "Failed") => Phase::Ended,
            Some("Pending") | None => Phase::Pending,
            Some(_) => Phase::Running,
        };
        let requests = self.requests(names);
        let stands = self.stands();
        let conditions = self.status.conditions.unwrap_or_default();
        let scheduled = conditions.into_iter().find(|condition| condition.kind == "PodScheduled");
        let node = self.spec.node_name.as_deref().filter(|name| !name.is_empty());
        let node = node.map(|name| names.word(name));
        let bound = scheduled.as_ref().filter(|condition| condition.status == "True");
        let bound = bound.and_then(|condition| condition.last_transition_time.clone());
        let ports = self.spec.containers.iter_mut().filter_map(|container| container.ports.take()).flatten();
        let ports: Vec<_> = ports.filter_map(Port::of_host).collect();
        let metadata = self.metadata;
        let owner = metadata.owner_references.unwrap_or_default();
        let owner = owner.iter().find(|owner| owner.controller == Some(true));
        let affinity = self.spec.affinity.unwrap_or_default();
        let mut pod = snapshot::Pod {
            namespace: names.word(&metadata.namespace.unwrap_or_default()),
            name: Arc::from(metadata.name.unwrap_or_default()),
            labels: names.labels(&metadata.labels.unwrap_or_default()),
            owner: owner.map(|owner| names.word(&format!("{}/{}", owner.kind, owner.name))),
            bound: bound.or(self.status.start_time).map(|time| time.0).filter(|_| node.is_some()),
            node,
            phase,
            ending: metadata.deletion_timestamp.is_some(),
            created: metadata.creation_timestamp.map(|time| time.0),
            requests,
            stands,
            priority: self.spec.priority.unwrap_or(0),
            ports,
            refuses: Vec::new(),
            wish: None,
        };
        let anti = affinity.pod_anti_affinity.as_ref();
        let required =
            anti.and_then(|anti| anti.required_during_scheduling_ignored_during_execution.as_ref());
        pod.refuses.extend(required.into_iter().flatten().cloned());
        if pod.node.is_none() && phase == Phase::Pending {
            pod.wish = Some(Box::new(Wish {
                selector: self.spec.node_selector.unwrap_or_default(),
                affinity,
                tolerations: self.spec.tolerations.unwrap_or_default(),
                spread: self.spec.topology_spread_constraints.unwrap_or_default(),
                gates: self.spec.scheduling_gates.into_iter().flatten().map(|gate| gate.name).collect(),
                scheduler: self.spec.scheduler_name.unwrap_or_else(|| "default-scheduler".to_owned()),
                said: scheduled.and_then(|condition| condition.message).filter(|text| !text.is_empty()),
                nominated: self
                    .status
                    .nominated_node_name
                    .filter(|name| !name.is_empty())
                    .map(|name| names.word(&name)),
                claims: self.spec.resource_claims.is_some_and(|claims| !claims.is_empty()),
            }));
        }
        pod
    }

    /// What the scheduler sets aside for it.
    fn requests(&self, names: &mut Names) -> Amounts {
        let statuses = |all: &Option<Vec<ContainerStatus>>, name: &str| {
            all.iter().flatten().find(|status| status.name == name).cloned()
        };
        let mut asked = |container: &Container, status: Option<ContainerStatus>| {
            let mut asked =
                container.resources.as_ref().map(|resources| resources.asked(names)).unwrap_or_default();
            // While a container is resized, what it has counts as long as it is more.
            if let Some(status) = status {
                for has in
                    [status.resources.and_then(|resources| resources.requests), status.allocated_resources]
                {
                    asked.raise(&amounts(names, has.as_ref()));
                }
            }
            asked
        };
        let mut sum = Amounts::default();
        for container in &self.spec.containers {
            sum.add(&asked(container, statuses(&self.status.container_statuses, &container.name)));
        }
        // Sidecars run on; each other init container runs alone, beside the sidecars before it.
        let (mut sidecars, mut most) = (Amounts::default(), Amounts::default());
        for container in self.spec.init_containers.iter().flatten() {
            let mut own = asked(container, statuses(&self.status.init_container_statuses, &container.name));
            if container.restart_policy.as_deref() == Some("Always") {
                sum.add(&own);
                sidecars.add(&own);
                own = sidecars.clone();
            } else {
                own.add(&sidecars);
            }
            most.raise(&own);
        }
        sum.raise(&most);
        // What is said of the pod as a whole holds for what can be said so: CPU, memory and huge pages.
        if let Some(whole) = &self.spec.resources {
            for (resource, amount) in whole.asked(names).iter() {
                sum.set(resource, amount);
            }
        }
        sum.add(&amounts(names, self.spec.overhead.as_ref()));
        sum.set(ResourceId::PODS, 1);
        sum
    }

    /// Why none of the containers that ask for extended resources runs.
    fn stands(&self) -> Option<Stands> {
        let extended = |container: &Container| {
            let resources = container.resources.iter();
            let limits = resources.filter_map(|resources| resources.limits.as_ref());
            limits.flat_map(BTreeMap::keys).any(|name| name.contains('/'))
        };
        let mut why = None;
        for container in self.spec.containers.iter().filter(|container| extended(container)) {
            let status =
                self.status.container_statuses.iter().flatten().find(|status| status.name == container.name);
            let state = status.and_then(|status| status.state.as_ref())?;
            if state.running.is_some() {
                return None;
            }
            let waits = state.waiting.as_ref().and_then(|waiting| waiting.reason.clone());
            let ended = state.terminated.as_ref();
            let told = waits.or_else(|| ended.and_then(|ended| ended.reason.clone()));
            why.get_or_insert(Stands {
                why: told.unwrap_or_else(|| "it has not started".to_owned()),
                since: ended.and_then(|ended| ended.finished_at.clone()).map(|time| time.0),
            });
        }
        why
    }
}

impl Port {
    fn of_host(self) -> Option<HostPort> {
        Some(HostPort {
            port: self.of_host.filter(|port| *port > 0)?,
            address: self.address.filter(|address| !address.is_empty()).unwrap_or("0.0.0.0".to_owned()),
            protocol: self.protocol.unwrap_or("TCP".to_owned()),
        })
    }
}

#[cfg(test)]
mod tests;
