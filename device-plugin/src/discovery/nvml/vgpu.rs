//! Whether this machine's GPUs are a hypervisor's virtual ones. They say so in the configuration space of the PCI bus, by a capability that
//! vendors are free to define; the rest of it can be read with `CAP_SYS_ADMIN` alone.

use std::{fs, path::Path};

/// The vendor's number in sysfs.
const NVIDIA: &str = "0x10de";
/// Of the status register: there is a list of capabilities, and where it begins.
const STATUS: usize = 0x06;
const HAS_CAPABILITIES: u8 = 0x10;
const CAPABILITIES: usize = 0x34;
/// A capability: its kind, where the next is, its length.
const VENDOR_SPECIFIC: u8 = 0x09;
/// All that is of the old bus; the list of capabilities lies within.
const SPACE: usize = 256;
/// How a virtual GPU's begins after that.
const MARK: &[u8] = b"VF";
/// Its records: number, length (both bytes included), data. Number 0 has the host's driver, as two texts.
const TEXT: usize = 10;

/// What kind of GPUs there are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Vgpu {
    /// Real ones, or none.
    None,
    /// Virtual ones that don't say what drives them.
    Unknown,
    /// Virtual ones.
    Driver {
        /// The version of the host's driver.
        version: String,
        /// The branch that it is of.
        branch: String,
    },
}

impl Vgpu {
    /// Looks at all of the vendor's devices. None where one of them can't be read to the end.
    pub(super) fn read(sys: &Path) -> Option<Self> {
        let mut found = Self::None;
        for device in fs::read_dir(sys.join("bus/pci/devices")).ok()?.flatten() {
            let vendor = fs::read_to_string(device.path().join("vendor")).unwrap_or_default();
            if vendor.trim() != NVIDIA {
                continue;
            }
            let config = fs::read(device.path().join("config")).ok()?;
            let one = Self::of(config.get(..SPACE)?);
            if one != Self::None {
                found = one;
            }
        }
        Some(found)
    }

    /// What a device's PCI configuration space says of it; any bytes will do.
    pub fn of(config: &[u8]) -> Self {
        let Some(own) = vendor_specific(config).and_then(|own| own.strip_prefix(MARK)) else {
            return Self::None;
        };
        let mut records = own;
        while let [number, length, data @ ..] = records {
            let length = usize::from(*length);
            if *number == 0
                && let (Some(version), Some(branch)) = (data.get(..TEXT), data.get(TEXT..2 * TEXT))
            {
                return Self::Driver { version: text(version), branch: text(branch) };
            }
            records = records.get(length.max(1)..).unwrap_or_default();
        }
        Self::Unknown
    }
}

/// What follows the head of the first such capability.
fn vendor_specific(config: &[u8]) -> Option<&[u8]> {
    if config.get(STATUS)? & HAS_CAPABILITIES == 0 {
        return None;
    }
    let mut at = usize::from(*config.get(CAPABILITIES)?);
    // A list that runs in circles ends here, too.
    for _ in 0..SPACE {
        let (kind, next, length) =
            (*config.get(at)?, *config.get(at + 1)?, usize::from(*config.get(at + 2)?));
        if at == 0 || kind == 0xff {
            return None;
        }
        if kind == VENDOR_SPECIFIC {
            return config.get(at + 3..(at + length).min(config.len()));
        }
        at = usize::from(next);
    }
    None
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).trim_matches(['\0', ' ']).to_owned()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn space(capability: &[u8]) -> Vec<u8> {
        let mut config = vec![0; SPACE];
        config[STATUS] = HAS_CAPABILITIES;
        config[CAPABILITIES] = 0x40;
        config[0x40..0x43].copy_from_slice(&[0x05, 0x80, 0]);
        config[0x80..0x80 + capability.len()].copy_from_slice(capability);
        config
    }

    #[test]
    fn a_virtual_gpu_names_its_hosts_driver() {
        let head = [0x09, 0, 0x1d, b'V', b'F', 0, 0x16];
        let said = Vgpu::Driver { version: "460.16".to_owned(), branch: "r460_00".to_owned() };
        let driver = b"460.16\0\0\0\0r460_00\0\0\0";
        assert_eq!(Vgpu::of(&space(&[&head[..], driver].concat())), said);
        let after = [0x09, 0, 0x20, b'V', b'F', 7, 3, 1, 0, 0x16];
        assert_eq!(Vgpu::of(&space(&[&after[..], driver].concat())), said);
        assert_eq!(Vgpu::of(&space(&[0x09, 0, 7, b'V', b'F', 7, 2])), Vgpu::Unknown);
        assert_eq!(Vgpu::of(&space(&[0x09, 0, 5, b'X', b'F'])), Vgpu::None);
        assert_eq!(Vgpu::of(&space(&[0x10, 0, 5])), Vgpu::None);
        assert_eq!(Vgpu::of(&[0; SPACE]), Vgpu::None);
    }

    #[test]
    fn what_cannot_be_read_to_the_end_is_not_known() {
        let sys = tempfile::tempdir().unwrap();
        let devices = sys.path().join("bus/pci/devices");
        let device = |address: &str, vendor: &str, config: &[u8]| {
            let folder = devices.join(address);
            fs::create_dir_all(&folder).unwrap();
            fs::write(folder.join("vendor"), vendor).unwrap();
            fs::write(folder.join("config"), config).unwrap();
        };
        assert_eq!(Vgpu::read(sys.path()), None);
        device("0000:00:1f.0", "0x8086\n", &[]);
        assert_eq!(Vgpu::read(sys.path()), Some(Vgpu::None));
        device("0000:17:00.0", "0x10de\n", &[0; SPACE]);
        assert_eq!(Vgpu::read(sys.path()), Some(Vgpu::None));
        device("0000:18:00.0", "0x10de\n", &[0; 64]);
        assert_eq!(Vgpu::read(sys.path()), None, "an unprivileged process sees 64 bytes");
    }

    proptest! {
        #[test]
        fn no_configuration_space_breaks_it(mut config in proptest::collection::vec(any::<u8>(), 0..300), at in any::<u8>()) {
            let _ = Vgpu::of(&config);
            if let Some(place) = config.get_mut(CAPABILITIES) {
                *place = at;
            }
            if let Some(status) = config.get_mut(STATUS) {
                *status |= HAS_CAPABILITIES;
            }
            let _ = Vgpu::of(&config);
        }
    }
}
