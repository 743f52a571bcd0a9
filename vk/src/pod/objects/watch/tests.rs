use std::sync::atomic::AtomicU64;

use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::*;
use crate::{
    fake_api::{self, Answer, Calls},
    pod::objects::{References, asking::Asking, read},
};

/// One config map on an API server, and those who watch it.
#[derive(Clone, Default)]
struct Api1 {
    version: Arc<AtomicU64>,
    object: Arc<Mutex<Option<Value>>>,
    watchers: Arc<Mutex<Vec<mpsc::UnboundedSender<Value>>>>,
    /// Versions before this one are gone.
    gone_before: Arc<AtomicU64>,
}

impl Api1 {
    fn set(&self, text: Option<&str>) {
        let version = self.version.fetch_add(1, Ordering::SeqCst) + 10;
        let mut object = self.object.lock().unwrap();
        let made = |text: &str| {
            json!({ "apiVersion": "v1", "kind": "ConfigMap", "data": { "k": text },
                "metadata": { "name": "cm", "namespace": "ns", "uid": "u", "resourceVersion": version.to_string() } })
        };
        let event = match (text, object.as_ref()) {
            (Some(text), None) => json!({ "type": "ADDED", "object": made(text) }),
            (Some(text), Some(_)) => json!({ "type": "MODIFIED", "object": made(text) }),
            (None, _) => json!({ "type": "DELETED", "object": made("") }),
        };
        *object = text.map(made);
        self.watchers.lock().unwrap().retain(|watcher| watcher.send(event.clone()).is_ok());
    }

    /// A change that no watch tells. All end, and none can go on from there.
    fn set_unheard(&self, text: Option<&str>) {
        let watchers = std::mem::take(&mut *self.watchers.lock().unwrap());
        self.set(text);
        self.gone_before.store(self.version.load(Ordering::SeqCst) + 9, Ordering::SeqCst);
        drop(watchers);
    }

    fn client(&self) -> (Client, Calls) {
        let api = self.clone();
        fake_api::client(move |call| {
            let version = (api.version.load(Ordering::SeqCst) + 9).to_string();
            if !call.query.contains("metadata.name%3Dcm") && !call.path.ends_with("/cm") {
                return Answer::status(403, "Forbidden");
            }
            if call.query.contains("watch=true") {
                let since = call.query.split('&').find_map(|part| part.strip_prefix("resourceVersion="));
                let since: u64 = since.and_then(|text| text.parse().ok()).unwrap_or(0);
                if since < api.gone_before.load(Ordering::SeqCst) {
                    return Answer::status(410, "Expired");
                }
                let (sender, receiver) = mpsc::unbounded_channel();
                api.watchers.lock().unwrap().push(sender);
                return Answer::Events(receiver);
            }
            let object = api.object.lock().unwrap().clone();
            if call.path.ends_with("/cm") {
                return object.map_or_else(|| Answer::status(404, "NotFound"), Answer::ok);
            }
            Answer::ok(json!({ "apiVersion": "v1", "kind": "ConfigMapList",
                "metadata": { "resourceVersion": version }, "items": object.into_iter().collect::<Vec<_>>() }))
        })
    }
}

struct Case {
    api: Api1,
    calls: Calls,
    client: Client,
    caches: Arc<Caches>,
    watches: Watches,
}

impl Case {
    fn new() -> Self {
        let api = Api1::default();
        let (client, calls) = api.client();
        let caches = Arc::<Caches>::default();
        let inner = Inner {
            client: client.clone(),
            caches: Arc::clone(&caches),
            settle: Duration::ZERO,
            state: Mutex::default(),
        };
        Self { api, calls, client, caches, watches: Watches(Arc::new(inner)) }
    }

    /// As [`super::super::Reader::load`].
    async fn load(&self) -> Objects {
        let references = References { config_maps: ["cm".to_owned()].into(), ..Default::default() };
        let mut objects = Objects::default();
        for name in references.config_maps {
            let api = Api::namespaced(self.client.clone(), "ns");
            let long_ago = Instant::now().checked_sub(Duration::from_secs(30)).unwrap();
            let slot = self.caches.config_maps.slot("ns", &name);
            let object = read(&Asking::default(), &slot, api, "configmap", &name, long_ago).await;
            objects.config_maps.insert(name, object);
        }
        objects
    }

    fn watched(&self) -> usize {
        self.watches.0.lock().watched.len()
    }

    fn watchers(&self) -> usize {
        let mut watchers = self.api.watchers.lock().unwrap();
        watchers.retain(|watcher| !watcher.is_closed());
        watchers.len()
    }
}

fn text(objects: &Objects) -> Option<String> {
    let object = objects.config_map("cm", true).unwrap()?;
    object.data.as_ref()?.get("k").cloned()
}

async fn wait(holds: impl Fn() -> bool) {
    let waited = tokio::time::timeout(Duration::from_secs(30), async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    waited.await.expect("it never comes true");
}

#[tokio::test]
async fn who_uses_an_object_hears_of_each_change_and_reads_it_without_asking_again() {
    let case = Case::new();
    case.api.set(Some("1"));
    let wake = Arc::new(Notify::new());
    let objects = case.load().await;
    let mut following = case.watches.follow("ns", &objects, &wake);
    wait(|| case.watchers() == 1).await;
    assert!(!following.is_stale(), "it is what is in use");
    for (change, is_read) in [(Some("2"), false), (Some("3"), false), (None, true), (Some("4"), false)] {
        let reads = case.calls.count("GET /api/v1/namespaces/ns/configmaps/cm");
        case.api.set(change);
        tokio::time::timeout(Duration::from_secs(30), wake.notified()).await.unwrap();
        assert!(following.is_stale());
        let objects = case.load().await;
        assert_eq!(text(&objects).as_deref(), change);
        // What is gone is asked for; everything else was said.
        assert_eq!(case.calls.count("GET /api/v1/namespaces/ns/configmaps/cm") > reads, is_read);
        following = case.watches.follow("ns", &objects, &wake);
        assert!(!following.is_stale());
    }
    assert_eq!(case.calls.count("GET /api/v1/namespaces/ns/configmaps?watch"), 1);
    drop(following);
    wait(|| case.watchers() == 0).await;
    assert_eq!(case.watched(), 0);
}

#[tokio::test]
async fn many_pods_share_a_watch_which_ends_with_the_last() {
    let case = Case::new();
    case.api.set(Some("1"));
    let objects = case.load().await;
    let wakes: Vec<_> = (0..100).map(|_| Arc::new(Notify::new())).collect();
    let mut all: Vec<_> = wakes.iter().map(|wake| case.watches.follow("ns", &objects, wake)).collect();
    wait(|| case.watchers() == 1).await;
    case.api.set(Some("2"));
    for wake in &wakes {
        tokio::time::timeout(Duration::from_secs(30), wake.notified()).await.unwrap();
    }
    // Who comes late with what is old hears it at once.
    let late = Arc::new(Notify::new());
    all.push(case.watches.follow("ns", &objects, &late));
    assert!(all.iter().all(Following::is_stale));
    let last = all.pop();
    all.clear();
    assert_eq!(case.watchers(), 1);
    drop(last);
    wait(|| case.watchers() == 0).await;
    assert_eq!(case.calls.count("GET /api/v1/namespaces/ns/configmaps?watch"), 1);
}

#[tokio::test]
async fn what_changed_before_the_watch_began_is_heard_too() {
    for change in [Some("2"), None] {
        let case = Case::new();
        case.api.set(Some("1"));
        let objects = case.load().await;
        case.api.set(change);
        let wake = Arc::new(Notify::new());
        let following = case.watches.follow("ns", &objects, &wake);
        tokio::time::timeout(Duration::from_secs(30), wake.notified()).await.unwrap();
        assert!(following.is_stale());
        assert_eq!(text(&case.load().await).as_deref(), change);
    }
}

#[tokio::test]
async fn what_changed_while_no_watch_could_go_on_is_heard_too() {
    for change in [Some("2"), None] {
        let case = Case::new();
        case.api.set(Some("1"));
        let objects = case.load().await;
        let wake = Arc::new(Notify::new());
        let following = case.watches.follow("ns", &objects, &wake);
        wait(|| case.watchers() == 1).await;
        case.api.set_unheard(change);
        tokio::time::timeout(Duration::from_mins(1), wake.notified()).await.unwrap();
        assert!(following.is_stale());
        assert_eq!(text(&case.load().await).as_deref(), change);
        wait(|| case.watchers() == 1).await;
    }
}

#[tokio::test]
async fn a_watch_that_lags_behind_a_fresh_read_wakes_nobody() {
    let seen = |version| Look { exists: true, version };
    let gone = |version| Look { exists: false, version };
    assert!(!seen(5).is_after(seen(6)) && !seen(6).is_after(seen(6)) && seen(7).is_after(seen(6)));
    assert!(!gone(5).is_after(seen(6)) && gone(7).is_after(seen(6)));
    assert!(seen(1).is_after(Look::NOTHING) && !gone(7).is_after(Look::NOTHING));
}

#[tokio::test]
async fn what_can_not_change_is_not_watched() {
    let case = Case::new();
    let object = json!({ "metadata": { "name": "cm" }, "immutable": true });
    let objects = Objects::of(std::slice::from_ref(&object), std::slice::from_ref(&object));
    let following = case.watches.follow("ns", &objects, &Arc::default());
    assert_eq!(case.watched(), 0);
    drop(following);
}
