//! The node object as values: pure functions from configuration and health to what the API server is sent.

use std::{collections::BTreeMap, net::IpAddr};

use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{Node, NodeCondition, NodeSpec, NodeStatus, Taint},
    apimachinery::pkg::{api::resource::Quantity, apis::meta::v1::Time},
};
use kube::api::ObjectMeta;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::{
    health::Health,
    machine::{Machine, architecture},
};
use crate::{config::NodeConfig, pod::resources};

/// The Kubernetes release whose kubelet we behave like, and ours.
const KUBELET_VERSION: &str = concat!("v1.35.4+spillway.", env!("CARGO_PKG_VERSION"));
/// Pods at most, where the configuration doesn't say; a kubelet's default.
const MAX_PODS: &str = "110";

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
    /// Takes a new configuration; says what the one before had beyond it.
    pub(super) fn change(&mut self, config: NodeConfig) -> Dropped {
        let before = (self.labels(), std::mem::take(&mut self.config.annotations));
        self.config = config;
        let (mut labels, mut annotations) = before;
        labels.retain(|key, _| !self.labels().contains_key(key));
        annotations.retain(|key, _| !self.config.annotations.contains_key(key));
        Dropped { labels, annotations }
    }

    /// For its registration.
    pub(super) fn node(&self, health: &Health) -> Node {
        // Built from the same JSON as the patches, so that the two can't differ.
        let mut status = self.status(health, &[]);
        if let Some(addresses) = status["addresses"].as_array_mut() {
            addresses.retain(|address| address.get("$patch").is_none());
        }
        Node {
            metadata: ObjectMeta {
                name: Some(self.config.name.clone()),
                labels: Some(self.labels()),
                annotations: (!self.config.annotations.is_empty()).then(|| self.config.annotations.clone()),
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
        let conditions = [
            condition(
                "MemoryPressure",
                "False",
                "KubeletHasSufficientMemory",
                "spillway-vk has sufficient memory available",
            ),
            condition(
                "DiskPressure",
                "False",
                "KubeletHasNoDiskPressure",
                "spillway-vk has no disk pressure",
            ),
            condition(
                "PIDPressure",
                "False",
                "KubeletHasSufficientPID",
                "spillway-vk has sufficient PID available",
            ),
            condition("NetworkUnavailable", "False", "ProviderNetwork", "pods are connected by the provider"),
            condition("Ready", ready.status, ready.reason, &ready.message),
        ];
        let capacity = self.capacity();
        json!({
            // Replaced as a whole: the merge key of this list does not identify its entries (kubernetes#79391).
            "addresses": [
                { "type": "InternalIP", "address": self.address },
                { "type": "Hostname", "address": self.config.name },
                { "$patch": "replace" },
            ],
            "capacity": capacity,
            "allocatable": capacity,
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
            },
        })
    }

    fn capacity(&self) -> BTreeMap<String, Quantity> {
        let mut capacity = self.machine.capacity.clone();
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
