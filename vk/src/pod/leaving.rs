//! Pods that the API server no longer has, or may no longer have, and that still hold something of this machine. To a scheduler they hold
//! nothing: what it sends in their place has to wait for them, and must not be refused.

use std::{
    collections::BTreeSet,
    sync::{Mutex, MutexGuard, PoisonError},
};

/// By UID.
pub(crate) struct Leaving(Mutex<BTreeSet<String>>);

impl Leaving {
    /// Whoever was here when we started may be gone.
    pub(crate) fn of(uids: impl IntoIterator<Item = String>) -> Self {
        Self(Mutex::new(uids.into_iter().collect()))
    }

    fn uids(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The API server has the pod no more.
    pub(crate) fn leaves(&self, uid: &str) {
        self.uids().insert(uid.to_owned());
    }

    /// The API server has the pod after all, or nothing is left of it.
    pub(crate) fn settled(&self, uid: &str) {
        self.uids().remove(uid);
    }

    /// Whether there is anybody to wait for.
    pub(crate) fn any(&self) -> bool {
        !self.uids().is_empty()
    }
}
