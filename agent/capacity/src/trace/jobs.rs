//! Rows that are jobs.

use std::{collections::HashMap, sync::Arc};

use csv::ByteRecord;

use super::{
    error::Error,
    preset::{Columns, Key, Preset},
    progress::Progress,
    rows::Rows,
    value::{self, Times, Tres, Unusable},
    warnings::{Kind, Warnings},
    window::{Came, Timed, Window},
};
use crate::job::{Job, Request, WHOLE_GPU};

/// Rows that are sorted in memory: 64 MiB of jobs.
const WINDOW: usize = 1 << 19;

/// Different names that are kept once; beyond, each job has its own.
const NAMES: usize = 1 << 16;
const NAME: usize = 256;

/// The jobs of a trace by submit time, rows of one time in the order of their files.
#[derive(Debug)]
pub struct Jobs {
    files: Vec<File>,
    window: Window<Job>,
    decoder: Decoder,
    reports: Reports,
    progress: Progress,
    /// All rows are in the window, or an error was given.
    ended: bool,
    given: u64,
}

#[derive(Debug)]
struct File {
    rows: Rows,
    columns: Columns,
    /// The next job of the file, for which its rows are looked through.
    ahead: Option<Job>,
}

/// Where warnings go.
#[derive(Debug)]
pub(super) struct Reports {
    pub(super) warnings: Warnings,
    pub(super) strict: bool,
}

impl Reports {
    /// Counts a defect, or ends in it where reading is strict.
    pub(super) fn warn(
        &mut self,
        kind: Kind,
        file: &str,
        line: u64,
        what: impl FnOnce() -> String,
    ) -> Result<(), Error> {
        if self.strict {
            return Err(Error::Strict { file: file.to_owned(), line, what: what() });
        }
        self.warnings.add(kind, file, line, what);
        Ok(())
    }
}

/// Why a row gives nothing.
#[derive(Debug)]
pub(super) struct Skipped {
    pub(super) kind: Kind,
    pub(super) key: Key,
    pub(super) what: &'static str,
}

impl Timed for Job {
    fn at_s(&self) -> f64 {
        self.submit_s
    }
}

impl Jobs {
    pub(super) fn new(
        files: Vec<(Rows, Columns)>,
        times: Times,
        reports: Reports,
        progress: Progress,
    ) -> Result<Self, Error> {
        let mut jobs = Self {
            files: Vec::new(),
            window: Window::new(WINDOW),
            decoder: Decoder {
                times,
                names: HashMap::new(),
                models: HashMap::new(),
                any: Arc::from([]),
                none: Arc::from(""),
            },
            reports,
            progress,
            ended: false,
            given: 0,
        };
        for (rows, columns) in files {
            let mut file = File { rows, columns, ahead: None };
            file.advance(&mut jobs.decoder, &mut jobs.reports, &mut jobs.progress)?;
            jobs.files.push(file);
        }
        Ok(jobs)
    }

    /// What was wrong so far.
    pub fn warnings(&self) -> Warnings {
        self.reports.warnings.clone()
    }

    /// Bytes read so far, as they lie in the files.
    pub fn bytes_read(&self) -> u64 {
        self.progress.read()
    }

    /// Bytes in all, where the files tell.
    pub fn bytes_total(&self) -> Option<u64> {
        self.progress.total()
    }

    /// Reads into the window until it is full or all is read.
    fn fill(&mut self) -> Result<(), Error> {
        while !self.window.is_full() {
            let earliest = self
                .files
                .iter_mut()
                .filter(|file| file.ahead.is_some())
                .min_by(|a, b| a.next_s().total_cmp(&b.next_s()));
            let Some(file) = earliest else {
                self.ended = true;
                return Ok(());
            };
            let Some(job) = file.ahead.take() else { continue };
            let line = job.line;
            let name = &file.rows.file;
            match self.window.push(job) {
                Came::InOrder => {}
                Came::Late => self
                    .reports
                    .warn(Kind::OutOfOrder, name, line, || "submitted before the row above it".to_owned())?,
                Came::TooLate => {
                    return Err(Error::Unsorted { file: name.to_string(), line, limit: self.window.limit() });
                }
            }
            file.advance(&mut self.decoder, &mut self.reports, &mut self.progress)?;
        }
        Ok(())
    }
}

impl Iterator for Jobs {
    type Item = Result<Job, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        if !self.ended
            && let Err(error) = self.fill()
        {
            self.ended = true;
            self.files.clear();
            self.window = Window::new(0);
            self.given = 1;
            return Some(Err(error));
        }
        if let Some(job) = self.window.pop() {
            self.given += 1;
            return Some(Ok(job));
        }
        self.progress.end();
        if self.given == 0 {
            self.given = 1;
            return Some(Err(Error::NoRows {
                file: self.files.first().map(|file| file.rows.file.to_string()).unwrap_or_default(),
                first: self.reports.warnings.iter().next().map(ToString::to_string),
            }));
        }
        None
    }
}

impl File {
    fn next_s(&self) -> f64 {
        self.ahead.as_ref().map_or(f64::INFINITY, |job| job.submit_s)
    }

    /// Looks for the next row that is a job.
    fn advance(
        &mut self,
        decoder: &mut Decoder,
        reports: &mut Reports,
        progress: &mut Progress,
    ) -> Result<(), Error> {
        let file = self.rows.file.clone();
        while let Some((line, row)) = self.rows.next()? {
            progress.row();
            match decoder.job(line, row, &self.columns) {
                Ok(Some(job)) => {
                    if job.duration_s == 0.0 {
                        reports.warn(Kind::ZeroDuration, &file, line, || "duration is 0".to_owned())?;
                    }
                    self.ahead = Some(job);
                    return Ok(());
                }
                Ok(None) => {}
                Err(skipped) => reports.skip(&file, line, row, &self.columns, &skipped)?,
            }
        }
        Ok(())
    }
}

impl Reports {
    /// A row that gives nothing.
    pub(super) fn skip(
        &mut self,
        file: &str,
        line: u64,
        row: &ByteRecord,
        columns: &Columns,
        skipped: &Skipped,
    ) -> Result<(), Error> {
        self.warn(skipped.kind, file, line, || {
            let cell = columns.of(skipped.key).and_then(|column| row.get(column)).unwrap_or_default();
            let mut text: String = String::from_utf8_lossy(cell).chars().take(40).collect();
            if text.len() < cell.len() {
                text.push('…');
            }
            format!("{} {text:?} is {}", skipped.key.name(), skipped.what)
        })
    }
}

/// Makes jobs of rows. Names are kept once.
#[derive(Debug)]
struct Decoder {
    times: Times,
    names: HashMap<Box<[u8]>, Arc<str>>,
    models: HashMap<Box<[u8]>, Arc<[Arc<str>]>>,
    any: Arc<[Arc<str>]>,
    none: Arc<str>,
}

/// A row's cells by key.
#[derive(Clone, Copy)]
pub(super) struct Cells<'a> {
    pub(super) row: &'a ByteRecord,
    pub(super) columns: &'a Columns,
}

impl<'a> Cells<'a> {
    /// The cell, where there is such a column; empty where the row is too short.
    pub(super) fn get(self, key: Key) -> Option<&'a [u8]> {
        self.columns.of(key).map(|column| self.row.get(column).unwrap_or_default())
    }

    /// The cell's value, where there is one.
    fn read<T>(
        self,
        key: Key,
        kind: Kind,
        read: impl FnOnce(&'a [u8]) -> Result<T, Unusable>,
    ) -> Result<Option<T>, Skipped> {
        match self.get(key).map(read) {
            None | Some(Err(Unusable::Missing)) => Ok(None),
            Some(Ok(value)) => Ok(Some(value)),
            Some(Err(Unusable::Not(what))) => Err(Skipped { kind, key, what }),
        }
    }
}

impl Decoder {
    /// The job of a row; nothing where the row is a part of a job.
    fn job(&mut self, line: u64, row: &ByteRecord, columns: &Columns) -> Result<Option<Job>, Skipped> {
        let cells = Cells { row, columns };
        if columns.preset == Preset::Sacct && cells.get(Key::Id).is_some_and(|id| id.contains(&b'.')) {
            return Ok(None);
        }
        if row.len() <= columns.last {
            return Err(Skipped {
                kind: Kind::ShortRow,
                key: Key::Submit,
                what: "in a row with cells missing",
            });
        }
        let times = self.times;
        let submit_s = cells.read(Key::Submit, Kind::BadTime, |cell| times.at(cell))?.ok_or(Skipped {
            kind: Kind::BadTime,
            key: Key::Submit,
            what: "empty",
        })?;
        let duration_s = self.duration(cells, submit_s)?;
        let (pods, request) = self.request(cells)?;
        Ok(Some(Job {
            line,
            submit_s,
            duration_s,
            pods,
            gang: cells.read(Key::Gang, Kind::BadNumber, value::truth)?.unwrap_or(pods > 1),
            request,
            deadline_s: cells.read(Key::Deadline, Kind::BadTime, |cell| times.at(cell))?,
            priority: cells.read(Key::Priority, Kind::BadNumber, value::priority)?.unwrap_or(0),
            owner: self.name(cells.get(Key::Owner).unwrap_or_default()),
        }))
    }

    fn duration(&self, cells: Cells, submit_s: f64) -> Result<f64, Skipped> {
        let times = self.times;
        let long = cells.read(Key::Duration, Kind::BadTime, |cell| times.long(cell))?;
        let start = cells.read(Key::Start, Kind::BadTime, |cell| times.at(cell))?;
        let end = cells.read(Key::End, Kind::BadTime, |cell| times.at(cell))?;
        let negative = |key, what| Err(Skipped { kind: Kind::NegativeDuration, key, what });
        if let Some(end) = end
            && end < submit_s
        {
            return negative(Key::End, "before it was submitted");
        }
        // Slurm tells how long a job ran so far, and the end as unknown.
        let unfinished =
            cells.columns.preset == Preset::Sacct && cells.get(Key::End).is_some() && end.is_none();
        match (long, start, end) {
            _ if unfinished => {
                Err(Skipped { kind: Kind::Unfinished, key: Key::End, what: "no time: it still runs" })
            }
            (Some(long), ..) if long < 0.0 => negative(Key::Duration, "negative"),
            (Some(_), None, _) if never_ran(cells) => {
                Err(Skipped { kind: Kind::NeverRan, key: Key::Start, what: "empty: it never ran" })
            }
            (Some(long), ..) => Ok(long),
            (None, Some(start), Some(end)) if end < start => negative(Key::End, "before it started"),
            (None, Some(start), Some(end)) => Ok(end - start),
            (None, None, Some(_)) if cells.get(Key::Start).is_some() => {
                Err(Skipped { kind: Kind::NeverRan, key: Key::Start, what: "empty: it never ran" })
            }
            (None, None, Some(end)) => Ok(end - submit_s),
            (None, _, None) if cells.get(Key::End).is_some() => {
                Err(Skipped { kind: Kind::Unfinished, key: Key::End, what: "no time: it has no end" })
            }
            (None, _, None) => {
                Err(Skipped { kind: Kind::Unfinished, key: Key::Duration, what: "no duration" })
            }
        }
    }

    /// How many pods, and what each asks for.
    fn request(&mut self, cells: Cells) -> Result<(u32, Request), Skipped> {
        let number = |key| cells.read(key, Kind::BadNumber, value::count);
        let mut pods = number(Key::Pods)?.unwrap_or(1).max(1);
        let mut request = Request { models: Arc::clone(&self.any), ..Request::gpus(1) };
        if let Some(milli) = number(Key::GpuMilli)? {
            if milli > WHOLE_GPU {
                return Err(Skipped {
                    kind: Kind::BadNumber,
                    key: Key::GpuMilli,
                    what: "more than 1000: name whole GPUs in gpus",
                });
            }
            request.gpu_milli = milli;
        }
        if let Some(gpus) = number(Key::Gpus)? {
            request.gpus = gpus;
        } else if let Some(total) = number(Key::TotalGpus)? {
            (pods, request.gpus) = spread(total, pods);
        } else if let Some(tres) = tres(cells)? {
            pods = pods.max(tres.nodes);
            let (spread_over, gpus) = spread(tres.gpus, pods);
            request.gpus = gpus;
            request.cpu_milli = milli(tres.cpu / f64::from(pods));
            request.memory_mib = whole(tres.memory_mib / f64::from(pods));
            pods = spread_over;
            if let Some(model) = tres.model {
                request.models = self.models(model);
            }
        }
        if request.gpu_milli == 0 {
            request.gpus = 0;
        }
        if request.gpus == 0 {
            request.gpu_milli = WHOLE_GPU;
        }
        if let Some(cores) = cells.read(Key::Cpu, Kind::BadNumber, value::quantity)? {
            request.cpu_milli = milli(cores);
        }
        if let Some(cpu_milli) = cells.read(Key::CpuMilli, Kind::BadNumber, value::number)? {
            request.cpu_milli = whole(cpu_milli);
        }
        if let Some(bytes) = cells.read(Key::Memory, Kind::BadNumber, value::quantity)? {
            request.memory_mib = whole((bytes / (1024.0 * 1024.0)).ceil());
        }
        if let Some(mib) = cells.read(Key::MemoryMib, Kind::BadNumber, value::number)? {
            request.memory_mib = whole(mib);
        }
        if let Some(models) = cells.get(Key::Models) {
            request.models = self.models(models);
        }
        Ok((pods, request))
    }

    fn name(&mut self, name: &[u8]) -> Arc<str> {
        let name = name.trim_ascii();
        if name.is_empty() {
            return Arc::clone(&self.none);
        }
        if let Some(known) = self.names.get(name) {
            return Arc::clone(known);
        }
        let made: Arc<str> = Arc::from(String::from_utf8_lossy(name).as_ref());
        if self.names.len() < NAMES && name.len() <= NAME {
            self.names.insert(Box::from(name), Arc::clone(&made));
        }
        made
    }

    fn models(&mut self, cell: &[u8]) -> Arc<[Arc<str>]> {
        let cell = cell.trim_ascii();
        if cell.is_empty() {
            return Arc::clone(&self.any);
        }
        if let Some(known) = self.models.get(cell) {
            return Arc::clone(known);
        }
        let made: Arc<[Arc<str>]> = cell
            .split(|&byte| byte == b'|')
            .filter(|model| !model.trim_ascii().is_empty())
            .map(|model| self.name(model))
            .collect();
        if self.models.len() < NAMES && cell.len() <= NAME {
            self.models.insert(Box::from(cell), Arc::clone(&made));
        }
        made
    }
}

/// Slurm's jobs that were cancelled while they waited have an elapsed time of 0 and no start.
fn never_ran(cells: Cells) -> bool {
    cells.columns.preset == Preset::Sacct && cells.get(Key::Start).is_some()
}

fn tres(cells: Cells<'_>) -> Result<Option<Tres<'_>>, Skipped> {
    for key in [Key::Tres, Key::AskedTres] {
        if cells.get(key).is_some_and(|cell| !cell.is_empty()) {
            return cells.read(key, Kind::BadNumber, Tres::of);
        }
    }
    Ok(None)
}

/// `total` GPUs over `pods`; where they don't divide evenly, a pod for each GPU.
fn spread(total: u32, pods: u32) -> (u32, u32) {
    if total.is_multiple_of(pods) { (pods, total / pods) } else { (total, 1) }
}

fn milli(cores: f64) -> u64 {
    whole(cores * 1000.0)
}

/// Not negative, and far below 2⁶⁴: see [`value::number`].
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturates")]
fn whole(number: f64) -> u64 {
    number.round() as u64
}
