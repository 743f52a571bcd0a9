//! `kubectl spillway serve`: a result as a page that is made anew while one looks at it, on loopback.

use std::{
    io::Write as _,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, bail};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
};

use super::subject::Subject;
use crate::{
    args::Global,
    command::Outcome,
    pages::server::{Entry, router},
};

const EXAMPLES: &str = "Examples:
  kubectl spillway serve report
  kubectl spillway serve history --database history.db --since 7d
  kubectl spillway serve --address 127.0.0.1:0 --refresh 60 optimize \\
      demand.csv --ratio 3

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
    /// What to show.
    #[command(subcommand)]
    subject: Subject,
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
    let (subject, global) = (args.subject.clone(), global.clone());
    let name = subject.name();
    let make = move || subject.page(&global).map_err(|error| format!("{error:#}"));
    let entry = Entry { path: format!("/{name}"), name: title(name), make: Box::new(make) };
    let mut out = std::io::stdout();
    writeln!(out, "http://{address}/{name} until interrupted")?;
    out.flush()?;
    let interrupted = Arc::new(tokio::sync::Notify::new());
    let told = Arc::clone(&interrupted);
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let serving =
        axum::serve(listener, router(vec![entry], args.refresh)).with_graceful_shutdown(async move {
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
