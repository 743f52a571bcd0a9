//! What a replay says of each stretch of time, and how far the best of several replays could be off: the stretches are drawn again, and what would then be best is looked for among what was tried.
//!
//! A job counts where it was submitted, what is rented where it ran. Nothing is replayed again: how the jobs of one stretch wait for those of the one before stays as it was, as in any block bootstrap.

use rand::{RngExt as _, SeedableRng as _};
use rand_pcg::Pcg64Mcg;

use super::{Candidate, Interval, Machines, Objective, Search, Shape, Trial, bootstrap};
use crate::simulate::Simulation;

/// Stretches into which a replay is divided.
const STRETCHES: usize = 60;
/// As many additions as this are made for an interval, and no fewer draws than these.
const ADDITIONS: usize = 60_000_000;
const LEAST_DRAWS: usize = 100;
/// Waits of so many seconds and less are one, and each of the next is for waits so many times as long.
const SHORTEST_S: f64 = 1.0;
const WIDER: f64 = 1.25;
const BUCKETS: usize = 80;

/// What a replay says of a stretch of time.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Outcome {
    /// How long it is.
    seconds: f64,
    /// Money for what was rented in it.
    rented: f64,
    /// Jobs that were submitted in it, by how long they waited.
    waits: Vec<u32>,
    jobs: u32,
    wait_s: f64,
}

fn bucket(wait_s: f64) -> usize {
    if wait_s <= 0.0 {
        return 0;
    }
    let wider = (wait_s / SHORTEST_S).ln() / WIDER.ln();
    (wider.ceil().max(0.0) as usize + 1).min(BUCKETS - 1)
}

/// The longest wait of a bucket.
fn longest_s(bucket: usize) -> f64 {
    if bucket == 0 { 0.0 } else { SHORTEST_S * WIDER.powf((bucket - 1) as f64) }
}

impl Trial {
    /// What became of a candidate. The replay must have kept what became of each job.
    pub fn of(candidate: &Candidate, shapes: &[Shape], found: &Simulation) -> Self {
        let machines = |(count, shape): (&u32, &Shape)| Machines {
            count: *count,
            gpus_each: shape.gpus,
            model: shape.model.clone(),
        };
        let kinds: Vec<Machines> = candidate.counts.iter().zip(shapes).map(machines).collect();
        let mut waits: Vec<f64> = found.each.iter().map(|job| job.wait_s).collect();
        waits.sort_by(f64::total_cmp);
        // Nearest rank: 95 % of the jobs waited no longer.
        let rank = (waits.len() * 95).div_ceil(100).max(1) - 1;
        Self {
            machines: candidate.counts.iter().sum(),
            gpus: kinds.iter().map(|kind| kind.count * kind.gpus_each).sum(),
            kinds,
            burst: candidate.burst,
            wait_s: candidate.wait_s,
            per_hour: found.cost.total_per_hour,
            owned_per_hour: found.cost.dedicated_per_hour,
            wait_mean_s: found.wait.mean_s,
            wait_p95_s: waits.get(rank).copied().unwrap_or_default(),
            rented_share: found.spilled.gpu_hours_share,
            utilisation: found.used.share,
            not_run_share: (found.jobs.rejected + found.jobs.unfinished) as f64
                / found.jobs.submitted.max(1) as f64,
            outcomes: outcomes(found),
        }
    }

    /// The same if time had been made of these stretches.
    fn again(&self, drawn: &[usize], objective: Objective) -> Self {
        let (mut seconds, mut rented, mut wait_s) = (0.0, 0.0, 0.0);
        let mut jobs = 0_u64;
        for outcome in drawn.iter().map(|index| &self.outcomes[*index]) {
            seconds += outcome.seconds;
            rented += outcome.rented;
            wait_s += outcome.wait_s;
            jobs += u64::from(outcome.jobs);
        }
        let wait_p95_s = if objective == Objective::Cost { 0.0 } else { self.p95_again_s(drawn, jobs) };
        Self {
            per_hour: self.owned_per_hour + rented / seconds * 3600.0,
            wait_mean_s: wait_s / jobs.max(1) as f64,
            wait_p95_s,
            kinds: Vec::new(),
            outcomes: Vec::new(),
            ..*self
        }
    }

    fn p95_again_s(&self, drawn: &[usize], jobs: u64) -> f64 {
        let mut left = jobs - (jobs * 95).div_ceil(100);
        // From the longest wait down: those that wait are few.
        for bucket in (0..BUCKETS).rev() {
            let here = drawn.iter().map(|index| u64::from(self.outcomes[*index].waits[bucket])).sum();
            if left < here {
                return longest_s(bucket);
            }
            left -= here;
        }
        0.0
    }
}

fn outcomes(found: &Simulation) -> Vec<Outcome> {
    let stretch_s = found.span_s / STRETCHES as f64;
    if stretch_s <= 0.0 {
        return Vec::new();
    }
    let empty = Outcome { seconds: stretch_s, waits: vec![0; BUCKETS], ..Outcome::default() };
    let mut outcomes = vec![empty; STRETCHES];
    let place = |at_s: f64| ((at_s / stretch_s) as usize).min(STRETCHES - 1);
    for job in &found.each {
        let outcome = &mut outcomes[place(job.submit_s)];
        outcome.jobs += 1;
        outcome.wait_s += job.wait_s;
        outcome.waits[bucket(job.wait_s)] += 1;
    }
    // What was billed is rented as what ran is.
    let mut ran = 0.0;
    for (index, point) in found.over_time.iter().enumerate() {
        let end_s = found.over_time.get(index + 1).map_or(found.span_s, |next| next.at_s);
        let (mut from_s, to_s) = (point.at_s, end_s.min(found.span_s));
        while from_s < to_s {
            let at = place(from_s);
            let until_s = if at + 1 == STRETCHES { to_s } else { to_s.min(stretch_s * (at + 1) as f64) };
            // Rounding may leave nothing between a boundary and itself.
            let until_s = if until_s > from_s { until_s } else { to_s };
            outcomes[at].rented += point.serverless_gpus * (until_s - from_s);
            ran += point.serverless_gpus * (until_s - from_s);
            from_s = until_s;
        }
    }
    if ran > 0.0 {
        for outcome in &mut outcomes {
            outcome.rented *= found.cost.serverless / ran;
        }
    }
    outcomes
}

impl Search {
    /// Draws stretches of time again in blocks of `block_s`, and looks what would then be best among what was tried.
    pub fn draw(&mut self, block_s: f64, resamples: u32, seed: u64) {
        let Some(best) = &self.best else { return };
        let tried: Vec<&Trial> = self.trials.iter().filter(|trial| trial.not_run_share <= 0.0).collect();
        let Some(stretch_s) = best.outcomes.first().map(|outcome| outcome.seconds) else { return };
        let objective = self.objective;
        let each = if objective == Objective::Cost { 1 } else { BUCKETS / 4 };
        let times =
            (ADDITIONS / (tried.len() * STRETCHES * each).max(1)).max(LEAST_DRAWS).min(resamples as usize);
        let together = ((block_s / stretch_s).round() as usize).clamp(1, STRETCHES / bootstrap::LEAST_BLOCKS);
        let mut random = Pcg64Mcg::seed_from_u64(seed);
        let (mut sizes, mut costs) = (Vec::new(), Vec::new());
        for _ in 0..times {
            let starts: Vec<usize> =
                (0..STRETCHES.div_ceil(together)).map(|_| random.random_range(0..STRETCHES)).collect();
            let drawn: Vec<usize> = starts
                .into_iter()
                .flat_map(|start| (start..start + together).map(|index| index % STRETCHES))
                .collect();
            let again: Vec<Trial> = tried.iter().map(|trial| trial.again(&drawn, objective)).collect();
            let least = again.iter().min_by(|one, other| objective.compare(one, other));
            sizes.extend(least.map(|trial| trial.gpus));
            costs.push(best.again(&drawn, objective).per_hour);
        }
        let mut near: Vec<u32> = tried.iter().map(|trial| trial.gpus.abs_diff(best.gpus)).collect();
        near.sort_unstable();
        let resolution_gpus = near.into_iter().find(|distance| *distance > 0).unwrap_or(1);
        self.interval = Some(Interval::of(
            sizes,
            costs,
            together as f64 * stretch_s,
            u32::try_from(times).unwrap_or(resamples),
            seed,
            resolution_gpus,
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::{BUCKETS, bucket, longest_s};

    #[test]
    fn waits_are_in_the_bucket_of_those_as_long() {
        assert_eq!(
            (bucket(0.0), bucket(0.5), bucket(1.0), bucket(1.2), bucket(f64::MAX)),
            (0, 1, 1, 2, BUCKETS - 1)
        );
        for wait_s in [1.0, 7.0, 60.0, 3599.0, 86_400.0] {
            let longest = longest_s(bucket(wait_s));
            assert!(longest >= wait_s * 0.999 && longest < wait_s * 1.26, "{wait_s} s in {longest} s");
        }
    }
}
