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

mod process;

use process::Process;

/// Handles of all metrics of one node; clones and other nodes' share the registry.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    node: String,
    certificates: Family<CertificateLabels, Gauge>,
    requests: Family<RequestLabels, Counter>,
    connections: Family<NodeLabels, Gauge>,
    registrations: Family<NodeLabels, Counter>,
    lease_failures: Family<NodeLabels, Counter>,
    provider_up: Family<NodeLabels, Gauge>,
    leader: Family<NodeLabels, Gauge>,
    restarts: Family<NodeLabels, Counter>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct NodeLabels {
    node: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CertificateLabels {
    node: String,
    certificate: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    node: String,
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
        own.register(
            "leader",
            "1 if this process holds the node's lease; only with --leader-elect",
            metrics.leader.clone(),
        );
        own.register(
            "node_restarts",
            "How often all of the node was started again after a part of it had failed; only with several nodes",
            metrics.restarts.clone(),
        );
        metrics
    }

    /// The handles of one node.
    #[must_use]
    pub fn of(&self, node: &str) -> Self {
        let metrics = Self { node: node.to_owned(), ..self.clone() };
        // So that they are zeroes and not gaps.
        drop(metrics.connections());
        let _ = metrics.registrations.get_or_create(&metrics.labels());
        let _ = metrics.lease_failures.get_or_create(&metrics.labels());
        metrics
    }

    fn labels(&self) -> NodeLabels {
        NodeLabels { node: self.node.clone() }
    }

    /// Tells what this process uses each time that someone asks.
    pub fn watch_process(registry: &mut Registry) {
        registry.register_collector(Box::new(Process::own()));
    }

    /// Counts the pods by node and phase each time that someone asks.
    pub fn count_pods(registry: &mut Registry, pods: Vec<(String, Arc<dyn PodSource>)>) {
        registry.register_collector(Box::new(PodPhases(pods)));
    }

    pub(crate) fn certificate_expires(&self, certificate: &'static str, time: Timestamp) {
        let labels = CertificateLabels { node: self.node.clone(), certificate };
        self.certificates.get_or_create(&labels).set(time.as_second());
    }

    /// In seconds since 1970; `None`: it was not told.
    pub(crate) fn certificate_ends(&self, certificate: &'static str) -> Option<i64> {
        let labels = CertificateLabels { node: self.node.clone(), certificate };
        self.certificates.get(&labels).map(|end| end.get())
    }

    /// Whose metrics these are.
    pub(crate) fn node(&self) -> &str {
        &self.node
    }

    /// `route` is the matched pattern, never the path.
    pub(crate) fn request(&self, route: &str, code: http::StatusCode) {
        let labels = RequestLabels { node: self.node.clone(), route: route.to_owned(), code: code.as_u16() };
        self.requests.get_or_create(&labels).inc();
    }

    pub(crate) fn connections(&self) -> Gauge {
        self.connections.get_or_create(&self.labels()).clone()
    }

    pub(crate) fn registered(&self) {
        self.registrations.get_or_create(&self.labels()).inc();
    }

    pub(crate) fn lease_failed(&self) {
        self.lease_failures.get_or_create(&self.labels()).inc();
    }

    pub(crate) fn provider_is_up(&self, up: bool) {
        self.provider_up.get_or_create(&self.labels()).set(i64::from(up));
    }

    pub(crate) fn leads(&self, leads: bool) {
        self.leader.get_or_create(&self.labels()).set(i64::from(leads));
    }

    pub(crate) fn node_restarted(&self) {
        self.restarts.get_or_create(&self.labels()).inc();
    }
}

struct PodPhases(Vec<(String, Arc<dyn PodSource>)>);

impl fmt::Debug for PodPhases {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PodPhases")
    }
}

impl Collector for PodPhases {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut family = encoder.encode_descriptor(
            "spillway_vk_pods",
            "Pods of the node by phase",
            None,
            prometheus_client::metrics::MetricType::Gauge,
        )?;
        for (node, pods) in &self.0 {
            // All phases, so that one without pods is a zero and not a gap.
            let mut phases: BTreeMap<&str, i64> =
                ["Pending", "Running", "Succeeded", "Failed"].into_iter().map(|phase| (phase, 0)).collect();
            for (phase, found) in pods.phases() {
                if let Some(count) = phases.get_mut(phase.as_str()) {
                    *count += i64::try_from(found).unwrap_or(i64::MAX);
                }
            }
            for (phase, count) in phases {
                let labels = [("node", node.as_str()), ("phase", phase)];
                ConstGauge::new(count).encode(family.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use k8s_openapi::api::core::v1::Pod;

    use super::*;

    struct Fixed;

    impl PodSource for Fixed {
        fn get(&self, _: &str, _: &str) -> Option<Arc<Pod>> {
            None
        }

        fn list(&self) -> Vec<Arc<Pod>> {
            Vec::new()
        }

        fn phases(&self) -> HashMap<String, usize> {
            HashMap::from([("Running".to_owned(), 2), ("Pending".to_owned(), 1)])
        }
    }

    #[test]
    fn what_is_told() {
        let mut registry = Registry::default();
        let metrics = Metrics::new(&mut registry).of("vk1");
        Metrics::count_pods(&mut registry, vec![("vk1".to_owned(), Arc::new(Fixed))]);
        metrics.certificate_expires("client", Timestamp::from_second(7).unwrap());
        metrics.request("/exec/{namespace}/{pod}/{container}", http::StatusCode::FORBIDDEN);
        metrics.provider_is_up(true);
        metrics.leads(true);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        insta::assert_snapshot!(text);
    }
}
