//! Others by what the kubelet has from them: a resource that it hands out and this agent does not serve, or devices of one that this agent
//! did not list. That finds a plugin whatever its socket is called, and asks nobody but the kubelet.
//!
//! What it can't find is a plugin that registers, while this agent serves, the same resource with the very same device IDs: the kubelet
//! says nothing of who is behind a resource, and goes on reading the first one's stream.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    time::Duration,
};

use spillway_device_plugin::{
    causes::one_line,
    device::{DeviceId, ResourceName},
    inventory::Inventory,
    plugins::{Neighbour, Offers},
};
use spillway_proto::podresources::{
    AllocatableResourcesRequest, ContainerDevices, pod_resources_lister_client::PodResourcesListerClient,
};
use tokio::time::timeout;
use tonic::transport::Endpoint;

/// Machines with many devices exceed the usual 4 MiB.
const MESSAGE_LIMIT: usize = 64 << 20;
/// A kubelet that starts or hangs is asked again later; meanwhile nothing can be registered with it either.
const ANSWER_WITHIN: Duration = Duration::from_secs(1);
/// Looks in a row that must find the same, once the agent serves: the kubelet may be a moment behind what it was told.
const CONFIRMED_BY: u32 = 2;

/// By resource, the devices that the kubelet would hand out.
pub(super) type Listing = BTreeMap<ResourceName, BTreeSet<DeviceId>>;

/// Asks the kubelet at `socket` for every healthy device that it has.
pub(super) async fn ask(socket: &Path) -> Result<Listing, String> {
    let exchange = async {
        let endpoint = Endpoint::from_shared(format!("unix://{}", socket.display()));
        let channel = endpoint.map_err(|error| one_line(&error))?.connect().await;
        let channel = channel.map_err(|error| one_line(&error))?;
        let mut client = PodResourcesListerClient::new(channel).max_decoding_message_size(MESSAGE_LIMIT);
        let answer = client.get_allocatable_resources(AllocatableResourcesRequest {}).await;
        let answer = answer.map_err(|status| format!("{}: {}", status.code(), status.message()))?;
        Ok(read(answer.into_inner().devices))
    };
    timeout(ANSWER_WITHIN, exchange)
        .await
        .unwrap_or_else(|_| Err(format!("no answer within {} s", ANSWER_WITHIN.as_secs())))
}

/// One entry for each NUMA node. IDs that no device of ours could have say nothing here, but their resource does.
fn read(devices: Vec<ContainerDevices>) -> Listing {
    let mut listing = Listing::new();
    for part in devices.into_iter().filter(|part| !part.device_ids.is_empty()) {
        if let Ok(resource) = ResourceName::new(part.resource_name) {
            let ids = part.device_ids.into_iter().filter_map(|id| DeviceId::new(id).ok());
            listing.entry(resource).or_default().extend(ids);
        }
    }
    listing
}

/// What one look found.
#[derive(Debug, Default)]
pub(super) struct Sight {
    /// What the kubelet has.
    pub(super) listing: Listing,
    /// Of its resources those on whose sockets this agent, or another one like it, answers; with the devices that this one lists.
    pub(super) ours: Listing,
    /// Sockets of the device plugin folder on which somebody else answers.
    pub(super) strangers: BTreeSet<String>,
}

/// Somebody of whom nothing is known but what the kubelet has from them.
#[derive(Debug, Clone)]
struct Suspect {
    devices: BTreeSet<DeviceId>,
    /// Sockets that may be theirs.
    sockets: BTreeSet<String>,
    /// They came while this agent served: its end disconnects them too, so that the kubelet's silence does not mean that they are gone.
    late: bool,
    looks: u32,
}

impl Suspect {
    fn offers(&self, resource: &ResourceName) -> Offers {
        Offers::Listed { resource: resource.clone(), devices: self.devices.clone() }
    }
}

/// Who is suspected, from look to look.
#[derive(Debug, Default)]
pub(super) struct Suspects {
    by_resource: BTreeMap<ResourceName, Suspect>,
    looked: bool,
}

impl Suspects {
    /// Takes in what a look found.
    pub(super) fn see(&mut self, sight: &Sight) {
        let first = !self.looked;
        self.looked = true;
        let mut before = std::mem::take(&mut self.by_resource);
        for (resource, listed) in &sight.listing {
            let own = sight.ours.get(resource);
            let devices: BTreeSet<_> = match own {
                Some(own) => listed.difference(own).cloned().collect(),
                None => listed.clone(),
            };
            // Where nobody answers who could serve it the kubelet has it from somebody who is gone, be it that it has not noticed yet. A new
            // registration mends that.
            let is_left_over = own.is_none() && sight.strangers.is_empty();
            if own.is_some() && devices.is_empty() || is_left_over {
                continue;
            }
            let suspect = match before.remove(resource) {
                // What they are called stays, so that it is told once.
                Some(known) => Suspect { devices, looks: known.looks + 1, ..known },
                None => Suspect {
                    devices,
                    sockets: sight.strangers.clone(),
                    late: own.is_some(),
                    // Before the agent serves, nothing that the kubelet has is the agent's.
                    looks: if first { CONFIRMED_BY } else { 1 },
                },
            };
            self.by_resource.insert(resource.clone(), suspect);
        }
        let silent = before.into_iter().filter(|(_, suspect)| {
            let there = !suspect.sockets.is_empty() && suspect.sockets.is_subset(&sight.strangers);
            suspect.late && suspect.looks >= CONFIRMED_BY && there
        });
        self.by_resource.extend(silent);
    }

    /// Whether anybody is suspected, of whatever it may be.
    pub(super) fn any(&self) -> bool {
        !self.by_resource.is_empty()
    }

    /// Whether anybody is suspected of offering what is in the inventory: to be looked at again soon.
    pub(super) fn concern(&self, inventory: &Inventory) -> bool {
        let all: Vec<_> =
            self.by_resource.iter().map(|(resource, suspect)| suspect.offers(resource)).collect();
        inventory.devices().any(|device| all.iter().any(|offers| offers.covers(device)))
    }

    /// Those of whom it is certain.
    pub(super) fn neighbours(&self) -> impl Iterator<Item = Neighbour> {
        let certain = self.by_resource.iter().filter(|(_, suspect)| suspect.looks >= CONFIRMED_BY);
        certain.map(|(resource, suspect)| {
            let sockets: Vec<_> = suspect.sockets.iter().map(String::as_str).collect();
            let socket = match sockets.as_slice() {
                [] => String::new(),
                [one] => format!("; its socket seems to be {one}"),
                several => format!("; its socket is one of {}", several.join(", ")),
            };
            Neighbour {
                name: format!("another device plugin (the kubelet has {resource} from it{socket})"),
                offers: suspect.offers(resource),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GPU: &str = "nvidia.com/gpu";

    fn listing(entries: &[(&str, &[&str])]) -> Listing {
        let ids = |ids: &[&str]| ids.iter().map(|id| DeviceId::new(*id).unwrap()).collect();
        entries.iter().map(|(name, devices)| (ResourceName::new(*name).unwrap(), ids(devices))).collect()
    }

    fn sight(listed: &[(&str, &[&str])], ours: &[(&str, &[&str])], strangers: &[&str]) -> Sight {
        let strangers = strangers.iter().map(|name| (*name).to_owned()).collect();
        Sight { listing: listing(listed), ours: listing(ours), strangers }
    }

    fn names(suspects: &Suspects) -> Vec<String> {
        suspects.neighbours().map(|one| one.name).collect()
    }

    #[test]
    fn what_the_kubelet_has_before_the_agent_serves_is_anothers() {
        let mut suspects = Suspects::default();
        suspects.see(&sight(&[(GPU, &["a"])], &[], &["my-gpu.sock"]));
        assert_eq!(
            names(&suspects),
            [
                "another device plugin (the kubelet has nvidia.com/gpu from it; its socket seems to be my-gpu.sock)"
            ]
        );
        suspects.see(&sight(&[], &[], &["my-gpu.sock"]));
        assert!(names(&suspects).is_empty(), "the kubelet has nothing from it any more");
    }

    #[test]
    fn what_a_dead_plugin_has_left_is_nobodys() {
        let mut suspects = Suspects::default();
        suspects.see(&sight(&[(GPU, &["a"])], &[], &[]));
        assert!(!suspects.any());
    }

    #[test]
    fn later_it_takes_two_looks() {
        let mut suspects = Suspects::default();
        suspects.see(&sight(&[], &[], &[]));
        for _ in 0..2 {
            // This agent's own, when the kubelet is a moment behind.
            suspects.see(&sight(&[(GPU, &["a"])], &[], &["rdma.sock"]));
            assert!(suspects.any() && names(&suspects).is_empty());
            suspects.see(&sight(&[(GPU, &["a"])], &[(GPU, &["a"])], &[]));
            assert!(!suspects.any());
        }
        for _ in 0..2 {
            suspects.see(&sight(&[(GPU, &["0", "a"])], &[(GPU, &["a"])], &[]));
        }
        let found: Vec<_> = suspects.neighbours().map(|one| one.offers).collect();
        let resource = ResourceName::new(GPU).unwrap();
        assert_eq!(found, [Offers::Listed { resource, devices: [DeviceId::new("0").unwrap()].into() }]);
    }

    #[test]
    fn who_came_late_is_disconnected_but_not_gone() {
        let mut suspects = Suspects::default();
        suspects.see(&sight(&[(GPU, &["a"])], &[(GPU, &["a"])], &[]));
        for _ in 0..2 {
            suspects.see(&sight(&[(GPU, &["0"])], &[(GPU, &["a"])], &["late.sock", "rdma.sock"]));
        }
        let told = names(&suspects);
        assert!(told[0].contains("one of late.sock, rdma.sock"), "{told:?}");
        suspects.see(&sight(&[], &[], &["late.sock", "rdma.sock", "new.sock"]));
        assert_eq!(names(&suspects), told, "its socket is there");
        suspects.see(&sight(&[], &[], &["rdma.sock", "new.sock"]));
        assert!(names(&suspects).is_empty());
    }

    #[test]
    fn answers_of_a_kubelet_are_taken_as_they_come() {
        let part = |resource: &str, ids: &[&str]| ContainerDevices {
            resource_name: resource.to_owned(),
            device_ids: ids.iter().map(|id| (*id).to_owned()).collect(),
            ..ContainerDevices::default()
        };
        let answer = vec![
            part(GPU, &["a"]),
            part(GPU, &["b", "a", "../x", ""]),
            part("rdma/hca", &["a/b"]),
            part("example.com/none", &[]),
            part("cpu", &["1"]),
            part("../..", &["1"]),
        ];
        assert_eq!(read(answer), listing(&[(GPU, &["a", "b"]), ("rdma/hca", &[])]));
    }
}
