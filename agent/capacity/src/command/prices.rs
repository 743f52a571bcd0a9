//! `kubectl spillway prices`: what is reckoned with, where it is from, and how old it is.

use std::path::PathBuf;

use crate::{
    args::Global,
    command::Outcome,
    output,
    price::{self, Prices},
};

/// Flags of `prices`.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Examples:
  # The list prices that come with the program
  kubectl spillway prices

  # With the admin's own, as CSV
  kubectl spillway prices --prices prices.yaml -o csv")]
pub struct Args {
    /// A price file, of which each price takes the place of the built-in one with its name.
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    prices: Option<PathBuf>,
}

/// Prints all prices in force.
pub(super) fn run(args: &Args, global: &Global) -> anyhow::Result<Outcome> {
    let prices = Prices::load(args.prices.as_deref(), price::today())?;
    output::print(&mut output::stdout(), global.output, &prices, &prices.tables())?;
    Ok(Outcome::Done)
}
