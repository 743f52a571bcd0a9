//! NVIDIA's multi-process service (MPS): its control daemon as a child of ours, one for each resource that is shared in this way, and what a
//! container needs to take part. The daemon is the vendor's; ours is to set the GPUs to exclusive mode, to tell it each client's part of
//! memory and threads, and to start it again when it dies. Until a daemon answers with its limits set, the replicas are Unhealthy: a
//! container would otherwise run without any limit.
//!
//! None of this ever ran on hardware: in tests the daemon is a stand-in.

mod daemon;

use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};

use spillway_proto::deviceplugin::{ContainerAllocateResponse, Mount};
use tokio::{sync::watch, task::JoinSet};
use tokio_util::sync::CancellationToken;

use crate::{
    config::{Config, Flags, Way},
    device::{DeviceId, ResourceName},
    inventory::Inventory,
    sharing,
};

pub use daemon::NvmlModes;

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
    /// Where the driver is, as this process sees it.
    driver_root: PathBuf,
}

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

/// The daemons that the configuration asks for with these devices, by the name that the replicas are offered under.
fn plans(config: &Config, inventory: &Inventory) -> BTreeMap<ResourceName, Plan> {
    let mut plans: BTreeMap<ResourceName, Plan> = BTreeMap::new();
    for device in inventory.devices() {
        let Some(replica) = &device.replica else { continue };
        if sharing::way_of(&config.sharing, &device.resource) != Some(Way::Mps) {
            continue;
        }
        let plan = plans.entry(device.resource.clone()).or_default();
        plan.gpus.insert(device.accelerator.id.clone(), replica.memory_mib);
        plan.clients = replica.of;
        config.flags.driver_root_here().clone_into(&mut plan.driver_root);
    }
    plans
}

/// Keeps the daemons running that the configuration asks for until `stop`, with their pipes and logs below `folder`.
pub async fn run(
    folder: PathBuf,
    modes: Arc<dyn ComputeModes>,
    mut configs: watch::Receiver<Arc<Config>>,
    inventory: watch::Sender<Inventory>,
    stop: CancellationToken,
) {
    let mut seen = inventory.subscribe();
    let mut daemons: JoinSet<ResourceName> = JoinSet::new();
    let mut running: BTreeMap<ResourceName, (Plan, CancellationToken)> = BTreeMap::new();
    loop {
        let wanted = plans(&configs.borrow_and_update(), &seen.borrow_and_update());
        for (resource, (plan, own)) in &running {
            if wanted.get(resource) != Some(plan) {
                own.cancel();
            }
        }
        for (resource, plan) in wanted {
            // One that is still ending is started again when it has ended.
            if running.contains_key(&resource) {
                continue;
            }
            let own = stop.child_token();
            running.insert(resource.clone(), (plan.clone(), own.clone()));
            let daemon = daemon::Daemon {
                pipe: pipe_folder(&folder, &resource),
                log: log_folder(&folder, &resource),
                resource,
                plan,
                modes: modes.clone(),
                inventory: inventory.clone(),
            };
            daemons.spawn(daemon.keep(own));
        }
        tokio::select! {
            () = stop.cancelled() => break,
            changed = seen.changed() => if changed.is_err() { break },
            changed = configs.changed() => if changed.is_err() { break },
            Some(ended) = daemons.join_next() => match ended {
                Ok(resource) => { running.remove(&resource); }
                Err(error) => std::panic::resume_unwind(error.into_panic()),
            },
        }
    }
    stop.cancel();
    while daemons.join_next().await.is_some() {}
}

#[cfg(test)]
mod tests;
