//! An API server for tests: a function from requests to answers behind a real [`kube::Client`].

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures::StreamExt as _;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full, StreamBody, combinators::UnsyncBoxBody};
use kube::{Client, client::Body};
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::UnboundedReceiverStream;

/// What a client asked.
#[derive(Debug, Clone)]
pub(super) struct Call {
    /// `METHOD path`, with `?watch` for a watch.
    pub(super) name: String,
    pub(super) query: String,
    pub(super) body: Value,
}

/// What it is told.
pub(super) enum Answer {
    Json(u16, Value),
    /// A watch: stays open until its sender is dropped.
    Events(mpsc::UnboundedReceiver<Value>),
}

impl Answer {
    /// A failure as the API server words it.
    pub(super) fn status(code: u16, reason: &str, causes: &Value) -> Self {
        let status = json!({
            "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason,
            "message": reason, "metadata": {}, "details": { "causes": causes },
        });
        Self::Json(code, status)
    }
}

/// Every call so far.
#[derive(Clone, Default)]
pub(super) struct Calls(Arc<Mutex<Vec<Call>>>, watch::Sender<()>);

impl Calls {
    /// All calls of this name, as soon as there are as many.
    pub(super) async fn wait_for(&self, name: &str, count: usize) -> Vec<Call> {
        let mut changes = self.1.subscribe();
        loop {
            changes.mark_unchanged();
            let calls = self.0.lock().unwrap().clone();
            let calls: Vec<_> = calls.into_iter().filter(|call| call.name == name).collect();
            if calls.len() >= count {
                return calls;
            }
            changes.changed().await.unwrap();
        }
    }
}

/// A client whose requests `answer` answers.
pub(super) fn client(answer: impl Fn(&Call) -> Answer + Send + Sync + 'static) -> (Client, Calls) {
    let calls = Calls::default();
    let (answer, seen) = (Arc::new(answer), calls.clone());
    let service = tower::service_fn(move |request: Request<Body>| {
        let (answer, calls) = (answer.clone(), seen.clone());
        async move {
            let (parts, body) = request.into_parts();
            let body = body.collect().await.unwrap().to_bytes();
            let query = parts.uri.query().unwrap_or_default().to_owned();
            let watch = if query.contains("watch=true") { "?watch" } else { "" };
            let call = Call {
                name: format!("{} {}{watch}", parts.method, parts.uri.path()),
                query,
                body: serde_json::from_slice(&body).unwrap_or(Value::Null),
            };
            let told = answer(&call);
            calls.0.lock().unwrap().push(call);
            calls.1.send_replace(());
            let (code, body): (u16, UnsyncBoxBody<Bytes, std::io::Error>) = match told {
                Answer::Json(code, value) => {
                    let body = Full::new(Bytes::from(value.to_string()));
                    (code, body.map_err(|never| match never {}).boxed_unsync())
                }
                Answer::Events(events) => {
                    let lines = UnboundedReceiverStream::new(events)
                        .map(|event| Ok(hyper::body::Frame::data(Bytes::from(format!("{event}\n")))));
                    (200, StreamBody::new(lines).boxed_unsync())
                }
            };
            Ok::<_, kube::Error>(Response::builder().status(code).body(body).unwrap())
        }
    });
    (Client::new(service, "default"), calls)
}
