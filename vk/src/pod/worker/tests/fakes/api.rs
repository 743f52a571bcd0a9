//! An API server in memory that knows the pods of one node.

use std::{
    collections::{BTreeMap, HashSet},
    sync::{Arc, Mutex, MutexGuard},
};

use base64::Engine as _;
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};

use crate::fake_api::{self, Answer, Call};

/// How an API server says that a version is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::pod::worker::tests) enum Gone {
    /// By the first event of a watch.
    AsEvent,
    /// Instead of a watch.
    AsAnswer,
}

#[derive(Default)]
struct Cluster {
    pods: BTreeMap<String, Value>,
    gone: BTreeMap<String, Value>,
    writes: BTreeMap<String, usize>,
    /// Deletions without grace that were asked for.
    deletions: BTreeMap<String, usize>,
    events: Vec<String>,
    messages: Vec<String>,
    watchers: Vec<mpsc::UnboundedSender<Value>>,
    /// Watchers of what never changes.
    quiet: Vec<mpsc::UnboundedSender<Value>>,
    /// What happened, by version.
    told: Vec<(u64, Value)>,
    version: u64,
    /// What else there is, by path.
    objects: BTreeMap<String, Value>,
    /// How often each of those was read, or looked for.
    reads: BTreeMap<String, usize>,
    /// Every call fails with this.
    broken: Option<u16>,
    fail_lists: bool,
    /// No call is answered before this is dropped.
    held: Option<watch::Sender<()>>,
    /// So often what is asked to be deleted is said not to be there.
    deny_deletes: u32,
    /// Watchers are told nothing.
    silent: bool,
    /// What happened up to this version is forgotten, and how that is said.
    gone_before: Option<(u64, Gone)>,
    uids: HashSet<String>,
}

/// An API server that knows pods of one node in one namespace.
#[derive(Clone, Default)]
pub(in crate::pod::worker::tests) struct Api(Arc<Mutex<Cluster>>);

impl Api {
    fn lock(&self) -> MutexGuard<'_, Cluster> {
        self.0.lock().unwrap()
    }

    pub(in crate::pod::worker::tests) fn client(&self) -> kube::Client {
        let api = self.clone();
        fake_api::client(move |call| api.answer(&call)).0
    }

    #[allow(clippy::needless_pass_by_value)] // `json!` reads best where it is used.
    pub(in crate::pod::worker::tests) fn create(&self, name: &str, spec: Value) -> String {
        let mut cluster = self.lock();
        let uid = format!("uid-{}", cluster.uids.len());
        cluster.uids.insert(uid.clone());
        let created = Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        let pod = json!({ "apiVersion": "v1", "kind": "Pod", "spec": spec, "status": { "phase": "Pending" },
            "metadata": { "name": name, "namespace": "ns", "uid": uid, "generation": 1, "creationTimestamp": created } });
        cluster.put(&uid, pod, "ADDED");
        uid
    }

    /// Marks a pod as deleted.
    pub(in crate::pod::worker::tests) fn delete(&self, uid: &str, grace: i64) {
        let mut cluster = self.lock();
        let mut pod = cluster.pods[uid].clone();
        pod["metadata"]["deletionTimestamp"] = json!("2030-01-01T00:00:00Z");
        pod["metadata"]["deletionGracePeriodSeconds"] = json!(grace);
        cluster.put(uid, pod, "MODIFIED");
    }

    /// Changes an object, as a user does.
    pub(in crate::pod::worker::tests) fn change(&self, uid: &str, change: impl FnOnce(&mut Value)) {
        let mut cluster = self.lock();
        let mut pod = cluster.pods[uid].clone();
        change(&mut pod);
        pod["metadata"]["generation"] = json!(pod["metadata"]["generation"].as_i64().unwrap_or(0) + 1);
        cluster.put(uid, pod, "MODIFIED");
    }

    /// A forced deletion: the object is gone at once.
    pub(in crate::pod::worker::tests) fn vanish(&self, uid: &str) {
        self.lock().remove(uid);
    }

    /// An object beside the pods; `None`: there is none of that path.
    pub(in crate::pod::worker::tests) fn set(&self, path: &str, object: Option<Value>) {
        match object {
            Some(object) => drop(self.lock().objects.insert(path.to_owned(), object)),
            None => drop(self.lock().objects.remove(path)),
        }
    }

    /// How often the object was asked for.
    pub(in crate::pod::worker::tests) fn reads(&self, path: &str) -> usize {
        self.lock().reads.get(path).copied().unwrap_or(0)
    }

    /// From now on every call fails with this code; `None`: no more.
    pub(in crate::pod::worker::tests) fn fail_all(&self, code: Option<u16>) {
        self.lock().broken = code;
    }

    /// Drops what is sent to it, as a firewall does, until it is told otherwise.
    pub(in crate::pod::worker::tests) fn be_unreachable(&self, unreachable: bool) {
        self.lock().held = unreachable.then(|| watch::Sender::new(()));
    }

    pub(in crate::pod::worker::tests) fn fail_lists(&self, fail: bool) {
        self.lock().fail_lists = fail;
    }

    /// Begins again, and does not know its pods yet when it is asked to delete one.
    pub(in crate::pod::worker::tests) fn deny_deletes(&self, times: u32) {
        self.lock().deny_deletes = times;
    }

    /// From now on watchers hear nothing.
    pub(in crate::pod::worker::tests) fn be_silent(&self) {
        self.lock().silent = true;
    }

    /// Ends all watches. The next ones hear what they missed, or that it is gone.
    pub(in crate::pod::worker::tests) fn end_watches(&self, gone: Option<Gone>) {
        let mut cluster = self.lock();
        cluster.silent = false;
        cluster.gone_before = gone.map(|gone| (cluster.version, gone));
        cluster.watchers.clear();
    }

    pub(in crate::pod::worker::tests) fn status(&self, uid: &str) -> Value {
        self.lock().pods.get(uid).map(|pod| pod["status"].clone()).unwrap_or_default()
    }

    pub(in crate::pod::worker::tests) fn last_status(&self, uid: &str) -> Value {
        self.lock().gone[uid]["status"].clone()
    }

    pub(in crate::pod::worker::tests) fn phase(&self, uid: &str) -> String {
        self.status(uid)["phase"].as_str().unwrap_or_default().to_owned()
    }

    pub(in crate::pod::worker::tests) fn is_gone(&self, uid: &str) -> bool {
        self.lock().gone.contains_key(uid)
    }

    pub(in crate::pod::worker::tests) fn writes(&self, uid: &str) -> usize {
        self.lock().writes.get(uid).copied().unwrap_or(0)
    }

    pub(in crate::pod::worker::tests) fn deletions(&self, uid: &str) -> usize {
        self.lock().deletions.get(uid).copied().unwrap_or(0)
    }

    pub(in crate::pod::worker::tests) fn events(&self) -> Vec<String> {
        self.lock().events.clone()
    }

    /// Whether an event says this.
    pub(in crate::pod::worker::tests) fn told(&self, message: &str) -> bool {
        self.lock().messages.iter().any(|told| told == message)
    }

    fn answer(&self, call: &Call) -> Answer {
        let mut cluster = self.lock();
        let list = |items: Vec<Value>, version: u64| {
            Answer::ok(json!({ "kind": "List", "apiVersion": "v1", "items": items,
                "metadata": { "resourceVersion": version.to_string() } }))
        };
        if call.method == "GET" {
            *cluster.reads.entry(call.path.clone()).or_default() += 1;
        }
        if let Some(held) = &cluster.held {
            return Answer::Late(held.subscribe());
        }
        if let Some(code) = cluster.broken {
            return Answer::status(code, "ServiceUnavailable");
        }
        if let Some(object) = cluster.objects.get(&call.path).filter(|_| call.method == "GET") {
            return Answer::ok(object.clone());
        }
        let name = call.path.trim_end_matches("/status").rsplit('/').next().unwrap_or_default();
        match call.name().as_str() {
            "GET /api/v1/nodes/vk" => Answer::ok(json!({ "kind": "Node", "apiVersion": "v1",
                "metadata": { "name": "vk" }, "status": { "allocatable": {
                    "cpu": "4", "memory": "8Gi", "pods": "110", "example.com/thing": "2" } } })),
            "GET /api/v1/namespaces/ns/secrets/pull" => {
                let config = json!({ "auths": { "r.example": { "username": "me", "password": "pw" } } });
                Answer::ok(
                    json!({ "kind": "Secret", "apiVersion": "v1", "metadata": { "name": "pull", "uid": "secret-1" },
                    "type": "kubernetes.io/dockerconfigjson",
                    "data": { ".dockerconfigjson": base64::engine::general_purpose::STANDARD.encode(config.to_string()) } }),
                )
            }
            "GET /api/v1/services" => list(Vec::new(), 1),
            "GET /api/v1/pods" if cluster.fail_lists => Answer::status(500, "InternalError"),
            "GET /api/v1/pods" => list(cluster.pods.values().cloned().collect(), cluster.version),
            "GET /api/v1/pods?watch" => {
                let (sender, receiver) = mpsc::unbounded_channel();
                let since = call.query.split('&').find_map(|part| part.strip_prefix("resourceVersion="));
                let since: u64 = since.and_then(|text| text.parse().ok()).unwrap_or(0);
                match cluster.gone_before {
                    Some((before, Gone::AsAnswer)) if since < before => {
                        return Answer::status(410, "Expired");
                    }
                    Some((before, Gone::AsEvent)) if since < before => {
                        let status = json!({ "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 410,
                            "reason": "Expired", "message": "too old resource version", "metadata": {} });
                        sender.send(json!({ "type": "ERROR", "object": status })).unwrap();
                        return Answer::Events(receiver);
                    }
                    _ => {}
                }
                for (_, event) in cluster.told.iter().filter(|(version, _)| *version > since) {
                    sender.send(event.clone()).unwrap();
                }
                cluster.watchers.push(sender);
                Answer::Events(receiver)
            }
            "GET /api/v1/services?watch" => {
                let (sender, receiver) = mpsc::unbounded_channel();
                cluster.quiet.push(sender);
                Answer::Events(receiver)
            }
            "POST /api/v1/namespaces/ns/events" => {
                cluster.events.push(call.body["reason"].as_str().unwrap_or_default().to_owned());
                cluster.messages.push(call.body["message"].as_str().unwrap_or_default().to_owned());
                Answer::ok(call.body.clone())
            }
            name_of_call if name_of_call.starts_with("PATCH") && call.path.ends_with("/status") => {
                cluster.patch(name, &call.body)
            }
            name_of_call if name_of_call.starts_with("DELETE") && cluster.deny_deletes > 0 => {
                cluster.deny_deletes -= 1;
                Answer::status(404, "NotFound")
            }
            name_of_call if name_of_call.starts_with("DELETE") => {
                let uid = call.body["preconditions"]["uid"].as_str().unwrap_or_default().to_owned();
                *cluster.deletions.entry(uid.clone()).or_default() += 1;
                if cluster.pods.get(&uid).is_none_or(|pod| pod["metadata"]["name"] != name) {
                    return Answer::status(409, "Conflict");
                }
                cluster.let_go(&uid);
                Answer::ok(
                    json!({ "kind": "Status", "apiVersion": "v1", "status": "Success", "metadata": {} }),
                )
            }
            _ => Answer::status(404, "NotFound"),
        }
    }
}

impl Cluster {
    fn tell(&mut self, kind: &str, pod: &Value) {
        let event = json!({ "type": kind, "object": pod });
        let silent = self.silent;
        self.watchers.retain(|watcher| silent || watcher.send(event.clone()).is_ok());
        self.told.push((self.version, event));
    }

    fn put(&mut self, uid: &str, mut pod: Value, kind: &str) {
        self.version += 1;
        pod["metadata"]["resourceVersion"] = json!(self.version.to_string());
        self.tell(kind, &pod);
        self.pods.insert(uid.to_owned(), pod);
    }

    /// Without grace: that is written first, and then the object goes, unless a finalizer holds it.
    fn let_go(&mut self, uid: &str) {
        let mut pod = self.pods[uid].clone();
        let is_held = pod["metadata"]["finalizers"].as_array().is_some_and(|held| !held.is_empty());
        if pod["metadata"]["deletionGracePeriodSeconds"] != 0 {
            pod["metadata"]["deletionGracePeriodSeconds"] = json!(0);
            self.put(uid, pod, "MODIFIED");
        }
        if !is_held {
            self.remove(uid);
        }
    }

    fn remove(&mut self, uid: &str) {
        if let Some(mut pod) = self.pods.remove(uid) {
            self.version += 1;
            pod["metadata"]["resourceVersion"] = json!(self.version.to_string());
            self.tell("DELETED", &pod);
            self.gone.insert(uid.to_owned(), pod);
        }
    }

    /// As far as a strategic merge patch of a status goes.
    fn patch(&mut self, name: &str, patch: &Value) -> Answer {
        let uid = patch["metadata"]["uid"].as_str().unwrap_or_default().to_owned();
        let Some(mut pod) = self.pods.get(&uid).filter(|pod| pod["metadata"]["name"] == name).cloned() else {
            return Answer::status(409, "Conflict");
        };
        for (key, value) in patch["status"].as_object().into_iter().flatten() {
            let mut value = value.clone();
            if let Some(list) = value.as_array_mut() {
                list.retain(|item| item.get("$patch").is_none());
                for item in list.iter_mut().filter_map(Value::as_object_mut) {
                    item.retain(|_, field| !field.is_null());
                }
            }
            if value.is_null() {
                pod["status"].as_object_mut().unwrap().remove(key);
            } else {
                pod["status"][key] = value;
            }
        }
        *self.writes.entry(uid.clone()).or_default() += 1;
        self.put(&uid, pod, "MODIFIED");
        Answer::ok(self.pods[&uid].clone())
    }
}
