//! What to know before believing the answer.

use super::{
    Holes, Optimization, Question,
    words::{count, gpus, percent, ratio, span, time},
};

/// Demand sticks at a number where it is there, to this share of it, for this share of the time.
const STUCK_WITHIN: f64 = 0.005;
const STUCK_TIME: f64 = 0.05;
/// More missing time than this is worth a warning.
const MISSING: f64 = 0.001;

/// The warnings for what was found; `with_holes` is the advice if holes had been kept, where they were dropped.
pub(super) fn warnings(found: &Optimization, question: &Question, with_holes: Option<u32>) -> Vec<String> {
    let mut warnings = Vec::new();
    let demand = &found.demand;
    let (step_s, observed_s) = (demand.step_s.unwrap_or(0.0), demand.observed_s);
    warnings.extend(question.notes.iter().cloned());
    // Whoever gave the prices has been told what they say by themselves.
    let told =
        !question.notes.is_empty() && question.serverless_per_gpu_hour <= question.dedicated_per_gpu_hour;
    if found.prices.ratio.is_some_and(|ratio| ratio <= 1.0) && !told {
        warnings.push(format!(
            "serverless GPUs cost no more than dedicated ones (r = {}): own nothing, rent everything",
            ratio(found.prices.ratio.unwrap_or_default())
        ));
    }
    if demand.max_gpus == 0 {
        warnings.push("nothing was ever demanded: the trace has zeros only".to_owned());
    }
    if !demand.holes.is_empty() {
        let total_s: f64 = demand.holes.iter().map(super::Span::seconds).sum();
        let places: Vec<String> = demand.holes.iter().take(3).map(|hole| span(*hole)).collect();
        let more = if demand.holes.len() > 3 { ", and more" } else { "" };
        let samples = if step_s > 0.0 {
            format!(" ({})", count((total_s / step_s).round() as u64, "sample"))
        } else {
            String::new()
        };
        let done = match (question.holes, with_holes) {
            (Holes::Keep, _) => {
                "they are kept as time without demand, as asked; --holes drop leaves them out".to_owned()
            }
            (Holes::Drop, Some(kept)) => {
                format!("they are left out; with --holes keep the advice is {}", gpus(kept))
            }
            (Holes::Drop, None) => "they are left out".to_owned(),
        };
        warnings.push(format!(
            "demand falls to zero at once for {} in all{samples}, which looks like missing data, not like idleness: {}{more}; {done}",
            time(total_s),
            places.join(", ")
        ));
    }
    let gaps = &demand.gaps;
    if gaps.total_s > MISSING * observed_s {
        let longest = gaps.longest.map(|longest| format!(", the longest {}", span(longest)));
        warnings.push(format!(
            "time stamps are missing for {} in all, in {}{}: that time counts for nothing",
            time(gaps.total_s),
            count(gaps.count, "gap"),
            longest.unwrap_or_default()
        ));
    }
    drift(found, &mut warnings);
    // Who draws once asks for no interval.
    if question.resamples > 1 && found.interval.block_s * 1.5 < question.block_s {
        warnings.push(format!(
            "the trace is too short for blocks of {}; the interval is of blocks of {} and says less than it seems",
            time(question.block_s),
            time(found.interval.block_s)
        ));
    }
    stuck(found, question, &mut warnings);
    if step_s > 900.0 {
        warnings.push(format!(
            "samples are {} apart: what happens between them is averaged, which understates what bursts cost",
            time(step_s)
        ));
    }
    if question.cold_start_s > 0.0 && question.burst_s.is_none() {
        warnings.push("the cold start is not in the price: say with --burst-length for how long a serverless GPU is had".to_owned());
    }
    warnings
}

fn drift(found: &Optimization, warnings: &mut Vec<String>) {
    let drift = &found.drift;
    if !drift.drifts {
        return;
    }
    let test = drift.p_value.filter(|p| *p < drift.p_threshold).map(|p| {
        format!(
            "; means of {} differ with p = {p:.3} in a rank-sum test, where less than {} counts as drift",
            time(drift.stretch_s),
            drift.p_threshold
        )
    });
    let cost = drift.half_regret.filter(|regret| *regret > drift.regret_threshold).map(|regret| {
        format!(
            "; the advice on the first half costs {} more on the second than the best there, where more than {} counts as drift",
            percent(regret),
            percent(drift.regret_threshold)
        )
    });
    warnings.push(format!(
        "demand drifts: {:.0} GPUs on average in the first half, {:.0} in the second{}{}: expect later demand to differ again",
        drift.first_gpus,
        drift.second_gpus,
        test.unwrap_or_default(),
        cost.unwrap_or_default()
    ));
}

fn stuck(found: &Optimization, question: &Question, warnings: &mut Vec<String>) {
    let demand = &found.demand;
    let time_from = |from: f64| -> f64 {
        let bins = demand.histogram.iter().filter(|bin| f64::from(bin.from_gpus) >= from);
        bins.map(|bin| bin.time_share).sum()
    };
    let most = f64::from(demand.max_gpus);
    // Levels of a small pool are far apart: one of them is no ceiling.
    if most < 16.0 {
        return;
    }
    let owned = question.owned_gpus.map(f64::from);
    let at_owned = owned.is_some_and(|owned| most <= owned && most >= owned * 0.98);
    let share = time_from(most * (1.0 - STUCK_WITHIN) - 1.0);
    if share > STUCK_TIME || (at_owned && share > STUCK_TIME / 5.0) {
        warnings.push(format!(
            "demand sticks at {:.0} GPUs for {} of the time: a cap or a full pool probably cut it off, what was never admitted is not in the trace, and the real need is higher",
            most,
            percent(share)
        ));
    }
}
