//! FPGAs of the kernel's DFL framework (Intel PAC, OFS and the like), by sysfs. What is offered is said in [`super::intel`].
//!
//! ```text
//! class/fpga_region/regionN/            the card, or one virtual function of it
//!   device -> .../0000:5e:00.0          `physfn` leads from a virtual function to the card
//!   dfl-fme.N/                          management engine: of the card only
//!     dfl-fme-region.*/fpga_region/region*/compat_id     the same for all; ENOENT where nothing can be programmed
//!     errors/{fme,catfatal,nonfatal,pcie0,pcie1}_errors   hwmon/hwmon*/{temp1_input,temp1_crit_alarm,power1_input}
//!   dfl-port.M/                         id   afu_id   power_state   errors/errors   dfl_dev.*/uio/uio*
//! ```
//!
//! Sources: `Documentation/ABI/testing/sysfs-platform-dfl-{fme,port}`, `drivers/fpga/dfl-{fme,afu}-error.c`.

use std::{collections::BTreeSet, path::Path};

use super::{
    Kind, NodeNames, Roots,
    intel::{self, Layout, group, register},
    sysfs::{children, file_name, id128, number, optional},
};
use crate::device::{DeviceId, Readings};

/// The DFL framework, as the list of back ends has it.
pub(super) const KIND: Kind = intel::kind::<Dfl>();

/// As the mainline kernel names things.
#[derive(Debug, Clone)]
pub struct Dfl;

/// Power states of a port: AP1 and AP2 are slower, and still right; in AP6 the card has switched the function off.
const SWITCHED_OFF: u64 = 6;
const POWER_STATES: [u64; 4] = [0, 1, 2, SWITCHED_OFF];

impl Layout for Dfl {
    const NAME: &'static str = "dfl";
    const CLASS: &'static str = "class/fpga_region";
    const BELOW_FUNCTION: &'static str = "fpga_region";
    const CARD: &'static str = "region";
    const ENGINE: &'static str = "dfl-fme.";
    const PORT: &'static str = "dfl-port.";
    const NODES: NodeNames =
        NodeNames { drivers: &["dfl-"], nodes: &[Self::ENGINE, Self::PORT], ..NodeNames::NONE };

    fn interface(engine: &Path) -> Result<Option<String>, String> {
        let mut ids = BTreeSet::new();
        for region in children(engine, "dfl-fme-region.") {
            for region in children(&region.join("fpga_region"), "region") {
                let id = optional(id128(&region.join("compat_id"))).map_err(|error| error.to_string())?;
                ids.extend(id);
            }
        }
        if ids.len() > 1 {
            return Err(format!("several interface ids in {}: {ids:?}", file_name(engine)));
        }
        Ok(ids.pop_first())
    }

    fn engine_fault(engine: &Path) -> Result<(), String> {
        let errors = engine.join("errors");
        group(&errors, &["fme_errors", "catfatal_errors", "pcie0_errors", "pcie1_errors"])?;
        // These say nothing of what the card computes; they are counted. Nonsense here means that the card can't be read.
        optional(number(&errors.join("nonfatal_errors"))).map_err(|error| error.to_string())?;
        for monitor in children(&engine.join("hwmon"), "hwmon") {
            // Set while the temperature is at or above the threshold at which the hardware stops the functions.
            register(&monitor.join("temp1_crit_alarm"))?;
        }
        Ok(())
    }

    fn port_fault(port: &Path) -> Result<(), String> {
        group(&port.join("errors"), &["errors"])?;
        match optional(number(&port.join("power_state"))) {
            Ok(Some(SWITCHED_OFF)) => Err("power_state is 6: the card has switched it off".to_owned()),
            Ok(Some(state)) if !POWER_STATES.contains(&state) => Err(format!("power_state is {state:#x}")),
            Ok(_) => Ok(()),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Features that a userspace driver has taken over (`drivers/uio/uio_dfl.c`).
    fn more_nodes(port: &Path) -> Vec<String> {
        let features = children(port, "dfl_dev.");
        features
            .iter()
            .flat_map(|feature| children(&feature.join("uio"), "uio"))
            .map(|node| file_name(&node))
            .collect()
    }

    fn readings(engine: &Path) -> Readings {
        let mut readings = Readings::default();
        for monitor in children(&engine.join("hwmon"), "hwmon") {
            let value = |name| number(&monitor.join(name)).ok();
            let celsius = value("temp1_input").and_then(|milli| u32::try_from(milli / 1000).ok());
            readings.temperature_celsius = readings.temperature_celsius.or(celsius);
            readings.power_milliwatts =
                readings.power_milliwatts.or(value("power1_input").map(|micro| micro / 1000));
        }
        if let Ok(bits) = number(&engine.join("errors/nonfatal_errors")) {
            readings.errors.insert("nonfatal", u64::from(bits.count_ones()));
        }
        readings
    }
}

/// A port that is to be programmed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The name of its own device node.
    pub port: String,
    /// The name of its management engine's device node.
    pub engine: String,
    /// The card's own number of the port.
    pub number: u32,
    /// The interface that a bitstream must fit.
    pub interface: String,
    /// The function that is in it; none where that can't be told now.
    pub function: Option<String>,
}

/// Looks for the port that is listed as `id`.
///
/// # Errors
/// Why it can't be programmed, for people.
pub(crate) fn locate(roots: &Roots, id: &DeviceId) -> Result<Place, String> {
    let cards = children(&roots.sys.join(Dfl::CLASS), Dfl::CARD);
    let ports =
        cards.iter().flat_map(|card| children(card, Dfl::PORT).into_iter().map(move |port| (card, port)));
    let (card, port) =
        ports.into_iter().find(|(card, port)| intel::stable_id(card, port) == id.as_str()).ok_or_else(
            || format!("the kernel's DFL driver shows no port {id}: only its ports can be programmed"),
        )?;
    let engine = intel::engine_of::<Dfl>(card)?;
    let number = number(&port.join("id")).map_err(|error| error.to_string())?;
    Ok(Place {
        interface: Dfl::interface(&engine)?.ok_or("the card has no interface that a bitstream could fit")?,
        engine: file_name(&engine),
        number: u32::try_from(number).map_err(|_| format!("{number} is no port's number"))?,
        function: id128(&port.join("afu_id")).ok(),
        port: file_name(&port),
    })
}
