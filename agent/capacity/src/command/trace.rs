//! `kubectl spillway trace`: what is in a trace, before anything is decided by it.

use crate::{
    args::Global,
    command::Outcome,
    output,
    trace::{self, summary::Summary},
};

/// Flags of `trace`.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Examples:
  # Jobs, in columns of Spillway's own
  kubectl spillway trace jobs.csv

  # Jobs of a trace with other names
  kubectl spillway trace jobs.csv \\
      --columns submit=submit,duration=duration,gpus=gpus

  # Demand over time, without a single doubt
  kubectl spillway trace demand.csv --strict -o json")]
pub struct Args {
    #[command(flatten)]
    trace: trace::Args,
}

/// Reads the trace to its end and prints what was in it.
pub(super) fn run(args: &Args, global: &Global) -> anyhow::Result<Outcome> {
    let summary = Summary::of(args.trace.open()?)?;
    output::print(&mut output::stdout(), global.output, &summary, &summary.tables())?;
    Ok(Outcome::Done)
}
