//! Which pods there are. One record per UID; names only lead to UIDs, because a name is used again at once.
//!
//! A pod that somebody works on is an [`Entry`]. One that waits for nothing but news rests: it has no worker, and it is packed, because as
//! values it takes several times the memory, and nobody looks at most pods for hours.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use futures::FutureExt as _;
use k8s_openapi::api::core::v1::Pod;
use miniz_oxide::{deflate, inflate};
use tokio::sync::watch;

use super::{
    spec::pod_ref,
    worker::{Entry, Latest, is_newer, version},
};
use crate::provider::observed::PodRef;

/// All pods.
#[derive(Default)]
pub(super) struct Store(Mutex<HashMap<Box<str>, Kept>>);

enum Kept {
    Worked(Arc<Entry>),
    Resting(Packed),
}

/// The fastest that deflate has. It leaves little more than a third of a pod's JSON, and the slowest hardly less.
const LEVEL: u8 = 1;

/// A pod as the API server sends it, and what is asked for without unpacking it.
struct Packed {
    version: Option<u128>,
    namespace: Box<str>,
    name: Box<str>,
    phase: Option<Box<str>>,
    /// JSON, deflated.
    pod: Box<[u8]>,
}

impl Packed {
    /// `None`: it can't be packed.
    fn new(pod: &Pod) -> Option<Self> {
        let text = |text: &Option<String>| text.as_deref().unwrap_or_default().into();
        Some(Self {
            version: version(pod),
            namespace: text(&pod.metadata.namespace),
            name: text(&pod.metadata.name),
            phase: pod.status.as_ref().and_then(|status| status.phase.as_deref()).map(Into::into),
            pod: deflate::compress_to_vec(&serde_json::to_vec(pod).ok()?, LEVEL).into_boxed_slice(),
        })
    }

    fn pod(&self) -> Option<Arc<Pod>> {
        // It was written by `new`.
        serde_json::from_slice(&inflate::decompress_to_vec(&self.pod).ok()?).ok().map(Arc::new)
    }
}

impl Kept {
    fn pod(&self) -> Option<Arc<Pod>> {
        match self {
            Self::Worked(entry) => entry.told(),
            Self::Resting(packed) => packed.pod(),
        }
    }

    fn is_called(&self, namespace: &str, name: &str) -> bool {
        match self {
            Self::Worked(entry) => entry.pod.namespace == namespace && entry.pod.name == name,
            Self::Resting(packed) => *packed.namespace == *namespace && *packed.name == *name,
        }
    }
}

/// What has to be done after news of a pod: an entry that needs a worker, if one does.
type Idle = Option<Arc<Entry>>;

impl Store {
    fn lock(&self) -> MutexGuard<'_, HashMap<Box<str>, Kept>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a version of a pod.
    pub(super) fn put(&self, pod: Pod) -> Idle {
        let uid = pod.metadata.uid.clone()?;
        let mut pods = self.lock();
        match pods.get(&*uid) {
            Some(Kept::Worked(entry)) => {
                entry.latest.send_if_modified(|latest| match latest {
                    Some(have) if is_newer(version(&pod), version(have)) => {
                        *latest = Some(Arc::new(pod));
                        true
                    }
                    // Our own news comes back, or something older does. Gone is gone.
                    _ => false,
                });
                return None;
            }
            Some(Kept::Resting(have)) if !is_newer(version(&pod), have.version) => return None,
            _ => {}
        }
        Some(work(&mut pods, pod_ref(&pod), Some(Arc::new(pod))))
    }

    /// Takes a pod that only the provider has.
    pub(super) fn put_orphan(&self, pod: PodRef) -> Idle {
        let mut pods = self.lock();
        (!pods.contains_key(&*pod.uid)).then(|| work(&mut pods, pod, None))
    }

    /// The API server has this pod no more.
    pub(super) fn gone(&self, uid: &str) -> Idle {
        let mut pods = self.lock();
        match pods.get(uid)? {
            Kept::Worked(entry) => {
                entry.latest.send_replace(None);
                None
            }
            Kept::Resting(packed) => {
                let (namespace, name) = (packed.namespace.to_string(), packed.name.to_string());
                Some(work(&mut pods, PodRef { uid: uid.to_owned(), namespace, name }, None))
            }
        }
    }

    /// The provider's side may have changed.
    pub(super) fn wake(&self, uid: &str) -> Idle {
        let mut pods = self.lock();
        match pods.get(uid)? {
            Kept::Worked(entry) => {
                entry.wake.notify_one();
                None
            }
            Kept::Resting(packed) => {
                let pod = packed.pod()?;
                Some(work(&mut pods, pod_ref(&pod), Some(pod)))
            }
        }
    }

    /// The pod's worker has ended because nothing is to be done. `seen` is how it knew the pod: there may be news since.
    pub(super) fn rest(&self, uid: &str, seen: &watch::Receiver<Latest>) -> Idle {
        let mut pods = self.lock();
        let Some(Kept::Worked(entry)) = pods.get(uid) else { return None };
        let has_news = seen.has_changed().unwrap_or(true) || entry.wake.notified().now_or_never().is_some();
        let packed = if has_news { None } else { entry.latest.borrow().as_deref().and_then(Packed::new) };
        let Some(packed) = packed else { return Some(Arc::clone(entry)) };
        pods.insert(uid.into(), Kept::Resting(packed));
        None
    }

    /// Nothing is left of this pod.
    pub(super) fn remove(&self, uid: &str) {
        let mut pods = self.lock();
        pods.remove(uid);
        if pods.capacity() > 4 * pods.len().max(256) {
            pods.shrink_to_fit();
        }
    }

    /// The entry of a pod that is worked on.
    pub(super) fn worked(&self, uid: &str) -> Option<Arc<Entry>> {
        match self.lock().get(uid)? {
            Kept::Worked(entry) => Some(Arc::clone(entry)),
            Kept::Resting(_) => None,
        }
    }

    pub(super) fn contains(&self, uid: &str) -> bool {
        self.lock().contains_key(uid)
    }

    pub(super) fn uids(&self) -> Vec<String> {
        self.lock().keys().map(ToString::to_string).collect()
    }

    /// The newest version of each pod that the API server has.
    pub(super) fn pods(&self) -> Vec<Arc<Pod>> {
        self.lock().values().filter_map(Kept::pod).collect()
    }

    /// How many of those are in each phase.
    pub(super) fn phases(&self) -> HashMap<String, usize> {
        let mut phases = HashMap::new();
        let mut count =
            |phase: Option<&str>| *phases.entry(phase.unwrap_or("Pending").to_owned()).or_default() += 1;
        for kept in self.lock().values() {
            match kept {
                Kept::Resting(packed) => count(packed.phase.as_deref()),
                Kept::Worked(entry) => {
                    if let Some(pod) = &*entry.latest.borrow() {
                        count(pod.status.as_ref().and_then(|status| status.phase.as_deref()));
                    }
                }
            }
        }
        phases
    }

    /// The newest pod of this name.
    pub(super) fn by_name(&self, namespace: &str, name: &str) -> Option<Arc<Pod>> {
        let pods = self.lock();
        let named = pods.values().filter(|kept| kept.is_called(namespace, name)).filter_map(Kept::pod);
        named.max_by_key(|pod| pod.metadata.creation_timestamp.as_ref().map(|time| time.0))
    }
}

fn work(pods: &mut HashMap<Box<str>, Kept>, pod: PodRef, latest: Latest) -> Arc<Entry> {
    let uid = pod.uid.clone().into_boxed_str();
    let entry = Arc::new(Entry::new(pod, latest));
    pods.insert(uid, Kept::Worked(Arc::clone(&entry)));
    entry
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
    fn who_asks_hears_what_is_being_told() {
        let store = Store::default();
        let entry = store.put(pod("a", 5, "2026-01-01T00:00:00Z")).unwrap();
        let phase =
            || store.by_name("ns", "web").unwrap().status.as_ref().and_then(|status| status.phase.clone());
        assert_eq!(phase(), None);
        *entry.telling() = serde_json::from_value(json!({ "phase": "Running" })).unwrap();
        assert_eq!(phase().as_deref(), Some("Running"));
        assert_eq!(version(&store).as_deref(), Some("5"));
        *entry.telling() = None;
        assert_eq!(phase(), None);
    }

    #[test]
    fn a_pod_that_rests_is_the_same_and_is_worked_on_again_only_for_news() {
        let store = Store::default();
        let mut first = pod("a", 5, "2026-01-01T00:00:00Z");
        first.status = serde_json::from_value(json!({ "phase": "Running", "podIP": "10.0.0.1" })).unwrap();
        let entry = store.put(first.clone()).unwrap();
        assert!(store.rest("a", &entry.latest.subscribe()).is_none());
        assert!(store.worked("a").is_none() && store.contains("a"));
        assert_eq!(*store.by_name("ns", "web").unwrap(), first);
        assert_eq!(store.pods().len(), 1);
        assert_eq!(store.phases(), HashMap::from([("Running".to_owned(), 1)]));

        assert!(store.put(first.clone()).is_none(), "it is known");
        assert!(store.put(pod("a", 4, "2026-01-01T00:00:00Z")).is_none(), "it is old");
        let entry = store.put(pod("a", 6, "2026-01-01T00:00:00Z")).unwrap();
        assert_eq!(version(&store).as_deref(), Some("6"));
        assert_eq!(store.phases(), HashMap::from([("Pending".to_owned(), 1)]));
        assert!(store.rest("a", &entry.latest.subscribe()).is_none());
        let entry = store.wake("a").unwrap();
        assert_eq!(entry.latest.borrow().as_ref().unwrap().metadata.name.as_deref(), Some("web"));
        assert!(store.rest("a", &entry.latest.subscribe()).is_none());
        let entry = store.gone("a").unwrap();
        assert_eq!((&*entry.pod.name, &*entry.pod.namespace), ("web", "ns"));
        assert!(entry.latest.borrow().is_none());
        assert_eq!(store.pods().len(), 0);
        store.remove("a");
        assert!(!store.contains("a"));
    }

    #[test]
    fn no_pod_rests_that_had_news_while_its_worker_ended() {
        let store = Store::default();
        let entry = store.put(pod("a", 5, "2026-01-01T00:00:00Z")).unwrap();
        let seen = entry.latest.subscribe();
        assert!(store.put(pod("a", 6, "2026-01-01T00:00:00Z")).is_none(), "it has a worker");
        assert!(store.rest("a", &seen).is_some());

        let seen = entry.latest.subscribe();
        assert!(store.wake("a").is_none(), "it has a worker");
        assert!(store.rest("a", &seen).is_some());

        let seen = entry.latest.subscribe();
        assert!(store.gone("a").is_none(), "it has a worker");
        assert!(store.rest("a", &seen).is_some());
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
