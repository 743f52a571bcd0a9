//! Which device nodes there are to protect, and which of them belong to which device: from the inventory, the kernel's list of drivers
//! and sysfs, under injectable roots. Looked up again whenever it may have changed: majors of most drivers are given out anew each time
//! they are loaded.

mod numbers;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::Read as _,
    ops::RangeInclusive,
    path::{Path, PathBuf},
    sync::Arc,
};

use spillway_device_plugin::{
    device::{Device, DeviceId, ResourceName},
    discovery::{KINDS, NodeNames},
    inventory::Inventory,
    sharing::shared_by,
};

use self::numbers::{NoNumber, Numbers};
use super::program::{Number, Rules};

/// `/proc/devices` of no machine is longer.
const LIST_LIMIT: u64 = 64 << 10;
/// Nodes that are looked at in one folder of `/dev`. A machine whose GPUs are all cut up has about two thousand.
const FOLDER_LIMIT: usize = 1 << 14;
/// Majors that the kernel gives to drivers which have none of their own, as all of these but NVIDIA's first (`linux/fs.h`,
/// `CHRDEV_MAJOR_DYN_*`). The others are everybody's: a name alone makes none of them an accelerator's.
const DYNAMIC: [RangeInclusive<u32>; 2] = [234..=254, 384..=511];
/// Nodes that are protected for their names alone. Drivers' majors and what they have registered are not among these.
const NAMED_LIMIT: usize = 256;

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
    /// One of these for each ID without a share's number: what is known of a device that was given by another name.
    pub bases: BTreeMap<DeviceId, DeviceKey>,
    /// Nodes that belong to one device only: two pods that hold one of these are one too many.
    pub exclusive: BTreeSet<Number>,
    /// Names as on the host.
    pub names: BTreeMap<Number, PathBuf>,
    /// What is not as it should be, for people.
    pub doubts: BTreeSet<String>,
}

impl Nodes {
    /// Looks at the machine.
    pub fn look(inventory: &Inventory, roots: &Roots) -> Self {
        let mut nodes = Self::default();
        let numbers = Numbers::look(roots);
        for major in names(|names| names.majors).copied().chain(numbers.majors()) {
            nodes.rules.protect_major(major);
        }
        for (number, node) in numbers.registered() {
            nodes.rules.protect(number);
            nodes.names.insert(number, node);
        }
        let management = management(&roots.proc);
        let rendering = rendering(&roots.sys);
        let (mut users, mut listed) = (BTreeMap::<Number, usize>::new(), BTreeMap::<&Path, usize>::new());
        let mut last = None::<(&Device, Result<BTreeSet<Number>, String>)>;
        for device in inventory.devices() {
            for node in device.nodes.iter() {
                *listed.entry(node).or_default() += 1;
            }
            // Shares of one device have its nodes, and follow each other.
            let own = match last.take() {
                Some((before, own)) if Arc::ptr_eq(&before.nodes, &device.nodes) => own,
                _ => nodes.of_device(device, &numbers, &rendering, &management),
            };
            for number in own.iter().flatten() {
                *users.entry(*number).or_default() += 1;
            }
            let key = (device.resource.clone(), device.id.clone());
            let base = shared_by(&device.id).unwrap_or_else(|| device.id.clone());
            nodes.bases.entry(base).or_insert_with(|| key.clone());
            nodes.devices.insert(key, own.clone());
            last = Some((device, own));
        }
        // A device that lacks one of its nodes counts as a user of the others.
        let alone = |number: &Number| {
            nodes.names.get(number).is_none_or(|node| listed.get(&**node).is_none_or(|count| *count == 1))
        };
        let exclusive = users.into_iter().filter(|(number, users)| *users == 1 && alone(number));
        nodes.exclusive = exclusive.map(|(number, _)| number).collect();
        let known: BTreeSet<_> =
            inventory.devices().filter_map(|device| device.accelerator.pci_address.as_deref()).collect();
        for card in rendering {
            if known.contains(card.address.as_str()) || card.accelerator {
                nodes.rules.protect(card.number);
                nodes.names.insert(card.number, card.node);
            }
        }
        nodes.protect_by_name(&roots.dev, &numbers);
        nodes
    }

    fn of_device(
        &mut self,
        device: &Device,
        numbers: &Numbers,
        rendering: &[Card],
        management: &BTreeSet<u32>,
    ) -> Result<BTreeSet<Number>, String> {
        let mut own = BTreeSet::new();
        for node in device.nodes.iter() {
            let number = numbers.of(node).map_err(|error| {
                self.doubt(&error);
                error.to_string()
            })?;
            self.rules.protect(number);
            self.names.insert(number, node.clone());
            if is_management(node, number, management) {
                self.doubts.insert(format!(
                    "{} of device {} is a management node, and no pod's: left out",
                    node.display(),
                    device.id
                ));
            } else {
                own.insert(number);
            }
        }
        let address = device.accelerator.pci_address.as_deref();
        let cards = rendering.iter().filter(|card| Some(card.address.as_str()) == address);
        own.extend(cards.map(|card| card.number));
        let of_vendor = |vendor: &NodeNames| {
            let below = |node: &PathBuf| Some(node.strip_prefix("/dev").ok()?.to_str()?.to_owned());
            let mut names = device.nodes.iter().filter_map(below);
            names.any(|name| vendor.nodes.iter().any(|begin| name.starts_with(begin)))
        };
        for vendor in KINDS.iter().map(|kind| &kind.nodes).filter(|vendor| of_vendor(vendor)) {
            own.extend(numbers.companions(vendor));
        }
        Ok(own)
    }

    fn doubt(&mut self, error: &NoNumber) {
        if matches!(error, NoNumber::Contradiction { .. }) {
            self.doubts.insert(error.to_string());
        }
    }

    /// Accelerators' nodes that no device needs: of other functions, or not listed yet.
    fn protect_by_name(&mut self, dev: &Path, numbers: &Numbers) {
        let mut room = NAMED_LIMIT;
        let folders = names(|names| names.nodes).filter_map(|name| name.strip_suffix('/'));
        for folder in [""].into_iter().chain(folders) {
            let Ok(entries) = fs::read_dir(dev.join(folder)) else { continue };
            for entry in entries.take(FOLDER_LIMIT).flatten() {
                let name = Path::new(folder).join(entry.file_name());
                if !name.to_str().is_some_and(is_accelerators) {
                    continue;
                }
                let path = Path::new("/dev").join(name);
                match numbers.of(&path) {
                    Err(error) => self.doubt(&error),
                    Ok(number) if self.rules.protects(number) => {
                        self.names.entry(number).or_insert(path);
                    }
                    Ok(number) if !DYNAMIC.iter().any(|majors| majors.contains(&number.major)) => {
                        self.doubts.insert(format!(
                            "{} has the number {number}, which is no accelerator's: somebody has changed the host's /dev",
                            path.display()
                        ));
                    }
                    Ok(_) if room == 0 => {
                        self.doubts.insert(format!(
                            "more than {NAMED_LIMIT} nodes in /dev are called like accelerators', and are of drivers that nobody \
                             knows: the rest is not protected"
                        ));
                    }
                    Ok(number) => {
                        room -= 1;
                        self.rules.protect(number);
                        self.names.entry(number).or_insert(path);
                    }
                }
            }
        }
    }

    /// What a device needs, if it is known: one that a container was given by an earlier configuration may be called otherwise now.
    pub fn of(&self, resource: &ResourceName, id: &DeviceId) -> Option<&Result<BTreeSet<Number>, String>> {
        let key = (resource.clone(), id.clone());
        self.devices.get(&key).or_else(|| {
            let (now, id) = self.bases.get(&shared_by(id).unwrap_or(key.1))?;
            // IDs are a vendor's own; somebody else may hand out the same.
            let vendor =
                |name: &ResourceName| name.as_str().split_once('/').map(|(vendor, _)| vendor.to_owned());
            (vendor(now) == vendor(resource)).then(|| self.devices.get(&(now.clone(), id.clone())))?
        })
    }

    /// What a node is called, for people.
    pub fn name(&self, number: Number) -> String {
        match self.names.get(&number) {
            Some(path) => path.display().to_string(),
            None => format!("character device {number}"),
        }
    }
}

/// Whether a path below `/dev` is what udev or a driver calls an accelerator's node.
fn is_accelerators(name: &str) -> bool {
    name.bytes().all(|byte| byte.is_ascii_graphic()) && begins(name, |names| names.nodes)
}

/// Of every vendor's names, those that `which` picks.
fn names<T: 'static>(which: fn(&NodeNames) -> &'static [T]) -> impl Iterator<Item = &'static T> {
    KINDS.iter().flat_map(move |kind| which(&kind.nodes))
}

/// Whether `name` begins like one of the names that `which` picks.
fn begins(name: &str, which: fn(&NodeNames) -> &'static [&'static str]) -> bool {
    names(which).any(|begin| name.starts_with(begin))
}

/// What is at the path, as far as it is of any use. Nothing of what can't be read.
fn read(path: &Path) -> String {
    let mut bytes = Vec::new();
    let _ = fs::File::open(path).and_then(|file| file.take(LIST_LIMIT).read_to_end(&mut bytes));
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Majors of accelerators' drivers that are loaded now.
pub fn majors(roots: &Roots) -> BTreeSet<u32> {
    let drivers = numbers::drivers(&read(&roots.proc.join("devices")));
    drivers.into_iter().filter(|(_, driver)| numbers::is_ours(driver)).map(|(major, _)| major).collect()
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
    begins(name, |names| names.management)
        || (name.starts_with("nvidia-cap") && minors.contains(&number.minor))
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
                .is_some_and(|driver| names(|names| names.graphics).any(|ours| **ours == driver)),
        })
    };
    entries.flatten().filter_map(card).collect()
}

#[cfg(test)]
mod tests;
