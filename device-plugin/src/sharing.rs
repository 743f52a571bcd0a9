//! From the devices that were found to those that are offered: other names, and replicas of what several pods share. Pure: the same
//! devices and rules give the same offer, so that a new vendor's devices are shared without a line of its own.
//!
//! A replica has its device's health, place and nodes, so whatever befalls a device reaches all of its replicas, and whatever befalls an
//! accelerator reaches those of all its partitions. What the rules ask of devices that can't give it is refused: none of that
//! resource's devices is offered, and it is said why.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use crate::{
    config::{Config, DeviceRef, Renaming, Resources, Shared, SharedDevices, Sharing, Way},
    device::{Device, DeviceId, Partition, Replica, ResourceName},
};

/// What stands between a device's ID and its replica's number, as in NVIDIA's plugin.
const SEPARATOR: &str = "::";
/// The kubelet receives no larger message, and drops the stream that tries.
const LIST_LIMIT: usize = 4 * 1024 * 1024;
/// The most that a device takes in a list, besides its ID: the longest health, a NUMA node, tags and lengths.
const ENTRY_OVERHEAD: usize = 32;
/// The vendor whose products and profiles the configuration renames.
const VENDOR: &str = "nvidia.com/";

/// How devices are offered.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rules {
    sharing: Sharing,
    resources: Resources,
}

/// What is offered.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Offer {
    /// The devices, in the order in which they were found.
    pub devices: Vec<Device>,
    /// What the rules ask for that these devices can't give; none of these resources' devices is offered.
    pub refused: Vec<String>,
}

impl Rules {
    /// What the configuration says of it.
    pub fn of(config: &Config) -> Self {
        Self { sharing: config.sharing.clone(), resources: config.resources.clone() }
    }

    /// Whether replicas that are offered as `resource` are of no use without a program that the agent runs.
    pub fn need_service(&self, resource: &ResourceName) -> bool {
        way_of(&self.sharing, resource) == Some(Way::Mps)
    }

    /// What is offered of these devices.
    pub fn offer(&self, found: &[Device]) -> Offer {
        let renamed: Vec<Device> = found.iter().map(|device| self.renamed(device)).collect();
        let mut replicated: BTreeMap<DeviceKey, Vec<Device>> = BTreeMap::new();
        let mut withheld = BTreeSet::new();
        let mut refused = Vec::new();
        for (way, shared) in self.sharing.all() {
            match replicas(way, shared, self.sharing.renames_by_default(way), &renamed) {
                Ok(replicas) => replicated.extend(replicas),
                Err(why) => {
                    refused.push(why);
                    withheld.insert(&shared.name);
                }
            }
        }
        // Room for no more than there will be: this list stays, and is the agent's largest.
        let shares: usize = replicated.values().map(Vec::len).sum();
        let mut devices = Vec::with_capacity(renamed.len() - replicated.len() + shares);
        for device in &renamed {
            if withheld.contains(&device.resource) {
                continue;
            }
            match replicated.remove(&key(device)) {
                Some(replicas) => devices.extend(replicas),
                None => devices.push(device.clone()),
            }
        }
        for (resource, why) in too_long(&devices) {
            devices.retain(|device| device.resource != resource);
            refused.push(why);
        }
        Offer { devices, refused }
    }

    fn renamed(&self, device: &Device) -> Device {
        if !device.resource.as_str().starts_with(VENDOR) {
            return device.clone();
        }
        let (renamings, name) = match &device.partition {
            Some(partition) => (&self.resources.mig, Some(partition.profile.as_str())),
            None => (&self.resources.gpus, device.accelerator.product.as_deref()),
        };
        let Some(other) = name.and_then(|name| renamings.iter().find(|renaming| renaming.matches(name)))
        else {
            return device.clone();
        };
        Device { resource: other.name.clone(), ..device.clone() }
    }
}

impl Renaming {
    /// Whether `name` has the pattern in it, where `*` is anything: NVIDIA's patterns need not cover the whole name.
    fn matches(&self, name: &str) -> bool {
        let mut rest = name;
        self.pattern.split('*').all(|literal| match rest.find(literal) {
            Some(at) => {
                rest = &rest[at + literal.len()..];
                true
            }
            None => false,
        })
    }
}

/// How replicas of the resource that is offered as `resource` are shared, if it is.
pub fn way_of(sharing: &Sharing, resource: &ResourceName) -> Option<Way> {
    sharing
        .all()
        .find(|(way, shared)| {
            shared.offered_as(sharing.renames_by_default(*way)).is_ok_and(|name| name == *resource)
        })
        .map(|(way, _)| way)
}

/// The device that a replica's ID names, whether it is shared now or not. None for the ID of a device that is not shared.
pub fn shared_by(replica: &DeviceId) -> Option<DeviceId> {
    let (device, number) = replica.as_str().rsplit_once(SEPARATOR)?;
    number.parse::<u32>().ok()?;
    DeviceId::new(device).ok()
}

type DeviceKey = (ResourceName, DeviceId);

fn key(device: &Device) -> DeviceKey {
    (device.resource.clone(), device.id.clone())
}

/// The replicas of each device that one rule shares.
fn replicas(
    way: Way,
    shared: &Shared,
    renames_by_default: bool,
    devices: &[Device],
) -> Result<BTreeMap<DeviceKey, Vec<Device>>, String> {
    let name = &shared.name;
    let resource = shared.offered_as(renames_by_default).map_err(|error| format!("{name}: {error}"))?;
    let chosen = chosen(shared, devices);
    // Before there are that many: a machine's memory may not hold what no kubelet would receive.
    let count = usize::try_from(shared.replicas).unwrap_or(usize::MAX);
    let shortest = |device: &&Device| {
        (device.id.as_str().len() + SEPARATOR.len() + 1 + ENTRY_OVERHEAD).saturating_mul(count)
    };
    if chosen.iter().map(shortest).fold(0, usize::saturating_add) > LIST_LIMIT {
        return Err(too_many(&resource, chosen.len().saturating_mul(count), chosen.len()));
    }
    let mut all = BTreeMap::new();
    for device in chosen {
        if way == Way::Mps && device.partition.is_some() {
            return Err(format!("{name}: {} is a partition of a GPU, which MPS can't share", device.id));
        }
        let memory_mib = budget(way, shared, device)?;
        let replicas = (0..shared.replicas).map(|number| {
            let id = DeviceId::new(format!("{}{SEPARATOR}{number}", device.id))
                .map_err(|error| format!("{name} can't be shared: {error}"))?;
            let replica = Some(Replica { number, of: shared.replicas, memory_mib });
            Ok(Device { id, resource: resource.clone(), replica, ..device.clone() })
        });
        all.insert(key(device), replicas.collect::<Result<_, String>>()?);
    }
    Ok(all)
}

/// The devices that a rule shares.
fn chosen<'a>(shared: &Shared, devices: &'a [Device]) -> Vec<&'a Device> {
    let of_name = devices.iter().filter(|device| device.resource == shared.name);
    match &shared.devices {
        SharedDevices::All => of_name.collect(),
        SharedDevices::Count(count) => {
            let mut all: Vec<_> = of_name.collect();
            // As the vendor counts them, where it does.
            all.sort_by_key(|device| (device.accelerator.index.is_none(), device.accelerator.index));
            all.truncate(usize::try_from(*count).unwrap_or(usize::MAX));
            all
        }
        SharedDevices::List(list) => {
            let listed: BTreeSet<&DeviceRef> = list.iter().collect();
            of_name.filter(|device| names(device, devices).iter().any(|name| listed.contains(name))).collect()
        }
    }
}

/// All that a list may call a device by.
fn names(device: &Device, devices: &[Device]) -> Vec<DeviceRef> {
    let mut names = vec![DeviceRef::Id(device.id.clone()), DeviceRef::Id(device.unit().clone())];
    names.extend(match (device.accelerator.index, &device.partition) {
        (Some(index), None) => Some(DeviceRef::Index(index)),
        (Some(index), Some(_)) => {
            partition_number(device, devices).map(|number| DeviceRef::Partition(index, number))
        }
        (None, _) => None,
    });
    names
}

/// Which of its accelerator's partitions a device is, counted in the order of their instances.
fn partition_number(device: &Device, devices: &[Device]) -> Option<u32> {
    let order = |partition: &Arc<Partition>| (partition.instance, partition.id.clone());
    let own = order(device.partition.as_ref()?);
    let before: BTreeSet<_> = devices
        .iter()
        .filter(|other| other.accelerator.id == device.accelerator.id)
        .filter_map(|other| other.partition.as_ref().map(order))
        .filter(|other| *other < own)
        .collect();
    u32::try_from(before.len()).ok()
}

/// What each replica may use of the device's memory.
fn budget(way: Way, shared: &Shared, device: &Device) -> Result<Option<u64>, String> {
    let whole = match &device.partition {
        Some(partition) => partition.memory_mib,
        None => device.accelerator.memory_mib,
    };
    let replicas = u64::from(shared.replicas);
    let equal = whole.map(|whole| whole / replicas);
    let each = match way {
        Way::TimeSlicing => return Ok(None),
        Way::Mps => equal,
        Way::Memory => shared.memory_mib.or(equal),
    };
    let needed = each.map(|each| each.checked_mul(replicas));
    match (whole, needed) {
        (Some(whole), Some(needed)) if needed.is_none_or(|needed| needed > whole) => Err(format!(
            "{}: {replicas} replicas of {} MiB each are more than the {whole} MiB of {}",
            shared.name,
            each.unwrap_or_default(),
            device.id
        )),
        _ if each == Some(0) => {
            Err(format!("{}: {replicas} replicas of {} have less than 1 MiB each", shared.name, device.id))
        }
        _ => Ok(each),
    }
}

/// The resources whose list is more than the kubelet receives.
fn too_long(devices: &[Device]) -> Vec<(ResourceName, String)> {
    let mut lists: BTreeMap<&ResourceName, (usize, usize, BTreeSet<&DeviceId>)> = BTreeMap::new();
    for device in devices {
        let (bytes, entries, units) = lists.entry(&device.resource).or_default();
        *bytes += device.id.as_str().len() + ENTRY_OVERHEAD;
        *entries += 1;
        units.insert(device.unit());
    }
    lists
        .into_iter()
        .filter(|(_, (bytes, ..))| *bytes > LIST_LIMIT)
        .map(|(resource, (_, entries, units))| (resource.clone(), too_many(resource, entries, units.len())))
        .collect()
}

fn too_many(resource: &ResourceName, entries: usize, units: usize) -> String {
    format!(
        "{resource}: {entries} replicas of {units} devices make a list of more than 4 MiB, which the kubelet refuses: fewer replicas"
    )
}

#[cfg(test)]
mod tests;
