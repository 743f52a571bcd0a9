//! `kubectl spillway showback`: who pays for a month.

use std::{cell::RefCell, collections::BTreeSet};

use anyhow::{Context as _, ensure};
use jiff::Timestamp;

use crate::{
    args::Global,
    command::{Outcome, usage},
    history::{
        Pool, Showback, period,
        showback::{Question, Tariff},
        view::By,
    },
    output::{self, Format},
    price::{self, Currency, Kind, Prices},
    terminal::printable,
};

/// Months begin and end with an hour, and of these sums are exact.
const STEP_S: i64 = 3600;

/// Flags of `showback`.
#[derive(Debug, Clone, clap::Args)]
#[command(after_long_help = "Examples:
  kubectl spillway showback --database history.db --month 2026-10 \\
      --dedicated-price 0.40 --serverless-price 1.20
  kubectl spillway showback --database history.db --month 2026-10 \\
      --dedicated-price 0.40 --serverless-price 1.20 --spread-idle -o csv
  kubectl spillway showback --prometheus https://prometheus.example.com \\
      --prometheus-token-file token --month 2026-10

Owned machines cost what they cost: that is divided by the GPU-hours that each held, and what nobody held is the line (idle). Months are of UTC.
Without --dedicated-price and --serverless-price each pool has the price that is known of its model; see `kubectl spillway prices`.")]
pub struct Args {
    /// Where from.
    #[command(flatten)]
    pub usage: usage::Args,
    /// Which month: YEAR-MONTH. The one under way until now.
    #[arg(long, value_name = "YEAR-MONTH")]
    pub month: String,
    /// Who pays.
    #[arg(long, value_enum, default_value_t, value_name = "WHO")]
    pub by: By,
    /// Divide what nobody held among those who held something of the same pool.
    #[arg(long)]
    pub spread_idle: bool,
    /// What it costs.
    #[command(flatten)]
    pub prices: price::Args,
}

/// Divides a month's costs.
pub(super) fn run(args: &Args, global: &Global) -> anyhow::Result<Outcome> {
    let showback = of(args, global)?;
    for warning in &showback.warnings {
        eprintln!("warning: {}", printable(warning));
    }
    let mut tables = showback.tables();
    if global.output == Format::Csv {
        // One table that a spreadsheet takes as it is.
        tables.truncate(1);
    }
    output::print(&mut output::stdout(), global.output, &showback, &tables)?;
    Ok(Outcome::Done)
}

/// What `showback` prints, and pages are made of.
pub(super) fn of(args: &Args, global: &Global) -> anyhow::Result<Showback> {
    let (since_s, end_s) = period::month(&args.month).map_err(anyhow::Error::msg)?;
    let now_s = Timestamp::now().as_second();
    ensure!(since_s < now_s, "{} has not begun", args.month);
    let tariff = Priced::of(&args.prices)?;
    let found = usage::read(&args.usage, global, (since_s, end_s.min(now_s), STEP_S), args.by)?;
    let question = Question {
        name: args.month.clone(),
        since_s,
        until_s: found.until_s,
        by: args.by,
        namespace: global.namespace.clone(),
        spread_idle: args.spread_idle,
    };
    let mut showback = Showback::of(found.source, &found.recorded, &tariff, &question);
    showback.warnings.splice(0..0, found.warnings);
    showback.warnings.extend(tariff.notes.into_inner());
    Ok(showback)
}

/// The prices that the flags say, else those that are known of a pool's model.
struct Priced {
    prices: Prices,
    dedicated: Option<f64>,
    serverless: Option<f64>,
    currency: Currency,
    /// Which prices were taken, and what is to know about them.
    notes: RefCell<BTreeSet<String>>,
}

impl Priced {
    fn of(args: &price::Args) -> anyhow::Result<Self> {
        let today = price::today();
        let prices = args.load(today)?;
        let mut this = Self {
            prices,
            dedicated: None,
            serverless: None,
            currency: args.currency.unwrap_or(Currency::USD),
            notes: RefCell::default(),
        };
        let both = args.dedicated_price.is_some() && args.serverless_price.is_some();
        if both || args.accelerator.is_some() {
            let rates = args.rates(today)?;
            this.dedicated = Some(rates.dedicated_per_gpu_hour);
            this.serverless = Some(rates.serverless_per_gpu_hour);
            this.currency = rates.currency;
            this.notes.get_mut().extend(rates.warnings);
            return Ok(this);
        }
        // One alone: who rents nothing need not say what that would cost.
        if let Some(given) = &args.dedicated_price {
            this.dedicated = Some(this.one(given, Kind::Dedicated, args.currency)?);
        }
        if let Some(given) = &args.serverless_price {
            this.serverless = Some(this.one(given, Kind::Serverless, args.currency)?);
        }
        Ok(this)
    }

    /// A number, or a price by name, which says the currency where the flags don't.
    fn one(&mut self, given: &str, kind: Kind, currency: Option<Currency>) -> anyhow::Result<f64> {
        if let Ok(number) = given.parse::<f64>() {
            ensure!((0.0..1e9).contains(&number), "{given} can't be what a GPU costs for an hour");
            return Ok(number);
        }
        let known = self.prices.prices.get(given).filter(|price| price.kind == kind);
        let (amount, from) =
            known.and_then(|price| Some((price.gpu_per_hour?, price.currency))).with_context(|| {
                format!(
                    "there is no {} price {given:?} of a GPU; `kubectl spillway prices` lists them",
                    kind.name()
                )
            })?;
        self.currency = currency.unwrap_or(from);
        let (amount, _) = self.prices.convert(amount, from, self.currency).with_context(|| {
            format!("{given} is in {from}, and there is no exchange rate to {}", self.currency)
        })?;
        Ok(amount)
    }

    /// What is known of a model, in the currency of the result.
    fn known(&self, kind: Kind, pool: &Pool) -> Option<f64> {
        if pool.model.is_empty() {
            return None;
        }
        let price = self.prices.of_model(kind, &pool.model)?;
        let (amount, _) = self.prices.convert(price.gpu_per_hour?, price.currency, self.currency)?;
        let old = if price.stale { ", which is old: ask again" } else { "" };
        self.notes
            .borrow_mut()
            .insert(format!("{} has the price {} of {}{old}", pool.name, price.name, price.as_of));
        Some(amount)
    }
}

impl Tariff for Priced {
    fn per_gpu_hour(&self, pool: &Pool) -> Option<f64> {
        let (given, kind) = if pool.serverless {
            (self.serverless, Kind::Serverless)
        } else {
            (self.dedicated, Kind::Dedicated)
        };
        given.or_else(|| self.known(kind, pool))
    }

    fn currency(&self) -> String {
        self.currency.to_string()
    }
}
