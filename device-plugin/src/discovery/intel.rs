//! What the two drivers of Intel's FPGA cards have in common: a card has a management engine and ports, and in each port there is one
//! accelerator function (AFU), which can be replaced while the rest goes on. The drivers differ in names: see [`Layout`].
//!
//! What pods ask for depends on the mode, spelled as Intel's own plugin spells it:
//!
//! | mode | resource | a device is | its nodes |
//! | --- | --- | --- | --- |
//! | `af` | `fpga.intel.com/af-<iii>.<aaa>.<both ids>` | a port, by the function that is in it now | the port |
//! | `region` | `fpga.intel.com/region-<interface id>` | a port, by the interface that a bitstream must fit | the port |
//! | `regiondevel` | the same | a card | its management engine, and all its ports |
//!
//! Intel's plugin lists a card once in `region`, too, and so hands out all its ports at once. With `regiondevel` a card can't be parted:
//! who has the management engine can program every port.
//!
//! In mode `region` the configuration may say that ports are to have a function when a container starts (`fpga.functions`). These are
//! `fpga.intel.com/af-…`, too, and [`crate::programming`] sees to it.
//!
//! A port of a card that has no interface id, because nothing in it can be replaced, is `fpga.spillway.dev/afu-<function id>` in any mode.

mod offer;
mod read;

pub(crate) use offer::function_resource;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    marker::PhantomData,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use offer::Memory;
pub(super) use read::{engine_of, stable_id};
use read::{read_engine, read_port};

use super::{
    Complaints, Kind, NodeNames, Roots,
    poll::{Look, Polled},
    sysfs::{SysfsError, children},
};
use crate::{
    config::{Fpga, FpgaMode},
    device::{Device, Readings},
};

/// How a driver names things, and where it says what.
pub trait Layout: fmt::Debug + Clone + Send + 'static {
    /// The back end's name.
    const NAME: &'static str;
    /// The class whose entries are cards, as a folder of sysfs.
    const CLASS: &'static str;
    /// Where a PCI function's own entries of that class are, below the function.
    const BELOW_FUNCTION: &'static str;
    /// What cards, management engines and ports are called, before their numbers. Device nodes have the same names.
    const CARD: &'static str;
    /// See [`Layout::CARD`].
    const ENGINE: &'static str;
    /// See [`Layout::CARD`].
    const PORT: &'static str;
    /// How the nodes of both are known, and those of functions that nobody asked for.
    const NODES: NodeNames;

    /// The id of the interface between the card and what is programmed into it; none where nothing can be.
    fn interface(engine: &Path) -> Result<Option<String>, String>;

    /// Why no port of the card can be trusted.
    fn engine_fault(engine: &Path) -> Result<(), String>;

    /// Why a port can't be trusted.
    fn port_fault(port: &Path) -> Result<(), String>;

    /// The names of further device nodes that a port has.
    fn more_nodes(port: &Path) -> Vec<String>;

    /// What the card's sensors say, and its non-fatal errors.
    fn readings(engine: &Path) -> Readings;
}

/// A driver's back end, as the list of them has it.
pub(super) const fn kind<L: Layout>() -> Kind {
    Kind {
        name: L::NAME,
        make: |setting| {
            let fpga = &setting.config.fpga;
            let look = || IntelCards::<L>::new(setting.roots.clone(), fpga, setting.interval);
            fpga.enabled.then(|| Box::new(Polled(look())) as _)
        },
        same: |one, other| one.fpga == other.fpga,
        nodes: L::NODES,
    }
}

/// Looks at the cards of one driver.
#[derive(Debug, Clone)]
pub struct IntelCards<L> {
    roots: Roots,
    mode: FpgaMode,
    /// Sensors are slow on some cards and no part of a device's health: they are read this often, not at every look.
    sense_every: Duration,
    sensed: BTreeMap<PathBuf, (Instant, Readings)>,
    memory: Memory,
    complaints: Complaints,
    layout: PhantomData<L>,
}

impl<L: Layout> IntelCards<L> {
    /// Looks at what is shown under `roots`, and offers it as `fpga` says.
    pub fn new(roots: Roots, fpga: &Fpga, sense_every: Duration) -> Self {
        Self {
            layout: PhantomData,
            roots,
            mode: fpga.mode,
            sense_every,
            sensed: BTreeMap::new(),
            memory: Memory::new(&fpga.functions),
            complaints: Complaints::default(),
        }
    }

    fn readings(&mut self, engine: &Path, now: Instant) -> Readings {
        match self.sensed.get(engine) {
            Some((at, readings)) if now.duration_since(*at) < self.sense_every => readings.clone(),
            _ => {
                let readings = L::readings(engine);
                self.sensed.insert(engine.to_owned(), (now, readings.clone()));
                readings
            }
        }
    }

    fn complain(&mut self, subject: &str, why: &str) {
        if self.complaints.note(subject, why) {
            tracing::warn!(device = subject, why, "FPGA skipped");
        }
    }
}

impl<L: Layout> Look for IntelCards<L> {
    const NAME: &'static str = L::NAME;

    fn look(&mut self, now: Instant) -> Vec<Device> {
        // By the engine's folder, so that the ports of a card's virtual functions are the card's.
        let mut cards = BTreeMap::new();
        for card in children(&self.roots.sys.join(L::CLASS), L::CARD) {
            let ports = children(&card, L::PORT);
            if ports.is_empty() {
                continue;
            }
            match engine_of::<L>(&card) {
                Ok(engine) => cards
                    .entry(engine)
                    .or_insert_with(Vec::new)
                    .extend(ports.into_iter().map(|port| (card.clone(), port))),
                Err(why) => self.complain(&card.display().to_string(), &why),
            }
        }
        let mut devices = Vec::new();
        for (engine, ports) in &cards {
            let readings = self.readings(engine, now);
            let engine = match read_engine::<L>(&self.roots, engine, readings) {
                Ok(engine) => engine,
                Err(why) => {
                    self.complain(&engine.display().to_string(), &why);
                    continue;
                }
            };
            let mut sound = Vec::new();
            for (card, port) in ports {
                match read_port::<L>(&self.roots, card, port, &engine) {
                    Ok(port) => sound.push(port),
                    Err(why) => self.complain(&port.display().to_string(), &why),
                }
            }
            for offered in offer::offer(self.mode, &engine, sound, &mut self.memory, now) {
                match offered {
                    Ok(device) => devices.push(device),
                    Err((port, why)) => self.complain(&port, &why),
                }
            }
        }
        let engines: BTreeSet<_> = cards.into_keys().collect();
        self.sensed.retain(|engine, _| engines.contains(engine));
        self.memory.forget_all_but(devices.iter().map(|device| &device.id));
        self.complaints.end_round();
        devices
    }
}

/// An error register must read zero. One that the card doesn't have says nothing.
pub(super) fn register(path: &Path) -> Result<(), String> {
    match super::sysfs::number(path) {
        Ok(0) | Err(SysfsError::Absent(_)) => Ok(()),
        Ok(errors) => Err(format!("{} is {errors:#x}", super::sysfs::file_name(path))),
        Err(error) => Err(error.to_string()),
    }
}

/// The driver shows all of a feature's attributes or none. So of a group that is there, each of these must be there and read zero.
pub(super) fn group(folder: &Path, registers: &[&str]) -> Result<(), String> {
    if !folder.is_dir() {
        return Ok(());
    }
    registers.iter().try_for_each(|name| match super::sysfs::number(&folder.join(name)) {
        Ok(0) => Ok(()),
        Ok(errors) => Err(format!("{name} is {errors:#x}")),
        Err(error) => Err(error.to_string()),
    })
}

#[cfg(test)]
mod tests;
