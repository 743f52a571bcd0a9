//! What of each node is taken and what is left.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use super::snapshot::{Amounts, Node, Phase, Pod, ResourceId, Snapshot};

/// A node with who is on it.
#[derive(Debug)]
pub(super) struct Machine<'a> {
    pub(super) node: &'a Node,
    pub(super) pods: Vec<&'a Pod>,
    /// What its pods hold.
    pub(super) held: Amounts,
    /// What is left of what pods may have.
    pub(super) free: Amounts,
}

impl Machine<'_> {
    pub(super) fn is_virtual(&self) -> bool {
        self.node.provider.is_some()
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
    /// Pods that refuse to have others near, with the place of their machine.
    pub(super) refusing: Vec<(usize, &'a Pod)>,
    /// Pods that wait for a node.
    pub(super) waiting: Vec<&'a Pod>,
    /// Extended resources that are accelerators.
    pub(super) accelerators: Vec<ResourceId>,
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
                Machine { node, pods, held, free }
            })
            .collect();
        machines.sort_by_cached_key(|machine| natural(&machine.node.name));
        let on = |at: usize| {
            machines[at].pods.iter().filter(|pod| !pod.refuses.is_empty()).map(move |pod| (at, *pod))
        };
        let refusing = (0..machines.len()).flat_map(on).collect();
        Self { snapshot, machines, refusing, waiting, accelerators }
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

/// Pods by what they demand of nodes, so that of a thousand alike one is looked at.
pub(super) fn alike<'a>(waiting: &[&'a Pod]) -> Vec<Vec<&'a Pod>> {
    let mut groups: Vec<Vec<&Pod>> = Vec::new();
    let mut found: BTreeMap<(&str, Option<&str>, &Amounts), Vec<usize>> = BTreeMap::new();
    for &pod in waiting {
        let alone = pod.owner.is_none().then_some(&*pod.name);
        let key = (&*pod.namespace, pod.owner.as_deref().or(alone), &pod.requests);
        let candidates = found.entry(key).or_default();
        let same = candidates.iter().copied().find(|&at| {
            let first = groups[at][0];
            first.wish == pod.wish && first.ports == pod.ports && first.priority == pod.priority
        });
        if let Some(at) = same {
            groups[at].push(pod);
        } else {
            candidates.push(groups.len());
            groups.push(vec![pod]);
        }
    }
    groups
}
