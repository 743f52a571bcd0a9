//! The node object: registers it, keeps its status and lease, and registers it again when someone deletes it.
//!
//! Status is patched, so that conditions and annotations of others survive, and `spec.podCIDR` is left to the controller manager.
//! A shutdown leaves the node alone: pods go on running, and a restart is not worth a flap.

use std::{net::IpAddr, time::Duration};

use futures::StreamExt as _;
use k8s_openapi::api::core::v1::{Node as NodeObject, NodeCondition};
use kube::{
    Api, Client, ResourceExt as _,
    api::{Patch, PatchParams, PostParams},
    runtime::{WatchStreamExt as _, watcher::watch_object},
};
use serde_json::json;
use spillway_daemon::admin::Readiness;
use tokio::{
    sync::watch,
    time::{Instant, MissedTickBehavior},
};
use tokio_util::sync::CancellationToken;

use crate::{config::NodeConfig, identity::chain, lead::Lead, metrics::Metrics, provider::Provider};

pub mod election;
mod health;
mod lease;
mod machine;
mod object;
pub mod pressure;

use health::Health;
use machine::Machine;
use object::{Dropped, Template};

/// How often the state is looked at; a kubelet's `nodeStatusUpdateFrequency`.
const UPDATE: Duration = Duration::from_secs(10);
/// How often it is reported though nothing changed; a kubelet's `nodeStatusReportFrequency`.
const REPORT: Duration = Duration::from_mins(5);
/// How often the machine is looked at: processors and memory come and go.
const MACHINE: Duration = Duration::from_mins(1);
/// What one request may take, so that a half-open connection doesn't cost the node its lease.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// The readiness condition that this module sets.
const CONDITION: &str = "node";
/// The node's annotation that names the resources which we told, so that a later start knows which of them to take back.
pub(crate) const RESOURCES_ANNOTATION: &str = "spillway.dev/resources";

/// Everything the node needs.
pub struct Node {
    client: Client,
    provider: Provider,
    template: Template,
    config: watch::Receiver<NodeConfig>,
    lease: NodeLease,
    readiness: Readiness,
    metrics: Metrics,
}

/// Who renews the node's lease.
pub enum NodeLease {
    /// This module, for as long as it runs.
    Own,
    /// The election, which has to know the node object's UID.
    Elected(Lead, watch::Sender<Option<String>>),
}

/// What was done to the node object so far.
#[derive(Default)]
struct Done {
    /// The UID of the node whose labels and annotations were put right.
    adopted: Option<String>,
    /// Labels and annotations that we no longer want.
    dropped: Dropped,
    reported: Option<Reported>,
}

/// What has been reported, and when.
struct Reported {
    at: Instant,
    uid: String,
    status: serde_json::Value,
}

impl Node {
    /// A node at this address, whose kubelet API has this port (0: none).
    #[allow(clippy::too_many_arguments)] // What one node is, with nothing in common.
    pub fn new(
        client: Client,
        provider: Provider,
        config: watch::Receiver<NodeConfig>,
        address: IpAddr,
        kubelet_port: u16,
        lease: NodeLease,
        readiness: Readiness,
        metrics: Metrics,
    ) -> Self {
        readiness.set(CONDITION, Err("not registered yet".to_owned()));
        let template = Template {
            config: config.borrow().clone(),
            provider: provider.name(),
            address,
            kubelet_port,
            machine: Machine::read("/"),
        };
        Self { client, provider, template, config, lease, readiness, metrics }
    }

    /// Keeps the node until `stop`.
    pub async fn run(mut self, stop: CancellationToken) {
        let (health, health_seen) = watch::channel(Health::starting());
        let (lead, uid, own_lease) = match &self.lease {
            NodeLease::Own => (Lead::always(), watch::Sender::new(None), true),
            NodeLease::Elected(lead, uid) => (lead.clone(), uid.clone(), false),
        };
        let (client, provider, name) =
            (self.client.clone(), self.provider.clone(), self.template.config.name.clone());
        let thresholds = self.template.config.thresholds.clone();
        let (readiness, metrics, uid_seen) = (self.readiness.clone(), self.metrics.clone(), uid.subscribe());
        let renew = async {
            if own_lease {
                lease::keep(&client, &name, uid_seen, &metrics).await;
            } else {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            () = stop.cancelled() => {}
            () = health::watch(&provider, &health, &readiness, &metrics, &thresholds) => {}
            () = self.keep_registered(health_seen, &uid, &lead) => {}
            () = renew => {}
        }
    }

    async fn keep_registered(
        &mut self,
        mut health: watch::Receiver<Health>,
        uid: &watch::Sender<Option<String>>,
        lead: &Lead,
    ) {
        let name = &self.template.config.name.clone();
        let nodes: Api<NodeObject> = Api::all(self.client.clone());
        let mut changes = std::pin::pin!(watch_object(nodes.clone(), name).default_backoff());
        let mut tick = tokio::time::interval(UPDATE);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // Nothing is known before the watch has spoken.
        let mut known: Option<Option<NodeObject>> = None;
        let mut done = Done::default();
        let mut config = self.config.clone();
        let mut machine_read_at = Instant::now();
        loop {
            tokio::select! {
                Some(change) = changes.next() => match change {
                    Ok(node) => known = Some(node),
                    Err(error) => {
                        let error = chain(&error);
                        tracing::warn!(error, node = name, "can't watch our node; trying again");
                        self.readiness.set(CONDITION, Err(format!("the API server can't be asked about it: {error}")));
                        continue;
                    }
                },
                _ = tick.tick() => {}
                Ok(()) = health.changed() => {}
                Ok(()) = config.changed() => {
                    self.template.change(config.borrow_and_update().clone(), &mut done.dropped);
                    done.adopted = None;
                    tracing::info!(node = name, "the changed configuration of the node is in force");
                }
            }
            if lead.check().is_err() {
                // Whoever holds the lease looks after it.
                continue;
            }
            if machine_read_at.elapsed() >= MACHINE {
                machine_read_at = Instant::now();
                self.template.machine = Machine::read("/");
            }
            let health = health.borrow().clone();
            let Some(node) = &mut known else { continue };
            let result = self.keep(&nodes, node, &health, &mut done).await;
            let new = node.as_ref().and_then(kube::ResourceExt::uid);
            uid.send_if_modified(|uid| std::mem::replace(uid, new.clone()) != new);
            match result {
                Ok(()) => self.readiness.set(CONDITION, Ok(())),
                Err(problem) => {
                    tracing::warn!(node = name, problem, "can't keep our node up to date; trying again");
                    self.readiness.set(CONDITION, Err(problem));
                }
            }
        }
    }

    /// Registers the node if there is none, and puts its labels, annotations and status right.
    async fn keep(
        &self,
        nodes: &Api<NodeObject>,
        node: &mut Option<NodeObject>,
        health: &Health,
        done: &mut Done,
    ) -> Result<(), String> {
        let found = match node {
            Some(found) => found,
            None => node.insert(self.register(nodes, health).await?),
        };
        let mut adopted = Ok(());
        if done.adopted.is_none() || done.adopted != found.uid() {
            adopted = self.adopt(nodes, found, &done.dropped).await;
            if adopted.is_ok() {
                done.adopted = found.uid();
                done.dropped = Dropped::default();
            }
        }
        // Also when a label is refused: a node that reports nothing loses its pods.
        let reported = self.report(nodes, node, health, &mut done.reported).await;
        match (adopted, reported) {
            (Err(adopted), Err(reported)) => Err(format!("{adopted}; {reported}")),
            (adopted, reported) => adopted.and(reported),
        }
    }

    async fn register(&self, nodes: &Api<NodeObject>, health: &Health) -> Result<NodeObject, String> {
        let node = self.template.node(health);
        match bounded(nodes.create(&PostParams::default(), &node)).await? {
            Ok(created) => {
                self.metrics.registered();
                tracing::info!(node = node.name_any(), address = %self.template.address, "node is registered");
                Ok(created)
            }
            Err(kube::Error::Api(status)) if status.is_already_exists() => {
                bounded(nodes.get(&node.name_any()))
                    .await?
                    .map_err(|error| format!("can't get it: {}", chain(&error)))
            }
            Err(error) => Err(format!("can't register it: {}", chain(&error))),
        }
    }

    /// The node may have been there before us: from an earlier run, most likely. Labels are ours to set; taints a node may not change.
    async fn adopt(
        &self,
        nodes: &Api<NodeObject>,
        node: &NodeObject,
        dropped: &Dropped,
    ) -> Result<(), String> {
        for taint in self.template.missing_taints(node) {
            tracing::warn!(
                node = node.name_any(),
                "the node exists without taint {taint}, and a node may not change its own taints: kubectl taint nodes {} {taint}",
                node.name_any()
            );
        }
        let Some(metadata) = self.template.missing_metadata(node, dropped) else { return Ok(()) };
        let patch = Patch::Merge(json!({ "metadata": metadata }));
        bounded(nodes.patch(&node.name_any(), &PatchParams::default(), &patch))
            .await?
            .map(drop)
            .map_err(|error| format!("can't set its labels: {}", chain(&error)))
    }

    /// Patches the status if it has changed, if the API server's differs in a condition of ours, or if it is time.
    async fn report(
        &self,
        nodes: &Api<NodeObject>,
        node: &mut Option<NodeObject>,
        health: &Health,
        reported: &mut Option<Reported>,
    ) -> Result<(), String> {
        let Some(found) = node else { return Ok(()) };
        let conditions: &[NodeCondition] =
            found.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
        let uid = found.uid().unwrap_or_default();
        let status = self.template.status(health, conditions);
        let stable = object::without_times(&status);
        let unchanged = reported.as_ref().is_some_and(|reported| {
            reported.uid == uid && reported.status == stable && reported.at.elapsed() < REPORT
        });
        if unchanged && object::conditions_stand(&status, conditions) {
            return Ok(());
        }
        let told = reported.as_ref().filter(|reported| reported.uid == uid).map(|reported| &reported.status);
        let patch = Patch::Strategic(object::status_patch(status, found, told));
        match bounded(nodes.patch_status(&found.name_any(), &PatchParams::default(), &patch)).await? {
            Ok(_) => {
                *reported = Some(Reported { at: Instant::now(), uid, status: stable });
                Ok(())
            }
            // Deleted (and maybe made anew by someone): the next look registers it.
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => {
                *node = None;
                Err("it was deleted".to_owned())
            }
            Err(error) => Err(format!("can't report its status: {}", chain(&error))),
        }
    }
}

async fn bounded<T>(request: impl Future<Output = T>) -> Result<T, String> {
    tokio::time::timeout(REQUEST_TIMEOUT, request)
        .await
        .map_err(|_| format!("the API server gave no answer within {} s", REQUEST_TIMEOUT.as_secs()))
}

#[cfg(test)]
mod tests;
