//! What was recorded, as it is shown: by pool and owner, with its gaps.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::Serialize;

use super::{Key, Owner, Recorded, What};
use crate::output::{Column, Table};

/// Shorter holes are the time between two samples.
const SHORTEST_GAP_S: i64 = 150;

/// Who counts as the owner.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum By {
    /// The pods' namespace.
    #[default]
    Namespace,
    /// The value of the label that was recorded (`record --label`).
    Label,
    /// The value of the label that names the user (`record --user-label`).
    User,
}

impl By {
    /// An owner's name; of pods that have no such label it is empty.
    pub fn name(self, owner: &Owner) -> &str {
        match self {
            Self::Namespace => &owner.namespace,
            Self::Label => &owner.label,
            Self::User => &owner.user,
        }
    }

    /// As it is said on the command line.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Namespace => "namespace",
            Self::Label => "label",
            Self::User => "user",
        }
    }
}

/// What is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Shown {
    /// GPUs that are there.
    Capacity,
    /// GPUs that pods have.
    Allocated,
    /// GPUs that pods wait for.
    Waiting,
    /// GPUs that compute, where Prometheus has it measured.
    Used,
    /// Allocated and waiting: what there would have to be so that nobody waits.
    Demand,
    /// GPUs that are free and that no pod can use, as `report` tells it; from what `record` wrote.
    Stranded,
}

impl Shown {
    fn has(self, what: What) -> bool {
        match self {
            Self::Capacity => what == What::Capacity,
            Self::Allocated => what == What::Allocated,
            Self::Waiting => what == What::Waiting,
            Self::Used => what == What::Used,
            Self::Demand => matches!(what, What::Allocated | What::Waiting),
            Self::Stranded => what == What::Stranded,
        }
    }

    fn word(self) -> &'static str {
        match self {
            Self::Capacity => "capacity",
            Self::Allocated => "allocated",
            Self::Waiting => "waiting",
            Self::Used => "used",
            Self::Demand => "demand",
            Self::Stranded => "stranded",
        }
    }
}

/// Which part of what was recorded, and how it is grouped.
#[derive(Debug, Clone, Default)]
pub struct View {
    /// After this time, in seconds since 1970.
    pub since_s: i64,
    /// Until this time.
    pub until_s: i64,
    /// By steps of so many seconds.
    pub step_s: i64,
    /// What; all but the demand where it isn't said.
    pub show: Option<Shown>,
    /// By whom.
    pub by: By,
    /// Only of pods in this namespace. What is nobody's is always shown.
    pub namespace: Option<String>,
    /// Since when it is known what was stranded, where it is.
    pub stranded_since_s: Option<i64>,
}

/// Usage over time.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct History {
    /// Where it comes from: a file, or an address.
    pub source: String,
    /// Of when, and what of it was not seen.
    #[serde(flatten)]
    pub seen: Seen,
    /// Seconds between points; where only longer steps were kept, points are further apart.
    pub step_s: i64,
    /// By pool and owner.
    pub series: Vec<Series>,
    /// Since when it is known what was stranded, in RFC 3339; none where that isn't recorded.
    pub stranded_since: Option<String>,
    /// What should be known about it.
    pub warnings: Vec<String>,
}

/// A time, and what of it was not seen.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Seen {
    /// From when on, in RFC 3339.
    pub since: String,
    /// Until when.
    pub until: String,
    /// How much of that time was seen, from 0 to 1.
    pub seen_share: f64,
    /// What was not seen: nothing is known of it, and it counts nowhere.
    pub gaps: Vec<Gap>,
}

impl Seen {
    /// What is known of a time of which all in steps of `step_s` was asked for.
    pub(super) fn of(recorded: &Recorded, since_s: i64, until_s: i64, step_s: i64) -> Self {
        let gaps = gaps(recorded, since_s, until_s, step_s);
        let gaps = gaps.into_iter().map(|(since_s, until_s)| Gap {
            since: rfc3339(since_s),
            until: rfc3339(until_s),
            unseen_s: until_s - since_s,
        });
        let gaps: Vec<Gap> = gaps.collect();
        let mut seen = Self { since: rfc3339(since_s), until: rfc3339(until_s), seen_share: 1.0, gaps };
        seen.seen_share -= gpus(seen.unseen_s() * 1000, until_s - since_s);
        seen
    }

    /// How long nothing was seen, in seconds.
    pub fn unseen_s(&self) -> i64 {
        self.gaps.iter().map(|gap| gap.unseen_s).sum()
    }
}

/// A time that nothing is known of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Gap {
    /// From when on, in RFC 3339.
    pub since: String,
    /// Until when.
    pub until: String,
    /// How long, in seconds.
    pub unseen_s: i64,
}

/// One line of a plot.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Series {
    /// What it counts.
    pub what: Shown,
    /// Where; of what waits, the resource.
    pub pool: String,
    /// Whether that is rented by the second.
    pub serverless: bool,
    /// For whom; empty for capacity.
    pub owner: String,
    /// The mean over the time that was seen.
    pub mean_gpus: f64,
    /// The most at any time.
    pub max_gpus: f64,
    /// The sum over the time that was seen.
    pub gpu_hours: f64,
    /// By time; one for each step that was seen.
    pub points: Vec<Point>,
}

/// A value that holds from its time on, for a step.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Point {
    /// The begin of the step, in seconds since 1970.
    pub at_s: i64,
    /// How long the step is.
    pub len_s: i64,
    /// The mean over what was seen of the step.
    pub mean_gpus: f64,
    /// The least at any time in it.
    pub min_gpus: f64,
    /// The most.
    pub max_gpus: f64,
}

/// Times that nothing is known of, within a period.
fn gaps(recorded: &Recorded, since_s: i64, until_s: i64, step_s: i64) -> Vec<(i64, i64)> {
    let shortest = SHORTEST_GAP_S.max(step_s / 100);
    let (mut gaps, mut known) = (Vec::new(), since_s);
    let nexts = recorded.steps.iter().skip(1).map(|next| Some(next.end_s - next.len_s)).chain([None]);
    for (step, next_s) in recorded.steps.iter().zip(nexts) {
        let (start_s, end_s) = (step.end_s - step.len_s, step.end_s.min(until_s));
        // Where in a step the hole is, nobody remembers: it is one with a hole that follows, and else with what was before.
        let ends_early = known >= start_s && next_s != Some(step.end_s);
        let end_s = if ends_early { end_s.min(start_s + step.seen_s) } else { end_s };
        let begin_s = end_s - step.seen_s;
        if begin_s - known >= shortest {
            gaps.push((known, begin_s));
        }
        known = known.max(end_s);
    }
    if until_s - known >= shortest {
        gaps.push((known, until_s));
    }
    gaps
}

#[expect(clippy::cast_precision_loss, reason = "GPU-seconds are far below 2^52")]
fn gpus(milli: i64, per_s: i64) -> f64 {
    milli as f64 / 1000.0 / per_s.max(1) as f64
}

/// RFC 3339, to the second.
pub(super) fn rfc3339(at_s: i64) -> String {
    Timestamp::from_second(at_s).map_or_else(|_| at_s.to_string(), |at| at.to_string())
}

impl History {
    /// What is asked for of what was recorded.
    pub fn of(source: String, recorded: &Recorded, view: &View) -> Self {
        let shown = match view.show {
            Some(shown) => vec![shown],
            None => {
                vec![Shown::Capacity, Shown::Allocated, Shown::Waiting, Shown::Used, Shown::Stranded]
            }
        };
        let mut series = Vec::new();
        for shown in shown {
            series.extend(lines(recorded, view, shown));
        }
        Self {
            source,
            seen: Seen::of(recorded, view.since_s, view.until_s, view.step_s),
            step_s: view.step_s,
            series,
            stranded_since: view.stranded_since_s.map(|since_s| rfc3339(since_s.max(view.since_s))),
            warnings: Vec::new(),
        }
    }

    /// One row for each series, and one for each gap.
    pub fn tables(&self) -> Vec<Table> {
        let series = Table {
            title: String::new(),
            columns: vec![
                Column::text("WHAT"),
                Column::text("POOL"),
                Column::text("OWNER"),
                Column::number("MEAN GPUS"),
                Column::number("MAX GPUS"),
                Column::number("GPU HOURS"),
                Column::text("OVER TIME").wide(),
            ],
            rows: self
                .series
                .iter()
                .map(|series| {
                    vec![
                        series.what.word().to_owned(),
                        pool_name(&series.pool, series.serverless),
                        series.owner.clone(),
                        format!("{:.2}", series.mean_gpus),
                        format!("{:.2}", series.max_gpus),
                        format!("{:.2}", series.gpu_hours),
                        sparkline(&series.points),
                    ]
                })
                .collect(),
        };
        let mut tables = vec![series];
        if !self.seen.gaps.is_empty() {
            tables.push(gap_table(&self.seen.gaps));
        }
        tables
    }

    /// One row for each point, as the preset `record` of [`crate::trace`] reads it: who has nothing any more is zero, and of a gap there is no row.
    pub fn points(&self) -> Table {
        let mut rows: Vec<(i64, &Series, f64)> = Vec::new();
        for series in &self.series {
            rows.extend(series.points.iter().map(|point| (point.at_s, series, point.mean_gpus)));
        }
        rows.sort_by_key(|(at_s, ..)| *at_s);
        Table {
            title: String::new(),
            columns: vec![
                Column::text("AT"),
                Column::text("POOL"),
                Column::text("OWNER"),
                Column::number("GPUS"),
            ],
            rows: rows
                .into_iter()
                .map(|(at_s, series, gpus)| {
                    vec![rfc3339(at_s), series.pool.clone(), series.owner.clone(), decimal(gpus)]
                })
                .collect(),
        }
    }
}

/// As many digits as it takes, at most four behind the point.
fn decimal(value: f64) -> String {
    let text = format!("{value:.4}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// A pool's name as tables show it.
pub(super) fn pool_name(pool: &str, serverless: bool) -> String {
    if serverless { format!("{pool} (serverless)") } else { pool.to_owned() }
}

pub(super) fn gap_table(gaps: &[Gap]) -> Table {
    Table {
        title: "Not seen, and counted nowhere:".to_owned(),
        columns: vec![Column::text("SINCE"), Column::text("UNTIL"), Column::number("HOURS")],
        rows: gaps
            .iter()
            .map(|gap| {
                vec![gap.since.clone(), gap.until.clone(), format!("{:.2}", gpus(gap.unseen_s * 1000, 3600))]
            })
            .collect(),
    }
}

/// The series of one kind, by pool and owner.
fn lines(recorded: &Recorded, view: &View, shown: Shown) -> Vec<Series> {
    type Line = (BTreeMap<i64, (i64, i64, i64)>, i64);
    let mut lines: BTreeMap<(bool, &str, &str), Line> = BTreeMap::new();
    let wanted = |key: &Key| {
        shown.has(key.what)
            && (key.what.is_nobodys()
                || view.namespace.as_deref().is_none_or(|namespace| namespace == key.owner.namespace))
    };
    for (key, cells) in recorded.series.iter().filter(|(key, _)| wanted(key)) {
        let name = (key.pool.serverless, key.pool.name.as_str(), view.by.name(&key.owner));
        let (points, sum) = lines.entry(name).or_default();
        for cell in cells {
            let (milli_gpu_s, least, most) = points.entry(cell.end_s).or_default();
            *milli_gpu_s += cell.milli_gpu_s;
            // Of a sum no more is known than that it lies between the sums of these.
            *least += cell.least;
            *most += cell.most;
            *sum += cell.milli_gpu_s;
        }
    }
    // A cluster where nobody asked for anything was seen, too.
    if lines.is_empty() && shown == Shown::Demand {
        lines.insert((false, "", ""), Line::default());
    }
    let seen_s: i64 = recorded.steps.iter().map(|step| step.seen_s).sum();
    lines
        .into_iter()
        .map(|((serverless, pool, owner), (values, sum))| Series {
            what: shown,
            pool: pool.to_owned(),
            serverless,
            owner: owner.to_owned(),
            mean_gpus: gpus(sum, seen_s),
            max_gpus: gpus(values.values().map(|(.., most)| *most).max().unwrap_or(0), 1),
            gpu_hours: gpus(sum, 3600),
            points: recorded
                .steps
                .iter()
                .map(|step| {
                    let (milli_gpu_s, least, most) = values.get(&step.end_s).copied().unwrap_or_default();
                    Point {
                        at_s: step.end_s - step.len_s,
                        len_s: step.len_s,
                        mean_gpus: gpus(milli_gpu_s, step.seen_s),
                        min_gpus: gpus(least, 1),
                        max_gpus: gpus(most, 1),
                    }
                })
                .collect(),
        })
        .collect()
}

/// A plot of one line of text: the most of each of its columns.
fn sparkline(points: &[Point]) -> String {
    const COLUMNS: usize = 48;
    const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let most = points.iter().map(|point| point.mean_gpus).fold(0.0, f64::max);
    let width = points.len().div_ceil(COLUMNS).max(1);
    points
        .chunks(width)
        .map(|chunk| {
            let value = chunk.iter().map(|point| point.mean_gpus).fold(0.0, f64::max);
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "from 0 to 7")]
            let bar = if most > 0.0 { (value / most * 7.0).round() as usize } else { 0 };
            BARS[bar.min(7)]
        })
        .collect()
}
