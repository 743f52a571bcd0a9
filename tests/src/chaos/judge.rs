//! What may not be, one pod at a time. Pure: from what a pod's containers wrote, what the API server said and which faults there were.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::ContainerStatus;

use super::history::{Attempt, End, Happened, Story, Wrote};

/// Around a fault of the runtime, seconds in which the end of a container may be lost to it.
const LOST: f64 = 8.0;

/// Everything that is known of one pod.
pub struct Case<'a> {
    /// Its UID.
    pub uid: &'a str,
    /// What the API server said.
    pub story: &'a Story,
    /// What its containers wrote.
    pub wrote: &'a Wrote,
    /// All faults.
    pub faults: &'a [Happened],
}

impl Case<'_> {
    /// What is wrong with it.
    pub fn wrong(&self) -> Vec<String> {
        let mut wrong = Vec::new();
        self.starts(&mut wrong);
        self.codes(&mut wrong);
        self.phase(&mut wrong);
        wrong
    }

    fn policy(&self) -> &str {
        let spec = self.story.pod.spec.as_ref();
        spec.and_then(|spec| spec.restart_policy.as_deref()).unwrap_or("Always")
    }

    fn statuses(&self) -> impl Iterator<Item = &ContainerStatus> {
        let status = self.story.pod.status.as_ref();
        let inits = status.and_then(|status| status.init_container_statuses.as_ref()).into_iter().flatten();
        inits.chain(status.and_then(|status| status.container_statuses.as_ref()).into_iter().flatten())
    }

    fn restarts(&self, name: &str) -> Option<u32> {
        let status = self.statuses().find(|status| status.name == name)?;
        u32::try_from(status.restart_count).ok()
    }

    /// Whether one of the pod's processes was killed by us.
    fn hit(&self) -> bool {
        self.faults.iter().any(|fault| fault.pod.as_deref() == Some(self.uid))
    }

    /// Whether the runtime was away at about that time.
    fn runtime_away(&self, at: f64) -> bool {
        self.faults.iter().any(|fault| fault.runtime && fault.from - LOST < at && at < fault.to + LOST)
    }

    /// A code that stands for "nobody knows any more", where that may be.
    fn may_be_lost(&self, end: &End, at: f64) -> bool {
        let unknown = end.code == 255 || matches!(end.reason.as_str(), "Unknown" | "ContainerStatusUnknown");
        unknown && (self.runtime_away(at) || self.hit())
    }

    fn ended(&self) -> BTreeMap<Attempt, (f64, i32)> {
        self.wrote
            .ends
            .iter()
            .map(|(name, attempt, at, code)| ((name.clone(), *attempt), (*at, *code)))
            .collect()
    }

    fn starts(&self, wrong: &mut Vec<String>) {
        let (mut seen, ends) = (BTreeMap::<Attempt, f64>::new(), self.ended());
        for (name, attempt, at) in &self.wrote.starts {
            let main = name.starts_with('c');
            if let Some(before) = seen.insert((name.clone(), *attempt), *at) {
                wrong.push(format!("{name} was started twice as attempt {attempt}: at {before} and {at}"));
            }
            if main && self.policy() == "Never" && *attempt > 0 {
                wrong.push(format!("{name} was started again at {at}, although it never shall be"));
            }
            // What the API server still has has to count this start.
            if self.story.gone.is_none() && self.restarts(name).is_none_or(|restarts| restarts < *attempt) {
                let says = self.restarts(name);
                wrong.push(format!(
                    "{name} was started as attempt {attempt} at {at}, and the restart count is {says:?}"
                ));
            }
            let Some(before) = attempt.checked_sub(1) else { continue };
            if let Some((end, code)) = ends.get(&(name.clone(), before)) {
                if end > at {
                    wrong.push(format!(
                        "{name} ran twice at once: attempt {attempt} began at {at}, {before} ended at {end}"
                    ));
                }
                let told = self.story.told.get(&(name.clone(), before));
                let lost = told.is_some_and(|told| told.iter().any(|told| told.code != 0));
                if main && self.policy() == "OnFailure" && *code == 0 && !lost {
                    wrong.push(format!(
                        "{name} was started again at {at} although it had ended well at {end}"
                    ));
                }
            }
        }
    }

    fn codes(&self, wrong: &mut Vec<String>) {
        for ((name, attempt), (at, code)) in self.ended() {
            let Some(told) = self.story.told.get(&(name.clone(), attempt)) else {
                self.unheard(&name, attempt, at, code, wrong);
                continue;
            };
            for end in told {
                // Between the line and the end a signal has its chance.
                let killed =
                    end.code == 137 && (self.hit() || self.story.pod.metadata.deletion_timestamp.is_some());
                if end.code != code && !killed && !self.may_be_lost(end, at) {
                    wrong.push(format!(
                        "{name} attempt {attempt} ended with {code} at {at}, and was told as {} ({})",
                        end.code, end.reason
                    ));
                }
            }
        }
        for ((name, attempt), told) in &self.story.told {
            if told.len() > 1 {
                wrong.push(format!(
                    "{name} attempt {attempt} was told to have ended in several ways: {told:?}"
                ));
            }
        }
    }

    /// An end that was never told: one of the last two has to be, as long as there is an object.
    fn unheard(&self, name: &str, attempt: u32, at: f64, code: i32, wrong: &mut Vec<String>) {
        let newest = self.restarts(name).unwrap_or(0);
        let excused = match self.story.gone {
            Some(_) => self.story.forced || self.story.unseen || attempt != newest,
            None => attempt + 1 < newest || (self.story.gap && attempt < newest),
        };
        if !excused {
            wrong.push(format!("{name} attempt {attempt} ended with {code} at {at}, and nobody was told"));
        }
    }

    fn phase(&self, wrong: &mut Vec<String>) {
        let phase = self.story.pod.status.as_ref().and_then(|status| status.phase.as_deref());
        let ends = self.ended();
        let last = |name: &str| {
            ends.iter().filter(|((own, _), _)| own == name).map(|(_, (at, code))| (*at, *code)).next_back()
        };
        let spec = self.story.pod.spec.clone().unwrap_or_default();
        match phase {
            Some("Succeeded") => {
                for container in &spec.containers {
                    if !matches!(last(&container.name), Some((_, 0))) {
                        wrong.push(format!(
                            "it has succeeded, but {} has not: {:?}",
                            container.name,
                            last(&container.name)
                        ));
                    }
                }
            }
            Some("Failed") if self.policy() != "Always" => {
                let all_well =
                    spec.containers.iter().all(|container| matches!(last(&container.name), Some((_, 0))));
                let unknown = ends.iter().any(|(attempt, (at, _))| {
                    self.story
                        .told
                        .get(attempt)
                        .is_some_and(|told| told.iter().any(|end| self.may_be_lost(end, *at)))
                });
                let deleted = self.story.pod.metadata.deletion_timestamp.is_some();
                if all_well && !unknown && !self.hit() {
                    wrong.push("it has failed, but all of its containers ended well".to_owned());
                }
                let failed = ends.values().any(|(_, code)| *code != 0);
                let away =
                    self.faults.iter().any(|fault| fault.runtime && fault.to + LOST > self.story.since);
                if !all_well && !failed && !unknown && !self.hit() && !deleted && !away {
                    wrong.push("it has failed, and nothing in it has".to_owned());
                }
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    struct Given {
        story: Story,
        wrote: Wrote,
        faults: Vec<Happened>,
    }

    fn given(policy: &str, phase: &str, restarts: i32, code: i32) -> Given {
        let mut story = Story::default();
        let pod = json!({
            "metadata": { "name": "p", "uid": "u" },
            "spec": { "restartPolicy": policy, "containers": [{ "name": "c0" }] },
            "status": { "phase": phase, "containerStatuses": [{ "name": "c0", "image": "", "imageID": "", "ready": false,
                "restartCount": restarts, "state": { "terminated": { "exitCode": code, "reason": "Error" } } }] },
        });
        story.take(serde_json::from_value(pod).unwrap(), 1.0);
        let wrote =
            Wrote { starts: vec![("c0".to_owned(), 0, 1.0)], ends: vec![("c0".to_owned(), 0, 2.0, code)] };
        Given { story, wrote, faults: Vec::new() }
    }

    fn check(given: &Given, expected: &[&str]) {
        let found =
            Case { uid: "u", story: &given.story, wrote: &given.wrote, faults: &given.faults }.wrong();
        assert_eq!(found.len(), expected.len(), "{found:?}");
        for (found, expected) in found.iter().zip(expected) {
            assert!(found.contains(expected), "{found:?} instead of {expected:?}");
        }
    }

    #[test]
    fn what_went_well_is_not_blamed() {
        check(&given("Never", "Succeeded", 0, 0), &[]);
        check(&given("Never", "Failed", 0, 7), &[]);
    }

    #[test]
    fn second_starts_are_seen() {
        let mut twice = given("Never", "Succeeded", 0, 0);
        twice.wrote.starts.push(("c0".to_owned(), 0, 1.5));
        check(&twice, &["started twice as attempt 0"]);
        let mut again = given("Never", "Succeeded", 0, 0);
        again.wrote.starts.push(("c0".to_owned(), 1, 3.0));
        check(&again, &["although it never shall be", "the restart count is Some(0)"]);
        let mut at_once = given("Always", "Running", 1, 7);
        at_once.wrote.starts.push(("c0".to_owned(), 1, 1.5));
        at_once.story.told =
            [(("c0".to_owned(), 0), [End { code: 7, reason: "Error".to_owned() }].into())].into();
        check(&at_once, &["ran twice at once"]);
    }

    #[test]
    fn exit_codes_are_those_that_were_written_unless_the_runtime_lost_them() {
        let mut other = given("Never", "Failed", 0, 255);
        other.wrote.ends[0].3 = 7;
        check(&other, &["ended with 7 at 2, and was told as 255"]);
        let away = Happened { what: "Kill Runtime".to_owned(), from: 1.0, to: 3.0, runtime: true, pod: None };
        other.faults.push(away);
        check(&other, &[]);
        let mut unheard = given("Never", "Running", 0, 7);
        unheard.story.told.clear();
        check(&unheard, &["nobody was told"]);
        let mut missed = given("OnFailure", "Succeeded", 1, 0);
        missed.story.told.remove(&("c0".to_owned(), 0));
        missed.wrote.starts.push(("c0".to_owned(), 1, 3.0));
        missed.wrote.ends = vec![("c0".to_owned(), 0, 2.0, 7), ("c0".to_owned(), 1, 4.0, 0)];
        check(&missed, &["c0 attempt 0 ended with 7"]);
        missed.story.gap = true;
        check(&missed, &[]);
        unheard.story.gone = Some(5.0);
        unheard.story.forced = true;
        check(&unheard, &[]);
    }

    #[test]
    fn phases_say_what_containers_did() {
        let mut unrun = given("Never", "Succeeded", 0, 0);
        unrun.wrote = Wrote::default();
        check(&unrun, &["it has succeeded, but c0 has not"]);
        let mut well = given("Never", "Failed", 0, 0);
        check(&well, &["all of its containers ended well"]);
        well.faults.push(Happened {
            what: "Kill Container".to_owned(),
            from: 1.0,
            to: 1.0,
            runtime: false,
            pod: Some("u".to_owned()),
        });
        check(&well, &[]);
    }
}
