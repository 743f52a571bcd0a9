//! Names and labels of the pods that are bound to this node. Only metadata is asked for: specs and their secrets are nobody's business
//! here.

use std::collections::BTreeMap;

use futures::StreamExt as _;
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client,
    core::PartialObjectMeta,
    runtime::{
        WatchStreamExt as _,
        watcher::{Config, Event, watcher},
    },
};
use tokio::sync::watch;

use super::client::{NodeError, Trouble};

/// Set by the kubelet on the mirror of a static pod: the UID that the pod itself, and its cgroup, go by; both are the same.
const STATIC_HASH: &str = "kubernetes.io/config.hash";
const MIRROR: &str = "kubernetes.io/config.mirror";

/// A pod, as far as it is of interest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodMeta {
    /// The UID that its cgroup is called by.
    pub uid: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
}

impl PodMeta {
    fn of(pod: PartialObjectMeta<Pod>) -> Option<Self> {
        let metadata = pod.metadata;
        let mut annotations = metadata.annotations.unwrap_or_default();
        let (hash, mirror) = (annotations.remove(STATIC_HASH), annotations.remove(MIRROR));
        Some(Self {
            uid: hash.filter(|hash| !hash.is_empty() && mirror.as_ref() == Some(hash)).or(metadata.uid)?,
            namespace: metadata.namespace?,
            name: metadata.name?,
            labels: metadata.labels.unwrap_or_default(),
        })
    }
}

/// Without those that pass for another: whoever makes a pod writes its annotations, too. A UID of the API's own is nobody else's; of several
/// that claim one, none is believed.
fn sound(listed: &BTreeMap<String, PodMeta>) -> Vec<PodMeta> {
    let mut claims = BTreeMap::<&str, usize>::new();
    for pod in listed.values() {
        *claims.entry(&pod.uid).or_default() += 1;
    }
    let believed = listed.iter().filter(|(own, pod)| {
        **own == pod.uid || (!listed.contains_key(&pod.uid) && claims.get(&*pod.uid) == Some(&1))
    });
    believed.map(|(_, pod)| pod.clone()).collect()
}

/// Follows the node's pods. What was seen last stays while they can't be watched.
pub(super) async fn keep(client: Client, node: String, sender: watch::Sender<Option<Vec<PodMeta>>>) {
    let pods: Api<PartialObjectMeta<Pod>> = Api::all(client);
    let config = Config::default().fields(&format!("spec.nodeName={node}"));
    let mut changes = std::pin::pin!(watcher(pods, config).default_backoff());
    let mut trouble = Trouble::new("exemptions by pod label follow what was seen last");
    let mut listed = BTreeMap::new();
    let mut listing = BTreeMap::new();
    // While they are listed anew the old ones stand.
    let mut complete = false;
    // By UID of the API, which a mirror pod has, too.
    let entry = |pod: PartialObjectMeta<Pod>| Some((pod.metadata.uid.clone()?, PodMeta::of(pod)?));
    while let Some(change) = changes.next().await {
        match change {
            Ok(Event::Init) => (complete, listing) = (false, BTreeMap::new()),
            Ok(Event::InitApply(pod)) => listing.extend(entry(pod)),
            Ok(Event::InitDone) => {
                trouble.over();
                complete = true;
                listed = std::mem::take(&mut listing);
            }
            Ok(Event::Apply(pod)) => listed.extend(entry(pod)),
            Ok(Event::Delete(pod)) => {
                pod.metadata.uid.and_then(|uid| listed.remove(&uid));
            }
            Err(error) => {
                use kube::runtime::watcher::Error::{InitialListFailed, WatchFailed, WatchStartFailed};
                if let InitialListFailed(source) | WatchStartFailed(source) | WatchFailed(source) = error {
                    let source = Box::new(source);
                    trouble.tell(&NodeError::Request { what: "watch the node's pods", source });
                }
                continue;
            }
        }
        if complete {
            let now = sound(&listed);
            sender.send_if_modified(|before| {
                let news = before.as_ref() != Some(&now);
                *before = Some(now);
                news
            });
        }
    }
}

#[cfg(test)]
mod tests;
