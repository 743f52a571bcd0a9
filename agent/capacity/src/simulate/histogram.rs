//! Waiting times in constant memory: few are kept as they are; of more there are counts in buckets whose width grows with the value, so that every quantile is right within [`RELATIVE_ERROR`].

use serde::Serialize;

/// Bits of the mantissa that tell buckets apart.
const PRECISION: u32 = 7;
/// Where more jobs than [`FEW`] waited, quantiles are within this share of the true value; mean and maximum are always exact.
pub const RELATIVE_ERROR: f64 = 1.0 / 256.0;
/// So many waits are kept as they are: 512 KiB.
const FEW: usize = 1 << 16;
/// So many buckets together are one step of the curve, of which 16 are a doubling: more than a plot shows.
const STEP: usize = 1 << (PRECISION - 4);
/// 2^-10 s: shorter waits count as this long in quantiles.
const SMALLEST_EXPONENT: u64 = 1023 - 10;
/// Up to 2^40 s, 35,000 years: longer waits count as this long in quantiles.
const BUCKETS: usize = (10 + 40) << PRECISION;

/// How long jobs waited. Seconds; all 0 where there was no job.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Waits {
    /// How many jobs these are.
    pub jobs: u64,
    /// The mean, exactly.
    pub mean_s: f64,
    /// Its standard error, as the mean of a longer time like this: see [`super::Simulation::batches`]. Nothing where there are too few jobs to tell.
    pub mean_error_s: Option<f64>,
    /// Half of the jobs waited no longer.
    pub p50_s: f64,
    /// Its standard error, as that of the mean: how many more or fewer jobs may wait no longer is told by batches, and how long these wait by the curve. Nothing where there are too few jobs beyond a percentile to tell.
    pub p50_error_s: Option<f64>,
    /// 90 % of the jobs waited no longer.
    pub p90_s: f64,
    /// Its standard error.
    pub p90_error_s: Option<f64>,
    /// 95 % of the jobs waited no longer.
    pub p95_s: f64,
    /// Its standard error.
    pub p95_error_s: Option<f64>,
    /// 99 % of the jobs waited no longer.
    pub p99_s: f64,
    /// Its standard error.
    pub p99_error_s: Option<f64>,
    /// The longest wait, exactly.
    pub max_s: f64,
}

/// Counts waits.
#[derive(Debug, Clone)]
pub(super) struct Histogram {
    none: u64,
    /// The first ones.
    few: Vec<f64>,
    counts: Vec<u64>,
    /// The same by steps of the curve.
    steps: Vec<u64>,
    waited: u64,
    sum_s: f64,
    max_s: f64,
}

impl Histogram {
    pub(super) fn new() -> Self {
        Self {
            none: 0,
            few: Vec::new(),
            counts: vec![0; BUCKETS],
            steps: vec![0; BUCKETS / STEP],
            waited: 0,
            sum_s: 0.0,
            max_s: 0.0,
        }
    }

    /// Counts a job that waited `wait_s`.
    pub(super) fn record(&mut self, wait_s: f64) {
        if wait_s <= 0.0 {
            self.none += 1;
            return;
        }
        if self.few.len() < FEW {
            self.few.push(wait_s);
        }
        let bucket = bucket(wait_s);
        self.counts[bucket] += 1;
        self.steps[bucket / STEP] += 1;
        self.waited += 1;
        self.sum_s += wait_s;
        self.max_s = self.max_s.max(wait_s);
    }

    /// How many jobs there are, how many of them waited at all, and how long in all.
    pub(super) fn sums(&self) -> (u64, u64, f64) {
        (self.none + self.waited, self.waited, self.sum_s)
    }

    /// How many jobs waited at all, by steps of the curve.
    pub(super) fn steps(&self) -> &[u64] {
        &self.steps
    }

    /// Of all jobs, and of those that waited at all.
    pub(super) fn summaries(&mut self) -> [Waits; 2] {
        self.few.sort_unstable_by(f64::total_cmp);
        [self.summary(self.none), self.summary(0)]
    }

    /// Quantiles are right within this share.
    pub(super) fn relative_error(&self) -> f64 {
        if self.waited == self.few.len() as u64 { 0.0 } else { RELATIVE_ERROR }
    }

    /// How many jobs waited how long: the upper ends of `steps` equal steps of the logarithm, with the share of all jobs that waited no longer.
    pub(super) fn curve(&self) -> Vec<(f64, f64)> {
        let jobs = self.none + self.waited;
        let mut curve = Vec::new();
        let mut below = self.none;
        if jobs == 0 {
            return curve;
        }
        curve.push((0.0, share(below, jobs)));
        for (index, count) in self.steps.iter().enumerate() {
            below += count;
            if *count > 0 {
                curve.push((value((index + 1) * STEP - 1).min(self.max_s), share(below, jobs)));
            }
        }
        curve
    }

    fn summary(&self, none: u64) -> Waits {
        let jobs = none + self.waited;
        if jobs == 0 {
            return Waits::default();
        }
        // Nearest rank: the wait that so many per cent of the jobs don't exceed.
        let rank = |percent: u64| (u128::from(jobs) * u128::from(percent)).div_ceil(100);
        let quantile = |percent: u64| self.at(none, u64::try_from(rank(percent)).unwrap_or(jobs));
        Waits {
            jobs,
            mean_s: self.sum_s / float(jobs),
            p50_s: quantile(50),
            p90_s: quantile(90),
            p95_s: quantile(95),
            p99_s: quantile(99),
            max_s: self.max_s,
            ..Waits::default()
        }
    }

    /// The wait that a share of the jobs don't exceed: of all of them, or of those that waited at all.
    pub(super) fn quantile(&self, of_all: bool, share: f64) -> f64 {
        let none = if of_all { self.none } else { 0 };
        let jobs = none + self.waited;
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturates")]
        let rank = (share * float(jobs)).ceil() as u64;
        self.at(none, rank.clamp(1, jobs.max(1)))
    }

    /// The wait of the job that has this rank, from 1, among `none` that didn't wait and those that did. Those that are [kept](FEW) have to be sorted.
    fn at(&self, none: u64, rank: u64) -> f64 {
        let mut below = none;
        if rank <= below {
            return 0.0;
        }
        if self.waited == self.few.len() as u64 {
            let at = usize::try_from(rank - below - 1).unwrap_or(usize::MAX);
            return self.few.get(at).copied().unwrap_or(self.max_s);
        }
        for (index, count) in self.counts.iter().enumerate() {
            below += count;
            if rank <= below {
                return value(index).min(self.max_s);
            }
        }
        self.max_s
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts are far below 2^53")]
fn float(count: u64) -> f64 {
    count as f64
}

fn share(part: u64, whole: u64) -> f64 {
    float(part) / float(whole)
}

/// Where a wait stands among the steps of the curve: the whole steps below it, and which part of its own.
pub(super) fn step(wait_s: f64) -> (usize, f64) {
    let bucket = bucket(wait_s);
    let within = u32::try_from(bucket % STEP).unwrap_or(0);
    (bucket / STEP, (f64::from(within) + 0.5) / f64::from(1_u32 << (PRECISION - 4)))
}

/// The exponent and the first bits of the mantissa, as they stand in the number.
fn bucket(wait_s: f64) -> usize {
    let bits = wait_s.to_bits() >> (52 - PRECISION);
    let smallest = SMALLEST_EXPONENT << PRECISION;
    (bits.saturating_sub(smallest) as usize).min(BUCKETS - 1)
}

/// The middle of a bucket.
fn value(index: usize) -> f64 {
    let lower = ((SMALLEST_EXPONENT << PRECISION) + index as u64) << (52 - PRECISION);
    f64::from_bits(lower | 1 << (51 - PRECISION))
}

#[cfg(test)]
mod tests {
    use super::{Histogram, RELATIVE_ERROR, Waits};

    #[test]
    fn quantiles_are_right_within_the_stated_error() {
        for (count, error) in [(5000_u32, 0.0), (100_000, RELATIVE_ERROR)] {
            let mut waits: Vec<f64> = (1..=count).map(|k| f64::from(k).powi(2) / 37.0).collect();
            let mut histogram = Histogram::new();
            for wait in waits.iter().rev() {
                histogram.record(*wait);
            }
            for _ in 0..count {
                histogram.record(0.0);
            }
            waits.sort_by(f64::total_cmp);
            let [all, waited] = histogram.summaries();
            assert_eq!(histogram.relative_error().to_bits(), error.to_bits());
            let last = waits.len() - 1;
            for (found, percent) in
                [(all.p90_s, 80), (all.p95_s, 90), (all.p99_s, 98), (waited.p50_s, 50), (waited.p99_s, 99)]
            {
                let exact = waits[waits.len() * percent / 100 - 1];
                assert!((found / exact - 1.0).abs() <= error, "{found} for {exact}");
            }
            assert_eq!(
                (all.p50_s, all.max_s.to_bits(), all.jobs),
                (0.0, waits[last].to_bits(), u64::from(count) * 2)
            );
            assert!((all.mean_s * 2.0 / waited.mean_s - 1.0).abs() < 1e-12);
        }
    }

    #[test]
    fn what_no_one_waits_for_is_no_panic() {
        assert_eq!(Histogram::new().summaries(), [Waits::default(); 2]);
        let mut histogram = Histogram::new();
        for wait in [0.0, -0.0, 1e-300, 1e300, f64::MAX] {
            histogram.record(wait);
        }
        assert_eq!(histogram.summaries()[0].jobs, 5);
        assert!(histogram.curve().iter().all(|(at, share)| at.is_finite() && *share <= 1.0));
    }
}
