//! Devices that are free and that no pod can use, and why.

use serde::Serialize;

use super::{
    pools::{Described, room},
    snapshot::{Pod, ResourceId},
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

impl Described<'_> {
    pub(super) fn stranded(&self, shapes: &[Shape], nobody_waits: bool) -> Vec<Stranded> {
        let name = self.names().name(self.resource);
        let mut all = Vec::new();
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
            if let Some(at_once) = self.numa_limit(machine) {
                let devices = room.apart(shapes, at_once);
                let why = format!(
                    "at most {at_once} of {free} free are on one NUMA node, and the machine's kubelet refuses pods that need several (TopologyAffinityError)"
                );
                if devices > 0 {
                    lost(Cause::Numa, devices, why);
                }
            }
        }
        all
    }

    /// How many devices one pod can have at most where the kubelet takes none that are on several NUMA nodes. That it does shows in pods that it has refused: its
    /// configuration isn't in the API.
    fn numa_limit(&self, machine: &Placed<'_>) -> Option<i64> {
        let refuses = self.cluster.snapshot.numa_refused.contains(&machine.node.name);
        machine.node.groups.get(self.names().name(self.resource)).filter(|_| refuses)?.numa
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
            Cause::Closed | Cause::Profile | Cause::Numa => String::new(),
        }
    }
}
