//! The virtual node: a kubelet for pods that run on serverless containers. `ARCHITECTURE.md` tells the story; `run` is where it
//! begins.

pub mod args;
mod backoff;
pub mod config;
mod durable;
#[cfg(test)]
mod fake_api;
pub mod identity;
pub mod kubelet_api;
pub mod lead;
pub mod metrics;
pub mod node;
mod notify;
pub mod pod;
pub mod provider;
pub mod run;
mod watching;
