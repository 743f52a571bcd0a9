//! Isolation: no pod reaches another pod's accelerator, whatever its container runtime lets it do.

pub mod program;
