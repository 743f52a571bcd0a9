//! The node's metadata as the API server has it: who it is, and its labels.

use std::collections::BTreeMap;

use futures::StreamExt as _;
use kube::{
    Api, Client,
    core::{ObjectMeta, PartialObjectMeta},
    runtime::{WatchStreamExt as _, watcher::watch_object},
};
use tokio::sync::watch;

use super::client::{NodeError, Trouble};
use crate::kinds::Node as NodeObject;

/// The node as it was last seen.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) uid: String,
    pub(super) labels: BTreeMap<String, String>,
    pub(super) annotations: BTreeMap<String, String>,
}

impl From<ObjectMeta> for Seen {
    fn from(metadata: ObjectMeta) -> Self {
        Self {
            uid: metadata.uid.unwrap_or_default(),
            labels: metadata.labels.unwrap_or_default(),
            annotations: metadata.annotations.unwrap_or_default(),
        }
    }
}

/// Follows the node. What was seen last stays while it can't be watched; none before it was seen, and while it doesn't exist.
pub(super) async fn keep(client: Client, node: String, seen: watch::Sender<Option<Seen>>) {
    let nodes: Api<PartialObjectMeta<NodeObject>> = Api::all(client);
    let mut changes = std::pin::pin!(watch_object(nodes, &node).default_backoff());
    let mut trouble = Trouble::new("changes of the node's labels are not seen");
    while let Some(change) = changes.next().await {
        match change {
            Ok(found) => {
                trouble.over();
                if found.is_none() {
                    tracing::warn!(node, "there is no such node: is --node-name what the kubelet calls it?");
                }
                let now = found.map(|node| Seen::from(node.metadata));
                // A kubelet's heartbeats change nothing of this.
                seen.send_if_modified(|before| {
                    let news = *before != now;
                    *before = now;
                    news
                });
            }
            Err(error) => {
                let source = match error {
                    kube::runtime::watcher::Error::InitialListFailed(source)
                    | kube::runtime::watcher::Error::WatchStartFailed(source)
                    | kube::runtime::watcher::Error::WatchFailed(source) => source,
                    other => {
                        tracing::debug!(error = %other, "the node's watch starts anew");
                        continue;
                    }
                };
                trouble.tell(&NodeError::Request { what: "watch the node", source: Box::new(source) });
            }
        }
    }
}
