//! The two prices that a decision needs, in one currency.

use std::path::PathBuf;

use jiff::civil::Date;
use serde::Serialize;

use super::{Age, AsOf, Currency, Error, Kind, ModelPrice, Price, Prices, file, rounded};

/// What a GPU costs for an hour, owned and rented.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Rates {
    /// What both are in.
    pub currency: Currency,
    /// A dedicated GPU, used or not.
    pub dedicated_per_gpu_hour: f64,
    /// A serverless GPU while a pod runs, with the CPU and memory that must be rented with it. Where only prices by model were given, the least of them.
    pub serverless_per_gpu_hour: f64,
    /// Where serverless prices differ by model.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub serverless_by_model: Vec<ModelPrice>,
    /// Whether models without a price of their own can be had for [`Self::serverless_per_gpu_hour`].
    pub serverless_of_others: bool,
    /// Rented time is rounded up to this; 0 where it isn't.
    pub billed_s: f64,
    /// Where the dedicated price is from: its name and date, or the command line.
    pub dedicated_from: String,
    /// Where the serverless price is from.
    pub serverless_from: String,
    /// What to know about them: old prices, exchange rates, rented below owned.
    pub warnings: Vec<String>,
}

impl Rates {
    /// From two numbers.
    ///
    /// # Errors
    /// When they can't be prices.
    pub fn new(currency: Currency, dedicated: f64, serverless: f64) -> Result<Self, Error> {
        for (flag, price) in [(DEDICATED, dedicated), (SERVERLESS, serverless)] {
            file::check(price).map_err(|what| Error::Flag {
                flag,
                given: price.to_string(),
                what: what.to_owned(),
            })?;
        }
        let mut rates = Self {
            currency,
            dedicated_per_gpu_hour: dedicated,
            serverless_per_gpu_hour: serverless,
            serverless_by_model: Vec::new(),
            serverless_of_others: true,
            billed_s: 0.0,
            dedicated_from: "command line".to_owned(),
            serverless_from: "command line".to_owned(),
            warnings: Vec::new(),
        };
        if rates.ratio() <= 1.0 {
            rates.warnings.push(format!(
                "a rented GPU ({} {currency} per hour) costs no more than an owned one ({}): rent everything",
                rounded(serverless),
                rounded(dedicated)
            ));
        }
        Ok(rates)
    }

    /// How many times the price of an owned GPU a rented one costs.
    pub fn ratio(&self) -> f64 {
        self.serverless_per_gpu_hour / self.dedicated_per_gpu_hour
    }
}

const DEDICATED: &str = "--dedicated-price";
pub(super) const SERVERLESS: &str = "--serverless-price";

/// Which prices are used.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "Prices")]
#[group(id = "prices_in_force")]
pub struct Args {
    /// A price file, of which each price takes the place of the built-in one with its name; `kubectl spillway prices` lists both.
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    pub prices: Option<PathBuf>,
    /// What an owned GPU costs for an hour: a number, or the name of a price.
    #[arg(long, value_name = "NUMBER|NAME", allow_negative_numbers = true)]
    pub dedicated_price: Option<String>,
    /// What a rented GPU costs for an hour: a number, or the name of a price. For jobs that ask for models, of each: A100=5.10,H100=9.80, with a number for all others before that; or by-model, as the price files have them.
    #[arg(long, value_name = "NUMBER|NAME", allow_negative_numbers = true)]
    pub serverless_price: Option<String>,
    /// The model whose cheapest known prices are taken where none are given.
    #[arg(long, value_name = "MODEL")]
    pub accelerator: Option<String>,
    /// The currency of numbers and of the result. Without it, that of the prices by name, else USD.
    #[arg(long, value_name = "CODE")]
    pub currency: Option<Currency>,
}

/// A price as it was found.
struct Found<'a> {
    per_gpu_hour: f64,
    /// None where it is a number on the command line.
    price: Option<&'a Price>,
    name: String,
}

impl Args {
    /// All prices in force.
    ///
    /// # Errors
    /// When the price file can't be read or understood.
    pub fn load(&self, today: Date) -> Result<Prices, Error> {
        Prices::load(self.prices.as_deref(), today)
    }

    /// Whether any price was asked for.
    pub fn given(&self) -> bool {
        self.dedicated_price.is_some() || self.serverless_price.is_some() || self.accelerator.is_some()
    }

    /// The two prices, in one currency.
    ///
    /// # Errors
    /// When serverless prices differ by model, or when one isn't known, can't be a price, or can't be had in the currency of the other.
    pub fn rates(&self, today: Date) -> Result<Rates, Error> {
        self.check_single()?;
        let prices = self.load(today)?;
        let dedicated = self.find(&prices, Kind::Dedicated)?;
        let serverless = self.find(&prices, Kind::Serverless)?;
        let named = |found: &Found| found.price.map(|price| price.currency);
        let currency = self.currency.or(named(&dedicated)).or(named(&serverless)).unwrap_or(Currency::USD);
        let (mut notes, mut old) = (Vec::new(), Vec::new());
        let mut amounts = [0.0; 2];
        for (amount, (found, other)) in
            amounts.iter_mut().zip([(&dedicated, &serverless), (&serverless, &dedicated)])
        {
            let from = match named(found) {
                Some(from) => from,
                // A number beside a price by name: in which currency, only the admin knows.
                None if self.currency.is_none()
                    && named(other).is_some_and(|other| other != Currency::USD) =>
                {
                    return Err(Error::Which {
                        given: found.name.clone(),
                        other: other.name.clone(),
                        currency,
                    });
                }
                None => currency,
            };
            let (converted, exchange) =
                prices.convert(found.per_gpu_hour, from, currency).ok_or_else(|| Error::Mixed {
                    what: found.name.clone(),
                    from,
                    other: if self.currency.is_some() { "the result".to_owned() } else { other.name.clone() },
                    to: currency,
                })?;
            *amount = converted;
            if let Some(price) = found.price {
                old.extend(doubtful(&price.name, &price.as_of, price.age()));
            }
            if let Some(rate) = exchange {
                let name = format!("the exchange rate of {} to {}, {}", rate.from, rate.to, rate.rate);
                notes.push(format!("{} was converted with {name} of {}", found.name, rate.as_of));
                old.extend(doubtful(&name, &rate.as_of, rate.age()));
            }
        }
        let mut rates = Rates::new(currency, amounts[0], amounts[1])?;
        rates.billed_s = serverless.price.map_or(0.0, |price| price.billed_s);
        rates.dedicated_from = dedicated.origin();
        rates.serverless_from = serverless.origin();
        rates.warnings.extend(notes);
        if !old.is_empty() {
            rates.warnings.push(format!("{}: check, and give today's with --prices", old.join("; ")));
        }
        Ok(rates)
    }

    fn find<'a>(&self, prices: &'a Prices, kind: Kind) -> Result<Found<'a>, Error> {
        let (flag, given) = match kind {
            Kind::Dedicated => (DEDICATED, &self.dedicated_price),
            Kind::Serverless => (SERVERLESS, &self.serverless_price),
        };
        let known = || prices.of_gpus(kind).map(|price| price.name.as_str()).collect::<Vec<_>>().join(", ");
        let price = match (given, &self.accelerator) {
            (Some(given), _) => {
                if let Ok(per_gpu_hour) = given.parse::<f64>() {
                    file::check(per_gpu_hour).map_err(|what| Error::Flag {
                        flag,
                        given: given.clone(),
                        what: what.to_owned(),
                    })?;
                    return Ok(Found { per_gpu_hour, price: None, name: format!("{flag} {given}") });
                }
                prices.of_gpus(kind).find(|price| price.name == *given).ok_or_else(|| Error::Unknown {
                    flag,
                    name: given.clone(),
                    kind: kind.name(),
                    known: known(),
                })?
            }
            (None, Some(model)) => prices.of_model(kind, model).ok_or_else(|| Error::Unknown {
                flag: "--accelerator",
                name: model.clone(),
                kind: kind.name(),
                known: known(),
            })?,
            (None, None) => return Err(Error::None { kind: kind.name(), flag, known: known() }),
        };
        let per_gpu_hour = price.gpu_per_hour.unwrap_or_default();
        Ok(Found { per_gpu_hour, price: Some(price), name: price.name.clone() })
    }
}

impl Found<'_> {
    fn origin(&self) -> String {
        match self.price {
            Some(price) => format!("{} ({}, {})", price.name, price.source, price.as_of),
            None => "command line".to_owned(),
        }
    }
}

/// What is to be said of something's age, where it is or may be too old.
fn doubtful(name: &str, as_of: &AsOf, age: Age) -> Option<String> {
    if age.is_stale() {
        Some(format!("{name} is of {as_of}, {age} days ago"))
    } else if age.may_be_stale() {
        Some(format!("{name} is of {as_of}, without a day: it may be up to {} days old", age.most_days))
    } else {
        None
    }
}
