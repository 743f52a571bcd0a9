//! Quotas that keep pods from being made: how full they are, and whose end would make room.

use super::{
    super::{
        quantity,
        snapshot::{Pod, Refusal},
        state::Cluster,
        words::{few, lasting, things},
    },
    Idle,
};

/// What the API server says of a quota when it refuses a pod.
pub(super) struct Limit {
    quota: String,
    /// The resource as the quota calls it: `requests.nvidia.com/gpu`, `pods`.
    resource: String,
    requested: String,
    used: String,
    limited: String,
}

impl Limit {
    /// What always helps.
    pub(super) const RAISE: &'static str = "with a larger quota, or when pods of the namespace have ended";

    /// Of `requested: pods=1, used: pods=2, limited: pods=2`; nothing where it says more than that.
    pub(super) fn of(quota: &str, numbers: &str) -> Option<Self> {
        let parts: Vec<_> = numbers.split(", ").collect();
        let amount = |part: &str, of: &str| {
            let (resource, amount) = part.strip_prefix(of)?.strip_prefix(": ")?.split_once('=')?;
            Some((resource.to_owned(), amount.to_owned()))
        };
        let [requested, used, limited] = parts.as_slice() else { return None };
        let (resource, requested) = amount(requested, "requested")?;
        let ((_, used), (_, limited)) = (amount(used, "used")?, amount(limited, "limited")?);
        Some(Self { quota: quota.to_owned(), resource, requested, used, limited })
    }

    /// The resource as pods call it.
    fn name(&self) -> &str {
        self.resource.strip_prefix("requests.").unwrap_or(&self.resource)
    }

    pub(super) fn words(&self) -> String {
        let Self { used, limited, requested, .. } = self;
        // `cpu=1500m` has its unit.
        let what = match self.name() {
            name @ ("cpu" | "memory" | "pods") => name.to_owned(),
            name => things(name, if limited == "1" { 1 } else { 2 }),
        };
        let are = if limited == "1" { "is" } else { "are" };
        format!("{used} of {limited} {what} {are} taken, and a pod asks for {requested}")
    }

    /// Whether there is room by now, where quotas can be looked at.
    fn has_room(&self, cluster: &Cluster<'_>, namespace: &str) -> bool {
        let mut quotas = cluster.snapshot.beside.quotas.iter();
        let quota = quotas.find(|quota| quota.namespace == namespace && quota.name == self.quota);
        let left = quota.and_then(|quota| quota.milli.get(&self.resource)).map(|(used, hard)| hard - used);
        let asked = quantity::parse(&self.requested, 1000);
        left.zip(asked).is_some_and(|(left, asked)| asked <= left)
    }

    /// Whose end would make room, and what an admin could do.
    pub(super) fn starts_if(&self, cluster: &Cluster<'_>, idle: &Idle<'_>, refusal: &Refusal) -> Vec<String> {
        if self.has_room(cluster, &refusal.namespace) {
            return vec![
                "by itself: the quota has room by now, and whoever makes the pods tries again".to_owned(),
            ];
        }
        let lazy = |pod: &&Pod| idle.holder(pod).is_some_and(|idle| idle.resource == self.name());
        let pods = cluster.machines.iter().flat_map(|machine| machine.pods.iter().copied());
        let pods = pods.chain(cluster.elsewhere.iter().copied());
        let lazy: Vec<_> = pods
            .filter(|pod| *pod.namespace == *refusal.namespace)
            .filter(lazy)
            .map(|pod| {
                let since = idle.holder(pod).and_then(|idle| idle.idle_s);
                let since = since.map(|idle_s| format!(" for {}", lasting(idle_s))).unwrap_or_default();
                format!("{}/{} (idle{since})", pod.namespace, pod.name)
            })
            .collect();
        let mut options = Vec::new();
        if !lazy.is_empty() {
            options.push(format!("if {} ended", few(lazy.iter().map(String::as_str))));
        }
        options.push(Self::RAISE.to_owned());
        options
    }
}
