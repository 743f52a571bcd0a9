//! What a container gets, as pure functions over a resource's slice of the inventory. Whatever the kubelet asks for, nothing is
//! granted that was not named, known and healthy.

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    path::PathBuf,
};

use spillway_proto::deviceplugin::{ContainerAllocateResponse, DeviceSpec};

use crate::device::{Device, Health};

/// Read and write. Without `m`: a container has no reason to make nodes of its own.
const PERMISSIONS: &str = "rw";

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
}

/// The device nodes and environment for one container that gets the devices `ids` out of `slice`.
///
/// # Errors
/// The first ID that can't be granted; then nothing is.
pub fn allocate<'a>(
    slice: impl IntoIterator<Item = &'a Device>,
    ids: &[String],
) -> Result<ContainerAllocateResponse, AllocateError> {
    if ids.is_empty() {
        return Err(AllocateError::Empty);
    }
    let known: BTreeMap<&str, &Device> =
        slice.into_iter().map(|device| (device.id.as_str(), device)).collect();
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

    let nodes: BTreeSet<&PathBuf> = granted.values().flat_map(|device| &device.nodes).collect();
    let mut lists: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for device in granted.values() {
        if let Some(variable) = device.listed_in {
            lists.entry(variable).or_default().push(device.id.as_str());
        }
    }
    Ok(ContainerAllocateResponse {
        envs: lists.into_iter().map(|(variable, ids)| (variable.to_owned(), ids.join(","))).collect(),
        devices: nodes
            .into_iter()
            .map(|node| DeviceSpec {
                container_path: node.display().to_string(),
                host_path: node.display().to_string(),
                permissions: PERMISSIONS.to_owned(),
            })
            .collect(),
        ..ContainerAllocateResponse::default()
    })
}

#[cfg(test)]
mod tests;
