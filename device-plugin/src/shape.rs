//! The largest group of devices that can still be had together: what an admin, or a scheduler, asks of a machine whose free devices are
//! scattered. Pure: the inventory and what is held go in, numbers come out.
//!
//! Devices are counted by what is behind them in hardware: a GPU of which one share is free counts once, however many shares it has.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use crate::{
    device::{Accelerator, Device, DeviceId, ResourceName},
    inventory::Inventory,
};

/// From this weight on a link between two accelerators is a direct one, an NVLink; below it is a way over a bus.
const DIRECT_LINK: u32 = 100;

/// The largest group of one resource.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Shape {
    /// GPUs that reach each other by NVLink. Absent where the machine has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nvlink: Option<usize>,
    /// On one NUMA node; devices whose node is unknown count as on one.
    pub numa: usize,
    /// On the whole machine.
    pub node: usize,
    /// What the parts are, if they are parts of GPUs: the largest free one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub profile: Option<String>,
}

/// The largest groups by resource. Its serialized form is a node annotation's value.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Shapes(BTreeMap<String, Shape>);

impl Shapes {
    /// Of `inventory`, where `held` tells the devices that somebody has. Sick devices can't be had either.
    pub fn of(inventory: &Inventory, held: impl Fn(&ResourceName, &DeviceId) -> bool) -> Self {
        let shape = |resource: &ResourceName| {
            let devices: Vec<_> = inventory.slice(resource).collect();
            let free: Vec<&Device> = devices
                .iter()
                .copied()
                .filter(|device| device.health.is_healthy() && !held(resource, &device.id))
                .collect();
            shape(&devices, &free)
        };
        Self(inventory.resources().iter().map(|resource| (resource.to_string(), shape(resource))).collect())
    }

    /// Each resource's.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Shape)> {
        self.0.iter().map(|(resource, shape)| (resource.as_str(), shape))
    }
}

fn shape(devices: &[&Device], free: &[&Device]) -> Shape {
    let linked = |device: &&Device| {
        device.partition.is_none() && device.accelerator.links.values().any(|weight| *weight >= DIRECT_LINK)
    };
    // Ports of one card have nothing but their IDs.
    let unit = |device: &Device| {
        let port = device.partition.is_none() && device.replica.is_none();
        if port { device.id.clone() } else { device.unit().clone() }
    };
    let mut by_node: BTreeMap<Option<u32>, BTreeSet<DeviceId>> = BTreeMap::new();
    for device in free {
        by_node.entry(device.accelerator.numa_node).or_default().insert(unit(device));
    }
    let parts = free.iter().filter_map(|device| device.partition.as_ref());
    Shape {
        nvlink: devices.iter().any(linked).then(|| largest_island(free)),
        numa: by_node.values().map(BTreeSet::len).max().unwrap_or(0),
        node: by_node.values().map(BTreeSet::len).sum(),
        profile: parts
            .max_by_key(|part| (part.memory_mib, slices(&part.profile)))
            .map(|part| part.profile.clone()),
    }
}

/// The compute slices of a MIG profile: 3 of `3g.20gb`.
fn slices(profile: &str) -> Option<u32> {
    profile.split_once('g')?.0.rsplit('.').next()?.parse().ok()
}

/// How many free accelerators reach each other by direct links, through free ones.
fn largest_island(free: &[&Device]) -> usize {
    let accelerators: BTreeMap<&DeviceId, &Accelerator> =
        free.iter().map(|device| (&device.accelerator.id, &*device.accelerator)).collect();
    let mut reached = BTreeSet::new();
    let mut largest = 0;
    for start in accelerators.keys() {
        let mut island = 0;
        let mut open = vec![*start];
        while let Some(id) = open.pop() {
            let Some(accelerator) = accelerators.get(id) else { continue };
            if reached.insert(id) {
                island += 1;
                let direct = accelerator.links.iter().filter(|(_, weight)| **weight >= DIRECT_LINK);
                open.extend(direct.map(|(peer, _)| peer));
            }
        }
        largest = largest.max(island);
    }
    largest
}

#[cfg(test)]
mod tests;
