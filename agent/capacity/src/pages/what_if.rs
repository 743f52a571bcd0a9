//! Before and after as a page: what each costs, how long jobs wait, and where the least cost lies.

use jiff::Timestamp;

use super::model::{
    Axis, Bars, Curve, Distribution, Drawing, Fact, Mark, Page, Part, Plot, Role, Section, Series, Unit,
};
use crate::{
    optimize::words::{money, number, percent, time, unit},
    output::{Column, Table},
    what_if::{Side, Wait, WhatIf},
};

/// Rows of the table of the cost curves.
const ROWS: usize = 12;

/// The page on `subject`, which is the trace.
pub fn page(found: &WhatIf, subject: &str, generated_at: Timestamp) -> Page {
    let mut sections = vec![cost(found)];
    sections.extend(waits(found));
    sections.extend(curves(found));
    Page {
        title: title(found),
        subtitle: format!(
            "What if {}? {subject}, before and after{}",
            found.changes.join(", "),
            unit(&found.currency)
        ),
        generated_at,
        facts: facts(found),
        warnings: found.warnings.clone(),
        sections,
    }
}

/// By how much `after` is more or less than `before`, in per cent; nothing where there was nothing.
fn change(before: f64, after: f64) -> Option<String> {
    let share = if before > 0.0 { after / before - 1.0 } else { return None };
    Some(match share {
        _ if share.abs() < 0.0005 => "as much as now".to_owned(),
        _ if share > 0.0 => format!("{} more than now", percent(share)),
        _ => format!("{} less than now", percent(-share)),
    })
}

fn title(found: &WhatIf) -> String {
    let (before, after) = (&found.before, &found.after);
    let cost = money(after.per_hour, &found.currency);
    let cost = match change(before.per_hour, after.per_hour) {
        Some(change) => format!("{cost}, {change}"),
        None => cost,
    };
    match (before.wait, after.wait) {
        (Some(was), Some(is)) => format!("{cost}; {}", waiting(&was, &is)),
        _ => cost,
    }
}

/// By what waits differ, where they do.
fn waiting(was: &Wait, is: &Wait) -> String {
    let (p95, mean) = ((time(is.p95_s), time(was.p95_s)), (time(is.mean_s), time(was.mean_s)));
    if p95.0 != p95.1 && is.p95_s <= 0.0 {
        format!("95 % of jobs start at once instead of within {}", p95.1)
    } else if p95.0 != p95.1 && was.p95_s <= 0.0 {
        format!("95 % of jobs start within {} instead of at once", p95.0)
    } else if p95.0 != p95.1 {
        format!("95 % of jobs start within {} instead of {}", p95.0, p95.1)
    } else if mean.0 != mean.1 {
        format!("jobs wait {} on average instead of {}", mean.0, mean.1)
    } else if is.mean_s > 0.0 {
        format!("jobs wait {} on average as now", mean.0)
    } else {
        "no job waits, as now".to_owned()
    }
}

fn facts(found: &WhatIf) -> Vec<Fact> {
    let (before, after) = (&found.before, &found.after);
    #[expect(clippy::cast_precision_loss, reason = "counts of GPUs")]
    let count = |value: u64| number(value as f64, 0);
    let was = |text: String| format!("was {text}");
    let mut facts = vec![
        Fact::new(
            "It would cost",
            money(after.per_hour, &found.currency),
            was(money(before.per_hour, &found.currency)),
        ),
        Fact::new("Dedicated GPUs", count(after.gpus), was(count(before.gpus))),
        Fact::new("Of them used", percent(after.utilisation), was(percent(before.utilisation))),
        Fact::new("Work that is rented", percent(after.rented_share), was(percent(before.rented_share))),
    ];
    if let (Some(was_s), Some(is_s)) = (before.wait, after.wait) {
        facts.push(Fact::new("95 % wait no longer than", time(is_s.p95_s), was(time(was_s.p95_s))));
        if is_s.not_run + was_s.not_run > 0 {
            facts.push(
                Fact::new("Jobs that ran nowhere", count(is_s.not_run), was(count(was_s.not_run)))
                    .alarming(is_s.not_run > was_s.not_run),
            );
        }
    }
    if let (Some(was_gpus), Some(gpus)) = (before.best_gpus, after.best_gpus) {
        let text = |gpus: u32| number(f64::from(gpus), 0);
        facts.push(Fact::new("Cheapest to own", text(gpus), was(text(was_gpus))));
    }
    facts
}

fn cost(found: &WhatIf) -> Section {
    let (before, after) = (&found.before, &found.after);
    let part = |name: &str, role, of: fn(&Side) -> f64| Part {
        name: name.to_owned(),
        role,
        values: vec![of(before), of(after)],
    };
    let table = found.tables().into_iter().next().unwrap_or_default();
    Section {
        name: "What it costs".to_owned(),
        heading: match change(before.owned_per_hour, after.owned_per_hour) {
            Some(owned) => format!("Owning costs {owned}; renting costs {}", renting(before, after)),
            None => format!("Renting costs {}", renting(before, after)),
        },
        plot: Some(Plot {
            caption: "Cost per hour before and after, for what is owned and what is rented.".to_owned(),
            drawing: Drawing::Bars(Bars {
                value: Axis::money("Cost per hour", &found.currency),
                names: vec!["before".to_owned(), "after".to_owned()],
                parts: vec![
                    part("owned", Role::Owned, |side| side.owned_per_hour),
                    part("rented", Role::Rented, |side| side.rented_per_hour),
                ],
            }),
        }),
        table: Table {
            title: if found.currency.is_empty() {
                String::new()
            } else {
                format!("Money in {}", found.currency)
            },
            ..table
        },
        ..Section::default()
    }
}

fn renting(before: &Side, after: &Side) -> String {
    change(before.rented_per_hour, after.rented_per_hour).unwrap_or_else(|| {
        if after.rented_per_hour > 0.0 { "something, and nothing now" } else { "nothing" }.to_owned()
    })
}

fn waits(found: &WhatIf) -> Option<Section> {
    let (was, is) = (found.before.wait?, found.after.wait?);
    let line = |name: &str, role, side: &Side| {
        let points = side.wait_curve.iter().map(|point| (point.wait_s, Some(point.share * 100.0)));
        Series::new(name, role, points.collect())
    };
    let row = |name: &str, was_s: f64, is_s: f64| vec![name.to_owned(), time(was_s), time(is_s)];
    // Where nobody waits there is nothing to see.
    let drawn = was.mean_s + is.mean_s > 0.0
        && !found.before.wait_curve.is_empty()
        && !found.after.wait_curve.is_empty();
    Some(Section {
        name: "How long jobs wait".to_owned(),
        heading: format!("With that, {}", waiting(&was, &is)),
        plot: drawn.then(|| Plot {
            caption: "The share of jobs that had started within a time, before and after. The time is on a logarithmic scale.".to_owned(),
            drawing: Drawing::Distribution(Distribution {
                x: Axis::new("Wait", Unit::Duration),
                y: Axis::new("Jobs that have started", Unit::Percent),
                series: vec![
                    line("before", Role::Owned, &found.before),
                    line("after", Role::Total, &found.after),
                ],
                marks: Vec::new(),
            }),
        }),
        table: Table {
            title: String::new(),
            columns: vec![Column::text("WAIT"), Column::number("BEFORE"), Column::number("AFTER")],
            rows: vec![
                row("mean", was.mean_s, is.mean_s),
                row("median", was.p50_s, is.p50_s),
                row("p95", was.p95_s, is.p95_s),
                row("p99", was.p99_s, is.p99_s),
            ],
        },
        ..Section::default()
    })
}

/// What owning any other number would cost, before and after.
fn curves(found: &WhatIf) -> Option<Section> {
    let (was_best, best) = (found.before.best_gpus?, found.after.best_gpus?);
    let line = |name: &str, role, side: &Side| {
        let points = side.cost_curve.iter().map(|cost| (f64::from(cost.gpus), Some(cost.per_hour)));
        Series::new(name, role, points.collect())
    };
    let mark = |name: &str, gpus: u32, main| Mark {
        label: format!("{name}: {}", number(f64::from(gpus), 0)),
        at: f64::from(gpus),
        main,
    };
    let known = |side: &Side, gpus: u32| {
        let found = side.cost_curve.iter().find(|cost| cost.gpus == gpus);
        found.map_or_else(|| "–".to_owned(), |cost| number(cost.per_hour, 2))
    };
    let curve = &found.after.cost_curve;
    let rows = curve.iter().step_by(curve.len().div_ceil(ROWS).max(1)).map(|cost| {
        let gpus = number(f64::from(cost.gpus), 0);
        vec![gpus, known(&found.before, cost.gpus), number(cost.per_hour, 2)]
    });
    Some(Section {
        name: "The least cost".to_owned(),
        heading: if best == was_best {
            format!("{} GPUs stay the cheapest number to own", number(f64::from(best), 0))
        } else {
            format!(
                "{} GPUs instead of {} would be the cheapest to own",
                number(f64::from(best), 0),
                number(f64::from(was_best), 0)
            )
        },
        plot: Some(Plot {
            caption: "Cost per hour by number of GPUs owned, the rest being rented, where no job waits."
                .to_owned(),
            drawing: Drawing::Curve(Curve {
                x: Axis::new("GPUs owned", Unit::Gpus),
                y: Axis::money("Cost per hour", &found.currency),
                series: vec![
                    line("before", Role::Owned, &found.before),
                    line("after", Role::Total, &found.after),
                ],
                flat: None,
                interval: None,
                marks: vec![mark("least before", was_best, false), mark("least after", best, true)],
            }),
        }),
        table: Table {
            title: if found.currency.is_empty() {
                String::new()
            } else {
                format!("In {} per hour", found.currency)
            },
            columns: vec![Column::number("GPUS"), Column::number("BEFORE"), Column::number("AFTER")],
            rows: rows.collect(),
        },
        ..Section::default()
    })
}
