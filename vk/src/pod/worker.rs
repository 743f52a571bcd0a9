//! One pod's task: observe, decide, act, report, and again when something changed. What it decides is in pure modules
//! ([`lifecycle`](super::lifecycle), [`status`](super::status), …); what it does is in the modules below.
//!
//! It may be dropped at any await, or die with the process: whatever it has done is found again by observing.

mod ending;
mod hooks;
mod images;
mod objects;
mod pen;
mod report;
mod resize;
mod service;
mod shared;
mod start;
mod storage;
mod teardown;
mod volumes;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodSpec, PodStatus};
use tokio::sync::{Notify, OwnedSemaphorePermit, watch};
use tokio_util::sync::CancellationToken;

use super::{
    events::Kind,
    files::{FilesError, PodFolder},
    lifecycle::{self, CrashLoops, Plan, Wait},
    objects::Held,
    probe::watch::Prober,
    spec::pod_ref,
    status::{self, Verdict, Waiting},
    volumes::Tokens,
};
use crate::{
    backoff::Backoff,
    identity::chain,
    provider::{
        Provider, ProviderError,
        observed::{Container, ObservedPod, PodRef},
        runtime::{ContainerRuntime, ImagePart},
    },
};

use pen::Pen;
pub(super) use pen::{is_newer, version};
pub(super) use shared::Shared;
use teardown::Sentence;

/// First and longest wait after something went wrong.
const RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(10));
/// Longest wait for a pod that was bound so recently: the API server's node authorizer learns a moment later than we do what the pod
/// refers to, and a refusal then says nothing about the next second.
const RETRY_WHEN_NEW: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(1));
/// A pod that has waited so long for its turn is told to its user.
const SHOW_PENDING: Duration = Duration::from_secs(1);

/// The newest object; `None`: the API server has it no more.
pub(super) type Latest = Option<Arc<Pod>>;

/// What the registry of pods and a pod's worker share.
pub(super) struct Entry {
    pub(super) pod: PodRef,
    pub(super) latest: watch::Sender<Latest>,
    /// The status that is on its way to the API server, which may have told it to others before we hear of that.
    telling: Mutex<Option<PodStatus>>,
    /// The provider's side may have changed.
    pub(super) wake: Arc<Notify>,
}

impl Entry {
    pub(super) fn new(pod: PodRef, latest: Latest) -> Self {
        Self { pod, latest: watch::Sender::new(latest), telling: Mutex::default(), wake: Arc::default() }
    }

    pub(super) fn telling(&self) -> MutexGuard<'_, Option<PodStatus>> {
        self.telling.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The pod with the status that others may have heard of by now; `None`: the API server has it no more.
    pub(super) fn told(&self) -> Latest {
        let latest = self.latest.borrow().clone()?;
        let status = self.telling().clone();
        Some(match status {
            Some(status) => Arc::new(Pod { status: Some(status), ..Pod::clone(&latest) }),
            None => latest,
        })
    }
}

/// Why a step was not taken.
#[derive(Debug, thiserror::Error)]
pub(super) enum SyncError {
    #[error(transparent)]
    Provider(#[from] ProviderError),
    #[error(transparent)]
    Files(#[from] FilesError),
    #[error("the API server refused to {operation}")]
    Api { operation: &'static str, source: kube::Error },
    #[error("{0}")]
    Waiting(String),
}

/// What to do after a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    /// Wait for a change, so long at most.
    Within(Option<Duration>),
    /// Look again at once.
    Again,
    /// Nothing is to be done before there is news, and nothing has to be remembered until then.
    Rest,
    /// Nothing is left of the pod anywhere.
    Gone,
}

impl Next {
    const IDLE: Self = Self::Within(None);
}

/// What a worker remembers between steps. All of it can be lost.
struct Memory {
    first_seen: Instant,
    /// What was read before does not go into the pod.
    fresh_since: Instant,
    /// What the pod's containers are started from while the API server is away.
    held: Mutex<Held>,
    retry: Backoff,
    /// Between tries to start containers that can't be.
    start_again: Backoff,
    loops: CrashLoops,
    waiting: BTreeMap<String, Waiting>,
    given: resize::Given,
    pulls: BTreeMap<String, images::Pull>,
    tokens: Tokens,
    volumes: Option<volumes::Mounted>,
    /// The last attempt at each container that was about to be started, as noted in the pod's folder; `None`: not read yet.
    started: Option<BTreeMap<String, u32>>,
    /// Images that are mounted, by volume.
    images: BTreeMap<String, ImagePart>,
    /// Whether the runtime can make mounts within mounts read-only, if the pod asks.
    deep_read_only: Option<bool>,
    /// The sandbox that the hosts file was written for.
    hosts: Option<(String, PathBuf)>,
    /// Containers whose preStop hook has ended.
    pre_stopped: Arc<Mutex<BTreeSet<String>>>,
    /// The pod was condemned, and why.
    verdict: Option<Verdict>,
    /// When local disks are looked at again, for a pod with limits.
    storage_at: Option<Instant>,
    /// The pod takes too much of them.
    evicted: Option<Sentence>,
    /// Everything of a pod that has ended was given back.
    settled: bool,
    /// Of a container's end nothing but the API server's memory will tell, which is yet to be told of it: before the next one starts.
    untold: bool,
    /// When the API server was told that nothing is left of the pod.
    let_go: Option<Instant>,
}

/// How a worker has ended.
pub(super) enum End {
    /// Nothing is left of the pod, or the worker was stopped.
    Gone,
    /// Nothing is to be done before there is news after this.
    Rest(watch::Receiver<Latest>),
}

/// The task of one pod.
pub(super) struct Worker {
    shared: Arc<Shared>,
    entry: Arc<Entry>,
    latest: watch::Receiver<Latest>,
    folder: PodFolder,
    prober: Prober,
    pen: Pen,
    memory: Memory,
}

impl Worker {
    pub(super) fn new(shared: Arc<Shared>, entry: Arc<Entry>) -> Self {
        let folder = PodFolder::new(&shared.settings.root_dir, &entry.pod.uid);
        Self {
            latest: entry.latest.subscribe(),
            folder,
            prober: Prober::new(shared.recorder.clone(), Arc::clone(&entry.wake), Arc::clone(&shared.probed)),
            pen: Pen::new(Arc::clone(&shared), Arc::clone(&entry)),
            memory: Memory {
                first_seen: Instant::now(),
                fresh_since: Instant::now(),
                held: Mutex::default(),
                retry: Backoff::new(RETRY.0, RETRY.1),
                start_again: Backoff::new(RETRY.0, RETRY.1),
                loops: CrashLoops::default(),
                waiting: BTreeMap::new(),
                given: resize::Given::default(),
                pulls: BTreeMap::new(),
                tokens: Tokens::new(),
                volumes: None,
                started: None,
                images: BTreeMap::new(),
                deep_read_only: None,
                hosts: None,
                pre_stopped: Arc::default(),
                verdict: None,
                storage_at: None,
                evicted: None,
                settled: false,
                untold: false,
                let_go: None,
            },
            shared,
            entry,
        }
    }

    /// Looks after the pod until nothing is left of it or to be done, or until stopped.
    pub(super) async fn run(mut self, stop: CancellationToken) -> (String, End) {
        loop {
            let next = tokio::select! {
                () = stop.cancelled() => break,
                next = self.step() => next,
            };
            let within = match next {
                Next::Gone => break,
                Next::Rest => return (self.entry.pod.uid.clone(), End::Rest(self.latest)),
                Next::Again => continue,
                Next::Within(within) => within,
            };
            tokio::select! {
                () = stop.cancelled() => break,
                _ = self.latest.changed() => {}
                () = self.entry.wake.notified() => {}
                () = self.pen.next_end() => {}
                () = sleep(within) => {}
            }
        }
        (self.entry.pod.uid.clone(), End::Gone)
    }

    async fn step(&mut self) -> Next {
        if self.shared.settings.lead.check().is_err() {
            // Somebody else looks after the pod; this worker is about to be stopped.
            return Next::Within(Some(RETRY.1));
        }
        let latest = self.latest.borrow_and_update().clone();
        // On the heap for as long as it takes: a step's state is many times what a pod at rest needs.
        let result = match (&latest, self.shared.provider.clone()) {
            (Some(pod), Provider::Runtime(runtime)) => Box::pin(self.sync(pod, runtime.as_ref())).await,
            (None, Provider::Runtime(runtime)) => Box::pin(self.remove_all(runtime.as_ref())).await,
            (pod, Provider::PodService(service)) => {
                Box::pin(self.sync_service(pod.as_ref(), service.as_ref())).await
            }
        };
        // The pod may have ended; or the provider was away when it came.
        self.shared.weigh().await;
        match (result, self.pen.failure()) {
            (Ok(Next::Within(within)), Some(error)) => {
                let delay = self.retry_after(&error);
                Next::Within(Some(within.map_or(delay, |within| within.min(delay))))
            }
            (Ok(next), _) => {
                // What waits for something else is tried again less and less often.
                if self.memory.waiting.is_empty() {
                    self.memory.retry.reset();
                }
                next
            }
            (Err(error), _) => Next::Within(Some(self.retry_after(&error))),
        }
    }

    /// Something went wrong, and when to try again.
    fn retry_after(&mut self, error: &SyncError) -> Duration {
        let mut delay = self.memory.retry.delay();
        if self.memory.first_seen.elapsed() < RETRY_WHEN_NEW.0 {
            delay = delay.min(RETRY_WHEN_NEW.1);
        }
        let (pod, retry_in_ms, text) = (&self.entry.pod, delay.as_millis(), chain(error));
        // When the provider is away the node says so, once and not for each pod.
        if matches!(error, SyncError::Provider(ProviderError::Unavailable { .. })) {
            tracing::debug!(%pod, pod.uid, error = text, retry_in_ms, "a step failed");
        } else {
            tracing::warn!(%pod, pod.uid, error = text, retry_in_ms, "a step failed");
        }
        delay
    }

    async fn sync(&mut self, pod: &Arc<Pod>, runtime: &dyn ContainerRuntime) -> Result<Next, SyncError> {
        if pod.metadata.deletion_timestamp.is_some() {
            return self.delete(pod, runtime).await;
        }
        if status::is_terminal(pod.status.as_ref()) {
            return self.settle(pod, runtime).await;
        }
        let seen = self.observe(runtime, pod).await?;
        self.follow(pod, &seen);
        let refusal = if seen.is_empty() {
            match super::admission::refuse(pod, &self.shared.settings.apparmor) {
                // Asked only for the few that have some.
                None if super::admission::has_limits(pod) => {
                    let lack = runtime.lacks_pod_limits().await?;
                    lack.map(super::admission::pod_limits)
                }
                refusal => refusal,
            }
        } else {
            // What is there was admitted, but containers may have come since.
            super::admission::misnamed(pod)
        };
        if let Some(refusal) = refusal {
            return self.refuse(pod, &refusal).await;
        }
        let deadline = deadline(pod);
        if deadline.is_some_and(|deadline| deadline <= Timestamp::now()) {
            return self.condemn(pod, runtime, &seen, Sentence::deadline()).await;
        }
        if let Some(sentence) = self.memory.evicted.clone() {
            return self.condemn(pod, runtime, &seen, sentence).await;
        }
        let pod = &match self.allocate(pod, &seen).await? {
            Ok(pod) => pod,
            Err(refusal) => return self.refuse(pod, &refusal).await,
        };
        if let Some(next) = self.enforce(pod, runtime, &seen).await? {
            return Ok(next);
        }
        let mut next = self.advance(pod, runtime, seen).await?;
        if let (Next::Within(within), Some(again)) = (&mut next, self.memory.given.again_in()) {
            *within = Some(within.map_or(again, |within| within.min(again)));
        }
        if let (Next::Within(within), Some(deadline)) = (&mut next, deadline) {
            let left = until(deadline);
            *within = Some(within.map_or(left, |within| within.min(left)));
        }
        Ok(next)
    }

    /// One step of a pod that shall run, and its status.
    async fn advance(
        &mut self,
        pod: &Arc<Pod>,
        runtime: &dyn ContainerRuntime,
        mut seen: ObservedPod,
    ) -> Result<Next, SyncError> {
        let default = PodSpec::default();
        let spec = pod.spec.as_ref().unwrap_or(&default);
        if std::mem::take(&mut self.memory.untold) {
            self.report(pod, &seen, false).await?;
        }
        match self.plan(spec, &seen) {
            Plan::Finished => {
                if seen.containers.iter().any(Container::may_run) {
                    // Sidecars, which have nobody left to serve.
                    self.show(pod, &seen).await;
                    if !self.stop_containers(runtime, Some(pod)).await? {
                        return Ok(Next::Again);
                    }
                    seen = self.observe(runtime, pod).await?;
                }
                if self.memory.verdict.is_none() && lifecycle::is_lost(spec, &seen) {
                    let message = "The pod's sandbox was lost before all of its containers had run, and its restart policy allows no other";
                    self.shared.recorder.pod(pod, Kind::Warning, "SandboxLost", message);
                    let (reason, message) = ("SandboxLost".to_owned(), message.to_owned());
                    self.memory.verdict = Some(Verdict { reason, message });
                }
                self.report(pod, &seen, false).await?;
                self.ended()
            }
            Plan::MakeSandbox(attempt) => {
                let Some(permit) = self.turn(pod, &seen).await? else { return Ok(Next::Again) };
                let made = self.make_sandbox(pod, runtime, &seen, attempt).await;
                if let Err(error) = made {
                    drop(permit);
                    self.show(pod, &seen).await;
                    return Err(error);
                }
                let seen = self.observe(runtime, pod).await?;
                if let Plan::Run { start, wait, .. } = self.plan(spec, &seen) {
                    // On the same turn: another wait would let all sandboxes go before the first container.
                    return self.run_containers(pod, runtime, seen, start, &wait, Some(permit)).await;
                }
                Ok(Next::Again)
            }
            Plan::Run { kill, .. } if !kill.is_empty() => self.kill(pod, runtime, &seen, &kill).await,
            Plan::Run { start, wait, .. } if start.is_empty() => {
                self.watch_over(pod, runtime, &seen, &wait).await
            }
            Plan::Run { start, wait, .. } => {
                self.show_crash_loops(pod, &wait);
                let Some(permit) = self.turn(pod, &seen).await? else { return Ok(Next::Again) };
                self.run_containers(pod, runtime, seen, start, &wait, Some(permit)).await
            }
        }
    }

    fn plan(&mut self, spec: &PodSpec, seen: &ObservedPod) -> Plan {
        lifecycle::plan(spec, seen, &self.prober.healths(), &mut self.memory.loops, Timestamp::now())
    }

    /// Nothing is to be started now: report, keep files fresh, say when to look again.
    async fn watch_over(
        &mut self,
        pod: &Arc<Pod>,
        runtime: &dyn ContainerRuntime,
        seen: &ObservedPod,
        wait: &[Wait],
    ) -> Result<Next, SyncError> {
        self.show_crash_loops(pod, wait);
        let is_told = self.show(pod, seen).await;
        let Some(look) = self.look_after(pod, runtime, seen, is_told).await? else { return Ok(Next::Again) };
        Ok(Next::Within([look, next_restart(wait)].into_iter().flatten().min()))
    }

    /// What a pod needs, whatever its containers wait for. `is_told`: the API server knows what was seen. When to look again; `None`: at
    /// once, because it has to go.
    async fn look_after(
        &mut self,
        pod: &Arc<Pod>,
        runtime: &dyn ContainerRuntime,
        seen: &ObservedPod,
        is_told: bool,
    ) -> Result<Option<Option<Duration>>, SyncError> {
        if is_told {
            self.tidy(runtime, seen).await?;
        }
        let refresh = self.refresh_volumes(pod).await;
        self.read_ahead(pod, seen).await;
        let Some(look) = self.check_storage(pod).await else { return Ok(None) };
        Ok(Some([refresh, look].into_iter().flatten().min()))
    }

    /// Removes what has ended and is told.
    async fn tidy(&self, runtime: &dyn ContainerRuntime, seen: &ObservedPod) -> Result<(), SyncError> {
        for id in lifecycle::superseded(seen) {
            runtime.remove_container(&id).await?;
        }
        for sandbox in seen.sandboxes.iter().skip(1) {
            // Dead ones of earlier attempts.
            runtime.stop_sandbox(&sandbox.id).await?;
            if !seen.containers.iter().any(|container| container.sandbox_id == sandbox.id) {
                runtime.remove_sandbox(&sandbox.id).await?;
            }
        }
        Ok(())
    }

    fn show_crash_loops(&mut self, pod: &Pod, wait: &[Wait]) {
        for Wait { name, delay, .. } in wait {
            let before = self.memory.waiting.get(name);
            if before.is_none_or(|before| before.reason != "CrashLoopBackOff") {
                let id = pod_ref(pod).full_name();
                let event = format!("Back-off restarting failed container {name} in pod {id}");
                self.shared.recorder.container(pod, name, Kind::Warning, "BackOff", &event);
                let delay = go_duration(*delay);
                let message = format!("back-off {delay} restarting failed container={name} pod={id}");
                let why = Waiting { reason: "CrashLoopBackOff".to_owned(), message };
                self.memory.waiting.insert(name.clone(), why);
            }
        }
    }

    /// Waits for this pod's turn to be changed. `None`: the pod itself has changed in the meantime.
    async fn turn(
        &mut self,
        pod: &Arc<Pod>,
        seen: &ObservedPod,
    ) -> Result<Option<OwnedSemaphorePermit>, SyncError> {
        let mut turn = Box::pin(Arc::clone(&self.shared.changes).acquire_owned());
        let permit = if let Ok(permit) = tokio::time::timeout(SHOW_PENDING, &mut turn).await {
            permit
        } else {
            self.show(pod, seen).await;
            turn.await
        };
        // The semaphore is never closed.
        let permit = permit.map_err(|error| SyncError::Waiting(error.to_string()))?;
        Ok((!self.latest.has_changed().unwrap_or(true)).then_some(permit))
    }

    /// What the provider has, and what the API server and the pod's folder remember beyond it.
    async fn observe(&mut self, runtime: &dyn ContainerRuntime, pod: &Pod) -> Result<ObservedPod, SyncError> {
        let mut seen = runtime.observe(&self.entry.pod.uid).await?;
        let started = match &mut self.memory.started {
            Some(started) => started,
            unread => {
                let folder = self.folder.clone();
                let read = tokio::task::spawn_blocking(move || folder.noted()).await;
                let noted = read.map_err(|error| SyncError::Waiting(error.to_string()))??;
                self.memory.loops.remember(noted.killed);
                unread.insert(noted.started)
            }
        };
        for id in lifecycle::uncertain(&seen, started) {
            // Refused while it is being started after all.
            runtime.remove_container(&id).await?;
            seen.containers.retain(|container| container.id != id);
            self.memory.untold = true;
        }
        Ok(lifecycle::with_starts(lifecycle::with_history(seen, pod.status.as_ref()), started))
    }
}

/// When the pod's `activeDeadlineSeconds` are over.
fn deadline(pod: &Pod) -> Option<Timestamp> {
    let seconds = pod.spec.as_ref()?.active_deadline_seconds?;
    let start = pod.status.as_ref()?.start_time.as_ref()?.0;
    start.checked_add(jiff::SignedDuration::from_secs(seconds)).ok()
}

/// How long until a container of those that wait may start.
fn next_restart(wait: &[Wait]) -> Option<Duration> {
    wait.iter().map(|wait| until(wait.until)).min()
}

/// How long until then; zero if it has passed.
fn until(time: Timestamp) -> Duration {
    Duration::try_from(time.duration_since(Timestamp::now())).unwrap_or_default()
}

/// Whole seconds as Go prints them: `40s`, `1m20s`.
fn go_duration(duration: Duration) -> String {
    match (duration.as_secs() / 60, duration.as_secs() % 60) {
        (0, seconds) => format!("{seconds}s"),
        (minutes, seconds) => format!("{minutes}m{seconds}s"),
    }
}

async fn sleep(within: Option<Duration>) {
    match within {
        Some(within) => tokio::time::sleep(within).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
pub(in crate::pod) mod tests;
