//! What is in a trace, and what is wrong with it: to look at before anything is decided by it.

use serde::Serialize;

use super::{Error, Trace, Warnings};
use crate::{
    job::WHOLE_GPU,
    output::{Column, Table},
};

/// What is in a trace.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Summary {
    /// Jobs, where it has jobs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub jobs: Option<JobsSummary>,
    /// Samples, where it has demand over time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub demand: Option<DemandSummary>,
    /// From the first to the last, in seconds.
    pub span_s: f64,
    /// When it begins, in seconds since 1970 where it has dates.
    pub begin_s: f64,
    /// What is wrong with it.
    pub warnings: Warnings,
}

/// Jobs of a trace.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct JobsSummary {
    /// How many.
    pub jobs: u64,
    /// Those that ask for a GPU.
    pub with_gpus: u64,
    /// Those that ask for a share of one.
    pub with_shares: u64,
    /// Those of several pods that start together.
    pub gangs: u64,
    /// What they ask for, times how long they run.
    pub gpu_hours: f64,
    /// The most GPUs of one job.
    pub largest_gpus: f64,
    /// The longest.
    pub longest_s: f64,
}

/// Demand over time.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct DemandSummary {
    /// How many.
    pub samples: u64,
    /// The mean of all samples.
    pub mean_gpus: f64,
    /// The least.
    pub min_gpus: f64,
    /// The most.
    pub max_gpus: f64,
    /// Samples of 0: idleness, or a hole in the data.
    pub zero_samples: u64,
    /// GPUs that were owned at the end, where a file beside the trace tells it.
    pub owned_gpus: Option<f64>,
}

impl Summary {
    /// Reads `trace` to its end.
    ///
    /// # Errors
    /// When it can't be read on.
    pub fn of(trace: Trace) -> Result<Self, Error> {
        match trace {
            Trace::Jobs(mut jobs) => {
                let mut all = JobsSummary::default();
                let mut span = Span::default();
                for job in jobs.by_ref() {
                    let job = job?;
                    span.add(job.submit_s);
                    all.jobs += 1;
                    all.with_gpus += u64::from(job.request.gpus > 0);
                    all.with_shares += u64::from(job.request.gpus > 0 && job.request.gpu_milli < WHOLE_GPU);
                    all.gangs += u64::from(job.gang && job.pods > 1);
                    #[expect(clippy::cast_precision_loss, reason = "shown to people")]
                    let gpus = job.request.total_milli() as f64 * f64::from(job.pods) / f64::from(WHOLE_GPU);
                    all.gpu_hours += gpus * job.duration_s / 3600.0;
                    all.largest_gpus = all.largest_gpus.max(gpus);
                    all.longest_s = all.longest_s.max(job.duration_s);
                }
                Ok(Self {
                    jobs: Some(all),
                    demand: None,
                    span_s: span.last_s - span.first_s,
                    begin_s: span.first_s,
                    warnings: jobs.warnings(),
                })
            }
            Trace::Demand(mut samples) => {
                let mut all = DemandSummary { min_gpus: f64::MAX, ..DemandSummary::default() };
                let mut span = Span::default();
                let mut sum = 0.0;
                for sample in samples.by_ref() {
                    let sample = sample?;
                    span.add(sample.at_s);
                    all.samples += 1;
                    sum += sample.gpus;
                    all.min_gpus = all.min_gpus.min(sample.gpus);
                    all.max_gpus = all.max_gpus.max(sample.gpus);
                    all.zero_samples += u64::from(sample.gpus == 0.0);
                }
                #[expect(clippy::cast_precision_loss, reason = "shown to people")]
                let samples_f64 = all.samples as f64;
                all.mean_gpus = sum / samples_f64;
                all.owned_gpus = samples.owned_gpus();
                Ok(Self {
                    jobs: None,
                    demand: Some(all),
                    span_s: span.last_s - span.first_s,
                    begin_s: span.first_s,
                    warnings: samples.warnings(),
                })
            }
        }
    }

    /// What is in it, and what is wrong with it.
    pub fn tables(&self) -> Vec<Table> {
        let mut rows = Vec::new();
        let mut row = |what: &str, value: String| rows.push(vec![what.to_owned(), value]);
        if let Some(jobs) = &self.jobs {
            row("jobs", jobs.jobs.to_string());
            row("jobs with GPUs", jobs.with_gpus.to_string());
            row("jobs with a share of a GPU", jobs.with_shares.to_string());
            row("gangs", jobs.gangs.to_string());
            row("GPU hours", format!("{:.1}", jobs.gpu_hours));
            row("GPUs of the largest job", jobs.largest_gpus.to_string());
            row("hours of the longest job", format!("{:.2}", jobs.longest_s / 3600.0));
        }
        if let Some(demand) = &self.demand {
            row("samples", demand.samples.to_string());
            row("mean GPUs", format!("{:.3}", demand.mean_gpus));
            row("least GPUs", demand.min_gpus.to_string());
            row("most GPUs", demand.max_gpus.to_string());
            row("samples of 0", demand.zero_samples.to_string());
            if let Some(owned) = demand.owned_gpus {
                row("GPUs owned at the end", owned.to_string());
            }
        }
        row("begins", begin(self.begin_s));
        row("days", format!("{:.2}", self.span_s / 86_400.0));
        let columns = vec![Column::text("WHAT"), Column::number("VALUE")];
        let mut tables = vec![Table { title: String::new(), columns, rows }];
        tables.extend(self.warnings.table());
        tables
    }
}

/// A date, where the trace has dates.
fn begin(at_s: f64) -> String {
    /// The year 1990: what is before counts from its own beginning.
    const DATES: f64 = 631_152_000.0;
    #[expect(clippy::cast_possible_truncation, reason = "before the year 9999")]
    let whole = at_s as i64;
    match jiff::Timestamp::from_second(whole) {
        Ok(at) if at_s >= DATES => at.to_string(),
        _ => format!("{at_s} s"),
    }
}

struct Span {
    first_s: f64,
    last_s: f64,
}

impl Default for Span {
    fn default() -> Self {
        Self { first_s: f64::INFINITY, last_s: f64::NEG_INFINITY }
    }
}

impl Span {
    fn add(&mut self, at_s: f64) {
        self.first_s = self.first_s.min(at_s);
        self.last_s = self.last_s.max(at_s);
    }
}
