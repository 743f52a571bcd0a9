//! How sure the means of a simulation are: the method of batch means, in constant memory.
//!
//! Jobs one after the other wait alike, so their number says little. A simulation is cut into batches of as many jobs; what differs from one to the next tells how far another span like it would be off. What is told is one
//! standard error: two of them hold the truth 19 times in 20.

use super::tally::float;

/// What adds up over a simulation, up to some moment.
#[derive(Debug, Clone, Default)]
pub(super) struct Sums {
    /// Since the first job was submitted.
    pub(super) at_s: f64,
    pub(super) jobs: f64,
    pub(super) waited_jobs: f64,
    pub(super) spilled_jobs: f64,
    pub(super) wait_s: f64,
    pub(super) work_milli_s: f64,
    pub(super) spilled_milli_s: f64,
    /// What is billed, by time and price.
    pub(super) rented_milli_s: f64,
    /// Jobs that waited at all, by [steps](super::histogram::step) of the curve of waits.
    pub(super) waits: Box<[u64]>,
}

impl Sums {
    /// How many jobs that waited at all waited no longer: as if waits were spread evenly over a step of the curve.
    pub(super) fn waited_within(&self, wait_s: f64) -> f64 {
        let (step, part) = super::histogram::step(wait_s);
        let (below, here) = (self.waits.iter().take(step).sum(), self.waits.get(step).copied());
        float(below) + part * float(here.unwrap_or(0))
    }

    fn since(&self, earlier: &Self) -> Self {
        Self {
            at_s: self.at_s - earlier.at_s,
            jobs: self.jobs - earlier.jobs,
            waited_jobs: self.waited_jobs - earlier.waited_jobs,
            spilled_jobs: self.spilled_jobs - earlier.spilled_jobs,
            wait_s: self.wait_s - earlier.wait_s,
            work_milli_s: self.work_milli_s - earlier.work_milli_s,
            spilled_milli_s: self.spilled_milli_s - earlier.spilled_milli_s,
            rented_milli_s: self.rented_milli_s - earlier.rented_milli_s,
            waits: self
                .waits
                .iter()
                .enumerate()
                .map(|(step, count)| count - earlier.waits.get(step).unwrap_or(&0))
                .collect(),
        }
    }
}

/// No more marks than this are kept.
const MARKS: usize = 512;
/// So few batches are told apart at the end that each is long, and so many that their scatter is known within some 13 %.
const BATCHES: usize = 32;
/// Of 32 independent batches one set in 20 has neighbours that are correlated more than this.
const CORRELATED: f64 = 0.29;

/// Marks along a simulation, as many jobs apart.
#[derive(Debug)]
pub(super) struct Batches {
    start: Sums,
    marks: Vec<Sums>,
    /// Jobs from one mark to the next.
    length: u64,
    /// At so many jobs the next mark is due.
    next: u64,
}

impl Batches {
    /// Time counts from `start_s` on.
    pub(super) fn new(start_s: f64) -> Self {
        let start = Sums { at_s: start_s, ..Sums::default() };
        Self { start, marks: Vec::with_capacity(MARKS), length: 1, next: 1 }
    }

    /// Whether a mark is due after so many jobs.
    pub(super) fn is_due(&self, jobs: u64) -> bool {
        jobs >= self.next
    }

    /// Sets a mark.
    pub(super) fn mark(&mut self, sums: Sums) {
        self.marks.push(sums);
        if self.marks.len() == MARKS {
            let mut is_even = false;
            self.marks.retain(|_| {
                is_even = !is_even;
                !is_even
            });
            self.length *= 2;
        }
        self.next += self.length;
    }

    /// Batches that are told apart; nothing where there are too few jobs for any.
    pub(super) fn finish(&self) -> Option<Scatter> {
        let each = self.marks.len() / BATCHES;
        if each == 0 {
            return None;
        }
        let mut last = &self.start;
        let ends = self.marks.iter().skip(each - 1).step_by(each);
        Some(Scatter(ends.map(|end| end.since(std::mem::replace(&mut last, end))).collect()))
    }
}

/// What each batch adds.
#[derive(Debug)]
pub(super) struct Scatter(Vec<Sums>);

/// The standard error of a ratio of two sums.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Estimate {
    /// One standard error.
    pub(super) error: f64,
    /// Batches still know of those before them: they are too short, and the error is larger than told.
    pub(super) is_least: bool,
}

impl Scatter {
    /// How many batches there are.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// How sure the ratio of two sums is, such as waits over jobs. Nothing where the lower sum is 0.
    pub(super) fn of(&self, upper: impl Fn(&Sums) -> f64, lower: impl Fn(&Sums) -> f64) -> Option<Estimate> {
        let sum = |of: &dyn Fn(&Sums) -> f64| self.0.iter().map(of).sum::<f64>();
        let whole = sum(&lower);
        if whole <= 0.0 {
            return None;
        }
        let ratio = sum(&upper) / whole;
        let off: Vec<f64> = self.0.iter().map(|batch| upper(batch) - ratio * lower(batch)).collect();
        let squares: f64 = off.iter().map(|off| off * off).sum();
        let neighbours: f64 = off.windows(2).map(|pair| pair[0] * pair[1]).sum();
        let count = float(self.0.len() as u64);
        Some(Estimate {
            error: (squares * count / (count - 1.0)).sqrt() / whole,
            is_least: neighbours > CORRELATED * squares,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::{Batches, MARKS, Sums};
    use crate::simulate::dice::{Dice, Stream};

    /// Waits that remember: each is `memory` of the one before, and chance.
    fn estimated(memory: f64, jobs: u64, seed: u64) -> (f64, super::Estimate) {
        let mut dice = Dice::new(seed, Stream::Durations);
        let mut batches = Batches::new(0.0);
        let mut sums = Sums::default();
        let mut wait = 1.0;
        for job in 1..=jobs {
            wait = memory * wait + (1.0 - memory) * dice.exponential();
            sums.jobs += 1.0;
            sums.wait_s += wait;
            if batches.is_due(job) {
                batches.mark(sums.clone());
            }
        }
        let scatter = batches.finish().unwrap();
        (sums.wait_s / sums.jobs, scatter.of(|sums| sums.wait_s, |sums| sums.jobs).unwrap())
    }

    #[test]
    fn the_error_is_what_another_run_is_off_by() {
        // Of either kind the mean of n waits is off by 1/√n: memory makes each of them scatter less.
        for memory in [0.0, 0.9] {
            let runs: Vec<_> = (0..40).map(|seed| estimated(memory, 20_000, seed)).collect();
            let off = (runs.iter().map(|(mean, _)| (mean - 1.0).powi(2)).sum::<f64>() / 40.0).sqrt();
            let told = runs.iter().map(|(_, estimate)| estimate.error).sum::<f64>() / 40.0;
            let exact = 1.0 / 20_000_f64.sqrt();
            assert!((told / exact - 1.0).abs() < 0.15, "{memory}: {told} is not {exact}");
            assert!((off / exact - 1.0).abs() < 0.5, "{memory}: {off} is not {exact}");
            let too_short = runs.iter().filter(|(_, estimate)| estimate.is_least).count();
            assert!(too_short < 8, "{memory}: {too_short} of 40");
        }
    }

    #[test]
    fn a_run_that_is_shorter_than_its_memory_is_told() {
        let short = (0..20).filter(|seed| estimated(0.9999, 20_000, *seed).1.is_least).count();
        assert!(short >= 18, "{short} of 20");
    }

    #[test]
    fn marks_stay_few_and_equally_far_apart() {
        let mut batches = Batches::new(7.0);
        for job in 1..100_000 {
            if batches.is_due(job) {
                let jobs = crate::simulate::tally::float(job);
                batches.mark(Sums { at_s: 7.0 + jobs, jobs, ..Sums::default() });
            }
        }
        assert!(batches.marks.len() < MARKS && batches.marks.len() >= MARKS / 2);
        let scatter = batches.finish().unwrap();
        assert!((32..=34).contains(&scatter.len()), "{}", scatter.len());
        let all = scatter.of(|sums| sums.at_s, |sums| sums.jobs).unwrap();
        assert!(all.error.abs() < 1e-12 && !all.is_least, "{all:?}");
        assert!(scatter.of(|sums| sums.at_s, |sums| sums.wait_s).is_none());
        assert!(Batches::new(0.0).finish().is_none());
    }
}
