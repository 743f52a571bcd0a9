//! Events: what the API server refused to make.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, Time};
use kube::core::ObjectMeta;
use serde::Deserialize;

use super::{lean, same_as};
use crate::report::snapshot;

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

same_as!(Event, k8s_openapi::api::core::v1::Event);

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
