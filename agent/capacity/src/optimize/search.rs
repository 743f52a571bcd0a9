//! Where jobs may wait there is no formula: sizes and ways of bursting are tried, each by replaying all jobs.
//!
//! For each way of bursting: sizes at equal distances from none to as many as are ever needed, then halfway between the best and its neighbours on both sides, until these are one machine away.
//! That finds the best where cost and waiting each have one valley in size, as they have but for the roughness of packing. What was tried is told.

use serde::Serialize;

use crate::policy::Burst;

/// What is wanted of jobs that may wait.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", tag = "objective")]
pub enum Objective {
    /// The least cost, however long jobs wait.
    Cost,
    /// The least cost at which 95 % of jobs wait no longer.
    CostWithinWait {
        /// Than this.
        wait_p95_s: f64,
    },
    /// The least wait that costs no more.
    WaitWithinCost {
        /// Than this.
        per_hour: f64,
    },
}

/// A pool and a policy to be tried.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Candidate {
    /// Dedicated machines.
    pub machines: u32,
    /// When a job goes to serverless machines.
    pub burst: Burst,
    /// After how long, where it waits.
    pub wait_s: f64,
}

/// What became of it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Trial {
    /// Dedicated machines.
    pub machines: u32,
    /// Their GPUs.
    pub gpus: u32,
    /// When a job goes to serverless machines.
    pub burst: Burst,
    /// After how long, where it waits.
    pub wait_s: f64,
    /// What it costs.
    pub per_hour: f64,
    /// How long jobs waited on average.
    pub wait_mean_s: f64,
    /// How long 95 % of them waited at most.
    pub wait_p95_s: f64,
    /// Share of the work that was rented.
    pub rented_share: f64,
    /// Share of jobs that ran nowhere.
    pub not_run_share: f64,
}

/// What was found by trying.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Search {
    /// What was wanted.
    #[serde(flatten)]
    pub objective: Objective,
    /// The best; none where nothing that was tried is allowed.
    pub best: Option<Trial>,
    /// What is best for jobs of the first half of the time, tried on those of the second.
    pub later: Option<Later>,
    /// All that was tried.
    pub trials: Vec<Trial>,
}

/// The advice on the first half of the time, and what became of it in the second.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Later {
    /// As it was on the first half.
    pub advised: Trial,
    /// The same on the second.
    pub turned_out: Trial,
    /// What is best on the second.
    pub best: Trial,
}

/// Sizes that are tried first.
const FIRST: u32 = 9;

impl Objective {
    fn allows(self, trial: &Trial) -> bool {
        self.excess(trial) <= 0.0
    }

    /// How far a trial is from being allowed.
    fn excess(self, trial: &Trial) -> f64 {
        let over = match self {
            Self::Cost => 0.0,
            Self::CostWithinWait { wait_p95_s } => trial.wait_p95_s - wait_p95_s,
            Self::WaitWithinCost { per_hour } => trial.per_hour - per_hour,
        };
        // What never runs is worse than any wait.
        if trial.not_run_share > 0.0 { f64::INFINITY } else { over.max(0.0) }
    }

    /// The better first.
    fn compare(self, one: &Trial, other: &Trial) -> std::cmp::Ordering {
        let rank = |trial: &Trial| {
            let (cost, wait) = (trial.per_hour, trial.wait_p95_s);
            match self {
                Self::Cost | Self::CostWithinWait { .. } => {
                    [self.excess(trial), cost, wait, trial.wait_mean_s]
                }
                Self::WaitWithinCost { .. } => [self.excess(trial), wait, trial.wait_mean_s, cost],
            }
        };
        let pairs = rank(one).into_iter().zip(rank(other));
        pairs
            .map(|(one, other)| one.total_cmp(&other))
            .find(|order| order.is_ne())
            .unwrap_or_else(|| one.machines.cmp(&other.machines))
    }
}

/// Tries up to `most` machines with each of `ways` of bursting.
///
/// # Errors
/// Those of `attempt`.
pub fn search<E>(
    objective: Objective,
    ways: &[(Burst, f64)],
    most: u32,
    mut attempt: impl FnMut(Candidate) -> Result<Trial, E>,
) -> Result<Search, E> {
    let mut trials: Vec<Trial> = Vec::new();
    for &(burst, wait_s) in ways {
        let mut tried: Vec<Trial> = Vec::new();
        let mut due: Vec<u32> = (0..FIRST)
            .map(|step| {
                u32::try_from(u64::from(most) * u64::from(step) / u64::from(FIRST - 1)).unwrap_or(most)
            })
            .collect();
        while !due.is_empty() {
            for machines in std::mem::take(&mut due) {
                if let Err(place) = tried.binary_search_by_key(&machines, |trial| trial.machines) {
                    tried.insert(place, attempt(Candidate { machines, burst, wait_s })?);
                }
            }
            let best = best_of(objective, &tried).map_or(0, |(place, _)| place);
            let machines = |place: usize| tried.get(place).map(|trial| trial.machines);
            let middle = |one: Option<u32>, other: Option<u32>| {
                let (low, high) = one.zip(other).filter(|(low, high)| high - low > 1)?;
                Some(u32::midpoint(low, high))
            };
            due.extend(best.checked_sub(1).and_then(|below| middle(machines(below), machines(best))));
            due.extend(middle(machines(best), machines(best + 1)));
        }
        trials.extend(tried);
    }
    let best = best_of(objective, &trials).map(|(_, trial)| *trial).filter(|trial| objective.allows(trial));
    Ok(Search { objective, best, later: None, trials })
}

fn best_of(objective: Objective, trials: &[Trial]) -> Option<(usize, &Trial)> {
    trials.iter().enumerate().min_by(|(_, one), (_, other)| objective.compare(one, other))
}

#[cfg(test)]
mod tests {
    use super::{Candidate, Objective, Trial, search};
    use crate::policy::Burst;

    /// A pool whose cost is least at 30 machines, and where waits end at 60.
    #[expect(clippy::unnecessary_wraps, reason = "as a replay may fail")]
    fn attempt(candidate: Candidate) -> Result<Trial, ()> {
        let Candidate { machines, burst, wait_s } = candidate;
        let wait_p95_s =
            if burst == Burst::AtOnce { 0.0 } else { f64::from(60_u32.saturating_sub(machines)) };
        let dearer = if burst == Burst::AtOnce { 10.0 } else { 0.0 };
        Ok(Trial {
            machines,
            gpus: machines * 8,
            burst,
            wait_s,
            per_hour: f64::from(machines.abs_diff(30)) + 100.0 + dearer,
            wait_mean_s: wait_p95_s / 2.0,
            wait_p95_s,
            rented_share: 0.0,
            not_run_share: 0.0,
        })
    }

    fn best(objective: Objective) -> Option<(u32, Burst)> {
        let found = search(objective, &[(Burst::AtOnce, 0.0), (Burst::AllWait, 0.0)], 1000, attempt).unwrap();
        assert!(found.trials.len() < 60, "{}", found.trials.len());
        found.best.map(|trial| (trial.machines, trial.burst))
    }

    #[test]
    fn the_least_cost_within_a_wait_is_where_the_wait_ends() {
        assert_eq!(best(Objective::CostWithinWait { wait_p95_s: 25.0 }), Some((35, Burst::AllWait)));
        assert_eq!(best(Objective::CostWithinWait { wait_p95_s: 1000.0 }), Some((30, Burst::AllWait)));
        assert_eq!(best(Objective::CostWithinWait { wait_p95_s: 0.0 }), Some((30, Burst::AtOnce)));
    }

    #[test]
    fn the_least_wait_within_a_budget_is_what_the_budget_buys() {
        assert_eq!(best(Objective::WaitWithinCost { per_hour: 105.0 }), Some((35, Burst::AllWait)));
        assert_eq!(best(Objective::WaitWithinCost { per_hour: 500.0 }), Some((30, Burst::AtOnce)));
        assert_eq!(best(Objective::WaitWithinCost { per_hour: 99.0 }), None);
    }
}
