//! Prices: one dated file of list prices, overridden by the admin's. Knows currencies and never mixes them.

mod by_model;
mod currency;
mod file;
mod rates;

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read},
    path::Path,
};

use jiff::{Timestamp, civil::Date, tz::TimeZone};
use serde::Serialize;

pub use by_model::ModelPrice;
pub use currency::{Currency, Exchange};
pub use file::{Age, AsOf};
pub use rates::{Args, Rates};

use crate::output::{Column, Table};

/// The list prices that come with the program.
const BUILT_IN: &str = include_str!("../prices.yaml");

/// What they are called where a file is named.
const BUILT_IN_NAME: &str = "built in";

/// A price that is older is said to be.
pub const STALE_DAYS: i32 = 180;

/// No price file is larger.
const SIZE_LIMIT: u64 = 1 << 20;

/// Why there is no price.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file can't be read.
    #[error("can't read the prices in {file}")]
    Read {
        /// Its path.
        file: String,
        /// Why.
        source: io::Error,
    },
    /// It is too large to be one.
    #[error("{file} is larger than 1 MiB, which no price file is")]
    Large {
        /// Its path.
        file: String,
    },
    /// It isn't understood.
    #[error("{file}: {what}")]
    Parse {
        /// Its path.
        file: String,
        /// What the parser says, with the line.
        what: String,
    },
    /// A price in it can't be.
    #[error("{file}:{line}: {name}: {what}")]
    Price {
        /// Its path.
        file: String,
        /// Where.
        line: u64,
        /// The price's name.
        name: String,
        /// What is wrong with it.
        what: String,
    },
    /// A number on the command line can't be a price.
    #[error("{flag} {given}: {what}")]
    Flag {
        /// The flag.
        flag: &'static str,
        /// What was given.
        given: String,
        /// What is wrong with it.
        what: String,
    },
    /// No price has that name.
    #[error("{flag} {name}: there is no {kind} price of a GPU with that name; there are {known}")]
    Unknown {
        /// The flag.
        flag: &'static str,
        /// The name.
        name: String,
        /// Dedicated or serverless.
        kind: &'static str,
        /// The names that there are.
        known: String,
    },
    /// No price was given.
    #[error(
        "no {kind} price: give {flag} NUMBER or NAME, or --accelerator for prices that are known of a model ({known})"
    )]
    None {
        /// Dedicated or serverless.
        kind: &'static str,
        /// The flag.
        flag: &'static str,
        /// The names that there are.
        known: String,
    },
    /// Prices in different currencies.
    #[error(
        "{what} is in {from} and {other} in {to}: add a dated exchange rate to the price file: exchange: [{{from: {from}, to: {to}, rate: …, asOf: …}}]"
    )]
    Mixed {
        /// What is to be converted.
        what: String,
        /// Its currency.
        from: Currency,
        /// What it is compared with.
        other: String,
        /// The currency of that.
        to: Currency,
    },
    /// A number on the command line beside a price in another currency than usual.
    #[error("in which currency is {given}? {other} is in {currency}; say it with --currency")]
    Which {
        /// The flag and its number.
        given: String,
        /// The price beside it.
        other: String,
        /// The currency of that.
        currency: Currency,
    },
    /// Prices by model where there is no model.
    #[error("{given}: only jobs of a trace tell which model they ask for; give one serverless price")]
    Models {
        /// The flag and what was given.
        given: String,
    },
    /// No currency has that name.
    #[error("{0:?} is no currency: three letters, such as USD")]
    Currency(String),
}

/// How what is priced is had.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Owned, or rented for good: paid whether used or not.
    Dedicated,
    /// Paid while a pod runs.
    Serverless,
}

impl Kind {
    /// Its word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Dedicated => "dedicated",
            Self::Serverless => "serverless",
        }
    }
}

/// One price.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Price {
    /// What it is called on the command line.
    pub name: String,
    /// How what is priced is had.
    pub kind: Kind,
    /// Who asks for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub provider: Option<String>,
    /// The accelerator's model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// What all its numbers are in.
    pub currency: Currency,
    /// One machine for an hour.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub machine_per_hour: Option<f64>,
    /// GPUs of the machine.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gpus: Option<u32>,
    /// One GPU for an hour, with the CPU and memory that must be rented with it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gpu_per_hour: Option<f64>,
    /// One virtual CPU for an hour.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vcpu_per_hour: Option<f64>,
    /// One GiB of memory for an hour.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gib_per_hour: Option<f64>,
    /// Rented time is rounded up to this; 0 where it isn't.
    pub billed_s: f64,
    /// When it was asked.
    pub as_of: AsOf,
    /// How many days old it is at least.
    pub age_days: i32,
    /// At most: a year or a month is no day.
    pub age_days_at_most: i32,
    /// Surely older than [`STALE_DAYS`].
    pub stale: bool,
    /// Where it stands.
    pub source: String,
    /// The file that has it.
    pub file: String,
}

impl Price {
    /// How old it is.
    pub fn age(&self) -> Age {
        Age { least_days: self.age_days, most_days: self.age_days_at_most }
    }
}

/// All prices in force.
#[derive(Debug, Clone, Serialize)]
pub struct Prices {
    /// By name.
    pub prices: BTreeMap<String, Price>,
    /// Between currencies.
    pub exchange: Vec<Exchange>,
}

/// The day, in UTC.
pub fn today() -> Date {
    Timestamp::now().to_zoned(TimeZone::UTC).date()
}

impl Prices {
    /// The prices that come with the program, and those of `file` in place of those with the same name.
    ///
    /// # Errors
    /// When the file can't be read, or a price in it can't be one.
    pub fn load(file: Option<&Path>, today: Date) -> Result<Self, Error> {
        let mut prices = Self::parse(BUILT_IN_NAME, BUILT_IN.as_bytes(), today)?;
        if let Some(path) = file {
            let file = path.display().to_string();
            let read = || {
                let mut bytes = Vec::new();
                File::open(path)?.take(SIZE_LIMIT + 1).read_to_end(&mut bytes)?;
                Ok(bytes)
            };
            let bytes = read().map_err(|source| Error::Read { file: file.clone(), source })?;
            let own = Self::parse(&file, &bytes, today)?;
            prices.prices.extend(own.prices);
            // The admin's first: the first that fits is taken.
            prices.exchange.splice(0..0, own.exchange);
        }
        Ok(prices)
    }

    /// The prices in the bytes of a file.
    ///
    /// # Errors
    /// When they aren't understood, or can't be prices.
    pub fn parse(file: &str, bytes: &[u8], today: Date) -> Result<Self, Error> {
        file::parse(file, bytes, today)
    }

    /// The cheapest price of a GPU of `model`: a model, or a product's name that has all words of one, as a node's label `NVIDIA-A100-SXM4-80GB` those of `A100-80GB`.
    pub fn of_model(&self, kind: Kind, model: &str) -> Option<&Price> {
        self.of_gpus(kind)
            .filter(|price| price.model.as_deref().is_some_and(|known| is(known, model)))
            .min_by(|a, b| a.gpu_per_hour.unwrap_or(f64::MAX).total_cmp(&b.gpu_per_hour.unwrap_or(f64::MAX)))
    }

    /// Those that price a GPU.
    fn of_gpus(&self, kind: Kind) -> impl Iterator<Item = &Price> {
        self.prices.values().filter(move |price| price.kind == kind && price.gpu_per_hour.is_some())
    }

    /// `amount` of one currency in another, and the rate it was made with, where there is one.
    pub fn convert(&self, amount: f64, from: Currency, to: Currency) -> Option<(f64, Option<&Exchange>)> {
        if from == to {
            return Some((amount, None));
        }
        self.exchange.iter().find_map(|exchange| {
            if (exchange.from, exchange.to) == (from, to) {
                Some((amount * exchange.rate, Some(exchange)))
            } else if (exchange.to, exchange.from) == (from, to) {
                Some((amount / exchange.rate, Some(exchange)))
            } else {
                None
            }
        })
    }

    /// All of them.
    pub fn tables(&self) -> Vec<Table> {
        let columns = vec![
            Column::text("NAME"),
            Column::text("KIND"),
            Column::text("MODEL"),
            Column::text("CURRENCY"),
            Column::number("GPU PER HOUR"),
            Column::number("MACHINE PER HOUR").wide(),
            Column::number("GPUS").wide(),
            Column::number("VCPU PER HOUR"),
            Column::number("GIB PER HOUR"),
            Column::number("BILLED S").wide(),
            Column::text("AS OF"),
            Column::number("AGE DAYS"),
            Column::text("STALE"),
            Column::text("PROVIDER").wide(),
            Column::text("SOURCE"),
            Column::text("FILE").wide(),
        ];
        let amount = |amount: Option<f64>| amount.map_or_else(|| "-".to_owned(), rounded);
        let text = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
        let rows = self.prices.values().map(|price| {
            vec![
                price.name.clone(),
                price.kind.name().to_owned(),
                text(&price.model),
                price.currency.to_string(),
                amount(price.gpu_per_hour),
                amount(price.machine_per_hour),
                price.gpus.map_or_else(|| "-".to_owned(), |gpus| gpus.to_string()),
                amount(price.vcpu_per_hour),
                amount(price.gib_per_hour),
                price.billed_s.to_string(),
                price.as_of.to_string(),
                price.age().to_string(),
                price.age().verdict().to_owned(),
                text(&price.provider),
                price.source.clone(),
                price.file.clone(),
            ]
        });
        let mut tables = vec![Table { title: String::new(), columns, rows: rows.collect() }];
        if !self.exchange.is_empty() {
            tables.push(currency::table(&self.exchange));
        }
        tables
    }
}

/// Whether a product's name has all words of a model.
fn is(model: &str, product: &str) -> bool {
    let product: Vec<String> = words(product).collect();
    let mut model = words(model).peekable();
    model.peek().is_some() && model.all(|word| product.contains(&word))
}

/// The words of a model's or a product's name, in small letters.
fn words(name: &str) -> impl Iterator<Item = String> {
    let split = name.split(|character: char| !character.is_ascii_alphanumeric());
    split.filter(|word| !word.is_empty()).map(str::to_ascii_lowercase)
}

/// With six decimals, without zeros at the end: a second of a virtual CPU costs little.
fn rounded(amount: f64) -> String {
    let text = format!("{amount:.6}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests;
