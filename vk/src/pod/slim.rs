//! A pod as it is read from the API server: without who set which field, which nobody here asks for, and which is the larger half of it.

use std::{borrow::Cow, collections::BTreeMap};

use k8s_openapi::{
    api::core::v1::{Pod, PodSpec, PodStatus},
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference, Time},
};
use kube::Resource;
use serde::{Deserialize, Deserializer};

/// A pod without `metadata.managedFields`: they are passed over while it is read, not read and dropped.
#[derive(Debug, Clone)]
pub(super) struct SlimPod(pub(super) Pod);

#[derive(Deserialize)]
struct Wire {
    #[serde(default)]
    metadata: Metadata,
    spec: Option<PodSpec>,
    status: Option<PodStatus>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata {
    annotations: Option<BTreeMap<String, String>>,
    creation_timestamp: Option<Time>,
    deletion_grace_period_seconds: Option<i64>,
    deletion_timestamp: Option<Time>,
    finalizers: Option<Vec<String>>,
    generate_name: Option<String>,
    generation: Option<i64>,
    labels: Option<BTreeMap<String, String>>,
    name: Option<String>,
    namespace: Option<String>,
    owner_references: Option<Vec<OwnerReference>>,
    resource_version: Option<String>,
    self_link: Option<String>,
    uid: Option<String>,
}

impl<'de> Deserialize<'de> for SlimPod {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Wire { metadata, spec, status } = Wire::deserialize(deserializer)?;
        let metadata = ObjectMeta {
            annotations: metadata.annotations,
            creation_timestamp: metadata.creation_timestamp,
            deletion_grace_period_seconds: metadata.deletion_grace_period_seconds,
            deletion_timestamp: metadata.deletion_timestamp,
            finalizers: metadata.finalizers,
            generate_name: metadata.generate_name,
            generation: metadata.generation,
            labels: metadata.labels,
            managed_fields: None,
            name: metadata.name,
            namespace: metadata.namespace,
            owner_references: metadata.owner_references,
            resource_version: metadata.resource_version,
            self_link: metadata.self_link,
            uid: metadata.uid,
        };
        Ok(Self(Pod { metadata, spec, status }))
    }
}

impl Resource for SlimPod {
    type DynamicType = ();
    type Scope = <Pod as Resource>::Scope;

    fn kind((): &()) -> Cow<'_, str> {
        Pod::kind(&())
    }

    fn group((): &()) -> Cow<'_, str> {
        Pod::group(&())
    }

    fn version((): &()) -> Cow<'_, str> {
        Pod::version(&())
    }

    fn plural((): &()) -> Cow<'_, str> {
        Pod::plural(&())
    }

    fn meta(&self) -> &ObjectMeta {
        &self.0.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.0.metadata
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn all_but_who_set_which_field_is_read() {
        let mut wire = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "annotations": { "a": "1" }, "creationTimestamp": "2026-01-01T00:00:00Z",
                "deletionGracePeriodSeconds": 30, "deletionTimestamp": "2026-01-01T00:01:00Z",
                "finalizers": ["example.com/x"], "generateName": "web-", "generation": 2,
                "labels": { "app": "web" }, "name": "web-1", "namespace": "ns",
                "ownerReferences": [{ "apiVersion": "v1", "kind": "Node", "name": "n", "uid": "u" }],
                "resourceVersion": "7", "selfLink": "/x", "uid": "u1",
                "managedFields": [{ "manager": "m", "operation": "Update", "fieldsV1": { "f:spec": {} } }],
            },
            "spec": { "containers": [{ "name": "main" }], "hostNetwork": true },
            "status": { "phase": "Running" },
        });
        let SlimPod(read) = serde_json::from_value(wire.clone()).unwrap();
        wire["metadata"].as_object_mut().unwrap().remove("managedFields");
        assert_eq!(serde_json::to_value(&read).unwrap(), wire);
        let whole: Pod = serde_json::from_value(wire).unwrap();
        assert_eq!(read, whole);
    }

    #[test]
    fn it_is_asked_for_as_a_pod() {
        assert_eq!(SlimPod::url_path(&(), Some("ns")), Pod::url_path(&(), Some("ns")));
        let empty: SlimPod = serde_json::from_value(json!({ "kind": "Pod", "apiVersion": "v1" })).unwrap();
        assert_eq!(empty.0, Pod::default());
    }
}
