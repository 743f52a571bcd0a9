//! The node's condition `AcceleratorHealthy`: True while every accelerator may be handed out, False with the sick ones and why, Unknown
//! where none was found or this agent has stopped.

use std::{collections::BTreeMap, fmt::Write as _, time::Duration};

use jiff::Timestamp;
use k8s_openapi::{api::core::v1::NodeCondition, apimachinery::pkg::apis::meta::v1::Time};
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use serde_json::{Value, json};
use spillway_device_plugin::inventory::{BackendState, Inventory};
use tokio::{
    sync::watch,
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    MANAGER,
    client::{NodeError, Trouble, ask},
    watch::Seen,
};
use crate::kinds::Node as NodeObject;

/// What the condition is called.
pub const CONDITION: &str = "AcceleratorHealthy";
/// How often it is said again though nothing changed; a kubelet's `nodeStatusReportFrequency`.
const HEARTBEAT: Duration = Duration::from_mins(5);
/// What saying goodbye may take.
const GOODBYE_WITHIN: Duration = Duration::from_secs(2);
/// Sick accelerators that are named.
const NAMED: usize = 8;
/// Bytes of a message.
const MESSAGE_LIMIT: usize = 1000;

/// What the condition says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// `True`, `False` or `Unknown`.
    pub status: &'static str,
    /// One word for programs.
    pub reason: &'static str,
    /// A sentence for people.
    pub message: String,
}

impl Verdict {
    fn stopped() -> Self {
        Self {
            status: "Unknown",
            reason: "AgentStopped",
            message: "spillway-agent has stopped: nobody looks after the accelerators".to_owned(),
        }
    }
}

/// What there is to say of these devices; nothing before every back end has looked.
pub fn verdict(inventory: &Inventory) -> Option<Verdict> {
    if inventory.backends().any(|(_, state)| *state == BackendState::Starting) {
        return None;
    }
    let accelerators = accelerators(inventory);
    let sick: Vec<_> = accelerators.iter().filter(|(_, sick)| !sick.is_empty()).collect();
    let total = accelerators.len();
    Some(if total == 0 {
        let why: Vec<_> = inventory
            .backends()
            .filter_map(|(name, state)| match state {
                BackendState::Unavailable(why) => Some(format!("; {name}: {why}")),
                _ => None,
            })
            .collect();
        Verdict {
            status: "Unknown",
            reason: "NoAccelerators",
            message: clipped(&format!("no accelerator was found{}", why.concat())),
        }
    } else if sick.is_empty() {
        Verdict {
            status: "True",
            reason: "AcceleratorsHealthy",
            message: format!("all {total} accelerators are healthy"),
        }
    } else {
        let mut message = format!("{} of {total} accelerators must not be used: ", sick.len());
        let named = sick.iter().take(NAMED).map(|(id, why)| format!("{id}: {}", why.join(", ")));
        message.push_str(&named.collect::<Vec<_>>().join("; "));
        if sick.len() > NAMED {
            let _ = write!(message, "; and {} more", sick.len() - NAMED);
        }
        Verdict { status: "False", reason: "AcceleratorsUnhealthy", message: clipped(&message) }
    })
}

/// Every accelerator, and why its devices are sick, each reason once.
pub(super) fn accelerators(inventory: &Inventory) -> BTreeMap<&str, Vec<&str>> {
    let mut found: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for device in inventory.devices() {
        let reasons = found.entry(device.accelerator.id.as_str()).or_default();
        if let Some(why) = inventory.sickness(device)
            && !reasons.contains(&why)
        {
            reasons.push(why);
        }
    }
    found
}

/// No more of `text` than the API server takes.
pub(super) fn clipped(text: &str) -> String {
    if text.len() <= MESSAGE_LIMIT {
        return text.to_owned();
    }
    let end = (0..=MESSAGE_LIMIT - 3).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    format!("{}...", &text[..end])
}

/// What was said last.
struct Said {
    verdict: Verdict,
    since: Timestamp,
    uid: String,
    at: Instant,
}

/// Keeps the condition until `stop`, and takes its word back then.
pub(super) async fn keep(
    nodes: Api<NodeObject>,
    node: String,
    mut inventory: watch::Receiver<Inventory>,
    mut seen: watch::Receiver<Option<Seen>>,
    stop: CancellationToken,
) {
    let mut said: Option<Said> = None;
    let mut trouble = Trouble::new("the node's condition does not say how its accelerators are");
    loop {
        let verdict = verdict(&inventory.borrow_and_update());
        let uid = seen.borrow_and_update().as_ref().map(|seen| seen.uid.clone());
        let mut wait = HEARTBEAT;
        if let (Some(verdict), Some(uid)) = (verdict, uid) {
            let stands = said.as_ref().is_some_and(|said| {
                said.verdict == verdict && said.uid == uid && said.at.elapsed() < HEARTBEAT
            });
            if stands {
                wait = said.as_ref().map_or(wait, |said| HEARTBEAT.saturating_sub(said.at.elapsed()));
            } else {
                match say(&nodes, &node, verdict, uid, said.as_ref()).await {
                    Ok(now) => {
                        trouble.over();
                        said = Some(now);
                    }
                    Err(error) => {
                        trouble.tell(&error);
                        wait = trouble.delay();
                    }
                }
            }
        }
        tokio::select! {
            () = stop.cancelled() => break,
            changed = inventory.changed() => if changed.is_err() { break },
            changed = seen.changed() => if changed.is_err() { break },
            () = tokio::time::sleep(wait) => {}
        }
    }
    if let Some(said) = said {
        let uid = said.uid.clone();
        let goodbye = say(&nodes, &node, Verdict::stopped(), uid, Some(&said));
        if !timeout(GOODBYE_WITHIN, goodbye).await.is_ok_and(|result| result.is_ok()) {
            tracing::warn!("the node's condition {CONDITION} could not be taken back");
        }
    }
}

async fn say(
    nodes: &Api<NodeObject>,
    node: &str,
    verdict: Verdict,
    uid: String,
    before: Option<&Said>,
) -> Result<Said, NodeError> {
    let now = Timestamp::now();
    let since = match before.filter(|before| before.uid == uid) {
        Some(said) => (said.verdict.status == verdict.status).then_some(said.since),
        None => ask("read the node's conditions", nodes.get(node)).await.map(|node| {
            let conditions = node.status.and_then(|status| status.conditions).unwrap_or_default();
            transition(&conditions, &verdict)
        })?,
    };
    let since = since.unwrap_or(now);
    let patch = Patch::Strategic(patch(&verdict, &uid, since, now));
    let parameters = PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
    ask("set the node's condition", nodes.patch_status(node, &parameters, &patch)).await?;
    tracing::debug!(status = verdict.status, reason = verdict.reason, "the node's condition is set");
    Ok(Said { verdict, since, uid, at: Instant::now() })
}

/// Since when the condition has the status that it is about to be given.
fn transition(conditions: &[NodeCondition], verdict: &Verdict) -> Option<Timestamp> {
    let before = conditions.iter().find(|condition| condition.type_ == CONDITION)?;
    (before.status == verdict.status).then(|| before.last_transition_time.as_ref().map(|time| time.0))?
}

fn patch(verdict: &Verdict, uid: &str, since: Timestamp, now: Timestamp) -> Value {
    json!({
        "metadata": { "uid": uid },
        "status": { "conditions": [{
            "type": CONDITION, "status": verdict.status, "reason": verdict.reason, "message": verdict.message,
            "lastHeartbeatTime": Time(now), "lastTransitionTime": Time(since),
        }] },
    })
}

#[cfg(test)]
mod tests;
