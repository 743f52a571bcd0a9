//! A job of higher priority takes the machines of jobs of lower priority, as kube-scheduler does it: all those are taken off in thought, and as many put back as may stay.

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
            // Those that may rather stay come first: of higher priority, then those that began earlier.
            let mut others: Vec<(Reverse<i32>, u64, u32)> = self
                .runs
                .ids()
                .filter(|run| !matches!(self.runs[*run].place, Place::Serverless(_)))
                .map(|run| (self.jobs[self.runs[run].job].priority, self.runs[run].start_s.to_bits(), run))
                .filter(|(other, ..)| *other < priority)
                .map(|(other, start, run)| (Reverse(other), start, run))
                .collect();
            others.sort_unstable();
            for (.., run) in &others {
                self.lift(*run);
            }
            let enough = self.machines.room(kind, pods) >= pods;
            let mut victims = Vec::new();
            for (.., run) in others {
                self.put_back(run);
                if enough && self.machines.room(kind, pods) < pods {
                    self.lift(run);
                    victims.push(run);
                }
            }
            if !enough {
                return false;
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
