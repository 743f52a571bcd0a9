//! One plugin per resource that the inventory has. Plugins come and go with their resources; none outlives this. What somebody else on the
//! machine offers to the kubelet is left to them: two who hand out the same device would hand it out twice.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use tokio::{sync::watch, task::JoinSet};
use tokio_util::sync::CancellationToken;

use crate::{
    device::{Device, DeviceId, ResourceName},
    inventory::Inventory,
    registration::{KubeletFolder, Registration, Registrations},
    server::Shared,
};

/// Somebody else who offers devices of this machine to its kubelet.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Neighbour {
    /// Who it is, for people.
    pub name: String,
    /// What it offers.
    pub offers: Offers,
}

/// Which devices somebody else offers, as far as that can be told from outside.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Offers {
    /// Those whose IDs this environment variable lists.
    ListedIn(&'static str),
    /// Those whose resources are of this domain.
    Domain(&'static str),
    /// What the kubelet has from it: this resource, and these devices under whatever resource.
    Listed {
        /// The resource.
        resource: ResourceName,
        /// Its devices' IDs.
        devices: BTreeSet<DeviceId>,
    },
}

impl Offers {
    /// Whether `device` is one of them.
    pub fn covers(&self, device: &Device) -> bool {
        match self {
            Self::ListedIn(variable) => device.listed_in == Some(*variable),
            Self::Domain(domain) => {
                device.resource.as_str().split_once('/').is_some_and(|(found, _)| found == *domain)
            }
            Self::Listed { resource, devices } => {
                device.resource == *resource
                    || devices.iter().any(|id| {
                        // NVIDIA's plugin, and this one, call the shares of a device by its ID and a number.
                        let unit = id.as_str().split("::").next().unwrap_or_default();
                        [device.unit(), &device.accelerator.id].iter().any(|own| own.as_str() == unit)
                    })
            }
        }
    }
}

/// Why `resource` must not be offered, if somebody else offers a device of it.
pub fn objection(neighbours: &[Neighbour], inventory: &Inventory, resource: &ResourceName) -> Option<String> {
    let neighbour = neighbours
        .iter()
        .find(|neighbour| inventory.slice(resource).any(|device| neighbour.offers.covers(device)))?;
    Some(format!("{} serves the same devices: they are left to it until it is gone", neighbour.name))
}

/// Serves every resource of the inventory that no neighbour offers to the kubelet until `stop`, then ends all streams and removes all sockets.
pub async fn run(
    folder: KubeletFolder,
    shared: Shared,
    mut neighbours: watch::Receiver<Vec<Neighbour>>,
    registrations: watch::Sender<Registrations>,
    stop: CancellationToken,
) {
    let folder = Arc::new(folder);
    let mut inventory = shared.inventory.clone();
    let mut plugins: JoinSet<ResourceName> = JoinSet::new();
    let mut running: BTreeMap<ResourceName, CancellationToken> = BTreeMap::new();
    let mut refused: BTreeMap<ResourceName, String> = BTreeMap::new();
    loop {
        let (wanted, objections) = {
            let inventory = inventory.borrow_and_update();
            let neighbours = neighbours.borrow_and_update();
            let mut wanted = inventory.resources();
            let objections: BTreeMap<_, _> = wanted
                .iter()
                .filter_map(|resource| {
                    Some((resource.clone(), objection(&neighbours, &inventory, resource)?))
                })
                .collect();
            wanted.retain(|resource| !objections.contains_key(resource));
            (wanted, objections)
        };
        for (resource, plugin_stop) in &running {
            if !wanted.contains(resource) && !plugin_stop.is_cancelled() {
                let why = objections.get(resource).map_or("no device left", String::as_str);
                tracing::info!(%resource, why, "the plugin ends");
                plugin_stop.cancel();
            }
        }
        tell(&registrations, &shared, &refused, &objections, |resource| running.contains_key(resource));
        refused = objections;
        for resource in wanted {
            // One that is still ending is started again when it has ended.
            if !running.contains_key(&resource) {
                let plugin_stop = stop.child_token();
                running.insert(resource.clone(), plugin_stop.clone());
                let (folder, shared, registrations) = (folder.clone(), shared.clone(), registrations.clone());
                plugins.spawn(async move {
                    let name = resource.clone();
                    Registration { folder: &folder, resource, shared, registrations }.run(plugin_stop).await;
                    name
                });
            }
        }
        tokio::select! {
            () = stop.cancelled() => break,
            changed = inventory.changed() => if changed.is_err() { break },
            Ok(()) = neighbours.changed() => {}
            Some(ended) = plugins.join_next() => match ended {
                Ok(resource) => { running.remove(&resource); }
                Err(error) => std::panic::resume_unwind(error.into_panic()),
            },
        }
    }
    stop.cancel();
    while plugins.join_next().await.is_some() {}
}

/// Puts what is refused among the registrations, where readiness looks, and what no longer is out of them.
fn tell(
    registrations: &watch::Sender<Registrations>,
    shared: &Shared,
    before: &BTreeMap<ResourceName, String>,
    now: &BTreeMap<ResourceName, String>,
    running: impl Fn(&ResourceName) -> bool,
) {
    registrations.send_if_modified(|all| {
        let mut modified = false;
        for resource in before.keys().filter(|resource| !now.contains_key(resource)) {
            tracing::info!(%resource, "nobody else serves it any more");
            shared.metrics.contested(resource, false);
            modified |= all.remove(resource).is_some();
        }
        for (resource, why) in now {
            if before.get(resource) != Some(why) {
                tracing::warn!(%resource, why, "refused to serve a resource");
                shared.metrics.contested(resource, true);
            }
            // A plugin that still ends has the last word on its own, and is looked at again then.
            if !running(resource) {
                modified |=
                    all.insert(resource.clone(), Err(why.clone())).as_ref() != Some(&Err(why.clone()));
            }
        }
        modified
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::{Accelerator, Health};

    #[test]
    fn what_the_kubelet_has_from_another_covers_its_resource_and_its_hardware() {
        let device = |resource: &str, id: &str, hardware: &str| Device {
            id: DeviceId::new(id).unwrap(),
            resource: ResourceName::new(resource).unwrap(),
            health: Health::Healthy,
            nodes: Arc::default(),
            listed_in: None,
            accelerator: Arc::new(Accelerator::new(DeviceId::new(hardware).unwrap())),
            partition: None,
            replica: None,
        };
        let listed = |resource: &str, ids: &[&str]| Offers::Listed {
            resource: ResourceName::new(resource).unwrap(),
            devices: ids.iter().map(|id| DeviceId::new(*id).unwrap()).collect(),
        };
        let own = device("nvidia.com/gpu", "GPU-1::3", "GPU-1");
        for (offers, covered) in [
            (listed("nvidia.com/gpu", &["0"]), true),
            (listed("nvidia.com/gpu.shared", &["GPU-0::0", "GPU-1::0"]), true),
            (listed("example.com/gpu", &["GPU-1"]), true),
            (listed("nvidia.com/gpu.shared", &["GPU-0::0", "GPU-10"]), false),
            (listed("rdma/hca", &[]), false),
        ] {
            assert_eq!(offers.covers(&own), covered, "{offers:?}");
        }
    }
}
