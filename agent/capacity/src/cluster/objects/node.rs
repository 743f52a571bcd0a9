//! Nodes, and by what marks virtual ones are known.

use k8s_openapi::api::core::v1::Taint;
use kube::core::ObjectMeta;
use serde::Deserialize;

use super::{Condition, GROUPS, Quantities, amounts, lean, same_as};
use crate::report::snapshot::{self, Names};

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

same_as!(Node, k8s_openapi::api::core::v1::Node);

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
