//! Writing the pod's status, and its end, to the API server.

use std::{collections::BTreeMap, sync::Arc};

use http::HeaderValue;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use kube::{
    Api, Resource as _,
    api::{DeleteParams, ObjectMeta, Patch, PatchParams, Preconditions},
};
use serde_json::{Value, json};

use super::{SyncError, Worker};
use crate::{
    pod::{
        ephemeral,
        probe::Healths,
        slim::SlimPod,
        status::{self, Facts},
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
    fn api(&self) -> Api<SlimPod> {
        Api::namespaced(self.shared.client.clone(), &self.entry.pod.namespace)
    }

    /// Writes the status that follows from what was seen, if it is another than the last. `ended`: nothing will run any more.
    pub(super) async fn report(
        &mut self,
        pod: &Arc<Pod>,
        seen: &ObservedPod,
        ended: bool,
    ) -> Result<(), SyncError> {
        // Since the step began, our own writes may have made it newer.
        let newest = self.entry.latest.borrow().clone();
        let pod = &with_status_of(pod, newest);
        let pod = &self.memory.given.of(pod);
        let seen = self.with_messages(pod, seen.clone()).await;
        let healths = self.follow(pod, &seen);
        // Not known is no reason to say nothing.
        let deep_read_only = self.deep_read_only(pod, seen.sandbox()).await.unwrap_or(false);
        let wanted = status::build(&Facts {
            pod,
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
        self.write(pod, &wanted).await
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

    /// Writes a status, if it is another than the last.
    pub(super) async fn write(&mut self, pod: &Arc<Pod>, wanted: &PodStatus) -> Result<(), SyncError> {
        let Some(mut patch) = patch(&self.entry.pod.uid, pod.status.as_ref(), wanted) else { return Ok(()) };
        let _turn = self.shared.writes.acquire().await;
        let lead = &self.shared.settings.lead;
        lead.check().map_err(|error| SyncError::Waiting(error.to_string()))?;
        if lead.is_elected() {
            // What another process has written since must not be undone, however long this call is under way.
            patch["metadata"]["resourceVersion"] = json!(pod.metadata.resource_version);
        }
        let params = PatchParams { field_manager: Some("spillway-vk".to_owned()), ..Default::default() };
        let (api, name, patch) = (self.api(), &self.entry.pod.name, Patch::Strategic(patch));
        // Whoever hears of it from the API server may ask us (for a log) before its answer reaches us.
        *self.entry.telling() = Some(wanted.clone());
        // On the heap while it is under way: many wait for their turn.
        let result = match Box::pin(api.patch_status(name, &params, &patch)).await {
            Ok(SlimPod(written)) => {
                let written = Arc::new(written);
                // For others to read; our own news is no reason to look again.
                self.entry.latest.send_if_modified(|latest| {
                    let newer = |have: &&Arc<Pod>| is_newer(version(&written), version(have));
                    let Some(have) = latest.as_ref().filter(newer) else { return false };
                    // But with it may come others' news, which the watch will then not tell as such.
                    let news = is_other(&written, have);
                    *latest = Some(Arc::clone(&written));
                    news
                });
                Ok(())
            }
            // Gone, or another pod has the name now: the watch will tell.
            Err(kube::Error::Api(status))
                if status.is_not_found() || status.is_conflict() || is_of_another(&status) =>
            {
                tracing::debug!(pod = %self.entry.pod, %status, "the status is not wanted any more");
                Ok(())
            }
            Err(source) => Err(SyncError::Api { operation: "take the pod's status", source }),
        };
        *self.entry.telling() = None;
        result
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

/// The pod as this step has it, with the newest status: what is said about it is about that version.
fn with_status_of(pod: &Arc<Pod>, newest: Option<Arc<Pod>>) -> Arc<Pod> {
    match newest {
        Some(newest) if newest.metadata.generation == pod.metadata.generation => newest,
        Some(newest) => Arc::new(Pod { status: newest.status.clone(), ..Pod::clone(pod) }),
        None => Arc::clone(pod),
    }
}

/// Whether something differs that a pod's worker acts on and that is not its own word.
fn is_other(a: &Pod, b: &Pod) -> bool {
    let others = |pod: &Pod| {
        let conditions = pod.status.as_ref().and_then(|status| status.conditions.clone()).unwrap_or_default();
        let others = conditions.into_iter().filter(|condition| !status::is_own_condition(&condition.type_));
        others.map(|condition| (condition.type_, condition.status)).collect::<BTreeMap<_, _>>()
    };
    let is_other = |a: &ObjectMeta, b: &ObjectMeta| {
        a.generation != b.generation
            || a.deletion_timestamp != b.deletion_timestamp
            || a.deletion_grace_period_seconds != b.deletion_grace_period_seconds
            || a.labels != b.labels
            || a.annotations != b.annotations
            || a.finalizers != b.finalizers
    };
    is_other(&a.metadata, &b.metadata) || others(a) != others(b)
}

/// Whether the API server refused a status because the name is another pod's now. To it that is an attempt to change the UID.
fn is_of_another(status: &kube::core::Status) -> bool {
    status.code == 422
        && status
            .details
            .as_ref()
            .is_some_and(|details| details.causes.iter().any(|cause| cause.field == "metadata.uid"))
}

/// The version of a pod's object.
pub(in crate::pod) fn version(pod: &Pod) -> Option<u128> {
    pod.metadata.resource_version.as_deref()?.parse().ok()
}

/// Whether one version of an object is newer. Kubernetes promises that these numbers can be compared.
pub(in crate::pod) fn is_newer(a: Option<u128>, b: Option<u128>) -> bool {
    a.zip(b).is_none_or(|(a, b)| a > b)
}

/// The strategic merge patch from the old status to the wanted one; `None`: they say the same.
fn patch(uid: &str, old: Option<&PodStatus>, wanted: &PodStatus) -> Option<Value> {
    let value = |status: &PodStatus| serde_json::to_value(status).unwrap_or_default();
    let old = old.map(value).unwrap_or_default();
    let mut new = value(wanted);
    if old == new {
        return None;
    }
    let fields = new.as_object_mut()?;
    for key in old.as_object().into_iter().flatten().map(|(key, _)| key) {
        fields.entry(key.clone()).or_insert(Value::Null);
    }
    // Lists that merge by key would keep what is no longer there.
    for key in ["podIPs", "hostIPs"] {
        if let Some(list) = fields.get_mut(key).and_then(Value::as_array_mut) {
            list.insert(0, json!({ "$patch": "replace" }));
        }
    }
    // Conditions do merge, so that others' stay theirs; in ours nothing old must shine through.
    if let Some(conditions) = fields.get_mut("conditions").and_then(Value::as_array_mut) {
        conditions.retain(|condition| condition["type"].as_str().is_some_and(status::is_own_condition));
        let gone: Vec<Value> = old["conditions"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|condition| condition["type"].as_str())
            .filter(|kind| status::is_own_condition(kind))
            .filter(|kind| !conditions.iter().any(|condition| condition["type"] == *kind))
            .map(|kind| json!({ "type": kind, "$patch": "delete" }))
            .collect();
        for condition in conditions.iter_mut().filter_map(Value::as_object_mut) {
            for key in ["reason", "message"] {
                condition.entry(key).or_insert(Value::Null);
            }
        }
        conditions.extend(gone);
    }
    Some(json!({ "metadata": { "uid": uid }, "status": new }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_patch_replaces_what_is_ours_and_leaves_the_rest() {
        let old: PodStatus = serde_json::from_value(json!({
            "phase": "Pending", "reason": "Old", "podIPs": [{ "ip": "10.0.0.1" }],
            "conditions": [
                { "type": "Ready", "status": "False", "reason": "ContainersNotReady" },
                { "type": "DisruptionTarget", "status": "True" },
                { "type": "PodResizePending", "status": "True" },
            ],
        }))
        .unwrap();
        assert_eq!(patch("u", Some(&old), &old), None);
        let mut new = old.clone();
        new.phase = Some("Running".to_owned());
        new.reason = None;
        new.conditions.as_mut().unwrap().pop();
        for condition in new.conditions.iter_mut().flatten().filter(|condition| condition.type_ == "Ready") {
            condition.status = "True".to_owned();
            condition.reason = None;
        }
        let found = patch("u", Some(&old), &new).unwrap();
        let expected = json!({ "metadata": { "uid": "u" }, "status": {
            "phase": "Running", "reason": null, "podIPs": [{ "$patch": "replace" }, { "ip": "10.0.0.1" }],
            "conditions": [{ "type": "Ready", "status": "True", "reason": null, "message": null },
                { "type": "PodResizePending", "$patch": "delete" }],
        } });
        assert_eq!(found, expected);
    }

    #[test]
    fn a_name_that_is_another_pods_now_is_told_from_a_refused_status() {
        let check = |field: &str, code: u16, expected: bool| {
            let status: kube::core::Status = serde_json::from_value(json!({
                "code": code, "details": { "causes": [{ "reason": "FieldValueInvalid", "message": "immutable", "field": field }] },
            }))
            .unwrap();
            assert_eq!(is_of_another(&status), expected, "{field} {code}");
        };
        check("metadata.uid", 422, true);
        check("status.phase", 422, false);
        check("metadata.uid", 400, false);
    }

    #[test]
    fn what_others_wrote_meanwhile_is_told_from_our_own_word() {
        let pod = |patch: Value| -> Pod {
            let mut pod = json!({
                "metadata": { "generation": 1, "labels": { "a": "1" } },
                "status": { "phase": "Pending", "conditions": [{ "type": "Ready", "status": "False" }] },
            });
            for (pointer, value) in patch.as_object().unwrap() {
                *pod.pointer_mut(pointer).unwrap() = value.clone();
            }
            serde_json::from_value(pod).unwrap()
        };
        let (before, ready) = (pod(json!({})), json!({ "type": "Ready", "status": "True" }));
        assert!(!is_other(
            &pod(json!({ "/status/phase": "Running", "/status/conditions": [ready] })),
            &before
        ));
        let gate = json!([ready, { "type": "example.com/gate", "status": "True" }]);
        for theirs in [
            json!({ "/metadata/generation": 2 }),
            json!({ "/metadata/labels": { "a": "2" } }),
            json!({ "/status/conditions": gate }),
        ] {
            assert!(is_other(&pod(theirs.clone()), &before), "{theirs}");
        }
    }

    #[test]
    fn versions_are_compared_as_numbers() {
        let pod = |version: &str| -> Pod {
            serde_json::from_value(json!({ "metadata": { "resourceVersion": version } })).unwrap()
        };
        let is_newer = |a, b| is_newer(version(&pod(a)), version(&pod(b)));
        assert!(is_newer("10", "9"));
        assert!(!is_newer("9", "10"));
        assert!(!is_newer("9", "9"));
    }
}
