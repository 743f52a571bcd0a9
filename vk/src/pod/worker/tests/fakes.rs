//! A runtime and an API server in memory. They are naive on purpose: names are reserved, everything else is a list.

use std::{
    collections::{BTreeMap, HashSet},
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use async_trait::async_trait;
use futures::stream::BoxStream;
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::sync::{broadcast, mpsc};

use crate::{
    fake_api::{self, Answer, Call},
    provider::{
        ProviderError, Version,
        observed::{Container, Exit, ObservedPod, PodRef, Sandbox, State},
        runtime::{
            CommandEnd, ContainerRuntime, ContainerSpec, Credentials, Image, ImageUser, SandboxSpec,
        },
    },
};

/// Waits until something holds.
pub(super) async fn wait(holds: impl Fn() -> bool) {
    for _ in 0..1000 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("it never came to hold");
}

/// Both sides of a virtual node.
pub(super) struct World {
    pub(super) api: Api,
    pub(super) runtime: Arc<Runtime>,
    pub(super) folder: tempfile::TempDir,
}

impl World {
    pub(super) fn new() -> Self {
        Self { api: Api::default(), runtime: Arc::default(), folder: tempfile::tempdir().unwrap() }
    }

    /// Nothing is left in the runtime or on disk.
    pub(super) fn is_empty(&self) -> bool {
        self.runtime.pods() == 0 && crate::pod::files::pod_uids(self.folder.path()).is_empty()
    }
}

#[derive(Default)]
struct Machine {
    pods: BTreeMap<PodRef, ObservedPod>,
    calls: Vec<&'static str>,
    starts: Vec<String>,
    /// What happened to containers, in order: `start a`, `exec a x`, `stop a`.
    story: Vec<String>,
    /// Exit codes of commands, 0 unless said otherwise; none: it hangs.
    commands: BTreeMap<String, Option<i32>>,
    graces: BTreeMap<String, u64>,
    ids: u32,
    calls_left: Option<u32>,
}

/// A container runtime.
pub(in crate::pod) struct Runtime {
    machine: Mutex<Machine>,
    news: broadcast::Sender<String>,
}

impl Default for Runtime {
    fn default() -> Self {
        Self { machine: Mutex::default(), news: broadcast::Sender::new(64) }
    }
}

impl Runtime {
    fn lock(&self) -> MutexGuard<'_, Machine> {
        self.machine.lock().unwrap()
    }

    pub(super) fn pods(&self) -> usize {
        self.lock().pods.len()
    }

    fn count(&self, test: impl Fn(&Container) -> bool) -> usize {
        self.lock().pods.values().flat_map(|pod| &pod.containers).filter(|container| test(container)).count()
    }

    pub(super) fn containers(&self) -> usize {
        self.count(|_| true)
    }

    pub(super) fn running(&self) -> usize {
        self.count(Container::is_running)
    }

    pub(super) fn calls(&self, name: &str) -> usize {
        self.lock().calls.iter().filter(|call| **call == name).count()
    }

    pub(super) fn started(&self, name: &str) -> usize {
        self.lock().starts.iter().filter(|start| *start == name).count()
    }

    pub(super) fn story(&self) -> Vec<String> {
        self.lock().story.clone()
    }

    /// How often a command has begun.
    pub(super) fn ran(&self, command: &str) -> usize {
        self.story().iter().filter(|event| event.ends_with(&format!(" {command}"))).count()
    }

    /// What a command will do from now on.
    pub(in crate::pod) fn answer_with(&self, command: &str, code: Option<i32>) {
        self.lock().commands.insert(command.to_owned(), code);
    }

    pub(super) fn grace(&self, name: &str) -> Option<u64> {
        self.lock().graces.get(name).copied()
    }

    /// From so many calls on, changes are made but no answer arrives: the daemon dies waiting.
    pub(super) fn die_after(&self, calls: u32) {
        self.lock().calls_left = Some(calls);
    }

    pub(super) fn is_dead(&self) -> bool {
        self.lock().calls_left == Some(0)
    }

    pub(super) fn revive(&self) {
        self.lock().calls_left = None;
    }

    /// Ends all running containers of this name.
    pub(super) fn exit(&self, name: &str, code: i32) {
        let mut machine = self.lock();
        let mut changed = Vec::new();
        for (pod, seen) in &mut machine.pods {
            for container in seen.containers.iter_mut().filter(|container| container.name == name) {
                if end(container, code) {
                    changed.push(pod.uid.clone());
                }
            }
        }
        drop(machine);
        for uid in changed {
            let _ = self.news.send(uid);
        }
    }

    fn call(&self, name: &'static str) -> MutexGuard<'_, Machine> {
        let mut machine = self.lock();
        machine.calls.push(name);
        machine.calls_left = machine.calls_left.map(|left| left.saturating_sub(1));
        machine
    }

    /// Whoever asked is told, unless they are dead by then.
    async fn answer<T>(&self, answer: T) -> T {
        if self.is_dead() {
            std::future::pending::<()>().await;
        }
        answer
    }
}

fn end(container: &mut Container, code: i32) -> bool {
    let State::Running { started_at } = container.state else { return false };
    container.state = State::Exited(Exit {
        code,
        reason: "Error".to_owned(),
        message: String::new(),
        started_at: Some(started_at),
        finished_at: Some(Timestamp::now()),
    });
    true
}

impl Machine {
    fn id(&mut self, kind: &str) -> String {
        self.ids += 1;
        format!("{kind}{}", self.ids)
    }

    fn container(&mut self, id: &str) -> Option<&mut Container> {
        self.pods.values_mut().flat_map(|pod| &mut pod.containers).find(|container| container.id == id)
    }
}

fn exists(operation: &'static str) -> ProviderError {
    ProviderError::Exists { operation, message: "the name is reserved".to_owned() }
}

#[async_trait]
impl ContainerRuntime for Runtime {
    fn name(&self) -> &'static str {
        "fake"
    }

    async fn version(&self) -> Result<Version, ProviderError> {
        Ok(Version { name: "fake".to_owned(), version: "1".to_owned() })
    }

    async fn ping(&self) -> Result<(), ProviderError> {
        Ok(())
    }

    async fn list(&self) -> Result<BTreeMap<PodRef, ObservedPod>, ProviderError> {
        Ok(self.lock().pods.clone())
    }

    async fn observe(&self, uid: &str) -> Result<ObservedPod, ProviderError> {
        let seen =
            self.call("observe").pods.iter().find(|(pod, _)| pod.uid == uid).map(|(_, seen)| seen.clone());
        self.answer(Ok(seen.unwrap_or_default())).await
    }

    async fn changes(&self) -> Result<BoxStream<'static, String>, ProviderError> {
        use futures::StreamExt as _;
        let news = tokio_stream::wrappers::BroadcastStream::new(self.news.subscribe());
        Ok(news.filter_map(|item| futures::future::ready(item.ok())).boxed())
    }

    async fn create_sandbox(&self, sandbox: &SandboxSpec) -> Result<String, ProviderError> {
        let made = {
            let mut machine = self.call("create_sandbox");
            let id = machine.id("s");
            let ip: IpAddr = format!("10.1.0.{}", machine.ids).parse().unwrap();
            let seen = machine.pods.entry(sandbox.pod.clone()).or_default();
            if seen.sandboxes.iter().any(|have| have.attempt == sandbox.attempt) {
                Err(exists("create_sandbox"))
            } else {
                let (attempt, created_at) = (sandbox.attempt, Timestamp::now());
                seen.sandboxes
                    .insert(0, Sandbox { id: id.clone(), attempt, ready: true, created_at, ips: vec![ip] });
                Ok(id)
            }
        };
        self.answer(made).await
    }

    async fn stop_sandbox(&self, id: &str) -> Result<(), ProviderError> {
        {
            let mut machine = self.call("stop_sandbox");
            for seen in machine.pods.values_mut() {
                for sandbox in seen.sandboxes.iter_mut().filter(|sandbox| sandbox.id == id) {
                    sandbox.ready = false;
                    sandbox.ips.clear();
                }
                for container in seen.containers.iter_mut().filter(|container| container.sandbox_id == id) {
                    end(container, 137);
                }
            }
        }
        self.answer(Ok(())).await
    }

    async fn remove_sandbox(&self, id: &str) -> Result<(), ProviderError> {
        {
            let mut machine = self.call("remove_sandbox");
            for seen in machine.pods.values_mut() {
                seen.sandboxes.retain(|sandbox| sandbox.id != id);
                seen.containers.retain(|container| container.sandbox_id != id);
            }
            machine.pods.retain(|_, seen| !seen.is_empty());
        }
        self.answer(Ok(())).await
    }

    async fn create_container(
        &self,
        sandbox_id: &str,
        sandbox: &SandboxSpec,
        container: &ContainerSpec,
    ) -> Result<String, ProviderError> {
        let made = {
            let mut machine = self.call("create_container");
            let id = machine.id("c");
            let seen = machine.pods.get_mut(&sandbox.pod).expect("its sandbox is there");
            let same = |have: &Container| have.name == container.name && have.attempt == container.attempt;
            if seen.containers.iter().any(same) {
                Err(exists("create_container"))
            } else {
                seen.containers.insert(
                    0,
                    Container {
                        id: id.clone(),
                        sandbox_id: sandbox_id.to_owned(),
                        name: container.name.clone(),
                        attempt: container.attempt,
                        state: State::Created,
                        image: container.image.clone(),
                        image_id: container.image_id.clone(),
                        user: None,
                    },
                );
                Ok(id)
            }
        };
        self.answer(made).await
    }

    async fn start_container(&self, id: &str) -> Result<(), ProviderError> {
        {
            let mut machine = self.call("start_container");
            let container = machine.container(id).expect("it was made");
            assert_eq!(container.state, State::Created, "started twice");
            container.state = State::Running { started_at: Timestamp::now() };
            let name = container.name.clone();
            machine.story.push(format!("start {name}"));
            machine.starts.push(name);
        }
        self.answer(Ok(())).await
    }

    async fn stop_container(&self, id: &str, grace_seconds: u64) -> Result<(), ProviderError> {
        {
            let mut machine = self.call("stop_container");
            if let Some(container) = machine.container(id) {
                end(container, 143);
                let name = container.name.clone();
                machine.story.push(format!("stop {name}"));
                machine.graces.insert(name, grace_seconds);
            }
        }
        self.answer(Ok(())).await
    }

    async fn exec_sync(
        &self,
        id: &str,
        command: &[String],
        limit: Option<Duration>,
    ) -> Result<CommandEnd, ProviderError> {
        let code = {
            let mut machine = self.call("exec_sync");
            let name = match machine.container(id) {
                Some(container) if container.is_running() => container.name.clone(),
                _ => return Err(ProviderError::NotFound { operation: "ExecSync", what: id.to_owned() }),
            };
            let command = command.join(" ");
            machine.story.push(format!("exec {name} {command}"));
            machine.commands.get(&command).copied().unwrap_or(Some(0))
        };
        match (code, limit) {
            (Some(code), _) => {
                self.answer(Ok(CommandEnd::Exited { code, stdout: b"out ".to_vec(), stderr: b"err".to_vec() }))
                    .await
            }
            (None, Some(limit)) => {
                tokio::time::sleep(limit).await;
                Ok(CommandEnd::TimedOut)
            }
            (None, None) => std::future::pending().await,
        }
    }

    async fn remove_container(&self, id: &str) -> Result<(), ProviderError> {
        for seen in self.call("remove_container").pods.values_mut() {
            seen.containers.retain(|container| container.id != id);
        }
        self.answer(Ok(())).await
    }

    async fn remove_pod(&self, _uid: &str) -> Result<(), ProviderError> {
        Ok(())
    }

    async fn image(&self, image: &str) -> Result<Option<Image>, ProviderError> {
        Ok(Some(Image { id: format!("id of {image}"), size: 1, user: ImageUser::Id(0) }))
    }

    async fn pull(&self, _image: &str, _credentials: Option<&Credentials>) -> Result<Image, ProviderError> {
        unreachable!("every image is there")
    }
}

#[derive(Default)]
struct Cluster {
    pods: BTreeMap<String, Value>,
    gone: BTreeMap<String, Value>,
    writes: BTreeMap<String, usize>,
    events: Vec<String>,
    messages: Vec<String>,
    watchers: Vec<mpsc::UnboundedSender<Value>>,
    /// Watchers of what never changes.
    quiet: Vec<mpsc::UnboundedSender<Value>>,
    /// What happened, by version.
    told: Vec<(u64, Value)>,
    version: u64,
    fail_lists: bool,
    uids: HashSet<String>,
}

/// An API server that knows pods of one node in one namespace.
#[derive(Clone, Default)]
pub(super) struct Api(Arc<Mutex<Cluster>>);

impl Api {
    fn lock(&self) -> MutexGuard<'_, Cluster> {
        self.0.lock().unwrap()
    }

    pub(super) fn client(&self) -> kube::Client {
        let api = self.clone();
        fake_api::client(move |call| api.answer(&call)).0
    }

    #[allow(clippy::needless_pass_by_value)] // `json!` reads best where it is used.
    pub(super) fn create(&self, name: &str, spec: Value) -> String {
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
    pub(super) fn delete(&self, uid: &str, grace: i64) {
        let mut cluster = self.lock();
        let mut pod = cluster.pods[uid].clone();
        pod["metadata"]["deletionTimestamp"] = json!("2030-01-01T00:00:00Z");
        pod["metadata"]["deletionGracePeriodSeconds"] = json!(grace);
        cluster.put(uid, pod, "MODIFIED");
    }

    /// A forced deletion: the object is gone at once.
    pub(super) fn vanish(&self, uid: &str) {
        self.lock().remove(uid);
    }

    pub(super) fn fail_lists(&self, fail: bool) {
        self.lock().fail_lists = fail;
    }

    pub(super) fn status(&self, uid: &str) -> Value {
        self.lock().pods.get(uid).map(|pod| pod["status"].clone()).unwrap_or_default()
    }

    pub(super) fn last_status(&self, uid: &str) -> Value {
        self.lock().gone[uid]["status"].clone()
    }

    pub(super) fn phase(&self, uid: &str) -> String {
        self.status(uid)["phase"].as_str().unwrap_or_default().to_owned()
    }

    pub(super) fn is_gone(&self, uid: &str) -> bool {
        self.lock().gone.contains_key(uid)
    }

    pub(super) fn writes(&self, uid: &str) -> usize {
        self.lock().writes.get(uid).copied().unwrap_or(0)
    }

    pub(super) fn events(&self) -> Vec<String> {
        self.lock().events.clone()
    }

    /// Whether an event says this.
    pub(super) fn told(&self, message: &str) -> bool {
        self.lock().messages.iter().any(|told| told == message)
    }

    fn answer(&self, call: &Call) -> Answer {
        let mut cluster = self.lock();
        let list = |items: Vec<Value>, version: u64| {
            Answer::ok(json!({ "kind": "List", "apiVersion": "v1", "items": items,
                "metadata": { "resourceVersion": version.to_string() } }))
        };
        let name = call.path.trim_end_matches("/status").rsplit('/').next().unwrap_or_default();
        match call.name().as_str() {
            "GET /api/v1/services" => list(Vec::new(), 1),
            "GET /api/v1/pods" if cluster.fail_lists => Answer::status(500, "InternalError"),
            "GET /api/v1/pods" => list(cluster.pods.values().cloned().collect(), cluster.version),
            "GET /api/v1/pods?watch" => {
                let (sender, receiver) = mpsc::unbounded_channel();
                let since = call.query.split('&').find_map(|part| part.strip_prefix("resourceVersion="));
                let since: u64 = since.and_then(|text| text.parse().ok()).unwrap_or(0);
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
            name_of_call if name_of_call.starts_with("DELETE") => {
                let uid = call.body["preconditions"]["uid"].as_str().unwrap_or_default().to_owned();
                if cluster.pods.get(&uid).is_none_or(|pod| pod["metadata"]["name"] != name) {
                    return Answer::status(409, "Conflict");
                }
                cluster.remove(&uid);
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
        self.watchers.retain(|watcher| watcher.send(event.clone()).is_ok());
        self.told.push((self.version, event));
    }

    fn put(&mut self, uid: &str, mut pod: Value, kind: &str) {
        self.version += 1;
        pod["metadata"]["resourceVersion"] = json!(self.version.to_string());
        self.tell(kind, &pod);
        self.pods.insert(uid.to_owned(), pod);
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
