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
mod menu;
mod regret;
mod search;
mod tables;
#[cfg(test)]
mod tests;
mod warnings;
pub mod words;

use serde::Serialize;

pub use bootstrap::Interval;
pub use drift::Drift;
pub use menu::{Machines, Menu, Shape};
pub use regret::Fold;
pub use search::{Candidate, Later, Objective, Search, Trial, search};
pub(crate) use tables::UNPRICED;

use crate::demand::{Gaps, LoadCurve, Point, Series, Span};

/// What can't be answered.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Error {
    /// A price that is none.
    #[error("the {what} price is {value}; a number from 0 up was expected")]
    Price {
        /// Which.
        what: &'static str,
        /// What was given.
        value: f64,
    },
    /// Both cost nothing.
    #[error("dedicated and serverless GPUs both cost nothing: any number is right")]
    Free,
    /// A share that is none.
    #[error("the availability is {0}; a share above 0 and up to 1 was expected, such as 0.98")]
    Availability(f64),
    /// A machine that has no GPUs.
    #[error("a machine of {0} GPUs can't be bought; from 1 to 1024 were expected")]
    Machine(u32),
    /// A time that is none.
    #[error("the {what} is {value} s; a time above 0 was expected")]
    Time {
        /// Which.
        what: &'static str,
        /// What was given.
        value: f64,
    },
    /// All that the trace tells of is taken for a hole, or it tells of no time.
    #[error("the trace tells of no time at all: every row has the same time")]
    NoTime,
}

/// What to do with stretches that look like missing data.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Holes {
    /// Leave them out: nobody knows what was demanded then.
    #[default]
    Drop,
    /// Take them for time without demand.
    Keep,
}

/// What is asked.
#[derive(Debug, Clone, PartialEq)]
pub struct Question {
    /// The currency of all prices.
    pub currency: String,
    /// What a dedicated GPU costs per hour, used or not.
    pub dedicated_per_gpu_hour: f64,
    /// What a serverless GPU costs per hour.
    pub serverless_per_gpu_hour: f64,
    /// The machines that can be bought.
    pub shapes: Vec<Shape>,
    /// How many GPUs are owned today.
    pub owned_gpus: Option<u32>,
    /// How much of the time a dedicated machine works.
    pub availability: f64,
    /// How long a serverless GPU is paid for before it works.
    pub cold_start_s: f64,
    /// For how long a serverless GPU is had at a time.
    pub burst_s: Option<f64>,
    /// What to do with holes.
    pub holes: Holes,
    /// How long the blocks of the bootstrap are.
    pub block_s: f64,
    /// How often it is drawn.
    pub resamples: u32,
    /// What it is drawn with.
    pub seed: u64,
    /// What is demanded.
    pub meaning: String,
    /// What is known to be doubtful of prices and trace.
    pub notes: Vec<String>,
}

impl Default for Question {
    fn default() -> Self {
        Self {
            currency: String::new(),
            dedicated_per_gpu_hour: 1.0,
            serverless_per_gpu_hour: 2.0,
            shapes: vec![Shape { gpus: 1, per_gpu_hour: None }],
            owned_gpus: None,
            availability: 1.0,
            cold_start_s: 0.0,
            burst_s: None,
            holes: Holes::default(),
            block_s: 7.0 * 86_400.0,
            resamples: 1000,
            seed: 1,
            meaning: "GPUs demanded".to_owned(),
            notes: Vec::new(),
        }
    }
}

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
    /// What to know before believing it.
    pub warnings: Vec<String>,
    /// Why it is so, in plain words.
    pub reasons: Vec<String>,
}

/// What a GPU costs per hour.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Prices {
    /// As given.
    pub dedicated_per_gpu_hour: f64,
    /// As given.
    pub serverless_per_gpu_hour: f64,
    /// Per hour in which the GPU works: `c_d / availability`.
    pub effective_dedicated_per_gpu_hour: f64,
    /// Per hour of work, with the cold start that is paid for: `c_s·(1 + s/L)`.
    pub effective_serverless_per_gpu_hour: f64,
    /// Effective serverless price over effective dedicated price: r. None where dedicated GPUs cost nothing.
    pub ratio: Option<f64>,
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

/// A flat region around the least cost.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Flat {
    /// How much more it may cost, as a share.
    pub within: f64,
    /// From so many GPUs.
    pub from_gpus: u32,
    /// To so many.
    pub to_gpus: u32,
}

/// Ratios of serverless to dedicated price at which another answer is right.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct BreakEven {
    /// Up to this ratio renting everything is right; none where there is no demand at all.
    pub rent_everything_up_to: Option<f64>,
    /// The ratios at which what is advised stays right.
    pub advice: RatioRange,
    /// The ratios at which what is owned today is right.
    pub today: Option<RatioRange>,
}

/// A range of price ratios.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct RatioRange {
    /// From; none where the last GPU is never needed, so that no ratio is high enough.
    pub from: Option<f64>,
    /// To; none where no ratio is too high.
    pub to: Option<f64>,
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

/// Nearly the least cost is at most this share more.
const FLAT: f64 = 0.01;
/// A plot's histogram has at most so many bins, its curve so many points.
const BINS: u32 = 200;
const POINTS: usize = 400;

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
    let interval =
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

impl Prices {
    fn of(question: &Question) -> Result<Self, Error> {
        let (dedicated, serverless) = (question.dedicated_per_gpu_hour, question.serverless_per_gpu_hour);
        let price = |what, value: f64| {
            if value.is_finite() && value >= 0.0 { Ok(()) } else { Err(Error::Price { what, value }) }
        };
        price("dedicated", dedicated)?;
        price("serverless", serverless)?;
        for shape in &question.shapes {
            price("machine's", shape.per_gpu_hour.unwrap_or(0.0))?;
        }
        if dedicated == 0.0 && serverless == 0.0 {
            return Err(Error::Free);
        }
        if !(question.availability > 0.0 && question.availability <= 1.0) {
            return Err(Error::Availability(question.availability));
        }
        if !(question.cold_start_s.is_finite() && question.cold_start_s >= 0.0) {
            return Err(Error::Time { what: "cold start", value: question.cold_start_s });
        }
        let positive = |what, value: f64| {
            if value.is_finite() && value > 0.0 { Ok(()) } else { Err(Error::Time { what, value }) }
        };
        positive("length of the bootstrap's blocks", question.block_s)?;
        let overhead = match question.burst_s {
            Some(burst_s) => {
                positive("length of a burst", burst_s)?;
                question.cold_start_s / burst_s
            }
            None => 0.0,
        };
        let effective_dedicated = dedicated / question.availability;
        let effective_serverless = serverless * (1.0 + overhead);
        Ok(Self {
            dedicated_per_gpu_hour: dedicated,
            serverless_per_gpu_hour: serverless,
            effective_dedicated_per_gpu_hour: effective_dedicated,
            effective_serverless_per_gpu_hour: effective_serverless,
            ratio: (effective_dedicated > 0.0).then(|| effective_serverless / effective_dedicated),
        })
    }
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

/// Demand that is met by owned GPUs, and by rented ones beyond.
#[derive(Debug, Clone, Copy)]
struct Market<'a> {
    curve: &'a LoadCurve,
    rented_per_gpu_hour: f64,
}

impl Market<'_> {
    fn per_hour(&self, menu: &Menu, index: usize) -> f64 {
        menu.per_hour(index) + self.rented_per_gpu_hour * self.curve.beyond_gpus(menu.gpus(index))
    }

    /// The least cost's place in the menu; the least to own where several cost as little.
    fn least(&self, menu: &Menu) -> usize {
        menu.least(|index| self.per_hour(menu, index))
    }

    fn cost(&self, gpus: u32, owned_per_hour: f64) -> Cost {
        let (mean, beyond) = (self.curve.mean_gpus(), self.curve.beyond_gpus(gpus));
        let rented_per_hour = self.rented_per_gpu_hour * beyond;
        Cost {
            gpus,
            per_hour: owned_per_hour + rented_per_hour,
            owned_per_hour,
            rented_per_hour,
            rented_share: if mean > 0.0 { beyond / mean } else { 0.0 },
            utilisation: if gpus > 0 { (mean - beyond) / f64::from(gpus) } else { 0.0 },
        }
    }

    fn flat(&self, menu: &Menu, least_per_hour: f64) -> Flat {
        let near = |index: &usize| self.per_hour(menu, *index) <= least_per_hour * (1.0 + FLAT);
        let gpus = |index: Option<usize>| index.map_or(0, |index| menu.gpus(index));
        Flat {
            within: FLAT,
            from_gpus: gpus((0..menu.len()).find(near)),
            to_gpus: gpus((0..menu.len()).rev().find(near)),
        }
    }

    /// At most [`POINTS`] of the curve, with that of the advice.
    fn points(&self, menu: &Menu, best: usize) -> Vec<Cost> {
        let every = menu.len().div_ceil(POINTS);
        (0..menu.len())
            .filter(|index| index % every == 0 || *index == best || index + 1 == menu.len())
            .map(|index| self.cost(menu.gpus(index), menu.per_hour(index)))
            .collect()
    }

    fn break_even(&self, menu: &Menu, best: usize, owned_gpus: Option<u32>) -> BreakEven {
        let unit = menu.unit_gpus();
        // How busy the GPUs after the first `gpus` would be, those of one machine.
        let next = |gpus: u32| {
            (self.curve.beyond_gpus(gpus) - self.curve.beyond_gpus(gpus.saturating_add(unit)))
                / f64::from(unit)
        };
        let ratio = |busy: f64| (busy > 0.0).then(|| 1.0 / busy);
        let range = |gpus: u32| RatioRange {
            from: if gpus < unit { Some(0.0) } else { ratio(next(gpus - unit)) },
            to: ratio(next(gpus)),
        };
        BreakEven {
            rent_everything_up_to: ratio(next(0)),
            advice: range(menu.gpus(best)),
            today: owned_gpus.map(range),
        }
    }
}
