//! Whether a pod fits a machine, and all that is in its way if not: the scheduler's filters (`kube-scheduler/framework/plugins`) over values. Volumes,
//! claims of dynamic resources and plugins of others are not looked at; there the scheduler's own words tell.

use k8s_openapi::api::core::v1::Taint;

use super::{
    near::Near,
    selector::{minds_cordon, repels, selected, selects},
    snapshot::{ClaimState, HostPort, Pod, ResourceId, Wish},
    state::{Cluster, Group, Level, Machine},
};

/// Which of a pod's requests are too much, by their place among all of them. Small, for it is kept for each machine; places from 63 on share a bit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct TooMuch(u64);

impl TooMuch {
    fn add(&mut self, place: usize) {
        self.0 |= Self::bit(place);
    }

    fn bit(place: usize) -> u64 {
        1 << place.min(63)
    }

    pub(super) fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether the one at a place is among them.
    pub(super) fn has(self, place: usize) -> bool {
        self.0 & Self::bit(place) != 0
    }

    pub(super) fn len(self) -> u32 {
        self.0.count_ones()
    }

    /// The resources that are meant, of this pod.
    pub(super) fn of(self, pod: &Pod) -> impl Iterator<Item = ResourceId> {
        let places = pod.requests.iter().enumerate();
        places.filter(move |(place, _)| self.has(*place)).map(|(_, (resource, _))| resource)
    }
}

/// What is in a pod's way on one machine.
#[derive(Debug, Clone, Copy, Default)]
#[allow(clippy::struct_excessive_bools)]
pub(super) struct Obstacles<'a> {
    /// Its node selector or affinity.
    pub(super) unselected: bool,
    /// The machine is cordoned.
    pub(super) cordoned: bool,
    /// A taint that it does not tolerate.
    pub(super) taint: Option<&'a Taint>,
    /// More than the machine has, even empty.
    pub(super) beyond: TooMuch,
    /// More than is left.
    pub(super) short: TooMuch,
    /// A port of the host, and who has it.
    pub(super) port: Option<(i32, &'a Pod)>,
    /// Who it wants to be apart from, or who wants to be apart from it.
    pub(super) apart: Option<&'a Pod>,
    /// No pod that it wants to be near is there.
    pub(super) lonely: bool,
    /// Its like would be spread too unevenly.
    pub(super) uneven: bool,
    /// What it claims is elsewhere.
    pub(super) unreached: bool,
}

impl Obstacles<'_> {
    /// It could go there if enough were free.
    pub(super) fn only_short(&self) -> bool {
        !(self.unselected
            || self.cordoned
            || self.taint.is_some()
            || !self.beyond.is_empty()
            || self.port.is_some()
            || self.apart.is_some()
            || self.lonely
            || self.uneven
            || self.unreached)
    }

    pub(super) fn none(&self) -> bool {
        self.short.is_empty() && self.only_short()
    }

    /// It could go there if enough were free, and if other pods were elsewhere.
    pub(super) fn minds_others(&self) -> bool {
        let others = self.port.is_some() || self.apart.is_some() || self.lonely || self.uneven;
        others && Obstacles { port: None, apart: None, lonely: false, uneven: false, ..*self }.only_short()
    }

    /// Nothing but what the admin has set keeps it off: a cordon, or a taint.
    pub(super) fn only_kept_off(&self) -> bool {
        (self.cordoned || self.taint.is_some()) && Obstacles { cordoned: false, taint: None, ..*self }.none()
    }
}

/// What keeps a pod off a machine for good: neither what others hold there nor what they are matters.
#[derive(Debug, Clone, Copy, Default)]
#[allow(clippy::struct_excessive_bools)]
pub(super) struct Bars<'a> {
    pub(super) unselected: bool,
    unreached: bool,
    cordoned: bool,
    taint: Option<&'a Taint>,
}

impl<'a> Bars<'a> {
    pub(super) fn of(cluster: &Cluster<'a>, pod: &Pod, wish: &Wish, machine: &Machine<'a>) -> Self {
        let node = machine.node;
        let unreached = |state: Option<&ClaimState>| match state {
            Some(ClaimState::Within(machines)) => !selected(machines, node),
            _ => false,
        };
        Self {
            unselected: !selects(wish, node),
            unreached: cluster.snapshot.claims_of(pod).any(unreached),
            cordoned: node.cordoned && minds_cordon(wish),
            taint: repels(wish, node)
                .filter(|taint| !(node.cordoned && taint.key == "node.kubernetes.io/unschedulable")),
        }
    }
}

/// Whether pods of the group could run on the machine if it were empty, and not cordoned.
pub(super) fn could_run(cluster: &Cluster<'_>, group: &Group<'_>, machine: &Machine<'_>) -> bool {
    let Some(first) = group.first() else { return false };
    let bars = group.bars(cluster, machine);
    let has = |(resource, asked)| asked <= machine.node.allocatable.get(resource);
    !bars.unselected
        && !bars.unreached
        && bars.taint.is_none()
        && first.requests.iter().filter(|(_, asked)| *asked > 0).all(has)
}

/// A place is looked for, for one pod of a group.
pub(super) struct Search<'a> {
    cluster: &'a Cluster<'a>,
    group: &'a Group<'a>,
    pod: &'a Pod,
    near: Near<'a>,
    /// What it asks for, by place among its requests, and what machines have of it.
    asked: Vec<(usize, i64, &'a [Level])>,
}

impl<'a> Search<'a> {
    pub(super) fn of(cluster: &'a Cluster<'a>, group: &'a Group<'a>, pod: &'a Pod, wish: &'a Wish) -> Self {
        let asked = pod.requests.iter().enumerate().filter(|(_, (_, asked))| *asked > 0);
        Self {
            cluster,
            group,
            pod,
            near: Near::of(group, pod, wish, cluster),
            asked: asked.map(|(place, (resource, asked))| (place, asked, cluster.levels(resource))).collect(),
        }
    }

    /// Whether no pod runs anywhere that it wants to be near.
    pub(super) fn alone(&self) -> bool {
        self.near.alone()
    }

    /// All that is in the pod's way on a machine.
    pub(super) fn on(&self, machine: &'a Machine<'a>) -> Obstacles<'a> {
        let at = machine.place;
        let Bars { unselected, unreached, cordoned, taint } = self.group.bars(self.cluster, machine);
        let mut found = Obstacles { unselected, cordoned, taint, unreached, ..Obstacles::default() };
        for (place, asked, levels) in &self.asked {
            let Level { allocatable, free } = levels.get(at).copied().unwrap_or_default();
            if *asked > allocatable {
                found.beyond.add(*place);
            } else if *asked > free {
                found.short.add(*place);
            }
        }
        let taken = |port: &HostPort| {
            let same = |other: &HostPort| {
                let every = |address: &str| address == "0.0.0.0" || address == "::";
                other.port == port.port
                    && other.protocol == port.protocol
                    && (other.address == port.address || every(&other.address) || every(&port.address))
            };
            machine.pods.iter().copied().find(|pod| pod.ports.iter().any(same))
        };
        found.port = self.pod.ports.iter().find_map(|port| Some((port.port, taken(port)?)));
        found.apart = self.near.apart(at);
        found.lonely = self.near.lonely(at);
        found.uneven = self.near.uneven(at);
        found
    }
}
