//! A runtime and an API server in memory. They are naive on purpose: names are reserved, everything else is a list.

mod api;

use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use async_trait::async_trait;
use futures::stream::BoxStream;
use jiff::Timestamp;
use tokio::sync::broadcast;

use crate::provider::{
    ProviderError, Version,
    observed::{Container, Exit, ObservedPod, PodRef, Sandbox, State},
    runtime::{
        CommandEnd, ContainerRuntime, ContainerSpec, Credentials, Image, ImageUser, PodCgroup, Puller,
        Resources, SandboxSpec,
    },
};

use api::Api;
pub(super) use api::Gone;

/// Waits until something holds.
pub(super) async fn wait(holds: impl Fn() -> bool) {
    for _ in 0..6000 {
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
        self.runtime.pods() == 0
            && self.runtime.lock().cgroups.is_empty()
            && crate::pod::files::pod_uids(self.folder.path()).is_empty()
    }
}

#[derive(Default)]
struct Machine {
    pods: BTreeMap<PodRef, ObservedPod>,
    /// UIDs of pods that have one, and logs.
    cgroups: std::collections::BTreeSet<String>,
    calls: Vec<&'static str>,
    starts: Vec<String>,
    /// What happened to containers, in order: `start a`, `exec a x`, `stop a`.
    story: Vec<String>,
    /// Exit codes of commands, 0 unless said otherwise; none: it hangs.
    commands: BTreeMap<String, Option<i32>>,
    graces: BTreeMap<String, u64>,
    /// What containers were made from, by name.
    specs: BTreeMap<String, ContainerSpec>,
    ids: u32,
    calls_left: Option<u32>,
    /// Images that are not there before they are pulled, and with what.
    absent: BTreeMap<String, Option<Credentials>>,
    /// An image whose pull does not end.
    endless: Option<String>,
    /// Calls that fail, and what they say.
    refused: BTreeMap<&'static str, String>,
    burstable_shares: Option<u64>,
    lacks_pod_limits: Option<&'static str>,
    forget_start: Option<bool>,
    /// How containers end that are told to, unless with 143.
    stopped_with: Option<i32>,
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

    pub(super) fn burstable_shares(&self) -> Option<u64> {
        self.lock().burstable_shares
    }

    pub(super) fn lack_pod_limits(&self, why: &'static str) {
        self.lock().lacks_pod_limits = Some(why);
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

    /// What the pod's sandbox was made by.
    pub(super) fn handler(&self, uid: &str) -> Option<String> {
        let machine = self.lock();
        let (_, seen) = machine.pods.iter().find(|(pod, _)| pod.uid == uid)?;
        Some(seen.sandbox()?.runtime_handler.clone())
    }

    /// What the newest container of this name was made from.
    pub(super) fn spec(&self, name: &str) -> Option<ContainerSpec> {
        self.lock().specs.get(name).cloned()
    }

    /// An image that has to be pulled, with these credentials if there are any.
    pub(super) fn lacks(&self, image: &str, credentials: Option<(&str, &str)>) {
        let credentials = credentials.map(|(username, password)| Credentials {
            username: username.to_owned(),
            password: password.to_owned(),
        });
        self.lock().absent.insert(image.to_owned(), credentials);
    }

    /// An image that is not there, and whose pull does not end.
    pub(super) fn pulls_endlessly(&self, image: &str) {
        self.lacks(image, None);
        self.lock().endless = Some(image.to_owned());
    }

    /// From now on this call fails with these words; `None`: no more.
    pub(super) fn refuse(&self, call: &'static str, words: Option<&str>) {
        let mut machine = self.lock();
        machine.refused.remove(call);
        machine.refused.extend(words.map(|words| (call, words.to_owned())));
    }

    /// The next container that is started runs and ends, and the runtime dies before it takes note.
    pub(super) fn forget_start(&self, and_answer_no_more: bool) {
        self.lock().forget_start = Some(and_answer_no_more);
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

    /// The exit code of containers that are told to end, from now on.
    pub(super) fn end_with(&self, code: i32) {
        self.lock().stopped_with = Some(code);
    }

    /// Does not know any more what has become of the running containers of this name.
    pub(super) fn lose_sight(&self, name: &str) {
        for seen in self.lock().pods.values_mut() {
            let running = seen.containers.iter_mut().filter(|container| container.is_running());
            running.filter(|container| container.name == name).for_each(|lost| lost.state = State::Unknown);
        }
    }

    /// Ends the processes that hold sandboxes, and nothing else.
    pub(super) fn lose_pauses(&self) {
        let mut machine = self.lock();
        machine
            .pods
            .values_mut()
            .flat_map(|pod| &mut pod.sandboxes)
            .for_each(|sandbox| sandbox.ready = false);
    }

    /// Ends all sandboxes with what runs in them.
    pub(super) fn lose_sandboxes(&self) {
        for seen in self.lock().pods.values_mut() {
            for sandbox in &mut seen.sandboxes {
                sandbox.ready = false;
            }
            for container in &mut seen.containers {
                end(container, 137);
            }
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
    let (code, started_at) = match container.state {
        State::Running { started_at } => (code, Some(started_at)),
        State::Unknown => (255, None),
        _ => return false,
    };
    container.state = State::Exited(Exit {
        code,
        reason: "Error".to_owned(),
        message: String::new(),
        started_at,
        finished_at: Some(Timestamp::now()),
    });
    true
}

impl Machine {
    fn id(&mut self, kind: &str) -> String {
        self.ids += 1;
        format!("{kind}{}", self.ids)
    }

    fn refusal(&self, operation: &'static str) -> Result<(), ProviderError> {
        let message = self.refused.get(operation).cloned();
        message.map_or(Ok(()), |message| Err(ProviderError::Failed { operation, message }))
    }

    fn container(&mut self, id: &str) -> Option<&mut Container> {
        self.pods.values_mut().flat_map(|pod| &mut pod.containers).find(|container| container.id == id)
    }
}

fn found(image: &str) -> Image {
    Image { id: format!("id of {image}"), size: 1, user: ImageUser::Id(0) }
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

    /// Takes for ever, and nobody waits for it.
    async fn tend(&self, _pods: &BTreeMap<PodRef, ObservedPod>) -> Result<(), ProviderError> {
        std::future::pending().await
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
            machine.cgroups.insert(sandbox.pod.uid.clone());
            let seen = machine.pods.entry(sandbox.pod.clone()).or_default();
            assert!(!seen.containers.iter().any(Container::may_run), "something runs in an earlier sandbox");
            let left = seen.sandboxes.iter().filter(|earlier| !earlier.ips.is_empty()).count();
            assert_eq!(left, 0, "an earlier sandbox has its address still");
            if seen.sandboxes.iter().any(|have| have.attempt == sandbox.attempt) {
                Err(exists("create_sandbox"))
            } else {
                let (attempt, created_at) = (sandbox.attempt, Timestamp::now());
                let runtime_handler = sandbox.runtime_handler.clone();
                let sandbox = Sandbox {
                    id: id.clone(),
                    attempt,
                    ready: true,
                    created_at,
                    ips: vec![ip],
                    runtime_handler,
                };
                seen.sandboxes.insert(0, sandbox);
                Ok(id)
            }
        };
        self.answer(made).await
    }

    async fn stop_sandbox(&self, id: &str) -> Result<(), ProviderError> {
        let stopped = {
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
            machine.refusal("stop_sandbox")
        };
        self.answer(stopped).await
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
            machine.specs.insert(container.name.clone(), container.clone());
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
                        asked_image: Some(container.image.clone()),
                        user: None,
                        resources: Some(container.resources),
                    },
                );
                Ok(id)
            }
        };
        self.answer(made).await
    }

    async fn update_container(&self, id: &str, resources: Resources) -> Result<(), ProviderError> {
        let refused = {
            let mut machine = self.call("update_container");
            let refused = machine.refusal("update_container");
            if refused.is_ok()
                && let Some(container) = machine.container(id)
            {
                container.resources = Some(resources);
                let name = container.name.clone();
                machine.story.push(format!("update {name}"));
            }
            refused
        };
        self.answer(refused).await
    }

    async fn update_pod(&self, _uid: &str, cgroup: PodCgroup) -> Result<(), ProviderError> {
        self.call("update_pod").story.push(format!("pod cgroup {:?}", cgroup.limits.cpu_quota_us));
        self.answer(Ok(())).await
    }

    async fn weigh(&self, burstable_shares: u64) -> Result<(), ProviderError> {
        self.lock().burstable_shares = Some(burstable_shares);
        Ok(())
    }

    async fn lacks_pod_limits(&self) -> Result<Option<&'static str>, ProviderError> {
        Ok(self.lock().lacks_pod_limits)
    }

    async fn start_container(&self, id: &str) -> Result<(), ProviderError> {
        let answer = {
            let mut machine = self.call("start_container");
            let forget = std::mem::take(&mut machine.forget_start);
            let container = machine.container(id).expect("it was made");
            assert_eq!(container.state, State::Created, "started twice");
            if forget.is_none() {
                container.state = State::Running { started_at: Timestamp::now() };
            }
            let name = container.name.clone();
            machine.story.push(format!("start {name}"));
            machine.starts.push(name);
            let (operation, message) = ("start_container", "it died".to_owned());
            if forget == Some(true) {
                machine.calls_left = Some(0);
            }
            if forget.is_some() { Err(ProviderError::Unavailable { operation, message }) } else { Ok(()) }
        };
        self.answer(answer).await
    }

    async fn stop_container(&self, id: &str, grace_seconds: u64) -> Result<(), ProviderError> {
        {
            let mut machine = self.call("stop_container");
            let code = machine.stopped_with.unwrap_or(143);
            if let Some(container) = machine.container(id) {
                end(container, code);
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
                self.answer(Ok(CommandEnd::Exited {
                    code,
                    stdout: b"out ".to_vec(),
                    stderr: b"err".to_vec(),
                }))
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

    async fn remove_pod(&self, uid: &str) -> Result<(), ProviderError> {
        self.call("remove_pod").cgroups.remove(uid);
        self.answer(Ok(())).await
    }

    async fn image(&self, image: &str) -> Result<Option<Image>, ProviderError> {
        let there = !self.call("image").absent.contains_key(image);
        Ok(there.then(|| found(image)))
    }

    async fn pull(
        &self,
        _: &Puller,
        image: &str,
        credentials: Option<&Credentials>,
    ) -> Result<Image, ProviderError> {
        if self.lock().endless.as_deref() == Some(image) {
            drop(self.call("pull"));
            std::future::pending::<()>().await;
        }
        let mut machine = self.call("pull");
        match machine.absent.get(image) {
            Some(needed) if needed.is_none() || needed.as_ref() != credentials => {
                let message = "the registry says no".to_owned();
                Err(ProviderError::Failed { operation: "pull", message })
            }
            _ => {
                machine.absent.remove(image);
                Ok(found(image))
            }
        }
    }
}
