//! What `/metrics` tells of the virtual node. Labels are bounded: no pod or client is ever one.

use jiff::Timestamp;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

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
