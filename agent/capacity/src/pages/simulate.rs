//! A simulation as a page: what ran where over time, how long jobs waited, where GPUs were free and of no use, and what it costs.

use jiff::Timestamp;
use serde_json::Value;

use super::{
    fragmentation::{Map, Spell},
    model::{
        Axis, Bars, Distribution, Drawing, Fact, Lines, Mark, Page, Part, Plot, Role, Section, Series, Unit,
    },
};
use crate::{
    optimize::words::{money, number, percent, time, unit},
    output::{Column, Table},
    simulate::{Point, Simulation, Waits},
};

/// Rows of a table that tells of time.
const ROWS: usize = 12;

/// The page on `subject`, which is the trace, with what reading it had to say.
pub fn page(found: &Simulation, subject: &str, warnings: &[String], generated_at: Timestamp) -> Page {
    let mut sections = vec![over_time(found)];
    if !found.wait_curve.is_empty() {
        sections.push(waits(found));
    }
    sections.extend(fragmentation(found));
    sections.push(cost(found));
    sections.push(worst(found));
    sections.push(policy(found));
    Page {
        title: title(found),
        subtitle: format!(
            "Simulation of {subject}: {} jobs over {} on {} machines with {} GPUs{}",
            count(found.jobs.submitted),
            time(found.span_s),
            count(found.machines),
            count(found.dedicated_gpus),
            unit(&found.cost.currency)
        ),
        generated_at,
        facts: facts(found),
        warnings: warnings.to_vec(),
        sections,
    }
}

#[expect(clippy::cast_precision_loss, reason = "written with all digits up to 2^53")]
fn count(value: u64) -> String {
    number(value as f64, 0)
}

fn title(found: &Simulation) -> String {
    let cost = money(found.cost.total_per_hour, &found.cost.currency);
    if found.wait.jobs == 0 {
        return format!("No job ran; the pool costs {cost}");
    }
    let waits = if found.wait.p95_s > 0.0 {
        format!("95 % of jobs start within {}", time(found.wait.p95_s))
    } else {
        "95 % of jobs start at once".to_owned()
    };
    format!("{cost}, and {waits}")
}

/// A mean with its standard error, where that is known and is any.
fn sure(mean: f64, error: Option<f64>, text: impl Fn(f64) -> String) -> String {
    match error {
        Some(error) if error > 0.0 => format!("{} ± {}", text(mean), text(error)),
        _ => text(mean),
    }
}

/// A standard error before more that is said of a number.
fn beside(error: Option<f64>, text: impl Fn(f64) -> String) -> String {
    error.filter(|error| *error > 0.0).map_or_else(String::new, |error| format!("± {}; ", text(error)))
}

fn cents(amount: f64) -> String {
    number(amount, 2)
}

fn facts(found: &Simulation) -> Vec<Fact> {
    let (cost, jobs, spilled) = (&found.cost, &found.jobs, &found.spilled);
    let mut facts = vec![
        Fact::new(
            "It costs",
            money(cost.total_per_hour, &cost.currency),
            format!(
                "{}{} owned, {} rented",
                beside(cost.total_per_hour_error, cents),
                cents(cost.dedicated_per_hour),
                cents(cost.serverless_per_hour)
            ),
        ),
        Fact::new(
            "Jobs wait",
            time(found.wait.mean_s),
            format!(
                "{}on average; p95 {}, longest {}",
                beside(found.wait.mean_error_s, time),
                sure(found.wait.p95_s, found.wait.p95_error_s, time),
                time(found.wait.max_s)
            ),
        ),
        Fact::new(
            "Spilled",
            percent(spilled.gpu_hours_share),
            format!(
                "{}of GPU-hours, {} of jobs",
                beside(spilled.gpu_hours_share_error, percent),
                sure(spilled.jobs_share, spilled.jobs_share_error, percent)
            ),
        ),
        Fact::new(
            "Dedicated GPUs used",
            percent(found.used.share),
            format!("{} free and of no use", number(found.used.fragmented_gpus, 1)),
        ),
    ];
    let lost = jobs.rejected + jobs.unfinished;
    if lost > 0 {
        facts.push(
            Fact::new(
                "Never ran to their end",
                count(lost),
                format!(
                    "{} rejected, {} still waiting at the end",
                    count(jobs.rejected),
                    count(jobs.unfinished)
                ),
            )
            .alarming(true),
        );
    }
    if found.deadlines.jobs > 0 {
        let missed = found.deadlines.missed;
        let of = format!("of {} jobs with one", count(found.deadlines.jobs));
        facts.push(Fact::new("Deadlines missed", count(missed), of).alarming(missed > 0));
    }
    facts
}

fn over_time(found: &Simulation) -> Section {
    let points = &found.over_time;
    let line = |name: &str, role, of: fn(&Point) -> f64| {
        Series::new(name, role, points.iter().map(|point| (point.at_s, Some(of(point)))).collect()).stepped()
    };
    #[expect(clippy::cast_precision_loss, reason = "GPUs")]
    let owned = found.dedicated_gpus as f64;
    let mut series = vec![
        line("in use, dedicated", Role::Used, |point| point.dedicated_gpus),
        line("in use, with serverless", Role::Rented, |point| point.dedicated_gpus + point.serverless_gpus),
        line("demanded, with those that wait", Role::Demand, |point| {
            point.dedicated_gpus + point.serverless_gpus + point.waiting_gpus
        }),
    ];
    if let (Some(first), Some(last)) = (points.first(), points.last()) {
        let level = vec![(first.at_s, Some(owned)), (last.at_s, Some(owned))];
        series.push(Series::new(format!("owned: {}", number(owned, 0)), Role::Capacity, level));
    }
    let rows = points.chunks(points.len().div_ceil(ROWS).max(1)).map(|part| {
        #[expect(clippy::cast_precision_loss, reason = "a few hundred")]
        let mean = |of: fn(&Point) -> f64| number(part.iter().map(of).sum::<f64>() / part.len() as f64, 1);
        vec![
            time(part[0].at_s),
            mean(|point| point.dedicated_gpus),
            mean(|point| point.serverless_gpus),
            mean(|point| point.waiting_gpus),
        ]
    });
    Section {
        name: "Demand against capacity".to_owned(),
        heading: format!(
            "{} of the {} dedicated GPUs are used; {}",
            percent(found.used.share),
            count(found.dedicated_gpus),
            if found.spilled.peak_gpus > 0.0 {
                format!("up to {} are rented beside them", number(found.spilled.peak_gpus, 0))
            } else {
                "none is rented".to_owned()
            }
        ),
        plot: (!points.is_empty()).then(|| Plot {
            caption: format!(
                "GPUs over time since the first job was submitted: {} dedicated ones in use on average, {} serverless ones at most, and what waits above them.",
                number(found.used.gpus, 1),
                number(found.spilled.peak_gpus, 0)
            ),
            drawing: Drawing::Lines(Lines {
                x: Axis::new("Since the first job", Unit::Duration),
                y: Axis::new("GPUs", Unit::Gpus),
                series,
            }),
        }),
        table: Table {
            title: "GPUs on average, by period".to_owned(),
            columns: vec![
                Column::number("FROM"),
                Column::number("DEDICATED"),
                Column::number("SERVERLESS"),
                Column::number("WAITING"),
            ],
            rows: rows.collect(),
        },
        ..Section::default()
    }
}

fn waits(found: &Simulation) -> Section {
    let points = found.wait_curve.iter().map(|point| (point.wait_s, Some(point.share * 100.0))).collect();
    let mark = |name: &str, at: f64, main| Mark { label: format!("{name}: {}", time(at)), at, main };
    let marks = vec![
        mark("median", found.wait.p50_s, false),
        mark("p95", found.wait.p95_s, true),
        mark("p99", found.wait.p99_s, false),
    ];
    let at_once =
        found.wait_curve.first().filter(|point| point.wait_s <= 0.0).map_or(0.0, |point| point.share);
    let row = |name: &str, of: fn(&Waits) -> (f64, Option<f64>)| {
        let known = |waits: &Waits| {
            let (wait_s, error_s) = of(waits);
            sure(wait_s, error_s, time)
        };
        vec![name.to_owned(), known(&found.wait), known(&found.waited)]
    };
    Section {
        name: "How long jobs wait".to_owned(),
        heading: format!(
            "{} of jobs start at once; the longest wait is {}",
            percent(at_once),
            time(found.wait.max_s)
        ),
        plot: Some(Plot {
            caption: format!(
                "The share of jobs that had started within a time: half within {}, 95 % within {}. The time is on a logarithmic scale.",
                time(found.wait.p50_s),
                time(found.wait.p95_s)
            ),
            drawing: Drawing::Distribution(Distribution {
                x: Axis::new("Wait", Unit::Duration),
                y: Axis::new("Jobs that have started", Unit::Percent),
                series: vec![Series::new("jobs", Role::Total, points)],
                marks,
            }),
        }),
        table: Table {
            title: format!("{} jobs, of which {} waited", count(found.wait.jobs), count(found.waited.jobs)),
            columns: vec![
                Column::text("WAIT"),
                Column::number("ALL JOBS"),
                Column::number("THOSE THAT WAITED"),
            ],
            rows: vec![
                row("mean", |waits| (waits.mean_s, waits.mean_error_s)),
                row("median", |waits| (waits.p50_s, waits.p50_error_s)),
                row("p90", |waits| (waits.p90_s, waits.p90_error_s)),
                row("p95", |waits| (waits.p95_s, waits.p95_error_s)),
                row("p99", |waits| (waits.p99_s, waits.p99_error_s)),
                row("longest", |waits| (waits.max_s, None)),
            ],
        },
        ..Section::default()
    }
}

fn fragmentation(found: &Simulation) -> Option<Section> {
    let points = &found.over_time;
    if found.dedicated_gpus == 0 || points.len() < 2 {
        return None;
    }
    #[expect(clippy::cast_precision_loss, reason = "GPUs")]
    let share = |point: &Point| 100.0 * point.fragmented_gpus / found.dedicated_gpus as f64;
    // A point tells of the time up to the next.
    let ends = points.iter().skip(1).map(|point| point.at_s).chain([found.span_s]);
    let spells = points.iter().zip(ends).map(|(point, until_s)| Spell {
        from_s: point.at_s,
        until_s,
        percent: share(point),
    });
    let map = Map::of(spells, 0.0, found.span_s);
    if map.most() <= 0.0 {
        return Some(Section {
            name: "Fragmentation".to_owned(),
            heading: "No free GPU was ever of no use".to_owned(),
            ..Section::default()
        });
    }
    let caption = format!(
        "Share of the dedicated GPUs that is free but fragmented: a row is {}, and the scale above says how much.",
        map.row()
    );
    let called = |at_s: f64| format!("from {}", time(at_s));
    Some(Section {
        name: "Fragmentation".to_owned(),
        heading: format!(
            "{} GPUs on average are free, but of no use",
            number(found.used.fragmented_gpus, 1)
        ),
        text: vec![
            "GPUs that are free where the job that comes next can't use them: too few on one machine, or without the CPU and memory beside them.".to_owned(),
        ],
        plot: Some(map.plot(caption, called)),
        table: map.table("Share of the dedicated GPUs", called),
        ..Section::default()
    })
}

fn cost(found: &Simulation) -> Section {
    let cost = &found.cost;
    let per_hour = |amount: f64| if found.span_s > 0.0 { amount / (found.span_s / 3600.0) } else { 0.0 };
    let mut names = vec!["this pool and policy".to_owned()];
    let (mut owned, mut rented, mut bound) =
        (vec![cost.dedicated_per_hour], vec![cost.serverless_per_hour], vec![0.0]);
    let mut rows = vec![
        vec!["dedicated".to_owned(), number(cost.dedicated_per_hour, 2), number(cost.dedicated, 2)],
        // What is owned costs what it costs: all that is unsure is what is rented.
        vec![
            "serverless".to_owned(),
            sure(cost.serverless_per_hour, cost.total_per_hour_error, cents),
            cents(cost.serverless),
        ],
        vec![
            "in all".to_owned(),
            sure(cost.total_per_hour, cost.total_per_hour_error, cents),
            cents(cost.total),
        ],
    ];
    let mut least = |name: &str, amount: f64| {
        names.push(name.to_owned());
        owned.push(0.0);
        rented.push(0.0);
        bound.push(per_hour(amount));
        rows.push(vec![name.to_owned(), number(per_hour(amount), 2), number(amount, 2)]);
    };
    if let Some(amount) = cost.least_without_waiting {
        least("least without waiting", amount);
    }
    least("least of any policy", cost.least);
    let part = |name: &str, role, values| Part { name: name.to_owned(), role, values };
    Section {
        name: "What it costs".to_owned(),
        heading: if cost.total > 0.0 {
            format!(
                "{} of the cost is for rented GPUs; {} is the least that any policy could cost",
                percent(cost.serverless / cost.total),
                money(per_hour(cost.least), &cost.currency)
            )
        } else {
            "It costs nothing".to_owned()
        },
        text: vec![format!(
            "An hour of work of one GPU costs {} {}.",
            sure(cost.per_gpu_hour_of_work, cost.per_gpu_hour_of_work_error, cents),
            cost.currency
        )],
        plot: Some(Plot {
            caption: "Cost per hour of this pool with this policy, and the least that others with the same machines could cost: no policy is below its bound.".to_owned(),
            drawing: Drawing::Bars(Bars {
                value: Axis::money("Cost per hour", &cost.currency),
                names,
                parts: vec![
                    part("dedicated", Role::Owned, owned),
                    part("serverless", Role::Rented, rented),
                    part("bound", Role::Free, bound),
                ],
            }),
        }),
        table: Table {
            title: if cost.currency.is_empty() { String::new() } else { format!("In {}", cost.currency) },
            columns: vec![Column::text("WHAT"), Column::number("PER HOUR"), Column::number("IN ALL")],
            rows,
        },
        ..Section::default()
    }
}

fn worst(found: &Simulation) -> Section {
    let rows = found.worst.iter().map(|job| {
        vec![
            job.line.to_string(),
            if job.owner.is_empty() { "(none)".to_owned() } else { job.owner.to_string() },
            number(job.gpus, if job.gpus.fract() == 0.0 { 0 } else { 2 }),
            time(job.submit_s),
            time(job.wait_s),
            time(job.duration_s),
            if job.spilled { "serverless" } else { "dedicated" }.to_owned(),
        ]
    });
    Section {
        name: "Jobs that waited longest".to_owned(),
        heading: match found.worst.first() {
            Some(job) => format!("The job that waited longest: line {}, {}", job.line, time(job.wait_s)),
            None => "No job waited".to_owned(),
        },
        table: Table {
            title: String::new(),
            columns: vec![
                Column::number("LINE"),
                Column::text("OWNER"),
                Column::number("GPUS"),
                Column::number("SUBMITTED AFTER"),
                Column::number("WAITED"),
                Column::number("RAN"),
                Column::text("ON"),
            ],
            rows: rows.collect(),
        },
        ..Section::default()
    }
}

fn policy(found: &Simulation) -> Section {
    let value = serde_json::to_value(&found.policy).unwrap_or_default();
    let mut rows: Vec<Vec<String>> = value
        .as_object()
        .into_iter()
        .flatten()
        .map(|(name, value)| {
            let (name, is_time) = name.strip_suffix("_s").map_or((name.as_str(), false), |name| (name, true));
            let value = match value.as_f64() {
                Some(seconds) if is_time => time(seconds),
                _ => word(value),
            };
            vec![name.replace('_', " "), value]
        })
        .collect();
    rows.push(vec!["seed".to_owned(), found.seed.to_string()]);
    Section {
        heading: "What was simulated".to_owned(),
        text: vec![
            "The words are those of the command line; the same seed gives the same result again. What stands behind ± is one standard error: how far the mean, or the percentile, of another such time may be off; twice that holds it 19 times in 20.".to_owned(),
        ],
        table: Table {
            title: String::new(),
            columns: vec![Column::text("POLICY"), Column::number("VALUE")],
            rows,
        },
        ..Section::default()
    }
}

/// A value of a policy as people write it.
fn word(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => "none".to_owned(),
        Value::Array(values) if values.is_empty() => "none".to_owned(),
        Value::Array(values) => values.iter().map(word).collect::<Vec<_>>().join(", "),
        Value::Object(fields) => fields.values().map(word).collect::<Vec<_>>().join("="),
        Value::Number(number) => number.to_string().trim_end_matches(".0").to_owned(),
        Value::Bool(yes) => if *yes { "yes" } else { "no" }.to_owned(),
    }
}
