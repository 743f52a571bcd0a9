//! From cards and ports to devices, as the mode says. Pure, but for what must be remembered from look to look.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};

use super::read::{Engine, Function, Port};
use crate::{
    config::{FpgaFunction, FpgaMode},
    device::{Accelerator, Device, DeviceId, Health, NameError, Partition, ResourceName},
    health::Faults,
};

/// How long a device must be without a fault before it counts as Healthy again. Short: registers stay set until somebody clears them,
/// so only what comes and goes, such as a temperature alarm, is held back by it.
const QUIET: Duration = Duration::from_secs(5);

/// What is remembered of ports.
#[derive(Debug, Clone)]
pub(super) struct Memory {
    faults: Faults,
    /// The last function that was seen in each.
    functions: BTreeMap<DeviceId, String>,
    /// The functions that are put into ports, by interface and function, and how many ports each may still have.
    wanted: Vec<FpgaFunction>,
    /// What was decided of each port, once and for all: a port that changed its resource while a pod holds it would be handed out again.
    reserved: BTreeMap<DeviceId, Option<String>>,
}

impl Memory {
    /// Nothing was seen yet; these functions are to be put into ports.
    pub(super) fn new(wanted: &[FpgaFunction]) -> Self {
        Self {
            faults: Faults::new(QUIET),
            functions: BTreeMap::new(),
            wanted: wanted.to_vec(),
            reserved: BTreeMap::new(),
        }
    }

    /// The function that a port is to have when a container starts, if it is one of those that are.
    fn reservation(&mut self, port: &DeviceId, interface: &str) -> Option<String> {
        if let Some(decided) = self.reserved.get(port) {
            return decided.clone();
        }
        let next = self.wanted.iter_mut().find(|wanted| wanted.interface == interface && wanted.ports > 0);
        let decided = next.map(|wanted| {
            wanted.ports -= 1;
            wanted.function.clone()
        });
        self.reserved.insert(port.clone(), decided.clone());
        decided
    }

    /// Only these are still there.
    pub(super) fn forget_all_but<'a>(&mut self, devices: impl Iterator<Item = &'a DeviceId>) {
        let there: BTreeSet<_> = devices.collect();
        self.functions.retain(|id, _| there.contains(id));
        self.faults.retain(|id| there.contains(id));
    }

    fn health(&mut self, id: &DeviceId, fault: Option<&str>, now: Instant) -> Health {
        if let Some(why) = fault {
            self.faults.record(id, why, now);
        }
        self.faults.health(id, now)
    }

    /// The function in a port, as far as it can be told; when it can't, the one that was there before and why.
    fn function(&mut self, port: &Port) -> Result<(String, Option<String>), String> {
        match &port.function {
            Function::Known(id) => {
                self.functions.insert(port.id.clone(), id.clone());
                Ok((id.clone(), None))
            }
            Function::Unknown(why) => match self.functions.get(&port.id) {
                // It stays where it is listed, but Unhealthy: whoever asks for that function must not get it now.
                Some(before) => Ok((before.clone(), Some(why.clone()))),
                None => Err(why.clone()),
            },
        }
    }
}

/// The devices of one card. What can't be offered is named, with the reason.
pub(super) fn offer(
    mode: FpgaMode,
    engine: &Engine,
    ports: Vec<Port>,
    memory: &mut Memory,
    now: Instant,
) -> Vec<Result<Device, (String, String)>> {
    let region = |interface: &str| ResourceName::new(format!("fpga.intel.com/region-{interface}"));
    match (mode, &engine.interface) {
        (FpgaMode::RegionDevel, Some(interface)) => {
            let device = whole_card(region(interface), engine, &ports, memory, now);
            vec![device.map_err(|error| (engine.name.clone(), error.to_string()))]
        }
        (_, interface) => ports
            .into_iter()
            .map(|port| {
                let name = port.name.clone();
                let by_function = |(function, doubt): (String, Option<String>)| {
                    let resource = match interface {
                        Some(interface) => function_resource(interface, &function),
                        None => ResourceName::new(format!("fpga.spillway.dev/afu-{function}")),
                    };
                    Ok((resource.map_err(|error| error.to_string())?, doubt))
                };
                let named = match (mode, interface) {
                    (FpgaMode::Region, Some(interface)) => {
                        let resource = match memory.reservation(&port.id, interface) {
                            Some(function) => function_resource(interface, &function),
                            None => region(interface),
                        };
                        resource.map(|resource| (resource, None)).map_err(|error| error.to_string())
                    }
                    _ => memory.function(&port).and_then(by_function),
                };
                named
                    .map(|(resource, doubt)| one_port(resource, doubt, engine, port, memory, now))
                    .map_err(|why| (name, why))
            })
            .collect(),
    }
}

/// The name of a function behind an interface, in at most 63 characters: the beginning of both ids for people, both whole for machines.
pub(crate) fn function_resource(interface: &str, function: &str) -> Result<ResourceName, NameError> {
    let name = format!("fpga.intel.com/af-{}", short_name(interface, function).unwrap_or_default());
    ResourceName::new(name)
}

fn short_name(interface: &str, function: &str) -> Option<String> {
    let id = |text: &str| u128::from_str_radix(text, 16).ok().map(u128::to_be_bytes);
    let both = [id(interface)?, id(function)?].concat();
    Some(format!("{}.{}.{}", interface.get(..3)?, function.get(..3)?, URL_SAFE_NO_PAD.encode(both)))
}

fn one_port(
    resource: ResourceName,
    doubt: Option<String>,
    engine: &Engine,
    port: Port,
    memory: &mut Memory,
    now: Instant,
) -> Device {
    let fault = port.fault.or(doubt);
    let accelerator = if port.numa_node == engine.accelerator.numa_node {
        engine.accelerator.clone()
    } else {
        Arc::new(Accelerator { numa_node: port.numa_node, ..(*engine.accelerator).clone() })
    };
    Device {
        health: memory.health(&port.id, fault.as_deref(), now),
        resource,
        nodes: port.nodes.into(),
        // OPAE finds its port by the device node; there is no variable that it reads.
        listed_in: None,
        accelerator,
        partition: Some(Arc::new(Partition {
            id: port.id.clone(),
            profile: Partition::PORT.to_owned(),
            memory_mib: None,
            instance: None,
            index: None,
        })),
        replica: None,
        id: port.id,
    }
}

fn whole_card(
    resource: Result<ResourceName, NameError>,
    engine: &Engine,
    ports: &[Port],
    memory: &mut Memory,
    now: Instant,
) -> Result<Device, NameError> {
    let missing = || engine.node.is_none().then(|| format!("the host has no /dev/{}", engine.name));
    let fault = ports.iter().find_map(|port| port.fault.clone()).or_else(missing);
    let id = &engine.accelerator.id;
    let nodes: BTreeSet<PathBuf> =
        ports.iter().flat_map(|port| port.nodes.clone()).chain(engine.node.clone()).collect();
    Ok(Device {
        id: id.clone(),
        resource: resource?,
        health: memory.health(id, fault.as_deref(), now),
        nodes: nodes.into_iter().collect(),
        listed_in: None,
        accelerator: engine.accelerator.clone(),
        partition: None,
        replica: None,
    })
}
