//! From a cluster at one moment to a sample: who has how many GPUs of which pool, who waits for how many, and how many are free and of no use.
//!
//! A share counts as what it is of a GPU: a MIG device by its slices, a time slice by how many there are, so that pools are counted in GPUs whatever they are cut into.

use std::collections::HashMap;

use super::{Key, Owner, Pool, Sample, What};
use crate::report::{
    is_accelerator, model_of, shares_of,
    snapshot::{self, Amounts, Names, Node, Phase, Snapshot},
    stranded,
};

/// A whole GPU, in thousandths.
const WHOLE: u64 = 1000;

/// Which labels of pods are recorded beside their namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Labels {
    /// One to divide the costs by, such as a team.
    pub label: Option<String>,
    /// One that names the user.
    pub user: Option<String>,
}

/// What a sample says of a cluster. A pod on a node that is not there has nothing; one that was told to end before it had a node waits for nothing.
pub fn of(snapshot: &Snapshot, labels: &Labels) -> Sample {
    let mut sample = Sample { at_s: snapshot.at.as_second(), ..Sample::default() };
    let mut count = |what, pool, owner, amount: u64, unit: u64| {
        let milli = sample.milli_gpus.entry(Key { what, pool, owner }).or_default();
        *milli = milli.saturating_add(amount.saturating_mul(unit));
    };
    let nodes: HashMap<&str, &Node> = snapshot.nodes.iter().map(|node| (&*node.name, node)).collect();
    for node in nodes.values() {
        for (resource, amount) in accelerators(&snapshot.names, &node.capacity) {
            count(What::Capacity, pool(node, resource), Owner::default(), amount, unit(node, resource));
        }
    }
    for pod in snapshot.pods.iter().filter(|pod| pod.phase != Phase::Ended) {
        let node = match &pod.node {
            Some(name) => match nodes.get(&**name) {
                Some(node) => Some(*node),
                None => continue,
            },
            None if pod.ending => continue,
            None => None,
        };
        for (resource, amount) in accelerators(&snapshot.names, &pod.requests) {
            let (what, pool, unit) = match node {
                Some(node) => (What::Allocated, pool(node, resource), unit(node, resource)),
                None => (What::Waiting, waiting_pool(resource), slices(resource, "").unwrap_or(WHOLE)),
            };
            count(what, pool, owner(pod, labels), amount, unit);
        }
    }
    for lost in stranded(snapshot) {
        if let (Some(node), Ok(devices)) = (nodes.get(&*lost.node), u64::try_from(lost.devices)) {
            let (pool, unit) = (pool(node, &lost.resource), unit(node, &lost.resource));
            count(What::Stranded, pool, Owner::default(), devices, unit);
        }
    }
    sample
}

fn accelerators<'a>(names: &'a Names, amounts: &'a Amounts) -> impl Iterator<Item = (&'a str, u64)> {
    let all =
        amounts.iter().map(|(resource, amount)| (names.name(resource), u64::try_from(amount).unwrap_or(0)));
    all.filter(|(name, amount)| *amount > 0 && is_accelerator(name))
}

fn owner(pod: &snapshot::Pod, labels: &Labels) -> Owner {
    let value = |key: &Option<String>| {
        let value = key.as_deref().and_then(|key| pod.labels.get(key));
        value.map(ToString::to_string).unwrap_or_default()
    };
    Owner { namespace: pod.namespace.to_string(), label: value(&labels.label), user: value(&labels.user) }
}

fn pool(node: &Node, resource: &str) -> Pool {
    let model = model_of(&node.labels, resource).map(|label| model(&label)).unwrap_or_default();
    let serverless = node.provider.is_some();
    let name = match (serverless, model.as_str()) {
        (true, _) => &node.name,
        (false, "") => resource,
        (false, model) => model,
    };
    Pool { name: name.to_owned(), resource: resource.to_owned(), model: model.clone(), serverless }
}

/// How much of a GPU one of the resource is, in thousandths.
fn unit(node: &Node, resource: &str) -> u64 {
    let model = model_of(&node.labels, resource).unwrap_or_default();
    let shares = u64::try_from(shares_of(&node.labels, resource)).unwrap_or(1).max(1);
    slices(resource, &model).unwrap_or_else(|| (WHOLE / shares).max(1))
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
    use std::collections::BTreeMap;

    use super::{Labels, of};
    use crate::{
        history::What,
        report::snapshot::{Amounts, Node, Phase, Pod, Snapshot},
    };

    fn labels(
        snapshot: &mut Snapshot,
        labels: &[(&str, &str)],
    ) -> std::sync::Arc<crate::report::snapshot::Labels> {
        let labels: BTreeMap<String, String> =
            labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        snapshot.names.labels(&labels)
    }

    fn amounts(snapshot: &mut Snapshot, resource: &str, amount: i64) -> Amounts {
        let mut amounts = Amounts::default();
        amounts.set(snapshot.names.resource("cpu"), 64_000);
        amounts.set(snapshot.names.resource(resource), amount);
        amounts
    }

    #[test]
    fn everybody_is_counted_where_they_are() {
        let mut cluster = Snapshot { at: jiff::Timestamp::from_second(60).unwrap(), ..Snapshot::default() };
        let t4 = ("nvidia.com/gpu.product", "Tesla-T4");
        let shared = [("nvidia.com/gpu.product", "Tesla-T4-SHARED"), ("nvidia.com/gpu.replicas", "4")];
        for (name, own, provider, count) in [
            ("gpu-1", &[t4][..], None, 8),
            ("gpu-2", &shared, None, 8),
            ("cloud", &[], Some("aci".into()), i64::MAX),
        ] {
            let node = Node {
                name: name.into(),
                provider,
                labels: labels(&mut cluster, own),
                capacity: amounts(&mut cluster, "nvidia.com/gpu", count),
                ..Node::default()
            };
            cluster.nodes.push(node);
        }
        for (namespace, node, team, resource, count, phase, ending) in [
            ("a", Some("gpu-1"), "vision", "nvidia.com/gpu", 2, Phase::Running, false),
            ("a", Some("gpu-2"), "vision", "nvidia.com/gpu", 2, Phase::Running, true),
            ("a", Some("cloud"), "", "nvidia.com/gpu", 5, Phase::Pending, false),
            ("b", None, "", "nvidia.com/mig-2g.10gb", 1, Phase::Pending, false),
            ("b", None, "", "nvidia.com/gpu", 7, Phase::Pending, true),
            ("b", Some("gone"), "", "nvidia.com/gpu", 5, Phase::Running, false),
            ("b", Some("gpu-1"), "", "nvidia.com/gpu", 4, Phase::Ended, false),
        ] {
            let pod = Pod {
                namespace: namespace.into(),
                node: node.map(Into::into),
                labels: labels(&mut cluster, &[("team", team)]),
                requests: amounts(&mut cluster, resource, count),
                phase,
                ending,
                ..Pod::default()
            };
            cluster.pods.push(pod);
        }
        let sample = of(&cluster, &Labels { label: Some("team".to_owned()), user: None });
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
                (What::Capacity, "cloud", "", "", u64::MAX),
                (What::Allocated, "Tesla-T4", "a", "vision", 2500),
                (What::Allocated, "cloud", "a", "", 5000),
                (What::Waiting, "nvidia.com/mig-2g.10gb", "b", "", 286),
            ]
        );
        assert_eq!(sample.at_s, 60);
    }

    #[test]
    fn what_is_free_and_of_no_use_is_counted() {
        let mut cluster = Snapshot { at: jiff::Timestamp::from_second(60).unwrap(), ..Snapshot::default() };
        let mut has = amounts(&mut cluster, "nvidia.com/gpu", 8);
        has.set(crate::report::snapshot::ResourceId::PODS, 110);
        let shared = [("nvidia.com/gpu.product", "Tesla-T4-SHARED"), ("nvidia.com/gpu.replicas", "4")];
        let own = [("nvidia.com/gpu.product", "Tesla-T4")];
        for (name, own) in [("gpu-1", &own[..]), ("gpu-2", &shared)] {
            let labels = labels(&mut cluster, own);
            let node = Node {
                name: name.into(),
                labels,
                capacity: has.clone(),
                allocatable: has.clone(),
                ..Node::default()
            };
            cluster.nodes.push(node);
            // Two are free, and whoever is here asks for three.
            for pod in 0..2 {
                let requests = amounts(&mut cluster, "nvidia.com/gpu", 3);
                let name = format!("{name}-{pod}").into();
                let node = Some(node_name(&cluster));
                cluster.pods.push(Pod { name, node, requests, phase: Phase::Running, ..Pod::default() });
            }
        }
        let sample = of(&cluster, &Labels::default());
        let lost: Vec<_> = sample
            .milli_gpus
            .iter()
            .filter(|(key, _)| key.what == What::Stranded)
            .map(|(key, milli)| (key.pool.name.as_str(), *milli))
            .collect();
        // Two GPUs, and two quarters of one.
        assert_eq!(lost, [("Tesla-T4", 2500)]);
    }

    fn node_name(cluster: &Snapshot) -> std::sync::Arc<str> {
        cluster.nodes[cluster.nodes.len() - 1].name.clone()
    }
}
