//! Wiring: from arguments to supervised subsystems. Everything that fails here fails the process with one line, but what fails in one of
//! several nodes.

use std::{sync::Arc, time::Duration};

use anyhow::Context as _;
use prometheus_client::registry::Registry;
use spillway_daemon::{
    admin::{self, Readiness},
    supervisor::Supervisor,
    telemetry,
};
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use crate::{args::Args, config::Config, metrics::Metrics, notify};

mod address;
mod reload;
mod virtual_node;

use virtual_node::VirtualNode;

/// Runs the daemon until a signal, or until something that it can't do without has failed.
///
/// # Errors
/// What the user has to know, with its whole chain of causes.
pub fn run(args: &Args) -> anyhow::Result<()> {
    telemetry::init(args.daemon.log_format, &log_filter(&args.daemon.log_level))?;
    let configs = Config::load(args)?;
    tokio::runtime::Runtime::new().context("can't start the async runtime")?.block_on(serve(args, configs))
}

async fn serve(args: &Args, configs: Vec<Config>) -> anyhow::Result<()> {
    // Both TLS sides use it; fails only when it is set already, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut registry = Registry::default();
    let metrics = Metrics::new(&mut registry);
    Metrics::watch_process(&mut registry);
    let readiness = Readiness::default();
    let mut supervisor = Supervisor::new();
    let stop = supervisor.stop();
    let grace = configs.iter().map(|config| config.shutdown_grace).max().unwrap_or_default();
    let several = configs.len() > 1;

    let nodes: Vec<VirtualNode> = configs
        .iter()
        .map(|config| {
            let name = &config.node.name;
            let readiness = if several { readiness.part(name) } else { readiness.clone() };
            VirtualNode::new(config.clone(), readiness, metrics.of(name))
        })
        .collect();
    Metrics::count_pods(
        &mut registry,
        nodes.iter().map(|node| (node.name().to_owned(), node.pods())).collect(),
    );
    let registry = Arc::new(registry);
    let live = nodes.iter().map(|node| (node.name().to_owned(), node.live())).collect();
    let names = nodes.iter().map(VirtualNode::name).collect::<Vec<_>>().join(", ");
    for node in nodes {
        let (registry, stop) = (Arc::clone(&registry), stop.clone());
        if several {
            let span = tracing::info_span!("node", name = node.name());
            supervisor.start("node", node.live_on(registry, stop).instrument(span));
        } else {
            let prepared = node.prepare().await?;
            supervisor
                .start("node", async move { Box::pin(node.live_once(prepared, &registry, &stop)).await });
        }
    }

    if args.config.is_some() || args.provider_config.is_some() {
        let following = reload::follow(args.clone(), configs, live, stop.clone());
        supervisor.start("configuration", async move {
            following.await;
            Ok(())
        });
    }
    if !args.startup_timeout.is_zero() {
        supervisor.start("startup", in_time(readiness.clone(), args.startup_timeout, stop.clone()));
    }
    if let Some(address) = args.admin_address() {
        supervisor.start("admin", admin::serve(address, registry, readiness, stop.clone()));
    }
    supervisor.start("systemd", async move {
        notify::ready(&format!("node {names}"));
        stop.cancelled().await;
        notify::stopping();
        Ok(())
    });
    supervisor.run(grace).await
}

/// Fails when not everything holds within the time.
async fn in_time(readiness: Readiness, limit: Duration, stop: CancellationToken) -> anyhow::Result<()> {
    let ready = async {
        while !readiness.report().0 {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    if tokio::time::timeout(limit, ready).await.is_err() && !stop.is_cancelled() {
        let report = readiness.report().1.trim_end().replace('\n', ", ");
        anyhow::bail!("not ready within the --startup-timeout of {} s: {report}", limit.as_secs_f64());
    }
    stop.cancelled().await;
    Ok(())
}

/// Of a plain level, without the client library's own line for each failed request: whoever made the request says more.
fn log_filter(level: &str) -> String {
    match level {
        "error" | "warn" | "info" => format!("{level},kube_client::client::builder=off"),
        other => other.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_start_that_takes_too_long_fails_and_says_what_is_missing() {
        let readiness = Readiness::default();
        readiness.set("identity", Ok(()));
        readiness.set("node", Err("not registered yet".to_owned()));
        let limit = Duration::from_secs(30);
        let error =
            in_time(readiness.clone(), limit, CancellationToken::new()).await.unwrap_err().to_string();
        assert!(
            error.contains("--startup-timeout of 30 s") && error.contains("node: not registered yet"),
            "{error}"
        );

        readiness.set("node", Ok(()));
        let stop = CancellationToken::new();
        stop.cancel();
        in_time(readiness, limit, stop).await.unwrap();
    }
}
