//! Usage over time as a page: for each pool what there is and what is held, what waits, and who held how much.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;

use super::{
    fragmentation::{Map, Spell},
    model::{Axis, Bars, Drawing, Fact, Lines, Page, Part, Plot, Role, Section, Series, Unit},
};
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
    let waits = most(waiting.values()) > 0.0;
    let mut sections: Vec<Section> = pools
        .iter()
        .map(|&(serverless, name)| {
            // Where nobody ever waited, what is demanded is what is held.
            let with = (single && !serverless && waits).then_some(&waiting);
            pool(found, serverless, name, with)
        })
        .collect();
    if !single && waits {
        sections.push(wait(&waiting));
    }
    sections.extend(
        pools.iter().filter(|(serverless, _)| !serverless).filter_map(|(_, name)| stranded(found, name)),
    );
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
                mean(level(found, Shown::Allocated, false, name).values()),
                mean(level(found, Shown::Capacity, false, name).values()),
            );
            if capacity > 0.0 {
                return format!("{} of {name} GPUs are held on average", percent(held / capacity));
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

/// How much of a time was seen: what is not all is never 100 %.
pub(super) fn seen(share: f64) -> String {
    if (0.9..1.0).contains(&share) {
        format!("{:.1} %", (share * 1000.0).floor() / 10.0)
    } else {
        percent(share)
    }
}

/// The day of an RFC 3339 time.
pub(super) fn day(at: &str) -> &str {
    at.split('T').next().unwrap_or(at)
}

/// What there is of something for a step.
#[derive(Debug, Clone, Copy, Default)]
struct There {
    mean: f64,
    least: f64,
    most: f64,
    /// How long the step is: where only longer ones were kept, it is longer than was asked for.
    len_s: i64,
}

impl There {
    /// Both. The least and the most of a sum are at least and at most the sums of each.
    fn add(&mut self, other: &Self) {
        self.mean += other.mean;
        self.least += other.least;
        self.most += other.most;
        self.len_s = self.len_s.max(other.len_s);
    }
}

/// By time.
type Level = BTreeMap<i64, There>;

/// Several series as one.
fn sum(found: &History, of: impl Fn(&view::Series) -> bool) -> Level {
    let mut level = Level::new();
    for point in found.series.iter().filter(|series| of(series)).flat_map(|series| &series.points) {
        level.entry(point.at_s).or_default().add(&There {
            mean: point.mean_gpus,
            least: point.min_gpus,
            most: point.max_gpus,
            len_s: point.len_s,
        });
    }
    level
}

fn level(found: &History, what: Shown, serverless: bool, name: &str) -> Level {
    sum(found, |series| series.what == what && series.serverless == serverless && series.pool == name)
}

/// The mean over time; 0 where there is none.
fn mean<'a>(level: impl IntoIterator<Item = &'a There>) -> f64 {
    let (sum, len_s) = level
        .into_iter()
        .fold((0.0, 0), |(sum, len_s), there| (sum + there.mean * seconds(there.len_s), len_s + there.len_s));
    sum / seconds(len_s.max(1))
}

fn most<'a>(level: impl IntoIterator<Item = &'a There>) -> f64 {
    level.into_iter().map(|there| there.most).fold(0.0, f64::max)
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

#[expect(clippy::cast_precision_loss, reason = "seconds since 1970")]
fn seconds(at_s: i64) -> f64 {
    at_s as f64
}

/// A line with a gap wherever the next step begins after the end of the last.
fn line(name: &str, role: Role, level: &Level) -> Series {
    let mut points = Vec::with_capacity(level.len());
    let mut known: Option<i64> = None;
    for (&at_s, there) in level {
        if let Some(end_s) = known.filter(|end_s| *end_s < at_s) {
            points.push((seconds(end_s), None));
        }
        points.push((seconds(at_s), Some(there.mean)));
        known = Some(at_s + there.len_s);
    }
    let mut series = Series::new(name, role, points).stepped();
    if series.band.is_empty() && role == Role::Demand {
        series.band = level.iter().map(|(&at_s, there)| (seconds(at_s), there.least, there.most)).collect();
    }
    series
}

fn facts(found: &History, pools: &BTreeSet<(bool, &str)>) -> Vec<Fact> {
    let mut facts = vec![
        Fact::new("Seen", seen(found.seen.seen_share), "of that time").alarming(found.seen.seen_share < 0.99),
    ];
    for &(serverless, name) in pools.iter().take(4) {
        let of = |what: Shown| {
            let level = level(found, what, serverless, name);
            (mean(level.values()), most(level.values()))
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
        if serverless { "rented" } else { "held" },
        if serverless { Role::Rented } else { Role::Used },
        &held,
    )];
    let none = Level::new();
    let mut demand = held.clone();
    if let Some(waiting) = waiting {
        for (at_s, values) in waiting {
            demand.entry(*at_s).or_default().add(values);
        }
        series.push(line("demanded: held and waited for", Role::Demand, &demand));
    }
    let used = of(Shown::Used);
    if !used.is_empty() {
        series.push(line("at work, as measured", Role::Other, &used));
    }
    // A virtual node's capacity is a limit that somebody wrote down: drawn, it would only make all else small.
    if !serverless && !capacity.is_empty() {
        series.push(line("there is", Role::Capacity, &capacity));
    }
    let full = |(at_s, there): &(&i64, &There)| {
        there.mean > 0.0 && held.get(*at_s).is_some_and(|held| held.mean >= there.mean - 1e-9)
    };
    let full_s: i64 = capacity.iter().filter(full).map(|(_, there)| there.len_s).sum();
    let full = seconds(full_s) / seconds(capacity.values().map(|there| there.len_s).sum::<i64>().max(1));
    let (most, mean_held) = (number(most(held.values()), 0), amount(mean(held.values())));
    Section {
        name: format!("{name} ({})", if serverless { "rented" } else { "owned" }),
        heading: match (serverless, capacity.is_empty()) {
            (true, _) => format!("{name}: {mean_held} GPUs rented on average, {most} at most"),
            (false, true) => format!("{name}: {mean_held} GPUs held on average"),
            (false, false) => format!(
                "{name}: {mean_held} of {} GPUs held on average, {}",
                amount(mean(capacity.values())),
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
        table: if serverless {
            named(by_period(&held, &held, &none), "RENTED", "MOST")
        } else {
            by_period(&demand, &held, &capacity)
        },
        ..Section::default()
    }
}

/// A table by period with other names for what it has in the middle.
fn named(mut table: Table, mean: &'static str, most: &'static str) -> Table {
    table.columns[1] = Column::number(mean);
    table.columns[2] = Column::number(most);
    table
}

fn by_period<'a>(demand: &'a Level, held: &'a Level, capacity: &'a Level) -> Table {
    let times: Vec<i64> =
        demand.keys().chain(capacity.keys()).copied().collect::<BTreeSet<_>>().into_iter().collect();
    let rows = times.chunks(times.len().div_ceil(ROWS).max(1)).map(|part| {
        let within = |level: &'a Level| level.range(part[0]..=part[part.len() - 1]).map(|(_, there)| there);
        let mean = |level| number(mean(within(level)), 1);
        vec![when(seconds(part[0])), mean(held), number(most(within(demand)), 0), mean(capacity)]
    });
    let mut table = Table {
        title: "GPUs by period, on average and at most".to_owned(),
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

/// When GPUs of a pool were free and of no use, for the time of which that was recorded.
fn stranded(found: &History, name: &str) -> Option<Section> {
    let since: Timestamp = found.stranded_since.as_ref()?.parse().ok()?;
    let capacity = level(found, Shown::Capacity, false, name);
    let lost = level(found, Shown::Stranded, false, name);
    let known: Vec<(i64, There, f64)> = capacity
        .range(since.as_second()..)
        .filter(|(_, there)| there.mean > 0.0)
        .map(|(&at_s, &there)| (at_s, there, lost.get(&at_s).map_or(0.0, |lost| lost.mean)))
        .collect();
    let first_s = known.first()?.0;
    let end_s = known.last().map(|(at_s, there, _)| at_s + there.len_s)?;
    let spells = known.iter().map(|&(at_s, there, lost)| Spell {
        from_s: seconds(at_s),
        until_s: seconds(at_s + there.len_s),
        percent: 100.0 * lost / there.mean,
    });
    let map = Map::of(spells, seconds(first_s), seconds(end_s));
    let section = Section { name: format!("Stranded in {name}"), ..Section::default() };
    let mut text = vec![
        "GPUs that are free where no pod of the kinds that wait, or else that run, can use them: too few on one machine, without the CPU and memory beside them, or on a machine that takes no pods.".to_owned(),
    ];
    if first_s > capacity.keys().next().copied().unwrap_or(first_s) {
        text.push(format!(
            "Recorded since {}; what was stranded before is not known.",
            when(seconds(first_s))
        ));
    }
    if map.most() <= 0.0 {
        let heading = format!("{name}: no free GPU was ever of no use");
        return Some(Section { heading, text, ..section });
    }
    let mean = mean(&known.iter().map(|&(_, there, lost)| There { mean: lost, ..there }).collect::<Vec<_>>());
    let caption = format!(
        "Share of the GPUs of {name} that is free but of no use: a row is {}, and the scale above says how much. Of what is crossed out nothing is known. Times are of UTC.",
        map.row()
    );
    // A day has no need of its hour.
    let called = |at_s: f64| {
        let at = when(at_s);
        let day = at.strip_suffix(" 00:00").filter(|_| map.by_day());
        day.map_or_else(|| at.clone(), str::to_owned)
    };
    Some(Section {
        heading: format!(
            "{name}: {} GPUs on average are free, but of no use; {} of all at most",
            amount(mean),
            percent(map.most() / 100.0)
        ),
        text,
        plot: Some(map.plot(caption, called)),
        table: map.table("Share of the pool's GPUs", called),
        ..section
    })
}

fn wait(waiting: &Level) -> Section {
    let none = Level::new();
    Section {
        name: "What waits".to_owned(),
        heading: format!("{} GPUs are waited for on average", amount(mean(waiting.values()))),
        plot: Some(Plot {
            caption: "GPUs that pods wait for, of all pools.".to_owned(),
            drawing: Drawing::Lines(Lines {
                x: Axis::new("Time", Unit::Time),
                y: Axis::new("GPUs", Unit::Gpus),
                series: vec![line("waited for", Role::Waiting, waiting)],
            }),
        }),
        table: named(by_period(waiting, waiting, &none), "MEAN", "MOST"),
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
    let called = |owner: &str| if owner.is_empty() { "(none)".to_owned() } else { owner.to_owned() };
    let all: f64 = order.iter().map(|(_, hours)| hours[0] + hours[1]).sum();
    let mut bars = Bars {
        value: Axis::new("GPU-hours", Unit::Number),
        names: order.iter().map(|(owner, _)| called(owner)).collect(),
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
        heading: format!(
            "{} held most: {} of the GPU-hours",
            called(order[0].0),
            percent((order[0].1[0] + order[0].1[1]) / all.max(f64::MIN_POSITIVE))
        ),
        plot: Some(Plot { caption: "GPU-hours held by owner.".to_owned(), drawing: Drawing::Bars(bars) }),
        table: Table {
            title: "GPU-hours".to_owned(),
            columns: vec![Column::text("OWNER"), Column::number("OWNED"), Column::number("RENTED")],
            rows: order
                .iter()
                .map(|(owner, hours)| vec![called(owner), number(hours[0], 1), number(hours[1], 1)])
                .collect(),
        },
        ..Section::default()
    })
}
