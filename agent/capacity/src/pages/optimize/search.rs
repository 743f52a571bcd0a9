//! What replays of the jobs found, where they may wait.

use std::collections::BTreeMap;

use super::{
    super::model::{Axis, Curve, Drawing, Fact, Mark, Plot, Range, Role, Section, Series, Unit},
    range,
};
use crate::{
    optimize::{
        Objective, Optimization, Search, Trial,
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

pub(super) fn section(found: &Optimization, search: &Search) -> Section {
    // Of each number of GPUs and way of bursting the cheapest.
    let mut lines: BTreeMap<String, BTreeMap<u32, f64>> = BTreeMap::new();
    let allowed = |trial: &&Trial| search.objective.allows(trial);
    for trial in search.trials.iter().filter(allowed) {
        let least = lines.entry(burst(trial)).or_default().entry(trial.gpus).or_insert(f64::INFINITY);
        *least = least.min(trial.per_hour);
    }
    let roles = [Role::Total, Role::Owned, Role::Rented, Role::Waiting, Role::Demand];
    let series = lines.iter().zip(roles.iter().cycle()).map(|((burst, points), role)| {
        let points = points.iter().map(|(&gpus, &cost)| (f64::from(gpus), Some(cost)));
        Series::new(format!("burst {burst}"), *role, points.collect())
    });
    let best = search.best.as_ref();
    let shown = |label: String, from: u32, to: u32| Range { label, from: f64::from(from), to: f64::from(to) };
    let mut rows: Vec<&Trial> = search.trials.iter().collect();
    rows.sort_by(|a, b| a.per_hour.total_cmp(&b.per_hour));
    Section {
        name: "Where jobs may wait".to_owned(),
        heading: match best {
            Some(best) => format!("{}: {}", wanted(found, search), gpus(best.gpus)),
            None => format!("{}: nothing that was tried", wanted(found, search)),
        },
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
                marks: best
                    .map(|best| Mark {
                        label: format!("best: {}", number(f64::from(best.gpus), 0)),
                        at: f64::from(best.gpus),
                        main: true,
                    })
                    .into_iter()
                    .collect(),
            }),
        }),
        table: Table {
            title: "What was tried, the cheapest first".to_owned(),
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
                        if allowed(&trial) { "yes" } else { "no" }.to_owned(),
                    ]
                })
                .collect(),
        },
        ..Section::default()
    }
}
