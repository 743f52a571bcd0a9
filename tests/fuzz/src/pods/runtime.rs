//! A container runtime that runs nothing, and writes down what it was asked to run. Names are taken once; there is no other rule.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard},
    time::Duration,
};

use async_trait::async_trait;
use futures::{StreamExt as _, channel::mpsc, stream::BoxStream};
use jiff::Timestamp;
use spillway_vk::provider::{
    ProviderError, Version,
    observed::{Container, Exit, ObservedPod, PodRef, Sandbox, State},
    runtime::{
        CommandEnd, ContainerRuntime, ContainerSpec, Credentials, Image, ImageUser, PodCgroup, Puller,
        Resources, SandboxSpec,
    },
};

/// A container that was asked for.
pub(super) struct Made {
    pub(super) sandbox: SandboxSpec,
    pub(super) container: ContainerSpec,
    /// What was at its mounts' places at that moment, in their order.
    pub(super) shown: Vec<Shown>,
}

/// What a place of the machine shows.
#[derive(Debug, Default)]
pub(super) struct Shown {
    pub(super) is_there: bool,
    /// For a mount point: the file system, and the path in it that is shown.
    pub(super) mount: Option<(String, PathBuf)>,
}

#[derive(Default)]
struct Machine {
    pods: BTreeMap<PodRef, ObservedPod>,
    /// UIDs of pods that have one, and logs.
    cgroups: BTreeSet<String>,
    sandboxes: Vec<SandboxSpec>,
    made: Vec<Made>,
    ids: u32,
    news: Vec<mpsc::UnboundedSender<String>>,
}

/// A container runtime.
#[derive(Default)]
pub(super) struct Runtime(Mutex<Machine>);

impl Runtime {
    fn lock(&self) -> MutexGuard<'_, Machine> {
        self.0.lock().expect("nobody panics with it")
    }

    /// Nothing of any pod is left.
    pub(super) fn is_empty(&self) -> bool {
        let machine = self.lock();
        machine.pods.is_empty() && machine.cgroups.is_empty()
    }

    pub(super) fn sandboxes(&self) -> Vec<SandboxSpec> {
        self.lock().sandboxes.clone()
    }

    pub(super) fn each_made(&self, mut look: impl FnMut(&Made)) {
        self.lock().made.iter().for_each(&mut look);
    }

    /// The container that runs longest ends.
    pub(super) fn exit(&self, code: i32) {
        let mut machine = self.lock();
        let found = machine.pods.iter_mut().find_map(|(pod, seen)| {
            let running = seen.containers.iter_mut().rev().find(|container| container.is_running())?;
            end(running, code);
            Some(pod.uid.clone())
        });
        if let Some(uid) = found {
            machine.news.retain(|news| news.unbounded_send(uid.clone()).is_ok());
        }
    }
}

fn end(container: &mut Container, code: i32) {
    let State::Running { started_at } = container.state else { return };
    let reason = if code == 0 { "Completed" } else { "Error" };
    container.state = State::Exited(Exit {
        code,
        reason: reason.to_owned(),
        message: String::new(),
        started_at: Some(started_at),
        finished_at: Some(Timestamp::now()),
    });
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

/// From the table of mounts: what is shown at this very path.
fn shown(path: &Path, mounts: &str) -> Shown {
    let mount = mounts.lines().rev().find_map(|line| {
        let fields: Vec<&str> = line.split(' ').collect();
        // Blanks and the like are written as numbers there; names in here that have some are not looked at.
        (fields.len() > 5 && Path::new(fields[4]) == path)
            .then(|| (fields[2].to_owned(), PathBuf::from(fields[3])))
    });
    Shown { is_there: fs::symlink_metadata(path).is_ok(), mount }
}

#[async_trait]
impl ContainerRuntime for Runtime {
    fn name(&self) -> &'static str {
        "recorder"
    }

    async fn version(&self) -> Result<Version, ProviderError> {
        Ok(Version { name: "recorder".to_owned(), version: "1".to_owned() })
    }

    async fn ping(&self) -> Result<(), ProviderError> {
        Ok(())
    }

    async fn list(&self) -> Result<BTreeMap<PodRef, ObservedPod>, ProviderError> {
        Ok(self.lock().pods.clone())
    }

    async fn observe(&self, uid: &str) -> Result<ObservedPod, ProviderError> {
        let machine = self.lock();
        Ok(machine
            .pods
            .iter()
            .find(|(pod, _)| pod.uid == uid)
            .map(|(_, seen)| seen.clone())
            .unwrap_or_default())
    }

    async fn changes(&self) -> Result<BoxStream<'static, String>, ProviderError> {
        let (sender, receiver) = mpsc::unbounded();
        self.lock().news.push(sender);
        Ok(receiver.boxed())
    }

    async fn create_sandbox(&self, sandbox: &SandboxSpec) -> Result<String, ProviderError> {
        let mut machine = self.lock();
        let id = machine.id("s");
        machine.cgroups.insert(sandbox.pod.uid.clone());
        let seen = machine.pods.entry(sandbox.pod.clone()).or_default();
        if seen.sandboxes.iter().any(|have| have.attempt == sandbox.attempt) {
            return Err(exists("create_sandbox"));
        }
        let ips = if sandbox.namespaces.host_network { Vec::new() } else { vec![[10, 1, 0, 9].into()] };
        let (attempt, created_at) = (sandbox.attempt, Timestamp::now());
        let runtime_handler = sandbox.runtime_handler.clone();
        seen.sandboxes
            .insert(0, Sandbox { id: id.clone(), attempt, ready: true, created_at, ips, runtime_handler });
        machine.sandboxes.push(sandbox.clone());
        Ok(id)
    }

    async fn stop_sandbox(&self, id: &str) -> Result<(), ProviderError> {
        for seen in self.lock().pods.values_mut() {
            for sandbox in seen.sandboxes.iter_mut().filter(|sandbox| sandbox.id == id) {
                sandbox.ready = false;
                sandbox.ips.clear();
            }
            for container in seen.containers.iter_mut().filter(|container| container.sandbox_id == id) {
                end(container, 137);
            }
        }
        Ok(())
    }

    async fn remove_sandbox(&self, id: &str) -> Result<(), ProviderError> {
        let mut machine = self.lock();
        for seen in machine.pods.values_mut() {
            seen.sandboxes.retain(|sandbox| sandbox.id != id);
            seen.containers.retain(|container| container.sandbox_id != id);
        }
        machine.pods.retain(|_, seen| !seen.is_empty());
        Ok(())
    }

    async fn create_container(
        &self,
        sandbox_id: &str,
        sandbox: &SandboxSpec,
        container: &ContainerSpec,
    ) -> Result<String, ProviderError> {
        let mounts = fs::read_to_string("/proc/self/mountinfo").expect("the cell has its own");
        let mut machine = self.lock();
        let id = machine.id("c");
        let seen = machine.pods.get_mut(&sandbox.pod).expect("its sandbox is there");
        let is_same = |have: &Container| have.name == container.name && have.attempt == container.attempt;
        if seen.containers.iter().any(is_same) {
            return Err(exists("create_container"));
        }
        let made = Container {
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
        };
        seen.containers.insert(0, made);
        let shown = container.mounts.iter().map(|mount| shown(&mount.host_path, &mounts)).collect();
        machine.made.push(Made { sandbox: sandbox.clone(), container: container.clone(), shown });
        Ok(id)
    }

    async fn update_container(&self, id: &str, resources: Resources) -> Result<(), ProviderError> {
        if let Some(container) = self.lock().container(id) {
            container.resources = Some(resources);
        }
        Ok(())
    }

    async fn update_pod(&self, _: &str, _: PodCgroup) -> Result<(), ProviderError> {
        Ok(())
    }

    async fn start_container(&self, id: &str) -> Result<(), ProviderError> {
        let mut machine = self.lock();
        let container = machine.container(id).expect("it was made");
        assert_eq!(container.state, State::Created, "started twice");
        container.state = State::Running { started_at: Timestamp::now() };
        Ok(())
    }

    async fn stop_container(&self, id: &str, _: u64) -> Result<(), ProviderError> {
        if let Some(container) = self.lock().container(id) {
            end(container, 143);
        }
        Ok(())
    }

    async fn exec_sync(
        &self,
        _: &str,
        _: &[String],
        _: Option<Duration>,
    ) -> Result<CommandEnd, ProviderError> {
        Ok(CommandEnd::Exited { code: 0, stdout: Vec::new(), stderr: Vec::new() })
    }

    async fn remove_container(&self, id: &str) -> Result<(), ProviderError> {
        for seen in self.lock().pods.values_mut() {
            seen.containers.retain(|container| container.id != id);
        }
        Ok(())
    }

    async fn remove_pod(&self, uid: &str) -> Result<(), ProviderError> {
        self.lock().cgroups.remove(uid);
        Ok(())
    }

    async fn recursive_read_only(&self, _: &str) -> Result<bool, ProviderError> {
        Ok(true)
    }

    async fn image(&self, image: &str) -> Result<Option<Image>, ProviderError> {
        Ok(Some(Image { id: format!("id of {image}"), size: 1, user: ImageUser::Id(1) }))
    }

    async fn pull(&self, _: &Puller, image: &str, _: Option<&Credentials>) -> Result<Image, ProviderError> {
        Ok(Image { id: format!("id of {image}"), size: 1, user: ImageUser::Id(1) })
    }
}
