//! The price file: YAML or JSON. Its bytes are hostile.

use std::{collections::BTreeMap, fmt};

use jiff::civil::Date;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Visitor};
use serde_saphyr::{Location, Spanned};

use super::{Currency, Error, Exchange, Kind, Price, Prices, SIZE_LIMIT, STALE_DAYS};

/// More than this for an hour of anything is a slip of the hand, whatever the currency.
const MOST_PER_HOUR: f64 = 1e7;

/// More GPUs than this in one machine, virtual CPUs or GiB beside a GPU, are a slip of the hand.
const MOST_GPUS: u32 = 1024;
const MOST_BESIDE: f64 = 100_000.0;

/// The longest time to which rented time is rounded up: a month.
const MOST_BILLED_S: f64 = 31.0 * 86_400.0;

const SECONDS_PER_HOUR: f64 = 3600.0;

/// When a price was asked: a day, or as much of it as is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AsOf {
    /// The earliest day that it may be.
    first: Date,
    /// The latest.
    last: Date,
    /// As it was written.
    text: String,
}

impl AsOf {
    /// `2026`, `2026-11` or `2026-11-22`.
    fn parse(text: &str) -> Option<Self> {
        let digits =
            |part: &str, length| part.len() == length && part.bytes().all(|byte| byte.is_ascii_digit());
        let parts: Vec<&str> = text.split('-').collect();
        let whole = match parts[..] {
            [year] if digits(year, 4) => format!("{year}-01-01"),
            [year, month] if digits(year, 4) && digits(month, 2) => format!("{year}-{month}-01"),
            [year, month, day] if digits(year, 4) && digits(month, 2) && digits(day, 2) => text.to_owned(),
            _ => return None,
        };
        let first: Date = whole.parse().ok()?;
        let last = match parts.len() {
            1 => first.last_of_year(),
            2 => first.last_of_month(),
            _ => first,
        };
        Some(Self { first, last, text: text.to_owned() })
    }

    /// How old it is on a day: at least, and at most. Negative where it is yet to come.
    fn age_days(&self, today: Date) -> (i32, i32) {
        let days = |since: Date| {
            since.duration_until(today).as_hours().try_into().map_or(i32::MAX, |hours: i32| hours / 24)
        };
        (days(self.last), days(self.first))
    }
}

/// How old a price is: at least and at most, since a year or a month is no day.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Age {
    /// At least so many days.
    pub least_days: i32,
    /// At most so many.
    pub most_days: i32,
}

impl Age {
    /// Surely older than [`STALE_DAYS`].
    pub fn is_stale(self) -> bool {
        self.least_days > STALE_DAYS
    }

    /// Perhaps older than [`STALE_DAYS`]: its date doesn't tell.
    pub fn may_be_stale(self) -> bool {
        self.most_days > STALE_DAYS
    }

    /// Its word in a table.
    pub(super) fn verdict(self) -> &'static str {
        match (self.is_stale(), self.may_be_stale()) {
            (true, _) => "STALE",
            (false, true) => "perhaps",
            (false, false) => "-",
        }
    }
}

impl fmt::Display for Age {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { least_days, most_days } = self;
        if least_days == most_days {
            write!(f, "{least_days}")
        } else {
            write!(f, "{least_days}-{most_days}")
        }
    }
}

impl fmt::Display for AsOf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Serialize for AsOf {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for AsOf {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl Visitor<'_> for Text {
            type Value = AsOf;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a date: 2026-11-22, 2026-11 or 2026")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<AsOf, E> {
                AsOf::parse(text).ok_or_else(|| E::invalid_value(serde::de::Unexpected::Str(text), &self))
            }

            fn visit_u64<E: serde::de::Error>(self, year: u64) -> Result<AsOf, E> {
                self.visit_str(&year.to_string())
            }

            fn visit_i64<E: serde::de::Error>(self, year: i64) -> Result<AsOf, E> {
                self.visit_str(&year.to_string())
            }
        }
        deserializer.deserialize_any(Text)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    #[serde(default)]
    prices: BTreeMap<String, Spanned<Entry>>,
    #[serde(default)]
    exchange: Vec<Spanned<Conversion>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Word {
    Dedicated,
    Serverless,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Entry {
    kind: Word,
    provider: Option<String>,
    model: Option<String>,
    machine_hour: Option<Spanned<f64>>,
    gpus: Option<Spanned<u32>>,
    gpu_hour: Option<Spanned<f64>>,
    gpu_second: Option<Spanned<f64>>,
    vcpu_hour: Option<Spanned<f64>>,
    vcpu_second: Option<Spanned<f64>>,
    gib_hour: Option<Spanned<f64>>,
    gib_second: Option<Spanned<f64>>,
    least_vcpus: Option<Spanned<f64>>,
    least_gib: Option<Spanned<f64>>,
    billed_seconds: Option<Spanned<f64>>,
    currency: Spanned<String>,
    as_of: Spanned<AsOf>,
    source: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Conversion {
    from: Spanned<String>,
    to: Spanned<String>,
    rate: Spanned<f64>,
    as_of: Spanned<AsOf>,
    #[serde(default)]
    source: String,
}

pub(super) fn parse(file: &str, bytes: &[u8], today: Date) -> Result<Prices, Error> {
    if bytes.len() as u64 > SIZE_LIMIT {
        return Err(Error::Large { file: file.to_owned() });
    }
    let wrong = |what: String| Error::Parse { file: file.to_owned(), what };
    let text = str::from_utf8(bytes).map_err(|error| {
        let line = bytes[..error.valid_up_to()].split(|&byte| byte == b'\n').count();
        wrong(format!("line {line} is not UTF-8"))
    })?;
    let text = text.trim_start_matches('\u{feff}');
    if text.lines().all(|line| line.trim().is_empty() || line.trim_start().starts_with('#')) {
        return Err(wrong(
            "it is empty; `kubectl spillway prices --help` shows what a price file looks like".to_owned(),
        ));
    }
    let document: Document = serde_saphyr::from_str(text).map_err(|error| {
        // The parser adds an excerpt of the file below its message.
        let message = error.to_string();
        let line = message.lines().next().unwrap_or_default().trim_start_matches("error: ");
        // What a programmer could set is no help here.
        let what = line.split(", set DuplicateKeyPolicy").next().unwrap_or_default();
        wrong(format!("{what}; `kubectl spillway prices --help` shows what a price file looks like"))
    })?;
    let mut prices = BTreeMap::new();
    for (name, entry) in document.prices {
        let reader = Reader { file, name: &name, today };
        let price = reader.price(entry)?;
        prices.insert(name, price);
    }
    let exchange = document
        .exchange
        .into_iter()
        .map(|rate| Reader { file, name: "exchange", today }.exchange(rate.value))
        .collect::<Result<_, _>>()?;
    Ok(Prices { prices, exchange })
}

struct Reader<'a> {
    file: &'a str,
    name: &'a str,
    today: Date,
}

impl Reader<'_> {
    fn wrong(&self, at: Location, what: impl Into<String>) -> Error {
        Error::Price {
            file: self.file.to_owned(),
            line: at.line(),
            name: self.name.to_owned(),
            what: what.into(),
        }
    }

    fn price(&self, entry: Spanned<Entry>) -> Result<Price, Error> {
        let at = entry.referenced;
        let entry = entry.value;
        let kind = match entry.kind {
            Word::Dedicated => Kind::Dedicated,
            Word::Serverless => Kind::Serverless,
        };
        if self.name.trim().is_empty() || self.name.parse::<f64>().is_ok() {
            return Err(self.wrong(at, "a price's name may not be empty or a number"));
        }
        let machine_per_hour = self.amount("machineHour", entry.machine_hour.as_ref(), None)?;
        let gpu = self.amount("gpuHour", entry.gpu_hour.as_ref(), entry.gpu_second.as_ref())?;
        let vcpu_per_hour = self.amount("vcpuHour", entry.vcpu_hour.as_ref(), entry.vcpu_second.as_ref())?;
        let gib_per_hour = self.amount("gibHour", entry.gib_hour.as_ref(), entry.gib_second.as_ref())?;
        let least_vcpus = self.within("leastVcpus", entry.least_vcpus.as_ref(), MOST_BESIDE)?;
        let least_gib = self.within("leastGib", entry.least_gib.as_ref(), MOST_BESIDE)?;
        let billed_s = self.within("billedSeconds", entry.billed_seconds.as_ref(), MOST_BILLED_S)?;
        if let Some(gpus) = &entry.gpus
            && !(1..=MOST_GPUS).contains(&gpus.value)
        {
            return Err(self.wrong(gpus.referenced, format!("gpus is {}: give 1 to {MOST_GPUS}", gpus.value)));
        }
        let gpus = entry.gpus.map(|gpus| gpus.value);
        let gpu_per_hour = match (gpu, machine_per_hour, gpus) {
            (Some(gpu), None, _) => {
                let beside = [(least_vcpus, vcpu_per_hour, "vcpu"), (least_gib, gib_per_hour, "gib")];
                let mut all = gpu;
                for (least, per_hour, what) in beside {
                    if least > 0.0 {
                        let per_hour = per_hour.ok_or_else(|| {
                            self.wrong(
                                at,
                                format!("some {what} have to be rented with a GPU, and have no price"),
                            )
                        })?;
                        all += least * per_hour;
                    }
                }
                Some(all)
            }
            (None, Some(machine), Some(gpus)) => Some(machine / f64::from(gpus)),
            (Some(_), Some(_), _) => {
                return Err(self.wrong(at, "it has the price of a machine and that of a GPU: give one"));
            }
            (None, ..) => None,
        };
        if machine_per_hour.is_none() && gpu.is_none() && vcpu_per_hour.is_none() && gib_per_hour.is_none() {
            return Err(self.wrong(at, "it has no price: give machineHour, gpuHour, vcpuHour or gibHour"));
        }
        let (as_of, age) = self.age(entry.as_of)?;
        Ok(Price {
            name: self.name.to_owned(),
            kind,
            provider: entry.provider,
            model: entry.model,
            currency: self.currency(&entry.currency)?,
            machine_per_hour,
            gpus,
            gpu_per_hour,
            vcpu_per_hour,
            gib_per_hour,
            billed_s,
            as_of,
            age_days: age.least_days,
            age_days_at_most: age.most_days,
            stale: age.is_stale(),
            source: entry.source,
            file: self.file.to_owned(),
        })
    }

    fn exchange(&self, rate: Conversion) -> Result<Exchange, Error> {
        let (from, to) = (self.currency(&rate.from)?, self.currency(&rate.to)?);
        if from == to {
            return Err(self.wrong(rate.to.referenced, "from a currency to itself"));
        }
        let Spanned { value, referenced, .. } = rate.rate;
        if !(1e-6..=1e6).contains(&value) {
            return Err(self.wrong(referenced, format!("rate is {value}: give what one {from} is in {to}")));
        }
        let (as_of, age) = self.age(rate.as_of)?;
        Ok(Exchange {
            from,
            to,
            rate: value,
            as_of,
            age_days: age.least_days,
            age_days_at_most: age.most_days,
            stale: age.is_stale(),
            source: rate.source,
            file: self.file.to_owned(),
        })
    }

    fn currency(&self, text: &Spanned<String>) -> Result<Currency, Error> {
        text.value.parse().map_err(|error: Error| self.wrong(text.referenced, error.to_string()))
    }

    fn age(&self, as_of: Spanned<AsOf>) -> Result<(AsOf, Age), Error> {
        let (least, most) = as_of.value.age_days(self.today);
        // Where the writer's day has begun, ours may not have.
        if most < -1 {
            return Err(
                self.wrong(as_of.referenced, format!("asOf is {}, which is yet to come", as_of.value))
            );
        }
        Ok((as_of.value, Age { least_days: least.max(0), most_days: most.max(0) }))
    }

    /// A price by the hour, or by the second.
    fn amount(
        &self,
        key: &str,
        hour: Option<&Spanned<f64>>,
        second: Option<&Spanned<f64>>,
    ) -> Result<Option<f64>, Error> {
        let (given, per_hour) = match (hour, second) {
            (None, None) => return Ok(None),
            (Some(hour), None) => (hour, hour.value),
            (None, Some(second)) => (second, second.value * SECONDS_PER_HOUR),
            (Some(_), Some(second)) => {
                return Err(self.wrong(second.referenced, format!("{key} is there by the second, too")));
            }
        };
        check(per_hour)
            .map_err(|what| self.wrong(given.referenced, format!("{key} is {}: {what}", given.value)))?;
        Ok(Some(per_hour))
    }

    /// A number from 0 to `most`, 0 where there is none.
    fn within(&self, key: &str, given: Option<&Spanned<f64>>, most: f64) -> Result<f64, Error> {
        let Some(given) = given else { return Ok(0.0) };
        if !(0.0..=most).contains(&given.value) {
            return Err(self.wrong(given.referenced, format!("{key} is {}: give 0 to {most}", given.value)));
        }
        Ok(given.value)
    }
}

/// What can't be a price per hour.
pub(super) fn check(per_hour: f64) -> Result<(), &'static str> {
    if per_hour.is_nan() {
        Err("not a number")
    } else if per_hour < 0.0 {
        Err("a price may not be negative")
    } else if per_hour == 0.0 {
        Err("nothing is for free; leave out what has no price")
    } else if per_hour > MOST_PER_HOUR {
        Err("too much for an hour of anything")
    } else {
        Ok(())
    }
}
