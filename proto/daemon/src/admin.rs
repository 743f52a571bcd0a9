//! The admin endpoint: `/metrics`, `/healthz` and `/readyz` on plain HTTP. It shows no object of the cluster and no secret.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::Context as _;
use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    response::IntoResponse,
    routing::get,
};
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// Named conditions that must all hold before the daemon calls itself ready. Clones share one state.
#[derive(Debug, Clone, Default)]
pub struct Readiness(Arc<Mutex<BTreeMap<&'static str, Result<(), String>>>>);

impl Readiness {
    /// Declares or changes one condition; `Err` carries why it does not hold.
    pub fn set(&self, condition: &'static str, state: Result<(), String>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(condition, state);
    }

    /// The report that `/readyz` gives: one line a condition, and whether all hold.
    pub fn report(&self) -> (bool, String) {
        let conditions = self.0.lock().unwrap_or_else(PoisonError::into_inner);
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

/// Serves [`router`] on `address` until `stop` is cancelled.
///
/// # Errors
/// When the address can't be bound or the listener fails.
pub async fn serve(
    address: SocketAddr,
    registry: Arc<Registry>,
    readiness: Readiness,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let listener = TcpListener::bind(address).await.with_context(|| {
        format!("can't listen on the admin address {address}: choose another with --admin-address")
    })?;
    tracing::info!(address = %listener.local_addr()?, "admin endpoint serves /metrics, /healthz and /readyz");
    axum::serve(listener, router(registry, readiness))
        .with_graceful_shutdown(stop.cancelled_owned())
        .await
        .context("the admin endpoint failed")
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
}
