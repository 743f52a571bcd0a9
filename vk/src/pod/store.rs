//! Which pods there are. One entry per UID; names only lead to UIDs, because a name is used again at once.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use k8s_openapi::api::core::v1::Pod;
use tokio::sync::watch;

use super::{
    spec::pod_ref,
    worker::{Entry, is_newer},
};
use crate::provider::observed::PodRef;

/// All entries.
#[derive(Default)]
pub(super) struct Store(Mutex<HashMap<String, Arc<Entry>>>);

impl Store {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Arc<Entry>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a version of a pod. The entry, if it is a new pod.
    pub(super) fn put(&self, mut pod: Pod) -> Option<Arc<Entry>> {
        let uid = pod.metadata.uid.clone()?;
        slim(&mut pod);
        let mut entries = self.lock();
        if let Some(entry) = entries.get(&uid) {
            entry.latest.send_if_modified(|latest| match latest {
                Some(have) if is_newer(&pod, have) => {
                    *latest = Some(Arc::new(pod));
                    true
                }
                // Our own news comes back, or something older does. Gone is gone.
                _ => false,
            });
            return None;
        }
        let entry = entry(pod_ref(&pod), Some(Arc::new(pod)));
        entries.insert(uid, Arc::clone(&entry));
        Some(entry)
    }

    /// Takes a pod that only the provider has. The entry, if there was none.
    pub(super) fn put_orphan(&self, pod: PodRef) -> Option<Arc<Entry>> {
        let mut entries = self.lock();
        if entries.contains_key(&pod.uid) {
            return None;
        }
        let entry = entry(pod.clone(), None);
        entries.insert(pod.uid, Arc::clone(&entry));
        Some(entry)
    }

    /// The API server has this pod no more.
    pub(super) fn gone(&self, uid: &str) {
        if let Some(entry) = self.get(uid) {
            entry.latest.send_replace(None);
        }
    }

    /// Nothing is left of this pod.
    pub(super) fn remove(&self, uid: &str) {
        self.lock().remove(uid);
    }

    pub(super) fn get(&self, uid: &str) -> Option<Arc<Entry>> {
        self.lock().get(uid).cloned()
    }

    pub(super) fn uids(&self) -> Vec<String> {
        self.lock().keys().cloned().collect()
    }

    /// The newest version of each pod that the API server has.
    pub(super) fn pods(&self) -> Vec<Arc<Pod>> {
        self.lock().values().filter_map(|entry| entry.latest.borrow().clone()).collect()
    }

    /// The newest pod of this name.
    pub(super) fn by_name(&self, namespace: &str, name: &str) -> Option<Arc<Pod>> {
        let entries = self.lock();
        let named =
            entries.values().filter(|entry| entry.pod.namespace == namespace && entry.pod.name == name);
        let pods = named.filter_map(|entry| entry.latest.borrow().clone());
        pods.max_by_key(|pod| pod.metadata.creation_timestamp.as_ref().map(|time| time.0))
    }
}

/// Lets go of what nobody here reads: who set which field is most of a pod's size in memory.
pub(super) fn slim(pod: &mut Pod) {
    pod.metadata.managed_fields = None;
}

fn entry(pod: PodRef, latest: Option<Arc<Pod>>) -> Arc<Entry> {
    Arc::new(Entry { pod, latest: watch::Sender::new(latest), wake: Arc::default() })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(uid: &str, version: u32, created: &str) -> Pod {
        serde_json::from_value(json!({ "metadata": {
            "name": "web", "namespace": "ns", "uid": uid, "resourceVersion": version.to_string(),
            "creationTimestamp": created,
        } }))
        .unwrap()
    }

    fn version(store: &Store) -> Option<String> {
        store.by_name("ns", "web").and_then(|pod| pod.metadata.resource_version.clone())
    }

    #[test]
    fn a_name_used_again_is_another_pod() {
        let store = Store::default();
        assert!(store.put(pod("a", 1, "2026-01-01T00:00:00Z")).is_some());
        assert!(store.put(pod("a", 5, "2026-01-01T00:00:00Z")).is_none());
        assert!(store.put(pod("b", 3, "2026-01-01T00:00:01Z")).is_some());
        assert_eq!(version(&store).as_deref(), Some("3"));
        store.gone("b");
        assert_eq!(version(&store).as_deref(), Some("5"));
        store.gone("a");
        assert_eq!(version(&store), None);
        assert_eq!(store.pods().len(), 0);
        assert_eq!(store.uids().len(), 2, "until nothing is left of them");
    }

    #[test]
    fn who_set_which_field_is_forgotten() {
        let store = Store::default();
        let mut pod = pod("a", 1, "2026-01-01T00:00:00Z");
        pod.metadata.managed_fields = Some(Vec::new());
        store.put(pod);
        assert_eq!(store.by_name("ns", "web").unwrap().metadata.managed_fields, None);
    }

    #[test]
    fn older_versions_change_nothing() {
        let store = Store::default();
        let entry = store.put(pod("a", 5, "2026-01-01T00:00:00Z")).unwrap();
        let mut watcher = entry.latest.subscribe();
        watcher.mark_unchanged();
        store.put(pod("a", 5, "2026-01-01T00:00:00Z"));
        store.put(pod("a", 4, "2026-01-01T00:00:00Z"));
        assert!(!watcher.has_changed().unwrap());
        store.put(pod("a", 6, "2026-01-01T00:00:00Z"));
        assert!(watcher.has_changed().unwrap());
        store.gone("a");
        store.put(pod("a", 7, "2026-01-01T00:00:00Z"));
        assert_eq!(version(&store), None, "gone is gone");
    }
}
