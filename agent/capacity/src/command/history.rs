//! `kubectl spillway history`: usage over time, and its export as a trace.

use anyhow::{Context as _, ensure};
use jiff::Timestamp;

use crate::{
    args::Global,
    command::{Outcome, usage},
    history::{
        History, period,
        view::{By, Shown, View},
    },
    output::{self, Format},
    terminal::printable,
};

/// More steps are no plot, and fill the memory.
const MOST_STEPS: i64 = 200_000;

/// Flags of `history`.
#[derive(Debug, Clone, clap::Args)]
#[command(after_long_help = "Examples:
  kubectl spillway history --database history.db --since 7d --step 15m
  kubectl spillway history --database history.db --since 2026-10-01 \\
      --until 2026-11-01 --show allocated -o wide
  kubectl spillway history --database history.db --since 2026-10-01 \\
      --until 2026-11-01 -o csv > trace.csv
  kubectl spillway history \\
      --prometheus svc://monitoring/prometheus-operated:9090 --since 30d

With -o csv it is the demand, a row for each pool and owner at each time: a trace for `simulate` and `optimize`. Times that were not recorded have no rows.")]
pub struct Args {
    /// Where from.
    #[command(flatten)]
    pub usage: usage::Args,
    /// From when on: a duration before now, a date, or RFC 3339.
    #[arg(long, default_value = "30d", value_name = "TIME")]
    pub since: String,
    /// Until when.
    #[arg(long, default_value = "now", value_name = "TIME")]
    pub until: String,
    /// The time between two points.
    #[arg(long, default_value = "1h", value_name = "DURATION", value_parser = period::seconds)]
    pub step: i64,
    /// What is shown: all but the demand where it isn't said, and the demand alone with -o csv.
    #[arg(long, value_enum, value_name = "WHAT")]
    pub show: Option<Shown>,
    /// Who counts as the owner.
    #[arg(long, value_enum, default_value_t, value_name = "WHO")]
    pub by: By,
}

/// Shows usage over time.
pub(super) fn run(args: &Args, global: &Global) -> anyhow::Result<Outcome> {
    let history = found(args, global)?;
    for warning in &history.warnings {
        eprintln!("warning: {}", printable(warning));
    }
    let tables = if global.output == Format::Csv { vec![history.points()] } else { history.tables() };
    output::print(&mut output::stdout(), global.output, &history, &tables)?;
    Ok(Outcome::Done)
}

/// Usage over time.
pub(super) fn found(args: &Args, global: &Global) -> anyhow::Result<History> {
    let now_s = Timestamp::now().as_second();
    let time = |text: &str| period::time(text, now_s).map_err(anyhow::Error::msg);
    let view = View {
        since_s: time(&args.since).context("--since")?,
        until_s: time(&args.until).context("--until")?,
        step_s: args.step,
        show: args.show.or((global.output == Format::Csv).then_some(Shown::Demand)),
        by: args.by,
        namespace: global.namespace.clone(),
        stranded_since_s: None,
    };
    ensure!(view.since_s < view.until_s, "--since {} is not before --until {}", args.since, args.until);
    let steps = (view.until_s - view.since_s) / view.step_s;
    ensure!(
        steps <= MOST_STEPS,
        "that are {steps} steps, and {MOST_STEPS} are the most: take a longer --step or less time"
    );
    let found = usage::read(&args.usage, global, (view.since_s, view.until_s, view.step_s), view.by)?;
    let view = View {
        since_s: found.since_s,
        until_s: found.until_s,
        stranded_since_s: found.stranded_since_s,
        ..view
    };
    let mut history = History::of(found.source, &found.recorded, &view);
    history.warnings = found.warnings;
    Ok(history)
}
