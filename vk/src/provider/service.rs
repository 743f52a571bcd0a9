//! Providers that are given whole pods: clouds' container services, or nothing at all.

use std::collections::BTreeMap;

use async_trait::async_trait;
use futures::stream::BoxStream;
use k8s_openapi::api::core::v1::Pod;

use super::{
    Attach, Exec, Logs, PortForward, ProviderError, Stats, Version,
    facts::Facts,
    observed::{ObservedPod, PodRef},
};

/// Runs whole pods. Every call is keyed by the pod's UID and may be repeated.
#[async_trait]
pub trait PodService: Send + Sync {
    /// The provider's name, as in `--provider`.
    fn name(&self) -> &'static str;

    /// Who answers.
    async fn version(&self) -> Result<Version, ProviderError>;

    /// Whether pods could be started now.
    async fn ping(&self) -> Result<(), ProviderError>;

    /// What the node's status tells of it, as far as it can say. Asked for every half minute.
    async fn facts(&self) -> Result<Facts, ProviderError> {
        Ok(Facts::default())
    }

    /// What the pod asks for that this service can't do: a message that names the field. A pure function.
    fn refuses(&self, pod: &Pod) -> Option<String>;

    /// Starts the pod. If it was started before, nothing happens.
    async fn create(&self, pod: &Pod) -> Result<(), ProviderError>;

    /// Ends the pod, giving its processes so many seconds, and forgets it. Returns when it has ended; unknown pods are ended pods.
    async fn delete(&self, pod: &PodRef, grace_seconds: u64) -> Result<(), ProviderError>;

    /// All pods of this node that the service has: the complete list, or an error.
    async fn list(&self) -> Result<BTreeMap<PodRef, ObservedPod>, ProviderError>;

    /// What the service has of one pod.
    async fn observe(&self, pod: &PodRef) -> Result<ObservedPod, ProviderError> {
        Ok(self.list().await?.remove(pod).unwrap_or_default())
    }

    /// Whether pods change only while [`PodService::changes`] tells it, this process being away or not. Then the complete list is read when
    /// a stream begins, and not again and again.
    fn tells_everything(&self) -> bool {
        false
    }

    /// Whether anything runs in the pods. Where nothing does, no exit code has to be told before a deleted pod's object goes.
    fn runs_processes(&self) -> bool {
        true
    }

    /// UIDs of pods that changed, from now on. May end at any time; whoever listens then calls [`PodService::list`] and starts
    /// again. `None`: there is no such stream, the list must be polled.
    async fn changes(&self) -> Result<Option<BoxStream<'static, String>>, ProviderError>;

    /// Reads logs, if the service can.
    fn logs(&self) -> Option<&dyn Logs> {
        None
    }

    /// Runs commands, if the service can.
    fn exec(&self) -> Option<&dyn Exec> {
        None
    }

    /// Attaches to containers, if the service can.
    fn attach(&self) -> Option<&dyn Attach> {
        None
    }

    /// Connects to ports of pods, if the service can.
    fn port_forward(&self) -> Option<&dyn PortForward> {
        None
    }

    /// Tells what pods use, if the service can.
    fn stats(&self) -> Option<&dyn Stats> {
        None
    }
}
