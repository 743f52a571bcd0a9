//! Whether a pod fits a machine, and all that is in its way if not: the scheduler's filters (`kube-scheduler/framework/plugins`) over values. Volumes,
//! claims of dynamic resources and plugins of others are not looked at; there the scheduler's own words tell.

use k8s_openapi::api::core::v1::Taint;

use super::{
    near::Near,
    selector::{minds_cordon, repels, selected, selects},
    snapshot::{ClaimState, HostPort, Pod, ResourceId, Wish},
    state::{Cluster, Group, Machine},
};

/// What is in a pod's way on one machine.
#[derive(Debug, Default)]
#[allow(clippy::struct_excessive_bools)]
pub(super) struct Obstacles<'a> {
    /// Its node selector or affinity.
    pub(super) unselected: bool,
    /// The machine is cordoned.
    pub(super) cordoned: bool,
    /// A taint that it does not tolerate.
    pub(super) taint: Option<&'a Taint>,
    /// More than the machine has, even empty.
    pub(super) beyond: Vec<ResourceId>,
    /// More than is left.
    pub(super) short: Vec<ResourceId>,
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

    /// Nothing but what the admin has set keeps it off: a cordon, or a taint.
    pub(super) fn only_kept_off(&self) -> bool {
        (self.cordoned || self.taint.is_some())
            && Obstacles {
                cordoned: false,
                taint: None,
                beyond: self.beyond.clone(),
                short: self.short.clone(),
                ..*self
            }
            .none()
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
    let has = |(resource, asked)| asked <= machine.node.allocatable.get(resource);
    first.requests.iter().filter(|(_, asked)| *asked > 0).all(has) && {
        let bars = group.bars(cluster, machine);
        !bars.unselected && !bars.unreached && bars.taint.is_none()
    }
}

/// All that is in the way of a group's pods on the machine at `at`.
pub(super) fn obstacles<'a>(
    cluster: &Cluster<'a>,
    group: &Group<'a>,
    pod: &Pod,
    at: usize,
    near: &Near<'a>,
) -> Obstacles<'a> {
    let machine = &cluster.machines[at];
    let Bars { unselected, unreached, cordoned, taint } = group.bars(cluster, machine);
    let mut found = Obstacles { unselected, cordoned, taint, unreached, ..Obstacles::default() };
    for (resource, asked) in pod.requests.iter().filter(|(_, asked)| *asked > 0) {
        if asked > machine.node.allocatable.get(resource) {
            found.beyond.push(resource);
        } else if asked > machine.free(resource) {
            found.short.push(resource);
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
    found.port = pod.ports.iter().find_map(|port| Some((port.port, taken(port)?)));
    found.apart = near.apart(at);
    found.lonely = near.lonely(at);
    found.uneven = near.uneven(at);
    found
}
