//! Why a pod waits, in one sentence, and what would let it start.

mod claims;
mod quota;
mod reason;
mod remedy;

use std::collections::HashMap;

use jiff::Timestamp;
use serde::Serialize;

use self::{quota::Limit, reason::Question};
use super::{
    Holder,
    snapshot::{Refusal, ResourceId},
    state::{Cluster, Group},
    words::{amount, clipped, seconds_between},
};

/// A pod that waits for a machine, or several that are alike.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Waiting {
    /// Its namespace.
    pub namespace: String,
    /// Its name; that of the one that waits longest, where there are several.
    pub pod: Option<String>,
    /// Who made it: `Job/train`.
    pub owner: Option<String>,
    /// How many wait alike. `None`: the API server has not even made them.
    pub pods: Option<usize>,
    /// What each asks for: the accelerator, or CPU and memory.
    pub asks: String,
    /// The resource that decides, and how much of it each asks for.
    pub resource: Option<String>,
    /// How much of `resource` each asks for; CPU in thousandths, memory in bytes.
    pub amount: i64,
    /// Since when the first waits.
    pub since: Option<Timestamp>,
    /// For how long, in seconds.
    pub waits_s: Option<f64>,
    /// The reason, in a word for programs.
    pub reason: Reason,
    /// The reason, in words for people.
    pub why: String,
    /// What would let it start, the easiest first.
    pub starts_if: Vec<String>,
}

/// Why a pod waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// It has a scheduling gate.
    Gated,
    /// A quota of its namespace is used up.
    Quota,
    /// The API server refuses it for another reason.
    Refused,
    /// No machine offers the resource.
    NotOffered,
    /// It asks for more than any machine has.
    TooLarge,
    /// Its selector or affinity fits no machine.
    NotSelected,
    /// The machines that could hold it are cordoned or have taints.
    KeptOff,
    /// Too little is free.
    Full,
    /// Enough is free, but not on one machine.
    Scattered,
    /// Accelerators are free, but CPU, memory or places for pods beside them are not.
    NothingBeside,
    /// Ports, or other pods that must be near or far.
    Neighbours,
    /// Others are being ended for it.
    Preempting,
    /// A volume that it claims is not there, or elsewhere.
    Volume,
    /// Devices that it claims (dynamic resource allocation) are not there, or elsewhere.
    Claim,
    /// What the scheduler says that is not looked at here: volumes, claims, plugins.
    Scheduler,
    /// It fits and will be placed.
    Starting,
}

/// Longest text of others that is shown.
const OTHERS_WORDS: usize = 300;
/// Kinds of pods that are looked at one by one; of those beyond, the scheduler's words are enough.
const KINDS: usize = 1_000;

/// Pods that hold and do nothing, by namespace and name.
type Idle<'a> = HashMap<(&'a str, &'a str), &'a Holder>;

/// All that wait, those of most accelerators first.
pub(super) fn waiting(cluster: &Cluster<'_>, idle: &[Holder]) -> Vec<Waiting> {
    let now = cluster.snapshot.at;
    let idle: Idle<'_> = idle.iter().map(|holder| ((&*holder.namespace, &*holder.pod), holder)).collect();
    let groups = cluster.waiting.iter().enumerate();
    let mut all: Vec<_> = groups
        .filter_map(|(at, group)| Some(of_group(cluster, &idle, group, at < KINDS)?.since(now)))
        .collect();
    let refusals = cluster.snapshot.beside.refusals.iter();
    all.extend(refusals.map(|refusal| of_refusal(cluster, &idle, refusal).since(now)));
    let weight = |one: &Waiting| one.amount.saturating_mul(i64::try_from(one.pods.unwrap_or(1)).unwrap_or(1));
    let accelerated = |one: &Waiting| one.resource.as_deref().is_some_and(|name| name.contains('/'));
    all.sort_by_key(|one| {
        (!accelerated(one), std::cmp::Reverse(weight(one)), one.namespace.clone(), one.pod.clone())
    });
    all
}

impl Waiting {
    fn since(self, now: Timestamp) -> Self {
        Self { waits_s: self.since.map(|since| seconds_between(since, now)), ..self }
    }
}

fn of_refusal(cluster: &Cluster<'_>, idle: &Idle<'_>, refusal: &Refusal) -> Waiting {
    let quota = refusal.message.find("exceeded quota: ");
    let (reason, why, limit) = match quota {
        Some(at) => {
            let rest = &refusal.message[at + "exceeded quota: ".len()..];
            let (name, numbers) = rest.split_once(", ").unwrap_or((rest, ""));
            let limit = Limit::of(name, numbers);
            let words = limit.as_ref().map_or_else(|| numbers.to_owned(), Limit::words);
            (Reason::Quota, format!("the namespace's quota {name} is used up: {words}"), limit)
        }
        None => {
            (Reason::Refused, format!("the API server does not make its pods: {}", refusal.message), None)
        }
    };
    let starts_if = match limit {
        Some(limit) => limit.starts_if(cluster, idle, refusal),
        None if reason == Reason::Quota => vec![Limit::RAISE.to_owned()],
        None => Vec::new(),
    };
    Waiting {
        namespace: refusal.namespace.clone(),
        pod: None,
        owner: Some(refusal.owner.clone()),
        pods: None,
        asks: String::new(),
        resource: None,
        amount: 0,
        since: refusal.at,
        waits_s: None,
        reason,
        why: clipped(&why, OTHERS_WORDS),
        starts_if,
    }
}

fn of_group(cluster: &Cluster<'_>, idle: &Idle<'_>, group: &Group<'_>, closely: bool) -> Option<Waiting> {
    let first = *group.pods.iter().min_by_key(|pod| (pod.created, &pod.name))?;
    let wish = first.wish.as_deref()?;
    let names = &cluster.snapshot.names;
    let accelerator = cluster.accelerator(first);
    let others = || first.requests.iter().filter(|(id, asked)| *asked > 0 && *id != ResourceId::PODS);
    // Resources are numbered with CPU and memory first.
    let key = accelerator.or_else(|| others().next());
    let asks = match accelerator {
        Some((resource, asked)) => amount(names, resource, asked),
        None => others().map(|(id, asked)| amount(names, id, asked)).collect::<Vec<_>>().join(", "),
    };
    let question = Question { cluster, idle, group, pod: first, wish, names, key };
    let answer = if closely { question.answer() } else { question.scheduler_says(Reason::Scheduler) };
    Some(Waiting {
        namespace: first.namespace.to_string(),
        pod: Some(first.name.to_string()),
        owner: first.owner.as_ref().map(ToString::to_string),
        pods: Some(group.pods.len()),
        asks,
        resource: key.map(|(resource, _)| names.name(resource).to_owned()),
        amount: key.map_or(0, |(_, asked)| asked),
        since: first.created,
        waits_s: None,
        reason: answer.reason,
        why: answer.why,
        starts_if: answer.starts_if,
    })
}
