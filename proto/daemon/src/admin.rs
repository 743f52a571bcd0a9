//! The admin endpoint: `/metrics`, `/healthz` and `/readyz` on plain HTTP. It shows no object of the cluster and no secret.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::Context as _;
use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    response::IntoResponse,
    routing::get,
};
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::graceful::GracefulShutdown,
    service::TowerToHyperService,
};
use prometheus_client::registry::Registry;
use tokio::{net::TcpListener, task::JoinSet, time::sleep};
use tokio_util::sync::CancellationToken;

use crate::listener::listen;

/// How long to wait when no connection can be accepted, as when all descriptors are in use.
const RETRY: Duration = Duration::from_millis(100);
/// Connections at a time: a few scrapers and the kubelet's probes. More wait until one ends.
const MAX_CONNECTIONS: usize = 64;
/// From the first look for a request to the end of its head; so an idle connection lives as long, too, and makes room.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// Named conditions that must all hold before the daemon calls itself ready. Clones and parts share one state.
#[derive(Debug, Clone, Default)]
pub struct Readiness {
    conditions: Arc<Mutex<Conditions>>,
    /// Stands before the names of this part's conditions.
    prefix: String,
}

type Conditions = BTreeMap<String, Result<(), String>>;

impl Readiness {
    fn lock(&self) -> MutexGuard<'_, Conditions> {
        self.conditions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Declares or changes one condition; `Err` carries why it does not hold.
    pub fn set(&self, condition: &'static str, state: Result<(), String>) {
        self.lock().insert(format!("{}{condition}", self.prefix), state);
    }

    /// A part of the daemon, whose conditions are named `part/condition`.
    #[must_use]
    pub fn part(&self, part: &str) -> Self {
        Self { conditions: Arc::clone(&self.conditions), prefix: format!("{}{part}/", self.prefix) }
    }

    /// Forgets the conditions of this part, which has ended.
    pub fn clear(&self) {
        self.lock().retain(|name, _| !name.starts_with(&self.prefix));
    }

    /// The report that `/readyz` gives: one line a condition, and whether all hold.
    pub fn report(&self) -> (bool, String) {
        let conditions = self.lock();
        let lines = conditions.iter().map(|(name, state)| match state {
            Ok(()) => format!("[+] {name}\n"),
            Err(why) => format!("[-] {name}: {why}\n"),
        });
        (conditions.values().all(Result::is_ok), lines.collect())
    }
}

#[derive(Clone)]
struct Shared {
    registry: Arc<Registry>,
    readiness: Readiness,
}

/// The routes, apart from their socket.
pub fn router(registry: Arc<Registry>, readiness: Readiness) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(|| async { "ok" }))
        .route("/readyz", get(readyz))
        .with_state(Shared { registry, readiness })
}

/// Serves [`router`] on `address` until `stop` is cancelled. HTTP/1.1 is all that a scraper or a probe speaks: axum's own server can do
/// HTTP/2, too, and is several times as much code.
///
/// # Errors
/// When the address can't be bound.
pub async fn serve(
    address: SocketAddr,
    registry: Arc<Registry>,
    readiness: Readiness,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let listener = listen(address).with_context(|| {
        format!("can't listen on the admin address {address}: choose another with --admin-address")
    })?;
    tracing::info!(address = %listener.local_addr()?, "admin endpoint serves /metrics, /healthz and /readyz");
    accept(listener, router(registry, readiness), stop).await;
    Ok(())
}

async fn accept(listener: TcpListener, router: Router, stop: CancellationToken) {
    let service = TowerToHyperService::new(router);
    let (graceful, mut connections) = (GracefulShutdown::new(), JoinSet::new());
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            Some(_) = connections.join_next() => continue,
            accepted = listener.accept(), if connections.len() < MAX_CONNECTIONS => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                let connection = http1::Builder::new()
                    .timer(TokioTimer::new())
                    .header_read_timeout(HEAD_TIMEOUT)
                    .serve_connection(TokioIo::new(stream), service.clone());
                let connection = graceful.watch(connection);
                connections.spawn(async move {
                    if let Err(error) = connection.await {
                        tracing::debug!(%error, "a connection to the admin endpoint broke");
                    }
                });
            }
            Err(error) => {
                tracing::warn!(%error, "can't accept a connection to the admin endpoint");
                sleep(RETRY).await;
            }
        }
    }
    drop(listener);
    graceful.shutdown().await;
}

async fn metrics(State(shared): State<Shared>) -> impl IntoResponse {
    let mut text = String::new();
    match prometheus_client::encoding::text::encode(&mut text, &shared.registry) {
        Ok(()) => (
            StatusCode::OK,
            [(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")],
            text,
        )
            .into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

async fn readyz(State(shared): State<Shared>) -> impl IntoResponse {
    let (ready, report) = shared.readiness.report();
    (if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, report)
}

#[cfg(test)]
mod tests {
    use axum::{body::Body, http::Request};
    use http_body_util::BodyExt as _;
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpStream,
    };
    use tower::ServiceExt as _;

    use super::*;

    async fn get(router: Router, path: &str) -> (StatusCode, String) {
        let request = Request::get(path).body(Body::empty()).unwrap();
        let response = router.oneshot(request).await.unwrap();
        let status = response.status();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn a_client_that_stays_connected_does_not_hold_up_the_end() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let router = router(Arc::new(Registry::default()), Readiness::default());
        let serving = accept(listener, router, stop.clone());
        let client = async {
            let mut stream = TcpStream::connect(address).await.unwrap();
            for _ in 0..2 {
                stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: here\r\n\r\n").await.unwrap();
                let mut answer = Vec::new();
                while !answer.ends_with(b"\r\n\r\nok") {
                    assert_ne!(stream.read_buf(&mut answer).await.unwrap(), 0, "hung up");
                }
                assert!(answer.starts_with(b"HTTP/1.1 200 OK\r\n"));
            }
            stop.cancel();
            assert_eq!(stream.read(&mut [0]).await.unwrap(), 0, "told to go");
        };
        tokio::join!(serving, client);
    }

    #[tokio::test]
    async fn every_address_is_both_families() {
        let local = std::net::Ipv6Addr::LOCALHOST;
        let Ok(free) = std::net::TcpListener::bind((local, 0)) else { return };
        let port = free.local_addr().unwrap().port();
        drop(free);
        let address = SocketAddr::from(([0, 0, 0, 0], port));
        let stop = CancellationToken::new();
        let serving = serve(address, Arc::default(), Readiness::default(), stop.clone());
        let client = async {
            TcpStream::connect((local, port)).await.unwrap();
            TcpStream::connect((std::net::Ipv4Addr::LOCALHOST, port)).await.unwrap();
            stop.cancel();
        };
        tokio::join!(async { serving.await.unwrap() }, client);
    }

    #[tokio::test]
    async fn clients_that_say_nothing_keep_nobody_out() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let router = router(Arc::new(Registry::default()), Readiness::default());
        let serving = accept(listener, router, stop.clone());
        let clients = async {
            let mut silent = Vec::new();
            for _ in 0..MAX_CONNECTIONS {
                silent.push(TcpStream::connect(address).await.unwrap());
            }
            let mut next = TcpStream::connect(address).await.unwrap();
            next.write_all(b"GET /healthz HTTP/1.1\r\nHost: here\r\n\r\n").await.unwrap();
            let early = tokio::time::timeout(Duration::from_millis(500), next.readable()).await;
            assert!(early.is_err(), "no more than {MAX_CONNECTIONS} at a time");
            tokio::time::pause();
            tokio::time::advance(HEAD_TIMEOUT).await;
            tokio::time::resume();
            for stream in &mut silent {
                assert_eq!(stream.read(&mut [0]).await.unwrap(), 0, "told to go");
            }
            let mut answer = [0; 15];
            next.read_exact(&mut answer).await.unwrap();
            assert_eq!(&answer, b"HTTP/1.1 200 OK");
            stop.cancel();
        };
        tokio::join!(serving, clients);
    }

    #[tokio::test]
    async fn readyz_names_what_does_not_hold() {
        let readiness = Readiness::default();
        readiness.set("kubelet", Ok(()));
        readiness.set("nvml", Err("no driver".to_owned()));
        let router = router(Arc::new(Registry::default()), readiness.clone());
        let (status, body) = get(router.clone(), "/readyz").await;
        assert_eq!(
            (status, body.as_str()),
            (StatusCode::SERVICE_UNAVAILABLE, "[+] kubelet\n[-] nvml: no driver\n")
        );
        readiness.set("nvml", Ok(()));
        assert_eq!(get(router, "/readyz").await.0, StatusCode::OK);
    }

    #[test]
    fn a_part_that_has_ended_leaves_the_others_conditions() {
        let readiness = Readiness::default();
        let (one, other) = (readiness.part("one"), readiness.part("other"));
        one.part("inner").set("x", Err("no".to_owned()));
        one.set("y", Ok(()));
        other.set("x", Ok(()));
        assert_eq!(readiness.report(), (false, "[-] one/inner/x: no\n[+] one/y\n[+] other/x\n".to_owned()));
        one.part("inner").clear();
        assert_eq!(readiness.report(), (true, "[+] one/y\n[+] other/x\n".to_owned()));
    }
}
