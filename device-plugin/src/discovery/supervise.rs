//! Keeping a back end at work. It has a thread of its own, which may panic or hang in a driver; until another one has looked, its
//! devices are Unhealthy: what nobody watches is never Healthy.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    time::{Duration, Instant},
};

use tokio::{
    sync::{oneshot, watch},
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{Backend, DiscoveryError, Reporter, publish};
use crate::inventory::{BackendState, Inventory, all_unhealthy};

/// How a back end that misbehaves is dealt with.
#[derive(Debug, Clone, Copy)]
struct Patience {
    /// One that has said nothing for this long hangs: its devices can't be trusted.
    silent: Duration,
    /// One that hangs for this long is given up, and another is started beside it.
    hanging: Duration,
    /// How long to wait before one that died is started again, at first and at most.
    restart: (Duration, Duration),
}

const PATIENCE: Patience = Patience {
    silent: Duration::from_secs(10),
    hanging: Duration::from_secs(30),
    restart: (Duration::from_millis(500), Duration::from_secs(30)),
};
/// Threads of one back end that may hang at once. A thread can't be killed; what hangs this often would hang the next one, too.
const HANGING_AT_MOST: usize = 3;
/// How long a stopping back end is waited for before the process goes without it.
const STOP_WITHIN: Duration = Duration::from_secs(2);

/// Runs `backend` until `stop`, each time on a thread of its own: when it dies or hangs, another one takes its place.
///
/// # Errors
/// When there is no thread for it.
pub async fn supervise(
    backend: Box<dyn Backend>,
    inventory: watch::Sender<Inventory>,
    stop: CancellationToken,
) -> Result<(), DiscoveryError> {
    supervise_with(PATIENCE, backend, inventory, stop).await
}

/// One thread of a back end.
struct Run {
    last_sign: Arc<Mutex<Instant>>,
    given_up: Arc<AtomicBool>,
    stop: CancellationToken,
    /// Dropped when it is to stop.
    pausing: Option<mpsc::Sender<()>>,
    end: oneshot::Receiver<()>,
}

impl Run {
    fn start(
        backend: Box<dyn Backend>,
        inventory: &watch::Sender<Inventory>,
        stop: &CancellationToken,
    ) -> Result<Self, DiscoveryError> {
        let name = backend.name();
        let last_sign = Arc::new(Mutex::new(Instant::now()));
        let (given_up, stop) = (Arc::new(AtomicBool::new(false)), stop.child_token());
        let (pausing, paused) = mpsc::channel();
        let reporter = Reporter {
            backend: name,
            inventory: inventory.clone(),
            last_sign: last_sign.clone(),
            stop: stop.clone(),
            pausing: paused,
            given_up: given_up.clone(),
        };
        let (ended, end) = oneshot::channel();
        // Not tokio's blocking pool: the runtime would wait for a hanging thread for ever.
        std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || {
                backend.run(&reporter);
                let _ = ended.send(());
            })
            .map_err(|source| DiscoveryError::Thread { backend: name, source })?;
        Ok(Self { last_sign, given_up, stop, pausing: Some(pausing), end })
    }

    fn silent(&self) -> Duration {
        self.last_sign.lock().unwrap_or_else(PoisonError::into_inner).elapsed()
    }

    /// From now on nothing is heard of it; should it come back to its senses, it ends.
    fn give_up(&mut self) {
        self.given_up.store(true, Ordering::Release);
        self.stop.cancel();
        self.pausing = None;
    }
}

/// How one thread came to its end.
enum Outcome {
    Stopped,
    Died,
    Hangs,
}

async fn supervise_with(
    patience: Patience,
    backend: Box<dyn Backend>,
    inventory: watch::Sender<Inventory>,
    stop: CancellationToken,
) -> Result<(), DiscoveryError> {
    let name = backend.name();
    let mut hanging: Vec<Run> = Vec::new();
    let mut pause = patience.restart.0;
    loop {
        let started = Instant::now();
        let mut run = Run::start(backend.again(), &inventory, &stop)?;
        let trouble = match watch_over(patience, name, &mut run, &inventory, &stop).await {
            Outcome::Stopped => return Ok(()),
            Outcome::Died => {
                run.give_up();
                format!("the {name} back end died; it is started again")
            }
            Outcome::Hangs => {
                run.give_up();
                hanging.push(run);
                format!("the {name} back end hangs; another one is started")
            }
        };
        tracing::error!(backend = name, hanging = hanging.len(), "{trouble}");
        unavailable(&inventory, name, &trouble);
        // One that worked for a while may start at once.
        if started.elapsed() > patience.restart.1 {
            pause = patience.restart.0;
        }
        loop {
            if timeout(pause, stop.cancelled()).await.is_ok() {
                return Ok(());
            }
            hanging.retain_mut(|run| matches!(run.end.try_recv(), Err(oneshot::error::TryRecvError::Empty)));
            if hanging.len() < HANGING_AT_MOST {
                break;
            }
        }
        pause = (pause * 2).min(patience.restart.1);
    }
}

async fn watch_over(
    patience: Patience,
    name: &'static str,
    run: &mut Run,
    inventory: &watch::Sender<Inventory>,
    stop: &CancellationToken,
) -> Outcome {
    loop {
        // When it could have been silent for too long, and from then on more often.
        let due = patience.silent.saturating_sub(run.silent()).max(patience.silent / 12);
        tokio::select! {
            () = stop.cancelled() => {
                run.pausing = None;
                if timeout(STOP_WITHIN, &mut run.end).await.is_err() {
                    tracing::warn!(backend = name, "the back end hangs: stopping without it");
                    run.give_up();
                }
                return Outcome::Stopped;
            }
            _ = &mut run.end => return if stop.is_cancelled() { Outcome::Stopped } else { Outcome::Died },
            () = sleep(due) => {
                let silent = run.silent();
                if silent > patience.hanging {
                    return Outcome::Hangs;
                }
                if silent > patience.silent {
                    let seconds = patience.silent.as_secs();
                    unavailable(inventory, name, &format!("the {name} back end has not answered for {seconds} s"));
                }
            }
        }
    }
}

fn unavailable(inventory: &watch::Sender<Inventory>, name: &'static str, why: &str) {
    let state = BackendState::Unavailable(why.to_owned());
    publish(inventory, name, &state, &AtomicBool::new(false), |before| all_unhealthy(before, why));
}

#[cfg(test)]
mod tests;
