//! Starting: volumes, sandbox, images, containers.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};
use tokio::sync::OwnedSemaphorePermit;

use super::{Next, SyncError, Worker, next_restart};
use crate::{
    identity::chain,
    pod::{
        env::{self, sources},
        ephemeral,
        events::Kind,
        lifecycle::{Start, Wait},
        network,
        probe::is_sidecar,
        spec,
        status::{Waiting, primary_first},
        storage, subpath, volumes,
    },
    provider::{
        ProviderError,
        observed::{ObservedPod, Sandbox},
        runtime::{ContainerRuntime, Image, ImagePart, Mount, Propagation, SandboxSpec},
    },
};

/// A failed pull shows as `ErrImagePull` for so long, then as `ImagePullBackOff`.
const SHOW_PULL_ERROR: Duration = Duration::from_secs(2);

/// What files of variables hold, or why they can't be read; by volume and path.
type EnvFiles = std::collections::BTreeMap<(String, String), Result<String, String>>;

/// Why a container was not started.
pub(super) enum NotStarted {
    /// Its status says so, and it is tried again.
    Waits(Waiting),
    /// Nothing is wrong with the container.
    Failed(SyncError),
}

impl<E: Into<SyncError>> From<E> for NotStarted {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

pub(super) fn waits(reason: &str, message: String) -> NotStarted {
    NotStarted::Waits(Waiting { reason: reason.to_owned(), message })
}

impl Worker {
    /// Gives back what earlier sandboxes hold (their address, their ports), fills the volumes and makes the sandbox.
    pub(super) async fn make_sandbox(
        &mut self,
        pod: &Arc<Pod>,
        runtime: &dyn ContainerRuntime,
        seen: &ObservedPod,
        attempt: u32,
    ) -> Result<(), SyncError> {
        if attempt > 0 {
            let message = "Pod sandbox changed, it will be killed and re-created.";
            self.shared.recorder.pod(pod, Kind::Normal, "SandboxChanged", message);
        }
        for earlier in &seen.sandboxes {
            runtime.stop_sandbox(&earlier.id).await?;
        }
        self.mount_volumes(pod).await?;
        let tell = |why: &str| {
            let message = format!("Failed to create pod sandbox: {why}");
            self.shared.recorder.pod(pod, Kind::Warning, "FailedCreatePodSandBox", &message);
        };
        let spec = match self.runtime_handler(pod).await {
            Ok(handler) => self.sandbox_spec(pod, attempt, handler).await,
            Err(error) => Err(error),
        };
        let sandbox = match spec {
            Err(error @ (SyncError::Waiting(_) | SyncError::Api { source: kube::Error::Api(_), .. })) => {
                tell(&chain(&error));
                return Err(error);
            }
            sandbox => sandbox?,
        };
        match runtime.create_sandbox(&sandbox).await {
            Ok(_) => Ok(()),
            // An earlier call of ours is at it, or has done it unheard: the next look finds it.
            Err(error @ ProviderError::Exists { .. }) => Err(error.into()),
            Err(error) => {
                tell(&error.message());
                Err(error.into())
            }
        }
    }

    /// Empty: the runtime's default.
    pub(super) async fn runtime_handler(&self, pod: &Pod) -> Result<String, SyncError> {
        let class = pod.spec.as_ref().and_then(|spec| spec.runtime_class_name.as_deref());
        let Some(class) = class.filter(|class| !class.is_empty()) else { return Ok(String::new()) };
        let asked = self.shared.reader.runtime_handler(class).await;
        asked.map_err(|source| SyncError::Api { operation: "show the pod's RuntimeClass", source })
    }

    async fn sandbox_spec(&self, pod: &Pod, attempt: u32, handler: String) -> Result<SandboxSpec, SyncError> {
        let settings = &self.shared.settings;
        let hostname = network::hostname(pod, &settings.cluster_domain).map_err(SyncError::Waiting)?;
        let text = tokio::fs::read_to_string(&settings.resolv_conf).await.unwrap_or_default();
        let machine = network::parse_resolv_conf(&text);
        let formed = network::dns(pod, &machine, &settings.cluster_dns, &settings.cluster_domain);
        for message in &formed.omissions {
            self.shared.recorder.pod(pod, Kind::Warning, "DNSConfigForming", message);
        }
        if formed.lacks_cluster {
            let message = "this node has no clusterDNS configured and can't give the pod \"ClusterFirst\": it gets the machine's DNS";
            self.shared.recorder.pod(pod, Kind::Warning, "MissingClusterDNS", message);
        }
        Ok(spec::sandbox(pod, attempt, handler, hostname.kernel, formed.dns))
    }

    /// Starts containers in the sandbox, then reports. Others of the pod `wait` to be started again.
    pub(super) async fn run_containers(
        &mut self,
        pod: &Arc<Pod>,
        runtime: &dyn ContainerRuntime,
        seen: ObservedPod,
        starts: Vec<Start>,
        wait: &[Wait],
        mut permit: Option<OwnedSemaphorePermit>,
    ) -> Result<Next, SyncError> {
        let Some(sandbox) = seen.sandbox() else { return Ok(Next::Again) };
        if self.memory.volumes.is_none() {
            self.mount_volumes(pod).await?;
        } else {
            // It may have been a while.
            self.refresh_volumes(pod).await;
        }
        let mut failure = None;
        let mut again_in: Option<Duration> = None;
        // Nothing wakes us when one has started that others wait for.
        let go_on = starts
            .iter()
            .any(|start| ephemeral::named(pod, &start.name).is_some_and(|container| is_sidecar(&container)));
        for start in starts {
            if self.is_unwanted() {
                return Ok(Next::Again);
            }
            match self.start_container(pod, runtime, sandbox, &start, &mut permit).await {
                Ok(()) => drop(self.memory.waiting.remove(&start.name)),
                Err(NotStarted::Waits(why)) => {
                    let delay = self.delay_after(&why, pod, &start.name);
                    again_in = Some(again_in.map_or(delay, |other| other.min(delay)));
                    self.memory.waiting.insert(start.name.clone(), why);
                }
                Err(NotStarted::Failed(error)) => {
                    failure = Some(error);
                    break;
                }
            }
        }
        drop(permit);
        let seen = self.observe(runtime, pod).await?;
        let is_told = self.show(pod, &seen).await;
        match (failure, again_in) {
            (Some(error), _) => Err(error),
            (None, Some(delay)) => {
                // One that can't start is no reason to neglect the others.
                let look = self.look_after(pod, runtime, &seen, is_told).await?;
                let Some(look) = look else { return Ok(Next::Again) };
                Ok(Next::Within([Some(delay), look, next_restart(wait)].into_iter().flatten().min()))
            }
            (None, None) => {
                self.memory.start_again.reset();
                // What has not ended by now will wake us.
                if go_on {
                    return Ok(Next::Again);
                }
                // With a limit on disks there is more to be looked at.
                let all_running = seen.containers.iter().all(|container| container.exit().is_none());
                let is_limited = pod.spec.as_ref().is_some_and(|spec| storage::limits(spec).is_some());
                if !all_running || is_limited {
                    return Ok(Next::Again);
                }
                Ok(Next::Within(self.refresh_volumes(pod).await))
            }
        }
    }

    fn delay_after(&mut self, why: &Waiting, pod: &Pod, name: &str) -> Duration {
        let image =
            ephemeral::named(pod, name).and_then(|container| container.image.clone()).unwrap_or_default();
        match (why.reason.as_str(), self.memory.pulls.get(&image)) {
            ("ErrImagePull" | "RegistryUnavailable" | "SignatureValidationFailed", Some(_)) => {
                SHOW_PULL_ERROR
            }
            ("ImagePullBackOff", Some(pull)) => pull.again_at.saturating_duration_since(Instant::now()),
            _ => self.memory.start_again.delay(),
        }
    }

    async fn start_container(
        &mut self,
        pod: &Arc<Pod>,
        runtime: &dyn ContainerRuntime,
        sandbox: &Sandbox,
        start: &Start,
        permit: &mut Option<OwnedSemaphorePermit>,
    ) -> Result<(), NotStarted> {
        let Some(container) = ephemeral::named(pod, &start.name) else { return Ok(()) };
        let container = container.as_ref();
        let id = if let Some(id) = start.made.clone() {
            id
        } else {
            let image = match self.ensure_image(pod, runtime, container, permit).await {
                Err(NotStarted::Waits(why)) => {
                    tell_failed(self, pod, &start.name, &why.reason);
                    return Err(NotStarted::Waits(why));
                }
                result => result?,
            };
            if let Err(error) = self.ensure_volume_images(pod, runtime, container, permit).await {
                if let NotStarted::Waits(why) = &error {
                    tell_failed(self, pod, &start.name, &why.message);
                }
                return Err(error);
            }
            let made = self.make_container(pod, runtime, sandbox, start, container, &image).await;
            let tell = |kind, reason: &str, message: &str| {
                self.shared.recorder.container(pod, &start.name, kind, reason, message);
            };
            match made {
                Ok(id) => {
                    tell(Kind::Normal, "Created", "Container created");
                    id
                }
                Err(NotStarted::Waits(why)) => {
                    tell(Kind::Warning, "Failed", &format!("Error: {}", why.message));
                    return Err(NotStarted::Waits(why));
                }
                Err(error) => return Err(error),
            }
        };
        self.note_start(start).await?;
        match runtime.start_container(&id).await {
            Ok(()) => {
                self.shared.recorder.container(
                    pod,
                    &start.name,
                    Kind::Normal,
                    "Started",
                    "Container started",
                );
                let hook = container.lifecycle.as_ref().and_then(|lifecycle| lifecycle.post_start.as_ref());
                let Some(hook) = hook else { return Ok(()) };
                // It may take its time; others' turn.
                drop(permit.take());
                self.post_start(pod, runtime, sandbox, container, &id, hook).await.map_err(|why| match why {
                    Ok(why) => NotStarted::Waits(why),
                    Err(error) => NotStarted::Failed(error),
                })
            }
            Err(ProviderError::Failed { message, .. }) => {
                tell_failed(self, pod, &start.name, &message);
                Err(waits("RunContainerError", message))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// From here on the attempt counts as one that has run, unless the runtime knows better: it may die before it says so.
    async fn note_start(&mut self, start: &Start) -> Result<(), SyncError> {
        self.shared.settings.lead.check().map_err(|error| SyncError::Waiting(error.to_string()))?;
        let (folder, name, attempt) = (self.folder.clone(), start.name.clone(), start.attempt);
        let noted = tokio::task::spawn_blocking(move || folder.note_start(&name, attempt)).await;
        noted.map_err(|error| SyncError::Waiting(error.to_string()))??;
        self.memory.started.get_or_insert_default().insert(start.name.clone(), start.attempt);
        Ok(())
    }

    async fn make_container(
        &mut self,
        pod: &Arc<Pod>,
        runtime: &dyn ContainerRuntime,
        sandbox: &Sandbox,
        start: &Start,
        container: &Container,
        image: &Image,
    ) -> Result<String, NotStarted> {
        let config_error = |message: String| waits("CreateContainerConfigError", message);
        let default = PodSpec::default();
        let pod_spec = pod.spec.as_ref().unwrap_or(&default);
        if let Some(message) = spec::refuses_root(pod_spec, container, image) {
            let id = self.entry.pod.full_name();
            return Err(config_error(format!("{message} (pod: \"{id}\", container: {})", container.name)));
        }
        if let Some(target) = ephemeral::target(pod_spec, &container.name)
            && start.joins.is_none()
        {
            return Err(config_error(format!("unable to find target container {target}")));
        }
        let settings = &self.shared.settings;
        let host_network = pod_spec.host_network.unwrap_or(false);
        let pod_ips = if host_network {
            settings.host_ips.clone()
        } else {
            primary_first(&sandbox.ips, &settings.host_ips)
        };
        if start.attempt > 0 {
            self.memory.read_again(Instant::now());
        }
        let objects = self.load(&sources::references(container)).await;
        self.tell_not_found(pod, container, &objects);
        let mut runtime_values = self.runtime_values(pod, pod_ips.clone()).await?;
        runtime_values.env_files = self.env_files(container).await?;
        let services = self.service_env(pod).await?;
        let env = env::resolve(pod, container, &objects, &runtime_values, &services).map_err(|error| {
            self.memory.read_again(Instant::now());
            config_error(error.to_string())
        })?;
        let deep_read_only = self.deep_read_only(pod, Some(sandbox)).await?;
        let uses = spec::volume_uses(pod_spec, container, &env, deep_read_only).map_err(config_error)?;

        let hosts = self.hosts_text(pod, host_network, &pod_ips).await?;
        let folder = self.folder.clone();
        let paths = self.memory.volumes.as_ref().map(|mounted| mounted.paths.clone()).unwrap_or_default();
        let images = self.memory.images.clone();
        let (name, attempt) = (start.name.clone(), start.attempt);
        let fresh_hosts = self.memory.hosts.as_ref().is_none_or(|(of, _)| *of != sandbox.id);
        let known_hosts = self.memory.hosts.as_ref().map(|(_, path)| path.clone());
        let files = tokio::task::spawn_blocking(move || {
            let hosts = match known_hosts {
                Some(path) if !fresh_hosts => path,
                _ => folder.put_hosts(&hosts)?,
            };
            let termination_log = folder.put_termination_log(&name, attempt)?;
            let mut mounts = Vec::new();
            for (index, used) in uses.into_iter().enumerate() {
                if let Some(part) = images.get(&used.volume) {
                    let sub_path = used.sub_path.unwrap_or_default();
                    let image = Some(ImagePart { sub_path, ..part.clone() });
                    mounts.push(Mount { image, ..used.mount });
                    continue;
                }
                let Some(volume) = paths.get(&used.volume) else { continue };
                let host_path = match &used.sub_path {
                    Some(sub) => {
                        let shared = used.mount.propagation == Propagation::Bidirectional;
                        let part = subpath::Part { volume, sub: sub.as_ref(), shared };
                        folder.put_sub_path(part, &used.volume, &name, attempt, index)?
                    }
                    None => volume.clone(),
                };
                mounts.push(Mount { host_path, ..used.mount });
            }
            Ok::<_, crate::pod::files::FilesError>((spec::OwnFiles { hosts, termination_log }, mounts))
        });
        let (own, mounts) = files
            .await
            .map_err(|error| SyncError::Waiting(error.to_string()))?
            .map_err(|error| config_error(chain(&error)))?;
        self.memory.hosts = Some((sandbox.id.clone(), own.hosts.clone()));

        self.enforced(&start.name).await?;
        let handler = sandbox.runtime_handler.clone();
        let sandbox_spec = self.sandbox_spec(pod, sandbox.attempt, handler).await?;
        let memory = self.shared.machine_memory;
        let mut made = spec::container(pod_spec, container, start.attempt, image, env, mounts, &own, memory)
            .map_err(|error| config_error(error.to_string()))?;
        made.joins.clone_from(&start.joins);
        made.devices = self.devices(&start.name);
        match runtime.create_container(&sandbox.id, &sandbox_spec, &made).await {
            Ok(id) => Ok(id),
            Err(ProviderError::Failed { message, .. }) => Err(waits("CreateContainerError", message)),
            Err(error) => Err(error.into()),
        }
    }

    /// Files that the container takes variables from.
    async fn env_files(&self, container: &Container) -> Result<EnvFiles, SyncError> {
        let sources = container.env.iter().flatten().filter_map(|variable| variable.value_from.as_ref());
        let wanted: Vec<_> = sources
            .filter_map(|source| source.file_key_ref.as_ref())
            .filter_map(|file| {
                let folder = self.memory.volumes.as_ref()?.paths.get(&file.volume_name)?.clone();
                Some((folder, (file.volume_name.clone(), file.path.clone())))
            })
            .collect();
        if wanted.is_empty() {
            return Ok(EnvFiles::new());
        }
        let read = move || {
            let one = |(folder, key): (std::path::PathBuf, (String, String))| {
                let text = env::file::read(&folder, &key.1).map_err(|error| error.to_string());
                (key, text)
            };
            wanted.into_iter().map(one).collect()
        };
        tokio::task::spawn_blocking(read).await.map_err(|error| SyncError::Waiting(error.to_string()))
    }

    async fn hosts_text(
        &self,
        pod: &Pod,
        host_network: bool,
        pod_ips: &[std::net::IpAddr],
    ) -> Result<String, SyncError> {
        if host_network {
            let machine = tokio::fs::read_to_string("/etc/hosts").await.unwrap_or_default();
            return Ok(network::machine_hosts(pod, &machine));
        }
        let hostname =
            network::hostname(pod, &self.shared.settings.cluster_domain).map_err(SyncError::Waiting)?;
        Ok(network::hosts(pod, &hostname, pod_ips))
    }

    async fn service_env(&self, pod: &Pod) -> Result<std::collections::BTreeMap<String, String>, SyncError> {
        // Without the API server's address a pod's client would be lost; so wait for the first list.
        let ready =
            tokio::time::timeout(Duration::from_secs(10), self.shared.services.wait_until_ready()).await;
        if !matches!(ready, Ok(Ok(()))) {
            return Err(SyncError::Waiting("services have not yet been read at least once".to_owned()));
        }
        let links = pod.spec.as_ref().and_then(|spec| spec.enable_service_links).unwrap_or(true);
        let services = self.shared.services.state();
        Ok(env::services(services.iter().map(Arc::as_ref), &self.entry.pod.namespace, links))
    }

    /// The images that the container mounts, each as the image that it runs.
    async fn ensure_volume_images(
        &mut self,
        pod: &Arc<Pod>,
        runtime: &dyn ContainerRuntime,
        container: &Container,
        permit: &mut Option<OwnedSemaphorePermit>,
    ) -> Result<(), NotStarted> {
        let Some(spec) = &pod.spec else { return Ok(()) };
        for (volume, name, policy) in volumes::images(spec, container) {
            let asked = Container {
                name: container.name.clone(),
                image: Some(name.clone()),
                image_pull_policy: policy,
                ..Default::default()
            };
            let image = self.ensure_image(pod, runtime, &asked, permit).await?;
            let part = ImagePart { id: image.id, name, sub_path: String::new() };
            self.memory.images.insert(volume, part);
        }
        Ok(())
    }
}

fn tell_failed(worker: &Worker, pod: &Pod, name: &str, message: &str) {
    worker.shared.recorder.container(pod, name, Kind::Warning, "Failed", &format!("Error: {message}"));
}
