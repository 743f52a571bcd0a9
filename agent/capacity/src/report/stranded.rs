//! Devices that are free and that no pod can use, and why.

use serde::Serialize;

use super::{
    pools::{Described, room},
    snapshot::{NumaPolicy, Pod, ResourceId},
    state::Machine as Placed,
    words::{amount, things},
};
use crate::fragmentation::{Cause, Shape, least_beside};

/// Free devices of a machine that can't be used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Stranded {
    /// The machine.
    pub node: String,
    /// The resource.
    pub resource: String,
    /// How many.
    pub devices: i64,
    /// Of how many that are free there.
    pub free: i64,
    /// Why, in a word for programs.
    pub cause: Cause,
    /// Why, in words for people.
    pub why: String,
}

/// Pods that can't have what is free because it is not together.
struct Limit {
    cause: Cause,
    /// So many are together.
    together: i64,
    /// Pods that ask for more than this don't mind: no machine has as many together.
    up_to: i64,
    why: String,
}

impl Limit {
    fn denies(&self, devices: i64) -> bool {
        // What is told of groups may be older than what pods hold.
        devices > self.together.max(1) && devices <= self.up_to
    }
}

impl Described<'_> {
    pub(super) fn stranded(&self, shapes: &[Shape], nobody_waits: bool) -> Vec<Stranded> {
        let name = self.names().name(self.resource);
        let mut all = Vec::new();
        // Links connect two at least; how many they can connect shows where most are free.
        let linked =
            self.machines.iter().filter_map(|machine| self.linked(machine)).max().unwrap_or(0).max(2);
        for machine in &self.machines {
            let free = machine.free(self.resource);
            if free == 0 {
                continue;
            }
            let mut lost = |cause: Cause, devices: i64, why: String| {
                let node = machine.node.name.to_string();
                all.push(Stranded { node, resource: name.to_owned(), devices, free, cause, why });
            };
            if let Some(why) = machine.closed() {
                lost(Cause::Closed, free, why);
                continue;
            }
            if let Some(wanted) = self.other_profile() {
                lost(
                    Cause::Profile,
                    free,
                    format!("no pod asks for this profile, and pods wait for {wanted}"),
                );
                continue;
            }
            let room = room(machine, self.resource);
            for (cause, devices) in room.stranded(shapes) {
                lost(cause, devices, self.why(machine, cause, free, shapes, nobody_waits));
            }
            let mut left = shapes.to_vec();
            for limit in [self.numa_limit(machine), self.nvlink_limit(machine, linked)].into_iter().flatten()
            {
                let usable = room.usable(&left);
                left.retain(|shape| !limit.denies(shape.devices));
                let devices = usable - room.usable(&left);
                if devices > 0 {
                    let why = format!("at most {} of {free} free {}", limit.together, limit.why);
                    lost(limit.cause, devices, why);
                }
            }
        }
        all
    }

    /// What the kubelet takes no pod for: devices on more NUMA nodes than they have to be on. Its policy tells, or, where that can't be seen, pods that it has refused.
    fn numa_limit(&self, machine: &Placed<'_>) -> Option<Limit> {
        const ON_ONE: &str = "are on one NUMA node, and the machine's kubelet";
        let snapshot = self.cluster.snapshot;
        let group = machine.node.groups.get(self.names().name(self.resource))?;
        let refused = snapshot.numa_refused.contains(&machine.node.name);
        let (up_to, why) = match snapshot.beside.numa_policies.get(&machine.node.name) {
            Some(NumaPolicy::Restricted) => (
                machine.node.capacity.get(self.resource) / 2,
                format!(
                    "{ON_ONE} refuses pods that one could hold if more of it were free (its Topology Manager's policy is restricted)"
                ),
            ),
            Some(NumaPolicy::SingleNode) => (
                i64::MAX,
                format!(
                    "{ON_ONE} refuses pods that need several (its Topology Manager's policy is single-numa-node)"
                ),
            ),
            None if refused => {
                (i64::MAX, format!("{ON_ONE} refuses pods that need several (TopologyAffinityError)"))
            }
            Some(NumaPolicy::Lenient) | None => return None,
        };
        Some(Limit { cause: Cause::Numa, together: group.numa?, up_to, why })
    }

    /// What is spread over more islands of `NVLink` than it has to be: so many are `linked` somewhere in the pool.
    fn nvlink_limit(&self, machine: &Placed<'_>, linked: i64) -> Option<Limit> {
        let together = self.linked(machine)?;
        let why = "reach each other by NVLink: a pod that needs more would run here, at the speed of the bus";
        Some(Limit { cause: Cause::Nvlink, together, up_to: linked, why: why.to_owned() })
    }

    /// How many free devices of a machine that has `NVLink` are connected by it.
    fn linked(&self, machine: &Placed<'_>) -> Option<i64> {
        machine.node.groups.get(self.names().name(self.resource))?.nvlink
    }

    /// The other MIG profile that pods wait for, where nobody asks for this one.
    fn other_profile(&self) -> Option<&str> {
        let name = self.names().name(self.resource);
        let (vendor, _) = name.split_once("/mig-")?;
        let asks = |pod: &Pod, resource| pod.requests.get(resource) > 0;
        let here = self.machines.iter().flat_map(|machine| machine.pods.iter());
        if here.chain(self.waiting()).any(|pod| asks(pod, self.resource)) {
            return None;
        }
        let others = self.cluster.accelerators.iter().copied().filter(|other| {
            *other != self.resource && self.names().name(*other).starts_with(&format!("{vendor}/mig-"))
        });
        let mut waited = others.filter(|other| self.waiting().any(|pod| asks(pod, *other)));
        waited.next().map(|other| self.names().name(other))
    }

    fn why(
        &self,
        machine: &Placed<'_>,
        cause: Cause,
        free: i64,
        shapes: &[Shape],
        nobody_waits: bool,
    ) -> String {
        let least = shapes.iter().map(|shape| shape.devices).min().unwrap_or(1);
        let name = self.names().name(self.resource);
        let who = if nobody_waits { "pods here ask for" } else { "pods that wait ask for" };
        let many = if shapes.iter().any(|shape| shape.devices > least) { " or more" } else { "" };
        let beside = least_beside(shapes);
        match cause {
            Cause::TooFew => format!("{free} free on this machine, and {who} {least}{many}"),
            Cause::Cpu | Cause::Memory | Cause::CpuAndMemory => {
                let (cpu, memory) = (ResourceId::CPU, ResourceId::MEMORY);
                let both = [(cpu, beside.cpu_milli), (memory, beside.memory_bytes)];
                let short = both.into_iter().filter(|(id, _)| match cause {
                    Cause::Cpu => *id == cpu,
                    Cause::Memory => *id == memory,
                    _ => true,
                });
                let (left, asked): (Vec<_>, Vec<_>) = short
                    .map(|(id, asked)| {
                        (amount(self.names(), id, machine.free(id)), amount(self.names(), id, asked))
                    })
                    .unzip();
                let (left, asked) = (left.join(" and "), asked.join(" and "));
                format!(
                    "beside {free} free {} only {left}; {who} at least {asked} for each",
                    things(name, free)
                )
            }
            Cause::Pods => "the machine takes no more pods".to_owned(),
            Cause::Closed | Cause::Profile | Cause::Numa | Cause::Nvlink => String::new(),
        }
    }
}
