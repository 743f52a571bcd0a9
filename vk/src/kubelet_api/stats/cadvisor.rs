//! `/metrics/cadvisor`: the `container_*` and `machine_*` metrics that dashboards are made of, with a kubelet's names and labels
//! (cadvisor's metrics/prometheus.go, and `containerPrometheusLabelsFunc` in pkg/kubelet/server/server.go). One set of samples for the
//! machine (`id="/"`), for all pods, for each pod, its sandbox and its containers. Pure.

use jiff::Timestamp;

use super::text::{Families, Kind, count, seconds, unix};
use crate::provider::usage::{Cpu, FileSystem, FileUsage, GroupUsage, Interface, Memory, Traffic, Usage};

use Kind::{Counter, Gauge};

/// Whose samples they are: the labels that all have.
#[derive(Debug, Clone, Copy, Default)]
struct Labels<'a> {
    container: &'a str,
    id: &'a str,
    image: &'a str,
    name: &'a str,
    namespace: &'a str,
    pod: &'a str,
}

/// Adds samples of one thing.
struct Samples<'a> {
    families: &'a mut Families,
    labels: Labels<'a>,
    time: Timestamp,
}

type Name = (&'static str, Kind, &'static str);

impl Samples<'_> {
    fn add_with(&mut self, name: Name, further: &[(&str, &str)], value: f64, time: Option<Timestamp>) {
        let Labels { container, id, image, name: alias, namespace, pod } = self.labels;
        let mut labels = vec![("container", container)];
        // Alphabetical, as Prometheus' own library writes them.
        labels.extend_from_slice(&[("id", id), ("image", image), ("name", alias)]);
        labels.extend_from_slice(&[("namespace", namespace), ("pod", pod)]);
        labels.extend_from_slice(further);
        labels.sort_unstable();
        self.families.add(name, &labels, value, time);
    }

    fn add(&mut self, name: Name, value: f64) {
        self.add_with(name, &[], value, Some(self.time));
    }

    fn add_known(&mut self, name: Name, value: Option<u64>) {
        if let Some(value) = value {
            self.add(name, count(value));
        }
    }

    /// What it was given: no time of measuring.
    fn add_spec(&mut self, name: Name, value: f64) {
        self.add_with(name, &[], value, None);
    }
}

/// `None`: there was an error.
pub(super) fn encode(usage: Option<&Usage>) -> String {
    let mut families = Families::default();
    let error = (
        "container_scrape_error",
        Gauge,
        "1 if there was an error while getting container metrics, 0 otherwise",
    );
    families.add(error, &[], if usage.is_some() { 0.0 } else { 1.0 }, None);
    let Some(usage) = usage else { return families.text() };
    let machine = &usage.machine;
    families.add(
        ("machine_cpu_cores", Gauge, "Number of logical CPU cores."),
        &[],
        count(machine.processors),
        None,
    );
    if let Some(limit) = machine.total.memory.and_then(|memory| memory.limit) {
        let name = ("machine_memory_bytes", Gauge, "Amount of memory installed on the machine.");
        families.add(name, &[], count(limit), None);
    }

    let mut samples = |labels, group: &GroupUsage, created_at| {
        let mut samples = Samples { families: &mut families, labels, time: group.time };
        everything(&mut samples, group, created_at);
    };
    let root = Labels { id: "/", ..Labels::default() };
    samples(root, &machine.total, machine.booted_at);
    for (_, group) in &machine.system {
        samples(Labels { id: &group.path, ..Labels::default() }, group, machine.booted_at);
    }
    for pod in &usage.pods {
        let labels = Labels {
            id: &pod.total.path,
            namespace: &pod.pod.namespace,
            pod: &pod.pod.name,
            ..Labels::default()
        };
        samples(labels, &pod.total, pod.created_at);
        if let Some(sandbox) = &pod.sandbox {
            samples(Labels { id: &sandbox.path, name: &pod.sandbox_id, ..labels }, sandbox, pod.created_at);
        }
        for container in &pod.containers {
            samples(of_container(labels, container), &container.total, container.created_at);
        }
    }
    network(
        &mut Samples { families: &mut families, labels: root, time: machine.total.time },
        &machine.network,
    );
    for pod in &usage.pods {
        // A pod's traffic is its sandbox's: containers share the network.
        let group = pod.sandbox.as_ref().unwrap_or(&pod.total);
        let labels = Labels {
            id: &group.path,
            name: &pod.sandbox_id,
            namespace: &pod.pod.namespace,
            pod: &pod.pod.name,
            ..Labels::default()
        };
        let mut samples = Samples { families: &mut families, labels, time: group.time };
        network(&mut samples, pod.network.as_deref().unwrap_or_default());
        for container in &pod.containers {
            samples.labels = of_container(Labels { id: &pod.total.path, ..labels }, container);
            if let Some((used, file_system)) = &container.writable {
                disk_space(&mut samples, *used, file_system.as_ref());
            }
        }
    }
    families.text()
}

fn of_container<'a>(pod: Labels<'a>, container: &'a crate::provider::usage::ContainerUsage) -> Labels<'a> {
    Labels {
        container: &container.name,
        id: &container.total.path,
        image: &container.image,
        name: &container.id,
        ..pod
    }
}

fn everything(samples: &mut Samples<'_>, group: &GroupUsage, created_at: Timestamp) {
    let start =
        ("container_start_time_seconds", Gauge, "Start time of the container since unix epoch in seconds.");
    samples.add_spec(start, unix(created_at).floor());
    samples.add(
        ("container_last_seen", Gauge, "Last time a container was seen by the exporter"),
        unix(group.time).floor(),
    );
    if let Some(used) = group.cpu {
        cpu(samples, used);
    }
    if let Some(used) = group.memory {
        memory(samples, used, group.swap);
    }
    samples.add_known(
        ("container_processes", Gauge, "Number of processes running inside the container."),
        group.processes,
    );
    samples.add_known(
        ("container_threads", Gauge, "Number of threads running inside the container"),
        group.threads,
    );
    let most = (
        "container_threads_max",
        Gauge,
        "Maximum number of threads allowed inside the container, infinity if value is zero",
    );
    if group.threads.is_some() {
        samples.add(most, count(group.max_threads.unwrap_or(0)));
    }
    disks(samples, group);
    pressure(samples, group);
}

fn cpu(samples: &mut Samples<'_>, used: Cpu) {
    let total = ("container_cpu_usage_seconds_total", Counter, "Cumulative cpu time consumed in seconds.");
    let time = Some(samples.time);
    samples.add_with(total, &[("cpu", "total")], seconds(used.total_ns), time);
    let in_programs =
        ("container_cpu_user_seconds_total", Counter, "Cumulative user cpu time consumed in seconds.");
    let in_kernel =
        ("container_cpu_system_seconds_total", Counter, "Cumulative system cpu time consumed in seconds.");
    for (name, value) in [(in_programs, used.user_ns), (in_kernel, used.system_ns)] {
        if let Some(value) = value {
            samples.add(name, seconds(value));
        }
    }
    let (quota, period) = used.quota_us.unzip();
    samples.add_spec(
        ("container_spec_cpu_period", Gauge, "CPU period of the container."),
        count(period.unwrap_or(100_000)),
    );
    if let Some(shares) = used.shares {
        samples.add_spec(("container_spec_cpu_shares", Gauge, "CPU share of the container."), count(shares));
    }
    // As a kubelet: who has no limit is never throttled, and says nothing of it.
    let Some(quota) = quota else { return };
    samples.add_spec(("container_spec_cpu_quota", Gauge, "CPU quota of the container."), count(quota));
    let Some(throttling) = used.throttling else { return };
    let elapsed =
        ("container_cpu_cfs_periods_total", Counter, "Number of elapsed enforcement period intervals.");
    samples.add(elapsed, count(throttling.periods));
    let throttled =
        ("container_cpu_cfs_throttled_periods_total", Counter, "Number of throttled period intervals.");
    samples.add(throttled, count(throttling.throttled_periods));
    let time = (
        "container_cpu_cfs_throttled_seconds_total",
        Counter,
        "Total time duration the container has been throttled.",
    );
    samples.add(time, seconds(throttling.throttled_ns));
}

fn memory(samples: &mut Samples<'_>, used: Memory, swap: Option<u64>) {
    for (name, value) in [
        (("container_memory_cache", Gauge, "Number of bytes of page cache memory."), used.cache),
        (("container_memory_rss", Gauge, "Size of RSS in bytes."), used.rss),
        (("container_memory_kernel_usage", Gauge, "Size of kernel memory allocated in bytes."), used.kernel),
        (("container_memory_mapped_file", Gauge, "Size of memory mapped files in bytes."), used.mapped),
        (("container_memory_swap", Gauge, "Container swap usage in bytes."), swap),
        (("container_memory_failcnt", Counter, "Number of memory usage hits limits"), used.limit_hits),
        (
            (
                "container_memory_usage_bytes",
                Gauge,
                "Current memory usage in bytes, including all memory regardless of when it was accessed",
            ),
            Some(used.usage),
        ),
        (
            ("container_memory_max_usage_bytes", Gauge, "Maximum memory usage recorded in bytes"),
            used.max_usage,
        ),
        (
            ("container_memory_working_set_bytes", Gauge, "Current working set in bytes."),
            Some(used.working_set),
        ),
        (
            ("container_memory_total_active_file_bytes", Gauge, "Current total active file in bytes."),
            used.active_file,
        ),
        (
            ("container_memory_total_inactive_file_bytes", Gauge, "Current total inactive file in bytes."),
            used.inactive_file,
        ),
        (
            (
                "container_oom_events_total",
                Counter,
                "Count of out of memory events observed for the container",
            ),
            used.oom_kills,
        ),
    ] {
        samples.add_known(name, value);
    }
    let faults =
        ("container_memory_failures_total", Counter, "Cumulative count of memory allocation failures.");
    let time = Some(samples.time);
    for (kind, value) in [("pgfault", used.faults), ("pgmajfault", used.major_faults)] {
        let Some(value) = value else { continue };
        for scope in ["container", "hierarchy"] {
            samples.add_with(faults, &[("failure_type", kind), ("scope", scope)], count(value), time);
        }
    }
    let limit = ("container_spec_memory_limit_bytes", Gauge, "Memory limit for the container.");
    samples.add_spec(limit, count(used.limit.unwrap_or(0)));
    let swap = ("container_spec_memory_swap_limit_bytes", Gauge, "Memory swap limit for the container.");
    samples.add_spec(swap, 0.0);
    let reservation = (
        "container_spec_memory_reservation_limit_bytes",
        Gauge,
        "Memory reservation limit for the container.",
    );
    samples.add_spec(reservation, 0.0);
}

fn disks(samples: &mut Samples<'_>, group: &GroupUsage) {
    let time = Some(group.time);
    for disk in &group.disks {
        for (name, value) in [
            (("container_fs_reads_bytes_total", Counter, "Cumulative count of bytes read"), disk.read_bytes),
            (
                ("container_fs_writes_bytes_total", Counter, "Cumulative count of bytes written"),
                disk.written_bytes,
            ),
            (("container_fs_reads_total", Counter, "Cumulative count of reads completed"), disk.reads),
            (("container_fs_writes_total", Counter, "Cumulative count of writes completed"), disk.writes),
        ] {
            samples.add_with(name, &[("device", &disk.device)], count(value), time);
        }
    }
}

fn disk_space(samples: &mut Samples<'_>, used: FileUsage, file_system: Option<&FileSystem>) {
    let device = [("device", file_system.map_or("", |fs| fs.device.as_str()))];
    let time = Some(samples.time);
    let usage = (
        "container_fs_usage_bytes",
        Gauge,
        "Number of bytes that are consumed by the container on this filesystem.",
    );
    samples.add_with(usage, &device, count(used.bytes), time);
    let Some(fs) = file_system else { return };
    let limit = (
        "container_fs_limit_bytes",
        Gauge,
        "Number of bytes that can be consumed by the container on this filesystem.",
    );
    samples.add_with(limit, &device, count(fs.capacity), time);
    let total = ("container_fs_inodes_total", Gauge, "Number of Inodes");
    samples.add_with(total, &device, count(fs.inodes), time);
    let free = ("container_fs_inodes_free", Gauge, "Number of available Inodes");
    samples.add_with(free, &device, count(fs.inodes_free), time);
}

fn pressure(samples: &mut Samples<'_>, group: &GroupUsage) {
    const NAMES: [[Name; 2]; 3] = [
        [
            (
                "container_pressure_cpu_stalled_seconds_total",
                Counter,
                "Total time duration no tasks in the container could make progress due to CPU congestion.",
            ),
            (
                "container_pressure_cpu_waiting_seconds_total",
                Counter,
                "Total time duration tasks in the container have waited due to CPU congestion.",
            ),
        ],
        [
            (
                "container_pressure_memory_stalled_seconds_total",
                Counter,
                "Total time duration no tasks in the container could make progress due to memory congestion.",
            ),
            (
                "container_pressure_memory_waiting_seconds_total",
                Counter,
                "Total time duration tasks in the container have waited due to memory congestion.",
            ),
        ],
        [
            (
                "container_pressure_io_stalled_seconds_total",
                Counter,
                "Total time duration no tasks in the container could make progress due to IO congestion.",
            ),
            (
                "container_pressure_io_waiting_seconds_total",
                Counter,
                "Total time duration tasks in the container have waited due to IO congestion.",
            ),
        ],
    ];
    // Zeros where the kernel doesn't measure it, as a kubelet's.
    for ([stalled, waiting], pressure) in NAMES.into_iter().zip(group.pressure.unwrap_or_default()) {
        samples.add(stalled, seconds(pressure.full.total_us.saturating_mul(1000)));
        samples.add(waiting, seconds(pressure.some.total_us.saturating_mul(1000)));
    }
}

fn network(samples: &mut Samples<'_>, interfaces: &[Interface]) {
    const RECEIVED: [Name; 4] = [
        ("container_network_receive_bytes_total", Counter, "Cumulative count of bytes received"),
        ("container_network_receive_packets_total", Counter, "Cumulative count of packets received"),
        (
            "container_network_receive_packets_dropped_total",
            Counter,
            "Cumulative count of packets dropped while receiving",
        ),
        (
            "container_network_receive_errors_total",
            Counter,
            "Cumulative count of errors encountered while receiving",
        ),
    ];
    const SENT: [Name; 4] = [
        ("container_network_transmit_bytes_total", Counter, "Cumulative count of bytes transmitted"),
        ("container_network_transmit_packets_total", Counter, "Cumulative count of packets transmitted"),
        (
            "container_network_transmit_packets_dropped_total",
            Counter,
            "Cumulative count of packets dropped while transmitting",
        ),
        (
            "container_network_transmit_errors_total",
            Counter,
            "Cumulative count of errors encountered while transmitting",
        ),
    ];
    let time = Some(samples.time);
    for interface in interfaces {
        for (names, Traffic { bytes, packets, errors, dropped }) in
            [(RECEIVED, interface.received), (SENT, interface.sent)]
        {
            let values = [Some(bytes), packets, dropped, Some(errors)];
            for (name, value) in names.into_iter().zip(values) {
                let Some(value) = value else { continue };
                samples.add_with(name, &[("interface", &interface.name)], count(value), time);
            }
        }
    }
}
