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
#[command(after_long_help = "A price file is YAML or JSON:
  prices:
    our-a100:                # its name for --dedicated-price
      kind: dedicated        # paid whether used or not; or serverless
      model: A100            # may be left out, as provider may
      machineHour: 18.40     # of a machine of so many gpus; or gpuHour
      gpus: 8
      currency: EUR
      asOf: 2026-11-22       # or 2026-11, or 2026
      source: contract of November 2026
    rented-a100:
      kind: serverless       # with vcpuHour, gibHour, leastVcpus, leastGib and
      gpuSecond: 0.00175     # billedSeconds where they count
      currency: USD
      asOf: 2026-11-22
      source: the provider's list
  exchange:                  # only where currencies meet
  - {from: USD, to: EUR, rate: 0.86, asOf: 2026-11-22, source: ECB}

Examples:
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
