//! A bare tonic server: what a call over a Unix socket costs when nothing is decided. It answers with messages that it was given.

use std::{path::Path, sync::Arc};

use anyhow::Context as _;
use futures::stream::{self, BoxStream};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
    service::TowerToHyperService,
};
use spillway_proto::deviceplugin::{
    AllocateRequest, AllocateResponse, DevicePluginOptions, Empty, ListAndWatchResponse,
    PreStartContainerRequest, PreStartContainerResponse, PreferredAllocationRequest,
    PreferredAllocationResponse,
    device_plugin_server::{DevicePlugin, DevicePluginServer},
};
use tokio::{net::UnixListener, task::JoinSet};
use tonic::{Request, Response, Status};

/// Where the messages lie, beside the socket, as their bytes.
pub(crate) const ALLOCATE: &str = "allocate.bin";
pub(crate) const PREFERRED: &str = "preferred.bin";

struct Echo {
    allocate: Arc<AllocateResponse>,
    preferred: Arc<PreferredAllocationResponse>,
}

/// Serves until it is killed.
pub(crate) async fn serve(socket: &Path) -> anyhow::Result<()> {
    let folder = socket.parent().context("the socket is in no folder")?;
    let read = |name: &str| std::fs::read(folder.join(name)).with_context(|| format!("can't read {name}"));
    let echo = Echo {
        allocate: Arc::new(prost::Message::decode(&*read(ALLOCATE)?)?),
        preferred: Arc::new(prost::Message::decode(&*read(PREFERRED)?)?),
    };
    let listener = UnixListener::bind(socket).context("can't listen")?;
    let service = TowerToHyperService::new(DevicePluginServer::new(echo));
    let mut connections = JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await.context("can't accept a connection")?;
        let service = service.clone();
        connections.spawn(async move {
            let builder = auto::Builder::new(TokioExecutor::new()).http2_only();
            let _ = builder.serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

#[tonic::async_trait]
impl DevicePlugin for Echo {
    type ListAndWatchStream = BoxStream<'static, Result<ListAndWatchResponse, Status>>;

    async fn get_device_plugin_options(
        &self,
        _: Request<Empty>,
    ) -> Result<Response<DevicePluginOptions>, Status> {
        Ok(Response::new(DevicePluginOptions::default()))
    }

    async fn list_and_watch(&self, _: Request<Empty>) -> Result<Response<Self::ListAndWatchStream>, Status> {
        Ok(Response::new(Box::pin(stream::pending())))
    }

    async fn get_preferred_allocation(
        &self,
        _: Request<PreferredAllocationRequest>,
    ) -> Result<Response<PreferredAllocationResponse>, Status> {
        Ok(Response::new((*self.preferred).clone()))
    }

    async fn allocate(&self, _: Request<AllocateRequest>) -> Result<Response<AllocateResponse>, Status> {
        Ok(Response::new((*self.allocate).clone()))
    }

    async fn pre_start_container(
        &self,
        _: Request<PreStartContainerRequest>,
    ) -> Result<Response<PreStartContainerResponse>, Status> {
        Ok(Response::new(PreStartContainerResponse {}))
    }
}
