//! Waiting times in constant memory: counts in buckets whose width grows with the value, so that every quantile is right within [`RELATIVE_ERROR`].

use serde::Serialize;

/// Bits of the mantissa that tell buckets apart.
const PRECISION: u32 = 7;
/// Quantiles are within this share of the true value; mean and maximum are exact.
pub const RELATIVE_ERROR: f64 = 1.0 / 256.0;
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
    /// Half of the jobs waited no longer.
    pub p50_s: f64,
    /// 90 % of the jobs waited no longer.
    pub p90_s: f64,
    /// 95 % of the jobs waited no longer.
    pub p95_s: f64,
    /// 99 % of the jobs waited no longer.
    pub p99_s: f64,
    /// The longest wait, exactly.
    pub max_s: f64,
}

/// Counts waits.
#[derive(Debug, Clone)]
pub(super) struct Histogram {
    none: u64,
    counts: Vec<u64>,
    waited: u64,
    sum_s: f64,
    max_s: f64,
}

impl Histogram {
    pub(super) fn new() -> Self {
        Self { none: 0, counts: vec![0; BUCKETS], waited: 0, sum_s: 0.0, max_s: 0.0 }
    }

    /// Counts a job that waited `wait_s`.
    pub(super) fn record(&mut self, wait_s: f64) {
        if wait_s <= 0.0 {
            self.none += 1;
            return;
        }
        self.counts[bucket(wait_s)] += 1;
        self.waited += 1;
        self.sum_s += wait_s;
        self.max_s = self.max_s.max(wait_s);
    }

    /// Of all jobs.
    pub(super) fn all(&self) -> Waits {
        self.summary(self.none)
    }

    /// Of those that waited at all.
    pub(super) fn waited(&self) -> Waits {
        self.summary(0)
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
        // 16 points for each doubling are more than a plot shows.
        for (index, counts) in self.counts.chunks(1 << (PRECISION - 4)).enumerate() {
            let count: u64 = counts.iter().sum();
            below += count;
            if count > 0 {
                curve.push((value(((index + 1) << (PRECISION - 4)) - 1).min(self.max_s), share(below, jobs)));
            }
        }
        curve
    }

    fn summary(&self, none: u64) -> Waits {
        let jobs = none + self.waited;
        if jobs == 0 {
            return Waits::default();
        }
        let quantile = |percent: u64| self.quantile(none, jobs, percent);
        Waits {
            jobs,
            mean_s: self.sum_s / float(jobs),
            p50_s: quantile(50),
            p90_s: quantile(90),
            p95_s: quantile(95),
            p99_s: quantile(99),
            max_s: self.max_s,
        }
    }

    /// The wait of the job that `percent` of them don't exceed: nearest rank.
    fn quantile(&self, none: u64, jobs: u64, percent: u64) -> f64 {
        let rank = (u128::from(jobs) * u128::from(percent)).div_ceil(100);
        let mut below = u128::from(none);
        if rank <= below {
            return 0.0;
        }
        for (index, count) in self.counts.iter().enumerate() {
            below += u128::from(*count);
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
        let mut waits: Vec<f64> = (1..=5000).map(|k| f64::from(k * k) / 37.0).collect();
        let mut histogram = Histogram::new();
        for wait in &waits {
            histogram.record(*wait);
        }
        for _ in 0..5000 {
            histogram.record(0.0);
        }
        waits.sort_by(f64::total_cmp);
        let all = histogram.all();
        let waited = histogram.waited();
        for (found, index) in [
            (all.p90_s, 3999),
            (all.p95_s, 4499),
            (all.p99_s, 4899),
            (waited.p50_s, 2499),
            (waited.p99_s, 4949),
        ] {
            assert!((found / waits[index] - 1.0).abs() <= RELATIVE_ERROR, "{found} for {}", waits[index]);
        }
        assert_eq!((all.p50_s, all.max_s.to_bits(), all.jobs), (0.0, waits[4999].to_bits(), 10_000));
        assert!((all.mean_s * 2.0 - waited.mean_s).abs() < 1e-9);
    }

    #[test]
    fn what_no_one_waits_for_is_no_panic() {
        assert_eq!(Histogram::new().all(), Waits::default());
        let mut histogram = Histogram::new();
        for wait in [0.0, -0.0, 1e-300, 1e300, f64::MAX] {
            histogram.record(wait);
        }
        assert_eq!(histogram.all().jobs, 5);
        assert!(histogram.curve().iter().all(|(at, share)| at.is_finite() && *share <= 1.0));
    }
}
