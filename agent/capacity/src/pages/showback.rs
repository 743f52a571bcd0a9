//! Who pays for a period, as a page: by owner, owned and rented apart, and what nobody held.

use jiff::Timestamp;

use super::{
    history::day,
    model::{Axis, Bars, Drawing, Fact, Page, Part, Plot, Role, Section, Unit},
};
use crate::{
    history::{Showback, showback::Line},
    optimize::words::{number, percent, time},
    output::{Column, Table},
};

/// The page.
pub fn page(found: &Showback, generated_at: Timestamp) -> Page {
    let mut sections = vec![cost(found), hours(found)];
    let mut tables = found.tables().into_iter().skip(1);
    if let Some(pools) = tables.next() {
        sections.push(plain("By pool", &[], pools));
    }
    if let Some(gaps) = tables.next() {
        sections.push(plain(
            "What was not recorded",
            &["Nobody pays here for what was held or rented then."],
            gaps,
        ));
    }
    Page {
        title: format!("Showback for {}", found.period),
        subtitle: format!("{}: {} to {}", found.source, day(&found.since), day(&found.until)),
        generated_at,
        facts: facts(found),
        warnings: found.warnings.clone(),
        sections,
    }
}

fn plain(heading: &str, text: &[&str], table: Table) -> Section {
    Section {
        heading: heading.to_owned(),
        text: text.iter().map(|text| (*text).to_owned()).collect(),
        plot: None,
        table: Table { title: String::new(), ..table },
    }
}

fn facts(found: &Showback) -> Vec<Fact> {
    let total = &found.total;
    let idle: Vec<&Line> = found.lines.iter().filter(|line| line.idle).collect();
    let unheld: f64 = idle.iter().map(|line| line.cost).sum();
    let of_all = |part: f64| if total.cost > 0.0 { percent(part / total.cost) } else { percent(0.0) };
    let money = |amount: f64| {
        format!("{} {}", number(amount, if amount.abs() < 1000.0 { 2 } else { 0 }), found.currency)
    };
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
        facts.push(Fact::new("Held by nobody", money(unheld), format!("{} of all", of_all(unheld))));
    }
    facts.push(
        Fact::new(
            "Recorded",
            percent(found.seen_share),
            if found.gaps.is_empty() {
                "of the period".to_owned()
            } else {
                format!(
                    "of the period; {} missing",
                    time(found.gaps.iter().map(|gap| seconds(gap.unseen_s)).sum())
                )
            },
        )
        .alarming(found.seen_share < 0.99),
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
        heading: "Who pays what".to_owned(),
        text: Vec::new(),
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
    }
}

fn hours(found: &Showback) -> Section {
    Section {
        heading: "Who held how much".to_owned(),
        text: Vec::new(),
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
                Column::number("OWNED SHARE"),
            ],
            rows: rows(found, |line| {
                vec![
                    line.owner.clone(),
                    number(line.owned_gpu_hours, 1),
                    number(line.rented_gpu_s / 3600.0, 1),
                    percent(line.owned_share),
                ]
            }),
        },
    }
}
