//! Who pays for a period, as a page: by owner, owned and rented apart, and what nobody held.

use std::collections::BTreeMap;

use jiff::{Timestamp, civil::Date};

use super::{
    history::{day, readable, seen},
    model::{Axis, Bars, Drawing, Fact, Page, Part, Plot, Role, Section, Unit},
};
use crate::{
    history::{Showback, showback::Line},
    optimize::words::{number, percent, time},
    output::{Column, Table},
};

/// The page.
pub fn page(found: &Showback, generated_at: Timestamp) -> Page {
    let mut sections = vec![cost(found), hours(found), by_pool(found)];
    if let Some(gaps) = found.tables().into_iter().nth(2) {
        sections.push(Section {
            name: "What was not recorded".to_owned(),
            heading: format!("{} of the period was not recorded", percent(1.0 - found.seen.seen_share)),
            text: vec!["Nobody pays here for what was held or rented then.".to_owned()],
            table: readable(gaps),
            ..Section::default()
        });
    }
    Page {
        title: title(found),
        subtitle: format!(
            "Showback by {} from {}: {} to {}",
            found.by.word(),
            found.source,
            day(&found.seen.since),
            day(&found.seen.until)
        ),
        generated_at,
        facts: facts(found),
        warnings: found.warnings.clone(),
        sections,
    }
}

fn amount(found: &Showback, amount: f64) -> String {
    let digits = if amount.abs() < 1000.0 { 2 } else { 0 };
    format!("{} {}", number(amount, digits), found.currency)
}

/// What of the costs is of machines that nobody held.
fn unheld(found: &Showback) -> f64 {
    found.lines.iter().filter(|line| line.idle).map(|line| line.cost).sum()
}

/// A part of all costs, in per cent.
fn of_all(found: &Showback, part: f64) -> String {
    percent(if found.total.cost > 0.0 { part / found.total.cost } else { 0.0 })
}

fn title(found: &Showback) -> String {
    let cost = amount(found, found.total.cost);
    let month = format!("{}-01", found.period).parse::<Date>();
    let period = month.map_or_else(|_| found.period.clone(), |month| month.strftime("%B %Y").to_string());
    if found.seen.seen_share <= 0.0 {
        return format!("Nothing of {period} was recorded");
    }
    match unheld(found) {
        idle if idle > 0.0 => {
            format!("{period} cost {cost}, {} of it for GPUs that nobody held", of_all(found, idle))
        }
        _ => format!("{period} cost {cost}"),
    }
}

/// Who pays most, of those who held anything.
fn first(found: &Showback, of: fn(&Line) -> f64) -> Option<&Line> {
    let held = found.lines.iter().filter(|line| !line.idle && of(line) > 0.0);
    held.max_by(|a, b| of(a).total_cmp(&of(b)))
}

fn by_pool(found: &Showback) -> Section {
    let rows = found.lines.iter().flat_map(|line| line.parts.iter().map(move |part| (line, part)));
    let rows = rows.map(|(line, part)| {
        vec![
            line.owner.clone(),
            part.pool.clone(),
            if part.serverless { "rented" } else { "owned" }.to_owned(),
            number(part.gpu_hours, 1),
            part.cost.map_or_else(|| "no price".to_owned(), |cost| number(cost, 2)),
        ]
    });
    let mut pools: BTreeMap<&str, f64> = BTreeMap::new();
    for part in found.lines.iter().flat_map(|line| &line.parts) {
        *pools.entry(&part.pool).or_default() += part.cost.unwrap_or_default();
    }
    let dearest = pools.into_iter().max_by(|a, b| a.1.total_cmp(&b.1)).filter(|(_, cost)| *cost > 0.0);
    Section {
        name: "By pool".to_owned(),
        heading: match dearest {
            Some((pool, cost)) => format!("{pool} costs most: {}", amount(found, cost)),
            None => "No pool cost anything".to_owned(),
        },
        table: Table {
            title: format!("GPU-hours, and cost in {}", found.currency),
            columns: vec![
                Column::text("OWNER"),
                Column::text("POOL"),
                Column::text("WHICH IS"),
                Column::number("GPU-HOURS"),
                Column::number("COST"),
            ],
            rows: rows.collect(),
        },
        ..Section::default()
    }
}

fn facts(found: &Showback) -> Vec<Fact> {
    let total = &found.total;
    let idle: Vec<&Line> = found.lines.iter().filter(|line| line.idle).collect();
    let money = |cost: f64| amount(found, cost);
    let mut facts = vec![
        Fact::new("In all", money(total.cost), format!("for {} owners", found.lines.len() - idle.len())),
        Fact::new(
            "Owned",
            money(total.owned_cost),
            format!("{} GPU-hours", number(total.owned_gpu_hours, 0)),
        ),
        Fact::new(
            "Rented",
            money(total.rented_cost),
            format!("{} GPU-hours", number(total.rented_gpu_s / 3600.0, 0)),
        ),
    ];
    if !idle.is_empty() {
        facts.push(Fact::new(
            "Held by nobody",
            money(unheld(found)),
            format!("{} of all", of_all(found, unheld(found))),
        ));
    }
    facts.push(
        Fact::new(
            "Recorded",
            seen(found.seen.seen_share),
            if found.seen.gaps.is_empty() {
                "of the period".to_owned()
            } else {
                format!("of the period; {} missing", time(seconds(found.seen.unseen_s())))
            },
        )
        .alarming(found.seen.seen_share < 0.99),
    );
    facts
}

#[expect(clippy::cast_precision_loss, reason = "a few years")]
fn seconds(seconds: i64) -> f64 {
    seconds as f64
}

fn bars(found: &Showback, value: Axis, owned: fn(&Line) -> f64, rented: fn(&Line) -> f64) -> Drawing {
    let of = |of: fn(&Line) -> f64, idle: bool| {
        found
            .lines
            .iter()
            .map(|line| if line.idle == idle { of(line).max(0.0) } else { 0.0 })
            .collect::<Vec<_>>()
    };
    let mut parts = vec![
        Part { name: "owned".to_owned(), role: Role::Owned, values: of(owned, false) },
        Part { name: "rented".to_owned(), role: Role::Rented, values: of(rented, false) },
    ];
    if found.lines.iter().any(|line| line.idle) {
        parts.push(Part {
            name: "owned, held by nobody".to_owned(),
            role: Role::Idle,
            values: of(owned, true),
        });
    }
    let mut bars = Bars { value, names: found.lines.iter().map(|line| line.owner.clone()).collect(), parts };
    bars.greatest_first();
    Drawing::Bars(bars)
}

fn rows(found: &Showback, row: impl Fn(&Line) -> Vec<String>) -> Vec<Vec<String>> {
    found
        .lines
        .iter()
        .map(&row)
        .chain(std::iter::once({
            let mut total = row(&found.total);
            "in all".clone_into(&mut total[0]);
            total
        }))
        .collect()
}

fn cost(found: &Showback) -> Section {
    Section {
        name: "Who pays what".to_owned(),
        heading: match first(found, |line| line.cost) {
            Some(line) => format!("{} pays most: {}", line.owner, amount(found, line.cost)),
            None => "Nobody pays anything".to_owned(),
        },
        plot: (!found.lines.is_empty()).then(|| Plot {
            caption: "Cost by owner: the share of owned machines, by GPU-hours held, and rented ones by the second.".to_owned(),
            drawing: bars(found, Axis::money("Cost", &found.currency), |line| line.owned_cost, |line| line.rented_cost),
        }),
        table: Table {
            title: format!("In {}", found.currency),
            columns: vec![Column::text("OWNER"), Column::number("OWNED"), Column::number("RENTED"), Column::number("COST")],
            rows: rows(found, |line| {
                vec![line.owner.clone(), number(line.owned_cost, 2), number(line.rented_cost, 2), number(line.cost, 2)]
            }),
        },
        ..Section::default()
    }
}

fn hours(found: &Showback) -> Section {
    Section {
        name: "Who held how much".to_owned(),
        heading: match first(found, |line| line.owned_gpu_hours + line.rented_gpu_s / 3600.0) {
            Some(line) => format!("{} held most GPU-hours", line.owner),
            None => "Nobody held a GPU".to_owned(),
        },
        plot: (!found.lines.is_empty()).then(|| Plot {
            caption: "GPU-hours by owner.".to_owned(),
            drawing: bars(
                found,
                Axis::new("GPU-hours", Unit::Number),
                |line| line.owned_gpu_hours,
                |line| line.rented_gpu_s / 3600.0,
            ),
        }),
        table: Table {
            title: "GPU-hours".to_owned(),
            columns: vec![
                Column::text("OWNER"),
                Column::number("OWNED"),
                Column::number("RENTED"),
                Column::number("RENTED GPU-S"),
                Column::number("OWNED SHARE"),
            ],
            rows: rows(found, |line| {
                vec![
                    line.owner.clone(),
                    number(line.owned_gpu_hours, 1),
                    number(line.rented_gpu_s / 3600.0, 1),
                    number(line.rented_gpu_s, 0),
                    percent(line.owned_share),
                ]
            }),
        },
        ..Section::default()
    }
}
