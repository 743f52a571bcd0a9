//! What to do next about a pod's sandbox and containers. Pure: from the spec and what was seen to a [`Plan`]; asked again after every
//! step, so no step has to remember another.

mod loops;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, ContainerState, ContainerStatus, PodSpec, PodStatus};

use super::{
    ephemeral,
    probe::{Healths, Kind, is_sidecar},
};
use crate::provider::observed::{self, Exit, ObservedPod, State};

pub(crate) use loops::CrashLoops;

/// What to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Plan {
    /// Make this attempt at a sandbox, in which nothing of the earlier ones runs; then ask again.
    MakeSandbox(u32),
    /// End these (then ask again), or start those (then ask again), and wait for the others.
    Run {
        /// Containers that have failed a probe, whose image is another by now, whose sandbox is lost, or of which nobody knows whether
        /// they run.
        kill: Vec<Kill>,
        /// Containers to start now.
        start: Vec<Start>,
        /// Containers that crashed too often.
        wait: Vec<Wait>,
    },
    /// Nothing will ever run again in this pod. What still runs is to be ended.
    Finished,
}

/// A container to end although the pod goes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Kill {
    /// Its name in the pod.
    pub(crate) name: String,
    /// The provider's ID.
    pub(crate) id: String,
    /// A kubelet's text for the event.
    pub(crate) message: String,
    /// What it has failed; `None`: nothing.
    pub(crate) failed: Option<Kind>,
    /// It is started again whatever its exit code will be.
    pub(crate) returns: bool,
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
    /// The provider's ID of the container whose processes it shall see.
    pub(crate) joins: Option<String>,
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
    match policy(spec, container) {
        "Never" => false,
        "Always" if !is_init || is_sidecar(container) => true,
        _ => code != 0,
    }
}

/// The same, unless we have ended it ourselves to have it started again.
pub(crate) fn returns(
    spec: &PodSpec,
    container: &Container,
    is_init: bool,
    last: &observed::Container,
    loops: &CrashLoops,
) -> bool {
    loops.returns(last) || restarts(spec, container, is_init, code_of(last))
}

/// The container's own policy, or the pod's.
fn policy<'a>(spec: &'a PodSpec, container: &'a Container) -> &'a str {
    container.restart_policy.as_deref().or(spec.restart_policy.as_deref()).unwrap_or("Always")
}

/// Adds to what was seen what the API server remembers and the provider has forgotten: containers that ran and are gone. They count as
/// ended, so nothing that must run once runs twice.
pub(crate) fn with_history(mut seen: ObservedPod, status: Option<&PodStatus>) -> ObservedPod {
    let Some(status) = status else { return seen };
    let lists =
        [&status.init_container_statuses, &status.container_statuses, &status.ephemeral_container_statuses];
    let statuses = lists.into_iter().flatten().flatten();
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

/// Containers that the runtime calls "created" although their start was asked for: it died in the middle of that. They may have run.
pub(crate) fn uncertain(seen: &ObservedPod, started: &BTreeMap<String, u32>) -> Vec<String> {
    let created = seen.containers.iter().filter(|container| container.state == State::Created);
    created
        .filter(|container| started.get(&container.name).is_some_and(|attempt| container.attempt <= *attempt))
        .map(|container| container.id.clone())
        .collect()
}

/// Adds to what is known the attempts whose start was asked for and of which nobody knows anything: they have ended, nobody knows how. None
/// of them is started again.
pub(crate) fn with_starts(mut seen: ObservedPod, started: &BTreeMap<String, u32>) -> ObservedPod {
    for (name, attempt) in started {
        let is_known = seen.containers.iter().any(|known| known.name == *name && known.attempt >= *attempt);
        if !is_known {
            seen.containers.push(observed::Container {
                id: String::new(),
                sandbox_id: String::new(),
                name: name.clone(),
                attempt: *attempt,
                state: State::Exited(lost(None)),
                image: String::new(),
                image_id: String::new(),
                asked_image: None,
                user: None,
                resources: None,
            });
        }
    }
    seen.containers.sort_by_key(|container| std::cmp::Reverse(container.attempt));
    seen
}

/// The end of a container that is gone, in a kubelet's words.
pub(crate) fn lost(started_at: Option<Timestamp>) -> Exit {
    Exit {
        code: 137,
        reason: "ContainerStatusUnknown".to_owned(),
        message: "The container could not be located when the pod was terminated".to_owned(),
        started_at,
        finished_at: None,
    }
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
        let exit = lost(running.started_at.clone().map(|time| time.0));
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
        asked_image: None,
        user: None,
        resources: None,
    })
}

/// What to do next about a pod that shall run.
pub(crate) fn plan(
    spec: &PodSpec,
    seen: &ObservedPod,
    healths: &Healths,
    loops: &mut CrashLoops,
    now: Timestamp,
) -> Plan {
    match seen.sandbox().filter(|sandbox| sandbox.ready) {
        Some(sandbox) => {
            let planner = Planner {
                spec,
                seen,
                healths,
                sandbox: &sandbox.id,
                loops,
                now,
                kill: Vec::new(),
                start: Vec::new(),
                wait: Vec::new(),
            };
            planner.plan()
        }
        None => plan_sandbox(spec, seen, loops),
    }
}

fn plan_sandbox(spec: &PodSpec, seen: &ObservedPod, loops: &CrashLoops) -> Plan {
    let failed_init = spec.init_containers.iter().flatten().any(|container| {
        let last = seen.container(&container.name);
        last.is_some_and(|last| {
            last.exit().is_some_and(|exit| exit.code != 0) && !returns(spec, container, true, last, loops)
        })
    });
    let wanted = spec.containers.iter().any(|container| match seen.container(&container.name) {
        // What never ran still shall, unless the pod runs once and has begun.
        None => spec.restart_policy.as_deref() != Some("Never") || seen.containers.is_empty(),
        Some(last) => returns(spec, container, false, last, loops),
    });
    if failed_init || !wanted {
        return Plan::Finished;
    }
    // What outlives its sandbox is ended as always, and not beside what runs in the next one.
    let left = seen.containers.iter().filter(|container| container.may_run() && !loops.has_ended(container));
    let kill: Vec<Kill> = left.map(|container| stopped(spec, container)).collect();
    if !kill.is_empty() {
        return Plan::Run { kill, start: Vec::new(), wait: Vec::new() };
    }
    Plan::MakeSandbox(seen.sandbox().map_or(0, |sandbox| sandbox.attempt + 1))
}

fn stopped(spec: &PodSpec, run: &observed::Container) -> Kill {
    let own = ephemeral::own(spec, &run.name);
    Kill {
        name: run.name.clone(),
        id: run.id.clone(),
        message: format!("Stopping container {}", run.name),
        failed: None,
        returns: own.is_some_and(|own| policy(spec, own) != "Never"),
    }
}

/// Whether a pod that will never run anything again has a container that never ran, and no end of another that says why: its sandbox was
/// lost before, and its policy allows no second one.
pub(crate) fn is_lost(spec: &PodSpec, seen: &ObservedPod) -> bool {
    let inits = spec.init_containers.as_deref().unwrap_or_default();
    let code = |container: &Container| Some(seen.container(&container.name)?.exit()?.code);
    !inits.iter().any(|init| code(init).is_some_and(|code| code != 0))
        && spec.containers.iter().any(|container| code(container).is_none())
}

/// The exit code, as far as it is known.
fn code_of(container: &observed::Container) -> i32 {
    container.exit().map_or(137, |exit| exit.code)
}

/// How far the init containers are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Initialization {
    /// The others may run.
    Done,
    /// Not yet.
    UnderWay,
    /// Never.
    Failed,
}

/// A plan in the making, for a pod whose sandbox is ready.
struct Planner<'a> {
    spec: &'a PodSpec,
    seen: &'a ObservedPod,
    healths: &'a Healths,
    sandbox: &'a str,
    loops: &'a mut CrashLoops,
    now: Timestamp,
    kill: Vec<Kill>,
    start: Vec<Start>,
    wait: Vec<Wait>,
}

impl<'a> Planner<'a> {
    fn plan(mut self) -> Plan {
        self.join();
        match self.initialize() {
            Initialization::Failed => return Plan::Finished,
            Initialization::UnderWay => {}
            Initialization::Done => {
                let mut alive = false;
                for container in &self.spec.containers {
                    let last = self.seen.container(&container.name);
                    alive |= self.step(container, false, last);
                }
                // Sidecars alone are nothing to go on for.
                if !alive {
                    return Plan::Finished;
                }
            }
        }
        Plan::Run { kill: self.kill, start: self.start, wait: self.wait }
    }

    /// Ephemeral containers are started once, whatever the others do.
    fn join(&mut self) {
        for own in self.spec.ephemeral_containers.iter().flatten() {
            let made = match self.seen.container(&own.name) {
                None => None,
                Some(last) if last.state == State::Created && last.sandbox_id == self.sandbox => {
                    Some(last.id.clone())
                }
                Some(_) => continue,
            };
            let target = ephemeral::target(self.spec, &own.name);
            let joins = target.and_then(|target| self.seen.container(target)).map(|seen| seen.id.clone());
            self.start.push(Start { name: own.name.clone(), attempt: 0, made, joins });
        }
    }

    /// What is of an earlier sandbox does not count: its work was for that one.
    fn here(&self, container: &Container) -> Option<&'a observed::Container> {
        self.seen.container(&container.name).filter(|last| last.sandbox_id == self.sandbox)
    }

    /// Init containers come one after the other. A sidecar is passed when it has started, and is kept running from then on.
    fn initialize(&mut self) -> Initialization {
        let inits = self.spec.init_containers.as_deref().unwrap_or_default();
        let begun = self.spec.containers.iter().any(|container| self.here(container).is_some());
        if begun {
            // Once begun, it does not matter what became of the others.
            for sidecar in inits.iter().filter(|init| is_sidecar(init)) {
                self.step(sidecar, true, self.here(sidecar));
            }
            return Initialization::Done;
        }
        // The ones before the last that was begun have had their turn.
        let Some(last) = inits.iter().rposition(|init| self.here(init).is_some()) else {
            return self.begin(inits.first());
        };
        for sidecar in inits[..last].iter().filter(|init| is_sidecar(init)) {
            self.step(sidecar, true, self.here(sidecar));
        }
        let init = &inits[last];
        let Some(run) = self.here(init) else { return Initialization::UnderWay };
        let passed = if is_sidecar(init) {
            run.is_running() && self.healths.has_started(init, &run.id)
        } else {
            run.exit().is_some_and(|exit| exit.code == 0)
        };
        let alive = (passed && !is_sidecar(init)) || self.step(init, true, Some(run));
        match (passed, alive) {
            (true, _) => self.begin(inits.get(last + 1)),
            (false, true) => Initialization::UnderWay,
            (false, false) => Initialization::Failed,
        }
    }

    fn begin(&mut self, next: Option<&'a Container>) -> Initialization {
        match next {
            Some(next) => {
                self.step(next, true, None);
                Initialization::UnderWay
            }
            None => Initialization::Done,
        }
    }

    /// What is to be done about one container; whether it runs or will run.
    fn step(&mut self, container: &Container, is_init: bool, last: Option<&observed::Container>) -> bool {
        let Some(last) = last else {
            let attempt = self.seen.container(&container.name).map_or(0, |before| before.attempt + 1);
            self.start(container, attempt, None);
            return true;
        };
        match &last.state {
            // What was made in a lost sandbox, or of another image, can't be gone on with.
            State::Created if last.sandbox_id != self.sandbox || changed(container, last) => {
                self.start(container, last.attempt + 1, None);
            }
            State::Created => self.start(container, last.attempt, Some(last.id.clone())),
            State::Running { .. } => {
                // An init container is let be: it will end by itself.
                let lasts = !is_init || is_sidecar(container);
                if lasts && changed(container, last) {
                    self.kill.push(replaced(container, is_init, last));
                } else if let Some(failed) = self.healths.failed(&last.id) {
                    self.kill.push(self.kill(container, is_init, last, failed));
                } else if self.loops.returns(last) && !self.loops.has_ended(last) {
                    // Its end was begun.
                    self.kill.push(stopped(self.spec, last));
                }
            }
            // It may still run. What it turns out to be decides about the next one.
            State::Unknown if !self.loops.has_ended(last) => {
                self.kill.push(unknown(container, is_init, last));
            }
            State::Exited(exit) if returns(self.spec, container, is_init, last, self.loops) => {
                let wait = if changed(container, last) {
                    self.loops.begin_anew(last)
                } else {
                    self.loops.wait(last, exit)
                };
                match wait.filter(|wait| is_ahead(*wait, self.now)) {
                    Some((delay, until)) => {
                        self.wait.push(Wait { name: container.name.clone(), until, delay });
                    }
                    None => self.start(container, last.attempt + 1, None),
                }
            }
            State::Unknown if returns(self.spec, container, is_init, last, self.loops) => {
                self.start(container, last.attempt + 1, None);
            }
            State::Exited(_) | State::Unknown => return false,
        }
        true
    }

    fn start(&mut self, container: &Container, attempt: u32, made: Option<String>) {
        self.start.push(Start { name: container.name.clone(), attempt, made, joins: None });
    }

    fn kill(&self, container: &Container, is_init: bool, run: &observed::Container, failed: Kind) -> Kill {
        let probe = failed.as_str().to_lowercase();
        let returns = policy(self.spec, container) != "Never";
        let message = match (is_init, returns) {
            (true, _) => format!("Init container {} failed {probe} probe", container.name),
            (false, false) => format!("Container {} failed {probe} probe", container.name),
            (false, true) => format!("Container {} failed {probe} probe, will be restarted", container.name),
        };
        Kill { name: container.name.clone(), id: run.id.clone(), message, failed: Some(failed), returns }
    }
}

/// Whether the pod names another image by now than this was made of.
fn changed(container: &Container, run: &observed::Container) -> bool {
    let image = container.image.as_deref().unwrap_or_default();
    run.asked_image.as_deref().is_some_and(|asked| asked != image)
}

/// A kubelet starts the next one whatever the policy.
fn replaced(container: &Container, is_init: bool, run: &observed::Container) -> Kill {
    let name = &container.name;
    let message = if is_init {
        format!("Init container {name} definition changed")
    } else {
        format!("Container {name} definition changed, will be restarted")
    };
    Kill { name: name.clone(), id: run.id.clone(), message, failed: None, returns: true }
}

fn unknown(container: &Container, is_init: bool, run: &observed::Container) -> Kill {
    let what = if is_init { "Init container" } else { "Container" };
    let message = format!("{what} is in \"unknown\" state, try killing it before restart");
    Kill { name: container.name.clone(), id: run.id.clone(), message, failed: None, returns: false }
}

/// Whether a wait is still going on. If it were to be longer than all of it, the clock was set back since it began: then nobody knows how long it
/// has been, and the container must not wait until the clock is where it was.
fn is_ahead((delay, until): (Duration, Timestamp), now: Timestamp) -> bool {
    let left = until.duration_since(now);
    left.is_positive() && left.unsigned_abs() <= delay
}

/// Who has to have ended before each of these running containers is told to: sidecars go after all containers proper, and in the
/// reverse of the order in which they came.
pub(crate) fn ends_after(spec: &PodSpec, running: &BTreeSet<String>) -> BTreeMap<String, BTreeSet<String>> {
    let names = |containers: &[Container]| -> BTreeSet<String> {
        containers
            .iter()
            .map(|container| container.name.clone())
            .filter(|name| running.contains(name))
            .collect()
    };
    let mut before = names(&spec.containers);
    let mut all = BTreeMap::new();
    for sidecar in spec.init_containers.iter().flatten().rev().filter(|init| is_sidecar(init)) {
        if running.contains(&sidecar.name) {
            all.insert(sidecar.name.clone(), before.clone());
            before.insert(sidecar.name.clone());
        }
    }
    all
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
