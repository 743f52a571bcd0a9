//! When a job that waits is going to start, if all start in the order in which they came: each GPU's time of becoming free, as Kiefer and Wolfowitz have it. Exact for jobs of one GPU; of more it doesn't see how they
//! are scattered.

use std::{cmp::Reverse, collections::BinaryHeap};

use super::{active::Place, engine::Engine};

/// When GPUs become free, were no more jobs to come.
#[derive(Debug)]
pub(super) struct Forecast {
    /// The times, as the bits of non-negative numbers.
    free: BinaryHeap<Reverse<u64>>,
    /// Some job started at another time than was foretold.
    wrong: bool,
}

impl Forecast {
    pub(super) fn new(gpus: u64) -> Self {
        Self { free: (0..gpus).map(|_| Reverse(0)).collect(), wrong: false }
    }

    pub(super) fn fails(&mut self) {
        self.wrong = true;
    }

    pub(super) fn is_wrong(&self) -> bool {
        self.wrong
    }

    /// Begins anew: `running` tells for each run how many GPUs it has and when it ends.
    pub(super) fn restart(&mut self, gpus: u64, running: impl Iterator<Item = (u64, f64)>) {
        let mut free: Vec<Reverse<u64>> =
            running.flat_map(|(gpus, end_s)| (0..gpus).map(move |_| Reverse(end_s.to_bits()))).collect();
        free.resize(usize::try_from(gpus).unwrap_or(usize::MAX), Reverse(0));
        self.free = free.into();
        self.wrong = false;
    }

    /// When a job of so many GPUs starts that stands behind all others; never where there aren't as many.
    pub(super) fn start_s(&mut self, gpus: u64, now_s: f64) -> f64 {
        let free = match gpus {
            0 => return now_s,
            1 => self.free.peek().copied(),
            more if more > self.free.len() as u64 => None,
            more => {
                let first: Vec<Reverse<u64>> = (0..more).filter_map(|_| self.free.pop()).collect();
                let last = first.last().copied();
                self.free.extend(first);
                last
            }
        };
        free.map_or(f64::INFINITY, |Reverse(bits)| f64::from_bits(bits).max(now_s))
    }

    /// Takes the GPUs that are free first, until `end_s`.
    pub(super) fn take(&mut self, gpus: u64, end_s: f64) {
        if gpus == 1
            && let Some(mut first) = self.free.peek_mut()
        {
            *first = Reverse(end_s.to_bits());
            return;
        }
        let gpus = gpus.min(self.free.len() as u64);
        for _ in 0..gpus {
            self.free.pop();
        }
        self.free.extend((0..gpus).map(|_| Reverse(end_s.to_bits())));
    }
}

impl Engine<'_> {
    /// When a job is going to start. It counts on it if it stays, or if the job has started already.
    pub(super) fn foretell(&mut self, id: u32, started: bool) -> f64 {
        let Some(forecast) = &mut self.forecast else { return self.now_s };
        let job = &self.jobs[id];
        let gpus = whole(self.machines.of(job.kind).total_milli() * u64::from(job.pods));
        if forecast.is_wrong() {
            let runs = self.runs.iter().filter(|run| !matches!(run.place, Place::Serverless(_)));
            let machines = &self.machines;
            let jobs = &self.jobs;
            let running = runs.map(|run| {
                let pods = run.place.spots().len() as u64;
                (whole(machines.of(jobs[run.job].kind).total_milli() * pods), run.end_s)
            });
            let running: Vec<(u64, f64)> = running.collect();
            forecast.restart(machines.capacity_milli / 1000, running.into_iter());
            for (_, other) in self.queue.all(usize::MAX).into_iter().filter(|(_, other)| *other != id) {
                let job = &self.jobs[other];
                let gpus = whole(self.machines.of(job.kind).total_milli() * u64::from(job.waiting));
                let start_s = forecast.start_s(gpus, self.now_s);
                forecast.take(gpus, start_s + job.duration_s);
                self.jobs[other].foretold_s = start_s;
            }
            if started {
                return self.now_s;
            }
        }
        let start_s = forecast.start_s(gpus, self.now_s);
        let job = &mut self.jobs[id];
        if started || start_s - self.now_s <= job.wait_s || !job.rentable {
            forecast.take(gpus, start_s + job.duration_s);
            job.foretold_s = start_s;
        }
        start_s
    }
}

/// Whole GPUs, rounded up.
fn whole(milli: u64) -> u64 {
    milli.div_ceil(1000)
}
