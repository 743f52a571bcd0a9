//! The conditions that a kubelet owns, beside those that it leaves to others.

use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{Container, ContainerStatus, PodCondition, PodSpec, PodStatus},
    apimachinery::pkg::apis::meta::v1::Time,
};

use super::{Facts, Phase, has_run, status_of};
use crate::pod::probe::is_sidecar;

/// What is written here; everything else in the list is somebody else's.
pub(super) const OWN: [&str; 5] =
    ["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled"];

struct Verdict {
    holds: bool,
    reason: Option<&'static str>,
    message: Option<String>,
}

const HOLDS: Verdict = Verdict { holds: true, reason: None, message: None };

/// `phase`: what the pod comes to, which is not told yet while something runs. `over`: nothing does, nor will.
pub(super) fn build(
    facts: &Facts<'_>,
    spec: &PodSpec,
    phase: Phase,
    over: bool,
    status: &PodStatus,
    old: &PodStatus,
) -> Vec<PodCondition> {
    let inits = status.init_container_statuses.as_deref().unwrap_or_default();
    let mains = status.container_statuses.as_deref().unwrap_or_default();
    let foreign = old.conditions.iter().flatten().filter(|c| !super::is_own_condition(&c.type_)).cloned();
    let mut all: Vec<PodCondition> = foreign.collect();
    if !over {
        all.extend(facts.resize.conditions(old, facts.now));
    }
    let network = facts.seen.sandbox().is_some_and(|sandbox| sandbox.ready);
    let can_start = Verdict { holds: network && !over, reason: None, message: None };
    let containers = containers_ready(spec, phase, inits, mains);
    let ready = if containers.holds {
        gates(spec, &all)
    } else {
        Verdict { holds: false, reason: containers.reason, message: containers.message.clone() }
    };
    let own = [can_start, initialized(spec, phase, inits, mains), ready, containers, HOLDS];
    for (kind, verdict) in OWN.into_iter().zip(own) {
        all.push(condition(kind, verdict, facts.pod.metadata.generation, old, facts.now));
    }
    all
}

fn condition(
    kind: &str,
    verdict: Verdict,
    generation: Option<i64>,
    old: &PodStatus,
    now: Timestamp,
) -> PodCondition {
    let status = if verdict.holds { "True" } else { "False" };
    let before = old.conditions.iter().flatten().find(|condition| condition.type_ == kind);
    let unchanged = before.filter(|before| before.status == status);
    PodCondition {
        type_: kind.to_owned(),
        status: status.to_owned(),
        reason: verdict.reason.map(str::to_owned),
        message: verdict.message,
        observed_generation: generation,
        last_probe_time: None,
        last_transition_time: unchanged.and_then(|c| c.last_transition_time.clone()).or(Some(Time(now))),
    }
}

/// Names of the containers that are not so, in the order of the spec.
fn without<'a>(
    containers: impl Iterator<Item = &'a Container>,
    statuses: &[ContainerStatus],
    test: impl Fn(&Container, &ContainerStatus) -> bool,
) -> Vec<&'a str> {
    containers
        .filter(|container| !status_of(statuses, container).is_some_and(|status| test(container, status)))
        .map(|container| container.name.as_str())
        .collect()
}

fn containers_ready(
    spec: &PodSpec,
    phase: Phase,
    inits: &[ContainerStatus],
    mains: &[ContainerStatus],
) -> Verdict {
    let reason = match phase {
        Phase::Succeeded => "PodCompleted",
        Phase::Failed => "PodFailed",
        Phase::Pending | Phase::Running => {
            let sidecars = spec.init_containers.iter().flatten().filter(|init| is_sidecar(init));
            let ready = |_: &Container, status: &ContainerStatus| status.ready;
            let mut unready = without(sidecars, inits, ready);
            unready.extend(without(spec.containers.iter(), mains, ready));
            if unready.is_empty() {
                return HOLDS;
            }
            let message = format!("containers with unready status: [{}]", unready.join(" "));
            return Verdict { holds: false, reason: Some("ContainersNotReady"), message: Some(message) };
        }
    };
    Verdict { holds: false, reason: Some(reason), message: None }
}

fn gates(spec: &PodSpec, conditions: &[PodCondition]) -> Verdict {
    let unready: Vec<String> = spec
        .readiness_gates
        .iter()
        .flatten()
        .filter_map(|gate| {
            let kind = &gate.condition_type;
            match conditions.iter().find(|condition| &condition.type_ == kind) {
                None => {
                    Some(format!("corresponding condition of pod readiness gate {kind:?} does not exist."))
                }
                Some(condition) if condition.status != "True" => Some(format!(
                    "the status of pod readiness gate {kind:?} is not \"True\", but {}",
                    condition.status
                )),
                Some(_) => None,
            }
        })
        .collect();
    if unready.is_empty() {
        return HOLDS;
    }
    Verdict { holds: false, reason: Some("ReadinessGatesNotReady"), message: Some(unready.join(", ")) }
}

fn initialized(
    spec: &PodSpec,
    phase: Phase,
    inits: &[ContainerStatus],
    mains: &[ContainerStatus],
) -> Verdict {
    if phase == Phase::Succeeded {
        return Verdict { holds: true, reason: Some("PodCompleted"), message: None };
    }
    let incomplete = without(spec.init_containers.iter().flatten(), inits, |container, status| {
        if is_sidecar(container) { status.started == Some(true) } else { status.ready }
    });
    if incomplete.is_empty() || mains.iter().any(has_run) {
        return HOLDS;
    }
    let message = format!("containers with incomplete status: [{}]", incomplete.join(" "));
    Verdict { holds: false, reason: Some("ContainersNotInitialized"), message: Some(message) }
}
