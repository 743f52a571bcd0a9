//! What the tests of this module's parts have in common.

use std::sync::Arc;

use spillway_device_plugin::{
    device::{Accelerator, Device, DeviceId, Health, ResourceName},
    inventory::{BackendState, Inventory},
};

use super::watch::Seen;

pub(super) fn gpu(id: &str) -> Device {
    let id = DeviceId::new(id).unwrap();
    Device {
        id: id.clone(),
        resource: ResourceName::new("nvidia.com/gpu").unwrap(),
        health: Health::Healthy,
        nodes: [].into(),
        listed_in: None,
        accelerator: Arc::new(Accelerator::new(id)),
        partition: None,
        replica: None,
    }
}

pub(super) fn inventory(devices: Vec<Device>) -> Inventory {
    Inventory::default().with("nvml", BackendState::Running, devices).0
}

pub(super) fn seen(uid: &str, labels: &[(&str, &str)]) -> Seen {
    Seen {
        uid: uid.to_owned(),
        labels: labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
        ..Seen::default()
    }
}
