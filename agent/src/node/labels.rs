//! The node's labels and annotations, by server-side apply: what we no longer say goes away by itself, because the API server knows that
//! it was ours. What somebody else says is theirs, and is left alone unless the admin wants it otherwise.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use kube::{
    Api,
    api::{Patch, PatchParams},
    core::Status,
};
use serde_json::{Value, json};
use spillway_device_plugin::inventory::{BackendState, Inventory};
use tokio::{sync::watch, time::Instant};

use super::{
    Annotate, MANAGER,
    client::{NodeError, Trouble, ask},
    events::{EventSink, Kind},
    watch::Seen,
};
use crate::kinds::Node as NodeObject;

/// How often all of it is said again: whoever held a label may have let go of it.
const REPEAT: Duration = Duration::from_mins(5);
/// How often what is to be said is computed though no device changed: who holds devices is part of it.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// Others' labels are learnt one answer at a time; more than this is somebody playing games.
const ATTEMPTS: usize = 8;

/// What the node shall say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Desired {
    labels: BTreeMap<String, String>,
    annotations: BTreeMap<String, String>,
}

/// A key that somebody else holds, and who.
type Foreign = BTreeMap<String, String>;

/// Where the labels go.
pub(super) struct Labels {
    pub(super) nodes: Api<NodeObject>,
    pub(super) node: String,
    pub(super) prefixes: Vec<String>,
    pub(super) force: bool,
    pub(super) annotate: Option<Annotate>,
    pub(super) events: EventSink,
}

impl Labels {
    /// Keeps them as long as there is an inventory.
    pub(super) async fn keep(
        self,
        mut inventory: watch::Receiver<Inventory>,
        mut seen: watch::Receiver<Option<Seen>>,
    ) {
        let mut trouble = Trouble::new("the node's labels are not kept");
        let mut applied: Option<(String, Desired, Instant)> = None;
        let mut foreign = Foreign::new();
        let mut refused = BTreeSet::new();
        loop {
            let desired = self.desired(&inventory.borrow_and_update(), &mut refused);
            let node = seen.borrow_and_update().clone();
            let mut wait = LOOK_EVERY;
            if let (Some(desired), Some(node)) = (desired, node) {
                let stands = !trouble.lasts()
                    && applied.as_ref().is_some_and(|(uid, applied, at)| {
                        *uid == node.uid && *applied == desired && at.elapsed() < REPEAT
                    })
                    && desired.stands(&node, &foreign);
                if !stands {
                    match self.apply(&node.uid, &desired).await {
                        Ok(now) => {
                            trouble.over();
                            self.tell(&foreign, &now);
                            foreign = now;
                            applied = Some((node.uid, desired, Instant::now()));
                        }
                        Err(error) => {
                            trouble.tell(&error);
                            wait = trouble.delay();
                        }
                    }
                }
            }
            tokio::select! {
                changed = inventory.changed() => if changed.is_err() { return },
                changed = seen.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    /// Nothing before every back end has looked: a restart must not cost the node its labels.
    fn desired(&self, inventory: &Inventory, refused: &mut BTreeSet<String>) -> Option<Desired> {
        if inventory.backends().any(|(_, state)| *state == BackendState::Starting) {
            return None;
        }
        let mut labels = inventory.labels();
        labels.retain(|key, value| {
            let fits = self.prefixes.iter().any(|prefix| key.starts_with(prefix.as_str()))
                && is_key(key)
                && is_value(value);
            if !fits && refused.insert(key.clone()) {
                tracing::warn!(
                    label = key,
                    value,
                    "a label is left out: not a label, or not below --label-prefixes"
                );
            }
            fits
        });
        let annotations = self.annotate.as_ref().map(|annotate| annotate(inventory)).unwrap_or_default();
        Some(Desired { labels, annotations })
    }

    /// Applies all that nobody else holds, and says who holds the rest.
    async fn apply(&self, uid: &str, desired: &Desired) -> Result<Foreign, NodeError> {
        let mut foreign = Foreign::new();
        for _ in 0..ATTEMPTS {
            let parameters = PatchParams::apply(MANAGER);
            let parameters = if self.force { parameters.force() } else { parameters };
            let patch = Patch::Apply(desired.without(&foreign).patch(&self.node, uid));
            match ask("label the node", self.nodes.patch_metadata(&self.node, &parameters, &patch)).await {
                Ok(_) => return Ok(foreign),
                Err(error) => {
                    let known = foreign.len();
                    if let Some(status) = error.status() {
                        foreign.extend(conflicts(status));
                    }
                    if foreign.len() == known {
                        return Err(error);
                    }
                }
            }
        }
        Err(NodeError::Silent { what: "label the node: its labels change hands all the time" })
    }

    fn tell(&self, before: &Foreign, now: &Foreign) {
        let new: Vec<_> = now.iter().filter(|(key, _)| !before.contains_key(*key)).collect();
        if let Some((_, who)) = new.first() {
            let keys: Vec<_> = new.iter().map(|(key, _)| key.as_str()).collect();
            let note = format!(
                "left alone, because {who} has set something else: {}; --force-labels takes them over",
                keys.join(", ")
            );
            tracing::warn!(node = self.node, "labels {note}");
            self.events.node(Kind::Warning, "LabelsHeldByAnother", &note);
        }
    }
}

impl Desired {
    fn without(&self, foreign: &Foreign) -> Self {
        let kept = |all: &BTreeMap<String, String>| {
            let ours = all.iter().filter(|(key, _)| !foreign.contains_key(*key));
            ours.map(|(key, value)| (key.clone(), value.clone())).collect()
        };
        Self { labels: kept(&self.labels), annotations: kept(&self.annotations) }
    }

    fn patch(&self, node: &str, uid: &str) -> Value {
        json!({
            "apiVersion": "v1", "kind": "Node",
            // With the UID a node that is gone is not made anew.
            "metadata": { "name": node, "uid": uid, "labels": self.labels, "annotations": self.annotations },
        })
    }

    /// Whether the node has all of it.
    fn stands(&self, node: &Seen, foreign: &Foreign) -> bool {
        let has = |found: &BTreeMap<String, String>, (key, value): (&String, &String)| {
            // What another held and let go of is anybody's.
            found.get(key).is_some_and(|found| found == value || foreign.contains_key(key))
        };
        self.labels.iter().all(|label| has(&node.labels, label))
            && self.annotations.iter().all(|annotation| has(&node.annotations, annotation))
    }
}

/// Which keys others hold, from the API server's refusal (`staging/src/k8s.io/apimachinery/pkg/util/managedfields`).
fn conflicts(status: &Status) -> Foreign {
    let causes = status.details.iter().flat_map(|details| &details.causes);
    let held = causes.filter(|cause| cause.reason == "FieldManagerConflict").filter_map(|cause| {
        let field = &cause.field;
        let key = field
            .strip_prefix(".metadata.labels.")
            .or_else(|| field.strip_prefix(".metadata.annotations."))?;
        let who = cause.message.split('"').nth(1).unwrap_or("another manager");
        Some((key.to_owned(), who.to_owned()))
    });
    held.collect()
}

/// Whether Kubernetes takes it as a label's key.
fn is_key(key: &str) -> bool {
    let (prefix, name) = key.split_once('/').map_or((None, key), |(prefix, name)| (Some(prefix), name));
    let sound = |prefix: &str| {
        prefix.len() <= 253
            && prefix.split('.').all(|part| {
                let edge = |byte: Option<&u8>| {
                    byte.is_some_and(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
                };
                edge(part.as_bytes().first())
                    && edge(part.as_bytes().last())
                    && part
                        .bytes()
                        .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
            })
    };
    prefix.is_none_or(sound) && !name.is_empty() && is_value(name)
}

/// Whether Kubernetes takes it as a label's value.
fn is_value(value: &str) -> bool {
    let edge = |byte: Option<&u8>| byte.is_none_or(u8::is_ascii_alphanumeric);
    value.len() <= 63
        && edge(value.as_bytes().first())
        && edge(value.as_bytes().last())
        && value.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
}

#[cfg(test)]
mod tests;
