//! Serverless prices that differ by the model of the GPU: `A100=5.10,H100=9.80`, or what the price files know of each model.

use std::{collections::BTreeMap, sync::Arc};

use jiff::civil::Date;
use serde::Serialize;

use super::{Args, Error, Kind, Prices, Rates, rates::SERVERLESS, words};

/// Instead of prices: those of each model that the price files have.
const BY_MODEL: &str = "by-model";

/// What a serverless GPU of one model costs.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ModelPrice {
    /// The model: that of every product whose name has all its words.
    pub model: String,
    /// One GPU while a pod runs, in the currency of the other rates.
    pub per_gpu_hour: f64,
    /// Rented time is rounded up to this; 0 where it isn't.
    pub billed_s: f64,
    /// Where the price is from: its name and date, or the command line.
    pub from: String,
}

/// One of several serverless prices.
struct Entry {
    /// None where it is the price of all models that have none of their own.
    model: Option<String>,
    /// A number or a name.
    price: String,
}

impl Args {
    /// Whether serverless prices differ by model.
    fn differ(&self) -> bool {
        self.serverless_price.as_deref().is_some_and(|text| text == BY_MODEL || text.contains(['=', ',']))
    }

    /// Refuses serverless prices that differ by model where nothing tells models apart.
    pub(super) fn check_single(&self) -> Result<(), Error> {
        match &self.serverless_price {
            Some(given) if self.differ() => Err(Error::Models { given: format!("{SERVERLESS} {given}") }),
            _ => Ok(()),
        }
    }

    /// The prices, in one currency; serverless ones may differ by model.
    ///
    /// # Errors
    /// When one isn't known, can't be a price, or can't be had in the currency of the others.
    pub fn rates_by_model(&self, today: Date) -> Result<Rates, Error> {
        if !self.differ() {
            return self.rates(today);
        }
        let given = self.serverless_price.as_deref().unwrap_or_default();
        let known = given == BY_MODEL;
        let entries = if known { self.load(today)?.by_model() } else { Entry::parse(given)? };
        let (mut all, mut left_out) = (Vec::new(), Vec::new());
        for Entry { model, price } in entries {
            let alone = Self { serverless_price: Some(price.clone()), ..self.clone() };
            match alone.rates(today) {
                Ok(rates) => all.push((model, rates)),
                // Of all that is known, some prices are in currencies that can't be had in others.
                Err(Error::Mixed { .. } | Error::Which { .. }) if known => left_out.push(price),
                Err(error) => return Err(error),
            }
        }
        let others = all.iter().position(|(model, _)| model.is_none());
        let least = (0..all.len()).min_by(|one, other| {
            let price = |at: usize| all[at].1.serverless_per_gpu_hour;
            price(*one).total_cmp(&price(*other))
        });
        let Some(base) = others.or(least) else {
            return Err(Error::Unknown {
                flag: SERVERLESS,
                name: BY_MODEL.to_owned(),
                kind: Kind::Serverless.name(),
                known: "none whose currency is that of the others".to_owned(),
            });
        };
        let mut rates = all[base].1.clone();
        rates.serverless_of_others = others.is_some();
        for (model, of) in all {
            if of.currency != rates.currency {
                return Err(Error::Mixed {
                    what: of.serverless_from,
                    from: of.currency,
                    other: rates.serverless_from,
                    to: rates.currency,
                });
            }
            let new = of.warnings.into_iter().filter(|warning| !rates.warnings.contains(warning));
            let new: Vec<String> = new.collect();
            rates.warnings.extend(new);
            rates.serverless_by_model.extend(model.map(|model| ModelPrice {
                model,
                per_gpu_hour: of.serverless_per_gpu_hour,
                billed_s: of.billed_s,
                from: of.serverless_from,
            }));
        }
        if !left_out.is_empty() {
            rates.warnings.push(format!(
                "serverless prices in currencies without an exchange rate to {} were left out: {}",
                rates.currency,
                left_out.join(", ")
            ));
        }
        Ok(rates)
    }
}

impl Entry {
    /// `6.30,H100=9.80`: at most one without a model.
    fn parse(text: &str) -> Result<Vec<Self>, Error> {
        let wrong = |what: String| Error::Flag { flag: SERVERLESS, given: text.to_owned(), what };
        let mut entries: BTreeMap<Option<String>, Self> = BTreeMap::new();
        for part in text.split(',') {
            let (model, price) = match part.split_once('=') {
                Some((model, price)) => (Some(model.trim()), price.trim()),
                None => (None, part.trim()),
            };
            if price.is_empty() || model.is_some_and(|model| words(model).next().is_none()) {
                return Err(wrong("give a price for each model, such as A100=5.10,H100=9.80".to_owned()));
            }
            let key = model.map(str::to_ascii_lowercase);
            if entries.contains_key(&key) {
                let of = model.map_or("models without one of their own".to_owned(), str::to_owned);
                return Err(wrong(format!("two prices of {of}: give one")));
            }
            entries.insert(key, Self { model: model.map(str::to_owned), price: price.to_owned() });
        }
        Ok(entries.into_values().collect())
    }
}

impl Prices {
    /// The cheapest serverless price of each model that has one.
    fn by_model(&self) -> Vec<Entry> {
        let mut models = BTreeMap::new();
        for price in self.of_gpus(Kind::Serverless) {
            if let Some(model) = &price.model
                && let Some(least) = self.of_model(Kind::Serverless, model)
            {
                let entry = Entry { model: Some(model.clone()), price: least.name.clone() };
                models.insert(model.to_ascii_lowercase(), entry);
            }
        }
        models.into_values().collect()
    }
}

impl Rates {
    /// Refuses serverless prices that differ by model where nothing tells models apart, such as demand over time.
    ///
    /// # Errors
    /// When they do.
    pub fn check_single(&self) -> Result<(), Error> {
        if self.serverless_by_model.is_empty() {
            return Ok(());
        }
        Err(Error::Models { given: "serverless prices by model".to_owned() })
    }

    /// One serverless price for all models, whatever was given before.
    pub fn set_serverless(&mut self, per_gpu_hour: f64) {
        self.serverless_per_gpu_hour = per_gpu_hour;
        self.serverless_by_model.clear();
        self.serverless_of_others = true;
    }

    /// The least that a serverless GPU of any model costs.
    pub fn least_serverless_per_gpu_hour(&self) -> f64 {
        let by_model = self.serverless_by_model.iter().map(|price| price.per_gpu_hour);
        let others = self.serverless_of_others.then_some(self.serverless_per_gpu_hour);
        by_model.chain(others).fold(f64::INFINITY, f64::min)
    }

    /// Which serverless price is paid where one of `models` will do, or any where it is empty: the cheapest, as a place in [`Self::serverless_by_model`], or none for that of all other models. Nothing where none of them has
    /// a price.
    pub fn serverless_of(&self, models: &[Arc<str>]) -> Option<Option<usize>> {
        let others = || self.serverless_of_others.then_some(None);
        let price = |place: &Option<usize>| match place {
            Some(at) => self.serverless_by_model[*at].per_gpu_hour,
            None => self.serverless_per_gpu_hour,
        };
        let least = |places: &mut dyn Iterator<Item = Option<usize>>| {
            places.min_by(|one, other| price(one).total_cmp(&price(other)))
        };
        if models.is_empty() {
            return least(&mut (0..self.serverless_by_model.len()).map(Some).chain(others()));
        }
        least(&mut models.iter().filter_map(|model| self.own_price(model).map(Some).or_else(others)))
    }

    /// The price of a model: where several are, that of the name with the most words, then the cheapest.
    fn own_price(&self, model: &str) -> Option<usize> {
        let known = self.serverless_by_model.iter().enumerate();
        known
            .filter(|(_, price)| super::is(&price.model, model))
            .max_by(|(_, one), (_, other)| {
                let count = |price: &ModelPrice| words(&price.model).count();
                count(one).cmp(&count(other)).then(other.per_gpu_hour.total_cmp(&one.per_gpu_hour))
            })
            .map(|(at, _)| at)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use jiff::civil::date;

    use super::{Args, Rates};

    fn rates(serverless: &str) -> Result<Rates, String> {
        let args = Args {
            dedicated_price: Some("2".to_owned()),
            serverless_price: Some(serverless.to_owned()),
            ..Args::default()
        };
        args.rates_by_model(date(2026, 11, 22)).map_err(|error| error.to_string())
    }

    fn paid(rates: &Rates, models: &[&str]) -> Option<f64> {
        let models: Vec<Arc<str>> = models.iter().map(|model| Arc::from(*model)).collect();
        let place = rates.serverless_of(&models)?;
        Some(place.map_or(rates.serverless_per_gpu_hour, |at| rates.serverless_by_model[at].per_gpu_hour))
    }

    #[test]
    fn a_job_pays_the_price_of_the_cheapest_model_that_will_do() {
        let rates = rates("A100=5.1, H100=9.8,A100-80GB=6").unwrap();
        assert_eq!(paid(&rates, &["A100"]), Some(5.1));
        assert_eq!(paid(&rates, &["h100"]), Some(9.8));
        assert_eq!(paid(&rates, &["NVIDIA-A100-SXM4-80GB"]), Some(6.0), "what says most of it counts");
        assert_eq!(paid(&rates, &["H100", "A100"]), Some(5.1));
        assert_eq!(paid(&rates, &[]), Some(5.1));
        assert_eq!(paid(&rates, &["V100"]), None, "one price is never taken for another");
        assert_eq!(paid(&rates, &["V100", "H100"]), Some(9.8));
        assert!((rates.serverless_per_gpu_hour - 5.1).abs() < 1e-12, "bounds take the least");
    }

    #[test]
    fn one_price_may_be_that_of_all_others() {
        let rates = rates("6.3,H100=9.8").unwrap();
        assert_eq!(paid(&rates, &["V100"]), Some(6.3));
        assert_eq!(paid(&rates, &["H100"]), Some(9.8));
        assert!((rates.least_serverless_per_gpu_hour() - 6.3).abs() < 1e-12);
        assert_eq!(rates.serverless_by_model[0].model, "H100", "as it was written");
        let mut single = rates;
        single.set_serverless(4.0);
        assert_eq!(paid(&single, &["H100"]), Some(4.0));
    }

    #[test]
    fn the_price_files_models_are_known_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("prices.yaml");
        let price = |name: &str, model: &str, price: f64| {
            format!(
                "  {name}: {{kind: serverless, model: {model}, gpuHour: {price}, billedSeconds: 60, currency: USD, asOf: 2026-11-22, source: x}}\n"
            )
        };
        let text =
            ["prices:\n".to_owned(), price("a", "X1", 3.0), price("b", "X1", 2.5), price("c", "X2", 7.0)];
        std::fs::write(&file, text.concat()).unwrap();
        let of = |serverless: &str| {
            let args = Args {
                prices: Some(file.clone()),
                dedicated_price: Some("2".to_owned()),
                serverless_price: Some(serverless.to_owned()),
                ..Args::default()
            };
            args.rates_by_model(date(2026, 11, 22)).unwrap()
        };
        let known = of("by-model");
        assert_eq!((paid(&known, &["X1"]), paid(&known, &["X2"])), (Some(2.5), Some(7.0)));
        let named = of("X1=a,X2=c");
        assert_eq!((paid(&named, &["X1"]), paid(&named, &["X2"])), (Some(3.0), Some(7.0)));
        assert!(named.serverless_by_model.iter().all(|price| (price.billed_s - 60.0).abs() < 1e-12));
    }

    #[test]
    fn what_is_no_list_of_prices_is_told() {
        for text in ["A100=", "=5", "A100=5,a100=6", "5,6", "A100=-1", "A100=nothing", ","] {
            assert!(rates(text).is_err(), "{text}");
        }
        let several = Args {
            dedicated_price: Some("2".to_owned()),
            serverless_price: Some("A100=5,H100=9".to_owned()),
            ..Args::default()
        };
        let error = several.rates(date(2026, 11, 22)).unwrap_err().to_string();
        assert!(error.contains("one serverless price"), "{error}");
    }
}
