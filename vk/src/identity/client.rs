//! One client for the life of the process, whatever certificates come and go behind it.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use http::{Request, Response};
use kube::{Client, client::Body};
use tokio::sync::watch;
use tower::{BoxError, Service};

use super::chain;

/// A client that sends each request through the newest one in `current`, waiting for the first. `server` is for errors.
pub(super) fn rotating(current: watch::Receiver<Option<Client>>, server: &http::Uri) -> Client {
    Client::new(Rotating { current, server: server.to_string() }, "default")
}

struct Rotating {
    current: watch::Receiver<Option<Client>>,
    server: String,
}

impl Service<Request<Body>> for Rotating {
    type Response = Response<Body>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let mut current = self.current.clone();
        let server = self.server.clone();
        Box::pin(async move {
            let client = match current.wait_for(Option::is_some).await {
                Ok(client) => client.clone(),
                Err(_) => None,
            };
            // A shutdown came before the first certificate; whoever asks is stopped as well.
            let Some(client) = client else { return std::future::pending().await };
            client.send(request).await.map_err(|error| match error {
                kube::Error::Service(cause) => {
                    format!("can't reach the API server {server}: {}", chain(&*cause)).into()
                }
                other => other.into(),
            })
        })
    }
}
