//! The tasks that ask: one for each running container that has a probe. First the startup probe, alone; then liveness and readiness
//! side by side. They end with the container, and with the worker that owns them.

use std::{
    collections::BTreeMap,
    ops::ControlFlow,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, ContainerStatus, Pod, Probe};
use tokio::{
    sync::Notify,
    task::{AbortHandle, JoinSet},
    time::{Instant, MissedTickBehavior},
};
use tokio_util::sync::CancellationToken;

use super::{
    Health, Healths, Kind, Tally,
    action::{self, Outcome},
    counts::{Counts, PodCounts},
    is_probed, lasting,
};
use crate::{
    backoff,
    pod::{
        events::{self, Recorder},
        spec::pod_ref,
    },
    provider::{
        observed::{self, ObservedPod, State},
        runtime::ContainerRuntime,
    },
};

/// An attempt that says nothing is made again at once, so often in all.
const TRIES: usize = 3;

/// All probing of one pod.
pub(crate) struct Prober {
    recorder: Recorder,
    /// Told when a result has changed.
    wake: Arc<Notify>,
    board: Arc<Mutex<Healths>>,
    asked: BTreeMap<String, Asked>,
    of_node: Arc<Counts>,
    /// From the first probe to the pod's end.
    counts: Option<Arc<PodCounts>>,
    tasks: JoinSet<()>,
}

struct Asked {
    task: AbortHandle,
    /// The pod ends: only readiness still matters.
    ending: CancellationToken,
}

impl Prober {
    pub(crate) fn new(recorder: Recorder, wake: Arc<Notify>, of_node: Arc<Counts>) -> Self {
        let (board, asked) = (Arc::default(), BTreeMap::new());
        Self { recorder, wake, board, asked, of_node, counts: None, tasks: JoinSet::new() }
    }

    /// What is known now.
    pub(crate) fn healths(&self) -> Healths {
        self.board.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether anything of the pod is asked now.
    pub(crate) fn is_asking(&self) -> bool {
        !self.asked.is_empty()
    }

    /// Nothing of the pod runs any more, nor will.
    pub(crate) fn end(&mut self) {
        self.counts = None;
    }

    /// Asks what runs, and nothing else.
    pub(crate) fn follow(
        &mut self,
        pod: &Arc<Pod>,
        seen: &ObservedPod,
        pod_ip: &str,
        runtime: &Arc<dyn ContainerRuntime>,
    ) {
        while self.tasks.try_join_next().is_some() {}
        let ending = pod.metadata.deletion_timestamp.is_some();
        let mut left = std::mem::take(&mut self.asked);
        for (container, run, started_at) in running(pod, seen) {
            let asked = left.remove(&run.id).unwrap_or_else(|| {
                self.ask(pod, container, &run.id, started_at, pod_ip, Arc::clone(runtime))
            });
            if ending {
                asked.ending.cancel();
            }
            self.asked.insert(run.id.clone(), asked);
        }
        for (id, asked) in left {
            asked.task.abort();
            self.board.lock().unwrap_or_else(PoisonError::into_inner).0.remove(&id);
        }
    }

    fn ask(
        &mut self,
        pod: &Arc<Pod>,
        container: &Container,
        id: &str,
        started_at: Timestamp,
        pod_ip: &str,
        runtime: Arc<dyn ContainerRuntime>,
    ) -> Asked {
        let before = last_word(pod, &container.name, id);
        let health = before.map_or_else(Health::default, |status| Health {
            started: status.started.unwrap_or(false),
            ready: status.ready,
            failed: None,
        });
        self.board.lock().unwrap_or_else(PoisonError::into_inner).0.insert(id.to_owned(), health);
        let ending = CancellationToken::new();
        let counts = self.counts.get_or_insert_with(|| self.of_node.of(pod_ref(pod)));
        let subject = Subject {
            pod: Arc::clone(pod),
            container: container.clone(),
            id: id.to_owned(),
            started_at,
            adopted: before.is_some(),
            pod_ip: pod_ip.to_owned(),
            runtime,
            recorder: self.recorder.clone(),
            wake: Arc::clone(&self.wake),
            board: Arc::clone(&self.board),
            counts: Arc::clone(counts),
            ending: ending.clone(),
        };
        Asked { task: self.tasks.spawn(subject.watch()), ending }
    }
}

/// The running containers that have a probe.
fn running<'a>(
    pod: &'a Pod,
    seen: &'a ObservedPod,
) -> impl Iterator<Item = (&'a Container, &'a observed::Container, Timestamp)> {
    let probed = pod.spec.iter().flat_map(lasting).filter(|container| is_probed(container));
    probed.filter_map(|container| {
        let run = seen.container(&container.name)?;
        match run.state {
            State::Running { started_at } => Some((container, run, started_at)),
            _ => None,
        }
    })
}

/// What the API server has of this very run, from before a restart of ours.
fn last_word<'a>(pod: &'a Pod, name: &str, id: &str) -> Option<&'a ContainerStatus> {
    let status = pod.status.as_ref()?;
    let mut all = status.container_statuses.iter().chain(&status.init_container_statuses).flatten();
    all.find(|status| {
        let same = status.container_id.as_deref().is_some_and(|have| have.rsplit('/').next() == Some(id));
        let runs = status.state.as_ref().is_some_and(|state| state.running.is_some());
        status.name == name && same && runs
    })
}

/// One run of a container, and all that is needed to ask it.
struct Subject {
    pod: Arc<Pod>,
    container: Container,
    id: String,
    started_at: Timestamp,
    /// It ran before this process did.
    adopted: bool,
    pod_ip: String,
    runtime: Arc<dyn ContainerRuntime>,
    recorder: Recorder,
    wake: Arc<Notify>,
    board: Arc<Mutex<Healths>>,
    counts: Arc<PodCounts>,
    ending: CancellationToken,
}

impl Subject {
    fn health(&self) -> Health {
        let board = self.board.lock().unwrap_or_else(PoisonError::into_inner);
        board.0.get(&self.id).copied().unwrap_or_default()
    }

    fn set(&self, change: impl FnOnce(&mut Health)) {
        let mut board = self.board.lock().unwrap_or_else(PoisonError::into_inner);
        let health = board.0.entry(self.id.clone()).or_default();
        let before = *health;
        change(health);
        if *health != before {
            drop(board);
            self.wake.notify_one();
        }
    }

    async fn watch(self) {
        if self.container.startup_probe.is_some() && !self.health().started {
            let asked = self.rounds(Kind::Startup, |good| {
                self.set(|health| {
                    health.started = good;
                    health.failed = (!good).then_some(Kind::Startup);
                });
                ControlFlow::Break(())
            });
            tokio::select! {
                () = asked => {}
                () = self.ending.cancelled() => return,
            }
            if !self.health().started {
                return;
            }
        }
        let alive = async {
            let asked = self.rounds(Kind::Liveness, |good| {
                if good {
                    return ControlFlow::Continue(());
                }
                self.set(|health| health.failed = Some(Kind::Liveness));
                ControlFlow::Break(())
            });
            tokio::select! {
                () = asked => {}
                () = self.ending.cancelled() => {}
            }
        };
        let ready = self.rounds(Kind::Readiness, |good| {
            self.set(|health| health.ready = good);
            ControlFlow::Continue(())
        });
        tokio::join!(alive, ready);
    }

    /// Asks again and again, and tells each time that the threshold is met.
    async fn rounds(&self, kind: Kind, mut tell: impl FnMut(bool) -> ControlFlow<()>) {
        let Some(probe) = kind.of(&self.container) else { return };
        let period = seconds(probe.period_seconds, 10).max(Duration::from_secs(1));
        if self.adopted {
            // All pods of the node were found at the same moment.
            tokio::time::sleep(period.mul_f64(backoff::random())).await;
        }
        let age = Duration::try_from(Timestamp::now().duration_since(self.started_at)).unwrap_or_default();
        let first = Instant::now() + seconds(probe.initial_delay_seconds, 0).saturating_sub(age);
        let mut ticks = tokio::time::interval_at(first, period);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut tally = Tally::default();
        loop {
            ticks.tick().await;
            let begun = Instant::now();
            let Some(good) = self.attempt(kind, probe).await else { continue };
            self.counts.add(&self.container.name, kind, good, begun.elapsed());
            if let Some(verdict) = tally.count(good, probe)
                && tell(verdict).is_break()
            {
                return;
            }
        }
    }

    /// One result. `None`: nothing could be found out.
    async fn attempt(&self, kind: Kind, probe: &Probe) -> Option<bool> {
        let limit = seconds(probe.timeout_seconds, 1).max(Duration::from_secs(1));
        let warn = |reason: &str, message: String| {
            self.recorder.container(&self.pod, &self.container.name, events::Kind::Warning, reason, &message);
        };
        let kind = kind.as_str();
        let mut last = None;
        for _ in 0..TRIES {
            let action = match action::of_probe(probe, &self.container, &self.pod_ip) {
                Ok(action) => action,
                Err(error) => {
                    warn("Unhealthy", format!("{kind} probe errored and resulted in unknown state: {error}"));
                    return None;
                }
            };
            match action::attempt(&action, self.runtime.as_ref(), &self.id, limit).await {
                Ok(Outcome::Good) => return Some(true),
                Ok(Outcome::Warning(text)) => {
                    warn("ProbeWarning", format!("{kind} probe warning: {text}"));
                    return Some(true);
                }
                Ok(Outcome::Bad(text)) => {
                    warn("Unhealthy", format!("{kind} probe failed: {text}"));
                    return Some(false);
                }
                Err(error) => last = Some(error),
            }
        }
        if let Some(error) = last {
            let state = error.state;
            warn("Unhealthy", format!("{kind} probe errored and resulted in {state} state: {error}"));
        }
        None
    }
}

fn seconds(field: Option<i32>, default: u64) -> Duration {
    Duration::from_secs(field.map_or(default, |seconds| seconds.max(0).unsigned_abs().into()))
}
