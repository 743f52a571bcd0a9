//! One plugin's gRPC server on its own socket. The only place that makes `tonic::Status`. It answers from the inventory and keeps
//! nothing; a server lives for one registration and is replaced by the next.
//!
//! Connections are owned here, because the order of things at the end matters to the kubelet: streams end, the kubelet hangs up, and
//! only then may a successor register (`handler.go`, `runClient`: the end of an old stream disconnects whichever client is current).

use std::{
    fmt, io,
    os::unix::fs::{FileTypeExt as _, MetadataExt as _},
    path::{Path, PathBuf},
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use futures::{Stream, stream};
use hyper::server::conn::http2;
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    service::TowerToHyperService,
};
use spillway_proto::deviceplugin::{
    AllocateRequest, AllocateResponse, Device as WireDevice, DevicePluginOptions, Empty,
    ListAndWatchResponse, NumaNode, PreStartContainerRequest, PreStartContainerResponse,
    PreferredAllocationRequest, PreferredAllocationResponse, TopologyInfo,
    device_plugin_server::{DevicePlugin, DevicePluginServer},
};
use tokio::{net::UnixListener, sync::watch, task::JoinSet, time::timeout};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use crate::{
    allocate::{self, AllocateError, Manner},
    config::{Config, ReplicaChoice, Spread},
    device::{Device, DeviceId, ResourceName},
    inventory::Inventory,
    metrics::Metrics,
    preference::{self, Cards, Policy, Replicas},
};

/// How long a client whose stream has ended may take to hang up.
const HANG_UP_WITHIN: Duration = Duration::from_secs(1);
/// `sun_path` holds 108 bytes, the last of them zero.
const PATH_LIMIT: usize = 107;

/// Something to be done, or to be waited for, before a container that holds devices starts. The kubelet asks at every start of every
/// such container, init containers and restarts included, waits for 30 s at most, and tries again after an error.
#[tonic::async_trait]
pub trait PreStart: fmt::Debug + Send + Sync {
    /// Whether it has to do with containers that hold this resource. Where nothing has, the kubelet is told not to ask: it would not start a
    /// container while the agent is away.
    fn concerns(&self, _resource: &ResourceName) -> bool {
        true
    }

    /// A container that was given `devices` of `resource` is about to start. It is not said which one.
    ///
    /// # Errors
    /// Why it must not start yet, for people: the kubelet makes it the container's state.
    async fn before_start(&self, resource: &ResourceName, devices: &[DeviceId]) -> Result<(), String>;
}

/// What all plugins share.
#[derive(Debug, Clone)]
pub struct Shared {
    /// What there is.
    pub inventory: watch::Receiver<Inventory>,
    /// What is to be done before a container starts, in this order. With none the kubelet is told not to ask.
    pub before_start: Vec<Arc<dyn PreStart>>,
    /// What the user wants now.
    pub configs: watch::Receiver<Arc<Config>>,
    /// What is counted.
    pub metrics: Metrics,
}

impl Shared {
    /// What the plugin of `resource` offers beyond the mandatory.
    pub(crate) fn options(&self, resource: &ResourceName) -> DevicePluginOptions {
        DevicePluginOptions {
            pre_start_required: self.before_start.iter().any(|step| step.concerns(resource)),
            get_preferred_allocation_available: true,
        }
    }
}

/// Why a plugin can't serve.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The path does not fit a socket address.
    #[error("the socket path {path} has more than {PATH_LIMIT} bytes: use a shorter device plugin folder")]
    TooLong {
        /// The socket.
        path: PathBuf,
    },
    /// The system refuses the socket.
    #[error("can't listen on {path}")]
    Bind {
        /// The socket.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
}

/// Tells one socket file from its successor of the same name: inode numbers are reused at once, times are not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SocketId {
    device: u64,
    inode: u64,
    made: (i64, i64),
}

impl SocketId {
    /// The socket at `path`, if there is one.
    pub(crate) fn of(path: &Path) -> Option<Self> {
        let meta = std::fs::metadata(path).ok().filter(|meta| meta.file_type().is_socket())?;
        Some(Self { device: meta.dev(), inode: meta.ino(), made: (meta.mtime(), meta.mtime_nsec()) })
    }
}

/// How many ListAndWatch streams there have been.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Streams {
    pub(crate) opened: usize,
    pub(crate) ended: usize,
}

/// A listening plugin. Dropping it cuts every connection.
#[derive(Debug)]
pub(crate) struct Server {
    path: PathBuf,
    id: Option<SocketId>,
    streams: watch::Receiver<Streams>,
    ending: CancellationToken,
    tasks: JoinSet<()>,
}

impl Server {
    /// Serves `resource` on a new socket at `path`; what lies there is removed.
    pub(crate) fn bind(path: PathBuf, resource: ResourceName, shared: Shared) -> Result<Self, ServerError> {
        if path.as_os_str().len() > PATH_LIMIT {
            return Err(ServerError::TooLong { path });
        }
        let cleared = std::fs::remove_file(&path).or_else(|error| match error.kind() {
            io::ErrorKind::NotFound => Ok(()),
            _ => Err(error),
        });
        let listener = match cleared.and_then(|()| UnixListener::bind(&path)) {
            Ok(listener) => listener,
            Err(source) => return Err(ServerError::Bind { path, source }),
        };
        let ending = CancellationToken::new();
        let (streams, seen) = watch::channel(Streams::default());
        let plugin = Plugin { resource, shared, streams, ending: ending.clone() };
        let mut tasks = JoinSet::new();
        tasks.spawn(accept(listener, plugin, ending.clone()));
        Ok(Self { id: SocketId::of(&path), path, streams: seen, ending, tasks })
    }

    /// Whether the socket file is still the one that was bound.
    pub(crate) fn in_place(&self) -> bool {
        self.id.is_some() && SocketId::of(&self.path) == self.id
    }

    /// The streams so far.
    pub(crate) fn streams(&self) -> watch::Receiver<Streams> {
        self.streams.clone()
    }

    /// Ends all streams, waits until the clients have hung up, and removes the socket.
    pub(crate) async fn stop(mut self) {
        self.ending.cancel();
        while self.tasks.join_next().await.is_some() {}
        if self.in_place() {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

async fn accept(listener: UnixListener, plugin: Plugin, ending: CancellationToken) {
    let service = TowerToHyperService::new(DevicePluginServer::new(plugin));
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            () = ending.cancelled() => break,
            Some(_) = connections.join_next() => continue,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                let service = service.clone();
                connections.spawn(async move {
                    let builder = http2::Builder::new(TokioExecutor::new());
                    if let Err(error) = builder.serve_connection(TokioIo::new(stream), service).await {
                        tracing::debug!(%error, "a connection to the plugin broke");
                    }
                });
            }
            Err(error) => {
                tracing::warn!(%error, "can't accept a connection to the plugin");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
    let all_hung_up = async { while connections.join_next().await.is_some() {} };
    // Whoever stays longer is cut off with the set.
    let _ = timeout(HANG_UP_WITHIN, all_hung_up).await;
}

struct Plugin {
    resource: ResourceName,
    shared: Shared,
    streams: watch::Sender<Streams>,
    ending: CancellationToken,
}

/// Counts a stream's end, whichever side ended it.
struct Open(watch::Sender<Streams>);

impl Open {
    fn new(streams: &watch::Sender<Streams>) -> Self {
        streams.send_modify(|streams| streams.opened += 1);
        Self(streams.clone())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.send_modify(|streams| streams.ended += 1);
    }
}

struct Watching {
    resource: ResourceName,
    inventory: watch::Receiver<Inventory>,
    /// What the list sent last was made of.
    sent: Option<Inventory>,
    ending: CancellationToken,
    _open: Open,
}

impl Watching {
    /// The next list that differs from the one sent before; none when it is time to end.
    async fn next(&mut self) -> Option<Vec<WireDevice>> {
        loop {
            let now = self.inventory.borrow_and_update().clone();
            let known = self.sent.as_ref().is_some_and(|sent| {
                sent.slice(&self.resource).map(entry).eq(now.slice(&self.resource).map(entry))
            });
            let list = (!known).then(|| wire(now.slice(&self.resource)));
            self.sent = Some(now);
            if list.is_some() {
                return list;
            }
            tokio::select! {
                // A last change goes out before the end: the kubelet must learn that a resource has no devices any more.
                biased;
                changed = self.inventory.changed() => changed.ok()?,
                () = self.ending.cancelled() => return None,
            }
        }
    }
}

/// What the kubelet is told of a device: its ID, whether it is healthy, its NUMA node.
fn entry(device: &Device) -> (&DeviceId, bool, Option<u32>) {
    (&device.id, device.health.is_healthy(), device.accelerator.numa_node)
}

pub(crate) fn wire<'a>(slice: impl Iterator<Item = &'a Device>) -> Vec<WireDevice> {
    slice
        .map(entry)
        .map(|(id, healthy, numa_node)| WireDevice {
            id: id.to_string(),
            health: if healthy { "Healthy" } else { "Unhealthy" }.to_owned(),
            topology: numa_node.map(|node| TopologyInfo { nodes: vec![NumaNode { id: i64::from(node) }] }),
        })
        .collect()
}

#[tonic::async_trait]
impl DevicePlugin for Plugin {
    type ListAndWatchStream = Pin<Box<dyn Stream<Item = Result<ListAndWatchResponse, Status>> + Send>>;

    async fn get_device_plugin_options(
        &self,
        _: Request<Empty>,
    ) -> Result<Response<DevicePluginOptions>, Status> {
        Ok(Response::new(self.shared.options(&self.resource)))
    }

    async fn list_and_watch(&self, _: Request<Empty>) -> Result<Response<Self::ListAndWatchStream>, Status> {
        let watching = Watching {
            resource: self.resource.clone(),
            inventory: self.shared.inventory.clone(),
            sent: None,
            ending: self.ending.clone(),
            _open: Open::new(&self.streams),
        };
        let lists = stream::unfold(watching, |mut watching| async move {
            let devices = watching.next().await?;
            Some((Ok(ListAndWatchResponse { devices }), watching))
        });
        Ok(Response::new(Box::pin(lists)))
    }

    async fn get_preferred_allocation(
        &self,
        request: Request<PreferredAllocationRequest>,
    ) -> Result<Response<PreferredAllocationResponse>, Status> {
        let inventory = self.shared.inventory.borrow();
        let policy = policy(&self.shared.configs.borrow());
        let container_responses = request
            .into_inner()
            .container_requests
            .into_iter()
            .map(|container| {
                let device_ids = preference::prefer(
                    inventory.slice(&self.resource),
                    &container.available_device_ids,
                    &container.must_include_device_ids,
                    usize::try_from(container.allocation_size).unwrap_or(0),
                    policy,
                );
                spillway_proto::deviceplugin::ContainerPreferredAllocationResponse { device_ids }
            })
            .collect();
        Ok(Response::new(PreferredAllocationResponse { container_responses }))
    }

    async fn allocate(
        &self,
        request: Request<AllocateRequest>,
    ) -> Result<Response<AllocateResponse>, Status> {
        let (inventory, config) = (self.shared.inventory.borrow(), self.shared.configs.borrow());
        let manner = Manner::of(&config, &self.resource);
        let mut container_responses = Vec::new();
        for container in request.into_inner().container_requests {
            let granted = allocate::allocate(
                manner,
                &self.resource,
                inventory.slice(&self.resource),
                &container.device_ids,
            );
            self.shared.metrics.allocation(&self.resource, granted.is_ok());
            match granted {
                Ok(granted) => {
                    tracing::info!(resource = %self.resource, devices = ?container.device_ids, "devices given to a container");
                    container_responses.push(granted);
                }
                Err(error) => {
                    tracing::warn!(resource = %self.resource, devices = ?container.device_ids, %error, "no devices given");
                    return Err(status(&error));
                }
            }
        }
        Ok(Response::new(AllocateResponse { container_responses }))
    }

    async fn pre_start_container(
        &self,
        request: Request<PreStartContainerRequest>,
    ) -> Result<Response<PreStartContainerResponse>, Status> {
        let ids = request.into_inner().device_ids;
        let devices = ids.iter().map(DeviceId::new).collect::<Result<Vec<_>, _>>();
        let devices = devices.map_err(|error| Status::invalid_argument(error.to_string()))?;
        for step in &self.shared.before_start {
            if let Err(why) = step.before_start(&self.resource, &devices).await {
                tracing::warn!(resource = %self.resource, devices = ?ids, why, "a container is held back");
                return Err(Status::failed_precondition(why));
            }
        }
        Ok(Response::new(PreStartContainerResponse {}))
    }
}

fn policy(config: &Config) -> Policy {
    Policy {
        replicas: match config.allocation.replicas {
            ReplicaChoice::Distributed => Replicas::Distributed,
            ReplicaChoice::Packed => Replicas::Packed,
        },
        cards: match config.fpga.allocation {
            Spread::None => Cards::None,
            Spread::Balanced => Cards::Balanced,
            Spread::Packed => Cards::Packed,
        },
    }
}

fn status(error: &AllocateError) -> Status {
    match error {
        AllocateError::Empty
        | AllocateError::Unknown(_)
        | AllocateError::Duplicate(_)
        | AllocateError::SeveralShares { .. } => Status::invalid_argument(error.to_string()),
        AllocateError::Unhealthy { .. } => Status::failed_precondition(error.to_string()),
    }
}
