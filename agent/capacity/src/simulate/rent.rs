//! Serverless machines: whether a job may have them, what they cost, and who waits for them.

use std::{collections::BTreeSet, sync::Arc};

use super::{active::Place, engine::Engine, machines::Machines, state::WHOLE, tally::float};
use crate::{
    policy::{Backfill, Burst, Policy},
    pool::{Pool, Serverless},
    price::Rates,
};

/// A serverless price: that of a model, or of all that have none of their own.
#[derive(Debug)]
struct Price {
    /// As [`Rates::serverless_of`] tells it.
    place: Option<usize>,
    per_gpu_hour: f64,
    billed_s: f64,
    /// What is rented at it now, in thousandths of GPUs.
    milli: u64,
}

/// What is rented, and at which prices.
#[derive(Debug)]
pub(super) struct Rent {
    /// By the provider's quota.
    quota_milli: u64,
    most_per_hour: Option<f64>,
    /// The first is that of models without one of their own.
    prices: Vec<Price>,
    /// Of each kind of pods so far which price is paid; nothing where there is none.
    of_kind: Vec<Option<usize>>,
    /// Models of which serverless machines have no price, and how many jobs asked for them.
    pub(super) unpriced: (BTreeSet<String>, u64),
    /// Kinds of pods that were rented.
    rented: Vec<bool>,
}

impl Rent {
    pub(super) fn new(pool: &Pool, policy: &Policy, rates: &Rates) -> Self {
        let of_others = Price {
            place: None,
            per_gpu_hour: rates.serverless_per_gpu_hour,
            billed_s: rates.billed_s,
            milli: 0,
        };
        let by_model = rates.serverless_by_model.iter().enumerate().map(|(at, price)| Price {
            place: Some(at),
            per_gpu_hour: price.per_gpu_hour,
            billed_s: price.billed_s,
            milli: 0,
        });
        Self {
            quota_milli: pool.serverless.max_gpus.map_or(u64::MAX, |gpus| u64::from(gpus) * 1000),
            most_per_hour: policy.max_burst_cost_per_hour,
            prices: std::iter::once(of_others).chain(by_model).collect(),
            of_kind: Vec::new(),
            unpriced: (BTreeSet::new(), 0),
            rented: Vec::new(),
        }
    }

    /// The most that caps and quota still allow at a price, in thousandths of GPUs, beside `rented_milli` at all prices.
    fn free_milli(&self, price: usize, rented_milli: u64) -> u64 {
        let spent = self.prices.iter().map(|price| price.per_gpu_hour * float(price.milli) / 1000.0).sum();
        self.quota_milli.saturating_sub(rented_milli).min(self.bought_milli(price, spent))
    }

    /// The most that they ever allow at a price.
    fn most_milli(&self, price: usize) -> u64 {
        self.quota_milli.min(self.bought_milli(price, 0.0))
    }

    /// What the cap on money allows at a price, beside what is spent.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturates")]
    fn bought_milli(&self, price: usize, spent_per_hour: f64) -> u64 {
        let per_gpu_hour = self.prices[price].per_gpu_hour;
        match self.most_per_hour {
            Some(most) if per_gpu_hour > 0.0 => {
                ((most - spent_per_hour) / per_gpu_hour * 1000.0 + 1e-6).floor() as u64
            }
            _ => u64::MAX,
        }
    }

    /// Whether nothing more can be had at any price.
    fn is_full(&self, rented_milli: u64) -> bool {
        (0..self.prices.len()).all(|price| self.free_milli(price, rented_milli) == 0)
    }

    /// How long serverless pods are billed that work for so long, at a price.
    fn billed_s(&self, policy: &Policy, price: usize, work_s: f64) -> f64 {
        let time_s = work_s + policy.cold_start_s;
        let step_s = policy.billing_s.unwrap_or(self.prices[price].billed_s);
        if step_s > 0.0 { (time_s / step_s).ceil() * step_s } else { time_s }
    }

    /// What is to be said of models and their prices.
    pub(super) fn warnings(&self, machines: &Machines) -> impl Iterator<Item = String> {
        let (models, jobs) = &self.unpriced;
        let unpriced = (*jobs > 0).then(|| {
            let ask = if *jobs == 1 { "job asks" } else { "jobs ask" };
            format!(
                "{jobs} {ask} for models without a serverless price ({}), which are never rented: give that of each with --serverless-price, or a number for all others",
                join(models)
            )
        });
        let rented = (0..).zip(&self.rented).filter(|(_, rented)| **rented);
        let wanted = rented.map(|(kind, _)| &machines.of(kind).request.models);
        let alike: BTreeSet<String> =
            wanted.filter(|models| !models.is_empty()).map(|models| models.join("|")).collect();
        let alike = (alike.len() > 1 && self.prices.len() == 1).then(|| {
            format!(
                "GPUs of different models ({}) were rented at one price, {}: where they differ, give that of each, such as --serverless-price A100=5.10,H100=9.80",
                join(&alike),
                self.prices[0].per_gpu_hour
            )
        });
        unpriced.into_iter().chain(alike)
    }
}

fn join(models: &BTreeSet<String>) -> String {
    let some: Vec<&str> = models.iter().map(String::as_str).take(5).collect();
    format!("{}{}", some.join(", "), if models.len() > 5 { ", …" } else { "" })
}

/// The models of serverless machines that will do for a job; nothing where there are none, and an empty list where any will do.
fn will_do(serverless: &Serverless, wanted: &Arc<[Arc<str>]>) -> Option<Arc<[Arc<str>]>> {
    if serverless.models.is_empty() {
        return Some(wanted.clone());
    }
    if wanted.is_empty() {
        return Some(serverless.models.iter().cloned().collect());
    }
    let both: Arc<[Arc<str>]> =
        wanted.iter().filter(|model| serverless.models.contains(model)).cloned().collect();
    (!both.is_empty()).then_some(both)
}

impl Engine<'_> {
    /// Asks for serverless machines for all of its pods that wait, as far as caps allow.
    pub(super) fn rent(&mut self, id: u32) {
        let job = &self.jobs[id];
        if !job.rentable {
            return;
        }
        let kind = job.kind;
        let each_milli = self.machines.of(kind).total_milli();
        let mut pods = u64::from(job.waiting);
        if let Some(most) = self.policy.max_burst_pods {
            pods = pods.min(u64::from(most).saturating_sub(self.serverless_pods));
        }
        let Some(price) = self.serverless_price(kind) else { return };
        let free_milli = self.rent.free_milli(price, self.level.serverless_milli);
        let job = &self.jobs[id];
        pods = pods.min(free_milli.checked_div(each_milli).unwrap_or(pods));
        if job.gang && pods < u64::from(job.waiting) {
            pods = 0;
        }
        if pods < u64::from(job.waiting) {
            self.hold(id);
        }
        if pods == 0 {
            return;
        }
        if self.policy.failure_rate > 0.0 && self.provider.share() < self.policy.failure_rate {
            self.tally.jobs.provider_failures += 1;
            self.patience(id, self.policy.retry_s);
            return;
        }
        let pods = u32::try_from(pods).unwrap_or(u32::MAX);
        if self.jobs[id].rest_s.is_empty() || self.jobs[id].gang {
            self.begin_rent(id, pods, price);
        } else {
            // Each has something else left to do.
            (0..pods).for_each(|_| self.begin_rent(id, 1, price));
        }
    }

    fn begin_rent(&mut self, id: u32, pods: u32, price: usize) {
        let job = &mut self.jobs[id];
        let rest_s = job.rest_s.last().copied().unwrap_or(job.duration_s);
        let kind = self.machines.of(job.kind);
        let milli = kind.total_milli() * u64::from(pods);
        self.rent.prices[price].milli += milli;
        let rented = &mut self.rent.rented;
        if rented.len() <= job.kind as usize {
            rented.resize(job.kind as usize + 1, false);
        }
        rented[job.kind as usize] = true;
        job.spilled = true;
        if rest_s.is_finite() && self.tally.counts(job.submit_s) {
            self.tally.spilled_milli_s += float(milli) * rest_s;
            self.tally.billed_milli_s[price] += float(milli) * self.rent.billed_s(self.policy, price, rest_s);
        }
        self.start(id, Place::Serverless(pods), pods, self.now_s + self.policy.cold_start_s);
    }

    /// Which price is paid for pods of a kind; nothing where they can't be had.
    fn serverless_price(&mut self, kind: u32) -> Option<usize> {
        // Kinds are numbered as they come.
        for next in (0..=kind).skip(self.rent.of_kind.len()) {
            let wanted = &self.machines.of(next).request.models;
            let place = will_do(&self.pool.serverless, wanted);
            let place = place.and_then(|models| self.rates.serverless_of(&models));
            let prices = &self.rent.prices;
            let price = place.and_then(|place| prices.iter().position(|price| price.place == place));
            self.rent.of_kind.push(price);
        }
        self.rent.of_kind[kind as usize]
    }

    /// Notes a job that may burst by its namespace's policy, and that no serverless price is for.
    pub(super) fn note_models(&mut self, kind: u32, burst: Burst) {
        if burst != Burst::Never && self.serverless_price(kind).is_none() {
            let models = &self.machines.of(kind).request.models;
            // Where the provider has none of these models, prices are not what is missing.
            if will_do(&self.pool.serverless, models).is_some() {
                self.rent.unpriced.0.insert(models.join("|"));
                self.rent.unpriced.1 += 1;
            }
        }
    }

    /// Gives serverless pods back.
    pub(super) fn end_rent(&mut self, kind: u32, milli: u64) {
        if let Some(price) = self.serverless_price(kind) {
            self.rent.prices[price].milli -= milli;
        }
    }

    fn hold(&mut self, id: u32) {
        let job = &mut self.jobs[id];
        if !job.held {
            job.held = true;
            self.tally.jobs.held_by_cap += 1;
            self.held.insert((job.key, id));
        }
    }

    /// Serverless capacity is there again: for those that were held back, in the queue's order.
    pub(super) fn rent_to_held(&mut self) {
        let mut after = None;
        loop {
            let next = match after {
                None => self.held.first().copied(),
                Some(last) => self
                    .held
                    .range((std::ops::Bound::Excluded(last), std::ops::Bound::Unbounded))
                    .next()
                    .copied(),
            };
            let Some((key, id)) = next else { return };
            self.rent(id);
            if self.policy.backfill != Backfill::Greedy && self.jobs.get(id).is_some_and(|job| job.held) {
                return;
            }
            if self.rent.is_full(self.level.serverless_milli)
                || self.policy.max_burst_pods.is_some_and(|most| u64::from(most) <= self.serverless_pods)
            {
                return;
            }
            after = Some((key, id));
        }
    }

    /// Whether so many pods at once fit on empty dedicated machines, and whether they can be rented, where the policy lets them.
    pub(super) fn ever(&mut self, class: u32, kind: u32, pods: u32) -> (bool, bool) {
        if self.ever.len() <= class as usize {
            self.ever.resize(class as usize + 1, None);
        }
        if let Some(known) = self.ever[class as usize] {
            return known;
        }
        let fits = self.machines.ever_fit(kind, u64::from(pods));
        let price = self.serverless_price(kind);
        let most_milli = price.map_or(0, |price| self.rent.most_milli(price));
        let of = self.machines.of(kind);
        let serverless = &self.pool.serverless;
        let rentable = price.is_some()
            && of.milli <= WHOLE
            && serverless.max_gpus_per_pod.is_none_or(|most| of.gpus <= most)
            && of.total_milli() * u64::from(pods) <= most_milli
            && self.policy.max_burst_pods.is_none_or(|most| pods <= most)
            && (self.policy.failure_rate < 1.0);
        self.ever[class as usize] = Some((fits, rentable));
        (fits, rentable)
    }
}
