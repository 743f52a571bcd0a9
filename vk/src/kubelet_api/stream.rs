//! `/exec`: the client's upgraded connection (SPDY/3.1 or WebSocket) is joined to the runtime's streaming server. What flows is not
//! looked at, so every protocol version that the two speak works.

use std::time::Duration;

use axum::{
    body::Body,
    extract::{Path, Query, Request, State},
    response::{IntoResponse, Response},
};
use http::{HeaderMap, StatusCode, Uri, header, uri::PathAndQuery};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::Pod;
use tokio::net::TcpStream;

use super::{Shared, logs};
use crate::{
    identity::chain,
    provider::{ExecError, ExecRequest},
};

/// The streaming server is on this machine.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// A request that gets no stream: status and text.
type Refusal = (StatusCode, String);

type Names = (String, String, String);

pub(super) async fn exec(
    State(shared): State<Shared>,
    Path((namespace, pod, container)): Path<Names>,
    Query(query): Query<Vec<(String, String)>>,
    request: Request,
) -> Response {
    let result = start(&shared, (namespace, pod, container), None, &query, request).await;
    result.unwrap_or_else(IntoResponse::into_response)
}

pub(super) async fn exec_by_uid(
    State(shared): State<Shared>,
    Path((namespace, pod, uid, container)): Path<(String, String, String, String)>,
    Query(query): Query<Vec<(String, String)>>,
    request: Request,
) -> Response {
    let result = start(&shared, (namespace, pod, container), Some(&uid), &query, request).await;
    result.unwrap_or_else(IntoResponse::into_response)
}

async fn start(
    shared: &Shared,
    (namespace, name, container): Names,
    uid: Option<&str>,
    query: &[(String, String)],
    request: Request,
) -> Result<Response, Refusal> {
    let command = parse(query)?;
    let pod = shared
        .pods
        .get(&namespace, &name)
        .filter(|pod| uid.is_none_or(|uid| pod.metadata.uid.as_deref() == Some(uid)))
        .ok_or_else(|| (StatusCode::NOT_FOUND, "pod does not exist".to_owned()))?;
    let id = running_container(&pod, &container)?;
    let exec = shared.provider.exec().ok_or_else(|| {
        (StatusCode::NOT_IMPLEMENTED, format!("provider {:?} can't run commands", shared.provider.name()))
    })?;
    let target = exec.exec(&id, &command).await.map_err(|error| {
        let status = match error {
            ExecError::NotRunning(_) => StatusCode::BAD_REQUEST,
            ExecError::Failed { .. } => StatusCode::INTERNAL_SERVER_ERROR,
        };
        (status, chain(&error))
    })?;
    proxy(shared, request, &target).await.map_err(|problem| {
        let address = target.authority().map_or("an address without a host", http::uri::Authority::as_str);
        tracing::warn!(address, problem, "can't proxy to the runtime's streaming server");
        (
            StatusCode::BAD_GATEWAY,
            format!("can't reach the runtime's streaming server at {address}: {problem}"),
        )
    })
}

fn parse(query: &[(String, String)]) -> Result<ExecRequest, Refusal> {
    let flag =
        |key: &str| query.iter().any(|(name, value)| name == key && matches!(value.as_str(), "1" | "true"));
    let command: Vec<_> =
        query.iter().filter(|(name, _)| name == "command").map(|(_, value)| value.clone()).collect();
    let request = ExecRequest {
        command,
        tty: flag("tty"),
        stdin: flag("input") || flag("stdin"),
        stdout: flag("output") || flag("stdout"),
        // A terminal has one output.
        stderr: (flag("error") || flag("stderr")) && !flag("tty"),
    };
    let bad = |message: &str| Err((StatusCode::BAD_REQUEST, message.to_owned()));
    if request.command.is_empty() {
        return bad("you must specify a command");
    }
    if !request.stdin && !request.stdout && !request.stderr {
        return bad("you must specify at least 1 of stdin, stdout, stderr");
    }
    Ok(request)
}

fn running_container(pod: &Pod, container: &str) -> Result<String, Refusal> {
    let status = logs::container_status(pod, container)
        .filter(|status| status.state.as_ref().is_some_and(|state| state.running.is_some()));
    match status.and_then(|status| status.container_id.as_deref()) {
        Some(id) => Ok(logs::without_scheme(id).to_owned()),
        None if logs::has_container(pod, container) => {
            Err((StatusCode::BAD_REQUEST, format!("container {container:?} is not running")))
        }
        None => Err((StatusCode::NOT_FOUND, format!("container not found ({container:?})"))),
    }
}

/// Sends the request on to `target`; when that switches protocols, joins both connections until one of them ends.
async fn proxy(shared: &Shared, mut request: Request, target: &Uri) -> Result<Response, String> {
    if target.scheme_str() != Some("http") {
        return Err("only streaming servers without TLS are supported: turn it off, they listen on loopback"
            .to_owned());
    }
    let authority = target.authority().ok_or("the URL has no host")?;
    let host = authority.host().trim_start_matches('[').trim_end_matches(']');
    let connect = TcpStream::connect((host, authority.port_u16().unwrap_or(80)));
    let socket = tokio::time::timeout(CONNECT_TIMEOUT, connect)
        .await
        .map_err(|_| format!("no connection within {} s", CONNECT_TIMEOUT.as_secs()))?
        .map_err(|error| error.to_string())?;
    let _ = socket.set_nodelay(true);
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(socket)).await.map_err(|error| chain(&error))?;
    shared.tasks.spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(error = chain(&error), "the connection to the streaming server broke off");
        }
    });

    let client = hyper::upgrade::on(&mut request);
    let mut forwarded = http::Request::builder()
        .method(request.method().clone())
        .uri(target.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/")))
        .body(Body::empty())
        .map_err(|error| error.to_string())?;
    *forwarded.headers_mut() = headers(request.headers(), authority.as_str());
    let mut answer = sender.send_request(forwarded).await.map_err(|error| chain(&error))?;
    if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Ok(answer.map(Body::new));
    }
    let runtime = hyper::upgrade::on(&mut answer);
    let stop = shared.stop.clone();
    shared.tasks.spawn(async move {
        tokio::select! {
            () = stop.cancelled() => {}
            () = join(client, runtime) => {}
        }
    });
    Ok(answer.map(|_| Body::empty()))
}

/// All headers but those that are about us: credentials stay here.
fn headers(from: &HeaderMap, host: &str) -> HeaderMap {
    let mut headers = from.clone();
    for own in [header::AUTHORIZATION, header::COOKIE, header::CONTENT_LENGTH, header::TRANSFER_ENCODING] {
        headers.remove(own);
    }
    if let Ok(host) = host.parse() {
        headers.insert(header::HOST, host);
    }
    headers
}

async fn join(client: OnUpgrade, runtime: OnUpgrade) {
    let joined = async {
        let (client, runtime) = tokio::try_join!(client, runtime).map_err(std::io::Error::other)?;
        tokio::io::copy_bidirectional(&mut TokioIo::new(client), &mut TokioIo::new(runtime)).await
    };
    if let Err(error) = joined.await {
        tracing::debug!(%error, "an exec's connection broke off");
    }
}
