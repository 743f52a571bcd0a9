//! The node object as values: pure functions from configuration and health to what the API server is sent.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{Node, NodeCondition, NodeSpec, NodeStatus, Taint},
    apimachinery::pkg::{api::resource::Quantity, apis::meta::v1::Time},
};
use kube::{ResourceExt as _, api::ObjectMeta};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::{
    RESOURCES_ANNOTATION,
    health::Health,
    machine::{Machine, architecture},
};
use crate::{config::NodeConfig, pod::resources, provider::facts::NodeImage};

/// The Kubernetes release whose kubelet we behave like, and ours.
const KUBELET_VERSION: &str = concat!("v1.35.4+spillway.", env!("CARGO_PKG_VERSION"));
/// Pods at most, where the configuration doesn't say; a kubelet's default.
const MAX_PODS: &str = "110";

/// Images in the status at most, and names of each; a kubelet's `nodeStatusMaxImages` and `MaxNamesPerImageInNodeStatus`.
const MAX_IMAGES: usize = 50;
const MAX_NAMES: usize = 5;

/// The reason of our own condition `NetworkUnavailable`.
const PROVIDER_NETWORK: &str = "ProviderNetwork";

/// What of the node doesn't change while we run.
#[derive(Debug, Clone)]
pub(super) struct Template {
    pub(super) config: NodeConfig,
    pub(super) provider: &'static str,
    pub(super) address: IpAddr,
    pub(super) kubelet_port: u16,
    pub(super) machine: Machine,
}

/// Labels and annotations that the configuration had and has no more, with their values.
#[derive(Debug, Default)]
pub(super) struct Dropped {
    labels: BTreeMap<String, String>,
    annotations: BTreeMap<String, String>,
}

impl Template {
    /// Takes a new configuration; adds to `dropped` what the one before had beyond it.
    pub(super) fn change(&mut self, config: NodeConfig, dropped: &mut Dropped) {
        dropped.labels.extend(self.labels());
        dropped.annotations.append(&mut self.config.annotations);
        self.config = config;
        let labels = self.labels();
        dropped.labels.retain(|key, _| !labels.contains_key(key));
        dropped.annotations.retain(|key, _| !self.config.annotations.contains_key(key));
    }

    /// For its registration.
    pub(super) fn node(&self, health: &Health) -> Node {
        // Built from the same JSON as the patches, so that the two can't differ.
        let mut status = self.status(health, &[]);
        if let Some(addresses) = status["addresses"].as_array_mut() {
            addresses.retain(|address| address.get("$patch").is_none());
        }
        let mut annotations = self.config.annotations.clone();
        annotations.insert(RESOURCES_ANNOTATION.to_owned(), join(&resources_of(&status)));
        Node {
            metadata: ObjectMeta {
                name: Some(self.config.name.clone()),
                labels: Some(self.labels()),
                annotations: Some(annotations),
                ..ObjectMeta::default()
            },
            spec: Some(NodeSpec { taints: Some(self.config.taints.clone()), ..NodeSpec::default() }),
            status: serde_json::from_value::<NodeStatus>(status).ok(),
        }
    }

    fn labels(&self) -> BTreeMap<String, String> {
        let well_known = [
            ("type", "virtual-kubelet"),
            ("kubernetes.io/hostname", self.config.name.as_str()),
            ("kubernetes.io/os", "linux"),
            ("kubernetes.io/arch", architecture()),
            // A kubelet sets these, too: old selectors name them.
            ("beta.kubernetes.io/os", "linux"),
            ("beta.kubernetes.io/arch", architecture()),
            ("node.kubernetes.io/exclude-from-external-load-balancers", "true"),
        ];
        let well_known = well_known.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned()));
        well_known.chain(self.config.labels.clone()).collect()
    }

    /// The status as a strategic merge patch. `before`: the conditions that the API server has.
    pub(super) fn status(&self, health: &Health, before: &[NodeCondition]) -> Value {
        let find = |name: &str| before.iter().find(|condition| condition.type_ == name);
        let now = Timestamp::now();
        let condition = |name: &str, status: &str, reason: &str, message: &str| {
            let since = find(name).filter(|before| before.status == status);
            let since = since.and_then(|before| before.last_transition_time.clone()).unwrap_or(Time(now));
            json!({
                "type": name, "status": status, "reason": reason, "message": message,
                "lastHeartbeatTime": Time(now), "lastTransitionTime": since,
            })
        };
        let ready = health.ready(self.provider, find("Ready"), Instant::now());
        let pressure = |name: &str, holds: bool, no: (&str, &str), yes: (&str, &str)| {
            let (status, (reason, message)) = if holds { ("True", yes) } else { ("False", no) };
            condition(name, status, reason, message)
        };
        let pressures = health.pressures;
        let mut conditions = vec![
            pressure(
                "MemoryPressure",
                pressures.memory,
                ("KubeletHasSufficientMemory", "spillway-vk has sufficient memory available"),
                ("KubeletHasInsufficientMemory", "spillway-vk has insufficient memory available"),
            ),
            pressure(
                "DiskPressure",
                pressures.disk,
                ("KubeletHasNoDiskPressure", "spillway-vk has no disk pressure"),
                ("KubeletHasDiskPressure", "spillway-vk has disk pressure"),
            ),
            pressure(
                "PIDPressure",
                pressures.pids,
                ("KubeletHasSufficientPID", "spillway-vk has sufficient PID available"),
                ("KubeletHasInsufficientPID", "spillway-vk has insufficient PID available"),
            ),
        ];
        // A kubelet leaves it to whoever makes the network: one that says it is there would take its word back from us for ever.
        let others = |found: &NodeCondition| {
            found.status == "False" && found.reason.as_deref() != Some(PROVIDER_NETWORK)
        };
        if !find("NetworkUnavailable").is_some_and(others) {
            let message = "pods are connected by the provider";
            conditions.push(condition("NetworkUnavailable", "False", PROVIDER_NETWORK, message));
        }
        conditions.push(condition("Ready", ready.status, ready.reason, &ready.message));
        let capacity = self.capacity(health);
        let mut status = json!({
            // Replaced as a whole: the merge key of this list does not identify its entries (kubernetes#79391).
            "addresses": [
                { "type": "InternalIP", "address": self.address },
                { "type": "Hostname", "address": self.config.name },
                { "$patch": "replace" },
            ],
            "capacity": capacity,
            "allocatable": allocatable(&capacity),
            "conditions": conditions,
            "daemonEndpoints": { "kubeletEndpoint": { "Port": self.kubelet_port } },
            "nodeInfo": {
                "architecture": architecture(),
                "operatingSystem": "linux",
                "bootID": self.machine.boot_id,
                "machineID": self.machine.id,
                "systemUUID": self.machine.system_uuid,
                "kernelVersion": self.machine.kernel_version,
                "osImage": self.machine.os_image,
                "containerRuntimeVersion":
                    health.version.clone().unwrap_or_else(|| format!("{}://unknown", self.provider)),
                "kubeletVersion": KUBELET_VERSION,
                "kubeProxyVersion": "",
                "swap": self.machine.swap_bytes.map(|bytes| json!({ "capacity": bytes })),
            },
            "images": images(&health.facts.images),
        });
        if !health.facts.handlers.is_empty() {
            let handlers = health.facts.handlers.iter();
            status["runtimeHandlers"] = handlers
                .map(|handler| {
                    let features = json!({
                        "recursiveReadOnlyMounts": handler.recursive_read_only_mounts, "userNamespaces": false,
                    });
                    json!({ "name": handler.name, "features": features })
                })
                .collect();
        }
        if let Some(policy) = health.facts.supplemental_groups_policy {
            status["features"] = json!({ "supplementalGroupsPolicy": policy });
        }
        status
    }

    /// The machine's, the provider's over it, and the configuration's over both; capped by the quota.
    fn capacity(&self, health: &Health) -> BTreeMap<String, Quantity> {
        let mut capacity = self.machine.capacity.clone();
        capacity.extend(health.facts.capacity.clone());
        capacity.insert("pods".to_owned(), Quantity(MAX_PODS.to_owned()));
        capacity.extend(self.config.capacity.clone());
        for (name, most) in &self.config.quota {
            if let Some(amount) = capacity.get_mut(name)
                && let (Some(has), Some(may)) = (resources::milli(amount), resources::milli(most))
                && has > may
            {
                *amount = most.clone();
            }
        }
        capacity
    }

    /// Labels and annotations of ours that an existing node lacks or has differently, and dropped ones that it still has, as a merge patch of
    /// its metadata.
    pub(super) fn missing_metadata(&self, node: &Node, dropped: &Dropped) -> Option<Value> {
        type Map = BTreeMap<String, String>;
        let missing = |wanted: Map, dropped: &Map, found: Option<&Map>| {
            let found = |key: &str| found.and_then(|found| found.get(key));
            let wanted = wanted.into_iter().filter(|(key, value)| found(key) != Some(value));
            let dropped = dropped.iter().filter(|(key, value)| found(key) == Some(*value));
            let dropped = dropped.map(|(key, _)| (key.clone(), Value::Null));
            wanted.map(|(key, value)| (key, json!(value))).chain(dropped).collect::<BTreeMap<_, _>>()
        };
        let labels = missing(self.labels(), &dropped.labels, node.metadata.labels.as_ref());
        let annotations = missing(
            self.config.annotations.clone(),
            &dropped.annotations,
            node.metadata.annotations.as_ref(),
        );
        (!labels.is_empty() || !annotations.is_empty())
            .then(|| json!({ "labels": labels, "annotations": annotations }))
    }

    /// Taints of ours that an existing node lacks, as kubectl spells them.
    pub(super) fn missing_taints(&self, node: &Node) -> Vec<String> {
        let found = node.spec.as_ref().and_then(|spec| spec.taints.as_deref()).unwrap_or_default();
        let same = |a: &Taint, b: &Taint| a.key == b.key && a.value == b.value && a.effect == b.effect;
        let missing =
            self.config.taints.iter().filter(|wanted| !found.iter().any(|found| same(wanted, found)));
        missing
            .map(|taint| {
                format!("{}={}:{}", taint.key, taint.value.as_deref().unwrap_or_default(), taint.effect)
            })
            .collect()
    }
}

/// As a kubelet's `MachineInfo` (pkg/kubelet/nodestatus) without reservations: what is set aside for huge pages is no memory for others.
fn allocatable(capacity: &BTreeMap<String, Quantity>) -> BTreeMap<String, Quantity> {
    let mut allocatable = capacity.clone();
    let huge = capacity.iter().filter(|(name, _)| name.starts_with("hugepages-"));
    let huge = huge.filter_map(|(_, amount)| resources::whole(amount)).fold(0, i64::saturating_add);
    if huge > 0
        && let Some(memory) = allocatable.get_mut("memory")
        && let Some(bytes) = resources::whole(memory)
    {
        *memory = Quantity(bytes.saturating_sub(huge).max(0).to_string());
    }
    allocatable
}

/// As a kubelet lists them: the largest ones, each by its names.
fn images(images: &[NodeImage]) -> Vec<Value> {
    let mut images: Vec<&NodeImage> = images.iter().filter(|image| !image.names.is_empty()).collect();
    images.sort_by(|a, b| b.size.cmp(&a.size).then_with(|| a.names.cmp(&b.names)));
    let shown = images.into_iter().take(MAX_IMAGES);
    shown
        .map(|image| {
            let names: Vec<&String> = image.names.iter().take(MAX_NAMES).collect();
            json!({ "names": names, "sizeBytes": image.size })
        })
        .collect()
}

/// The strategic merge patch that tells a node's status. Resources are merged, so that those of others stay; what we told before, as the node's
/// annotation or `told`, our last status, has it, and tell no more is taken back by name.
pub(super) fn status_patch(mut status: Value, node: &Node, told: Option<&Value>) -> Value {
    let ours = resources_of(&status);
    let noted = node.annotations().get(RESOURCES_ANNOTATION).map(String::as_str).unwrap_or_default();
    let before = told.map(resources_of).unwrap_or_default();
    let before = noted.split(',').filter(|name| !name.is_empty()).map(str::to_owned).chain(before);
    for name in before.filter(|name| !ours.contains(name)) {
        status["allocatable"][name.as_str()] = Value::Null;
        status["capacity"][name] = Value::Null;
    }
    let annotations = json!({ RESOURCES_ANNOTATION: join(&ours) });
    json!({ "metadata": { "uid": node.uid(), "annotations": annotations }, "status": status })
}

/// The names of the resources in a status.
fn resources_of(status: &Value) -> BTreeSet<String> {
    status["capacity"].as_object().into_iter().flatten().map(|(name, _)| name.clone()).collect()
}

fn join(names: &BTreeSet<String>) -> String {
    names.iter().map(String::as_str).collect::<Vec<_>>().join(",")
}

/// The status without what changes each time.
pub(super) fn without_times(status: &Value) -> Value {
    let mut status = status.clone();
    for condition in status["conditions"].as_array_mut().into_iter().flatten() {
        if let Some(condition) = condition.as_object_mut() {
            condition.remove("lastHeartbeatTime");
            condition.remove("lastTransitionTime");
        }
    }
    status
}

/// Whether the API server still has every condition of ours as we would write it. The node controller overwrites them when it has
/// not heard of us for a while.
pub(super) fn conditions_stand(status: &Value, found: &[NodeCondition]) -> bool {
    let ours = status["conditions"].as_array().into_iter().flatten();
    ours.into_iter().all(|ours| {
        found.iter().any(|found| {
            ours["type"] == found.type_.as_str()
                && ours["status"] == found.status.as_str()
                && ours["reason"] == found.reason.as_deref().unwrap_or_default()
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        node::pressure::{Pressures, defaults},
        provider::facts::{Facts, Handler},
    };

    #[test]
    fn the_status_tells_what_the_provider_says() {
        let amount = |text: &str| Quantity(text.to_owned());
        let template = Template {
            config: NodeConfig {
                name: "vk1".to_owned(),
                address: None,
                labels: BTreeMap::default(),
                annotations: BTreeMap::default(),
                taints: Vec::new(),
                capacity: [("memory".to_owned(), amount("1Gi"))].into(),
                quota: [("cpu".to_owned(), amount("3")), ("pods".to_owned(), amount("1k"))].into(),
                thresholds: defaults(),
            },
            provider: "cri",
            address: "10.0.0.5".parse().unwrap(),
            kubelet_port: 10250,
            machine: Machine { swap_bytes: Some(4096), ..Machine::default() },
        };
        let mut health = Health::starting();
        let bare = template.status(&health, &[]);
        assert!(bare.get("features").is_none() && bare.get("runtimeHandlers").is_none());

        let image = |names: &[&str], size| NodeImage {
            names: names.iter().map(|name| (*name).to_owned()).collect(),
            size,
        };
        health.facts = Facts {
            handlers: vec![Handler { name: "runc".to_owned(), recursive_read_only_mounts: true }],
            supplemental_groups_policy: Some(true),
            images: vec![image(&["small"], 1), image(&[], 9), image(&["a", "b", "c", "d", "e", "f"], 5)],
            capacity: [("cpu".to_owned(), amount("64")), ("memory".to_owned(), amount("1Ti"))].into(),
            ..Facts::default()
        };
        health.pressures = Pressures { disk: true, ..Pressures::default() };
        let status = template.status(&health, &[]);
        assert_eq!(status["features"], json!({ "supplementalGroupsPolicy": true }));
        assert_eq!(
            status["runtimeHandlers"],
            json!([{ "name": "runc", "features": { "recursiveReadOnlyMounts": true, "userNamespaces": false } }])
        );
        assert_eq!(
            status["images"],
            json!([
                { "names": ["a", "b", "c", "d", "e"], "sizeBytes": 5 }, { "names": ["small"], "sizeBytes": 1 },
            ])
        );
        assert_eq!(
            status["allocatable"],
            json!({ "cpu": "3", "memory": "1Gi", "pods": "110" }),
            "capped, configured, usual"
        );
        assert_eq!(status["nodeInfo"]["swap"], json!({ "capacity": 4096 }));
        let disk =
            status["conditions"].as_array().unwrap().iter().find(|c| c["type"] == "DiskPressure").unwrap();
        assert_eq!((&disk["status"], &disk["reason"]), (&json!("True"), &json!("KubeletHasDiskPressure")));
        assert!(template.node(&health).status.is_some(), "the API server's type takes it");
    }

    #[test]
    fn huge_pages_are_no_memory_for_others() {
        let of = |amounts: &[(&str, &str)]| {
            let amounts =
                amounts.iter().map(|(name, amount)| ((*name).to_owned(), Quantity((*amount).to_owned())));
            allocatable(&amounts.collect())["memory"].0.clone()
        };
        assert_eq!(of(&[("memory", "4Gi"), ("cpu", "1")]), "4Gi");
        assert_eq!(of(&[("memory", "4Ki"), ("hugepages-1Ki", "2Ki"), ("hugepages-2Ki", "1Ki")]), "1024");
        assert_eq!(of(&[("memory", "4Gi"), ("hugepages-1Gi", "8Gi")]), "0");
    }
}
