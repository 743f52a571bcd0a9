//! NVIDIA GPUs, by NVML. One thread: it opens the library, looks at every GPU at each interval, and waits for XID events between.
//!
//! NVML sees the GPUs that were there when it was started, so a GPU that is added or taken away is noticed by the kernel's list of
//! devices bound to the driver, and NVML is started anew. A GPU that NVML lists but can't read is *lost*: it stays offered as
//! Unhealthy. One that NVML no longer lists is *gone*.

mod library;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use nvml_wrapper::{
    EventSet, Nvml,
    bitmasks::event::EventTypes,
    enum_wrappers::device::TemperatureSensor,
    enums::{device::SampleValue, event::XidError},
    error::NvmlError,
    structs::device::FieldId,
    sys_exports::field_id::NVML_FI_DEV_GET_GPU_RECOVERY_ACTION,
};

use super::{Backend, Complaints, Kind, Reporter, Roots};
use crate::{
    causes::one_line,
    config::Gpu as GpuConfig,
    device::{Accelerator, Device, DeviceId, Health, Readings, ResourceName},
    health::Faults,
};

/// The longest that one wait for events may block, so that stopping is prompt.
const WAIT: Duration = Duration::from_millis(500);
/// How long to wait before NVML is opened again after it failed, at first and at most.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// How often NVML is started anew while a GPU is lost: a GPU that was reset is seen only then.
const REOPEN_FOR_LOST: Duration = Duration::from_secs(30);
/// No GPU works above this; what NVML says beyond it is a placeholder for "not available".
const HOTTEST_CELSIUS: u32 = 200;
/// Minors of GPUs; 254 and 255 are the driver's own nodes.
const LAST_GPU_MINOR: u32 = 253;
/// What every user of a GPU needs besides its own node, where the machine has it.
const CONTROL_NODES: [&str; 4] = ["nvidiactl", "nvidia-uvm", "nvidia-uvm-tools", "nvidia-modeset"];

/// NVML, as the list of back ends has it.
pub const KIND: Kind = Kind {
    name: "nvml",
    make: |setting| {
        let config = &setting.config;
        let root = config.flags.driver_root_here().to_owned();
        let gpu = config.gpu.clone();
        gpu.enabled
            .then(|| Box::new(NvmlBackend::new(root, setting.roots.clone(), setting.interval, gpu)) as _)
    },
    same: |one, other| one.gpu == other.gpu && one.flags == other.flags && one.health == other.health,
};

/// The NVML back end.
#[derive(Debug)]
pub struct NvmlBackend {
    driver_root: PathBuf,
    roots: Roots,
    interval: Duration,
    config: GpuConfig,
    resource: ResourceName,
    faults: Faults,
    known: Vec<Device>,
    complaints: Complaints,
}

/// One GPU, as NVML shows it. What NVML does not know is absent, never a number.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Gpu {
    id: DeviceId,
    minor: Option<u32>,
    /// `0000:17:00.0`, as sysfs spells it.
    pci_address: Option<String>,
    temperature_celsius: Option<u32>,
    /// What the driver wants done before the GPU can be trusted again.
    recovery: Option<&'static str>,
}

/// What one look at all GPUs gave.
#[derive(Debug, Default)]
struct Look {
    gpus: Vec<Gpu>,
    /// By index: why the GPU can't be read.
    unreadable: BTreeMap<u32, String>,
}

impl NvmlBackend {
    /// Looks for the library below `driver_root`, and at the GPUs every `interval`.
    pub fn new(driver_root: PathBuf, roots: Roots, interval: Duration, config: GpuConfig) -> Self {
        Self {
            driver_root,
            roots,
            interval,
            faults: Faults::new(config.recovery()),
            config,
            resource: ResourceName::new("nvidia.com/gpu").expect("the name is sound"),
            known: Vec::new(),
            complaints: Complaints::default(),
        }
    }

    /// Works with one start of NVML, until it has to be started anew. Whether it was of use.
    fn session(&mut self, nvml: &Nvml, reporter: &Reporter) -> Result<(), NvmlError> {
        let opened = Instant::now();
        let bound = bound_to_driver(&self.roots.sys);
        let events = watch_for_xids(nvml)?;
        loop {
            let look = look(nvml)?;
            let devices = self.judge(&look, Instant::now());
            reporter.devices(devices);

            let next = Instant::now() + self.interval;
            while Instant::now() < next {
                if reporter.stopping() {
                    return Ok(());
                }
                let left = next.saturating_duration_since(Instant::now()).min(WAIT);
                if self.wait(&events, left, reporter) {
                    break;
                }
            }
            if bound_to_driver(&self.roots.sys) != bound {
                tracing::info!("the kernel's list of NVIDIA GPUs changed: looking anew");
                return Ok(());
            }
            if !look.unreadable.is_empty() && opened.elapsed() > REOPEN_FOR_LOST {
                return Ok(());
            }
        }
    }

    /// Waits for one event. True when it asks for a look right away.
    fn wait(&mut self, events: &EventSet<'_>, duration: Duration, reporter: &Reporter) -> bool {
        let milliseconds = u32::try_from(duration.as_millis()).unwrap_or(u32::MAX).max(1);
        let event = match events.wait(milliseconds) {
            Ok(event) => event,
            Err(NvmlError::Timeout) => {
                reporter.alive();
                return false;
            }
            Err(error) => {
                tracing::warn!(%error, "NVML can't wait for events");
                reporter.pause(duration);
                return true;
            }
        };
        let xid = match event.event_data {
            Some(XidError::Value(xid)) if !self.config.is_critical(xid) => {
                tracing::info!(xid, "XID ignored");
                return false;
            }
            Some(XidError::Value(xid)) => format!("XID {xid}"),
            Some(XidError::Unknown) => "an unknown XID".to_owned(),
            None => return false,
        };
        let culprit = event.device.uuid().ok().and_then(|uuid| DeviceId::new(uuid).ok());
        for device in &self.known {
            // An event that names no GPU of ours may be about any of them.
            if culprit.as_ref().is_none_or(|culprit| *culprit == device.id) {
                self.faults.record(&device.id, xid.as_str(), Instant::now());
            }
        }
        true
    }

    /// Turns what was seen into devices.
    fn judge(&mut self, look: &Look, now: Instant) -> Vec<Device> {
        let mut devices = Vec::new();
        for gpu in &look.gpus {
            if let Some(recovery) = gpu.recovery {
                self.faults.prolong(&gpu.id, format!("the driver asks for {recovery}"), now);
            }
            devices.push(self.device(gpu, now));
        }
        for (index, why) in &look.unreadable {
            if self.complaints.note(&index.to_string(), why) {
                tracing::warn!(gpu.index = index, why, "a GPU can't be read");
            }
        }
        self.complaints.end_round();
        if let Some(why) = look.unreadable.values().next() {
            // Which of those that were there it is can't be asked.
            for device in &self.known {
                if devices.iter().all(|seen| seen.id != device.id) {
                    self.faults.prolong(&device.id, format!("lost: {why}"), now);
                    let health = self.faults.health(&device.id, now);
                    let accelerator =
                        Accelerator { readings: Readings::default(), ..(*device.accelerator).clone() };
                    devices.push(Device { health, accelerator: Arc::new(accelerator), ..device.clone() });
                }
            }
        }
        self.faults.retain(|id| devices.iter().any(|device| device.id == *id));
        self.known.clone_from(&devices);
        devices
    }

    fn device(&mut self, gpu: &Gpu, now: Instant) -> Device {
        let own = gpu.minor.map(|minor| format!("nvidia{minor}"));
        let node = own.as_ref().and_then(|name| self.roots.node(name));
        let health = match (self.faults.health(&gpu.id, now), &own, &node) {
            (Health::Unhealthy(why), _, _) => Health::Unhealthy(why),
            (Health::Healthy, _, Some(_)) => Health::Healthy,
            (Health::Healthy, Some(name), None) => Health::Unhealthy(format!("the host has no /dev/{name}")),
            (Health::Healthy, None, None) => Health::Unhealthy("NVML names no device node".to_owned()),
        };
        let control = CONTROL_NODES.iter().filter_map(|name| self.roots.node(name));
        Device {
            id: gpu.id.clone(),
            resource: self.resource.clone(),
            health,
            nodes: node.into_iter().chain(control).collect(),
            listed_in: Some("NVIDIA_VISIBLE_DEVICES"),
            accelerator: Arc::new(Accelerator {
                pci_address: gpu.pci_address.clone(),
                numa_node: gpu.pci_address.as_deref().and_then(|address| numa_node(&self.roots.sys, address)),
                readings: Readings { temperature_celsius: gpu.temperature_celsius, ..Readings::default() },
                ..Accelerator::new(gpu.id.clone())
            }),
            partition: None,
            replica: None,
        }
    }
}

impl Backend for NvmlBackend {
    fn name(&self) -> &'static str {
        KIND.name
    }

    fn again(&self) -> Box<dyn Backend> {
        Box::new(Self::new(self.driver_root.clone(), self.roots.clone(), self.interval, self.config.clone()))
    }

    fn run(mut self: Box<Self>, reporter: &Reporter) {
        let mut retry = RETRY.0;
        let mut said = None;
        let mut opened = None;
        while !reporter.stopping() {
            let failure = match library::open(&self.driver_root) {
                Ok((nvml, path)) => {
                    if opened.as_ref() != Some(&path) {
                        tracing::info!(library = %path.display(), driver = nvml.sys_driver_version().ok(), "NVML runs");
                    }
                    opened = Some(path);
                    match self.session(&nvml, reporter) {
                        Ok(()) => {
                            (retry, said) = (RETRY.0, None);
                            continue;
                        }
                        Err(error) => format!("NVML failed: {error}"),
                    }
                }
                Err(error) => one_line(&error),
            };
            opened = None;
            reporter.unavailable(&failure);
            if said.as_ref() != Some(&failure) {
                tracing::warn!(
                    "{failure} (no GPU can be allocated; trying again at least every {} s)",
                    RETRY.1.as_secs()
                );
                said = Some(failure);
            }
            reporter.pause(retry);
            retry = (retry * 2).min(RETRY.1);
        }
    }
}

/// Registers for critical XIDs of every GPU that has them.
fn watch_for_xids(nvml: &Nvml) -> Result<EventSet<'_>, NvmlError> {
    let mut events = nvml.create_event_set()?;
    for index in 0..nvml.device_count()? {
        let Ok(device) = nvml.device_by_index(index) else { continue };
        // A failing registration takes the whole set with it, so each GPU is tried on a set of its own.
        let probe = nvml.create_event_set()?;
        match device.register_events(EventTypes::CRITICAL_XID_ERROR, probe) {
            Ok(_) => {
                events = device
                    .register_events(EventTypes::CRITICAL_XID_ERROR, events)
                    .map_err(|failed| failed.error)?;
            }
            Err(failed) => {
                tracing::warn!(gpu.index = index, error = %failed.error, "no XID events for this GPU: its health is what NVML reads");
            }
        }
    }
    Ok(events)
}

fn look(nvml: &Nvml) -> Result<Look, NvmlError> {
    let mut look = Look::default();
    for index in 0..nvml.device_count()? {
        match read(nvml, index) {
            Ok(gpu) => look.gpus.push(gpu),
            Err(why) => {
                look.unreadable.insert(index, why);
            }
        }
    }
    Ok(look)
}

fn read(nvml: &Nvml, index: u32) -> Result<Gpu, String> {
    let device = nvml.device_by_index(index).map_err(|error| error.to_string())?;
    let uuid = device.uuid().map_err(|error| error.to_string())?;
    let id = DeviceId::new(uuid).map_err(|error| error.to_string())?;
    let temperature = device.temperature(TemperatureSensor::Gpu);
    if let Err(error @ (NvmlError::GpuLost | NvmlError::Unknown)) = &temperature {
        return Err(error.to_string());
    }
    let recovery = device
        .field_values_for(&[FieldId(NVML_FI_DEV_GET_GPU_RECOVERY_ACTION)])
        .ok()
        .and_then(|values| values.into_iter().next()?.ok()?.value.ok());
    Ok(Gpu {
        id,
        minor: device.minor_number().ok().filter(|minor| *minor <= LAST_GPU_MINOR),
        pci_address: device.pci_info().ok().and_then(|pci| pci_address(&pci.bus_id)),
        temperature_celsius: temperature.ok().filter(|celsius| *celsius <= HOTTEST_CELSIUS),
        recovery: recovery.as_ref().and_then(recovery_action),
    })
}

/// `nvmlDeviceGpuRecoveryAction_t`.
fn recovery_action(value: &SampleValue) -> Option<&'static str> {
    let SampleValue::U32(action) = value else { return None };
    match action {
        1 => Some("a reset of the GPU"),
        2 => Some("a reboot of the machine"),
        3 => Some("peer-to-peer traffic to be drained"),
        4 => Some("the GPU to be drained and reset"),
        _ => None,
    }
}

/// NVML's `00000000:3B:00.0` as sysfs spells it.
fn pci_address(bus_id: &str) -> Option<String> {
    let (domain, rest) = bus_id.split_once(':')?;
    let domain = u32::from_str_radix(domain, 16).ok()?;
    let sound = rest.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b':' || byte == b'.');
    (sound && !rest.contains("..")).then(|| format!("{domain:04x}:{}", rest.to_ascii_lowercase()))
}

/// The NUMA node of a PCI device; the kernel says -1 where there is none.
fn numa_node(sys: &Path, pci_address: &str) -> Option<u32> {
    let path = sys.join("bus/pci/devices").join(pci_address).join("numa_node");
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// PCI addresses of the devices that the NVIDIA driver drives now.
fn bound_to_driver(sys: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(sys.join("bus/pci/drivers/nvidia")).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| name.contains(':'))
        .collect()
}

#[cfg(test)]
mod tests;
