//! NVIDIA's multi-process service (MPS): one control daemon for each resource that is shared in this way, and what a container needs to take
//! part. The daemon is the vendor's; ours is to set the GPUs to exclusive mode, to tell it each client's part of memory and threads, and to
//! start it again when it dies. Until a daemon answers with its limits set, the replicas are Unhealthy: a container would otherwise run
//! without any limit.
//!
//! A daemon's end is the end of its clients, so it is not the agent's child: a process of its own keeps it (`keeper`), which an upgrade of the
//! agent leaves alone. The agent says which daemons there are to be ([`run`]), and is told how they are.
//!
//! None of this ever ran on hardware: in tests the daemon is a stand-in.

mod daemon;
mod keeper;
mod wire;

use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use spillway_proto::deviceplugin::{ContainerAllocateResponse, Mount};
use tokio::{
    io::BufReader,
    net::UnixStream,
    sync::watch,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::{
    causes::one_line,
    config::{Config, Flags, Way},
    device::{DeviceId, ResourceName},
    discovery::nvml,
    inventory::{BackendState, Inventory},
    sharing,
};
use wire::{Ear, Order, Orders, Report, SILENCE, SOCKET, WireError, say};

pub use daemon::NvmlModes;
pub use keeper::{Keeper, KeeperError};

/// How often to look for a keeper that is not there.
const RETRY: Duration = Duration::from_millis(500);

/// Where pipes and logs lie unless the configuration says so.
const ROOT: &str = "/run/nvidia/mps";
/// Where containers find the same, as with NVIDIA's plugin.
const CONTAINER_ROOT: &str = "/mps";
const SHARED_MEMORY: &str = "/dev/shm";

/// Sets how many processes a GPU takes at once.
pub trait ComputeModes: fmt::Debug + Send + Sync {
    /// Lets only one process (MPS' own server) use each of these GPUs, or any number again. May block.
    ///
    /// # Errors
    /// What the driver says.
    fn set_exclusive(&self, gpus: &[DeviceId], exclusive: bool) -> Result<(), String>;
}

/// The folder of a resource's pipe below a root.
fn pipe_folder(root: &Path, resource: &ResourceName) -> PathBuf {
    root.join(resource.as_str()).join("pipe")
}

fn log_folder(root: &Path, resource: &ResourceName) -> PathBuf {
    root.join(resource.as_str()).join("log")
}

/// What a container of `resource` needs: the way to the daemon, and the memory that it shares with it.
pub(crate) fn join(flags: &Flags, resource: &ResourceName, answer: &mut ContainerAllocateResponse) {
    let root = flags.mps_root.as_deref().unwrap_or(Path::new(ROOT));
    let pipe = pipe_folder(Path::new(CONTAINER_ROOT), resource).display().to_string();
    answer.envs.insert("CUDA_MPS_PIPE_DIRECTORY".to_owned(), pipe.clone());
    let host = [(pipe, pipe_folder(root, resource)), (SHARED_MEMORY.to_owned(), root.join("shm"))];
    answer.mounts.extend(host.into_iter().map(|(container_path, path)| Mount {
        container_path,
        host_path: path.display().to_string(),
        read_only: false,
    }));
}

/// What one daemon governs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Plan {
    /// The GPUs, in the order in which the daemon counts them, and each client's memory in MiB where the GPU's is known.
    gpus: BTreeMap<DeviceId, Option<u64>>,
    /// How many clients there may be.
    clients: u32,
}

/// All daemons there are to be, by the name that the replicas are offered under.
type Plans = BTreeMap<ResourceName, Plan>;

impl Plan {
    /// What the daemon is told when it has started.
    fn commands(&self) -> Vec<String> {
        let memory = self.gpus.values().enumerate().filter_map(|(ordinal, memory_mib)| {
            memory_mib.map(|mib| format!("set_default_device_pinned_mem_limit {ordinal} {mib}M"))
        });
        let threads = format!("set_default_active_thread_percentage {}", (100 / self.clients.max(1)).max(1));
        memory.chain([threads]).collect()
    }
}

/// The daemons that the configuration asks for with these devices.
fn plans(config: &Config, inventory: &Inventory) -> Plans {
    let mut plans = Plans::new();
    for device in inventory.devices() {
        let Some(replica) = &device.replica else { continue };
        if sharing::way_of(&config.sharing, &device.resource) != Some(Way::Mps) {
            continue;
        }
        let plan = plans.entry(device.resource.clone()).or_default();
        plan.gpus.insert(device.accelerator.id.clone(), replica.memory_mib);
        plan.clients = replica.of;
    }
    plans
}

/// Whether the GPUs are known. Until they are, no daemon is wanted less than before.
fn settled(inventory: &Inventory) -> bool {
    let mut states = inventory.backends().filter(|(name, _)| *name == nvml::KIND.name);
    states.all(|(_, state)| *state == BackendState::Running)
}

/// Has the keeper, whose socket is in `folder`, run the daemons that the configuration asks for, until `stop`. What it was asked for last
/// goes on then.
pub async fn run(
    folder: PathBuf,
    configs: watch::Receiver<Arc<Config>>,
    inventory: watch::Sender<Inventory>,
    stop: CancellationToken,
) {
    let client = Client { socket: folder.join(SOCKET), seen: inventory.subscribe(), configs, inventory };
    stop.run_until_cancelled(client.run()).await;
}

/// The agent's end.
struct Client {
    socket: PathBuf,
    configs: watch::Receiver<Arc<Config>>,
    seen: watch::Receiver<Inventory>,
    inventory: watch::Sender<Inventory>,
}

impl Client {
    async fn run(mut self) {
        let mut wanted = None;
        let mut said = String::new();
        loop {
            self.look(&mut wanted);
            // Daemons that nobody wants any more are ended by whoever keeps them; without one there are none.
            if wanted.as_ref().is_some_and(|plans| !plans.is_empty() || self.socket.exists()) {
                let Err(error) = self.attend(&mut wanted).await;
                let why = format!("no keeper of MPS daemons: {}", one_line(&error));
                let plans = wanted.iter().flatten();
                self.tell(&plans.map(|(resource, _)| (resource.clone(), Err(why.clone()))).collect());
                if said != why && wanted.as_ref().is_some_and(|plans| !plans.is_empty()) {
                    tracing::warn!("{why}: what is shared by MPS can't be handed out");
                    said = why;
                }
                sleep(RETRY).await;
            } else if self.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }

    async fn changed(&mut self) -> Result<(), watch::error::RecvError> {
        tokio::select! { changed = self.configs.changed() => changed, changed = self.seen.changed() => changed }
    }

    /// What is wanted now, if that can be told.
    fn look(&mut self, wanted: &mut Option<Plans>) {
        let (config, inventory) = (self.configs.borrow_and_update(), self.seen.borrow_and_update());
        if settled(&inventory) {
            *wanted = Some(plans(&config, &inventory));
        }
    }

    /// Says what is wanted, whenever that changes, and passes on what it hears. Ends only with an error.
    async fn attend(&mut self, wanted: &mut Option<Plans>) -> Result<std::convert::Infallible, WireError> {
        let stream = UnixStream::connect(&self.socket)
            .await
            .map_err(|source| WireError::Connect { path: self.socket.clone(), source })?;
        let (read, mut write) = stream.into_split();
        let mut ear = Ear::new(BufReader::new(read));
        let mut ordered = None;
        loop {
            self.look(wanted);
            if ordered != *wanted {
                say(&mut write, &Orders::from(wanted.as_ref().unwrap_or(&Plans::new()))).await?;
                ordered.clone_from(wanted);
            }
            let report: Report = tokio::select! {
                report = timeout(SILENCE, ear.hear()) => report.map_err(|_| WireError::Silent)??,
                changed = self.changed() => match changed {
                    Ok(()) => continue,
                    Err(_) => std::future::pending().await,
                },
            };
            self.tell(&states(wanted.as_ref().unwrap_or(&Plans::new()), &report));
        }
    }

    fn tell(&self, states: &BTreeMap<ResourceName, Result<(), String>>) {
        self.inventory.send_if_modified(|current| {
            let mut next = current.clone();
            let known: Vec<_> = next.services().cloned().collect();
            for gone in known.iter().filter(|resource| !states.contains_key(resource)) {
                next = next.with_service(gone, None);
            }
            for (resource, state) in states {
                next = next.with_service(resource, Some(state.clone()));
            }
            let modified = next != *current;
            *current = next;
            modified
        });
    }
}

/// How what is wanted is doing. A daemon that was started for something else is none.
fn states(wanted: &Plans, report: &Report) -> BTreeMap<ResourceName, Result<(), String>> {
    let state = |(resource, plan): (&ResourceName, &Plan)| {
        let state = match report.daemons.get(resource.as_str()) {
            Some(state) if state.order == Order::from(plan) => state.trouble.clone().map_or(Ok(()), Err),
            _ => Err("its MPS daemon has not started".to_owned()),
        };
        (resource.clone(), state)
    };
    wanted.iter().map(state).collect()
}

#[cfg(test)]
mod tests;
