//! Where jobs may wait, or can't be split and moved, there is no formula: numbers of machines and ways of bursting are tried, each by replaying all jobs.
//!
//! Where all numbers together are few replays, all of them are tried, and the answer is exact. Else, for each way of bursting and along one shape after the other: numbers at equal distances from
//! none to as many as are ever of use, then halfway between the best and its neighbours on both sides, until these are one machine away; then one machine of a shape for those of another, for as
//! long as anything gets better. Of how long jobs wait before they burst, each time has its own best number of machines; of many times the best is looked for in the same way. That finds the best where
//! cost and waiting each have one valley, as they have but for the roughness of packing. What was tried is told.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
};

use serde::Serialize;

use super::{Flat, Interval, Machines, RatioRange, market::FLAT, replayed::Outcome};
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
#[derive(Debug, Clone, PartialEq)]
pub struct Candidate {
    /// Dedicated machines of each shape.
    pub counts: Vec<u32>,
    /// When a job goes to serverless machines.
    pub burst: Burst,
    /// After how long, where it waits.
    pub wait_s: f64,
}

/// A way of bursting that is tried.
#[derive(Debug, Clone, PartialEq)]
pub struct Way {
    /// When a job goes to serverless machines.
    pub burst: Burst,
    /// After how long, where it waits: each of these, in ascending order; of more than nine, not all where not all can be tried.
    pub waits_s: Vec<f64>,
}

impl Way {
    /// One that has but one wait, or none.
    pub fn one(burst: Burst, wait_s: f64) -> Self {
        Self { burst, waits_s: vec![wait_s] }
    }
}

/// What became of it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Trial {
    /// Dedicated machines.
    pub machines: u32,
    /// Their GPUs.
    pub gpus: u32,
    /// The machines of each shape, those of which there are none included.
    pub kinds: Vec<Machines>,
    /// When a job goes to serverless machines.
    pub burst: Burst,
    /// After how long, where it waits.
    pub wait_s: f64,
    /// What it costs.
    pub per_hour: f64,
    /// For dedicated machines.
    pub owned_per_hour: f64,
    /// How long jobs waited on average.
    pub wait_mean_s: f64,
    /// How long 95 % of them waited at most, exactly.
    pub wait_p95_s: f64,
    /// Share of the work that was rented.
    pub rented_share: f64,
    /// Share of the dedicated GPU-hours that were used.
    pub utilisation: f64,
    /// Share of jobs that ran nowhere.
    pub not_run_share: f64,
    /// The same for each stretch of time, from which the interval is drawn.
    #[serde(skip)]
    pub outcomes: Vec<Outcome>,
}

/// What was found by trying.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Search {
    /// What was wanted.
    #[serde(flatten)]
    pub objective: Objective,
    /// Whether every number of machines of each shape was tried that could be of use, with each wait that was to be tried.
    pub exact: bool,
    /// The best; none where nothing that was tried is allowed.
    pub best: Option<Trial>,
    /// Of what was tried and is allowed, the numbers of GPUs that cost nearly as little; none where cost is not what is to be least.
    pub flat: Option<Flat>,
    /// Of the waits that were tried with the best's way of bursting, those which with their own best number of machines cost nearly as little; none where only one was, or cost is not what is to be least.
    pub flat_waits: Option<FlatWaits>,
    /// By how much the serverless price could be multiplied so that the best stays the best of what was tried and is allowed; none where cost is not what is to be least.
    pub stays_best: Option<RatioRange>,
    /// How far the best could be off; none where nothing is allowed.
    pub interval: Option<Interval>,
    /// What is best for jobs of the first half of the time, tried on those of the second.
    pub later: Option<Later>,
    /// What is owned today, with jobs bursting as at the best; none where it isn't known.
    pub today: Option<Trial>,
    /// All that was tried.
    pub trials: Vec<Trial>,
}

/// Waits before bursting that cost nearly the least.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct FlatWaits {
    /// Dearer than the least by no more than this share.
    pub within: f64,
    /// The shortest of them.
    pub from_s: f64,
    /// The longest.
    pub to_s: f64,
    /// How many waits were tried.
    pub tried: usize,
}

/// The advice on the first half of the time, and what became of it in the second.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Later {
    /// As it was on the first half.
    pub advised: Trial,
    /// The same on the second.
    pub turned_out: Trial,
    /// What is best on the second.
    pub best: Trial,
    /// How much more the advice costs on the second half than the best there, as a share of that; negative where that is dearer, since it alone keeps to what was asked.
    pub regret: f64,
}

/// The numbers of machines among which is searched.
#[derive(Debug, Clone, PartialEq)]
pub struct Kinds {
    /// GPUs of each machine, by shape.
    pub gpus: Vec<u32>,
    /// The most machines of each shape that are of use.
    pub most: Vec<u32>,
    /// Where to begin.
    pub start: Vec<u32>,
    /// So many replays are few enough to try all there is.
    pub few: usize,
}

/// Numbers that are tried first along a shape, or along waits.
const FIRST: usize = 9;

impl Objective {
    /// Whether a trial keeps to what was asked.
    pub(crate) fn allows(self, trial: &Trial) -> bool {
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
    pub(super) fn compare(self, one: &Trial, other: &Trial) -> Ordering {
        self.rank(one).cmp(&self.rank(other))
    }

    fn rank(self, trial: &Trial) -> Rank {
        let (cost, wait) = (trial.per_hour, trial.wait_p95_s);
        let measures = match self {
            Self::Cost | Self::CostWithinWait { .. } => [self.excess(trial), cost, wait, trial.wait_mean_s],
            Self::WaitWithinCost { .. } => [self.excess(trial), wait, trial.wait_mean_s, cost],
        };
        Rank { measures, machines: trial.machines }
    }
}

/// Where a trial stands among others: the least is the best.
#[derive(Debug, Clone, Copy)]
struct Rank {
    measures: [f64; 4],
    machines: u32,
}

impl Ord for Rank {
    fn cmp(&self, other: &Self) -> Ordering {
        let pairs = self.measures.iter().zip(&other.measures);
        pairs
            .map(|(one, other)| one.total_cmp(other))
            .find(|order| order.is_ne())
            .unwrap_or_else(|| self.machines.cmp(&other.machines))
    }
}

impl PartialOrd for Rank {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Rank {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Rank {}

/// Tries numbers of machines with each of `ways` of bursting.
///
/// # Errors
/// Those of `attempt`.
pub fn search<E>(
    objective: Objective,
    ways: &[Way],
    kinds: &Kinds,
    mut attempt: impl FnMut(&Candidate) -> Result<Trial, E>,
) -> Result<Search, E> {
    let of_each = ways.iter().map(|way| way.waits_s.len()).sum();
    let all = kinds.most.iter().try_fold(of_each, |all: usize, most| all.checked_mul(*most as usize + 1));
    let exact = all.is_some_and(|all| all <= kinds.few);
    let mut trials = Vec::new();
    for way in ways {
        let Some(last) = way.waits_s.len().checked_sub(1) else { continue };
        let mut by_wait: BTreeMap<usize, Vec<Trial>> = BTreeMap::new();
        let mut best_at = |at: usize| {
            let (burst, wait_s) = (way.burst, way.waits_s[at]);
            let attempt = |counts: &[u32]| attempt(&Candidate { counts: counts.to_vec(), burst, wait_s });
            let mut tries = Tries { objective, kinds, attempt, tried: BTreeMap::new() };
            if exact {
                tries.all()?;
            } else {
                tries.climb(vec![0; kinds.most.len()])?;
                if kinds.most.len() > 1 {
                    tries.climb(kinds.start.clone())?;
                }
            }
            let found = by_wait.entry(at).or_insert(tries.tried.into_values().collect());
            Ok(found.iter().map(|trial| objective.rank(trial)).min())
        };
        if exact {
            (0..=last).try_for_each(|at| best_at(at).map(|_| ()))?;
        } else {
            valley(last, None, best_at)?;
        }
        trials.extend(by_wait.into_values().flatten());
    }
    let best = trials.iter().min_by_key(|trial| objective.rank(trial));
    let best = best.filter(|trial| objective.allows(trial)).cloned();
    let flat = best.as_ref().and_then(|best| flat(objective, best, &trials));
    let flat_waits = best.as_ref().and_then(|best| flat_waits(objective, best, &trials));
    let stays_best = best.as_ref().and_then(|best| stays_best(objective, best, &trials));
    Ok(Search {
        objective,
        exact,
        best,
        flat,
        flat_waits,
        stays_best,
        interval: None,
        later: None,
        today: None,
        trials,
    })
}

/// Where `rank` is least from 0 to `last`, if it has one valley: tried at equal distances and where it is `known`, then halfway between the best and its neighbours until they are one away.
fn valley<K: Ord, E>(
    last: usize,
    known: Option<usize>,
    mut rank: impl FnMut(usize) -> Result<K, E>,
) -> Result<usize, E> {
    let mut tried = BTreeMap::new();
    let mut due: Vec<usize> = (0..FIRST).map(|step| last * step / (FIRST - 1)).chain(known).collect();
    loop {
        for at in due.drain(..) {
            if let Entry::Vacant(entry) = tried.entry(at) {
                entry.insert(rank(at)?);
            }
        }
        let best = tried.iter().min_by_key(|(_, rank)| *rank).map_or(0, |(at, _)| *at);
        let below = tried.range(..best).next_back().map(|(at, _)| *at);
        let above = tried.range(best + 1..).next().map(|(at, _)| *at);
        let middle = |low: usize, high: usize| (high - low > 1).then(|| usize::midpoint(low, high));
        due.extend(below.and_then(|below| middle(below, best)));
        due.extend(above.and_then(|above| middle(best, above)));
        if due.is_empty() {
            return Ok(best);
        }
    }
}

/// Of the trials that burst as the best does and are allowed, those that cost nearly as little.
fn flat(objective: Objective, best: &Trial, trials: &[Trial]) -> Option<Flat> {
    if matches!(objective, Objective::WaitWithinCost { .. }) {
        return None;
    }
    let near = trials.iter().filter(|trial| {
        (trial.burst, trial.wait_s.to_bits()) == (best.burst, best.wait_s.to_bits())
            && objective.allows(trial)
            && trial.per_hour <= best.per_hour * (1.0 + FLAT)
    });
    let sizes: Vec<u32> = near.map(|trial| trial.gpus).collect();
    let (from_gpus, to_gpus) = (*sizes.iter().min()?, *sizes.iter().max()?);
    Some(Flat { within: FLAT, from_gpus, to_gpus })
}

/// Of the waits that were tried with the best's way of bursting, those of which a trial is allowed and costs nearly as little.
fn flat_waits(objective: Objective, best: &Trial, trials: &[Trial]) -> Option<FlatWaits> {
    if matches!(objective, Objective::WaitWithinCost { .. }) {
        return None;
    }
    let alike = || trials.iter().filter(|trial| trial.burst == best.burst);
    let tried = alike().map(|trial| trial.wait_s.to_bits()).collect::<BTreeSet<_>>().len();
    if tried < 2 {
        return None;
    }
    let near = alike()
        .filter(|trial| objective.allows(trial) && trial.per_hour <= best.per_hour * (1.0 + FLAT))
        .map(|trial| trial.wait_s);
    let (from_s, to_s) =
        near.fold((f64::INFINITY, 0.0_f64), |(from, to), wait_s| (from.min(wait_s), to.max(wait_s)));
    Some(FlatWaits { within: FLAT, from_s, to_s, tried })
}

/// Between which multiples of the serverless price the best costs no more than any other: what is rented doesn't depend on its price.
fn stays_best(objective: Objective, best: &Trial, trials: &[Trial]) -> Option<RatioRange> {
    if matches!(objective, Objective::WaitWithinCost { .. }) {
        return None;
    }
    let (mut from, mut to) = (0.0_f64, f64::INFINITY);
    for other in trials.iter().filter(|trial| objective.allows(trial)) {
        let owned = other.owned_per_hour - best.owned_per_hour;
        let rented = (best.per_hour - best.owned_per_hour) - (other.per_hour - other.owned_per_hour);
        // The other costs more by what it owns more, less by what it rents less.
        if rented > 0.0 {
            to = to.min(owned / rented);
        } else if rented < 0.0 {
            from = from.max(owned / rented);
        }
    }
    Some(RatioRange { from: Some(from), to: to.is_finite().then_some(to) })
}

/// What was tried with one way of bursting, by numbers of machines.
struct Tries<'a, F> {
    objective: Objective,
    kinds: &'a Kinds,
    attempt: F,
    tried: BTreeMap<Vec<u32>, Trial>,
}

impl<E, F: FnMut(&[u32]) -> Result<Trial, E>> Tries<'_, F> {
    fn attempt(&mut self, counts: &[u32]) -> Result<&Trial, E> {
        if !self.tried.contains_key(counts) {
            let trial = (self.attempt)(counts)?;
            self.tried.insert(counts.to_vec(), trial);
        }
        Ok(&self.tried[counts])
    }

    /// Tries everything.
    fn all(&mut self) -> Result<(), E> {
        let mut counts = vec![0; self.kinds.most.len()];
        loop {
            self.attempt(&counts)?;
            // The next number, as an odometer counts.
            let Some(place) = (0..counts.len()).find(|place| counts[*place] < self.kinds.most[*place]) else {
                return Ok(());
            };
            counts[..place].fill(0);
            counts[place] += 1;
        }
    }

    /// Goes on from `counts` until nothing near is better.
    fn climb(&mut self, mut counts: Vec<u32>) -> Result<(), E> {
        loop {
            let before = counts.clone();
            for shape in 0..counts.len() {
                counts = self.along(&counts, shape)?;
            }
            counts = self.exchanged(&counts)?;
            if counts == before {
                return Ok(());
            }
        }
    }

    /// The best number of machines of one shape beside those that there are of others.
    fn along(&mut self, counts: &[u32], shape: usize) -> Result<Vec<u32>, E> {
        let with = |count: u32| {
            let mut counts = counts.to_vec();
            counts[shape] = count;
            counts
        };
        let objective = self.objective;
        let count = |at: usize| u32::try_from(at).unwrap_or(u32::MAX);
        let best = valley(self.kinds.most[shape] as usize, Some(counts[shape] as usize), |at| {
            Ok(objective.rank(self.attempt(&with(count(at)))?))
        })?;
        Ok(with(count(best)))
    }

    /// The best of giving machines of a shape for those of another: one for one, or as many as have about as many GPUs.
    fn exchanged(&mut self, counts: &[u32]) -> Result<Vec<u32>, E> {
        let mut best = counts.to_vec();
        for from in 0..counts.len() {
            for to in (0..counts.len()).filter(|to| *to != from) {
                let (large, small) = (self.kinds.gpus[from], self.kinds.gpus[to].max(1));
                let mut trades = vec![(1, 1), (1, large / small), (1, large.div_ceil(small))];
                trades.extend([(small / large.max(1), 1), (small.div_ceil(large.max(1)), 1)]);
                trades.retain(|(take, add)| (1..=counts[from]).contains(take) && *add > 0);
                for (take, add) in trades {
                    let mut next = counts.to_vec();
                    next[from] -= take;
                    next[to] = (next[to] + add).min(self.kinds.most[to]);
                    self.attempt(&next)?;
                    if self.objective.compare(&self.tried[&next], &self.tried[&best]).is_lt() {
                        best = next;
                    }
                }
            }
        }
        Ok(best)
    }
}

#[cfg(test)]
mod tests {
    use super::{Candidate, Kinds, Machines, Objective, Trial, Way, search};
    use crate::policy::Burst;

    fn trial(candidate: &Candidate, each: &[u32], per_hour: f64, wait_p95_s: f64) -> Trial {
        let machines = |(count, gpus_each): (&u32, &u32)| Machines {
            count: *count,
            gpus_each: *gpus_each,
            model: std::sync::Arc::from(""),
        };
        let kinds: Vec<Machines> = candidate.counts.iter().zip(each).map(machines).collect();
        Trial {
            machines: candidate.counts.iter().sum(),
            gpus: kinds.iter().map(|kind| kind.count * kind.gpus_each).sum(),
            kinds,
            burst: candidate.burst,
            wait_s: candidate.wait_s,
            per_hour,
            owned_per_hour: per_hour,
            wait_mean_s: wait_p95_s / 2.0,
            wait_p95_s,
            rented_share: 0.0,
            utilisation: 0.0,
            not_run_share: 0.0,
            outcomes: Vec::new(),
        }
    }

    /// A pool whose cost is least at 30 machines, and where waits end at 60.
    #[expect(clippy::unnecessary_wraps, reason = "as a replay may fail")]
    fn attempt(candidate: &Candidate) -> Result<Trial, ()> {
        let machines = candidate.counts[0];
        let at_once = candidate.burst == Burst::AtOnce;
        let wait_p95_s = if at_once { 0.0 } else { f64::from(60_u32.saturating_sub(machines)) };
        let dearer = if at_once { 10.0 } else { 0.0 };
        Ok(trial(candidate, &[8], f64::from(machines.abs_diff(30)) + 100.0 + dearer, wait_p95_s))
    }

    fn best(objective: Objective) -> Option<(u32, Burst)> {
        let kinds = Kinds { gpus: vec![8], most: vec![1000], start: vec![0], few: 10 };
        let ways = [Way::one(Burst::AtOnce, 0.0), Way::one(Burst::AllWait, 0.0)];
        let found = search(objective, &ways, &kinds, attempt).unwrap();
        assert!(!found.exact && found.trials.len() < 60, "{}", found.trials.len());
        let all = search(objective, &ways, &Kinds { few: 2002, ..kinds }, attempt).unwrap();
        assert!(all.exact && all.trials.len() == 2002);
        let machines = |trial: Trial| (trial.machines, trial.burst);
        assert_eq!(found.best.clone().map(machines), all.best.map(machines));
        found.best.map(machines)
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

    #[test]
    fn shapes_are_exchanged_for_each_other() {
        // 100 GPUs are needed, those of the larger machines are cheaper, and no more than 9 of them may be had.
        let attempt = |candidate: &Candidate| {
            let [large, small] = candidate.counts[..] else { panic!() };
            let missing = 100_u32.saturating_sub(8 * large + 3 * small);
            let too_many = 50.0 * f64::from(large.saturating_sub(9));
            let cost = 8.0 * f64::from(large) + 3.6 * f64::from(small) + 5.0 * f64::from(missing) + too_many;
            Ok::<_, ()>(trial(candidate, &[8, 3], cost, 0.0))
        };
        let kinds = Kinds { gpus: vec![8, 3], most: vec![13, 34], start: vec![0, 34], few: 1 };
        let ways = [Way::one(Burst::AtOnce, 0.0)];
        let found = search(Objective::Cost, &ways, &kinds, attempt).unwrap();
        let all = search(Objective::Cost, &ways, &Kinds { few: 1000, ..kinds }, attempt).unwrap();
        assert_eq!(found.best, all.best);
        assert!(
            !found.exact && all.exact && found.trials.len() < all.trials.len() / 2,
            "{}",
            found.trials.len()
        );
        assert_eq!(all.best.unwrap().kinds.iter().map(|kind| kind.count).collect::<Vec<_>>(), [8, 12]);
    }
    #[test]
    fn waits_and_machines_are_searched_together() {
        // The longer jobs wait the fewer machines are of use, and of either too much costs.
        let attempt = |candidate: &Candidate| {
            let (machines, wait) = (f64::from(candidate.counts[0]), candidate.wait_s / 60.0);
            let cost = 300.0 + (machines + wait - 100.0).abs() + (wait - 27.0).abs() / 4.0;
            Ok::<_, ()>(trial(candidate, &[8], cost, candidate.wait_s))
        };
        let minutes: Vec<f64> = (0..40_u32).map(|minute| f64::from(minute) * 60.0).collect();
        let ways = [Way::one(Burst::AtOnce, 0.0), Way { burst: Burst::Wait, waits_s: minutes }];
        let kinds = Kinds { gpus: vec![8], most: vec![120], start: vec![0], few: 10 };
        for objective in [Objective::Cost, Objective::CostWithinWait { wait_p95_s: 1500.0 }] {
            let found = search(objective, &ways, &kinds, attempt).unwrap();
            let all = search(objective, &ways, &Kinds { few: 6000, ..kinds.clone() }, attempt).unwrap();
            assert!(all.exact && all.trials.len() == 121 * 41 && !found.exact);
            assert!(found.trials.len() < 1000, "{}", found.trials.len());
            assert_eq!(found.best, all.best);
            let (best, flat) = (all.best.unwrap(), all.flat_waits.unwrap());
            assert!(flat.from_s < best.wait_s && flat.to_s >= best.wait_s && flat.tried == 40, "{flat:?}");
            if let Objective::CostWithinWait { wait_p95_s } = objective {
                assert_eq!((best.machines, best.wait_s), (75, 1500.0));
                assert!(flat.to_s <= wait_p95_s, "no longer wait is allowed: {flat:?}");
            }
        }
    }
}
