//! How long a container that ended waits before it is started again, and what differs when the end was our own doing.

use std::{collections::BTreeMap, time::Duration};

use jiff::Timestamp;

use super::Kill;
use crate::provider::observed::{self, Exit, ObservedPod};

/// The first wait of a crash loop; then it doubles.
const FIRST_DELAY: Duration = Duration::from_secs(10);
/// The longest wait of a crash loop.
const LAST_DELAY: Duration = Duration::from_mins(5);
/// A container that ran for so long has left its crash loop.
const CALM: Duration = Duration::from_mins(10);

/// Since which attempt each container crashes, and which we have ended although the pod goes on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct CrashLoops {
    since: BTreeMap<String, u32>,
    /// By name.
    killed: BTreeMap<String, Killed>,
}

/// A container that we were to end.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Killed {
    attempt: u32,
    /// What its successor waits for.
    wait: Option<(Duration, Timestamp)>,
    returns: bool,
    /// The runtime has said that it has ended.
    has_ended: bool,
}

impl CrashLoops {
    /// A container is about to be ended by us. A kubelet starts the next one at the same moment, so its wait is not counted from this end
    /// but from the one before.
    pub(crate) fn killing(&mut self, seen: &ObservedPod, kill: &Kill) {
        let Some(run) = seen.containers.iter().find(|container| container.id == kill.id) else { return };
        let before = seen.containers.iter().find(|other| other.name == kill.name && other.exit().is_some());
        let wait = before.and_then(|before| self.after(before, before.exit()?));
        let killed = Killed { attempt: run.attempt, wait, returns: kill.returns, has_ended: false };
        self.killed.insert(kill.name.clone(), killed);
    }

    /// What an earlier process has noted of its kills, by name: the attempt. What of it still runs is ended by this one.
    pub(crate) fn remember(&mut self, noted: BTreeMap<String, u32>) {
        for (name, attempt) in noted {
            let killed = Killed { attempt, wait: None, returns: true, has_ended: false };
            self.killed.entry(name).or_insert(killed);
        }
    }

    /// The runtime says that it has ended.
    pub(crate) fn killed(&mut self, kill: &Kill) {
        if let Some(killed) = self.killed.get_mut(&kill.name) {
            killed.has_ended = true;
        }
    }

    fn of(&self, last: &observed::Container) -> Option<&Killed> {
        self.killed.get(&last.name).filter(|killed| killed.attempt == last.attempt)
    }

    /// Whether we have ended this container to have it started again, whatever its exit code.
    pub(crate) fn returns(&self, last: &observed::Container) -> bool {
        self.of(last).is_some_and(|killed| killed.returns)
    }

    /// Whether we have seen to its end: no more can be done.
    pub(super) fn has_ended(&self, last: &observed::Container) -> bool {
        self.of(last).is_some_and(|killed| killed.has_ended)
    }

    /// What is started next is another program: how often this one crashed does not count against it, and it does not wait.
    pub(super) fn begin_anew(&mut self, last: &observed::Container) -> Option<(Duration, Timestamp)> {
        self.since.insert(last.name.clone(), last.attempt + 1);
        None
    }

    /// How long to wait for the next attempt, and until when; `None`: not at all.
    pub(super) fn wait(&mut self, last: &observed::Container, exit: &Exit) -> Option<(Duration, Timestamp)> {
        match self.of(last) {
            Some(killed) => killed.wait,
            None => self.after(last, exit),
        }
    }

    fn after(&mut self, last: &observed::Container, exit: &Exit) -> Option<(Duration, Timestamp)> {
        let delay = self.delay(last, exit)?;
        Some((delay, exit.finished_at?.checked_add(delay).ok()?))
    }

    /// How long after its end a container is started again: at once after its first end, then 10 s, doubled each time.
    pub(crate) fn delay(&mut self, container: &observed::Container, exit: &Exit) -> Option<Duration> {
        let ran = match (exit.started_at, exit.finished_at) {
            (Some(from), Some(to)) => to.duration_since(from).unsigned_abs(),
            _ => Duration::ZERO,
        };
        if ran >= CALM {
            self.since.insert(container.name.clone(), container.attempt);
        }
        let since = self.since.get(&container.name).copied().unwrap_or(0).min(container.attempt);
        let doublings = (container.attempt - since).checked_sub(1)?;
        let delay = 2_u32.checked_pow(doublings).and_then(|factor| FIRST_DELAY.checked_mul(factor));
        Some(delay.unwrap_or(LAST_DELAY).min(LAST_DELAY))
    }
}
