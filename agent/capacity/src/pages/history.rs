//! Usage over time as a page: for each pool what there is and what is held, what waits, and who held how much.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;

use super::model::{Axis, Bars, Drawing, Fact, Lines, Page, Part, Plot, Role, Section, Series, Unit};
use crate::{
    history::{
        History,
        view::{self, Shown},
    },
    optimize::words::{number, percent, time, when},
    output::{Column, Table},
};

/// Rows of a table that tells of time.
const ROWS: usize = 12;

/// The page.
pub fn page(found: &History, generated_at: Timestamp) -> Page {
    let pools: BTreeSet<(bool, &str)> = found
        .series
        .iter()
        .filter(|series| matches!(series.what, Shown::Capacity | Shown::Allocated))
        .map(|series| (series.serverless, series.pool.as_str()))
        .collect();
    // What waits has no pool yet: it is demand where there is only one pool that it could be of.
    let single = pools.iter().filter(|(serverless, _)| !serverless).count() == 1;
    let waiting = sum(found, |series| series.what == Shown::Waiting);
    let waits = waiting.values().any(|values| values[2] > 0.0);
    let mut sections: Vec<Section> = pools
        .iter()
        .map(|&(serverless, name)| {
            // Where nobody ever waited, what is demanded is what is held.
            let with = (single && !serverless && waits).then_some(&waiting);
            pool(found, serverless, name, with)
        })
        .collect();
    if !single && waits {
        sections.push(wait(found, &waiting));
    }
    sections.extend(owners(found));
    if let Some(gaps) = found.tables().into_iter().nth(1) {
        sections.push(Section {
            name: "What was not seen".to_owned(),
            heading: format!("{} of that time was not seen", percent(1.0 - found.seen.seen_share)),
            text: vec!["Nothing is known of these times, and they count nowhere.".to_owned()],
            table: readable(gaps),
            ..Section::default()
        });
    }
    Page {
        title: title(found, &pools),
        subtitle: format!(
            "Usage over time from {}: {} to {}",
            found.source,
            day(&found.seen.since),
            day(&found.seen.until)
        ),
        generated_at,
        facts: facts(found, &pools),
        warnings: found.warnings.clone(),
        sections,
    }
}

/// Of one pool how full it is; several can't be added up.
fn title(found: &History, pools: &BTreeSet<(bool, &str)>) -> String {
    let mut owned = pools.iter().filter(|(serverless, _)| !serverless);
    match (owned.next(), owned.next()) {
        (Some(&(_, name)), None) => {
            let (held, capacity) = (
                mean(&level(found, Shown::Allocated, false, name)),
                mean(&level(found, Shown::Capacity, false, name)),
            );
            if capacity > 0.0 {
                return format!("{} of {name} is held on average", percent(held / capacity));
            }
            "Usage over time".to_owned()
        }
        (Some(_), Some(_)) => format!("Usage of {} pools over time", pools.len()),
        _ => "Usage over time".to_owned(),
    }
}

/// A table of times as RFC 3339 has them, with times as people read them.
pub(super) fn readable(mut table: Table) -> Table {
    for cell in table.rows.iter_mut().flatten() {
        if let Ok(at) = cell.parse::<Timestamp>() {
            *cell = at.strftime("%Y-%m-%d %H:%M").to_string();
        }
    }
    table.title.clear();
    table
}

/// The day of an RFC 3339 time.
pub(super) fn day(at: &str) -> &str {
    at.split('T').next().unwrap_or(at)
}

/// Mean, least and most by time.
type Level = BTreeMap<i64, [f64; 3]>;

/// Several series as one. The least and the most of a sum are at least and at most the sums of each.
fn sum(found: &History, of: impl Fn(&view::Series) -> bool) -> Level {
    let mut level = Level::new();
    for point in found.series.iter().filter(|series| of(series)).flat_map(|series| &series.points) {
        let there = level.entry(point.at_s).or_default();
        for (sum, value) in there.iter_mut().zip([point.mean_gpus, point.min_gpus, point.max_gpus]) {
            *sum += value;
        }
    }
    level
}

fn level(found: &History, what: Shown, serverless: bool, name: &str) -> Level {
    sum(found, |series| series.what == what && series.serverless == serverless && series.pool == name)
}

/// The mean of the means; 0 where there is none.
fn mean(level: &Level) -> f64 {
    level.values().map(|values| values[0]).sum::<f64>() / seconds(count(level.len()).max(1))
}

/// GPUs on average: whole where they are, finer where there are few.
fn amount(gpus: f64) -> String {
    let digits = match gpus {
        _ if (gpus - gpus.round()).abs() < 0.005 => 0,
        _ if gpus < 1.0 => 2,
        _ => 1,
    };
    number(gpus, digits)
}

fn count(length: usize) -> i64 {
    i64::try_from(length).unwrap_or(i64::MAX)
}

#[expect(clippy::cast_precision_loss, reason = "seconds since 1970")]
fn seconds(at_s: i64) -> f64 {
    at_s as f64
}

/// A line with a gap wherever the next point is further than it should be.
fn line(found: &History, name: &str, role: Role, level: &Level) -> Series {
    let mut points = Vec::with_capacity(level.len());
    let mut known: Option<i64> = None;
    for (&at_s, values) in level {
        if let Some(before) = known
            && at_s - before > found.step_s + found.step_s / 2
        {
            points.push((seconds(before + found.step_s), None));
        }
        points.push((seconds(at_s), Some(values[0])));
        known = Some(at_s);
    }
    let mut series = Series::new(name, role, points).stepped();
    if series.band.is_empty() && role == Role::Demand {
        series.band = level.iter().map(|(&at_s, [_, least, most])| (seconds(at_s), *least, *most)).collect();
    }
    series
}

fn facts(found: &History, pools: &BTreeSet<(bool, &str)>) -> Vec<Fact> {
    let mut facts = vec![
        Fact::new("Seen", percent(found.seen.seen_share), "of that time")
            .alarming(found.seen.seen_share < 0.99),
    ];
    for &(serverless, name) in pools.iter().take(4) {
        let of = |what: Shown| {
            let level = level(found, what, serverless, name);
            let most = level.values().map(|values| values[2]).fold(0.0, f64::max);
            (mean(&level), most)
        };
        let ((held, most), (capacity, _)) = (of(Shown::Allocated), of(Shown::Capacity));
        let detail = if serverless {
            format!("rented on average, {} at most", number(most, 0))
        } else {
            format!("of {} held on average, {} at most", amount(capacity), number(most, 0))
        };
        facts.push(Fact::new(name, format!("{} GPUs", amount(held)), detail));
    }
    facts
}

fn pool(found: &History, serverless: bool, name: &str, waiting: Option<&Level>) -> Section {
    let of = |what: Shown| level(found, what, serverless, name);
    let (capacity, held) = (of(Shown::Capacity), of(Shown::Allocated));
    let mut series = vec![line(
        found,
        if serverless { "rented" } else { "held" },
        if serverless { Role::Rented } else { Role::Used },
        &held,
    )];
    let none = Level::new();
    let mut demand = held.clone();
    if let Some(waiting) = waiting {
        for (at_s, values) in waiting {
            let there = demand.entry(*at_s).or_default();
            for (sum, value) in there.iter_mut().zip(values) {
                *sum += value;
            }
        }
        series.push(line(found, "demanded: held and waited for", Role::Demand, &demand));
    }
    let used = of(Shown::Used);
    if !used.is_empty() {
        series.push(line(found, "at work, as measured", Role::Other, &used));
    }
    // A virtual node's capacity is a limit that somebody wrote down: drawn, it would only make all else small.
    if !serverless && !capacity.is_empty() {
        series.push(line(found, "there is", Role::Capacity, &capacity));
    }
    let most = held.values().map(|values| values[2]).fold(0.0, f64::max);
    let full = capacity
        .iter()
        .filter(|(at_s, there)| {
            there[0] > 0.0 && held.get(at_s).is_some_and(|held| held[0] >= there[0] - 1e-9)
        })
        .count();
    let full = seconds(count(full)) / seconds(count(capacity.len()).max(1));
    Section {
        name: format!("{name} ({})", if serverless { "rented" } else { "owned" }),
        heading: match (serverless, capacity.is_empty()) {
            (true, _) => {
                format!("{name}: {} GPUs rented on average, {} at most", amount(mean(&held)), number(most, 0))
            }
            (false, true) => format!("{name}: {} GPUs held on average", amount(mean(&held))),
            (false, false) => format!(
                "{name}: {} of {} GPUs held on average, {}",
                amount(mean(&held)),
                amount(mean(&capacity)),
                if full > 0.0 {
                    format!("all of them for {} of the time", percent(full))
                } else {
                    "never all of them".to_owned()
                }
            ),
        },
        plot: (!held.is_empty() || !capacity.is_empty()).then(|| Plot {
            caption: format!(
                "GPUs of {name} over time, in steps of {}. Grey is time of which nothing is known.",
                time(seconds(found.step_s))
            ),
            drawing: Drawing::Lines(Lines {
                x: Axis::new("Time", Unit::Time),
                y: Axis::new("GPUs", Unit::Gpus),
                series,
            }),
        }),
        table: by_period(&demand, &held, if serverless { &none } else { &capacity }),
        ..Section::default()
    }
}

fn by_period(demand: &Level, held: &Level, capacity: &Level) -> Table {
    let times: Vec<i64> =
        demand.keys().chain(capacity.keys()).copied().collect::<BTreeSet<_>>().into_iter().collect();
    let rows = times.chunks(times.len().div_ceil(ROWS).max(1)).map(|part| {
        let within = |level: &Level| {
            level.range(part[0]..=part[part.len() - 1]).map(|(_, values)| *values).collect::<Vec<_>>()
        };
        let mean = |level: &Level| {
            let values = within(level);
            let count = seconds(values.len().try_into().unwrap_or(1).max(1));
            number(values.iter().map(|values| values[0]).sum::<f64>() / count, 1)
        };
        let most = within(demand).iter().map(|values| values[2]).fold(0.0, f64::max);
        vec![when(seconds(part[0])), mean(held), number(most, 0), mean(capacity)]
    });
    let mut table = Table {
        title: "GPUs by period".to_owned(),
        columns: vec![
            Column::text("FROM"),
            Column::number("HELD"),
            Column::number("MOST DEMANDED"),
            Column::number("THERE IS"),
        ],
        rows: rows.collect(),
    };
    if capacity.is_empty() {
        table.columns.pop();
        for row in &mut table.rows {
            row.pop();
        }
    }
    table
}

fn wait(found: &History, waiting: &Level) -> Section {
    let mut table = by_period(waiting, waiting, &Level::new());
    table.columns[1] = Column::number("MEAN");
    table.columns[2] = Column::number("MOST");
    Section {
        name: "What waits".to_owned(),
        heading: format!("{} GPUs are waited for on average", amount(mean(waiting))),
        plot: Some(Plot {
            caption: "GPUs that pods wait for, of all pools.".to_owned(),
            drawing: Drawing::Lines(Lines {
                x: Axis::new("Time", Unit::Time),
                y: Axis::new("GPUs", Unit::Gpus),
                series: vec![line(found, "waited for", Role::Waiting, waiting)],
            }),
        }),
        table,
        ..Section::default()
    }
}

fn owners(found: &History) -> Option<Section> {
    let mut hours: BTreeMap<&str, [f64; 2]> = BTreeMap::new();
    for series in found.series.iter().filter(|series| series.what == Shown::Allocated) {
        hours.entry(&series.owner).or_default()[usize::from(series.serverless)] += series.gpu_hours;
    }
    if hours.is_empty() {
        return None;
    }
    let mut order: Vec<(&str, [f64; 2])> = hours.into_iter().collect();
    order.sort_by(|a, b| (b.1[0] + b.1[1]).total_cmp(&(a.1[0] + a.1[1])));
    let named = |owner: &str| if owner.is_empty() { "(none)".to_owned() } else { owner.to_owned() };
    let mut bars = Bars {
        value: Axis::new("GPU-hours", Unit::Number),
        names: order.iter().map(|(owner, _)| named(owner)).collect(),
        parts: vec![
            Part {
                name: "owned".to_owned(),
                role: Role::Owned,
                values: order.iter().map(|(_, hours)| hours[0]).collect(),
            },
            Part {
                name: "rented".to_owned(),
                role: Role::Rented,
                values: order.iter().map(|(_, hours)| hours[1]).collect(),
            },
        ],
    };
    bars.greatest_first();
    Some(Section {
        name: "Who held how much".to_owned(),
        heading: format!("{} held most", named(order[0].0)),
        plot: Some(Plot { caption: "GPU-hours held by owner.".to_owned(), drawing: Drawing::Bars(bars) }),
        table: Table {
            title: "GPU-hours".to_owned(),
            columns: vec![Column::text("OWNER"), Column::number("OWNED"), Column::number("RENTED")],
            rows: order
                .iter()
                .map(|(owner, hours)| vec![named(owner), number(hours[0], 1), number(hours[1], 1)])
                .collect(),
        },
        ..Section::default()
    })
}
