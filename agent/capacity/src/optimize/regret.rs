//! Walking forward: what the advice on the first part of a trace would have cost on the part that followed.

use serde::Serialize;

use super::{Market, Menu};
use crate::demand::Series;

/// The advice on all time up to a moment, and what it costs on the time that followed.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Fold {
    /// The advice is made of the time up to here, on the scale of the trace.
    pub advised_at_s: f64,
    /// And paid for from there to here.
    pub paid_to_s: f64,
    /// GPUs that it says.
    pub gpus: u32,
    /// What they cost, and what was rented beside them.
    pub per_hour: f64,
    /// GPUs that would have been best on the time that followed.
    pub best_gpus: u32,
    /// What they would have cost.
    pub best_per_hour: f64,
    /// How much more the advice costs than the best, as a share of that.
    pub regret: f64,
}

/// The trace is cut into so many parts: the advice on the first is paid for on the second, that on the first two on the third, and so on.
const PARTS: usize = 6;

/// The first half paid for on the second, then part after part; those that have any time in them.
pub(super) fn folds(series: &Series, menu: &Menu, rented_per_gpu_hour: f64) -> Vec<Fold> {
    let cut = |part: usize| series.after_share(part as f64 / PARTS as f64);
    let half = (series.after_share(0.5), series.blocks());
    std::iter::once(half)
        .chain((1..PARTS).map(|part| (cut(part), cut(part + 1))))
        .filter_map(|(at, to)| fold(series, menu, rented_per_gpu_hour, at, to))
        .collect()
}

fn fold(series: &Series, menu: &Menu, rented_per_gpu_hour: f64, at: usize, to: usize) -> Option<Fold> {
    let (first, later) = (series.curve_of(0..at), series.curve_of(at..to.max(at)));
    if first.observed_s() <= 0.0 || later.observed_s() <= 0.0 {
        return None;
    }
    let advice = Market { curve: &first, rented_per_gpu_hour }.least(menu);
    let market = Market { curve: &later, rented_per_gpu_hour };
    let best = market.least(menu);
    let (per_hour, best_per_hour) = (market.per_hour(menu, advice), market.per_hour(menu, best));
    Some(Fold {
        advised_at_s: series.start_s(at),
        paid_to_s: series.start_s(to),
        gpus: menu.gpus(advice),
        per_hour,
        best_gpus: menu.gpus(best),
        best_per_hour,
        regret: if best_per_hour > 0.0 { (per_hour / best_per_hour - 1.0).max(0.0) } else { 0.0 },
    })
}
