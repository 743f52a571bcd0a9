//! The one builder of pod statuses: from the spec and what was seen to what a kubelet would write
//! (`generateAPIPodStatus` in `pkg/kubelet/kubelet_pods.go`, conditions in `pkg/kubelet/status/generate.go`). Pure.

mod conditions;
mod ends;
mod given;

use std::{collections::BTreeMap, net::IpAddr};

use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{
        Container, ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting,
        ContainerStatus, ContainerUser, HostIP, LinuxContainerUser, Pod, PodIP, PodSpec, PodStatus,
        VolumeMountStatus,
    },
    apimachinery::pkg::{api::resource::Quantity, apis::meta::v1::Time},
};

use super::{
    ephemeral,
    lifecycle::{self, CrashLoops},
    probe::{Healths, is_sidecar},
    resources, spec,
};
use crate::provider::observed::{self, ObservedPod, State};
use ends::{as_told, end_before, ended_in, last_exit};
pub(crate) use given::{Note, Resize};

/// Why a container does not run (yet).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Waiting {
    /// A kubelet's word for it.
    pub(crate) reason: String,
    /// For people.
    pub(crate) message: String,
}

/// Why a pod failed as a whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Verdict {
    /// A kubelet's word for it.
    pub(crate) reason: String,
    /// For people.
    pub(crate) message: String,
}

/// All that a status follows from.
pub(crate) struct Facts<'a> {
    /// As the API server has it, with its last status.
    pub(crate) pod: &'a Pod,
    /// As the provider has it, with [`lifecycle::with_history`].
    pub(crate) seen: &'a ObservedPod,
    /// Why containers wait, by name.
    pub(crate) waiting: &'a BTreeMap<String, Waiting>,
    /// Which ends were our own doing.
    pub(crate) loops: &'a CrashLoops,
    /// What probes say; `None`: the provider looks after them itself, and what it calls running is ready.
    pub(crate) healths: Option<&'a Healths>,
    /// How a resize stands.
    pub(crate) resize: &'a Resize,
    /// Memory that containers were made to ask for, by name; no runtime knows it.
    pub(crate) memory_requests: &'a BTreeMap<String, Quantity>,
    /// The machine's addresses.
    pub(crate) host_ips: &'a [IpAddr],
    /// `containerd` in `containerd://ID`.
    pub(crate) scheme: &'a str,
    /// Nothing will be started any more, and nothing runs: the pod is deleted or condemned.
    pub(crate) ended: bool,
    /// The runtime can make mounts within mounts read-only.
    pub(crate) deep_read_only: bool,
    /// The pod has failed as a whole.
    pub(crate) verdict: Option<&'a Verdict>,
    /// Now.
    pub(crate) now: Timestamp,
}

/// The status of a pod that is not taken in: no containers, because none was ever looked at.
pub(crate) fn rejected(pod: &Pod, verdict: &Verdict, now: Timestamp) -> PodStatus {
    let old = pod.status.clone().unwrap_or_default();
    PodStatus {
        phase: Some(Phase::Failed.as_str().to_owned()),
        reason: Some(verdict.reason.clone()),
        message: Some(verdict.message.clone()),
        start_time: old.start_time.clone().or(Some(Time(now))),
        observed_generation: pod.metadata.generation,
        ..old
    }
}

/// The status that the pod should have.
pub(crate) fn build(facts: &Facts<'_>) -> PodStatus {
    let default = PodSpec::default();
    let spec = facts.pod.spec.as_ref().unwrap_or(&default);
    let old = facts.pod.status.clone().unwrap_or_default();

    let inits = spec.init_containers.as_deref().unwrap_or_default();
    let mut inits = container_statuses(facts, spec, inits, Kind::Init, &old);
    let mut mains = container_statuses(facts, spec, &spec.containers, Kind::Main, &old);
    if facts.ended {
        ends::lose(spec, &mut inits, &mut mains);
    }
    let ephemerals = container_statuses(facts, spec, &ephemeral::all(spec), Kind::Ephemeral, &old);
    let mut phase = phase(facts, spec, &inits, &mains);
    let (mut reason, mut message) = (None, None);
    if let Some(verdict) = facts.verdict {
        phase = Phase::Failed;
        (reason, message) = (Some(verdict.reason.clone()), Some(verdict.message.clone()));
    }
    // Terminal phases are final.
    match old.phase.as_deref() {
        Some("Succeeded") => phase = Phase::Succeeded,
        Some("Failed") => phase = Phase::Failed,
        _ => {}
    }
    let outcome = phase;
    let runs = facts.seen.containers.iter().any(observed::Container::is_running);
    if runs && phase.is_terminal() && !is_terminal(Some(&old)) {
        // A terminal phase gives the pod's resources to others. Until then all that shows is that it is not ready any more.
        phase = if old.phase.as_deref() == Some("Running") { Phase::Running } else { Phase::Pending };
        (reason, message) = (None, None);
    }
    if old.phase.as_deref() == Some(phase.as_str()) && reason.is_none() {
        (reason, message) = (old.reason.clone(), old.message.clone());
    }

    let (pod_ip, pod_ips) = addresses(facts, spec, &old);
    let mut status = PodStatus {
        phase: Some(phase.as_str().to_owned()),
        reason,
        message,
        host_ip: facts.host_ips.first().map(IpAddr::to_string),
        host_ips: Some(facts.host_ips.iter().map(|ip| HostIP { ip: ip.to_string() }).collect()),
        pod_ip,
        pod_ips,
        qos_class: old.qos_class.clone().or_else(|| Some(resources::qos(spec).as_str().to_owned())),
        start_time: old.start_time.clone().or(Some(Time(facts.now))),
        observed_generation: facts.pod.metadata.generation,
        init_container_statuses: (!inits.is_empty()).then_some(inits),
        container_statuses: Some(mains),
        ephemeral_container_statuses: (!ephemerals.is_empty()).then_some(ephemerals),
        // Others' fields stay.
        ..old.clone()
    };
    let over = facts.ended || (outcome.is_terminal() && !runs);
    status.conditions = Some(conditions::build(facts, spec, outcome, over, &status, &old));
    status
}

/// Whether a condition of this type is written here.
pub(crate) fn is_own_condition(kind: &str) -> bool {
    conditions::OWN.contains(&kind) || given::CONDITIONS.contains(&kind)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Pending,
    Running,
    Succeeded,
    Failed,
}

impl Phase {
    fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "Pending",
            Self::Running => "Running",
            Self::Succeeded => "Succeeded",
            Self::Failed => "Failed",
        }
    }

    fn is_terminal(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed)
    }
}

/// Whether a phase is one that a pod never leaves.
pub(crate) fn is_terminal(status: Option<&PodStatus>) -> bool {
    matches!(status.and_then(|status| status.phase.as_deref()), Some("Succeeded" | "Failed"))
}

fn is_running(status: &ContainerStatus) -> bool {
    status.state.as_ref().is_some_and(|state| state.running.is_some())
}

/// The status of a container of the spec.
fn status_of<'a>(statuses: &'a [ContainerStatus], container: &Container) -> Option<&'a ContainerStatus> {
    statuses.iter().find(|status| status.name == container.name)
}

/// Whether a container has ever run.
fn has_run(status: &ContainerStatus) -> bool {
    is_running(status)
        || ended_in(status.state.as_ref()).is_some()
        || ended_in(status.last_state.as_ref()).is_some()
}

/// As `getPhase` of a kubelet.
fn phase(facts: &Facts<'_>, spec: &PodSpec, inits: &[ContainerStatus], mains: &[ContainerStatus]) -> Phase {
    let ended = facts.ended;
    let (mut pending_init, mut pending_sidecar) = (false, false);
    let (mut running, mut waiting, mut stopped, mut restarting, mut succeeded) = (0, 0, 0, 0, 0);
    for container in spec.init_containers.iter().flatten() {
        let status = status_of(inits, container);
        if is_sidecar(container) {
            // One that has ended does not count: it will be back, or is not wanted any more.
            match status {
                Some(status) if is_running(status) => {
                    running += 1;
                    pending_sidecar |= status.started != Some(true);
                }
                Some(status) if last_exit(status).is_some() => {}
                _ => {
                    waiting += 1;
                    pending_sidecar = true;
                }
            }
            continue;
        }
        match status.and_then(last_exit) {
            Some(exit) if exit.exit_code != 0 => {
                if !lifecycle::restarts(spec, container, true, exit.exit_code) {
                    return Phase::Failed;
                }
            }
            Some(_) => {}
            None => pending_init = true,
        }
    }
    let mut main_waits = false;
    for container in &spec.containers {
        let status = status_of(mains, container);
        match status.map(|status| (is_running(status), last_exit(status))) {
            Some((true, _)) => running += 1,
            Some((false, Some(exit))) => {
                stopped += 1;
                succeeded += usize::from(exit.exit_code == 0);
                let restarts = lifecycle::restarts(spec, container, false, exit.exit_code);
                restarting += usize::from(restarts || returns(facts, container));
            }
            _ => {
                waiting += 1;
                main_waits = true;
            }
        }
    }
    // Once its containers have run, a pod is not pending again because a sidecar is restarted.
    let pending_init = pending_init || (pending_sidecar && !mains.iter().any(has_run));
    let outcome = if stopped == succeeded { Phase::Succeeded } else { Phase::Failed };
    match () {
        // Nothing will run that has not: there is no way left to succeed.
        () if ended && (pending_init || main_waits || stopped == 0) => Phase::Failed,
        () if ended => outcome,
        () if pending_init || waiting > 0 => Phase::Pending,
        () if running > 0 || restarting > 0 => Phase::Running,
        () if stopped > 0 => outcome,
        () => Phase::Pending,
    }
}

/// Whether a container comes back whatever its exit code: we have ended it for that, or its next run was made already.
fn returns(facts: &Facts<'_>, container: &Container) -> bool {
    let newest = facts.seen.container(&container.name);
    newest.is_some_and(|newest| newest.state == State::Created || facts.loops.returns(newest))
}

fn addresses(facts: &Facts<'_>, spec: &PodSpec, old: &PodStatus) -> (Option<String>, Option<Vec<PodIP>>) {
    let own: Vec<IpAddr> = if spec.host_network.unwrap_or(false) {
        facts.host_ips.to_vec()
    } else {
        facts.seen.sandbox().filter(|sandbox| sandbox.ready).map(|s| s.ips.clone()).unwrap_or_default()
    };
    if own.is_empty() {
        // A pod that has ended keeps the address it had.
        return (old.pod_ip.clone(), old.pod_ips.clone());
    }
    let sorted = primary_first(&own, facts.host_ips);
    let ips = sorted.iter().map(|ip| PodIP { ip: ip.to_string() }).collect();
    (sorted.first().map(IpAddr::to_string), Some(ips))
}

/// One address of each family at most, the machine's own family first.
pub(crate) fn primary_first(ips: &[IpAddr], host_ips: &[IpAddr]) -> Vec<IpAddr> {
    let v6_first = host_ips.first().is_some_and(IpAddr::is_ipv6);
    let of = |v6: bool| ips.iter().find(|ip| ip.is_ipv6() == v6).copied();
    [of(v6_first), of(!v6_first)].into_iter().flatten().collect()
}

/// Which list of the spec a container is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Init,
    Main,
    Ephemeral,
}

fn container_statuses(
    facts: &Facts<'_>,
    spec: &PodSpec,
    containers: &[Container],
    kind: Kind,
    old: &PodStatus,
) -> Vec<ContainerStatus> {
    let mut statuses: Vec<ContainerStatus> = containers
        .iter()
        .map(|container| {
            let new = container_status(facts, spec, container, kind, old);
            match old_status(old, &container.name) {
                Some(old) if kind == Kind::Init && may_not_leave(spec, container, old, &new) => old.clone(),
                Some(old) => as_told(new, old),
                None => new,
            }
        })
        .map(|status| ends::with_short_messages(status, spec))
        .collect();
    if kind != Kind::Init {
        statuses.sort_by(|a, b| a.name.cmp(&b.name));
    }
    statuses
}

fn container_status(
    facts: &Facts<'_>,
    spec: &PodSpec,
    container: &Container,
    kind: Kind,
    old: &PodStatus,
) -> ContainerStatus {
    let is_init = kind == Kind::Init;
    let mut seen = facts.seen.containers.iter().filter(|seen| seen.name == container.name);
    let newest = seen.next();
    let mut status = ContainerStatus {
        name: container.name.clone(),
        image: container.image.clone().unwrap_or_default(),
        state: Some(waiting(default_reason(spec), "")),
        last_state: Some(ContainerState::default()),
        volume_mounts: volume_mounts(container, facts.deep_read_only),
        ..Default::default()
    };
    if let Some(newest) = newest {
        status.restart_count = i32::try_from(newest.attempt).unwrap_or(i32::MAX);
        status.container_id = (!newest.id.is_empty()).then(|| format!("{}://{}", facts.scheme, newest.id));
        if !newest.image.is_empty() {
            status.image.clone_from(&newest.image);
        }
        status.image_id.clone_from(&newest.image_id);
        status.state = Some(state(newest, facts.scheme));
        status.allocated_resources =
            container.resources.as_ref().and_then(|resources| resources.requests.clone());
        status.resources =
            Some(given::resources(container, newest, facts.memory_requests.get(&container.name)));
        status.user = newest.user.as_ref().map(user);
        let previous = seen.next();
        let is_last = previous.is_some_and(|previous| previous.attempt + 1 == newest.attempt);
        // If its predecessor was removed, what that left is in the last status alone.
        let told = old_status(old, &container.name).filter(|_| !is_last);
        let told = told.and_then(|old| end_before(old, status.restart_count));
        if let Some(state) = told.or_else(|| previous.map(|previous| state(previous, facts.scheme))) {
            status.last_state = Some(state);
        }
    }
    let code = newest.and_then(observed::Container::exit).map(|exit| exit.code);
    let returns = code.is_some() && newest.is_some_and(|newest| facts.loops.returns(newest));
    let will_run = newest.is_none_or(|newest| !newest.is_running())
        && code.is_none_or(|code| lifecycle::restarts(spec, container, is_init, code))
        && !(is_init && code == Some(0) && !is_sidecar(container));
    // An end that the policy takes for the last one, the API server would not let it leave.
    let again = Waiting { reason: "ContainerCreating".to_owned(), message: String::new() };
    let why =
        facts.waiting.get(&container.name).filter(|_| will_run || returns).or(returns.then_some(&again));
    if !facts.ended
        && let Some(why) = why
    {
        if ended_in(status.state.as_ref()).is_some() {
            status.last_state = status.state.take();
        }
        status.state = Some(waiting(&why.reason, &why.message));
    }
    if kind == Kind::Ephemeral {
        // Nobody asks how they are.
        return status;
    }
    let running = is_running(&status);
    let id = newest.map(|newest| newest.id.as_str()).unwrap_or_default();
    let says = |ask: fn(&Healths, &Container, &str) -> bool| {
        running && facts.healths.is_none_or(|healths| ask(healths, container, id))
    };
    status.started = Some(says(Healths::has_started));
    status.ready = if is_init && !is_sidecar(container) {
        ended_in(status.state.as_ref()).is_some_and(|exit| exit.exit_code == 0)
    } else {
        says(Healths::is_ready)
    };
    status
}

/// Whether the API server would refuse the whole status for this init container: it has ended and its policy doesn't start it again. A
/// sandbox made anew runs it again all the same; until that has ended, the end that is known stands (a kubelet then writes no status).
fn may_not_leave(
    spec: &PodSpec,
    container: &Container,
    old: &ContainerStatus,
    new: &ContainerStatus,
) -> bool {
    ended_in(new.state.as_ref()).is_none()
        && ended_in(old.state.as_ref())
            .is_some_and(|exit| !lifecycle::restarts(spec, container, false, exit.exit_code))
}

fn old_status<'a>(old: &'a PodStatus, name: &str) -> Option<&'a ContainerStatus> {
    let lists = [&old.init_container_statuses, &old.container_statuses, &old.ephemeral_container_statuses];
    lists.into_iter().flatten().flatten().find(|status| status.name == name)
}

fn default_reason(spec: &PodSpec) -> &'static str {
    match &spec.init_containers {
        Some(inits) if !inits.is_empty() => "PodInitializing",
        _ => "ContainerCreating",
    }
}

fn waiting(reason: &str, message: &str) -> ContainerState {
    let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    ContainerState {
        waiting: Some(ContainerStateWaiting { reason: some(reason), message: some(message) }),
        ..Default::default()
    }
}

fn state(container: &observed::Container, scheme: &str) -> ContainerState {
    let some = |text: &String| (!text.is_empty()).then(|| text.clone());
    match &container.state {
        State::Running { started_at } => ContainerState {
            running: Some(ContainerStateRunning { started_at: Some(Time(*started_at)) }),
            ..Default::default()
        },
        State::Exited(exit) => ContainerState {
            terminated: Some(ContainerStateTerminated {
                exit_code: exit.code,
                reason: some(&exit.reason),
                message: some(&exit.message),
                // A kubelet writes the epoch for one that never ran.
                started_at: exit.started_at.or(exit.finished_at.map(|_| Timestamp::UNIX_EPOCH)).map(Time),
                finished_at: exit.finished_at.map(Time),
                container_id: (!container.id.is_empty()).then(|| format!("{scheme}://{}", container.id)),
                signal: None,
            }),
            ..Default::default()
        },
        State::Created | State::Unknown => waiting("", ""),
    }
}

fn user(user: &observed::User) -> ContainerUser {
    ContainerUser {
        linux: Some(LinuxContainerUser {
            uid: user.uid,
            gid: user.gid,
            supplemental_groups: Some(user.supplemental_groups.clone()).filter(|groups| !groups.is_empty()),
        }),
    }
}

fn volume_mounts(container: &Container, deep_read_only: bool) -> Option<Vec<VolumeMountStatus>> {
    let mounts = container.volume_mounts.as_ref().filter(|mounts| !mounts.is_empty())?;
    let status = |mount: &k8s_openapi::api::core::v1::VolumeMount| {
        let read_only = mount.read_only.unwrap_or(false);
        let deep = matches!(spec::recursive_read_only(mount, deep_read_only), Ok(true));
        VolumeMountStatus {
            name: mount.name.clone(),
            mount_path: mount.mount_path.clone(),
            read_only: mount.read_only,
            recursive_read_only: read_only.then(|| if deep { "Enabled" } else { "Disabled" }.to_owned()),
        }
    };
    Some(mounts.iter().map(status).collect())
}

#[cfg(test)]
mod tests;
