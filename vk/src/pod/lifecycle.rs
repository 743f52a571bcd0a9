//! What to do next about a pod's sandbox and containers. Pure: from the spec and what was seen to a [`Plan`]; asked again after every
//! step, so no step has to remember another.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, ContainerState, ContainerStatus, PodSpec, PodStatus};

use crate::provider::observed::{self, Exit, ObservedPod, State};

/// The first wait of a crash loop; then it doubles.
const FIRST_DELAY: Duration = Duration::from_secs(10);
/// The longest wait of a crash loop.
const LAST_DELAY: Duration = Duration::from_mins(5);
/// A container that ran for so long has left its crash loop.
const CALM: Duration = Duration::from_mins(10);

/// What to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Plan {
    /// Make this attempt at a sandbox; then ask again.
    MakeSandbox(u32),
    /// Start these (then ask again), and wait for the others.
    Run {
        /// Containers to start now.
        start: Vec<Start>,
        /// Containers that crashed too often.
        wait: Vec<Wait>,
    },
    /// Nothing will ever run again in this pod.
    Finished,
}

/// A container in a crash loop.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Wait {
    /// Its name in the pod.
    pub(crate) name: String,
    /// When it is started again.
    pub(crate) until: Timestamp,
    /// How long that is after its end.
    pub(crate) delay: Duration,
}

/// A container to start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Start {
    /// Its name in the pod.
    pub(crate) name: String,
    /// The restart count it will have.
    pub(crate) attempt: u32,
    /// It was made already and only has to be started.
    pub(crate) made: Option<String>,
}

/// Since which attempt each container crashes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct CrashLoops(BTreeMap<String, u32>);

impl CrashLoops {
    /// How long after its end a container is started again: at once after its first end, then 10 s, doubled each time.
    pub(crate) fn delay(&mut self, container: &observed::Container, exit: &Exit) -> Option<Duration> {
        let ran = match (exit.started_at, exit.finished_at) {
            (Some(from), Some(to)) => to.duration_since(from).unsigned_abs(),
            _ => Duration::ZERO,
        };
        if ran >= CALM {
            self.0.insert(container.name.clone(), container.attempt);
        }
        let since = self.0.get(&container.name).copied().unwrap_or(0).min(container.attempt);
        let doublings = (container.attempt - since).checked_sub(1)?;
        let delay = 2_u32.checked_pow(doublings).and_then(|factor| FIRST_DELAY.checked_mul(factor));
        Some(delay.unwrap_or(LAST_DELAY).min(LAST_DELAY))
    }
}

/// Whether a container that ended is started again.
pub(crate) fn restarts(spec: &PodSpec, container: &Container, is_init: bool, code: i32) -> bool {
    let by_rule = container.restart_policy_rules.iter().flatten().any(|rule| {
        rule.exit_codes.as_ref().is_some_and(|codes| {
            let listed = codes.values.iter().flatten().any(|value| *value == code);
            if codes.operator == "NotIn" { !listed } else { listed }
        })
    });
    if by_rule {
        return true;
    }
    let policy = container.restart_policy.as_deref().or(spec.restart_policy.as_deref()).unwrap_or("Always");
    match policy {
        "Never" => false,
        "Always" if !is_init => true,
        _ => code != 0,
    }
}

/// Adds to what was seen what the API server remembers and the provider has forgotten: containers that ran and are gone. They count as
/// ended, so nothing that must run once runs twice.
pub(crate) fn with_history(mut seen: ObservedPod, status: Option<&PodStatus>) -> ObservedPod {
    let Some(status) = status else { return seen };
    let statuses = status.init_container_statuses.iter().chain(&status.container_statuses).flatten();
    for status in statuses {
        let attempt = u32::try_from(status.restart_count).unwrap_or(0);
        let known = seen
            .containers
            .iter()
            .any(|container| container.name == status.name && container.attempt >= attempt);
        if known {
            continue;
        }
        if let Some(container) = remembered(status, attempt) {
            seen.containers.push(container);
        }
    }
    seen.containers.sort_by_key(|container| std::cmp::Reverse(container.attempt));
    seen
}

fn remembered(status: &ContainerStatus, attempt: u32) -> Option<observed::Container> {
    let id_of = |id: &str| id.rsplit('/').next().unwrap_or_default().to_owned();
    let ended = |state: &Option<ContainerState>| {
        let ended = state.as_ref()?.terminated.clone()?;
        let exit = Exit {
            code: ended.exit_code,
            reason: ended.reason.unwrap_or_default(),
            message: ended.message.unwrap_or_default(),
            started_at: ended.started_at.map(|time| time.0),
            finished_at: ended.finished_at.map(|time| time.0),
        };
        Some((id_of(&ended.container_id.unwrap_or_default()), exit))
    };
    let running = status.state.as_ref().and_then(|state| state.running.as_ref());
    let lost = running.map(|running| {
        let exit = Exit {
            code: 137,
            reason: "ContainerStatusUnknown".to_owned(),
            message: "The container could not be located when the pod was terminated".to_owned(),
            started_at: running.started_at.clone().map(|time| time.0),
            finished_at: None,
        };
        (id_of(status.container_id.as_deref().unwrap_or_default()), exit)
    });
    let (id, exit) = lost.or_else(|| ended(&status.state)).or_else(|| ended(&status.last_state))?;
    Some(observed::Container {
        id,
        sandbox_id: String::new(),
        name: status.name.clone(),
        attempt,
        state: State::Exited(exit),
        image: status.image.clone(),
        image_id: status.image_id.clone(),
        user: None,
    })
}

/// What to do next about a pod that shall run.
pub(crate) fn plan(spec: &PodSpec, seen: &ObservedPod, loops: &mut CrashLoops, now: Timestamp) -> Plan {
    match seen.sandbox().filter(|sandbox| sandbox.ready) {
        Some(sandbox) => plan_containers(spec, seen, &sandbox.id, loops, now),
        None => plan_sandbox(spec, seen),
    }
}

fn plan_sandbox(spec: &PodSpec, seen: &ObservedPod) -> Plan {
    let failed_init = spec.init_containers.iter().flatten().any(|container| {
        let exit = seen.container(&container.name).and_then(observed::Container::exit);
        exit.is_some_and(|exit| exit.code != 0 && !restarts(spec, container, true, exit.code))
    });
    let wanted = spec.containers.iter().any(|container| match seen.container(&container.name) {
        // What never ran still shall, unless the pod runs once and has begun.
        None => spec.restart_policy.as_deref() != Some("Never") || seen.containers.is_empty(),
        Some(last) => restarts(spec, container, false, code_of(last)),
    });
    if failed_init || !wanted {
        return Plan::Finished;
    }
    Plan::MakeSandbox(seen.sandbox().map_or(0, |sandbox| sandbox.attempt + 1))
}

/// The exit code, as far as it is known.
fn code_of(container: &observed::Container) -> i32 {
    container.exit().map_or(137, |exit| exit.code)
}

fn plan_containers(
    spec: &PodSpec,
    seen: &ObservedPod,
    sandbox: &str,
    loops: &mut CrashLoops,
    now: Timestamp,
) -> Plan {
    let here = |name: &str| seen.container(name).filter(|container| container.sandbox_id == sandbox);
    let mut start = Vec::new();
    let mut wait = Vec::new();
    let mut step = |name: &str, next: Next| match next {
        Next::Start(made) => {
            let attempt = match (&made, seen.container(name)) {
                (Some(_), Some(last)) => last.attempt,
                (None, Some(last)) => last.attempt + 1,
                (_, None) => 0,
            };
            start.push(Start { name: name.to_owned(), attempt, made });
        }
        Next::After(delay, until) => wait.push(Wait { name: name.to_owned(), until, delay }),
        Next::Nothing | Next::Ended => {}
    };

    let begun = spec.containers.iter().any(|container| here(&container.name).is_some());
    if !begun {
        for container in spec.init_containers.iter().flatten() {
            // An init container of an earlier sandbox does not count: its work was for that one.
            let next = next(spec, container, true, here(&container.name), loops, now);
            let done = here(&container.name).and_then(observed::Container::exit).is_some_and(|e| e.code == 0);
            if done {
                continue;
            }
            if matches!(next, Next::Ended) {
                return Plan::Finished;
            }
            step(&container.name, next);
            return Plan::Run { start, wait };
        }
    }
    let mut alive = false;
    for container in &spec.containers {
        let next = next(spec, container, false, seen.container(&container.name), loops, now);
        let next = match (next, seen.container(&container.name)) {
            // Whatever is of another sandbox can't be gone on with.
            (Next::Start(Some(_)), Some(last)) if last.sandbox_id != sandbox => Next::Start(None),
            (next, _) => next,
        };
        alive |= !matches!(next, Next::Ended);
        step(&container.name, next);
    }
    if alive { Plan::Run { start, wait } } else { Plan::Finished }
}

enum Next {
    /// Start it: the one that was made, or a new one.
    Start(Option<String>),
    /// Start it so long after its end, which is then.
    After(Duration, Timestamp),
    /// It runs.
    Nothing,
    /// It has ended for good.
    Ended,
}

fn next(
    spec: &PodSpec,
    container: &Container,
    is_init: bool,
    last: Option<&observed::Container>,
    loops: &mut CrashLoops,
    now: Timestamp,
) -> Next {
    let Some(last) = last else { return Next::Start(None) };
    match &last.state {
        State::Created => Next::Start(Some(last.id.clone())),
        State::Running { .. } => Next::Nothing,
        State::Exited(exit) if restarts(spec, container, is_init, exit.code) => {
            let delay = loops.delay(last, exit);
            let until = delay.and_then(|delay| exit.finished_at?.checked_add(delay).ok());
            match (delay, until.filter(|until| *until > now)) {
                (Some(delay), Some(until)) => Next::After(delay, until),
                _ => Next::Start(None),
            }
        }
        State::Unknown if restarts(spec, container, is_init, 137) => Next::Start(None),
        State::Exited(_) | State::Unknown => Next::Ended,
    }
}

/// Ended containers that nothing refers to any more: all but the last ended attempt of each container.
pub(crate) fn superseded(seen: &ObservedPod) -> Vec<String> {
    let mut kept = BTreeSet::new();
    let ended =
        seen.containers.iter().filter(|container| container.exit().is_some() && !container.id.is_empty());
    // Newest first, so the first of each name is the one to keep.
    ended
        .filter(|container| !kept.insert(container.name.as_str()))
        .map(|container| container.id.clone())
        .collect()
}

#[cfg(test)]
mod tests;
