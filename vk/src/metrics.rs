//! What `/metrics` tells of the virtual node. Labels are bounded: no pod or client is ever one.

use std::{collections::BTreeMap, fmt, sync::Arc};

use jiff::Timestamp;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric as _},
    metrics::{counter::Counter, family::Family, gauge::ConstGauge, gauge::Gauge},
    registry::Registry,
};

use crate::kubelet_api::PodSource;

/// Handles of all metrics; clones share them.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    certificates: Family<CertificateLabels, Gauge>,
    requests: Family<RequestLabels, Counter>,
    connections: Gauge,
    registrations: Counter,
    lease_failures: Counter,
    provider_up: Gauge,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CertificateLabels {
    certificate: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    route: String,
    code: u16,
}

impl Metrics {
    /// Registers all of them.
    pub fn new(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        let own = registry.sub_registry_with_prefix("spillway_vk");
        own.register(
            "certificate_expiration_timestamp_seconds",
            "When the certificate ends, in seconds since 1970",
            metrics.certificates.clone(),
        );
        own.register(
            "kubelet_api_requests",
            "Requests to the kubelet API, by route and HTTP status; refused ones included",
            metrics.requests.clone(),
        );
        own.register(
            "kubelet_api_connections",
            "Open connections to the kubelet API",
            metrics.connections.clone(),
        );
        own.register(
            "node_registrations",
            "How often the node object was created",
            metrics.registrations.clone(),
        );
        own.register(
            "node_lease_failures",
            "Failed renewals of the node's lease",
            metrics.lease_failures.clone(),
        );
        own.register(
            "provider_up",
            "1 if the provider answered when it was last asked",
            metrics.provider_up.clone(),
        );
        metrics
    }

    /// Counts the pods by phase each time that someone asks.
    pub fn count_pods(registry: &mut Registry, pods: Arc<dyn PodSource>) {
        registry.register_collector(Box::new(PodPhases(pods)));
    }

    pub(crate) fn certificate_expires(&self, certificate: &'static str, time: Timestamp) {
        self.certificates.get_or_create(&CertificateLabels { certificate }).set(time.as_second());
    }

    /// `route` is the matched pattern, never the path.
    pub(crate) fn request(&self, route: &str, code: http::StatusCode) {
        self.requests.get_or_create(&RequestLabels { route: route.to_owned(), code: code.as_u16() }).inc();
    }

    pub(crate) fn connections(&self) -> &Gauge {
        &self.connections
    }

    pub(crate) fn registered(&self) {
        self.registrations.inc();
    }

    pub(crate) fn lease_failed(&self) {
        self.lease_failures.inc();
    }

    pub(crate) fn provider_is_up(&self, up: bool) {
        self.provider_up.set(i64::from(up));
    }
}

struct PodPhases(Arc<dyn PodSource>);

impl fmt::Debug for PodPhases {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PodPhases")
    }
}

impl Collector for PodPhases {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        // All phases, so that one without pods is a zero and not a gap.
        let mut phases: BTreeMap<&str, i64> =
            ["Pending", "Running", "Succeeded", "Failed"].into_iter().map(|phase| (phase, 0)).collect();
        for pod in self.0.list() {
            let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or("Pending");
            if let Some(count) = phases.get_mut(phase) {
                *count += 1;
            }
        }
        let mut family = encoder.encode_descriptor(
            "spillway_vk_pods",
            "Pods of the node by phase",
            None,
            prometheus_client::metrics::MetricType::Gauge,
        )?;
        for (phase, count) in phases {
            ConstGauge::new(count).encode(family.encode_family(&[("phase", phase)])?)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Pod;
    use serde_json::json;

    use super::*;

    struct Fixed;

    impl PodSource for Fixed {
        fn get(&self, _: &str, _: &str) -> Option<Arc<Pod>> {
            None
        }

        fn list(&self) -> Vec<Arc<Pod>> {
            let pod = |status| Arc::new(serde_json::from_value(json!({ "status": status })).unwrap());
            vec![pod(json!({ "phase": "Running" })), pod(json!({ "phase": "Running" })), pod(json!({}))]
        }
    }

    #[test]
    fn what_is_told() {
        let mut registry = Registry::default();
        let metrics = Metrics::new(&mut registry);
        Metrics::count_pods(&mut registry, Arc::new(Fixed));
        metrics.certificate_expires("client", Timestamp::from_second(7).unwrap());
        metrics.request("/exec/{namespace}/{pod}/{container}", http::StatusCode::FORBIDDEN);
        metrics.provider_is_up(true);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        insta::assert_snapshot!(text);
    }
}
