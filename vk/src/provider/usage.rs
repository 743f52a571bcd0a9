//! What pods, and the machine under them, use. Values only: counters as the kernel counts them, nothing derived from two looks.
//! What a provider can't tell is `None`.

use std::collections::BTreeMap;

use async_trait::async_trait;
use jiff::Timestamp;

use super::{ProviderError, observed::PodRef};

/// Tells what pods use.
#[async_trait]
pub trait Stats: Send + Sync {
    /// Of everything that runs now. Costs O(running containers).
    async fn usage(&self) -> Result<Usage, ProviderError>;

    /// Bytes that each running container of one pod has on the disk that volumes are on: its log, and what it wrote over its image if that is
    /// on the same disk. Costs O(its containers), where the provider can.
    async fn disk_usage(&self, pod: &PodRef) -> Result<BTreeMap<String, u64>, ProviderError> {
        let usage = self.usage().await?;
        let found = usage.pods.into_iter().find(|known| known.pod.uid == pod.uid);
        let containers = found.into_iter().flat_map(|known| known.containers);
        let bytes = |container: &ContainerUsage| {
            let logs = container.logs.map_or(0, |logs| logs.bytes);
            container.writable.as_ref().map_or(0, |(written, _)| written.bytes).saturating_add(logs)
        };
        Ok(containers.map(|container| (container.name.clone(), bytes(&container))).collect())
    }
}

/// All that is told at one time.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Usage {
    /// The machine.
    pub machine: MachineUsage,
    /// Pods that have a running sandbox, by UID.
    pub pods: Vec<PodUsage>,
    /// What could not be told, for the log and for `scrape_error`.
    pub problems: Vec<String>,
}

/// A machine.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct MachineUsage {
    /// Since when it is up.
    pub booted_at: Timestamp,
    /// CPU and memory of everything on it.
    pub total: GroupUsage,
    /// Bytes that could still be swapped out.
    pub free_swap: Option<u64>,
    /// Its interfaces, without those that belong to pods.
    pub network: Vec<Interface>,
    /// Everything that the node's pods use together, and our own cgroup, by a kubelet's names for them.
    pub system: Vec<(&'static str, GroupUsage)>,
    /// Where volumes and logs are.
    pub root_fs: Option<FileSystem>,
    /// Where images are, and what they take.
    pub image_fs: Option<(FileSystem, FileUsage)>,
    /// Most processes and threads that there can be.
    pub max_pids: Option<i64>,
    /// How many there are.
    pub pids: Option<i64>,
    /// How many processors it has.
    pub processors: u64,
}

/// A pod.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct PodUsage {
    /// Which.
    pub pod: PodRef,
    /// Its newest sandbox.
    pub sandbox_id: String,
    /// When that was made.
    pub created_at: Timestamp,
    /// All of the pod together.
    pub total: GroupUsage,
    /// The sandbox's own process.
    pub sandbox: Option<GroupUsage>,
    /// None on the machine's own network.
    pub network: Option<Vec<Interface>>,
    /// Its running containers.
    pub containers: Vec<ContainerUsage>,
}

/// A running container.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ContainerUsage {
    /// The provider's ID.
    pub id: String,
    /// Its name in the pod.
    pub name: String,
    /// The image that it was made from.
    pub image: String,
    /// When it was made.
    pub created_at: Timestamp,
    /// CPU, memory and so on.
    pub total: GroupUsage,
    /// What it wrote over its image, and where that is.
    pub writable: Option<(FileUsage, Option<FileSystem>)>,
    /// Its log files.
    pub logs: Option<FileUsage>,
}

/// A group of processes: in practice a cgroup.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct GroupUsage {
    /// Where in the cgroup tree; empty when unknown.
    pub path: String,
    /// When it was looked at.
    pub time: Timestamp,
    /// CPU.
    pub cpu: Option<Cpu>,
    /// Memory.
    pub memory: Option<Memory>,
    /// Bytes swapped out.
    pub swap: Option<u64>,
    /// Processes.
    pub processes: Option<u64>,
    /// Threads.
    pub threads: Option<u64>,
    /// How many threads there may be; `None`: as many as there is room for.
    pub max_threads: Option<u64>,
    /// Disk traffic by device.
    pub disks: Vec<Disk>,
    /// Time lost to waiting: CPU, memory, disk.
    pub pressure: Option<[Pressure; 3]>,
}

/// Processor time since the group was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Cpu {
    /// All of it, in nanoseconds of one processor.
    pub total_ns: u64,
    /// In programs.
    pub user_ns: Option<u64>,
    /// In the kernel.
    pub system_ns: Option<u64>,
    /// How its limit was felt.
    pub throttling: Option<Throttling>,
    /// Relative weight, in the units of cgroup v1.
    pub shares: Option<u64>,
    /// Limit: microseconds in each period, and the period. `None`: no limit.
    pub quota_us: Option<(u64, u64)>,
}

/// How a CPU limit was felt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Throttling {
    /// Periods in which it ran.
    pub periods: u64,
    /// Periods in which it reached its limit.
    pub throttled_periods: u64,
    /// Time it waited, in nanoseconds.
    pub throttled_ns: u64,
}

/// Bytes of memory, and counters about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Memory {
    /// All that is charged to it.
    pub usage: u64,
    /// Without what the kernel would drop first.
    pub working_set: u64,
    /// Of its processes, without files.
    pub rss: Option<u64>,
    /// Files.
    pub cache: Option<u64>,
    /// Files mapped into processes.
    pub mapped: Option<u64>,
    /// Files used lately.
    pub active_file: Option<u64>,
    /// Files not used lately.
    pub inactive_file: Option<u64>,
    /// The kernel's, on its behalf.
    pub kernel: Option<u64>,
    /// The most it ever was.
    pub max_usage: Option<u64>,
    /// Its limit; `None`: as much as there is.
    pub limit: Option<u64>,
    /// How often the limit was hit.
    pub limit_hits: Option<u64>,
    /// Page faults.
    pub faults: Option<u64>,
    /// Page faults that waited for a disk.
    pub major_faults: Option<u64>,
    /// Processes that the kernel killed because memory was short.
    pub oom_kills: Option<u64>,
}

/// Traffic of one disk.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Disk {
    /// Such as `/dev/sda`.
    pub device: String,
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub written_bytes: u64,
    /// Reads.
    pub reads: u64,
    /// Writes.
    pub writes: u64,
}

/// Time lost to waiting for one resource.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Pressure {
    /// Some waited.
    pub some: Stall,
    /// All waited.
    pub full: Stall,
}

/// Microseconds lost, and the share of time lost over the last 10, 60 and 300 seconds, in percent.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Stall {
    /// Microseconds.
    pub total_us: u64,
    /// Percent.
    pub average: [f64; 3],
}

/// Counters of a network interface.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Received.
    pub received: Traffic,
    /// Sent.
    pub sent: Traffic,
}

/// One direction of an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Traffic {
    /// Bytes.
    pub bytes: u64,
    /// Packets; `None`: not told.
    pub packets: Option<u64>,
    /// Packets that were broken.
    pub errors: u64,
    /// Packets that there was no room for; `None`: not told.
    pub dropped: Option<u64>,
}

/// A file system.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FileSystem {
    /// Its device, where known.
    pub device: String,
    /// Bytes.
    pub capacity: u64,
    /// Bytes that an ordinary user may still write.
    pub available: u64,
    /// Bytes used.
    pub used: u64,
    /// Files that it can have.
    pub inodes: u64,
    /// Files that there can still be.
    pub inodes_free: u64,
}

/// What some files take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FileUsage {
    /// Bytes on disk.
    pub bytes: u64,
    /// Files and folders.
    pub inodes: u64,
    /// When it was looked at.
    pub time: Timestamp,
}

impl FileSystem {
    /// The one that a path is on. Asks the kernel, and blocks for as long as a network file system does.
    pub fn at(path: &std::path::Path) -> Option<Self> {
        let found = nix::sys::statvfs::statvfs(path).ok()?;
        let bytes = |blocks: u64| blocks.saturating_mul(found.fragment_size());
        Some(Self {
            device: String::new(),
            capacity: bytes(found.blocks()),
            available: bytes(found.blocks_available()),
            used: bytes(found.blocks().saturating_sub(found.blocks_free())),
            inodes: found.files(),
            inodes_free: found.files_free(),
        })
    }
}

impl FileUsage {
    /// Of nothing.
    pub fn none(time: Timestamp) -> Self {
        Self { bytes: 0, inodes: 0, time }
    }
}
