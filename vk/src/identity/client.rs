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

/// A client that sends each request through the newest one in `current`, waiting for the first.
pub(super) fn rotating(current: watch::Receiver<Option<Client>>) -> Client {
    Client::new(Rotating(current), "default")
}

struct Rotating(watch::Receiver<Option<Client>>);

impl Service<Request<Body>> for Rotating {
    type Response = Response<Body>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let mut current = self.0.clone();
        Box::pin(async move {
            let client = current.wait_for(Option::is_some).await?.clone();
            match client {
                Some(client) => Ok(client.send(request).await?),
                None => Err("there is no identity".into()),
            }
        })
    }
}
