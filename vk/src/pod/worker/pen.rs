//! Writing a pod's status: one write at a time, each to its end, beside whatever else is to be done for the pod. An API server that gives no
//! answer keeps nobody from being started again.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use k8s_openapi::api::core::v1::{Pod, PodStatus};
use kube::{
    Api,
    api::{ObjectMeta, Patch, PatchParams},
};
use serde_json::{Value, json};
use tokio::task::{JoinError, JoinSet};
use tracing::Instrument as _;

use super::{Entry, Shared, SyncError};
use crate::pod::{slim::SlimPod, status};

/// So long the end of a write is waited for on which nothing depends.
const PATIENCE: Duration = Duration::from_secs(1);

/// Writes the statuses of one pod.
pub(super) struct Pen {
    shared: Arc<Shared>,
    entry: Arc<Entry>,
    /// One at most. It ends with the pod's worker.
    writing: JoinSet<Result<(), SyncError>>,
    /// Why the last one that nobody waited for was not taken.
    failed: Option<SyncError>,
}

impl Pen {
    pub(super) fn new(shared: Arc<Shared>, entry: Arc<Entry>) -> Self {
        // Whoever wrote before, and died of something, writes no more.
        *entry.telling() = None;
        Self { shared, entry, writing: JoinSet::new(), failed: None }
    }

    /// Whether nothing is being written, so that the next status can be.
    pub(super) fn is_free(&mut self) -> bool {
        if let Some(ended) = self.writing.try_join_next() {
            self.failed = flat(ended).err();
        }
        self.writing.is_empty()
    }

    /// Waits until nothing is being written.
    pub(super) async fn freed(&mut self) {
        if let Some(ended) = self.writing.join_next().await {
            self.failed = flat(ended).err();
        }
    }

    /// Waits until that ends which is being written now; without end if nothing is.
    pub(super) async fn next_end(&mut self) {
        if self.writing.is_empty() {
            std::future::pending::<()>().await;
        }
        self.freed().await;
    }

    /// Why the last status was not taken, if nobody has heard of that yet: it is to be written again.
    pub(super) fn failure(&mut self) -> Option<SyncError> {
        self.failed.take()
    }

    /// Writes a status, if it is another than the last, and waits until the API server has answered. Only when the pen is free: `pod` has
    /// the status that the last write led to.
    pub(super) async fn write(&mut self, pod: &Pod, wanted: &PodStatus) -> Result<(), SyncError> {
        self.begin(pod, wanted);
        self.freed().await;
        self.failure().map_or(Ok(()), Err)
    }

    /// The same, without waiting for long. Whether the API server has it; if not, that is told by [`Pen::next_end`] or [`Pen::failure`].
    pub(super) async fn write_in_time(&mut self, pod: &Pod, wanted: &PodStatus) -> bool {
        self.begin(pod, wanted);
        let ended = tokio::time::timeout(PATIENCE, self.freed()).await;
        ended.is_ok() && self.failed.is_none()
    }

    fn begin(&mut self, pod: &Pod, wanted: &PodStatus) {
        self.failed = None;
        let Some(patch) = patch(&self.entry.pod.uid, pod.status.as_ref(), wanted) else { return };
        let version = pod.metadata.resource_version.clone();
        let (shared, entry) = (Arc::clone(&self.shared), Arc::clone(&self.entry));
        self.writing.spawn(send(shared, entry, version, wanted.clone(), patch).in_current_span());
    }
}

fn flat(ended: Result<Result<(), SyncError>, JoinError>) -> Result<(), SyncError> {
    ended.unwrap_or_else(|error| Err(SyncError::Waiting(error.to_string())))
}

/// Sends a patch that makes the status so. `version_before`: of the pod that it was made from.
async fn send(
    shared: Arc<Shared>,
    entry: Arc<Entry>,
    version_before: Option<String>,
    wanted: PodStatus,
    mut patch: Value,
) -> Result<(), SyncError> {
    let _turn = shared.writes.acquire().await;
    let lead = &shared.settings.lead;
    lead.check().map_err(|error| SyncError::Waiting(error.to_string()))?;
    if lead.is_elected() {
        // What another process has written since must not be undone, however long this call is under way.
        patch["metadata"]["resourceVersion"] = json!(version_before);
    }
    let params = PatchParams { field_manager: Some("spillway-vk".to_owned()), ..Default::default() };
    let api = Api::<SlimPod>::namespaced(shared.client.clone(), &entry.pod.namespace);
    let patch = Patch::Strategic(patch);
    // Whoever hears of it from the API server may ask us (for a log) before its answer reaches us.
    *entry.telling() = Some(wanted);
    // On the heap while it is under way: many wait for their turn.
    let result = match Box::pin(api.patch_status(&entry.pod.name, &params, &patch)).await {
        Ok(SlimPod(written)) => {
            let written = Arc::new(written);
            // For others to read; our own news is no reason to look again.
            entry.latest.send_if_modified(|latest| {
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
            tracing::debug!(pod = %entry.pod, %status, "the status is not wanted any more");
            Ok(())
        }
        Err(source) => Err(SyncError::Api { operation: "take the pod's status", source }),
    };
    *entry.telling() = None;
    result
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
