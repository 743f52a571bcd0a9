//! What replays of the jobs found, where they may wait.

use std::collections::BTreeMap;

use super::{
    super::model::{Axis, Curve, Drawing, Fact, Mark, Plot, Range, Role, Section, Series, Unit},
    range,
};
use crate::{
    optimize::{
        Later, Objective, Optimization, Search, Trial,
        words::{gpus, money, number, percent, time},
    },
    output::{Column, Table},
};

/// What the page is called, where something is allowed.
pub(super) fn title(found: &Optimization, best: &Trial) -> String {
    format!(
        "Own {} and let jobs wait: {}, and 95 % of jobs start within {}",
        gpus(best.gpus),
        money(best.per_hour, &found.currency),
        time(best.wait_p95_s)
    )
}

pub(super) fn facts(found: &Optimization, search: &Search, best: &Trial) -> Vec<Fact> {
    let mut facts = vec![
        Fact::new("Own", gpus(best.gpus), format!("{} machines", number(f64::from(best.machines), 0))),
        Fact::new(
            "Which costs",
            money(best.per_hour, &found.currency),
            search.interval.map_or_else(String::new, |interval| {
                format!(
                    "{} interval {} to {}",
                    percent(interval.confidence),
                    number(interval.from_per_hour, 0),
                    number(interval.to_per_hour, 0)
                )
            }),
        ),
        Fact::new("Jobs wait", time(best.wait_mean_s), format!("on average; p95 {}", time(best.wait_p95_s))),
        Fact::new("Work that is rented", percent(best.rented_share), "of GPU-hours"),
    ];
    if let Some(today) = &search.today {
        facts.push(Fact::new(
            "Today",
            money(today.per_hour, &found.currency),
            format!("with {}; p95 wait {}", gpus(today.gpus), time(today.wait_p95_s)),
        ));
    }
    if best.not_run_share > 0.0 {
        facts.push(Fact::new("Jobs that run nowhere", percent(best.not_run_share), "").alarming(true));
    }
    facts
}

fn wanted(found: &Optimization, search: &Search) -> String {
    match search.objective {
        Objective::Cost => "The least cost where jobs may wait".to_owned(),
        Objective::CostWithinWait { wait_p95_s } => {
            format!("The least cost at which 95 % of jobs start within {}", time(wait_p95_s))
        }
        Objective::WaitWithinCost { per_hour } => {
            format!("The shortest waits for {}", money(per_hour, &found.currency))
        }
    }
}

/// How a trial's jobs burst, as on the command line.
fn burst(trial: &Trial) -> String {
    let word = serde_json::to_value(trial.burst).ok();
    word.and_then(|word| word.as_str().map(str::to_owned)).unwrap_or_default()
}

/// What the advice on the first half of the time was worth in the second.
fn said_later(found: &Optimization, later: &Later) -> String {
    let kept = if later.regret >= 0.0005 {
        format!("{} more than the best there, {}", percent(later.regret), gpus(later.best.gpus))
    } else {
        "no more than the best there".to_owned()
    };
    format!(
        "Advised on the first half of the time, {} cost {} in the second: {kept}; 95 % of its jobs started within {}.",
        gpus(later.advised.gpus),
        money(later.turned_out.per_hour, &found.currency),
        time(later.turned_out.wait_p95_s)
    )
}

pub(super) fn section(found: &Optimization, search: &Search) -> Section {
    // Of each number of GPUs and way of bursting the cheapest; where none keeps to the limit the line has a gap.
    let mut lines: BTreeMap<String, BTreeMap<u32, Option<f64>>> = BTreeMap::new();
    let allowed = |trial: &Trial| search.objective.allows(trial);
    for trial in &search.trials {
        let least = lines.entry(burst(trial)).or_default().entry(trial.gpus).or_default();
        if allowed(trial) {
            *least = Some(least.map_or(trial.per_hour, |least| least.min(trial.per_hour)));
        }
    }
    lines.retain(|_, points| points.values().any(Option::is_some));
    let roles = [Role::Total, Role::Owned, Role::Rented, Role::Waiting, Role::Demand];
    let series = lines.iter().zip(roles.iter().cycle()).map(|((burst, points), role)| {
        let points = points.iter().map(|(&gpus, &cost)| (f64::from(gpus), cost));
        Series::new(format!("burst {burst}"), *role, points.collect())
    });
    let best = search.best.as_ref();
    let shown = |label: String, from: u32, to: u32| Range { label, from: f64::from(from), to: f64::from(to) };
    let mut rows: Vec<&Trial> = search.trials.iter().collect();
    rows.sort_by(|a, b| allowed(b).cmp(&allowed(a)).then(a.per_hour.total_cmp(&b.per_hour)));
    Section {
        name: "Where jobs may wait".to_owned(),
        heading: match best {
            Some(best) => format!("{}: {}", wanted(found, search), gpus(best.gpus)),
            None => format!("{}: nothing that was tried", wanted(found, search)),
        },
        text: search
            .flat_waits
            .iter()
            .map(|flat| format!("Waits before bursting: {}.", flat.in_words()))
            .chain(search.later.iter().map(|later| said_later(found, later)))
            .collect(),
        plot: best.map(|_| Plot {
            caption: "Cost per hour by number of GPUs owned and way of bursting, by replaying the jobs. What does not keep to the limit is in the table alone."
                .to_owned(),
            drawing: Drawing::Curve(Curve {
                x: Axis::new("GPUs owned", Unit::Gpus),
                y: Axis::money("Cost per hour", &found.currency),
                series: series.collect(),
                flat: search.flat.filter(|flat| flat.from_gpus < flat.to_gpus).map(|flat| {
                    let gpus = range(flat.from_gpus, flat.to_gpus);
                    shown(format!("{gpus} cost within {}", percent(flat.within)), flat.from_gpus, flat.to_gpus)
                }),
                interval: search.interval.map(|interval| {
                    let gpus = range(interval.from_gpus, interval.to_gpus);
                    let label = format!("{} interval: {gpus}", percent(interval.confidence));
                    shown(label, interval.from_gpus, interval.to_gpus)
                }),
                marks: [("best", best, true), ("today", search.today.as_ref(), false)]
                    .into_iter()
                    .filter_map(|(name, trial, main)| {
                        let gpus = f64::from(trial?.gpus);
                        Some(Mark { label: format!("{name}: {}", number(gpus, 0)), at: gpus, main })
                    })
                    .collect(),
            }),
        }),
        table: Table {
            title: if rows.iter().all(|trial| allowed(trial)) {
                "What was tried, the cheapest first".to_owned()
            } else {
                "What was tried; what keeps to the limit first".to_owned()
            },
            columns: vec![
                Column::number("GPUS"),
                Column::text("BURST"),
                Column::number("AFTER"),
                Column::number("COST/H"),
                Column::number("MEAN WAIT"),
                Column::number("P95 WAIT"),
                Column::number("RENTED"),
                Column::text("WITHIN LIMIT"),
            ],
            rows: rows
                .into_iter()
                .map(|trial| {
                    vec![
                        number(f64::from(trial.gpus), 0),
                        burst(trial),
                        if trial.wait_s > 0.0 { time(trial.wait_s) } else { "–".to_owned() },
                        number(trial.per_hour, 2),
                        time(trial.wait_mean_s),
                        time(trial.wait_p95_s),
                        percent(trial.rented_share),
                        if allowed(trial) { "yes" } else { "no" }.to_owned(),
                    ]
                })
                .collect(),
        },
        ..Section::default()
    }
}
