//! What owning costs, read off the load-duration curve: the least, the flat region around it, the prices at which another answer is right.

use serde::Serialize;

use super::{Cost, Menu};
use crate::demand::LoadCurve;

/// Nearly the least cost is at most this share more.
pub(super) const FLAT: f64 = 0.01;
/// A plot's curve has at most so many points.
const POINTS: usize = 400;

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

/// Demand that is met by owned GPUs, and by rented ones beyond.
#[derive(Debug, Clone, Copy)]
pub(super) struct Market<'a> {
    pub(super) curve: &'a LoadCurve,
    pub(super) rented_per_gpu_hour: f64,
}

impl Market<'_> {
    pub(super) fn per_hour(&self, menu: &Menu, index: usize) -> f64 {
        menu.per_hour(index) + self.rented_per_gpu_hour * self.curve.beyond_gpus(menu.gpus(index))
    }

    /// The least cost's place in the menu; the least to own where several cost as little.
    pub(super) fn least(&self, menu: &Menu) -> usize {
        menu.least(|index| self.per_hour(menu, index))
    }

    pub(super) fn cost(&self, gpus: u32, owned_per_hour: f64) -> Cost {
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

    pub(super) fn flat(&self, menu: &Menu, least_per_hour: f64) -> Flat {
        let near = |index: &usize| self.per_hour(menu, *index) <= least_per_hour * (1.0 + FLAT);
        let gpus = |index: Option<usize>| index.map_or(0, |index| menu.gpus(index));
        Flat {
            within: FLAT,
            from_gpus: gpus((0..menu.len()).find(near)),
            to_gpus: gpus((0..menu.len()).rev().find(near)),
        }
    }

    /// At most [`POINTS`] of the curve, with that of the advice.
    pub(super) fn points(&self, menu: &Menu, best: usize) -> Vec<Cost> {
        let every = menu.len().div_ceil(POINTS);
        (0..menu.len())
            .filter(|index| index % every == 0 || *index == best || index + 1 == menu.len())
            .map(|index| self.cost(menu.gpus(index), menu.per_hour(index)))
            .collect()
    }

    pub(super) fn break_even(&self, menu: &Menu, best: usize, owned_gpus: Option<u32>) -> BreakEven {
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
