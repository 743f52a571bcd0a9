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

use super::{Shared, logs, stream};

pub(super) fn router(shared: Shared) -> Router {
    let not_yet = |what: &'static str| any(move || async move { (StatusCode::NOT_IMPLEMENTED, what) });
    Router::new()
        .route("/healthz", get(|| async { "ok" }))
        .route("/pods", get(pods))
        .route("/runningpods/", get(running_pods))
        .route("/containerLogs/{namespace}/{pod}/{container}", get(logs::container_logs))
        .route("/exec/{namespace}/{pod}/{container}", get(stream::exec).post(stream::exec))
        .route(
            "/exec/{namespace}/{pod}/{uid}/{container}",
            get(stream::exec_by_uid).post(stream::exec_by_uid),
        )
        .route("/attach/{*path}", not_yet("attach is not implemented yet"))
        .route("/portForward/{*path}", not_yet("port forwarding is not implemented yet"))
        .route("/run/{*path}", not_yet("run is not implemented: use exec"))
        .route("/stats/{*path}", not_yet("statistics are not implemented yet"))
        .route("/metrics", not_yet("metrics of the process are at --admin-address"))
        .route("/metrics/{*path}", not_yet("metrics of containers are not implemented yet"))
        .route("/configz", not_yet("configz is not implemented yet"))
        .with_state(shared)
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
