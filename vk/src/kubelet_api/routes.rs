//! The routes: a table, and the handlers that are too small for a module.

use std::sync::Arc;

use axum::{
    Router,
    extract::State,
    response::{IntoResponse as _, Response},
    routing::{any, get},
};
use http::{StatusCode, header};
use k8s_openapi::{List, api::core::v1::Pod};

use super::{Shared, logs, stats, stream};

pub(super) fn router(shared: Shared) -> Router {
    let not_yet = |what: &'static str| any(move || async move { (StatusCode::NOT_IMPLEMENTED, what) });
    Router::new()
        .route("/healthz", get(|| async { "ok" }))
        .route("/healthz/ping", get(|| async { "ok" }))
        .route("/healthz/log", get(|| async { "ok" }))
        .route("/healthz/syncloop", get(|| async { "ok" }))
        .route("/pods", get(pods))
        .route("/pods/", get(pods))
        .route("/runningpods", get(running_pods))
        .route("/runningpods/", get(running_pods))
        .route("/containerLogs/{namespace}/{pod}/{container}", get(logs::container_logs))
        .route("/exec/{namespace}/{pod}/{container}", get(stream::exec).post(stream::exec))
        .route(
            "/exec/{namespace}/{pod}/{uid}/{container}",
            get(stream::exec_by_uid).post(stream::exec_by_uid),
        )
        .route("/attach/{namespace}/{pod}/{container}", get(stream::attach).post(stream::attach))
        .route(
            "/attach/{namespace}/{pod}/{uid}/{container}",
            get(stream::attach_by_uid).post(stream::attach_by_uid),
        )
        .route("/portForward/{namespace}/{pod}", get(stream::port_forward).post(stream::port_forward))
        .route(
            "/portForward/{namespace}/{pod}/{uid}",
            get(stream::port_forward_by_uid).post(stream::port_forward_by_uid),
        )
        .route("/run/{*path}", not_yet("run is not implemented: use exec"))
        .route("/stats/summary", get(stats::summary).post(stats::summary))
        .route("/metrics", get(metrics))
        .route("/metrics/resource", get(stats::resource))
        .route("/metrics/cadvisor", get(stats::cadvisor))
        .route("/metrics/probes", get(stats::probes))
        .route("/configz", get(configz))
        .with_state(shared)
}

/// This process' own metrics, the same as at the admin address.
async fn metrics(State(shared): State<Shared>) -> Response {
    let mut text = String::new();
    match prometheus_client::encoding::text::encode(&mut text, &shared.registry) {
        Ok(()) => {
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            ([(header::CONTENT_TYPE, kind)], text).into_response()
        }
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

async fn configz(State(shared): State<Shared>) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], shared.configz.to_string()).into_response()
}

async fn pods(State(shared): State<Shared>) -> Response {
    pod_list(shared.pods.list())
}

/// Pods with at least one running container.
async fn running_pods(State(shared): State<Shared>) -> Response {
    let mut pods = shared.pods.list();
    pods.retain(|pod| runs(pod));
    pod_list(pods)
}

fn runs(pod: &Pod) -> bool {
    pod.status.as_ref().is_some_and(|status| {
        [&status.container_statuses, &status.init_container_statuses, &status.ephemeral_container_statuses]
            .into_iter()
            .flatten()
            .flatten()
            .any(|container| container.state.as_ref().is_some_and(|state| state.running.is_some()))
    })
}

fn pod_list(pods: Vec<Arc<Pod>>) -> Response {
    let items = pods.into_iter().map(Arc::unwrap_or_clone).collect();
    match serde_json::to_vec(&List::<Pod> { items, ..List::default() }) {
        Ok(body) => ([(header::CONTENT_TYPE, "application/json")], body).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}
