//! `/stats/summary`: a kubelet's names for what is used (k8s.io/kubelet/pkg/apis/stats/v1alpha1). Pure.

use std::collections::HashMap;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde::Serialize;

use super::rate::Rates;
use crate::provider::usage::{
    ContainerUsage, FileSystem, FileUsage, GroupUsage, Interface, MachineUsage, PodUsage, Pressure, Stall,
    Usage,
};

/// The whole answer.
#[derive(Debug, Serialize)]
pub(super) struct Summary {
    node: Node,
    pods: Vec<Pod>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Node {
    #[serde(rename = "nodeName")]
    name: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    system_containers: Vec<Container>,
    start_time: Time,
    #[serde(flatten)]
    group: Group,
    #[serde(skip_serializing_if = "Option::is_none")]
    network: Option<Network>,
    #[serde(skip_serializing_if = "Option::is_none")]
    fs: Option<Fs>,
    #[serde(skip_serializing_if = "Option::is_none")]
    runtime: Option<Runtime>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rlimit: Option<Rlimit>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Runtime {
    image_fs: Fs,
    container_fs: Fs,
}

#[derive(Debug, Serialize)]
struct Rlimit {
    time: Time,
    #[serde(skip_serializing_if = "Option::is_none")]
    maxpid: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    curproc: Option<i64>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Pod {
    #[serde(rename = "podRef")]
    reference: Reference,
    start_time: Time,
    containers: Vec<Container>,
    #[serde(flatten)]
    group: Group,
    #[serde(skip_serializing_if = "Option::is_none")]
    network: Option<Network>,
    #[serde(skip_serializing_if = "Vec::is_empty", rename = "volume")]
    volumes: Vec<Volume>,
    #[serde(skip_serializing_if = "Option::is_none", rename = "ephemeral-storage")]
    ephemeral_storage: Option<Fs>,
    #[serde(skip_serializing_if = "Option::is_none", rename = "process_stats")]
    processes: Option<Processes>,
}

#[derive(Debug, Serialize)]
struct Reference {
    name: String,
    namespace: String,
    uid: String,
}

#[derive(Debug, Serialize)]
struct Processes {
    process_count: u64,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Container {
    name: String,
    start_time: Time,
    #[serde(flatten)]
    group: Group,
    #[serde(skip_serializing_if = "Option::is_none")]
    rootfs: Option<Fs>,
    #[serde(skip_serializing_if = "Option::is_none")]
    logs: Option<Fs>,
}

/// What nodes, pods and containers have in common.
#[derive(Debug, Default, Serialize)]
struct Group {
    #[serde(skip_serializing_if = "Option::is_none")]
    cpu: Option<Cpu>,
    #[serde(skip_serializing_if = "Option::is_none")]
    memory: Option<Memory>,
    #[serde(skip_serializing_if = "Option::is_none")]
    io: Option<Io>,
    #[serde(skip_serializing_if = "Option::is_none")]
    swap: Option<Swap>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Cpu {
    time: Time,
    #[serde(skip_serializing_if = "Option::is_none")]
    usage_nano_cores: Option<u64>,
    usage_core_nano_seconds: u64,
    psi: Psi,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Memory {
    time: Time,
    #[serde(skip_serializing_if = "Option::is_none")]
    available_bytes: Option<u64>,
    usage_bytes: u64,
    working_set_bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    rss_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    page_faults: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    major_page_faults: Option<u64>,
    psi: Psi,
}

#[derive(Debug, Serialize)]
struct Io {
    time: Time,
    psi: Psi,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Swap {
    time: Time,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[serde(rename = "swapAvailableBytes")]
    available: Option<u64>,
    #[serde(rename = "swapUsageBytes")]
    usage: u64,
}

/// Zeros where the kernel doesn't measure it, as a kubelet's.
#[derive(Debug, Serialize)]
struct Psi {
    full: PsiData,
    some: PsiData,
}

#[derive(Debug, Serialize)]
struct PsiData {
    total: u64,
    avg10: f64,
    avg60: f64,
    avg300: f64,
}

#[derive(Debug, Serialize)]
struct Network {
    time: Time,
    #[serde(flatten)]
    default: InterfaceStats,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    interfaces: Vec<InterfaceStats>,
}

#[derive(Debug, Clone, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct InterfaceStats {
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    rx_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rx_errors: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tx_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tx_errors: Option<u64>,
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
struct Fs {
    time: Time,
    #[serde(skip_serializing_if = "Option::is_none")]
    available_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    capacity_bytes: Option<u64>,
    used_bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    inodes_free: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    inodes: Option<u64>,
    inodes_used: u64,
}

#[derive(Debug, Serialize)]
struct Volume {
    #[serde(flatten)]
    fs: Fs,
    name: String,
}

/// What a pod's volume takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct VolumeUsage {
    /// Its name in the pod.
    pub(super) name: String,
    pub(super) used: FileUsage,
    pub(super) file_system: Option<FileSystem>,
    /// Whether it counts as the pod's ephemeral storage: not when it is memory.
    pub(super) on_disk: bool,
}

/// Volumes by the pod's UID.
pub(super) type Volumes = HashMap<String, Vec<VolumeUsage>>;

impl Summary {
    /// With `only_cpu_and_memory`, no more than that.
    pub(super) fn new(
        node: &str,
        usage: &Usage,
        rates: &Rates,
        volumes: &Volumes,
        only_cpu_and_memory: bool,
    ) -> Self {
        let machine = &usage.machine;
        let mut summary = Self {
            node: self::node(node, machine, rates),
            pods: usage
                .pods
                .iter()
                .map(|pod| {
                    let volumes = volumes.get(&pod.pod.uid).map_or(&[][..], Vec::as_slice);
                    self::pod(pod, machine.root_fs.as_ref(), rates, volumes)
                })
                .collect(),
        };
        if only_cpu_and_memory {
            summary.strip();
        }
        summary
    }

    fn strip(&mut self) {
        let Node { group, network, fs, runtime, rlimit, system_containers, .. } = &mut self.node;
        (*network, *fs, *runtime, *rlimit, group.io) = (None, None, None, None, None);
        for container in system_containers {
            container.group.io = None;
        }
        for pod in &mut self.pods {
            (pod.network, pod.ephemeral_storage, pod.processes, pod.group.io) = (None, None, None, None);
            pod.volumes.clear();
            for container in &mut pod.containers {
                (container.rootfs, container.logs, container.group.io) = (None, None, None);
            }
        }
    }
}

fn node(name: &str, machine: &MachineUsage, rates: &Rates) -> Node {
    let time = machine.total.time;
    let containers = machine.system.iter().map(|(name, usage)| Container {
        name: (*name).to_owned(),
        start_time: Time(machine.booted_at),
        group: group(usage, rates),
        rootfs: None,
        logs: None,
    });
    let mut group = group(&machine.total, rates);
    if let Some(swap) = &mut group.swap {
        swap.available = machine.free_swap;
    }
    let whole = |file_system: &FileSystem| {
        let used = FileUsage {
            bytes: file_system.used,
            inodes: file_system.inodes.saturating_sub(file_system.inodes_free),
            time,
        };
        fs(used, Some(file_system))
    };
    Node {
        name: name.to_owned(),
        system_containers: containers.collect(),
        start_time: Time(machine.booted_at),
        group,
        network: Some(network(&machine.network, time)),
        fs: machine.root_fs.as_ref().map(whole),
        runtime: machine.image_fs.as_ref().map(|(file_system, used)| {
            let fs = fs(FileUsage { time, ..*used }, Some(file_system));
            Runtime { image_fs: fs.clone(), container_fs: fs }
        }),
        rlimit: machine.pids.map(|pids| Rlimit {
            time: Time(time),
            maxpid: machine.max_pids,
            curproc: Some(pids),
        }),
    }
}

fn pod(pod: &PodUsage, root: Option<&FileSystem>, rates: &Rates, volumes: &[VolumeUsage]) -> Pod {
    let time = pod.total.time;
    let mut ephemeral = FileUsage::none(time);
    let on_disk = volumes.iter().filter(|volume| volume.on_disk).map(|volume| volume.used);
    let writable = pod.containers.iter().filter_map(|container| container.writable.as_ref());
    let logs = pod.containers.iter().filter_map(|container| container.logs);
    for used in on_disk.chain(writable.map(|(used, _)| *used)).chain(logs) {
        ephemeral.bytes = ephemeral.bytes.saturating_add(used.bytes);
        ephemeral.inodes = ephemeral.inodes.saturating_add(used.inodes);
    }
    let processes: Vec<_> = pod.containers.iter().filter_map(|container| container.total.processes).collect();
    let processes =
        if processes.is_empty() { pod.total.processes } else { Some(processes.into_iter().sum()) };
    Pod {
        reference: Reference {
            name: pod.pod.name.clone(),
            namespace: pod.pod.namespace.clone(),
            uid: pod.pod.uid.clone(),
        },
        start_time: Time(pod.created_at),
        containers: pod.containers.iter().map(|used| container(used, root, rates)).collect(),
        group: group(&pod.total, rates),
        network: pod.network.as_deref().map(|interfaces| network(interfaces, time)),
        volumes: volumes
            .iter()
            .map(|volume| Volume {
                fs: fs(volume.used, volume.file_system.as_ref()),
                name: volume.name.clone(),
            })
            .collect(),
        ephemeral_storage: Some(fs(ephemeral, root)),
        processes: processes.map(|process_count| Processes { process_count }),
    }
}

fn container(used: &ContainerUsage, root: Option<&FileSystem>, rates: &Rates) -> Container {
    let mut group = group(&used.total, rates);
    if let Some(swap) = &mut group.swap {
        // A kubelet says so of every container: runtimes don't tell.
        swap.available = Some(0);
    }
    Container {
        name: used.name.clone(),
        start_time: Time(used.created_at),
        group,
        rootfs: used.writable.as_ref().map(|(used, file_system)| fs(*used, file_system.as_ref())),
        logs: used.logs.map(|used| fs(used, root)),
    }
}

fn group(usage: &GroupUsage, rates: &Rates) -> Group {
    let time = || Time(usage.time);
    let [cpu, memory, io] = usage.pressure.unwrap_or_default().map(psi);
    Group {
        cpu: usage.cpu.map(|used| Cpu {
            time: time(),
            usage_nano_cores: rates.nano_cores(usage),
            usage_core_nano_seconds: used.total_ns,
            psi: cpu,
        }),
        memory: usage.memory.map(|used| Memory {
            time: time(),
            available_bytes: used.limit.map(|limit| limit.saturating_sub(used.working_set)),
            usage_bytes: used.usage,
            working_set_bytes: used.working_set,
            rss_bytes: used.rss,
            page_faults: used.faults,
            major_page_faults: used.major_faults,
            psi: memory,
        }),
        io: usage.cpu.map(|_| Io { time: time(), psi: io }),
        swap: usage.memory.map(|_| Swap { time: time(), available: None, usage: usage.swap.unwrap_or(0) }),
    }
}

fn psi(pressure: Pressure) -> Psi {
    let data = |Stall { total_us, average: [avg10, avg60, avg300] }| PsiData {
        total: total_us,
        avg10,
        avg60,
        avg300,
    };
    Psi { full: data(pressure.full), some: data(pressure.some) }
}

fn network(interfaces: &[Interface], time: Timestamp) -> Network {
    let interfaces: Vec<_> = interfaces
        .iter()
        .map(|interface| InterfaceStats {
            name: interface.name.clone(),
            rx_bytes: Some(interface.received.bytes),
            rx_errors: Some(interface.received.errors),
            tx_bytes: Some(interface.sent.bytes),
            tx_errors: Some(interface.sent.errors),
        })
        .collect();
    let default = interfaces.iter().find(|interface| interface.name == "eth0").cloned().unwrap_or_default();
    Network { time: Time(time), default, interfaces }
}

fn fs(used: FileUsage, file_system: Option<&FileSystem>) -> Fs {
    Fs {
        time: Time(used.time),
        available_bytes: file_system.map(|fs| fs.available),
        capacity_bytes: file_system.map(|fs| fs.capacity),
        used_bytes: used.bytes,
        inodes_free: file_system.map(|fs| fs.inodes_free),
        inodes: file_system.map(|fs| fs.inodes),
        inodes_used: used.inodes,
    }
}
