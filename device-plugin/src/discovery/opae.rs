//! FPGAs of Intel's driver that is built outside of the kernel (OPAE before the DFL framework), by sysfs. What is offered is said in
//! [`super::intel`].
//!
//! ```text
//! class/fpga/intel-fpga-dev.N/          the card, or one virtual function of it
//!   device -> .../0000:5e:00.0          `physfn` leads from a virtual function to the card
//!   intel-fpga-fme.N/                   management engine: of the card only
//!     pr/interface_id
//!     errors/{fme-errors/errors,catfatal_errors,nonfatal_errors,pcie0_errors,pcie1_errors,gbs_errors,bbs_errors}
//!     thermal_mgmt/temperature          power_mgmt/consumed
//!   intel-fpga-port.M/                  id   afu_id   errors/errors
//! ```
//!
//! Which registers there are depends on the driver's release: those that are there must read zero.

use std::path::Path;

use super::{
    Kind, NodeNames,
    intel::{self, Layout, register},
    sysfs::{id128, number, optional},
};
use crate::device::Readings;

/// The driver, as the list of back ends has it.
pub(super) const KIND: Kind = intel::kind::<Opae>();

/// As Intel's own driver names things.
#[derive(Debug, Clone)]
pub struct Opae;

const REGISTERS: [&str; 6] =
    ["fme-errors/errors", "catfatal_errors", "pcie0_errors", "pcie1_errors", "gbs_errors", "bbs_errors"];

impl Layout for Opae {
    const NAME: &'static str = "opae";
    const CLASS: &'static str = "class/fpga";
    const BELOW_FUNCTION: &'static str = "fpga";
    const CARD: &'static str = "intel-fpga-dev.";
    const ENGINE: &'static str = "intel-fpga-fme.";
    const PORT: &'static str = "intel-fpga-port.";
    const NODES: NodeNames =
        NodeNames { drivers: &["intel-fpga"], nodes: &["intel-fpga-"], ..NodeNames::NONE };

    fn interface(engine: &Path) -> Result<Option<String>, String> {
        optional(id128(&engine.join("pr/interface_id"))).map_err(|error| error.to_string())
    }

    fn engine_fault(engine: &Path) -> Result<(), String> {
        let errors = engine.join("errors");
        REGISTERS.iter().try_for_each(|name| register(&errors.join(name)))?;
        optional(number(&errors.join("nonfatal_errors"))).map(drop).map_err(|error| error.to_string())
    }

    fn port_fault(port: &Path) -> Result<(), String> {
        register(&port.join("errors/errors"))
    }

    fn more_nodes(_: &Path) -> Vec<String> {
        Vec::new()
    }

    fn readings(engine: &Path) -> Readings {
        let celsius = number(&engine.join("thermal_mgmt/temperature")).ok();
        let watts = number(&engine.join("power_mgmt/consumed")).ok();
        let mut readings = Readings {
            temperature_celsius: celsius.and_then(|celsius| u32::try_from(celsius).ok()),
            power_milliwatts: watts.and_then(|watts| watts.checked_mul(1000)),
            ..Readings::default()
        };
        if let Ok(bits) = number(&engine.join("errors/nonfatal_errors")) {
            readings.errors.insert("nonfatal", u64::from(bits.count_ones()));
        }
        readings
    }
}
