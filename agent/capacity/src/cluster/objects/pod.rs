//! Pods. What one asks for is summed as the scheduler sums it (`component-helpers/resource/helpers.go`, `PodRequests`).

use std::{collections::BTreeMap, sync::Arc};

use k8s_openapi::{
    api::core::v1::{Affinity, Toleration, TopologySpreadConstraint},
    apimachinery::pkg::apis::meta::v1::Time,
};
use kube::core::ObjectMeta;
use serde::Deserialize;

use super::{
    super::usage::{Exporter, Kind},
    Condition, POD_GROUP, POD_GROUP_LABELS, Quantities, amounts, lean, same_as,
};
use crate::report::snapshot::{
    self, Amounts, ClaimName, ClaimOf, HostPort, Names, Phase, ResourceId, Stands, Stuck, Wish,
};

/// Where exporters of accelerators' metrics listen, unless they say otherwise.
const EXPORTER_PORT: u16 = 9400;

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
    preemption_policy: Option<String>,
    resource_claims: Option<Vec<DeviceClaim>>,
    volumes: Option<Vec<Volume>>,
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

/// A claim that exists, or one that is made of a template and named in the status.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct DeviceClaim {
    name: String,
    resource_claim_name: Option<String>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Volume {
    name: String,
    persistent_volume_claim: Option<VolumeClaim>,
    ephemeral: Option<serde::de::IgnoredAny>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct VolumeClaim {
    claim_name: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct PodStatus {
    phase: Option<String>,
    reason: Option<String>,
    resource_claim_statuses: Option<Vec<DeviceClaim>>,
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
    message: Option<String>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Terminated {
    reason: Option<String>,
    finished_at: Option<Time>,
}

same_as!(Pod, k8s_openapi::api::core::v1::Pod);

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

impl Pod {
    /// Whether it tells what accelerators do, by the labels that charts give such pods.
    pub(in super::super) fn exporter(&self) -> Option<Exporter> {
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
        let stuck = if phase == Phase::Pending { self.stuck() } else { None };
        let group = self.pod_group().map(|name| names.word(&name));
        let claims = self.claims(names);
        let conditions = self.status.conditions.unwrap_or_default();
        let preempted = conditions.iter().any(|condition| {
            condition.kind == "DisruptionTarget"
                && condition.status == "True"
                && condition.reason.as_deref() == Some("PreemptionByScheduler")
        });
        let scheduled = conditions.into_iter().find(|condition| condition.kind == "PodScheduled");
        let node = self.spec.node_name.as_deref().filter(|name| !name.is_empty());
        let node = node.map(|name| names.word(name));
        let bound = scheduled.as_ref().filter(|condition| condition.status == "True");
        let bound = bound.and_then(|condition| condition.last_transition_time.clone());
        let sidecars = self.spec.init_containers.iter_mut().flatten().filter(|one| one.is_sidecar());
        let running = self.spec.containers.iter_mut().chain(sidecars);
        let ports = running.filter_map(|container| container.ports.take()).flatten();
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
            preempted,
            created: metadata.creation_timestamp.map(|time| time.0),
            requests,
            stands,
            stuck,
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
                polite: self.spec.preemption_policy.as_deref() == Some("Never"),
                nominated: self
                    .status
                    .nominated_node_name
                    .filter(|name| !name.is_empty())
                    .map(|name| names.word(&name)),
                claims,
                group,
            }));
        }
        pod
    }

    /// The gang that it names.
    fn pod_group(&self) -> Option<String> {
        let of = |all: &Option<BTreeMap<String, String>>, key: &str| all.as_ref()?.get(key).cloned();
        let by_label = POD_GROUP_LABELS.iter().find_map(|label| of(&self.metadata.labels, label));
        of(&self.metadata.annotations, POD_GROUP).or(by_label).filter(|name| !name.is_empty())
    }

    /// The first container that can't be started, where the kubelet says so; that one is only just being made is no reason.
    fn stuck(&self) -> Option<Stuck> {
        let statuses = [&self.status.init_container_statuses, &self.status.container_statuses];
        statuses.into_iter().flatten().flatten().find_map(|status| {
            let waiting = status.state.as_ref()?.waiting.as_ref()?;
            let why = waiting
                .reason
                .as_deref()
                .filter(|why| !matches!(*why, "" | "ContainerCreating" | "PodInitializing"))?;
            Some(Stuck {
                container: status.name.clone(),
                why: why.to_owned(),
                said: waiting.message.clone().filter(|said| !said.is_empty()),
            })
        })
    }

    /// The machine whose kubelet has refused it because what it asks for is not on one NUMA node.
    pub fn refused_for_numa(&self) -> Option<&str> {
        let refused = self.status.reason.as_deref() == Some("TopologyAffinityError");
        self.spec.node_name.as_deref().filter(|_| refused)
    }

    /// What it claims; a pod that has its machine has got all of it.
    fn claims(&self, names: &mut Names) -> Vec<ClaimName> {
        if self.spec.node_name.as_deref().is_some_and(|node| !node.is_empty()) {
            return Vec::new();
        }
        let pod = self.metadata.name.as_deref().unwrap_or_default();
        let volumes = self.spec.volumes.iter().flatten().filter_map(|volume| {
            let name = match (&volume.persistent_volume_claim, &volume.ephemeral) {
                (Some(claim), _) => claim.claim_name.clone(),
                (None, Some(_)) => format!("{pod}-{}", volume.name),
                (None, None) => return None,
            };
            Some((ClaimOf::Volume, Some(name)))
        });
        let made = |name: &str| {
            let mut all = self.status.resource_claim_statuses.iter().flatten();
            all.find(|claim| claim.name == name)?.resource_claim_name.clone()
        };
        let devices =
            self.spec.resource_claims.iter().flatten().map(|claim| {
                (ClaimOf::Devices, claim.resource_claim_name.clone().or_else(|| made(&claim.name)))
            });
        let all = volumes.chain(devices);
        all.map(|(of, name)| ClaimName { of, name: name.map(|name| names.word(&name)) }).collect()
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
            if container.is_sidecar() {
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

impl Container {
    /// An init container that runs on beside the others.
    fn is_sidecar(&self) -> bool {
        self.restart_policy.as_deref() == Some("Always")
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
