//! Who holds which devices, as the kubelet says: the link between devices and pods that isolation and usage are built on.

use std::collections::BTreeSet;

use spillway_device_plugin::device::{DeviceId, ResourceName};

/// A pod of this machine.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PodRef {
    /// Its UID; for a static pod the hash that its cgroup is called by.
    pub uid: String,
    /// Its namespace, where it is known.
    pub namespace: Option<String>,
    /// Its name, where it is known.
    pub name: Option<String>,
}

/// What one container holds of one resource.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holding {
    /// The pod.
    pub pod: PodRef,
    /// The container's name within it.
    pub container: String,
    /// The resource.
    pub resource: ResourceName,
    /// The devices' IDs.
    pub devices: BTreeSet<DeviceId>,
}

/// Everything that pods of this machine hold. The kubelet may still list pods that have ended.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Holders {
    /// By pod, container and resource.
    pub holdings: Vec<Holding>,
}
