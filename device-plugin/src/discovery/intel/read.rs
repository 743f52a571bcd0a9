//! From folders of sysfs to what is known of a card and its ports.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::Layout;
use crate::{
    device::{Accelerator, DeviceId, Readings},
    discovery::{
        Roots,
        sysfs::{children, file_name, id128, numa_node, number, pci_address},
    },
};

/// What the hardware answers when its firmware has crashed: all ones, as a PCI read that nobody answers.
const CRASHED: &str = "ffffffffffffffffffffffffffffffff";

/// A card's management engine, and so the card.
#[derive(Debug)]
pub(super) struct Engine {
    pub(super) accelerator: Arc<Accelerator>,
    pub(super) interface: Option<String>,
    pub(super) fault: Option<String>,
    pub(super) name: String,
    pub(super) node: Option<PathBuf>,
}

/// A port, and what is in it.
#[derive(Debug)]
pub(super) struct Port {
    pub(super) name: String,
    pub(super) id: DeviceId,
    pub(super) function: Function,
    pub(super) fault: Option<String>,
    pub(super) nodes: Vec<PathBuf>,
    /// That of the PCI function that shows the port.
    pub(super) numa_node: Option<u32>,
}

/// The accelerator function in a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Function {
    /// The one with this id.
    Known(String),
    /// It can't be told.
    Unknown(String),
}

/// The folder of the management engine that a card's ports belong to: the card's own, or for a virtual function that of the physical one.
pub(in crate::discovery) fn engine_of<L: Layout>(card: &Path) -> Result<PathBuf, String> {
    let own = children(card, L::ENGINE);
    let engines = if own.is_empty() {
        children(&card.join("device/physfn").join(L::BELOW_FUNCTION), L::CARD)
            .iter()
            .flat_map(|card| children(card, L::ENGINE))
            .collect()
    } else {
        own
    };
    match engines.as_slice() {
        [engine] => fs::canonicalize(engine).map_err(|error| format!("{}: {error}", engine.display())),
        _ => Err(format!("{} management engines, expected one", engines.len())),
    }
}

/// What is known of a card by its management engine.
pub(super) fn read_engine<L: Layout>(
    roots: &Roots,
    engine: &Path,
    readings: Readings,
) -> Result<Engine, String> {
    let name = file_name(engine);
    // engine -> its card's entry in the class -> the PCI function
    let function = engine.parent().map(|card| card.join("device")).unwrap_or_default();
    let address = pci_address(&function);
    let id =
        DeviceId::new(address.clone().unwrap_or_else(|| name.clone())).map_err(|error| error.to_string())?;
    let interface = L::interface(engine)?;
    let crashed = interface.as_deref() == Some(CRASHED);
    let fault = if crashed {
        Some("the card's firmware does not answer".to_owned())
    } else {
        L::engine_fault(engine).err()
    };
    let accelerator = Accelerator {
        pci_address: address,
        numa_node: numa_node(&function),
        readings,
        ..Accelerator::new(id)
    };
    let node = roots.node(&name);
    Ok(Engine { accelerator: Arc::new(accelerator), interface, fault, name, node })
}

/// What is known of a port.
pub(super) fn read_port<L: Layout>(
    roots: &Roots,
    card: &Path,
    port: &Path,
    engine: &Engine,
) -> Result<Port, String> {
    let name = file_name(port);
    let node = roots.node(&name);
    let fault = engine
        .fault
        .clone()
        .or_else(|| L::port_fault(port).err())
        .or_else(|| node.is_none().then(|| format!("the host has no /dev/{name}")));
    let more = L::more_nodes(port);
    let function = match id128(&port.join("afu_id")) {
        Ok(id) if id == CRASHED => Function::Unknown("the function in it does not answer".to_owned()),
        Ok(id) => Function::Known(id),
        Err(error) if error.is_busy() => Function::Unknown("it is in reset, or being programmed".to_owned()),
        Err(error) => Function::Unknown(error.to_string()),
    };
    Ok(Port {
        id: DeviceId::new(stable_id(card, port)).map_err(|error| error.to_string())?,
        numa_node: numa_node(&card.join("device")),
        name,
        function,
        fault,
        nodes: node.into_iter().chain(more.iter().filter_map(|name| roots.node(name))).collect(),
    })
}

/// The same from boot to boot: the PCI address and the card's own number of the port; the kernel's number where these are unknown.
pub(in crate::discovery) fn stable_id(card: &Path, port: &Path) -> String {
    match (pci_address(&card.join("device")), number(&port.join("id"))) {
        (Some(address), Ok(number)) if u16::try_from(number).is_ok() => format!("{address}-port{number}"),
        _ => file_name(port),
    }
}
