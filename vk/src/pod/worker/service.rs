//! The same pod on a provider that is given whole pods.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use k8s_openapi::api::core::v1::Pod;

use super::{Next, RETRY, SyncError, Worker};
use crate::{
    pod::{
        admission::Refusal,
        env::{EnvError, sources},
        events::Kind,
        lifecycle,
        objects::References,
        status::{self, Waiting},
    },
    provider::PodService,
};

/// An object that was let go and is still there after so long is let go again.
const GOES_WITHIN: Duration = Duration::from_secs(10);

impl Worker {
    /// One step: as [`Worker::sync`] and [`Worker::remove_all`], with everything between left to the service.
    pub(super) async fn sync_service(
        &mut self,
        pod: Option<&Arc<Pod>>,
        service: &dyn PodService,
    ) -> Result<Next, SyncError> {
        let Some(pod) = pod else {
            service.delete(&self.entry.pod, 0).await?;
            return Ok(Next::Gone);
        };
        if pod.metadata.deletion_timestamp.is_some() {
            return self.delete_from_service(pod, service).await;
        }
        if status::is_terminal(pod.status.as_ref()) {
            return Ok(Next::Rest);
        }
        let mut seen = service.observe(&self.entry.pod).await?;
        if seen.is_empty() {
            if let Some(message) = service.refuses(pod) {
                let refusal = Refusal { reason: "PodFeatureUnsupported".to_owned(), message };
                return self.refuse(pod, &refusal).await.map(|_| Next::Rest);
            }
            if let Some(missing) = self.missing(pod).await {
                self.all_wait(pod, "CreateContainerConfigError", &missing.to_string());
                self.report(pod, &seen, false).await?;
                return Ok(Next::Within(Some(self.memory.start_again.delay())));
            }
            if let Err(error) = service.create(pod).await {
                self.shared.recorder.pod(pod, Kind::Warning, "FailedCreatePod", &error.to_string());
                self.all_wait(pod, "CreateContainerError", &error.to_string());
                self.report(pod, &seen, false).await?;
                return Err(error.into());
            }
            self.memory.waiting.clear();
            seen = service.observe(&self.entry.pod).await?;
        }
        let seen = lifecycle::with_history(seen, pod.status.as_ref());
        self.report(pod, &seen, false).await?;
        Ok(Next::Rest)
    }

    fn all_wait(&mut self, pod: &Pod, reason: &str, message: &str) {
        for container in pod.spec.iter().flat_map(|spec| &spec.containers) {
            let why = Waiting { reason: reason.to_owned(), message: message.to_owned() };
            self.memory.waiting.insert(container.name.clone(), why);
        }
    }

    /// What the pod's variables need and can't have (yet). What is not there is told as events.
    async fn missing(&mut self, pod: &Arc<Pod>) -> Option<EnvError> {
        let spec = pod.spec.as_ref()?;
        let mut first = None;
        for container in spec.init_containers.iter().flatten().chain(&spec.containers) {
            let references = sources::references(container);
            if references == References::default() {
                continue;
            }
            let found = self.load(&references).await;
            self.tell_not_found(pod, container, &found);
            first = first.or_else(|| sources::missing(&self.entry.pod.namespace, container, &found));
        }
        if first.is_some() {
            self.memory.read_again(Instant::now());
        }
        first
    }

    /// How far it is shows on both sides, but for a moment.
    async fn delete_from_service(
        &mut self,
        pod: &Arc<Pod>,
        service: &dyn PodService,
    ) -> Result<Next, SyncError> {
        let grace = pod.metadata.deletion_grace_period_seconds.unwrap_or(0).max(0).unsigned_abs();
        service.delete(&self.entry.pod, grace).await?;
        let is_held = pod.metadata.finalizers.as_ref().is_some_and(|finalizers| !finalizers.is_empty());
        // Whoever holds the object waits to read that the pod has ended.
        if service.runs_processes() || is_held {
            let seen = lifecycle::with_history(service.observe(&self.entry.pod).await?, pod.status.as_ref());
            self.report(pod, &seen, true).await?;
        }
        let let_go = &mut self.memory.let_go;
        match (grace, is_held) {
            (0, true) => return Ok(Next::Rest),
            // Without grace it was let go already, by us or by force: that is written first, and then the object goes, sooner than another
            // call would reach it.
            (0, false) if let_go.is_none() => *let_go = Some(Instant::now()),
            // Whatever has woken us since.
            _ if let_go.is_some_and(|at| at.elapsed() < GOES_WITHIN) => {}
            _ if self.delete_object().await? => self.memory.let_go = Some(Instant::now()),
            // It is gone, or the API server does not know it yet.
            _ => return Ok(Next::Within(Some(RETRY.0))),
        }
        let waited = self.memory.let_go.map(|at| at.elapsed()).unwrap_or_default();
        Ok(Next::Within(Some(GOES_WITHIN.saturating_sub(waited))))
    }
}
