//! What a container gets, as pure functions over a resource's slice of the inventory. Whatever the kubelet asks for, nothing is
//! granted that was not named, known and healthy.

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    path::{Path, PathBuf},
};

use spillway_proto::deviceplugin::{CdiDevice, ContainerAllocateResponse, DeviceSpec, Mount};

use crate::{
    cdi,
    config::{Config, DeviceIdStrategy, DeviceListStrategy, Flags, PluginFlags, Way},
    device::{Device, DeviceId, Health, ResourceName},
    mps, sharing,
};

/// Read and write. Without `m`: a container has no reason to make nodes of its own.
const PERMISSIONS: &str = "rw";
/// Where a container finds its list by files; NVIDIA's runtime looks there.
const LIST_FOLDER: &str = "/var/run/nvidia-container-devices";
/// What is mounted for each of them: no container can make that up without a mount.
const LIST_MARK: &str = "/dev/null";
/// The node of a channel between machines, below `/dev`, without its number.
pub(crate) const IMEX_CHANNEL: &str = "nvidia-caps-imex-channels/channel";
/// The variable, and the folder in [`LIST_FOLDER`], in which containers find the channels that are theirs.
const IMEX_VARIABLE: &str = "NVIDIA_IMEX_CHANNELS";
const IMEX_FOLDER: &str = "imex";
/// What the keys of CDI annotations go on with.
const CDI_KEY: &str = "nvidia-device-plugin_";

/// Why a request gets nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AllocateError {
    /// No device at all was named.
    #[error("no device was named")]
    Empty,
    /// The device does not exist, or no longer.
    #[error("device {0:?} is not known on this machine")]
    Unknown(String),
    /// The device was named more than once.
    #[error("device {0:?} is named twice")]
    Duplicate(String),
    /// The device exists but may not be handed out.
    #[error("device {id:?} is unhealthy: {why}")]
    Unhealthy {
        /// The device.
        id: String,
        /// What its back end says of it.
        why: String,
    },
    /// More than one share of something shared.
    #[error("request for '{resource}: {asked}' too large: maximum request size for shared resources is 1")]
    SeveralShares {
        /// The resource.
        resource: String,
        /// How many shares.
        asked: usize,
    },
}

/// How containers are told of their devices.
#[derive(Debug, Clone, Copy)]
pub struct Manner<'a> {
    flags: &'a Flags,
    way: Option<Way>,
    refuses_several: bool,
}

impl<'a> Manner<'a> {
    /// What the configuration says of containers that ask for `resource`.
    pub fn of(config: &'a Config, resource: &ResourceName) -> Self {
        let way = sharing::way_of(&config.sharing, resource);
        let refuses_several = way.is_some_and(|way| config.sharing.refuses_several(way));
        Self { flags: &config.flags, way, refuses_several }
    }

    /// What a device is called in a container's list: by index, a partition is `<its accelerator's>:<its own>`. Where there is no index it
    /// has its ID; NVIDIA's runtime takes both, side by side.
    pub(crate) fn name(strategy: DeviceIdStrategy, device: &Device) -> String {
        let partition = device.partition.as_ref().map(|partition| partition.index);
        match (strategy, device.accelerator.index, partition) {
            (DeviceIdStrategy::Index, Some(index), None) => index.to_string(),
            (DeviceIdStrategy::Index, Some(index), Some(Some(part))) => format!("{index}:{part}"),
            _ => device.unit().to_string(),
        }
    }
}

/// The device nodes and environment for one container that gets the devices `ids` of `resource` out of `slice`.
///
/// # Errors
/// The first ID that can't be granted; then nothing is.
pub fn allocate<'a>(
    manner: Manner<'_>,
    resource: &ResourceName,
    slice: impl IntoIterator<Item = &'a Device>,
    ids: &[String],
) -> Result<ContainerAllocateResponse, AllocateError> {
    let granted = grant(slice, ids)?;
    let shares = granted.iter().filter(|device| device.replica.is_some()).count();
    if manner.refuses_several && shares > 1 {
        return Err(AllocateError::SeveralShares { resource: resource.to_string(), asked: shares });
    }
    // What is behind the devices, once each: several replicas of a GPU are one GPU.
    let units: BTreeMap<&DeviceId, &Device> = granted.iter().map(|device| (device.unit(), *device)).collect();
    let (listed, unlisted): (Vec<&Device>, Vec<&Device>) =
        units.into_values().partition(|device| device.listed_in.is_some());

    let mut answer = ContainerAllocateResponse::default();
    let plugin = &manner.flags.plugin;
    let mut nodes: BTreeMap<&Path, PathBuf> =
        unlisted.iter().flat_map(|device| device.host_nodes()).collect();
    if !listed.is_empty() {
        by_cdi(plugin, resource, &listed, &mut answer);
        if manner.way == Some(Way::Mps) {
            mps::join(manner.flags, resource, &mut answer);
        }
        features(manner.flags, &mut answer);
        // A runtime that is told CDI devices alone takes device nodes from their specification.
        if plugin.lists_by(DeviceListStrategy::Envvar) || plugin.lists_by(DeviceListStrategy::VolumeMounts) {
            by_list(plugin, &listed, &mut answer);
            if plugin.pass_device_specs {
                nodes.extend(listed.iter().flat_map(|device| device.host_nodes()));
            }
        }
    }
    answer.devices = nodes
        .into_iter()
        .map(|(node, host)| DeviceSpec {
            container_path: node.display().to_string(),
            host_path: host.display().to_string(),
            permissions: PERMISSIONS.to_owned(),
        })
        .collect();
    Ok(answer)
}

/// The devices, if each of them may be handed out.
fn grant<'a>(
    slice: impl IntoIterator<Item = &'a Device>,
    ids: &[String],
) -> Result<Vec<&'a Device>, AllocateError> {
    if ids.is_empty() {
        return Err(AllocateError::Empty);
    }
    // Few of many: what was not asked for need not be put in order, nor looked at once all are found.
    let asked: BTreeSet<&str> = ids.iter().map(String::as_str).collect();
    let known: BTreeMap<&str, &Device> = slice
        .into_iter()
        .filter(|device| asked.contains(device.id.as_str()))
        .take(asked.len())
        .map(|device| (device.id.as_str(), device))
        .collect();
    let mut granted = BTreeMap::new();
    for id in ids {
        let device = known.get(id.as_str()).ok_or_else(|| AllocateError::Unknown(id.clone()))?;
        if let Health::Unhealthy(why) = &device.health {
            return Err(AllocateError::Unhealthy { id: id.clone(), why: why.clone() });
        }
        match granted.entry(id.as_str()) {
            Entry::Vacant(vacant) => vacant.insert(*device),
            Entry::Occupied(_) => return Err(AllocateError::Duplicate(id.clone())),
        };
    }
    Ok(granted.into_values().collect())
}

/// CDI devices, for the runtime.
fn by_cdi(
    plugin: &PluginFlags,
    resource: &ResourceName,
    devices: &[&Device],
    answer: &mut ContainerAllocateResponse,
) {
    let names = devices.iter().map(|device| cdi::qualified_name(plugin.device_id_strategy, device));
    if plugin.lists_by(DeviceListStrategy::CdiAnnotations) {
        let key = format!("{}{CDI_KEY}{:016x}", plugin.cdi_annotation_prefix, fnv1a(resource.as_str()));
        answer.annotations.insert(key, names.clone().collect::<Vec<_>>().join(","));
    }
    if plugin.lists_by(DeviceListStrategy::CdiCri) {
        answer.cdi_devices = names.map(|name| CdiDevice { name }).collect();
    }
}

/// The list that a container, and NVIDIA's runtime, looks at.
fn by_list(plugin: &PluginFlags, devices: &[&Device], answer: &mut ContainerAllocateResponse) {
    let mut lists: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for device in devices {
        if let Some(variable) = device.listed_in {
            lists.entry(variable).or_default().push(Manner::name(plugin.device_id_strategy, device));
        }
    }
    for (variable, names) in lists {
        if plugin.lists_by(DeviceListStrategy::VolumeMounts) {
            answer.mounts.extend(names.iter().map(|name| Mount {
                container_path: format!("{LIST_FOLDER}/{name}"),
                host_path: LIST_MARK.to_owned(),
                ..Mount::default()
            }));
            answer.envs.insert(variable.to_owned(), LIST_FOLDER.to_owned());
        } else {
            answer.envs.insert(variable.to_owned(), names.join(","));
        }
    }
    if let Some(channel) = channel(devices) {
        if plugin.lists_by(DeviceListStrategy::VolumeMounts) {
            answer.mounts.push(Mount {
                container_path: format!("{LIST_FOLDER}/{IMEX_FOLDER}/{channel}"),
                host_path: LIST_MARK.to_owned(),
                ..Mount::default()
            });
        }
        if plugin.lists_by(DeviceListStrategy::Envvar) {
            answer.envs.insert(IMEX_VARIABLE.to_owned(), channel.to_owned());
        }
    }
}

/// The channel between machines that comes with these devices, if there is one.
fn channel<'a>(devices: &[&'a Device]) -> Option<&'a str> {
    let mut nodes = devices.iter().flat_map(|device| device.nodes.iter());
    nodes.find_map(|node| node.strip_prefix("/dev").ok()?.to_str()?.strip_prefix(IMEX_CHANNEL))
}

/// What NVIDIA's runtime is asked for besides the devices.
fn features(flags: &Flags, answer: &mut ContainerAllocateResponse) {
    for (wanted, variable) in [
        (flags.gdrcopy_enabled, "NVIDIA_GDRCOPY"),
        (flags.gds_enabled, "NVIDIA_GDS"),
        (flags.mofed_enabled, "NVIDIA_MOFED"),
    ] {
        if wanted {
            answer.envs.insert(variable.to_owned(), "enabled".to_owned());
        }
    }
}

/// A short name for a long one: two resources of one container need two keys.
fn fnv1a(text: &str) -> u64 {
    text.bytes()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests;
