//! NVIDIA GPUs, by NVML. One thread: it opens the library and looks at every GPU at each interval. Between looks it waits for events,
//! and more often than once a second it takes their pulse: what their health is judged by, and whether anything else has changed.
//!
//! NVML sees the GPUs that were there when it was started, so a GPU that is added or taken away, a driver that is unloaded and
//! another layout of MIG are noticed by what the kernel shows, and NVML is started anew. A GPU that NVML lists but can't read is
//! *lost*: it stays offered as Unhealthy. One that NVML no longer lists is *gone*.

mod events;
pub mod judge;
pub mod labels;
pub(crate) mod library;
mod links;
pub mod look;
pub mod mig;
mod pulse;
mod raw;
mod usage;
pub mod vgpu;
pub mod vitals;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use nvml_wrapper::{EventSet, Nvml, error::NvmlError};

use super::{Backend, Kind, Memory, NodeNames, Reporter, Roots};
use crate::{causes::one_line, config::Config};
use judge::{Judge, Rules, Urgency};
use labels::Machine;
use look::{Felt, Gpu, Look, Looker};
use pulse::{Folders, Inside, Outside};
use vgpu::Vgpu;

/// The time between two pulses, and the longest that one wait for events may block, so that stopping is prompt. A fault that no event
/// tells of is to reach the kubelet within a second, and each pulse is a handful of calls of NVML per GPU.
const PULSE: Duration = Duration::from_millis(750);
/// How long to wait before NVML is opened again after it failed, at first and at most. What the kernel shows may make it sooner.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// How often NVML is started anew while a GPU is lost: a GPU that was reset is seen only then.
const REOPEN_FOR_LOST: Duration = Duration::from_secs(30);
/// The node that every driver has.
const CONTROL: &str = "nvidiactl";
/// What the firmware calls the machine, below sysfs.
const MACHINE: &str = "class/dmi/id/product_name";

/// Reserved for NVIDIA's driver: GPUs and control nodes.
pub const MAJOR: u32 = 195;

/// NVML, as the list of back ends has it.
pub const KIND: Kind = Kind {
    name: "nvml",
    make: |setting| {
        let config = &setting.config;
        let root = config.flags.driver_root_here().to_owned();
        config.gpu.enabled.then(|| {
            let (roots, interval) = (setting.roots.clone(), setting.interval);
            let mut backend = NvmlBackend::new(root, roots, interval, config.clone());
            backend.remember(&setting.memory);
            Box::new(backend) as _
        })
    },
    same: |one, other| {
        let alike = one.gpu == other.gpu && one.flags == other.flags && one.health == other.health;
        // Labels tell how GPUs are shared.
        alike && one.sharing == other.sharing
    },
    nodes: NodeNames {
        majors: &[MAJOR],
        drivers: &["nvidia", "gdrdrv"],
        nodes: &["nvidia", "nvidia-caps/", "nvidia-caps-imex-channels/", "gdrdrv"],
        // GPUDirect's copies and storage.
        companions: &["gdrdrv", "nvidia-fs"],
        graphics: &["nvidia"],
        ..NodeNames::NONE
    },
};

/// Where the GPUs' nodes are looked at, and where the host has them if that is not `/dev`: a driver container makes them in its own `/dev`,
/// which nothing puts into the host's. `here` and `host` are the driver's root as this process and as the host see it.
fn nodes_at(roots: &Roots, here: &Path, host: &Path) -> (Roots, Option<PathBuf>) {
    let theirs = here.join("dev");
    if host == Path::new("/") || roots.dev.join(CONTROL).exists() || !theirs.join(CONTROL).exists() {
        return (roots.clone(), None);
    }
    (Roots { dev: theirs, ..roots.clone() }, Some(host.join("dev")))
}

/// The NVML back end.
#[derive(Debug, Clone)]
pub struct NvmlBackend {
    driver_root: PathBuf,
    roots: Roots,
    interval: Duration,
    config: Arc<Config>,
    rules: Rules,
    /// Outlives this one, if it has to be replaced.
    judge: Arc<Mutex<Judge>>,
    labelled: BTreeMap<String, String>,
    vgpu: Option<Vgpu>,
}

impl NvmlBackend {
    /// Looks for the library below `driver_root`, and at the GPUs every `interval`.
    pub fn new(driver_root: PathBuf, roots: Roots, interval: Duration, config: Arc<Config>) -> Self {
        let rules = Rules {
            imex: config.imex.clone(),
            mig: config.flags.mig_strategy,
            gpu: config.gpu.clone(),
            xids_disabled: config.health.disabled,
        };
        let judge = Arc::new(Mutex::new(Judge::new(config.gpu.recovery())));
        Self { driver_root, roots, interval, config, rules, judge, labelled: BTreeMap::new(), vgpu: None }
    }

    /// Takes over what an earlier one has seen.
    fn remember(&mut self, memory: &Memory) {
        let quiet = self.config.gpu.recovery();
        self.judge = memory.of(KIND.name, || {
            let judge = Judge::new(quiet);
            Mutex::new(match memory.memos() {
                Some(memos) => judge.remembering(memos, KIND.name, Instant::now()),
                None => judge,
            })
        });
        self.judge().set_quiet(quiet);
    }

    fn judge(&self) -> MutexGuard<'_, Judge> {
        self.judge.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn outside(&self) -> Outside {
        Outside::now(&self.roots, &library::present(&self.driver_root))
    }

    /// Works with one start of NVML, until it has to be started anew.
    fn session(&mut self, nvml: &Nvml, outside: &Outside, reporter: &Reporter) -> Result<(), NvmlError> {
        let opened = Instant::now();
        self.vgpu = Vgpu::read(&self.roots.sys);
        let events = events::watch(nvml)?;
        let mut looker = Looker::default();
        loop {
            let inside = Inside::now(nvml, !outside.shows_partitions());
            let mut look = looker.look(nvml)?;
            reporter.alive();
            // Labels first: whoever sees the devices may want to know what they are.
            self.label(nvml, &look, reporter);
            self.tell(&look, reporter);
            let folders = Folders::now(&self.roots, &look.gpus);

            let (next_look, mut next_pulse) = (Instant::now() + self.interval, Instant::now() + PULSE);
            while Instant::now() < next_look {
                if reporter.stopping() {
                    return Ok(());
                }
                let left = next_look.min(next_pulse).saturating_duration_since(Instant::now());
                match self.wait(nvml, &events, left, reporter) {
                    Urgency::None if Instant::now() < next_pulse => continue,
                    Urgency::None | Urgency::Ask => {}
                    Urgency::Look => break,
                    Urgency::Tell => {
                        // A look takes its time on a busy machine.
                        self.tell(&look, reporter);
                        break;
                    }
                }
                if self.is_elsewhere(outside) {
                    return Ok(());
                }
                match Looker::feel(nvml, &mut look) {
                    Felt::Same => {}
                    Felt::Changed => self.tell(&look, reporter),
                    Felt::Lost => break,
                }
                let same = Inside::now(nvml, !outside.shows_partitions()) == inside
                    && Folders::now(&self.roots, &look.gpus) == folders;
                if !same {
                    break;
                }
                next_pulse = Instant::now() + PULSE;
            }
            let reopen = !look.unreadable.is_empty() && opened.elapsed() > REOPEN_FOR_LOST;
            if reopen || self.is_elsewhere(outside) {
                return Ok(());
            }
        }
    }

    /// Whether the kernel shows something else than when NVML was started.
    fn is_elsewhere(&self, outside: &Outside) -> bool {
        let changed = self.outside() != *outside;
        if changed {
            tracing::info!("GPUs, their driver or their partitions are not what they were: looking anew");
        }
        changed
    }

    /// Tells the inventory what is known of the GPUs.
    fn tell(&self, look: &Look, reporter: &Reporter) {
        let (roots, dev) = nodes_at(&self.roots, &self.driver_root, self.config.flags.driver_root());
        let mut judge = self.judge();
        judge.set_dev(dev);
        let devices = judge.devices(look, &self.rules, &roots, Instant::now());
        drop(judge);
        reporter.devices(devices);
    }

    /// Waits for one event.
    fn wait(&self, nvml: &Nvml, events: &EventSet<'_>, duration: Duration, reporter: &Reporter) -> Urgency {
        let milliseconds = u32::try_from(duration.as_millis()).unwrap_or(u32::MAX).max(1);
        match raw::wait(nvml, events, milliseconds) {
            Ok(event) => self.judge().event(&event, &self.rules, Instant::now()),
            Err(NvmlError::Timeout) => {
                reporter.alive();
                Urgency::None
            }
            Err(error) => {
                tracing::warn!(%error, "NVML can't wait for events");
                reporter.pause(duration);
                Urgency::Look
            }
        }
    }

    /// Says what the node should be labelled with, if that is news.
    fn label(&mut self, nvml: &Nvml, look: &Look, reporter: &Reporter) {
        let flags = &self.config.flags.gfd;
        let file = flags.machine_type_file.clone().unwrap_or_else(|| self.roots.sys.join(MACHINE));
        let class = |gpu: &Gpu| {
            let address = gpu.fixed.pci_address.as_ref()?;
            short_text(&self.roots.sys.join("bus/pci/devices").join(address).join("class"))
        };
        let classes: BTreeSet<_> = look.gpus.iter().map(class).collect();
        let labels = labels::labels(&Machine {
            driver_version: nvml.sys_driver_version().ok().as_deref(),
            cuda_version: nvml.sys_cuda_driver_version().ok(),
            product: short_text(&file).as_deref(),
            class: classes.first().filter(|_| classes.len() == 1).and_then(Option::as_deref),
            vgpu: self.vgpu.as_ref(),
            gpus: &look.gpus,
            strategy: self.rules.mig,
            sharing: &self.config.sharing,
        });
        if labels == self.labelled {
            return;
        }
        self.labelled.clone_from(&labels);
        let mut all = labels;
        if !all.is_empty() && !flags.no_timestamp {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            all.insert("nvidia.com/gfd.timestamp".to_owned(), now.as_secs().to_string());
        }
        reporter.labels(all);
    }

    /// Waits before NVML is opened again; not as long when the kernel shows something else meanwhile.
    fn pause(&self, duration: Duration, outside: &Outside, reporter: &Reporter) -> bool {
        let until = Instant::now() + duration;
        while Instant::now() < until && !reporter.stopping() {
            reporter.pause(until.saturating_duration_since(Instant::now()).min(PULSE));
            if self.outside() != *outside {
                return true;
            }
        }
        false
    }
}

impl Backend for NvmlBackend {
    fn name(&self) -> &'static str {
        KIND.name
    }

    fn again(&self) -> Box<dyn Backend> {
        Box::new(self.clone())
    }

    fn run(mut self: Box<Self>, reporter: &Reporter) {
        let mut retry = RETRY.0;
        let mut said = None;
        let mut opened = None;
        while !reporter.stopping() {
            let outside = self.outside();
            let failure = match library::open(&self.driver_root) {
                Ok((nvml, path)) => {
                    if opened.as_ref() != Some(&path) {
                        tracing::info!(library = %path.display(), driver = nvml.sys_driver_version().ok(), "NVML runs");
                    }
                    opened = Some(path);
                    match self.session(&nvml, &outside, reporter) {
                        Ok(()) => {
                            (retry, said) = (RETRY.0, None);
                            continue;
                        }
                        Err(error) => format!("NVML failed: {error}"),
                    }
                }
                Err(error) => one_line(&error),
            };
            opened = None;
            reporter.unavailable(&failure);
            if said.as_ref() != Some(&failure) {
                tracing::warn!(
                    "{failure} (no GPU can be allocated; trying again at least every {} s)",
                    RETRY.1.as_secs()
                );
                said = Some(failure);
            }
            let changed = self.pause(retry, &outside, reporter);
            retry = if changed { RETRY.0 } else { (retry * 2).min(RETRY.1) };
        }
    }
}

/// The first line of a short file.
fn short_text(path: &Path) -> Option<String> {
    let bytes = fs::read(path).ok()?;
    let text = String::from_utf8_lossy(&bytes);
    Some(text.lines().next()?.trim().chars().take(128).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_driver_containers_nodes_are_taken_where_the_host_has_none() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let roots = Roots { sys: at("sys"), dev: at("dev"), proc: at("proc") };
        let (here, host) = (at("driver"), Path::new("/run/nvidia/driver"));
        let theirs = Roots { dev: here.join("dev"), ..roots.clone() };
        for dev in [&roots.dev, &theirs.dev] {
            fs::create_dir_all(dev).unwrap();
        }
        let hosts_own = (roots.clone(), None);
        assert_eq!(nodes_at(&roots, &here, host), hosts_own, "nowhere");
        fs::write(theirs.dev.join(CONTROL), "").unwrap();
        assert_eq!(nodes_at(&roots, &here, host), (theirs, Some(host.join("dev"))));
        assert_eq!(nodes_at(&roots, &here, Path::new("/")), hosts_own, "the driver is the host's");
        fs::write(roots.dev.join(CONTROL), "").unwrap();
        assert_eq!(nodes_at(&roots, &here, host), hosts_own, "the host has them");
    }
}
