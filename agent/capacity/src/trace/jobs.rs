//! Rows that are jobs.

use std::{
    collections::{HashSet, hash_map::RandomState},
    hash::BuildHasher as _,
};

use super::{
    decoder::Decoder,
    error::Error,
    key::Key,
    layout::Columns,
    reports::{Cells, Reading, shown},
    rows::Rows,
    warnings::{Kind, Warnings},
    window::{Came, Timed, Window},
};
use crate::job::Job;

/// Rows that are sorted in memory: 64 MiB of jobs.
const WINDOW: usize = 1 << 19;

/// A job that runs longer is doubted, in seconds.
const YEAR_S: f64 = 365.0 * 86_400.0;

/// So many ids that were read last are known, to twice as many: 20 MiB.
const IDS: usize = 1 << 19;

/// The jobs of a trace by submit time, rows of one time in the order of their files.
#[derive(Debug)]
pub struct Jobs {
    files: Vec<File>,
    window: Window<Job>,
    decoder: Decoder,
    ids: Box<Ids>,
    reading: Reading,
    /// All rows are in the window.
    read: bool,
}

#[derive(Debug)]
struct File {
    rows: Rows,
    columns: Columns,
    /// The next job of the file, for which its rows are looked through.
    ahead: Option<Job>,
}

/// Hashes of the ids that were read last.
#[derive(Debug, Default)]
struct Ids {
    hasher: RandomState,
    now: HashSet<u64>,
    before: HashSet<u64>,
}

impl Ids {
    /// Whether the id was there before.
    fn is_known(&mut self, id: &[u8]) -> bool {
        if self.now.len() >= IDS {
            self.before = std::mem::take(&mut self.now);
        }
        let hash = self.hasher.hash_one(id);
        !self.now.insert(hash) || self.before.contains(&hash)
    }
}

impl Timed for Job {
    fn at_s(&self) -> f64 {
        self.submit_s
    }
}

impl Jobs {
    pub(super) fn new(files: Vec<(Rows, Columns)>, mut reading: Reading) -> Result<Self, Error> {
        let mut decoder = Decoder::new(&reading);
        let mut ids = Box::<Ids>::default();
        let mut begun = Vec::new();
        for (rows, columns) in files {
            if !columns.tells_gpus() {
                reading.reports.warn(Kind::Assumed, &rows.file, rows.header_line(), || {
                    "no column tells how many GPUs a job asks for: 1 each".to_owned()
                })?;
            }
            if columns.of(Key::Submit).is_none() {
                reading.reports.warn(Kind::Assumed, &rows.file, rows.header_line(), || {
                    "no column tells when a job was submitted: when it started, so that how long it waited before is not seen".to_owned()
                })?;
            }
            let mut file = File { rows, columns, ahead: None };
            file.advance(&mut decoder, &mut ids, &mut reading)?;
            begun.push(file);
        }
        Ok(Self { files: begun, window: Window::new(WINDOW), decoder, ids, reading, read: false })
    }

    /// What was wrong so far.
    pub fn warnings(&self) -> Warnings {
        self.reading.reports.warnings.clone()
    }

    /// Reads into the window until it is full or all is read.
    fn fill(&mut self) -> Result<(), Error> {
        while !self.window.is_full() {
            let earliest = self
                .files
                .iter_mut()
                .enumerate()
                .filter(|(_, file)| file.ahead.is_some())
                .min_by(|(_, a), (_, b)| a.next_s().total_cmp(&b.next_s()));
            let Some((number, file)) = earliest else {
                self.read = true;
                return Ok(());
            };
            let Some(job) = file.ahead.take() else { continue };
            let line = job.line;
            let name = &file.rows.file;
            match self.window.push(job, number) {
                Came::InOrder => {}
                Came::Late => self
                    .reading
                    .reports
                    .warn(Kind::OutOfOrder, name, line, || "submitted before the row above it".to_owned())?,
                Came::TooLate => {
                    return Err(Error::Unsorted { file: name.to_string(), line, limit: self.window.limit() });
                }
            }
            file.advance(&mut self.decoder, &mut self.ids, &mut self.reading)?;
        }
        Ok(())
    }
}

impl Iterator for Jobs {
    type Item = Result<Job, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.reading.ended {
            return None;
        }
        if !self.read
            && let Err(error) = self.fill()
        {
            return Some(Err(self.reading.fail(error)));
        }
        if let Some(job) = self.window.pop() {
            self.reading.given = true;
            return Some(Ok(job));
        }
        let first = self.files.first().map_or("", |file| &file.rows.file);
        self.reading.end(first).map(Err)
    }
}

impl File {
    fn next_s(&self) -> f64 {
        self.ahead.as_ref().map_or(f64::INFINITY, |job| job.submit_s)
    }

    /// Looks for the next row that is a job.
    fn advance(&mut self, decoder: &mut Decoder, ids: &mut Ids, reading: &mut Reading) -> Result<(), Error> {
        let Reading { reports, progress, asks_only, .. } = reading;
        let file = self.rows.file.clone();
        while let Some((line, row)) = self.rows.next()? {
            progress.row();
            let job = decoder.job(line, row, &self.columns);
            if !*asks_only {
                self.columns.check_units(&file, line)?;
            }
            match job {
                Ok(Some(job)) => {
                    let id = Cells { row, columns: &self.columns }.get(Key::Id).unwrap_or_default();
                    if !id.is_empty() && ids.is_known(id) {
                        reports.warn(Kind::SameId, &file, line, || {
                            format!("id {:?} was there before", shown(id))
                        })?;
                    }
                    if decoder.one_pod() {
                        reports.warn(Kind::OnePod, &file, line, || {
                            format!(
                                "{} GPUs in one pod: --gpus-per-pod 8 makes a gang of several of it",
                                job.request.gpus
                            )
                        })?;
                    }
                    if job.duration_s > YEAR_S {
                        reports.warn(Kind::LongDuration, &file, line, || {
                            format!("it runs for {:.0} days", job.duration_s / 86_400.0)
                        })?;
                    }
                    if job.duration_s == 0.0 && !*asks_only {
                        reports.warn(Kind::ZeroDuration, &file, line, || "duration is 0".to_owned())?;
                    }
                    self.ahead = Some(job);
                    if decoder.guessed() {
                        reports.warn(Kind::Assumed, &file, line, || {
                            "times are too large to be seconds, and durations were taken for seconds: say --time-unit if they aren't".to_owned()
                        })?;
                    }
                    if decoder.replaced() {
                        reports.warn(Kind::BadText, &file, line, || "bytes are replaced".to_owned())?;
                    }
                    return Ok(());
                }
                Ok(None) => {}
                Err(skipped) => reports.skip(&file, line, row, &self.columns, &skipped)?,
            }
        }
        Ok(())
    }
}
