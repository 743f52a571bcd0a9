//! From nodes and pods to a sample: who has how many GPUs of which pool, and who waits for how many.
//!
//! A share counts as what it is of a GPU: a MIG device by its slices, a time slice by how many there are, so that pools are counted in GPUs whatever they are cut into.

use std::{collections::HashMap, sync::Arc};

use super::{Key, Owner, Pool, Sample, What};

/// A whole GPU, in thousandths.
const WHOLE: u64 = 1000;
/// Labels that tell a node's model, the most particular first.
const MODEL_LABELS: &[&str] = &[
    "nvidia.com/gpu.product",
    "amd.com/gpu.product-name",
    "gpu.intel.com/product",
    "cloud.google.com/gke-accelerator",
    "cloud.google.com/gke-tpu-accelerator",
    "karpenter.k8s.aws/instance-gpu-name",
];

/// Which labels of pods are recorded beside their namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Labels {
    /// One to divide the costs by, such as a team.
    pub label: Option<String>,
    /// One that names the user.
    pub user: Option<String>,
}

/// Makes a sample of nodes, and then pods.
#[derive(Debug)]
pub struct Sampler<'a> {
    labels: &'a Labels,
    nodes: HashMap<String, Arc<Node>>,
    sample: Sample,
}

#[derive(Debug)]
struct Node {
    name: String,
    serverless: bool,
    model: String,
    replicas: u64,
}

impl<'a> Sampler<'a> {
    /// A sample of this time.
    pub fn new(at_s: i64, labels: &'a Labels) -> Self {
        Self { labels, nodes: HashMap::new(), sample: Sample { at_s, ..Sample::default() } }
    }

    /// Takes a node in, with its accelerators.
    pub fn node<'b>(
        &mut self,
        name: &str,
        serverless: bool,
        label: impl Fn(&str) -> Option<&'b str>,
        capacity: impl Iterator<Item = (&'b str, u64)>,
    ) {
        let node = Node {
            name: name.to_owned(),
            serverless,
            model: MODEL_LABELS.iter().find_map(|key| label(key)).map(model).unwrap_or_default(),
            replicas: label("nvidia.com/gpu.replicas").and_then(|text| text.parse().ok()).unwrap_or(1).max(1),
        };
        for (resource, amount) in capacity {
            self.count(What::Capacity, node.pool(resource), Owner::default(), amount, node.unit(resource));
        }
        self.nodes.insert(name.to_owned(), Arc::new(node));
    }

    /// Takes a pod in that has not ended, with the accelerators that it asks for. One on a node that is not there has nothing.
    pub fn pod<'b>(
        &mut self,
        namespace: &str,
        node: Option<&str>,
        label: impl Fn(&str) -> Option<&'b str>,
        requests: impl Iterator<Item = (&'b str, u64)>,
    ) {
        let value = |key: &Option<String>| key.as_deref().and_then(&label).unwrap_or_default().to_owned();
        let owner = Owner {
            namespace: namespace.to_owned(),
            label: value(&self.labels.label),
            user: value(&self.labels.user),
        };
        let at = match node.map(|node| self.nodes.get(node).cloned()) {
            Some(None) => return,
            Some(Some(node)) => Some(node),
            None => None,
        };
        for (resource, amount) in requests {
            let (what, pool, unit) = match &at {
                Some(node) => (What::Allocated, node.pool(resource), node.unit(resource)),
                None => (What::Waiting, waiting_pool(resource), slices(resource, "").unwrap_or(WHOLE)),
            };
            self.count(what, pool, owner.clone(), amount, unit);
        }
    }

    /// The sample.
    pub fn finish(self) -> Sample {
        self.sample
    }

    fn count(&mut self, what: What, pool: Pool, owner: Owner, amount: u64, unit: u64) {
        if amount > 0 {
            let milli = self.sample.milli_gpus.entry(Key { what, pool, owner }).or_default();
            *milli = milli.saturating_add(amount.saturating_mul(unit));
        }
    }
}

impl Node {
    fn pool(&self, resource: &str) -> Pool {
        let name = match (self.serverless, self.model.as_str()) {
            (true, _) => &self.name,
            (false, "") => resource,
            (false, model) => model,
        };
        Pool {
            name: name.to_owned(),
            resource: resource.to_owned(),
            model: self.model.clone(),
            serverless: self.serverless,
        }
    }

    /// How much of a GPU one of the resource is, in thousandths.
    fn unit(&self, resource: &str) -> u64 {
        match resource {
            "nvidia.com/gpu" | "nvidia.com/gpu.shared" => (WHOLE / self.replicas).max(1),
            _ => slices(resource, &self.model).unwrap_or(WHOLE),
        }
    }
}

pub(super) fn waiting_pool(resource: &str) -> Pool {
    Pool { name: resource.to_owned(), resource: resource.to_owned(), ..Pool::default() }
}

/// A MIG device by its compute slices: `nvidia.com/mig-2g.10gb` is two of seven, on an A30 of four.
pub(super) fn slices(resource: &str, model: &str) -> Option<u64> {
    let slices: u64 = resource.strip_prefix("nvidia.com/mig-")?.split_once('g')?.0.parse().ok()?;
    let all = if model.contains("A30") { 4 } else { 7 };
    Some((WHOLE * slices.clamp(1, all)).div_ceil(all))
}

/// The model without what feature discovery adds to it when it is shared.
pub(super) fn model(label: &str) -> String {
    let label = label.strip_suffix("-SHARED").unwrap_or(label);
    label.split_once("-MIG-").map_or(label, |(model, _)| model).to_owned()
}

#[cfg(test)]
mod tests {
    use super::{Labels, Sampler};
    use crate::history::What;

    #[test]
    fn everybody_is_counted_where_they_are() {
        let labels = Labels { label: Some("team".to_owned()), user: None };
        let mut sampler = Sampler::new(60, &labels);
        let t4 = |key: &str| (key == "nvidia.com/gpu.product").then_some("Tesla-T4");
        let shared = |key: &str| match key {
            "nvidia.com/gpu.product" => Some("Tesla-T4-SHARED"),
            "nvidia.com/gpu.replicas" => Some("4"),
            _ => None,
        };
        sampler.node("gpu-1", false, t4, [("nvidia.com/gpu", 8)].into_iter());
        sampler.node("gpu-2", false, shared, [("nvidia.com/gpu", 8)].into_iter());
        sampler.node("cloud", true, |_| None, [("nvidia.com/gpu", 100)].into_iter());
        let team = |key: &str| (key == "team").then_some("vision");
        sampler.pod("a", Some("gpu-1"), team, [("nvidia.com/gpu", 2)].into_iter());
        sampler.pod("a", Some("gpu-2"), team, [("nvidia.com/gpu", 2)].into_iter());
        sampler.pod("a", Some("cloud"), |_| None, [("nvidia.com/gpu", 5)].into_iter());
        sampler.pod("b", None, |_| None, [("nvidia.com/mig-2g.10gb", 1)].into_iter());
        sampler.pod("b", Some("gone"), |_| None, [("nvidia.com/gpu", 5)].into_iter());
        let sample = sampler.finish();
        let told: Vec<_> = sample
            .milli_gpus
            .iter()
            .map(|(key, milli)| {
                (
                    key.what,
                    key.pool.name.as_str(),
                    key.owner.namespace.as_str(),
                    key.owner.label.as_str(),
                    *milli,
                )
            })
            .collect();
        assert_eq!(
            told,
            [
                (What::Capacity, "Tesla-T4", "", "", 10_000),
                (What::Capacity, "cloud", "", "", 100_000),
                (What::Allocated, "Tesla-T4", "a", "vision", 2500),
                (What::Allocated, "cloud", "a", "", 5000),
                (What::Waiting, "nvidia.com/mig-2g.10gb", "b", "", 286),
            ]
        );
    }

    #[test]
    fn what_a_hostile_node_says_is_bounded() {
        let labels = Labels::default();
        let mut sampler = Sampler::new(60, &labels);
        for replicas in ["0", "-1", "99999999999999999999", "x"] {
            let label = |key: &str| (key == "nvidia.com/gpu.replicas").then_some(replicas);
            sampler.node(
                replicas,
                false,
                label,
                [("nvidia.com/gpu", u64::MAX), ("nvidia.com/mig-99g", 1)].into_iter(),
            );
        }
        assert!(sampler.finish().milli_gpus.values().any(|milli| *milli == u64::MAX));
    }
}
