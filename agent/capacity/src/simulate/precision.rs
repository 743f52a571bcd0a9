//! How sure a simulation's answer is, in numbers beside it and in words where that is not enough.

use super::{
    batches::{Estimate, Scatter, Sums},
    histogram::{Histogram, Waits},
    result::Simulation,
    tally::HOUR_S,
};
/// A mean whose standard error is more than this share of it has a word said about it: two of them are then 10 %.
const ENOUGH: f64 = 0.05;

impl Simulation {
    /// Tells how sure the means are by what differs from batch to batch, if there are any.
    pub(super) fn weigh(&mut self, scatter: Option<Scatter>, waits: &Histogram) {
        let Some(scatter) = scatter else {
            if self.wait.jobs > 0 {
                let jobs =
                    if self.wait.jobs == 1 { "1 job is" } else { &format!("{} jobs are", self.wait.jobs) };
                self.warnings.push(format!("{jobs} too few to tell how sure means and percentiles are"));
            }
            return;
        };
        self.batches = scatter.len() as u64;
        let error = |estimate: Option<Estimate>| estimate.map(|estimate| estimate.error);
        let jobs = |sums: &Sums| sums.jobs;
        let work = |sums: &Sums| sums.work_milli_s;
        let time = |sums: &Sums| sums.at_s;

        let wait = scatter.of(|sums| sums.wait_s, jobs);
        self.wait.mean_error_s = error(wait);
        self.waited.mean_error_s = error(scatter.of(|sums| sums.wait_s, |sums| sums.waited_jobs));
        self.spilled.jobs_share_error = error(scatter.of(|sums| sums.spilled_jobs, jobs));
        let spilled = scatter.of(|sums| sums.spilled_milli_s, work);
        self.spilled.gpu_hours_share_error = error(spilled);
        let dedicated = self.cost.dedicated_per_hour;
        let cost = |sums: &Sums| dedicated * sums.at_s + sums.rented_milli_s / 1000.0;
        let cost_per_hour = scatter.of(cost, time);
        self.cost.total_per_hour_error = error(cost_per_hour);
        self.cost.per_gpu_hour_of_work_error =
            error(scatter.of(|sums| cost(sums) / HOUR_S, |sums| sums.work_milli_s / 1000.0 / HOUR_S));

        let told = [
            ("the mean wait", self.wait.mean_s, wait),
            ("the cost per hour", self.cost.total_per_hour, cost_per_hour),
            ("the spilled share of the work", self.spilled.gpu_hours_share, spilled),
        ];
        self.warnings
            .extend(told.into_iter().filter_map(|(what, mean, estimate)| word(what, mean, estimate?)));
        self.warnings.extend(percentiles(&mut self.wait, &scatter, waits, true));
        percentiles(&mut self.waited, &scatter, waits, false);
    }
}

/// Tells how sure the percentiles of waits are, of all jobs or of those that waited at all, and returns what is to be said of it.
///
/// A share of the jobs is a mean, whose standard error batches tell. The waits that a standard error more and less of the jobs don't exceed are a percentile's (Woodruff, 1952): no density needs to be known.
fn percentiles(told: &mut Waits, scatter: &Scatter, waits: &Histogram, of_all: bool) -> Option<String> {
    let all = [
        (50, told.p50_s, &mut told.p50_error_s),
        (90, told.p90_s, &mut told.p90_error_s),
        (95, told.p95_s, &mut told.p95_error_s),
        (99, told.p99_s, &mut told.p99_error_s),
    ];
    let (mut unsure, mut untold, mut is_least) = (Vec::new(), Vec::new(), false);
    for (percent, wait_s, error_s) in all {
        let did_not_wait = |sums: &Sums| if of_all { sums.jobs - sums.waited_jobs } else { 0.0 };
        let jobs = |sums: &Sums| if of_all { sums.jobs } else { sums.waited_jobs };
        let Some(estimate) = scatter.of(|sums| did_not_wait(sums) + sums.waited_within(wait_s), jobs) else {
            continue;
        };
        let share = f64::from(percent) / 100.0;
        if share + 2.0 * estimate.error >= 1.0 {
            untold.push(format!("p{percent}"));
            continue;
        }
        let of = |share| waits.quantile(of_all, share);
        let error = (of(share + estimate.error) - of(share - estimate.error)) / 2.0;
        *error_s = Some(error);
        if wait_s > 0.0 && error > ENOUGH * wait_s {
            unsure.push(format!("p{percent} within ±{:.0} %", error / wait_s * 200.0));
            is_least |= estimate.is_least;
        }
    }
    let mut words = Vec::new();
    if !unsure.is_empty() {
        let or_worse = if is_least { " at best" } else { " only" };
        words.push(format!("{}{or_worse} (two standard errors)", unsure.join(", ")));
    }
    if !untold.is_empty() {
        words
            .push(format!("too few jobs wait longer than {} to tell how sure that is", untold.join(" and ")));
    }
    (!words.is_empty()).then(|| format!("percentiles of waits are rough: {}", words.join("; ")))
}

/// What is to be said of a mean; nothing where it is sure enough.
fn word(what: &str, mean: f64, estimate: Estimate) -> Option<String> {
    let share = estimate.error / mean;
    if share.is_nan() || share <= ENOUGH {
        return None;
    }
    let within = share * 200.0;
    Some(if estimate.is_least {
        format!(
            "too short for its answer: {what} may be off by {within:.0} % or more, for load rises and falls more slowly than a thirtieth of this time; take a longer one"
        )
    } else {
        let times = (share / ENOUGH).powi(2).ceil();
        format!(
            "too short for its answer: {what} is known within ±{within:.0} % only (two standard errors); {times:.0} times as many jobs would make that {:.0} %",
            ENOUGH * 200.0
        )
    })
}

#[cfg(test)]
mod tests {
    use super::word;
    use crate::simulate::batches::Estimate;

    #[test]
    fn what_is_not_sure_enough_has_a_word_said_about_it() {
        let word = |error, is_least| word("the mean wait", 100.0, Estimate { error, is_least });
        assert_eq!(word(4.9, false), None);
        assert!(
            word(7.0, false).unwrap().contains("within ±14 % only (two standard errors); 2 times as many")
        );
        assert!(word(7.0, true).unwrap().contains("14 % or more"));
        assert_eq!(super::word("the mean wait", 0.0, Estimate { error: 0.0, is_least: false }), None);
    }
}
