//! The same pod on a provider that is given whole pods.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;

use super::{Next, SyncError, Worker};
use crate::{
    pod::{
        admission::Refusal,
        events::Kind,
        lifecycle,
        status::{self, Waiting},
    },
    provider::PodService,
};

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
            return Ok(Next::IDLE);
        }
        let mut seen = service.observe(&self.entry.pod).await?;
        if seen.is_empty() {
            if let Some(message) = service.refuses(pod) {
                let refusal = Refusal { reason: "PodFeatureUnsupported".to_owned(), message };
                return self.refuse(pod, &refusal).await;
            }
            if let Err(error) = service.create(pod).await {
                self.shared.recorder.pod(pod, Kind::Warning, "FailedCreatePod", &error.to_string());
                for container in pod.spec.iter().flat_map(|spec| &spec.containers) {
                    let why =
                        Waiting { reason: "CreateContainerError".to_owned(), message: error.to_string() };
                    self.memory.waiting.insert(container.name.clone(), why);
                }
                self.report(pod, &seen, false).await?;
                return Err(error.into());
            }
            self.memory.waiting.clear();
            seen = service.observe(&self.entry.pod).await?;
        }
        let seen = lifecycle::with_history(seen, pod.status.as_ref());
        self.report(pod, &seen, false).await?;
        Ok(Next::IDLE)
    }

    async fn delete_from_service(
        &mut self,
        pod: &Arc<Pod>,
        service: &dyn PodService,
    ) -> Result<Next, SyncError> {
        if self.memory.settled {
            return Ok(Next::IDLE);
        }
        let grace = pod.metadata.deletion_grace_period_seconds.unwrap_or(0).max(0).unsigned_abs();
        service.delete(&self.entry.pod, grace).await?;
        let seen = lifecycle::with_history(service.observe(&self.entry.pod).await?, pod.status.as_ref());
        self.report(pod, &seen, true).await?;
        self.let_go().await
    }
}
