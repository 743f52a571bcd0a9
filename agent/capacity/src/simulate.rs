//! Replaying jobs against a described pool: cost, waiting times, spilled share, utilisation, fragmentation over time.
//!
//! Event-driven, in constant memory but for the jobs that wait or run, and the same on every machine for the same seed: chance comes from PCG64, machines are weighed in whole numbers, and nothing is
//! summed in an order that isn't given.

mod active;
mod batches;
mod bound;
mod dice;
mod engine;
mod fill;
mod forecast;
mod groups;
mod histogram;
mod kinds;
mod machines;
mod packing;
mod precision;
mod preempt;
mod queue;
mod rent;
mod result;
mod schedule;
mod series;
mod slab;
mod state;
mod synthetic;
mod tables;
mod tally;

pub use fill::{Filled, Filling, fill};
pub use histogram::{RELATIVE_ERROR, Waits};
pub use result::{Cost, Deadlines, Jobs, Rented, Settlement, Simulation, Spilled, Used, WaitPoint, WorstJob};
pub use series::Point;
pub use synthetic::Poisson;

use crate::{job::Job, policy::Policy, pool::Pool, price::Rates};

/// What a simulation is told beside jobs, pool, policy and prices.
#[derive(Debug, Clone, PartialEq)]
pub struct Options {
    /// By what chance is drawn: in which order equal machines are taken, and whether the provider has one.
    pub seed: u64,
    /// Jobs and time before this don't count.
    pub warm_up_s: f64,
    /// Time counts up to the last submit, not to the last end: as if more jobs were to come.
    pub steady: bool,
    /// Whether to tell what a policy without waiting costs at least. It takes about a tenth longer.
    pub bound: bool,
    /// Whether to keep how long each job waited: 16 bytes for each.
    pub each: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { seed: 0, warm_up_s: 0.0, steady: false, bound: true, each: false }
    }
}

/// Replays `jobs`, sorted by submit time, against `pool`.
///
/// # Errors
/// The first that `jobs` tells.
pub fn run<E>(
    jobs: impl IntoIterator<Item = Result<Job, E>>,
    pool: &Pool,
    policy: &Policy,
    rates: &Rates,
    seed: u64,
) -> Result<Simulation, E> {
    run_with(jobs, pool, policy, rates, &Options { seed, ..Options::default() })
}

/// The same, with more to say.
///
/// # Errors
/// The first that `jobs` tells.
pub fn run_with<E>(
    jobs: impl IntoIterator<Item = Result<Job, E>>,
    pool: &Pool,
    policy: &Policy,
    rates: &Rates,
    options: &Options,
) -> Result<Simulation, E> {
    let mut engine = engine::Engine::new(pool, policy, rates, options);
    for job in jobs {
        engine.submit(job?);
    }
    Ok(engine.finish())
}

#[cfg(test)]
mod tests;
