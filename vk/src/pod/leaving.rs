//! Pods that the API server no longer has, or may no longer have, and that still hold something of this machine. To a scheduler they hold
//! nothing: what it sends in their place has to wait for them, and must not be refused.

use std::{
    collections::BTreeSet,
    sync::{Mutex, MutexGuard, PoisonError},
};

/// Who is leaving.
pub(crate) struct Leaving(Mutex<State>);

struct State {
    uids: BTreeSet<String>,
    /// The API server is just saying which pods it has.
    listing: bool,
}

impl Leaving {
    /// Whoever was here when we started may be gone.
    pub(crate) fn of(uids: impl IntoIterator<Item = String>) -> Self {
        Self(Mutex::new(State { uids: uids.into_iter().collect(), listing: true }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The API server begins or ends to say which pods it has: until it has ended, anybody may be gone.
    pub(crate) fn listing(&self, goes_on: bool) {
        self.state().listing = goes_on;
    }

    /// The API server has the pod no more.
    pub(crate) fn leaves(&self, uid: &str) {
        self.state().uids.insert(uid.to_owned());
    }

    /// The API server has the pod after all, or nothing is left of it.
    pub(crate) fn settled(&self, uid: &str) {
        self.state().uids.remove(uid);
    }

    /// Whether there may be anybody to wait for.
    pub(crate) fn any(&self) -> bool {
        let state = self.state();
        state.listing || !state.uids.is_empty()
    }
}
