//! Probes and hooks: whether a container has started, is alive, is ready, as a kubelet's prober finds out (`pkg/kubelet/prober`,
//! `pkg/probe`). Counting ([`Tally`]) and what is asked of whom ([`action`]) are pure; one attempt is bounded in time, and what a
//! container answers is bounded in size. Results are lost with the process; [`watch`] takes them up again from the pod's last status.

pub(crate) mod action;
pub(crate) mod counts;
mod grpc;
mod http;
mod patience;
mod tls;
mod url;
pub(crate) mod watch;

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, PodSpec, Probe};

/// What a probe decides about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Whether the container has started; until then nothing else is asked.
    Startup,
    /// Whether it has to be restarted.
    Liveness,
    /// Whether it may be sent requests.
    Readiness,
}

impl Kind {
    /// As a kubelet's events begin.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Startup => "Startup",
            Self::Liveness => "Liveness",
            Self::Readiness => "Readiness",
        }
    }

    /// The container's probe of this kind.
    pub(crate) fn of(self, container: &Container) -> Option<&Probe> {
        match self {
            Self::Startup => container.startup_probe.as_ref(),
            Self::Liveness => container.liveness_probe.as_ref(),
            Self::Readiness => container.readiness_probe.as_ref(),
        }
    }
}

/// Whether anything is to be asked of a container.
pub(crate) fn is_probed(container: &Container) -> bool {
    [Kind::Startup, Kind::Liveness, Kind::Readiness].into_iter().any(|kind| kind.of(container).is_some())
}

/// Whether an init container runs beside the others.
pub(crate) fn is_sidecar(container: &Container) -> bool {
    container.restart_policy.as_deref() == Some("Always")
}

/// The containers that run beside each other: the main ones, then the sidecars.
pub(crate) fn lasting(spec: &PodSpec) -> impl Iterator<Item = &Container> {
    let sidecars = spec.init_containers.iter().flatten().filter(|init| is_sidecar(init));
    spec.containers.iter().chain(sidecars)
}

/// What was found out about one run of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Health {
    /// The startup probe has succeeded.
    pub(crate) started: bool,
    /// The readiness probe's last word.
    pub(crate) ready: bool,
    /// Which probe has failed so that the container has to end.
    pub(crate) failed: Option<Kind>,
}

/// By the provider's ID of the container.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Healths(pub(crate) BTreeMap<String, Health>);

impl Healths {
    /// Whether a running container counts as started.
    pub(crate) fn has_started(&self, container: &Container, id: &str) -> bool {
        container.startup_probe.is_none() || self.0.get(id).is_some_and(|health| health.started)
    }

    /// Whether a running container is ready.
    pub(crate) fn is_ready(&self, container: &Container, id: &str) -> bool {
        let ready = || self.0.get(id).is_some_and(|health| health.ready);
        self.has_started(container, id) && (container.readiness_probe.is_none() || ready())
    }

    /// Which probe a running container has failed.
    pub(crate) fn failed(&self, id: &str) -> Option<Kind> {
        self.0.get(id)?.failed
    }
}

/// Equal results in a row, towards a threshold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Tally {
    last: Option<bool>,
    run: u32,
}

impl Tally {
    /// Takes one result. What the probe now says, if enough were equal.
    pub(crate) fn count(&mut self, good: bool, probe: &Probe) -> Option<bool> {
        self.run = if self.last == Some(good) { self.run.saturating_add(1) } else { 1 };
        self.last = Some(good);
        let threshold =
            if good { probe.success_threshold.unwrap_or(1) } else { probe.failure_threshold.unwrap_or(3) };
        (self.run >= u32::try_from(threshold).unwrap_or(0)).then_some(good)
    }
}

/// How long a container has to end after a probe of this kind has failed, if the probe says.
pub(crate) fn grace_seconds(container: &Container, kind: Kind) -> Option<i64> {
    kind.of(container)?.termination_grace_period_seconds
}

#[cfg(test)]
mod tests;
