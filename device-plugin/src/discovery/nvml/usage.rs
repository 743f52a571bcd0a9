//! Who uses a GPU: which processes, how much memory they hold, and how much they and partitions compute. Lists of processes are the
//! slowest of NVML's answers, so they are asked for only where something may have changed.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use nvml_wrapper::{
    Device, GpmSample, Nvml, enums::device::UsedGpuMemory, enums::gpm::GpmMetricId, error::NvmlError,
    gpm::gpm_metrics_get, struct_wrappers::device::ProcessInfo,
    struct_wrappers::device::ProcessUtilizationSample,
};

use super::mig::{Instance, MOST_MIB, Mig};
use crate::device::{DeviceId, Process, Readings};

/// More processes than this on one GPU are not told apart.
const MOST_PROCESSES: usize = 4096;
const MIB: u64 = 1024 * 1024;
/// How old a list of processes may get while the memory in use stays what it is to the byte.
const LIST_AGAIN: Duration = Duration::from_secs(30);
/// Samples of the last second at least: drivers take one in up to that long.
const SAMPLES: Duration = Duration::from_secs(1);

/// What is remembered from look to look while NVML runs.
#[derive(Debug, Default)]
pub(super) struct Users<'nvml> {
    listed: BTreeMap<DeviceId, Listed>,
    /// By GPU and GPU instance, where partitions are measured.
    samples: BTreeMap<(DeviceId, u32), GpmSample<'nvml>>,
    unmeasured: BTreeSet<DeviceId>,
    looked: BTreeMap<DeviceId, Instant>,
}

#[derive(Debug)]
struct Listed {
    at: Instant,
    memory_used: u64,
    mig: Mig,
    users: Vec<Process>,
    /// Some of them are clients of MPS: what they compute, the driver tells of their server.
    by_mps: bool,
}

impl<'nvml> Users<'nvml> {
    /// Adds to `readings` who uses the GPU.
    pub(super) fn read(
        &mut self,
        nvml: &'nvml Nvml,
        device: &Device<'nvml>,
        id: &DeviceId,
        mig: &Mig,
        readings: &mut Readings,
    ) {
        let used = device.memory_info().ok().map(|memory| memory.used);
        readings.memory_used_mib = used.map(|bytes| bytes / MIB).filter(|mib| *mib <= MOST_MIB);
        let by_mps;
        (readings.processes, by_mps) = self.processes(device, id, mig, used);
        let since = self.looked.insert(id.clone(), Instant::now()).map(|at| at.elapsed());
        if mig.is_on() {
            readings.partition_utilization_percent = self.partitions(nvml, device, id, mig);
        } else {
            // Under MIG it is no value of the whole GPU.
            let utilization = device.utilization_rates().ok().map(|utilization| utilization.gpu);
            readings.utilization_percent = utilization.filter(|percent| *percent <= 100);
            if !readings.processes.is_empty() && !by_mps {
                let since = since.unwrap_or_default().max(SAMPLES);
                readings.process_utilization_percent = process_utilization(device, since);
            }
        }
    }

    /// The processes, and whether some are clients of MPS. Whoever comes or goes takes or leaves memory.
    fn processes(
        &mut self,
        device: &Device<'_>,
        id: &DeviceId,
        mig: &Mig,
        used: Option<u64>,
    ) -> (Vec<Process>, bool) {
        if let (Some(used), Some(last)) = (used, self.listed.get(id))
            && last.memory_used == used
            && last.mig == *mig
            && last.at.elapsed() < LIST_AGAIN
        {
            return (last.users.clone(), last.by_mps);
        }
        let (users, by_mps) = processes(device, mig);
        match used {
            Some(memory_used) => {
                let (at, mig, users) = (Instant::now(), mig.clone(), users.clone());
                self.listed.insert(id.clone(), Listed { at, memory_used, mig, users, by_mps });
            }
            None => drop(self.listed.remove(id)),
        }
        (users, by_mps)
    }

    /// How much each partition has computed since the last look, where the GPU measures it and the partition is all of its GPU instance.
    fn partitions(
        &mut self,
        nvml: &'nvml Nvml,
        device: &Device<'nvml>,
        gpu: &DeviceId,
        mig: &Mig,
    ) -> BTreeMap<DeviceId, u32> {
        let mut before = std::mem::take(&mut self.samples);
        self.samples.extend(before.extract_if(.., |(of, _), _| of != gpu));
        if self.unmeasured.contains(gpu) {
            return BTreeMap::new();
        }
        let mut all = BTreeMap::new();
        for instance in alone_in_theirs(mig.instances()) {
            match device.gpm_mig_sample(instance.gi) {
                Ok(now) => {
                    let key = (gpu.clone(), instance.gi);
                    let busy = before.get(&key).and_then(|before| busy_percent(nvml, before, &now));
                    all.extend(busy.map(|percent| (instance.id.clone(), percent)));
                    self.samples.insert(key, now);
                }
                Err(NvmlError::NotSupported | NvmlError::FailedToLoadSymbol(_)) => {
                    self.unmeasured.insert(gpu.clone());
                    return BTreeMap::new();
                }
                Err(error) => {
                    tracing::debug!(%error, partition = %instance.id, "it is not measured this time");
                }
            }
        }
        all
    }
}

/// Partitions that share their GPU instance with no other.
fn alone_in_theirs(instances: &[Instance]) -> impl Iterator<Item = &Instance> {
    let shared = |one: &&Instance| instances.iter().filter(|other| other.gi == one.gi).count() > 1;
    instances.iter().filter(move |instance| !shared(instance))
}

fn busy_percent<'nvml>(nvml: &'nvml Nvml, before: &GpmSample<'nvml>, now: &GpmSample<'nvml>) -> Option<u32> {
    let metrics = gpm_metrics_get(nvml, before, now, &[GpmMetricId::GraphicsUtil]).ok()?;
    percent(metrics.into_iter().next()?.ok()?.value)
}

/// A share that NVML gives as a number of any size.
fn percent(value: f64) -> Option<u32> {
    // Rounding may put it a little beside.
    (0.0..=100.5)
        .contains(&value)
        .then(|| (0..=100).rev().find(|whole| f64::from(*whole) <= value + 0.5))
        .flatten()
}

/// Who uses the GPU, and whether some are clients of MPS. A process is in the list of its kind, and may be in several.
fn processes(device: &Device<'_>, mig: &Mig) -> (Vec<Process>, bool) {
    let clients = device.mps_running_compute_processes().unwrap_or_default();
    let by_mps = !clients.is_empty();
    let others = [device.running_compute_processes(), device.running_graphics_processes()];
    let others = others.into_iter().filter_map(Result::ok).flatten();
    let mut found: BTreeMap<(u32, Option<DeviceId>), Option<u64>> = BTreeMap::new();
    for process in clients.into_iter().chain(others).take(MOST_PROCESSES) {
        let memory = match process.used_gpu_memory {
            UsedGpuMemory::Used(bytes) => Some(bytes / MIB),
            UsedGpuMemory::Unavailable => None,
        };
        let known = found.entry((process.pid, partition(&process, mig))).or_default();
        *known = (*known).max(memory);
    }
    let users =
        found.into_iter().map(|((pid, partition), memory_mib)| Process { pid, partition, memory_mib });
    (users.collect(), by_mps)
}

fn partition(process: &ProcessInfo, mig: &Mig) -> Option<DeviceId> {
    let (gpu, compute) = (process.gpu_instance_id?, process.compute_instance_id);
    let mut on = mig
        .instances()
        .iter()
        .filter(|instance| instance.gi == gpu && compute.is_none_or(|compute| compute == instance.ci));
    on.next().map(|instance| instance.id.clone())
}

/// How much each process has computed in the time before now. Who has not computed is not in it.
fn process_utilization(device: &Device<'_>, since: Duration) -> Option<BTreeMap<u32, u32>> {
    // The driver counts as the wall clock does, in microseconds.
    let begin = SystemTime::now().checked_sub(since)?.duration_since(UNIX_EPOCH).ok()?;
    match device.process_utilization_stats(u64::try_from(begin.as_micros()).ok()?) {
        Ok(samples) => latest(samples),
        // Nobody has.
        Err(NvmlError::NotFound) => Some(BTreeMap::new()),
        Err(_) => None,
    }
}

/// Each process's latest sample. Drivers are known to give numbers that are no percentages: then nothing is known of anybody.
fn latest(mut samples: Vec<ProcessUtilizationSample>) -> Option<BTreeMap<u32, u32>> {
    samples.truncate(MOST_PROCESSES);
    samples.sort_by_key(|sample| sample.timestamp);
    let all: BTreeMap<_, _> = samples.into_iter().map(|sample| (sample.pid, sample.sm_util)).collect();
    all.values().all(|percent| *percent <= 100).then_some(all)
}

#[cfg(test)]
mod tests {
    use super::{super::mig::Profile, *};

    fn instance(name: &str, gi: u32, ci: u32) -> Instance {
        let (id, profile) = (DeviceId::new(name).unwrap(), Profile::parse("1g.5gb").unwrap());
        Instance { id, index: gi, gi, ci, profile, attributes: None }
    }

    #[test]
    fn a_process_is_on_the_partition_of_its_instances() {
        let instances = vec![instance("MIG-a", 7, 0), instance("MIG-b", 8, 0), instance("MIG-c", 8, 1)];
        assert_eq!(alone_in_theirs(&instances).map(|one| one.id.as_str()).collect::<Vec<_>>(), ["MIG-a"]);
        let mig = Mig::On(instances);
        let on = |gpu, compute| {
            let process = ProcessInfo {
                pid: 1,
                used_gpu_memory: UsedGpuMemory::Unavailable,
                gpu_instance_id: gpu,
                compute_instance_id: compute,
            };
            partition(&process, &mig).map(|id| id.to_string())
        };
        assert_eq!(on(Some(8), Some(1)).as_deref(), Some("MIG-c"));
        assert_eq!(on(Some(7), None).as_deref(), Some("MIG-a"));
        assert_eq!((on(None, None), on(Some(9), Some(0))), (None, None));
    }

    #[test]
    fn of_a_process_the_latest_sample_counts_and_nonsense_says_nothing() {
        let sample = |pid, timestamp, sm_util| ProcessUtilizationSample {
            pid,
            timestamp,
            sm_util,
            mem_util: 0,
            enc_util: 0,
            dec_util: 0,
        };
        let samples = vec![sample(1, 20, 30), sample(1, 10, 90), sample(2, 5, 100)];
        assert_eq!(latest(samples), Some(BTreeMap::from([(1, 30), (2, 100)])));
        assert_eq!(latest(vec![sample(1, 20, 30), sample(2, 1, u32::MAX)]), None);
        assert_eq!(latest(Vec::new()), Some(BTreeMap::new()));
    }

    #[test]
    fn shares_are_percentages_or_nothing() {
        for (value, expected) in [(0.0, Some(0)), (0.4, Some(0)), (49.6, Some(50)), (100.0, Some(100))] {
            assert_eq!(percent(value), expected, "{value}");
        }
        for nonsense in [-1.0, 101.0, f64::NAN, f64::INFINITY] {
            assert_eq!(percent(nonsense), None, "{nonsense}");
        }
    }
}
