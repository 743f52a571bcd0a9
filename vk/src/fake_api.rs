//! An API server for tests: a function from requests to answers behind a real [`kube::Client`].

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures::StreamExt as _;
use http::{Request, Response};
use http_body_util::BodyExt as _;
use kube::{Client, client::Body};
use serde_json::{Value, json};
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
};
use tokio_stream::wrappers::UnboundedReceiverStream;

/// What a client asked.
#[derive(Debug, Clone)]
pub(crate) struct Call {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) query: String,
    pub(crate) body: Value,
    /// Whether it came with a token.
    pub(crate) with_token: bool,
}

impl Call {
    /// `METHOD path`, with `?watch` for a watch.
    pub(crate) fn name(&self) -> String {
        let watch = if self.query.contains("watch=true") { "?watch" } else { "" };
        format!("{} {}{watch}", self.method, self.path)
    }
}

/// What it is told.
pub(crate) enum Answer {
    Json(u16, Value),
    /// A watch: stays open until its sender is dropped.
    Events(mpsc::UnboundedReceiver<Value>),
    /// Nothing before its sender is dropped, and a failure then.
    Late(watch::Receiver<()>),
}

impl Answer {
    pub(crate) fn ok(value: Value) -> Self {
        Self::Json(200, value)
    }

    /// A failure as the API server words it.
    pub(crate) fn status(code: u16, reason: &str) -> Self {
        let status = json!({
            "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason,
            "message": reason, "metadata": {},
        });
        Self::Json(code, status)
    }
}

/// Every call so far, by [`Call::name`].
#[derive(Clone, Default)]
pub(crate) struct Calls(Arc<Mutex<Vec<String>>>);

impl Calls {
    pub(crate) fn count(&self, name: &str) -> usize {
        self.0.lock().unwrap().iter().filter(|call| *call == name).count()
    }
}

/// A client whose requests `answer` answers.
pub(crate) fn client(answer: impl Fn(Call) -> Answer + Send + Sync + 'static) -> (Client, Calls) {
    let calls = Calls::default();
    let handler = Handler { answer: Arc::new(answer), calls: calls.clone() };
    let service = tower::service_fn(move |request: Request<Body>| {
        let handler = handler.clone();
        async move { Ok::<_, kube::Error>(handler.handle(request.map(axum::body::Body::new)).await) }
    });
    (Client::new(service, "default"), calls)
}

/// The same on a port of loopback, without TLS, for what reads a kubeconfig. Ends with its tasks.
pub(crate) async fn serve(
    answer: impl Fn(Call) -> Answer + Send + Sync + 'static,
) -> (String, Calls, JoinSet<()>) {
    let calls = Calls::default();
    let handler = Handler { answer: Arc::new(answer), calls: calls.clone() };
    let router = axum::Router::new().fallback(move |request: Request<axum::body::Body>| {
        let handler = handler.clone();
        async move { handler.handle(request).await }
    });
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let mut tasks = JoinSet::new();
    tasks.spawn(async move { axum::serve(listener, router).await.unwrap() });
    (url, calls, tasks)
}

#[derive(Clone)]
struct Handler {
    answer: Arc<dyn Fn(Call) -> Answer + Send + Sync>,
    calls: Calls,
}

impl Handler {
    async fn handle(&self, request: Request<axum::body::Body>) -> Response<axum::body::Body> {
        let (parts, body) = request.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        let call = Call {
            method: parts.method.to_string(),
            path: parts.uri.path().to_owned(),
            query: parts.uri.query().unwrap_or_default().to_owned(),
            body: serde_json::from_slice(&body).unwrap_or(Value::Null),
            with_token: parts.headers.contains_key(http::header::AUTHORIZATION),
        };
        self.calls.0.lock().unwrap().push(call.name());
        match (self.answer)(call) {
            Answer::Json(code, value) => {
                Response::builder().status(code).body(axum::body::Body::from(value.to_string())).unwrap()
            }
            Answer::Events(events) => {
                let lines = UnboundedReceiverStream::new(events)
                    .map(|event| Ok::<_, std::io::Error>(Bytes::from(format!("{event}\n"))));
                Response::new(axum::body::Body::from_stream(lines))
            }
            Answer::Late(mut until) => {
                while until.changed().await.is_ok() {}
                Response::builder().status(504).body(axum::body::Body::empty()).unwrap()
            }
        }
    }
}
