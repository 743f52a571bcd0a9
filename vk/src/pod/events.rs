//! Events about pods, as a kubelet writes them. They are told, not kept: when the API server is away or too many come at once, some
//! are lost and pods go on.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{Event, EventSource, ObjectReference, Pod},
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time},
};
use kube::{
    Api, Client,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::json;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::ephemeral;

/// Who tells of pods and their node: to its readers, who choose events by their source, the node is a kubelet. Which one, the host says.
const COMPONENT: &str = "kubelet";
/// Longest name of an object.
const MAX_NAME: usize = 253;
/// Events that wait to be written.
const QUEUE: usize = 2048;
/// Events whose repetition is counted instead of written anew.
const REMEMBERED: usize = 1024;

/// So much may a pod's probes say at once, and then one thing each [`QUIET`]: a kubelet's limits for all events of a pod.
const BURST: u32 = 25;
const QUIET: Duration = Duration::from_mins(5);

/// How many events a pod may still have.
#[derive(Debug, Clone, Copy)]
struct Allowance {
    left: u32,
    since: Instant,
}

impl Allowance {
    fn new(now: Instant) -> Self {
        Self { left: BURST, since: now }
    }

    /// Takes one, if there is one.
    fn take(&mut self, now: Instant) -> bool {
        let periods = now.duration_since(self.since).as_secs() / QUIET.as_secs();
        let earned = u32::try_from(periods).unwrap_or(BURST);
        if earned > 0 {
            self.since = now;
            self.left = self.left.saturating_add(earned).min(BURST);
        }
        let allowed = self.left > 0;
        self.left = self.left.saturating_sub(1);
        allowed
    }
}

/// How serious it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    Normal,
    Warning,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    uid: String,
    field: Option<String>,
    kind: Kind,
    reason: String,
    message: String,
}

struct Told {
    about: ObjectReference,
    key: Key,
    at: Timestamp,
}

/// Takes events; never waits.
#[derive(Clone)]
pub(crate) struct Recorder(mpsc::Sender<Told>);

/// Writes what the [`Recorder`] takes.
pub(crate) struct Writer {
    client: Client,
    node: String,
    queue: mpsc::Receiver<Told>,
}

/// Both ends.
pub(crate) fn channel(client: Client, node: &str) -> (Recorder, Writer) {
    let (sender, queue) = mpsc::channel(QUEUE);
    (Recorder(sender), Writer { client, node: node.to_owned(), queue })
}

impl Recorder {
    /// About the whole pod.
    pub(crate) fn pod(&self, pod: &Pod, kind: Kind, reason: &str, message: &str) {
        self.tell(pod, None, kind, reason, message);
    }

    /// About one container of it.
    pub(crate) fn container(&self, pod: &Pod, name: &str, kind: Kind, reason: &str, message: &str) {
        self.tell(pod, Some(ephemeral::field_path(pod, name)), kind, reason, message);
    }

    /// A warning about the node, which has no namespace: kubelets' are in `default`, under the node's name as its UID.
    pub(crate) fn node(&self, name: &str, reason: &str, message: &str) {
        let about = ObjectReference {
            kind: Some("Node".to_owned()),
            namespace: Some("default".to_owned()),
            name: Some(name.to_owned()),
            uid: Some(name.to_owned()),
            ..Default::default()
        };
        self.send(about, None, Kind::Warning, reason, message);
    }

    fn tell(&self, pod: &Pod, field: Option<String>, kind: Kind, reason: &str, message: &str) {
        let about = ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Pod".to_owned()),
            namespace: pod.metadata.namespace.clone(),
            name: pod.metadata.name.clone(),
            uid: pod.metadata.uid.clone(),
            resource_version: pod.metadata.resource_version.clone(),
            field_path: field.clone(),
        };
        self.send(about, field, kind, reason, message);
    }

    fn send(&self, about: ObjectReference, field: Option<String>, kind: Kind, reason: &str, message: &str) {
        let key = Key {
            uid: about.uid.clone().unwrap_or_default(),
            field,
            kind,
            reason: reason.to_owned(),
            // The API server refuses longer ones.
            message: message.chars().take(1024).collect(),
        };
        if self.0.try_send(Told { about, key, at: Timestamp::now() }).is_err() {
            tracing::debug!(reason, message, "an event is lost: too many wait");
        }
    }
}

impl Writer {
    /// Writes events until stopped.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        let mut written: HashMap<Key, (String, i32)> = HashMap::new();
        let mut allowances: HashMap<String, Allowance> = HashMap::new();
        loop {
            let told = tokio::select! {
                () = stop.cancelled() => return,
                told = self.queue.recv() => match told {
                    Some(told) => told,
                    None => return,
                },
            };
            if written.len() >= REMEMBERED {
                written.clear();
            }
            let now = Instant::now();
            if allowances.len() >= REMEMBERED {
                allowances.clear();
            }
            let allowance = allowances.entry(told.key.uid.clone()).or_insert_with(|| Allowance::new(now));
            // What is said once must not be lost to what is said each second.
            let of_probes = matches!(told.key.reason.as_str(), "Unhealthy" | "ProbeWarning");
            if of_probes && !allowance.take(now) {
                tracing::debug!(
                    reason = told.key.reason,
                    message = told.key.message,
                    "an event is lost: its pod has too many"
                );
                continue;
            }
            let namespace = told.about.namespace.clone().unwrap_or_default();
            let api: Api<Event> = Api::namespaced(self.client.clone(), &namespace);
            let key = told.key.clone();
            let result = match written.get(&key).cloned() {
                Some((name, count)) => match again(&api, &name, count + 1, told.at).await {
                    Ok(()) => Ok((name, count + 1)),
                    // It has expired.
                    Err(kube::Error::Api(status)) if status.is_not_found() => self.write(&api, told).await,
                    Err(error) => Err(error),
                },
                None => self.write(&api, told).await,
            };
            match result {
                Ok(entry) => drop(written.insert(key, entry)),
                // A namespace that is going away takes no events.
                Err(error) => tracing::debug!(reason = key.reason, %error, "an event is lost"),
            }
        }
    }

    async fn write(&self, api: &Api<Event>, told: Told) -> Result<(String, i32), kube::Error> {
        let name = event_name(&told.about, told.at);
        let event = Event {
            metadata: ObjectMeta {
                name: Some(name.clone()),
                namespace: told.about.namespace.clone(),
                ..Default::default()
            },
            involved_object: told.about,
            type_: Some(format!("{:?}", told.key.kind)),
            reason: Some(told.key.reason),
            message: Some(told.key.message),
            source: Some(EventSource {
                component: Some(COMPONENT.to_owned()),
                host: Some(self.node.clone()),
            }),
            reporting_component: Some(COMPONENT.to_owned()),
            reporting_instance: Some(self.node.clone()),
            count: Some(1),
            first_timestamp: Some(Time(told.at)),
            last_timestamp: Some(Time(told.at)),
            ..Default::default()
        };
        api.create(&PostParams::default(), &event).await?;
        Ok((name, 1))
    }
}

fn event_name(about: &ObjectReference, at: Timestamp) -> String {
    let name =
        |of: Option<&str>| format!("{}.{:x}", of.unwrap_or_default(), at.as_nanosecond().unsigned_abs());
    Some(name(about.name.as_deref()))
        .filter(|name| name.len() <= MAX_NAME)
        .unwrap_or_else(|| name(about.uid.as_deref()))
}

async fn again(api: &Api<Event>, name: &str, count: i32, at: Timestamp) -> Result<(), kube::Error> {
    let patch = Patch::Merge(json!({ "count": count, "lastTimestamp": Time(at) }));
    api.patch(name, &PatchParams::default(), &patch).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_of_a_pod_with_a_long_name_has_a_name_too() {
        let at = Timestamp::from_second(1).unwrap();
        let about = |name: &str| ObjectReference {
            name: Some(name.to_owned()),
            uid: Some("uid".to_owned()),
            ..Default::default()
        };
        assert_eq!(event_name(&about("web"), at), "web.3b9aca00");
        assert_eq!(event_name(&about(&"a".repeat(253)), at), "uid.3b9aca00");
    }

    #[test]
    fn a_pod_that_says_too_much_is_heard_less() {
        let start = Instant::now();
        let mut allowance = Allowance::new(start);
        let heard = |allowance: &mut Allowance, at| (0..100).filter(|_| allowance.take(at)).count();
        assert_eq!(heard(&mut allowance, start), 25);
        assert_eq!(heard(&mut allowance, start + QUIET), 1);
        assert_eq!(heard(&mut allowance, start + QUIET + QUIET / 2), 0);
        assert_eq!(heard(&mut allowance, start + QUIET * 1000), 25);
    }
}
