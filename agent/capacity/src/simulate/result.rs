//! What a simulation found. Plain values; their units are in their names.

use std::sync::Arc;

use serde::Serialize;

use super::{histogram::Waits, series::Point};
use crate::policy::Policy;

/// What a simulation found.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Simulation {
    /// Chance was drawn by this; the same seed gives the same result on every machine.
    pub seed: u64,
    /// What was simulated.
    pub policy: Policy,
    /// Dedicated machines.
    pub machines: u64,
    /// Dedicated GPUs.
    pub dedicated_gpus: u64,
    /// From the first submit to the last end; without warm-up, and to the last submit in a steady state.
    pub span_s: f64,
    /// What became of the jobs.
    pub jobs: Jobs,
    /// What it costs.
    pub cost: Cost,
    /// How long jobs waited until their work began, cold starts included; those that spilled at once waited for nothing else.
    pub wait: Waits,
    /// The same, of those that waited at all.
    pub waited: Waits,
    /// So many batches of jobs, one after the other, were told apart to see how sure means and percentiles are: what ends in `_error` or `_error_s` is one standard error by that. Two of them hold the number of a longer time like this 19 times in 20.
    /// Of a trace that is replayed once all numbers are exact; the error says how far they may be from what another such time brings. 0 where there are too few jobs.
    pub batches: u64,
    /// Where the run is too short for its answer.
    pub warnings: Vec<String>,
    /// Percentiles of waits are right within this share; 0 where they are exact.
    pub wait_relative_error: f64,
    /// The share of jobs that waited no longer than a time: points of the curve.
    pub wait_curve: Vec<WaitPoint>,
    /// What went to serverless machines.
    pub spilled: Spilled,
    /// How much of the dedicated machines was used.
    pub used: Used,
    /// Jobs with a deadline.
    pub deadlines: Deadlines,
    /// Those that waited longest, the worst first.
    pub worst: Vec<WorstJob>,
    /// What happened over time.
    pub over_time: Vec<Point>,
    /// How long each job waited, where it was asked for.
    #[serde(skip)]
    pub each: Vec<Settlement>,
}

/// How long a job waited.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Settlement {
    /// When it was submitted, in seconds since the first job was.
    pub submit_s: f64,
    /// How long it waited.
    pub wait_s: f64,
}

/// What became of the jobs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Jobs {
    /// All that were counted.
    pub submitted: u64,
    /// Those of which a pod ran on serverless machines.
    pub spilled: u64,
    /// Those that fit nowhere, ever, or that no one may run.
    pub rejected: u64,
    /// Those that still waited at the end.
    pub unfinished: u64,
    /// How often a pod was preempted.
    pub preemptions: u64,
    /// How often the provider was asked in vain.
    pub provider_failures: u64,
    /// How often a pod was held back by a cap on pods, on money or on the provider's quota.
    pub held_by_cap: u64,
    /// Jobs that were submitted before the one above them in the trace; they are taken as submitted with it.
    pub out_of_order: u64,
}

/// What it costs.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Cost {
    /// ISO 4217.
    pub currency: String,
    /// Dedicated machines over the whole span, used or not.
    pub dedicated: f64,
    /// Serverless machines, as billed.
    pub serverless: f64,
    /// Both.
    pub total: f64,
    /// Dedicated machines.
    pub dedicated_per_hour: f64,
    /// Serverless machines, on average over the span.
    pub serverless_per_hour: f64,
    /// Both.
    pub total_per_hour: f64,
    /// Its standard error, and that of serverless machines alone: dedicated ones cost what they cost.
    pub total_per_hour_error: Option<f64>,
    /// Of an hour of work of one GPU.
    pub per_gpu_hour_of_work: f64,
    /// Its standard error.
    pub per_gpu_hour_of_work_error: Option<f64>,
    /// The least that any policy must cost which never lets a job wait, however it packs, moves and foresees; nothing where it wasn't asked for.
    pub least_without_waiting: Option<f64>,
    /// The least that any policy must cost: all work that the dedicated machines could do in the span is done by them.
    pub least: f64,
    /// What was rented of each model, where serverless prices differ by model; the bounds above take the least of them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub rented_by_model: Vec<Rented>,
}

/// What was rented at one of several serverless prices.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Rented {
    /// Whose price it is; none for all models that have none of their own.
    pub model: Option<String>,
    /// The price.
    pub per_gpu_hour: f64,
    /// What was billed.
    pub billed_gpu_hours: f64,
    /// What that costs.
    pub cost: f64,
}

/// A point of the curve of waits.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct WaitPoint {
    /// A time.
    pub wait_s: f64,
    /// The share of jobs that waited no longer.
    pub share: f64,
}

/// What went to serverless machines.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Spilled {
    /// Share of jobs of which a pod did.
    pub jobs_share: f64,
    /// Its standard error.
    pub jobs_share_error: Option<f64>,
    /// Work.
    pub gpu_hours: f64,
    /// Share of all work.
    pub gpu_hours_share: f64,
    /// Its standard error.
    pub gpu_hours_share_error: Option<f64>,
    /// What was billed: with cold starts, and rounded up.
    pub billed_gpu_hours: f64,
    /// The most GPUs at a time.
    pub peak_gpus: f64,
    /// The most pods at a time.
    pub peak_pods: u64,
}

/// How much of the dedicated machines was used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Used {
    /// GPUs in use on average.
    pub gpus: f64,
    /// Share of the GPUs that were in use on average; 0 where there are none.
    pub share: f64,
    /// The most GPUs in use at a time.
    pub peak_gpus: f64,
    /// Work that was lost to preemption.
    pub lost_gpu_hours: f64,
    /// Free GPUs that usual jobs could not use, on average over time: see [`Point::fragmented_gpus`].
    pub fragmented_gpus: f64,
}

/// Jobs with a deadline.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Deadlines {
    /// How many there are.
    pub jobs: u64,
    /// How many ended too late, or not at all.
    pub missed: u64,
}

/// A job that waited long.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct WorstJob {
    /// Its line in the trace.
    pub line: u64,
    /// For whom it ran.
    pub owner: Arc<str>,
    /// GPUs, of all its pods.
    pub gpus: f64,
    /// When it was submitted, in seconds since the first job was.
    pub submit_s: f64,
    /// How long it waited.
    pub wait_s: f64,
    /// How long it ran.
    pub duration_s: f64,
    /// Whether a pod of it ran on serverless machines.
    pub spilled: bool,
}
