//! The node's lease in kube-node-lease: what the node controller believes a node's life by.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::{MicroTime, OwnerReference},
};
use kube::{
    Api, Client,
    api::{ObjectMeta, PostParams},
};
use tokio::{sync::watch, time::MissedTickBehavior};

use super::bounded;
use crate::{identity::chain, metrics::Metrics};

/// A quarter of the lease, as a kubelet's.
const RENEW: Duration = Duration::from_secs(10);
/// A kubelet's `nodeLeaseDurationSeconds`.
const DURATION_SECONDS: i32 = 40;

/// Where the leases of nodes are.
pub(super) const NAMESPACE: &str = "kube-node-lease";

/// Renews the lease of the node whose UID is in `uid`; rests while there is no node.
pub(super) async fn keep(
    client: &Client,
    node: &str,
    mut uid: watch::Receiver<Option<String>>,
    metrics: &Metrics,
) {
    let leases: Api<Lease> = Api::namespaced(client.clone(), NAMESPACE);
    let mut tick = tokio::time::interval(RENEW);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut held: Option<Lease> = None;
    let mut failing = false;
    loop {
        tokio::select! {
            _ = tick.tick() => {}
            Ok(()) = uid.changed() => {}
        }
        let Some(owner) = uid.borrow_and_update().clone() else { continue };
        let renewed = match held.take() {
            // A conflict, or a lease that is gone because its node was: look, then try again.
            Some(lease) => match renew(&leases, node, &owner, Some(lease)).await {
                Err(_) => renew(&leases, node, &owner, None).await,
                renewed => renewed,
            },
            None => renew(&leases, node, &owner, None).await,
        };
        match renewed {
            Ok(lease) => {
                if std::mem::take(&mut failing) {
                    tracing::info!(node, "the node's lease is renewed again");
                }
                held = Some(lease);
            }
            Err(problem) => {
                metrics.lease_failed();
                if !std::mem::replace(&mut failing, true) {
                    tracing::warn!(node, problem, "can't renew the node's lease; trying again");
                }
            }
        }
    }
}

/// One renewal: over the lease that we hold, or the one that is there, or a new one.
async fn renew(leases: &Api<Lease>, node: &str, owner: &str, held: Option<Lease>) -> Result<Lease, String> {
    let found = match held {
        Some(held) => Some(held),
        None => bounded(leases.get_opt(node)).await?.map_err(|error| chain(&error))?,
    };
    if let Some(holder) = found.as_ref().and_then(|found| other_holder(found, node, Timestamp::now())) {
        tracing::error!(
            node,
            holder,
            "another process acts for this node, and this one was not told to stand by: stop one of them, or give both --leader-elect"
        );
    }
    let lease = renewed(node, owner, found, Timestamp::now());
    bounded(write(leases, node, &lease)).await?.map_err(|error| chain(&error))
}

/// Replaces the version of the lease that was found, or makes the first.
pub(super) async fn write(leases: &Api<Lease>, node: &str, lease: &Lease) -> kube::Result<Lease> {
    let parameters = PostParams::default();
    if lease.metadata.resource_version.is_some() {
        leases.replace(node, &parameters, lease).await
    } else {
        leases.create(&parameters, lease).await
    }
}

fn renewed(node: &str, owner: &str, found: Option<Lease>, now: Timestamp) -> Lease {
    let mut lease = of(node, Some(owner), found);
    lease.spec = Some(LeaseSpec {
        holder_identity: Some(node.to_owned()),
        lease_duration_seconds: Some(DURATION_SECONDS),
        renew_time: Some(MicroTime(now)),
        ..lease.spec.unwrap_or_default()
    });
    lease
}

/// The lease as it was found, or a new one, owned by the node if that is known.
pub(super) fn of(node: &str, owner: Option<&str>, found: Option<Lease>) -> Lease {
    let mut lease = found.unwrap_or_else(|| Lease {
        metadata: ObjectMeta {
            name: Some(node.to_owned()),
            namespace: Some(NAMESPACE.to_owned()),
            ..ObjectMeta::default()
        },
        spec: None,
    });
    if let Some(owner) = owner {
        lease.metadata.owner_references = Some(vec![OwnerReference {
            api_version: "v1".to_owned(),
            kind: "Node".to_owned(),
            name: node.to_owned(),
            uid: owner.to_owned(),
            ..OwnerReference::default()
        }]);
    }
    lease
}

/// Whose lease it is, if that is somebody else who has renewed it in time.
fn other_holder(lease: &Lease, node: &str, now: Timestamp) -> Option<String> {
    let spec = lease.spec.as_ref()?;
    let holder = spec.holder_identity.as_deref().filter(|holder| !holder.is_empty() && *holder != node)?;
    let until = spec.renew_time.as_ref()?.0.as_second() + i64::from(spec.lease_duration_seconds?);
    (until > now.as_second()).then(|| holder.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renewal_keeps_what_others_wrote_and_follows_a_new_node() {
        let first = renewed("vk1", "uid-1", None, Timestamp::UNIX_EPOCH);
        assert_eq!(first.metadata.owner_references.as_ref().unwrap()[0].uid, "uid-1");
        assert_eq!(first.spec.as_ref().unwrap().lease_duration_seconds, Some(40));

        let mut found = first;
        found.metadata.resource_version = Some("7".to_owned());
        found.spec.as_mut().unwrap().lease_transitions = Some(3);
        let now = Timestamp::from_second(100).unwrap();
        let second = renewed("vk1", "uid-2", Some(found), now);
        assert_eq!(second.metadata.resource_version.as_deref(), Some("7"));
        assert_eq!(second.metadata.owner_references.as_ref().unwrap()[0].uid, "uid-2");
        assert_eq!(other_holder(&second, "vk1", now), None);
        assert_eq!(other_holder(&second, "vk2", now).as_deref(), Some("vk1"));
        assert_eq!(other_holder(&second, "vk2", Timestamp::from_second(140).unwrap()), None, "it has ended");
        let spec = second.spec.unwrap();
        assert_eq!((spec.lease_transitions, spec.renew_time), (Some(3), Some(MicroTime(now))));
    }
}
