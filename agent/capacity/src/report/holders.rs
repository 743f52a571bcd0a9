//! Who holds accelerators and does nothing with them.

use jiff::{SignedDuration, Timestamp};
use serde::Serialize;

use super::{
    Options,
    pools::{model, shares},
    snapshot::{Pod, ResourceId, Use},
    state::{Cluster, Machine},
    words::seconds_between,
};

use crate::price::Kind;

/// A pod that holds accelerators and does nothing with them.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Holder {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub pod: String,
    /// Who made it: `Job/train`.
    pub owner: Option<String>,
    /// Where it is.
    pub node: String,
    /// The resource.
    pub resource: String,
    /// How many devices it holds.
    pub devices: i64,
    /// Since when it has done nothing, where that is known.
    pub since: Option<Timestamp>,
    /// For how long it has done nothing, in seconds, where that is known.
    pub idle_s: Option<f64>,
    /// How it shows.
    pub shows: String,
    /// What holding it costs.
    pub cost_per_hour: Option<f64>,
}

/// All of them, those who hold most first.
pub(super) fn idle(cluster: &Cluster<'_>, options: &Options) -> Vec<Holder> {
    let mut holders = Vec::new();
    let seen =
        cluster.machines.iter().flat_map(|machine| machine.pods.iter().map(move |pod| (Some(machine), *pod)));
    // Where nodes can't be listed, pods still say what they hold.
    for (machine, pod) in seen.chain(cluster.elsewhere.iter().map(|pod| (None, *pod))) {
        for (resource, devices) in held(cluster, pod) {
            holders.extend(one(cluster, options, machine, pod, resource, devices));
        }
    }
    holders.sort_by(|one: &Holder, other| {
        let rank = |holder: &Holder| {
            (std::cmp::Reverse(holder.devices), holder.namespace.clone(), holder.pod.clone())
        };
        rank(one).cmp(&rank(other))
    });
    holders
}

/// What a pod holds of accelerators.
pub(super) fn held(cluster: &Cluster<'_>, pod: &Pod) -> impl Iterator<Item = (ResourceId, i64)> {
    pod.requests.iter().filter(|(resource, devices)| *devices > 0 && cluster.accelerators.contains(resource))
}

fn one(
    cluster: &Cluster<'_>,
    options: &Options,
    machine: Option<&Machine<'_>>,
    pod: &Pod,
    resource: ResourceId,
    devices: i64,
) -> Option<Holder> {
    // Who is ending gives them back by itself.
    if pod.ending {
        return None;
    }
    let now = cluster.snapshot.at;
    let usage = cluster.snapshot.beside.usage.get(&(pod.namespace.clone(), pod.name.clone()));
    let (idle_s, shows) = stands(pod, now).or_else(|| unused(usage?))?;
    if idle_s.is_some_and(|idle_s| idle_s < options.idle_after_s) {
        return None;
    }
    let since =
        idle_s.and_then(|idle_s| now.checked_sub(SignedDuration::try_from_secs_f64(idle_s).ok()?).ok());
    let name = cluster.snapshot.names.name(resource);
    let cost_per_hour = machine.zip(options.pricing.as_ref()).and_then(|(machine, pricing)| {
        let labels = &machine.node.labels;
        let kind = if machine.is_virtual() { Kind::Serverless } else { Kind::Dedicated };
        pricing.per_hour(kind, name, model(labels, name).as_deref(), shares(labels, name), devices)
    });
    Some(Holder {
        namespace: pod.namespace.to_string(),
        pod: pod.name.to_string(),
        owner: pod.owner.as_ref().map(ToString::to_string),
        node: pod.node.as_deref().unwrap_or_default().to_owned(),
        resource: name.to_owned(),
        devices,
        since,
        idle_s,
        shows,
        cost_per_hour,
    })
}

/// None of its containers that asked for accelerators runs.
fn stands(pod: &Pod, now: Timestamp) -> Option<(Option<f64>, String)> {
    let stands = pod.stands.as_ref()?;
    let since = stands.since.or(pod.bound);
    Some((
        since.map(|since| seconds_between(since, now)),
        format!("its container does not run: {}", stands.why),
    ))
}

fn unused(usage: &Use) -> Option<(Option<f64>, String)> {
    if !usage.idle {
        return None;
    }
    let shows = match (usage.idle_s, usage.computes) {
        (Some(_), _) => "computes nothing".to_owned(),
        (None, Some(_)) => "computes nothing at this moment".to_owned(),
        (None, None) => "uses no CPU, so probably nothing else".to_owned(),
    };
    Some((usage.idle_s, shows))
}
