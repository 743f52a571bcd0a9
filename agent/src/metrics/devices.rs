//! Accelerators, one by one: what their sensors say, whoever holds them.

use std::{collections::BTreeMap, fmt};

use prometheus_client::encoding::DescriptorEncoder;
use spillway_device_plugin::{
    device::{Accelerator, Device, DeviceId},
    inventory::Inventory,
};

use super::{counter, gauge};

const MIB: u64 = 1 << 20;
/// What vendors call a product is theirs; a label has an end.
const PRODUCT_LIMIT: usize = 80;

/// What the vendor calls it, as a label.
pub(super) fn model(product: Option<&String>) -> String {
    let printable = product.into_iter().flat_map(|product| product.chars()).filter(|char| !char.is_control());
    printable.take(PRODUCT_LIMIT).collect()
}

fn labels(accelerator: &Accelerator) -> [(&'static str, String); 2] {
    [("device", accelerator.id.to_string()), ("model", model(accelerator.product.as_ref()))]
}

/// Of each accelerator what `value` finds.
fn of<'a, V: 'a>(
    accelerators: &'a BTreeMap<&DeviceId, &Accelerator>,
    value: impl Fn(&Accelerator) -> Option<V> + 'a,
) -> impl Iterator<Item = ([(&'static str, String); 2], V)> + 'a {
    accelerators.values().filter_map(move |accelerator| Some((labels(accelerator), value(accelerator)?)))
}

pub(super) fn encode(encoder: &mut DescriptorEncoder<'_>, inventory: &Inventory) -> fmt::Result {
    let all: BTreeMap<_, _> =
        inventory.devices().map(|device| (&device.accelerator.id, &*device.accelerator)).collect();
    health(encoder, inventory)?;
    gauge(
        encoder,
        "device_utilization_ratio",
        "How much of the last moments an accelerator computed, from 0 to 1.",
        of(&all, |one| Some(f64::from(one.readings.utilization_percent?.min(100)) / 100.0)),
    )?;
    gauge(
        encoder,
        "device_memory_used_bytes",
        "Memory of an accelerator that is in use.",
        of(&all, |one| Some(one.readings.memory_used_mib?.saturating_mul(MIB))),
    )?;
    gauge(
        encoder,
        "device_memory_total_bytes",
        "Memory of an accelerator.",
        of(&all, |one| Some(one.memory_mib?.saturating_mul(MIB))),
    )?;
    gauge(
        encoder,
        "device_power_watts",
        "Power that an accelerator draws.",
        of(&all, |one| Some(f64::from(u32::try_from(one.readings.power_milliwatts?).ok()?) / 1000.0)),
    )?;
    gauge(
        encoder,
        "device_temperature_celsius",
        "Temperature of an accelerator, where it has a sensor.",
        of(&all, |one| one.readings.temperature_celsius),
    )?;
    gauge(
        encoder,
        "device_processes",
        "Processes that use an accelerator.",
        of(&all, |one| {
            one.readings.memory_used_mib?;
            u32::try_from(one.readings.processes.len()).ok()
        }),
    )?;
    let numbered = |accelerator: &Accelerator, name: &'static str, number: String, count: u64| {
        let [device, model] = labels(accelerator);
        ([device, model, (name, number)], count)
    };
    counter(
        encoder,
        "device_errors",
        "Errors that an accelerator's own counters show, by counter. They begin anew when it is reset.",
        all.values().flat_map(|one| {
            one.readings.errors.iter().map(|(name, count)| numbered(one, "error", (*name).to_owned(), *count))
        }),
    )?;
    counter(
        encoder,
        "device_xids",
        "XIDs of a GPU since the agent's start, by number.",
        all.values().flat_map(|one| {
            one.readings.xids.iter().map(|(xid, count)| numbered(one, "xid", xid.to_string(), *count))
        }),
    )
}

/// Of each unit that is handed out, whether it is well; replicas of one share it. What is only kept back for its holder is well.
fn health(encoder: &mut DescriptorEncoder<'_>, inventory: &Inventory) -> fmt::Result {
    let mut units = BTreeMap::new();
    for device in inventory.devices() {
        let healthy = units.entry((&device.resource, device.unit())).or_insert((device, true));
        healthy.1 &= inventory.sickness(device).is_none();
    }
    let labels = |device: &Device| {
        let [id, model] = labels(&device.accelerator);
        let partition = device.partition.as_ref().map(|partition| partition.id.to_string());
        [id, model, ("partition", partition.unwrap_or_default()), ("resource", device.resource.to_string())]
    };
    gauge(
        encoder,
        "device_healthy",
        "Whether an accelerator, or a partition of one, is well. Who is not is not handed out.",
        units.values().map(|(device, healthy)| (labels(device), u32::from(*healthy))),
    )?;
    gauge(
        encoder,
        "partition_memory_total_bytes",
        "Memory of a partition of an accelerator.",
        units.values().filter_map(|(device, _)| {
            Some((labels(device), device.partition.as_ref()?.memory_mib?.saturating_mul(MIB)))
        }),
    )?;
    gauge(
        encoder,
        "partition_utilization_ratio",
        "How much of the time since the last look a partition of an accelerator computed, from 0 to 1, where the hardware measures it \
         (Hopper and later).",
        units.values().filter_map(|(device, _)| {
            let all = &device.accelerator.readings.partition_utilization_percent;
            let percent = all.get(&device.partition.as_ref()?.id)?;
            Some((labels(device), f64::from(*percent.min(&100)) / 100.0))
        }),
    )
}
