//! What a status says of resources: what containers have, and how a resize stands. Pure.

use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{Container, PodCondition, PodStatus, ResourceRequirements},
    apimachinery::pkg::{api::resource::Quantity, apis::meta::v1::Time},
};

use crate::{
    pod::resources::{Amounts, milli, of_bytes, of_milli, whole},
    provider::{observed, runtime::CPU_PERIOD_US},
};

/// Conditions that are there only while there is something to say.
pub(super) const CONDITIONS: [&str; 2] = ["PodResizePending", "PodResizeInProgress"];

/// Below these, the kernel's numbers don't tell one amount from another.
const LEAST_CPU_LIMIT_MILLI: i64 = 10;
const LEAST_CPU_REQUEST_MILLI: i64 = 2;

/// How a resize stands.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Resize {
    /// It was not granted (yet).
    pub(crate) pending: Option<Note>,
    /// It was granted and is not in force (yet).
    pub(crate) in_progress: Option<Note>,
}

/// Why it stands so.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Note {
    /// A kubelet's word for it.
    pub(crate) reason: Option<String>,
    /// For people.
    pub(crate) message: Option<String>,
    /// Of the pod that asked for it.
    pub(crate) generation: i64,
}

impl Resize {
    /// As a status says it.
    pub(crate) fn of(status: Option<&PodStatus>) -> Self {
        let note = |kind: &str| {
            let mut conditions = status?.conditions.iter().flatten();
            let condition = conditions.find(|condition| condition.type_ == kind)?;
            Some(Note {
                reason: condition.reason.clone(),
                message: condition.message.clone(),
                generation: condition.observed_generation.unwrap_or(0),
            })
        };
        let [pending, in_progress] = CONDITIONS;
        Self { pending: note(pending), in_progress: note(in_progress) }
    }

    pub(super) fn conditions(&self, old: &PodStatus, now: Timestamp) -> Vec<PodCondition> {
        let condition = |(kind, note): (&str, &Note)| {
            let before = old.conditions.iter().flatten().find(|condition| condition.type_ == kind);
            let unchanged = before.filter(|before| before.reason == note.reason);
            PodCondition {
                type_: kind.to_owned(),
                status: "True".to_owned(),
                reason: note.reason.clone(),
                message: note.message.clone(),
                observed_generation: Some(note.generation),
                last_probe_time: None,
                last_transition_time: unchanged
                    .and_then(|before| before.last_transition_time.clone())
                    .or(Some(Time(now))),
            }
        };
        let notes = CONDITIONS.into_iter().zip([&self.pending, &self.in_progress]);
        notes.filter_map(|(kind, note)| Some((kind, note.as_ref()?))).map(condition).collect()
    }
}

/// What a container has: what it was given, with what is really in force while it runs.
pub(super) fn resources(
    given: &Container,
    seen: &observed::Container,
    memory_request: Option<&Quantity>,
) -> ResourceRequirements {
    let mut resources = given.resources.clone().unwrap_or_default();
    let Some(real) = seen.resources.filter(|_| seen.is_running()) else { return resources };
    if let Some(limits) = &mut resources.limits {
        if let Some(quota) = real.cpu_quota_us {
            cpu(limits, quota.saturating_mul(1000) / CPU_PERIOD_US, LEAST_CPU_LIMIT_MILLI);
        }
        if let Some(bytes) = real.memory_bytes
            && limits.get("memory").and_then(whole) != Some(bytes)
        {
            limits.insert("memory".to_owned(), of_bytes(bytes));
        }
    }
    if let Some(requests) = &mut resources.requests {
        if let Some(memory) = memory_request
            && requests.get("memory").and_then(whole) != whole(memory)
        {
            requests.insert("memory".to_owned(), memory.clone());
        }
        let shares = i64::try_from(real.cpu_shares).unwrap_or(i64::MAX);
        if shares >= 2 {
            let thousandths = shares.saturating_mul(1000);
            cpu(requests, thousandths / 1024 + i64::from(thousandths % 1024 != 0), LEAST_CPU_REQUEST_MILLI);
        }
    }
    resources
}

fn cpu(amounts: &mut Amounts, real: i64, least: i64) {
    let given = amounts.get("cpu").and_then(milli);
    if (real > least || given.unwrap_or(0) > least) && given != Some(real) {
        let quantity: Quantity = of_milli(real);
        amounts.insert("cpu".to_owned(), quantity);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::provider::{observed::State, runtime::Resources};

    fn shown(given: &serde_json::Value, real: Option<Resources>) -> serde_json::Value {
        let container = serde_json::from_value(json!({ "name": "c", "resources": given })).unwrap();
        let seen = observed::Container {
            id: "1".to_owned(),
            sandbox_id: "s".to_owned(),
            name: "c".to_owned(),
            attempt: 0,
            state: State::Running { started_at: Timestamp::UNIX_EPOCH },
            image: String::new(),
            image_id: String::new(),
            asked_image: None,
            user: None,
            resources: real,
        };
        serde_json::to_value(resources(&container, &seen, Some(&Quantity("20Mi".to_owned())))).unwrap()
    }

    #[test]
    fn what_is_in_force_shows() {
        let both = |cpu: &str, memory: &str| json!({ "limits": { "cpu": cpu, "memory": memory }, "requests": { "cpu": cpu, "memory": memory } });
        let real = Resources {
            cpu_shares: 20,
            cpu_quota_us: Some(2000),
            memory_bytes: Some(20 << 20),
            oom_score_adj: 0,
        };
        assert_eq!(shown(&both("20m", "20Mi"), Some(real)), both("20m", "20Mi"));
        assert_eq!(shown(&both("20m", "20Mi"), None), both("20m", "20Mi"));
        let lagging = json!({ "limits": { "cpu": "20m", "memory": "20Mi" }, "requests": { "cpu": "20m", "memory": "20Mi" } });
        assert_eq!(shown(&both("500m", "30Mi"), Some(real)), lagging);
        // Less than the kernel can tell apart.
        let least =
            Resources { cpu_shares: 2, cpu_quota_us: Some(1000), memory_bytes: None, oom_score_adj: 0 };
        let small = json!({ "limits": { "cpu": "1m" }, "requests": { "cpu": "1m", "memory": "20Mi" } });
        assert_eq!(shown(&small, Some(least)), small);
        assert_eq!(shown(&json!({}), Some(real)), json!({}));
    }

    #[test]
    fn conditions_keep_their_time_until_their_reason_is_another() {
        let note = |reason: &str, message: &str| Note {
            reason: Some(reason.to_owned()),
            message: Some(message.to_owned()),
            generation: 2,
        };
        let resize = Resize { pending: Some(note("Deferred", "a")), in_progress: None };
        let first = resize.conditions(&PodStatus::default(), Timestamp::UNIX_EPOCH);
        let status = PodStatus { conditions: Some(first.clone()), ..Default::default() };
        assert_eq!(Resize::of(Some(&status)), resize);
        let later = Timestamp::from_second(9).unwrap();
        assert_eq!(resize.conditions(&status, later), first);
        for (reason, expected) in [("Deferred", Timestamp::UNIX_EPOCH), ("Infeasible", later)] {
            let other = Resize { pending: Some(note(reason, "b")), in_progress: None };
            let other = other.conditions(&status, later).remove(0);
            assert_eq!(
                (other.message.as_deref(), other.last_transition_time),
                (Some("b"), Some(Time(expected)))
            );
        }
    }
}
