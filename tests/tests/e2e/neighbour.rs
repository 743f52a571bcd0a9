//! Beside NVIDIA's device plugin, and moving from it to the agent: the devices are left to it as long as it is there, and pods that got
//! theirs from it keep them. The same of a plugin that nobody knows. Both are stand-ins: device plugins of the same resource. And with a
//! driver that a container brings.

use std::{
    os::unix::fs::FileTypeExt as _,
    path::PathBuf,
    pin::Pin,
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use futures::{Stream, stream};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
    service::TowerToHyperService,
};
use spillway_proto::deviceplugin::{
    AllocateRequest, AllocateResponse, ContainerAllocateResponse, Device, DevicePluginOptions, Empty,
    ListAndWatchResponse, PreStartContainerRequest, PreStartContainerResponse, PreferredAllocationRequest,
    PreferredAllocationResponse, RegisterRequest,
    device_plugin_server::{DevicePlugin, DevicePluginServer},
    registration_client::RegistrationClient,
};
use spillway_tests::standin::GpuStandin;
use tokio::{
    net::{UnixListener, UnixStream},
    sync::watch,
    task::JoinSet,
};
use tonic::{Request, Response, Status, transport::Endpoint};

use crate::{
    Test,
    agent::GPU,
    harness::{DEDICATED, Namespace, Pool, agents, held, metric, wait, wait_gpus},
    isolation::{LET_THROUGH, expect},
};

pub(crate) const TESTS: &[Test] = &[
    ("node::pods_of_nvidias_plugin_survive_the_move", pods_of_nvidias_plugin_survive_the_move),
    ("node::a_driver_container_serves_as_well", a_driver_container_serves),
];

const FOLDER: &str = "/var/lib/kubelet/device-plugins";

/// A stand-in for somebody else's plugin of `nvidia.com/gpu`; gone when it is dropped.
pub(crate) struct Standin {
    stage: watch::Sender<Stage>,
    thread: Option<JoinHandle<anyhow::Result<()>>>,
    socket: PathBuf,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Listening,
    Registered,
    Gone,
}

#[derive(Clone)]
struct Service {
    stage: watch::Receiver<Stage>,
    devices: Vec<String>,
}

#[tonic::async_trait]
impl DevicePlugin for Service {
    type ListAndWatchStream = Pin<Box<dyn Stream<Item = Result<ListAndWatchResponse, Status>> + Send>>;

    async fn get_device_plugin_options(
        &self,
        _: Request<Empty>,
    ) -> Result<Response<DevicePluginOptions>, Status> {
        Ok(Response::new(DevicePluginOptions::default()))
    }

    async fn list_and_watch(&self, _: Request<Empty>) -> Result<Response<Self::ListAndWatchStream>, Status> {
        let device =
            |id: &String| Device { id: id.clone(), health: "Healthy".to_owned(), ..Device::default() };
        let list = ListAndWatchResponse { devices: self.devices.iter().map(device).collect() };
        let end = stream::once({
            let mut stage = self.stage.clone();
            async move {
                let _ = stage.wait_for(|stage| *stage == Stage::Gone).await;
                Err(Status::cancelled("the plugin ends"))
            }
        });
        Ok(Response::new(Box::pin(stream::select(stream::iter([Ok(list)]), end))))
    }

    async fn get_preferred_allocation(
        &self,
        _: Request<PreferredAllocationRequest>,
    ) -> Result<Response<PreferredAllocationResponse>, Status> {
        Err(Status::unimplemented("not offered"))
    }

    async fn allocate(
        &self,
        request: Request<AllocateRequest>,
    ) -> Result<Response<AllocateResponse>, Status> {
        let requests = request.into_inner().container_requests;
        let container_responses = requests
            .into_iter()
            .map(|request| ContainerAllocateResponse {
                envs: [("NVIDIA_VISIBLE_DEVICES".to_owned(), request.device_ids.join(","))].into(),
                ..ContainerAllocateResponse::default()
            })
            .collect();
        Ok(Response::new(AllocateResponse { container_responses }))
    }

    async fn pre_start_container(
        &self,
        _: Request<PreStartContainerRequest>,
    ) -> Result<Response<PreStartContainerResponse>, Status> {
        Err(Status::unimplemented("not offered"))
    }
}

impl Standin {
    /// One that listens, and is not registered yet.
    pub(crate) fn start(pool: &Pool, socket: &'static str, devices: Vec<String>) -> anyhow::Result<Self> {
        let folder = pool.cluster.machine(DEDICATED)?.live_path(FOLDER);
        let (stage, stages) = watch::channel(Stage::Listening);
        let path = folder.join(socket);
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(serve(folder, socket, Service { stage: stages, devices }))
        });
        let standin = Self { stage, thread: Some(thread), socket: path };
        wait("the stand-in's socket", || {
            let made =
                std::fs::symlink_metadata(&standin.socket).is_ok_and(|meta| meta.file_type().is_socket());
            Ok(made.then_some(()))
        })?;
        Ok(standin)
    }

    /// Registers with the kubelet, soon.
    pub(crate) fn register(&self) {
        self.stage.send_replace(Stage::Registered);
    }

    /// Ends it, and says what failed in it.
    pub(crate) fn end(&mut self) -> anyhow::Result<()> {
        self.stage.send_replace(Stage::Gone);
        let result = match self.thread.take() {
            Some(thread) => thread.join().unwrap_or_else(|_| Err(anyhow::anyhow!("it panicked"))),
            None => Ok(()),
        };
        let _ = std::fs::remove_file(&self.socket);
        result
    }
}

impl Drop for Standin {
    fn drop(&mut self) {
        let _ = self.end();
    }
}

async fn serve(folder: PathBuf, socket: &str, service: Service) -> anyhow::Result<()> {
    let listener = UnixListener::bind(folder.join(socket)).context("can't bind the stand-in's socket")?;
    let stage = service.stage.clone();
    let service = TowerToHyperService::new(DevicePluginServer::new(service));
    let mut end = stage.clone();
    let server = async {
        // They end with it.
        let mut connections = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                _ = end.wait_for(|stage| *stage == Stage::Gone) => return,
            };
            if let Ok((stream, _)) = accepted {
                let service = service.clone();
                connections.spawn(async move {
                    let builder = auto::Builder::new(TokioExecutor::new());
                    let _ = builder.serve_connection(TokioIo::new(stream), service).await;
                });
            }
        }
    };
    let mut begin = stage;
    let register = async {
        if begin.wait_for(|stage| *stage != Stage::Listening).await.is_ok_and(|stage| *stage == Stage::Gone) {
            return Ok(());
        }
        let kubelet = folder.join("kubelet.sock");
        let connect = tower::service_fn(move |_| {
            let kubelet = kubelet.clone();
            async move { UnixStream::connect(kubelet).await.map(TokioIo::new) }
        });
        let channel = Endpoint::from_static("http://kubelet").connect_with_connector(connect).await?;
        let request = RegisterRequest {
            version: "v1beta1".to_owned(),
            endpoint: socket.to_owned(),
            resource_name: "nvidia.com/gpu".to_owned(),
            options: None,
        };
        RegistrationClient::new(channel).register(request).await.context("the kubelet refuses")?;
        anyhow::Ok(())
    };
    tokio::join!(server, register).1
}

/// A pod that sleeps with a GPU, and the GPU that it was given.
fn holder(namespace: &Namespace<'_>, name: &str) -> anyhow::Result<String> {
    namespace.holder(name, "nvidia.com/gpu", 1)?;
    namespace.wait_ready(name)?;
    namespace.exec(name, &["sh", "-c", "echo -n $NVIDIA_VISIBLE_DEVICES"])
}

fn wait_metric(pool: &Pool, name: &str, value: i64) -> anyhow::Result<()> {
    wait(&format!("{name} {value}"), || Ok((metric(pool, name)? == Some(value)).then_some(())))
}

/// Waits until the node has so many GPUs to give.
pub(crate) fn wait_allocatable(pool: &Pool, count: &str) -> anyhow::Result<()> {
    wait(&format!("{count} GPUs"), || {
        let path = "jsonpath={.status.allocatable.nvidia\\.com/gpu}";
        Ok((pool.cluster.kubectl(&["get", "node", DEDICATED, "-o", path])? == count).then_some(()))
    })
}

fn pods_of_nvidias_plugin_survive_the_move(pool: &Pool) -> anyhow::Result<()> {
    const REGISTERED: &str = r#"spillway_plugin_registered{resource="nvidia.com/gpu"}"#;
    const CONTESTED: &str = r#"spillway_plugin_contested{resource="nvidia.com/gpu"}"#;
    wait_metric(pool, REGISTERED, 1)?;
    // A socket that nobody listens on is no plugin.
    let dead = pool.cluster.machine(DEDICATED)?.live_path(&format!("{FOLDER}/nvidia-old.sock"));
    drop(std::os::unix::net::UnixListener::bind(&dead)?);
    let dead = tempfile::TempPath::try_from_path(dead)?;

    let both = || (0..2).map(GpuStandin::uuid).collect();
    let mut theirs = Standin::start(pool, "nvidia-gpu.sock", both())?;
    wait_metric(pool, CONTESTED, 1)?;
    wait_metric(pool, REGISTERED, 0)?;
    wait_allocatable(pool, "0")?;
    theirs.register();
    wait_allocatable(pool, "2").context("the stand-in's devices are not offered")?;
    let said = |words: &str| {
        wait(&format!("an event with {words:?}"), || {
            let events = pool.cluster.kubectl(&["-n", "default", "get", "events"])?;
            Ok(events.contains(words).then_some(()))
        })
    };
    said("NVIDIA's device plugin (nvidia-gpu.sock)")?;
    let ready = "{.items[0].status.conditions[?(@.type=='Ready')].status}";
    wait("the agent to be not ready", || Ok((agents(pool, ready)? == "False").then_some(())))?;

    let namespace = pool.namespace("migration")?;
    let first = holder(&namespace, "from-theirs")?;
    let state = "{.status.phase} {.status.containerStatuses[0].containerID} {.status.containerStatuses[0].restartCount}";
    let state = || namespace.kubectl(&["get", "pod", "from-theirs", "-o", &format!("jsonpath={state}")]);
    let before = state()?;

    let begin = Instant::now();
    theirs.end()?;
    wait_metric(pool, REGISTERED, 1).context("it was not taken over")?;
    let gap: Duration = begin.elapsed();
    eprintln!("    taken over after {:.1} s", gap.as_secs_f64());
    wait_allocatable(pool, "2")?;
    let second = holder(&namespace, "from-ours")?;
    ensure!(first != second, "one GPU for two pods: {first}");
    ensure!(state()? == before, "the running pod was touched: {before} became {}", state()?);
    dead.close()?;

    // One that nobody knows, and that calls the GPUs by other names, comes while the agent serves: the kubelet would hand them out twice.
    let mut late = Standin::start(pool, "their-gpu.sock", vec!["0".to_owned(), "1".to_owned()])?;
    late.register();
    wait_metric(pool, CONTESTED, 1).context("a plugin of an unknown name is not noticed")?;
    wait_metric(pool, REGISTERED, 0)?;
    said(
        "another device plugin (the kubelet has nvidia.com/gpu from it; its socket seems to be their-gpu.sock)",
    )?;
    wait_allocatable(pool, "0")?;
    late.end()?;
    wait_metric(pool, REGISTERED, 1).context("it was not taken over")?;
    wait_allocatable(pool, "2")
}

/// As the GPU Operator does it: the driver lies below a container's root, which makes the device nodes in a /dev of its own.
struct DriverContainer<'a>(&'a Pool);

/// Where it is on the machine.
const DRIVER: &str = "/run/nvidia/driver";

impl Drop for DriverContainer<'_> {
    fn drop(&mut self) {
        let back = "if [ -e /run/nvidia/driver/dev/nvidiactl ]; then mv /run/nvidia/driver/dev/nvidia* /dev/; fi; rm -rf /run/nvidia";
        if let Err(error) = self.0.on(DEDICATED, back).and_then(|_| self.0.cluster.install_chart(&[])) {
            eprintln!("    the driver was not put back: {error:#}");
        }
    }
}

fn a_driver_container_serves(pool: &Pool) -> anyhow::Result<()> {
    // The same driver under another root, and no node of its in the host's /dev.
    let driver = DriverContainer(pool);
    pool.on(
        DEDICATED,
        &format!(
            "mkdir -p {DRIVER}; cp -a /opt/spillway-standin/driver/. {DRIVER}; mkdir -p {DRIVER}/dev; mv /dev/nvidia* {DRIVER}/dev/"
        ),
    )?;
    pool.cluster.install_chart(&[
        &format!("agent.nvidia.driverRoot={DRIVER}"),
        "agent.nvidia.driverDev=true",
        "agent.config.flags.plugin.deviceListStrategy={envvar,cdi-annotations}",
    ])?;
    let spec = wait("the CDI specification to name the driver's files", || {
        let file = "/var/run/cdi/k8s.device-plugin.nvidia.com-gpu.json";
        let text = pool.on(DEDICATED, &format!("cat {file} 2>/dev/null || true"))?;
        Ok(text.contains(&format!("{DRIVER}/dev/nvidia0")).then_some(text))
    })?;
    let spec: serde_json::Value = serde_json::from_str(&spec)?;
    let mounts = spec["containerEdits"]["mounts"].as_array().context("it mounts nothing")?;
    ensure!(!mounts.is_empty(), "it mounts nothing");
    for mount in mounts {
        let paths = (mount["hostPath"].as_str(), mount["containerPath"].as_str());
        let (Some(host), Some(own)) = paths else { anyhow::bail!("{mount} lacks a path") };
        ensure!(host.starts_with(DRIVER) && !own.starts_with("/run"), "{mount}");
    }
    wait_gpus(pool, 2)?;
    wait("nobody to hold a GPU any more", || Ok(held(pool, GPU)?.is_empty().then_some(())))?;
    let namespace = pool.namespace("driver-container")?;
    namespace.holder("holder", GPU, 1)?;
    namespace.wait_ready("holder")?;
    // Its own GPU and the control nodes, under the names that every program knows; and the library, by CDI.
    let nodes = namespace.exec("holder", &["sh", "-c", "ls -d /dev/nvidia[0-9]*"])?;
    let own = nodes.trim();
    ensure!(["/dev/nvidia0", "/dev/nvidia1"].contains(&own), "it has {nodes}");
    for node in [own, "/dev/nvidiactl", "/dev/nvidia-uvm"] {
        expect(&namespace, "holder", node, LET_THROUGH)?;
    }
    namespace.exec("holder", &["ls", "/usr/lib/x86_64-linux-gnu/libnvidia-ml.so.1"])?;
    drop(driver);
    wait_gpus(pool, 2)
}
