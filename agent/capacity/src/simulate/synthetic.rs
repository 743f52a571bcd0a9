//! Jobs that no trace tells of: from a law, or by repeating those of a trace.

use std::sync::Arc;

use super::dice::{Dice, Stream};
use crate::job::{Job, Request};

/// Jobs that come by chance (Poisson), each with one GPU, for times by chance (exponential): what queueing theory calls M/M/s.
#[derive(Debug)]
pub struct Poisson {
    arrivals: Dice,
    durations: Dice,
    interval_s: f64,
    duration_s: f64,
    left: u64,
    number: u64,
    now_s: f64,
    request: Request,
    owner: Arc<str>,
}

impl Poisson {
    /// `jobs` of them, at so many a second, of which one GPU would end so many a second. Both rates are above 0.
    pub fn new(rate_per_s: f64, service_rate_per_s: f64, jobs: u64, seed: u64) -> Self {
        Self {
            arrivals: Dice::new(seed, Stream::Arrivals),
            durations: Dice::new(seed, Stream::Durations),
            interval_s: 1.0 / rate_per_s,
            duration_s: 1.0 / service_rate_per_s,
            left: jobs,
            number: 0,
            now_s: 0.0,
            request: Request::gpus(1),
            owner: Arc::from(""),
        }
    }
}

impl Iterator for Poisson {
    type Item = Job;

    fn next(&mut self) -> Option<Job> {
        self.left = self.left.checked_sub(1)?;
        self.number += 1;
        self.now_s += self.interval_s * self.arrivals.exponential();
        Some(Job {
            line: self.number,
            submit_s: self.now_s,
            duration_s: self.duration_s * self.durations.exponential(),
            pods: 1,
            gang: false,
            request: self.request.clone(),
            deadline_s: None,
            priority: 0,
            owner: self.owner.clone(),
        })
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = usize::try_from(self.left).unwrap_or(usize::MAX);
        (left, Some(left))
    }
}

/// The jobs of a trace shuffled, then drawn from it again and again until they ask for `inflate` times the pool's GPUs: the experiment by which ways of packing are compared (FGD, ATC'23).
/// One comes each second; with `stay`, none ever ends.
pub fn inflated(jobs: &[Job], capacity_milli: u64, inflate: f64, stay: bool, seed: u64) -> Vec<Job> {
    let mut dice = Dice::new(seed, Stream::Shuffle);
    let mut order: Vec<usize> = (0..jobs.len()).collect();
    for last in (1..order.len()).rev() {
        #[expect(clippy::cast_possible_truncation, reason = "below a length")]
        order.swap(last, dice.below(last as u64 + 1) as usize);
    }
    let milli = |index: usize| jobs[index].request.total_milli() * u64::from(jobs[index].pods);
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "saturates"
    )]
    let target = (capacity_milli as f64 * inflate) as u64;
    let mut asked: u64 = order.iter().map(|index| milli(*index)).sum();
    while asked > target
        && let Some(index) = order.pop()
    {
        asked -= milli(index);
    }
    if asked > 0 {
        loop {
            #[expect(clippy::cast_possible_truncation, reason = "below a length")]
            let index = dice.below(jobs.len() as u64) as usize;
            asked += milli(index);
            if asked > target {
                break;
            }
            order.push(index);
        }
    }
    let mut at_s = 0.0;
    order
        .into_iter()
        .map(|index| {
            at_s += 1.0;
            let job = jobs[index].clone();
            Job { submit_s: at_s, duration_s: if stay { f64::INFINITY } else { job.duration_s }, ..job }
        })
        .collect()
}
