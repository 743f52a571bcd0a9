//! What a device is to the kubelet: a name it is asked for by, an ID, a health, a place on the machine, and what a container needs
//! to use it. Nothing here touches the machine.

use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};

/// The longest device ID and the longest resource name (after its slash) that Kubernetes takes.
const NAME_LIMIT: usize = 63;

/// Why a name was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// A device ID that is empty, too long, or could leave a folder.
    #[error(
        "{0:?} can't be a device ID: 1 to 63 printable ASCII characters without '/', ',' or spaces, not starting with '.'"
    )]
    DeviceId(String),
    /// A resource name that a kubelet would refuse.
    #[error(
        "{0:?} can't be a resource name: expected DOMAIN/NAME, not under kubernetes.io, NAME of at most 63 letters, digits, '-', '_', '.'"
    )]
    ResourceName(String),
}

/// A device ID, unique within its resource, the same from start to start. It goes into file names and comma-separated lists, so
/// neither separator is part of it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceId(String);

impl DeviceId {
    /// Takes `id` if it is one.
    pub fn new(id: impl Into<String>) -> Result<Self, NameError> {
        let id = id.into();
        let sound = (1..=NAME_LIMIT).contains(&id.len())
            && !id.starts_with('.')
            && id.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'/' && byte != b',');
        if sound { Ok(Self(id)) } else { Err(NameError::DeviceId(id)) }
    }

    /// The ID as the kubelet sees it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for DeviceId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// An extended resource's name, such as `nvidia.com/gpu`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ResourceName(Arc<str>);

impl ResourceName {
    /// Takes `name` if a kubelet would (`IsExtendedResourceName` in `pkg/apis/core/v1/helper`).
    pub fn new(name: impl Into<String>) -> Result<Self, NameError> {
        let name = name.into();
        if is_extended_resource(&name) { Ok(Self(name.into())) } else { Err(NameError::ResourceName(name)) }
    }

    /// The name as pods spell it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ResourceName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// As much of `text` as fits into a resource name's end: at most `limit` characters that one may have, with '-' for those that it may not.
/// Empty where nothing is left.
pub(crate) fn fitting(text: &str, limit: usize) -> String {
    let allowed = |character: char| character.is_ascii_alphanumeric() || "-_.".contains(character);
    let spelled: String =
        text.chars().take(limit).map(|character| if allowed(character) { character } else { '-' }).collect();
    spelled.trim_matches(|character: char| !character.is_ascii_alphanumeric()).to_owned()
}

fn is_extended_resource(name: &str) -> bool {
    let Some((domain, kind)) = name.split_once('/') else { return false };
    let label = |text: &str| {
        let edge = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
        edge(text.as_bytes().first()) && edge(text.as_bytes().last())
    };
    let domain_sound = domain.len() <= 253 - "requests.".len()
        && domain.split('.').all(|part| {
            label(part)
                && part.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
        });
    let kind_sound = kind.len() <= NAME_LIMIT
        && label(kind)
        && kind.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
    let native = domain == "kubernetes.io" || domain.ends_with(".kubernetes.io");
    domain_sound && kind_sound && !native && !domain.starts_with("requests.")
}

/// Whether a device may be handed out. The kubelet leaves running pods alone either way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    /// It may.
    Healthy,
    /// It may not; the text says why, for people.
    Unhealthy(String),
}

impl Health {
    /// Whether the device may be handed out.
    pub fn is_healthy(&self) -> bool {
        matches!(self, Self::Healthy)
    }
}

/// A physical accelerator, as it is now: what all devices on it share. What the hardware does not say is absent, never a number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Accelerator {
    /// Its ID, the same from start to start: a GPU's UUID, an FPGA's PCI address.
    pub id: DeviceId,
    /// The vendor's own number for it.
    pub index: Option<u32>,
    /// What the vendor calls it.
    pub product: Option<String>,
    /// `0000:17:00.0`, as sysfs spells it.
    pub pci_address: Option<String>,
    /// The NUMA node it hangs off, where the machine says.
    pub numa_node: Option<u32>,
    /// Its memory in MiB.
    pub memory_mib: Option<u64>,
    /// How close other accelerators are, by their ID: 0 and absent is "no better than any other", more is closer. Symmetric.
    pub links: BTreeMap<DeviceId, u32>,
    /// What its sensors said at the last look.
    pub readings: Readings,
    /// The host's folder that has its nodes, where that is not `/dev`: a driver container makes them in its own.
    pub dev: Option<PathBuf>,
}

impl Accelerator {
    /// An accelerator of which nothing is known but its ID.
    pub fn new(id: DeviceId) -> Self {
        Self {
            id,
            index: None,
            product: None,
            pci_address: None,
            numa_node: None,
            memory_mib: None,
            links: BTreeMap::new(),
            readings: Readings::default(),
            dev: None,
        }
    }
}

/// What an accelerator's sensors say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Readings {
    /// Degrees Celsius.
    pub temperature_celsius: Option<u32>,
    /// Milliwatts drawn.
    pub power_milliwatts: Option<u64>,
    /// Percent of the last moments in which it computed. Absent under MIG.
    pub utilization_percent: Option<u32>,
    /// Percent of the last moments in which each process computed, by its ID; one that is not in it did not. None where that is not
    /// told.
    pub process_utilization_percent: Option<BTreeMap<u32, u32>>,
    /// Percent of the time since the last look in which each partition computed, where that is told.
    pub partition_utilization_percent: BTreeMap<DeviceId, u32>,
    /// Memory in use, in MiB.
    pub memory_used_mib: Option<u64>,
    /// Error counters by name, such as `ecc_uncorrected`.
    pub errors: BTreeMap<&'static str, u64>,
    /// XIDs since this process began to look, by number.
    pub xids: BTreeMap<u64, u64>,
    /// The processes that use it.
    pub processes: Vec<Process>,
}

/// A process that uses an accelerator.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Process {
    /// Its ID as the host counts.
    pub pid: u32,
    /// The partition it is on, if the accelerator is partitioned.
    pub partition: Option<DeviceId>,
    /// Accelerator memory that it holds, in MiB.
    pub memory_mib: Option<u64>,
}

/// A part of an accelerator that is handed out on its own, such as a MIG device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Partition {
    /// Its own ID, unique on the machine.
    pub id: DeviceId,
    /// Its shape as the vendor spells it, such as `1g.5gb`.
    pub profile: String,
    /// Its memory in MiB.
    pub memory_mib: Option<u64>,
    /// The numbers of its GPU instance and compute instance.
    pub instance: Option<(u32, u32)>,
    /// The vendor's own number for it among those of its accelerator.
    pub index: Option<u32>,
}

impl Partition {
    /// The profile of an FPGA's port: all are the same shape.
    pub const PORT: &'static str = "port";
}

/// One of several equal shares of a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replica {
    /// Counted from zero.
    pub number: u32,
    /// How many there are.
    pub of: u32,
    /// The accelerator memory that a holder may use, in MiB, where that is limited.
    pub memory_mib: Option<u64>,
}

/// What the kubelet hands out: an accelerator, a partition of one, or a replica of either.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// Its ID within `resource`.
    pub id: DeviceId,
    /// What pods ask for to get it.
    pub resource: ResourceName,
    /// Whether it may be handed out.
    pub health: Health,
    /// The device nodes that a container needs to use it, those that it shares with its siblings included: paths below `/dev`, as on the
    /// host unless its accelerator says otherwise.
    pub nodes: Arc<[PathBuf]>,
    /// The environment variable in which the vendor's software expects the IDs of a container's devices, if there is one.
    pub listed_in: Option<&'static str>,
    /// The accelerator that it is, or is a part of.
    pub accelerator: Arc<Accelerator>,
    /// The partition that it is, if the accelerator is partitioned.
    pub partition: Option<Arc<Partition>>,
    /// Which share it is, if several pods share it.
    pub replica: Option<Replica>,
}

impl Device {
    /// Its nodes: what a container finds each as, and where the host has it.
    pub fn host_nodes(&self) -> impl Iterator<Item = (&Path, PathBuf)> {
        self.nodes.iter().map(|node| match (&self.accelerator.dev, node.strip_prefix("/dev")) {
            (Some(dev), Ok(name)) => (node.as_path(), dev.join(name)),
            _ => (node.as_path(), node.clone()),
        })
    }

    /// The ID of what is behind it in hardware: the partition's or the accelerator's. Replicas have it in common.
    pub fn unit(&self) -> &DeviceId {
        self.partition.as_ref().map_or(&self.accelerator.id, |partition| &partition.id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_ids_never_leave_a_folder_or_a_list() {
        for good in ["GPU-fef8089b-4820-abfc-e83e-94318197576e", "0000:5e:00.0-port0", "a", &"x".repeat(63)] {
            assert!(DeviceId::new(good).is_ok(), "{good}");
        }
        for bad in ["", ".", "..", "../kubelet", "a/b", "a,b", "a b", "GPU\n", "é", "a\0", &"x".repeat(64)] {
            assert!(DeviceId::new(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn what_a_driver_calls_itself_is_made_to_fit_a_name() {
        let check = |text: &str, limit: usize, expected: &str| assert_eq!(fitting(text, limit), expected);
        check("xilinx_u250_gen3x16_xdma_shell_4_1", 63, "xilinx_u250_gen3x16_xdma_shell_4_1");
        check("xilinx:u250:gen3x16", 63, "xilinx-u250-gen3x16");
        check("../../etc/passwd", 63, "etc-passwd");
        check("__a\u{fc}b__", 63, "a-b");
        check("abcdef", 3, "abc");
        check("ab-cd", 3, "ab");
        check("\0\0/", 63, "");
    }

    #[test]
    fn resource_names_are_what_a_kubelet_takes() {
        let longest = format!("example.com/{}", "x".repeat(63));
        for good in ["nvidia.com/gpu", "fpga.intel.com/region-0123456789abcdef0123456789abcdef", &longest] {
            assert!(ResourceName::new(good).is_ok(), "{good}");
        }
        let too_long = format!("example.com/{}", "x".repeat(64));
        for bad in [
            "",
            "gpu",
            "/gpu",
            "nvidia.com/",
            "kubernetes.io/gpu",
            "node.kubernetes.io/gpu",
            "requests.nvidia.com/gpu",
            "nvidia.com/gpu/0",
            "NVIDIA.com/gpu",
            "nvidia..com/gpu",
            "nvidia.com/gpu-",
            "nvidia.com/../x",
            &too_long,
        ] {
            assert!(ResourceName::new(bad).is_err(), "{bad:?}");
        }
    }
}
