//! A container that is restarted in place on a sick device waits until the device is well. The kubelet checks health only at admission;
//! the one thing that holds such a container back is an error here, which becomes its state, and after which the kubelet tries again.

use std::sync::Arc;

use tokio::sync::watch;

use crate::{
    config::Config,
    device::{DeviceId, Health, ResourceName},
    inventory::Inventory,
    server::PreStart,
    sharing::shared_by,
};

/// Looks at the health of what a container is about to use.
#[derive(Debug, Clone)]
pub struct HoldBack {
    /// The devices.
    pub inventory: watch::Receiver<Inventory>,
    /// Whether to hold back at all: `health.holdBackSickRestarts`.
    pub configs: watch::Receiver<Arc<Config>>,
}

#[tonic::async_trait]
impl PreStart for HoldBack {
    async fn before_start(&self, resource: &ResourceName, devices: &[DeviceId]) -> Result<(), String> {
        if !self.configs.borrow().health.hold_back_sick_restarts {
            return Ok(());
        }
        let inventory = self.inventory.borrow();
        let sick: Vec<_> = devices.iter().filter_map(|id| complaint(&inventory, resource, id)).collect();
        if sick.is_empty() {
            return Ok(());
        }
        Err(format!(
            "{}: the container starts when its devices are healthy again (health.holdBackSickRestarts)",
            sick.join("; ")
        ))
    }
}

/// What is wrong with a device, if anything is. One that the container was given by an earlier configuration is known by its hardware.
fn complaint(inventory: &Inventory, resource: &ResourceName, id: &DeviceId) -> Option<String> {
    let offered = inventory.slice(resource).find(|device| device.id == *id);
    let found = || {
        let base = shared_by(id).unwrap_or_else(|| id.clone());
        inventory.found().find(|device| device.id == base && device.resource == *resource)
    };
    match offered.or_else(found).map(|device| &device.health) {
        Some(Health::Healthy) => None,
        Some(Health::Unhealthy(why)) => Some(format!("{resource} {id} is Unhealthy: {why}")),
        None => Some(format!("{resource} {id} is not there any more")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        device::Device,
        inventory::{BackendState, tests::device},
    };

    #[tokio::test]
    async fn only_a_sick_device_holds_a_container_back_and_only_if_it_shall() {
        let [well, sick] = ["GPU-0", "GPU-1"].map(|id| device("nvidia.com/gpu", id, None));
        let sick = Device { health: Health::Unhealthy("XID 79".to_owned()), ..sick };
        let resource = well.resource.clone();
        let ids = [well.id.clone(), sick.id.clone(), DeviceId::new("GPU-2").unwrap()];
        let (inventory, _) = Inventory::default().with("nvml", BackendState::Running, vec![well, sick]);
        let configs = watch::Sender::new(Arc::new(Config::default()));
        let hook = HoldBack { inventory: watch::channel(inventory).1, configs: configs.subscribe() };
        assert_eq!(hook.before_start(&resource, &ids[..1]).await, Ok(()));
        let why = hook.before_start(&resource, &ids).await.unwrap_err();
        for part in ["GPU-1 is Unhealthy: XID 79", "GPU-2 is not there", "holdBackSickRestarts"] {
            assert!(why.contains(part), "{why}");
        }
        assert!(!why.contains("GPU-0"), "{why}");
        // Given while it was shared, which it is not any more.
        let share = DeviceId::new("GPU-0::7").unwrap();
        assert_eq!(hook.before_start(&resource, &[share]).await, Ok(()));
        let share = DeviceId::new("GPU-1::7").unwrap();
        assert!(hook.before_start(&resource, &[share]).await.unwrap_err().contains("XID 79"));
        let other = ResourceName::new("example.com/gpu").unwrap();
        assert!(hook.before_start(&other, &ids[..1]).await.unwrap_err().contains("not there"));
        configs.send_modify(|config| Arc::make_mut(config).health.hold_back_sick_restarts = false);
        assert_eq!(hook.before_start(&resource, &ids).await, Ok(()));
    }
}
