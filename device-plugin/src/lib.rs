//! Accelerators of one machine, offered to its kubelet: discovery, inventory, health, allocation, and one device plugin server per
//! resource name.
//!
//! The files follow the data: [`discovery`] back ends enumerate [`device`]s and publish them to the [`inventory`], one immutable
//! value in a watch channel. [`plugins`] keeps one plugin per resource name: a gRPC server that streams the resource's slice of the
//! inventory and answers by the pure functions of [`allocate`] and [`preference`], and a [`registration`] that outlives every kubelet.
//!
//! This crate knows nothing of the Kubernetes API, of cgroups, or of HTTP.

pub mod allocate;
pub mod bitstream;
pub mod causes;
pub mod cdi;
pub mod config;
pub mod device;
pub mod discovery;
pub mod health;
pub mod held;
pub mod hold_back;
pub mod inventory;
pub mod metrics;
pub mod mps;
pub mod plugins;
pub mod preference;
pub mod programming;
pub mod registration;
pub mod server;
pub mod shape;
pub mod sharing;
