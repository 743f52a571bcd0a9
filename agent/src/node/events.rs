//! Events about the node and about pods of it. They are told, not kept: when the API server is away, or too many come at once, the oldest
//! that wait are lost, and nobody waits for them.
//!
//! kube's own recorder is not used: it takes two events for the same when they differ only in their text, and the text is where ours name
//! the device.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use jiff::Timestamp;
use k8s_openapi::{
    api::{
        core::v1::ObjectReference,
        events::v1::{Event, EventSeries},
    },
    apimachinery::pkg::apis::meta::v1::MicroTime,
};
use kube::{
    Api, Client,
    api::{ObjectMeta, Patch, PatchParams, PostParams},
};
use serde_json::json;
use spillway_device_plugin::inventory::{BackendState, Inventory};
use tokio::{
    sync::{broadcast, watch},
    time::{Instant, MissedTickBehavior, interval},
};

use super::{
    MANAGER,
    client::{NodeError, Trouble, ask},
    condition::{accelerators, clipped},
    watch::Seen,
};
use crate::holders::PodRef;

/// Events that wait to be written.
const QUEUE: usize = 256;
/// Events that may be written at once, and how soon one more may.
const BURST: (u32, Duration) = (50, Duration::from_secs(1));
/// A repetition is counted, and the count written this often.
const REPEAT: Duration = Duration::from_secs(10);
/// The API server keeps events for an hour.
const REMEMBER: Duration = Duration::from_hours(1);
/// Accelerators that are told of one by one when many change at once.
const TOLD_AT_ONCE: usize = 16;

/// How serious it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Worth knowing.
    Normal,
    /// Worth looking at.
    Warning,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum About {
    Node,
    Pod { namespace: String, name: String, uid: String },
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Told {
    about: About,
    kind: Kind,
    reason: &'static str,
    note: String,
}

/// Takes events and never waits. Clones are the same; a default one forgets what it is told.
#[derive(Debug, Clone)]
pub struct EventSink(broadcast::Sender<(Told, Timestamp)>);

/// What the sinks have taken.
#[derive(Debug)]
pub(super) struct Queue(broadcast::Receiver<(Told, Timestamp)>);

/// Both ends.
pub(super) fn channel() -> (EventSink, Queue) {
    let (sender, receiver) = broadcast::channel(QUEUE);
    (EventSink(sender), Queue(receiver))
}

impl Default for EventSink {
    fn default() -> Self {
        channel().0
    }
}

impl EventSink {
    /// About the node. `reason`: one word in `PascalCase`; `note`: a sentence.
    pub fn node(&self, kind: Kind, reason: &'static str, note: &str) {
        self.tell(About::Node, kind, reason, note);
    }

    /// About a pod; about the node, where the pod's name is not known.
    pub fn pod(&self, pod: &PodRef, kind: Kind, reason: &'static str, note: &str) {
        match (&pod.namespace, &pod.name) {
            (Some(namespace), Some(name)) => {
                let about =
                    About::Pod { namespace: namespace.clone(), name: name.clone(), uid: pod.uid.clone() };
                self.tell(about, kind, reason, note);
            }
            _ => self.tell(About::Node, kind, reason, &format!("pod {}: {note}", pod.uid)),
        }
    }

    fn tell(&self, about: About, kind: Kind, reason: &'static str, note: &str) {
        // Nobody listens where there is no API server to write to.
        let _ = self.0.send((Told { about, kind, reason, note: clipped(note) }, Timestamp::now()));
    }
}

/// Tells of accelerators that come, go, fall sick and recover, as long as there is an inventory.
pub(super) async fn follow(mut inventory: watch::Receiver<Inventory>, sink: EventSink) {
    let mut before = None;
    loop {
        let now = inventory.borrow_and_update().clone();
        if before.is_some() || now.backends().all(|(_, state)| *state != BackendState::Starting) {
            for (kind, reason, note) in news(before.as_ref(), &now) {
                sink.node(kind, reason, &note);
            }
            before = Some(now);
        }
        if inventory.changed().await.is_err() {
            return;
        }
    }
}

/// What is to be told of the step from `before` to `now`. What was there when the agent started is told only where it is sick.
fn news(before: Option<&Inventory>, now: &Inventory) -> Vec<(Kind, &'static str, String)> {
    let describe = |inventory: &Inventory| -> BTreeMap<String, String> {
        let named = inventory.devices().map(|device| {
            let id = device.accelerator.id.to_string();
            let name = match &device.accelerator.product {
                Some(product) => format!("{id} ({product})"),
                None => id.clone(),
            };
            (id, name)
        });
        named.collect()
    };
    let names = describe(now).into_iter().chain(before.map(describe).unwrap_or_default());
    let names: BTreeMap<_, _> = names.collect();
    let name = |id: &str| names.get(id).cloned().unwrap_or_else(|| id.to_owned());
    let old = before.map(accelerators);
    let new = accelerators(now);
    let mut told = Vec::new();
    for id in old.iter().flatten().map(|(id, _)| id).filter(|id| !new.contains_key(*id)) {
        let note = format!("{} is gone; what runs on it is left alone", name(id));
        told.push((Kind::Warning, "AcceleratorRemoved", note));
    }
    for (id, reasons) in &new {
        let earlier = old.as_ref().map(|old| old.get(id));
        match earlier {
            Some(None) => {
                told.push((Kind::Normal, "AcceleratorAdded", format!("{} was found", name(id))));
            }
            Some(Some(earlier)) if reasons.is_empty() && !earlier.is_empty() => {
                let note = format!("{} is healthy again and may be handed out", name(id));
                told.push((Kind::Normal, "AcceleratorHealthy", note));
            }
            _ => {}
        }
        let earlier = earlier.flatten();
        if reasons.iter().any(|reason| !earlier.is_some_and(|earlier| earlier.contains(reason))) {
            let note = format!("{} is not handed out: {}", name(id), reasons.join(", "));
            told.push((Kind::Warning, "AcceleratorUnhealthy", note));
        }
    }
    let more = told.len().saturating_sub(TOLD_AT_ONCE);
    told.truncate(TOLD_AT_ONCE);
    if more > 0 {
        told.push((Kind::Warning, "AcceleratorsChanged", format!("{more} more accelerators changed")));
    }
    told
}

/// What has been written of one event.
struct Written {
    namespace: String,
    name: String,
    count: i32,
    last: Timestamp,
    unwritten: bool,
    since: Instant,
}

/// Writes what sinks take.
pub(super) struct Writer {
    client: Client,
    node: String,
    written: HashMap<Told, Written>,
    /// Events that may be written at once, as of then.
    budget: (u32, Instant),
    trouble: Trouble,
}

impl Writer {
    pub(super) fn new(client: Client, node: String) -> Self {
        let trouble = Trouble::new("events are lost");
        Self { client, node, written: HashMap::new(), budget: (BURST.0, Instant::now()), trouble }
    }

    /// Writes as long as there is a sink.
    pub(super) async fn run(mut self, mut queue: Queue, seen: watch::Receiver<Option<Seen>>) {
        let mut tick = interval(REPEAT);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                told = queue.0.recv() => match told {
                    Ok((told, at)) => {
                        let uid = seen.borrow().as_ref().map(|seen| seen.uid.clone());
                        self.take(told, at, uid).await;
                    }
                    Err(broadcast::error::RecvError::Lagged(lost)) => {
                        tracing::warn!(lost, "events are lost: too many came at once");
                    }
                    Err(broadcast::error::RecvError::Closed) => return,
                },
                _ = tick.tick() => self.write_counts().await,
            }
        }
    }

    async fn take(&mut self, told: Told, at: Timestamp, node_uid: Option<String>) {
        if let Some(written) = self.written.get_mut(&told) {
            written.count = written.count.saturating_add(1);
            (written.last, written.unwritten) = (at, true);
            return;
        }
        self.wait_for_budget().await;
        let event = event(&self.node, node_uid, &told, at);
        let namespace = event.metadata.namespace.clone().unwrap_or_default();
        let name = event.metadata.name.clone().unwrap_or_default();
        let api: Api<Event> = Api::namespaced(self.client.clone(), &namespace);
        loop {
            match ask("write an event", api.create(&PostParams::default(), &event)).await {
                Ok(_) => {
                    self.trouble.over();
                    let since = Instant::now();
                    let entry = Written { namespace, name, count: 1, last: at, unwritten: false, since };
                    self.written.insert(told, entry);
                    return;
                }
                Err(error) if hopeless(&error) => {
                    // A namespace that is going away takes no events; a missing right is said once.
                    if error.status().is_some_and(|status| status.code == 403) && namespace == "default" {
                        self.trouble.tell(&error);
                    }
                    tracing::debug!(reason = told.reason, error = error.told(), "an event is lost");
                    return;
                }
                Err(error) => {
                    self.trouble.tell(&error);
                    self.trouble.pause().await;
                }
            }
        }
    }

    async fn write_counts(&mut self) {
        self.written.retain(|_, written| written.since.elapsed() < REMEMBER);
        let mut gone = Vec::new();
        for (told, written) in self.written.iter_mut().filter(|(_, written)| written.unwritten) {
            let api: Api<Event> = Api::namespaced(self.client.clone(), &written.namespace);
            let series = EventSeries { count: written.count, last_observed_time: MicroTime(written.last) };
            let patch = Patch::Merge(json!({ "series": series }));
            match ask("count an event", api.patch(&written.name, &PatchParams::default(), &patch)).await {
                Ok(_) => written.unwritten = false,
                Err(error) if error.status().is_some_and(kube::core::Status::is_not_found) => {
                    gone.push(told.clone());
                }
                Err(error) => {
                    tracing::debug!(error = error.told(), "an event's count is late");
                    break;
                }
            }
        }
        for told in gone {
            self.written.remove(&told);
        }
    }

    async fn wait_for_budget(&mut self) {
        let (left, since) = self.budget;
        let earned = since.elapsed().as_millis() / BURST.1.as_millis();
        let left = left.saturating_add(u32::try_from(earned).unwrap_or(u32::MAX)).min(BURST.0);
        if left == 0 {
            tokio::time::sleep_until(since + BURST.1).await;
            self.budget = (0, Instant::now());
        } else {
            self.budget = (left - 1, if earned > 0 || left == BURST.0 { Instant::now() } else { since });
        }
    }
}

/// Whether it is no use to try again.
fn hopeless(error: &NodeError) -> bool {
    error.status().is_some_and(|status| (400..500).contains(&status.code) && status.code != 429)
}

fn event(node: &str, node_uid: Option<String>, told: &Told, at: Timestamp) -> Event {
    let (kind, namespace, name, uid) = match &told.about {
        // A kubelet writes the node's name where its UID is asked for, and kubectl looks for both.
        About::Node => ("Node", None, node.to_owned(), node_uid.unwrap_or_else(|| node.to_owned())),
        About::Pod { namespace, name, uid } => ("Pod", Some(namespace.clone()), name.clone(), uid.clone()),
    };
    Event {
        metadata: ObjectMeta {
            name: Some(format!("{name}.{:x}", at.as_nanosecond().unsigned_abs())),
            // Where events about what is in no namespace are looked for.
            namespace: Some(namespace.clone().unwrap_or_else(|| "default".to_owned())),
            ..ObjectMeta::default()
        },
        regarding: Some(ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some(kind.to_owned()),
            namespace,
            name: Some(name),
            uid: Some(uid),
            ..ObjectReference::default()
        }),
        type_: Some(format!("{:?}", told.kind)),
        reason: Some(told.reason.to_owned()),
        action: Some(told.reason.to_owned()),
        note: Some(told.note.clone()),
        event_time: Some(MicroTime(at)),
        reporting_controller: Some(format!("spillway.dev/{MANAGER}")),
        reporting_instance: Some(node.to_owned()),
        ..Event::default()
    }
}

#[cfg(test)]
mod tests;
