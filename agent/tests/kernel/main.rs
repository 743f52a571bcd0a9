//! Isolation in the real kernel, without a cluster: cgroups of our own, and processes that open device nodes. No driver is behind the nodes,
//! so an open that is let through fails with ENXIO, and one that is refused with EPERM.
//!
//! `filter` needs root and a cgroup v2 hierarchy, `controller` root and the v1 hierarchy of the devices controller. Without, they are left
//! out, loudly; `cargo xtask test --vm kernel` runs both where they can't be.

#![allow(clippy::unwrap_used)]

mod attacks;
mod claims;
mod controller;
mod filter;
mod machine;
