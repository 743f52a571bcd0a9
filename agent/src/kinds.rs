//! Objects of the Kubernetes API, with no more of them than the agent looks at. Whatever a pod's template or a node's status can say would be
//! hundreds of kilobytes of code that only reads it, in the memory of every machine.

use std::borrow::Cow;

use k8s_openapi::api::{apps::v1, core::v1::NodeCondition};
use kube::{Resource, core::ObjectMeta};
use serde::Deserialize;

/// A node.
#[derive(Debug, Clone, Default, Deserialize)]
pub(crate) struct Node {
    pub(crate) metadata: ObjectMeta,
    pub(crate) status: Option<NodeStatus>,
}

/// How it is.
#[derive(Debug, Clone, Default, Deserialize)]
pub(crate) struct NodeStatus {
    pub(crate) conditions: Option<Vec<NodeCondition>>,
}

/// A pod on each of many nodes.
#[derive(Debug, Clone, Default, Deserialize)]
pub(crate) struct DaemonSet {
    pub(crate) metadata: ObjectMeta,
    pub(crate) spec: Option<DaemonSetSpec>,
    pub(crate) status: Option<DaemonSetStatus>,
}

/// What it shall be.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct DaemonSetSpec {
    pub(crate) template: Template,
}

/// What its pods shall be.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Template {
    pub(crate) spec: Option<PodSpec>,
}

/// What a pod shall be.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct PodSpec {
    pub(crate) containers: Vec<Container>,
}

/// What a container shall be.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Container {
    pub(crate) env: Option<Vec<Variable>>,
}

/// A variable in its environment.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Variable {
    pub(crate) name: String,
    pub(crate) value: Option<String>,
}

/// How far it is.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct DaemonSetStatus {
    pub(crate) desired_number_scheduled: i32,
    pub(crate) number_ready: i32,
    pub(crate) observed_generation: Option<i64>,
    pub(crate) updated_number_scheduled: Option<i32>,
}

/// The same resource as the whole object.
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
same_as!(DaemonSet, v1::DaemonSet);
