//! `/exec`, `/attach`, `/portForward`: the client's upgraded connection (SPDY/3.1 or WebSocket) is joined to the runtime's streaming
//! server ([`proxy`]), so every protocol version that the two speak works. Here is what is checked before, in a kubelet's order and words
//! (`getExec`, `getAttach`, `getPortForward` in pkg/kubelet/server/server.go, and what they call in `kubelet_pods.go`).

use std::sync::Arc;

use axum::{
    extract::{Path, Query, Request, State},
    response::{IntoResponse, Response},
};
use http::{HeaderMap, StatusCode};
use k8s_openapi::api::core::v1::Pod;

use super::{Shared, logs};
use crate::{
    identity::chain,
    pod::ephemeral,
    provider::{AttachRequest, ExecError, ExecRequest, StreamError},
};

mod proxy;

/// A request that gets no stream: status and text.
type Refusal = (StatusCode, String);

type Names = (String, String, String);
type NamesAndUid = (String, String, String, String);
type Parameters = Vec<(String, String)>;

/// Which pod, and maybe which of its containers.
struct Target {
    namespace: String,
    pod: String,
    uid: Option<String>,
    container: String,
}

impl Target {
    fn new((namespace, pod, container): Names) -> Self {
        Self { namespace, pod, uid: None, container }
    }

    fn with_uid((namespace, pod, uid, container): NamesAndUid) -> Self {
        Self { namespace, pod, uid: Some(uid), container }
    }

    /// As a kubelet calls pods in these messages.
    fn full_name(&self) -> String {
        format!("{}_{}", self.pod, self.namespace)
    }

    fn find(&self, shared: &Shared) -> Result<Arc<Pod>, Refusal> {
        let missing = |message: &str| (StatusCode::NOT_FOUND, message.to_owned());
        let pod = shared.pods.get(&self.namespace, &self.pod).ok_or_else(|| missing("pod does not exist"))?;
        if self.uid.is_some() && self.uid != pod.metadata.uid {
            return Err(missing("pod not found"));
        }
        Ok(pod)
    }
}

pub(super) async fn exec(
    State(shared): State<Shared>,
    Path(names): Path<Names>,
    Query(query): Query<Parameters>,
    request: Request,
) -> Response {
    answer(start_exec(&shared, &Target::new(names), &query, request).await)
}

pub(super) async fn exec_by_uid(
    State(shared): State<Shared>,
    Path(names): Path<NamesAndUid>,
    Query(query): Query<Parameters>,
    request: Request,
) -> Response {
    answer(start_exec(&shared, &Target::with_uid(names), &query, request).await)
}

pub(super) async fn attach(
    State(shared): State<Shared>,
    Path(names): Path<Names>,
    Query(query): Query<Parameters>,
    request: Request,
) -> Response {
    answer(start_attach(&shared, &Target::new(names), &query, request).await)
}

pub(super) async fn attach_by_uid(
    State(shared): State<Shared>,
    Path(names): Path<NamesAndUid>,
    Query(query): Query<Parameters>,
    request: Request,
) -> Response {
    answer(start_attach(&shared, &Target::with_uid(names), &query, request).await)
}

pub(super) async fn port_forward(
    State(shared): State<Shared>,
    Path((namespace, pod)): Path<(String, String)>,
    Query(query): Query<Parameters>,
    request: Request,
) -> Response {
    let target = Target { namespace, pod, uid: None, container: String::new() };
    answer(start_port_forward(&shared, &target, &query, request).await)
}

pub(super) async fn port_forward_by_uid(
    State(shared): State<Shared>,
    Path((namespace, pod, uid)): Path<Names>,
    Query(query): Query<Parameters>,
    request: Request,
) -> Response {
    let target = Target { namespace, pod, uid: Some(uid), container: String::new() };
    answer(start_port_forward(&shared, &target, &query, request).await)
}

fn answer(result: Result<Response, Refusal>) -> Response {
    result.unwrap_or_else(IntoResponse::into_response)
}

async fn start_exec(
    shared: &Shared,
    target: &Target,
    query: &Parameters,
    request: Request,
) -> Result<Response, Refusal> {
    let streams = Streams::parse(query)?;
    let command: Vec<_> =
        query.iter().filter(|(name, _)| name == "command").map(|(_, value)| value.clone()).collect();
    if command.is_empty() {
        return Err(bad("you must specify a command"));
    }
    let pod = target.find(shared)?;
    let id = running_container(&pod, &target.container, || {
        format!("container not found ({:?})", target.container)
    })?;
    let exec = shared.provider.exec().ok_or_else(|| cannot(shared, "run commands"))?;
    must_upgrade(request.headers())?;
    let Streams { tty, stdin, stdout, stderr } = streams;
    let command = ExecRequest { command, tty, stdin, stdout, stderr };
    let url = exec.exec(&id, &command).await.map_err(|error| {
        let status = match error {
            ExecError::NotRunning(_) => StatusCode::BAD_REQUEST,
            ExecError::Failed { .. } => StatusCode::INTERNAL_SERVER_ERROR,
        };
        (status, chain(&error))
    })?;
    proxy::join_to(shared, request, &url).await
}

async fn start_attach(
    shared: &Shared,
    target: &Target,
    query: &Parameters,
    request: Request,
) -> Result<Response, Refusal> {
    let streams = Streams::parse(query)?;
    let pod = target.find(shared)?;
    let id = running_container(&pod, &target.container, || {
        format!("container {} not found in pod {}", target.container, target.full_name())
    })?;
    let attach = shared.provider.attach().ok_or_else(|| cannot(shared, "attach to containers"))?;
    must_upgrade(request.headers())?;
    // A process has a terminal or it hasn't: what the client asks for changes nothing.
    let tty = has_terminal(&pod, &target.container);
    let Streams { stdin, stdout, stderr, .. } = streams;
    let streams = AttachRequest { tty, stdin, stdout, stderr: stderr && !tty };
    let url = attach.attach(&id, streams).await.map_err(|error| (status_of(&error), chain(&error)))?;
    proxy::join_to(shared, request, &url).await
}

async fn start_port_forward(
    shared: &Shared,
    target: &Target,
    query: &Parameters,
    request: Request,
) -> Result<Response, Refusal> {
    // SPDY clients say in each stream's headers what it is for.
    let ports = if proxy::is_websocket(request.headers()) {
        ports(query).map_err(|text| bad(&text))?
    } else {
        vec![]
    };
    let pod = target.find(shared)?;
    let forward = shared.provider.port_forward().ok_or_else(|| cannot(shared, "forward ports"))?;
    must_upgrade(request.headers())?;
    let uid = pod.metadata.uid.as_deref().unwrap_or_default();
    let url = forward.port_forward(uid, &ports).await.map_err(|error| match error {
        StreamError::NotRunning(_) => {
            (StatusCode::NOT_FOUND, format!("pod not found ({:?}): it is not running", target.full_name()))
        }
        StreamError::Failed { .. } => (status_of(&error), chain(&error)),
    })?;
    proxy::join_to(shared, request, &url).await
}

fn bad(message: &str) -> Refusal {
    (StatusCode::BAD_REQUEST, message.to_owned())
}

fn cannot(shared: &Shared, what: &str) -> Refusal {
    (StatusCode::NOT_IMPLEMENTED, format!("provider {:?} can't {what}", shared.provider.name()))
}

fn must_upgrade(headers: &HeaderMap) -> Result<(), Refusal> {
    if proxy::is_upgrade(headers) { Ok(()) } else { Err(bad("Upgrade request required")) }
}

fn status_of(error: &StreamError) -> StatusCode {
    match error {
        StreamError::NotRunning(_) => StatusCode::BAD_REQUEST,
        StreamError::Failed { .. } => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// Which streams the client asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(clippy::struct_excessive_bools)] // As the request has them.
struct Streams {
    tty: bool,
    stdin: bool,
    stdout: bool,
    stderr: bool,
}

impl Streams {
    fn parse(query: &[(String, String)]) -> Result<Self, Refusal> {
        let flag = |key: &str| {
            query.iter().any(|(name, value)| name == key && matches!(value.as_str(), "1" | "true"))
        };
        let streams = Self {
            tty: flag("tty"),
            stdin: flag("input") || flag("stdin"),
            stdout: flag("output") || flag("stdout"),
            // A terminal has one output.
            stderr: (flag("error") || flag("stderr")) && !flag("tty"),
        };
        if streams.stdin || streams.stdout || streams.stderr {
            Ok(streams)
        } else {
            Err(bad("you must specify at least 1 of stdin, stdout, stderr"))
        }
    }
}

/// The ports that a WebSocket client asks for (`NewV4Options` in pkg/cri/streaming/portforward).
fn ports(query: &[(String, String)]) -> Result<Vec<u16>, String> {
    /// Each takes two streams for as long as the connection lasts.
    const MAX_PORTS: usize = 128;
    let values: Vec<_> = query.iter().filter(|(name, _)| name == "port").map(|(_, value)| value).collect();
    if values.is_empty() {
        return Err("query parameter \"port\" is required".to_owned());
    }
    let mut ports = Vec::new();
    for value in values {
        if value.is_empty() {
            return Err("query parameter \"port\" cannot be empty".to_owned());
        }
        for text in value.split(',') {
            let digits = text.bytes().all(|byte| byte.is_ascii_digit());
            match text.parse() {
                Ok(0) => return Err(format!("port {value:?} must be > 0")),
                Ok(port) if digits => ports.push(port),
                _ => return Err(format!("unable to parse {value:?} as a port: it is no number up to 65535")),
            }
        }
    }
    if ports.len() > MAX_PORTS {
        return Err(format!("{} ports: {MAX_PORTS} at most in one connection", ports.len()));
    }
    Ok(ports)
}

fn running_container(pod: &Pod, container: &str, not_found: impl Fn() -> String) -> Result<String, Refusal> {
    let status = logs::container_status(pod, container)
        .filter(|status| status.state.as_ref().is_some_and(|state| state.running.is_some()));
    match status.and_then(|status| status.container_id.as_deref()) {
        Some(id) => Ok(logs::without_scheme(id).to_owned()),
        // A kubelet sees no difference to one that doesn't exist; a user does.
        None if ephemeral::named(pod, container).is_some() => {
            Err(bad(&format!("{}: container {container:?} is not running", not_found())))
        }
        None => Err((StatusCode::NOT_FOUND, not_found())),
    }
}

fn has_terminal(pod: &Pod, container: &str) -> bool {
    ephemeral::named(pod, container).is_some_and(|container| container.tty == Some(true))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn ports_are_checked_as_a_kubelet_does() {
        assert_eq!(
            ports(&query(&[("port", "80,443"), ("x", "1"), ("port", "65535")])),
            Ok(vec![80, 443, 65535])
        );
        let many = vec!["1"; 129].join(",");
        for (given, message) in [
            (query(&[]), "query parameter \"port\" is required"),
            (query(&[("port", "")]), "query parameter \"port\" cannot be empty"),
            (query(&[("port", "0")]), "port \"0\" must be > 0"),
            (query(&[("port", "80,")]), "unable to parse \"80,\" as a port"),
            (query(&[("port", "65536")]), "unable to parse \"65536\" as a port"),
            (query(&[("port", "+80")]), "unable to parse \"+80\" as a port"),
            (query(&[("port", "-1")]), "unable to parse \"-1\" as a port"),
            (query(&[("port", &many)]), "129 ports: 128 at most"),
        ] {
            let error = ports(&given).unwrap_err();
            assert!(error.starts_with(message), "{given:?}: {error}");
        }
    }

    #[test]
    fn streams_are_parsed() {
        let parsed =
            Streams::parse(&query(&[("tty", "1"), ("input", "1"), ("output", "true"), ("error", "1")]));
        assert_eq!(parsed, Ok(Streams { tty: true, stdin: true, stdout: true, stderr: false }));
        assert!(
            Streams::parse(&query(&[("tty", "1"), ("error", "1")])).is_err(),
            "a terminal has one output"
        );
        assert!(Streams::parse(&query(&[("output", "0")])).is_err());
    }
}
