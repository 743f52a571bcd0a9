//! Ending: deleted pods, condemned pods, pods that ended by themselves, and what nobody wants any more.

use std::{sync::Arc, time::Instant};

use k8s_openapi::api::core::v1::Pod;

use super::{Next, RETRY, SyncError, Worker, ending::Ending};
use crate::{
    pod::{events::Kind, status::Verdict},
    provider::{ProviderError, observed::ObservedPod, runtime::ContainerRuntime},
};

/// Every process gets this long, however hurried the deletion.
pub(super) const LEAST_GRACE_SECONDS: u64 = 2;
/// Kubernetes' default grace period.
const DEFAULT_GRACE_SECONDS: i64 = 30;

/// Why a pod has to end, and how.
#[derive(Debug, Clone)]
pub(super) struct Sentence {
    pub(super) verdict: Verdict,
    /// Of the event.
    pub(super) kind: Kind,
    /// Seconds that its processes have; `None`: what the pod says.
    pub(super) grace: Option<u64>,
}

impl Sentence {
    /// The pod's own deadline has passed.
    pub(super) fn deadline() -> Self {
        let message = "Pod was active on the node longer than the specified deadline";
        let verdict = Verdict { reason: "DeadlineExceeded".to_owned(), message: message.to_owned() };
        Self { verdict, kind: Kind::Normal, grace: None }
    }

    /// It takes more than it may.
    pub(super) fn eviction(message: String) -> Self {
        let verdict = Verdict { reason: "Evicted".to_owned(), message };
        Self { verdict, kind: Kind::Warning, grace: Some(1) }
    }
}

impl Worker {
    /// The API server wants the pod gone: end it, say how it ended, give everything back, and let the object go. In this order, so that
    /// no exit code is lost and nothing is left when the object is gone.
    pub(super) async fn delete(
        &mut self,
        pod: &Arc<Pod>,
        runtime: &dyn ContainerRuntime,
    ) -> Result<Next, SyncError> {
        if self.memory.let_go.is_some() && runtime.observe(&self.entry.pod.uid).await?.is_empty() {
            // Somebody's finalizer holds the object.
            return Ok(Next::IDLE);
        }
        if !self.stop_containers(runtime, Some(pod)).await? {
            return Ok(Next::Again);
        }
        let seen = self.observe(runtime, pod).await?;
        self.report(pod, &seen, true).await?;
        let _turn = Arc::clone(&self.shared.changes).acquire_owned().await;
        self.give_back(runtime, Some(pod), &seen).await?;
        self.let_go().await
    }

    /// Lets the object of a pod go of which nothing is left.
    async fn let_go(&mut self) -> Result<Next, SyncError> {
        self.memory.let_go = self.delete_object().await?.then(Instant::now);
        Ok(if self.memory.let_go.is_some() { Next::IDLE } else { Next::Within(Some(RETRY.0)) })
    }

    /// The pod has no right to run any more: end it and say why. Its containers stay to be looked at.
    pub(super) async fn condemn(
        &mut self,
        pod: &Arc<Pod>,
        runtime: &dyn ContainerRuntime,
        seen: &ObservedPod,
        sentence: Sentence,
    ) -> Result<Next, SyncError> {
        let Sentence { verdict, kind, grace } = sentence;
        if self.memory.verdict.is_none() {
            self.shared.recorder.pod(pod, kind, &verdict.reason, &verdict.message);
        }
        self.memory.verdict = Some(verdict);
        // Nothing more is to be sent to it.
        self.show(pod, seen).await;
        if !self.stop_containers_within(runtime, Some(pod), grace).await? {
            return Ok(Next::Again);
        }
        let seen = self.observe(runtime, pod).await?;
        self.report(pod, &seen, true).await?;
        self.ended()
    }

    /// After a terminal status was written: go on with [`Worker::settle`], unless the object turned out to be gone.
    #[allow(clippy::unnecessary_wraps)] // It is a step's result.
    pub(super) fn ended(&self) -> Result<Next, SyncError> {
        let latest = self.entry.latest.borrow();
        let written = latest.as_ref().is_some_and(|pod| crate::pod::status::is_terminal(pod.status.as_ref()));
        Ok(if written { Next::Again } else { Next::Within(Some(std::time::Duration::from_secs(1))) })
    }

    /// The pod has ended, and the API server knows how. Its address and its volumes are given back; containers and logs stay until the
    /// object goes.
    pub(super) async fn settle(
        &mut self,
        pod: &Arc<Pod>,
        runtime: &dyn ContainerRuntime,
    ) -> Result<Next, SyncError> {
        if self.memory.settled {
            return Ok(Next::IDLE);
        }
        // Somebody else may have called it ended while it ran.
        if !self.stop_containers(runtime, Some(pod)).await? {
            return Ok(Next::Again);
        }
        let seen = runtime.observe(&self.entry.pod.uid).await?;
        let _turn = Arc::clone(&self.shared.changes).acquire_owned().await;
        self.stop_sandboxes(runtime, Some(pod), &seen).await?;
        self.remove_folder().await?;
        // After a restart, what was on record until now.
        self.shared.free(&self.entry.pod.uid);
        self.memory.settled = true;
        Ok(Next::IDLE)
    }

    /// The API server has no such pod: end what runs and leave nothing.
    pub(super) async fn remove_all(&mut self, runtime: &dyn ContainerRuntime) -> Result<Next, SyncError> {
        self.stop_containers(runtime, None).await?;
        let seen = runtime.observe(&self.entry.pod.uid).await?;
        let _turn = Arc::clone(&self.shared.changes).acquire_owned().await;
        self.give_back(runtime, None, &seen).await?;
        tracing::debug!(pod = %self.entry.pod, pod.uid = self.entry.pod.uid, "nothing is left of the pod");
        self.shared.free(&self.entry.pod.uid);
        Ok(Next::Gone)
    }

    /// Ends all containers. `false`: the pod changed meanwhile, so that the grace period may be another.
    pub(super) async fn stop_containers(
        &mut self,
        runtime: &dyn ContainerRuntime,
        pod: Option<&Arc<Pod>>,
    ) -> Result<bool, SyncError> {
        self.stop_containers_within(runtime, pod, None).await
    }

    /// The same, within so many seconds whatever the pod says.
    async fn stop_containers_within(
        &mut self,
        runtime: &dyn ContainerRuntime,
        pod: Option<&Arc<Pod>>,
        within: Option<u64>,
    ) -> Result<bool, SyncError> {
        let seen = runtime.observe(&self.entry.pod.uid).await?;
        if let Some(pod) = pod {
            self.follow(pod, &seen);
        }
        let grace = pod.map_or(LEAST_GRACE_SECONDS, |pod| grace_seconds(pod));
        let grace = within.map_or(grace, |within| within.max(LEAST_GRACE_SECONDS).min(grace));
        let endings: Vec<Ending> = seen
            .containers
            .iter()
            .filter(|container| container.may_run())
            .map(|container| Ending {
                name: container.name.clone(),
                id: container.id.clone(),
                message: format!("Stopping container {}", container.name),
                grace,
            })
            .collect();
        if endings.is_empty() {
            return Ok(true);
        }
        let ip = pod.map(|pod| self.pod_ip(pod, &seen)).unwrap_or_default();
        // More haste: the calls are dropped and made again with what is left.
        let mut latest = self.latest.clone();
        let hurried = async move {
            match pod {
                Some(_) => shorter_grace(&mut latest, grace).await,
                None => std::future::pending().await,
            }
        };
        let ended = self.end_containers(runtime, pod, &ip, endings, hurried).await;
        self.tell_unless_ended(pod, ended)
    }

    /// Sandboxes with all that is in them, the folder with all that is mounted, the cgroup, the logs. What a later start finds the pod by
    /// goes last: the folder, and its sandboxes.
    async fn give_back(
        &mut self,
        runtime: &dyn ContainerRuntime,
        pod: Option<&Arc<Pod>>,
        seen: &ObservedPod,
    ) -> Result<(), SyncError> {
        self.stop_sandboxes(runtime, pod, seen).await?;
        runtime.remove_pod(&self.entry.pod.uid).await?;
        self.remove_folder().await?;
        for sandbox in &seen.sandboxes {
            runtime.remove_sandbox(&sandbox.id).await?;
        }
        Ok(())
    }

    async fn stop_sandboxes(
        &self,
        runtime: &dyn ContainerRuntime,
        pod: Option<&Arc<Pod>>,
        seen: &ObservedPod,
    ) -> Result<(), SyncError> {
        for sandbox in &seen.sandboxes {
            let stopped = runtime.stop_sandbox(&sandbox.id).await.map_err(SyncError::from);
            self.tell_unless_ended(pod, stopped)?;
        }
        Ok(())
    }

    /// Why the runtime can't end something of the pod is all that its user sees of that.
    fn tell_unless_ended<T>(
        &self,
        pod: Option<&Arc<Pod>>,
        ended: Result<T, SyncError>,
    ) -> Result<T, SyncError> {
        if let (Some(pod), Err(SyncError::Provider(ProviderError::Failed { message, .. }))) = (pod, &ended) {
            let message = format!("error killing pod: {message}");
            self.shared.recorder.pod(pod, Kind::Warning, "FailedKillPod", &message);
        }
        ended
    }

    async fn remove_folder(&mut self) -> Result<(), SyncError> {
        self.memory.volumes = None;
        self.memory.hosts = None;
        let folder = self.folder.clone();
        let removed = tokio::task::spawn_blocking(move || folder.remove()).await;
        removed.map_err(|error| SyncError::Waiting(error.to_string()))??;
        Ok(())
    }
}

/// The seconds that the pod's processes have: what the deletion says, else what the pod says.
pub(in crate::pod) fn grace_seconds(pod: &Pod) -> u64 {
    let by_spec = pod.spec.as_ref().and_then(|spec| spec.termination_grace_period_seconds);
    let seconds =
        pod.metadata.deletion_grace_period_seconds.or(by_spec).unwrap_or(DEFAULT_GRACE_SECONDS).max(0);
    seconds.unsigned_abs().max(LEAST_GRACE_SECONDS)
}

/// Resolves when the pod is gone or has to end sooner than in `grace` seconds.
async fn shorter_grace(latest: &mut tokio::sync::watch::Receiver<Option<Arc<Pod>>>, grace: u64) {
    let sooner =
        latest.wait_for(|latest| latest.as_ref().is_none_or(|pod| grace_seconds(pod) < grace)).await.is_ok();
    if !sooner {
        std::future::pending::<()>().await;
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_deletions_grace_wins_and_is_never_none() {
        let check = |deletion: Option<i64>, spec: Option<i64>, expected| {
            let pod = serde_json::from_value(json!({
                "metadata": { "deletionGracePeriodSeconds": deletion },
                "spec": { "containers": [], "terminationGracePeriodSeconds": spec },
            }))
            .unwrap();
            assert_eq!(grace_seconds(&pod), expected);
        };
        check(None, None, 30);
        check(None, Some(5), 5);
        check(Some(7), Some(5), 7);
        check(Some(0), Some(5), 2);
        check(Some(-1), None, 2);
    }
}
