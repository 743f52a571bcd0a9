//! What a page shows, apart from how: facts, and sections of words, a plot and a table. Values only; [`super::render`] draws them.

use jiff::Timestamp;
use serde::Serialize;

use crate::output::Table;

/// How many points a line may have: a screen has no more columns, and a page stays quick.
pub const POINTS: usize = 2000;
/// How many bars there may be; what is beyond is added up in one.
pub const BARS: usize = 30;

/// One page.
#[derive(Debug, Clone)]
pub struct Page {
    /// What it is: "Report", "Simulation".
    pub title: String,
    /// Of what: a cluster, a trace, a pool.
    pub subtitle: String,
    /// When its numbers were taken.
    pub generated_at: Timestamp,
    /// The few numbers to know, in their order.
    pub facts: Vec<Fact>,
    /// What could not be seen, or should be doubted: above everything else.
    pub warnings: Vec<String>,
    /// The rest, in its order.
    pub sections: Vec<Section>,
}

/// A number to know.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Fact {
    /// What it is.
    pub label: String,
    /// The number with its unit.
    pub value: String,
    /// What to compare it with, in a few words; may be empty.
    pub detail: String,
    /// Whether it asks for attention.
    pub alarming: bool,
}

impl Fact {
    /// A number, its name, and a few words on it.
    pub fn new(label: impl Into<String>, value: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { label: label.into(), value: value.into(), detail: detail.into(), alarming: false }
    }

    /// The same, asking for attention where `alarming`.
    #[must_use]
    pub fn alarming(self, alarming: bool) -> Self {
        Self { alarming, ..self }
    }
}

/// A part of a page under a heading.
#[derive(Debug, Clone, Default)]
pub struct Section {
    /// What it is called in the list of contents; the heading's words where it is empty.
    pub name: String,
    /// Its heading: what was found, where there is something to find.
    pub heading: String,
    /// Paragraphs below it.
    pub text: Vec<String>,
    /// Where there is more of it, and what that is called.
    pub link: Option<(String, String)>,
    /// A plot, where there is something to draw.
    pub plot: Option<Plot>,
    /// The same in numbers; none where it has no columns.
    pub table: Table,
}

/// A drawing, with what it shows in a sentence.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Plot {
    /// The sentence below it, which is also what a screen reader says of it.
    pub caption: String,
    /// What is drawn.
    #[serde(flatten)]
    pub drawing: Drawing,
}

/// What is drawn.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Drawing {
    /// Values over time, or over anything else that goes on.
    Lines(Lines),
    /// A cost against a choice.
    Curve(Curve),
    /// How many wait how long: the share of jobs that have started by then.
    Distribution(Distribution),
    /// A value for each row and column.
    Heat(Heat),
    /// Amounts side by side, each made of parts.
    Bars(Bars),
}

/// Along a side of a plot.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Axis {
    /// What is measured.
    pub name: String,
    /// In what.
    #[serde(flatten)]
    pub unit: Unit,
}

impl Axis {
    /// What is measured in what.
    pub fn new(name: impl Into<String>, unit: Unit) -> Self {
        Self { name: name.into(), unit }
    }

    /// Money.
    pub fn money(name: impl Into<String>, currency: impl Into<String>) -> Self {
        Self::new(name, Unit::Money { currency: currency.into() })
    }
}

/// How a number is written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "unit", rename_all = "snake_case")]
pub enum Unit {
    /// As it is.
    Number,
    /// GPUs.
    Gpus,
    /// Hundredths: 0 to 100.
    Percent,
    /// Seconds, written as s, min, h or d.
    Duration,
    /// Seconds since 1970, in UTC.
    Time,
    /// An amount of money.
    Money {
        /// ISO 4217.
        currency: String,
    },
}

/// What a line, a bar or a part of one stands for: the same has the same colour and pattern in all plots.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// What was asked for.
    Demand,
    /// What there is.
    Capacity,
    /// What runs on, or is paid for, machines of one's own.
    Owned,
    /// What runs on, or is paid for, rented ones.
    Rented,
    /// Owned and rented together.
    Total,
    /// What does work.
    Used,
    /// What is held and does nothing.
    Idle,
    /// What is free and not usable.
    Stranded,
    /// What is free and usable.
    Free,
    /// What waits.
    Waiting,
    /// Anything else.
    Other,
}

/// Values over time.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Lines {
    /// From left to right.
    pub x: Axis,
    /// From the bottom up.
    pub y: Axis,
    /// Each a line.
    pub series: Vec<Series>,
}

/// A line.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Series {
    /// Its name in the legend.
    pub name: String,
    /// What it stands for.
    pub role: Role,
    /// Whether a value holds until the next, rather than leading to it.
    pub stepped: bool,
    /// Where and how much, in order; `None` is a gap.
    pub points: Vec<(f64, Option<f64>)>,
    /// Where, least and greatest: drawn behind the line; empty where there is nothing to tell.
    pub band: Vec<(f64, f64, f64)>,
}

impl Series {
    /// A line through `points`. Where there are more than [`POINTS`], means over equal lengths with a band from the least to the greatest.
    pub fn new(name: impl Into<String>, role: Role, points: Vec<(f64, Option<f64>)>) -> Self {
        let (points, band) = if points.len() <= POINTS { (points, Vec::new()) } else { thinned(&points) };
        Self { name: name.into(), role, stepped: false, points, band }
    }

    /// The same, each value holding until the next.
    #[must_use]
    pub fn stepped(self) -> Self {
        Self { stepped: true, ..self }
    }
}

type Points = Vec<(f64, Option<f64>)>;

fn thinned(points: &[(f64, Option<f64>)]) -> (Points, Vec<(f64, f64, f64)>) {
    let (mut means, mut band) = (Vec::with_capacity(POINTS), Vec::with_capacity(POINTS));
    for part in points.chunks(points.len().div_ceil(POINTS)) {
        let at = part[0].0;
        let values: Vec<f64> =
            part.iter().filter_map(|point| point.1).filter(|value| value.is_finite()).collect();
        if values.is_empty() {
            means.push((at, None));
            continue;
        }
        #[expect(clippy::cast_precision_loss, reason = "a few thousand at most")]
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        let least = values.iter().copied().fold(f64::INFINITY, f64::min);
        let greatest = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        means.push((at, Some(mean)));
        band.push((at, least, greatest));
    }
    (means, band)
}

/// A cost against a choice.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Curve {
    /// The choice.
    pub x: Axis,
    /// The cost.
    pub y: Axis,
    /// The whole, and its parts where they are known.
    pub series: Vec<Series>,
    /// From and to where it costs nearly the same.
    pub flat: Option<Range>,
    /// Where the optimum lies with some confidence.
    pub interval: Option<Range>,
    /// Places to see: the optimum, what is there today.
    pub marks: Vec<Mark>,
}

/// A part of an axis.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Range {
    /// What it means.
    pub label: String,
    /// Where it begins.
    pub from: f64,
    /// Where it ends.
    pub to: f64,
}

/// A place on an axis.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Mark {
    /// What it is.
    pub label: String,
    /// Where.
    pub at: f64,
    /// Whether it is what the page is about.
    pub main: bool,
}

/// How many wait how long.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Distribution {
    /// What is distributed: durations are drawn on a logarithmic scale from a second.
    pub x: Axis,
    /// Whose share.
    pub y: Axis,
    /// Each a growing line of (value, per cent of all that have no more).
    pub series: Vec<Series>,
    /// Percentiles to see.
    pub marks: Vec<Mark>,
}

/// The points of a [`Distribution`] of `values`: at most [`POINTS`].
pub fn cumulative(values: &[f64]) -> Vec<(f64, Option<f64>)> {
    let mut sorted: Vec<f64> = values.iter().copied().filter(|value| value.is_finite()).collect();
    sorted.sort_by(f64::total_cmp);
    let count = sorted.len();
    let step = count.div_ceil(POINTS / 2).max(1);
    #[expect(clippy::cast_precision_loss, reason = "a share")]
    let share = |upto: usize| Some(upto as f64 / count as f64 * 100.0);
    let mut points = Vec::new();
    for at in (0..count).step_by(step).chain(count.checked_sub(1)) {
        // Equal values are one step: all of them are no more than themselves.
        let upto = sorted.partition_point(|&value| value <= sorted[at]);
        if points.last().is_none_or(|&(last, _)| last < sorted[at]) {
            points.push((sorted[at], share(upto)));
        }
    }
    points
}

/// A value for each row and column.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Heat {
    /// What the columns are.
    pub x: Axis,
    /// Where each column stands, on `x`.
    pub columns: Vec<f64>,
    /// What each column is called, where it is no number; else none.
    pub column_names: Vec<String>,
    /// What each row is; from the top.
    pub rows: Vec<String>,
    /// What a cell measures.
    pub value: Axis,
    /// For each row as many cells as there are columns; `None` where nothing is known.
    pub cells: Vec<Vec<Option<f64>>>,
}

/// Amounts side by side.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Bars {
    /// How the amounts are measured.
    pub value: Axis,
    /// Whose they are; from the top.
    pub names: Vec<String>,
    /// What each is made of, in order.
    pub parts: Vec<Part>,
}

/// What a bar is made of.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Part {
    /// Its name in the legend.
    pub name: String,
    /// What it stands for.
    pub role: Role,
    /// How much of it, for each of [`Bars::names`].
    pub values: Vec<f64>,
}

impl Bars {
    /// The greatest first, and those beyond [`BARS`] added up in one.
    pub fn greatest_first(&mut self) {
        let total = |bar: usize| self.parts.iter().map(|part| part.values[bar]).sum::<f64>();
        let mut order: Vec<usize> = (0..self.names.len()).collect();
        order.sort_by(|&a, &b| total(b).total_cmp(&total(a)).then_with(|| self.names[a].cmp(&self.names[b])));
        let rest = if order.len() > BARS { order.split_off(BARS - 1) } else { Vec::new() };
        self.names = order.iter().map(|&bar| self.names[bar].clone()).collect();
        for part in &mut self.parts {
            let others: f64 = rest.iter().map(|&bar| part.values[bar]).sum();
            part.values = order.iter().map(|&bar| part.values[bar]).collect();
            if !rest.is_empty() {
                part.values.push(others);
            }
        }
        if !rest.is_empty() {
            self.names.push(format!("{} others", rest.len()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Axis, BARS, Bars, POINTS, Part, Role, Series, cumulative};

    #[test]
    fn a_long_line_keeps_its_extremes_and_gaps() {
        let mut points: Vec<(f64, Option<f64>)> = (0..100_000).map(|at| (f64::from(at), Some(1.0))).collect();
        points[77_777].1 = Some(9.0);
        for point in &mut points[20_000..30_000] {
            point.1 = None;
        }
        let series = Series::new("demand", Role::Demand, points);
        assert!(series.points.len() <= POINTS);
        assert!(series.band.iter().any(|band| band.2 > 8.9));
        assert!(series.points.iter().any(|point| point.1.is_none()));
        let short = Series::new("demand", Role::Demand, vec![(0.0, Some(1.0)), (1.0, None)]);
        assert!(short.points.len() == 2 && short.band.is_empty());
    }

    #[test]
    fn a_distribution_grows_to_all() {
        assert_eq!(cumulative(&[]), []);
        assert_eq!(cumulative(&[5.0, 0.0, 0.0, f64::NAN, 0.0]), [(0.0, Some(75.0)), (5.0, Some(100.0))]);
        let many: Vec<f64> = (0..1_000_000).map(f64::from).collect();
        let points = cumulative(&many);
        assert!(points.len() <= POINTS && points.is_sorted_by(|a, b| a.0 < b.0 && a.1 < b.1));
        assert_eq!(points.last().unwrap().1, Some(100.0));
    }

    #[test]
    fn bars_beyond_the_limit_are_added_up() {
        let mut bars = Bars {
            value: Axis::money("cost", "USD"),
            names: (0..40).map(|bar| format!("team-{bar:02}")).collect(),
            parts: vec![
                Part {
                    name: "owned".to_owned(),
                    role: Role::Owned,
                    values: (0..40).map(f64::from).collect(),
                },
                Part { name: "rented".to_owned(), role: Role::Rented, values: vec![1.0; 40] },
            ],
        };
        bars.greatest_first();
        assert_eq!(
            (bars.names.len(), bars.names[0].as_str(), bars.names[BARS - 1].as_str()),
            (BARS, "team-39", "11 others")
        );
        assert!((bars.parts[0].values.iter().sum::<f64>() - 780.0).abs() < 1e-9);
        assert!((bars.parts[1].values[BARS - 1] - 11.0).abs() < 1e-9);
    }
}
