//! Which number the node of a name has. The kernel's word counts, which no pod can change: sysfs lists what drivers have registered, by number
//! and name, and `/proc/devices` says whose a major is. `/dev` is asked where the kernel says nothing, as of NVIDIA's nodes, and believed
//! where it fits their names: a pod that has the host's `/dev` can put any number under any name.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::{FileTypeExt as _, MetadataExt as _},
    path::{Path, PathBuf},
};

use spillway_device_plugin::discovery::{NodeNames, nvml};

use super::{Roots, begins, is_accelerators, read};
use crate::isolation::program::Number;

/// More character devices than a machine has.
const LIMIT: usize = 1 << 16;

/// Why a node has no number that could be relied on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum NoNumber {
    #[error("{} is not below /dev", .0.display())]
    Elsewhere(PathBuf),
    #[error("{} leaves /dev", .0.display())]
    Leaves(PathBuf),
    #[error("{} can't be looked at: {why}", node.display())]
    Look { node: PathBuf, why: String },
    #[error("{} is no character device", .0.display())]
    OtherKind(PathBuf),
    #[error("{} has an impossible number", .0.display())]
    Impossible(PathBuf),
    /// Somebody put another device there.
    #[error("{} has the number {found} of {whose}: somebody has changed the host's /dev, make it anew", node.display())]
    Contradiction { node: PathBuf, found: Number, whose: String },
}

/// What the kernel says of character devices.
#[derive(Debug, Default)]
pub(super) struct Numbers {
    dev: PathBuf,
    /// What drivers have registered, as paths below `/dev`. NVIDIA's register nothing.
    names: BTreeMap<Number, String>,
    by_name: BTreeMap<String, Number>,
    drivers: Vec<(u32, String)>,
}

impl Numbers {
    pub(super) fn look(roots: &Roots) -> Self {
        let listed = fs::read_dir(roots.sys.join("dev/char")).into_iter().flatten().flatten();
        let registered = listed.take(LIMIT).filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let (major, minor) = name.split_once(':')?;
            let number = Number { major: major.parse().ok()?, minor: minor.parse().ok()? };
            // A folder of nodes is part of the name, with another separator (`device_get_devnode` in drivers/base/core.c).
            let device = fs::read_link(entry.path()).ok()?;
            Some((number, device.file_name()?.to_str()?.replace('!', "/")))
        });
        let names: BTreeMap<_, _> = registered.collect();
        let by_name = names.iter().map(|(number, name)| (name.clone(), *number)).collect();
        let drivers = drivers(&read(&roots.proc.join("devices")));
        Self { dev: roots.dev.clone(), names, by_name, drivers }
    }

    /// Majors of accelerators' drivers.
    pub(super) fn majors(&self) -> impl Iterator<Item = u32> {
        self.drivers.iter().filter(|(_, driver)| is_ours(driver)).map(|(major, _)| *major)
    }

    /// Accelerators' nodes that drivers have registered.
    pub(super) fn registered(&self) -> impl Iterator<Item = (Number, PathBuf)> {
        let ours = self.names.iter().filter(|(_, name)| is_accelerators(name));
        ours.map(|(number, name)| (*number, Path::new("/dev").join(name)))
    }

    /// What other drivers add to a vendor's devices: by their names, or registered under names that begin so.
    pub(super) fn companions(&self, vendor: &NodeNames) -> BTreeSet<Number> {
        let named = vendor.companions.iter().filter_map(|name| self.of(&Path::new("/dev").join(name)).ok());
        let registered = self
            .names
            .iter()
            .filter(|(_, name)| vendor.companions.iter().any(|begin| name.starts_with(begin)));
        named.chain(registered.map(|(number, _)| *number)).collect()
    }

    /// The number of the character device `node`, a path below the host's `/dev`.
    pub(super) fn of(&self, node: &Path) -> Result<Number, NoNumber> {
        let below = node.strip_prefix("/dev").map_err(|_| NoNumber::Elsewhere(node.to_owned()))?;
        if below.components().any(|part| !matches!(part, std::path::Component::Normal(_))) {
            return Err(NoNumber::Leaves(node.to_owned()));
        }
        let name = below.to_str().unwrap_or_default();
        let nvidia = of_nvidia(name);
        if nvidia.is_none()
            && let Some(number) = self.by_name.get(name)
        {
            return Ok(*number);
        }
        let known = nvidia.and_then(|(driver, minor)| {
            let major = if driver == "nvidia" { Some(nvml::MAJOR) } else { self.major_of(driver) };
            Some(Number { major: major?, minor })
        });
        let found = match (self.in_dev(node, below), known) {
            // A driver container has it in a `/dev` of its own.
            (Err(NoNumber::Look { .. }), Some(known)) => return Ok(known),
            (found, _) => found?,
        };
        let contradiction = |whose| Err(NoNumber::Contradiction { node: node.to_owned(), found, whose });
        match nvidia {
            Some((driver, minor))
                if found.minor != minor || known.is_some_and(|known| found.major != known.major) =>
            {
                return contradiction(format!("another than the driver {driver} gives it"));
            }
            None if found.major == nvml::MAJOR && !name.starts_with("nvidia") => {
                return contradiction("an NVIDIA device".to_owned());
            }
            Some(_) | None => {}
        }
        if let Some(kernels) = self.names.get(&found)
            && Path::new(kernels).file_name() != below.file_name()
        {
            return contradiction(format!("/dev/{kernels}"));
        }
        let mut drivers =
            self.drivers.iter().filter(|(major, _)| *major == found.major).map(|(_, name)| name);
        match drivers.clone().next() {
            // Several drivers can share a major.
            Some(driver) if !self.names.contains_key(&found) && !drivers.any(|driver| is_ours(driver)) => {
                contradiction(format!("a device of the driver {driver}"))
            }
            _ => Ok(found),
        }
    }

    fn major_of(&self, driver: &str) -> Option<u32> {
        self.drivers.iter().find(|(_, name)| name == driver).map(|(major, _)| *major)
    }

    fn in_dev(&self, node: &Path, below: &Path) -> Result<Number, NoNumber> {
        // A link could lead anywhere: only nodes themselves count.
        let data = fs::symlink_metadata(self.dev.join(below))
            .map_err(|error| NoNumber::Look { node: node.to_owned(), why: error.to_string() })?;
        if !data.file_type().is_char_device() {
            return Err(NoNumber::OtherKind(node.to_owned()));
        }
        let (major, minor) = (nix::sys::stat::major(data.rdev()), nix::sys::stat::minor(data.rdev()));
        match (u32::try_from(major), u32::try_from(minor)) {
            (Ok(major), Ok(minor)) => Ok(Number { major, minor }),
            _ => Err(NoNumber::Impossible(node.to_owned())),
        }
    }
}

/// The driver and the minor of a node of NVIDIA's, by its name (nvidia-modprobe's `nvidia-modprobe-utils.c`).
fn of_nvidia(name: &str) -> Option<(&'static str, u32)> {
    let minor = |text: &str| text.parse().ok();
    match name {
        "nvidiactl" => Some(("nvidia", 255)),
        "nvidia-modeset" => Some(("nvidia", 254)),
        "nvidia-uvm" => Some(("nvidia-uvm", 0)),
        "nvidia-uvm-tools" => Some(("nvidia-uvm", 1)),
        _ => {
            if let Some(cap) = name.strip_prefix("nvidia-caps/nvidia-cap") {
                return Some(("nvidia-caps", minor(cap)?));
            }
            if let Some(channel) = name.strip_prefix("nvidia-caps-imex-channels/channel") {
                return Some(("nvidia-caps-imex-channels", minor(channel)?));
            }
            Some(("nvidia", minor(name.strip_prefix("nvidia")?)?))
        }
    }
}

pub(super) fn is_ours(driver: &str) -> bool {
    begins(driver, |names| names.drivers)
}

/// Majors and names of drivers in `/proc/devices`: lines `MAJOR NAME`, character devices first, block devices after an empty line.
pub(super) fn drivers(list: &str) -> Vec<(u32, String)> {
    let characters = list.lines().skip_while(|line| !line.starts_with("Character")).skip(1);
    characters
        .take_while(|line| !line.trim().is_empty() && !line.starts_with("Block"))
        .filter_map(|line| {
            let (major, name) = line.trim().split_once(' ')?;
            Some((major.parse().ok()?, name.trim().to_owned()))
        })
        .collect()
}
