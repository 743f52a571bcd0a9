//! The yardstick: a container runtime driven as directly as its interface allows, by a loop that knows no Kubernetes.

use std::{
    collections::HashMap,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use futures::{StreamExt as _, TryStreamExt as _};
use hyper_util::rt::TokioIo;
use spillway_proto::cri::{
    Container, ContainerConfig, ContainerFilter, ContainerMetadata, ContainerState, ContainerStatusRequest,
    CreateContainerRequest, ImageSpec, KeyValue, LinuxContainerConfig, LinuxPodSandboxConfig,
    ListContainersRequest, ListPodSandboxRequest, Mount, PodSandbox, PodSandboxConfig, PodSandboxFilter,
    PodSandboxMetadata, PodSandboxState, PodSandboxStateValue, RemoveContainerRequest,
    RemovePodSandboxRequest, RunPodSandboxRequest, StartContainerRequest, StopPodSandboxRequest,
    runtime_service_client::RuntimeServiceClient,
};
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};

use crate::cluster::machine::Machine;

/// How often a container is looked at until it has ended.
const POLL: Duration = Duration::from_millis(20);
/// What is left is removed with so many calls at a time.
const REMOVED_AT_ONCE: usize = 4;
/// How long one container may run.
const LIMIT: Duration = Duration::from_mins(5);

/// What the sandboxes of the loop say that their pods' namespace is.
const NAMESPACE: &str = "cri-loop";

/// What each round of the loop starts: one sandbox with one container.
#[derive(Debug, Clone)]
pub struct Workload {
    /// Image of the container.
    pub image: String,
    /// Arguments to its entrypoint.
    pub arguments: Vec<String>,
    /// A host path, and where the container sees it.
    pub mount: Option<(PathBuf, PathBuf)>,
    /// Parent of the sandboxes' cgroups.
    pub cgroup_parent: String,
    /// A folder, as the runtime sees it, for the containers' logs.
    pub logs: PathBuf,
}

/// A connection to a machine's container runtime.
///
/// # Errors
/// When nothing answers on its socket.
pub async fn connect(machine: &Machine) -> anyhow::Result<RuntimeServiceClient<Channel>> {
    let socket = machine.live_path("/run/containerd/containerd.sock");
    let path = socket.clone();
    let connector = tower::service_fn(move |_| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    });
    // The address is never looked at: the connector knows the socket.
    let channel = Endpoint::from_static("http://localhost").connect_with_connector(connector).await;
    let channel = channel.with_context(|| format!("no container runtime answers on {}", socket.display()))?;
    Ok(RuntimeServiceClient::new(channel))
}

/// All sandboxes and containers that a runtime has, whosever they are.
///
/// # Errors
/// When the runtime doesn't answer.
pub async fn listed(
    client: &mut RuntimeServiceClient<Channel>,
) -> anyhow::Result<(Vec<PodSandbox>, Vec<Container>)> {
    let request = ListPodSandboxRequest { filter: Some(PodSandboxFilter::default()) };
    let sandboxes = client.list_pod_sandbox(request).await.context("ListPodSandbox failed")?.into_inner();
    let request = ListContainersRequest { filter: Some(ContainerFilter::default()) };
    let containers = client.list_containers(request).await.context("ListContainers failed")?.into_inner();
    Ok((sandboxes.items, containers.containers))
}

/// When what a round has made is removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Removal {
    /// In the round.
    Within,
    /// After all rounds, when the clock has stopped: a round only stops its sandbox, as a node does with a pod that has ended.
    After,
}

/// Runs `pods` rounds, `in_flight` at a time, and tells how long that took. Every round runs a sandbox, creates and starts the container,
/// waits for its end, and stops or removes both.
///
/// # Errors
/// When the runtime refuses something or a container fails. What other rounds started then stays.
pub async fn run(
    client: &RuntimeServiceClient<Channel>,
    workload: &Workload,
    pods: usize,
    in_flight: usize,
    removal: Removal,
) -> anyhow::Result<Duration> {
    let begin = Instant::now();
    futures::stream::iter(0..pods)
        .map(|index| {
            let client = client.clone();
            async move {
                round(client, workload, index, removal)
                    .await
                    .with_context(|| format!("in round {index} of the CRI loop"))
            }
        })
        .buffer_unordered(in_flight)
        .try_collect::<()>()
        .await?;
    let elapsed = begin.elapsed();
    if removal == Removal::After {
        remove_stopped(client, NAMESPACE).await?;
    }
    Ok(elapsed)
}

/// Removes all sandboxes of a namespace's pods that have been stopped, with what is in them, until none is left. Their number at first.
///
/// # Errors
/// When the runtime still refuses after a minute.
pub async fn remove_stopped(
    client: &RuntimeServiceClient<Channel>,
    namespace: &str,
) -> anyhow::Result<usize> {
    let mut client = client.clone();
    let (mut first, begin) = (None, Instant::now());
    loop {
        let stopped = PodSandboxStateValue { state: PodSandboxState::SandboxNotready.into() };
        let filter = PodSandboxFilter { state: Some(stopped), ..Default::default() };
        let request = ListPodSandboxRequest { filter: Some(filter) };
        let mut listed =
            client.list_pod_sandbox(request).await.context("ListPodSandbox failed")?.into_inner().items;
        listed.retain(|sandbox| sandbox.metadata.as_ref().is_some_and(|of| of.namespace == namespace));
        let count = *first.get_or_insert(listed.len());
        if listed.is_empty() {
            return Ok(count);
        }
        // The node removes them, too: one of both is refused, and the next list tells.
        let removals = listed.into_iter().map(|sandbox| {
            let mut client = client.clone();
            async move { remove_sandbox(&mut client, &sandbox.id).await }
        });
        let removed: Vec<_> =
            futures::stream::iter(removals).buffer_unordered(REMOVED_AT_ONCE).collect().await;
        if begin.elapsed() > Duration::from_mins(1) {
            removed.into_iter().collect::<anyhow::Result<()>>()?;
        }
    }
}

async fn remove_sandbox(client: &mut RuntimeServiceClient<Channel>, id: &str) -> anyhow::Result<()> {
    let remove = RemovePodSandboxRequest { pod_sandbox_id: id.to_owned() };
    client.remove_pod_sandbox(remove).await.context("RemovePodSandbox failed")?;
    Ok(())
}

async fn round(
    mut client: RuntimeServiceClient<Channel>,
    workload: &Workload,
    index: usize,
    removal: Removal,
) -> anyhow::Result<()> {
    let sandbox_config = sandbox(workload, index);
    let request =
        RunPodSandboxRequest { config: Some(sandbox_config.clone()), runtime_handler: String::new() };
    let sandbox =
        client.run_pod_sandbox(request).await.context("RunPodSandbox failed")?.into_inner().pod_sandbox_id;
    let outcome = run_container(&mut client, workload, index, &sandbox, sandbox_config, removal).await;
    // Also after a failure, which would otherwise leave its sandbox behind.
    let stop = StopPodSandboxRequest { pod_sandbox_id: sandbox.clone() };
    client.stop_pod_sandbox(stop).await.context("StopPodSandbox failed")?;
    if removal == Removal::Within {
        remove_sandbox(&mut client, &sandbox).await?;
    }
    outcome
}

async fn run_container(
    client: &mut RuntimeServiceClient<Channel>,
    workload: &Workload,
    index: usize,
    sandbox: &str,
    sandbox_config: PodSandboxConfig,
    removal: Removal,
) -> anyhow::Result<()> {
    let request = CreateContainerRequest {
        pod_sandbox_id: sandbox.to_owned(),
        config: Some(container(workload, index)),
        sandbox_config: Some(sandbox_config),
    };
    let id =
        client.create_container(request).await.context("CreateContainer failed")?.into_inner().container_id;
    let start = StartContainerRequest { container_id: id.clone() };
    client.start_container(start).await.context("StartContainer failed")?;
    let begin = Instant::now();
    let ended = loop {
        let request = ContainerStatusRequest { container_id: id.clone(), verbose: false };
        let status =
            client.container_status(request).await.context("ContainerStatus failed")?.into_inner().status;
        let status = status.context("ContainerStatus answered without a status")?;
        if status.state() == ContainerState::ContainerExited {
            break status;
        }
        if begin.elapsed() > LIMIT {
            bail!("the container still runs after {} s", LIMIT.as_secs());
        }
        tokio::time::sleep(POLL).await;
    };
    if ended.exit_code != 0 {
        bail!(
            "the container ended with {} ({}); its log is {}",
            ended.exit_code,
            ended.reason,
            ended.log_path
        );
    }
    if removal == Removal::Within {
        let remove = RemoveContainerRequest { container_id: id };
        client.remove_container(remove).await.context("RemoveContainer failed")?;
    }
    Ok(())
}

fn sandbox(workload: &Workload, index: usize) -> PodSandboxConfig {
    let name = format!("cri-loop-{index}");
    PodSandboxConfig {
        metadata: Some(PodSandboxMetadata {
            // Unique in the runtime, also beside another loop.
            uid: format!("{name}-{}", std::process::id()),
            name: name.clone(),
            namespace: NAMESPACE.to_owned(),
            attempt: 0,
        }),
        hostname: name,
        log_directory: workload.logs.display().to_string(),
        linux: Some(LinuxPodSandboxConfig {
            cgroup_parent: workload.cgroup_parent.clone(),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn container(workload: &Workload, index: usize) -> ContainerConfig {
    let variable = |key: &str, value: String| KeyValue { key: key.to_owned(), value };
    ContainerConfig {
        metadata: Some(ContainerMetadata { name: "main".to_owned(), attempt: 0 }),
        image: Some(ImageSpec {
            image: workload.image.clone(),
            annotations: HashMap::default(),
            ..Default::default()
        }),
        args: workload.arguments.clone(),
        envs: vec![
            variable("JOB_COMPLETION_INDEX", index.to_string()),
            variable("NODE_NAME", "a bare CRI loop".to_owned()),
        ],
        mounts: workload
            .mount
            .iter()
            .map(|(host, container)| Mount {
                host_path: host.display().to_string(),
                container_path: container.display().to_string(),
                ..Default::default()
            })
            .collect(),
        log_path: format!("{index}.log"),
        linux: Some(LinuxContainerConfig::default()),
        ..Default::default()
    }
}
