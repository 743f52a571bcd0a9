//! Which waiting jobs start when machines become free.

use std::{
    cmp::Reverse,
    collections::{BTreeSet, BinaryHeap},
};

use super::{active::Place, engine::Engine, machines::Spot, queue::Key};
use crate::policy::{Backfill, Packing, Preemption};

/// The first job of a class, for a heap whose top is the first of all.
type First = Reverse<(Key, u32, u32)>;

/// EASY looks at no more jobs behind the first; as many as Slurm does (`bf_max_job_test`).
const LOOK_AHEAD: usize = 500;

impl Engine<'_> {
    /// Looks at the queue until nothing more starts.
    pub(super) fn settle_queue(&mut self) {
        loop {
            while std::mem::take(&mut self.look) {
                match self.policy.backfill {
                    Backfill::Greedy => self.greedy(),
                    Backfill::Never => {
                        self.in_order();
                    }
                    Backfill::Easy => self.easy(),
                }
            }
            if !std::mem::take(&mut self.passed) {
                break;
            }
            self.rent_to_held();
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
        open.retain(|class| self.may_fit(*class));
        let mut closed = Vec::new();
        let mut firsts = self.firsts(&open);
        while let Some(Reverse((_, id, class))) = firsts.pop() {
            let evicted = self.evicted.len();
            if self.may_fit(class) && (self.try_start(id) || self.preempt(id)) {
                firsts.extend(self.first_of(class));
            } else {
                // One that doesn't fit speaks for its class.
                closed.push(class);
            }
            if self.evicted.len() > evicted {
                // Those that were preempted wait again.
                open.retain(|class| !closed.contains(class));
                closed.clear();
                firsts = self.firsts(&open);
            }
        }
        open.clear();
        self.open = open;
    }

    /// Whether a pod of a class fits on a machine that has more now, or could preempt others.
    fn may_fit(&self, class: u32) -> bool {
        let kind = self.queue.kind(class);
        self.policy.preemption != Preemption::Off
            || self.changed.iter().any(|node| self.machines.fits_on(kind, *node))
    }

    fn first_of(&self, class: u32) -> Option<First> {
        self.queue.first(class).map(|(key, id)| Reverse((key, id, class)))
    }

    /// The first jobs of classes, the first of all first.
    fn firsts(&self, classes: &[u32]) -> BinaryHeap<First> {
        classes.iter().filter_map(|class| self.first_of(*class)).collect()
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
        let Some(before) = self.until_it_fits(head, None) else { return };
        let Some(last) = before.last() else { return };
        let shadow_s = self.runs[*last].end_s;
        // Jobs of a class fare alike: where there is no room, for good; where they are in the way, until something starts.
        let (mut full, mut in_the_way) = (BTreeSet::new(), BTreeSet::new());
        for (_, id) in self.queue.all(LOOK_AHEAD + 1).into_iter().skip(1) {
            let job = &self.jobs[id];
            let (gang, kind, class) = (job.gang, job.kind, job.class);
            if full.contains(&class) {
                continue;
            }
            if self.now_s + job.longest_s() <= shadow_s {
                let waiting = job.waiting;
                if !self.try_start(id) {
                    full.insert(class);
                }
                if self.jobs.get(id).is_none_or(|job| job.waiting < waiting) {
                    in_the_way.clear();
                }
                continue;
            }
            if in_the_way.contains(&class) {
                continue;
            }
            loop {
                let waiting = self.jobs.get(id).map_or(0, |job| job.waiting);
                let pods = if gang { waiting } else { waiting.min(1) };
                if pods == 0 {
                    break;
                }
                if self.machines.room(kind, u64::from(pods)) < u64::from(pods) {
                    full.insert(class);
                    break;
                }
                let spots: Vec<Spot> = (0..pods).filter_map(|_| self.machines.place(kind)).collect();
                if self.until_it_fits(head, Some(&before)).is_none() {
                    for spot in spots {
                        self.machines.release(kind, spot);
                    }
                    // The next may be placed elsewhere by chance.
                    if self.policy.packing != Packing::Random {
                        in_the_way.insert(class);
                    }
                    break;
                }
                let place = if gang { Place::Gang(spots) } else { Place::One(spots[0]) };
                self.start(id, place, pods, self.now_s);
                in_the_way.clear();
            }
        }
        // What started here started behind the first.
        self.look = false;
    }

    /// Which runs, those that end first, must have ended until a job fits, of all or of these; nothing where all don't suffice.
    fn until_it_fits(&mut self, id: u32, of: Option<&[u32]>) -> Option<Vec<u32>> {
        let Self { runs, jobs, machines, .. } = self;
        let job = &jobs[id];
        let (kind, pods) = (job.kind, u64::from(if job.gang { job.waiting } else { 1 }));
        let mut all = runs.by_end();
        let mut these = of.unwrap_or_default().iter().copied();
        let mut gone = Vec::new();
        // Where there is too little, that is the exact number; only machines from which pods are taken can have more.
        let mut room = machines.room(kind, pods);
        while room < pods
            && let Some(run) = if of.is_some() { these.next() } else { all.next() }
        {
            let other = jobs[runs[run].job].kind;
            for spot in runs[run].place.spots() {
                room -= machines.room_on(kind, spot.node, pods);
                machines.release(other, *spot);
                room += machines.room_on(kind, spot.node, pods);
            }
            gone.push(run);
        }
        for run in gone.iter().rev() {
            let other = jobs[runs[*run].job].kind;
            for spot in runs[*run].place.spots() {
                machines.occupy(other, *spot);
            }
        }
        (room >= pods).then_some(gone)
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
