//! The config maps and secrets that a pod is given: how fresh they are, and what is told when they are not there.

use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{Container, Pod};

use super::{Memory, Worker};
use crate::pod::{
    env::sources,
    events::Kind,
    objects::{Objects, References},
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
        self.shared.reader.load(&self.entry.pod.namespace, references, since).await
    }

    /// Which secrets and config maps that the container's variables name are not there.
    pub(super) fn tell_not_found(&self, pod: &Pod, container: &Container, objects: &Objects) {
        for (reason, message) in sources::not_found(container, objects) {
            self.shared.recorder.container(pod, &container.name, Kind::Warning, &reason, &message);
        }
    }
}
