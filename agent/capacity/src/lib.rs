//! Capacity planning for pools of dedicated and serverless accelerators: what is there and who holds it, how much to own, how much to rent.
//!
//! Pure cores ([`trace`], [`simulate`], [`optimize`], [`report`]) take values and give values; [`command`] wires them to the Kubernetes API, to files and to the terminal.
//! It needs no root and runs on no node.

pub mod args;
pub mod cluster;
pub mod command;
pub mod demand;
pub mod fragmentation;
pub mod history;
pub mod job;
pub mod optimize;
pub mod output;
pub mod pages;
pub mod policy;
pub mod pool;
pub mod price;
pub mod report;
pub mod simulate;
pub mod terminal;
pub mod trace;
pub mod what_if;
