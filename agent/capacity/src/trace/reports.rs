//! Rows that give nothing, and why.

use csv::ByteRecord;

use super::{
    error::Error,
    key::Key,
    layout::Columns,
    progress::Progress,
    value::{self, Times, Unusable},
    warnings::{Kind, Warnings},
};

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

    /// A row that gives nothing.
    pub(super) fn skip(
        &mut self,
        file: &str,
        line: u64,
        row: &ByteRecord,
        columns: &Columns,
        skipped: &Skipped,
    ) -> Result<(), Error> {
        self.warn(skipped.kind, file, line, || skipped.words(Cells { row, columns }))
    }
}

/// What files of one trace have in common while they are read.
#[derive(Debug)]
pub(super) struct Reading {
    pub(super) times: Times,
    /// Times are needed for the order of jobs at the most.
    pub(super) asks_only: bool,
    /// How many GPUs a pod has at most, where only those of the job are told.
    pub(super) gpus_per_pod: Option<u32>,
    pub(super) reports: Reports,
    pub(super) progress: Progress,
    /// An item was given.
    pub(super) given: bool,
    /// All was read, or an error was given.
    pub(super) ended: bool,
}

impl Reading {
    pub(super) fn new(times: Times, asks_only: bool, strict: bool, progress: Progress) -> Self {
        let reports = Reports { warnings: Warnings::default(), strict };
        Self { times, asks_only, gpus_per_pod: None, reports, progress, given: false, ended: false }
    }

    /// At the end: an error where nothing was given, with why the first row was skipped.
    pub(super) fn end(&mut self, file: &str) -> Option<Error> {
        self.ended = true;
        self.progress.end();
        let first = || self.reports.warnings.first_skipped().map(ToString::to_string);
        (!self.given).then(|| Error::NoRows { file: file.to_owned(), first: first() })
    }

    /// Ends in an error.
    pub(super) fn fail(&mut self, error: Error) -> Error {
        (self.ended, self.given) = (true, true);
        self.progress.end();
        error
    }
}

/// Why a row gives nothing.
#[derive(Debug)]
pub(super) struct Skipped {
    pub(super) kind: Kind,
    /// The cell, where it is one.
    pub(super) key: Option<Key>,
    /// After "KEY is", where it is a cell.
    pub(super) what: &'static str,
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

    /// The cells of all series of a wide row.
    pub(super) fn series(self) -> impl Iterator<Item = &'a [u8]> {
        let at = self.columns.of(Key::At);
        let series = self.row.iter().enumerate().filter(move |(column, _)| Some(*column) != at);
        series.map(|(_, cell)| cell).filter(move |_| self.columns.wide)
    }

    /// A time of the row: see [`Times::at`].
    pub(super) fn at(self, times: &Times, key: Key, not_before_s: f64) -> Result<Option<f64>, Skipped> {
        let Columns { sizes, .. } = self.columns;
        let unit = self.columns.unit(key);
        self.read(key, Kind::BadTime, |cell| times.at(unit, sizes, not_before_s, cell))
    }

    /// The cell's value, where there is one.
    pub(super) fn read<T>(
        self,
        key: Key,
        kind: Kind,
        read: impl FnOnce(&'a [u8]) -> Result<T, Unusable>,
    ) -> Result<Option<T>, Skipped> {
        match self.get(key).map(read) {
            None | Some(Err(Unusable::Missing)) => Ok(None),
            Some(Ok(value)) => Ok(Some(value)),
            Some(Err(Unusable::Not(what))) => Err(Skipped { kind, key: Some(key), what }),
        }
    }
}

impl Skipped {
    /// What is wrong with which cell.
    pub(super) fn words(&self, cells: Cells) -> String {
        let (name, cell) = match self.key {
            Some(key) => (key.name(), cells.get(key).unwrap_or_default()),
            None => match cells.series().find(|cell| matches!(value::number(cell), Err(Unusable::Not(_)))) {
                Some(cell) => ("a series", cell),
                None => return self.what.to_owned(),
            },
        };
        let shown = shown(cell);
        format!("{name} {shown:?} is {}", self.what)
    }
}

/// The beginning of a cell: enough to find it.
pub(super) fn shown(cell: &[u8]) -> String {
    const SHOWN: usize = 40;
    let begin = String::from_utf8_lossy(&cell[..cell.len().min(4 * SHOWN)]);
    let mut shown: String = begin.chars().take(SHOWN).collect();
    if shown.len() < cell.len() {
        shown.push('…');
    }
    shown
}
