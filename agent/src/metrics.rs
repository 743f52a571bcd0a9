//! What is measured when somebody asks: devices as the inventory has them, plugins as they stand with the kubelet, and what pods do with
//! what they hold. Counters of what happens are those subsystems' own.
//!
//! Names follow Prometheus' conventions. There are as many series as accelerators, partitions and holdings, of which the number is bounded.

mod containers;
mod devices;
#[cfg(test)]
mod tests;

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeCounterValue, EncodeGaugeValue, EncodeMetric as _},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
    registry::Registry,
};
use spillway_device_plugin::{
    config::store::Validity,
    inventory::{BackendState, Inventory},
    metrics::Metrics as PluginMetrics,
    registration::Registrations,
};
use tokio::sync::watch;

use crate::{memory_budget::BudgetMetrics, usage::Usage};

/// The agent's registry: everything is called `spillway_...`.
pub fn registry(now: Now, plugins: &PluginMetrics, budgets: &BudgetMetrics) -> Registry {
    let mut registry = Registry::with_prefix("spillway");
    plugins.register(registry.sub_registry_with_prefix("plugin"));
    budgets.register(registry.sub_registry_with_prefix("memory_budget"));
    registry.register_collector(Box::new(now));
    registry
}

/// What is as it is when somebody asks.
#[derive(Debug)]
pub struct Now {
    /// Devices.
    pub inventory: watch::Receiver<Inventory>,
    /// Plugins.
    pub registrations: watch::Receiver<Registrations>,
    /// The configuration that was given last.
    pub configuration: watch::Receiver<Validity>,
    /// What pods do with what they hold.
    pub usage: watch::Receiver<Usage>,
}

/// One gauge: its name, help, and values by labels. The registry adds its prefix.
fn gauge<const N: usize, V: EncodeGaugeValue>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    values: impl IntoIterator<Item = ([(&'static str, String); N], V)>,
) -> Result<(), std::fmt::Error> {
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
    for (labels, value) in values {
        ConstGauge::new(value).encode(family.encode_family(&labels)?)?;
    }
    Ok(())
}

/// One counter; the encoder adds `_total`.
fn counter<const N: usize, V: EncodeCounterValue>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    values: impl IntoIterator<Item = ([(&'static str, String); N], V)>,
) -> Result<(), std::fmt::Error> {
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
    for (labels, value) in values {
        ConstCounter::new(value).encode(family.encode_family(&labels)?)?;
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
        )?;
        devices::encode(&mut encoder, &inventory)?;
        containers::encode(&mut encoder, &self.usage.borrow().clone())
    }
}
