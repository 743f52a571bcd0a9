//! How many of which machine to own at the prices given, how sure that is, and what it would have cost on the time that followed.
//!
//! Exact where theory is: the cost of owning n GPUs, `C(n) = c_d·n + c_s·E[(D − n)⁺]`, is read off the load-duration curve for every n that can be bought, so the least of it is the newsvendor's
//! `n* = F⁻¹(1 − 1/r)`, for machines of several GPUs and for several shapes too. It is a lower bound for jobs that never wait: [`crate::simulate`] knows better where there are jobs.
//!
//! Refuses to give a number without what it is worth: an interval, the regret on later time, and what is wrong with the trace.

#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    reason = "indices, and shares of counts"
)]

mod bootstrap;
mod drift;
#[cfg(test)]
mod golden;
mod market;
mod menu;
mod question;
mod regret;
mod replayed;
mod search;
mod summary;
mod tables;
#[cfg(test)]
mod tests;
mod warnings;
pub mod words;

use serde::Serialize;

pub use bootstrap::{Band, Interval};
pub use drift::Drift;
use market::Market;
pub use market::{BreakEven, Flat, RatioRange};
pub use menu::{Machines, Menu, Shape};
pub use question::{Error, Holes, Prices, Question};
pub use regret::Fold;
pub use replayed::Outcome;
pub use search::{Candidate, FlatWaits, Kinds, Later, Objective, Search, Trial, Way, search};
pub(crate) use summary::UNPRICED;

use crate::demand::{Gaps, LoadCurve, Point, Series, Span};

/// Everything that is known of the answer.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Optimization {
    /// The currency of all costs.
    pub currency: String,
    /// What was paid for a GPU.
    pub prices: Prices,
    /// What costs least.
    pub advice: Cost,
    /// The machines that it is made of.
    pub machines: Vec<Machines>,
    /// What is owned today costs.
    pub today: Option<Cost>,
    /// Owning nothing costs.
    pub all_rented: Cost,
    /// Owning enough that nothing is ever rented costs.
    pub all_owned: Cost,
    /// No way of meeting demand without waiting costs less, not even for one who knows the future and owns for minutes.
    pub clairvoyant_per_hour: f64,
    /// How far the advice could be off.
    pub interval: Interval,
    /// From the least to the most GPUs whose cost is nearly the least.
    pub flat: Flat,
    /// At which prices another answer is right.
    pub break_even: BreakEven,
    /// What the advice would have cost on the time that followed.
    pub regret: Vec<Fold>,
    /// Whether demand changes.
    pub drift: Drift,
    /// What was demanded.
    pub demand: Demand,
    /// What is best where jobs may wait, if that was asked.
    pub search: Option<Search>,
    /// The same for the jobs of each set of models by themselves, where jobs ask for models: demand can't move between them.
    pub by_model: Vec<Class>,
    /// Cost by number of GPUs owned.
    pub curve: Vec<Cost>,
    /// How far that cost could be off, at some of the points of the curve, in ascending order of GPUs.
    pub band: Vec<Band>,
    /// What to know before believing it.
    pub warnings: Vec<String>,
    /// Why it is so, in plain words.
    pub reasons: Vec<String>,
}

/// What owning so many GPUs costs, the rest being rented.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Cost {
    /// Dedicated GPUs.
    pub gpus: u32,
    /// In all.
    pub per_hour: f64,
    /// For dedicated GPUs.
    pub owned_per_hour: f64,
    /// For serverless GPUs.
    pub rented_per_hour: f64,
    /// How much of all GPU-hours are rented.
    pub rented_share: f64,
    /// How much of the dedicated GPU-hours are used.
    pub utilisation: f64,
}

/// What is best for jobs that ask for some models, by themselves, where none waits.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Class {
    /// The models that will do; any where it is empty.
    pub models: Vec<String>,
    /// What they ask for on average.
    pub mean_gpus: f64,
    /// At most.
    pub max_gpus: u32,
    /// What costs least.
    pub advice: Cost,
}

/// What was demanded.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Demand {
    /// What is demanded.
    pub meaning: String,
    /// From the first sample until the last has passed. Seconds since 1970, or since the trace's start where it has no dates.
    pub span: Span,
    /// How much of it was observed, holes that were left out not counted.
    pub observed_s: f64,
    /// Samples.
    pub samples: u64,
    /// The usual time between them; none where they come as demand changes.
    pub step_s: Option<f64>,
    /// On average.
    pub mean_gpus: f64,
    /// In half of the time it was no more.
    pub p50_gpus: u32,
    /// In 95 % of the time it was no more.
    pub p95_gpus: u32,
    /// In 99 % of the time it was no more.
    pub p99_gpus: u32,
    /// At most.
    pub max_gpus: u32,
    /// Stretches without demand that look like missing data.
    pub holes: Vec<Span>,
    /// What was done with them.
    pub holes_are: Holes,
    /// Time stamps that are missing.
    pub gaps: Gaps,
    /// How much of the time demand was at each level.
    pub histogram: Vec<Bin>,
    /// In at most 2,000 stretches.
    pub over_time: Vec<Point>,
}

/// How often demand was at a level.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Bin {
    /// From so many GPUs.
    pub from_gpus: u32,
    /// Up to, but not including, so many.
    pub to_gpus: u32,
    /// In what share of the time.
    pub time_share: f64,
}

/// A plot's histogram has at most so many bins.
const BINS: u32 = 200;

/// Answers `question` for the demand of `series`.
///
/// # Errors
/// What [`Error`] lists.
pub fn optimize(series: Series, question: &Question) -> Result<Optimization, Error> {
    let prices = Prices::of(question)?;
    let holes = series.holes().to_vec();
    let with_holes = (question.holes == Holes::Drop && !holes.is_empty()).then(|| series.curve());
    let series = if with_holes.is_some() { series.without_holes() } else { series };
    let curve = series.curve();
    if curve.observed_s() <= 0.0 {
        return Err(Error::NoTime);
    }
    let menu = Menu::new(
        &question.shapes,
        prices.effective_dedicated_per_gpu_hour,
        question.availability,
        curve.max_gpus(),
    )?;
    let market = Market { curve: &curve, rented_per_gpu_hour: prices.effective_serverless_per_gpu_hour };
    let best = market.least(&menu);
    let advice = market.cost(menu.gpus(best), menu.per_hour(best));
    let by_gpu = |gpus| market.cost(gpus, menu.price_of(gpus));
    let regret = regret::folds(&series, &menu, prices.effective_serverless_per_gpu_hour);
    let drift = drift::test(&series, regret.first());
    let (interval, band) =
        bootstrap::interval(&series, &menu, prices.effective_serverless_per_gpu_hour, best, question);
    let flat = market.flat(&menu, advice.per_hour);
    let demand = Demand::of(&series, &curve, holes, question);
    let mut found = Optimization {
        currency: question.currency.clone(),
        prices,
        advice,
        machines: menu.machines(best),
        today: question.owned_gpus.map(by_gpu),
        all_rented: market.cost(0, 0.0),
        all_owned: market
            .cost(menu.gpus(menu.enough(curve.max_gpus())), menu.per_hour(menu.enough(curve.max_gpus()))),
        clairvoyant_per_hour: curve.mean_gpus()
            * menu.cheapest_per_gpu_hour().min(prices.effective_serverless_per_gpu_hour),
        interval,
        flat,
        break_even: market.break_even(&menu, best, question.owned_gpus),
        regret,
        drift,
        demand,
        search: None,
        by_model: Vec::new(),
        curve: market.points(&menu, best),
        band,
        warnings: Vec::new(),
        reasons: Vec::new(),
    };
    found.warnings = warnings::warnings(
        &found,
        question,
        with_holes.map(|curve| {
            let market = Market { curve: &curve, ..market };
            menu.gpus(market.least(&menu))
        }),
    );
    found.reasons = words::reasons(&found, &menu);
    Ok(found)
}

impl Demand {
    fn of(series: &Series, curve: &LoadCurve, holes: Vec<Span>, question: &Question) -> Self {
        let width = curve.max_gpus().max(1).div_ceil(BINS);
        let bins = (0..=curve.max_gpus() / width).map(|bin| {
            let (from_gpus, to_gpus) = (bin * width, (bin + 1) * width);
            Bin { from_gpus, to_gpus, time_share: curve.share_between(from_gpus, to_gpus) }
        });
        Self {
            meaning: question.meaning.clone(),
            span: series.span(),
            observed_s: curve.observed_s(),
            samples: series.samples(),
            step_s: series.step_s(),
            mean_gpus: curve.mean_gpus(),
            p50_gpus: curve.quantile_gpus(0.5),
            p95_gpus: curve.quantile_gpus(0.95),
            p99_gpus: curve.quantile_gpus(0.99),
            max_gpus: curve.max_gpus(),
            holes,
            holes_are: question.holes,
            gaps: series.gaps().clone(),
            histogram: bins.collect(),
            over_time: series.over_time(),
        }
    }
}
