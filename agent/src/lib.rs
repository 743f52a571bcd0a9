//! The agent of a dedicated machine: it wires the device plugins to the machine and shows how they are doing. It does not talk to the
//! API server; what the cluster has to know goes through the kubelet.

pub mod args;
pub mod check;
pub mod holders;
pub mod isolation;
pub mod metrics;
pub mod pods;
pub mod readiness;
pub mod run;
