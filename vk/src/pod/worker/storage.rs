//! Looking at what a pod takes of local disks. Only pods that have a limit are looked at, and the longer a look takes the rarer it is.

use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Pod;

use super::{SyncError, Worker, teardown::Sentence};
use crate::{
    identity::chain,
    pod::storage::{self, Limits, Used},
};

/// A kubelet's eviction manager looks as often.
const INTERVAL: Duration = Duration::from_secs(10);
/// Looking takes one part in so many of the time at most.
const SHARE: u32 = 20;

impl Worker {
    /// Looks, if it is time to, and says when to look again; `None` within: never. `None`: the pod has to go.
    pub(super) async fn check_storage(&mut self, pod: &Pod) -> Option<Option<Duration>> {
        let Some(limits) = pod.spec.as_ref().and_then(storage::limits) else { return Some(None) };
        let now = Instant::now();
        if let Some(at) = self.memory.storage_at.filter(|at| *at > now) {
            return Some(Some(at - now));
        }
        let looked = self.used(&limits).await;
        let delay = INTERVAL.max(now.elapsed() * SHARE);
        self.memory.storage_at = Some(Instant::now() + delay);
        match looked {
            Ok(used) => {
                let Some(message) = storage::exceeded(&limits, &used) else { return Some(Some(delay)) };
                tracing::info!(pod = %self.entry.pod, why = message, "the pod takes more of local disks than it may: it is evicted");
                self.memory.evicted = Some(Sentence::eviction(message));
                None
            }
            Err(error) => {
                tracing::warn!(pod = %self.entry.pod, error = chain(&error), "what the pod takes of local disks is not known");
                Some(Some(delay))
            }
        }
    }

    async fn used(&self, limits: &Limits) -> Result<Used, SyncError> {
        let folder = self.folder.clone();
        let volumes = limits.volumes();
        let read = tokio::task::spawn_blocking(move || folder.disk_usage(&volumes)).await;
        let (volumes, files) = read.map_err(|error| SyncError::Waiting(error.to_string()))??;
        let containers = match self.shared.provider.stats() {
            Some(stats) if limits.concern_containers() => stats.disk_usage(&self.entry.pod).await?,
            _ => std::collections::BTreeMap::new(),
        };
        Ok(Used { volumes, containers, files })
    }
}
