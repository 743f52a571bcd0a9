//! `/metrics/resource`: what metrics-server reads. Names, labels and times are a kubelet's
//! (`resource_metrics.go` in pkg/kubelet/metrics/collectors). Pure.

use super::text::{Families, Kind, count, seconds, unix};
use crate::provider::usage::{GroupUsage, Usage};

type Name = (&'static str, Kind, &'static str);

const CONTAINER: [Name; 3] = [
    (
        "container_cpu_usage_seconds_total",
        Kind::Counter,
        "[STABLE] Cumulative cpu time consumed by the container in core-seconds",
    ),
    (
        "container_memory_working_set_bytes",
        Kind::Gauge,
        "[STABLE] Current working set of the container in bytes",
    ),
    (
        "container_swap_usage_bytes",
        Kind::Gauge,
        "[ALPHA] Current amount of the container swap usage in bytes. Reported only on non-windows systems",
    ),
];
const POD: [Name; 3] = [
    (
        "pod_cpu_usage_seconds_total",
        Kind::Counter,
        "[STABLE] Cumulative cpu time consumed by the pod in core-seconds",
    ),
    ("pod_memory_working_set_bytes", Kind::Gauge, "[STABLE] Current working set of the pod in bytes"),
    (
        "pod_swap_usage_bytes",
        Kind::Gauge,
        "[ALPHA] Current amount of the pod swap usage in bytes. Reported only on non-windows systems",
    ),
];
const NODE: [Name; 3] = [
    (
        "node_cpu_usage_seconds_total",
        Kind::Counter,
        "[STABLE] Cumulative cpu time consumed by the node in core-seconds",
    ),
    ("node_memory_working_set_bytes", Kind::Gauge, "[STABLE] Current working set of the node in bytes"),
    (
        "node_swap_usage_bytes",
        Kind::Gauge,
        "[ALPHA] Current swap usage of the node in bytes. Reported only on non-windows systems",
    ),
];
const SWAP_LIMIT: Name = (
    "container_swap_limit_bytes",
    Kind::Gauge,
    "[ALPHA] Current amount of the container swap limit in bytes. Reported only on non-windows systems",
);
const START: Name = (
    "container_start_time_seconds",
    Kind::Gauge,
    "[STABLE] Start time of the container since unix epoch in seconds",
);
const ERROR: Name = (
    "resource_scrape_error",
    Kind::Gauge,
    "[STABLE] 1 if there was an error while getting container metrics, 0 otherwise",
);

/// `None`: there was an error.
pub(super) fn encode(usage: Option<&Usage>) -> String {
    let mut families = Families::default();
    families.add(ERROR, &[], if usage.is_some() { 0.0 } else { 1.0 }, None);
    if let Some(usage) = usage {
        add(&mut families, NODE, &[], &usage.machine.total);
        for pod in &usage.pods {
            let reference = [("namespace", pod.pod.namespace.as_str()), ("pod", pod.pod.name.as_str())];
            add(&mut families, POD, &reference, &pod.total);
            for container in &pod.containers {
                // The order means nothing, but some (the virtual-kubelet project's tests) look for the pod in the second place.
                let labels = [reference[0], reference[1], ("container", container.name.as_str())];
                add(&mut families, CONTAINER, &labels, &container.total);
                families.add(START, &labels, unix(container.created_at), None);
                if container.total.memory.is_some() {
                    // What is used and what is still available, which a kubelet says is nothing.
                    let limit = count(container.total.swap.unwrap_or(0));
                    families.add(SWAP_LIMIT, &labels, limit, Some(container.total.time));
                }
            }
        }
    }
    families.text()
}

fn add(families: &mut Families, [cpu, memory, swap]: [Name; 3], labels: &[(&str, &str)], usage: &GroupUsage) {
    let time = Some(usage.time);
    if let Some(used) = usage.cpu {
        families.add(cpu, labels, seconds(used.total_ns), time);
    }
    if let Some(used) = usage.memory {
        families.add(memory, labels, count(used.working_set), time);
        families.add(swap, labels, count(usage.swap.unwrap_or(0)), time);
    }
}
