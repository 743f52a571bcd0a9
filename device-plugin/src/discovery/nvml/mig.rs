//! MIG: what the partitions of a GPU are called, which of them are offered and as what, and which device nodes open them. All of it
//! over values and files; NVML is asked elsewhere.
//!
//! ```text
//! PROC/driver/nvidia/capabilities/gpuN/mig/giG/{access,ciC/access}    "DeviceFileMinor: M" of /dev/nvidia-caps/nvidia-capM
//! PROC/driver/nvidia-caps/mig-minors                                  the same as lines "gpuN/giG/ciC/access M", of all that can be
//! ```

use std::{fmt, fs, path::Path};

use crate::{
    config::MigStrategy,
    device::{DeviceId, NameError, ResourceName},
};

/// What a whole GPU is asked for by, and with the strategy `single` a MIG device, too.
pub(super) const GPU_RESOURCE: &str = "nvidia.com/gpu";
/// No GPU has more memory than this; what NVML says beyond it is no number.
pub(super) const MOST_MIB: u64 = 1 << 30;

/// The shape of a MIG device, as NVIDIA spells it: `1g.5gb`, `1c.2g.10gb`, `1g.5gb+me`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Profile {
    compute_slices: u32,
    gpu_slices: u32,
    gigabytes: u32,
    /// `+me`, `-me`, `+gfx`, …; empty for most.
    attributes: String,
}

impl Profile {
    /// Takes a profile's name, if it is one.
    pub fn parse(name: &str) -> Option<Self> {
        let end = name.find(['+', '-']).unwrap_or(name.len());
        let (fields, attributes) = name.split_at(end);
        let sound = attributes
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"+-.".contains(&byte));
        if !sound || attributes.len() == 1 || attributes.len() > 16 {
            return None;
        }
        let mut fields = fields.split('.').rev();
        let number = |field: Option<&str>, unit: &str| {
            let digits = field?.strip_suffix(unit)?;
            let number = digits.parse::<u32>().ok()?;
            (number > 0 && digits == number.to_string()).then_some(number)
        };
        let gigabytes = number(fields.next(), "gb")?;
        let gpu_slices = number(fields.next(), "g")?;
        let compute_slices = match fields.next() {
            Some(field) => number(Some(field), "c")?,
            None => gpu_slices,
        };
        let attributes = attributes.trim_end_matches(['+', '-', '.']).to_owned();
        fields.next().is_none().then_some(Self { compute_slices, gpu_slices, gigabytes, attributes })
    }

    /// The profile in a MIG device's name, `NVIDIA A100-SXM4-40GB MIG 1g.5gb`.
    pub fn of_name(name: &str) -> Option<Self> {
        Self::parse(name.rsplit_once("MIG ")?.1.trim())
    }

    /// The profile that a MIG device must have by its slices and memory, where the driver doesn't name it: as NVIDIA's own programs
    /// round it, in eighths of the GPU's memory.
    pub fn of_size(gpu_slices: u32, compute_slices: u32, mib: u64, gpu_mib: u64) -> Option<Self> {
        if gpu_slices == 0 || compute_slices == 0 || mib == 0 || mib > gpu_mib || gpu_mib > MOST_MIB {
            return None;
        }
        let eighths = (mib * 8).div_ceil(gpu_mib);
        let gigabytes = u32::try_from((eighths * gpu_mib.div_ceil(1024) + 4) / 8).ok()?;
        Some(Self { compute_slices, gpu_slices, gigabytes, attributes: String::new() })
    }

    /// Whether its compute instance is all of its GPU instance: others are not offered on their own.
    pub fn is_whole(&self) -> bool {
        self.compute_slices == self.gpu_slices
    }

    /// What it is called in names of resources and labels.
    pub fn name(&self) -> String {
        self.to_string().replace('+', ".")
    }

    fn resource(&self) -> Result<ResourceName, NameError> {
        ResourceName::new(format!("nvidia.com/mig-{}", self.name()))
    }
}

impl fmt::Display for Profile {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.is_whole() {
            write!(formatter, "{}c.", self.compute_slices)?;
        }
        write!(formatter, "{}g.{}gb{}", self.gpu_slices, self.gigabytes, self.attributes)
    }
}

/// A partition of a GPU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instance {
    /// Its UUID.
    pub id: DeviceId,
    /// NVML's number for it on its GPU.
    pub index: u32,
    /// The number of its GPU instance.
    pub gi: u32,
    /// The number of its compute instance in there.
    pub ci: u32,
    /// Its shape.
    pub profile: Profile,
    /// What it has, where the driver says.
    pub attributes: Option<Attributes>,
}

/// What a partition has of its GPU.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Attributes {
    /// MiB.
    pub memory_mib: u64,
    /// Streaming multiprocessors.
    pub multiprocessors: u32,
    /// Slices of its GPU instance.
    pub gpu_slices: u32,
    /// Slices of its compute instance.
    pub compute_slices: u32,
    /// Copy engines.
    pub copy_engines: u32,
    /// Video decoders.
    pub decoders: u32,
    /// Video encoders.
    pub encoders: u32,
    /// JPEG decoders.
    pub jpegs: u32,
    /// Optical flow engines.
    pub ofas: u32,
}

/// How a GPU is partitioned.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Mig {
    /// It can't be.
    #[default]
    Incapable,
    /// It could be.
    Off,
    /// Into these; perhaps into none yet.
    On(Vec<Instance>),
}

impl Mig {
    /// Its partitions.
    pub fn instances(&self) -> &[Instance] {
        match self {
            Self::On(instances) => instances,
            Self::Incapable | Self::Off => &[],
        }
    }

    /// Whether it is partitioned.
    pub fn is_on(&self) -> bool {
        matches!(self, Self::On(_))
    }
}

/// What is offered, by the places in the list of GPUs and in the list of a GPU's partitions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer {
    /// The place in the list of GPUs.
    pub gpu: usize,
    /// The place in the list of its partitions; none for the GPU itself.
    pub instance: Option<usize>,
    /// What pods ask for to get it.
    pub resource: ResourceName,
}

/// What is offered of these GPUs. With `single`, also what is wrong with the layout: then nothing of it may be handed out, because a
/// pod would get a partition of a size that nobody said.
pub fn offers(strategy: MigStrategy, gpus: &[&Mig]) -> (Vec<Offer>, Option<String>) {
    let whole = |gpu| Offer { gpu, instance: None, resource: gpu_resource() };
    let part = |gpu, instance, resource| Offer { gpu, instance: Some(instance), resource };
    let mut offers = Vec::new();
    for (place, mig) in gpus.iter().enumerate() {
        match (strategy, mig) {
            (MigStrategy::None, _) | (_, Mig::Incapable | Mig::Off) => offers.push(whole(place)),
            (MigStrategy::Single, Mig::On(instances)) => {
                offers.extend((0..instances.len()).map(|instance| part(place, instance, gpu_resource())));
                // Something must carry the reason why there is nothing.
                if instances.is_empty() {
                    offers.push(whole(place));
                }
            }
            (MigStrategy::Mixed, Mig::On(instances)) => {
                let named = instances.iter().enumerate().filter(|(_, instance)| instance.profile.is_whole());
                offers.extend(
                    named.filter_map(|(at, instance)| {
                        Some(part(place, at, instance.profile.resource().ok()?))
                    }),
                );
            }
        }
    }
    let wrong = (strategy == MigStrategy::Single).then(|| mistake(gpus)).flatten();
    (offers, wrong)
}

/// What keeps these GPUs from being offered as equal partitions.
pub(super) fn mistake(gpus: &[&Mig]) -> Option<String> {
    let on = gpus.iter().filter(|mig| mig.is_on()).count();
    if on == 0 {
        return None;
    }
    if on < gpus.len() {
        return Some(format!(
            "MIG is enabled on {on} of {} GPUs, and migStrategy single wants all or none",
            gpus.len()
        ));
    }
    if gpus.iter().any(|mig| mig.instances().is_empty()) {
        return Some("MIG is enabled on a GPU that has no MIG device".to_owned());
    }
    let mut profiles: Vec<_> =
        gpus.iter().flat_map(|mig| mig.instances()).map(|instance| instance.profile.to_string()).collect();
    profiles.sort();
    profiles.dedup();
    (profiles.len() > 1).then(|| {
        format!(
            "migStrategy single wants one profile of MIG devices, and there are {}; use mixed",
            profiles.join(", ")
        )
    })
}

pub(super) fn gpu_resource() -> ResourceName {
    ResourceName::new(GPU_RESOURCE).expect("the name is sound")
}

/// The nodes below `/dev` that open a partition of the GPU with this minor number: the GPU instance's and the compute instance's.
pub fn capability_nodes(
    proc: &Path,
    gpu: u32,
    gpu_instance: u32,
    compute_instance: u32,
) -> Result<[String; 2], String> {
    let node = |below: &str| {
        minor_by_access(proc, gpu, below)
            .or_else(|| minor_by_list(proc, gpu, below))
            .map(|minor| format!("nvidia-caps/nvidia-cap{minor}"))
            .ok_or_else(|| format!("the driver names no device node for {below} of GPU {gpu}"))
    };
    Ok([node(&format!("gi{gpu_instance}"))?, node(&format!("gi{gpu_instance}/ci{compute_instance}"))?])
}

fn minor_by_access(proc: &Path, gpu: u32, below: &str) -> Option<u32> {
    let path = proc.join(format!("driver/nvidia/capabilities/gpu{gpu}/mig/{below}/access"));
    let text = fs::read_to_string(path).ok()?;
    text.lines().find_map(|line| line.strip_prefix("DeviceFileMinor:")?.trim().parse().ok())
}

fn minor_by_list(proc: &Path, gpu: u32, below: &str) -> Option<u32> {
    let text = fs::read_to_string(proc.join("driver/nvidia-caps/mig-minors")).ok()?;
    let wanted = format!("gpu{gpu}/{below}/access");
    text.lines().find_map(|line| {
        let (path, minor) = line.split_once(' ')?;
        (path == wanted).then(|| minor.trim().parse().ok()).flatten()
    })
}

#[cfg(test)]
mod tests;
