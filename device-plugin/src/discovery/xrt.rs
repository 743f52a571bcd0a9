//! AMD (Xilinx) accelerator cards with the XRT driver, by sysfs. A card shows two PCI functions: pods get the user function (`xocl`),
//! as `amd.com/<shell>-<timestamp>`; the management function (`xclmgmt`), which programs the card's shell for everybody, is no device here and
//! its node is given to nobody.
//!
//! ```text
//! bus/pci/devices/0000:65:00.1/
//!   user_pf  vendor                     what it is; a management function has `mgmt_pf` instead
//!   rom.u.N/{VBNV,timestamp}            the shell, to which an application is compiled
//!   drm/renderD128                      the node; `dma.qdma.u.N/` tells of a second one for streams
//!   ready  dev_offline  device_bad_state  mailbox_connect_state  mig_calibration  xclbinuuid  xocl_errors
//! ```
//!
//! Source of the attributes: `src/runtime_src/core/pcie/driver/linux/xocl/userpf/xocl_sysfs.c` in Xilinx/XRT. Releases differ: only
//! `ready` must be there.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    Complaints, Kind, NodeNames, Roots,
    poll::{Look, Polled},
    sysfs::{bytes, children, file_name, is_pci_address, numa_node, number, optional, text},
};
use crate::{
    device::{Accelerator, Device, DeviceId, ResourceName, fitting},
    health::Faults,
};

/// Xilinx, and those who sell its cards under their own: Advantech, Amazon, Arista.
const VENDORS: [u64; 4] = [0x10ee, 0x13fe, 0x1d0f, 0x3475];
/// How long a card must be without a fault before it counts as Healthy again. Errors that the driver logs stay logged: they count at the
/// moment when they come.
const QUIET: Duration = Duration::from_secs(10);
/// How often all of the machine's PCI functions are gone through; those that are known are looked at each time. There are hundreds.
const SCAN_EVERY: Duration = Duration::from_millis(1500);
/// `XCL_MB_PEER_READY` in XRT's `xocl_ioctl.h`: the management function's driver answers.
const PEER_READY: u64 = 1;

/// AMD's driver, as the list of back ends has it.
pub(super) const KIND: Kind = Kind {
    name: Xrt::NAME,
    make: |setting| {
        let wanted = setting.config.fpga.enabled;
        wanted.then(|| Box::new(Polled(Xrt::new(setting.roots.clone()))) as _)
    },
    same: |one, other| one.fpga.enabled == other.fpga.enabled,
    // Both functions: xocl is the users', xclmgmt that which governs the card.
    nodes: NodeNames {
        drivers: &["xclmgmt", "xocl", "xfpga"],
        nodes: &["xclmgmt", "xfpga/"],
        graphics: &["xocl", "xclmgmt"],
        management: &["xclmgmt"],
        ..NodeNames::NONE
    },
};

/// Looks at the user functions.
#[derive(Debug, Clone)]
pub struct Xrt {
    roots: Roots,
    faults: Faults,
    /// The driver's error logs as they were.
    logs: BTreeMap<DeviceId, Vec<u8>>,
    /// The user functions that there were, and when.
    functions: Option<(Instant, BTreeSet<PathBuf>)>,
    complaints: Complaints,
}

impl Xrt {
    /// Looks at what is shown under `roots`.
    pub fn new(roots: Roots) -> Self {
        Self {
            roots,
            faults: Faults::new(QUIET),
            logs: BTreeMap::new(),
            functions: None,
            complaints: Complaints::default(),
        }
    }

    /// The folders of all user functions of known vendors.
    fn functions(&mut self, now: Instant) -> BTreeSet<PathBuf> {
        match &self.functions {
            Some((at, known)) if now.duration_since(*at) < SCAN_EVERY => {
                known.iter().filter(|function| is_user_function(function)).cloned().collect()
            }
            _ => {
                let found = user_functions(&self.roots.sys.join("bus/pci/devices"));
                self.functions = Some((now, found.clone()));
                found
            }
        }
    }

    fn device(&mut self, function: &Path, now: Instant) -> Result<Device, String> {
        let address = file_name(function);
        let id = DeviceId::new(address.clone()).map_err(|error| error.to_string())?;
        let shell = shell(function)?;
        let (nodes, missing) = self.nodes(function);
        if let Some(why) = fault(function).err().or(missing).or_else(|| self.new_errors(&id, function)) {
            self.faults.record(&id, why, now);
        }
        let accelerator = Accelerator {
            product: text(&function.join("board_name")).ok(),
            pci_address: Some(address),
            numa_node: numa_node(function),
            ..Accelerator::new(id.clone())
        };
        Ok(Device {
            resource: ResourceName::new(format!("amd.com/{shell}")).map_err(|error| error.to_string())?,
            health: self.faults.health(&id, now),
            nodes: nodes.into(),
            // XRT finds its card by the nodes that it can open.
            listed_in: None,
            accelerator: Arc::new(accelerator),
            partition: None,
            replica: None,
            id,
        })
    }

    /// The host's nodes of a user function, and what is missing.
    fn nodes(&self, function: &Path) -> (Vec<PathBuf>, Option<String>) {
        let mut wanted: Vec<String> = children(&function.join("drm"), "renderD")
            .iter()
            .map(|node| format!("dri/{}", file_name(node)))
            .collect();
        let no_render = wanted.is_empty().then(|| "the driver shows no render node".to_owned());
        if !children(function, "dma.qdma.u.").is_empty()
            && let Some(instance) = instance(&file_name(function))
        {
            wanted.push(format!("xfpga/dma.qdma.u{instance}.0"));
        }
        let mut missing = no_render;
        let nodes = wanted.iter().filter_map(|name| {
            let node = self.roots.node(name);
            if node.is_none() {
                missing.get_or_insert_with(|| format!("the host has no /dev/{name}"));
            }
            node
        });
        (nodes.collect(), missing)
    }

    /// An entry that has come into the driver's log since the last look. The log begins with the number of its entries; a card that had errors
    /// before this process started isn't sick for that.
    fn new_errors(&mut self, id: &DeviceId, function: &Path) -> Option<String> {
        let log = match bytes(&function.join("xocl_errors")) {
            Ok(log) => log,
            Err(error) if error.is_absent() => return None,
            Err(error) => return Some(error.to_string()),
        };
        let count = log.first_chunk().map_or(0, |count| u32::from_le_bytes(*count));
        let before = self.logs.insert(id.clone(), log.clone());
        (count > 0 && before.is_some_and(|before| before != log))
            .then(|| format!("the driver has logged {count} kinds of errors: see `xbutil examine`"))
    }
}

impl Look for Xrt {
    const NAME: &'static str = "xrt";

    fn look(&mut self, now: Instant) -> Vec<Device> {
        let mut devices = Vec::new();
        let mut seen = BTreeSet::new();
        for function in self.functions(now) {
            match self.device(&function, now) {
                Ok(device) => {
                    seen.insert(device.id.clone());
                    devices.push(device);
                }
                Err(why) => {
                    if self.complaints.note(&function.display().to_string(), &why) {
                        tracing::warn!(device = %function.display(), why, "FPGA skipped");
                    }
                }
            }
        }
        self.logs.retain(|id, _| seen.contains(id));
        self.faults.retain(|id| seen.contains(id));
        self.complaints.end_round();
        devices
    }
}

fn user_functions(devices: &Path) -> BTreeSet<PathBuf> {
    fs::read_dir(devices)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .filter(|function| is_user_function(function))
        .collect()
}

fn is_user_function(function: &Path) -> bool {
    is_pci_address(&file_name(function))
        && function.join("user_pf").exists()
        && !function.join("mgmt_pf").exists()
        && number(&function.join("vendor")).is_ok_and(|vendor| VENDORS.contains(&vendor))
}

/// What an application must be compiled for, as the end of a resource name.
fn shell(function: &Path) -> Result<String, String> {
    let roms = children(function, "rom.u.");
    let rom = roms.first().cloned().unwrap_or_else(|| function.join("rom"));
    let read = |name| text(&rom.join(name)).map_err(|error| error.to_string());
    let (name, timestamp) = (read("VBNV")?, read("timestamp")?);
    let timestamp = fitting(&timestamp, 24);
    let name = fitting(&name, 62_usize.saturating_sub(timestamp.len()));
    if name.is_empty() || timestamp.is_empty() {
        return Err("nothing in VBNV or timestamp can be part of a resource name".to_owned());
    }
    Ok(format!("{name}-{timestamp}"))
}

/// What the driver says of a card, and of what is in it.
fn fault(function: &Path) -> Result<(), String> {
    let read = |name| number(&function.join(name));
    let shown = |name| optional(read(name)).map_err(|error| error.to_string());
    if read("ready").map_err(|error| error.to_string())? != 1 {
        return Err("ready is not 1".to_owned());
    }
    for name in ["dev_offline", "device_bad_state"] {
        if let Some(state) = shown(name)?.filter(|state| *state != 0) {
            return Err(format!("{name} is {state:#x}"));
        }
    }
    if shown("mailbox_connect_state")?.is_some_and(|state| state & PEER_READY == 0) {
        return Err("mailbox_connect_state: the management function's driver does not answer".to_owned());
    }
    // Memory is a part of what is programmed: without a program there is nothing to calibrate.
    let programmed =
        text(&function.join("xclbinuuid")).is_ok_and(|uuid| uuid.bytes().any(|byte| !b"0-".contains(&byte)));
    if programmed && shown("mig_calibration")? == Some(0) {
        return Err("mig_calibration is 0: the card's memory is not calibrated".to_owned());
    }
    Ok(())
}

/// The driver's number of a function (`XOCL_DEV_ID`): its PCI address.
fn instance(address: &str) -> Option<u32> {
    let (domain, rest) = address.split_once(':')?;
    let (bus, rest) = rest.split_once(':')?;
    let (device, function) = rest.split_once('.')?;
    let hexadecimal = |text| u32::from_str_radix(text, 16).ok();
    let within = (hexadecimal(bus)? << 8) | (hexadecimal(device)? << 3) | hexadecimal(function)?;
    hexadecimal(domain)?.checked_mul(1 << 16)?.checked_add(within)
}

#[cfg(test)]
mod tests;
