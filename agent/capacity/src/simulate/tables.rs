//! What a simulation found, as an admin reads it: what it costs first, then who waits.

use serde_json::Value;

use super::{
    result::{Rented, Simulation, WorstJob},
    series::Point,
    tally::float,
};
use crate::output::{Column, Table};

impl Simulation {
    /// What it costs, who waits, what spills, and the jobs that waited longest.
    pub fn tables(&self) -> Vec<Table> {
        let mut tables = vec![self.cost_table()];
        if !self.cost.rented_by_model.is_empty() {
            tables.push(rented(&self.cost.rented_by_model));
        }
        tables.extend([self.wait_table(), self.facts()]);
        if !self.worst.is_empty() {
            tables.push(worst(&self.worst));
        }
        tables
    }

    /// The same, and what happened over time.
    pub fn wide_tables(&self) -> Vec<Table> {
        let mut tables = self.tables();
        if !self.over_time.is_empty() {
            tables.push(over_time(&self.over_time));
        }
        tables
    }

    /// The same as plain numbers, one in each row, and what happened over time: for programs.
    pub fn plain_tables(&self) -> Vec<Table> {
        let mut rows = Vec::new();
        if let Ok(value) = serde_json::to_value(self) {
            flatten("", &value, &mut rows);
        }
        let over_time = self.over_time.iter().map(|point| {
            [
                point.at_s,
                point.dedicated_gpus,
                point.serverless_gpus,
                point.waiting_gpus,
                point.fragmented_gpus,
            ]
            .map(|number| number.to_string())
            .to_vec()
        });
        vec![
            Table {
                title: String::new(),
                columns: vec![Column::text("MEASURE"), Column::text("VALUE")],
                rows,
            },
            Table {
                title: "Over time".to_owned(),
                columns: ["AT S", "DEDICATED GPUS", "SERVERLESS GPUS", "WAITING GPUS", "FRAGMENTED GPUS"]
                    .map(Column::number)
                    .to_vec(),
                rows: over_time.collect(),
            },
        ]
    }

    fn cost_table(&self) -> Table {
        let cost = &self.cost;
        let share = |part: f64| if cost.total > 0.0 { percent(part / cost.total) } else { "-".to_owned() };
        let row = |name: &str, per_hour: f64, error: Option<f64>, total: f64, what: String| {
            vec![
                name.to_owned(),
                money(per_hour),
                error_or_none(error, money),
                money(total),
                share(total),
                what,
            ]
        };
        Table {
            title: format!("Cost in {} over {}", cost.currency, duration(self.span_s)),
            columns: vec![
                Column::text("MACHINES"),
                Column::number("PER HOUR"),
                Column::number("± STD ERROR"),
                Column::number("IN ALL"),
                Column::number("SHARE"),
                Column::text("FOR"),
            ],
            rows: vec![
                row(
                    "dedicated",
                    cost.dedicated_per_hour,
                    None,
                    cost.dedicated,
                    format!(
                        "{} in {}, {} used",
                        counted(self.dedicated_gpus, "GPU"),
                        counted(self.machines, "machine"),
                        percent(self.used.share)
                    ),
                ),
                row(
                    "serverless",
                    cost.serverless_per_hour,
                    cost.total_per_hour_error,
                    cost.serverless,
                    format!(
                        "{} of the work, {} of the jobs; at most {} in {} at a time",
                        share_of(self.spilled.gpu_hours_share, self.spilled.gpu_hours_share_error),
                        share_of(self.spilled.jobs_share, self.spilled.jobs_share_error),
                        gpus(self.spilled.peak_gpus),
                        counted(self.spilled.peak_pods, "pod")
                    ),
                ),
                row(
                    "both",
                    cost.total_per_hour,
                    cost.total_per_hour_error,
                    cost.total,
                    format!("{} for each hour of work of a GPU", money(cost.per_gpu_hour_of_work)),
                ),
            ],
        }
    }

    fn wait_table(&self) -> Table {
        let row = |name: &str, number: String, rest: [String; 6]| {
            [name.to_owned(), number].into_iter().chain(rest).collect::<Vec<_>>()
        };
        let rows =
            [("all", &self.wait), ("that waited", &self.waited)].into_iter().flat_map(|(name, waits)| {
                let times = [waits.mean_s, waits.p50_s, waits.p90_s, waits.p95_s, waits.p99_s, waits.max_s]
                    .map(duration);
                let mut rows = vec![row(name, waits.jobs.to_string(), times)];
                let errors = [
                    waits.mean_error_s,
                    waits.p50_error_s,
                    waits.p90_error_s,
                    waits.p95_error_s,
                    waits.p99_error_s,
                    // No longer time tells how long the longest wait of this one would have been.
                    None,
                ];
                if errors.iter().any(Option::is_some) {
                    let errors = errors.map(|error| error_or_none(error, duration));
                    rows.push(row("  ± std error", String::new(), errors));
                }
                rows
            });
        let numbers = ["NUMBER", "MEAN", "P50", "P90", "P95", "P99", "LONGEST"].map(Column::number);
        Table {
            title: "Wait until work begins".to_owned(),
            columns: [Column::text("JOBS")].into_iter().chain(numbers).collect(),
            rows: rows.collect(),
        }
    }

    /// What is worth a word, and only where it is.
    fn facts(&self) -> Table {
        let jobs = &self.jobs;
        let mut rows = vec![("jobs".to_owned(), jobs.submitted.to_string())];
        let mut told = |what: &str, count: u64| {
            if count > 0 {
                rows.push((what.to_owned(), count.to_string()));
            }
        };
        told("rejected: they fit nowhere, ever", jobs.rejected);
        told("still waiting at the end", jobs.unfinished);
        told("preempted pods", jobs.preemptions);
        told("asked in vain for serverless machines", jobs.provider_failures);
        told("held back by a cap", jobs.held_by_cap);
        told("out of order in the trace", jobs.out_of_order);
        if self.deadlines.jobs > 0 {
            let missed = format!("{} of {}", self.deadlines.missed, self.deadlines.jobs);
            rows.push(("deadlines missed".to_owned(), missed));
        }
        if self.used.lost_gpu_hours > 0.0 {
            rows.push(("GPU-hours lost to preemption".to_owned(), number(self.used.lost_gpu_hours)));
        }
        rows.push((
            "GPUs free but not usable by usual jobs, on average".to_owned(),
            number(self.used.fragmented_gpus),
        ));
        if let Some(least) = self.cost.least_without_waiting {
            rows.push(("cost at least, if no job waits".to_owned(), money(least)));
        }
        rows.push(("cost at least, whatever the policy".to_owned(), money(self.cost.least)));
        Table {
            title: "Beside that".to_owned(),
            columns: vec![Column::text("WHAT"), Column::number("HOW MUCH")],
            rows: rows.into_iter().map(|(what, value)| vec![what, value]).collect(),
        }
    }
}

/// No more rows tell of time.
const ROWS: usize = 24;

fn over_time(points: &[Point]) -> Table {
    let rows = points.chunks(points.len().div_ceil(ROWS)).map(|part| {
        let mean = |of: fn(&Point) -> f64| {
            format!("{:.1}", part.iter().map(of).sum::<f64>() / float(part.len() as u64))
        };
        vec![
            duration(part[0].at_s),
            mean(|point| point.dedicated_gpus),
            mean(|point| point.serverless_gpus),
            mean(|point| point.waiting_gpus),
            mean(|point| point.fragmented_gpus),
        ]
    });
    let numbers = ["FROM", "DEDICATED", "SERVERLESS", "WAITED FOR", "FREE, NOT USABLE"];
    Table {
        title: "GPUs over time, on average".to_owned(),
        columns: numbers.map(Column::number).to_vec(),
        rows: rows.collect(),
    }
}

fn rented(models: &[Rented]) -> Table {
    Table {
        title: "Serverless GPUs by price".to_owned(),
        columns: vec![
            Column::text("MODEL"),
            Column::number("PER GPU-HOUR"),
            Column::number("GPU-HOURS"),
            Column::number("IN ALL"),
        ],
        rows: models
            .iter()
            .map(|of| {
                vec![
                    of.model.clone().unwrap_or_else(|| "any other".to_owned()),
                    money(of.per_gpu_hour),
                    number(of.billed_gpu_hours),
                    money(of.cost),
                ]
            })
            .collect(),
    }
}

fn worst(jobs: &[WorstJob]) -> Table {
    Table {
        title: "Waited longest".to_owned(),
        columns: vec![
            Column::number("LINE"),
            Column::text("OWNER"),
            Column::number("GPUS"),
            Column::number("WAITED"),
            Column::number("RAN"),
            Column::number("SUBMITTED AFTER"),
            Column::text("ON"),
        ],
        rows: jobs
            .iter()
            .map(|job| {
                vec![
                    job.line.to_string(),
                    if job.owner.is_empty() { "-".to_owned() } else { job.owner.to_string() },
                    number(job.gpus),
                    duration(job.wait_s),
                    duration(job.duration_s),
                    duration(job.submit_s),
                    if job.spilled { "serverless" } else { "dedicated" }.to_owned(),
                ]
            })
            .collect(),
    }
}

/// `cost.total 12.5` for each number and word; lists have a table of their own or are for JSON.
fn flatten(path: &str, value: &Value, rows: &mut Vec<Vec<String>>) {
    match value {
        Value::Object(fields) => {
            for (name, field) in fields {
                let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                flatten(&path, field, rows);
            }
        }
        Value::String(text) => rows.push(vec![path.to_owned(), text.clone()]),
        Value::Number(number) => rows.push(vec![path.to_owned(), number.to_string()]),
        Value::Bool(is) => rows.push(vec![path.to_owned(), is.to_string()]),
        Value::Null | Value::Array(_) => {}
    }
}

fn percent(share: f64) -> String {
    format!("{:.1} %", share * 100.0)
}

fn money(amount: f64) -> String {
    if amount.abs() < 100.0 { format!("{amount:.4}") } else { format!("{amount:.2}") }
}

fn number(amount: f64) -> String {
    if amount.fract().abs() < 1e-9 { format!("{amount:.0}") } else { format!("{amount:.2}") }
}

/// `1 machine`, `2 machines`.
fn counted(count: u64, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

fn gpus(amount: f64) -> String {
    format!("{} GPU{}", number(amount), if (amount - 1.0).abs() < 1e-9 { "" } else { "s" })
}

/// The standard error of a mean, where it is known.
fn error_or_none(error: Option<f64>, text: impl Fn(f64) -> String) -> String {
    error.map_or_else(|| "-".to_owned(), text)
}

/// A share with its standard error, where that is known and shows.
fn share_of(share: f64, error: Option<f64>) -> String {
    match error {
        Some(error) if error >= 0.0005 => format!("{:.1} ± {:.1} %", share * 100.0, error * 100.0),
        _ => percent(share),
    }
}

/// A time as people say it.
fn duration(seconds: f64) -> String {
    match seconds {
        0.0 => "0".to_owned(),
        seconds if seconds < 600.0 => format!("{seconds:.1} s"),
        seconds if seconds < 7200.0 => format!("{:.1} min", seconds / 60.0),
        seconds if seconds < 172_800.0 => format!("{:.1} h", seconds / 3600.0),
        seconds => format!("{:.1} d", seconds / 86_400.0),
    }
}
