//! Isolation: no pod reaches another pod's accelerator, whatever its container runtime lets it do.

pub mod cgroup;
pub mod exempt;
pub mod filter;
pub mod kernel;
pub mod nodes;
pub mod policy;
pub mod program;
