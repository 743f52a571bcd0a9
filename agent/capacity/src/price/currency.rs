//! Currencies, and what one is worth in another.

use std::{fmt, str::FromStr};

use serde::{Serialize, Serializer};

use super::{Age, AsOf, Error, rounded};
use crate::output::{Column, Table};

/// An ISO 4217 code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Currency([u8; 3]);

impl Currency {
    /// United States dollar.
    pub const USD: Self = Self(*b"USD");
}

impl FromStr for Currency {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let code: [u8; 3] = text
            .trim()
            .to_ascii_uppercase()
            .as_bytes()
            .try_into()
            .map_err(|_| Error::Currency(text.to_owned()))?;
        if !code.iter().all(u8::is_ascii_uppercase) {
            return Err(Error::Currency(text.to_owned()));
        }
        Ok(Self(code))
    }
}

impl fmt::Display for Currency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // ASCII letters only.
        f.pad(str::from_utf8(&self.0).unwrap_or("???"))
    }
}

impl Serialize for Currency {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// What one unit of a currency is worth in another.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Exchange {
    /// This.
    pub from: Currency,
    /// In this.
    pub to: Currency,
    /// How much.
    pub rate: f64,
    /// When it was asked.
    pub as_of: AsOf,
    /// How many days old it is at least.
    pub age_days: i32,
    /// At most: a year or a month is no day.
    pub age_days_at_most: i32,
    /// Surely older than [`super::STALE_DAYS`].
    pub stale: bool,
    /// Where it stands.
    pub source: String,
    /// The file that has it.
    pub file: String,
}

impl Exchange {
    /// How old it is.
    pub(super) fn age(&self) -> Age {
        Age { least_days: self.age_days, most_days: self.age_days_at_most }
    }
}

/// All of them.
pub(super) fn table(exchange: &[Exchange]) -> Table {
    let columns = vec![
        Column::text("FROM"),
        Column::text("TO"),
        Column::number("RATE"),
        Column::text("AS OF"),
        Column::number("AGE DAYS"),
        Column::text("STALE"),
        Column::text("SOURCE"),
        Column::text("FILE").wide(),
    ];
    let rows = exchange.iter().map(|rate| {
        vec![
            rate.from.to_string(),
            rate.to.to_string(),
            rounded(rate.rate),
            rate.as_of.to_string(),
            rate.age().to_string(),
            rate.age().verdict().to_owned(),
            rate.source.clone(),
            rate.file.clone(),
        ]
    });
    Table { title: "Exchange rates".to_owned(), columns, rows: rows.collect() }
}
