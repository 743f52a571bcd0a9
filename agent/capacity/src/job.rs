//! What a trace is made of: jobs, and demand over time. Values only; [`crate::trace`] reads them, [`crate::simulate`] replays them.

use std::sync::Arc;

/// A whole GPU, in thousandths.
pub const WHOLE_GPU: u32 = 1000;

/// One job as a trace tells of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Job {
    /// Where it stands in its trace, from 1, counting the header.
    pub line: u64,
    /// When it was asked for, in seconds; only differences matter.
    pub submit_s: f64,
    /// How long it runs once started on a dedicated machine, in seconds.
    pub duration_s: f64,
    /// How many equal pods it has.
    pub pods: u32,
    /// Whether its pods start together or not at all.
    pub gang: bool,
    /// What each pod asks for.
    pub request: Request,
    /// When it should have ended, in seconds on the scale of `submit_s`.
    pub deadline_s: Option<f64>,
    /// The higher, the sooner; 0 where the trace doesn't tell.
    pub priority: i32,
    /// For whom it ran: a namespace, a user; empty where the trace doesn't tell.
    pub owner: Arc<str>,
}

/// What one pod asks for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Request {
    /// How many GPUs; 1 where it asks for a share of one, 0 where for none.
    pub gpus: u32,
    /// How much of each, in thousandths: [`WHOLE_GPU`] but for a share of one.
    pub gpu_milli: u32,
    /// CPU, in thousandths of a core.
    pub cpu_milli: u64,
    /// Memory, in MiB.
    pub memory_mib: u64,
    /// The models that will do; any where it is empty.
    pub models: Arc<[Arc<str>]>,
}

impl Request {
    /// `gpus` whole GPUs of any model, and nothing else.
    pub fn gpus(gpus: u32) -> Self {
        Self { gpus, gpu_milli: WHOLE_GPU, cpu_milli: 0, memory_mib: 0, models: Arc::from([]) }
    }

    /// How much of GPUs in all, in thousandths.
    pub fn total_milli(&self) -> u64 {
        u64::from(self.gpus) * u64::from(self.gpu_milli)
    }
}

/// How many GPUs were demanded from a time on, until the next sample.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Demand {
    /// Where it stands in its trace, from 1, counting the header.
    pub line: u64,
    /// Seconds since 1970, or since the trace's start where it has no dates.
    pub at_s: f64,
    /// GPUs.
    pub gpus: f64,
}
