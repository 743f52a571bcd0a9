//! What was seen: pods as the API server told of them, what their containers wrote, and the faults.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError},
};

use futures::StreamExt as _;
use k8s_openapi::api::core::v1::{ContainerState, Pod};
use kube::{Api, ResourceExt as _, runtime::watcher};

/// Seconds since the machine's boot: the clock that containers read, too.
pub fn now() -> f64 {
    let text = std::fs::read_to_string("/proc/uptime").unwrap_or_default();
    text.split(' ').next().and_then(|seconds| seconds.parse().ok()).unwrap_or_default()
}

/// A fault that happened.
#[derive(Debug, Clone, PartialEq)]
pub struct Happened {
    /// What, to whom.
    pub what: String,
    /// When it began.
    pub from: f64,
    /// When it was undone and its victim ran again.
    pub to: f64,
    /// Whether the runtime was away, so that it may have lost how a container ended.
    pub runtime: bool,
    /// The pod whose process was killed.
    pub pod: Option<String>,
}

/// How an attempt at a container ended, as the API server has it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct End {
    /// The exit code.
    pub code: i32,
    /// `Completed`, `Error`, …
    pub reason: String,
}

/// One attempt at a container.
pub type Attempt = (String, u32);

/// One pod, by UID.
#[derive(Debug, Clone, Default)]
pub struct Story {
    /// Its name.
    pub name: String,
    /// The newest object.
    pub pod: Pod,
    /// When it was first seen.
    pub since: f64,
    /// When it was gone.
    pub gone: Option<f64>,
    /// The watch did not see it go, so that its last words may be unheard.
    pub unseen: bool,
    /// The watch was away for a while, so that what was said of earlier attempts may be unheard.
    pub gap: bool,
    /// It was deleted by force.
    pub forced: bool,
    /// Everything that was ever said about the end of an attempt.
    pub told: BTreeMap<Attempt, BTreeSet<End>>,
    /// What changed, and when, for people.
    pub changes: Vec<String>,
}

impl Story {
    /// Takes in a version of the pod.
    pub fn take(&mut self, pod: Pod, at: f64) {
        let status = pod.status.clone().unwrap_or_default();
        let mut words = vec![status.phase.clone().unwrap_or_default()];
        let all = status.init_container_statuses.iter().chain(&status.container_statuses).flatten();
        for container in all {
            let restarts = u32::try_from(container.restart_count).unwrap_or(0);
            let end = |state: &Option<ContainerState>| {
                let ended = state.as_ref()?.terminated.as_ref()?;
                Some(End { code: ended.exit_code, reason: ended.reason.clone().unwrap_or_default() })
            };
            let (state, last) = (end(&container.state), end(&container.last_state));
            let waits = container.state.as_ref().and_then(|state| state.waiting.as_ref());
            let runs = container.state.as_ref().is_some_and(|state| state.running.is_some());
            words.push(match (&state, waits) {
                (Some(end), _) => format!("{}.{restarts}={}({})", container.name, end.code, end.reason),
                (None, Some(waits)) => {
                    format!("{}.{restarts}:{}", container.name, waits.reason.as_deref().unwrap_or("waits"))
                }
                (None, None) => format!("{}.{restarts}{}", container.name, if runs { " runs" } else { "?" }),
            });
            if let Some(last) = last {
                // A container that waits counts the attempt that has ended, or the next one, when that was made already.
                let ended = container.last_state.as_ref().and_then(|last| last.terminated.as_ref());
                let own = ended.is_some_and(|ended| ended.container_id == container.container_id);
                let of =
                    if state.is_none() && !runs && own { Some(restarts) } else { restarts.checked_sub(1) };
                if let Some(of) = of {
                    self.told.entry((container.name.clone(), of)).or_default().insert(last);
                }
            }
            if let Some(end) = state {
                self.told.entry((container.name.clone(), restarts)).or_default().insert(end);
            }
        }
        if pod.metadata.deletion_timestamp.is_some() {
            let grace = pod.metadata.deletion_grace_period_seconds.unwrap_or(-1);
            words.push(format!("deleted({grace}s)"));
        }
        let looks = words.join(" ");
        if self.changes.last().is_none_or(|last| !last.ends_with(&looks)) {
            self.changes.push(format!("{at:.2} {looks}"));
        }
        self.name = pod.name_any();
        self.pod = pod;
    }

    /// Whether it has ended.
    pub fn terminal(&self) -> bool {
        let phase = self.pod.status.as_ref().and_then(|status| status.phase.as_deref());
        matches!(phase, Some("Succeeded" | "Failed"))
    }
}

/// All that was seen.
#[derive(Debug, Default)]
pub struct History {
    stories: Mutex<BTreeMap<String, Story>>,
    faults: Mutex<Vec<Happened>>,
    forced: Mutex<HashSet<String>>,
    wrong: Mutex<Vec<String>>,
}

impl History {
    /// All pods ever seen, by UID.
    pub fn stories(&self) -> MutexGuard<'_, BTreeMap<String, Story>> {
        self.stories.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All faults that have begun.
    pub fn faults(&self) -> MutexGuard<'_, Vec<Happened>> {
        self.faults.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What went wrong outside pods' stories.
    pub fn wrong(&self) -> MutexGuard<'_, Vec<String>> {
        self.wrong.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// This pod is about to be deleted by force.
    pub fn force(&self, uid: &str) {
        self.forced.lock().unwrap_or_else(PoisonError::into_inner).insert(uid.to_owned());
        if let Some(story) = self.stories().get_mut(uid) {
            story.forced = true;
        }
    }

    fn put(&self, pod: Pod, listed: bool) {
        let Some(uid) = pod.metadata.uid.clone() else { return };
        let forced = self.forced.lock().unwrap_or_else(PoisonError::into_inner).contains(&uid);
        let at = now();
        let mut stories = self.stories();
        let story = stories.entry(uid).or_insert_with(|| Story { since: at, ..Story::default() });
        story.forced = forced;
        story.gap |= listed && story.pod.metadata.resource_version != pod.metadata.resource_version;
        story.take(pod, at);
    }

    /// Follows the pods until dropped.
    pub async fn follow(&self, pods: Api<Pod>) {
        let mut events = std::pin::pin!(watcher(pods, watcher::Config::default()));
        let mut listed = HashSet::new();
        while let Some(event) = events.next().await {
            match event {
                Ok(watcher::Event::Init) => listed.clear(),
                Ok(watcher::Event::InitApply(pod)) => {
                    listed.extend(pod.metadata.uid.clone());
                    self.put(pod, true);
                }
                Ok(watcher::Event::InitDone) => {
                    let at = now();
                    let mut stories = self.stories();
                    for (_, story) in stories
                        .iter_mut()
                        .filter(|(uid, story)| story.gone.is_none() && !listed.contains(*uid))
                    {
                        (story.gone, story.unseen) = (Some(at), true);
                    }
                }
                Ok(watcher::Event::Apply(pod)) => self.put(pod, false),
                Ok(watcher::Event::Delete(pod)) => {
                    let uid = pod.metadata.uid.clone().unwrap_or_default();
                    self.put(pod, false);
                    if let Some(story) = self.stories().get_mut(&uid) {
                        story.gone = Some(now());
                    }
                }
                // As short as can be: what isn't seen can't be judged.
                Err(_) => tokio::time::sleep(std::time::Duration::from_millis(300)).await,
            }
        }
    }
}

/// What one pod's containers wrote.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Wrote {
    /// Container, attempt, time.
    pub starts: Vec<(String, u32, f64)>,
    /// Container, attempt, time, exit code.
    pub ends: Vec<(String, u32, f64, i32)>,
}

/// Reads the containers' file: by UID. Lines that make no sense are given back as they are.
///
/// # Errors
/// When it is there and can't be read.
pub fn read(path: &Path) -> anyhow::Result<(BTreeMap<String, Wrote>, Vec<String>)> {
    let text = match std::fs::read_to_string(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
        text => text?,
    };
    Ok(parse(&text))
}

fn parse(text: &str) -> (BTreeMap<String, Wrote>, Vec<String>) {
    let (mut wrote, mut strange) = (BTreeMap::<String, Wrote>::new(), Vec::new());
    for line in text.lines() {
        let words: Vec<_> = line.split(' ').collect();
        let parsed = (|| {
            let [kind, uid, name, _, attempt, at, code] = words[..] else { return None };
            let (name, attempt, at) = (name.to_owned(), attempt.parse().ok()?, at.parse().ok()?);
            let pod = wrote.entry(uid.to_owned()).or_default();
            match kind {
                "start" => pod.starts.push((name, attempt, at)),
                "end" => pod.ends.push((name, attempt, at, code.parse().ok()?)),
                _ => return None,
            }
            Some(())
        })();
        if parsed.is_none() {
            strange.push(line.to_owned());
        }
    }
    (wrote, strange)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_and_strange_ones_kept() {
        let (wrote, strange) = parse("start u c0 0 0 12.5 -\nend u c0 0 0 13.5 7\nstart u c0\n");
        assert_eq!(wrote["u"].starts, [("c0".to_owned(), 0, 12.5)]);
        assert_eq!(wrote["u"].ends, [("c0".to_owned(), 0, 13.5, 7)]);
        assert_eq!(strange, ["start u c0"]);
    }

    #[test]
    fn ends_are_counted_to_their_attempts() {
        let pod = |status: serde_json::Value| -> Pod {
            serde_json::from_value(serde_json::json!({ "metadata": { "name": "p" }, "status": { "containerStatuses": [status] } }))
                .unwrap()
        };
        let ended = |code: i32| serde_json::json!({ "terminated": { "exitCode": code, "reason": "Error" } });
        let base = |restarts: i32, state: serde_json::Value, last: serde_json::Value| {
            pod(
                serde_json::json!({ "name": "c", "image": "", "imageID": "", "ready": false, "restartCount": restarts,
                "state": state, "lastState": last }),
            )
        };
        let mut story = Story::default();
        story.take(base(1, ended(4), ended(3)), 1.0);
        story.take(base(1, serde_json::json!({ "waiting": {} }), ended(4)), 2.0);
        story.take(base(2, serde_json::json!({ "running": {} }), ended(4)), 3.0);
        let codes: Vec<_> = story.told.iter().map(|((_, attempt), ends)| (*attempt, ends.len())).collect();
        assert_eq!(codes, [(0, 1), (1, 1)]);
        assert_eq!(story.changes.len(), 3);
    }
}
