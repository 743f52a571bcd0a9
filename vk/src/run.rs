//! Wiring: from arguments to supervised subsystems. Everything that fails here fails the process with one line.

use std::{
    net::{IpAddr, UdpSocket},
    sync::Arc,
};

use anyhow::Context as _;
use prometheus_client::registry::Registry;
use spillway_daemon::{
    admin::{self, Readiness},
    supervisor::Supervisor,
    telemetry,
};

use crate::{
    args::Args,
    config::{Config, ProviderConfig},
    identity::{Identity, serving::Serving},
    kubelet_api::{KubeletApi, configz::configz},
    metrics::Metrics,
    node::Node,
    notify,
    pod::{self, Pods},
    provider::{Provider, cri::Cri, none},
};

/// Runs the daemon until a signal, or until something that it can't do without has failed.
///
/// # Errors
/// What the user has to know, with its whole chain of causes.
pub fn run(args: &Args) -> anyhow::Result<()> {
    telemetry::init(args.daemon.log_format, &log_filter(&args.daemon.log_level))?;
    let config = Config::load(args)?;
    tokio::runtime::Runtime::new().context("can't start the async runtime")?.block_on(serve(args, config))
}

async fn serve(args: &Args, config: Config) -> anyhow::Result<()> {
    // Both TLS sides use it; fails only when it is set already, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut registry = Registry::default();
    let metrics = Metrics::new(&mut registry);
    let readiness = Readiness::default();
    let mut supervisor = Supervisor::new();
    let stop = supervisor.stop();
    let name = config.node.name.clone();

    let provider = match &config.provider {
        ProviderConfig::Cri(settings) => {
            Provider::Runtime(Arc::new(Cri::new(&name, settings).context("key cri.endpoint")?))
        }
        ProviderConfig::None => Provider::PodService(Arc::new(none::None::new())),
    };
    let (identity, client, server) =
        Identity::new(&config.identity, &name, readiness.clone(), metrics.clone()).await?;
    let address = match config.node.address {
        Some(address) => address,
        None => address_towards(&server)?,
    };
    tracing::info!(node = name, %address, provider = provider.name(), %server, version = env!("CARGO_PKG_VERSION"), "spillway-vk starts");
    supervisor.start("certificates", {
        let stop = stop.clone();
        async move { Ok(identity.run(stop).await?) }
    });

    let settings = pod_settings(&config, address);
    let root_dir = settings.root_dir.clone();
    let pods = Arc::new(Pods::new(client.clone(), provider.clone(), settings));
    Metrics::count_pods(&mut registry, Arc::clone(&pods) as _);
    supervisor.start("pods", {
        let (pods, stop) = (Arc::clone(&pods), stop.clone());
        async move { Ok(pods.run(stop).await?) }
    });

    let registry = Arc::new(registry);
    let configz = configz(&config);
    let mut kubelet_port = 0;
    if let Some(api) = config.kubelet_api {
        kubelet_port = api.address.port();
        let (serving, certificate) = Serving::new(
            api.serving.clone(),
            &name,
            address,
            &config.identity.cert_dir,
            client.clone(),
            readiness.clone(),
            metrics.clone(),
        )?;
        supervisor.start("serving-certificate", {
            let stop = stop.clone();
            async move { Ok(serving.run(stop).await?) }
        });
        let api = KubeletApi {
            config: api,
            node: name.clone(),
            client: client.clone(),
            certificate,
            pods,
            provider: provider.clone(),
            readiness: readiness.clone(),
            metrics: metrics.clone(),
            root_dir,
            configz,
            registry: Arc::clone(&registry),
        };
        let stop = stop.clone();
        supervisor.start("kubelet-api", async move { Ok(api.run(stop).await?) });
    }

    let node = Node::new(client, provider, config.node, address, kubelet_port, readiness.clone(), metrics);
    supervisor.start("node", {
        let stop = stop.clone();
        async move {
            Box::pin(node.run(stop)).await;
            Ok(())
        }
    });

    if let Some(address) = args.daemon.admin_address.0 {
        supervisor.start("admin", admin::serve(address, registry, readiness, stop.clone()));
    }
    supervisor.start("systemd", async move {
        notify::ready(&format!("node {name}"));
        stop.cancelled().await;
        notify::stopping();
        Ok(())
    });
    supervisor.run(config.shutdown_grace).await
}

/// Of a plain level, without the client library's own line for each failed request: whoever made the request says more.
fn log_filter(level: &str) -> String {
    match level {
        "error" | "warn" | "info" => format!("{level},kube_client::client::builder=off"),
        other => other.to_owned(),
    }
}

fn pod_settings(config: &Config, address: IpAddr) -> pod::Settings {
    pod::Settings {
        cluster_dns: config.cluster_dns.clone(),
        cluster_domain: config.cluster_domain.clone(),
        ..pod::Settings::new(&config.node.name, vec![address])
    }
}

/// The address that this machine's route to the API server starts from. Nothing is sent.
fn address_towards(server: &http::Uri) -> anyhow::Result<IpAddr> {
    let how = || {
        format!("can't find this machine's address towards the API server {server}: give it with --node-ip")
    };
    let host = server.host().with_context(how)?.trim_start_matches('[').trim_end_matches(']');
    let find = |local: &str| {
        let socket = UdpSocket::bind((local, 0))?;
        socket.connect((host, server.port_u16().unwrap_or(443)))?;
        Ok::<_, std::io::Error>(socket.local_addr()?.ip())
    };
    find("0.0.0.0").or_else(|_| find("::")).with_context(how)
}
