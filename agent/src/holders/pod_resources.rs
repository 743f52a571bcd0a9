//! The kubelet's pod resources API. All its clients on a machine share 100 requests a second, 10 at once, so it is asked rarely.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    time::Duration,
};

use spillway_device_plugin::{
    causes::one_line,
    device::{DeviceId, ResourceName},
};
use spillway_proto::podresources::{
    ListPodResourcesRequest, PodResources, pod_resources_lister_client::PodResourcesListerClient,
};
use tokio::time::timeout;
use tonic::transport::Endpoint;

use super::{Name, is_name};

/// Machines with many pods and devices exceed the usual 4 MiB.
const MESSAGE_LIMIT: usize = 64 << 20;
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// What one container holds of one resource: the pod is known by its name only.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Listed {
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name.
    pub name: String,
    /// The container's name.
    pub container: String,
    /// The resource.
    pub resource: ResourceName,
    /// The devices' IDs.
    pub devices: BTreeSet<DeviceId>,
}

/// What an answer says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Listing {
    /// Every pod that has not ended, with its containers but for plain init containers.
    pub pods: BTreeMap<Name, BTreeSet<String>>,
    /// What they hold.
    pub held: Vec<Listed>,
}

/// Asks the kubelet at `socket`.
pub(super) async fn list(socket: &Path) -> Result<Listing, String> {
    let exchange = async {
        let address = format!("unix://{}", socket.display());
        let endpoint = Endpoint::from_shared(address).map_err(|error| one_line(&error))?;
        let channel = endpoint.connect().await.map_err(|error| one_line(&error))?;
        let mut client = PodResourcesListerClient::new(channel).max_decoding_message_size(MESSAGE_LIMIT);
        let answer = client
            .list(ListPodResourcesRequest {})
            .await
            .map_err(|status| format!("{}: {}", status.code(), status.message()))?;
        Ok(listed(answer.into_inner().pod_resources))
    };
    timeout(ANSWER_WITHIN, exchange)
        .await
        .unwrap_or_else(|_| Err(format!("no answer within {} s", ANSWER_WITHIN.as_secs())))
}

/// What of an answer can be ours: DRA's devices and CPUs are not, and neither are names that Kubernetes can't have.
pub fn listed(answer: Vec<PodResources>) -> Listing {
    let mut pods = BTreeMap::new();
    let mut held: BTreeMap<(String, String, String, ResourceName), BTreeSet<DeviceId>> = BTreeMap::new();
    for pod in answer.into_iter().filter(|pod| is_name(&pod.namespace) && is_name(&pod.name)) {
        let containers = pods.entry((pod.namespace.clone(), pod.name.clone())).or_insert_with(BTreeSet::new);
        for container in pod.containers.into_iter().filter(|container| is_name(&container.name)) {
            containers.insert(container.name.clone());
            // One entry for each NUMA node.
            for part in container.devices {
                let Ok(resource) = ResourceName::new(part.resource_name) else { continue };
                let ids = part.device_ids.into_iter().filter_map(|id| DeviceId::new(id).ok());
                let key = (pod.namespace.clone(), pod.name.clone(), container.name.clone(), resource);
                held.entry(key).or_default().extend(ids);
            }
        }
    }
    let held = held.into_iter().filter(|(_, devices)| !devices.is_empty());
    let held = held.map(|((namespace, name, container, resource), devices)| Listed {
        namespace,
        name,
        container,
        resource,
        devices,
    });
    Listing { pods, held: held.collect() }
}
