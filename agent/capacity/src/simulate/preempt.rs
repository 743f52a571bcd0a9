//! A job of higher priority takes the machines of jobs of lower priority: of the lowest first, among them of those that began last, and of no more than it needs.

use std::cmp::Reverse;

use super::{
    active::{Place, Run},
    engine::Engine,
    tally::float,
};
use crate::policy::Preemption;

impl Engine<'_> {
    /// Makes room for a job by ending others. Tells whether none of its pods waits any more.
    pub(super) fn preempt(&mut self, id: u32) -> bool {
        if self.policy.preemption == Preemption::Off {
            return false;
        }
        while self.jobs[id].waiting > 0 {
            let job = &self.jobs[id];
            let pods = u64::from(if job.gang { job.waiting } else { 1 });
            let (kind, priority) = (job.kind, job.priority);
            if self.lowest_priority().is_none_or(|lowest| lowest >= priority) {
                return false;
            }
            let mut others: Vec<(i32, Reverse<u64>, u32)> = self
                .runs
                .ids()
                .filter(|run| !matches!(self.runs[*run].place, Place::Serverless(_)))
                .map(|run| {
                    (self.jobs[self.runs[run].job].priority, Reverse(self.runs[run].start_s.to_bits()), run)
                })
                .filter(|(other, ..)| *other < priority)
                .collect();
            others.sort_unstable();
            let mut gone = 0;
            while self.machines.room(kind, pods) < pods && gone < others.len() {
                self.lift(others[gone].2);
                gone += 1;
            }
            if self.machines.room(kind, pods) < pods {
                for (.., run) in others[..gone].iter().rev() {
                    self.put_back(*run);
                }
                return false;
            }
            // Not all that were taken off stand in its way: those of the highest priority may stay first.
            let mut victims = Vec::new();
            for (.., run) in others[..gone].iter().rev() {
                self.put_back(*run);
                if self.machines.room(kind, pods) < pods {
                    self.lift(*run);
                    victims.push(*run);
                }
            }
            for run in victims {
                self.evict(run);
            }
            self.try_start(id);
        }
        true
    }

    /// Ends a run that is off its machines already; its job waits again.
    fn evict(&mut self, run: u32) {
        let run = self.runs.remove(run);
        let spots = run.place.spots();
        let pods = u32::try_from(spots.len()).unwrap_or(u32::MAX);
        self.changed.extend(spots.iter().map(|spot| spot.node));
        self.account_eviction(&run, pods);
        let job = &mut self.jobs[run.job];
        job.running -= pods;
        job.waiting += pods;
        if self.policy.preemption == Preemption::Resume {
            let rest_s = run.end_s - self.now_s;
            job.rest_s.extend((0..pods).map(|_| rest_s));
            job.kept_s = job.duration_s - rest_s;
        }
        self.enqueue(run.job);
        self.evicted.push(run.job);
        self.look = true;
    }

    /// Those that were preempted start elsewhere, or wait, or go to serverless machines.
    pub(super) fn after_eviction(&mut self) {
        while !self.evicted.is_empty() {
            self.settle_queue();
            let mut evicted = std::mem::take(&mut self.evicted);
            evicted.sort_unstable_by_key(|id| self.jobs.get(*id).map(|job| job.key));
            evicted.dedup();
            for id in evicted {
                if self.jobs.get(id).is_some_and(|job| job.waiting > 0) {
                    self.decide(id);
                }
            }
        }
    }

    /// The lowest priority of what runs on dedicated machines.
    fn lowest_priority(&self) -> Option<i32> {
        self.priorities.first_key_value().map(|(priority, _)| *priority)
    }

    /// Counts what a preempted run had and lost.
    fn account_eviction(&mut self, run: &Run, pods: u32) {
        let job = &self.jobs[run.job];
        let milli = self.machines.of(job.kind).total_milli() * u64::from(pods);
        self.level.dedicated_milli -= milli;
        self.level.waiting_milli += milli;
        if self.tally.counts(job.submit_s) {
            self.tally.jobs.preemptions += u64::from(pods);
            if self.policy.preemption == Preemption::Restart {
                self.tally.lost_milli_s += float(milli) * (self.now_s - run.start_s);
            }
        }
        if let Some(forecast) = &mut self.forecast {
            forecast.fails();
        }
        self.end_of_run(run.job);
    }

    pub(super) fn end_of_run(&mut self, id: u32) {
        if self.policy.preemption == Preemption::Off {
            return;
        }
        let priority = self.jobs[id].priority;
        if let Some(count) = self.priorities.get_mut(&priority) {
            *count -= 1;
            if *count == 0 {
                self.priorities.remove(&priority);
            }
        }
    }
}
