//! What of each node is taken and what is left.

use std::{collections::HashMap, sync::Arc};

use super::{
    fit::Bars,
    near::Neighbours,
    selector::Demands,
    snapshot::{Amounts, ClaimState, Node, Phase, Pod, ResourceId, Snapshot},
};

/// More kinds of machines than this are no kinds.
const MOST_CLASSES: usize = 256;
/// A label that each machine has with a value of its own.
const HOSTNAME: &str = "kubernetes.io/hostname";

/// A node with who is on it.
#[derive(Debug)]
pub(super) struct Machine<'a> {
    pub(super) node: &'a Node,
    pub(super) pods: Vec<&'a Pod>,
    /// What its pods hold.
    pub(super) held: Amounts,
    /// What is left of what pods may have.
    pub(super) free: Amounts,
    /// Its place among all machines.
    pub(super) place: usize,
    /// Whether a pod of it is ending.
    pub(super) ending: bool,
    /// The lowest priority of its pods.
    pub(super) lowest_priority: i32,
    /// The same as that its node has a provider, at hand.
    is_virtual: bool,
    /// Machines of one class differ in nothing that a pod that waits looks at, but for what they have.
    class: usize,
}

/// What a machine may give away of a resource, and what is left of it: less than nothing where more was given away than there is.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Level {
    pub(super) allocatable: i64,
    pub(super) free: i64,
}

impl Machine<'_> {
    pub(super) fn is_virtual(&self) -> bool {
        self.is_virtual
    }

    /// How much is left of `resource`; never less than nothing.
    pub(super) fn free(&self, resource: ResourceId) -> i64 {
        self.free.get(resource).max(0)
    }

    /// Why no pod may come, whatever it asks for.
    pub(super) fn closed(&self) -> Option<String> {
        if let Some(why) = &self.node.not_ready {
            return Some(format!("the machine is not Ready: {why}"));
        }
        if self.node.cordoned {
            return Some("the machine is cordoned".to_owned());
        }
        let leaving = |key: &str| {
            key.starts_with("node.kubernetes.io/")
                || key == "ToBeDeletedByClusterAutoscaler"
                || key.starts_with("karpenter.sh/disrupt")
        };
        let taint = self
            .node
            .taints
            .iter()
            .find(|taint| taint.effect != "PreferNoSchedule" && leaving(&taint.key))?;
        Some(format!("the machine has the taint {}", taint.key))
    }
}

/// All nodes, in the order of their names.
#[derive(Debug)]
pub(super) struct Cluster<'a> {
    pub(super) snapshot: &'a Snapshot,
    pub(super) machines: Vec<Machine<'a>>,
    /// Pods that wait for a node.
    pub(super) waiting: Vec<Group<'a>>,
    /// Pods on nodes that were not seen.
    pub(super) elsewhere: Vec<&'a Pod>,
    /// Extended resources that are accelerators.
    pub(super) accelerators: Vec<ResourceId>,
    /// Pods that have a machine, by what those that wait may ask of them.
    pub(super) neighbours: Neighbours<'a>,
    /// Of each resource that pods wait for, what each machine has: the same as in the machines, side by side.
    levels: HashMap<ResourceId, Vec<Level>>,
}

/// Pods that wait and demand the same of nodes: of a thousand alike one is looked at.
#[derive(Debug)]
pub(super) struct Group<'a> {
    pub(super) pods: Vec<&'a Pod>,
    /// What keeps them off, by the class of a machine; empty where that has to be looked at for each.
    by_class: Vec<Bars<'a>>,
}

impl<'a> Group<'a> {
    pub(super) fn first(&self) -> Option<&'a Pod> {
        self.pods.first().copied()
    }

    pub(super) fn bars(&self, cluster: &Cluster<'a>, machine: &Machine<'a>) -> Bars<'a> {
        let known = self.by_class.get(machine.class).copied();
        known.unwrap_or_else(|| {
            let wish = self.first().and_then(|pod| Some((pod, pod.wish.as_deref()?)));
            wish.map(|(pod, wish)| Bars::of(cluster, pod, wish, machine)).unwrap_or_default()
        })
    }
}

impl<'a> Cluster<'a> {
    pub(super) fn of(snapshot: &'a Snapshot, more: &[String]) -> Self {
        let accelerators = snapshot.names.resources();
        let accelerators = accelerators
            .filter(|(_, name)| is_accelerator(name) || more.iter().any(|wanted| wanted == name))
            .map(|(resource, _)| resource)
            .collect();
        let mut by_node: HashMap<&Arc<str>, Vec<&Pod>> = HashMap::new();
        let mut waiting = Vec::new();
        for pod in &snapshot.pods {
            match &pod.node {
                _ if pod.phase == Phase::Ended => {}
                Some(node) => by_node.entry(node).or_default().push(pod),
                // Who was told to end waits for nothing.
                None if pod.ending => {}
                None => waiting.push(pod),
            }
        }
        let mut machines: Vec<_> = snapshot
            .nodes
            .iter()
            .map(|node| {
                let pods = by_node.remove(&node.name).unwrap_or_default();
                let mut held = Amounts::default();
                for pod in &pods {
                    held.add(&pod.requests);
                }
                let mut free = node.allocatable.clone();
                free.subtract(&held);
                let ending = pods.iter().any(|pod| pod.ending);
                let lowest_priority = pods.iter().map(|pod| pod.priority).min().unwrap_or(i32::MAX);
                let is_virtual = node.provider.is_some();
                Machine { node, pods, held, free, place: 0, ending, lowest_priority, is_virtual, class: 0 }
            })
            .collect();
        machines.sort_by_cached_key(|machine| natural(&machine.node.name));
        for (place, machine) in machines.iter_mut().enumerate() {
            machine.place = place;
        }
        let waiting = alike(snapshot, &waiting);
        let elsewhere = by_node.into_values().flatten().collect();
        let neighbours = Neighbours::of(&machines, &waiting);
        let levels = levels(&machines, &waiting);
        let mut cluster = Self { snapshot, machines, waiting, elsewhere, accelerators, neighbours, levels };
        cluster.classify();
        cluster
    }

    /// Finds machines that are alike for the pods that wait, so that not each has to be looked at for each of them.
    fn classify(&mut self) {
        let mut demands = Demands::default();
        let mut single = Vec::new();
        for group in &self.waiting {
            let mut own = Demands::default();
            if let Some((pod, wish)) = group.first().and_then(|pod| Some((pod, pod.wish.as_deref()?))) {
                own.add(wish);
                for claim in self.snapshot.claims_of(pod).flatten() {
                    if let ClaimState::Within(machines) = claim {
                        own.add_selector(machines);
                    }
                }
            }
            let looks_at_each = own.single || own.keys.contains(HOSTNAME);
            single.push(looks_at_each);
            if !looks_at_each {
                demands.keys.append(&mut own.keys);
            }
        }
        let mut classes = HashMap::new();
        let mut first = Vec::new();
        for (at, machine) in self.machines.iter_mut().enumerate() {
            let node = machine.node;
            let labels: Vec<_> = demands.keys.iter().map(|key| node.labels.get(*key)).collect();
            let taints = node.taints.iter().map(|taint| (&taint.key, &taint.value, &taint.effect));
            let key = (labels, taints.collect::<Vec<_>>(), node.cordoned);
            let next = classes.len();
            machine.class = *classes.entry(key).or_insert(next);
            if machine.class == next {
                first.push(at);
            }
        }
        if first.len() > MOST_CLASSES {
            return;
        }
        let of_group = |group: &Group<'a>| {
            let found = group.first().and_then(|pod| Some((pod, pod.wish.as_deref()?)));
            let bars =
                |(pod, wish)| first.iter().map(|&at| Bars::of(self, pod, wish, &self.machines[at])).collect();
            found.map(bars).unwrap_or_default()
        };
        let bars: Vec<_> = self
            .waiting
            .iter()
            .zip(&single)
            .map(|(group, single)| if *single { Vec::new() } else { of_group(group) })
            .collect();
        for (group, bars) in self.waiting.iter_mut().zip(bars) {
            group.by_class = bars;
        }
    }

    /// What each machine has of a resource, in the order of their places; nothing of one that no pod waits for.
    pub(super) fn levels(&self, resource: ResourceId) -> &[Level] {
        self.levels.get(&resource).map_or(&[], Vec::as_slice)
    }

    /// The accelerators among what a pod asks for: the one of which it asks most.
    pub(super) fn accelerator(&self, pod: &Pod) -> Option<(ResourceId, i64)> {
        let asked = pod
            .requests
            .iter()
            .filter(|(resource, amount)| *amount > 0 && self.accelerators.contains(resource));
        asked.max_by_key(|(_, amount)| *amount)
    }
}

fn levels(machines: &[Machine<'_>], waiting: &[Group<'_>]) -> HashMap<ResourceId, Vec<Level>> {
    let asked = waiting.iter().filter_map(Group::first).flat_map(|pod| pod.requests.iter());
    let mut levels = HashMap::new();
    for (resource, _) in asked {
        levels.entry(resource).or_insert_with(|| {
            let of = |machine: &Machine<'_>| Level {
                allocatable: machine.node.allocatable.get(resource),
                free: machine.free.get(resource),
            };
            machines.iter().map(of).collect()
        });
    }
    levels
}

/// So that gpu-10 comes after gpu-9.
pub(super) fn natural(name: &str) -> Vec<(u64, String)> {
    let mut parts = Vec::new();
    let mut rest = name;
    while !rest.is_empty() {
        let words = rest.find(|char: char| char.is_ascii_digit()).unwrap_or(rest.len());
        let (word, tail) = rest.split_at(words);
        let digits = tail.find(|char: char| !char.is_ascii_digit()).unwrap_or(tail.len());
        let (number, tail) = tail.split_at(digits);
        parts.push((0, word.to_owned()));
        parts.push((number.parse().unwrap_or(u64::MAX), number.to_owned()));
        rest = tail;
    }
    parts
}

/// Whether an extended resource looks like one: by who names it, and by what it is called. Amounts of memory or of per cents are none.
pub(crate) fn is_accelerator(resource: &str) -> bool {
    let Some((domain, name)) = resource.split_once('/') else { return false };
    if resource.starts_with("requests.") || domain.ends_with("kubernetes.io") {
        return false;
    }
    let name = name.to_ascii_lowercase();
    if ["mem", "monitoring", "core-percentage", "gpucores", "millicores"]
        .iter()
        .any(|part| name.contains(part))
    {
        return false;
    }
    let domains = [
        "nvidia.com",
        "amd.com",
        "gpu.intel.com",
        "fpga.intel.com",
        "npu.intel.com",
        "fpga.spillway.dev",
        "xilinx.com",
        "habana.ai",
        "aws.amazon.com",
        "cambricon.com",
        "huawei.com",
        "metax-tech.com",
        "qualcomm.com",
        "google.com",
        "tenstorrent.com",
        "furiosa.ai",
        "rebellions.ai",
    ];
    let words =
        ["gpu", "fpga", "tpu", "npu", "mig-", "neuron", "gaudi", "mlu", "ascend", "accelerator", "dcu"];
    let looks_so = words.iter().any(|word| name.contains(word));
    // Clouds name much else in their domains.
    let (cloud, vendor) =
        (matches!(domain, "aws.amazon.com" | "google.com" | "huawei.com"), domains.contains(&domain));
    looks_so || (vendor && !cloud)
}

fn alike<'a>(snapshot: &Snapshot, waiting: &[&'a Pod]) -> Vec<Group<'a>> {
    let mut groups: Vec<Group<'a>> = Vec::new();
    let mut found: HashMap<(&str, Option<&str>, &Amounts), Vec<usize>> = HashMap::new();
    for &pod in waiting {
        let alone = pod.owner.is_none().then_some(&*pod.name);
        let key = (&*pod.namespace, pod.owner.as_deref().or(alone), &pod.requests);
        let candidates = found.entry(key).or_default();
        let same = candidates.iter().copied().find(|&at| {
            let first = groups[at].pods[0];
            let wishes = first.wish.as_deref().zip(pod.wish.as_deref());
            wishes.is_some_and(|(one, other)| one.same(other))
                && first.ports == pod.ports
                && first.priority == pod.priority
                && snapshot.claims_of(first).eq(snapshot.claims_of(pod))
        });
        if let Some(at) = same {
            groups[at].pods.push(pod);
        } else {
            candidates.push(groups.len());
            groups.push(Group { pods: vec![pod], by_class: Vec::new() });
        }
    }
    groups
}
