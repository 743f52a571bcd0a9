//! One virtual node of the process: what it needs for as long as it lives, and what runs only while this process may act for it.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::Context as _;
use k8s_openapi::api::core::v1::Pod;
use kube::Client;
use prometheus_client::registry::Registry;
use spillway_daemon::{admin::Readiness, supervisor::Supervisor};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use super::address::Route;
use crate::{
    backoff::Backoff,
    config::{Config, NodeConfig, ProviderConfig},
    identity::{
        Identity,
        serving::{Resolver, Serving},
    },
    kubelet_api::{KubeletApi, PodSource, configz::configz},
    lead::Lead,
    metrics::Metrics,
    node::{Node, NodeLease, election::Election},
    pod::{self, Pods, Probed},
    provider::{Provider, cri::Cri, none},
};

/// First and longest wait before one of several nodes that failed is started again.
const RESTART: (Duration, Duration) = (Duration::from_secs(1), Duration::from_mins(1));
/// A node that ran so long has not failed over and over.
const CALM: Duration = Duration::from_mins(5);
/// The readiness condition that this module sets.
const CONDITION: &str = "election";

/// A node before and between its lives.
pub(super) struct VirtualNode {
    config: Config,
    live: watch::Sender<NodeConfig>,
    pods: Arc<CurrentPods>,
    readiness: Readiness,
    metrics: Metrics,
}

/// What one life of a node begins with.
pub(super) struct Prepared {
    identity: Identity,
    client: Client,
    address: IpAddr,
    /// Where the address was found, if nobody gave it.
    route: Option<Route>,
    provider: Provider,
    lead: Lead,
    serving: Option<(Serving, Resolver)>,
}

/// The parts that act, made anew each time that this process begins to.
struct Acting<'a> {
    node: &'a VirtualNode,
    client: &'a Client,
    address: IpAddr,
    provider: &'a Provider,
    lead: &'a Lead,
    certificate: Option<&'a Resolver>,
    registry: &'a Arc<Registry>,
}

impl VirtualNode {
    pub(super) fn new(config: Config, readiness: Readiness, metrics: Metrics) -> Self {
        let live = watch::Sender::new(config.node.clone());
        Self { config, live, pods: Arc::default(), readiness, metrics }
    }

    pub(super) fn name(&self) -> &str {
        &self.config.node.name
    }

    /// The node's pods, whichever life it is in.
    pub(super) fn pods(&self) -> Arc<dyn PodSource> {
        Arc::clone(&self.pods) as _
    }

    /// Where changes of the node's configuration go.
    pub(super) fn live(&self) -> watch::Sender<NodeConfig> {
        self.live.clone()
    }

    /// Everything that can be found wrong without asking the network.
    pub(super) async fn prepare(&self) -> anyhow::Result<Prepared> {
        let (config, name) = (&self.config, self.name());
        let lead = match config.leader_election {
            Some(_) => Lead::elected(name),
            None => Lead::always(),
        };
        let provider = match &config.provider {
            ProviderConfig::Cri(settings) => {
                let cri = Cri::new(name, settings).context("key cri.endpoint")?;
                Provider::Runtime(Arc::new(cri.guarded_by(lead.clone())))
            }
            ProviderConfig::None => Provider::PodService(Arc::new(none::None::new())),
        };
        let (identity, client, server) =
            Identity::new(&config.identity, name, self.readiness.clone(), self.metrics.clone()).await?;
        let (address, route) = if let Some(address) = config.node.address {
            (address, None)
        } else {
            let route = Route::find(&server)?;
            (route.source, Some(route))
        };
        tracing::info!(node = name, %address, provider = provider.name(), %server, version = env!("CARGO_PKG_VERSION"), "the virtual node starts");
        let serving = match &config.kubelet_api {
            Some(api) => Some(Serving::new(
                api.serving.clone(),
                name,
                address,
                &config.identity.cert_dir,
                client.clone(),
                self.readiness.clone(),
                self.metrics.clone(),
            )?),
            None => None,
        };
        Ok(Prepared { identity, client, address, route, provider, lead, serving })
    }

    /// One life: until `stop`, or until a part fails.
    pub(super) async fn live_once(
        &self,
        prepared: Prepared,
        registry: &Arc<Registry>,
        stop: &CancellationToken,
    ) -> anyhow::Result<()> {
        let Prepared { identity, client, address, route, provider, lead, serving } = prepared;
        let mut parts = Supervisor::new();
        let token = parts.stop();
        parts.start("certificates", {
            let stop = token.clone();
            async move { Ok(identity.run(stop).await?) }.in_current_span()
        });
        if let Some(route) = route {
            parts.start("address", route.stays(token.clone()).in_current_span());
        }
        let certificate = serving.map(|(serving, certificate)| {
            let stop = token.clone();
            parts.start("serving-certificate", async move { Ok(serving.run(stop).await?) }.in_current_span());
            certificate
        });
        let acting = Acting {
            node: self,
            client: &client,
            address,
            provider: &provider,
            lead: &lead,
            certificate: certificate.as_ref(),
            registry,
        };
        let grace = self.config.shutdown_grace;
        let Some(timing) = self.config.leader_election else {
            acting.start(&mut parts, NodeLease::Own, &self.readiness);
            return parts.run_until(stop.cancelled(), grace).await;
        };
        let (uid, uid_seen) = watch::channel(None);
        let mut election =
            Election::new(client.clone(), self.name(), timing, lead.clone(), uid_seen, self.metrics.clone());
        let terms = async {
            let mut result = acting.terms(&mut election, &uid, stop).await;
            if stop.is_cancelled() {
                // What the identity is still needed for.
                election.release().await;
            } else if result.is_ok() {
                result = Err(anyhow::anyhow!("the election ended although nothing asked it to"));
            }
            result
        };
        let mut result = Ok(());
        let lived = Box::pin(parts.run_until(async { result = terms.await }, grace)).await;
        lead.give_up();
        result.and(lived)
    }

    /// One life after the other: what fails here is this node's alone.
    pub(super) async fn live_on(
        self,
        registry: Arc<Registry>,
        stop: CancellationToken,
    ) -> anyhow::Result<()> {
        let mut backoff = Backoff::new(RESTART.0, RESTART.1);
        loop {
            let begun = tokio::time::Instant::now();
            let life = match self.prepare().await {
                Ok(prepared) => Box::pin(self.live_once(prepared, &registry, &stop)).await,
                Err(error) => Err(error),
            };
            self.pods.set(None);
            if stop.is_cancelled() {
                return life;
            }
            let problem = match life {
                Ok(()) => "it ended although nothing asked it to".to_owned(),
                Err(error) => format!("{error:#}"),
            };
            if begun.elapsed() > CALM {
                backoff.reset();
            }
            let delay = backoff.delay();
            tracing::error!(
                node = self.name(),
                problem,
                retry_in_ms = delay.as_millis(),
                "this virtual node failed; the others go on, and it is started again"
            );
            self.metrics.node_restarted();
            self.readiness.clear();
            self.readiness.set("life", Err(problem));
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                () = tokio::time::sleep(delay) => {}
            }
            self.readiness.clear();
        }
    }
}

impl Acting<'_> {
    /// One term after the other, until `stop` or a failure.
    async fn terms(
        &self,
        election: &mut Election,
        uid: &watch::Sender<Option<String>>,
        stop: &CancellationToken,
    ) -> anyhow::Result<()> {
        let readiness = &self.node.readiness;
        // A replica that has its certificate can be asked for logs at once, so it goes before one that waits for an admin: for as long as a lease
        // lasts, as there may be no other.
        if let (Some(certificate), Some(timing)) = (self.certificate, self.node.config.leader_election) {
            let mut certificate = certificate.clone();
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                _ = certificate.ready() => {}
                () = tokio::time::sleep(timing.lease_duration) => {}
            }
        }
        loop {
            // Standing by is being ready.
            let standing_by = |holder: Result<&str, &str>| {
                readiness.set(CONDITION, holder.map(drop).map_err(str::to_owned));
            };
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                () = election.win(standing_by) => {}
            }
            readiness.set(CONDITION, Ok(()));
            let part = readiness.part("acting");
            let mut parts = Supervisor::new();
            self.start(&mut parts, NodeLease::Elected(self.lead.clone(), uid.clone()), &part);
            let mut lost = false;
            let asked = async {
                tokio::select! {
                    () = stop.cancelled() => {}
                    _ = election.hold() => lost = true,
                }
            };
            let ended = parts.run_until(asked, self.node.config.shutdown_grace).await;
            self.node.pods.set(None);
            part.clear();
            match ended {
                Err(error) if lost => {
                    tracing::warn!(
                        node = self.node.name(),
                        error = format!("{error:#}"),
                        "a part did not step down cleanly"
                    );
                }
                ended if !lost => return ended,
                _ => {}
            }
        }
    }

    fn start(&self, parts: &mut Supervisor, lease: NodeLease, readiness: &Readiness) {
        let (node, stop) = (self.node, parts.stop());
        let (config, metrics) = (&node.config, &node.metrics);
        let settings = pod_settings(config, self.address, self.lead);
        let root_dir = settings.root_dir.clone();
        let pods = Arc::new(Pods::new(self.client.clone(), self.provider.clone(), settings));
        node.pods.set(Some(Arc::clone(&pods)));
        parts.start("pods", {
            let (pods, stop) = (Arc::clone(&pods), stop.clone());
            async move { Ok(pods.run(stop).await?) }.in_current_span()
        });
        let mut kubelet_port = 0;
        if let (Some(api), Some(certificate)) = (config.kubelet_api.clone(), self.certificate) {
            kubelet_port = api.address.port();
            let api = KubeletApi {
                config: api,
                node: node.name().to_owned(),
                client: self.client.clone(),
                certificate: certificate.clone(),
                pods,
                provider: self.provider.clone(),
                readiness: readiness.clone(),
                metrics: metrics.clone(),
                root_dir,
                configz: configz(config),
                registry: Arc::clone(self.registry),
            };
            let stop = stop.clone();
            parts.start("kubelet-api", async move { Ok(api.run(stop).await?) }.in_current_span());
        }
        let object = Node::new(
            self.client.clone(),
            self.provider.clone(),
            node.live.subscribe(),
            self.address,
            kubelet_port,
            lease,
            readiness.clone(),
            metrics.clone(),
        );
        parts.start("node", {
            async move {
                Box::pin(object.run(stop)).await;
                Ok(())
            }
            .in_current_span()
        });
    }
}

/// The pods of a node, while there is somebody who looks after them.
#[derive(Default)]
struct CurrentPods(Mutex<Option<Arc<Pods>>>);

impl CurrentPods {
    fn set(&self, pods: Option<Arc<Pods>>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = pods;
    }

    fn current(&self) -> Option<Arc<Pods>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl PodSource for CurrentPods {
    fn get(&self, namespace: &str, name: &str) -> Option<Arc<Pod>> {
        self.current()?.get(namespace, name)
    }

    fn list(&self) -> Vec<Arc<Pod>> {
        self.current().map(|pods| pods.list()).unwrap_or_default()
    }

    fn phases(&self) -> HashMap<String, usize> {
        self.current().map(|pods| pods.phases()).unwrap_or_default()
    }

    fn probed(&self) -> Vec<Probed> {
        self.current().map(|pods| pods.probed()).unwrap_or_default()
    }
}

fn pod_settings(config: &Config, address: IpAddr, lead: &Lead) -> pod::Settings {
    let devices = match &config.provider {
        ProviderConfig::Cri(settings) => settings.devices.clone(),
        ProviderConfig::None => BTreeMap::new(),
    };
    pod::Settings {
        devices,
        cluster_dns: config.cluster_dns.clone(),
        cluster_domain: config.cluster_domain.clone(),
        resolv_conf: config.resolv_conf.clone(),
        image_gc: config.image_gc,
        root_dir: config.root_dir.clone(),
        concurrent_changes: config.pod_sync_workers,
        relist: config.full_resync_period,
        lead: lead.clone(),
        ..pod::Settings::new(&config.node.name, vec![address])
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::args::Args;

    #[tokio::test(start_paused = true)]
    async fn a_node_that_fails_is_started_again_and_touches_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("vk.yaml");
        std::fs::write(
            &file,
            "nodes: [{name: a, provider: none}, {name: b, provider: none, kubeletPort: 1}]\n",
        )
        .unwrap();
        let file = file.to_str().unwrap();
        let flags = ["spillway-vk", "--config", file, "--kubeconfig", "/nonexistent/kubeconfig"];
        let config = Config::load(&Args::parse_from(flags)).unwrap().remove(0);
        let mut registry = Registry::default();
        let metrics = Metrics::new(&mut registry);
        let readiness = Readiness::default();
        readiness.part("b").set("node", Ok(()));
        let node = VirtualNode::new(config, readiness.part("a"), metrics.of("a"));
        let (registry, stop) = (Arc::new(registry), CancellationToken::new());
        let mut tasks = tokio::task::JoinSet::new();
        tasks.spawn(node.live_on(Arc::clone(&registry), stop.clone()));
        tokio::time::sleep(Duration::from_secs(20)).await;
        let (ready, report) = readiness.report();
        assert!(
            !ready && report.contains("[-] a/life: can't use kubeconfig") && report.contains("[+] b/node"),
            "{report}"
        );
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        let restarts =
            text.lines().find_map(|line| line.strip_prefix("spillway_vk_node_restarts_total{node=\"a\"} "));
        let restarts: u32 = restarts.expect(&text).parse().unwrap();
        assert!((3..=8).contains(&restarts), "{restarts} lives in 20 s");
        stop.cancel();
        tasks.join_next().await.unwrap().unwrap().unwrap();
    }
}
