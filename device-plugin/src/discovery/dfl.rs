//! FPGAs of the kernel's DFL framework (Intel PAC and the like), by sysfs. Every port is a device of its own; what pods ask for is
//! the interface that a bitstream must fit: `fpga.intel.com/region-<interface id>`.
//!
//! A container gets `/dev/dfl-port.N` and never the management engine's node, which could reprogram the card. Attributes come from
//! firmware: any of them may be absent, empty or garbage, which makes that port Unhealthy or skips it with one warning.
//!
//! ```text
//! class/fpga_region/regionN/            the card, or one virtual function of it
//!   device -> .../0000:5e:00.0          `physfn` leads from a virtual function to the card
//!   dfl-fme.N/                          management engine: of the card only
//!     dfl-fme-region.*/fpga_region/region*/compat_id
//!     errors/{fme_errors,catfatal_errors}   hwmon/hwmon*/temp1_input
//!   dfl-port.M/                         id   errors/errors
//! ```

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use super::{Backend, Complaints, Kind, Reporter, Roots};
use crate::device::{Accelerator, Device, DeviceId, Health, Readings, ResourceName};

/// DFL, as the list of back ends has it.
pub const KIND: Kind = Kind {
    name: "dfl",
    make: |setting| {
        let wanted = setting.config.fpga.enabled;
        wanted.then(|| Box::new(DflBackend::new(setting.roots.clone(), setting.interval)) as _)
    },
    same: |one, other| one.fpga == other.fpga,
};

/// The DFL back end.
#[derive(Debug)]
pub struct DflBackend {
    roots: Roots,
    interval: Duration,
    complaints: Complaints,
}

/// What the management engine says of the whole card.
#[derive(Debug)]
struct Engine {
    interface_id: String,
    fault: Option<String>,
    temperature_celsius: Option<u32>,
}

impl DflBackend {
    /// Looks at the ports every `interval`.
    pub fn new(roots: Roots, interval: Duration) -> Self {
        Self { roots, interval, complaints: Complaints::default() }
    }

    fn look(&mut self) -> Vec<Device> {
        let mut devices = Vec::new();
        for region in children(&self.roots.sys.join("class/fpga_region"), "region") {
            let ports = children(&region, "dfl-port.");
            if ports.is_empty() {
                continue;
            }
            let engine = engine(&region);
            for port in ports {
                match engine
                    .as_ref()
                    .map_err(Clone::clone)
                    .and_then(|engine| self.port(&region, &port, engine))
                {
                    Ok(device) => devices.push(device),
                    Err(why) => {
                        if self.complaints.note(&port.display().to_string(), &why) {
                            tracing::warn!(port = %port.display(), why, "FPGA port skipped");
                        }
                    }
                }
            }
        }
        self.complaints.end_round();
        devices
    }

    fn port(&self, region: &Path, port: &Path, engine: &Engine) -> Result<Device, String> {
        let name = file_name(port);
        let node = self.roots.node(&name);
        let fault = engine
            .fault
            .clone()
            .or_else(|| error_register(&port.join("errors/errors")).err())
            .or_else(|| node.is_none().then(|| format!("the host has no /dev/{name}")));
        let health = fault.map_or(Health::Healthy, Health::Unhealthy);
        let id = DeviceId::new(stable_id(region, port)).map_err(|error| error.to_string())?;
        Ok(Device {
            id: id.clone(),
            resource: ResourceName::new(format!("fpga.intel.com/region-{}", engine.interface_id))
                .map_err(|error| error.to_string())?,
            health,
            nodes: node.into_iter().collect(),
            // OPAE finds its port by the device node; there is no variable that it reads.
            listed_in: None,
            accelerator: Arc::new(Accelerator {
                numa_node: text(&region.join("device/numa_node")).ok().and_then(|node| node.parse().ok()),
                readings: Readings { temperature_celsius: engine.temperature_celsius, ..Readings::default() },
                ..Accelerator::new(id)
            }),
            partition: None,
            replica: None,
        })
    }
}

impl Backend for DflBackend {
    fn name(&self) -> &'static str {
        KIND.name
    }

    fn again(&self) -> Box<dyn Backend> {
        Box::new(Self::new(self.roots.clone(), self.interval))
    }

    fn run(mut self: Box<Self>, reporter: &Reporter) {
        while !reporter.stopping() {
            let devices = self.look();
            reporter.devices(devices);
            reporter.pause(self.interval);
        }
    }
}

/// The management engine that a region's ports belong to: the region's own, or for a virtual function that of the card.
fn engine(region: &Path) -> Result<Engine, String> {
    let own = children(region, "dfl-fme.");
    let engines = if own.is_empty() {
        children(&region.join("device/physfn/fpga_region"), "region")
            .iter()
            .flat_map(|region| children(region, "dfl-fme."))
            .collect()
    } else {
        own
    };
    let [engine] = engines.as_slice() else {
        return Err(format!("{} management engines, expected one", engines.len()));
    };

    let mut ids = BTreeSet::new();
    let mut missing = None;
    for region in children(engine, "dfl-fme-region.") {
        for region in children(&region.join("fpga_region"), "region") {
            match interface_id(&region.join("compat_id")) {
                Ok(id) => {
                    ids.insert(id);
                }
                Err(why) => missing = Some(why),
            }
        }
    }
    if ids.len() > 1 {
        return Err(format!("several interface ids in {}: {ids:?}", file_name(engine)));
    }
    let interface_id = ids
        .pop_first()
        .ok_or_else(|| missing.unwrap_or_else(|| format!("no interface id in {}", file_name(engine))))?;
    let fault = ["errors/fme_errors", "errors/catfatal_errors"]
        .iter()
        .find_map(|register| error_register(&engine.join(register)).err());
    let temperature_celsius = children(&engine.join("hwmon"), "hwmon")
        .iter()
        .find_map(|monitor| text(&monitor.join("temp1_input")).ok()?.parse::<u32>().ok())
        .map(|millidegrees| millidegrees / 1000);
    Ok(Engine { interface_id, fault, temperature_celsius })
}

/// 128 bits in hexadecimal.
fn interface_id(path: &Path) -> Result<String, String> {
    let id = text(path)?.to_ascii_lowercase();
    if id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        Ok(id)
    } else {
        Err(format!("{} is no interface id: {id:?}", file_name(path)))
    }
}

/// An error register that reads zero, or why the device can't be trusted.
fn error_register(path: &Path) -> Result<(), String> {
    let value = text(path)?;
    match u64::from_str_radix(value.trim_start_matches("0x"), 16) {
        Ok(0) => Ok(()),
        Ok(errors) => Err(format!("{} is {errors:#x}", file_name(path))),
        Err(_) => Err(format!("{} is no number: {value:?}", file_name(path))),
    }
}

/// The same from boot to boot: the PCI address and the card's own number of the port; the kernel's number where these are unknown.
fn stable_id(region: &Path, port: &Path) -> String {
    let address = fs::canonicalize(region.join("device")).map(|path| file_name(&path)).unwrap_or_default();
    let number = text(&port.join("id")).ok().and_then(|number| number.parse::<u32>().ok());
    match number {
        Some(number) if address.contains(':') => format!("{address}-port{number}"),
        _ => file_name(port),
    }
}

/// A short text attribute. Attributes are at most a page; more, or bytes that are no text, is none of the kernel's making.
fn text(path: &Path) -> Result<String, String> {
    let failed = |error: io::Error| format!("{}: {error}", path.display());
    let bytes = fs::read(path).map_err(failed)?;
    let text = String::from_utf8(bytes).map_err(|_| failed(io::ErrorKind::InvalidData.into()))?;
    let text = text.trim();
    if text.is_empty() {
        Err(format!("{} is empty", path.display()))
    } else {
        Ok(text.chars().take(64).collect())
    }
}

/// The entries of `folder` that are called `prefix` and a number, in that order. A folder that is absent has none.
fn children(folder: &Path, prefix: &str) -> Vec<PathBuf> {
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

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests;
