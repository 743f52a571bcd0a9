//! Serverless machines: whether a job may have them, what they cost, and who waits for them.

use super::{active::Place, engine::Engine, state::WHOLE, tally::float};
use crate::{
    policy::{Backfill, Policy},
    pool::Pool,
    price::Rates,
};

impl Engine<'_> {
    /// Asks for serverless machines for all of its pods that wait, as far as caps allow.
    pub(super) fn rent(&mut self, id: u32) {
        let job = &self.jobs[id];
        if !job.rentable {
            return;
        }
        let each_milli = self.machines.of(job.kind).total_milli();
        let mut pods = u64::from(job.waiting);
        if let Some(most) = self.policy.max_burst_pods {
            pods = pods.min(u64::from(most).saturating_sub(self.serverless_pods));
        }
        let free_milli = self.serverless_milli.saturating_sub(self.level.serverless_milli);
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
            self.begin_rent(id, pods);
        } else {
            // Each has something else left to do.
            (0..pods).for_each(|_| self.begin_rent(id, 1));
        }
    }

    fn begin_rent(&mut self, id: u32, pods: u32) {
        let job = &mut self.jobs[id];
        let rest_s = job.rest_s.last().copied().unwrap_or(job.duration_s);
        let milli = float(self.machines.of(job.kind).total_milli() * u64::from(pods));
        job.spilled = true;
        if rest_s.is_finite() && self.tally.counts(job.submit_s) {
            self.tally.spilled_milli_s += milli * rest_s;
            self.tally.billed_milli_s += milli * self.billed_s(rest_s);
        }
        self.start(id, Place::Serverless(pods), pods, self.now_s + self.policy.cold_start_s);
    }

    /// How long serverless pods are billed that work for so long.
    fn billed_s(&self, work_s: f64) -> f64 {
        let time_s = work_s + self.policy.cold_start_s;
        let step_s = self.policy.billing_s.unwrap_or(self.rates.billed_s);
        if step_s > 0.0 { (time_s / step_s).ceil() * step_s } else { time_s }
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
            if self.serverless_milli <= self.level.serverless_milli
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
        let of = self.machines.of(kind);
        let serverless = &self.pool.serverless;
        let models = &of.request.models;
        let model = serverless.models.is_empty()
            || models.is_empty()
            || models.iter().any(|model| serverless.models.contains(model));
        let rentable = model
            && of.milli <= WHOLE
            && serverless.max_gpus_per_pod.is_none_or(|most| of.gpus <= most)
            && of.total_milli() * u64::from(pods) <= self.serverless_milli
            && self.policy.max_burst_pods.is_none_or(|most| pods <= most)
            && (self.policy.failure_rate < 1.0);
        self.ever[class as usize] = Some((fits, rentable));
        (fits, rentable)
    }
}

/// The most serverless GPUs at a time, in thousandths: by the provider's quota, and by the cap on money.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturates, and is not negative")]
pub(super) fn serverless_milli(pool: &Pool, policy: &Policy, rates: &Rates) -> u64 {
    let quota = pool.serverless.max_gpus.map_or(u64::MAX, |gpus| u64::from(gpus) * 1000);
    let price = rates.serverless_per_gpu_hour;
    let money = match policy.max_burst_cost_per_hour {
        Some(most) if price > 0.0 => (most / price * 1000.0 + 1e-6).floor() as u64,
        _ => u64::MAX,
    };
    quota.min(money)
}
