//! The course of events: jobs come, start, end, are preempted, go to serverless machines. At one moment, ends come first, then the queue, then jobs whose patience is over, then new jobs.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, BinaryHeap},
};

use super::{
    active::{Active, Place, Run, Runs},
    bound::Demand,
    dice::{Dice, Stream},
    forecast::Forecast,
    machines::{Machines, Spot},
    queue::{Key, Queue, Standing},
    rent::Rent,
    result::Simulation,
    series::Level,
    slab::Slab,
    tally::{Settled, Tally, float},
};
use crate::{
    job::Job,
    policy::{Backfill, Burst, Policy, Preemption},
    pool::Pool,
    price::Rates,
    simulate::Options,
};

/// A job of more pods, or of more GPUs, is a slip of the hand: it fits nowhere.
const LARGEST: u32 = 1_000_000;

/// A simulation that goes on.
#[derive(Debug)]
pub(super) struct Engine<'a> {
    pub(super) pool: &'a Pool,
    pub(super) policy: &'a Policy,
    pub(super) rates: &'a Rates,
    options: &'a Options,
    /// When the first job was submitted, on the trace's scale.
    origin_s: Option<f64>,
    pub(super) now_s: f64,
    end_s: f64,
    pub(super) machines: Machines,
    pub(super) queue: Queue,
    pub(super) jobs: Slab<Active>,
    pub(super) runs: Runs,
    departures: BinaryHeap<Reverse<(u64, u32, u32)>>,
    timers: BinaryHeap<Reverse<(u64, u64, u32)>>,
    pub(super) level: Level,
    pub(super) serverless_pods: u64,
    pub(super) rent: Rent,
    /// Jobs that would go to serverless machines, were there no cap.
    pub(super) held: BTreeSet<(Key, u32)>,
    /// One of them started on dedicated machines: who was behind it may have its turn.
    pub(super) passed: bool,
    pub(super) provider: Dice,
    pub(super) tally: Tally,
    pub(super) forecast: Option<Forecast>,
    demand: Option<Demand>,
    pub(super) changed: Vec<u32>,
    /// Classes of the queue that are looked at; kept for its memory.
    pub(super) open: Vec<u32>,
    /// Jobs and timers are numbered.
    numbers: u64,
    pub(super) ever: Vec<Option<(bool, bool)>>,
    /// The queue is to be looked at.
    pub(super) look: bool,
    /// Jobs that were preempted just now.
    pub(super) evicted: Vec<u32>,
    /// How many runs on dedicated machines have which priority, where that matters.
    pub(super) priorities: BTreeMap<i32, u64>,
}

impl<'a> Engine<'a> {
    pub(super) fn new(pool: &'a Pool, policy: &'a Policy, rates: &'a Rates, options: &'a Options) -> Self {
        let machines = Machines::new(pool, policy.packing, Dice::new(options.seed, Stream::Ties));
        let gpus = machines.capacity_milli / 1000;
        Self {
            pool,
            policy,
            rates,
            options,
            origin_s: None,
            now_s: 0.0,
            end_s: 0.0,
            demand: options.bound.then(|| Demand::new(machines.capacity_milli)),
            machines,
            queue: Queue::new(policy.backfill != Backfill::Greedy),
            jobs: Slab::default(),
            runs: Runs::new(policy.backfill == Backfill::Easy),
            departures: BinaryHeap::new(),
            timers: BinaryHeap::new(),
            level: Level::default(),
            serverless_pods: 0,
            rent: Rent::new(pool, policy, rates),
            held: BTreeSet::new(),
            passed: false,
            provider: Dice::new(options.seed, Stream::Provider),
            tally: Tally::new(options, rates),
            forecast: policy.any_burst(|burst| burst == Burst::ShortWait).then(|| Forecast::new(gpus)),
            changed: Vec::new(),
            open: Vec::new(),
            numbers: 0,
            ever: Vec::new(),
            look: false,
            evicted: Vec::new(),
            priorities: BTreeMap::new(),
        }
    }

    /// A job is submitted. Everything that happens before comes first.
    pub(super) fn submit(&mut self, job: Job) {
        let origin_s = *self.origin_s.get_or_insert(job.submit_s);
        let submit_s = job.submit_s - origin_s;
        if submit_s < self.now_s {
            self.tally.jobs.out_of_order += 1;
        }
        let submit_s = submit_s.max(self.now_s);
        self.run_until(submit_s);
        self.pass(submit_s);
        self.end_s = self.end_s.max(submit_s);
        self.arrive(job, submit_s, origin_s);
        self.settle_queue();
    }

    fn arrive(&mut self, job: Job, submit_s: f64, origin_s: f64) {
        let kind = self.machines.kind(&job.request);
        self.machines.came(kind, job.pods);
        let gang = job.gang && job.pods > 1;
        let class = self.queue.class(kind, if gang { job.pods } else { 0 });
        let each_milli = self.machines.of(kind).total_milli();
        let milli = each_milli.saturating_mul(u64::from(job.pods));
        let (fits, rentable) = if job.pods > LARGEST || milli / 1000 > u64::from(LARGEST) {
            (false, false)
        } else {
            self.ever(class, kind, if gang { job.pods } else { 1 })
        };
        let (burst, wait_s) = self.policy.burst_of(&job.owner);
        let (fits, rentable) = (fits && burst != Burst::Only, rentable && burst != Burst::Never);
        let deadline_s = job.deadline_s.map(|deadline_s| deadline_s - origin_s);
        let counts = self.tally.counts(submit_s);
        if counts {
            self.note_models(kind, burst);
            self.tally.jobs.submitted += 1;
            self.tally.deadlines.jobs += u64::from(deadline_s.is_some());
        }
        if job.pods == 0 || !(fits || rentable) {
            if counts {
                self.tally.jobs.rejected += 1;
                self.tally.deadlines.missed += u64::from(deadline_s.is_some());
            }
            return;
        }
        if job.duration_s.is_finite() {
            if counts {
                self.tally.work_milli_s += float(milli) * job.duration_s;
            }
            if let Some(demand) = &mut self.demand {
                let tally = &mut self.tally;
                demand.add(submit_s, job.duration_s, milli, |from_s, to_s, milli| {
                    tally.exceed(from_s, to_s, milli);
                });
            }
        }
        self.numbers += 1;
        let standing = Standing {
            priority: job.priority,
            duration_s: job.duration_s,
            milli,
            deadline_s,
            number: self.numbers,
        };
        let id = self.jobs.insert(Active {
            line: job.line,
            owner: job.owner,
            kind,
            class,
            key: standing.key(self.policy.order),
            submit_s,
            duration_s: job.duration_s,
            deadline_s,
            priority: job.priority,
            burst,
            wait_s,
            gang,
            pods: job.pods,
            waiting: job.pods,
            running: 0,
            queued: false,
            fits,
            rentable,
            spilled: false,
            settled: false,
            begun_s: submit_s,
            end_s: submit_s,
            rest_s: Vec::new(),
            kept_s: 0.0,
            foretold_s: f64::NAN,
            timer: 0,
            held: false,
        });
        self.level.waiting_milli += milli;
        self.enter(id);
    }

    /// A job looks for machines.
    fn enter(&mut self, id: u32) {
        if self.jobs[id].fits {
            let alone = self.policy.backfill == Backfill::Greedy || self.queue.is_empty();
            if alone && self.try_start(id) {
                self.foretell(id, true);
                return;
            }
            if alone && self.preempt(id) {
                self.after_eviction();
                return;
            }
            self.enqueue(id);
            // It may stand first.
            self.settle_queue();
            self.after_eviction();
        }
        if self.jobs.get(id).is_some_and(|job| job.waiting > 0) {
            self.decide(id);
        }
    }

    /// Whether it goes to serverless machines, and when.
    pub(super) fn decide(&mut self, id: u32) {
        let job = &self.jobs[id];
        let (burst, wait_s) = (job.burst, job.wait_s);
        match burst {
            Burst::Never => {}
            Burst::AtOnce | Burst::Only => self.rent(id),
            Burst::AllWait => {
                if !job.fits {
                    self.rent(id);
                }
            }
            Burst::Wait => self.patience(id, wait_s),
            Burst::ShortWait => {
                if !job.fits || (job.rentable && self.foretell(id, false) - self.now_s > wait_s) {
                    self.rent(id);
                } else {
                    // The forecast may be wrong: no one waits longer than was promised.
                    self.patience(id, wait_s);
                }
            }
        }
        // Who doesn't ask for a forecast isn't counted in it.
        if burst != Burst::ShortWait
            && let Some(forecast) = &mut self.forecast
            && self.jobs.get(id).is_some_and(|job| job.waiting > 0)
        {
            forecast.fails();
        }
    }

    pub(super) fn patience(&mut self, id: u32, wait_s: f64) {
        let job = &mut self.jobs[id];
        if !job.rentable {
            return;
        }
        if wait_s <= 0.0 {
            self.rent(id);
            return;
        }
        self.numbers += 1;
        job.timer = self.numbers;
        self.timers.push(Reverse(((self.now_s + wait_s).to_bits(), job.timer, id)));
    }

    /// Starts as many of its pods on dedicated machines as fit, or all of a gang. Tells whether none waits any more.
    pub(super) fn try_start(&mut self, id: u32) -> bool {
        let job = &self.jobs[id];
        let kind = job.kind;
        if job.gang {
            if self.machines.room(kind, u64::from(job.waiting)) < u64::from(job.waiting) {
                return false;
            }
            let spots: Vec<Spot> = (0..job.waiting).filter_map(|_| self.machines.place(kind)).collect();
            let pods = job.waiting;
            self.start(id, Place::Gang(spots), pods, self.now_s);
            return true;
        }
        while self.jobs[id].waiting > 0 {
            let Some(spot) = self.machines.place(kind) else { return false };
            self.start(id, Place::One(spot), 1, self.now_s);
        }
        true
    }

    /// Pods begin to work at `begin_s`.
    pub(super) fn start(&mut self, id: u32, place: Place, pods: u32, begin_s: f64) {
        let job = &mut self.jobs[id];
        let each_milli = self.machines.of(job.kind).total_milli();
        let milli = each_milli * u64::from(pods);
        let rest_s = if pods == 1 { job.rest_s.pop() } else { job.rest_s.drain(..).reduce(f64::max) };
        let end_s = begin_s + rest_s.unwrap_or(job.duration_s);
        job.waiting -= pods;
        job.running += pods;
        job.begun_s = job.begun_s.max(begin_s);
        job.end_s = job.end_s.max(end_s);
        self.level.waiting_milli -= milli;
        let is_rented = matches!(place, Place::Serverless(_));
        if let Some(forecast) = &mut self.forecast
            && job.queued
        {
            let foretold = job.foretold_s;
            let as_foretold =
                if is_rented { foretold.is_nan() } else { foretold.to_bits() == begin_s.to_bits() };
            if !as_foretold {
                forecast.fails();
            }
        }
        if is_rented {
            self.level.serverless_milli += milli;
            self.serverless_pods += u64::from(pods);
        } else {
            self.level.dedicated_milli += milli;
            if self.policy.preemption != Preemption::Off {
                *self.priorities.entry(job.priority).or_default() += 1;
            }
        }
        self.tally.peaks(&self.level, self.serverless_pods);
        let run = self.runs.insert(Run { job: id, place, start_s: begin_s, end_s, number: 0 });
        // Numbers tell a run from others that had its slot before.
        let number = self.runs.number(run);
        self.runs[run].number = number;
        if end_s.is_finite() {
            self.departures.push(Reverse((end_s.to_bits(), run, number)));
        }
        if self.jobs[id].waiting == 0 {
            self.passed |= self.jobs[id].held && !is_rented && self.policy.backfill != Backfill::Greedy;
            self.leave_queue(id);
            if self.policy.preemption == Preemption::Off {
                self.settle(id);
            }
        }
    }

    pub(super) fn enqueue(&mut self, id: u32) {
        let job = &mut self.jobs[id];
        if !job.queued {
            job.queued = true;
            self.queue.push(job.class, job.key, id);
            self.look |= self.policy.backfill != Backfill::Greedy;
        }
    }

    fn leave_queue(&mut self, id: u32) {
        let job = &mut self.jobs[id];
        job.timer = 0;
        if job.queued {
            job.queued = false;
            self.queue.remove(job.class, job.key);
            self.look |= self.policy.backfill != Backfill::Greedy;
        }
        if job.held {
            job.held = false;
            self.held.remove(&(job.key, id));
        }
    }

    /// Counts a job: it is known how long it waited.
    fn settle(&mut self, id: u32) {
        let job = &mut self.jobs[id];
        if std::mem::replace(&mut job.settled, true) {
            return;
        }
        self.end_s = if job.end_s.is_finite() { self.end_s.max(job.end_s) } else { self.end_s };
        self.tally.settle(&Settled {
            line: job.line,
            owner: &job.owner,
            milli: self.machines.of(job.kind).total_milli() * u64::from(job.pods),
            submit_s: job.submit_s,
            wait_s: job.begun_s - job.submit_s - job.kept_s,
            known_s: self.now_s,
            duration_s: job.duration_s,
            end_s: job.end_s,
            deadline_s: job.deadline_s,
            spilled: job.spilled,
        });
    }

    /// Everything up to and at `to_s`.
    fn run_until(&mut self, to_s: f64) {
        loop {
            let departure_s =
                self.departures.peek().map_or(f64::INFINITY, |Reverse((end, ..))| f64::from_bits(*end));
            let timer_s = self.timers.peek().map_or(f64::INFINITY, |Reverse((at, ..))| f64::from_bits(*at));
            let next_s = departure_s.min(timer_s);
            if next_s > to_s || next_s == f64::INFINITY {
                return;
            }
            if departure_s <= timer_s {
                self.depart(departure_s);
            } else {
                self.lose_patience();
            }
            self.settle_queue();
            self.after_eviction();
        }
    }

    /// All ends at one moment.
    fn depart(&mut self, at_s: f64) {
        let mut freed = false;
        while let Some(Reverse((end, run, number))) = self.departures.peek().copied() {
            if f64::from_bits(end) > at_s {
                break;
            }
            self.departures.pop();
            if self.runs.get(run).is_none_or(|run| run.number != number) {
                continue;
            }
            self.pass(at_s);
            let run = self.runs.remove(run);
            freed |= matches!(run.place, Place::Serverless(_));
            let pods = self.vacate(run.job, &run.place);
            let job = &mut self.jobs[run.job];
            job.running -= pods;
            if job.running == 0 && job.waiting == 0 {
                self.settle(run.job);
                self.jobs.discard(run.job);
            }
        }
        if freed {
            self.rent_to_held();
        }
        self.look = true;
    }

    /// Gives back what pods had. Tells how many they were.
    fn vacate(&mut self, id: u32, place: &Place) -> u32 {
        let kind = self.jobs[id].kind;
        let milli = self.machines.of(kind).total_milli();
        if let Place::Serverless(pods) = place {
            self.level.serverless_milli -= milli * u64::from(*pods);
            self.end_rent(kind, milli * u64::from(*pods));
            self.serverless_pods -= u64::from(*pods);
            return *pods;
        }
        self.end_of_run(id);
        let spots = place.spots();
        for spot in spots {
            self.machines.release(kind, *spot);
            self.changed.push(spot.node);
        }
        self.level.dedicated_milli -= milli * spots.len() as u64;
        u32::try_from(spots.len()).unwrap_or(u32::MAX)
    }

    fn lose_patience(&mut self) {
        let Some(Reverse((at, timer, id))) = self.timers.pop() else { return };
        if self.jobs.get(id).is_some_and(|job| job.timer == timer && job.waiting > 0) {
            self.pass(f64::from_bits(at));
            self.rent(id);
        }
    }

    /// Time goes on to `to_s`; nothing happens in between.
    fn pass(&mut self, to_s: f64) {
        if to_s > self.now_s {
            let machines = &self.machines;
            self.tally.pass(self.now_s, to_s, &self.level, || machines.fragmented_milli());
            self.now_s = to_s;
        }
    }

    /// No more jobs come: those that are there go on to their end.
    pub(super) fn finish(mut self) -> Simulation {
        if self.options.steady {
            self.tally.stop(self.now_s);
        }
        self.run_until(f64::INFINITY);
        if let Some(mut demand) = self.demand.take() {
            let tally = &mut self.tally;
            demand.until(f64::INFINITY, |from_s, to_s, milli| tally.exceed(from_s, to_s, milli));
        }
        let left: Vec<u32> = self.jobs.ids().collect();
        for id in left {
            let job = &self.jobs[id];
            if job.waiting == 0 {
                self.settle(id);
            } else if self.tally.counts(job.submit_s) {
                // No one ever does what is left of it.
                if job.duration_s.is_finite() {
                    let left_milli = self.machines.of(job.kind).total_milli() * u64::from(job.waiting);
                    self.tally.work_milli_s -= float(left_milli) * job.duration_s;
                }
                self.tally.jobs.unfinished += 1;
                self.tally.deadlines.missed += u64::from(job.deadline_s.is_some());
            }
        }
        let end_s = self.now_s.max(self.end_s);
        let fragmented_milli = self.machines.fragmented_milli();
        let words: Vec<String> = self.rent.warnings(&self.machines).collect();
        let (seed, pool, policy) = (self.options.seed, self.pool, self.policy);
        let mut found = self.tally.finish(end_s, seed, pool, policy, self.rates, fragmented_milli);
        found.warnings.splice(0..0, words);
        found
    }
}
