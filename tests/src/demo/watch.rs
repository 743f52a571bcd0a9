//! Follows the Job's pods from their creation to their end, and tells about it while it lasts.

use std::{
    collections::HashMap,
    io::{IsTerminal as _, Write as _},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use futures::TryStreamExt as _;
use k8s_openapi::api::{batch::v1::Job, core::v1::Pod};
use kube::{
    Api, Client, ResourceExt as _,
    runtime::{WatchStreamExt as _, watcher},
};

use super::report::Side;

/// When nothing has changed for so long, nothing will.
const STALLED: Duration = Duration::from_mins(3);

/// How long after the Job's end events of its pods may come.
const LAST_EVENTS: Duration = Duration::from_secs(10);

/// What was seen of one pod.
#[derive(Debug, Clone, Default, PartialEq)]
struct Seen {
    name: String,
    node: Option<String>,
    index: Option<usize>,
    running: bool,
    first_running_s: Option<f64>,
    succeeded_s: Option<f64>,
    /// Reason and message of a failure.
    failed: Option<String>,
}

/// Every pod that ever belonged to the Job, by its UID: one that was deleted or replaced is not forgotten.
#[derive(Debug, Clone, Default)]
pub struct Progress {
    pods: HashMap<String, Seen>,
}

impl Progress {
    /// Takes in a pod as the API server shows it `at_s` seconds after the Job's creation. Tells whether anything is new.
    pub fn observe(&mut self, pod: &Pod, at_s: f64) -> bool {
        let seen = self.pods.entry(pod.uid().unwrap_or_default()).or_default();
        let before = seen.clone();
        seen.name = pod.name_any();
        seen.node = pod.spec.as_ref().and_then(|spec| spec.node_name.clone());
        seen.index = pod
            .annotations()
            .get("batch.kubernetes.io/job-completion-index")
            .and_then(|index| index.parse().ok());
        let Some(status) = &pod.status else { return *seen != before };
        let containers =
            || status.container_statuses.iter().flatten().filter_map(|status| status.state.as_ref());
        seen.running = containers().any(|state| state.running.is_some());
        // A short container may have ended before anybody saw it run.
        if seen.running || containers().any(|state| state.terminated.is_some()) {
            seen.first_running_s.get_or_insert(at_s);
        }
        match status.phase.as_deref() {
            Some("Succeeded") => {
                seen.succeeded_s.get_or_insert(at_s);
            }
            Some("Failed") if seen.failed.is_none() => {
                let ended = containers().find_map(|state| state.terminated.as_ref());
                let code = ended.map(|ended| format!("exit code {}", ended.exit_code));
                let parts = [status.reason.clone(), status.message.clone(), code];
                seen.failed = Some(parts.into_iter().flatten().collect::<Vec<_>>().join(": "));
            }
            _ => {}
        }
        *seen != before
    }

    /// What was seen of the pods on one node.
    pub fn side(&self, node: &str) -> Side {
        let mut side = Side::default();
        for seen in self.pods.values().filter(|seen| seen.node.as_deref() == Some(node)) {
            side.pods += 1;
            side.running += usize::from(seen.running);
            side.done += usize::from(seen.succeeded_s.is_some());
            side.waiting += usize::from(seen.first_running_s.is_none());
            side.first_running_s = earliest(side.first_running_s, seen.first_running_s);
            side.last_done_s = latest(side.last_done_s, seen.succeeded_s);
        }
        side
    }

    /// Pods that no node has yet.
    pub fn unscheduled(&self) -> usize {
        self.pods.values().filter(|seen| seen.node.is_none()).count()
    }

    /// Seconds until the first container of all was seen running.
    pub fn first_running_s(&self) -> Option<f64> {
        self.pods.values().fold(None, |first, seen| earliest(first, seen.first_running_s))
    }

    /// Seconds until the last pod of all was seen to have succeeded.
    pub fn last_done_s(&self) -> Option<f64> {
        self.pods.values().fold(None, |last, seen| latest(last, seen.succeeded_s))
    }

    /// Indices from 0 to `count` - 1 that did not succeed exactly once, and pods that have none of these.
    pub fn faults(&self, count: usize) -> Vec<String> {
        let mut succeeded = vec![0_usize; count];
        let mut faults = Vec::new();
        for seen in self.pods.values() {
            match seen.index.filter(|index| *index < count) {
                Some(index) => succeeded[index] += usize::from(seen.succeeded_s.is_some()),
                None => faults.push(format!("pod {} has the index {:?}", seen.name, seen.index)),
            }
        }
        for (index, times) in succeeded.iter().enumerate().filter(|(_, times)| **times != 1) {
            faults.push(format!("index {index} succeeded {times} times"));
        }
        faults
    }

    /// Pods that failed, with their node and why. The Job makes others in their place.
    pub fn failures(&self) -> Vec<String> {
        let failed = self.pods.values().filter_map(|seen| {
            let node = seen.node.as_deref().unwrap_or("no node");
            Some(format!("pod {} on {node}: {}", seen.name, seen.failed.as_ref()?))
        });
        let mut failed: Vec<_> = failed.collect();
        failed.sort();
        failed
    }

    /// Name of a pod that succeeded on this node: the one with the lowest index.
    pub fn example(&self, node: &str) -> Option<&str> {
        self.pods
            .values()
            .filter(|seen| seen.node.as_deref() == Some(node) && seen.succeeded_s.is_some())
            .min_by_key(|seen| seen.index)
            .map(|seen| seen.name.as_str())
    }
}

fn earliest(one: Option<f64>, other: Option<f64>) -> Option<f64> {
    one.into_iter().chain(other).min_by(f64::total_cmp)
}

fn latest(one: Option<f64>, other: Option<f64>) -> Option<f64> {
    one.into_iter().chain(other).max_by(f64::total_cmp)
}

/// Creates the Job and follows it to its end. `sides` are the dedicated node's name and the virtual node's.
///
/// # Errors
/// When the Job can't be created or watched, fails, or stalls.
pub async fn follow(
    client: Client,
    namespace: &str,
    job: &Job,
    sides: [&str; 2],
) -> anyhow::Result<Progress> {
    let jobs: Api<Job> = Api::namespaced(client.clone(), namespace);
    let pods: Api<Pod> = Api::namespaced(client, namespace);
    let name = job.name_any();
    let selection = watcher::Config::default().labels(&format!("batch.kubernetes.io/job-name={name}"));
    let mut events = std::pin::pin!(watcher(pods, selection).default_backoff().touched_objects());

    let begin = Instant::now();
    jobs.create(&kube::api::PostParams::default(), job).await.context("can't create the Job")?;
    let mut progress = Progress::default();
    let mut line = Line::new();
    let mut tick = tokio::time::interval(Duration::from_millis(250));
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let (mut changed, mut asked) = (Instant::now(), Instant::now());
    let mut told_of_outage = false;
    loop {
        tokio::select! {
            event = events.try_next() => match event {
                Ok(Some(pod)) => {
                    told_of_outage = false;
                    if progress.observe(&pod, begin.elapsed().as_secs_f64()) {
                        changed = Instant::now();
                    }
                }
                Ok(None) => bail!("the watch of the Job's pods ended"),
                // The watch goes on by itself after an interruption.
                Err(error) => tell_outage(&mut told_of_outage, &error),
            },
            _ = tick.tick() => line.show(&progress, sides, begin.elapsed()),
        }
        if asked.elapsed() < Duration::from_millis(500) {
            continue;
        }
        asked = Instant::now();
        match ended(&jobs, &name).await {
            // The pods' last events may still be on their way; what is wrong then stays wrong.
            Ok(Some(Ok(())))
                if progress.faults(wanted(job)).is_empty() || changed.elapsed() > LAST_EVENTS =>
            {
                line.end(&progress, sides, begin.elapsed());
                return Ok(progress);
            }
            Ok(Some(Err(why))) => {
                line.end(&progress, sides, begin.elapsed());
                bail!("the Job failed: {why}; {}", progress.failures().join("; "));
            }
            Ok(_) => {}
            Err(error) => tell_outage(&mut told_of_outage, &error),
        }
        if changed.elapsed() > STALLED {
            line.end(&progress, sides, begin.elapsed());
            let unfinished = progress.faults(wanted(job)).len();
            bail!("nothing has happened for {} s, and {unfinished} pods are not done", STALLED.as_secs());
        }
    }
}

fn wanted(job: &Job) -> usize {
    job.spec
        .as_ref()
        .and_then(|spec| spec.completions)
        .and_then(|count| usize::try_from(count).ok())
        .unwrap_or(0)
}

/// Says that the API server doesn't answer, once an outage.
fn tell_outage(told: &mut bool, error: &dyn std::error::Error) {
    if !std::mem::replace(told, true) {
        eprintln!("\nthe API server doesn't answer, trying again: {error}");
    }
}

/// `Some` when the Job is over: complete, or failed and why.
async fn ended(jobs: &Api<Job>, name: &str) -> Result<Option<Result<(), String>>, kube::Error> {
    let status = jobs.get_status(name).await?.status.unwrap_or_default();
    let conditions = status.conditions.unwrap_or_default();
    Ok(conditions.iter().filter(|condition| condition.status == "True").find_map(|condition| match condition
        .type_
        .as_str()
    {
        "Complete" => Some(Ok(())),
        "Failed" => Some(Err(condition.message.clone().unwrap_or_default())),
        _ => None,
    }))
}

/// One line that is written over on a terminal, and a line every five seconds elsewhere.
struct Line {
    terminal: bool,
    last: Option<Instant>,
}

impl Line {
    fn new() -> Self {
        Self { terminal: std::io::stdout().is_terminal(), last: None }
    }

    fn show(&mut self, progress: &Progress, sides: [&str; 2], elapsed: Duration) {
        let every = if self.terminal { Duration::ZERO } else { Duration::from_secs(5) };
        if self.last.is_some_and(|last| last.elapsed() < every) {
            return;
        }
        self.last = Some(Instant::now());
        let text = text(progress, sides, elapsed);
        if self.terminal {
            // Cut at the terminal's edge: a wrapped line could not be written over.
            print!("\r\x1b[K\x1b[?7l{text}\x1b[?7h");
            let _ = std::io::stdout().flush();
        } else {
            println!("{text}");
        }
    }

    fn end(&mut self, progress: &Progress, sides: [&str; 2], elapsed: Duration) {
        let clear = if self.terminal { "\r\x1b[K" } else { "" };
        println!("{clear}{}", text(progress, sides, elapsed));
    }
}

fn text(progress: &Progress, sides: [&str; 2], elapsed: Duration) -> String {
    let [dedicated, elastic] = sides.map(|node| {
        let Side { waiting, running, done, .. } = progress.side(node);
        format!("{node} {waiting:3}/{running:3}/{done:3}")
    });
    let (seconds, unscheduled) = (elapsed.as_secs_f64(), progress.unscheduled());
    format!("  {seconds:5.1} s  starting/running/done: {dedicated}  {elastic}  no node yet {unscheduled:3}")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(uid: &str, index: usize, node: Option<&str>, phase: &str, state: &serde_json::Value) -> Pod {
        serde_json::from_value(json!({
            "metadata": {
                "name": format!("tiles-{index}-{uid}"), "uid": uid,
                "annotations": {"batch.kubernetes.io/job-completion-index": index.to_string()},
            },
            "spec": {"containers": [], "nodeName": node},
            "status": {"phase": phase, "containerStatuses": [
                {"name": "tile", "image": "", "imageID": "", "ready": false, "restartCount": 0, "state": state},
            ]},
        }))
        .unwrap()
    }

    #[test]
    fn a_pod_is_followed_from_no_node_to_its_end() {
        let mut progress = Progress::default();
        let (waiting, running) = (json!({"waiting": {}}), json!({"running": {}}));
        assert!(progress.observe(&pod("a", 0, None, "Pending", &waiting), 0.5));
        assert_eq!((progress.unscheduled(), progress.first_running_s()), (1, None));
        progress.observe(&pod("a", 0, Some("v"), "Running", &running), 1.5);
        assert_eq!(
            progress.side("v"),
            Side { pods: 1, running: 1, first_running_s: Some(1.5), ..Side::default() }
        );
        assert!(!progress.observe(&pod("a", 0, Some("v"), "Running", &running), 1.7));
        progress.observe(&pod("a", 0, Some("v"), "Succeeded", &json!({"terminated": {"exitCode": 0}})), 2.5);
        let side = progress.side("v");
        assert_eq!((side.running, side.done, side.last_done_s), (0, 1, Some(2.5)));
        assert_eq!(progress.example("v"), Some("tiles-0-a"));
        assert_eq!(progress.faults(1), Vec::<String>::new());
    }

    #[test]
    fn a_container_that_ended_unseen_did_run() {
        let mut progress = Progress::default();
        progress.observe(&pod("a", 0, Some("v"), "Succeeded", &json!({"terminated": {"exitCode": 0}})), 4.0);
        assert_eq!((progress.first_running_s(), progress.last_done_s()), (Some(4.0), Some(4.0)));
    }

    #[test]
    fn what_is_missing_doubled_or_failed_is_named() {
        let mut progress = Progress::default();
        let ended = |code: i32| json!({"terminated": {"exitCode": code}});
        progress.observe(&pod("a", 0, Some("v"), "Succeeded", &ended(0)), 1.0);
        progress.observe(&pod("b", 0, Some("d"), "Succeeded", &ended(0)), 1.0);
        progress.observe(&pod("c", 1, Some("d"), "Failed", &ended(3)), 1.0);
        assert_eq!(progress.faults(2), ["index 0 succeeded 2 times", "index 1 succeeded 0 times"]);
        assert_eq!(progress.failures(), ["pod tiles-1-c on d: exit code 3"]);
    }
}
