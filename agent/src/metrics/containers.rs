//! What pods do with what they hold, pod by pod. The label `container` is empty where several containers of one pod hold the same unit:
//! which of them a process is in isn't known.

use std::fmt;

use prometheus_client::{encoding::DescriptorEncoder, metrics::MetricType};

use super::{counter, devices::model, gauge};
use crate::usage::{Usage, Use};

type Labels = [(&'static str, String); 7];

fn labels(one: &Use, container: &str, resource: String) -> Labels {
    // A pod whose name isn't known yet is called by its UID.
    let pod = one.key.pod.name.clone().unwrap_or_else(|| one.key.pod.uid.clone());
    [
        ("namespace", one.key.pod.namespace.clone().unwrap_or_default()),
        ("pod", pod),
        ("container", container.to_owned()),
        ("resource", resource),
        ("device", one.key.accelerator.to_string()),
        ("partition", one.key.partition.as_ref().map(ToString::to_string).unwrap_or_default()),
        ("model", model(one.product.as_ref())),
    ]
}

/// Labels of what is one number for all containers.
fn shared(one: &Use) -> Labels {
    let resource = one.containers.keys().next().map(|(_, resource)| resource.to_string());
    labels(one, one.container().unwrap_or_default(), resource.unwrap_or_default())
}

fn of<V>(usage: &Usage, value: impl Fn(&Use) -> Option<V>) -> impl Iterator<Item = (Labels, V)> {
    usage.uses.iter().filter_map(move |one| Some((shared(one), value(one)?)))
}

pub(super) fn encode(encoder: &mut DescriptorEncoder<'_>, usage: &Usage) -> fmt::Result {
    gauge(
        encoder,
        "container_device_held",
        "Devices that a container holds of an accelerator, or of a partition of one.",
        usage.uses.iter().flat_map(|one| {
            let each = one.containers.iter();
            each.map(|((container, resource), count)| (labels(one, container, resource.to_string()), *count))
        }),
    )?;
    gauge(
        encoder,
        "container_device_memory_used_bytes",
        "Accelerator memory that a container's processes hold.",
        of(usage, |one| one.memory_used),
    )?;
    gauge(
        encoder,
        "container_device_memory_budget_bytes",
        "Accelerator memory that a container may use, where that is limited.",
        of(usage, |one| one.memory_limit),
    )?;
    gauge(
        encoder,
        "container_device_utilization_ratio",
        "How much of the last moments a container computed, from 0 to 1: what its accelerator or partition tells if nobody else holds it, \
         else the sum over its processes. Absent where the driver tells neither (partitions before Hopper, MPS).",
        of(usage, |one| one.utilization),
    )?;
    gauge(
        encoder,
        "container_device_processes",
        "A container's processes that use the accelerator, where they can be seen.",
        of(usage, |one| one.memory_used.and_then(|_| u32::try_from(one.processes.len()).ok())),
    )?;
    counter(
        encoder,
        "container_device_held_idle_seconds",
        "Time that a container has held without using, since it was first seen.",
        of(usage, |one| one.is_idle.map(|_| one.idle_for.as_secs_f64())),
    )?;
    gauge(
        encoder,
        "container_device_unused_seconds",
        "Time that a container has now held without using, at least: 0 while it uses.",
        of(usage, |one| one.is_idle.map(|_| one.unused_for.as_secs_f64())),
    )?;
    gauge(
        encoder,
        "device_stranger_processes",
        "Processes that use an accelerator though their pod does not hold it, or are in no pod.",
        usage.strangers.iter().map(|(device, count)| {
            ([("device", device.to_string())], u32::try_from(*count).unwrap_or(u32::MAX))
        }),
    )?;
    let mut left_out = encoder.encode_descriptor(
        "usage_left_out",
        "Holdings that are not shown because there are too many.",
        None,
        MetricType::Gauge,
    )?;
    left_out.encode_gauge(&u32::try_from(usage.left_out).unwrap_or(u32::MAX))
}
