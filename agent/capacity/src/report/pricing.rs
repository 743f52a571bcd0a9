//! What holding a device costs.

use super::pools::float;
use crate::price::{Args, Currency, Error, Kind, Prices, today};

/// The prices that a report goes by.
#[derive(Debug, Clone)]
pub struct Pricing {
    prices: Prices,
    /// Given for all models, by how they are had.
    given: [Option<f64>; 2],
    currency: Currency,
}

impl Pricing {
    /// By the command line: prices given there hold for all models; else each model has its own.
    ///
    /// # Errors
    /// When the price file can't be read, or a price is none.
    pub fn of(args: &Args) -> Result<Self, Error> {
        let prices = args.load(today())?;
        let currency = args.currency.unwrap_or(Currency::USD);
        let mut pricing = Self { prices, given: [None; 2], currency };
        for (kind, flag, text) in [
            (Kind::Dedicated, "--dedicated-price", &args.dedicated_price),
            (Kind::Serverless, "--serverless-price", &args.serverless_price),
        ] {
            let Some(text) = text else { continue };
            pricing.given[usize::from(kind == Kind::Serverless)] = Some(pricing.named(kind, flag, text)?);
        }
        Ok(pricing)
    }

    fn named(&self, kind: Kind, flag: &'static str, text: &str) -> Result<f64, Error> {
        if let Ok(number) = text.parse::<f64>() {
            let sound = number.is_finite() && number >= 0.0;
            return sound.then_some(number).ok_or_else(|| Error::Flag {
                flag,
                given: text.to_owned(),
                what: "a price is a number, and not negative".to_owned(),
            });
        }
        let price = self.prices.prices.get(text).filter(|price| price.kind == kind);
        let found = price.and_then(|price| Some((price.gpu_per_hour?, price.currency)));
        let (amount, from) = found.ok_or_else(|| Error::Unknown {
            flag,
            name: text.to_owned(),
            kind: kind.name(),
            known: self
                .prices
                .prices
                .values()
                .filter(|price| price.kind == kind)
                .map(|price| price.name.as_str())
                .collect::<Vec<_>>()
                .join(", "),
        })?;
        self.prices.convert(amount, from, self.currency).map(|(amount, _)| amount).ok_or_else(|| {
            Error::Mixed { what: text.to_owned(), from, other: "the result".to_owned(), to: self.currency }
        })
    }

    /// What all its numbers are in.
    pub fn currency(&self) -> Currency {
        self.currency
    }

    /// What `devices` of a resource cost for an hour, where that is known. Of a MIG device its part of the seven that a GPU has.
    pub(super) fn per_hour(
        &self,
        kind: Kind,
        resource: &str,
        model: Option<&str>,
        shares: i64,
        devices: i64,
    ) -> Option<f64> {
        let given = self.given[usize::from(kind == Kind::Serverless)];
        let each = given.or_else(|| {
            let price = self.prices.of_model(kind, model?)?;
            let (amount, _) = self.prices.convert(price.gpu_per_hour?, price.currency, self.currency)?;
            Some(amount)
        })?;
        let part = match resource.split_once("/mig-") {
            Some((_, profile)) => profile.split_once('g')?.0.parse::<f64>().ok()? / 7.0,
            None => 1.0,
        };
        Some(each * part * float(devices) / float(shares.max(1)))
    }

    /// What to know of the prices of these models: how old they are.
    pub(super) fn notes<'a>(&self, models: impl Iterator<Item = &'a str>) -> Vec<String> {
        if self.given[0].is_some() {
            return Vec::new();
        }
        let prices = models.filter_map(|model| self.prices.of_model(Kind::Dedicated, model));
        let mut notes: Vec<_> = prices
            .filter(|price| price.stale)
            .map(|price| format!("the price {} is of {}, {} days ago", price.name, price.as_of, price.age()))
            .collect();
        notes.sort();
        notes.dedup();
        notes
    }
}
