//! How containers have ended: an end is told once and stands, and its message is not longer than a pod's status has room for.

use k8s_openapi::api::core::v1::{ContainerState, ContainerStateTerminated, ContainerStatus, PodSpec};

use super::has_run;
use crate::pod::{lifecycle, probe::is_sidecar};

/// All containers of a pod share this many bytes of messages (`MaxPodTerminationMessageLogLength` of a kubelet).
const MAX_MESSAGES_BYTES: usize = 12 << 10;

pub(super) fn ended_in(state: Option<&ContainerState>) -> Option<&ContainerStateTerminated> {
    state.and_then(|state| state.terminated.as_ref())
}

/// What its exit code says of a container that runs no more: of its state, or of its last state while it waits to run again.
pub(super) fn last_exit(status: &ContainerStatus) -> Option<&ContainerStateTerminated> {
    ended_in(status.state.as_ref()).or_else(|| {
        let waits = status.state.as_ref().is_some_and(|state| state.waiting.is_some());
        waits.then(|| ended_in(status.last_state.as_ref())).flatten()
    })
}

/// An end that was told stands: whoever has acted on it must not hear of another end of the same container. A runtime that comes back from
/// the middle of something may know another one.
pub(super) fn as_told(mut new: ContainerStatus, old: &ContainerStatus) -> ContainerStatus {
    for state in [&mut new.state, &mut new.last_state] {
        let Some(id) = ended_in(state.as_ref()).and_then(|end| end.container_id.as_ref()) else { continue };
        let told = [&old.state, &old.last_state]
            .into_iter()
            .find(|told| ended_in(told.as_ref()).is_some_and(|end| end.container_id.as_ref() == Some(id)));
        if let Some(told) = told {
            *state = told.clone();
        }
    }
    new
}

/// The end of the attempt before this one, if it was told.
pub(super) fn end_before(old: &ContainerStatus, attempt: i32) -> Option<ContainerState> {
    match attempt.saturating_sub(old.restart_count) {
        0 => {
            // While it waits, its own end is its last.
            let waits = old.state.as_ref().is_some_and(|state| state.waiting.is_some());
            let end = ended_in(old.last_state.as_ref())?;
            (!waits || end.container_id != old.container_id).then(|| old.last_state.clone()).flatten()
        }
        1 => Some(ContainerState { terminated: Some(last_exit(old)?.clone()), ..Default::default() }),
        _ => None,
    }
}

/// Gives containers of a pod that has ended an end where none is known, as far as the pod got (`TerminatePod` in `pkg/kubelet/status`): whether
/// they did their work nobody can say.
pub(super) fn lose(spec: &PodSpec, inits: &mut [ContainerStatus], mains: &mut [ContainerStatus]) {
    let last_init = spec.init_containers.as_deref().unwrap_or_default().last();
    let initialized = last_init.zip(inits.last()).is_none_or(|(init, status)| {
        let states = [&status.state, &status.last_state];
        let mut ends = states.into_iter().filter_map(|state| ended_in(state.as_ref()));
        !is_sidecar(init) && ends.any(|end| end.exit_code == 0)
    });
    let initialized = initialized || mains.iter().any(has_run);
    let begun = inits.iter().rposition(has_run).map_or(1, |last| last + 1);
    let mains = mains.iter_mut().filter(|_| initialized);
    for status in inits.iter_mut().take(begun).chain(mains) {
        if ended_in(status.state.as_ref()).is_none() {
            let lost = lifecycle::lost(None);
            let end = ContainerStateTerminated {
                exit_code: lost.code,
                reason: Some(lost.reason),
                message: Some(lost.message),
                container_id: status.container_id.clone(),
                ..Default::default()
            };
            status.state = Some(ContainerState { terminated: Some(end), ..Default::default() });
        }
    }
}

/// Cuts off what is beyond the container's share, as `normalizeStatus` in `pkg/kubelet/status`.
pub(super) fn with_short_messages(mut status: ContainerStatus, spec: &PodSpec) -> ContainerStatus {
    let others =
        [spec.init_containers.as_ref().map(Vec::len), spec.ephemeral_containers.as_ref().map(Vec::len)];
    let containers = spec.containers.len() + others.into_iter().flatten().sum::<usize>();
    let share = MAX_MESSAGES_BYTES / containers.max(1);
    let ends = [&mut status.state, &mut status.last_state].into_iter().flatten();
    for message in ends.filter_map(|state| state.terminated.as_mut()?.message.as_mut()) {
        message.truncate(message.floor_char_boundary(share));
    }
    status
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn containers_share_the_room_for_messages() {
        let end = json!({ "terminated": { "exitCode": 1, "message": "ä".repeat(4096) } });
        let status = json!({ "name": "c", "image": "", "imageID": "", "ready": false, "restartCount": 1,
            "state": end, "lastState": end });
        let lengths = |spec: serde_json::Value| {
            let status: ContainerStatus = serde_json::from_value(status.clone()).unwrap();
            let status = with_short_messages(status, &serde_json::from_value(spec).unwrap());
            [status.state, status.last_state]
                .map(|state| ended_in(state.as_ref()).unwrap().message.clone().unwrap().len())
        };
        let one = json!([{ "name": "c" }]);
        assert_eq!(lengths(json!({ "containers": one })), [8192; 2]);
        assert_eq!(lengths(json!({ "containers": one, "initContainers": one })), [6144; 2]);
        let many = json!({ "containers": [{ "name": "c" }, { "name": "d" }, { "name": "e" }],
            "initContainers": one, "ephemeralContainers": one });
        assert_eq!(lengths(many), [2456; 2], "a character is not cut apart");
    }
}
