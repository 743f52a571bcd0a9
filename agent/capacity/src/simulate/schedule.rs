//! Which waiting jobs start when machines become free.

use super::{active::Place, engine::Engine, machines::Spot};
use crate::policy::{Backfill, Preemption};

/// EASY looks at no more jobs behind the first; as many as Slurm does (`bf_max_job_test`).
const LOOK_AHEAD: usize = 500;

impl Engine<'_> {
    /// Looks at the queue until nothing more starts.
    pub(super) fn settle_queue(&mut self) {
        while std::mem::take(&mut self.look) {
            match self.policy.backfill {
                Backfill::Greedy => self.greedy(),
                Backfill::Never => {
                    self.in_order();
                }
                Backfill::Easy => self.easy(),
            }
        }
        self.changed.clear();
    }

    /// All that fit, in order. None fit before, so only machines that have more now can tell otherwise.
    fn greedy(&mut self) {
        if self.queue.is_empty() {
            return;
        }
        self.changed.sort_unstable();
        self.changed.dedup();
        let mut open = std::mem::take(&mut self.open);
        open.extend(self.queue.classes());
        if self.policy.preemption == Preemption::Off {
            open.retain(|class| {
                let Some((_, id)) = self.queue.first(*class, None) else { return false };
                let kind = self.jobs[id].kind;
                self.changed.iter().any(|node| self.machines.fits_on(kind, *node))
            });
        }
        while let Some((at, (_, id))) = open
            .iter()
            .enumerate()
            .filter_map(|(at, class)| Some((at, self.queue.first(*class, None)?)))
            .min_by_key(|(_, job)| *job)
        {
            if !self.try_start(id) && !self.preempt(id) {
                open.swap_remove(at);
            }
        }
        open.clear();
        self.open = open;
    }

    /// In order, until one doesn't fit, which is told.
    fn in_order(&mut self) -> Option<u32> {
        while let Some((_, id)) = self.queue.head() {
            if !self.try_start(id) && !self.preempt(id) {
                return Some(id);
            }
        }
        None
    }

    /// In order, until one doesn't fit; then those behind it that don't delay it.
    fn easy(&mut self) {
        let Some(head) = self.in_order() else { return };
        let mut ends: Vec<(u64, u32)> = self
            .runs
            .ids()
            .filter(|run| !matches!(self.runs[*run].place, Place::Serverless(_)))
            .map(|run| (self.runs[run].end_s.to_bits(), run))
            .collect();
        ends.sort_unstable();
        let Some(enough) = self.until_it_fits(head, &ends) else { return };
        let shadow_s = f64::from_bits(ends[enough - 1].0);
        let before = &ends[..enough];
        for (_, id) in self.queue.all().into_iter().skip(1).take(LOOK_AHEAD) {
            let job = &self.jobs[id];
            if self.now_s + job.longest_s() <= shadow_s {
                self.try_start(id);
                continue;
            }
            let (gang, kind) = (job.gang, job.kind);
            loop {
                let waiting = self.jobs.get(id).map_or(0, |job| job.waiting);
                let pods = if gang { waiting } else { waiting.min(1) };
                if pods == 0 || self.machines.room(kind, u64::from(pods)) < u64::from(pods) {
                    break;
                }
                let spots: Vec<Spot> = (0..pods).filter_map(|_| self.machines.place(kind)).collect();
                if self.until_it_fits(head, before).is_none() {
                    for spot in spots {
                        self.machines.release(kind, spot);
                    }
                    break;
                }
                let place = if gang { Place::Gang(spots) } else { Place::One(spots[0]) };
                self.start(id, place, pods, self.now_s);
            }
        }
        // What started here started behind the first.
        self.look = false;
    }

    /// How many of `ends`, the first first, must have come until a job fits; nothing where all don't suffice.
    fn until_it_fits(&mut self, id: u32, ends: &[(u64, u32)]) -> Option<usize> {
        let job = &self.jobs[id];
        let (kind, pods) = (job.kind, u64::from(if job.gang { job.waiting } else { 1 }));
        let mut gone = 0;
        while self.machines.room(kind, pods) < pods && gone < ends.len() {
            self.lift(ends[gone].1);
            gone += 1;
        }
        let fits = self.machines.room(kind, pods) >= pods;
        for (_, run) in ends[..gone].iter().rev() {
            self.put_back(*run);
        }
        fits.then_some(gone)
    }

    /// Takes a run off its machines, for a thought.
    pub(super) fn lift(&mut self, run: u32) {
        let Self { runs, jobs, machines, .. } = self;
        let run = &runs[run];
        let kind = jobs[run.job].kind;
        for spot in run.place.spots() {
            machines.release(kind, *spot);
        }
    }

    /// Puts a run back where it was.
    pub(super) fn put_back(&mut self, run: u32) {
        let Self { runs, jobs, machines, .. } = self;
        let run = &runs[run];
        let kind = jobs[run.job].kind;
        for spot in run.place.spots() {
            machines.occupy(kind, *spot);
        }
    }
}
