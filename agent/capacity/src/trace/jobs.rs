//! Rows that are jobs.

use super::{
    decoder::Decoder,
    error::Error,
    preset::Columns,
    progress::Progress,
    reports::Reports,
    rows::Rows,
    value::Times,
    warnings::{Kind, Warnings},
    window::{Came, Timed, Window},
};
use crate::job::Job;

/// Rows that are sorted in memory: 64 MiB of jobs.
const WINDOW: usize = 1 << 19;

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
            decoder: Decoder::new(times),
            reports,
            progress,
            ended: false,
            given: 0,
        };
        for (rows, columns) in files {
            if !columns.tells_gpus() {
                jobs.reports.warn(Kind::Assumed, &rows.file, rows.header_line(), || {
                    "no column tells how many GPUs a job asks for: 1 each".to_owned()
                })?;
            }
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
                .enumerate()
                .filter(|(_, file)| file.ahead.is_some())
                .min_by(|(_, a), (_, b)| a.next_s().total_cmp(&b.next_s()));
            let Some((number, file)) = earliest else {
                self.ended = true;
                return Ok(());
            };
            let Some(job) = file.ahead.take() else { continue };
            let line = job.line;
            let name = &file.rows.file;
            match self.window.push(job, number) {
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
                first: self.reports.warnings.first_skipped().map(ToString::to_string),
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
