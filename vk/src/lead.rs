//! Whether this process may act for its node now. Where replicas stand by, only the holder of the node's lease may, and only for so long after
//! its last renewal: each change of anything outside this process is preceded by a look at that.
//!
//! The look goes by the clock, so that it costs nothing and needs nobody. It can't close the gap behind itself: a process that is stopped between
//! the look and the call makes that one call when it goes on. What makes up for it is that no such call can start a container twice: names
//! of sandboxes and containers are deterministic, a container starts once in its life, and all else names an ID that its caller had reason to end.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use nix::time::{ClockId, clock_gettime};

/// This process holds no valid lease of its node.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("this process does not hold the lease of node {0}, or no longer: nothing was changed")]
pub struct NotLeading(String);

/// Leave to act. Clones share it.
#[derive(Debug, Clone)]
pub struct Lead(Option<Arc<Inner>>);

#[derive(Debug)]
struct Inner {
    node: String,
    /// Milliseconds on the clock below; 0: not at all.
    until: AtomicU64,
    clock: fn() -> Duration,
}

impl Lead {
    /// Of a process that shares its node with no other.
    pub fn always() -> Self {
        Self(None)
    }

    /// Of a process that has to be elected first.
    pub fn elected(node: &str) -> Self {
        Self::with_clock(node, uptime)
    }

    /// The same by another clock.
    pub(crate) fn with_clock(node: &str, clock: fn() -> Duration) -> Self {
        Self(Some(Arc::new(Inner { node: node.to_owned(), until: AtomicU64::new(0), clock })))
    }

    /// Time since some moment before all others here.
    pub(crate) fn now(&self) -> Duration {
        self.0.as_ref().map_or_else(uptime, |inner| (inner.clock)())
    }

    /// To be asked right before each change.
    ///
    /// # Errors
    /// When somebody else may be acting.
    pub fn check(&self) -> Result<(), NotLeading> {
        match &self.0 {
            Some(inner) if millis((inner.clock)()) >= inner.until.load(Ordering::SeqCst) => {
                Err(NotLeading(inner.node.clone()))
            }
            _ => Ok(()),
        }
    }

    /// Whether there can be other processes at all.
    pub fn is_elected(&self) -> bool {
        self.0.is_some()
    }

    pub(crate) fn hold_until(&self, until: Duration) {
        if let Some(inner) = &self.0 {
            inner.until.store(millis(until), Ordering::SeqCst);
        }
    }

    pub(crate) fn give_up(&self) {
        self.hold_until(Duration::ZERO);
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Since the machine's start, the time that it slept included: a lease runs on while a machine is suspended.
fn uptime() -> Duration {
    // The kernel has this clock since 2.6.39; without it nobody leads.
    clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(Duration::MAX, Duration::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leave_ends_by_itself() {
        let lead = Lead::elected("vk1");
        let clone = lead.clone();
        assert!(clone.check().is_err(), "nobody has elected it yet");
        lead.hold_until(lead.now() + Duration::from_hours(1));
        assert_eq!(clone.check(), Ok(()));
        lead.hold_until(lead.now());
        assert_eq!(clone.check(), Err(NotLeading("vk1".to_owned())));
        lead.hold_until(lead.now() + Duration::from_hours(1));
        lead.give_up();
        assert!(clone.check().is_err());
        assert_eq!(Lead::always().check(), Ok(()));
    }
}
