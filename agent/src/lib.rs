//! The agent of a dedicated machine: it wires the device plugins to the machine and shows how they are doing. Devices
//! go through the kubelet alone; what [`node`] says to the API server is told, not needed.

pub mod args;
pub mod check;
pub mod holders;
pub mod isolation;
mod kinds;
pub mod memory_budget;
pub mod metrics;
pub mod neighbours;
pub mod node;
mod offering;
pub mod pods;
pub mod readiness;
pub mod run;
pub mod shape;
pub mod usage;
