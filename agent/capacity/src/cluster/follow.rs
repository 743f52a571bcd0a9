//! A cluster as it changes: watches of nodes and pods, and now and then a look at everything else.

use std::{collections::HashMap, sync::Arc, time::Duration};

use futures::{
    StreamExt as _,
    stream::{self, BoxStream},
};
use jiff::Timestamp;
use kube::{
    Api, Client, ResourceExt as _,
    runtime::{
        WatchStreamExt as _,
        watcher::{self, Event, watcher},
    },
};
use tokio::time::{Instant, sleep_until};

use super::{
    Error, PAGE, Reading, causes, objects,
    rights::{self, Right},
    usage::{self, Sources},
};
use crate::report::snapshot::{Beside, Names, Node, Phase, Pod, Snapshot};

/// After a change, how long others are waited for: they come in swarms.
const SETTLE: Duration = Duration::from_secs(1);
/// How often it is shown though nothing changed: times go on.
const REPEAT: Duration = Duration::from_secs(10);
/// How often usage and events are asked for.
const ASK_EVERY: Duration = Duration::from_secs(30);

/// A stream of what happens to objects of a kind.
type Changes<K> = BoxStream<'static, Result<Event<K>, watcher::Error>>;

/// What is there now.
#[derive(Default)]
struct State {
    names: Names,
    nodes: HashMap<String, Node>,
    pods: HashMap<String, Pod>,
    /// Exporters, by the pod's UID.
    sources: HashMap<String, Sources>,
    /// Machines whose kubelet has refused a pod for NUMA, by the pod's UID.
    numa_refused: HashMap<String, Arc<str>>,
    /// Lists that have been read whole.
    listed: [bool; 2],
}

/// Calls `show` with what is there, at first when all was read, then at each change and now and then, until it says no.
///
/// # Errors
/// When a right is missing. An API server that is away is waited for.
pub async fn follow(
    client: &Client,
    reading: &Reading,
    mut show: impl FnMut(&Snapshot) -> bool,
) -> Result<(), Error> {
    let rights: Vec<_> = Right::of_report().into_iter().chain(Right::of_watch()).collect();
    let may = rights::check(client, &rights, reading.namespace.as_deref()).await?;
    let mut gaps = Snapshot::default();
    super::unseen(&mut gaps, &may);
    let mut state = State::default();
    let mut nodes: Changes<objects::Node> = if gaps.machines_seen {
        changes(Api::all(client.clone()))
    } else {
        state.listed[0] = true;
        stream::pending().boxed()
    };
    let mut pods: Changes<objects::Pod> = match may.api(client, &Right::PODS) {
        Some(pods) => changes(pods),
        None => stream::pending().boxed(),
    };
    let (mut beside, mut asked) = (Beside::default(), None::<Instant>);
    let mut next: Option<Instant> = None;
    let mut trouble = false;
    loop {
        let failed = tokio::select! {
            event = nodes.next() => event.and_then(|event| event.map(|event| state.node(event)).err()),
            event = pods.next() => event.and_then(|event| event.map(|event| state.pod(event)).err()),
            () = sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() => {
                let mut snapshot = state.snapshot();
                snapshot.machines_seen = gaps.machines_seen;
                snapshot.pods_only_in.clone_from(&gaps.pods_only_in);
                if asked.is_none_or(|asked| asked.elapsed() >= ASK_EVERY) {
                    snapshot.beside.not_seen.clone_from(&gaps.beside.not_seen);
                    causes::read(client, &mut snapshot, &may).await;
                    if let Some(client) = &reading.usage {
                        let all = state.sources.values().flat_map(Sources::iter).cloned().collect();
                        usage::read(client, &mut snapshot, &all, &may, reading.prometheus.as_ref()).await;
                    }
                    beside = snapshot.beside.clone();
                    asked = Some(Instant::now());
                } else {
                    snapshot.beside = beside.clone();
                }
                let go_on = show(&snapshot);
                state.names = snapshot.names;
                if !go_on {
                    return Ok(());
                }
                next = Some(Instant::now() + REPEAT);
                continue;
            }
        };
        if let Some(error) = failed {
            // Tried again by itself; said once.
            if !std::mem::replace(&mut trouble, true) {
                let text = crate::terminal::printable(&error.to_string());
                eprintln!("the API server does not answer as it should, trying again: {text}");
            }
            continue;
        }
        trouble = false;
        if state.listed == [true; 2] {
            let soon = Instant::now() + SETTLE;
            next = Some(next.map_or(soon, |next| next.min(soon)));
        }
    }
}

fn changes<K>(api: Api<K>) -> Changes<K>
where
    K: kube::Resource<DynamicType = ()>
        + Clone
        + serde::de::DeserializeOwned
        + std::fmt::Debug
        + Send
        + 'static,
{
    let config = watcher::Config::default().page_size(PAGE);
    watcher(api, config).default_backoff().boxed()
}

impl State {
    fn node(&mut self, event: Event<objects::Node>) {
        match event {
            Event::Init => self.nodes.clear(),
            Event::InitDone => self.listed[0] = true,
            Event::Apply(node) | Event::InitApply(node) => {
                let node = node.shown(&mut self.names);
                self.nodes.insert(node.name.to_string(), node);
            }
            Event::Delete(node) => {
                self.nodes.remove(&node.name_any());
            }
        }
    }

    fn pod(&mut self, event: Event<objects::Pod>) {
        match event {
            Event::Init => {
                self.pods.clear();
                self.sources.clear();
                self.numa_refused.clear();
            }
            Event::InitDone => self.listed[1] = true,
            Event::Apply(pod) | Event::InitApply(pod) => {
                let uid = pod.uid().unwrap_or_default();
                let mut sources = Sources::default();
                sources.notice(&pod);
                self.sources.insert(uid.clone(), sources);
                if let Some(node) = pod.refused_for_numa() {
                    self.numa_refused.insert(uid.clone(), self.names.word(node));
                }
                let pod = pod.shown(&mut self.names);
                if pod.phase == Phase::Ended {
                    self.pods.remove(&uid);
                } else {
                    self.pods.insert(uid, pod);
                }
            }
            Event::Delete(pod) => {
                let uid = pod.uid().unwrap_or_default();
                self.pods.remove(&uid);
                self.sources.remove(&uid);
                self.numa_refused.remove(&uid);
            }
        }
    }

    fn snapshot(&mut self) -> Snapshot {
        Snapshot {
            at: Timestamp::now(),
            names: std::mem::take(&mut self.names),
            nodes: self.nodes.values().cloned().collect(),
            pods: self.pods.values().cloned().collect(),
            numa_refused: self.numa_refused.values().cloned().collect(),
            ..Snapshot::default()
        }
    }
}
