//! What any number of GPUs costs: the curve, its band, and what is nearly as good as the least.

use super::{
    super::model::{Axis, Curve, Drawing, Mark, Plot, Range, Role, Section, Series, Unit},
    ROWS, flat, is_flat, range,
};
use crate::{
    optimize::{
        Cost, Optimization,
        words::{gpus, number, percent, time},
    },
    output::{Column, Table},
};

/// The cost curve. What is owned today may be more than is ever needed: the curve goes on to it.
fn curve(found: &Optimization) -> Vec<Cost> {
    let mut curve = found.curve.clone();
    if let Some(today) = found.today
        && !curve.iter().any(|cost| cost.gpus == today.gpus)
    {
        curve.push(today);
        curve.sort_by_key(|cost| cost.gpus);
    }
    curve
}

/// What any number of GPUs costs, with the least, its interval and what is nearly as good.
pub(super) fn section(found: &Optimization) -> Section {
    let curve = curve(found);
    let line = |name: &str, role, of: fn(&Cost) -> f64| {
        Series::new(name, role, curve.iter().map(|cost| (f64::from(cost.gpus), Some(of(cost)))).collect())
    };
    let mut all = line("in all", Role::Total, |cost| cost.per_hour);
    all.band = found
        .band
        .iter()
        .map(|point| (f64::from(point.gpus), point.from_per_hour, point.to_per_hour))
        .collect();
    let mut marks = vec![Mark {
        label: format!("least: {}", number(f64::from(found.advice.gpus), 0)),
        at: f64::from(found.advice.gpus),
        main: true,
    }];
    if let Some(today) = &found.today {
        marks.push(Mark {
            label: format!("today: {}", number(f64::from(today.gpus), 0)),
            at: f64::from(today.gpus),
            main: false,
        });
    }
    let interval = &found.interval;
    let within = percent(found.flat.within);
    let near = if is_flat(found) {
        format!("{} cost at most {within} more", flat(found))
    } else {
        format!("any other number costs over {within} more")
    };
    Section {
        name: "What it costs".to_owned(),
        heading: if found.search.is_some() {
            format!("Where no job waits, {} cost least; {near}", gpus(found.advice.gpus))
        } else {
            format!("{} cost least; {near}", gpus(found.advice.gpus))
        },
        text: found.reasons.first().cloned().into_iter().collect(),
        plot: Some(Plot {
            caption: format!(
                "Cost per hour by number of GPUs owned, the rest being rented. Demand is one of many that could have been: in {} of {} others, drawn from blocks of {} of it, the cost lies in the band and the best number is {}.",
                percent(interval.confidence),
                number(f64::from(interval.resamples), 0),
                time(interval.block_s),
                range(interval.from_gpus, interval.to_gpus),
            ),
            drawing: Drawing::Curve(Curve {
                x: Axis::new("GPUs owned", Unit::Gpus),
                y: Axis::money("Cost per hour", &found.currency),
                series: vec![
                    all,
                    line("owned", Role::Owned, |cost| cost.owned_per_hour),
                    line("rented", Role::Rented, |cost| cost.rented_per_hour),
                ],
                flat: is_flat(found).then(|| Range {
                    label: format!("{} cost within {within}", flat(found)),
                    from: f64::from(found.flat.from_gpus),
                    to: f64::from(found.flat.to_gpus),
                }),
                interval: Some(Range {
                    label: format!(
                        "{} interval: {}",
                        percent(interval.confidence),
                        range(interval.from_gpus, interval.to_gpus)
                    ),
                    from: f64::from(interval.from_gpus),
                    to: f64::from(interval.to_gpus),
                }),
                marks,
            }),
        }),
        table: cost_table(found),
        ..Section::default()
    }
}

/// The band at a number of GPUs, straight between its points.
fn band_at(found: &Optimization, gpus: u32) -> Option<(f64, f64)> {
    let after = found.band.partition_point(|point| point.gpus < gpus);
    let right = found.band.get(after)?;
    if right.gpus == gpus {
        return Some((right.from_per_hour, right.to_per_hour));
    }
    let left = found.band.get(after.checked_sub(1)?)?;
    let share = f64::from(gpus - left.gpus) / f64::from(right.gpus - left.gpus);
    let at = |left: f64, right: f64| left + share * (right - left);
    Some((at(left.from_per_hour, right.from_per_hour), at(left.to_per_hour, right.to_per_hour)))
}

/// The curve in a few rows, and all that has a name.
fn cost_table(found: &Optimization) -> Table {
    let every = found.curve.len().div_ceil(ROWS).max(1);
    let between = |gpus: u32| {
        let (from, to) = band_at(found, gpus)?;
        Some(format!("{} – {}", number(from, 2), number(to, 2)))
    };
    let mut shown: Vec<(Cost, Vec<&str>)> =
        found.curve.iter().step_by(every).map(|cost| (*cost, Vec::new())).collect();
    let mut name = |cost: &Cost, what: &'static str| {
        if let Some((_, names)) = shown.iter_mut().find(|(there, _)| there.gpus == cost.gpus) {
            names.push(what);
        } else {
            shown.push((*cost, vec![what]));
        }
    };
    name(&found.advice, "least");
    if let Some(today) = &found.today {
        name(today, "today");
    }
    name(&found.all_rented, "all rented");
    name(&found.all_owned, "never renting");
    shown.sort_by_key(|(cost, _)| cost.gpus);
    let least = found.advice.per_hour;
    let rows = shown.iter().map(|(cost, names)| {
        vec![
            number(f64::from(cost.gpus), 0),
            if least > 0.0 {
                let above = percent((cost.per_hour / least - 1.0).max(0.0));
                format!("{} (+{above})", number(cost.per_hour, 2))
            } else {
                number(cost.per_hour, 2)
            },
            between(cost.gpus).unwrap_or_else(|| "–".to_owned()),
            names.join(", "),
        ]
    });
    Table {
        title: if found.currency.is_empty() {
            String::new()
        } else {
            format!("In {} per hour", found.currency)
        },
        columns: vec![
            Column::number("GPUS"),
            Column::number("COST/H (ABOVE LEAST)"),
            Column::number("95 % BAND"),
            Column::text("WHICH IS"),
        ],
        rows: rows.collect(),
    }
}
