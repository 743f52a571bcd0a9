//! The conditions that a kubelet owns, beside those that it leaves to others.

use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{ContainerStatus, PodCondition, PodSpec, PodStatus},
    apimachinery::pkg::apis::meta::v1::Time,
};

use super::{Facts, Phase, ended_in, is_running};

/// What is written here; everything else in the list is somebody else's.
pub(super) const OWN: [&str; 5] =
    ["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled"];

struct Verdict {
    holds: bool,
    reason: Option<&'static str>,
    message: Option<String>,
}

const HOLDS: Verdict = Verdict { holds: true, reason: None, message: None };

pub(super) fn build(
    facts: &Facts<'_>,
    spec: &PodSpec,
    phase: Phase,
    status: &PodStatus,
    old: &PodStatus,
) -> Vec<PodCondition> {
    let inits = status.init_container_statuses.as_deref().unwrap_or_default();
    let mains = status.container_statuses.as_deref().unwrap_or_default();
    let foreign =
        old.conditions.iter().flatten().filter(|condition| !OWN.contains(&condition.type_.as_str())).cloned();
    let mut all: Vec<PodCondition> = foreign.collect();

    let terminal = matches!(phase, Phase::Succeeded | Phase::Failed);
    let network = facts.seen.sandbox().is_some_and(|sandbox| sandbox.ready);
    let can_start = Verdict { holds: network && !terminal && !facts.ended, reason: None, message: None };
    let containers = containers_ready(phase, mains);
    let ready = if containers.holds {
        gates(spec, &all)
    } else {
        Verdict { holds: false, reason: containers.reason, message: containers.message.clone() }
    };
    let own = [can_start, initialized(phase, inits, mains), ready, containers, HOLDS];
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

fn names(statuses: &[ContainerStatus], test: fn(&ContainerStatus) -> bool) -> Vec<&str> {
    statuses.iter().filter(|status| test(status)).map(|status| status.name.as_str()).collect()
}

fn containers_ready(phase: Phase, mains: &[ContainerStatus]) -> Verdict {
    let reason = match phase {
        Phase::Succeeded => "PodCompleted",
        Phase::Failed => "PodFailed",
        Phase::Pending | Phase::Running => {
            let unready = names(mains, |status| !status.ready);
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

fn initialized(phase: Phase, inits: &[ContainerStatus], mains: &[ContainerStatus]) -> Verdict {
    if phase == Phase::Succeeded {
        return Verdict { holds: true, reason: Some("PodCompleted"), message: None };
    }
    let began = |status: &ContainerStatus| {
        is_running(status)
            || ended_in(status.state.as_ref()).is_some()
            || ended_in(status.last_state.as_ref()).is_some()
    };
    let incomplete = names(inits, |status| !status.ready);
    if incomplete.is_empty() || mains.iter().any(began) {
        return HOLDS;
    }
    let message = format!("containers with incomplete status: [{}]", incomplete.join(" "));
    Verdict { holds: false, reason: Some("ContainersNotInitialized"), message: Some(message) }
}
