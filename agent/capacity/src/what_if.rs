//! Before and after, side by side: other machines, other prices, other demand.
//!
//! Jobs are replayed ([`crate::simulate`]); demand over time is priced as if no job ever waited ([`crate::optimize`]).

use std::{collections::BTreeSet, sync::Arc};

use serde::Serialize;

use crate::{
    demand::Series,
    job::Job,
    optimize::{
        self, Cost, Optimization, Question,
        words::{count, number, percent, time},
    },
    output::{Column, Table},
    pool::{Machines, Pool},
    price::Rates,
    simulate::{Simulation, WaitPoint},
};

/// What can't be changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// No machines have that name or model.
    #[error("the pool has no machines {asked:?}; it has {known}")]
    Unknown {
        /// What was asked for.
        asked: String,
        /// What there is.
        known: String,
    },
    /// More are to go than there are.
    #[error("{asked} machines {name:?} are to go, and the pool has {there}: take away at most as many")]
    TooFew {
        /// Which.
        name: String,
        /// How many were to go.
        asked: u32,
        /// How many there are.
        there: u32,
    },
    /// The pool has several kinds, and it wasn't said which.
    #[error("say which machines: the pool has {0}; for example --add 2x{1}")]
    Which(String, String),
}

/// So many machines of a kind: `4`, or `4xH100`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lot {
    /// How many.
    pub count: u32,
    /// Their name or model; may be left out where there is one kind.
    pub kind: Option<String>,
}

impl std::str::FromStr for Lot {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (count, kind) = match text.split_once(['x', '×']) {
            Some((count, kind)) => (count, Some(kind.trim().to_owned())),
            None => (text, None),
        };
        let wrong =
            || "a number of machines, or one and their name or model, was expected: 4 or 4xH100".to_owned();
        let count = count.trim().parse().map_err(|_| wrong())?;
        if count == 0 || kind.as_deref() == Some("") {
            return Err(wrong());
        }
        Ok(Self { count, kind })
    }
}

/// What is to be different.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Change {
    /// Machines that come.
    pub add: Vec<Lot>,
    /// Machines that go.
    pub remove: Vec<Lot>,
    /// What a dedicated GPU costs then.
    pub dedicated_per_gpu_hour: Option<f64>,
    /// What a serverless GPU costs then.
    pub serverless_per_gpu_hour: Option<f64>,
    /// By what share demand grows; falls where it is negative.
    pub growth: f64,
    /// Whose jobs go to serverless machines at once.
    pub to_serverless: BTreeSet<String>,
}

impl Change {
    /// The pool afterwards.
    ///
    /// # Errors
    /// When it can't be.
    pub fn pool(&self, pool: &Pool) -> Result<Pool, Error> {
        let mut pool = pool.clone();
        for lot in &self.add {
            let machines = find(&mut pool, lot)?;
            machines.count = machines.count.saturating_add(lot.count);
        }
        for lot in &self.remove {
            let machines = find(&mut pool, lot)?;
            machines.count = machines.count.checked_sub(lot.count).ok_or_else(|| Error::TooFew {
                name: machines.name.to_string(),
                asked: lot.count,
                there: machines.count,
            })?;
        }
        Ok(pool)
    }

    /// The prices afterwards.
    #[must_use]
    pub fn rates(&self, rates: &Rates) -> Rates {
        let mut rates = rates.clone();
        if let Some(price) = self.dedicated_per_gpu_hour {
            rates.dedicated_per_gpu_hour = price;
        }
        if let Some(price) = self.serverless_per_gpu_hour {
            rates.set_serverless(price);
        }
        rates
    }

    /// A job afterwards: with growth, jobs come in so much less time, and each is as it was.
    #[must_use]
    pub fn job(&self, job: Job, first_submit_s: f64) -> Job {
        let submit_s = first_submit_s + (job.submit_s - first_submit_s) / (1.0 + self.growth);
        let deadline_s = job.deadline_s.map(|deadline_s| deadline_s - job.submit_s + submit_s);
        Job { submit_s, deadline_s, ..job }
    }

    /// Whether a job goes to serverless machines at once.
    pub fn is_moved(&self, job: &Job) -> bool {
        self.to_serverless.contains(&*job.owner)
    }

    /// In words.
    pub fn words(&self) -> Vec<String> {
        let lot = |lot: &Lot| match &lot.kind {
            Some(kind) => format!("{} {kind}", count(u64::from(lot.count), "machine")),
            None => count(u64::from(lot.count), "machine"),
        };
        let mut words: Vec<String> = self.add.iter().map(|add| format!("{} more", lot(add))).collect();
        words.extend(self.remove.iter().map(|remove| format!("{} fewer", lot(remove))));
        let price = |kind: &str, price: f64| format!("a {kind} GPU costs {} per hour", number(price, 2));
        words.extend(self.dedicated_per_gpu_hour.map(|value| price("dedicated", value)));
        words.extend(self.serverless_per_gpu_hour.map(|value| price("serverless", value)));
        if self.growth != 0.0 {
            let more = if self.growth > 0.0 { "more" } else { "less" };
            words.push(format!("{} {more} is demanded", percent(self.growth.abs())));
        }
        words.extend(self.to_serverless.iter().map(|owner| format!("{owner} is on serverless machines")));
        words
    }
}

fn find<'a>(pool: &'a mut Pool, lot: &Lot) -> Result<&'a mut Machines, Error> {
    let mut names: Vec<Arc<str>> = pool.machines.iter().map(|machines| machines.name.clone()).collect();
    names.dedup();
    let known = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
    let Some(kind) = &lot.kind else {
        return match &mut pool.machines[..] {
            [machines] => Ok(machines),
            _ => {
                Err(Error::Which(known, names.first().map_or_else(|| "NAME".to_owned(), ToString::to_string)))
            }
        };
    };
    let is = |machines: &&mut Machines| {
        machines.name.eq_ignore_ascii_case(kind) || machines.model.eq_ignore_ascii_case(kind)
    };
    pool.machines.iter_mut().find(is).ok_or_else(|| Error::Unknown { asked: kind.clone(), known })
}

/// One side of a comparison.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Side {
    /// Dedicated machines.
    pub machines: u64,
    /// Their GPUs.
    pub gpus: u64,
    /// GPUs asked for on average.
    pub demand_gpus: f64,
    /// In all.
    pub per_hour: f64,
    /// For dedicated machines.
    pub owned_per_hour: f64,
    /// For serverless machines.
    pub rented_per_hour: f64,
    /// Share of the work that is rented.
    pub rented_share: f64,
    /// Share of the dedicated GPU-hours that are used.
    pub utilisation: f64,
    /// What would cost least if no job waited: GPUs.
    pub best_gpus: Option<u32>,
    /// And cost.
    pub best_per_hour: Option<f64>,
    /// How long jobs wait; none where there are no jobs to wait.
    pub wait: Option<Wait>,
    /// The share of jobs that waited no longer than a time; for plots.
    #[serde(skip)]
    pub wait_curve: Vec<WaitPoint>,
    /// Cost by number of GPUs owned where no job waits; for plots.
    #[serde(skip)]
    pub cost_curve: Vec<Cost>,
}

/// How long jobs wait.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Wait {
    /// On average.
    pub mean_s: f64,
    /// Half of them no longer than this.
    pub p50_s: f64,
    /// 95 % of them.
    pub p95_s: f64,
    /// 99 % of them.
    pub p99_s: f64,
    /// Jobs that ran nowhere.
    pub not_run: u64,
}

impl Side {
    /// By what demand costs where no job waits.
    ///
    /// # Errors
    /// Those of [`optimize::optimize`].
    pub fn of_demand(
        series: Series,
        pool: &Pool,
        question: &Question,
    ) -> Result<(Self, Optimization), optimize::Error> {
        let gpus = u32::try_from(pool.gpu_count()).unwrap_or(u32::MAX);
        let question = Question { owned_gpus: Some(gpus), resamples: 1, ..question.clone() };
        let found = optimize::optimize(series, &question)?;
        let owned = found.today.unwrap_or(found.all_rented);
        let owned_per_hour = dedicated_per_hour(pool, found.prices.effective_dedicated_per_gpu_hour);
        let side = Self {
            machines: pool.machine_count(),
            gpus: pool.gpu_count(),
            demand_gpus: found.demand.mean_gpus,
            per_hour: owned_per_hour + owned.rented_per_hour,
            owned_per_hour,
            rented_per_hour: owned.rented_per_hour,
            rented_share: owned.rented_share,
            utilisation: owned.utilisation,
            best_gpus: Some(found.advice.gpus),
            best_per_hour: Some(found.advice.per_hour),
            wait: None,
            wait_curve: Vec::new(),
            cost_curve: found.curve.clone(),
        };
        Ok((side, found))
    }

    /// By replays of jobs: of those that use the pool, and of those that are rented at once, if there are any. Both must have kept how long each job waited.
    pub fn of_jobs(pool: &Replay, moved: Option<&Replay>) -> Self {
        let both = || std::iter::once(pool).chain(moved);
        let from_s = both().map(|part| part.first_submit_s).fold(f64::INFINITY, f64::min);
        let to_s =
            both().map(|part| part.first_submit_s + part.found.span_s).fold(f64::NEG_INFINITY, f64::max);
        let (replay, hours) = (&pool.found, (to_s - from_s) / 3600.0);
        let per_hour = |amount: f64| if hours > 0.0 { amount / hours } else { 0.0 };
        let rented_per_hour = per_hour(both().map(|part| part.found.cost.serverless).sum());
        let rented: f64 = both().map(|part| part.found.spilled.gpu_hours).sum();
        let used = replay.used.gpus * replay.span_s / 3600.0;
        let mut waits: Vec<f64> = both().flat_map(|part| &part.found.each).map(|job| job.wait_s).collect();
        waits.sort_by(f64::total_cmp);
        // Nearest rank.
        let percentile = |percent: usize| {
            waits.get(((waits.len() * percent).div_ceil(100)).max(1) - 1).copied().unwrap_or_default()
        };
        #[expect(clippy::cast_precision_loss, reason = "counts of jobs and GPUs")]
        let (jobs, gpus) = (waits.len().max(1) as f64, replay.dedicated_gpus as f64);
        Self {
            machines: replay.machines,
            gpus: replay.dedicated_gpus,
            demand_gpus: per_hour(used + rented),
            per_hour: replay.cost.dedicated_per_hour + rented_per_hour,
            owned_per_hour: replay.cost.dedicated_per_hour,
            rented_per_hour,
            rented_share: if used + rented > 0.0 { rented / (used + rented) } else { 0.0 },
            utilisation: if gpus > 0.0 { per_hour(used) / gpus } else { 0.0 },
            best_gpus: None,
            best_per_hour: None,
            wait: Some(Wait {
                mean_s: waits.iter().sum::<f64>() / jobs,
                p50_s: percentile(50),
                p95_s: percentile(95),
                p99_s: percentile(99),
                not_run: both().map(|part| part.found.jobs.rejected + part.found.jobs.unfinished).sum(),
            }),
            wait_curve: wait_curve(&waits),
            cost_curve: Vec::new(),
        }
    }
}

/// The curve of waits has about so many points.
const POINTS: usize = 200;

/// The curve of waits in ascending order.
fn wait_curve(waits: &[f64]) -> Vec<WaitPoint> {
    #[expect(clippy::cast_precision_loss, reason = "counts of jobs")]
    let share = |upto: usize| upto as f64 / waits.len() as f64;
    let mut curve: Vec<WaitPoint> = Vec::new();
    for &wait_s in waits.iter().step_by(waits.len().div_ceil(POINTS).max(1)).chain(waits.last()) {
        if curve.last().is_none_or(|last| last.wait_s < wait_s) {
            curve.push(WaitPoint { wait_s, share: share(waits.partition_point(|other| *other <= wait_s)) });
        }
    }
    curve
}

/// A replay, and when it began.
#[derive(Debug, Clone)]
pub struct Replay {
    /// When its first job was submitted, on the trace's scale.
    pub first_submit_s: f64,
    /// What was found.
    pub found: Simulation,
}

/// What the pool's machines cost per hour.
fn dedicated_per_hour(pool: &Pool, per_gpu_hour: f64) -> f64 {
    let each = |machines: &Machines| {
        f64::from(machines.count) * machines.price_per_hour.unwrap_or(f64::from(machines.gpus) * per_gpu_hour)
    };
    pool.machines.iter().map(each).sum()
}

/// Before and after.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct WhatIf {
    /// The currency of all costs.
    pub currency: String,
    /// What is different, in words.
    pub changes: Vec<String>,
    /// As it is.
    pub before: Side,
    /// As it would be.
    pub after: Side,
    /// What to know before believing it.
    pub warnings: Vec<String>,
}

impl WhatIf {
    /// Both sides, and what changes.
    pub fn tables(&self) -> Vec<Table> {
        let (before, after) = (&self.before, &self.after);
        let mut rows = Vec::new();
        let mut row = |what: &str, before: f64, after: f64, text: &dyn Fn(f64) -> String, relative: bool| {
            let change = after - before;
            // The difference of two shares is no share.
            let difference = |value: f64| text(value).replace('%', "points");
            let mut words = if change.abs() < 1e-9 { "-".to_owned() } else { signed(change, &difference) };
            if relative && before.abs() > 1e-9 && change.abs() >= 1e-9 {
                words = format!("{words} ({})", signed(change / before, &percent));
            }
            rows.push(vec![what.to_owned(), text(before), text(after), words]);
        };
        let count = |value: f64| number(value, 0);
        let money = |value: f64| number(value, 2);
        #[expect(clippy::cast_precision_loss, reason = "counts of GPUs")]
        let wide = |value: u64| value as f64;
        row("dedicated machines", wide(before.machines), wide(after.machines), &count, false);
        row("dedicated GPUs", wide(before.gpus), wide(after.gpus), &count, true);
        row("GPUs asked for, mean", before.demand_gpus, after.demand_gpus, &|value| number(value, 1), true);
        row("cost per hour", before.per_hour, after.per_hour, &money, true);
        row("  dedicated", before.owned_per_hour, after.owned_per_hour, &money, true);
        row("  serverless", before.rented_per_hour, after.rented_per_hour, &money, true);
        row("work on serverless", before.rented_share, after.rented_share, &percent, false);
        row("dedicated GPUs used", before.utilisation, after.utilisation, &percent, false);
        if let (Some(was), Some(is)) = (before.wait, after.wait) {
            row("wait, mean", was.mean_s, is.mean_s, &time, false);
            row("wait, p50", was.p50_s, is.p50_s, &time, false);
            row("wait, p95", was.p95_s, is.p95_s, &time, false);
            row("wait, p99", was.p99_s, is.p99_s, &time, false);
            row("jobs that ran nowhere", wide(was.not_run), wide(is.not_run), &count, false);
        }
        if let (Some(was), Some(is)) = (before.best_gpus, after.best_gpus) {
            row("cheapest number of GPUs", f64::from(was), f64::from(is), &count, false);
        }
        if let (Some(was), Some(is)) = (before.best_per_hour, after.best_per_hour) {
            row("  its cost per hour", was, is, &money, true);
        }
        let columns = vec![
            Column::text("WHAT"),
            Column::number("BEFORE"),
            Column::number("AFTER"),
            Column::number("CHANGE"),
        ];
        vec![Table {
            title: format!("What if: {}. Money in {}.", self.changes.join(", "), self.currency),
            columns,
            rows,
        }]
    }
}

fn signed(value: f64, text: &dyn Fn(f64) -> String) -> String {
    format!("{}{}", if value < 0.0 { "-" } else { "+" }, text(value.abs()))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::{Change, Error, Lot};
    use crate::{
        job::{Job, Request},
        pool::Pool,
    };

    fn pool() -> Pool {
        Pool::parse(b"machines:\n- {name: old, count: 3, model: A100, gpus: 8}\n- {name: new, count: 2, model: H100, gpus: 4}\n")
            .unwrap()
    }

    fn lot(text: &str) -> Lot {
        text.parse().unwrap()
    }

    #[test]
    fn machines_come_and_go_by_name_or_model() {
        let change = Change { add: vec![lot("4xh100")], remove: vec![lot("1xold")], ..Change::default() };
        let after = change.pool(&pool()).unwrap();
        assert_eq!((after.machines[0].count, after.machines[1].count), (2, 6));
        let told = |change: Change| change.pool(&pool()).unwrap_err();
        assert!(matches!(
            told(Change { add: vec![lot("1xB200")], ..Change::default() }),
            Error::Unknown { .. }
        ));
        assert!(matches!(
            told(Change { remove: vec![lot("4xold")], ..Change::default() }),
            Error::TooFew { .. }
        ));
        assert!(matches!(told(Change { add: vec![lot("4")], ..Change::default() }), Error::Which(..)));
        let one = Pool::of_gpus(3, 8);
        assert_eq!(Change { add: vec![lot("4")], ..Change::default() }.pool(&one).unwrap().gpu_count(), 56);
        for text in ["", "0", "x", "4x", "-1", "H100"] {
            assert!(text.parse::<Lot>().is_err(), "{text}");
        }
    }

    #[test]
    fn growth_lets_the_same_jobs_come_in_less_time() {
        let job = Job {
            line: 2,
            submit_s: 220.0,
            duration_s: 50.0,
            pods: 1,
            gang: false,
            request: Request::gpus(1),
            deadline_s: Some(300.0),
            priority: 0,
            owner: Arc::from("a"),
        };
        let after = Change { growth: 0.2, ..Change::default() }.job(job, 100.0);
        assert!((after.submit_s - 200.0).abs() < 1e-9 && (after.deadline_s.unwrap() - 280.0).abs() < 1e-9);
        assert!((after.duration_s - 50.0).abs() < 1e-9);
    }
}
