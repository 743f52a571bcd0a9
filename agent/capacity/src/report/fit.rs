//! Whether a pod fits a machine, and all that is in its way if not: the scheduler's filters (`kube-scheduler/framework/plugins`) over values. Volumes,
//! claims of dynamic resources and plugins of others are not looked at; there the scheduler's own words tell.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use k8s_openapi::api::core::v1::{PodAffinityTerm, Taint, TopologySpreadConstraint};

use super::{
    selector::{labels_fit, minds_cordon, repels, selected, selects},
    snapshot::{ClaimState, HostPort, Labels, Pod, ResourceId, Wish},
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
    unselected: bool,
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

/// All that is in the way of a group's pods on `machine`.
pub(super) fn obstacles<'a>(
    cluster: &Cluster<'a>,
    group: &Group<'a>,
    pod: &Pod,
    machine: &Machine<'a>,
    near: &Near<'a>,
) -> Obstacles<'a> {
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
    found.apart = near.apart(machine);
    found.lonely = near.lonely(machine);
    found.uneven = near.uneven(machine);
    found
}

/// Pods that have a machine, by a label: of fifty thousand those that a rule may mean are found at once.
#[derive(Debug, Default)]
pub(super) struct Neighbours<'a> {
    all: Vec<(usize, &'a Pod)>,
    by_label: HashMap<(&'a str, &'a str), Vec<usize>>,
}

impl<'a> Neighbours<'a> {
    pub(super) fn of(machines: &[Machine<'a>]) -> Self {
        let mut found = Self::default();
        let pods = machines.iter().enumerate();
        for (machine, pod) in pods.flat_map(|(at, machine)| machine.pods.iter().map(move |pod| (at, *pod))) {
            for (key, value) in &*pod.labels {
                found.by_label.entry((key, value)).or_default().push(found.all.len());
            }
            found.all.push((machine, pod));
        }
        found
    }

    /// Those that fit, with the place of their machine.
    fn such<'n>(
        &'n self,
        selector: Option<&'n k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector>,
        fits: impl Fn(&Pod) -> bool + 'n,
    ) -> Box<dyn Iterator<Item = (usize, &'a Pod)> + 'n> {
        let Some(selector) = selector else { return Box::new(std::iter::empty()) };
        let labelled = selector.match_labels.iter().flatten().next();
        let candidates: Box<dyn Iterator<Item = (usize, &'a Pod)>> = match labelled {
            Some((key, value)) => {
                let places = self.by_label.get(&(&**key, &**value));
                Box::new(places.into_iter().flatten().map(|&at| self.all[at]))
            }
            None => Box::new(self.all.iter().copied()),
        };
        Box::new(candidates.filter(move |(_, pod)| labels_fit(Some(selector), &pod.labels) && fits(pod)))
    }
}

type Domains = HashSet<Arc<str>>;
/// Pods by domain.
type Counts = HashMap<Arc<str>, usize>;

/// Of pods that run, what those of one kind that wait must know: counted once for all machines.
#[derive(Debug, Default)]
pub(super) struct Near<'a> {
    /// By the key of a label, the domains where the pod must not be, and for whose sake.
    apart: HashMap<&'a str, HashMap<Arc<str>, &'a Pod>>,
    /// For each pod affinity that is required, its key and where such pods are; nothing where the pod itself is the first.
    together: Vec<(&'a str, Option<Domains>)>,
    /// For each constraint that is required: how many there are in each domain, and how many there may be before one more is too uneven.
    spread: Vec<(&'a str, Counts, usize)>,
}

impl<'a> Near<'a> {
    /// Looks at the pods that the pod says anything of, and at those that say anything of it.
    pub(super) fn of(pod: &'a Pod, wish: &'a Wish, cluster: &Cluster<'a>) -> Self {
        let mut near = Self::default();
        let domain = |at: usize, key: &str| cluster.machines[at].node.labels.get(key).cloned();
        let such = |term: &'a PodAffinityTerm| {
            let fits = move |other: &Pod| means(term, pod, other);
            cluster.neighbours.such(term.label_selector.as_ref(), fits)
        };
        for &(at, other) in &cluster.refusing {
            for term in other.refuses.iter().filter(|term| concerns(term, other, pod)) {
                let apart = near.apart.entry(&term.topology_key).or_default();
                apart.extend(domain(at, &term.topology_key).map(|domain| (domain, other)));
            }
        }
        for term in &pod.refuses {
            let apart = near.apart.entry(&term.topology_key).or_default();
            apart.extend(such(term).filter_map(|(at, other)| Some((domain(at, &term.topology_key)?, other))));
        }
        near.wants(pod, wish, cluster);
        near.spreads(pod, wish, cluster);
        near
    }

    /// Only pods that fit all of its terms count for any of them (`interpodaffinity/filtering.go`).
    fn wants(&mut self, pod: &'a Pod, wish: &'a Wish, cluster: &Cluster<'a>) {
        let affinity = wish.affinity.pod_affinity.as_ref();
        let required = affinity
            .and_then(|affinity| affinity.required_during_scheduling_ignored_during_execution.as_deref());
        let terms = required.unwrap_or_default();
        let Some(first) = terms.first() else { return };
        let all = move |other: &Pod| terms.iter().all(|term| concerns(term, pod, other));
        let there: Vec<_> = cluster.neighbours.such(first.label_selector.as_ref(), all).collect();
        let is_first = there.is_empty() && all(pod);
        for term in terms {
            let labels = |at: usize| &cluster.machines[at].node.labels;
            let domains = there.iter().filter_map(|(at, _)| labels(*at).get(&*term.topology_key).cloned());
            self.together.push((&term.topology_key, (!is_first).then(|| domains.collect())));
        }
    }

    fn spreads(&mut self, pod: &'a Pod, wish: &'a Wish, cluster: &Cluster<'a>) {
        let hard = |one: &&TopologySpreadConstraint| one.when_unsatisfiable == "DoNotSchedule";
        let constraints: Vec<_> = wish.spread.iter().filter(hard).collect();
        if constraints.is_empty() {
            return;
        }
        for constraint in &constraints {
            let counted = |machine: &Machine<'_>| {
                let labelled =
                    constraints.iter().all(|one| machine.node.labels.contains_key(&*one.topology_key));
                let minds =
                    |policy: &Option<String>, default| policy.as_deref().unwrap_or(default) == "Honor";
                labelled
                    && (!minds(&constraint.node_affinity_policy, "Honor") || selects(wish, machine.node))
                    && (!minds(&constraint.node_taints_policy, "Ignore")
                        || repels(wish, machine.node).is_none())
            };
            let counted: Vec<bool> = cluster.machines.iter().map(counted).collect();
            let domain = |machine: &Machine<'_>| machine.node.labels.get(&*constraint.topology_key).cloned();
            let domains = cluster.machines.iter().zip(&counted).filter(|(_, counted)| **counted);
            let mut counts: Counts = domains.filter_map(|(machine, _)| Some((domain(machine)?, 0))).collect();
            // Labels whose values have to be the pod's own.
            let own = constraint.match_label_keys.iter().flatten();
            let own: Vec<_> = own.filter_map(|key| Some((key, pod.labels.get(&**key)?))).collect();
            let like = |other: &Pod| {
                !other.ending
                    && other.namespace == pod.namespace
                    && own.iter().all(|(key, value)| other.labels.get(&***key) == Some(*value))
            };
            for (at, _) in cluster.neighbours.such(constraint.label_selector.as_ref(), like) {
                let count = domain(&cluster.machines[at]).filter(|_| counted[at]);
                if let Some(count) = count.and_then(|domain| counts.get_mut(&domain)) {
                    *count += 1;
                }
            }
            let least = counts.values().copied().min().unwrap_or(0);
            let domains = usize::try_from(constraint.min_domains.unwrap_or(1)).unwrap_or(1);
            let least = if counts.len() < domains { 0 } else { least };
            let itself = usize::from(labels_fit(constraint.label_selector.as_ref(), &pod.labels));
            let most = (least + usize::try_from(constraint.max_skew).unwrap_or(1)).saturating_sub(itself);
            self.spread.push((&constraint.topology_key, counts, most));
        }
    }

    fn apart(&self, machine: &Machine<'_>) -> Option<&'a Pod> {
        let labels: &Labels = &machine.node.labels;
        self.apart.iter().find_map(|(key, domains)| domains.get(labels.get(*key)?).copied())
    }

    /// Whether no pod runs anywhere that it wants to be near.
    pub(super) fn alone(&self) -> bool {
        self.together.iter().any(|(_, there)| there.as_ref().is_some_and(Domains::is_empty))
    }

    fn lonely(&self, machine: &Machine<'_>) -> bool {
        self.together.iter().any(|(key, there)| match (machine.node.labels.get(*key), there) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(value), Some(there)) => !there.contains(value),
        })
    }

    fn uneven(&self, machine: &Machine<'_>) -> bool {
        self.spread.iter().any(|(key, counts, most)| {
            let Some(value) = machine.node.labels.get(*key) else { return true };
            counts.get(value).is_some_and(|count| count > most)
        })
    }
}

/// Whether two pods are near each other in the sense of a term of `of`, but for labels.
fn means(term: &PodAffinityTerm, of: &Pod, other: &Pod) -> bool {
    let named = term.namespaces.as_deref().unwrap_or_default();
    let every = term.namespace_selector.as_ref().is_some_and(|selector| {
        selector.match_labels.as_ref().is_none_or(std::collections::BTreeMap::is_empty)
            && selector.match_expressions.as_ref().is_none_or(Vec::is_empty)
    });
    let own = named.is_empty() && term.namespace_selector.is_none() && of.namespace == other.namespace;
    every || own || named.iter().any(|name| **name == *other.namespace)
}

/// Whether a term of `of` means `other`. Which namespaces a selector of namespaces means is not known here: taken for all of them where it is
/// empty, for none where it is not.
fn concerns(term: &PodAffinityTerm, of: &Pod, other: &Pod) -> bool {
    means(term, of, other) && labels_fit(term.label_selector.as_ref(), &other.labels)
}
