//! What pods demand of each other: who must be near, who must be apart, and how their like is spread (`interpodaffinity`, `podtopologyspread`). Looked up by label and by
//! domain, for thousands may wait where fifty thousand run.

use std::collections::{BTreeMap, HashMap};

use k8s_openapi::{
    api::core::v1::{PodAffinityTerm, TopologySpreadConstraint},
    apimachinery::pkg::apis::meta::v1::LabelSelector,
};

use super::{
    selector::{labels_fit, repels},
    snapshot::{Pod, Snapshot, Wish},
    state::{Cluster, Group, Machine},
};

/// Machines by the value that they have of a label.
#[derive(Debug, Default)]
pub(super) struct Topology {
    /// By machine, the number of its domain; nothing where it lacks the label.
    of: Vec<Option<u32>>,
    domains: usize,
}

impl Topology {
    fn by(key: &str, machines: &[Machine<'_>]) -> Self {
        let mut numbers = HashMap::new();
        let number = |machine: &Machine<'_>| {
            let value = machine.node.labels.get(key)?.clone();
            let next = u32::try_from(numbers.len()).ok()?;
            Some(*numbers.entry(value).or_insert(next))
        };
        Self { of: machines.iter().map(number).collect(), domains: numbers.len() }
    }

    /// The number of a machine's domain.
    fn of(&self, machine: usize) -> Option<usize> {
        self.of.get(machine).copied().flatten().and_then(|domain| usize::try_from(domain).ok())
    }

    /// The entry of the machine's domain among those of all domains.
    fn at<'v, T>(&self, machine: usize, values: &'v [T]) -> Option<&'v T> {
        values.get(self.of(machine)?)
    }
}

/// A pod that has a machine, and the place of that.
type Placed<'a> = (usize, &'a Pod);

/// A label's key and value.
type Label<'a> = (&'a str, &'a str);
/// Whose rule it is, and what it says.
type Rule<'a> = (Placed<'a>, &'a PodAffinityTerm);

/// Pods that have a machine, by what may be asked of them.
#[derive(Debug, Default)]
pub(super) struct Neighbours<'a> {
    all: Vec<Placed<'a>>,
    by_label: HashMap<Label<'a>, Vec<usize>>,
    /// Rules of those that refuse others, by a label that the others must have; by none where any may be meant.
    refusing: HashMap<Option<Label<'a>>, Vec<Rule<'a>>>,
    topologies: HashMap<&'a str, Topology>,
}

impl<'a> Neighbours<'a> {
    /// Those that matter to pods that wait.
    pub(super) fn of(machines: &[Machine<'a>], waiting: &[Group<'a>]) -> Self {
        let mut found = Self::default();
        let firsts = || waiting.iter().filter_map(Group::first);
        if waiting.is_empty() {
            return found;
        }
        let sociable = firsts().any(minds_others);
        let pods = machines.iter().enumerate();
        for placed in pods.flat_map(|(at, machine)| machine.pods.iter().map(move |pod| (at, *pod))) {
            for term in &placed.1.refuses {
                let label = term.label_selector.as_ref().and_then(first_label);
                found.refusing.entry(label).or_default().push((placed, term));
            }
            if !sociable {
                continue;
            }
            for (key, value) in &*placed.1.labels {
                found.by_label.entry((key, value)).or_default().push(found.all.len());
            }
            found.all.push(placed);
        }
        let refused = found.refusing.values().flatten().map(|(_, term)| &*term.topology_key);
        let keys: Vec<_> = refused.chain(firsts().flat_map(keys)).collect();
        for key in keys {
            found.topologies.entry(key).or_insert_with(|| Topology::by(key, machines));
        }
        found
    }

    /// Those that fit.
    fn such<'n>(
        &'n self,
        selector: Option<&'n LabelSelector>,
        fits: impl Fn(&Pod) -> bool + 'n,
    ) -> Box<dyn Iterator<Item = Placed<'a>> + 'n> {
        let Some(selector) = selector else { return Box::new(std::iter::empty()) };
        let candidates: Box<dyn Iterator<Item = Placed<'a>>> = match first_label(selector) {
            Some(label) => {
                let places = self.by_label.get(&label);
                Box::new(places.into_iter().flatten().map(|&at| self.all[at]))
            }
            None => Box::new(self.all.iter().copied()),
        };
        Box::new(candidates.filter(move |(_, pod)| labels_fit(Some(selector), &pod.labels) && fits(pod)))
    }

    /// The rules of others that mean `pod`.
    fn refusing<'n>(&'n self, cluster: &'n Snapshot, pod: &'n Pod) -> impl Iterator<Item = Rule<'a>> + 'n {
        let labels = pod.labels.iter().map(|(key, value)| Some((&**key, &**value)));
        let rules = std::iter::once(None).chain(labels).filter_map(|label| self.refusing.get(&label));
        rules.flatten().copied().filter(|((_, other), term)| concerns(cluster, term, other, pod))
    }
}

/// A label that everybody has whom the selector means.
fn first_label(selector: &LabelSelector) -> Option<Label<'_>> {
    selector.match_labels.iter().flatten().next().map(|(key, value)| (&**key, &**value))
}

/// Whether where a pod may go depends on where others are.
fn minds_others(pod: &Pod) -> bool {
    let Some(wish) = &pod.wish else { return false };
    wish.affinity.pod_affinity.is_some() || !pod.refuses.is_empty() || !wish.spread.is_empty()
}

/// The labels of machines by which a pod looks at others.
fn keys(pod: &Pod) -> impl Iterator<Item = &str> {
    let apart = pod.refuses.iter().map(|term| &*term.topology_key);
    let wish = pod.wish.as_deref();
    let together = wish.into_iter().flat_map(together).map(|term| &*term.topology_key);
    apart.chain(together).chain(wish.into_iter().flat_map(spread).map(|rule| &*rule.topology_key))
}

fn together(wish: &Wish) -> &[PodAffinityTerm] {
    let affinity = wish.affinity.pod_affinity.as_ref();
    affinity
        .and_then(|affinity| affinity.required_during_scheduling_ignored_during_execution.as_deref())
        .unwrap_or_default()
}

/// The constraints that are required.
fn spread(wish: &Wish) -> impl Iterator<Item = &TopologySpreadConstraint> + Clone {
    wish.spread.iter().filter(|rule| rule.when_unsatisfiable == "DoNotSchedule")
}

/// Of pods that run, what those of one kind that wait must know: counted once for all machines.
#[derive(Debug, Default)]
pub(super) struct Near<'a> {
    /// By domain, for whose sake the pod must not be there.
    apart: Vec<(&'a Topology, Vec<Option<&'a Pod>>)>,
    /// For each pod affinity that is required, in which domains such pods are; nothing where the pod itself is the first.
    together: Vec<(&'a Topology, Option<Vec<bool>>)>,
    /// For each constraint that is required: how many there are in each domain, and how many there may be before one more is too uneven.
    spread: Vec<(&'a Topology, Vec<usize>, usize)>,
}

impl<'a> Near<'a> {
    /// Looks at the pods that the pod says anything of, and at those that say anything of it.
    pub(super) fn of(group: &Group<'a>, pod: &'a Pod, wish: &'a Wish, cluster: &'a Cluster<'a>) -> Self {
        let mut near = Self::default();
        let neighbours = &cluster.neighbours;
        for ((at, other), term) in neighbours.refusing(cluster.snapshot, pod) {
            near.keep_off(&term.topology_key, cluster, std::iter::once((at, other)));
        }
        for term in &pod.refuses {
            let others = neighbours
                .such(term.label_selector.as_ref(), |other| means(cluster.snapshot, term, pod, other));
            near.keep_off(&term.topology_key, cluster, others);
        }
        near.wants(pod, together(wish), cluster);
        for rule in spread(wish) {
            near.spreads(rule, group, pod, wish, cluster);
        }
        near
    }

    fn keep_off(&mut self, key: &str, cluster: &'a Cluster<'a>, others: impl Iterator<Item = Placed<'a>>) {
        let Some(topology) = cluster.neighbours.topologies.get(key) else { return };
        let known = self.apart.iter().position(|(known, _)| std::ptr::eq(*known, topology));
        let at = known.unwrap_or_else(|| {
            self.apart.push((topology, vec![None; topology.domains]));
            self.apart.len() - 1
        });
        let domains = &mut self.apart[at].1;
        for (at, other) in others {
            if let Some(domain) = topology.of(at) {
                domains[domain] = Some(other);
            }
        }
    }

    /// Only pods that fit all of its terms count for any of them (`interpodaffinity/filtering.go`).
    fn wants(&mut self, pod: &'a Pod, terms: &'a [PodAffinityTerm], cluster: &'a Cluster<'a>) {
        let Some(first) = terms.first() else { return };
        let all = move |other: &Pod| terms.iter().all(|term| concerns(cluster.snapshot, term, pod, other));
        let there: Vec<_> = cluster.neighbours.such(first.label_selector.as_ref(), all).collect();
        let is_first = there.is_empty() && all(pod);
        for term in terms {
            let Some(topology) = cluster.neighbours.topologies.get(&*term.topology_key) else { continue };
            let domains = (!is_first).then(|| {
                let mut domains = vec![false; topology.domains];
                there.iter().filter_map(|(at, _)| topology.of(*at)).for_each(|domain| domains[domain] = true);
                domains
            });
            self.together.push((topology, domains));
        }
    }

    fn spreads(
        &mut self,
        rule: &'a TopologySpreadConstraint,
        group: &Group<'a>,
        pod: &'a Pod,
        wish: &'a Wish,
        cluster: &'a Cluster<'a>,
    ) {
        let topologies = &cluster.neighbours.topologies;
        let Some(topology) = topologies.get(&*rule.topology_key) else { return };
        let all: Vec<_> = spread(wish).filter_map(|rule| topologies.get(&*rule.topology_key)).collect();
        let minds = |policy: &Option<String>, default| policy.as_deref().unwrap_or(default) == "Honor";
        let (affinity, taints) =
            (minds(&rule.node_affinity_policy, "Honor"), minds(&rule.node_taints_policy, "Ignore"));
        let counted = |at: usize| {
            let machine = &cluster.machines[at];
            all.iter().all(|topology| topology.of(at).is_some())
                && !(affinity && group.bars(cluster, machine).unselected)
                && !(taints && repels(wish, machine.node).is_some())
        };
        let mut there = vec![false; topology.domains];
        for at in 0..cluster.machines.len() {
            if let Some(domain) = topology.of(at)
                && !there[domain]
            {
                there[domain] = counted(at);
            }
        }
        // Labels whose values have to be the pod's own.
        let own = rule.match_label_keys.iter().flatten();
        let own: Vec<_> = own.filter_map(|key| Some((key, pod.labels.get(&**key)?))).collect();
        let like = |other: &Pod| {
            !other.ending
                && other.namespace == pod.namespace
                && own.iter().all(|(key, value)| other.labels.get(&***key) == Some(*value))
        };
        let mut counts = vec![0_usize; topology.domains];
        for (at, _) in cluster.neighbours.such(rule.label_selector.as_ref(), like) {
            if let Some(domain) = topology.of(at).filter(|_| counted(at)) {
                counts[domain] += 1;
            }
        }
        let there = || counts.iter().zip(&there).filter(|(_, there)| **there).map(|(count, _)| *count);
        let least = there().min().unwrap_or(0);
        let domains = usize::try_from(rule.min_domains.unwrap_or(1)).unwrap_or(1);
        let least = if there().count() < domains { 0 } else { least };
        let itself = usize::from(labels_fit(rule.label_selector.as_ref(), &pod.labels));
        let most = (least + usize::try_from(rule.max_skew).unwrap_or(1)).saturating_sub(itself);
        self.spread.push((topology, counts, most));
    }

    /// For whose sake the pod must not go to the machine at `at`.
    pub(super) fn apart(&self, at: usize) -> Option<&'a Pod> {
        self.apart.iter().find_map(|(topology, domains)| topology.at(at, domains).copied().flatten())
    }

    /// Whether a pod is missing there that it wants to be near.
    pub(super) fn lonely(&self, at: usize) -> bool {
        self.together.iter().any(|(topology, there)| match there {
            Some(there) => topology.at(at, there) != Some(&true),
            None => topology.of(at).is_none(),
        })
    }

    /// Whether no pod runs anywhere that it wants to be near.
    pub(super) fn alone(&self) -> bool {
        self.together.iter().any(|(_, there)| there.as_ref().is_some_and(|there| !there.contains(&true)))
    }

    /// Whether one more there is too uneven.
    pub(super) fn uneven(&self, at: usize) -> bool {
        self.spread
            .iter()
            .any(|(topology, counts, most)| topology.at(at, counts).is_none_or(|count| count > most))
    }
}

/// Whether a pod's rules name namespaces by their labels; an empty selector means all of them.
pub(crate) fn names_namespaces(pod: &Pod) -> bool {
    let near = pod.wish.as_deref().map(together).unwrap_or_default();
    pod.refuses
        .iter()
        .chain(near)
        .any(|term| term.namespace_selector.as_ref().is_some_and(|one| !is_empty(one)))
}

fn is_empty(selector: &LabelSelector) -> bool {
    selector.match_labels.as_ref().is_none_or(BTreeMap::is_empty)
        && selector.match_expressions.as_ref().is_none_or(Vec::is_empty)
}

/// Whether two pods are near each other in the sense of a term of `of`, but for labels. Where namespaces could not be looked at, a selector of them means none.
fn means(cluster: &Snapshot, term: &PodAffinityTerm, of: &Pod, other: &Pod) -> bool {
    let named = term.namespaces.as_deref().unwrap_or_default();
    let selected = |selector: &LabelSelector| {
        is_empty(selector) || {
            let known = cluster.beside.namespaces.as_ref().and_then(|all| all.get(&other.namespace));
            known.is_some_and(|labels| labels_fit(Some(selector), labels))
        }
    };
    let own = named.is_empty() && term.namespace_selector.is_none() && of.namespace == other.namespace;
    own || named.iter().any(|name| **name == *other.namespace)
        || term.namespace_selector.as_ref().is_some_and(selected)
}

/// Whether a term of `of` means `other`.
fn concerns(cluster: &Snapshot, term: &PodAffinityTerm, of: &Pod, other: &Pod) -> bool {
    means(cluster, term, of, other) && labels_fit(term.label_selector.as_ref(), &other.labels)
}
