//! The config maps and secrets that a pod is given: how fresh they are, and what is told when they are not there.

use std::{
    sync::PoisonError,
    time::{Duration, Instant},
};

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};

use super::{Memory, Worker, images};
use crate::{
    pod::{
        env::sources,
        events::Kind,
        objects::{Objects, References},
    },
    provider::observed::ObservedPod,
};

/// What was read so lately serves again.
const LASTS: Duration = Duration::from_mins(1);

impl Memory {
    /// From now on nothing will do that was read before: it was of no use, or there is news.
    pub(super) fn read_again(&mut self, since: Instant) {
        self.fresh_since = self.fresh_since.max(since);
    }
}

impl Worker {
    /// What the references lead to. A pod that is new takes what was read since it came, so that a Job's many cost one read.
    pub(super) async fn load(&self, references: &References) -> Objects {
        let since = self.memory.fresh_since;
        let since = Instant::now().checked_sub(LASTS).map_or(since, |then| then.max(since));
        self.hold(references);
        self.shared.reader.load(&self.entry.pod.namespace, references, since).await
    }

    /// Reads what containers that have run need to start again, unless it has been read: the API server may be away when they do, and a
    /// daemon that found them running has read nothing. What others need is read when they start.
    pub(super) async fn read_ahead(&self, pod: &Pod, seen: &ObservedPod) {
        let may_restart = |spec: &&PodSpec| spec.restart_policy.as_deref() != Some("Never");
        let Some(spec) = pod.spec.as_ref().filter(may_restart) else { return };
        let mut references = References::default();
        for container in spec.init_containers.iter().flatten().chain(&spec.containers) {
            if seen.container(&container.name).is_some() {
                references.extend(sources::references(container));
            }
        }
        references.secrets.extend(images::pull_secrets(pod));
        let unread = self.hold(&references);
        if unread != References::default() {
            self.load(&unread).await;
        }
    }

    /// What these lead to is kept as long as the pod is there. Which of them are new.
    fn hold(&self, references: &References) -> References {
        let mut held = self.memory.held.lock().unwrap_or_else(PoisonError::into_inner);
        self.shared.reader.hold(&self.entry.pod.namespace, references, &mut held)
    }

    /// Which secrets and config maps that the container's variables name are not there.
    pub(super) fn tell_not_found(&self, pod: &Pod, container: &Container, objects: &Objects) {
        for (reason, message) in sources::not_found(container, objects) {
            self.shared.recorder.container(pod, &container.name, Kind::Warning, &reason, &message);
        }
    }
}
