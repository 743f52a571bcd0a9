//! One look at the GPUs through NVML: what it says, as values. What NVML does not know is absent, never a number; nothing is judged.

use std::collections::{BTreeMap, BTreeSet};

use nvml_wrapper::{
    Device as NvmlDevice, Nvml,
    enum_wrappers::device::{EccCounter, MemoryError, TemperatureSensor, TemperatureThreshold},
    enums::device::{SampleValue, UsedGpuMemory},
    error::NvmlError,
    struct_wrappers::device::ProcessInfo,
    structs::device::FieldId,
    sys_exports::field_id::{
        NVML_FI_DEV_GET_GPU_RECOVERY_ACTION, NVML_FI_DEV_NVLINK_RECOVERY_ERROR_COUNT_TOTAL,
        NVML_FI_DEV_NVLINK_REPLAY_ERROR_COUNT_TOTAL, NVML_FI_DEV_REMAPPED_FAILURE,
        NVML_FI_DEV_REMAPPED_PENDING, NVML_FI_DEV_REMAPPED_UNC, NVML_FI_DEV_RETIRED_PENDING,
    },
};

use super::{
    links::{Linked, Weights, weights},
    mig::{Attributes, Instance, MOST_MIB, Mig, Profile},
    raw,
};
use crate::device::{DeviceId, Process, Readings};

/// No GPU works above this; what NVML says beyond it is a placeholder for "not available".
const HOTTEST_CELSIUS: u32 = 200;
/// No GPU draws more; beyond it is a placeholder, too.
const MOST_MILLIWATTS: u32 = 100_000_000;
/// Minors of GPUs; 254 and 255 are the driver's own nodes.
const LAST_GPU_MINOR: u32 = 253;
/// `NVML_NVLINK_MAX_LINKS`
const NVLINKS: u32 = 18;
/// No GPU has more MIG devices.
pub(super) const MOST_INSTANCES: u32 = 64;
/// More processes than this on one GPU are not told apart.
const MOST_PROCESSES: usize = 4096;
const MIB: u64 = 1024 * 1024;

/// One GPU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gpu {
    /// Its UUID.
    pub id: DeviceId,
    /// NVML's number for it.
    pub index: u32,
    /// What doesn't change while NVML runs.
    pub fixed: Fixed,
    /// How it is partitioned.
    pub mig: Mig,
    /// What its sensors say.
    pub readings: Readings,
    /// What is wrong with it now, and stays so until somebody mends it.
    pub conditions: Vec<String>,
}

/// What doesn't change while NVML runs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Fixed {
    /// The number of its device node.
    pub minor: Option<u32>,
    /// `0000:17:00.0`, as sysfs spells it.
    pub pci_address: Option<String>,
    /// What NVIDIA calls it.
    pub product: Option<String>,
    /// Its memory in MiB.
    pub memory_mib: Option<u64>,
    /// CUDA's compute capability.
    pub compute: Option<(u32, u32)>,
    /// The fabric's cluster and clique.
    pub fabric: Option<([u8; 16], u32)>,
    /// From here on it slows down to save itself.
    pub slowdown_celsius: Option<u32>,
    /// Its links of NVIDIA's own that were up at the first look, and where they lead.
    pub nvlinks: BTreeMap<u32, String>,
}

/// What one look at all GPUs gave.
#[derive(Debug, Default)]
pub struct Look {
    /// Those that can be read.
    pub gpus: Vec<Gpu>,
    /// By index: why the GPU can't be read.
    pub unreadable: BTreeMap<u32, String>,
    /// How close they are to each other.
    pub links: Weights,
}

/// What is remembered from look to look while NVML runs.
#[derive(Debug, Default)]
pub(super) struct Looker {
    fixed: BTreeMap<DeviceId, Fixed>,
    links: Weights,
    linked: BTreeSet<DeviceId>,
}

impl Looker {
    pub(super) fn look(&mut self, nvml: &Nvml) -> Result<Look, NvmlError> {
        let mut look = Look::default();
        let mut handles = Vec::new();
        for index in 0..nvml.device_count()? {
            match self.read(nvml, index) {
                Ok((gpu, handle)) => {
                    look.gpus.push(gpu);
                    handles.push(handle);
                }
                Err(why) => {
                    look.unreadable.insert(index, why);
                }
            }
        }
        let ids: BTreeSet<_> = look.gpus.iter().map(|gpu| gpu.id.clone()).collect();
        if ids != self.linked {
            self.links = links(nvml, &look.gpus, &handles);
            self.linked = ids;
        }
        look.links.clone_from(&self.links);
        Ok(look)
    }

    fn read<'nvml>(&mut self, nvml: &'nvml Nvml, index: u32) -> Result<(Gpu, NvmlDevice<'nvml>), String> {
        let device = nvml.device_by_index(index).map_err(|error| error.to_string())?;
        let uuid = device.uuid().map_err(|error| error.to_string())?;
        let id = DeviceId::new(uuid).map_err(|error| error.to_string())?;
        let temperature = device.temperature(TemperatureSensor::Gpu);
        if let Err(error @ (NvmlError::GpuLost | NvmlError::ResetRequired | NvmlError::Unknown)) =
            &temperature
        {
            return Err(error.to_string());
        }
        let fixed = self.fixed.entry(id.clone()).or_insert_with(|| fixed(&device)).clone();
        let mig = mig(&device, fixed.memory_mib);
        let fields = Fields::of(&device);
        let mut conditions = fields.conditions();
        let temperature = temperature.ok().filter(|celsius| *celsius <= HOTTEST_CELSIUS);
        if let (Some(now), Some(limit)) = (temperature, fixed.slowdown_celsius)
            && now >= limit
        {
            conditions.push(format!("{now} °C: it slows down from {limit} °C on"));
        }
        for link in fixed.nvlinks.keys() {
            if matches!(device.link_wrapper_for(*link).is_active(), Ok(false)) {
                conditions.push(format!("NVLink {link} is down"));
            }
        }
        let readings = Readings {
            temperature_celsius: temperature,
            power_milliwatts: device
                .power_usage()
                .ok()
                .filter(|power| *power <= MOST_MILLIWATTS)
                .map(u64::from),
            // Under MIG it is no value of the whole GPU.
            utilization_percent: (!mig.is_on())
                .then(|| device.utilization_rates().ok())
                .flatten()
                .map(|utilization| utilization.gpu)
                .filter(|percent| *percent <= 100),
            memory_used_mib: device
                .memory_info()
                .ok()
                .map(|memory| memory.used / MIB)
                .filter(|mib| *mib <= MOST_MIB),
            errors: errors(&device, &fields),
            // Counted from events, not looked up.
            xids: BTreeMap::new(),
            processes: processes(&device, &mig),
        };
        Ok((Gpu { id, index, fixed, mig, readings, conditions }, device))
    }
}

fn fixed(device: &NvmlDevice<'_>) -> Fixed {
    let compute = device.cuda_compute_capability().ok().and_then(|capability| {
        Some((u32::try_from(capability.major).ok()?, u32::try_from(capability.minor).ok()?))
    });
    let nvlinks = (0..NVLINKS).filter_map(|link| {
        let wrapper = device.link_wrapper_for(link);
        if !wrapper.is_active().ok()? {
            return None;
        }
        Some((
            link,
            wrapper.remote_pci_info().ok().and_then(|pci| pci_address(&pci.bus_id)).unwrap_or_default(),
        ))
    });
    Fixed {
        minor: device.minor_number().ok().filter(|minor| *minor <= LAST_GPU_MINOR),
        pci_address: device.pci_info().ok().and_then(|pci| pci_address(&pci.bus_id)),
        product: device.name().ok().filter(|name| !name.is_empty()),
        memory_mib: device
            .memory_info()
            .ok()
            .map(|memory| memory.total / MIB)
            .filter(|mib| (1..=MOST_MIB).contains(mib)),
        compute,
        fabric: raw::fabric(device),
        slowdown_celsius: device
            .temperature_threshold(TemperatureThreshold::Slowdown)
            .ok()
            .filter(|limit| (1..=HOTTEST_CELSIUS).contains(limit)),
        nvlinks: nvlinks.collect(),
    }
}

fn links(nvml: &Nvml, gpus: &[Gpu], handles: &[NvmlDevice<'_>]) -> Weights {
    let linked: Vec<_> = gpus
        .iter()
        .map(|gpu| Linked {
            id: gpu.id.clone(),
            pci_address: gpu.fixed.pci_address.clone(),
            remotes: gpu.fixed.nvlinks.values().filter(|remote| !remote.is_empty()).cloned().collect(),
        })
        .collect();
    weights(&linked, |a, b| nvml.topology_common_ancestor(&handles[a], &handles[b]).ok())
}

/// How a GPU is partitioned now. A partition that can't be read is left out: the next look may have it.
fn mig(device: &NvmlDevice<'_>, gpu_mib: Option<u64>) -> Mig {
    match device.mig_mode() {
        Err(_) => Mig::Incapable,
        Ok(mode) if mode.current == 0 => Mig::Off,
        Ok(_) => {
            let most = device.mig_device_count().unwrap_or(0).min(MOST_INSTANCES);
            let instances = (0..most).filter_map(|index| {
                // Places without a MIG device are not found.
                let device = device.mig_device_by_index(index).ok()?;
                match instance(&device, gpu_mib) {
                    Ok(instance) => Some(instance),
                    Err(why) => {
                        tracing::warn!(mig.index = index, why, "a MIG device can't be read: left out");
                        None
                    }
                }
            });
            Mig::On(instances.collect())
        }
    }
}

fn instance(device: &NvmlDevice<'_>, gpu_mib: Option<u64>) -> Result<Instance, String> {
    let uuid = device.uuid().map_err(|error| error.to_string())?;
    let id = DeviceId::new(uuid).map_err(|error| error.to_string())?;
    let (gi, ci) = raw::instance(device).map_err(|error| error.to_string())?;
    let attributes = device.attributes().ok().map(|said| Attributes {
        memory_mib: said.memory_size_mb.min(MOST_MIB),
        multiprocessors: said.multiprocessor_count,
        gpu_slices: said.gpu_instance_slice_count,
        compute_slices: said.compute_instance_slice_count,
        copy_engines: said.shared_copy_engine_count,
        decoders: said.shared_decoder_count,
        encoders: said.shared_encoder_count,
        jpegs: said.shared_jpeg_count,
        ofas: said.shared_ofa_count,
    });
    let by_size = || {
        let has = attributes.as_ref()?;
        Profile::of_size(has.gpu_slices, has.compute_slices, has.memory_mib, gpu_mib?)
    };
    let profile = device
        .name()
        .ok()
        .and_then(|name| Profile::of_name(&name))
        .or_else(by_size)
        .ok_or("neither its name nor its size tells its profile")?;
    Ok(Instance { id, gi, ci, profile, attributes })
}

/// What NVML tells by number, in one call.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Fields {
    recovery: Option<u64>,
    remap_failure: Option<u64>,
    remap_pending: Option<u64>,
    remapped_uncorrected: Option<u64>,
    retirement_pending: Option<u64>,
    nvlink_replay: Option<u64>,
    nvlink_recovery: Option<u64>,
}

impl Fields {
    pub(super) fn of(device: &NvmlDevice<'_>) -> Self {
        let ids = [
            NVML_FI_DEV_GET_GPU_RECOVERY_ACTION,
            NVML_FI_DEV_REMAPPED_FAILURE,
            NVML_FI_DEV_REMAPPED_PENDING,
            NVML_FI_DEV_REMAPPED_UNC,
            NVML_FI_DEV_RETIRED_PENDING,
            NVML_FI_DEV_NVLINK_REPLAY_ERROR_COUNT_TOTAL,
            NVML_FI_DEV_NVLINK_RECOVERY_ERROR_COUNT_TOTAL,
        ];
        let mut values = device.field_values_for(&ids.map(FieldId)).unwrap_or_default().into_iter();
        let mut next = || number(&values.next()?.ok()?.value.ok()?);
        Self {
            recovery: next(),
            remap_failure: next(),
            remap_pending: next(),
            remapped_uncorrected: next(),
            retirement_pending: next(),
            nvlink_replay: next(),
            nvlink_recovery: next(),
        }
    }

    fn conditions(&self) -> Vec<String> {
        let set = |value: Option<u64>| value.is_some_and(|value| value != 0);
        let mut conditions = Vec::new();
        if let Some(action) = self.recovery.and_then(recovery_action) {
            conditions.push(format!("the driver asks for {action}"));
        }
        if set(self.remap_failure) {
            conditions
                .push("a broken row of its memory can't be replaced: it has no spare rows left".to_owned());
        }
        if set(self.remap_pending) {
            conditions.push("a broken row of its memory is replaced at the next reset".to_owned());
        }
        if set(self.retirement_pending) {
            conditions.push("a broken page of its memory is retired at the next reset".to_owned());
        }
        conditions
    }
}

/// NVML's placeholder for "not available" is all ones.
fn number(value: &SampleValue) -> Option<u64> {
    match value {
        SampleValue::U32(value) => (*value != u32::MAX).then_some(u64::from(*value)),
        SampleValue::U64(value) => (*value != u64::MAX).then_some(*value),
        SampleValue::I64(value) => u64::try_from(*value).ok(),
        SampleValue::F64(_) => None,
    }
}

/// `nvmlDeviceGpuRecoveryAction_t`.
fn recovery_action(action: u64) -> Option<&'static str> {
    match action {
        1 => Some("a reset of the GPU"),
        2 => Some("a reboot of the machine"),
        3 => Some("peer-to-peer traffic to be drained"),
        4 => Some("the GPU to be drained and reset"),
        _ => None,
    }
}

fn errors(device: &NvmlDevice<'_>, fields: &Fields) -> BTreeMap<&'static str, u64> {
    let ecc =
        |kind| device.total_ecc_errors(kind, EccCounter::Volatile).ok().filter(|count| *count != u64::MAX);
    [
        ("ecc_corrected", ecc(MemoryError::Corrected)),
        ("ecc_uncorrected", ecc(MemoryError::Uncorrected)),
        ("remapped_rows_uncorrected", fields.remapped_uncorrected),
        ("nvlink_replay", fields.nvlink_replay),
        ("nvlink_recovery", fields.nvlink_recovery),
    ]
    .into_iter()
    .filter_map(|(name, count)| Some((name, count?)))
    .collect()
}

/// Who uses the GPU. A process is in the list of its kind, and may be in several.
fn processes(device: &NvmlDevice<'_>, mig: &Mig) -> Vec<Process> {
    let lists = [
        device.running_compute_processes(),
        device.mps_running_compute_processes(),
        device.running_graphics_processes(),
    ];
    let mut found: BTreeMap<(u32, Option<DeviceId>), Option<u64>> = BTreeMap::new();
    for process in lists.into_iter().filter_map(Result::ok).flatten().take(MOST_PROCESSES) {
        let memory = match process.used_gpu_memory {
            UsedGpuMemory::Used(bytes) => Some(bytes / MIB),
            UsedGpuMemory::Unavailable => None,
        };
        let known = found.entry((process.pid, partition(&process, mig))).or_default();
        *known = (*known).max(memory);
    }
    found.into_iter().map(|((pid, partition), memory_mib)| Process { pid, partition, memory_mib }).collect()
}

fn partition(process: &ProcessInfo, mig: &Mig) -> Option<DeviceId> {
    let (gpu, compute) = (process.gpu_instance_id?, process.compute_instance_id);
    let mut on = mig
        .instances()
        .iter()
        .filter(|instance| instance.gi == gpu && compute.is_none_or(|compute| compute == instance.ci));
    on.next().map(|instance| instance.id.clone())
}

/// NVML's `00000000:3B:00.0` as sysfs spells it.
fn pci_address(bus_id: &str) -> Option<String> {
    let (domain, rest) = bus_id.split_once(':')?;
    let domain = u32::from_str_radix(domain, 16).ok()?;
    let sound = rest.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b':' || byte == b'.');
    (sound && !rest.contains("..")).then(|| format!("{domain:04x}:{}", rest.to_ascii_lowercase()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nvml_does_not_know_is_absent() {
        assert_eq!(pci_address("00000000:3B:00.0").as_deref(), Some("0000:3b:00.0"));
        assert_eq!(pci_address("00010000:01:00.0").as_deref(), Some("10000:01:00.0"));
        for nonsense in ["", "N/A", "zz:00:00.0", "0:../..", "0000:3b/00.0"] {
            assert_eq!(pci_address(nonsense), None, "{nonsense:?}");
        }
        assert_eq!(number(&SampleValue::U32(3)), Some(3));
        for nothing in [
            SampleValue::U32(u32::MAX),
            SampleValue::U64(u64::MAX),
            SampleValue::I64(-1),
            SampleValue::F64(1.0),
        ] {
            assert_eq!(number(&nothing), None, "{nothing:?}");
        }
        assert_eq!(recovery_action(0), None);
        assert_eq!(recovery_action(u64::MAX), None);
        assert_eq!(Fields::default().conditions(), Vec::<String>::new());
    }

    #[test]
    fn a_process_is_on_the_partition_of_its_instances() {
        let id = |id: &str| DeviceId::new(id).unwrap();
        let instance = |name: &str, gi, ci| Instance {
            id: id(name),
            gi,
            ci,
            profile: Profile::parse("1g.5gb").unwrap(),
            attributes: None,
        };
        let mig = Mig::On(vec![instance("MIG-a", 7, 0), instance("MIG-b", 8, 0), instance("MIG-c", 8, 1)]);
        let on = |gpu, compute| {
            let process = ProcessInfo {
                pid: 1,
                used_gpu_memory: UsedGpuMemory::Unavailable,
                gpu_instance_id: gpu,
                compute_instance_id: compute,
            };
            partition(&process, &mig)
        };
        assert_eq!(on(Some(8), Some(1)), Some(id("MIG-c")));
        assert_eq!(on(Some(7), None), Some(id("MIG-a")));
        assert_eq!((on(None, None), on(Some(9), Some(0))), (None, None));
    }
}
