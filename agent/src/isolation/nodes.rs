//! Which device nodes there are to protect, and which of them belong to which device: from the inventory, the kernel's list of drivers
//! and sysfs, under injectable roots. Looked up again whenever it may have changed: majors of most drivers are given out anew each time
//! they are loaded.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::{
        ffi::OsStrExt as _,
        fs::{FileTypeExt as _, MetadataExt as _},
    },
    path::{Path, PathBuf},
};

use spillway_device_plugin::{
    device::{Device, DeviceId, ResourceName},
    inventory::Inventory,
};

use super::program::{Number, Rules};

/// NVIDIA's own major, fixed: GPUs and control nodes. Protected even before the driver is loaded.
const NVIDIA_MAJOR: u32 = 195;
/// Drivers of accelerators by the beginnings of their names in `/proc/devices`: NVIDIA (nvidia, nvidia-uvm, nvidia-caps, …), Intel FPGA
/// (dfl-fme, dfl-port, intel-fpga-…) and AMD FPGA, user and management function (xocl…, xclmgmt).
const DRIVERS: [&str; 6] = ["nvidia", "dfl-", "intel-fpga", "xclmgmt", "xocl", "xfpga"];
/// The same for what udev calls their nodes, should the driver go by another name.
const NODES: [&str; 6] = ["nvidia", "dfl-fme.", "dfl-port.", "intel-fpga-", "xclmgmt", "xfpga"];
/// PCI drivers whose render nodes reach an accelerator.
const RENDERING_DRIVERS: [&str; 3] = ["nvidia", "xocl", "xclmgmt"];
/// `/proc/devices` of no machine is longer.
const LIST_LIMIT: usize = 64 << 10;

/// Where the machine is looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Roots {
    /// The host's sysfs.
    pub sys: PathBuf,
    /// The host's device nodes as this process sees them.
    pub dev: PathBuf,
    /// procfs. Its `devices` and `driver` are the same in every container.
    pub proc: PathBuf,
}

/// A device as the kubelet names it.
pub type DeviceKey = (ResourceName, DeviceId);

/// All there is to protect.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Nodes {
    /// What is protected.
    pub rules: Rules,
    /// What each device needs; or why that can't be told now.
    pub devices: BTreeMap<DeviceKey, Result<BTreeSet<Number>, String>>,
    /// Nodes that belong to one device only: two pods that hold one of these are one too many.
    pub exclusive: BTreeSet<Number>,
    /// Names as on the host.
    pub names: BTreeMap<Number, PathBuf>,
}

impl Nodes {
    /// Looks at the machine.
    pub fn look(inventory: &Inventory, roots: &Roots) -> Self {
        let mut nodes = Self::default();
        nodes.rules.protect_major(NVIDIA_MAJOR);
        for major in drivers(&read(&roots.proc.join("devices"))) {
            nodes.rules.protect_major(major);
        }
        let management = management(&roots.proc);
        let rendering = rendering(&roots.sys);
        let mut users = BTreeMap::<Number, usize>::new();
        for device in inventory.devices() {
            let numbers = nodes.of_device(device, roots, &rendering, &management);
            for number in numbers.iter().flatten() {
                *users.entry(*number).or_default() += 1;
            }
            nodes.devices.insert((device.resource.clone(), device.id.clone()), numbers);
        }
        nodes.exclusive =
            users.into_iter().filter(|(_, users)| *users == 1).map(|(number, _)| number).collect();
        let known: BTreeSet<_> =
            inventory.devices().filter_map(|device| device.accelerator.pci_address.as_deref()).collect();
        for card in rendering {
            if known.contains(card.address.as_str()) || card.accelerator {
                nodes.rules.protect(card.number);
                nodes.names.insert(card.number, card.node);
            }
        }
        nodes.protect_by_name(&roots.dev);
        nodes
    }

    fn of_device(
        &mut self,
        device: &Device,
        roots: &Roots,
        rendering: &[Card],
        management: &BTreeSet<u32>,
    ) -> Result<BTreeSet<Number>, String> {
        let mut numbers = BTreeSet::new();
        for node in &device.nodes {
            let number = number_of(node, &roots.dev)?;
            self.rules.protect(number);
            self.names.insert(number, node.clone());
            if is_management(node, number, management) {
                tracing::warn!(device.id = %device.id, node = %node.display(), "a management node is no pod's: left out");
            } else {
                numbers.insert(number);
            }
        }
        let address = device.accelerator.pci_address.as_deref();
        let own = rendering.iter().filter(|card| Some(card.address.as_str()) == address);
        numbers.extend(own.map(|card| card.number));
        Ok(numbers)
    }

    /// Accelerators' nodes that no device needs: of other functions, or not listed yet.
    fn protect_by_name(&mut self, dev: &Path) {
        for folder in ["", "nvidia-caps", "nvidia-caps-imex-channels", "xfpga"] {
            let Ok(entries) = fs::read_dir(dev.join(folder)) else { continue };
            for entry in entries.flatten() {
                let path = Path::new("/dev").join(folder).join(entry.file_name());
                let ours =
                    NODES.iter().any(|name| path.as_os_str().as_bytes()[5..].starts_with(name.as_bytes()));
                if ours && let Ok(number) = number_of(&path, dev) {
                    self.rules.protect(number);
                    self.names.entry(number).or_insert(path);
                }
            }
        }
    }

    /// What a node is called, for people.
    pub fn name(&self, number: Number) -> String {
        match self.names.get(&number) {
            Some(path) => path.display().to_string(),
            None => format!("character device {number}"),
        }
    }
}

/// The number of the character device at `node`, a path below the host's `/dev`.
fn number_of(node: &Path, dev: &Path) -> Result<Number, String> {
    let below = node.strip_prefix("/dev").map_err(|_| format!("{} is not below /dev", node.display()))?;
    if below.components().any(|part| !matches!(part, std::path::Component::Normal(_))) {
        return Err(format!("{} leaves /dev", node.display()));
    }
    // A link could lead anywhere: only nodes themselves count.
    let data = fs::symlink_metadata(dev.join(below))
        .map_err(|error| format!("{} can't be looked at: {error}", node.display()))?;
    if !data.file_type().is_char_device() {
        return Err(format!("{} is no character device", node.display()));
    }
    let (major, minor) = (nix::sys::stat::major(data.rdev()), nix::sys::stat::minor(data.rdev()));
    match (u32::try_from(major), u32::try_from(minor)) {
        (Ok(major), Ok(minor)) => Ok(Number { major, minor }),
        _ => Err(format!("{} has an impossible number", node.display())),
    }
}

fn read(path: &Path) -> String {
    let mut bytes = fs::read(path).unwrap_or_default();
    bytes.truncate(LIST_LIMIT);
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Majors of accelerators' drivers in `/proc/devices`: lines `MAJOR NAME`, character devices first, block devices after an empty line.
pub fn drivers(list: &str) -> BTreeSet<u32> {
    let characters = list.lines().skip_while(|line| !line.starts_with("Character")).skip(1);
    characters
        .take_while(|line| !line.trim().is_empty() && !line.starts_with("Block"))
        .filter_map(|line| {
            let (major, name) = line.trim().split_once(' ')?;
            let ours = DRIVERS.iter().any(|driver| name.trim().starts_with(driver));
            ours.then(|| major.parse().ok())?
        })
        .collect()
}

/// Minors of the MIG capabilities that govern a whole GPU.
fn management(proc: &Path) -> BTreeSet<u32> {
    ["config", "monitor"]
        .into_iter()
        .filter_map(|name| {
            let text = read(&proc.join("driver/nvidia/capabilities/mig").join(name));
            text.lines().find_map(|line| line.strip_prefix("DeviceFileMinor:")?.trim().parse().ok())
        })
        .collect()
}

/// Nodes through which more than one pod's share can be changed. They are nobody's, even if a back end should list them.
fn is_management(node: &Path, number: Number, minors: &BTreeSet<u32>) -> bool {
    let name = node.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    name.starts_with("xclmgmt") || (name.starts_with("nvidia-cap") && minors.contains(&number.minor))
}

/// A node of the kernel's graphics subsystem. They all share one major, with the graphics cards that are nobody's business here.
#[derive(Debug)]
struct Card {
    number: Number,
    node: PathBuf,
    address: String,
    accelerator: bool,
}

fn rendering(sys: &Path) -> Vec<Card> {
    let Ok(entries) = fs::read_dir(sys.join("class/drm")) else { return Vec::new() };
    let card = |entry: fs::DirEntry| {
        let path = entry.path();
        let name = entry.file_name().into_string().ok()?;
        let number = read(&path.join("dev"));
        let (major, minor) = number.trim().split_once(':')?;
        let last =
            |link: &str| Some(fs::canonicalize(path.join(link)).ok()?.file_name()?.to_str()?.to_owned());
        Some(Card {
            number: Number { major: major.parse().ok()?, minor: minor.parse().ok()? },
            node: Path::new("/dev/dri").join(name),
            address: last("device")?,
            accelerator: last("device/driver")
                .is_some_and(|driver| RENDERING_DRIVERS.contains(&driver.as_str())),
        })
    };
    entries.flatten().filter_map(card).collect()
}

#[cfg(test)]
mod tests;
