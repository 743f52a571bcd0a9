//! What the plugins count. The agent adds these to its registry; nothing here serves them.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

use crate::device::ResourceName;

/// Labels of every counter here. Resources are those of this machine, outcomes are two.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    resource: String,
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Contested {
    resource: String,
}

/// Counters that all plugins share.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    registrations: Family<Labels, Counter>,
    allocations: Family<Labels, Counter>,
    contested: Family<Contested, Gauge>,
}

impl Metrics {
    /// Adds the counters to `registry`, whose prefix they take.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "registrations",
            "Attempts to register a plugin with the kubelet",
            self.registrations.clone(),
        );
        registry.register(
            "allocations",
            "Containers for which the kubelet asked for devices",
            self.allocations.clone(),
        );
        registry.register(
            "contested",
            "Whether a resource is left to somebody else on the machine who offers the same devices",
            self.contested.clone(),
        );
    }

    /// Whether a resource is left to somebody else.
    pub(crate) fn contested(&self, resource: &ResourceName, contested: bool) {
        let labels = Contested { resource: resource.to_string() };
        self.contested.get_or_create(&labels).set(i64::from(contested));
    }

    /// Counts one attempt to register.
    pub(crate) fn registration(&self, resource: &ResourceName, succeeded: bool) {
        self.registrations.get_or_create(&labels(resource, succeeded)).inc();
    }

    /// Counts one container that asked for devices.
    pub(crate) fn allocation(&self, resource: &ResourceName, succeeded: bool) {
        self.allocations.get_or_create(&labels(resource, succeeded)).inc();
    }
}

fn labels(resource: &ResourceName, succeeded: bool) -> Labels {
    Labels { resource: resource.to_string(), outcome: if succeeded { "success" } else { "error" } }
}
