//! The kubelet's device checkpoint, an internal format of `pkg/kubelet/cm/devicemanager/checkpoint`: JSON, the same from 1.20 to 1.35. The
//! kubelet replaces the file by a rename, so that it is never seen half written.
//!
//! Its checksum is over a dump of Go's values and isn't computed again: whoever may write here is the kubelet, and root. That there is one
//! is part of the format.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;
use spillway_device_plugin::device::{DeviceId, ResourceName};

use super::{Holders, Holding, PodRef, is_name, is_uid};

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct File {
    data: Data,
    #[serde(rename = "Checksum")]
    _checksum: u64,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Data {
    /// Go writes an empty list as null.
    pod_device_entries: Option<Vec<Entry>>,
}

#[derive(Deserialize)]
struct Entry {
    #[serde(rename = "PodUID")]
    pod_uid: String,
    #[serde(rename = "ContainerName")]
    container_name: String,
    #[serde(rename = "ResourceName")]
    resource_name: String,
    /// By NUMA node, -1 where there is none.
    #[serde(rename = "DeviceIDs")]
    device_ids: Option<BTreeMap<i64, Option<Vec<String>>>>,
}

/// What pods hold, without their names. Entries of other plugins may have IDs that no device of ours has: those are left out.
///
/// # Errors
/// What is wrong with it, and where.
pub fn parse(bytes: &[u8]) -> Result<Holders, String> {
    let file: File = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    let mut held: BTreeMap<(String, String, ResourceName), BTreeSet<DeviceId>> = BTreeMap::new();
    for entry in file.data.pod_device_entries.unwrap_or_default() {
        if !is_uid(&entry.pod_uid) {
            return Err(format!("{:?} can't be a pod's UID", entry.pod_uid));
        }
        if !is_name(&entry.container_name) {
            return Err(format!("{:?} can't be a container's name", entry.container_name));
        }
        let ids = entry.device_ids.unwrap_or_default().into_values().flatten().flatten();
        let devices: Vec<_> = ids.filter_map(|id| DeviceId::new(id).ok()).collect();
        let Ok(resource) = ResourceName::new(entry.resource_name) else { continue };
        if !devices.is_empty() {
            held.entry((entry.pod_uid, entry.container_name, resource)).or_default().extend(devices);
        }
    }
    let holdings = held.into_iter().map(|((uid, container, resource), devices)| Holding {
        pod: PodRef { uid, namespace: None, name: None },
        container,
        resource,
        devices,
    });
    Ok(Holders { holdings: holdings.collect() })
}
