//! The specification by which a container runtime gives NVIDIA's devices to containers on its own: device nodes, and the driver's
//! libraries and programs. It is written while somebody reads it (a CDI strategy is configured), and replaced as a whole when devices or
//! driver change. It has no hooks: nothing of ours, or of the driver's, runs in anybody's container.
//!
//! Without a hook nobody renews the container's loader cache, so libraries lie in two places: where the host has them, which is where the
//! loader of a similar image looks, and in the folder that NVIDIA's images search in any case.

mod driver;
mod features;

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::Serialize;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    allocate::Manner,
    causes::one_line,
    config::{Config, DeviceIdStrategy},
    device::Device,
    inventory::Inventory,
};

/// Vendor and class, as NVIDIA's plugin calls them.
const KIND: &str = "k8s.device-plugin.nvidia.com/gpu";
/// The specification's file.
const FILE: &str = "k8s.device-plugin.nvidia.com-gpu.json";
/// Not a name that runtimes read.
const TEMPORARY: &str = ".k8s.device-plugin.nvidia.com-gpu.tmp";
/// The first version in which a device's name may start with a digit.
const VERSION: &str = "0.5.0";
/// Keeps NVIDIA's own hook, where there is one, from doing the same again.
const NOT_BY_HOOK: &str = "NVIDIA_VISIBLE_DEVICES=void";
/// The environment variable that tells NVIDIA's devices from others.
const LISTED_IN: &str = "NVIDIA_VISIBLE_DEVICES";

/// Why there is no specification.
#[derive(Debug, thiserror::Error)]
pub enum CdiError {
    /// The file can't be written.
    #[error(
        "can't write the CDI specification to {folder}: no container gets a device by CDI; the folder must be writable (--cdi-dir)"
    )]
    Write {
        /// The folder.
        folder: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The file of an earlier configuration can't be removed.
    #[error("can't remove the CDI specification {path}, which is not true any more")]
    Remove {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
}

/// A specification: <https://github.com/cncf-tags/container-device-interface/blob/main/SPEC.md>
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Spec {
    cdi_version: &'static str,
    kind: &'static str,
    devices: Vec<Entry>,
    container_edits: Edits,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    name: String,
    container_edits: Edits,
}

#[derive(Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Edits {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    env: Vec<&'static str>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    device_nodes: Vec<Node>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    mounts: Vec<Mount>,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Node {
    path: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    host_path: Option<String>,
    permissions: &'static str,
}

impl Node {
    fn new(path: String) -> Self {
        Self { path, host_path: None, permissions: "rw" }
    }
}

/// What every container with a device gets besides it.
#[derive(Debug, Default)]
struct Common {
    nodes: Vec<String>,
    mounts: Vec<Mount>,
}

/// A file of the driver in a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Mount {
    host_path: String,
    container_path: String,
    options: [&'static str; 4],
}

/// What a container runtime calls the device.
pub(crate) fn qualified_name(strategy: DeviceIdStrategy, device: &Device) -> String {
    format!("{KIND}={}", Manner::name(strategy, device))
}

/// Each device by each of its names: a container that is started again has the name that was in force when it was admitted. There is no
/// name for all of them, which nobody is ever given.
fn spec(devices: &[&Device], common: Common) -> Option<Spec> {
    let nodes = |device: &Device| {
        let paths: BTreeMap<_, _> = device.host_nodes().collect();
        let node = |(path, host): (&Path, PathBuf)| Node {
            path: path.display().to_string(),
            host_path: (host != path).then(|| host.display().to_string()),
            permissions: "rw",
        };
        Edits { device_nodes: paths.into_iter().map(node).collect(), ..Edits::default() }
    };
    let mut entries = BTreeMap::new();
    for device in devices {
        for strategy in [DeviceIdStrategy::Uuid, DeviceIdStrategy::Index] {
            let name = Manner::name(strategy, device);
            if is_name(&name) {
                entries.entry(name).or_insert_with(|| nodes(device));
            }
        }
    }
    if entries.is_empty() {
        return None;
    }
    let entries = entries.into_iter().filter(|(_, edits)| !edits.device_nodes.is_empty());
    Some(Spec {
        cdi_version: VERSION,
        kind: KIND,
        devices: entries.map(|(name, container_edits)| Entry { name, container_edits }).collect(),
        container_edits: Edits {
            env: vec![NOT_BY_HOOK],
            device_nodes: common.nodes.into_iter().map(Node::new).collect(),
            mounts: common.mounts,
        },
    })
    .filter(|spec| !spec.devices.is_empty())
}

/// What the specification takes as a device's name.
fn is_name(name: &str) -> bool {
    let edge = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    edge(name.as_bytes().first())
        && edge(name.as_bytes().last())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-.:".contains(&byte))
}

/// Keeps the specification in `folder` true until `stop`. It stays after that: containers that restart need it while the agent is away.
/// `dev` is the host's `/dev`, as this process sees it.
pub async fn run(
    folder: PathBuf,
    dev: PathBuf,
    mut configs: watch::Receiver<Arc<Config>>,
    mut inventory: watch::Receiver<Inventory>,
    stop: CancellationToken,
) {
    let mut said = None;
    loop {
        let config = configs.borrow_and_update().clone();
        let devices: Vec<Device> = inventory
            .borrow_and_update()
            .found()
            .filter(|device| device.listed_in == Some(LISTED_IN))
            .cloned()
            .collect();
        let failure = keep(&folder, &dev, &config, &devices.iter().collect::<Vec<_>>())
            .err()
            .map(|error| one_line(&error));
        if let Some(failure) = &failure
            && said.as_ref() != Some(failure)
        {
            tracing::error!("{failure}");
        }
        said = failure;
        tokio::select! {
            () = stop.cancelled() => return,
            changed = inventory.changed() => if changed.is_err() { return },
            changed = configs.changed() => if changed.is_err() { return },
        }
    }
}

/// Writes, leaves or removes the specification.
fn keep(folder: &Path, dev: &Path, config: &Config, devices: &[&Device]) -> Result<(), CdiError> {
    let path = folder.join(FILE);
    let wanted = if config.flags.plugin.uses_cdi() {
        let (here, host) = (config.flags.driver_root_here(), config.flags.driver_root());
        let mut common = features::common(&config.flags, dev, here, host);
        common.mounts.extend(driver::mounts(here, host));
        spec(devices, common)
    } else {
        None
    };
    let Some(spec) = wanted else {
        return match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => Err(CdiError::Remove { path, source }),
            _ => Ok(()),
        };
    };
    let text = serde_json::to_string_pretty(&spec).unwrap_or_default();
    if fs::read_to_string(&path).is_ok_and(|before| before == text) {
        return Ok(());
    }
    let temporary = folder.join(TEMPORARY);
    fs::create_dir_all(folder)
        .and_then(|()| fs::write(&temporary, text))
        .and_then(|()| fs::rename(&temporary, &path))
        .map_err(|source| CdiError::Write { folder: folder.to_owned(), source })?;
    tracing::info!(path = %path.display(), devices = spec.devices.len(), mounts = spec.container_edits.mounts.len(), "CDI specification written");
    Ok(())
}

#[cfg(test)]
mod tests;
