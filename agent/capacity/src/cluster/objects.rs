//! Objects of the Kubernetes API with no more of them than a report looks at: fifty thousand pods must fit into memory.

mod event;
mod node;
mod pod;

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::{
    api::resource::Quantity,
    apis::meta::v1::{OwnerReference, Time},
};
use kube::core::ObjectMeta;
use serde::{Deserialize, Deserializer};

pub use self::{event::Event, node::Node, pod::Pod};
use crate::report::{
    quantity,
    snapshot::{Amounts, Names, ResourceId},
};

/// The annotation in which Spillway's agent tells the largest groups of devices that can be had together.
const GROUPS: &str = "spillway.dev/largest-group";
/// The annotation by which a pod names its `PodGroup` of Volcano.
const POD_GROUP: &str = "scheduling.k8s.io/group-name";
/// The labels by which it names one of the coscheduling plugin, the newer first.
const POD_GROUP_LABELS: [&str; 2] = ["scheduling.x-k8s.io/pod-group", "pod-group.scheduling.sigs.k8s.io"];

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
    #[derive(Deserialize, Default)]
    struct Annotations {
        #[serde(rename = "spillway.dev/largest-group")]
        groups: Option<String>,
        #[serde(rename = "scheduling.k8s.io/group-name")]
        pod_group: Option<String>,
    }
    let lean = Lean::deserialize(deserializer)?;
    let Annotations { groups, pod_group } = lean.annotations.unwrap_or_default();
    let kept = [(GROUPS, groups), (POD_GROUP, pod_group)];
    let kept = kept.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?)));
    let kept = Some(kept.collect::<BTreeMap<_, _>>()).filter(|kept| !kept.is_empty());
    Ok(ObjectMeta {
        name: lean.name,
        namespace: lean.namespace,
        uid: lean.uid,
        resource_version: lean.resource_version,
        labels: lean.labels,
        annotations: kept,
        owner_references: lean.owner_references,
        creation_timestamp: lean.creation_timestamp,
        deletion_timestamp: lean.deletion_timestamp,
        ..ObjectMeta::default()
    })
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

/// The same resource of the API as the whole object.
macro_rules! same_as {
    ($part:ty, $whole:ty) => {
        impl kube::Resource for $part {
            type DynamicType = ();
            type Scope = <$whole as kube::Resource>::Scope;

            fn kind((): &()) -> std::borrow::Cow<'_, str> {
                <$whole as kube::Resource>::kind(&())
            }

            fn group((): &()) -> std::borrow::Cow<'_, str> {
                <$whole as kube::Resource>::group(&())
            }

            fn version((): &()) -> std::borrow::Cow<'_, str> {
                <$whole as kube::Resource>::version(&())
            }

            fn plural((): &()) -> std::borrow::Cow<'_, str> {
                <$whole as kube::Resource>::plural(&())
            }

            fn meta(&self) -> &kube::core::ObjectMeta {
                &self.metadata
            }

            fn meta_mut(&mut self) -> &mut kube::core::ObjectMeta {
                &mut self.metadata
            }
        }
    };
}
use same_as;

#[cfg(test)]
mod tests;
