//! `kubectl spillway report`: who has what, what is idle, what is stranded, and why a pod waits.

use std::{
    fmt::Write as _,
    io::{self, IsTerminal as _, Write},
    time::Instant,
};

use anstyle::{AnsiColor, Style};
use anyhow::Context as _;

use crate::{
    args::Global,
    cluster::{self, Reading, rights},
    command::{Outcome, prometheus},
    output::{self, Format, Table},
    price,
    report::{self, Options, Pricing, Report, Selector, Took, condition::Condition},
    terminal,
};

const EXAMPLES: &str = "Examples:
  kubectl spillway report
  kubectl spillway report -o wide --selector kubernetes.io/os=linux
  kubectl spillway report --fail-if 'stranded>20%' \\
      --fail-if 'waiting_s>=86400'
  kubectl spillway report -n team-a --idle-after 60
  kubectl spillway report --show-rbac

Exit codes: 0, 1 for an error, 2 for a wrong command line, 3 if a condition of --fail-if holds.";

/// Flags of `report`.
#[derive(Debug, Clone, clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub struct Args {
    /// Only machines with these labels, and pods that wait for what such machines offer; as kubectl takes it: `pool=a100,tier!=test`.
    #[arg(short = 'l', long, value_name = "SELECTOR")]
    selector: Option<Selector>,
    /// Another extended resource that is an accelerator. Those of the usual vendors are known.
    #[arg(long = "resource", value_name = "NAME")]
    resources: Vec<String>,
    /// For how many minutes accelerators must have been unused to be called idle, where that is known.
    #[arg(long, value_name = "MINUTES", default_value_t = 5.0)]
    idle_after: f64,
    /// Don't ask who uses what: neither agents nor exporters nor metrics-server.
    #[arg(long, conflicts_with = "prometheus")]
    no_usage: bool,
    #[command(flatten)]
    prometheus: prometheus::Args,
    #[command(flatten)]
    prices: price::Args,
}

/// Flags of `report` that say how it is told.
#[derive(Debug, Clone, clap::Args)]
pub struct Telling {
    #[command(flatten)]
    report: Args,
    /// Say it again at each change, until interrupted.
    #[arg(short, long, conflicts_with = "fail_if")]
    watch: bool,
    /// End with exit code 3 if this holds, such as `stranded>20%`, `idle>=4`, `waiting>0`, `used<30%`; may be given several times. Per cents are of a pool's
    /// allocatable. Compares allocated, requested, used, idle, free, stranded, `largest_pod` or fragmentation of each pool of machines that are owned, or waiting (pods) or
    /// `waiting_s` (seconds) of all.
    #[arg(long, value_name = "CONDITION")]
    fail_if: Vec<Condition>,
    /// Print the role that grants what a report reads, with -n what can be granted in one namespace, and end.
    #[arg(long)]
    show_rbac: bool,
}

/// Reports.
pub(super) fn run(args: &Telling, global: &Global) -> anyhow::Result<Outcome> {
    if args.show_rbac {
        let mut out = output::stdout();
        out.write_all(rights::manifest(global.namespace.as_deref()).as_bytes()).and_then(|()| out.flush())?;
        return Ok(Outcome::Done);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    if args.watch {
        return runtime.block_on(watch(args, global));
    }
    let report = runtime.block_on(report(&args.report, global))?;
    let mut out = output::stdout();
    out.write_all(&told(&report, global.output)?)
        .and_then(|()| out.flush())
        .context("can't print the report")?;
    let mut outcome = Outcome::Done;
    for condition in &args.fail_if {
        if let Some(held) = condition.holds(&report)? {
            eprintln!("fails: {}", terminal::printable(&held));
            outcome = Outcome::Failing;
        }
    }
    Ok(outcome)
}

/// Reads the cluster and reports on it.
///
/// # Errors
/// When the cluster can't be read, or a price is none.
pub async fn report(args: &Args, global: &Global) -> anyhow::Result<Report> {
    let options = args.options(global)?;
    let client = cluster::connect(global).await?;
    let snapshot = cluster::read(&client, &args.reading(global).await?).await?;
    let begun = Instant::now();
    let report = report::of(&snapshot, &options);
    let reckoning_s = begun.elapsed().as_secs_f64();
    let took = Took { lists_s: snapshot.lists_s, beside_s: snapshot.beside_s, reckoning_s };
    Ok(Report { took: Some(took), ..report })
}

impl Args {
    fn options(&self, global: &Global) -> anyhow::Result<Options> {
        Ok(Options {
            resources: self.resources.clone(),
            namespace: global.namespace.clone(),
            selector: self.selector.clone().unwrap_or_default(),
            idle_after_s: self.idle_after * 60.0,
            pricing: Some(Pricing::of(&self.prices)?),
        })
    }

    async fn reading(&self, global: &Global) -> anyhow::Result<Reading> {
        Ok(Reading {
            usage: if self.no_usage { None } else { Some(cluster::connect_without_retries(global).await?) },
            namespace: global.namespace.clone(),
            prometheus: self.prometheus.transport(global).await?,
        })
    }
}

/// Again and again.
async fn watch(args: &Telling, global: &Global) -> anyhow::Result<Outcome> {
    let options = args.report.options(global)?;
    let client = cluster::connect(global).await?;
    let redraw = io::stdout().is_terminal() && matches!(global.output, Format::Table | Format::Wide);
    let mut last: Option<Report> = None;
    let mut failed = None;
    cluster::follow(&client, &args.report.reading(global).await?, |snapshot| {
        let report = report::of(snapshot, &options);
        let same = last.as_ref().is_some_and(|last| last.says_the_same(&report));
        // On a screen the times go on; elsewhere only news is worth a line.
        if same && !redraw {
            return true;
        }
        let shown = told(&report, global.output).and_then(|text| {
            let mut out = output::stdout();
            if redraw {
                // From the first line, and nothing below it.
                out.write_all(b"\x1b[H\x1b[2J")?;
            } else if last.is_some() && matches!(global.output, Format::Table | Format::Wide) {
                writeln!(out)?;
            }
            out.write_all(&text).and_then(|()| out.flush()).context("can't print the report")
        });
        last = Some(report);
        failed = shown.err();
        failed.is_none()
    })
    .await?;
    failed.map_or(Ok(Outcome::Done), Err)
}

/// With colours where a terminal is that shows them.
fn told(report: &Report, format: Format) -> anyhow::Result<Vec<u8>> {
    let tables = if format == Format::Table { report.brief_tables() } else { report.tables() };
    let mut text = Vec::new();
    output::print_within(&mut text, format, report, &tables, terminal::columns())
        .context("can't print the report")?;
    Ok(match format {
        Format::Table | Format::Wide if shows_colours() => {
            coloured(&String::from_utf8_lossy(&text), &tables).into_bytes()
        }
        Format::Table | Format::Wide | Format::Json | Format::Yaml | Format::Csv => text,
    })
}

/// Not where `NO_COLOR` is set, the terminal has none, or there is none.
fn shows_colours() -> bool {
    anstream::AutoStream::choice(&io::stdout()) != anstream::ColorChoice::Never
}

/// Nobody's names pass as colours: what would be one was made visible before.
fn coloured(text: &str, tables: &[Table]) -> String {
    let (title, sentence) = (Style::new().bold(), AnsiColor::Cyan.on_default());
    let mut coloured = String::with_capacity(text.len() + text.len() / 8);
    for line in text.lines() {
        let style = if tables.iter().any(|table| table.title == line) {
            title
        } else if line.starts_with("    would start: ") {
            sentence
        } else {
            Style::new()
        };
        let _ = writeln!(coloured, "{style}{line}{style:#}");
    }
    coloured
}
