//! Joins a client's upgraded connection to the runtime's streaming server. What flows is not looked at.

use std::{io, pin::pin, sync::Arc, time::Duration};

use axum::{body::Body, extract::Request, response::Response};
use http::{HeaderMap, StatusCode, Uri, header, uri::PathAndQuery};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncWriteExt as _, copy, split},
    net::TcpStream,
    time::timeout,
};

use super::{Refusal, Shared};
use crate::{identity::chain, kubelet_api::connections::Connection};

/// The streaming server is on this machine.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Until it has switched protocols; it starts a process first.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// How long a client may take to hang up when the runtime has: its slot is somebody else's then.
const FAREWELL: Duration = Duration::from_secs(2);

/// Whether the client asks for another protocol at all. Asked before the runtime is: it remembers what it prepared for a minute, and
/// not more than a thousand of it.
pub(super) fn is_upgrade(headers: &HeaderMap) -> bool {
    headers.contains_key(header::UPGRADE) && has_token(headers, header::CONNECTION, "upgrade")
}

/// Whether the protocol asked for is WebSocket.
pub(super) fn is_websocket(headers: &HeaderMap) -> bool {
    is_upgrade(headers) && has_token(headers, header::UPGRADE, "websocket")
}

fn has_token(headers: &HeaderMap, name: header::HeaderName, token: &str) -> bool {
    headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|value| value.trim().eq_ignore_ascii_case(token))
}

/// [`proxy`], its failure as an answer.
pub(super) async fn join_to(shared: &Shared, request: Request, target: &Uri) -> Result<Response, Refusal> {
    proxy(shared, request, target).await.map_err(|problem| {
        let address = target.authority().map_or("an address without a host", http::uri::Authority::as_str);
        tracing::warn!(address, problem, "can't proxy to the runtime's streaming server");
        (
            StatusCode::BAD_GATEWAY,
            format!("can't reach the runtime's streaming server at {address}: {problem}"),
        )
    })
}

/// Sends the request on to `target`; when that switches protocols, joins both connections until the runtime's ends.
async fn proxy(shared: &Shared, mut request: Request, target: &Uri) -> Result<Response, String> {
    if target.scheme_str() != Some("http") {
        return Err("only streaming servers without TLS are supported: turn it off, they listen on loopback"
            .to_owned());
    }
    let authority = target.authority().ok_or("the URL has no host")?;
    let host = authority.host().trim_start_matches('[').trim_end_matches(']');
    let connect = TcpStream::connect((host, authority.port_u16().unwrap_or(80)));
    let socket = timeout(CONNECT_TIMEOUT, connect)
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
    let mut answer = timeout(ANSWER_TIMEOUT, sender.send_request(forwarded))
        .await
        .map_err(|_| format!("no answer within {} s", ANSWER_TIMEOUT.as_secs()))?
        .map_err(|error| chain(&error))?;
    if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Ok(answer.map(Body::new));
    }
    let runtime = hyper::upgrade::on(&mut answer);
    let stop = shared.stop.clone();
    // The server lets go of the connection here, and the stream goes on with its slot.
    let connection = request.extensions().get::<Arc<Connection>>().cloned();
    shared.tasks.spawn(async move {
        tokio::select! {
            () = stop.cancelled() => {}
            () = join(client, runtime) => {}
        }
        drop(connection);
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
        let (client, runtime) = tokio::try_join!(client, runtime).map_err(io::Error::other)?;
        let (mut from_client, mut to_client) = split(TokioIo::new(client));
        let (mut from_runtime, mut to_runtime) = split(TokioIo::new(runtime));
        let mut asking = pin!(async {
            let asked = copy(&mut from_client, &mut to_runtime).await;
            to_runtime.shutdown().await.and(asked)
        });
        let mut answering = pin!(async {
            let answered = copy(&mut from_runtime, &mut to_client).await;
            to_client.shutdown().await.and(answered)
        });
        tokio::select! {
            // A client that has said all is still answered, and what the runtime said before it hung up is still told.
            asked = &mut asking => match asked {
                Ok(_) => answering.await,
                Err(_) => timeout(FAREWELL, answering).await.unwrap_or(asked),
            },
            // Nothing more can come of it. What a client sends meanwhile is taken: left unread it would cost the client the end of the answer.
            answered = &mut answering => {
                if answered.is_ok() {
                    let _ = timeout(FAREWELL, asking).await;
                }
                answered
            }
        }
    };
    if let Err(error) = joined.await {
        tracing::debug!(%error, "a streaming connection broke off");
    }
}
