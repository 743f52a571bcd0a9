//! The pools of machines that are owned, by accelerator and model.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::{
    Holder, Stranded,
    fit::could_run,
    snapshot::{Labels, Names, Pod, ResourceId},
    state::{Cluster, Machine as Placed},
};
use crate::fragmentation::{Cause, Room, Shape, distinct, expected, least_beside};

/// Machines that are owned and have the same accelerator. CPU and memory of machines with several kinds of accelerators are counted in each pool.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Pool {
    /// The resource: `nvidia.com/gpu`; `cpu`, in thousandths of a core, for machines without accelerators.
    pub resource: String,
    /// What the machines' labels call the model.
    pub model: Option<String>,
    /// How many of the resource are one device, where devices are shared by time or by MPS; else 1.
    pub shares_per_device: i64,
    /// How many machines.
    pub nodes: usize,
    /// How many devices (or shares of them) the machines have.
    pub capacity: i64,
    /// How many of them are well and may be handed out.
    pub allocatable: i64,
    /// How many pods ask for: those that hold some, and those that wait and could run here.
    pub requested: i64,
    /// How many pods hold.
    pub allocated: i64,
    /// How many are computed on, as a sum of utilisations; unknown where nothing measures.
    pub used: Option<f64>,
    /// For how many of those held it is known what they do.
    pub watched: i64,
    /// How many are held by pods that do nothing with them.
    pub idle: i64,
    /// How many are neither held nor out of service.
    pub free: i64,
    /// How many of those are free, but can't be used by any pod of the kinds that wait, or, where none waits, that run.
    pub stranded: i64,
    /// The same by cause.
    pub stranded_by: BTreeMap<Cause, i64>,
    /// The share of the free ones that a pod drawn at random from those that run and wait can't use where it is.
    pub fragmentation: Option<f64>,
    /// Pods that wait and could run here.
    pub waiting_pods: usize,
    /// The largest pod that fits now.
    pub largest_pod: Option<Largest>,
    /// How many pods of each size would fit together now.
    pub gangs: Vec<Gang>,
    /// CPU of the machines that pods may have, in cores.
    pub cpu_cores: f64,
    /// CPU that is left, in cores.
    pub cpu_free_cores: f64,
    /// Memory of the machines that pods may have, in bytes.
    pub memory_bytes: i64,
    /// Memory that is left, in bytes.
    pub memory_free_bytes: i64,
    /// What the idle ones cost.
    pub idle_cost_per_hour: Option<f64>,
}

/// The largest pod that fits now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Largest {
    /// Devices, with at least as much CPU and memory for each as the least demanding pod of the pool asks for.
    pub devices: i64,
    /// Where.
    pub node: String,
    /// CPU that is left there, in thousandths of a core.
    pub cpu_milli: i64,
    /// Memory that is left there, in bytes.
    pub memory_bytes: i64,
    /// How many of the machine's free devices are on one NUMA node, where Spillway's agent tells.
    pub within_numa: Option<i64>,
    /// How many of the machine's free devices are connected by `NVLink`, where Spillway's agent tells.
    pub within_nvlink: Option<i64>,
}

/// How many equal pods fit together now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Gang {
    /// Devices of each pod.
    pub devices: i64,
    /// How many pods.
    pub pods: i64,
}

/// One machine's part of a pool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Machine {
    /// Its name.
    pub node: String,
    /// The resource.
    pub resource: String,
    /// What its labels call the model.
    pub model: Option<String>,
    /// How many devices pods may have; of CPU thousandths of a core.
    pub allocatable: i64,
    /// How many pods hold.
    pub allocated: i64,
    /// How many are free.
    pub free: i64,
    /// How many of those no pod can use.
    pub stranded: i64,
}

/// What is owned.
#[derive(Default)]
pub(super) struct Owned {
    pub(super) pools: Vec<Pool>,
    pub(super) machines: Vec<Machine>,
    pub(super) stranded: Vec<Stranded>,
}

/// Labels that name the model of a machine's accelerators, of GPU feature discovery, device plugins and clouds.
const MODELS: [&str; 9] = [
    "nvidia.com/gpu.product",
    "amd.com/gpu.product-name",
    "beta.amd.com/gpu.product-name",
    "gpu.intel.com/product",
    "cloud.google.com/gke-accelerator",
    "cloud.google.com/gke-tpu-accelerator",
    "karpenter.k8s.aws/instance-gpu-name",
    "karpenter.k8s.aws/instance-accelerator-name",
    "kubernetes.azure.com/accelerator",
];

pub(crate) fn model(labels: &Labels, resource: &str) -> Option<String> {
    let own = labels.get(&*format!("{resource}.product"));
    let vendor = resource.split('/').next().unwrap_or(resource);
    // A machine may have accelerators of several vendors.
    let ours = |key: &&&str| {
        let names_vendor = key.split('/').next().is_some_and(|domain| domain.ends_with(vendor));
        names_vendor || !key.contains(".com/gpu")
    };
    let generic = || MODELS.iter().filter(ours).find_map(|key| labels.get(*key));
    let generic = || if resource.starts_with("fpga.") || vendor == "xilinx.com" { None } else { generic() };
    own.or_else(generic).map(ToString::to_string)
}

pub(crate) fn shares(labels: &Labels, resource: &str) -> i64 {
    let label = labels.get(&*format!("{}.replicas", resource.trim_end_matches(".shared")));
    label.and_then(|label| label.parse().ok()).filter(|replicas| *replicas > 1).unwrap_or(1)
}

pub(super) fn room(machine: &Placed<'_>, resource: ResourceId) -> Room {
    Room {
        devices: machine.free(resource),
        cpu_milli: machine.free(ResourceId::CPU),
        memory_bytes: machine.free(ResourceId::MEMORY),
        pods: machine.free(ResourceId::PODS),
    }
}

fn shape(pod: &Pod, resource: ResourceId) -> Shape {
    Shape {
        devices: pod.requests.get(resource),
        cpu_milli: pod.requests.get(ResourceId::CPU),
        memory_bytes: pod.requests.get(ResourceId::MEMORY),
    }
}

/// The pools of machines that are owned, and where devices of them are stranded.
pub(super) fn dedicated(
    cluster: &Cluster<'_>,
    idle: &[Holder],
    shown: &dyn Fn(&Placed<'_>) -> bool,
) -> Owned {
    let names = &cluster.snapshot.names;
    let mut pools: BTreeMap<(usize, ResourceId, Option<String>, i64), Vec<&Placed<'_>>> = BTreeMap::new();
    for machine in cluster.machines.iter().filter(|machine| !machine.is_virtual() && shown(machine)) {
        let mut accelerated = false;
        for (at, &resource) in cluster.accelerators.iter().enumerate() {
            let has = machine.node.capacity.get(resource).max(machine.node.allocatable.get(resource));
            if has <= 0 && machine.held.get(resource) <= 0 {
                continue;
            }
            accelerated = true;
            let name = names.name(resource);
            let key = (at, resource, model(&machine.node.labels, name), shares(&machine.node.labels, name));
            pools.entry(key).or_default().push(machine);
        }
        if !accelerated {
            pools.entry((usize::MAX, ResourceId::CPU, None, 1)).or_default().push(machine);
        }
    }
    let (mut machines, mut stranded) = (Vec::new(), Vec::new());
    let pools = pools
        .into_iter()
        .map(|((_, resource, model, shares), placed)| {
            let described = Described { cluster, resource, machines: placed };
            let (pool, lost) = described.pool(model, shares, idle);
            machines.extend(described.machines(&pool, &lost));
            stranded.extend(lost);
            pool
        })
        .collect();
    Owned { pools, machines, stranded }
}

pub(super) struct Described<'a> {
    pub(super) cluster: &'a Cluster<'a>,
    pub(super) resource: ResourceId,
    pub(super) machines: Vec<&'a Placed<'a>>,
}

impl Described<'_> {
    pub(super) fn names(&self) -> &Names {
        &self.cluster.snapshot.names
    }

    pub(super) fn waiting(&self) -> impl Iterator<Item = &&Pod> {
        self.cluster.waiting.iter().flat_map(|group| &group.pods)
    }

    /// Pods that wait, ask for the resource, and could run on one of the machines if it were free.
    fn suitors(&self) -> Vec<(&Pod, usize)> {
        let mut suitors = Vec::new();
        for group in &self.cluster.waiting {
            let Some(first) = group.first() else { continue };
            let asked = first.requests.get(self.resource);
            let plain = self.resource == ResourceId::CPU && self.cluster.accelerator(first).is_none();
            if asked <= 0 || !(plain || self.resource != ResourceId::CPU) {
                continue;
            }
            if self.machines.iter().any(|machine| could_run(self.cluster, group, machine)) {
                suitors.push((first, group.pods.len()));
            }
        }
        suitors
    }

    fn pool(&self, model: Option<String>, shares_per_device: i64, idle: &[Holder]) -> (Pool, Vec<Stranded>) {
        let resource = self.resource;
        let sum = |of: &dyn Fn(&Placed<'_>) -> i64| {
            self.machines.iter().fold(0_i64, |sum, machine| sum.saturating_add(of(machine)))
        };
        let suitors = self.suitors();
        let wanted: i64 = suitors
            .iter()
            .map(|(pod, count)| {
                pod.requests.get(resource).saturating_mul(i64::try_from(*count).unwrap_or(i64::MAX))
            })
            .fold(0, i64::saturating_add);
        let holders: Vec<&Pod> = self
            .machines
            .iter()
            .flat_map(|machine| machine.pods.iter().copied())
            .filter(|pod| pod.requests.get(resource) > 0)
            .collect();
        let kinds: BTreeSet<Shape> = if suitors.is_empty() {
            holders.iter().map(|pod| shape(pod, resource)).collect()
        } else {
            suitors.iter().map(|(pod, _)| shape(pod, resource)).collect()
        };
        let shapes = distinct(kinds.into_iter().collect());
        let shapes = if shapes.is_empty() {
            vec![Shape { devices: 1, cpu_milli: 0, memory_bytes: 0 }]
        } else {
            shapes
        };
        let accelerated = resource != ResourceId::CPU;
        let stranded = if accelerated { self.stranded(&shapes, suitors.is_empty()) } else { Vec::new() };
        let mut stranded_by: BTreeMap<Cause, i64> = BTreeMap::new();
        for one in &stranded {
            *stranded_by.entry(one.cause).or_default() += one.devices;
        }
        let open = || self.machines.iter().filter(|machine| machine.closed().is_none());
        let rooms: Vec<_> = open().map(|machine| room(machine, resource)).collect();
        let mut mix: BTreeMap<Shape, usize> = BTreeMap::new();
        for (pod, count) in suitors.iter().copied().chain(holders.iter().map(|pod| (*pod, 1))) {
            *mix.entry(shape(pod, resource)).or_default() += count;
        }
        let mix: Vec<_> = mix.into_iter().collect();
        let all: Vec<_> = mix.iter().map(|(shape, _)| *shape).collect();
        let beside = least_beside(&all);
        let (used, watched) = self.used(&holders);
        let name = self.names().name(resource);
        let on: BTreeSet<&str> = self.machines.iter().map(|machine| &*machine.node.name).collect();
        let ours = || idle.iter().filter(|holder| holder.resource == name && on.contains(&*holder.node));
        let costs: Option<Vec<f64>> = ours().map(|holder| holder.cost_per_hour).collect();
        let pool = Pool {
            resource: name.to_owned(),
            model,
            shares_per_device,
            nodes: self.machines.len(),
            capacity: sum(&|machine| machine.node.capacity.get(resource)),
            allocatable: sum(&|machine| machine.node.allocatable.get(resource)),
            requested: sum(&|machine| machine.held.get(resource)).saturating_add(wanted),
            allocated: sum(&|machine| machine.held.get(resource)),
            used,
            watched,
            idle: ours().map(|holder| holder.devices).sum(),
            free: sum(&|machine| machine.free(resource)),
            stranded: stranded_by.values().sum(),
            stranded_by,
            fragmentation: if accelerated { expected(&rooms, &mix) } else { None },
            waiting_pods: suitors.iter().map(|(_, count)| count).sum(),
            largest_pod: self.largest(&beside),
            gangs: if accelerated { gangs(&rooms, &beside, &all) } else { Vec::new() },
            cpu_cores: float(sum(&|machine| machine.node.allocatable.get(ResourceId::CPU))) / 1000.0,
            cpu_free_cores: float(sum(&|machine| machine.free(ResourceId::CPU))) / 1000.0,
            memory_bytes: sum(&|machine| machine.node.allocatable.get(ResourceId::MEMORY)),
            memory_free_bytes: sum(&|machine| machine.free(ResourceId::MEMORY)),
            idle_cost_per_hour: costs.filter(|costs| !costs.is_empty()).map(|costs| costs.iter().sum()),
        };
        (pool, stranded)
    }

    pub(super) fn used(&self, holders: &[&Pod]) -> (Option<f64>, i64) {
        let usage = &self.cluster.snapshot.beside.usage;
        let (mut used, mut watched) = (0.0, 0);
        for pod in holders {
            let Some(known) = usage.get(&(pod.namespace.clone(), pod.name.clone())) else { continue };
            let measured = match self.resource {
                ResourceId::CPU => known.cpu_milli.map(float),
                _ => known.computes,
            };
            if let Some(measured) = measured {
                used += measured;
                watched += pod.requests.get(self.resource);
            }
        }
        ((watched > 0).then_some(used), watched)
    }

    fn machines(&self, pool: &Pool, stranded: &[Stranded]) -> Vec<Machine> {
        let mut lost: BTreeMap<&str, i64> = BTreeMap::new();
        for one in stranded {
            *lost.entry(&one.node).or_default() += one.devices;
        }
        let each = self.machines.iter().map(|machine| Machine {
            node: machine.node.name.to_string(),
            resource: pool.resource.clone(),
            model: pool.model.clone(),
            allocatable: machine.node.allocatable.get(self.resource),
            allocated: machine.held.get(self.resource),
            free: machine.free(self.resource),
            stranded: lost.get(&*machine.node.name).copied().unwrap_or(0),
        });
        each.collect()
    }

    fn largest(&self, beside: &Shape) -> Option<Largest> {
        let open = self.machines.iter().filter(|machine| machine.closed().is_none());
        let fits = open.map(|machine| (room(machine, self.resource).largest(beside), *machine));
        let (devices, machine) = fits
            .filter(|(devices, _)| *devices > 0)
            .max_by(|(one, _), (other, _)| one.cmp(other).then(std::cmp::Ordering::Greater))?;
        let group = machine.node.groups.get(self.names().name(self.resource));
        Some(Largest {
            devices,
            node: machine.node.name.to_string(),
            cpu_milli: machine.free(ResourceId::CPU),
            memory_bytes: machine.free(ResourceId::MEMORY),
            within_numa: group.and_then(|group| group.numa),
            within_nvlink: group.and_then(|group| group.nvlink),
        })
    }
}

/// How many pods of 1, 2, 4, … devices, and of the sizes that there are, would fit together.
fn gangs(rooms: &[Room], beside: &Shape, shapes: &[Shape]) -> Vec<Gang> {
    let largest = rooms.iter().map(|room| room.devices).max().unwrap_or(0);
    let powers = std::iter::successors(Some(1_i64), |size| size.checked_mul(2))
        .take_while(|size| *size <= largest.max(1));
    let sizes: BTreeSet<i64> = powers.chain(shapes.iter().map(|shape| shape.devices)).take(16).collect();
    sizes
        .into_iter()
        .map(|devices| {
            let each = Shape {
                devices,
                cpu_milli: beside.cpu_milli.saturating_mul(devices),
                memory_bytes: beside.memory_bytes.saturating_mul(devices),
            };
            Gang { devices, pods: rooms.iter().map(|room| room.fits(&each)).fold(0, i64::saturating_add) }
        })
        .collect()
}

#[allow(clippy::cast_precision_loss)]
pub(super) fn float(count: i64) -> f64 {
    count as f64
}
