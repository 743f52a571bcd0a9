//! What virtual nodes offer, each by itself.

use serde::Serialize;

use super::{
    fit::could_run,
    pools::{Described, float},
    snapshot::{Pod, ResourceId},
    state::{Cluster, Machine},
};

/// A virtual node: what it offers are limits, not machines.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct VirtualNode {
    /// Its name; the provider's where a node is made for each pod, as Fargate's are.
    pub node: String,
    /// Who is behind it.
    pub provider: String,
    /// How many nodes these are.
    pub nodes: usize,
    /// Why no pod may come, where that is so.
    pub closed: Option<String>,
    /// By resource; accelerators first.
    pub offers: Vec<Offer>,
    /// Pods that run on it.
    pub pods: usize,
}

/// What a virtual node offers of a resource.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Offer {
    /// The resource. CPU is in thousandths of a core, memory in bytes.
    pub resource: String,
    /// The limit.
    pub capacity: i64,
    /// What pods may have of it.
    pub allocatable: i64,
    /// What pods ask for: those that run there, and those that wait and could.
    pub requested: i64,
    /// What pods have.
    pub allocated: i64,
    /// What pods use, where that is measured.
    pub used: Option<f64>,
    /// What one more pod could have at most.
    pub largest_pod: i64,
}

/// Virtual nodes, each by itself; Fargate's, of which there is one for each pod, together.
pub(super) fn serverless(cluster: &Cluster<'_>, shown: &dyn Fn(&Machine<'_>) -> bool) -> Vec<VirtualNode> {
    let mut nodes: Vec<(String, Vec<&Machine<'_>>)> = Vec::new();
    for machine in cluster.machines.iter().filter(|machine| machine.is_virtual() && shown(machine)) {
        let provider = machine.node.provider.as_deref().unwrap_or_default();
        if provider == "fargate" {
            if let Some((_, machines)) = nodes.iter_mut().find(|(name, _)| name == "fargate") {
                machines.push(machine);
                continue;
            }
            nodes.push(("fargate".to_owned(), vec![machine]));
        } else {
            nodes.push((machine.node.name.to_string(), vec![machine]));
        }
    }
    nodes.into_iter().map(|(name, machines)| virtual_node(cluster, name, &machines)).collect()
}

fn virtual_node(cluster: &Cluster<'_>, node: String, machines: &[&Machine<'_>]) -> VirtualNode {
    let names = &cluster.snapshot.names;
    let offered = |resource: &ResourceId| {
        machines
            .iter()
            .any(|machine| machine.node.capacity.get(*resource) > 0 || machine.held.get(*resource) > 0)
    };
    let mut resources: Vec<_> = cluster.accelerators.iter().copied().filter(offered).collect();
    resources.extend([ResourceId::CPU, ResourceId::MEMORY, ResourceId::PODS]);
    let offers = resources.into_iter().map(|resource| {
        let described = Described { cluster, resource, machines: machines.to_vec() };
        let sum = |of: &dyn Fn(&Machine<'_>) -> i64| {
            described.machines.iter().fold(0_i64, |sum, machine| sum.saturating_add(of(machine)))
        };
        let allocated = sum(&|machine| machine.held.get(resource));
        let wanted = virtual_suitors(&described);
        let pods: Vec<_> =
            described.machines.iter().flat_map(|machine| machine.pods.iter().copied()).collect();
        let used = match resource {
            ResourceId::PODS => None,
            ResourceId::MEMORY => {
                let of = |pod: &&Pod| {
                    cluster
                        .snapshot
                        .beside
                        .usage
                        .get(&(pod.namespace.clone(), pod.name.clone()))?
                        .memory_bytes
                };
                let known: Vec<_> = pods.iter().filter_map(of).collect();
                (!known.is_empty()).then(|| float(known.iter().sum()))
            }
            _ => described.used(&pods).0,
        };
        Offer {
            resource: names.name(resource).to_owned(),
            capacity: sum(&|machine| machine.node.capacity.get(resource)),
            allocatable: sum(&|machine| machine.node.allocatable.get(resource)),
            requested: allocated.saturating_add(wanted),
            allocated,
            used,
            largest_pod: described
                .machines
                .iter()
                .filter(|machine| machine.closed().is_none() && machine.free(ResourceId::PODS) > 0)
                .map(|machine| machine.free(resource))
                .max()
                .unwrap_or(0),
        }
    });
    let offers = offers.collect();
    VirtualNode {
        node,
        provider: machines
            .first()
            .and_then(|machine| machine.node.provider.clone())
            .unwrap_or_default()
            .to_string(),
        nodes: machines.len(),
        closed: if machines.iter().all(|machine| machine.closed().is_some()) {
            machines.first().and_then(|machine| machine.closed())
        } else {
            None
        },
        offers,
        pods: machines.iter().map(|machine| machine.pods.len()).sum(),
    }
}

/// What pods that wait, and could run on the virtual node, ask for.
fn virtual_suitors(described: &Described<'_>) -> i64 {
    let resource = described.resource;
    let mut wanted = 0_i64;
    for group in &described.cluster.waiting {
        let Some(first) = group.first() else { continue };
        if described.machines.iter().any(|machine| could_run(described.cluster, group, machine)) {
            let count = i64::try_from(group.pods.len()).unwrap_or(i64::MAX);
            wanted = wanted.saturating_add(first.requests.get(resource).saturating_mul(count));
        }
    }
    wanted
}
