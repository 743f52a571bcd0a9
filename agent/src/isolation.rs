//! Isolation: no pod reaches another pod's accelerator, whatever its container runtime lets it do. A device program at the cgroup of
//! all pods refuses reading and writing accelerators' nodes, but for what a map allows each pod; both are pinned and outlive the agent.
//!
//! `nodes` says what is to be protected, `cgroup` where pods are, `policy` who may open what; `program` writes the program, `filter`
//! keeps it in the kernel by way of `kernel`, and `guard` turns all that into rounds. Where there is no cgroup v2, `controller` stands in for
//! program and filter as well as it can; `backend` chooses. Here are the rounds' occasions: changes of what is looked at, the kubelet's
//! question before a container starts, and time.

mod backend;
pub mod cgroup;
pub mod controller;
pub mod denials;
pub mod exempt;
pub mod filter;
mod guard;
pub mod kernel;
pub mod nodes;
pub mod policy;
pub mod program;
pub mod settings;

use std::{path::PathBuf, time::Duration};

use spillway_daemon::admin::Readiness;
use spillway_device_plugin::{
    causes::one_line,
    device::{DeviceId, ResourceName},
    inventory::{BackendState, Inventory},
    server::PreStart,
};
use tokio::{
    sync::{Mutex, mpsc, watch},
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;

pub use self::guard::GuardError;
use self::{
    denials::{Denial, Ledger, Metrics},
    guard::{Facts, Guard},
    nodes::Roots,
    settings::{IsolationArgs, Mode, WhileAway},
};
use crate::{
    holders::{Holders, HoldersError, HoldersReader},
    pods::PodInfo,
};

/// Between two looks at the filter itself, and at what it denied.
const CHECK_EVERY: Duration = Duration::from_secs(2);
/// Between two rounds when nothing is said to have changed: modules that come and go, and cgroups where inotify does not work.
const ROUND_EVERY: Duration = Duration::from_secs(10);
/// How long a container may be kept waiting for a device's former pod to end. The kubelet waits for 30 s, and asks again later.
const WAIT_WITHIN: Duration = Duration::from_secs(15);
const WAIT_STEP: Duration = Duration::from_millis(200);
/// Several changes at once are one: whoever can make them must not keep the agent busy.
const SETTLE: Duration = Duration::from_millis(100);
/// Denials that are not yet read by whoever turns them into events.
const TELL_LIMIT: usize = 256;

/// What isolation learns from others.
#[derive(Debug, Clone)]
pub struct Sources {
    /// What there is.
    pub inventory: watch::Receiver<Inventory>,
    /// Tells when somebody holds something else.
    pub holders: watch::Receiver<Holders>,
    /// Who holds what, asked now.
    pub reader: HoldersReader,
    /// Pods by name.
    pub pods: watch::Receiver<Vec<PodInfo>>,
}

/// Isolation on this machine.
#[derive(Debug)]
pub struct Isolation {
    sources: Sources,
    readiness: Readiness,
    metrics: Metrics,
    mode: Mode,
    while_away: WhileAway,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// None once it was stopped.
    guard: Option<Guard>,
    holders: Option<Holders>,
    /// Why the last round failed; said once.
    said: String,
}

impl Isolation {
    /// Sees whether this machine can, and what an earlier agent left. Gives the denials, too, for whoever makes events of them.
    ///
    /// # Errors
    /// What is missing.
    pub fn open(
        args: &IsolationArgs,
        roots: Roots,
        sources: Sources,
        readiness: Readiness,
        metrics: Metrics,
    ) -> Result<(Self, mpsc::Receiver<Denial>), GuardError> {
        let (tell, told) = mpsc::channel(TELL_LIMIT);
        let ledger = Ledger::new(metrics.clone(), tell);
        let guard = Guard::open(args.clone(), roots, ledger)?;
        readiness.set("isolation", Err("it is not in force yet".to_owned()));
        let (mode, while_away) = (guard.mode(), args.while_away);
        let state = Mutex::new(State { guard: Some(guard), holders: None, said: String::new() });
        Ok((Self { sources, readiness, metrics, mode, while_away, state }, told))
    }

    /// Keeps it in force until `stop`.
    pub async fn run(&self, stop: CancellationToken) {
        let mut sources = self.sources.clone();
        let ticks = watch::Sender::new(());
        let mut tick = ticks.subscribe();
        let mut watching = Watching::default();
        let mut last_round = None::<Instant>;
        while !stop.is_cancelled() {
            let due = last_round.is_none_or(|last| last.elapsed() >= ROUND_EVERY);
            if due {
                sources.inventory.mark_unchanged();
                sources.holders.mark_unchanged();
                sources.pods.mark_unchanged();
                tick.mark_unchanged();
                let _ = self.round().await;
                last_round = Some(Instant::now());
                watching.follow(self.watched().await, &ticks);
            } else if self.check().await {
                last_round = None;
                continue;
            }
            let changed = tokio::select! {
                () = stop.cancelled() => break,
                Ok(()) = sources.inventory.changed() => true,
                Ok(()) = sources.holders.changed() => true,
                Ok(()) = sources.pods.changed() => true,
                Ok(()) = tick.changed() => true,
                () = sleep(CHECK_EVERY) => false,
            };
            if changed {
                last_round = None;
                sleep(SETTLE).await;
            }
        }
        if let Some(guard) = self.state.lock().await.guard.take()
            && let Err(error) = guard.stop()
        {
            tracing::warn!("{}", one_line(&error));
        }
    }

    async fn watched(&self) -> Vec<PathBuf> {
        self.state.lock().await.guard.as_ref().map(Guard::watched).unwrap_or_default()
    }

    /// One round. What stands in its way is said once, and shown as not ready.
    async fn round(&self) -> Result<(), String> {
        let mut state = self.state.lock().await;
        let result = self.try_round(&mut state).await;
        match &result {
            Ok(()) => state.said.clear(),
            // At the start that is no news.
            Err(why) if *why != state.said && !self.starting() => {
                tracing::warn!(mode = ?self.mode, "isolation: {why}");
                state.said.clone_from(why);
            }
            Err(_) => {}
        }
        self.readiness.set("isolation", result.clone());
        result
    }

    async fn try_round(&self, state: &mut State) -> Result<(), String> {
        match self.sources.reader.look().await {
            Ok(holders) => state.holders = Some(holders),
            // Nobody can hold anything before the first plugin has registered.
            Err(HoldersError::Missing(_)) => state.holders = Some(Holders::default()),
            Err(error) if state.holders.is_none() => return Err(one_line(&error)),
            Err(_) => {}
        }
        let State { guard: Some(guard), holders: Some(holders), .. } = state else { return Ok(()) };
        let (inventory, pods) = (self.sources.inventory.borrow().clone(), self.sources.pods.borrow().clone());
        let result = guard.round(Facts { inventory: &inventory, holders, pods: &pods });
        self.metrics.in_force.set(i64::from(guard.in_force()));
        self.metrics.waiting.set(i64::try_from(guard.waiting()).unwrap_or(i64::MAX));
        self.metrics.allowed.set(i64::try_from(guard.allowed()).unwrap_or(i64::MAX));
        result.map_err(|error| one_line(&error))
    }

    fn starting(&self) -> bool {
        self.sources.inventory.borrow().backends().any(|(_, state)| *state == BackendState::Starting)
    }

    /// Whether there must be a round now.
    async fn check(&self) -> bool {
        let mut state = self.state.lock().await;
        let pods = self.sources.pods.borrow().clone();
        let Some(guard) = &mut state.guard else { return false };
        if let Err(error) = guard.check(&pods) {
            tracing::warn!("isolation: {}", one_line(&error));
        }
        guard.is_outdated()
    }

    /// Whether a container may start now.
    async fn admit(&self, resource: &ResourceName, devices: &[DeviceId]) -> Result<(), String> {
        let round = self.round().await;
        let state = self.state.lock().await;
        let (Some(guard), Some(holders)) = (&state.guard, &state.holders) else {
            return Err("isolation is not in force: who holds which device can't be told yet".to_owned());
        };
        if !guard.in_force() {
            return Err(format!("isolation is not in force: {}", round.err().unwrap_or_default()));
        }
        guard.admits(holders, resource, devices)
    }
}

#[async_trait::async_trait]
impl PreStart for Isolation {
    async fn before_start(&self, resource: &ResourceName, devices: &[DeviceId]) -> Result<(), String> {
        let begin = Instant::now();
        loop {
            let Err(why) = self.admit(resource, devices).await else { return Ok(()) };
            let open = self.while_away == WhileAway::Open && !self.metrics.in_force.get().is_positive();
            if self.mode != Mode::Enforce || open {
                tracing::warn!(%resource, ?devices, "a container starts although {why}");
                return Ok(());
            }
            if begin.elapsed() >= WAIT_WITHIN {
                return Err(why);
            }
            sleep(WAIT_STEP).await;
        }
    }
}

/// Watches folders for cgroups and device nodes that come and go.
#[derive(Debug, Default)]
struct Watching {
    folders: Vec<PathBuf>,
    watcher: Option<notify::RecommendedWatcher>,
}

impl Watching {
    fn follow(&mut self, folders: Vec<PathBuf>, ticks: &watch::Sender<()>) {
        use notify::{EventKind, RecursiveMode, Watcher as _};
        if self.folders == folders {
            return;
        }
        let tick = ticks.clone();
        let seen = move |event: notify::Result<notify::Event>| {
            if event.is_ok_and(|event| matches!(event.kind, EventKind::Create(_) | EventKind::Remove(_))) {
                tick.send_replace(());
            }
        };
        let watcher = notify::recommended_watcher(seen).and_then(|mut watcher| {
            for folder in &folders {
                watcher.watch(folder, RecursiveMode::NonRecursive)?;
            }
            Ok(watcher)
        });
        match watcher {
            Ok(watcher) => (self.watcher, self.folders) = (Some(watcher), folders),
            Err(error) => {
                tracing::warn!(%error, "can't watch pods' cgroups and /dev: looking every {ROUND_EVERY:?} instead");
            }
        }
    }
}
