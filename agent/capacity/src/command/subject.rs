//! What a page is about: the commands that have one, with their own flags.

use std::path::PathBuf;

use anyhow::ensure;
use jiff::Timestamp;

use super::{history, optimize, report, showback, simulate, what_if};
use crate::{
    args::Global,
    pages::{self, model::Page},
    trace,
};

/// What to show.
#[allow(clippy::large_enum_variant, reason = "there is one of it")]
#[derive(Debug, Clone, clap::Subcommand)]
pub(super) enum Subject {
    /// Who has what, what is idle or stranded, and why pods wait.
    Report(report::Args),
    /// How many GPUs to own and how many to rent.
    Optimize(optimize::Args),
    /// Jobs replayed against a pool and a policy.
    Simulate(simulate::Args),
    /// Before and after, side by side.
    WhatIf(what_if::Args),
    /// Usage over time.
    History(history::Args),
    /// Who pays for a month.
    Showback(showback::Args),
}

impl Subject {
    /// Its name, as on the command line.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Report(_) => "report",
            Self::Optimize(_) => "optimize",
            Self::Simulate(_) => "simulate",
            Self::WhatIf(_) => "what-if",
            Self::History(_) => "history",
            Self::Showback(_) => "showback",
        }
    }

    /// Makes the page; it may take long, and block.
    pub(super) fn page(&self, global: &Global) -> anyhow::Result<Page> {
        let now = Timestamp::now();
        match self {
            Self::Report(args) => {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
                let report = runtime.block_on(report::report(args, global))?;
                let cluster = global.context.as_ref().map_or_else(
                    || "The cluster of the current context".to_owned(),
                    |context| format!("The cluster of the context {context}"),
                );
                Ok(pages::report::page(&report, &cluster))
            }
            Self::Optimize(args) => {
                Ok(pages::optimize::page(&args.optimization()?, &files(&args.trace), now))
            }
            Self::Simulate(args) => {
                ensure!(args.inflate.is_none(), "a page shows a replay: --inflate has none");
                let mut warnings = Vec::new();
                let found = args.simulation(&mut |warning| warnings.push(warning.to_owned()))?;
                let subject = if args.trace.files.is_empty() {
                    "jobs by chance".to_owned()
                } else {
                    files(&args.trace)
                };
                Ok(pages::simulate::page(&found, &subject, &warnings, now))
            }
            Self::WhatIf(args) => Ok(pages::what_if::page(&args.what_if()?, &files(&args.trace), now)),
            Self::History(args) => Ok(pages::history::page(&history::found(args, global)?, now)),
            Self::Showback(args) => Ok(pages::showback::page(&showback::of(args, global)?, now)),
        }
    }
}

/// What a trace is called: its files' names.
fn files(trace: &trace::Args) -> String {
    let name = |path: &PathBuf| {
        path.file_name()
            .map_or_else(|| path.display().to_string(), |name| name.to_string_lossy().into_owned())
    };
    let names: Vec<String> = trace.files.iter().map(name).collect();
    match names.as_slice() {
        [one] if one == "-" => "standard input".to_owned(),
        [first, .., last] if names.len() > 3 => format!("{first} … {last} ({} files)", names.len()),
        all => all.join(", "),
    }
}
