//! FPGA boards of no driver in particular, by the kernel's own classes `fpga_region` and `fpga_manager`: a region is what can be
//! programmed, its manager is who does it, and `/dev/uio*` below the region's device is how a program reaches what is in it.
//!
//! Such a region is `fpga.spillway.dev/region-<compat_id>`, and without one that says what fits, by its device's name. Regions of cards that have
//! a back end of their own are left to it.
//!
//! ```text
//! class/fpga_region/regionN/{compat_id,device ->}
//! class/fpga_manager/fpgaN/{name,state,device ->}       `operating` is well
//! devices/.../<the region's device>/**/uio/uioM/uevent   DEVNAME=uioM
//! ```
//!
//! Sources: `Documentation/ABI/testing/sysfs-class-fpga-{region,manager}`, `drivers/fpga/of-fpga-region.c`.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    Complaints, Kind, NodeNames, Roots,
    poll::{Look, Polled},
    sysfs::{children, file_name, id128, numa_node, optional, pci_address, text},
};
use crate::{
    device::{Accelerator, Device, DeviceId, ResourceName, fitting},
    health::Faults,
};

/// How long a region must be without a fault before it counts as Healthy again.
const QUIET: Duration = Duration::from_secs(5);
/// How deep below a region's device its programs' devices are looked for, and how many folders: sysfs may be arbitrarily large.
const DEEP: usize = 5;
const FOLDERS: usize = 512;
/// Names in a path that tell of a driver with a back end of its own.
const OTHERS: [&str; 2] = ["dfl-", "intel-fpga-"];

/// The kernel's classes, as the list of back ends has them.
pub(super) const KIND: Kind = Kind {
    name: FpgaRegions::NAME,
    make: |setting| {
        let wanted = setting.config.fpga.enabled;
        wanted.then(|| Box::new(Polled(FpgaRegions::new(setting.roots.clone()))) as _)
    },
    same: |one, other| one.fpga.enabled == other.fpga.enabled,
    nodes: NodeNames::NONE,
};

/// Looks at the regions.
#[derive(Debug, Clone)]
pub struct FpgaRegions {
    roots: Roots,
    faults: Faults,
    complaints: Complaints,
}

/// A manager: where its device is, and how it is.
struct Manager {
    device: PathBuf,
    fault: Option<String>,
}

impl FpgaRegions {
    /// Looks at what is shown under `roots`.
    pub fn new(roots: Roots) -> Self {
        Self { roots, faults: Faults::new(QUIET), complaints: Complaints::default() }
    }

    fn managers(&self) -> Vec<Manager> {
        children(&self.roots.sys.join("class/fpga_manager"), "fpga")
            .iter()
            .filter_map(|manager| {
                let device = fs::canonicalize(manager.join("device")).ok()?;
                let fault = match text(&manager.join("state")) {
                    Ok(state) if state == "operating" => None,
                    Ok(state) => Some(format!("the FPGA manager's state is {:?}", fitting(&state, 40))),
                    Err(error) => Some(error.to_string()),
                };
                (!of_another(&device)).then_some(Manager { device, fault })
            })
            .collect()
    }

    /// None for a region that is no matter of this back end.
    fn device(
        &mut self,
        region: &Path,
        managers: &[Manager],
        now: Instant,
    ) -> Result<Option<Device>, String> {
        let place = fs::canonicalize(region).map_err(|error| error.to_string())?;
        let Ok(device) = fs::canonicalize(region.join("device")) else {
            return Err("it belongs to no device".to_owned());
        };
        let has_ports = !children(&place, "dfl-port.").is_empty() || !children(&place, "dfl-fme.").is_empty();
        if has_ports || of_another(&place) || of_another(&device) {
            return Ok(None);
        }
        let manager = manager_of(&device, managers)?;
        let nodes: Vec<PathBuf> =
            uio_names(&device).iter().filter_map(|name| self.roots.node(name)).collect();
        if nodes.is_empty() {
            return Err(
                "nothing that is programmed into it has a /dev/uio node: a container could not use it"
                    .to_owned(),
            );
        }
        let name = fitting(&file_name(&device), 40);
        let number = file_name(region);
        let id = DeviceId::new(format!("{name}-{number}")).map_err(|error| error.to_string())?;
        let fits = optional(id128(&region.join("compat_id"))).map_err(|error| error.to_string())?;
        if let Some(why) = &manager.fault {
            self.faults.record(&id, why.as_str(), now);
        }
        let accelerator = Accelerator {
            pci_address: pci_address(&device),
            numa_node: numa_node(&device),
            ..Accelerator::new(id.clone())
        };
        Ok(Some(Device {
            resource: ResourceName::new(format!("fpga.spillway.dev/region-{}", fits.unwrap_or(name)))
                .map_err(|error| error.to_string())?,
            health: self.faults.health(&id, now),
            nodes: nodes.into(),
            listed_in: None,
            accelerator: Arc::new(accelerator),
            partition: None,
            replica: None,
            id,
        }))
    }
}

impl Look for FpgaRegions {
    const NAME: &'static str = "fpga_manager";

    fn look(&mut self, now: Instant) -> Vec<Device> {
        let regions = children(&self.roots.sys.join("class/fpga_region"), "region");
        let managers = if regions.is_empty() { Vec::new() } else { self.managers() };
        let mut devices = Vec::new();
        for region in regions {
            match self.device(&region, &managers, now) {
                Ok(device) => devices.extend(device),
                Err(why) => {
                    if self.complaints.note(&region.display().to_string(), &why) {
                        tracing::warn!(region = %region.display(), why, "FPGA region skipped");
                    }
                }
            }
        }
        self.faults.retain(|id| devices.iter().any(|device| device.id == *id));
        self.complaints.end_round();
        devices
    }
}

fn of_another(path: &Path) -> bool {
    path.components().any(|part| {
        let part = part.as_os_str().to_string_lossy();
        OTHERS.iter().any(|prefix| part.starts_with(prefix))
    })
}

/// Who programs a region: sysfs does not say. It is the manager whose device is nearest in the tree; of several that are equally near, all
/// must be well.
fn manager_of<'a>(device: &Path, managers: &'a [Manager]) -> Result<&'a Manager, String> {
    let near = |manager: &Manager| {
        device.components().zip(manager.device.components()).take_while(|(one, other)| one == other).count()
    };
    let nearest = managers.iter().map(near).max().ok_or("there is no FPGA manager")?;
    let mut candidates = managers.iter().filter(|manager| near(manager) == nearest);
    let first = candidates.next().ok_or("there is no FPGA manager")?;
    Ok(candidates.fold(first, |worst, next| if worst.fault.is_some() { worst } else { next }))
}

/// The UIO nodes of everything below a device. Links are not followed: they lead out of it.
fn uio_names(device: &Path) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    let mut left = vec![(device.to_owned(), 0)];
    let mut folders = 0;
    while let Some((folder, depth)) = left.pop() {
        folders += 1;
        if folders > FOLDERS {
            break;
        }
        if file_name(&folder) == "uio" {
            // The folder's name is the node's: nothing that is written in a file decides what a container gets.
            names.extend(children(&folder, "uio").iter().map(|node| file_name(node)));
            continue;
        }
        let inner = fs::read_dir(&folder).into_iter().flatten().flatten();
        for entry in inner.filter(|_| depth < DEEP) {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                left.push((entry.path(), depth + 1));
            }
        }
    }
    names
}

#[cfg(test)]
mod tests;
