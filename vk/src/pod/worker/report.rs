//! What the API server is told of the pod, and of its end.

use std::sync::Arc;

use http::HeaderValue;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use kube::{
    Resource as _,
    api::{DeleteParams, Preconditions},
};

use super::{Next, SyncError, Worker};
use crate::{
    pod::{
        admission::Refusal,
        ephemeral,
        events::Kind,
        probe::Healths,
        status::{self, Facts, Verdict},
    },
    provider::{
        LogOptions, Provider,
        observed::{ObservedPod, PodRef, State},
    },
};

/// Kubernetes' limits on what a log gives to a termination message.
const LOG_LINES: u64 = 80;
const LOG_BYTES: u64 = 2048;
/// Asks the API server for an object's metadata alone.
const METADATA_ONLY: &str = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1";

impl Worker {
    /// Writes the status that follows from what was seen, if it is another than the last, and waits until the API server has it. `ended`:
    /// nothing will run any more.
    pub(super) async fn report(
        &mut self,
        pod: &Arc<Pod>,
        seen: &ObservedPod,
        ended: bool,
    ) -> Result<(), SyncError> {
        self.pen.freed().await;
        let (pod, wanted) = self.status(pod, seen, ended).await;
        self.pen.write(&pod, &wanted).await
    }

    /// The same of a pod that goes on, but no answer is waited for long: meanwhile containers may have to be ended, or started again. Whether
    /// the API server has it; if not, there is another step.
    pub(super) async fn show(&mut self, pod: &Arc<Pod>, seen: &ObservedPod) -> bool {
        if !self.pen.is_free() {
            return false;
        }
        let (pod, wanted) = self.status(pod, seen, false).await;
        self.pen.write_in_time(&pod, &wanted).await
    }

    /// Says that the pod is not taken in, and why.
    pub(super) async fn refuse(&mut self, pod: &Arc<Pod>, refusal: &Refusal) -> Result<Next, SyncError> {
        self.shared.recorder.pod(pod, Kind::Warning, &refusal.reason, &refusal.message);
        let message = format!("Pod was rejected: {}", refusal.message);
        let verdict = Verdict { reason: refusal.reason.clone(), message };
        self.pen.freed().await;
        let pod = self.with_newest_status(pod);
        self.pen.write(&pod, &status::rejected(&pod, &verdict, Timestamp::now())).await?;
        Ok(Next::IDLE)
    }

    /// The status that follows from what was seen, and the pod that it is about.
    async fn status(&mut self, pod: &Arc<Pod>, seen: &ObservedPod, ended: bool) -> (Arc<Pod>, PodStatus) {
        let pod = self.memory.given.of(&self.with_newest_status(pod));
        let seen = self.with_messages(&pod, seen.clone()).await;
        let healths = self.follow(&pod, &seen);
        // Not known is no reason to say nothing.
        let deep_read_only = self.deep_read_only(&pod, seen.sandbox()).await.unwrap_or(false);
        let wanted = status::build(&Facts {
            pod: &pod,
            seen: &seen,
            waiting: &self.memory.waiting,
            loops: &self.memory.loops,
            healths: healths.as_ref(),
            resize: &self.memory.given.resize,
            memory_requests: &self.memory.given.memory_requests(),
            host_ips: &self.shared.settings.host_ips,
            scheme: &self.shared.scheme,
            ended,
            deep_read_only,
            verdict: self.memory.verdict.as_ref(),
            now: Timestamp::now(),
        });
        if status::is_terminal(Some(&wanted)) {
            // Nothing runs. Whoever reads this may send the next pod at once.
            self.shared.free(&self.entry.pod.uid);
            self.prober.end();
        }
        (pod, wanted)
    }

    /// The pod as this step has it, with the newest status: since the step began, our own writes may have made it newer.
    fn with_newest_status(&self, pod: &Arc<Pod>) -> Arc<Pod> {
        match self.entry.latest.borrow().as_ref() {
            // What is said about it is about that version.
            Some(newest) if newest.metadata.generation == pod.metadata.generation => Arc::clone(newest),
            Some(newest) => Arc::new(Pod { status: newest.status.clone(), ..Pod::clone(pod) }),
            None => Arc::clone(pod),
        }
    }

    /// Asks the containers that run and have probes, and no others. What is known of them; `None`: the provider looks after that.
    pub(super) fn follow(&mut self, pod: &Arc<Pod>, seen: &ObservedPod) -> Option<Healths> {
        let Provider::Runtime(runtime) = &self.shared.provider else { return None };
        self.prober.follow(pod, seen, &self.pod_ip(pod, seen), runtime);
        Some(self.prober.healths())
    }

    /// Where the pod is reached from this machine; empty: nowhere yet.
    pub(super) fn pod_ip(&self, pod: &Pod, seen: &ObservedPod) -> String {
        let host_ips = &self.shared.settings.host_ips;
        let ip = if pod.spec.as_ref().and_then(|spec| spec.host_network).unwrap_or(false) {
            host_ips.first().copied()
        } else {
            let ips = seen.sandbox().map(|sandbox| sandbox.ips.as_slice()).unwrap_or_default();
            status::primary_first(ips, host_ips).first().copied()
        };
        ip.map(|ip| ip.to_string()).unwrap_or_default()
    }

    /// Tells the API server that nothing is left, which ends the object. Whether it has heard of it: if not, it is gone, which the watch will
    /// tell; or the API server has just begun, and its own list of pods (that of the `NodeRestriction` plugin) is not there yet.
    pub(super) async fn delete_object(&self) -> Result<bool, SyncError> {
        let _turn = self.shared.writes.acquire().await;
        self.shared.settings.lead.check().map_err(|error| SyncError::Waiting(error.to_string()))?;
        let params = DeleteParams::default()
            .grace_period(0)
            .preconditions(Preconditions { uid: Some(self.entry.pod.uid.clone()), resource_version: None });
        match Box::pin(self.ask_for_deletion(&params)).await {
            Ok(()) => Ok(true),
            Err(kube::Error::Api(status)) if status.is_not_found() || status.is_conflict() => Ok(false),
            Err(source) => Err(SyncError::Api { operation: "delete the pod", source }),
        }
    }

    /// The answer would hold the whole pod, which is of no use any more: its metadata will do.
    async fn ask_for_deletion(&self, params: &DeleteParams) -> kube::Result<()> {
        let PodRef { namespace, name, .. } = &self.entry.pod;
        let pods = kube::core::Request::new(Pod::url_path(&(), Some(namespace)));
        let mut request = pods.delete(name, params).map_err(kube::Error::BuildRequest)?;
        request.headers_mut().insert(http::header::ACCEPT, HeaderValue::from_static(METADATA_ONLY));
        self.shared.client.request_text(request).await.map(drop)
    }

    /// Adds containers' last words to how they ended.
    async fn with_messages(&self, pod: &Pod, mut seen: ObservedPod) -> ObservedPod {
        for container in &mut seen.containers {
            let State::Exited(exit) = &mut container.state else { continue };
            // History has the message already.
            if container.sandbox_id.is_empty() {
                continue;
            }
            let mut message = self.folder.termination_message(&container.name, container.attempt);
            let policy =
                ephemeral::named(pod, &container.name).and_then(|own| own.termination_message_policy.clone());
            if message.is_empty() && exit.code != 0 && policy.as_deref() == Some("FallbackToLogsOnError") {
                message = self.log_tail(&container.id).await;
            }
            exit.message = match (exit.message.is_empty(), message.is_empty()) {
                (true, _) => message,
                (false, true) => std::mem::take(&mut exit.message),
                (false, false) => format!("{}: {message}", exit.message),
            };
        }
        seen
    }

    async fn log_tail(&self, id: &str) -> String {
        use futures::StreamExt as _;
        let Some(logs) = self.shared.provider.logs() else { return String::new() };
        let options = LogOptions { tail_lines: Some(LOG_LINES), ..Default::default() };
        let Ok(mut stream) = logs.logs(id, &options).await else { return String::new() };
        let mut text = Vec::new();
        while let Some(Ok(bytes)) = stream.next().await {
            text.extend_from_slice(&bytes);
        }
        let from = text.len().saturating_sub(usize::try_from(LOG_BYTES).unwrap_or(usize::MAX));
        String::from_utf8_lossy(&text[from..]).into_owned()
    }
}
