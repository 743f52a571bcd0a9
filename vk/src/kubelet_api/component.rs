//! What every component of Kubernetes tells of itself: `/healthz`, `/metrics` and `/metrics/slis`. `/metrics` has the daemon's own, as the
//! admin endpoint, and those of a kubelet that its dashboards and alerts begin with.

use std::fmt;

use axum::{
    extract::{Query, State},
    response::{IntoResponse as _, Response},
};
use http::{HeaderMap, StatusCode, header};
use jiff::Timestamp;
use prometheus_client::{
    encoding::text::{encode, encode_eof, encode_registry},
    metrics::{family::Family, gauge::Gauge},
    registry::Registry,
};

use super::{Shared, routes};
use crate::provider::Provider;

/// A kubelet's checks. They hold while there is anybody to ask.
const CHECKS: [&str; 3] = ["ping", "log", "syncloop"];

type Labelled = Family<Vec<(&'static str, String)>, Gauge>;

pub(super) async fn healthz(Query(query): Query<Vec<(String, String)>>) -> String {
    if !query.iter().any(|(name, _)| name == "verbose") {
        return "ok".to_owned();
    }
    let lines = CHECKS.iter().map(|check| format!("[+]{check} ok\n"));
    lines.collect::<String>() + "healthz check passed\n"
}

pub(super) async fn metrics(State(shared): State<Shared>, headers: HeaderMap) -> Response {
    let mut text = String::new();
    let encoded = encode_registry(&mut text, &shared.registry)
        .and_then(|()| encode_registry(&mut text, &of_a_kubelet(&shared)))
        .and_then(|()| encode_eof(&mut text));
    answer(encoded, text, &headers)
}

/// `kubernetes_healthcheck` alone: how often somebody asked says nothing here.
pub(super) async fn slis(headers: HeaderMap) -> Response {
    let checks = Labelled::default();
    for check in CHECKS {
        checks.get_or_create(&vec![("name", check.to_owned()), ("type", "healthz".to_owned())]).set(1);
    }
    let mut registry = Registry::default();
    let help = "This metric records the result of a single healthcheck";
    registry.register("kubernetes_healthcheck", help, checks);
    let mut text = String::new();
    let encoded = encode(&mut text, &registry);
    answer(encoded, text, &headers)
}

/// The text can be read as either format; whoever didn't ask for the newer one may not know its name.
fn answer(encoded: fmt::Result, text: String, headers: &HeaderMap) -> Response {
    if let Err(error) = encoded {
        return (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response();
    }
    let mut accepted = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    let kind = if accepted.any(|value| value.contains("application/openmetrics-text")) {
        "application/openmetrics-text; version=1.0.0; charset=utf-8"
    } else {
        "text/plain; version=0.0.4; charset=utf-8"
    };
    ([(header::CONTENT_TYPE, kind)], text).into_response()
}

/// Names, labels and help are a kubelet's (pkg/kubelet/metrics, pkg/kubelet/certificate).
fn of_a_kubelet(shared: &Shared) -> Registry {
    let mut registry = Registry::default();
    let node = Labelled::default();
    node.get_or_create(&vec![("node", shared.metrics.node().to_owned())]).set(1);
    registry.register("kubelet_node_name", "The node's name. The count is always 1", node);

    let running = shared.pods.phases().get("Running").copied().unwrap_or_default();
    register(&mut registry, "kubelet_running_pods", "Number of pods that are running", count(running));
    // A service's pods may be too many to be looked at one by one.
    if let Provider::Runtime(_) = shared.provider {
        let running = shared.pods.list().iter().map(|pod| routes::running_containers(pod)).sum();
        let containers = Labelled::default();
        containers.get_or_create(&vec![("container_state", "running".to_owned())]).set(count(running));
        registry.register("kubelet_running_containers", "Number of containers currently running", containers);
    }

    let now = Timestamp::now().as_second();
    for (certificate, name, help) in [
        (
            "client",
            "kubelet_certificate_manager_client_ttl_seconds",
            "Seconds until the client certificate ends, negative if it has",
        ),
        (
            "serving",
            "kubelet_certificate_manager_server_ttl_seconds",
            "Seconds until the serving certificate ends, negative if it has",
        ),
    ] {
        if let Some(end) = shared.metrics.certificate_ends(certificate) {
            register(&mut registry, name, help, end - now);
        }
    }
    registry
}

fn register(registry: &mut Registry, name: &str, help: &str, value: i64) {
    let gauge = Gauge::<i64>::default();
    gauge.set(value);
    registry.register(name, help, gauge);
}

fn count(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
