//! Watches of single objects: one for each that a running pod has in its files, and for none else. A node may watch just those.
//!
//! Immutable objects are not watched, and what a pod used for seconds only is not either.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use futures::StreamExt as _;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::{
    Api, Client, Resource, ResourceExt as _,
    runtime::{WatchStreamExt as _, watcher},
};
use serde::de::DeserializeOwned;
use tokio::{
    sync::Notify,
    task::{AbortHandle, JoinSet},
};

use super::{
    Missing, Objects,
    cache::{Cache, Caches, version},
};
use crate::watching;

/// Pods that run shorter than this are not worth a watch.
const SETTLE: Duration = Duration::from_secs(3);

/// The two kinds of objects that pods are given the content of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    ConfigMap,
    Secret,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    kind: Kind,
    namespace: String,
    name: String,
}

/// How an object was when it was looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Look {
    exists: bool,
    version: u128,
}

impl Look {
    const NOTHING: Self = Self { exists: false, version: 0 };

    /// Whether what the watch says came after what somebody else saw. A watch may lag behind.
    fn is_after(self, seen: Self) -> bool {
        match (self.exists, seen.exists) {
            (true, true) => self.version > seen.version,
            (false, true) => self.version >= seen.version,
            (exists, false) => exists,
        }
    }
}

struct Follower {
    seen: Look,
    stale: Arc<AtomicBool>,
    wake: Arc<Notify>,
}

impl Follower {
    fn hear(&self, said: Look) {
        if said.is_after(self.seen) {
            self.stale.store(true, Ordering::Release);
            self.wake.notify_one();
        }
    }
}

struct Watched {
    task: AbortHandle,
    /// The last that was heard.
    said: Option<Look>,
    followers: HashMap<u64, Follower>,
}

#[derive(Default)]
struct State {
    next_follower: u64,
    watched: HashMap<Key, Watched>,
    tasks: JoinSet<()>,
}

struct Inner {
    client: Client,
    caches: Arc<Caches>,
    settle: Duration,
    state: Mutex<State>,
}

/// All watches.
pub(super) struct Watches(Arc<Inner>);

/// Somebody's use of some objects; ends when it is dropped.
pub(crate) struct Following {
    inner: Arc<Inner>,
    id: u64,
    keys: Vec<Key>,
    stale: Arc<AtomicBool>,
}

impl Following {
    /// Whether one of the objects is another one by now.
    pub(crate) fn is_stale(&self) -> bool {
        self.stale.load(Ordering::Acquire)
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        let mut state = self.inner.lock();
        for key in &self.keys {
            let Some(watched) = state.watched.get_mut(key) else { continue };
            watched.followers.remove(&self.id);
            if watched.followers.is_empty() {
                watched.task.abort();
                state.watched.remove(key);
            }
        }
    }
}

impl Watches {
    pub(super) fn new(client: Client, caches: Arc<Caches>) -> Self {
        Self(Arc::new(Inner { client, caches, settle: SETTLE, state: Mutex::default() }))
    }

    /// `objects` as they are in use.
    pub(super) fn follow(&self, namespace: &str, objects: &Objects, wake: &Arc<Notify>) -> Following {
        let key = |kind, name: &String| Key { kind, namespace: namespace.to_owned(), name: name.clone() };
        let maps = objects.config_maps.iter().map(|(name, object)| {
            let immutable = object.as_ref().is_ok_and(|object| object.immutable == Some(true));
            (key(Kind::ConfigMap, name), look(object), immutable)
        });
        let secrets = objects.secrets.iter().map(|(name, object)| {
            let immutable = object.as_ref().is_ok_and(|object| object.immutable == Some(true));
            (key(Kind::Secret, name), look(object), immutable)
        });
        let wanted: Vec<(Key, Look, bool)> = maps.chain(secrets).collect();

        let is_stale = Arc::new(AtomicBool::new(false));
        let mut state = self.0.lock();
        let id = state.next_follower;
        state.next_follower += 1;
        // Those that were aborted.
        while state.tasks.try_join_next().is_some() {}
        let mut keys = Vec::new();
        for (key, seen, _) in wanted.into_iter().filter(|(_, _, immutable)| !immutable) {
            let follower = Follower { seen, stale: Arc::clone(&is_stale), wake: Arc::clone(wake) };
            if let Some(watched) = state.watched.get_mut(&key) {
                if let Some(said) = watched.said {
                    follower.hear(said);
                }
                watched.followers.insert(id, follower);
            } else {
                let task = self.0.watch(&key, &mut state.tasks);
                let followers = HashMap::from([(id, follower)]);
                state.watched.insert(key.clone(), Watched { task, said: None, followers });
            }
            keys.push(key);
        }
        drop(state);
        Following { inner: Arc::clone(&self.0), id, keys, stale: is_stale }
    }
}

fn look<T: Resource>(object: &Result<Arc<T>, Missing>) -> Look {
    let found = object.as_ref();
    found.map_or(Look::NOTHING, |object| Look { exists: true, version: version(object.as_ref()) })
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn watch(self: &Arc<Self>, key: &Key, tasks: &mut JoinSet<()>) -> AbortHandle {
        // Whoever holds the tasks may go.
        let inner = Arc::downgrade(self);
        let (client, settle) = (self.client.clone(), self.settle);
        match key.kind {
            Kind::ConfigMap => {
                let api = Api::<ConfigMap>::namespaced(client, &key.namespace);
                tasks.spawn(watch(api, key.clone(), settle, inner, |caches| &caches.config_maps))
            }
            Kind::Secret => {
                let api = Api::<Secret>::namespaced(client, &key.namespace);
                tasks.spawn(watch(api, key.clone(), settle, inner, |caches| &caches.secrets))
            }
        }
    }

    fn hear(&self, key: &Key, said: Look) {
        let mut state = self.lock();
        let Some(watched) = state.watched.get_mut(key) else { return };
        watched.said = Some(said);
        for follower in watched.followers.values() {
            follower.hear(said);
        }
    }
}

async fn watch<T>(
    api: Api<T>,
    key: Key,
    settle: Duration,
    inner: Weak<Inner>,
    cache: impl Fn(&Caches) -> &Cache<T>,
) where
    T: Resource + Clone + std::fmt::Debug + DeserializeOwned + Send + 'static,
{
    tokio::time::sleep(settle).await;
    let Some(slot) = inner.upgrade().map(|inner| cache(&inner.caches).slot(&key.namespace, &key.name)) else {
        return;
    };
    let config = watcher::Config::default().fields(&format!("metadata.name={}", key.name));
    let mut events = std::pin::pin!(watching::watch(api, config).default_backoff());
    let mut listed = false;
    while let Some(event) = events.next().await {
        let Some(inner) = inner.upgrade() else { return };
        match event {
            Ok(watcher::Event::Init) => listed = false,
            Ok(watcher::Event::InitApply(object) | watcher::Event::Apply(object)) => {
                // Whatever the server sends beside what was asked for is not ours.
                if object.name_any() == key.name {
                    listed = true;
                    let said = Look { exists: true, version: version(&object) };
                    slot.put(Instant::now(), object);
                    inner.hear(&key, said);
                }
            }
            Ok(watcher::Event::InitDone) if listed => {}
            Ok(watcher::Event::InitDone) => {
                slot.gone(Instant::now());
                inner.hear(&key, Look { exists: false, version: u128::MAX });
            }
            Ok(watcher::Event::Delete(object)) => {
                slot.gone(Instant::now());
                inner.hear(&key, Look { exists: false, version: version(&object) });
            }
            Err(error) => {
                tracing::debug!(?key, %error, "a watch broke; it is tried again");
            }
        }
    }
}

#[cfg(test)]
mod tests;
