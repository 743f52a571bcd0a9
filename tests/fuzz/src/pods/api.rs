//! An API server in memory that knows one pod, and what it may refer to.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard},
};

use axum::body::Body;
use bytes::Bytes;
use futures::{StreamExt as _, channel::mpsc};
use http::{Method, Request, Response};
use http_body_util::BodyExt as _;
use kube::Client;
use serde_json::{Value, json};

use super::{NODE, SECRET};

/// What it was told, and what it tells.
#[derive(Default)]
struct Cluster {
    pod: Option<Value>,
    version: u64,
    watchers: Vec<mpsc::UnboundedSender<Value>>,
    /// Watchers of what never changes.
    quiet: Vec<mpsc::UnboundedSender<Value>>,
    statuses: Vec<Value>,
    /// Type, reason and message of each.
    events: Vec<[String; 3]>,
}

/// An API server.
#[derive(Clone)]
pub(super) struct Api(Arc<Mutex<Cluster>>);

enum Answer {
    Json(u16, Value),
    Watch(mpsc::UnboundedReceiver<Value>),
}

impl Api {
    pub(super) fn with(pod: Value) -> Self {
        let api = Self(Arc::default());
        api.lock().put(pod, "ADDED");
        api
    }

    fn lock(&self) -> MutexGuard<'_, Cluster> {
        self.0.lock().expect("nobody panics with it")
    }

    pub(super) fn is_gone(&self) -> bool {
        self.lock().pod.is_none()
    }

    pub(super) fn statuses(&self) -> Vec<Value> {
        self.lock().statuses.clone()
    }

    pub(super) fn events(&self) -> Vec<[String; 3]> {
        self.lock().events.clone()
    }

    /// As `kubectl delete` does.
    pub(super) fn delete(&self, grace_seconds: i64) {
        let mut cluster = self.lock();
        let Some(mut pod) = cluster.pod.clone() else { return };
        pod["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        pod["metadata"]["deletionGracePeriodSeconds"] = json!(grace_seconds);
        cluster.put(pod, "MODIFIED");
    }

    pub(super) fn client(&self) -> Client {
        let api = self.clone();
        let service = tower::service_fn(move |request: Request<kube::client::Body>| {
            let api = api.clone();
            async move {
                let (parts, body) = request.into_parts();
                let body = body.collect().await.expect("it is in memory").to_bytes();
                let body: Value = serde_json::from_slice(&body).unwrap_or(Value::Null);
                let is_watch = parts.uri.query().is_some_and(|query| query.contains("watch=true"));
                let path: Vec<&str> = parts.uri.path().trim_matches('/').split('/').collect();
                Ok::<_, kube::Error>(match api.answer(&parts.method, &path, is_watch, &body) {
                    Answer::Json(code, value) => {
                        let response = Response::builder().status(code).body(Body::from(value.to_string()));
                        response.expect("a sound answer")
                    }
                    Answer::Watch(events) => {
                        let line = |event| Ok::<_, std::io::Error>(Bytes::from(format!("{event}\n")));
                        Response::new(Body::from_stream(events.map(line)))
                    }
                })
            }
        });
        Client::new(service, "default")
    }

    fn answer(&self, method: &Method, path: &[&str], is_watch: bool, body: &Value) -> Answer {
        let mut cluster = self.lock();
        let list = |items: Vec<Value>, version: u64| {
            let version = version.to_string();
            json!({ "kind": "List", "apiVersion": "v1", "items": items, "metadata": { "resourceVersion": version } })
        };
        let ok = |value: Value| Answer::Json(200, value);
        match (method.as_str(), path) {
            ("GET", ["api", "v1", "pods"]) if is_watch => {
                let (sender, receiver) = mpsc::unbounded();
                cluster.watchers.push(sender);
                Answer::Watch(receiver)
            }
            ("GET", ["api", "v1", "pods"]) => {
                ok(list(cluster.pod.iter().cloned().collect(), cluster.version))
            }
            ("GET", _) if is_watch => {
                let (sender, receiver) = mpsc::unbounded();
                cluster.quiet.push(sender);
                Answer::Watch(receiver)
            }
            ("GET", ["api", "v1", "services"]) => ok(list(vec![service()], 1)),
            ("GET", ["api", "v1", "nodes", NODE]) => ok(node()),
            ("GET", ["api", "v1", "namespaces", _, "configmaps", "settings"]) => ok(settings()),
            ("GET", ["api", "v1", "namespaces", _, "secrets", "secret"]) => ok(secret()),
            ("GET", ["api", "v1", "namespaces", _, "configmaps"]) => ok(list(vec![settings()], 1)),
            ("GET", ["api", "v1", "namespaces", _, "secrets"]) => ok(list(vec![secret()], 1)),
            ("GET", ["apis", "node.k8s.io", "v1", "runtimeclasses", name]) => ok(
                json!({ "kind": "RuntimeClass", "apiVersion": "node.k8s.io/v1", "metadata": { "name": name }, "handler": name }),
            ),
            ("POST", ["api", "v1", "namespaces", _, "serviceaccounts", _, "token"]) => {
                let mut review = body.clone();
                review["status"] = json!({ "token": SECRET, "expirationTimestamp": "2099-01-01T00:00:00Z" });
                Answer::Json(201, review)
            }
            ("POST", ["api", "v1", "namespaces", _, "events"]) => {
                let text = |key: &str| body[key].as_str().unwrap_or_default().to_owned();
                cluster.events.push([text("type"), text("reason"), text("message")]);
                Answer::Json(201, body.clone())
            }
            ("PATCH", ["api", "v1", "namespaces", _, "events", _]) => {
                ok(json!({ "kind": "Event", "apiVersion": "v1",
                "metadata": { "name": "e" }, "involvedObject": {} }))
            }
            ("PATCH", ["api", "v1", "namespaces", namespace, "pods", name, "status"]) => {
                cluster.patch(namespace, name, body)
            }
            ("DELETE", ["api", "v1", "namespaces", namespace, "pods", name]) => {
                let uid = &body["preconditions"]["uid"];
                let is = |pod: &Value| pod["metadata"]["uid"] == *uid && is_called(pod, namespace, name);
                if cluster.pod.as_ref().is_none_or(|pod| !is(pod)) {
                    return status(409, "Conflict");
                }
                cluster.remove();
                ok(json!({ "kind": "Status", "apiVersion": "v1", "status": "Success", "metadata": {} }))
            }
            _ => status(404, "NotFound"),
        }
    }
}

fn status(code: u16, reason: &str) -> Answer {
    Answer::Json(
        code,
        json!({ "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason,
            "message": reason, "metadata": {} }),
    )
}

fn is_called(pod: &Value, namespace: &str, name: &str) -> bool {
    pod["metadata"]["namespace"] == namespace && pod["metadata"]["name"] == name
}

fn node() -> Value {
    json!({ "kind": "Node", "apiVersion": "v1", "metadata": { "name": NODE }, "status": { "allocatable": {
        "cpu": "16", "memory": "64Gi", "pods": "110", "ephemeral-storage": "100Gi", "example.com/thing": "2" } } })
}

fn service() -> Value {
    json!({ "kind": "Service", "apiVersion": "v1", "metadata": { "name": "kubernetes", "namespace": "default" },
        "spec": { "clusterIP": "10.96.0.1", "ports": [{ "name": "https", "port": 443, "protocol": "TCP" }] } })
}

fn settings() -> Value {
    json!({ "kind": "ConfigMap", "apiVersion": "v1", "metadata": { "name": "settings", "uid": "m", "resourceVersion": "1" },
        "data": { "a": "1", "dir": "x", "UP": "..", "..x": "hidden", "env": "A=1\nB='2'\n" } })
}

fn secret() -> Value {
    // In base64, the text of SECRET, and bytes that are no text.
    json!({ "kind": "Secret", "apiVersion": "v1", "metadata": { "name": "secret", "uid": "s", "resourceVersion": "1" },
        "data": { "password": "Ly4uL2hpZGRlbi05ZjM=", "raw": "/wAB" } })
}

impl Cluster {
    fn put(&mut self, mut pod: Value, kind: &str) {
        self.version += 1;
        pod["metadata"]["resourceVersion"] = json!(self.version.to_string());
        self.tell(kind, &pod);
        self.pod = Some(pod);
    }

    fn remove(&mut self) {
        if let Some(mut pod) = self.pod.take() {
            self.version += 1;
            pod["metadata"]["resourceVersion"] = json!(self.version.to_string());
            self.tell("DELETED", &pod);
        }
    }

    fn tell(&mut self, kind: &str, pod: &Value) {
        let event = json!({ "type": kind, "object": pod });
        self.watchers.retain(|watcher| watcher.unbounded_send(event.clone()).is_ok());
    }

    /// As far as a strategic merge patch of a status goes; conditions of others are none of ours.
    fn patch(&mut self, namespace: &str, name: &str, patch: &Value) -> Answer {
        let is = |pod: &&Value| {
            is_called(pod, namespace, name) && pod["metadata"]["uid"] == patch["metadata"]["uid"]
        };
        let Some(mut pod) = self.pod.as_ref().filter(is).cloned() else { return status(409, "Conflict") };
        let mut fields: BTreeMap<String, Value> =
            serde_json::from_value(pod["status"].clone()).unwrap_or_default();
        for (key, value) in patch["status"].as_object().into_iter().flatten() {
            let mut value = value.clone();
            if let Some(list) = value.as_array_mut() {
                list.retain(|item| item.get("$patch").is_none());
                for item in list.iter_mut().filter_map(Value::as_object_mut) {
                    item.retain(|_, field| !field.is_null());
                }
            }
            if value.is_null() {
                fields.remove(key);
            } else {
                fields.insert(key.clone(), value);
            }
        }
        pod["status"] = json!(fields);
        self.statuses.push(pod["status"].clone());
        self.put(pod, "MODIFIED");
        Answer::Json(200, self.pod.clone().unwrap_or_default())
    }
}
