//! `kubectl spillway record`: writes down what the cluster shows, again and again.

use std::{io::IsTerminal as _, path::PathBuf, time::Duration};

use anyhow::Context as _;

use crate::{
    args::Global,
    command::Outcome,
    history::{
        database::Database,
        period,
        recorder::{Options, Recorder, Turn},
        sampling::Labels,
    },
};

/// Flags of `record`.
#[derive(Debug, Clone, clap::Args)]
#[command(after_long_help = "Examples:
  kubectl spillway record --database history.db
  kubectl spillway record --database history.db --once
  kubectl spillway record --database history.db --interval 5m --label team \\
      --max-size 200Mi

In a cluster the chart's Deployment does it: helm upgrade … --set recorder.enabled=true")]
pub struct Args {
    /// The file to write to; made where there is none.
    #[arg(long, value_name = "FILE")]
    pub database: PathBuf,
    /// The time between two samples. With --once: how often it is run.
    #[arg(long, default_value = "60s", value_name = "DURATION", value_parser = interval)]
    pub interval: Duration,
    /// Take one sample and end, with an error where it can't be taken.
    #[arg(long)]
    pub once: bool,
    /// The label of pods to divide costs by, beside their namespace, such as team.
    #[arg(long, value_name = "KEY")]
    pub label: Option<String>,
    /// The label of pods that names their user, such as hub.jupyter.org/username.
    #[arg(long, value_name = "KEY")]
    pub user_label: Option<String>,
    /// How long it is remembered. Samples are kept for 14 days, quarters of an hour for 100 days, hours for as long as this; at least 100 days.
    #[arg(long, default_value = "5y", value_name = "DURATION", value_parser = period::seconds)]
    pub keep: i64,
    /// How large the file may become. When it is full, samples are summed up sooner, and at last the oldest hours forgotten.
    #[arg(long, default_value = "1Gi", value_name = "SIZE", value_parser = period::bytes)]
    pub max_size: u64,
}

fn interval(text: &str) -> Result<Duration, String> {
    let seconds = period::seconds(text)?;
    // A minute's samples fill a quarter of an hour; what is longer than an hour fills no hour.
    match u64::try_from(seconds) {
        Ok(seconds @ 1..=3600) => Ok(Duration::from_secs(seconds)),
        _ => Err(format!("{text} is no interval for samples: from 1s to 1h")),
    }
}

/// Records until it is told to end.
pub(super) fn run(args: &Args, global: &Global) -> anyhow::Result<Outcome> {
    // Before anything else, so that a second recorder is told so whatever the cluster says.
    let database = Database::write(&args.database, args.max_size)?;
    let labels = Labels { label: args.label.clone(), user: args.user_label.clone() };
    for (key, value) in [("label", &labels.label), ("user-label", &labels.user)] {
        let value = value.as_deref().unwrap_or_default();
        match database.set(key, value) {
            Err(error) if !error.full() => return Err(error.into()),
            _ => {}
        }
    }
    let _ = tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .try_init();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(record(args, global, database, labels))
}

async fn record(args: &Args, global: &Global, database: Database, labels: Labels) -> anyhow::Result<Outcome> {
    let source = super::source::Cluster::connect(global, labels).await?;
    let options = Options { interval: args.interval, keep_s: args.keep };
    let path = args.database.display().to_string();
    let mut recorder = Recorder::new(source, database, options);
    if args.once {
        return match recorder.turn().await? {
            Turn::Missed => anyhow::bail!("no sample was stored in {path}"),
            Turn::Stored | Turn::Known => Ok(Outcome::Done),
        };
    }
    tracing::info!(database = path, interval_s = args.interval.as_secs(), "recording");
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())
        .context("can't listen for signals")?;
    // Storing is one step that nothing interrupts; who is asked at the moment is not waited for.
    tokio::select! {
        ended = recorder.run() => match ended? {},
        _ = terminate.recv() => {}
        _ = tokio::signal::ctrl_c() => {}
    }
    tracing::info!("ended as told");
    Ok(Outcome::Done)
}
