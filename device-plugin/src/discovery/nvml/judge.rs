//! From what NVML said to what is offered: which devices there are, which of them may be handed out, and why not the others. The
//! clock is an argument, the machine is read only for device nodes.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    events::{self, Meaning},
    look::{Gpu, Look},
    mig::{self, Instance},
    raw::Event,
};
use crate::{
    config::{Gpu as GpuConfig, Imex, MigStrategy},
    device::{Accelerator, Device, DeviceId, Health, Partition, Readings},
    discovery::{Complaints, Roots, sysfs},
    health::{Faults, memo::Memos},
};

/// What every user of a GPU needs besides its own node, where the machine has it.
const CONTROL_NODES: [&str; 4] = ["nvidiactl", "nvidia-uvm", "nvidia-uvm-tools", "nvidia-modeset"];
/// XIDs of the whole GPU, even where NVML names the instance that met them: its microcontrollers halted, the links or the bus
/// failed, an error was not contained.
const XIDS_OF_THE_GPU: [u64; 11] = [61, 62, 64, 74, 79, 95, 110, 119, 120, 140, 154];
/// Counters of errors; each time that one of them has grown is a fault.
const FAULTY_COUNTERS: [(&str, &str); 3] = [
    ("ecc_uncorrected", "uncorrected memory errors"),
    ("nvlink_replay", "NVLink replay errors"),
    ("nvlink_recovery", "NVLink recovery errors"),
];
/// Another name for "some XID" that NVML gives where it doesn't know the number.
const UNKNOWN_XID: u64 = 999;
/// Different XIDs of one GPU that are counted one by one.
const MOST_XIDS: usize = 200;

/// What is remembered of GPUs, for as long as the agent runs: also by the next back end, if this one has to be replaced.
#[derive(Debug)]
pub struct Judge {
    faults: Faults,
    counters: BTreeMap<(DeviceId, &'static str), u64>,
    xids: BTreeMap<DeviceId, BTreeMap<u64, u64>>,
    known: Vec<Device>,
    instances: BTreeMap<DeviceId, Vec<(DeviceId, u32, u32)>>,
    complaints: Complaints,
    dev: Option<PathBuf>,
}

/// How soon something has to be done about an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Urgency {
    /// Nothing is.
    None,
    /// GPUs have to be asked for their vital signs.
    Ask,
    /// A look is due.
    Look,
    /// Something is Unhealthy, of which the kubelet has to know; then a look is due.
    Tell,
}

/// Which settings matter here.
#[derive(Debug, Clone)]
pub struct Rules {
    /// How partitions are offered.
    pub mig: MigStrategy,
    /// Channels between machines.
    pub imex: Imex,
    /// What the configuration says of GPUs.
    pub gpu: GpuConfig,
    /// XIDs are left out of account.
    pub xids_disabled: bool,
}

impl Judge {
    /// Nothing was seen yet; a GPU recovers this long after its last fault.
    pub fn new(quiet: Duration) -> Self {
        Self {
            faults: Faults::new(quiet),
            counters: BTreeMap::new(),
            xids: BTreeMap::new(),
            known: Vec::new(),
            instances: BTreeMap::new(),
            complaints: Complaints::default(),
            dev: None,
        }
    }

    /// From now on the host has the GPUs' nodes there; without a folder in `/dev`.
    pub(super) fn set_dev(&mut self, dev: Option<PathBuf>) {
        self.dev = dev;
    }

    /// The same, with what the judge of an earlier process knew.
    pub(super) fn remembering(mut self, memos: &Memos, name: &str, now: Instant) -> Self {
        self.faults = self.faults.remembering(memos, name, now);
        self
    }

    /// From now on a GPU recovers this long after its last fault.
    pub(super) fn set_quiet(&mut self, quiet: Duration) {
        self.faults.set_quiet(quiet);
    }

    /// Takes note of an event.
    pub(super) fn event(&mut self, event: &Event, rules: &Rules, now: Instant) -> Urgency {
        let gpu = event.uuid.as_ref().and_then(|uuid| DeviceId::new(uuid.as_str()).ok());
        let urgency = match (events::meaning(event.kind), event.xid) {
            (Meaning::Xid, Some(xid)) => self.xid(gpu.as_ref(), xid, event, rules, now),
            (Meaning::Fault(why), _) => {
                for gpu in self.culprits(gpu.as_ref(), None, event) {
                    self.faults.record(&gpu, why, now);
                }
                Urgency::Tell
            }
            (Meaning::Ask, _) => Urgency::Ask,
            (Meaning::Partitions, _) => Urgency::Look,
            (Meaning::Xid | Meaning::None, _) => Urgency::None,
        };
        self.faults.keep();
        urgency
    }

    fn xid(
        &mut self,
        gpu: Option<&DeviceId>,
        xid: u64,
        event: &Event,
        rules: &Rules,
        now: Instant,
    ) -> Urgency {
        if let Some(gpu) = gpu {
            let counts = self.xids.entry(gpu.clone()).or_default();
            // There are fewer kinds of XIDs than this; what a driver makes up beyond is one of the unknown.
            let known = counts.contains_key(&xid) || counts.len() < MOST_XIDS;
            *counts.entry(if known { xid } else { UNKNOWN_XID }).or_default() += 1;
        }
        if rules.xids_disabled || !rules.gpu.is_critical(xid) {
            tracing::info!(xid, gpu = gpu.map(DeviceId::as_str), "an XID that is ignored");
            return Urgency::None;
        }
        let why = if xid == UNKNOWN_XID { "an unknown XID".to_owned() } else { format!("XID {xid}") };
        for unit in self.culprits(gpu, Some(xid), event) {
            self.faults.record(&unit, why.as_str(), now);
        }
        Urgency::Tell
    }

    /// The GPUs, or partitions of one, that an event is about.
    fn culprits(&self, gpu: Option<&DeviceId>, xid: Option<u64>, event: &Event) -> Vec<DeviceId> {
        let gpus: BTreeSet<&DeviceId> = self.instances.keys().collect();
        let Some(gpu) = gpu else {
            // An event that names no GPU may be about any of them.
            return gpus.into_iter().cloned().collect();
        };
        if let Some(gpu_instance) = event.gpu_instance
            && xid.is_some_and(|xid| !XIDS_OF_THE_GPU.contains(&xid))
        {
            let hit = |&&(_, its_gpu, its_compute): &&(DeviceId, u32, u32)| {
                its_gpu == gpu_instance && event.compute_instance.is_none_or(|compute| compute == its_compute)
            };
            let partitions = self.instances.get(gpu).into_iter().flatten();
            let partitions: Vec<_> = partitions.filter(hit).map(|(id, ..)| id.clone()).collect();
            if !partitions.is_empty() {
                return partitions;
            }
        }
        vec![gpu.clone()]
    }

    /// Turns what was seen into devices.
    pub fn devices(&mut self, look: &Look, rules: &Rules, roots: &Roots, now: Instant) -> Vec<Device> {
        for gpu in &look.gpus {
            self.examine(gpu, now);
        }
        let migs: Vec<_> = look.gpus.iter().map(|gpu| &gpu.mig).collect();
        let (offers, wrong) = mig::offers(rules.mig, &migs);
        self.complain(look, wrong.as_deref());
        let accelerators: Vec<_> =
            look.gpus.iter().map(|gpu| Arc::new(self.accelerator(gpu, look, roots))).collect();
        let control: Vec<_> = CONTROL_NODES.iter().filter_map(|name| roots.node(name)).collect();
        let mut devices = Vec::new();
        for offer in offers {
            let (gpu, accelerator) = (&look.gpus[offer.gpu], &accelerators[offer.gpu]);
            let instance = offer.instance.map(|place| &gpu.mig.instances()[place]);
            let (nodes, missing) = nodes(gpu, instance, &rules.imex, &control, roots);
            let unit = instance.map_or(&gpu.id, |instance| &instance.id);
            let sick = self.sick(&gpu.id, now).or_else(|| self.sick(unit, now));
            let health =
                sick.or_else(|| wrong.clone()).or(missing).map_or(Health::Healthy, Health::Unhealthy);
            devices.push(Device {
                id: unit.clone(),
                resource: offer.resource,
                health,
                nodes: nodes.into(),
                listed_in: Some("NVIDIA_VISIBLE_DEVICES"),
                accelerator: accelerator.clone(),
                partition: instance.map(|instance| Arc::new(partition(instance))),
                replica: None,
            });
        }
        self.keep_lost(look, &mut devices, now);
        self.forget_gone(look, &devices, now);
        self.faults.keep();
        self.known.clone_from(&devices);
        devices
    }

    fn sick(&mut self, unit: &DeviceId, now: Instant) -> Option<String> {
        match self.faults.health(unit, now) {
            Health::Healthy => None,
            Health::Unhealthy(why) => Some(why),
        }
    }

    /// What NVML says that is a fault.
    fn examine(&mut self, gpu: &Gpu, now: Instant) {
        for (name, what) in FAULTY_COUNTERS {
            let Some(&count) = gpu.readings.errors.get(name) else { continue };
            let before = self.counters.insert((gpu.id.clone(), name), count);
            // A counter that is seen for the first time says nothing of when it grew; one that shrank was reset.
            if let Some(grown) =
                before.and_then(|before| count.checked_sub(before)).filter(|grown| *grown > 0)
            {
                self.faults.record(&gpu.id, format!("{grown} new {what}"), now);
            }
        }
        let conditions = gpu.vitals.conditions(&gpu.fixed);
        if !conditions.is_empty() {
            self.faults.prolong(&gpu.id, conditions.join("; "), now);
        }
        let instances = gpu.mig.instances().iter();
        let instances = instances.map(|instance| (instance.id.clone(), instance.gi, instance.ci)).collect();
        self.instances.insert(gpu.id.clone(), instances);
    }

    fn complain(&mut self, look: &Look, wrong: Option<&str>) {
        for (index, why) in &look.unreadable {
            if self.complaints.note(&index.to_string(), why) {
                tracing::warn!(gpu.index = index, why, "a GPU can't be read");
            }
        }
        if let Some(why) = wrong
            && self.complaints.note("layout", why)
        {
            tracing::error!("{why}: nothing of it can be allocated");
        }
        self.complaints.end_round();
    }

    fn accelerator(&self, gpu: &Gpu, look: &Look, roots: &Roots) -> Accelerator {
        let fixed = &gpu.fixed;
        let mut readings = gpu.readings.clone();
        if let Some(xids) = self.xids.get(&gpu.id) {
            readings.xids.clone_from(xids);
        }
        Accelerator {
            index: Some(gpu.index),
            product: fixed.product.clone(),
            pci_address: fixed.pci_address.clone(),
            numa_node: fixed.pci_address.as_deref().and_then(|address| numa_node(&roots.sys, address)),
            memory_mib: fixed.memory_mib,
            links: look.links.get(&gpu.id).cloned().unwrap_or_default(),
            readings,
            dev: self.dev.clone(),
            ..Accelerator::new(gpu.id.clone())
        }
    }

    /// GPUs that can't be read any more stay listed, as lost. Which of those that were there it is can't be asked.
    fn keep_lost(&mut self, look: &Look, devices: &mut Vec<Device>, now: Instant) {
        let Some(why) = look.unreadable.values().next() else { return };
        let seen: BTreeSet<&DeviceId> = look.gpus.iter().map(|gpu| &gpu.id).collect();
        let lost: Vec<Device> =
            self.known.iter().filter(|device| !seen.contains(&device.accelerator.id)).cloned().collect();
        for device in lost {
            let gpu = &device.accelerator.id;
            self.faults.prolong(gpu, format!("lost: {why}"), now);
            let health = self.faults.health(gpu, now);
            let accelerator = Accelerator { readings: Readings::default(), ..(*device.accelerator).clone() };
            devices.push(Device { health, accelerator: Arc::new(accelerator), ..device });
        }
    }

    /// What is gone starts afresh when it is put in again.
    fn forget_gone(&mut self, look: &Look, devices: &[Device], now: Instant) {
        let mut gpus: BTreeSet<&DeviceId> = look.gpus.iter().map(|gpu| &gpu.id).collect();
        gpus.extend(devices.iter().map(|device| &device.accelerator.id));
        let units: BTreeSet<&DeviceId> =
            devices.iter().map(Device::unit).chain(gpus.iter().copied()).collect();
        if look.unreadable.is_empty() {
            self.faults.retain(|id| units.contains(id));
        } else {
            // What can't be read may be a GPU that an earlier process left faulty: it is not quiet.
            self.faults.prolong_known(|id| !units.contains(id), now);
        }
        self.counters.retain(|(id, _), _| gpus.contains(id));
        self.xids.retain(|id, _| gpus.contains(id));
        self.instances.retain(|id, _| gpus.contains(id));
    }
}

fn partition(instance: &Instance) -> Partition {
    Partition {
        id: instance.id.clone(),
        profile: instance.profile.to_string(),
        memory_mib: instance.attributes.as_ref().map(|attributes| attributes.memory_mib),
        instance: Some((instance.gi, instance.ci)),
        index: Some(instance.index),
    }
}

/// The device nodes that a container needs, and what is missing of them.
fn nodes(
    gpu: &Gpu,
    instance: Option<&Instance>,
    imex: &Imex,
    control: &[PathBuf],
    roots: &Roots,
) -> (Vec<PathBuf>, Option<String>) {
    let mut missing = None;
    let mut nodes = Vec::new();
    let mut take = |name: &str| match roots.node(name) {
        Some(node) => nodes.push(node),
        None => {
            missing.get_or_insert_with(|| format!("the host has no /dev/{name}"));
        }
    };
    match gpu.fixed.minor {
        Some(minor) => {
            take(&format!("nvidia{minor}"));
            if let Some(instance) = instance {
                match mig::capability_nodes(&roots.proc, minor, instance.gi, instance.ci) {
                    Ok(names) => names.iter().for_each(|name| take(name)),
                    Err(why) => missing = missing.or(Some(why)),
                }
            }
        }
        None => missing = Some("NVML names no device node".to_owned()),
    }
    if let Some(channel) = imex.channel() {
        let name = format!("{}{channel}", crate::allocate::IMEX_CHANNEL);
        match roots.node(&name) {
            Some(node) => nodes.push(node),
            None if imex.required => missing = missing.or(Some(format!("the host has no /dev/{name}"))),
            None => {}
        }
    }
    nodes.extend_from_slice(control);
    (nodes, missing)
}

/// The NUMA node of a PCI device; the kernel says -1 where there is none.
pub(super) fn numa_node(sys: &Path, pci_address: &str) -> Option<u32> {
    sysfs::numa_node(&sys.join("bus/pci/devices").join(pci_address))
}

#[cfg(test)]
mod tests;
