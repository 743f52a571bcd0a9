//! How much to own, as a page: the cost curve, demand against what is owned, how often how much is demanded, and what the advice would have cost later.

mod cost;
mod search;

use jiff::Timestamp;

use super::model::{Axis, Bars, Drawing, Fact, Lines, Page, Part, Plot, Role, Section, Series, Unit};
use crate::{
    demand::Point,
    optimize::{
        Optimization,
        words::{gpus, machines, money, number, percent, ratio, ratios, span, time, unit, when},
    },
    output::{Column, Table},
};

/// Rows of a table that tells of time or of a curve.
const ROWS: usize = 12;
/// Times from here on are seconds since 1970.
const DATED_S: f64 = 3e8;

/// The page on `subject`, which is the trace.
pub fn page(found: &Optimization, subject: &str, generated_at: Timestamp) -> Page {
    let mut sections: Vec<Section> = found.search.iter().map(|tried| search::section(found, tried)).collect();
    sections.extend([cost::section(found), demand(found), load(found)]);
    sections.extend(regret(found));
    sections.push(reasons(found));
    Page {
        title: title(found),
        subtitle: format!(
            "How many GPUs to own for {subject}: {} from {} of {}{}",
            time(found.demand.observed_s),
            when(found.demand.span.from_s),
            found.demand.meaning,
            unit(&found.currency)
        ),
        generated_at,
        facts: facts(found),
        warnings: found.warnings.clone(),
        sections,
    }
}

fn title(found: &Optimization) -> String {
    if let Some(best) = found.search.as_ref().and_then(|tried| tried.best.as_ref()) {
        return search::title(found, best);
    }
    let cost = money(found.advice.per_hour, &found.currency);
    match (found.advice.gpus, found.advice.rented_share > 0.0) {
        (0, _) => format!("Own no GPU and rent all: {cost}"),
        (owned, true) => format!("Own {} and rent the rest: {cost}", gpus(owned)),
        (owned, false) => format!("Own {} and rent none: {cost}", gpus(owned)),
    }
}

fn facts(found: &Optimization) -> Vec<Fact> {
    if let Some(tried) = &found.search
        && let Some(best) = &tried.best
    {
        return search::facts(found, tried, best);
    }
    let currency = &found.currency;
    let interval = &found.interval;
    let mut facts = vec![
        Fact::new(
            "Own",
            gpus(found.advice.gpus),
            if found.machines.iter().all(|kind| kind.gpus_each == 1) {
                format!("{} of GPU-hours rented", percent(found.advice.rented_share))
            } else {
                machines(found)
            },
        ),
        Fact::new(
            "Which costs",
            money(found.advice.per_hour, currency),
            format!(
                "{} interval {} to {}",
                percent(interval.confidence),
                number(interval.from_per_hour, 0),
                number(interval.to_per_hour, 0)
            ),
        ),
    ];
    if let Some(today) = &found.today {
        let saved = today.per_hour - found.advice.per_hour;
        facts.push(Fact::new(
            "Saved against today",
            money(saved, currency),
            format!(
                "{} of what {} cost",
                percent(if today.per_hour > 0.0 { saved / today.per_hour } else { 0.0 }),
                gpus(today.gpus)
            ),
        ));
    } else {
        let saved = found.all_rented.per_hour - found.advice.per_hour;
        facts.push(Fact::new(
            "Saved against renting",
            money(saved, currency),
            format!("of {}", money(found.all_rented.per_hour, currency)),
        ));
    }
    facts.push(Fact::new(
        "Nearly as good",
        if is_flat(found) { flat(found) } else { "nothing".to_owned() },
        if is_flat(found) {
            format!("GPUs cost at most {} more", percent(found.flat.within))
        } else {
            format!("any other number costs over {} more", percent(found.flat.within))
        },
    ));
    if let Some(rent) = found.break_even.rent_everything_up_to {
        let prices = &found.prices;
        let up_to = money(rent * prices.effective_dedicated_per_gpu_hour, currency);
        let now = number(prices.effective_serverless_per_gpu_hour, 2);
        facts.push(Fact::new(
            "Break-even",
            up_to,
            format!("up to this price renting all is cheapest; it is {now}"),
        ));
    }
    if let Some(half) = found.regret.first() {
        facts.push(
            Fact::new(
                "Regret",
                percent(half.regret),
                "more than the best: the first half's advice paid for on the second",
            )
            .alarming(found.drift.half_regret.is_some_and(|regret| regret > found.drift.regret_threshold)),
        );
    }
    facts
}

fn range(from: u32, to: u32) -> String {
    if from == to {
        number(f64::from(from), 0)
    } else {
        format!("{} to {}", number(f64::from(from), 0), number(f64::from(to), 0))
    }
}

fn flat(found: &Optimization) -> String {
    range(found.flat.from_gpus, found.flat.to_gpus)
}

/// Whether any other number is nearly as good.
fn is_flat(found: &Optimization) -> bool {
    found.flat.from_gpus < found.flat.to_gpus
}

fn demand(found: &Optimization) -> Section {
    let points = &found.demand.over_time;
    let mut demanded = Series::new(
        "demanded (mean; band: least to most)",
        Role::Demand,
        points.iter().map(|point| (point.at_s, observed(point).then_some(point.mean_gpus))).collect(),
    );
    demanded.band = points
        .iter()
        .filter(|point| observed(point) && point.max_gpus > point.min_gpus)
        .map(|point| (point.at_s, point.min_gpus, point.max_gpus))
        .collect();
    let (from, to) = (found.demand.span.from_s, found.demand.span.to_s);
    let level = |name: String, role, gpus: u32| {
        Series::new(name, role, vec![(from, Some(f64::from(gpus))), (to, Some(f64::from(gpus)))]).stepped()
    };
    let mut series = vec![
        demanded,
        level(format!("advised: {}", gpus(found.advice.gpus)), Role::Capacity, found.advice.gpus),
    ];
    if let Some(today) = &found.today {
        series.push(level(format!("owned today: {}", gpus(today.gpus)), Role::Owned, today.gpus));
    }
    let holes = &found.demand.holes;
    let mut text = Vec::new();
    if let Some(first) = holes.first() {
        let which = match holes.len() {
            1 => "A stretch without demand looks like missing data".to_owned(),
            many => format!("{many} stretches without demand look like missing data, the first"),
        };
        text.push(format!("{which}: {}.", span(*first)));
    }
    Section {
        name: "Demand".to_owned(),
        heading: format!(
            "{} of the GPU-hours demanded are above the {} advised",
            percent(found.advice.rented_share),
            gpus(found.advice.gpus)
        ),
        text,
        plot: Some(Plot {
            caption: format!(
                "GPUs demanded over time: {} on average, {} at most. What lies above the advised line is rented.",
                number(found.demand.mean_gpus, 1),
                number(f64::from(found.demand.max_gpus), 0)
            ),
            drawing: Drawing::Lines(Lines { x: over_time(from), y: Axis::new("GPUs", Unit::Gpus), series }),
        }),
        table: demand_table(points),
        ..Section::default()
    }
}

fn observed(point: &Point) -> bool {
    point.observed_s > 0.0
}

/// Time as dates, or since the trace's start where it has none.
pub(super) fn over_time(from_s: f64) -> Axis {
    if from_s >= DATED_S {
        Axis::new("Time", Unit::Time)
    } else {
        Axis::new("Since the beginning", Unit::Duration)
    }
}

fn demand_table(points: &[Point]) -> Table {
    let rows = points.chunks(points.len().div_ceil(ROWS).max(1)).map(|part| {
        let seen = || part.iter().filter(|point| observed(point));
        let observed_s: f64 = seen().map(|point| point.observed_s).sum();
        let amount =
            |value: f64, digits| if observed_s > 0.0 { number(value, digits) } else { "–".to_owned() };
        vec![
            when(part[0].at_s),
            amount(seen().map(|point| point.min_gpus).fold(f64::INFINITY, f64::min), 0),
            amount(seen().map(|point| point.mean_gpus * point.observed_s).sum::<f64>() / observed_s, 1),
            amount(seen().map(|point| point.max_gpus).fold(0.0, f64::max), 0),
        ]
    });
    Table {
        title: "GPUs demanded, by period".to_owned(),
        columns: vec![
            Column::text("FROM"),
            Column::number("LEAST"),
            Column::number("MEAN"),
            Column::number("MOST"),
        ],
        rows: rows.collect(),
    }
}

/// For how much of the time more is demanded than so many: where it falls below 1/r, owning one more no longer pays.
fn load(found: &Optimization) -> Section {
    let demand = &found.demand;
    let mut above = 1.0;
    let mut points = Vec::new();
    for bin in &demand.histogram {
        above -= bin.time_share;
        // The share above the bin's last number of GPUs.
        points.push((f64::from(bin.to_gpus - 1), Some((above * 100.0).max(0.0))));
    }
    let last = points.last().map_or(1.0, |point| point.0);
    let mut series = vec![Series::new("time with more demanded", Role::Demand, points).stepped()];
    let mut caption = "For how much of the time more GPUs are demanded than so many.".to_owned();
    if let Some(r) = found.prices.ratio.filter(|r| *r > 1.0) {
        let worth = 100.0 / r;
        series.push(Series::new(
            format!("worth owning: 1/r = {}", percent(1.0 / r)),
            Role::Capacity,
            vec![(0.0, Some(worth)), (last, Some(worth))],
        ));
        caption.push_str(
            " A GPU that is busy for more than the dashed share of the time is cheaper owned than rented.",
        );
    }
    let row = |what: &str, gpus: String, time: &str| vec![what.to_owned(), gpus, time.to_owned()];
    let count = |gpus: u32| number(f64::from(gpus), 0);
    Section {
        name: "How often how much".to_owned(),
        heading: match (found.break_even.advice.from, demand.max_gpus) {
            (Some(from), 1..) if from > 0.0 && found.advice.gpus > 0 => format!(
                "The last {} advised is busy for {} of the time",
                if found.machines.iter().all(|kind| kind.gpus_each == 1) { "GPU" } else { "machine" },
                percent(1.0 / from)
            ),
            _ => "For how much of the time how much is demanded".to_owned(),
        },
        plot: Some(Plot {
            caption,
            drawing: Drawing::Lines(Lines {
                x: Axis::new("GPUs", Unit::Gpus),
                y: Axis::new("Share of time", Unit::Percent),
                series,
            }),
        }),
        table: Table {
            title: String::new(),
            columns: vec![Column::text("DEMAND"), Column::number("GPUS"), Column::number("MORE IN")],
            rows: vec![
                row("mean", number(demand.mean_gpus, 1), ""),
                row("median", count(demand.p50_gpus), "50 % of time"),
                row("p95", count(demand.p95_gpus), "5 % of time"),
                row("p99", count(demand.p99_gpus), "1 % of time"),
                row("most", count(demand.max_gpus), "never"),
            ],
        },
        ..Section::default()
    }
}

fn regret(found: &Optimization) -> Option<Section> {
    if found.regret.is_empty() {
        return None;
    }
    let name = |at: usize, from: f64| {
        if at == 0 { "first half".to_owned() } else { format!("until {}", when(from)) }
    };
    let names: Vec<String> =
        found.regret.iter().enumerate().map(|(at, fold)| name(at, fold.advised_at_s)).collect();
    let drift = &found.drift;
    let mut text = vec![
        "Advice is given on the past and paid for on the future. Here each part of the trace is advised on the time before it.".to_owned(),
    ];
    if drift.drifts {
        text.push(format!(
            "Demand changes: {} GPUs on average in the first half, {} in the second.",
            number(drift.first_gpus, 1),
            number(drift.second_gpus, 1)
        ));
    }
    Some(Section {
        name: "What the advice would have cost later".to_owned(),
        heading: match found.regret.first() {
            Some(half) if half.regret >= 0.0005 => format!(
                "Advised on the first half, the second costs {} more than the best there",
                percent(half.regret)
            ),
            _ => "What was best in the first half was best in the second, too".to_owned(),
        },
        text,
        plot: Some(Plot {
            caption: "Cost per hour on the time that followed each advice: what the best choice for that time would have cost, and what the advice cost more.".to_owned(),
            drawing: Drawing::Bars(Bars {
                value: Axis::money("Cost per hour", &found.currency),
                parts: vec![
                    Part { name: "the best then".to_owned(), role: Role::Owned, values: found.regret.iter().map(|fold| fold.best_per_hour).collect() },
                    Part { name: "the advice more".to_owned(), role: Role::Rented, values: found.regret.iter().map(|fold| (fold.per_hour - fold.best_per_hour).max(0.0)).collect() },
                ],
                names: names.clone(),
            }),
        }),
        table: Table {
            title: String::new(),
            columns: vec![Column::text("ADVISED ON"), Column::number("GPUS"), Column::number("BEST"), Column::number("REGRET")],
            rows: found
                .regret
                .iter()
                .zip(names)
                .map(|(fold, name)| {
                    vec![name, number(f64::from(fold.gpus), 0), number(f64::from(fold.best_gpus), 0), percent(fold.regret)]
                })
                .collect(),
        },
        ..Section::default()
    })
}

fn reasons(found: &Optimization) -> Section {
    let prices = &found.prices;
    let price = |value: f64| format!("{} {}", number(value, 4), found.currency).trim_end().to_owned();
    let mut rows = vec![
        vec!["a dedicated GPU-hour".to_owned(), price(prices.dedicated_per_gpu_hour)],
        vec!["  when it works".to_owned(), price(prices.effective_dedicated_per_gpu_hour)],
        vec!["a serverless GPU-hour".to_owned(), price(prices.serverless_per_gpu_hour)],
        vec!["  with its cold start".to_owned(), price(prices.effective_serverless_per_gpu_hour)],
    ];
    if let Some(r) = prices.ratio {
        rows.push(vec!["r, one over the other".to_owned(), ratio(r)]);
    }
    rows.push(vec!["the advice is right for".to_owned(), ratios(found.break_even.advice)]);
    if let Some(today) = found.break_even.today {
        rows.push(vec!["today's number is right for".to_owned(), ratios(today)]);
    }
    Section {
        heading: "Why".to_owned(),
        text: found.reasons.clone(),
        table: Table {
            title: "Prices, and at which the answer is another".to_owned(),
            columns: vec![Column::text("WHAT"), Column::number("PRICE OR RATIO")],
            rows,
        },
        ..Section::default()
    }
}
