//! Finding devices: what every back end has in common. A back end may block, so each has a thread of its own; it publishes complete
//! lists, and a thread that hangs (drivers do) is noticed from outside.

pub mod dfl;
pub mod fpga_manager;
pub mod intel;
mod kinds;
pub mod nvml;
pub mod opae;
pub mod poll;
mod supervise;
mod sysfs;
pub mod xrt;

use std::{
    any::Any,
    collections::BTreeMap,
    fs, io,
    os::unix::fs::FileTypeExt as _,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc::Receiver,
    },
    time::{Duration, Instant},
};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub use {kinds::run, supervise::supervise};

use crate::{
    config::Config,
    device::{Device, Health},
    health::memo::Memos,
    inventory::{BackendState, Change, Inventory, all_unhealthy},
    sharing::Rules,
};

/// Where this machine shows its devices. A test is a folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Roots {
    /// The host's sysfs.
    pub sys: PathBuf,
    /// The host's device nodes as this process sees them. Containers get `/dev/...` of the host whatever this is.
    pub dev: PathBuf,
    /// The host's procfs, for what drivers show in its `driver` folder; processes are not looked for here.
    pub proc: PathBuf,
}

impl Roots {
    /// The host's path of the device node `name`, if the host has it: itself, as a link, which a pod with the host's `/dev` could put there,
    /// would lead the runtime elsewhere. A test's folder has plain files.
    fn node(&self, name: &str) -> Option<PathBuf> {
        let is_node = |data: fs::Metadata| data.is_file() || data.file_type().is_char_device();
        fs::symlink_metadata(self.dev.join(name)).is_ok_and(is_node).then(|| Path::new("/dev").join(name))
    }
}

/// Every back end there is. A new vendor is one file, and its name here.
pub const KINDS: &[Kind] = &[nvml::KIND, dfl::KIND, opae::KIND, xrt::KIND, fpga_manager::KIND];

/// A kind of back end.
#[derive(Debug, Clone, Copy)]
pub struct Kind {
    /// Its name in logs and metrics.
    pub name: &'static str,
    /// Makes one; none where the configuration wants none.
    pub make: fn(&Setting) -> Option<Box<dyn Backend>>,
    /// Whether two configurations are the same to it, so that a running one need not be replaced.
    pub same: fn(&Config, &Config) -> bool,
    /// How the device nodes of its accelerators are called.
    pub nodes: NodeNames,
}

/// How device nodes are known to be accelerators', also those of devices that were not listed (yet): isolation keeps them from all who
/// weren't given them. All but the numbers are beginnings of names.
#[derive(Debug, Clone, Copy)]
pub struct NodeNames {
    /// Majors that the kernel keeps for the drivers, loaded or not.
    pub majors: &'static [u32],
    /// Drivers in `/proc/devices`.
    pub drivers: &'static [&'static str],
    /// Nodes below `/dev`, should the driver go by another name; one that ends in `/` is a folder of them.
    pub nodes: &'static [&'static str],
    /// Nodes that other drivers add to all devices of the vendor: whoever has one of these may open them.
    pub companions: &'static [&'static str],
    /// PCI drivers whose graphics nodes (`/dev/dri`) reach an accelerator.
    pub graphics: &'static [&'static str],
    /// Nodes that govern more than one pod's share: they are nobody's, even if a back end should list them.
    pub management: &'static [&'static str],
}

impl NodeNames {
    /// Nodes that are known by the devices that need them, and by nothing else.
    pub const NONE: Self =
        Self { majors: &[], drivers: &[], nodes: &[], companions: &[], graphics: &[], management: &[] };
}

/// What a back end is made from.
#[derive(Debug, Clone)]
pub struct Setting {
    /// Where the machine shows its devices.
    pub roots: Roots,
    /// How often to look.
    pub interval: Duration,
    /// What the user wants.
    pub config: Arc<Config>,
    /// What outlives any single back end.
    pub memory: Memory,
}

/// What kinds of back ends remember for as long as the process runs, each under its name: a device that is sick stays so when a new
/// configuration replaces whoever watched it. Cheap to clone; all clones are one.
#[derive(Debug, Clone, Default)]
pub struct Memory {
    known: Arc<Mutex<BTreeMap<&'static str, Arc<dyn Any + Send + Sync>>>>,
    memos: Option<Memos>,
}

impl Memory {
    /// One that leaves the next process word of what is wrong with devices.
    pub fn kept(memos: Memos) -> Self {
        Self { memos: Some(memos), ..Self::default() }
    }

    /// Where word is left, if it is.
    fn memos(&self) -> Option<&Memos> {
        self.memos.as_ref()
    }

    /// What the kind `name` remembers; `make` makes it the first time.
    pub fn of<T: Any + Send + Sync>(&self, name: &'static str, make: impl Fn() -> T) -> Arc<T> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let found = known.entry(name).or_insert_with(|| Arc::new(make())).clone();
        // Names are unique; should two kinds share one, each has its own.
        found.downcast().unwrap_or_else(|_| Arc::new(make()))
    }
}

impl Setting {
    /// The inventory before anything was looked for.
    pub fn inventory(&self) -> Inventory {
        Inventory::starting(KINDS.iter().filter(|kind| (kind.make)(self).is_some()).map(|kind| kind.name))
            .ruled_by(Arc::new(Rules::of(&self.config)))
    }
}

/// One way to find devices.
pub trait Backend: Send + 'static {
    /// Its name in logs and metrics.
    fn name(&self) -> &'static str;

    /// Another one like it, to take its place when it has died or hangs.
    fn again(&self) -> Box<dyn Backend>;

    /// Looks and publishes until `reporter` says stop. May block.
    fn run(self: Box<Self>, reporter: &Reporter);
}

/// Why there is no back end.
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
}

/// A back end's way to the inventory, and its clock. Once the back end was given up, nothing that it says is heard any more.
#[derive(Debug)]
pub struct Reporter {
    backend: &'static str,
    inventory: watch::Sender<Inventory>,
    last_sign: Arc<Mutex<Instant>>,
    /// Its own: it is told to stop when it is given up, too.
    stop: CancellationToken,
    /// Hung up on when it is to stop, which ends a pause: a thread that waits here wakes nobody else.
    pausing: Receiver<()>,
    given_up: Arc<AtomicBool>,
}

impl Reporter {
    /// These are all the devices there are.
    pub fn devices(&self, devices: Vec<Device>) {
        self.publish(&BackendState::Running, |_| devices);
    }

    /// What the machine's node should be labelled with, all of it.
    pub fn labels(&self, labels: BTreeMap<String, String>) {
        self.inventory.send_if_modified(|current| {
            if self.given_up.load(Ordering::Acquire) {
                return false;
            }
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
        let _ = self.pausing.recv_timeout(duration);
        self.alive();
    }

    /// The back end does not hang.
    pub fn alive(&self) {
        *self.last_sign.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    fn publish(&self, state: &BackendState, devices: impl FnOnce(&[Device]) -> Vec<Device>) {
        self.alive();
        publish(&self.inventory, self.backend, state, &self.given_up, devices);
    }
}

fn publish(
    inventory: &watch::Sender<Inventory>,
    backend: &'static str,
    state: &BackendState,
    given_up: &AtomicBool,
    devices: impl FnOnce(&[Device]) -> Vec<Device>,
) {
    inventory.send_if_modified(|current| {
        // Asked in here, where publications follow one another: what is given up can't overwrite what was said about that.
        if given_up.load(Ordering::Acquire) {
            return false;
        }
        let (next, refused) = current.with(backend, state.clone(), devices(current.found_by(backend)));
        for device in refused {
            tracing::warn!(device.id = %device.id, resource = %device.resource, "device listed twice: the second is ignored");
        }
        if next == *current {
            return false;
        }
        for change in next.changes(current) {
            log(&change);
        }
        log_refused(current, &next);
        *current = next;
        true
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

/// Says what the configuration asks for that the devices can't give, where that is news.
fn log_refused(before: &Inventory, now: &Inventory) {
    let known = before.refused();
    for why in now.refused().into_iter().filter(|why| !known.contains(why)) {
        tracing::error!(
            "the configuration asks for what the devices can't give: {why}; none of these devices is offered"
        );
    }
}

/// Complaints that are made once, not at every look: again only when the text changes, or when it had gone away meanwhile.
#[derive(Debug, Clone, Default)]
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

    #[test]
    fn only_what_is_no_link_is_a_node() {
        let dev = tempfile::tempdir().unwrap();
        let roots = Roots { sys: PathBuf::new(), dev: dev.path().to_owned(), proc: PathBuf::new() };
        fs::write(dev.path().join("nvidia0"), "").unwrap();
        std::os::unix::fs::symlink("nvidia0", dev.path().join("nvidia1")).unwrap();
        std::os::unix::fs::symlink("/dev/null", dev.path().join("nvidia2")).unwrap();
        fs::create_dir(dev.path().join("nvidia3")).unwrap();
        assert_eq!(roots.node("nvidia0"), Some("/dev/nvidia0".into()));
        for name in ["nvidia1", "nvidia2", "nvidia3", "nvidia4"] {
            assert_eq!(roots.node(name), None, "{name}");
        }
        let host = Roots { dev: "/dev".into(), ..roots };
        assert_eq!(host.node("null"), Some("/dev/null".into()));
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
