//! Usage over time: from Prometheus where there is one, else from a recorder with one `SQLite` file; and who pays for it.
//!
//! Whatever the source, time is cut into steps. A step knows how many of its seconds were seen: what was not seen is a gap and never a zero.
//! What is added up are whole numbers, GPUs in thousandths times seconds, so that a sum is the same however often it was summed up before.

pub mod database;
pub mod period;
pub mod prometheus;
mod reading;
pub mod recorder;
pub mod retention;
pub mod sampling;
pub mod showback;
pub mod view;

use std::collections::BTreeMap;

use serde::Serialize;

pub use showback::Showback;
pub use view::History;

/// What a series counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum What {
    /// GPUs that are there.
    Capacity,
    /// GPUs that pods have, whether they use them or not.
    Allocated,
    /// GPUs that pods wait for. They wait for a resource, and are in no pool yet.
    Waiting,
    /// GPUs that compute: two that are half busy are one. Only where something measures it.
    Used,
    /// GPUs that are free and that no pod can use, as a report tells it. Only where it is recorded.
    Stranded,
}

impl What {
    /// Whether it is of machines, and not for somebody.
    pub fn is_nobodys(self) -> bool {
        matches!(self, Self::Capacity | Self::Stranded)
    }
}

/// Where GPUs are.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize)]
pub struct Pool {
    /// What it is called: dedicated machines by model, a virtual node by its name; the resource where pods wait.
    pub name: String,
    /// The extended resource, such as `nvidia.com/gpu`.
    pub resource: String,
    /// The model, where the machines tell.
    pub model: String,
    /// Whether it is rented by the second, and not owned.
    pub serverless: bool,
}

/// For whom GPUs are. Empty where nobody asked for it, or where it isn't told.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize)]
pub struct Owner {
    /// The pods' namespace.
    pub namespace: String,
    /// The value of the label that was chosen.
    pub label: String,
    /// The value of the label that names the user.
    pub user: String,
}

/// Which series it is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Key {
    /// What it counts.
    pub what: What,
    /// Where.
    pub pool: Pool,
    /// For whom; empty for what is nobody's.
    pub owner: Owner,
}

/// What was seen of a cluster at one time: GPUs in thousandths. What isn't named is zero.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sample {
    /// When, in seconds since 1970.
    pub at_s: i64,
    /// How many, in thousandths of a GPU.
    pub milli_gpus: BTreeMap<Key, u64>,
}

/// Some of the time: what was seen from `end_s - len_s` (excluded) to `end_s` (included).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    /// Its end, in seconds since 1970.
    pub end_s: i64,
    /// How long it is.
    pub len_s: i64,
    /// How much of it was seen. Slightly more than its length where the first sample in it stands for time before it, too.
    pub seen_s: i64,
}

/// A series within one [`Step`]; steps that were seen, and that it isn't in, are zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cell {
    /// The end of its step.
    pub end_s: i64,
    /// Thousandths of a GPU, times the seconds that they were there.
    pub milli_gpu_s: i64,
    /// The least at any time, in thousandths.
    pub least: i64,
    /// The most at any time.
    pub most: i64,
}

/// What a source knows of a period.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Recorded {
    /// By time. Of what isn't here nothing was seen.
    pub steps: Vec<Step>,
    /// By time, each.
    pub series: BTreeMap<Key, Vec<Cell>>,
}

/// The end of the step of `len_s` that a time is in. A time that ends a step is in it.
pub(crate) fn end_of_step(at_s: i64, len_s: i64) -> i64 {
    (at_s - 1).div_euclid(len_s) * len_s + len_s
}

#[cfg(test)]
mod tests;
