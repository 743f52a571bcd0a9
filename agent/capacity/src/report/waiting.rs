//! Why a pod waits, in one sentence, and what would let it start.

mod claims;
mod gang;
mod quota;
mod reason;
mod remedy;
mod stuck;

use std::{
    collections::{HashMap, HashSet},
    num::NonZero,
    thread,
};

use jiff::Timestamp;
use serde::Serialize;

use self::{quota::Limit, reason::Question};
use super::{
    Holder,
    snapshot::{Member, Pod, Refusal, ResourceId},
    state::{Cluster, Group, Machine},
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
    /// It fits, but not as many as have to start together.
    Gang,
    /// It has its machine, which can't start it: an image, a Secret.
    NotStarted,
    /// It fits and will be placed.
    Starting,
}

/// Longest text of others that is shown.
const OTHERS_WORDS: usize = 300;
/// Kinds of pods that are looked at one by one; of those beyond, the scheduler's words are enough.
const KINDS: usize = 10_000;

/// Pods that hold and do nothing.
struct Idle<'a> {
    /// By namespace and name.
    holders: HashMap<(&'a str, &'a str), &'a Holder>,
    /// Whether there are any, by the machine's place.
    machines: Vec<bool>,
}

impl<'a> Idle<'a> {
    fn of(idle: &'a [Holder], cluster: &Cluster<'_>) -> Self {
        let holders = idle.iter().map(|holder| ((&*holder.namespace, &*holder.pod), holder)).collect();
        let mut idle = Self { holders, machines: Vec::new() };
        let lazy = |machine: &Machine<'_>| machine.pods.iter().any(|pod| idle.holder(pod).is_some());
        idle.machines = cluster.machines.iter().map(lazy).collect();
        idle
    }

    fn holder(&self, pod: &Pod) -> Option<&'a Holder> {
        self.holders.get(&(&*pod.namespace, &*pod.name)).copied()
    }

    fn is_on(&self, machine: &Machine<'_>) -> bool {
        self.machines.get(machine.place) == Some(&true)
    }
}

/// All that wait, those of most accelerators first.
pub(super) fn waiting(cluster: &Cluster<'_>, idle: &[Holder]) -> Vec<Waiting> {
    let now = cluster.snapshot.at;
    let idle = Idle::of(idle, cluster);
    let groups = &cluster.waiting;
    let mut all = side_by_side(groups.len(), |at| {
        Some(of_group(cluster, &idle, groups.get(at)?, at < KINDS)?.since(now))
    });
    all.extend(stuck::stuck(cluster).map(|one| one.since(now)));
    all.extend(queued(cluster).map(|one| one.since(now)));
    let refusals = cluster.snapshot.beside.refusals.iter();
    all.extend(refusals.map(|refusal| of_refusal(cluster, &idle, refusal).since(now)));
    let weight = |one: &Waiting| one.amount.saturating_mul(i64::try_from(one.pods.unwrap_or(1)).unwrap_or(1));
    let accelerated = |one: &Waiting| one.resource.as_deref().is_some_and(|name| name.contains('/'));
    all.sort_by_key(|one| {
        let name = (one.namespace.clone(), one.pod.clone(), one.owner.clone());
        (!accelerated(one), std::cmp::Reverse(weight(one)), name)
    });
    all
}

/// What `of` makes of each number below `count`, in no order, on all cores.
fn side_by_side<T: Send>(count: usize, of: impl Fn(usize) -> Option<T> + Sync) -> Vec<T> {
    /// What a thread is worth.
    const EACH: usize = 16;
    let cores = thread::available_parallelism().map_or(1, NonZero::get);
    let threads = cores.min(count.div_ceil(EACH)).max(1);
    let of = &of;
    thread::scope(|scope| {
        let some = |first: usize| {
            scope.spawn(move || (first..count).step_by(threads).filter_map(of).collect::<Vec<_>>())
        };
        let running: Vec<_> = (0..threads).map(some).collect();
        let ended = running.into_iter().map(thread::ScopedJoinHandle::join);
        ended.flat_map(|ended| ended.unwrap_or_else(|panic| std::panic::resume_unwind(panic))).collect()
    })
}

impl Waiting {
    fn since(self, now: Timestamp) -> Self {
        Self { waits_s: self.since.map(|since| seconds_between(since, now)), ..self }
    }
}

/// What Kueue holds back that has no pods yet.
fn queued(cluster: &Cluster<'_>) -> impl Iterator<Item = Waiting> {
    let makers = cluster.waiting.iter().filter_map(Group::first);
    let makers: HashSet<_> = makers.filter_map(|pod| Some((&pod.namespace, pod.owner.as_ref()?))).collect();
    cluster.snapshot.beside.gangs.iter().filter_map(move |((namespace, member), gang)| match member {
        Member::Owner(owner) if !owner.starts_with("Pod/") && !makers.contains(&(namespace, owner)) => {
            Some(gang.without_pods(namespace, owner))
        }
        _ => None,
    })
}

/// What a pod asks for in words, and the resource that decides, with how much of it.
fn asks(cluster: &Cluster<'_>, pod: &Pod) -> (String, Option<(ResourceId, i64)>) {
    let names = &cluster.snapshot.names;
    if let Some((resource, asked)) = cluster.accelerator(pod) {
        return (amount(names, resource, asked), Some((resource, asked)));
    }
    let others = || pod.requests.iter().filter(|(id, asked)| *asked > 0 && *id != ResourceId::PODS);
    let told: Vec<_> = others().map(|(id, asked)| amount(names, id, asked)).collect();
    // Resources are numbered with CPU and memory first.
    (told.join(", "), others().next())
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
    let (asks, key) = asks(cluster, first);
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
