//! Rows that are demand over time, and the sum of several files.

use super::{
    error::Error,
    key::Key,
    layout::{Columns, Counted},
    reports::{Cells, Reading, Skipped, shown},
    rows::Rows,
    value::{self, Times, Unusable},
    warnings::{Kind, Warnings},
    window::{Came, Timed, Window},
};
use crate::job::Demand;

/// Rows of each file that are sorted in memory: 2 MiB.
const WINDOW: usize = 1 << 16;

/// So many columns are named where all are summed.
const SHOWN: usize = 20;

/// How often a step must have been the usual one before a longer one is a gap.
const USUAL: u32 = 8;

/// Demand over time, summed over all files. A file counts from its first to its last sample.
#[derive(Debug)]
pub struct Samples {
    files: Vec<File>,
    reading: Reading,
    step: Step,
    /// What was owned from when on, where a file beside the trace tells it.
    owned: Vec<Demand>,
}

#[derive(Debug)]
struct File {
    rows: Rows,
    columns: Columns,
    window: Window<Demand>,
    /// All its rows are in the window.
    read: bool,
    /// Its next sample.
    ahead: Option<Demand>,
    /// What it demands now; nothing before its first sample and after its last.
    now: Option<f64>,
    begun_s: f64,
}

/// The usual time between two samples, by majority, and gaps.
#[derive(Debug, Default)]
struct Step {
    last_s: Option<f64>,
    usual_s: f64,
    votes: u32,
}

impl Timed for Demand {
    fn at_s(&self) -> f64 {
        self.at_s
    }
}

impl Samples {
    pub(super) fn new(
        files: Vec<(Rows, Columns)>,
        owned: Vec<Demand>,
        mut reading: Reading,
    ) -> Result<Self, Error> {
        let mut begun = Vec::new();
        for (rows, columns) in files {
            if columns.wide_assumed {
                reading.reports.warn(Kind::Assumed, &rows.file, rows.header_line(), || {
                    let series = (0..rows.header.len()).filter(|at| columns.of(Key::At) != Some(*at));
                    let names: Vec<String> =
                        series.take(SHOWN).map(|at| shown(rows.header[at].as_bytes())).collect();
                    let more = if rows.header.len() - 1 > SHOWN { ", …" } else { "" };
                    format!(
                        "each column counts GPUs, and their sum is the demand, as --preset grafana says: {}{more}",
                        names.join(", ")
                    )
                })?;
            }
            let window = Window::new(WINDOW);
            let mut file =
                File { rows, columns, window, read: false, ahead: None, now: None, begun_s: f64::NAN };
            file.advance(&mut reading)?;
            file.begun_s = file.ahead.map_or(f64::NAN, |first| first.at_s);
            begun.push(file);
        }
        Ok(Self { files: begun, reading, step: Step::default(), owned })
    }

    /// The first file's name.
    pub fn name(&self) -> &str {
        self.files.first().map_or("", |file| &file.rows.file)
    }

    /// Which GPUs are demanded, where the trace tells running from pending.
    pub fn counted(&self) -> Option<Counted> {
        let columns = &self.files.first()?.columns;
        columns.of(Key::Running).map(|_| columns.counted)
    }

    /// What was wrong so far.
    pub fn warnings(&self) -> Warnings {
        self.reading.reports.warnings.clone()
    }

    /// GPUs that were owned at the time of the sample that was read last, where a file beside the trace tells it.
    pub fn owned_gpus(&self) -> Option<f64> {
        let last_s = self.step.last_s?;
        self.owned.iter().rev().find(|owned| owned.at_s <= last_s).map(|owned| owned.gpus)
    }

    fn sample(&mut self) -> Result<Option<Demand>, Error> {
        let earliest = self
            .files
            .iter()
            .enumerate()
            .filter_map(|(index, file)| file.ahead.map(|ahead| (index, ahead)))
            .min_by(|(_, a), (_, b)| a.at_s.total_cmp(&b.at_s));
        let Some((first, Demand { line, at_s, .. })) = earliest else { return Ok(None) };
        let Self { files, reading, .. } = self;
        let mut continued = false;
        for file in files.iter_mut() {
            match file.ahead {
                Some(ahead) if same(ahead.at_s, at_s) => {
                    continued |= same(file.begun_s, at_s) && !file.columns.labelled;
                    file.now = Some(ahead.gpus);
                    file.ahead = None;
                    file.advance(reading)?;
                }
                Some(_) => {}
                None => file.now = None,
            }
        }
        // A trace split between two rows of one time: the later one counts, as it does in one file.
        if continued {
            for file in files.iter_mut() {
                if file.now.is_some() && file.ahead.is_none() && file.begun_s < at_s {
                    file.now = None;
                    let line = file.rows.line();
                    reading.reports.warn(Kind::Duplicate, &file.rows.file, line, || {
                        "another file begins at the time of this row".to_owned()
                    })?;
                }
            }
        }
        let mut demands = files.iter().filter_map(|file| file.now);
        let gpus = demands.next().unwrap_or(0.0) + demands.sum::<f64>();
        let name = files[first].rows.file.clone();
        if let Some(gap_s) = self.step.gap(at_s) {
            let usual_s = self.step.usual_s;
            self.reading.reports.warn(Kind::Gap, &name, line, || {
                format!("{gap_s} s since the sample before, usually {usual_s} s")
            })?;
        }
        Ok(Some(Demand { line, at_s, gpus }))
    }
}

impl Step {
    /// How long nothing was sampled, where that is a gap.
    fn gap(&mut self, at_s: f64) -> Option<f64> {
        let step_s = at_s - self.last_s.replace(at_s)?;
        if (step_s - self.usual_s).abs() <= self.usual_s * 0.01 {
            self.votes = self.votes.saturating_add(1);
            return None;
        }
        if self.votes >= USUAL && step_s > self.usual_s * 1.5 {
            return Some(step_s);
        }
        if self.votes == 0 {
            self.usual_s = step_s;
        }
        self.votes = self.votes.saturating_sub(1);
        None
    }
}

impl Iterator for Samples {
    type Item = Result<Demand, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.reading.ended {
            return None;
        }
        match self.sample() {
            Ok(Some(sample)) => {
                self.reading.given = true;
                Some(Ok(sample))
            }
            Ok(None) => {
                let first = self.files.first().map_or("", |file| &file.rows.file);
                self.reading.end(first).map(Err)
            }
            Err(error) => Some(Err(self.reading.fail(error))),
        }
    }
}

impl File {
    /// Looks for the next sample: all rows of its time.
    fn advance(&mut self, reading: &mut Reading) -> Result<(), Error> {
        self.fill(reading)?;
        let Some(mut sample) = self.window.pop() else { return Ok(()) };
        loop {
            self.fill(reading)?;
            if self.window.first_s() != Some(sample.at_s) {
                break;
            }
            let Some(same) = self.window.pop() else { break };
            if self.columns.labelled {
                sample.gpus += same.gpus;
            } else {
                reading.reports.warn(Kind::Duplicate, &self.rows.file, same.line, || {
                    "the time of the row before; the later one counts".to_owned()
                })?;
                sample.gpus = same.gpus;
            }
        }
        self.ahead = Some(sample);
        Ok(())
    }

    /// Reads into the window until it is full or all is read.
    fn fill(&mut self, reading: &mut Reading) -> Result<(), Error> {
        let Reading { times, reports, progress, .. } = reading;
        let Self { rows, columns, window, read, .. } = self;
        let name = rows.file.clone();
        while !*read && !window.is_full() {
            let Some((line, row)) = rows.next()? else {
                *read = true;
                break;
            };
            progress.row();
            let sample = sample(line, Cells { row, columns }, times);
            columns.check_units(&name, line)?;
            match sample {
                Ok(sample) => match window.push(sample, 0) {
                    Came::InOrder => {}
                    Came::Late => reports
                        .warn(Kind::OutOfOrder, &name, line, || "earlier than the row above it".to_owned())?,
                    Came::TooLate => {
                        return Err(Error::Unsorted { file: name.to_string(), line, limit: window.limit() });
                    }
                },
                Err(skipped) => reports.skip(&name, line, row, columns, &skipped)?,
            }
        }
        Ok(())
    }
}

fn sample(line: u64, cells: Cells, times: &Times) -> Result<Demand, Skipped> {
    let columns = cells.columns;
    columns.fits(cells.row)?;
    // Where a row has all of its time, the next has another.
    let last_s = columns.last_s.get();
    let not_before_s = if columns.labelled { last_s } else { last_s.next_up() };
    let missing = Skipped { kind: Kind::BadTime, key: Some(Key::At), what: Unusable::Missing.words() };
    let at_s = cells.at(times, Key::At, not_before_s)?.ok_or(missing)?;
    columns.last_s.set(at_s);
    let skipped = |key| move |why: Unusable| Skipped { kind: Kind::BadNumber, key, what: why.words() };
    let number = |key| value::number(cells.get(key).unwrap_or_default()).map_err(skipped(Some(key)));
    let gpus = if columns.wide {
        total(cells).map_err(skipped(None))?
    } else if columns.of(Key::Running).is_some() {
        let running = number(Key::Running)?;
        match columns.counted {
            Counted::All => running + number(Key::Pending)?,
            Counted::Running => running,
        }
    } else {
        number(Key::Gpus)?
    };
    Ok(Demand { line, at_s, gpus })
}

/// The sum of all series. One without a value has none; where none has one, nothing is known.
fn total(cells: Cells) -> Result<f64, Unusable> {
    let mut sum = Err(Unusable::Not("no series has a value"));
    for cell in cells.series() {
        match value::number(cell) {
            Ok(number) => sum = Ok(sum.unwrap_or(0.0) + number),
            Err(Unusable::Missing) => {}
            Err(why) => return Err(why),
        }
    }
    sum
}

/// Times are finite, and 0 has one sign: see [`Times::at`].
fn same(a: f64, b: f64) -> bool {
    a.total_cmp(&b).is_eq()
}
