//! What is measured when somebody asks: devices as the inventory has them, plugins as they stand with the kubelet. Counters are the
//! device plugins' own.

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric as _},
    metrics::{MetricType, gauge::ConstGauge},
    registry::Registry,
};
use spillway_device_plugin::{
    config::store::Validity,
    inventory::{BackendState, Inventory},
    metrics::Metrics as PluginMetrics,
    registration::Registrations,
};
use tokio::sync::watch;

/// The agent's registry: everything is called `spillway_...`.
pub fn registry(
    inventory: watch::Receiver<Inventory>,
    registrations: watch::Receiver<Registrations>,
    configuration: watch::Receiver<Validity>,
    plugins: &PluginMetrics,
) -> Registry {
    let mut registry = Registry::with_prefix("spillway");
    plugins.register(registry.sub_registry_with_prefix("plugin"));
    registry.register_collector(Box::new(Now { inventory, registrations, configuration }));
    registry
}

#[derive(Debug)]
struct Now {
    inventory: watch::Receiver<Inventory>,
    registrations: watch::Receiver<Registrations>,
    configuration: watch::Receiver<Validity>,
}

/// One gauge: its name, help, and values by labels. The registry adds its prefix.
fn gauge<const N: usize>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    values: impl IntoIterator<Item = ([(&'static str, String); N], i64)>,
) -> Result<(), std::fmt::Error> {
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
    for (labels, value) in values {
        ConstGauge::new(value).encode(family.encode_family(&labels)?)?;
    }
    Ok(())
}

impl Collector for Now {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let inventory = self.inventory.borrow().clone();
        let registrations = self.registrations.borrow().clone();
        gauge(
            &mut encoder,
            "devices",
            "Accelerators that are offered to the kubelet.",
            inventory.resources().iter().flat_map(|resource| {
                let count = |healthy: bool| {
                    let matching = inventory
                        .slice(resource)
                        .filter(|device| device.health.is_healthy() == healthy)
                        .count();
                    let health = if healthy { "healthy" } else { "unhealthy" };
                    let labels = [("resource", resource.to_string()), ("health", health.to_owned())];
                    (labels, i64::try_from(matching).unwrap_or(i64::MAX))
                };
                [count(true), count(false)]
            }),
        )?;
        gauge(
            &mut encoder,
            "device_temperature_celsius",
            "Temperature of an accelerator, where it has a sensor.",
            inventory.devices().filter_map(|device| {
                let labels = [("resource", device.resource.to_string()), ("device", device.id.to_string())];
                Some((labels, device.accelerator.readings.temperature_celsius?.into()))
            }),
        )?;
        gauge(
            &mut encoder,
            "plugin_registered",
            "Whether a resource's plugin is registered with the kubelet.",
            registrations
                .iter()
                .map(|(resource, state)| ([("resource", resource.to_string())], i64::from(state.is_ok()))),
        )?;
        let valid = i64::from(self.configuration.borrow().is_ok() && inventory.refused().is_empty());
        ConstGauge::new(valid).encode(encoder.encode_descriptor(
            "config_valid",
            "Whether the configuration that was given last is in force, and all of it can be.",
            None,
            MetricType::Gauge,
        )?)?;
        gauge(
            &mut encoder,
            "discovery_up",
            "Whether a way of finding devices works.",
            inventory.backends().map(|(name, state)| {
                ([("backend", name.to_owned())], i64::from(*state == BackendState::Running))
            }),
        )
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use spillway_device_plugin::device::{Accelerator, Device, DeviceId, Health, Readings, ResourceName};

    use super::*;

    #[test]
    fn metrics_tell_devices_and_registrations() {
        let gpu = |id: &str, health| Device {
            id: DeviceId::new(id).unwrap(),
            resource: ResourceName::new("nvidia.com/gpu").unwrap(),
            health,
            nodes: Vec::new(),
            listed_in: None,
            accelerator: Arc::new(Accelerator {
                readings: Readings {
                    temperature_celsius: (id == "GPU-0").then_some(41),
                    ..Readings::default()
                },
                ..Accelerator::new(DeviceId::new(id).unwrap())
            }),
            partition: None,
            replica: None,
        };
        let devices =
            vec![gpu("GPU-0", Health::Healthy), gpu("GPU-1", Health::Unhealthy("XID 79".to_owned()))];
        let (inventory, _) = Inventory::starting(["dfl"]).with("nvml", BackendState::Running, devices);
        let registrations = Registrations::from([(
            ResourceName::new("nvidia.com/gpu").unwrap(),
            Err("no kubelet".to_owned()),
        )]);
        let registry = registry(
            watch::channel(inventory).1,
            watch::channel(registrations).1,
            watch::channel(Ok(())).1,
            &PluginMetrics::default(),
        );

        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        let values: Vec<_> = text.lines().filter(|line| !line.starts_with('#')).collect();
        assert_eq!(
            values,
            [
                r#"spillway_devices{resource="nvidia.com/gpu",health="healthy"} 1"#,
                r#"spillway_devices{resource="nvidia.com/gpu",health="unhealthy"} 1"#,
                r#"spillway_device_temperature_celsius{resource="nvidia.com/gpu",device="GPU-0"} 41"#,
                r#"spillway_plugin_registered{resource="nvidia.com/gpu"} 0"#,
                "spillway_config_valid 1",
                r#"spillway_discovery_up{backend="dfl"} 0"#,
                r#"spillway_discovery_up{backend="nvml"} 1"#,
            ]
        );
    }
}
