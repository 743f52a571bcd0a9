//! This machine's node object in the Kubernetes API: labels and an annotation that say what is on it, a condition and events that say how
//! that is doing, the label that picks its configuration, and its pods' names and labels.
//!
//! None of it is needed to hand out devices. Without a node name all of it is off; while the API server is away it is tried again, and
//! devices go on being served. Nothing is written before this agent is the one that serves the machine's kubelet.

mod args;
mod client;
pub mod condition;
mod config;
pub mod events;
mod labels;
mod pods;
mod watch;

use std::{collections::BTreeMap, future::Future, sync::Arc};

use kube::Api;
use spillway_device_plugin::inventory::Inventory;
use tokio::{sync::watch as channel, task::JoinSet};
use tokio_util::sync::CancellationToken;

use crate::kinds::Node as NodeObject;

pub use args::{Feature, NodeArgs};
pub use client::NodeError;
pub use config::Accept;
pub use events::EventSink;
pub use pods::PodMeta;

/// The agent's name as the API server knows it: field manager and reporter of events.
const MANAGER: &str = "spillway-agent";

/// What the node's annotations shall be: key and value, computed from what is on the machine.
pub type Annotate = Arc<dyn Fn(&Inventory) -> BTreeMap<String, String> + Send + Sync>;

/// What this module is fed with, and feeds.
pub struct Wiring {
    /// What is on the machine.
    pub inventory: channel::Receiver<Inventory>,
    /// Annotations, if there are any to be.
    pub annotate: Option<Annotate>,
    /// Takes the configuration that the node's label picks; none where there is nothing to take it.
    pub accept: Option<Accept>,
    /// The pods of this machine, where somebody wants them; none until they have been listed.
    pub pods: Option<channel::Sender<Option<Vec<PodMeta>>>>,
    /// True once this agent serves the kubelet.
    pub serving: channel::Receiver<bool>,
}

/// The node's keeper.
pub struct Node {
    args: NodeArgs,
    name: String,
    sink: EventSink,
    queue: events::Queue,
    chosen: channel::Sender<bool>,
}

impl Node {
    /// None where the arguments name no node; said once.
    pub fn new(args: &NodeArgs) -> Option<Self> {
        let Some(name) = args.node_name.clone().filter(|name| !name.is_empty()) else {
            tracing::info!(
                "no --node-name: no labels, events or condition on the node, and no configuration by its labels"
            );
            return None;
        };
        let (sink, queue) = events::channel();
        let chosen = channel::Sender::new(args.config_dir.is_none());
        Some(Self { args: args.clone(), name, sink, queue, chosen })
    }

    /// True once the node's configuration has been chosen, which may take some seconds; at once where none is to be.
    pub fn chosen(&self) -> channel::Receiver<bool> {
        self.chosen.subscribe()
    }

    /// Where events about this node and its pods go.
    pub fn events(&self) -> EventSink {
        self.sink.clone()
    }

    /// Keeps the node until `stop`.
    pub async fn run(self, wiring: Wiring, stop: CancellationToken) {
        let wanted = |feature| self.args.node_features.contains(&feature);
        let mut tasks = JoinSet::new();
        let until = |task| client::until(task, stop.clone());
        let (seen_sender, seen) = channel::channel(None);
        match (self.args.config_dir.clone(), wiring.accept) {
            (Some(folder), Some(accept)) if wanted(Feature::Config) => {
                let selection = config::Selection {
                    label: self.args.node_label.clone(),
                    folder,
                    default: self.args.default_config.clone(),
                    accept,
                    events: self.sink.clone(),
                    chosen: self.chosen,
                };
                tasks.spawn(until(Box::pin(selection.keep(seen.clone())) as Task));
            }
            _ => drop(self.chosen.send_replace(true)),
        }
        let Some(client) = client::connect(&self.args, &stop).await else { return };
        tasks.spawn(until(Box::pin(watch::keep(client.clone(), self.name.clone(), seen_sender))));
        if let Some(pods) = wiring.pods.filter(|_| wanted(Feature::Pods)) {
            tasks.spawn(until(Box::pin(pods::keep(client.clone(), self.name.clone(), pods))));
        }

        let nodes: Api<NodeObject> = Api::all(client.clone());
        let mut serving = wiring.serving;
        if stop.run_until_cancelled(serving.wait_for(|serving| *serving)).await.is_some_and(|up| up.is_ok()) {
            if wanted(Feature::Events) {
                let writer = events::Writer::new(client, self.name.clone());
                tasks.spawn(until(Box::pin(writer.run(self.queue, seen.clone()))));
                let (inventory, sink) = (wiring.inventory.clone(), self.sink.clone());
                tasks.spawn(until(Box::pin(events::follow(inventory, sink))));
            }
            if wanted(Feature::Labels) {
                let labels = labels::Labels {
                    nodes: nodes.clone(),
                    node: self.name.clone(),
                    prefixes: self.args.label_prefixes.clone(),
                    force: self.args.force_labels,
                    annotate: wiring.annotate,
                    events: self.sink.clone(),
                };
                tasks.spawn(until(Box::pin(labels.keep(wiring.inventory.clone(), seen.clone()))));
            }
            if wanted(Feature::Condition) {
                let stop = stop.clone();
                tasks.spawn(condition::keep(nodes, self.name.clone(), wiring.inventory, seen, stop));
            }
        }
        while let Some(ended) = tasks.join_next().await {
            if let Err(error) = ended {
                std::panic::resume_unwind(error.into_panic());
            }
        }
    }
}

type Task = std::pin::Pin<Box<dyn Future<Output = ()> + Send>>;

#[cfg(test)]
mod fake_api;

#[cfg(test)]
mod tests;
