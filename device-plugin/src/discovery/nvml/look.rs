//! One look at the GPUs through NVML: what it says, as values. What NVML does not know is absent, never a number; nothing is judged.

use std::collections::{BTreeMap, BTreeSet};

use nvml_wrapper::{
    Device as NvmlDevice, Nvml,
    enum_wrappers::device::{EccCounter, MemoryError, TemperatureThreshold},
    error::NvmlError,
    struct_wrappers::device::DeviceAttributes,
};

use super::{
    links::{Linked, Weights, weights},
    mig::{Attributes, Instance, MOST_MIB, Mig, Profile},
    raw,
    usage::Users,
    vitals::{HOTTEST_CELSIUS, Vitals},
};
use crate::device::{DeviceId, Readings};

/// No GPU draws more; what NVML says beyond it is a placeholder for "not available".
const MOST_MILLIWATTS: u32 = 100_000_000;
/// Minors of GPUs; 254 and 255 are the driver's own nodes.
const LAST_GPU_MINOR: u32 = 253;
/// `NVML_NVLINK_MAX_LINKS`
const NVLINKS: u32 = 18;
/// No GPU has more MIG devices.
pub(super) const MOST_INSTANCES: u32 = 64;
/// No partition has more of anything that is counted.
const MOST_OF_ANYTHING: u32 = 1 << 16;
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
    /// What its health is judged by.
    pub vitals: Vitals,
    /// What its sensors say.
    pub readings: Readings,
}

impl Gpu {
    /// What a pulse has found: its health is another, all else is as it was.
    pub(super) fn revise(&mut self, vitals: Vitals) {
        self.readings.temperature_celsius = vitals.celsius;
        self.readings.errors.extend(vitals.counters());
        self.vitals = vitals;
    }
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

/// What a pulse has found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Felt {
    /// Every GPU is as it was.
    Same,
    /// The health of one may be another.
    Changed,
    /// One can't be asked any more, or can be again.
    Lost,
}

/// What is remembered from look to look while NVML runs.
#[derive(Debug, Default)]
pub(super) struct Looker<'nvml> {
    fixed: BTreeMap<DeviceId, Fixed>,
    links: Weights,
    linked: BTreeSet<DeviceId>,
    users: Users<'nvml>,
}

impl<'nvml> Looker<'nvml> {
    pub(super) fn look(&mut self, nvml: &'nvml Nvml) -> Result<Look, NvmlError> {
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

    /// Asks the GPUs that were seen last for their vital signs, and keeps those in `look` that tell of something.
    pub(super) fn feel(nvml: &Nvml, look: &mut Look) -> Felt {
        let mut felt = Felt::Same;
        for gpu in &mut look.gpus {
            let asked = nvml.device_by_index(gpu.index).and_then(|device| Vitals::of(&device, &gpu.fixed));
            match asked {
                Ok(vitals) if vitals.is_as_well_as(&gpu.vitals, &gpu.fixed) => {}
                Ok(vitals) => {
                    gpu.revise(vitals);
                    felt = felt.max(Felt::Changed);
                }
                Err(_) => felt = Felt::Lost,
            }
        }
        let answers = |index: &u32| {
            let asked = nvml.device_by_index(*index);
            asked.and_then(|device| Vitals::of(&device, &Fixed::default())).is_ok()
        };
        if look.unreadable.keys().any(answers) { Felt::Lost } else { felt }
    }

    fn read(&mut self, nvml: &'nvml Nvml, index: u32) -> Result<(Gpu, NvmlDevice<'nvml>), String> {
        let device = nvml.device_by_index(index).map_err(|error| error.to_string())?;
        let uuid = device.uuid().map_err(|error| error.to_string())?;
        let id = id(uuid, "GPU-")?;
        let fixed = self.fixed.entry(id.clone()).or_insert_with(|| fixed(&device)).clone();
        let vitals = Vitals::of(&device, &fixed).map_err(|error| error.to_string())?;
        let mig = mig(&device, fixed.memory_mib);
        let mut readings = Readings {
            temperature_celsius: vitals.celsius,
            power_milliwatts: device
                .power_usage()
                .ok()
                .filter(|power| *power <= MOST_MILLIWATTS)
                .map(u64::from),
            errors: errors(&device, &vitals),
            // XIDs are counted from events, not looked up.
            ..Readings::default()
        };
        self.users.read(nvml, &device, &id, &mig, &mut readings);
        Ok((Gpu { id, index, fixed, mig, vitals, readings }, device))
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
                match instance(&device, index, gpu_mib) {
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

fn instance(device: &NvmlDevice<'_>, index: u32, gpu_mib: Option<u64>) -> Result<Instance, String> {
    let uuid = device.uuid().map_err(|error| error.to_string())?;
    let id = id(uuid, "MIG-")?;
    let (gi, ci) = raw::instance(device).map_err(|error| error.to_string())?;
    let attributes = device.attributes().ok().and_then(|said| attributes(&said));
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
    Ok(Instance { id, index, gi, ci, profile, attributes })
}

/// A UUID as NVML spells it. In a container's list other words mean something else: `all`, `none`, or the GPU of that index; and what has
/// other characters no runtime takes for a CDI device.
fn id(uuid: String, begin: &str) -> Result<DeviceId, String> {
    let plain = |rest: &str| rest.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    if !uuid.strip_prefix(begin).is_some_and(plain) {
        return Err(format!("{uuid:?} is no UUID: expected {begin} and hexadecimal digits"));
    }
    DeviceId::new(uuid).map_err(|error| error.to_string())
}

/// What a partition has, if all of it is numbers: placeholders for "not available" are larger than any.
fn attributes(said: &DeviceAttributes) -> Option<Attributes> {
    let has = Attributes {
        memory_mib: said.memory_size_mb,
        multiprocessors: said.multiprocessor_count,
        gpu_slices: said.gpu_instance_slice_count,
        compute_slices: said.compute_instance_slice_count,
        copy_engines: said.shared_copy_engine_count,
        decoders: said.shared_decoder_count,
        encoders: said.shared_encoder_count,
        jpegs: said.shared_jpeg_count,
        ofas: said.shared_ofa_count,
    };
    let counts = [
        has.multiprocessors,
        has.gpu_slices,
        has.compute_slices,
        has.copy_engines,
        has.decoders,
        has.encoders,
        has.jpegs,
        has.ofas,
    ];
    (has.memory_mib <= MOST_MIB && counts.iter().all(|count| *count <= MOST_OF_ANYTHING)).then_some(has)
}

fn errors(device: &NvmlDevice<'_>, vitals: &Vitals) -> BTreeMap<&'static str, u64> {
    let corrected = device.total_ecc_errors(MemoryError::Corrected, EccCounter::Volatile).ok();
    let corrected = corrected.filter(|count| *count != u64::MAX);
    let mut errors = vitals.counters();
    errors.extend(corrected.map(|count| ("ecc_corrected", count)));
    errors
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
    }

    #[test]
    fn a_uuid_means_one_device_in_every_list() {
        assert_eq!(id("GPU-0".to_owned(), "GPU-").unwrap().as_str(), "GPU-0");
        for bad in [
            "all",
            "none",
            "void",
            "",
            "0",
            "MIG-0",
            "GPU-0,all",
            "GPU-=all",
            "GPU-%",
            "GPU-../x",
            "GPU-\u{0}",
        ] {
            assert!(id(bad.to_owned(), "GPU-").is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_partition_has_numbers_or_nothing_is_said_of_it() {
        let said = DeviceAttributes {
            multiprocessor_count: 14,
            shared_copy_engine_count: 1,
            shared_decoder_count: 0,
            shared_encoder_count: 0,
            shared_jpeg_count: 0,
            shared_ofa_count: 0,
            gpu_instance_slice_count: 1,
            compute_instance_slice_count: 1,
            memory_size_mb: 4_864,
        };
        assert_eq!(attributes(&said).map(|has| (has.memory_mib, has.multiprocessors)), Some((4_864, 14)));
        let memory = DeviceAttributes { memory_size_mb: u64::MAX, ..said.clone() };
        let count = DeviceAttributes { shared_ofa_count: u32::MAX, ..said };
        assert_eq!((attributes(&memory), attributes(&count)), (None, None));
    }
}
