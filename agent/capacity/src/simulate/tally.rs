//! What is counted while a simulation goes on: sums, extremes, and the few jobs that waited longest.

use std::{cmp::Reverse, collections::BinaryHeap, sync::Arc};

use super::{
    Options,
    batches::{Batches, Sums},
    histogram::Histogram,
    result::{Cost, Deadlines, Jobs, Rented, Settlement, Simulation, Spilled, Used, WaitPoint, WorstJob},
    series::{Level, Series},
};
use crate::{policy::Policy, pool::Pool, price::Rates};

/// How many of the worst jobs are told.
const WORST: usize = 10;

pub(super) const HOUR_S: f64 = 3600.0;

/// What is counted.
#[derive(Debug)]
pub(super) struct Tally {
    pub(super) jobs: Jobs,
    pub(super) deadlines: Deadlines,
    /// Nothing before this counts.
    warm_up_s: f64,
    /// Nor after this.
    stop_s: f64,
    waits: Histogram,
    batches: Batches,
    series: Series,
    worst: BinaryHeap<Reverse<Worst>>,
    each: Option<Vec<Settlement>>,
    /// Integral of GPUs in use since the warm-up.
    used_milli_s: f64,
    fragmented_milli_s: f64,
    fragmented_milli: f64,
    peak_used_milli: u64,
    peak_spilled_milli: u64,
    peak_pods: u64,
    /// Work of the jobs that count.
    pub(super) work_milli_s: f64,
    pub(super) spilled_milli_s: f64,
    /// By serverless price: that of models without one of their own first.
    pub(super) billed_milli_s: Vec<f64>,
    prices: Vec<f64>,
    pub(super) lost_milli_s: f64,
    /// Integral of what a policy without waiting would rent at least, where it is asked for.
    pub(super) excess_milli_s: Option<f64>,
}

/// Waits are compared first: non-negative numbers are ordered as their bits.
type Worst = (u64, Reverse<u64>, Known);

/// A job among the worst, where equal waits are told apart by the line alone.
#[derive(Debug, Clone)]
struct Known(WorstJob);

impl PartialEq for Known {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}
impl Eq for Known {}
impl PartialOrd for Known {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Known {
    fn cmp(&self, _: &Self) -> std::cmp::Ordering {
        std::cmp::Ordering::Equal
    }
}

/// A job whose wait is known.
pub(super) struct Settled<'a> {
    pub(super) line: u64,
    pub(super) owner: &'a Arc<str>,
    pub(super) milli: u64,
    pub(super) submit_s: f64,
    pub(super) wait_s: f64,
    /// When that became known.
    pub(super) known_s: f64,
    pub(super) duration_s: f64,
    pub(super) end_s: f64,
    pub(super) deadline_s: Option<f64>,
    pub(super) spilled: bool,
}

impl Tally {
    pub(super) fn new(options: &Options, rates: &Rates) -> Self {
        let Options { warm_up_s, bound, each, .. } = *options;
        let by_model = rates.serverless_by_model.iter().map(|price| price.per_gpu_hour);
        let prices: Vec<f64> = std::iter::once(rates.serverless_per_gpu_hour).chain(by_model).collect();
        Self {
            jobs: Jobs::default(),
            deadlines: Deadlines::default(),
            warm_up_s,
            stop_s: f64::INFINITY,
            waits: Histogram::new(),
            batches: Batches::new(warm_up_s),
            series: Series::new(),
            worst: BinaryHeap::new(),
            each: each.then(Vec::new),
            used_milli_s: 0.0,
            fragmented_milli_s: 0.0,
            fragmented_milli: 0.0,
            peak_used_milli: 0,
            peak_spilled_milli: 0,
            peak_pods: 0,
            work_milli_s: 0.0,
            spilled_milli_s: 0.0,
            billed_milli_s: vec![0.0; prices.len()],
            prices,
            lost_milli_s: 0.0,
            excess_milli_s: bound.then_some(0.0),
        }
    }

    /// Whether a job that was submitted then counts.
    pub(super) fn counts(&self, submit_s: f64) -> bool {
        submit_s >= self.warm_up_s
    }

    /// How much of a stretch of time counts.
    pub(super) fn counted_s(&self, from_s: f64, to_s: f64) -> f64 {
        (to_s.min(self.stop_s) - from_s.max(self.warm_up_s)).max(0.0)
    }

    /// Time after `at_s` doesn't count.
    pub(super) fn stop(&mut self, at_s: f64) {
        self.stop_s = at_s;
    }

    /// Notes what a policy without waiting would rent.
    pub(super) fn exceed(&mut self, from_s: f64, to_s: f64, milli: f64) {
        let length_s = self.counted_s(from_s, to_s);
        if let Some(excess) = &mut self.excess_milli_s {
            *excess += milli * length_s;
        }
    }

    /// Time goes on at `level`.
    pub(super) fn pass(&mut self, mut from_s: f64, to_s: f64, level: &Level, fragmented: impl Fn() -> f64) {
        let length_s = self.counted_s(from_s, to_s);
        self.used_milli_s += float(level.dedicated_milli) * length_s;
        // Fragmentation is dear to tell: once for each step of the series, and for every stretch of time that is longer.
        if self.series.ends_before(to_s) {
            self.fragmented_milli = fragmented();
        }
        self.fragmented_milli_s += self.fragmented_milli * length_s;
        while self.series.ends_before(to_s) {
            from_s = self.series.step(from_s, level, self.fragmented_milli);
        }
        self.series.add(to_s - from_s, level);
    }

    pub(super) fn peaks(&mut self, level: &Level, pods: u64) {
        self.peak_used_milli = self.peak_used_milli.max(level.dedicated_milli);
        self.peak_spilled_milli = self.peak_spilled_milli.max(level.serverless_milli);
        self.peak_pods = self.peak_pods.max(pods);
    }

    /// Counts a job whose wait is known.
    pub(super) fn settle(&mut self, job: &Settled<'_>) {
        if !self.counts(job.submit_s) {
            return;
        }
        self.waits.record(job.wait_s);
        if let Some(each) = &mut self.each {
            each.push(Settlement { submit_s: job.submit_s, wait_s: job.wait_s });
        }
        self.jobs.spilled += u64::from(job.spilled);
        if let Some(deadline_s) = job.deadline_s {
            self.deadlines.missed += u64::from(job.end_s > deadline_s);
        }
        let (jobs, ..) = self.waits.sums();
        if self.batches.is_due(jobs) {
            self.batches.mark(self.sums(job.known_s));
        }
        let key = (job.wait_s.max(0.0).to_bits(), Reverse(job.line));
        if job.wait_s <= 0.0 {
            return;
        }
        if self.worst.len() == WORST {
            match self.worst.peek() {
                Some(Reverse((wait, line, _))) if (*wait, *line) < key => {
                    self.worst.pop();
                }
                _ => return,
            }
        }
        self.worst.push(Reverse((
            key.0,
            key.1,
            Known(WorstJob {
                line: job.line,
                owner: job.owner.clone(),
                gpus: float(job.milli) / 1000.0,
                submit_s: job.submit_s,
                wait_s: job.wait_s,
                duration_s: job.duration_s,
                spilled: job.spilled,
            }),
        )));
    }

    /// What is billed, by time and price.
    fn rented_milli_s(&self) -> f64 {
        self.prices.iter().zip(&self.billed_milli_s).map(|(price, milli_s)| price * milli_s).sum()
    }

    fn sums(&self, at_s: f64) -> Sums {
        let (jobs, waited_jobs, wait_s) = self.waits.sums();
        Sums {
            at_s: at_s.min(self.stop_s),
            jobs: float(jobs),
            waited_jobs: float(waited_jobs),
            spilled_jobs: float(self.jobs.spilled),
            wait_s,
            work_milli_s: self.work_milli_s,
            spilled_milli_s: self.spilled_milli_s,
            rented_milli_s: self.rented_milli_s(),
            waits: self.waits.steps().into(),
        }
    }

    /// Everything that was counted, at the end.
    pub(super) fn finish(
        mut self,
        end_s: f64,
        seed: u64,
        pool: &Pool,
        policy: &Policy,
        rates: &Rates,
        fragmented_milli: f64,
    ) -> Simulation {
        let span_s = self.counted_s(0.0, end_s);
        let hours = span_s / HOUR_S;
        let per_hour = |amount: f64| if hours > 0.0 { amount / hours } else { 0.0 };
        let share = |part: f64, whole: f64| if whole > 0.0 { part / whole } else { 0.0 };
        let gpu_hours = |milli_s: f64| milli_s / 1000.0 / HOUR_S;
        let dedicated_per_hour = dedicated_per_hour(pool, rates);
        let dedicated = dedicated_per_hour * hours;
        let by_price = self.prices.iter().zip(&self.billed_milli_s);
        let serverless: f64 = by_price.map(|(price, milli_s)| price * gpu_hours(*milli_s)).sum();
        let total = dedicated + serverless;
        let capacity_milli = float(pool.gpu_count()) * 1000.0;
        let least_rented = (self.work_milli_s - capacity_milli * span_s).max(0.0);
        let cheapest = self.prices.iter().copied().fold(f64::INFINITY, f64::min);
        let rent = |milli_s: f64| dedicated + cheapest * gpu_hours(milli_s);
        let by_model = rates.serverless_by_model.iter().map(|price| Some(price.model.clone()));
        let rented_by_model = std::iter::once(None)
            .chain(by_model)
            .zip(self.prices.iter().zip(&self.billed_milli_s))
            .filter(|_| !rates.serverless_by_model.is_empty())
            .filter(|(model, _)| model.is_some() || rates.serverless_of_others)
            .map(|(model, (per_gpu_hour, milli_s))| Rented {
                model,
                per_gpu_hour: *per_gpu_hour,
                billed_gpu_hours: gpu_hours(*milli_s),
                cost: per_gpu_hour * gpu_hours(*milli_s),
            })
            .collect();
        let mut worst: Vec<Worst> = self.worst.into_iter().map(|Reverse(worst)| worst).collect();
        worst.sort_by(|one, other| other.cmp(one));
        let [wait, waited] = self.waits.summaries();
        let mut found = Simulation {
            seed,
            policy: policy.clone(),
            machines: pool.machine_count(),
            dedicated_gpus: pool.gpu_count(),
            span_s,
            batches: 0,
            warnings: Vec::new(),
            jobs: self.jobs,
            cost: Cost {
                currency: rates.currency.to_string(),
                dedicated,
                serverless,
                total,
                dedicated_per_hour,
                serverless_per_hour: per_hour(serverless),
                total_per_hour: dedicated_per_hour + per_hour(serverless),
                total_per_hour_error: None,
                per_gpu_hour_of_work: share(total, gpu_hours(self.work_milli_s)),
                per_gpu_hour_of_work_error: None,
                least_without_waiting: self.excess_milli_s.map(rent),
                least: rent(least_rented),
                rented_by_model,
            },
            wait,
            waited,
            wait_relative_error: self.waits.relative_error(),
            wait_curve: self
                .waits
                .curve()
                .into_iter()
                .map(|(wait_s, share)| WaitPoint { wait_s, share })
                .collect(),
            spilled: Spilled {
                jobs_share: share(float(self.jobs.spilled), float(self.jobs.submitted)),
                jobs_share_error: None,
                gpu_hours: gpu_hours(self.spilled_milli_s),
                gpu_hours_share: share(self.spilled_milli_s, self.work_milli_s),
                gpu_hours_share_error: None,
                billed_gpu_hours: gpu_hours(self.billed_milli_s.iter().sum()),
                peak_gpus: float(self.peak_spilled_milli) / 1000.0,
                peak_pods: self.peak_pods,
            },
            used: Used {
                gpus: share(self.used_milli_s, span_s) / 1000.0,
                share: share(self.used_milli_s, capacity_milli * span_s),
                peak_gpus: float(self.peak_used_milli) / 1000.0,
                lost_gpu_hours: gpu_hours(self.lost_milli_s),
                fragmented_gpus: share(self.fragmented_milli_s, span_s) / 1000.0,
            },
            deadlines: self.deadlines,
            worst: worst.into_iter().map(|(_, _, Known(job))| job).collect(),
            over_time: self.series.finish(end_s, fragmented_milli),
            each: self.each.unwrap_or_default(),
        };
        found.weigh(self.batches.finish(), &self.waits);
        found
    }
}

/// What the dedicated machines cost per hour, used or not.
fn dedicated_per_hour(pool: &Pool, rates: &Rates) -> f64 {
    pool.machines
        .iter()
        .map(|machines| {
            let each =
                machines.price_per_hour.unwrap_or(f64::from(machines.gpus) * rates.dedicated_per_gpu_hour);
            f64::from(machines.count) * each
        })
        .sum()
}

/// Exact below 2^53.
#[expect(clippy::cast_precision_loss, reason = "counts and thousandths of GPUs are far below that")]
pub(super) fn float(count: u64) -> f64 {
    count as f64
}
