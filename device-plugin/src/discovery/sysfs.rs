//! Reading sysfs, where nothing can be relied on: attributes come from firmware by way of a driver, and any of them may be absent,
//! empty, cut off or garbage.

use std::{
    fs::{self, File},
    io::{self, Read as _},
    path::{Path, PathBuf},
};

/// An attribute is at most a page (`sysfs_emit`). More is none of the kernel's making.
const PAGE: u64 = 4096;
/// As much of a bad value as a message repeats.
const SHOWN: usize = 40;

/// Why an attribute says nothing.
#[derive(Debug, thiserror::Error)]
pub(super) enum SysfsError {
    /// The driver doesn't show it, or shows it and says that there is nothing (`compat_id` of a region without one).
    #[error("{0} is absent")]
    Absent(String),
    /// It can't be read.
    #[error("can't read {name}: {source}")]
    Read {
        /// Its name.
        name: String,
        /// What the system says.
        source: io::Error,
    },
    /// There is nothing in it.
    #[error("{0} is empty")]
    Empty(String),
    /// It is not what the kernel's documentation says.
    #[error("{name} is no {expected}: {value:?}")]
    Nonsense {
        /// Its name.
        name: String,
        /// What was expected.
        expected: &'static str,
        /// The beginning of what it is.
        value: String,
    },
}

impl SysfsError {
    /// Whether it is just not there.
    pub(super) fn is_absent(&self) -> bool {
        matches!(self, Self::Absent(_))
    }

    /// Whether the driver says that it can't tell just now: a port in reset, or one that is being programmed.
    pub(super) fn is_busy(&self) -> bool {
        matches!(self, Self::Read { source, .. } if source.kind() == io::ErrorKind::ResourceBusy)
    }
}

/// The attribute, or none if the driver does not show it. What it shows must make sense.
pub(super) fn optional<T>(attribute: Result<T, SysfsError>) -> Result<Option<T>, SysfsError> {
    match attribute {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.is_absent() => Ok(None),
        Err(error) => Err(error),
    }
}

/// The bytes of an attribute.
pub(super) fn bytes(path: &Path) -> Result<Vec<u8>, SysfsError> {
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(PAGE + 1).read_to_end(&mut bytes));
    match read {
        Ok(_) if bytes.len() as u64 > PAGE => {
            bytes.truncate(SHOWN);
            Err(nonsense(path, "attribute", &String::from_utf8_lossy(&bytes)))
        }
        Ok(_) => Ok(bytes),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(SysfsError::Absent(file_name(path))),
        Err(source) => Err(SysfsError::Read { name: file_name(path), source }),
    }
}

/// A text attribute without the space around it; never empty.
pub(super) fn text(path: &Path) -> Result<String, SysfsError> {
    let bytes = bytes(path)?;
    let text = std::str::from_utf8(&bytes)
        .map_err(|_| nonsense(path, "text", &String::from_utf8_lossy(&bytes)))?
        .trim();
    if text.is_empty() { Err(SysfsError::Empty(file_name(path))) } else { Ok(text.to_owned()) }
}

/// A number, decimal or hexadecimal with `0x` before it.
pub(super) fn number(path: &Path) -> Result<u64, SysfsError> {
    let text = text(path)?;
    let parsed =
        text.strip_prefix("0x").map_or_else(|| text.parse(), |digits| u64::from_str_radix(digits, 16));
    parsed.map_err(|_| nonsense(path, "number", &text))
}

/// 128 bits in hexadecimal, in lower case.
pub(super) fn id128(path: &Path) -> Result<String, SysfsError> {
    let id = text(path)?.to_ascii_lowercase();
    if id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        Ok(id)
    } else {
        Err(nonsense(path, "128-bit id", &id))
    }
}

/// The NUMA node of a device; none where the machine has none, which the kernel says as -1.
pub(super) fn numa_node(device: &Path) -> Option<u32> {
    text(&device.join("numa_node")).ok()?.parse().ok()
}

/// The PCI address of the device that `link` leads to, such as `0000:5e:00.0`.
pub(super) fn pci_address(link: &Path) -> Option<String> {
    let name = file_name(&fs::canonicalize(link).ok()?);
    is_pci_address(&name).then_some(name)
}

/// Whether a name is domain, bus, device and function.
pub(super) fn is_pci_address(name: &str) -> bool {
    let hexadecimal =
        |text: &str, length| text.len() == length && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let Some((domain, rest)) = name.split_once(':') else { return false };
    let Some((bus, rest)) = rest.split_once(':') else { return false };
    let Some((device, function)) = rest.split_once('.') else { return false };
    // Domains of some hypervisors have more than four digits.
    (4..=8).contains(&domain.len())
        && hexadecimal(domain, domain.len())
        && hexadecimal(bus, 2)
        && hexadecimal(device, 2)
        && hexadecimal(function, 1)
}

/// The entries of `folder` that are called `prefix` and a number, in that order. A folder that is absent has none.
pub(super) fn children(folder: &Path, prefix: &str) -> Vec<PathBuf> {
    let mut found: Vec<(u32, PathBuf)> = fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let number = entry.file_name().to_str()?.strip_prefix(prefix)?.parse().ok()?;
            Some((number, entry.path()))
        })
        .collect();
    found.sort();
    found.into_iter().map(|(_, path)| path).collect()
}

/// The last part of a path.
pub(super) fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn nonsense(path: &Path, expected: &'static str, value: &str) -> SysfsError {
    SysfsError::Nonsense { name: file_name(path), expected, value: value.chars().take(SHOWN).collect() }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn with(content: &[u8]) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("attribute");
        fs::write(&path, content).unwrap();
        (folder, path)
    }

    #[test]
    fn numbers_are_spelled_in_two_ways() {
        let check = |content: &str, expected: Option<u64>| {
            let (_folder, path) = with(content.as_bytes());
            assert_eq!(number(&path).ok(), expected, "{content:?}");
        };
        check("0x0\n", Some(0));
        check("0xffffffffffffffff\n", Some(u64::MAX));
        check("12\n", Some(12));
        check("0x1ffffffffffffffff\n", None);
        check("-1\n", None);
        check("0x\n", None);
        check("0x0x1\n", None);
        check("ab\n", None);
    }

    #[test]
    fn what_is_wrong_with_an_attribute_is_said() {
        let said = |content: &[u8]| {
            let (_folder, path) = with(content);
            text(&path).unwrap_err().to_string()
        };
        assert_eq!(said(b" \n"), "attribute is empty");
        assert!(said(&[0xff; 8]).starts_with("attribute is no text"));
        assert!(said(&[b'x'; 5000]).starts_with("attribute is no attribute"));
        let absent = number(Path::new("/nonexistent/errors"));
        assert!(absent.as_ref().is_err_and(SysfsError::is_absent));
        assert!(optional(absent).unwrap().is_none());
    }

    #[test]
    fn only_pci_addresses_are_pci_addresses() {
        for good in ["0000:5e:00.0", "10000:e1:1f.7"] {
            assert!(is_pci_address(good), "{good}");
        }
        for bad in ["", "fpga-full", "0000:5e:00", "0000:5e:00.0/..", "0000:5e:0g.0", "::.", "0000:5e:00.00"]
        {
            assert!(!is_pci_address(bad), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_parsers_panic(content in proptest::collection::vec(any::<u8>(), 0..64)) {
            let (_folder, path) = with(&content);
            let _ = number(&path);
            if let Ok(id) = id128(&path) {
                prop_assert!(id.len() == 32);
            }
        }
    }
}
