//! What a device is to the kubelet: a name it is asked for by, an ID, a health, a place on the machine, and what a container needs
//! to use it. Nothing here touches the machine.

use std::{fmt, path::PathBuf};

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
pub struct ResourceName(String);

impl ResourceName {
    /// Takes `name` if a kubelet would (`IsExtendedResourceName` in `pkg/apis/core/v1/helper`).
    pub fn new(name: impl Into<String>) -> Result<Self, NameError> {
        let name = name.into();
        if is_extended_resource(&name) { Ok(Self(name)) } else { Err(NameError::ResourceName(name)) }
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

/// One accelerator, as it is now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// Its ID within `resource`.
    pub id: DeviceId,
    /// What pods ask for to get it.
    pub resource: ResourceName,
    /// Whether it may be handed out.
    pub health: Health,
    /// The NUMA node it hangs off, where the machine says.
    pub numa_node: Option<u32>,
    /// The host's device nodes that a container needs to use it, those that it shares with its siblings included.
    pub nodes: Vec<PathBuf>,
    /// The environment variable in which the vendor's software expects the IDs of a container's devices, if there is one.
    pub listed_in: Option<&'static str>,
    /// Its temperature, where the hardware says, in degrees Celsius.
    pub temperature_celsius: Option<u32>,
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
