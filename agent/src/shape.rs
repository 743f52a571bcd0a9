//! The largest group of devices that can still be had together, for those who ask: a metric, and a node annotation's value.

use std::collections::BTreeSet;

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric as _},
    metrics::{MetricType, gauge::ConstGauge},
};
use spillway_device_plugin::{
    device::{DeviceId, ResourceName},
    inventory::Inventory,
    shape::Shapes,
};
use tokio::sync::watch;

use crate::holders::Holders;

/// The annotation that [`annotation`] is for.
pub const ANNOTATION: &str = "spillway.dev/largest-group";

fn shapes(inventory: &Inventory, holders: &Holders) -> Shapes {
    let held: BTreeSet<(&ResourceName, &DeviceId)> = holders
        .holdings
        .iter()
        .flat_map(|holding| holding.devices.iter().map(|device| (&holding.resource, device)))
        .collect();
    Shapes::of(inventory, |resource, id| held.contains(&(resource, id)))
}

/// What [`ANNOTATION`] is to say, in JSON: by resource, how many devices can be had `nvlink`: connected by NVLink, `numa`: on one NUMA
/// node, `node`: at all; and `profile`, the largest free partition.
pub fn annotation(inventory: &Inventory, holders: &Holders) -> String {
    serde_json::to_string(&shapes(inventory, holders)).unwrap_or_default()
}

/// The metric `largest_allocatable_group`.
#[derive(Debug)]
pub struct LargestGroup {
    /// What there is.
    pub inventory: watch::Receiver<Inventory>,
    /// Who has what of it.
    pub holders: watch::Receiver<Holders>,
}

impl Collector for LargestGroup {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let shapes = shapes(&self.inventory.borrow().clone(), &self.holders.borrow().clone());
        let help =
            "Devices that can still be had together: connected by NVLink, on one NUMA node, on the node.";
        let mut family =
            encoder.encode_descriptor("largest_allocatable_group", help, None, MetricType::Gauge)?;
        for (resource, shape) in shapes.iter() {
            let counts = [("nvlink", shape.nvlink), ("numa", Some(shape.numa)), ("node", Some(shape.node))];
            for (within, count) in counts {
                let Some(count) = count else { continue };
                let labels = [("resource", resource), ("within", within)];
                let gauge = ConstGauge::new(i64::try_from(count).unwrap_or(i64::MAX));
                gauge.encode(family.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use prometheus_client::registry::Registry;
    use spillway_device_plugin::{
        device::{Accelerator, Device, DeviceId, Health, ResourceName},
        inventory::BackendState,
    };

    use super::*;
    use crate::holders::{Holding, PodRef};

    #[test]
    fn what_is_held_is_left_out_of_metric_and_annotation() {
        let resource = ResourceName::new("nvidia.com/gpu").unwrap();
        let gpu = |id: &str, numa_node| Device {
            id: DeviceId::new(id).unwrap(),
            resource: resource.clone(),
            health: Health::Healthy,
            nodes: [].into(),
            listed_in: None,
            accelerator: Arc::new(Accelerator { numa_node, ..Accelerator::new(DeviceId::new(id).unwrap()) }),
            partition: None,
            replica: None,
        };
        let devices = vec![gpu("GPU-0", Some(0)), gpu("GPU-1", Some(0)), gpu("GPU-2", Some(1))];
        let (inventory, _) = Inventory::default().with("nvml", BackendState::Running, devices);
        let holding = Holding {
            pod: PodRef { uid: "1".to_owned(), namespace: None, name: None },
            container: "main".to_owned(),
            resource: resource.clone(),
            devices: [DeviceId::new("GPU-0").unwrap()].into(),
        };
        let holders = Holders { holdings: vec![holding] };
        assert_eq!(annotation(&inventory, &holders), r#"{"nvidia.com/gpu":{"numa":1,"node":2}}"#);

        let mut registry = Registry::with_prefix("spillway");
        registry.register_collector(Box::new(LargestGroup {
            inventory: watch::channel(inventory).1,
            holders: watch::channel(holders).1,
        }));
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        let values: Vec<_> = text.lines().filter(|line| !line.starts_with('#')).collect();
        assert_eq!(
            values,
            [
                r#"spillway_largest_allocatable_group{resource="nvidia.com/gpu",within="numa"} 1"#,
                r#"spillway_largest_allocatable_group{resource="nvidia.com/gpu",within="node"} 2"#,
            ]
        );
    }
}
