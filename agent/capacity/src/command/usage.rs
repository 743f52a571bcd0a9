//! Where usage over time is read from: the flags that `history` and `showback` share.

use std::{path::PathBuf, sync::Mutex};

use anyhow::Context as _;
use jiff::Timestamp;

use crate::{
    args::Global,
    history::{
        Recorded,
        database::Database,
        prometheus::{self, Progress, Range},
        view::By,
    },
    terminal,
};

/// Where usage is read from.
#[derive(Debug, Clone, clap::Args)]
#[group(skip)]
#[command(next_help_heading = "Where usage is read from")]
pub struct Args {
    /// The file of `kubectl spillway record`.
    #[arg(long, value_name = "FILE", required_unless_present = "prometheus", conflicts_with = "prometheus")]
    pub database: Option<PathBuf>,
    #[command(flatten)]
    pub prometheus: super::prometheus::Args,
    /// Your own query in `PromQL`, of which the values are GPUs demanded; its labels namespace, label and user are owners, pool, model or resource are pools.
    #[arg(long, value_name = "PROMQL", requires = "prometheus")]
    pub query: Option<String>,
}

/// What a source has.
pub(super) struct Usage {
    /// What it is called.
    pub(super) source: String,
    pub(super) recorded: Recorded,
    pub(super) warnings: Vec<String>,
    /// Since when it is known what was stranded.
    pub(super) stranded_since_s: Option<i64>,
    /// Whole steps only: what is after them isn't missing.
    pub(super) since_s: i64,
    pub(super) until_s: i64,
}

/// Reads what was recorded of a period.
pub(super) fn read(
    args: &Args,
    global: &Global,
    (since_s, until_s, step_s): (i64, i64, i64),
    by: By,
) -> anyhow::Result<Usage> {
    match (&args.database, &args.prometheus.prometheus) {
        (Some(path), _) => recorded(path, (since_s, until_s, step_s), by),
        (None, Some(address)) => {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let range = Range::of(since_s, until_s, step_s);
            anyhow::ensure!(
                range.since_s < range.until_s,
                "that time has no whole step: take a shorter --step"
            );
            let told = runtime.block_on(ask(args, global, range))?;
            let mut warnings = told.warnings;
            if told.recorded.steps.is_empty() {
                warnings.push("Prometheus has nothing of that time".to_owned());
            }
            Ok(Usage {
                source: address.clone(),
                recorded: told.recorded,
                warnings,
                stranded_since_s: None,
                since_s: range.since_s,
                until_s: range.until_s,
            })
        }
        (None, None) => anyhow::bail!("no usage is named: give --database FILE or --prometheus URL"),
    }
}

fn recorded(
    path: &std::path::Path,
    (since_s, until_s, step_s): (i64, i64, i64),
    by: By,
) -> anyhow::Result<Usage> {
    let database = Database::read(path)?;
    let recorded = database.recorded(since_s, until_s, step_s)?;
    let file = path.display();
    let mut warnings = Vec::new();
    if recorded.steps.is_empty() {
        warnings.push(match database.extent()? {
            Some((first_s, last_s)) => {
                let (first, last) = (Timestamp::from_second(first_s)?, Timestamp::from_second(last_s)?);
                format!("nothing was recorded in that time; {file} has {first} to {last}")
            }
            None => format!("nothing has been recorded in {file} yet"),
        });
    }
    for (one, key, flag) in [(By::Label, "label", "--label"), (By::User, "user-label", "--user-label")] {
        if by == one && database.setting(key)?.is_none_or(|label| label.is_empty()) {
            warnings.push(format!("the recorder runs without {flag}: all owners are the same"));
        }
    }
    let stranded_since_s = database.stranded_since()?;
    Ok(Usage { source: file.to_string(), recorded, warnings, stranded_since_s, since_s, until_s })
}

async fn ask(args: &Args, global: &Global, range: Range) -> anyhow::Result<prometheus::Told> {
    let transport = args.prometheus.transport(global).await?.context("no --prometheus is given")?;
    prometheus::reach(&transport).await?;
    let queries = match &args.query {
        Some(query) => prometheus::own(query),
        None => prometheus::detect(&transport, range).await?,
    };
    let bar: Mutex<Option<indicatif::ProgressBar>> = Mutex::new(None);
    let progress = |step: Progress| {
        let mut bar = bar.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        match step {
            Progress::Parts(parts) => *bar = Some(terminal::progress(u64::try_from(parts).ok(), "queries")),
            Progress::Done => bar.iter().for_each(|bar| {
                bar.set_message("");
                bar.inc(1);
            }),
            Progress::Waits(error) => {
                let why = terminal::printable(&error.to_string());
                bar.iter().for_each(|bar| bar.set_message(format!("waiting: {why}")));
            }
        }
    };
    let told = prometheus::ask(&transport, &queries, range, &progress).await;
    if let Some(bar) = bar.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take() {
        bar.finish_and_clear();
    }
    Ok(told?)
}
