//! What the API server has said last of each config map and secret. What a pod names is kept as long as the pod is there: its containers
//! are started from it while the API server is away. In memory only.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::Resource;

/// What no pod names any more is kept so long, for those that may come.
const KEEP: Duration = Duration::from_hours(1);

#[derive(Default)]
pub(super) struct Caches {
    pub(super) config_maps: Cache<ConfigMap>,
    pub(super) secrets: Cache<Secret>,
}

/// By namespace and name.
type Slots<T> = HashMap<(String, String), Arc<Slot<T>>>;

/// All objects of a kind.
pub(super) struct Cache<T>(Mutex<Slots<T>>);

impl<T> Default for Cache<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T> Cache<T> {
    /// The object's slot, which is kept for as long as somebody has it.
    pub(super) fn slot(&self, namespace: &str, name: &str) -> Arc<Slot<T>> {
        let key = (namespace.to_owned(), name.to_owned());
        let mut slots = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(slot) = slots.get(&key) {
            return Arc::clone(slot);
        }
        slots.retain(|_, slot| Arc::strong_count(slot) > 1 || slot.is_recent());
        Arc::clone(slots.entry(key).or_default())
    }
}

/// What is said of an object.
pub(super) enum Said<T> {
    There(Arc<T>),
    Gone,
}

impl<T> Clone for Said<T> {
    fn clone(&self) -> Self {
        match self {
            Self::There(object) => Self::There(Arc::clone(object)),
            Self::Gone => Self::Gone,
        }
    }
}

/// What was said of one object last, and when it was asked.
pub(super) struct Slot<T>(Mutex<Option<(Instant, Said<T>)>>);

impl<T> Default for Slot<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T> Slot<T> {
    fn lock(&self) -> MutexGuard<'_, Option<(Instant, Said<T>)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_recent(&self) -> bool {
        self.lock().as_ref().is_some_and(|(at, _)| at.elapsed() < KEEP)
    }

    /// The object, if it was read since.
    pub(super) fn get(&self, not_before: Instant) -> Option<Arc<T>> {
        match &*self.lock() {
            Some((at, Said::There(object))) if *at >= not_before => Some(Arc::clone(object)),
            _ => None,
        }
    }

    /// What was said last, whenever that was.
    pub(super) fn last(&self) -> Option<Said<T>> {
        self.lock().as_ref().map(|(_, said)| said.clone())
    }

    /// The object is not there.
    pub(super) fn gone(&self, at: Instant) {
        let mut last = self.lock();
        if last.as_ref().is_none_or(|(before, _)| *before <= at) {
            *last = Some((at, Said::Gone));
        }
    }
}

impl<T: Resource> Slot<T> {
    /// Keeps the object, unless a newer one is there already, and returns what is kept.
    pub(super) fn put(&self, at: Instant, object: T) -> Arc<T> {
        let mut last = self.lock();
        if let Some((_, Said::There(kept))) = &*last
            && kept.meta().uid == object.meta().uid
            && version(kept.as_ref()) > version(&object)
        {
            return Arc::clone(kept);
        }
        let object = Arc::new(object);
        *last = Some((at, Said::There(Arc::clone(&object))));
        object
    }
}

/// Kubernetes promises that these numbers can be compared.
pub(super) fn version(object: &impl Resource) -> u128 {
    object.meta().resource_version.as_deref().and_then(|text| text.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_pod_names_is_kept_whenever_it_was_read() {
        let cache = Cache::<ConfigMap>::default();
        let Some(long_ago) = Instant::now().checked_sub(2 * KEEP) else { return };
        let held = cache.slot("ns", "held");
        held.put(long_ago, ConfigMap::default());
        cache.slot("ns", "dropped").put(long_ago, ConfigMap::default());
        cache.slot("ns", "recent").put(Instant::now(), ConfigMap::default());
        cache.slot("ns", "other");
        let is_known = |name| cache.slot("ns", name).last().is_some();
        assert!(is_known("held") && is_known("recent") && !is_known("dropped"));
        drop(held);
        cache.slot("ns", "another");
        assert!(!is_known("held"));
    }

    #[test]
    fn old_news_of_an_objects_end_does_not_hide_its_successor() {
        let slot = Slot::<ConfigMap>::default();
        let asked_at = Instant::now();
        slot.put(Instant::now(), ConfigMap::default());
        slot.gone(asked_at.checked_sub(Duration::from_secs(1)).unwrap());
        assert!(matches!(slot.last(), Some(Said::There(_))));
        slot.gone(Instant::now());
        assert!(matches!(slot.last(), Some(Said::Gone)) && slot.get(asked_at).is_none());
    }
}
