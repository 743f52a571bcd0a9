//! What pods do with the devices that they hold: who uses how much accelerator memory, who computes, who only holds.
//!
//! Devices say which processes use them, a process's cgroup says which pod it is in, the kubelet says which of the pod's containers holds
//! what. Which container a process is in is not asked: what several containers of one pod use of the same device is the pod's.
//!
//! Of an accelerator or a partition that a pod holds alone, utilisation is the pod's; of a shared one it is that of the pod's processes,
//! where the driver tells it. What can't be known is absent, never zero, and idleness is only claimed of what would show otherwise.

pub mod processes;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use spillway_device_plugin::{
    device::{Accelerator, Device, DeviceId, ResourceName},
    inventory::Inventory,
    sharing::shared_by,
};
use tokio::{
    sync::watch,
    time::{Instant, MissedTickBehavior, interval},
};
use tokio_util::sync::CancellationToken;

use crate::holders::{Following, Holders, PodRef};
use processes::Processes;

/// More holdings than this aren't shown one by one; how many were left out is.
const LIMIT: usize = 2_000;
const MIB: u64 = 1 << 20;

/// A pod's part in one unit of hardware: an accelerator, or a partition of one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    /// The pod.
    pub pod: PodRef,
    /// The accelerator.
    pub accelerator: DeviceId,
    /// The partition, where it is partitioned.
    pub partition: Option<DeviceId>,
}

/// What a pod does with what it holds of one unit of hardware.
#[derive(Debug, Clone, PartialEq)]
pub struct Use {
    /// Who and what.
    pub key: Key,
    /// How many devices each of its containers holds, by container and resource.
    pub containers: BTreeMap<(String, ResourceName), u32>,
    /// What the vendor calls the accelerator.
    pub product: Option<String>,
    /// The accelerator memory that it may use, in bytes, where that is limited.
    pub memory_limit: Option<u64>,
    /// The accelerator memory that its processes hold, in bytes.
    pub memory_used: Option<u64>,
    /// How much of the last moments it computed, from 0 to 1.
    pub utilization: Option<f64>,
    /// Whether it uses nothing of it now, where that shows.
    pub is_idle: Option<bool>,
    /// How long it has held without using, in all.
    pub idle_for: Duration,
    /// How long it has now held without using, at least: since it was last seen to use, or first seen.
    pub unused_for: Duration,
    /// Its processes, with the memory that each holds in bytes.
    pub processes: BTreeMap<u32, Option<u64>>,
}

impl Use {
    /// The container that holds it, if it is one only.
    pub fn container(&self) -> Option<&str> {
        let mut names = self.containers.keys().map(|(container, _)| container.as_str());
        let first = names.next()?;
        names.all(|name| name == first).then_some(first)
    }
}

/// What all pods do with what they hold.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Usage {
    /// By pod and unit.
    pub uses: Vec<Use>,
    /// How many were too many.
    pub left_out: usize,
    /// How many processes are on an accelerator that their pod does not hold, or are in no pod.
    pub strangers: BTreeMap<DeviceId, usize>,
}

/// What one look saw.
struct Look<'a> {
    inventory: &'a Inventory,
    holders: &'a Holders,
    /// The pods' UIDs, by process.
    pods: &'a BTreeMap<u32, String>,
    /// Whether processes of other containers can be seen at all.
    sees_processes: bool,
}

/// What a pod's containers hold of one unit: container, the resource that it asked for, and the device.
type Held<'a> = Vec<(&'a str, &'a ResourceName, &'a Device)>;

/// Looks devices up by what the kubelet has on record, which may be of another time: a device that was shared once, or wasn't, is still
/// held by whoever got it then.
struct Catalog<'a> {
    offered: BTreeMap<(&'a ResourceName, &'a DeviceId), &'a Device>,
    found: BTreeMap<&'a DeviceId, &'a Device>,
}

impl<'a> Catalog<'a> {
    fn of(inventory: &'a Inventory) -> Self {
        Self {
            offered: inventory.devices().map(|device| ((&device.resource, &device.id), device)).collect(),
            found: inventory.found().map(|device| (&device.id, device)).collect(),
        }
    }

    fn get(&self, resource: &ResourceName, id: &DeviceId) -> Option<&'a Device> {
        let domain = |name: &ResourceName| name.as_str().split('/').next().map(str::to_owned);
        self.offered.get(&(resource, id)).copied().or_else(|| {
            let whole = shared_by(id);
            let device = *self.found.get(whole.as_ref().unwrap_or(id))?;
            // IDs are a vendor's own; somebody else may hand out the same.
            (domain(&device.resource) == domain(resource)).then_some(device)
        })
    }
}

impl Look<'_> {
    fn usage(&self) -> Usage {
        let devices = Catalog::of(self.inventory);
        let mut held: BTreeMap<Key, Held<'_>> = BTreeMap::new();
        for holding in &self.holders.holdings {
            for id in &holding.devices {
                let Some(device) = devices.get(&holding.resource, id) else { continue };
                let key = Key {
                    pod: holding.pod.clone(),
                    accelerator: device.accelerator.id.clone(),
                    partition: device.partition.as_ref().map(|partition| partition.id.clone()),
                };
                held.entry(key).or_default().push((&holding.container, &holding.resource, device));
            }
        }
        let mut pods: BTreeMap<&DeviceId, BTreeSet<&str>> = BTreeMap::new();
        let mut units: BTreeMap<_, BTreeSet<&str>> = BTreeMap::new();
        for key in held.keys() {
            pods.entry(&key.accelerator).or_default().insert(&key.pod.uid);
            units.entry((&key.accelerator, &key.partition)).or_default().insert(&key.pod.uid);
        }
        let alone =
            |key: &Key| units.get(&(&key.accelerator, &key.partition)).is_some_and(|pods| pods.len() == 1);
        let uses: Vec<_> =
            held.iter().take(LIMIT).map(|(key, held)| self.one(key, held, alone(key))).collect();
        Usage { left_out: held.len() - uses.len(), strangers: self.strangers(&pods), uses }
    }

    fn one(&self, key: &Key, held: &Held<'_>, alone: bool) -> Use {
        let accelerator: &Accelerator = &held[0].2.accelerator;
        let readings = &accelerator.readings;
        let mut containers = BTreeMap::new();
        for (container, resource, _) in held {
            *containers.entry(((*container).to_owned(), (*resource).clone())).or_default() += 1;
        }
        let processes: BTreeMap<_, _> = readings
            .processes
            .iter()
            .filter(|process| process.partition == key.partition)
            .filter(|process| self.pods.get(&process.pid) == Some(&key.pod.uid))
            .map(|process| (process.pid, process.memory_mib.map(|mib| mib.saturating_mul(MIB))))
            .collect();
        // A vendor's library that knows how much memory is used knows by whom, too.
        let shows_processes = self.sees_processes && readings.memory_used_mib.is_some();
        let memory_used = match processes.values().flatten().copied().reduce(u64::saturating_add) {
            None if processes.is_empty() && shows_processes => Some(0),
            other => other,
        };
        let whole = match &key.partition {
            None => readings.utilization_percent,
            Some(partition) => readings.partition_utilization_percent.get(partition).copied(),
        };
        let own = || match &readings.process_utilization_percent {
            // Who has no process there computes nothing.
            _ if processes.is_empty() && shows_processes => Some(0),
            Some(each) if !processes.is_empty() => {
                let own = processes.keys().filter_map(|pid| each.get(pid));
                Some(own.fold(0, |sum: u32, percent| sum.saturating_add(*percent)))
            }
            _ => None,
        };
        let utilization = whole.filter(|_| alone).or_else(own);
        let is_idle = match utilization {
            Some(percent) => Some(percent == 0),
            // With a process there, it may well compute.
            None => shows_processes.then_some(processes.is_empty()),
        };
        Use {
            key: key.clone(),
            containers,
            product: accelerator.product.clone(),
            memory_limit: limit(held.iter().map(|(.., device)| *device)),
            memory_used,
            utilization: utilization.map(|percent| f64::from(percent.min(100)) / 100.0),
            is_idle,
            idle_for: Duration::ZERO,
            unused_for: Duration::ZERO,
            processes,
        }
    }

    fn strangers(&self, pods: &BTreeMap<&DeviceId, BTreeSet<&str>>) -> BTreeMap<DeviceId, usize> {
        let accelerators: BTreeMap<_, _> =
            self.inventory.devices().map(|device| (&device.accelerator.id, &device.accelerator)).collect();
        let strange = |id: &DeviceId, pid: u32| {
            let pod = self.pods.get(&pid);
            !pod.is_some_and(|pod| pods.get(id).is_some_and(|holders| holders.contains(pod.as_str())))
        };
        accelerators
            .into_iter()
            .filter(|(_, accelerator)| self.sees_processes && accelerator.readings.memory_used_mib.is_some())
            .map(|(id, accelerator)| {
                let all = accelerator.readings.processes.iter().map(|process| process.pid);
                (id.clone(), all.filter(|pid| strange(id, *pid)).collect::<BTreeSet<_>>().len())
            })
            .collect()
    }
}

/// In bytes. A container's replicas of the same unit add up; containers of one pod may hold the same replica only one after the other.
fn limit<'a>(devices: impl Iterator<Item = &'a Device>) -> Option<u64> {
    let each: BTreeMap<_, _> = devices
        .map(|device| (&device.id, device.replica.as_ref().and_then(|replica| replica.memory_mib)))
        .collect();
    let limits: Option<Vec<u64>> = each.into_values().collect();
    Some(limits?.into_iter().fold(0, |sum: u64, mib| sum.saturating_add(mib.saturating_mul(MIB))))
}

/// How long each holding has been idle, from look to look.
#[derive(Debug, Default)]
struct Idleness {
    /// In all, and without a break.
    seen: BTreeMap<Key, (Duration, Duration)>,
}

impl Idleness {
    /// Adds the time since the last look to what is idle now, and forgets what is held no longer.
    fn add(&mut self, usage: &mut Usage, elapsed: Duration) {
        let mut seen = BTreeMap::new();
        for one in &mut usage.uses {
            // Of what is seen for the first time it isn't known since when it is held.
            (one.idle_for, one.unused_for) = match self.seen.remove(&one.key) {
                Some((total, unused)) if one.is_idle == Some(true) => (total + elapsed, unused + elapsed),
                before => (before.unwrap_or_default().0, Duration::ZERO),
            };
            seen.insert(one.key.clone(), (one.idle_for, one.unused_for));
        }
        self.seen = seen;
    }
}

/// What `run` looks at.
#[derive(Debug, Clone)]
pub struct Sources {
    /// The devices, with what their sensors said last.
    pub inventory: watch::Receiver<Inventory>,
    /// Who holds them.
    pub following: Following,
    /// The processes of the machine.
    pub processes: Processes,
    /// Whether those of other containers are among them.
    pub sees_processes: bool,
}

impl Sources {
    fn look(&self) -> Usage {
        let inventory = self.inventory.borrow().clone();
        let active = self.following.active.borrow().clone();
        let holders = active.unwrap_or_else(|| self.following.all.borrow().clone());
        let named: BTreeSet<_> = inventory
            .devices()
            .flat_map(|device| device.accelerator.readings.processes.iter().map(|process| process.pid))
            .collect();
        let pods = self.processes.pods(named);
        let look = Look {
            inventory: &inventory,
            holders: &holders,
            pods: &pods,
            sees_processes: self.sees_processes,
        };
        look.usage()
    }
}

/// Keeps `usage` up to date until `stop`, at every change of the inventory and at least this often.
pub async fn run(sources: Sources, usage: watch::Sender<Usage>, every: Duration, stop: CancellationToken) {
    if !sources.sees_processes {
        tracing::warn!(
            "this process can't see those of other containers: what pods use of shared devices stays unknown; run it with hostPID"
        );
    }
    let mut inventory = sources.inventory.clone();
    let mut ticks = interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut idleness, mut last) = (Idleness::default(), Instant::now());
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = ticks.tick() => {}
            changed = inventory.changed() => if changed.is_err() { return },
        }
        let mut now = sources.look();
        idleness.add(&mut now, last.elapsed());
        last = Instant::now();
        if now.left_out > 0 {
            tracing::debug!(left_out = now.left_out, "too many holdings to show all");
        }
        usage.send_if_modified(|before| {
            let differs = *before != now;
            *before = now;
            differs
        });
    }
}
