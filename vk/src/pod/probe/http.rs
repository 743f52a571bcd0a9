//! One GET towards a container: no proxy, no verification of TLS, redirects on the same host only, and a bound on everything that
//! comes back. Error texts are what a kubelet's events say (Go's `net/http`).

use std::{
    io,
    net::{IpAddr, SocketAddr},
    pin::pin,
};

use http::{HeaderMap, HeaderValue, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Empty};
use hyper::{body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};

use super::{
    patience, tls,
    url::{Url, bracketed},
};

/// As much of a body as is read.
const MAX_BODY: usize = 10 << 10;
/// As much as all headers may have.
const MAX_HEAD: usize = 64 << 10;
const MAX_REDIRECTS: usize = 10;

/// One request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Get {
    pub(super) url: Url,
    pub(super) headers: HeaderMap,
    /// Instead of the URL's.
    pub(super) host: Option<HeaderValue>,
}

impl Get {
    /// `host:port` that is asked.
    pub(crate) fn authority(&self) -> String {
        self.url.authority()
    }
}

/// What came back in the end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    /// Its beginning.
    pub(super) body: String,
}

/// Why nothing came back.
#[derive(Debug, thiserror::Error)]
pub(super) enum HttpError {
    /// As Go words it: `dial tcp …`, or whatever the connection said.
    #[error("Get \"{url}\": {problem}")]
    Request {
        /// The URL asked for last.
        url: String,
        /// What went wrong.
        problem: String,
    },
    /// Asked with TLS, and it speaks none.
    #[error("Get \"{url}\": http: server gave HTTP response to HTTPS client")]
    PlainText {
        /// The URL.
        url: String,
    },
    /// The answer broke off.
    #[error("{0}")]
    Body(String),
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// Opens a connection; the error reads as Go's `dial`.
pub(super) async fn dial(host: &str, port: u16) -> Result<TcpStream, String> {
    let connected = match host.parse::<IpAddr>() {
        Ok(ip) => TcpStream::connect(SocketAddr::new(ip, port)).await,
        Err(_) => TcpStream::connect((host, port)).await,
    };
    connected.map_err(|error| format!("{}: {}", dial_name(host, port), connect_problem(&error)))
}

/// `dial tcp 10.0.0.1:80`.
pub(super) fn dial_name(host: &str, port: u16) -> String {
    format!("dial tcp {}:{port}", bracketed(host))
}

fn connect_problem(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "connect: connection refused".to_owned(),
        io::ErrorKind::ConnectionReset => "connect: connection reset by peer".to_owned(),
        io::ErrorKind::HostUnreachable => "connect: no route to host".to_owned(),
        io::ErrorKind::NetworkUnreachable => "connect: network is unreachable".to_owned(),
        io::ErrorKind::TimedOut => "i/o timeout".to_owned(),
        _ => error.to_string(),
    }
}

/// Asks, and follows redirects as long as they stay on the host. Bounded in time by the caller.
pub(super) async fn get(get: &Get) -> Result<Answer, HttpError> {
    let mut url = get.url.clone();
    let mut host = get.host.clone();
    let mut referer = None;
    for _ in 0..MAX_REDIRECTS {
        let (answer, location) = ask(&url, get, host.as_ref(), referer.as_ref()).await?;
        let redirects = matches!(answer.status.as_u16(), 301 | 302 | 303 | 307 | 308);
        let Some(location) = location.filter(|_| redirects) else { return Ok(answer) };
        let Some(next) = url.join(&location) else {
            let problem = format!("unsupported protocol scheme or invalid URL in Location {location:?}");
            return Err(HttpError::Request { url: url.to_string(), problem });
        };
        if next.host != get.url.host {
            return Ok(answer);
        }
        if location.contains("://") {
            host = None;
        }
        referer = HeaderValue::from_str(&url.to_string()).ok().filter(|_| next.https || !url.https);
        url = next;
    }
    Err(HttpError::Request { url: url.to_string(), problem: "stopped after 10 redirects".to_owned() })
}

async fn ask(
    url: &Url,
    get: &Get,
    host: Option<&HeaderValue>,
    referer: Option<&HeaderValue>,
) -> Result<(Answer, Option<String>), HttpError> {
    let failed = |problem: String| HttpError::Request { url: url.to_string(), problem };
    let mut request = Request::get(&url.target)
        .body(Empty::<bytes::Bytes>::new())
        .map_err(|error| failed(error.to_string()))?;
    let headers = request.headers_mut();
    headers.clone_from(&get.headers);
    let host = match host {
        Some(host) => host.clone(),
        None => HeaderValue::from_str(&url.authority()).map_err(|error| failed(error.to_string()))?,
    };
    headers.insert(header::HOST, host);
    headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    if let Some(referer) = referer {
        headers.insert(header::REFERER, referer.clone());
    }

    let stream = dial(&url.host, url.port_number()).await.map_err(failed)?;
    let stream: Box<dyn Stream> =
        if url.https { Box::new(encrypt(url, stream).await?) } else { Box::new(stream) };
    let (mut sender, connection) = http1::Builder::new()
        .max_buf_size(MAX_HEAD)
        .handshake(TokioIo::new(patience::Patient::new(stream)))
        .await
        .map_err(|error| failed(chain(&error)))?;
    let exchange = async {
        let response = sender.send_request(request).await.map_err(|error| failed(chain(&error)))?;
        let status = response.status();
        let location = response.headers().get(header::LOCATION);
        let location = location.map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
        let body = read(response.into_body()).await.map_err(HttpError::Body)?;
        Ok((Answer { status, body }, location))
    };
    let drive = async {
        let _ = pin!(connection).await;
        // What has arrived is still to be read.
        std::future::pending::<()>().await;
    };
    tokio::select! {
        answer = exchange => answer,
        () = drive => Err(failed("EOF".to_owned())),
    }
}

async fn encrypt(
    url: &Url,
    stream: TcpStream,
) -> Result<tokio_rustls::client::TlsStream<TcpStream>, HttpError> {
    let failed = |problem: String| HttpError::Request { url: url.to_string(), problem };
    let config = tls::client().map_err(|error| failed(error.to_string()))?;
    let name = ServerName::try_from(url.host.clone()).map_err(|error| failed(error.to_string()))?;
    let connected = tokio_rustls::TlsConnector::from(config).connect(name, stream).await;
    connected.map_err(|error| {
        let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
        if matches!(inner, Some(rustls::Error::InvalidMessage(_))) {
            return HttpError::PlainText { url: url.to_string() };
        }
        failed(error.to_string())
    })
}

async fn read(mut body: Incoming) -> Result<String, String> {
    let mut text = Vec::new();
    while text.len() < MAX_BODY
        && let Some(frame) = body.frame().await
    {
        let frame = frame.map_err(|error| chain(&error))?;
        if let Some(data) = frame.data_ref() {
            text.extend_from_slice(&data[..data.len().min(MAX_BODY - text.len())]);
        }
    }
    Ok(String::from_utf8_lossy(&text).into_owned())
}

fn chain(error: &hyper::Error) -> String {
    if error.is_incomplete_message() {
        return "EOF".to_owned();
    }
    let source = std::error::Error::source(error);
    source.map_or_else(|| error.to_string(), |source| format!("{error}: {source}"))
}
