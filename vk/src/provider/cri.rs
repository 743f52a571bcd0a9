//! Provider `cri`: any container runtime that speaks the CRI, on the same machine and in the same mount and network namespaces.
//!
//! Everything that it makes carries labels with the node's name and the pod's UID; everything else in the runtime is somebody else's
//! and is neither listed nor touched. It keeps no state: the runtime has it all.

mod access;
mod cgroup;
mod config;
pub mod convert;
mod errors;
mod facts;
mod housekeeping;
mod images;
pub mod logs;
mod stats;

use std::{
    collections::BTreeMap,
    future::Future,
    path::{Path, PathBuf},
    time::Duration,
};

use async_trait::async_trait;
use futures::{
    StreamExt as _,
    future::{try_join, try_join_all},
    stream::BoxStream,
};
use spillway_proto::cri::{
    self as wire, image_service_client::ImageServiceClient, runtime_service_client::RuntimeServiceClient,
};
use tonic::transport::{Channel, Endpoint};

use super::{
    Attach, Exec, Logs, PortForward, ProviderError, Stats, Version,
    facts::Facts,
    images::Images,
    observed::{ObservedPod, PodRef},
    runtime::{
        CommandEnd, ContainerRuntime, ContainerSpec, Credentials, Image, PodCgroup, Puller, Resources,
        SandboxSpec,
    },
};
use crate::lead::Lead;
use cgroup::{Driver, Memory, Tree};
pub use config::CriConfig;
use errors::{absent_is_done, failed, failure, io_failed};
use logs::links::{Link, Links};

/// Runtimes answer within this, or are taken as unreachable. Waiting for a container to stop comes on top.
const CALL_TIMEOUT: Duration = Duration::from_mins(2);
/// Where there is `SELinux`, its file system has this.
const SELINUX: &str = "/sys/fs/selinux/enforce";
/// Lists of hundreds of containers exceed gRPC's 4 MiB.
const MAX_MESSAGE_BYTES: usize = 64 << 20;

/// A runtime behind its socket.
pub struct Cri {
    node: String,
    endpoint: String,
    log_root: PathBuf,
    cgroup_root: String,
    log_limits: (u64, usize),
    links: Links,
    runtime: RuntimeServiceClient<Channel>,
    images: ImageServiceClient<Channel>,
    tree: tokio::sync::OnceCell<Tree>,
    lead: Lead,
    /// The machine has `SELinux`.
    selinux: bool,
}

/// Calls that change nothing. All others are made only by who may act for the node.
const READING: [&str; 12] = [
    "ContainerStatus",
    "ImageFsInfo",
    "ImageStatus",
    "ListContainerStats",
    "ListContainers",
    "ListImages",
    "ListPodSandbox",
    "ListPodSandboxStats",
    "PodSandboxStatus",
    "RuntimeConfig",
    "Status",
    "Version",
];

impl Cri {
    /// For the pods of the node of this name. Connects when it is first used.
    ///
    /// # Errors
    /// When the endpoint is no `unix://` address of an absolute path.
    pub fn new(node: &str, config: &CriConfig) -> Result<Self, ProviderError> {
        let invalid = |why: &str| ProviderError::Failed {
            operation: "connect",
            message: format!("endpoint {:?} {why}: write unix:///path/of/the/runtime.sock", config.endpoint),
        };
        let path = config.endpoint.strip_prefix("unix://").ok_or_else(|| invalid("is no unix socket"))?;
        if !path.starts_with('/') {
            return Err(invalid("has no absolute path"));
        }
        let channel = Endpoint::from_shared(config.endpoint.clone())
            .map_err(|error| invalid(&error.to_string()))?
            .connect_timeout(Duration::from_secs(5))
            .connect_lazy();
        Ok(Self {
            node: node.to_owned(),
            endpoint: config.endpoint.clone(),
            log_root: config.log_root.clone(),
            cgroup_root: config.cgroup_root.clone(),
            log_limits: (config.container_log_max_size.0, config.container_log_max_files.max(2)),
            links: Links::new(&config.log_root),
            runtime: RuntimeServiceClient::new(channel.clone()).max_decoding_message_size(MAX_MESSAGE_BYTES),
            images: ImageServiceClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES),
            tree: tokio::sync::OnceCell::new(),
            lead: Lead::always(),
            selinux: Path::new(SELINUX).exists(),
        })
    }

    /// The same, changing nothing while `lead` says so.
    #[must_use]
    pub fn guarded_by(self, lead: Lead) -> Self {
        Self { lead, ..self }
    }

    /// To be asked right before a call.
    fn may(&self, operation: &'static str) -> Result<(), ProviderError> {
        if READING.contains(&operation) {
            return Ok(());
        }
        self.lead
            .check()
            .map_err(|error| ProviderError::Unavailable { operation, message: error.to_string() })
    }

    fn runtime(&self) -> RuntimeServiceClient<Channel> {
        self.runtime.clone()
    }

    /// One call: bounded in time, its failure in our words.
    async fn call<T>(
        &self,
        operation: &'static str,
        limit: Duration,
        call: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
    ) -> Result<T, ProviderError> {
        self.may(operation)?;
        match tokio::time::timeout(limit, call).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(failure(operation, &self.endpoint, &status)),
            Err(_) => Err(ProviderError::Unavailable {
                operation,
                message: format!("{}: no answer within {} s", self.endpoint, limit.as_secs()),
            }),
        }
    }

    /// The cgroup tree, spelled as this runtime's driver wants it.
    async fn tree(&self) -> Result<&Tree, ProviderError> {
        self.tree
            .get_or_try_init(|| async {
                let request = wire::RuntimeConfigRequest {};
                let answer =
                    self.call("RuntimeConfig", CALL_TIMEOUT, self.runtime().runtime_config(request)).await;
                let driver = match answer {
                    Ok(config) => match config.linux.map(|linux| linux.cgroup_driver()) {
                        Some(wire::CgroupDriver::Systemd) => Driver::Systemd,
                        Some(wire::CgroupDriver::Cgroupfs) | None => Driver::Cgroupfs,
                    },
                    // Runtimes from before that call.
                    Err(ProviderError::Failed { .. }) => Driver::Cgroupfs,
                    Err(error) => return Err(error),
                };
                Ok(Tree::new(&self.cgroup_root, driver))
            })
            .await
    }

    async fn memory(&self) -> Result<Memory, ProviderError> {
        self.tree().await?.memory().map_err(|error| failed("look at the machine's cgroups", &error))
    }

    async fn sandbox_config(&self, sandbox: &SandboxSpec) -> Result<wire::PodSandboxConfig, ProviderError> {
        let parent = self.tree().await?.parent(&sandbox.pod.uid, sandbox.cgroup.qos);
        let logs = log_directory(&self.log_root, &sandbox.pod);
        let mut config = convert::sandbox_config(&self.node, sandbox, &logs, parent);
        if let Some(resources) = config.linux.as_mut().and_then(|linux| linux.resources.as_mut()) {
            self.memory().await?.of_sandbox(resources);
        }
        Ok(config)
    }

    async fn sandboxes(&self, uid: Option<&str>) -> Result<Vec<wire::PodSandbox>, ProviderError> {
        let filter = wire::PodSandboxFilter {
            label_selector: convert::selector(&self.node, uid),
            ..Default::default()
        };
        let request = wire::ListPodSandboxRequest { filter: Some(filter) };
        let answer =
            self.call("ListPodSandbox", CALL_TIMEOUT, self.runtime().list_pod_sandbox(request)).await?;
        Ok(answer.items)
    }

    async fn containers(&self, uid: Option<&str>) -> Result<Vec<wire::Container>, ProviderError> {
        let filter = wire::ContainerFilter {
            label_selector: convert::selector(&self.node, uid),
            ..Default::default()
        };
        let request = wire::ListContainersRequest { filter: Some(filter) };
        let answer =
            self.call("ListContainers", CALL_TIMEOUT, self.runtime().list_containers(request)).await?;
        Ok(answer.containers)
    }

    /// Whether the runtime works, and what it can do. It answers at once, or something is wrong.
    async fn status(&self) -> Result<wire::StatusResponse, ProviderError> {
        let request = wire::StatusRequest { verbose: false };
        self.call("Status", Duration::from_secs(10), self.runtime().status(request)).await
    }

    async fn container_status(&self, id: &str) -> Result<Option<wire::ContainerStatus>, ProviderError> {
        let request = wire::ContainerStatusRequest { container_id: id.to_owned(), verbose: false };
        match self.call("ContainerStatus", CALL_TIMEOUT, self.runtime().container_status(request)).await {
            Ok(answer) => Ok(answer.status),
            Err(ProviderError::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// A container's log, and the link to it; `None`: it is not below our log root.
    fn link(&self, status: &wire::ContainerStatus) -> Option<Link> {
        let log = PathBuf::from(&status.log_path);
        let pod = convert::owner(&status.labels)?;
        let name = &status.metadata.as_ref()?.name;
        log.starts_with(&self.log_root).then(|| Link::new(&pod, name, &status.id, log))
    }

    async fn sandbox_status(&self, id: &str) -> Result<Option<wire::PodSandboxStatus>, ProviderError> {
        let request = wire::PodSandboxStatusRequest { pod_sandbox_id: id.to_owned(), verbose: false };
        match self.call("PodSandboxStatus", CALL_TIMEOUT, self.runtime().pod_sandbox_status(request)).await {
            Ok(answer) => Ok(answer.status),
            Err(ProviderError::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// Where a kubelet has the pod's logs.
fn log_directory(log_root: &Path, pod: &PodRef) -> PathBuf {
    log_root.join(format!("{}_{}_{}", pod.namespace, pod.name, pod.uid))
}

#[async_trait]
impl ContainerRuntime for Cri {
    fn name(&self) -> &'static str {
        "cri"
    }

    async fn version(&self) -> Result<Version, ProviderError> {
        let request = wire::VersionRequest { version: "v1".to_owned() };
        let answer = self.call("Version", CALL_TIMEOUT, self.runtime().version(request)).await?;
        // CRI-O says `1.31.0`, containerd `v2.2.9`.
        let version = answer.runtime_version.trim_start_matches('v').to_owned();
        Ok(Version { name: answer.runtime_name, version })
    }

    async fn ping(&self) -> Result<(), ProviderError> {
        let unready: Vec<String> = self
            .status()
            .await?
            .status
            .unwrap_or_default()
            .conditions
            .into_iter()
            // The two that a kubelet asks for; runtimes report others, such as pending deprecations.
            .filter(|condition| {
                !condition.status && matches!(&*condition.r#type, "RuntimeReady" | "NetworkReady")
            })
            .map(|condition| {
                format!("{}=false: {} {}", condition.r#type, condition.reason, condition.message)
            })
            .collect();
        if unready.is_empty() {
            return Ok(());
        }
        Err(ProviderError::Failed { operation: "Status", message: unready.join(", ") })
    }

    async fn facts(&self) -> Result<Facts, ProviderError> {
        Self::facts(self).await
    }

    async fn recursive_read_only(&self, handler: &str) -> Result<bool, ProviderError> {
        let known = self
            .status()
            .await?
            .runtime_handlers
            .iter()
            .map(facts::handler)
            .find(|known| known.name == handler);
        Ok(known.is_some_and(|known| known.recursive_read_only_mounts))
    }

    fn exec(&self) -> Option<&dyn Exec> {
        Some(self)
    }

    fn logs(&self) -> Option<&dyn Logs> {
        Some(self)
    }

    fn attach(&self) -> Option<&dyn Attach> {
        Some(self)
    }

    fn port_forward(&self) -> Option<&dyn PortForward> {
        Some(self)
    }

    fn stats(&self) -> Option<&dyn Stats> {
        Some(self)
    }

    fn images(&self) -> Option<&dyn Images> {
        Some(self)
    }

    async fn list(&self) -> Result<BTreeMap<PodRef, ObservedPod>, ProviderError> {
        let (sandboxes, containers) = try_join(self.sandboxes(None), self.containers(None)).await?;
        Ok(convert::pods(sandboxes, containers))
    }

    async fn tend(&self, pods: &BTreeMap<PodRef, ObservedPod>) -> Result<(), ProviderError> {
        let rotated = housekeeping::rotate_logs(self, pods).await;
        let linked = housekeeping::link_logs(self, pods).await;
        rotated.and(linked)
    }

    async fn observe(&self, uid: &str) -> Result<ObservedPod, ProviderError> {
        let (sandboxes, containers) = try_join(self.sandboxes(Some(uid)), self.containers(Some(uid))).await?;
        // What disappears between the list and its status was removed: it is not there.
        let (sandboxes, containers) = try_join(
            try_join_all(sandboxes.iter().map(|sandbox| self.sandbox_status(&sandbox.id))),
            try_join_all(containers.iter().map(|container| async {
                let status = self.container_status(&container.id).await?;
                Ok(status.map(|status| (container.pod_sandbox_id.clone(), status)))
            })),
        )
        .await?;
        Ok(convert::observed(sandboxes.into_iter().flatten(), containers.into_iter().flatten()))
    }

    async fn changes(&self) -> Result<BoxStream<'static, String>, ProviderError> {
        let request = wire::GetEventsRequest {};
        // The answer's head comes with the first event, so the wait for it must not be bounded, nor awaited here.
        let mut client = self.runtime();
        let node = self.node.clone();
        let events = futures::stream::once(async move { client.get_container_events(request).await })
            .flat_map(|answer| match answer {
                Ok(stream) => stream.into_inner().boxed(),
                Err(status) => {
                    tracing::debug!(%status, "the runtime sends no events");
                    futures::stream::empty().boxed()
                }
            })
            .take_while(|event| futures::future::ready(event.is_ok()))
            .filter_map(move |event| {
                let uid = event.ok().and_then(|event| convert::event_uid(&node, &event));
                futures::future::ready(uid)
            });
        Ok(events.boxed())
    }

    async fn create_sandbox(&self, sandbox: &SandboxSpec) -> Result<String, ProviderError> {
        let operation = "RunPodSandbox";
        let config = self.sandbox_config(sandbox).await?;
        let tree = self.tree().await?;
        tree.create(&sandbox.pod.uid, sandbox.cgroup, &sandbox.huge_pages)
            .map_err(|error| failed(operation, &error))?;
        let logs = log_directory(&self.log_root, &sandbox.pod);
        tokio::fs::create_dir_all(&logs).await.map_err(|error| io_failed(operation, &logs, &error))?;
        let request = wire::RunPodSandboxRequest {
            config: Some(config),
            runtime_handler: sandbox.runtime_handler.clone(),
        };
        let answer = self.call(operation, CALL_TIMEOUT, self.runtime().run_pod_sandbox(request)).await?;
        Ok(answer.pod_sandbox_id)
    }

    async fn stop_sandbox(&self, id: &str) -> Result<(), ProviderError> {
        let request = wire::StopPodSandboxRequest { pod_sandbox_id: id.to_owned() };
        let answer =
            self.call("StopPodSandbox", CALL_TIMEOUT, self.runtime().stop_pod_sandbox(request)).await;
        absent_is_done(answer)
    }

    async fn remove_sandbox(&self, id: &str) -> Result<(), ProviderError> {
        let request = wire::RemovePodSandboxRequest { pod_sandbox_id: id.to_owned() };
        let answer =
            self.call("RemovePodSandbox", CALL_TIMEOUT, self.runtime().remove_pod_sandbox(request)).await;
        absent_is_done(answer)
    }

    async fn create_container(
        &self,
        sandbox_id: &str,
        sandbox: &SandboxSpec,
        container: &ContainerSpec,
    ) -> Result<String, ProviderError> {
        let operation = "CreateContainer";
        let mut config = convert::container_config(&self.node, sandbox, container);
        if let Some(resources) = config.linux.as_mut().and_then(|linux| linux.resources.as_mut()) {
            self.memory().await?.of_container(resources);
        }
        for mount in &mut config.mounts {
            mount.selinux_relabel &= self.selinux;
        }
        let sandbox_config = self.sandbox_config(sandbox).await?;
        let logs = log_directory(&self.log_root, &sandbox.pod).join(&container.name);
        tokio::fs::create_dir_all(&logs).await.map_err(|error| io_failed(operation, &logs, &error))?;
        let request = wire::CreateContainerRequest {
            pod_sandbox_id: sandbox_id.to_owned(),
            config: Some(config),
            sandbox_config: Some(sandbox_config),
        };
        let call = Box::pin(async move { self.runtime().create_container(request).await });
        let answer = self.call(operation, CALL_TIMEOUT, call).await?;
        Ok(answer.container_id)
    }

    async fn update_container(&self, id: &str, resources: Resources) -> Result<(), ProviderError> {
        let mut resources = convert::resources(&resources);
        self.memory().await?.of_container(&mut resources);
        let request = wire::UpdateContainerResourcesRequest {
            container_id: id.to_owned(),
            linux: Some(resources),
            annotations: std::collections::HashMap::new(),
        };
        let mut client = self.runtime();
        self.call("UpdateContainerResources", CALL_TIMEOUT, client.update_container_resources(request))
            .await
            .map(drop)
    }

    async fn update_pod(&self, uid: &str, cgroup: PodCgroup) -> Result<(), ProviderError> {
        self.may("resize the pod's cgroup")?;
        let tree = self.tree().await?;
        tree.update(uid, cgroup).map_err(|error| failed("resize the pod's cgroup", &error))
    }

    async fn weigh(&self, burstable_shares: u64) -> Result<(), ProviderError> {
        let operation = "weigh the classes of pods";
        self.may(operation)?;
        self.tree().await?.weigh(burstable_shares).map_err(|error| failed(operation, &error))
    }

    async fn lacks_pod_limits(&self) -> Result<Option<&'static str>, ProviderError> {
        Ok(self.tree().await?.lacks_pod_limits())
    }

    async fn start_container(&self, id: &str) -> Result<(), ProviderError> {
        let request = wire::StartContainerRequest { container_id: id.to_owned() };
        let answer = self.call("StartContainer", CALL_TIMEOUT, self.runtime().start_container(request)).await;
        if let Err(ProviderError::Failed { .. } | ProviderError::NotFound { .. }) = answer
            && self.may("StartContainer").is_ok()
            && let Ok(tree) = self.tree().await
        {
            // To the runtime it has ended. Its process may live all the same, when what held it died in the middle of the call.
            tree.end_container(id);
        }
        if answer.is_ok() {
            housekeeping::link_log(self, id).await;
        }
        answer.map(drop)
    }

    async fn stop_container(&self, id: &str, grace_seconds: u64) -> Result<(), ProviderError> {
        let timeout = i64::try_from(grace_seconds).unwrap_or(i64::MAX);
        let request = wire::StopContainerRequest { container_id: id.to_owned(), timeout };
        let limit = CALL_TIMEOUT.saturating_add(Duration::from_secs(grace_seconds));
        let answer = self.call("StopContainer", limit, self.runtime().stop_container(request)).await;
        absent_is_done(answer)
    }

    async fn exec_sync(
        &self,
        id: &str,
        command: &[String],
        limit: Option<Duration>,
    ) -> Result<CommandEnd, ProviderError> {
        access::exec_sync(self, id, command, limit).await
    }

    async fn remove_container(&self, id: &str) -> Result<(), ProviderError> {
        let operation = "RemoveContainer";
        let link = self.container_status(id).await?.and_then(|status| self.link(&status));
        let request = wire::RemoveContainerRequest { container_id: id.to_owned() };
        absent_is_done(self.call(operation, CALL_TIMEOUT, self.runtime().remove_container(request)).await)?;
        let Some(link) = link else { return Ok(()) };
        let failed = |error| io_failed(operation, &link.log, &error);
        self.links.remove(&link).map_err(failed)?;
        housekeeping::remove_log(&link.log).await.map_err(failed)
    }

    async fn remove_pod(&self, uid: &str) -> Result<(), ProviderError> {
        let operation = "remove pod";
        self.may(operation)?;
        self.tree().await?.remove(uid).map_err(|error| failed(operation, &error))?;
        for logs in housekeeping::log_directories(&self.log_root, uid) {
            self.links.remove_pod(&logs).map_err(|error| io_failed(operation, &logs, &error))?;
            match tokio::fs::remove_dir_all(&logs).await {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(io_failed(operation, &logs, &error));
                }
                _ => {}
            }
        }
        Ok(())
    }

    async fn image(&self, image: &str) -> Result<Option<Image>, ProviderError> {
        let request = wire::ImageStatusRequest { image: Some(convert::image_spec(image)), verbose: false };
        let answer =
            self.call("ImageStatus", CALL_TIMEOUT, self.images.clone().image_status(request)).await?;
        Ok(answer.image.map(convert::image))
    }

    async fn pull(
        &self,
        pod: &Puller,
        image: &str,
        credentials: Option<&Credentials>,
    ) -> Result<Image, ProviderError> {
        images::pull(self, pod, image, credentials).await
    }
}

#[cfg(test)]
mod tests;
