//! Jobs that no trace tells of: from a law.

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
