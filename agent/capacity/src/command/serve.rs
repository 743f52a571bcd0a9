//! `kubectl spillway serve`: a result as a page that is made anew while one looks at it, on loopback.

use std::{
    ffi::OsString,
    io::Write as _,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, bail};
use clap::Parser as _;
use jiff::Timestamp;
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
};

use super::subject::Subject;
use crate::{
    args::Global,
    command::Outcome,
    pages::{
        model::Page,
        server::{Entry, router},
    },
};

const EXAMPLES: &str = "Examples:
  kubectl spillway serve
  kubectl spillway serve --database history.db
  kubectl spillway serve report
  kubectl spillway serve history --database history.db --since 7d
  kubectl spillway serve --address 127.0.0.1:0 --refresh 60 optimize \\
      demand.csv --ratio 3

Without a page it is an overview: the report, and with --database or --prometheus the last 30 days and who pays for the month under way, at the prices that are known.
Only this machine reaches it. From another, use a tunnel such as `ssh -L 8001:localhost:8001`.";

/// How long an answer that is being made may take once it is to end.
const GRACE: Duration = Duration::from_secs(5);

/// Flags of `serve`.
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub struct Args {
    /// Where to listen: an address of loopback, and a port; port 0 is any that is free.
    #[arg(long, value_name = "ADDRESS:PORT", default_value_t = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8001))]
    address: SocketAddr,
    /// How often the page is made anew, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 15, value_parser = clap::value_parser!(u32).range(1..=86_400))]
    refresh: u32,
    /// For the overview: the file of `kubectl spillway record`.
    #[arg(long, value_name = "FILE", conflicts_with = "prometheus")]
    database: Option<PathBuf>,
    /// For the overview: Prometheus.
    #[arg(long, value_name = "URL")]
    prometheus: Option<String>,
    /// What to show, if not an overview.
    #[command(subcommand)]
    subject: Option<Subject>,
}

/// A page as its own command line asks for it.
#[derive(Debug, clap::Parser)]
struct Asked {
    #[command(subcommand)]
    subject: Subject,
}

impl Args {
    /// All that is served.
    fn entries(&self, global: &Global) -> anyhow::Result<Vec<Entry>> {
        if let Some(subject) = &self.subject {
            if self.database.is_some() || self.prometheus.is_some() {
                bail!("--database and --prometheus are for the overview: give them behind the page's name");
            }
            let (subject, global) = (subject.clone(), global.clone());
            return Ok(vec![entry(subject.name(), move || subject.page(&global))]);
        }
        let mut entries = vec![overviewed("report", global, Vec::new)];
        let usage: Vec<OsString> = match (&self.database, &self.prometheus) {
            (Some(file), _) => vec!["--database".into(), file.into()],
            (None, Some(address)) => vec!["--prometheus".into(), address.into()],
            (None, None) => return Ok(entries),
        };
        let of_history = usage.clone();
        entries.push(overviewed("history", global, move || of_history.clone()));
        entries.push(overviewed("showback", global, move || {
            let month = Timestamp::now().strftime("%Y-%m").to_string();
            [usage.clone(), vec!["--month".into(), month.into()]].concat()
        }));
        Ok(entries)
    }
}

/// A page of the overview, with flags as they are when it is made.
fn overviewed(
    name: &'static str,
    global: &Global,
    flags: impl Fn() -> Vec<OsString> + Send + Sync + 'static,
) -> Entry {
    let global = global.clone();
    entry(name, move || {
        let words = [vec!["serve".into(), name.into()], flags()].concat();
        Asked::try_parse_from(words)?.subject.page(&global)
    })
}

fn entry(name: &str, make: impl Fn() -> anyhow::Result<Page> + Send + Sync + 'static) -> Entry {
    let make = move || make().map_err(|error| format!("{error:#}"));
    Entry { path: format!("/{name}"), name: title(name), make: Box::new(make) }
}

/// Serves until interrupted.
pub(super) fn run(args: &Args, global: &Global) -> anyhow::Result<Outcome> {
    if !args.address.ip().is_loopback() {
        bail!(
            "{} is not on loopback, and whoever reached it could read names and costs: listen on 127.0.0.1 and use a tunnel, such as `ssh -L`",
            args.address
        );
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let served = runtime.block_on(serve(args, global));
    // What still computes is of no use to anybody.
    runtime.shutdown_background();
    served
}

async fn serve(args: &Args, global: &Global) -> anyhow::Result<Outcome> {
    let listener =
        TcpListener::bind(args.address).await.with_context(|| format!("can't listen on {}", args.address))?;
    let address = listener.local_addr()?;
    let entries = args.entries(global)?;
    let path = match entries.as_slice() {
        [only] => only.path.clone(),
        _ => "/".to_owned(),
    };
    let mut out = std::io::stdout();
    writeln!(out, "http://{address}{path} until interrupted")?;
    out.flush()?;
    let interrupted = Arc::new(tokio::sync::Notify::new());
    let told = Arc::clone(&interrupted);
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let serving = axum::serve(listener, router(entries, args.refresh)).with_graceful_shutdown(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        told.notify_one();
    });
    tokio::select! {
        ended = serving => ended.context("can't serve")?,
        () = async { interrupted.notified().await; tokio::time::sleep(GRACE).await } => {}
    }
    Ok(Outcome::Done)
}

fn title(name: &str) -> String {
    let mut characters = name.chars();
    characters.next().map_or_else(String::new, |first| first.to_uppercase().chain(characters).collect())
}
