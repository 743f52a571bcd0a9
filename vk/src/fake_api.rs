//! An API server for tests: a function from requests to answers behind a real [`kube::Client`].

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures::StreamExt as _;
use http::{Request, Response};
use http_body_util::BodyExt as _;
use kube::{Client, client::Body};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;

/// What a client asked.
#[derive(Debug, Clone)]
pub(crate) struct Call {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) query: String,
    pub(crate) body: Value,
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
    let log = calls.clone();
    let answer = Arc::new(answer);
    let service = tower::service_fn(move |request: Request<Body>| {
        let (answer, log) = (Arc::clone(&answer), log.clone());
        async move {
            let (parts, body) = request.into_parts();
            let body = body.collect().await?.to_bytes();
            let call = Call {
                method: parts.method.to_string(),
                path: parts.uri.path().to_owned(),
                query: parts.uri.query().unwrap_or_default().to_owned(),
                body: serde_json::from_slice(&body).unwrap_or(Value::Null),
            };
            log.0.lock().unwrap().push(call.name());
            let response = Response::builder();
            Ok::<_, kube::Error>(match answer(call) {
                Answer::Json(code, value) => {
                    response.status(code).body(axum::body::Body::from(value.to_string())).unwrap()
                }
                Answer::Events(events) => {
                    let lines = UnboundedReceiverStream::new(events)
                        .map(|event| Ok::<_, std::io::Error>(Bytes::from(format!("{event}\n"))));
                    response.body(axum::body::Body::from_stream(lines)).unwrap()
                }
            })
        }
    });
    (Client::new(service, "default"), calls)
}
