//! Finding devices: what every back end has in common. A back end may block, so each has a thread of its own; it publishes complete
//! lists, and a thread that hangs (drivers do) is noticed from outside.

pub mod dfl;
pub mod nvml;

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use tokio::{
    runtime::Handle,
    sync::{oneshot, watch},
    time::{MissedTickBehavior, interval, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::{
    device::{Device, Health},
    inventory::{BackendState, Change, Inventory, all_unhealthy},
};

/// A back end that has said nothing for this long hangs; its devices can't be trusted.
const STALLED_AFTER: Duration = Duration::from_mins(1);
/// How long a stopping back end is waited for before the process goes without it.
const STOP_WITHIN: Duration = Duration::from_secs(2);

/// Where this machine shows its devices. A test is a folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Roots {
    /// The host's sysfs.
    pub sys: PathBuf,
    /// The host's device nodes as this process sees them. Containers get `/dev/...` of the host whatever this is.
    pub dev: PathBuf,
}

impl Roots {
    /// The host's path of the device node `name`, if the host has it.
    fn node(&self, name: &str) -> Option<PathBuf> {
        self.dev.join(name).exists().then(|| Path::new("/dev").join(name))
    }
}

/// One way to find devices.
pub trait Backend: Send + 'static {
    /// Its name in logs and metrics.
    fn name(&self) -> &'static str;

    /// Looks and publishes until `reporter` says stop. May block.
    fn run(self: Box<Self>, reporter: &Reporter);
}

/// Why a back end ended.
#[derive(Debug, thiserror::Error)]
pub enum DiscoveryError {
    /// The system gives no thread.
    #[error("can't start the thread of the {backend} back end")]
    Thread {
        /// The back end.
        backend: &'static str,
        /// What the system says.
        source: io::Error,
    },
    /// Its thread ended although nobody asked it to: it panicked.
    #[error("the {0} back end died")]
    Died(&'static str),
}

/// A back end's way to the inventory, and its clock.
#[derive(Debug)]
pub struct Reporter {
    backend: &'static str,
    inventory: watch::Sender<Inventory>,
    last_sign: Arc<Mutex<Instant>>,
    runtime: Handle,
    stop: CancellationToken,
}

impl Reporter {
    /// These are all the devices there are.
    pub fn devices(&self, devices: Vec<Device>) {
        self.publish(&BackendState::Running, |_| devices);
    }

    /// What the machine's node should be labelled with, all of it.
    pub fn labels(&self, labels: BTreeMap<String, String>) {
        self.inventory.send_if_modified(|current| {
            let next = current.with_labels(self.backend, labels);
            let modified = next != *current;
            *current = next;
            modified
        });
    }

    /// The back end can't look. Devices that it found before are Unhealthy from now on.
    pub fn unavailable(&self, why: &str) {
        self.publish(&BackendState::Unavailable(why.to_owned()), |before| all_unhealthy(before, why));
    }

    /// Whether to stop.
    pub fn stopping(&self) -> bool {
        self.stop.is_cancelled()
    }

    /// Waits, but no longer than until it is time to stop.
    pub fn pause(&self, duration: Duration) {
        // The timer is made inside the runtime, which this thread is not in.
        let _ = self.runtime.block_on(async { timeout(duration, self.stop.cancelled()).await });
        self.alive();
    }

    /// The back end does not hang.
    pub fn alive(&self) {
        *self.last_sign.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    fn publish(&self, state: &BackendState, devices: impl FnOnce(&[Device]) -> Vec<Device>) {
        self.alive();
        publish(&self.inventory, self.backend, state, devices);
    }
}

fn publish(
    inventory: &watch::Sender<Inventory>,
    backend: &'static str,
    state: &BackendState,
    devices: impl FnOnce(&[Device]) -> Vec<Device>,
) {
    inventory.send_if_modified(|current| {
        let (next, refused) = current.with(backend, state.clone(), devices(current.found_by(backend)));
        for device in refused {
            tracing::warn!(device.id = %device.id, resource = %device.resource, "device listed twice: the second is ignored");
        }
        for change in next.changes(current) {
            log(&change);
        }
        let modified = next != *current;
        *current = next;
        modified
    });
}

fn log(change: &Change<'_>) {
    match change {
        Change::Added(device) => match &device.health {
            Health::Healthy => {
                tracing::info!(device.id = %device.id, resource = %device.resource, numa_node = device.accelerator.numa_node, "device found");
            }
            Health::Unhealthy(why) => {
                tracing::warn!(device.id = %device.id, resource = %device.resource, why, "device found, but Unhealthy");
            }
        },
        Change::Removed(device) => {
            tracing::warn!(device.id = %device.id, resource = %device.resource, "device gone");
        }
        Change::Health(device) => match &device.health {
            Health::Healthy => {
                tracing::info!(device.id = %device.id, resource = %device.resource, "device is Healthy again");
            }
            Health::Unhealthy(why) => {
                tracing::warn!(device.id = %device.id, resource = %device.resource, why, "device is Unhealthy");
            }
        },
    }
}

/// Runs `backend` on its own thread until `stop`.
///
/// # Errors
/// When there is no thread for it, or it dies.
pub async fn supervise(
    backend: Box<dyn Backend>,
    inventory: watch::Sender<Inventory>,
    stop: CancellationToken,
) -> Result<(), DiscoveryError> {
    supervise_with(STALLED_AFTER, backend, inventory, stop).await
}

async fn supervise_with(
    stalled_after: Duration,
    backend: Box<dyn Backend>,
    inventory: watch::Sender<Inventory>,
    stop: CancellationToken,
) -> Result<(), DiscoveryError> {
    let name = backend.name();
    let last_sign = Arc::new(Mutex::new(Instant::now()));
    let reporter = Reporter {
        backend: name,
        inventory: inventory.clone(),
        last_sign: last_sign.clone(),
        runtime: Handle::current(),
        stop: stop.clone(),
    };
    let (ended, mut end) = oneshot::channel();
    // Not tokio's blocking pool: the runtime would wait for a hanging thread for ever.
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(move || {
            backend.run(&reporter);
            let _ = ended.send(());
        })
        .map_err(|source| DiscoveryError::Thread { backend: name, source })?;

    let mut look = interval(stalled_after / 12);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => {
                if timeout(STOP_WITHIN, end).await.is_err() {
                    tracing::warn!(backend = name, "the back end hangs: stopping without it");
                }
                return Ok(());
            }
            _ = &mut end => return if stop.is_cancelled() { Ok(()) } else { Err(DiscoveryError::Died(name)) },
            _ = look.tick() => {
                let silent = last_sign.lock().unwrap_or_else(PoisonError::into_inner).elapsed();
                if silent > stalled_after {
                    let why = format!("the {name} back end has not answered for {} s", stalled_after.as_secs());
                    publish(&inventory, name, &BackendState::Unavailable(why.clone()), |before| all_unhealthy(before, &why));
                }
            }
        }
    }
}

/// Complaints that are made once, not at every look: again only when the text changes, or when it had gone away meanwhile.
#[derive(Debug, Default)]
struct Complaints {
    standing: BTreeMap<String, String>,
    repeated: BTreeMap<String, String>,
}

impl Complaints {
    /// `what` is wrong with `subject` in this round; true when that is news.
    fn note(&mut self, subject: &str, what: &str) -> bool {
        self.repeated.insert(subject.to_owned(), what.to_owned());
        self.standing.get(subject).is_none_or(|said| said != what)
    }

    /// The round is over: what was not repeated is forgotten.
    fn end_round(&mut self) {
        self.standing = std::mem::take(&mut self.repeated);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inventory::tests::device;

    struct Scripted<F>(F);

    impl<F: FnOnce(&Reporter) + Send + 'static> Backend for Scripted<F> {
        fn name(&self) -> &'static str {
            "scripted"
        }

        fn run(self: Box<Self>, reporter: &Reporter) {
            (self.0)(reporter);
        }
    }

    #[tokio::test]
    async fn what_was_found_is_unhealthy_while_the_back_end_cannot_look() {
        let inventory = watch::Sender::new(Inventory::starting(["scripted"]));
        let stop = CancellationToken::new();
        let backend = Scripted(|reporter: &Reporter| {
            reporter.devices(vec![device("nvidia.com/gpu", "GPU-1", None)]);
            reporter.unavailable("driver gone");
            reporter.pause(Duration::from_mins(10));
        });
        let mut seen = inventory.subscribe();
        let running = supervise(Box::new(backend), inventory, stop.clone());
        let looking = async {
            let last = seen
                .wait_for(|now| now.devices().any(|device| !device.health.is_healthy()))
                .await
                .unwrap()
                .clone();
            assert_eq!(
                last.backends().collect::<Vec<_>>(),
                [("scripted", &BackendState::Unavailable("driver gone".to_owned()))]
            );
            stop.cancel();
        };
        let (ended, ()) = tokio::join!(running, looking);
        ended.unwrap();
    }

    #[tokio::test]
    async fn a_back_end_that_panics_fails_its_supervisor() {
        let inventory = watch::Sender::new(Inventory::default());
        let backend = Scripted(|_: &Reporter| panic!("a bug"));
        let error = supervise(Box::new(backend), inventory, CancellationToken::new()).await.unwrap_err();
        assert_eq!(error.to_string(), "the scripted back end died");
    }

    #[tokio::test]
    async fn a_back_end_that_hangs_makes_its_devices_unhealthy_until_it_speaks() {
        let inventory = watch::Sender::new(Inventory::default());
        let (release, released) = std::sync::mpsc::channel::<()>();
        let backend = Scripted(move |reporter: &Reporter| {
            reporter.devices(vec![device("nvidia.com/gpu", "GPU-1", None)]);
            let _ = released.recv();
            reporter.devices(vec![device("nvidia.com/gpu", "GPU-1", None)]);
            reporter.pause(Duration::from_mins(10));
        });
        let mut seen = inventory.subscribe();
        let stop = CancellationToken::new();
        let running = supervise_with(Duration::from_millis(120), Box::new(backend), inventory, stop.clone());
        let looking = async {
            let sick = |now: &Inventory| now.devices().any(|device| !device.health.is_healthy());
            seen.wait_for(sick).await.unwrap();
            release.send(()).unwrap();
            seen.wait_for(|now| !sick(now)).await.unwrap();
            stop.cancel();
        };
        let (ended, ()) = tokio::join!(running, looking);
        ended.unwrap();
    }

    #[test]
    fn complaints_are_news_once() {
        let mut complaints = Complaints::default();
        assert!(complaints.note("port0", "no compat_id"));
        complaints.end_round();
        assert!(!complaints.note("port0", "no compat_id"));
        complaints.end_round();
        assert!(complaints.note("port0", "compat_id is empty"));
        complaints.end_round();
        complaints.end_round();
        assert!(complaints.note("port0", "compat_id is empty"), "it had gone away meanwhile");
    }
}
