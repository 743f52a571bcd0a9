//! What a cgroup has used, from either version's files. What isn't there, or isn't a number, is not told.

use std::{
    fs,
    io::Read as _,
    path::{Path, PathBuf},
};

use jiff::Timestamp;

use crate::provider::usage::{Cpu, Disk, GroupUsage, Memory, Pressure, Stall, Throttling};

/// The longest of these files, `cgroup.procs` of a large pod, has a few bytes a process.
const MAX_BYTES: u64 = 1 << 20;
/// Ticks a second in `cpuacct.stat`: 100 on all that Kubernetes runs on.
const USER_HZ: u64 = 100;
/// cgroup v1 writes a limit that is none as a number near 2^63.
const NO_LIMIT: u64 = 1 << 62;

/// Reads below the mounted hierarchies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::provider::cri) struct Reader {
    layout: Layout,
    /// Where block devices are looked up: `/sys/dev/block`.
    devices: PathBuf,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Layout {
    V1 { cpu: PathBuf, cpuacct: PathBuf, memory: PathBuf, pids: PathBuf, blkio: PathBuf },
    V2(PathBuf),
}

impl Reader {
    /// From the text of `/proc/self/mountinfo`. Version 1 wins where both are mounted: its controllers are not in the other.
    pub(in crate::provider::cri) fn find(mountinfo: &str) -> Option<Self> {
        let mut unified = None;
        let mut v1: Vec<(PathBuf, Vec<String>)> = Vec::new();
        for line in mountinfo.lines() {
            let Some((left, right)) = line.split_once(" - ") else { continue };
            let Some(path) = left.split(' ').nth(4).map(PathBuf::from) else { continue };
            let mut right = right.split(' ');
            match right.next() {
                Some("cgroup2") => unified = unified.or(Some(path)),
                Some("cgroup") => {
                    let options = right.nth(1).unwrap_or_default().split(',').map(str::to_owned).collect();
                    v1.push((path, options));
                }
                _ => {}
            }
        }
        let of = |controller: &str| {
            let has = |options: &Vec<String>| options.iter().any(|option| option == controller);
            v1.iter().find(|(_, options)| has(options)).map(|(path, _)| path.clone())
        };
        let layout = match of("memory") {
            Some(memory) => {
                let or_none = |controller| of(controller).unwrap_or_else(|| PathBuf::from("/nonexistent"));
                Layout::V1 {
                    cpu: or_none("cpu"),
                    cpuacct: or_none("cpuacct"),
                    memory,
                    pids: or_none("pids"),
                    blkio: or_none("blkio"),
                }
            }
            None => Layout::V2(unified?),
        };
        Some(Self { layout, devices: PathBuf::from("/sys/dev/block") })
    }

    fn main(&self) -> &Path {
        match &self.layout {
            Layout::V1 { memory, .. } => memory,
            Layout::V2(root) => root,
        }
    }

    /// Names of the cgroups in a cgroup.
    pub(in crate::provider::cri) fn children(&self, path: &str) -> Vec<String> {
        let entries = fs::read_dir(at(self.main(), path)).into_iter().flatten().flatten();
        let folders = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        folders.filter_map(|entry| entry.file_name().into_string().ok()).collect()
    }

    /// Whether there is such a cgroup.
    pub(in crate::provider::cri) fn exists(&self, path: &str) -> bool {
        at(self.main(), path).is_dir()
    }

    /// A process of the cgroup, if we see its number.
    pub(in crate::provider::cri) fn process(&self, path: &str) -> Option<u32> {
        let text = text(&at(self.main(), path), "cgroup.procs")?;
        text.lines().filter_map(|line| line.parse().ok()).find(|&id| id > 0)
    }

    /// All about one cgroup; `None`: there is none.
    pub(in crate::provider::cri) fn read(&self, path: &str, time: Timestamp) -> Option<GroupUsage> {
        if !self.exists(path) {
            return None;
        }
        let mut usage =
            GroupUsage { path: format!("/{}", path.trim_matches('/')), time, ..GroupUsage::default() };
        let main = at(self.main(), path);
        usage.processes = text(&main, "cgroup.procs").map(|text| text.lines().count() as u64);
        match &self.layout {
            Layout::V1 { cpu, cpuacct, memory, pids, blkio } => {
                usage.cpu = cpu_v1(&at(cpu, path), &at(cpuacct, path));
                usage.memory = memory_v1(&at(memory, path));
                usage.swap = stat(&main, "memory.stat", "total_swap");
                (usage.threads, usage.max_threads) = threads(&at(pids, path));
                usage.disks = self.disks_v1(&at(blkio, path));
            }
            Layout::V2(_) => {
                usage.cpu = cpu_v2(&main);
                usage.memory = memory_v2(&main);
                usage.swap = number(&main, "memory.swap.current");
                (usage.threads, usage.max_threads) = threads(&main);
                usage.disks = self.disks_v2(&main);
                usage.pressure = pressure(&main);
            }
        }
        Some(usage)
    }

    fn disks_v1(&self, folder: &Path) -> Vec<Disk> {
        let mut disks: Vec<(String, Disk)> = Vec::new();
        for (file, is_bytes) in [
            ("blkio.throttle.io_service_bytes_recursive", true),
            ("blkio.throttle.io_serviced_recursive", false),
        ] {
            for line in text(folder, file).unwrap_or_default().lines() {
                let words: Vec<_> = line.split(' ').collect();
                let &[numbers, what @ ("Read" | "Write"), value] = words.as_slice() else { continue };
                let Ok(value) = value.parse() else { continue };
                let index = disks.iter().position(|(known, _)| known == numbers).unwrap_or_else(|| {
                    let disk = Disk { device: self.device(numbers), ..Disk::default() };
                    disks.push((numbers.to_owned(), disk));
                    disks.len() - 1
                });
                let disk = &mut disks[index].1;
                *match (is_bytes, what) {
                    (true, "Read") => &mut disk.read_bytes,
                    (true, _) => &mut disk.written_bytes,
                    (false, "Read") => &mut disk.reads,
                    (false, _) => &mut disk.writes,
                } = value;
            }
        }
        disks.into_iter().map(|(_, disk)| disk).collect()
    }

    fn disks_v2(&self, folder: &Path) -> Vec<Disk> {
        let text = text(folder, "io.stat").unwrap_or_default();
        let disk = |line: &str| {
            let (numbers, values) = line.split_once(' ')?;
            let value = |key: &str| {
                let mut pairs = values.split(' ').filter_map(|pair| pair.split_once('='));
                pairs.find(|(name, _)| *name == key).and_then(|(_, value)| value.parse().ok())
            };
            Some(Disk {
                device: self.device(numbers),
                read_bytes: value("rbytes")?,
                written_bytes: value("wbytes")?,
                reads: value("rios")?,
                writes: value("wios")?,
            })
        };
        text.lines().filter_map(disk).collect()
    }

    /// `8:0` is `/dev/sda`, where the kernel says so.
    fn device(&self, numbers: &str) -> String {
        let is_plain = numbers.bytes().all(|byte| byte.is_ascii_digit() || byte == b':');
        let uevent = is_plain.then(|| text(&self.devices.join(numbers), "uevent")).flatten();
        let name = uevent.and_then(|text| {
            text.lines().find_map(|line| line.strip_prefix("DEVNAME=")).map(|name| format!("/dev/{name}"))
        });
        name.unwrap_or_else(|| numbers.to_owned())
    }
}

fn at(root: &Path, path: &str) -> PathBuf {
    root.join(path.trim_matches('/'))
}

fn text(folder: &Path, file: &str) -> Option<String> {
    let mut text = String::new();
    fs::File::open(folder.join(file)).ok()?.take(MAX_BYTES).read_to_string(&mut text).ok()?;
    Some(text)
}

fn number(folder: &Path, file: &str) -> Option<u64> {
    text(folder, file)?.trim().parse().ok()
}

/// A line `key value`.
fn keyed(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}

fn stat(folder: &Path, file: &str, key: &str) -> Option<u64> {
    keyed(&text(folder, file)?, key)
}

fn threads(folder: &Path) -> (Option<u64>, Option<u64>) {
    (number(folder, "pids.current"), number(folder, "pids.max"))
}

fn cpu_v1(cpu: &Path, cpuacct: &Path) -> Option<Cpu> {
    let ticks = text(cpuacct, "cpuacct.stat").unwrap_or_default();
    let in_ns = |key| keyed(&ticks, key).map(|ticks| ticks.saturating_mul(1_000_000_000 / USER_HZ));
    let throttled = text(cpu, "cpu.stat").unwrap_or_default();
    let quota = number(cpu, "cpu.cfs_quota_us").zip(number(cpu, "cpu.cfs_period_us"));
    Some(Cpu {
        total_ns: number(cpuacct, "cpuacct.usage")?,
        user_ns: in_ns("user"),
        system_ns: in_ns("system"),
        throttling: throttling(&throttled, "throttled_time", 1),
        shares: number(cpu, "cpu.shares"),
        // -1 is no number here: no limit.
        quota_us: quota,
    })
}

fn cpu_v2(folder: &Path) -> Option<Cpu> {
    let used = text(folder, "cpu.stat")?;
    let in_ns = |key| keyed(&used, key).map(|us| us.saturating_mul(1000));
    let limit = text(folder, "cpu.max").unwrap_or_default();
    let (quota, period) = limit.trim().split_once(' ').unwrap_or_default();
    Some(Cpu {
        total_ns: in_ns("usage_usec")?,
        user_ns: in_ns("user_usec"),
        system_ns: in_ns("system_usec"),
        throttling: throttling(&used, "throttled_usec", 1000),
        shares: number(folder, "cpu.weight").map(shares),
        quota_us: quota.parse().ok().zip(period.parse().ok()),
    })
}

/// The other way round than runc converts.
fn shares(weight: u64) -> u64 {
    weight.saturating_sub(1).saturating_mul(262_142) / 9_999 + 2
}

fn throttling(text: &str, key: &str, unit_ns: u64) -> Option<Throttling> {
    Some(Throttling {
        periods: keyed(text, "nr_periods")?,
        throttled_periods: keyed(text, "nr_throttled")?,
        throttled_ns: keyed(text, key)?.saturating_mul(unit_ns),
    })
}

fn memory_v1(folder: &Path) -> Option<Memory> {
    let usage = number(folder, "memory.usage_in_bytes")?;
    let stat = text(folder, "memory.stat")?;
    let inactive_file = keyed(&stat, "total_inactive_file");
    Some(Memory {
        usage,
        working_set: usage.saturating_sub(inactive_file.unwrap_or(0)),
        rss: keyed(&stat, "total_rss"),
        cache: keyed(&stat, "total_cache"),
        mapped: keyed(&stat, "total_mapped_file"),
        active_file: keyed(&stat, "total_active_file"),
        inactive_file,
        kernel: number(folder, "memory.kmem.usage_in_bytes"),
        max_usage: number(folder, "memory.max_usage_in_bytes"),
        limit: number(folder, "memory.limit_in_bytes").filter(|&limit| limit < NO_LIMIT),
        limit_hits: number(folder, "memory.failcnt"),
        faults: keyed(&stat, "total_pgfault"),
        major_faults: keyed(&stat, "total_pgmajfault"),
        oom_kills: text(folder, "memory.oom_control").and_then(|text| keyed(&text, "oom_kill")),
    })
}

fn memory_v2(folder: &Path) -> Option<Memory> {
    let usage = number(folder, "memory.current")?;
    let stat = text(folder, "memory.stat")?;
    let events = text(folder, "memory.events").unwrap_or_default();
    let inactive_file = keyed(&stat, "inactive_file");
    Some(Memory {
        usage,
        working_set: usage.saturating_sub(inactive_file.unwrap_or(0)),
        rss: keyed(&stat, "anon"),
        cache: keyed(&stat, "file"),
        mapped: keyed(&stat, "file_mapped"),
        active_file: keyed(&stat, "active_file"),
        inactive_file,
        kernel: keyed(&stat, "kernel"),
        max_usage: number(folder, "memory.peak"),
        limit: number(folder, "memory.max"),
        limit_hits: keyed(&events, "max"),
        faults: keyed(&stat, "pgfault"),
        major_faults: keyed(&stat, "pgmajfault"),
        oom_kills: keyed(&events, "oom_kill"),
    })
}

fn pressure(folder: &Path) -> Option<[Pressure; 3]> {
    let of = |file: &str| text(folder, file).map(|text| parse_pressure(&text));
    Some([of("cpu.pressure")?, of("memory.pressure")?, of("io.pressure")?])
}

/// Lines such as `some avg10=0.00 avg60=0.12 avg300=0.05 total=1234`.
pub(in crate::provider::cri) fn parse_pressure(text: &str) -> Pressure {
    let stall = |kind: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(kind)).unwrap_or_default();
        let value = |key: &str| {
            let mut pairs = line.trim().split(' ').filter_map(|pair| pair.split_once('='));
            pairs.find(|(name, _)| *name == key).map(|(_, value)| value)
        };
        let average = |key| {
            let parsed = value(key).and_then(|value| value.parse::<f64>().ok());
            parsed.filter(|value| value.is_finite()).unwrap_or(0.0)
        };
        Stall {
            total_us: value("total").and_then(|value| value.parse().ok()).unwrap_or(0),
            average: [average("avg10"), average("avg60"), average("avg300")],
        }
    };
    Pressure { some: stall("some"), full: stall("full") }
}

#[cfg(test)]
mod tests;
