//! A stand-in for the kubelet's side of the device plugin API: a registration server that dials back, opens ListAndWatch and keeps
//! what it is told. Like the real one (`pkg/kubelet/cm/devicemanager/plugin/v1beta1/handler.go`) it keys clients by resource name,
//! and when any stream ends it disconnects the resource's *current* client.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use futures::StreamExt as _;
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
    service::TowerToHyperService,
};
use spillway_proto::deviceplugin::{
    Device, DevicePluginOptions, Empty, RegisterRequest,
    device_plugin_client::DevicePluginClient,
    registration_server::{Registration, RegistrationServer},
};
use tokio::{
    net::UnixListener,
    sync::watch,
    task::{AbortHandle, JoinSet},
    time::timeout,
};
use tonic::{
    Request, Response, Status,
    transport::{Channel, Endpoint},
};

/// What the stand-in has been told.
#[derive(Debug, Clone, Default)]
pub(crate) struct Seen {
    /// Register calls that succeeded, by resource.
    pub(crate) registrations: BTreeMap<String, usize>,
    /// The list of each resource whose stream is open.
    pub(crate) lists: BTreeMap<String, Vec<Device>>,
    /// Lists received in all, by resource.
    pub(crate) received: BTreeMap<String, usize>,
    /// What each resource's plugin says that it can do: when it registers, and when it is asked, which is what counts.
    pub(crate) options: BTreeMap<String, (Option<DevicePluginOptions>, DevicePluginOptions)>,
}

impl Seen {
    /// IDs and health of a resource whose stream is open.
    pub(crate) fn devices(&self, resource: &str) -> Option<Vec<(&str, &str)>> {
        let list = self.lists.get(resource)?;
        Some(list.iter().map(|device| (device.id.as_str(), device.health.as_str())).collect())
    }
}

#[derive(Default)]
struct Clients {
    tasks: JoinSet<()>,
    current: BTreeMap<String, (AbortHandle, Channel)>,
}

#[derive(Clone)]
struct Handler {
    folder: PathBuf,
    seen: Arc<watch::Sender<Seen>>,
    clients: Arc<Mutex<Clients>>,
}

/// A running stand-in. Dropping it is a kubelet killed: connections break, the socket file stays.
pub(crate) struct StandinKubelet {
    handler: Handler,
    serving: JoinSet<()>,
}

impl StandinKubelet {
    /// What a starting kubelet does: removes every socket in the folder, then listens.
    pub(crate) fn start(folder: &Path) -> Self {
        for entry in std::fs::read_dir(folder).unwrap().flatten() {
            use std::os::unix::fs::FileTypeExt as _;
            if entry.file_type().unwrap().is_socket() {
                std::fs::remove_file(entry.path()).unwrap();
            }
        }
        let handler = Handler {
            folder: folder.to_owned(),
            seen: Arc::new(watch::Sender::new(Seen::default())),
            clients: Arc::default(),
        };
        let mut kubelet = Self { handler, serving: JoinSet::new() };
        kubelet.listen();
        kubelet
    }

    fn listen(&mut self) {
        let listener = UnixListener::bind(self.handler.folder.join("kubelet.sock")).unwrap();
        let service = TowerToHyperService::new(RegistrationServer::new(self.handler.clone()));
        self.serving.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let service = service.clone();
                connections.spawn(async move {
                    let builder = auto::Builder::new(TokioExecutor::new()).http2_only();
                    let _ = builder.serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
    }

    /// Replaces the socket without a restart: open streams stay open.
    pub(crate) fn recreate_socket(&mut self) {
        let _ = std::fs::remove_file(self.handler.folder.join("kubelet.sock"));
        self.listen();
    }

    /// Hangs up on one plugin, as after an error on its stream.
    pub(crate) fn drop_stream(&self, resource: &str) {
        self.handler.disconnect(resource);
    }

    /// A client to the plugin that is registered for `resource`.
    pub(crate) fn plugin(&self, resource: &str) -> DevicePluginClient<Channel> {
        let clients = self.handler.clients.lock().unwrap();
        DevicePluginClient::new(clients.current[resource].1.clone())
    }

    /// What was seen so far.
    #[allow(dead_code, reason = "not every test looks without waiting")]
    pub(crate) fn seen(&self) -> Seen {
        self.handler.seen.borrow().clone()
    }

    /// Waits until what was seen satisfies `condition`.
    pub(crate) async fn until(&self, what: &str, mut condition: impl FnMut(&Seen) -> bool) -> Seen {
        let mut seen = self.handler.seen.subscribe();
        let waited = timeout(Duration::from_secs(20), seen.wait_for(|seen| condition(seen))).await;
        let Ok(seen) = waited else { panic!("never saw: {what}; last: {:#?}", *self.handler.seen.borrow()) };
        seen.unwrap().clone()
    }
}

impl Drop for StandinKubelet {
    fn drop(&mut self) {
        let mut clients = self.handler.clients.lock().unwrap();
        clients.tasks.abort_all();
        clients.current.clear();
    }
}

impl Handler {
    fn disconnect(&self, resource: &str) {
        let client = self.clients.lock().unwrap().current.remove(resource);
        if let Some((task, _channel)) = client {
            task.abort();
        }
        self.seen.send_modify(|seen| {
            seen.lists.remove(resource);
        });
    }
}

#[tonic::async_trait]
impl Registration for Handler {
    async fn register(&self, request: Request<RegisterRequest>) -> Result<Response<Empty>, Status> {
        let request = request.into_inner();
        if request.version != "v1beta1" || request.endpoint.contains('/') {
            return Err(Status::invalid_argument(format!("{request:?}")));
        }
        let socket = self.folder.join(&request.endpoint);
        let channel = Endpoint::from_shared(format!("unix://{}", socket.display()))
            .unwrap()
            .connect()
            .await
            .map_err(|error| Status::unavailable(format!("{}: {error}", socket.display())))?;
        let mut client = DevicePluginClient::new(channel.clone());
        let options = client.get_device_plugin_options(Empty {}).await?.into_inner();

        let (handler, resource) = (self.clone(), request.resource_name);
        let mut clients = self.clients.lock().unwrap();
        let name = resource.clone();
        let task = clients.tasks.spawn(async move {
            if let Ok(stream) = client.list_and_watch(Empty {}).await {
                let mut stream = stream.into_inner();
                while let Some(Ok(list)) = stream.next().await {
                    handler.seen.send_modify(|seen| {
                        seen.lists.insert(resource.clone(), list.devices);
                        *seen.received.entry(resource.clone()).or_default() += 1;
                    });
                }
            }
            handler.disconnect(&resource);
        });
        clients.current.insert(name.clone(), (task, channel));
        self.seen.send_modify(|seen| {
            *seen.registrations.entry(name.clone()).or_default() += 1;
            seen.options.insert(name, (request.options, options));
        });
        Ok(Response::new(Empty {}))
    }
}
