//! What was wrong with a trace and didn't end its reading: counted by kind, with the first place of each.

use std::fmt;

use serde::Serialize;

use crate::output::{Column, Table};

/// A kind of defect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A row was skipped: it has too few cells.
    ShortRow,
    /// A row was skipped: it has more cells than there are columns, so that none can be trusted.
    LongRow,
    /// A row was skipped: no time in its cell.
    BadTime,
    /// A row was skipped: no number in its cell, or NaN, infinite, negative, too large.
    BadNumber,
    /// A row was skipped: it ends before it begins.
    NegativeDuration,
    /// A job was skipped: it has no end.
    Unfinished,
    /// A job was skipped: it never ran.
    NeverRan,
    /// A row was skipped: the same as the one before it.
    Duplicate,
    /// Something that no column tells was assumed.
    Assumed,
    /// A job that ends at once; kept.
    ZeroDuration,
    /// A job of more than a year; kept.
    LongDuration,
    /// A job of which only the GPUs in all are told, more than machines usually have; kept as one pod.
    OnePod,
    /// A job with the name or number of one before it; kept.
    SameId,
    /// A row was moved to its place in time.
    OutOfOrder,
    /// A step between samples of more than one and a half times the usual one; the value before it holds.
    Gap,
    /// A file that isn't part of the trace; left out.
    LeftOut,
    /// A name that isn't UTF-8; its bytes are replaced.
    BadText,
}

impl Kind {
    fn words(self) -> &'static str {
        match self {
            Self::ShortRow => "rows skipped, with cells missing",
            Self::LongRow => "rows skipped, with more cells than columns",
            Self::BadTime => "rows skipped, without a time that can be read",
            Self::BadNumber => "rows skipped, without a number that can be used",
            Self::NegativeDuration => "rows skipped that end before they begin",
            Self::Unfinished => "jobs skipped that have no end",
            Self::NeverRan => "jobs skipped that never ran",
            Self::Duplicate => "rows skipped as duplicates",
            Self::Assumed => "assumptions",
            Self::ZeroDuration => "jobs that end at once",
            Self::LongDuration => "jobs of more than a year: is the unit of times right?",
            Self::OnePod => "jobs of more than 8 GPUs, taken for one pod",
            Self::SameId => "jobs whose id was there before; each counts",
            Self::OutOfOrder => "rows out of order, sorted",
            Self::Gap => "gaps, over which the value before holds",
            Self::LeftOut => "files left out",
            Self::BadText => "names that are not UTF-8",
        }
    }
}

/// One kind of defect, how often, and where first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Warning {
    /// What.
    pub kind: Kind,
    /// How often.
    pub count: u64,
    /// The file of the first.
    pub file: String,
    /// The line of the first, from 1, counting the header.
    pub line: u64,
    /// What is wrong with the first.
    pub first: String,
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, count, file, line, first } = self;
        write!(f, "{}: {count} (first {file}:{line}: {first})", kind.words())
    }
}

/// All that was wrong and didn't end the reading. Serialises as a list.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Warnings(Vec<Warning>);

impl Warnings {
    /// Counts one, and keeps its place if it is the first of its kind.
    pub fn add(&mut self, kind: Kind, file: &str, line: u64, first: impl FnOnce() -> String) {
        self.add_many(kind, 1, file, line, first);
    }

    /// Counts several.
    pub(super) fn add_many(
        &mut self,
        kind: Kind,
        count: u64,
        file: &str,
        line: u64,
        first: impl FnOnce() -> String,
    ) {
        if let Some(known) = self.0.iter_mut().find(|known| known.kind == kind) {
            known.count += count;
        } else {
            self.0.push(Warning { kind, count, file: file.to_owned(), line, first: first() });
        }
    }

    /// Nothing was wrong.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// One for each kind, in the order in which they were first met.
    pub fn iter(&self) -> std::slice::Iter<'_, Warning> {
        self.0.iter()
    }

    /// How often `kind` was met.
    pub fn count(&self, kind: Kind) -> u64 {
        self.0.iter().find(|warning| warning.kind == kind).map_or(0, |warning| warning.count)
    }

    /// A table of them, where there are any.
    pub fn table(&self) -> Option<Table> {
        let columns = vec![
            Column::number("COUNT"),
            Column::text("WHAT"),
            Column::text("FIRST FILE"),
            Column::number("FIRST LINE"),
            Column::text("FIRST"),
        ];
        let rows = self.0.iter().map(|warning| {
            vec![
                warning.count.to_string(),
                warning.kind.words().to_owned(),
                warning.file.clone(),
                warning.line.to_string(),
                warning.first.clone(),
            ]
        });
        let rows: Vec<_> = rows.collect();
        (!rows.is_empty()).then(|| Table { title: "Wrong with the trace".to_owned(), columns, rows })
    }

    /// The first for which a row was skipped.
    pub(super) fn first_skipped(&self) -> Option<&Warning> {
        let kept = [
            Kind::Assumed,
            Kind::LeftOut,
            Kind::BadText,
            Kind::OutOfOrder,
            Kind::ZeroDuration,
            Kind::LongDuration,
            Kind::SameId,
            Kind::OnePod,
        ];
        self.0.iter().find(|warning| !kept.contains(&warning.kind))
    }

    /// What `other` has, too.
    pub fn merge(&mut self, other: &Self) {
        for warning in &other.0 {
            self.add_many(warning.kind, warning.count, &warning.file, warning.line, || warning.first.clone());
        }
    }
}

impl<'a> IntoIterator for &'a Warnings {
    type Item = &'a Warning;
    type IntoIter = std::slice::Iter<'a, Warning>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}
