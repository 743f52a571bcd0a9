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

use super::{Shared, component, logs, stats, stream};

pub(super) fn router(shared: Shared) -> Router {
    let not_yet = |what: &'static str| any(move || async move { (StatusCode::NOT_IMPLEMENTED, what) });
    Router::new()
        .route("/healthz", get(component::healthz))
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
        .route("/stats/summary/", get(stats::summary).post(stats::summary))
        .route("/metrics", get(component::metrics))
        .route("/metrics/slis", get(component::slis))
        .route("/metrics/resource", get(stats::resource))
        .route("/metrics/cadvisor", get(stats::cadvisor))
        .route("/metrics/probes", get(stats::probes))
        .route("/configz", get(configz))
        .with_state(shared)
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
    pods.retain(|pod| running_containers(pod) > 0);
    pod_list(pods)
}

/// Of any kind.
pub(super) fn running_containers(pod: &Pod) -> usize {
    let Some(status) = &pod.status else { return 0 };
    [&status.container_statuses, &status.init_container_statuses, &status.ephemeral_container_statuses]
        .into_iter()
        .flatten()
        .flatten()
        .filter(|container| container.state.as_ref().is_some_and(|state| state.running.is_some()))
        .count()
}

fn pod_list(pods: Vec<Arc<Pod>>) -> Response {
    let items = pods.into_iter().map(Arc::unwrap_or_clone).collect();
    match serde_json::to_vec(&List::<Pod> { items, ..List::default() }) {
        Ok(body) => ([(header::CONTENT_TYPE, "application/json")], body).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}
