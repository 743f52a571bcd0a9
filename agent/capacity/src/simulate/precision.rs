//! How sure a simulation's answer is, in numbers beside it and in words where that is not enough.

use super::{
    batches::{Estimate, Scatter, Sums},
    result::Simulation,
    tally::HOUR_S,
};
use crate::price::Rates;

/// A mean whose standard error is more than this share of it has a word said about it: two of them are then 10 %.
const ENOUGH: f64 = 0.05;

impl Simulation {
    /// Tells how sure the means are by what differs from batch to batch, if there are any.
    pub(super) fn weigh(&mut self, scatter: Option<Scatter>, rates: &Rates) {
        let Some(scatter) = scatter else {
            if self.wait.jobs > 0 {
                let jobs =
                    if self.wait.jobs == 1 { "1 job is" } else { &format!("{} jobs are", self.wait.jobs) };
                self.warnings.push(format!("{jobs} too few to tell how sure the means are"));
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
        let (dedicated, serverless) = (self.cost.dedicated_per_hour, rates.serverless_per_gpu_hour);
        let cost = |sums: &Sums| dedicated * sums.at_s + serverless * sums.billed_milli_s / 1000.0;
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
    }
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
