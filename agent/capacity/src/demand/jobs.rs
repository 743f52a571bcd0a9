//! The demand that jobs make when each starts as it is submitted: what would run if there were always room.

use std::{cmp::Reverse, collections::BinaryHeap};

use crate::job::{Demand, Job, WHOLE_GPU};

/// Demand over time of `jobs`, sorted by submission, each running from then on for as long as it runs. Memory is that of the jobs that run at one time.
///
/// # Errors
/// Passes on those of `jobs`.
pub fn offered<E>(jobs: impl IntoIterator<Item = Result<Job, E>>) -> impl Iterator<Item = Result<Demand, E>> {
    Offered { jobs: jobs.into_iter().fuse().peekable(), running: BinaryHeap::new(), milli: 0, line: 0 }
}

struct Offered<I: Iterator> {
    jobs: std::iter::Peekable<I>,
    running: BinaryHeap<Reverse<End>>,
    milli: u128,
    line: u64,
}

/// When a job ends, and what it frees.
#[derive(Debug, Clone, Copy, PartialEq)]
struct End {
    at_s: f64,
    milli: u64,
}

impl Eq for End {}

impl Ord for End {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.at_s.total_cmp(&other.at_s)
    }
}

impl PartialOrd for End {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl<I: Iterator<Item = Result<Job, E>>, E> Iterator for Offered<I> {
    type Item = Result<Demand, E>;

    /// Everything that happens at one time makes one sample.
    fn next(&mut self) -> Option<Self::Item> {
        let submitted = match self.jobs.peek() {
            Some(Ok(job)) => Some(job.submit_s),
            Some(Err(_)) => return self.jobs.next()?.err().map(Err),
            None => None,
        };
        let ended = self.running.peek().map(|Reverse(end)| end.at_s);
        let at_s = match (submitted, ended) {
            (Some(submitted), Some(ended)) => submitted.min(ended),
            (submitted, ended) => submitted.or(ended)?,
        };
        while let Some(Reverse(end)) = self.running.peek().copied().filter(|Reverse(end)| end.at_s <= at_s) {
            self.running.pop();
            self.milli -= u128::from(end.milli);
        }
        while let Some(Ok(job)) = self.jobs.next_if(|job| job.as_ref().is_ok_and(|job| job.submit_s <= at_s))
        {
            let milli = job.request.total_milli().saturating_mul(u64::from(job.pods));
            self.line = job.line;
            if job.duration_s > 0.0 && milli > 0 {
                self.milli += u128::from(milli);
                self.running.push(Reverse(End { at_s: job.submit_s + job.duration_s, milli }));
            }
        }
        let gpus = self.milli as f64 / f64::from(WHOLE_GPU);
        Some(Ok(Demand { line: self.line, at_s, gpus }))
    }
}
