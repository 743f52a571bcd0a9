//! The kubelet API: logs, streams, the list of pods and what they use, for the API server and whoever else has the right. TLS only, and never open:
//! every request is authenticated and authorized before its route is looked at (`auth`), and without a certificate or a clients' CA
//! nothing listens.
//!
//! Bad or slow clients are bounded: handshakes and request heads in time, heads in size, connections in number (`connections`).

use std::{collections::HashMap, net::SocketAddr, path::PathBuf, pin::pin, sync::Arc, time::Duration};

use axum::{
    Router,
    extract::{DefaultBodyLimit, MatchedPath, Request, State},
    middleware::{self, Next},
    response::Response,
};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use k8s_openapi::api::core::v1::Pod;
use kube::Client;
use prometheus_client::registry::Registry;
use spillway_daemon::{admin::Readiness, listener::listen};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    config::KubeletApiConfig,
    identity::{chain, serving::Resolver},
    metrics::Metrics,
    pod::{Pods, Probed},
    provider::Provider,
};

pub mod auth;
mod caller;
mod component;
pub mod configz;
mod connections;
mod logs;
mod routes;
mod stats;
mod stream;
pub mod tls;

use auth::Guard;
use caller::Caller;
use connections::{Connection, Connections};

/// A TLS handshake takes a few round trips.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// From the first look for a request to the end of its head; so an idle connection lives as long too.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest request head, and longest body where one is read at all. An exec's command is in the head, in its target, of which the HTTP library
/// takes 64 KiB.
const MAX_BYTES: usize = 1024 * 1024;
/// The same for a head that comes without a certificate: anybody may send one.
const MAX_ANONYMOUS_BYTES: usize = 128 * 1024;
/// The readiness condition that this module sets.
const CONDITION: &str = "kubelet-api";

/// Why the kubelet API can't be served.
#[derive(Debug, thiserror::Error)]
pub enum KubeletApiError {
    /// The port is taken, or not ours to take.
    #[error(
        "the kubelet API can't listen on {address}: choose another with --kubelet-address and --kubelet-port"
    )]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The cause.
        source: std::io::Error,
    },
    /// The clients' CA is of no use.
    #[error(transparent)]
    Tls(#[from] tls::TlsError),
}

/// The pods that routes ask about.
pub trait PodSource: Send + Sync {
    /// The newest pod of this name.
    fn get(&self, namespace: &str, name: &str) -> Option<Arc<Pod>>;
    /// All of them.
    fn list(&self) -> Vec<Arc<Pod>>;
    /// How many of them are in each phase.
    fn phases(&self) -> HashMap<String, usize>;
    /// What their probes have found.
    fn probed(&self) -> Vec<Probed> {
        Vec::new()
    }
}

impl PodSource for Pods {
    fn get(&self, namespace: &str, name: &str) -> Option<Arc<Pod>> {
        Self::get(self, namespace, name)
    }

    fn list(&self) -> Vec<Arc<Pod>> {
        Self::list(self)
    }

    fn phases(&self) -> HashMap<String, usize> {
        Self::phases(self)
    }

    fn probed(&self) -> Vec<Probed> {
        Self::probed(self)
    }
}

/// Everything the API needs.
pub struct KubeletApi {
    /// Where, and with whose CA.
    pub config: KubeletApiConfig,
    /// Name of the node.
    pub node: String,
    /// For reviews and the clients' CA.
    pub client: Client,
    /// The serving certificate.
    pub certificate: Resolver,
    /// The pods.
    pub pods: Arc<dyn PodSource>,
    /// Reads logs and runs commands.
    pub provider: Provider,
    /// Told whether it serves.
    pub readiness: Readiness,
    /// Told what it serves.
    pub metrics: Metrics,
    /// Folder for volumes.
    pub root_dir: PathBuf,
    /// What `/configz` answers.
    pub configz: serde_json::Value,
    /// What `/metrics` answers beside what a kubelet would.
    pub registry: Arc<Registry>,
}

/// What route handlers share.
#[derive(Clone)]
struct Shared {
    pods: Arc<dyn PodSource>,
    provider: Provider,
    stats: Arc<stats::Cache>,
    configz: Arc<serde_json::Value>,
    registry: Arc<Registry>,
    metrics: Metrics,
    /// Owns the upgraded connections.
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl KubeletApi {
    /// Serves until `stop`. Waits first for a certificate and the clients' CA.
    ///
    /// # Errors
    /// When the address can't be bound, or a given CA file is of no use.
    pub async fn run(self, stop: CancellationToken) -> Result<(), KubeletApiError> {
        tokio::select! {
            () = stop.cancelled() => Ok(()),
            result = self.serve(&stop) => result,
        }
    }

    async fn serve(&self, stop: &CancellationToken) -> Result<(), KubeletApiError> {
        self.readiness.set(CONDITION, Err("waiting for the serving certificate".to_owned()));
        let mut certificate = self.certificate.clone();
        if !certificate.ready().await {
            // Its task has ended, which ends the process.
            return std::future::pending().await;
        }
        let (mut tls, keep_fresh) = tls::Tls::new(
            self.certificate.clone(),
            self.config.client_ca_file.clone(),
            self.client.clone(),
            self.readiness.clone(),
        );
        let listen = async {
            tls.ready().await;
            let address = self.config.address;
            let listener = listen(address).map_err(|source| KubeletApiError::Listen { address, source })?;
            tracing::info!(%address, "kubelet API is served");
            self.readiness.set(CONDITION, Ok(()));
            self.accept(listener, tls, stop).await;
            Ok(())
        };
        tokio::select! {
            result = listen => result,
            error = keep_fresh => Err(error.into()),
        }
    }

    async fn accept(&self, listener: TcpListener, tls: tls::Tls, stop: &CancellationToken) {
        let tasks = TaskTracker::new();
        let router = self.router(tasks.clone(), stop.clone());
        let connections = Connections::new(self.metrics.connections());
        loop {
            let socket = match listener.accept().await {
                Ok((socket, _)) => socket,
                Err(error) => {
                    // Out of file descriptors, say: let some connections end.
                    tracing::warn!(%error, "kubelet API can't accept a connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let connection = connections.begin();
            let (tls, router, stop) = (tls.clone(), router.clone(), stop.clone());
            tasks.spawn(async move {
                tokio::select! {
                    () = serve_connection(socket, tls, router, &connection) => {}
                    () = connection.evicted() => {
                        tracing::debug!("kubelet API ended the connection of the oldest of too many strangers");
                    }
                    () = stop.cancelled() => {}
                }
            });
        }
    }

    /// All routes, behind the guard. `tasks` owns the upgraded connections.
    pub fn router(&self, tasks: TaskTracker, stop: CancellationToken) -> Router {
        let shared = Shared {
            pods: Arc::clone(&self.pods),
            provider: self.provider.clone(),
            stats: Arc::new(stats::Cache::new(&self.node, self.root_dir.clone())),
            configz: Arc::new(self.configz.clone()),
            registry: Arc::clone(&self.registry),
            metrics: self.metrics.clone(),
            tasks,
            stop,
        };
        let guard = Arc::new(Guard::new(self.client.clone(), &self.node));
        // The last layer is the first to see a request: nothing is answered before the guard has passed it.
        routes::router(shared)
            .layer(DefaultBodyLimit::max(MAX_BYTES))
            .layer(middleware::from_fn_with_state(guard, auth::guard))
            .layer(middleware::from_fn_with_state(self.metrics.clone(), count))
    }
}

async fn serve_connection(
    socket: TcpStream,
    mut tls: tls::Tls,
    router: Router,
    connection: &Arc<Connection>,
) {
    let _ = socket.set_nodelay(true);
    let acceptor = TlsAcceptor::from(tls.current());
    let socket = match tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(socket)).await {
        Ok(Ok(socket)) => socket,
        Ok(Err(error)) => {
            tracing::debug!(error = chain(&error), "kubelet API refused a TLS handshake");
            return;
        }
        Err(_) => {
            tracing::debug!("kubelet API gave up on a TLS handshake");
            return;
        }
    };
    // The verifier has checked the chain; what the certificate says is who the caller is.
    let (caller, valid_until) =
        socket.get_ref().1.peer_certificates().and_then(Caller::from_certificates).unzip();
    let max_bytes = if caller.is_some() { MAX_BYTES } else { MAX_ANONYMOUS_BYTES };
    let connection = Arc::clone(connection);
    let service = tower::service_fn(move |mut request: Request<hyper::body::Incoming>| {
        request.extensions_mut().insert(Arc::clone(&connection));
        if let Some(caller) = &caller {
            request.extensions_mut().insert(caller.clone());
        }
        let router = router.clone();
        async move { tower::ServiceExt::oneshot(router, request.map(axum::body::Body::new)).await }
    });
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(max_bytes)
        .serve_connection(TokioIo::new(socket), TowerToHyperService::new(service))
        .with_upgrades();
    let mut served = pin!(served);
    let result = tokio::select! {
        result = served.as_mut() => result,
        // A kubelet checks the certificate anew with each request: so after the one under way there is none.
        () = tls.outdates(valid_until) => {
            served.as_mut().graceful_shutdown();
            served.await
        }
    };
    if let Err(error) = result {
        tracing::debug!(error = chain(&error), "a connection to the kubelet API broke off");
    }
}

async fn count(State(metrics): State<Metrics>, request: Request, next: Next) -> Response {
    let route = request.extensions().get::<MatchedPath>().map(|path| path.as_str().to_owned());
    let response = next.run(request).await;
    metrics.request(route.as_deref().unwrap_or("other"), response.status());
    response
}

#[cfg(test)]
mod tests;
