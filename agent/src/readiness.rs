//! When the agent is ready: every back end has looked once, and every resource that was found is registered with the kubelet. A
//! machine without a driver, or without any device, is ready too: there is nothing to wait for.

use spillway_daemon::admin::Readiness;
use spillway_device_plugin::{
    inventory::{BackendState, Inventory},
    registration::Registrations,
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Keeps the conditions `discovery` and `registration` up to date until `stop`.
pub async fn run(
    readiness: Readiness,
    mut inventory: watch::Receiver<Inventory>,
    mut registrations: watch::Receiver<Registrations>,
    stop: CancellationToken,
) {
    loop {
        {
            let inventory = inventory.borrow_and_update();
            readiness.set("discovery", discovery(&inventory));
            readiness.set("registration", registration(&inventory, &registrations.borrow_and_update()));
        }
        tokio::select! {
            () = stop.cancelled() => return,
            changed = inventory.changed() => if changed.is_err() { return },
            changed = registrations.changed() => if changed.is_err() { return },
        }
    }
}

fn discovery(inventory: &Inventory) -> Result<(), String> {
    let starting: Vec<_> = inventory
        .backends()
        .filter(|(_, state)| **state == BackendState::Starting)
        .map(|(name, _)| format!("{name} has not looked yet"))
        .collect();
    if starting.is_empty() { Ok(()) } else { Err(starting.join("; ")) }
}

fn registration(inventory: &Inventory, registrations: &Registrations) -> Result<(), String> {
    let missing: Vec<_> = inventory
        .resources()
        .iter()
        .filter_map(|resource| match registrations.get(resource) {
            Some(Ok(())) => None,
            Some(Err(why)) => Some(format!("{resource}: {why}")),
            None => Some(format!("{resource}: its plugin has not started")),
        })
        .collect();
    if missing.is_empty() { Ok(()) } else { Err(missing.join("; ")) }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use spillway_device_plugin::device::{Accelerator, Device, DeviceId, Health, ResourceName};

    use super::*;

    #[test]
    fn the_agent_is_ready_when_all_that_was_found_is_registered() {
        let resource = ResourceName::new("nvidia.com/gpu").unwrap();
        let gpu = Device {
            id: DeviceId::new("GPU-0").unwrap(),
            resource: resource.clone(),
            health: Health::Healthy,
            nodes: [].into(),
            listed_in: None,
            accelerator: Arc::new(Accelerator::new(DeviceId::new("GPU-0").unwrap())),
            partition: None,
            replica: None,
        };
        let start = Inventory::starting(["dfl", "nvml"]);
        assert_eq!(discovery(&start), Err("dfl has not looked yet; nvml has not looked yet".to_owned()));

        let (without, _) = start.with("dfl", BackendState::Running, Vec::new());
        let (without, _) =
            without.with("nvml", BackendState::Unavailable("no driver".to_owned()), Vec::new());
        let mut registrations = Registrations::new();
        assert_eq!((discovery(&without), registration(&without, &registrations)), (Ok(()), Ok(())));

        let (with, _) = without.with("nvml", BackendState::Running, vec![gpu]);
        assert!(registration(&with, &registrations).is_err());
        registrations.insert(resource.clone(), Err("no kubelet".to_owned()));
        assert_eq!(registration(&with, &registrations), Err("nvidia.com/gpu: no kubelet".to_owned()));
        registrations.insert(resource, Ok(()));
        assert_eq!(registration(&with, &registrations), Ok(()));
    }
}
