//! Whether a pod fits a machine, and all that is in its way if not: the scheduler's filters (`kube-scheduler/framework/plugins`) over values. Volumes,
//! claims of dynamic resources and plugins of others are not looked at; there the scheduler's own words tell.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{PodAffinityTerm, Taint, TopologySpreadConstraint};

use super::{
    selector::{labels_fit, minds_cordon, repels, selects},
    snapshot::{Pod, ResourceId, Wish},
    state::{Cluster, Machine},
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
    /// A port of the host that another pod has.
    pub(super) port: Option<i32>,
    /// It, or a pod that is there, wants to be apart.
    pub(super) apart: bool,
    /// No pod that it wants to be near is there.
    pub(super) lonely: bool,
    /// Its like would be spread too unevenly.
    pub(super) uneven: bool,
}

impl Obstacles<'_> {
    /// It could go there if enough were free.
    pub(super) fn only_short(&self) -> bool {
        !(self.unselected
            || self.cordoned
            || self.taint.is_some()
            || !self.beyond.is_empty()
            || self.port.is_some()
            || self.apart
            || self.lonely
            || self.uneven)
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

/// All that is in the way of `pod` on `machine`.
pub(super) fn obstacles<'a>(
    pod: &Pod,
    wish: &Wish,
    machine: &Machine<'a>,
    pods_near: &Near<'_>,
) -> Obstacles<'a> {
    let node = machine.node;
    let mut found = Obstacles {
        unselected: !selects(wish, node),
        cordoned: node.cordoned && minds_cordon(wish),
        taint: repels(wish, node)
            .filter(|taint| !(node.cordoned && taint.key == "node.kubernetes.io/unschedulable")),
        ..Obstacles::default()
    };
    for (resource, asked) in pod.requests.iter().filter(|(_, asked)| *asked > 0) {
        if asked > node.allocatable.get(resource) {
            found.beyond.push(resource);
        } else if asked > machine.free(resource) {
            found.short.push(resource);
        }
    }
    let taken = |port: &super::snapshot::HostPort| {
        machine.pods.iter().flat_map(|pod| &pod.ports).any(|other| {
            let every = |address: &str| address == "0.0.0.0" || address == "::";
            other.port == port.port
                && other.protocol == port.protocol
                && (other.address == port.address || every(&other.address) || every(&port.address))
        })
    };
    found.port = pod.ports.iter().find(|port| taken(port)).map(|port| port.port);
    found.apart = pods_near.apart(machine);
    found.lonely = pods_near.lonely(machine);
    found.uneven = pods_near.uneven(machine);
    found
}

/// Pods by domain.
type Counts = Vec<(Arc<str>, usize)>;

/// Of pods that run, what those of one kind that wait must know: counted once for all machines.
#[derive(Debug, Default)]
pub(super) struct Near<'a> {
    /// Domains, as key and value of a label, where the pod must not be.
    apart: Vec<(String, Arc<str>)>,
    /// For each pod affinity that is required, its key and where such pods are; nothing where the pod itself is the first.
    together: Vec<(String, Option<Vec<Arc<str>>>)>,
    /// For each constraint that is required: how many there may be in a domain before one more is too uneven.
    spread: Vec<(&'a TopologySpreadConstraint, Counts, usize)>,
}

impl<'a> Near<'a> {
    /// Looks through all pods where the pod, or any that runs, says anything of others.
    pub(super) fn of(pod: &Pod, wish: &'a Wish, cluster: &Cluster<'_>) -> Self {
        let mut near = Self::default();
        let bound = || {
            cluster.machines.iter().flat_map(|machine| machine.pods.iter().map(move |pod| (machine, *pod)))
        };
        let domain = |machine: &Machine<'_>, key: &str| machine.node.labels.get(key).cloned();
        for (at, other) in &cluster.refusing {
            let machine = &cluster.machines[*at];
            for term in other.refuses.iter().filter(|term| concerns(term, other, pod)) {
                near.apart.extend(
                    domain(machine, &term.topology_key).map(|value| (term.topology_key.clone(), value)),
                );
            }
        }
        for term in &pod.refuses {
            for (machine, _) in bound().filter(|(_, other)| concerns(term, pod, other)) {
                near.apart.extend(
                    domain(machine, &term.topology_key).map(|value| (term.topology_key.clone(), value)),
                );
            }
        }
        let affinity = wish.affinity.pod_affinity.as_ref();
        let required = affinity
            .and_then(|affinity| affinity.required_during_scheduling_ignored_during_execution.as_ref());
        for term in required.into_iter().flatten() {
            let there = bound().filter(|(_, other)| concerns(term, pod, other));
            let there: Vec<_> =
                there.filter_map(|(machine, _)| domain(machine, &term.topology_key)).collect();
            let first = there.is_empty() && concerns(term, pod, pod);
            near.together.push((term.topology_key.clone(), (!first).then_some(there)));
        }
        for constraint in
            wish.spread.iter().filter(|constraint| constraint.when_unsatisfiable == "DoNotSchedule")
        {
            let mut counts = Counts::new();
            for machine in cluster.machines.iter().filter(|machine| selects(wish, machine.node)) {
                let Some(value) = domain(machine, &constraint.topology_key) else { continue };
                let like = machine.pods.iter().filter(|other| {
                    !other.ending
                        && other.namespace == pod.namespace
                        && labels_fit(constraint.label_selector.as_ref(), &other.labels)
                });
                let count = like.count();
                match counts.iter_mut().find(|(known, _)| *known == value) {
                    Some((_, sum)) => *sum += count,
                    None => counts.push((value, count)),
                }
            }
            let least = counts.iter().map(|(_, count)| *count).min().unwrap_or(0);
            let domains = usize::try_from(constraint.min_domains.unwrap_or(1)).unwrap_or(1);
            let least = if counts.len() < domains { 0 } else { least };
            let itself = usize::from(labels_fit(constraint.label_selector.as_ref(), &pod.labels));
            let most = (least + usize::try_from(constraint.max_skew).unwrap_or(1)).saturating_sub(itself);
            near.spread.push((constraint, counts, most));
        }
        near
    }

    fn apart(&self, machine: &Machine<'_>) -> bool {
        self.apart.iter().any(|(key, value)| machine.node.labels.get(&**key) == Some(value))
    }

    fn lonely(&self, machine: &Machine<'_>) -> bool {
        self.together.iter().any(|(key, there)| match (machine.node.labels.get(&**key), there) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(value), Some(there)) => !there.contains(value),
        })
    }

    fn uneven(&self, machine: &Machine<'_>) -> bool {
        self.spread.iter().any(|(constraint, counts, most)| {
            let Some(value) = machine.node.labels.get(&*constraint.topology_key) else { return true };
            counts.iter().find(|(known, _)| known == value).is_some_and(|(_, count)| count > most)
        })
    }
}

/// Whether a term of `of` means `other`. Which namespaces a selector of namespaces means is not known here: taken for all of them where it is
/// empty, for none where it is not.
fn concerns(term: &PodAffinityTerm, of: &Pod, other: &Pod) -> bool {
    let named = term.namespaces.as_deref().unwrap_or_default();
    let every = term.namespace_selector.as_ref().is_some_and(|selector| {
        selector.match_labels.as_ref().is_none_or(std::collections::BTreeMap::is_empty)
            && selector.match_expressions.as_ref().is_none_or(Vec::is_empty)
    });
    let own = named.is_empty() && term.namespace_selector.is_none() && of.namespace == other.namespace;
    (every || own || named.iter().any(|name| **name == *other.namespace))
        && labels_fit(term.label_selector.as_ref(), &other.labels)
}
