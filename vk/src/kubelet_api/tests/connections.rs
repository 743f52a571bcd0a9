//! What becomes of connections.

use super::*;
use crate::kubelet_api::connections::{MAX_KNOWN, MAX_STRANGERS};

/// Less than any timeout of the server.
const SOON: Duration = Duration::from_secs(5);

/// The answer to one request, on a connection that may stay.
async fn ask<S>(socket: &mut S, head: &str) -> String
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    socket.write_all(format!("{head}\r\nHost: vk1\r\n\r\n").as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\nok") {
        let mut more = [0; 1024];
        let count = socket.read(&mut more).await.unwrap_or_default();
        answer.extend_from_slice(&more[..count]);
        if count == 0 {
            break;
        }
    }
    String::from_utf8(answer).unwrap()
}

const HEALTHZ: &str = "GET /healthz HTTP/1.1";

async fn until_gone(socket: &mut (impl tokio::io::AsyncRead + Unpin)) {
    let gone = tokio::time::timeout(SOON, socket.read(&mut [0])).await;
    // Some go without a farewell.
    assert_eq!(gone.expect("it is ended").unwrap_or_default(), 0);
}

#[tokio::test]
async fn strangers_keep_nobody_out() {
    let served = serve().await;
    let mut known = served.connect(served.user("reader")).await.unwrap();
    assert!(ask(&mut known, HEALTHZ).await.starts_with("HTTP/1.1 200 "));
    let mut oldest = TcpStream::connect(served.address).await.unwrap();
    let mut others = Vec::new();
    for _ in 0..MAX_STRANGERS {
        others.push(TcpStream::connect(served.address).await.unwrap());
    }
    until_gone(&mut oldest).await;
    assert_eq!(served.status(served.user("reader"), PODS).await, 200, "who can say who they are");
    assert!(ask(&mut known, HEALTHZ).await.starts_with("HTTP/1.1 200 "), "who has said so stays");
}

#[tokio::test]
async fn a_refusal_ends_the_connection() {
    let served = serve().await;
    for (identity, status) in [(None, "401"), (Some(served.user("stranger")), "403")] {
        let mut socket = served.connect(identity).await.unwrap();
        let answer = tokio::time::timeout(SOON, ask(&mut socket, HEALTHZ)).await.expect("it is ended");
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
        assert!(answer.to_lowercase().contains("\r\nconnection: close\r\n"), "{answer}");
    }
}

#[tokio::test]
async fn without_a_slot_a_known_client_is_told_so() {
    let (api, ..) = api(Arc::default());
    let router = api.router(TaskTracker::new(), CancellationToken::new());
    let all = Connections::new(api.metrics.connections());
    let known: Vec<_> = (0..MAX_KNOWN).map(|_| all.begin()).collect();
    assert!(known.iter().all(|one| one.admit()));
    for (connection, status) in [(all.begin(), 503), (Arc::clone(&known[0]), 200)] {
        let request = Request::get("/healthz")
            .header("Authorization", "Bearer good")
            .extension(connection)
            .body(axum::body::Body::empty())
            .unwrap();
        let answer = tower::ServiceExt::oneshot(router.clone(), request).await.unwrap();
        assert_eq!(answer.status(), status);
        assert_eq!(answer.headers().contains_key("connection"), status == 503);
    }
}

#[tokio::test]
async fn long_heads_are_for_those_with_a_certificate() {
    let served = serve().await;
    let head = format!("{PODS}\r\nX: {}", "x".repeat(500_000));
    assert_eq!(served.status(served.user("reader"), &head).await, 200);
    // It may be hung up on while it still writes.
    if let Ok((status, _)) = served.request(None, &head).await {
        assert_eq!(status, 431);
    }
}

#[tokio::test]
async fn nothing_is_asked_of_a_certificate_that_has_ended() {
    let served = serve().await;
    let mut parameters = parameters("reader", "testers", ExtendedKeyUsagePurpose::ClientAuth);
    parameters.not_after = (std::time::SystemTime::now() + Duration::from_secs(2)).into();
    let mut socket = served.connect(served.client_ca.sign(&parameters)).await.unwrap();
    assert!(ask(&mut socket, HEALTHZ).await.starts_with("HTTP/1.1 200 "));
    until_gone(&mut socket).await;
}

#[tokio::test]
async fn certificates_are_checked_at_each_connection() {
    let served = serve().await;
    // It remembers sessions.
    let config = served.config(served.user("reader"));
    for _ in 0..2 {
        let mut socket = served.connect_with(Arc::clone(&config)).await.unwrap();
        assert!(ask(&mut socket, HEALTHZ).await.starts_with("HTTP/1.1 200 "));
        assert_eq!(socket.get_ref().1.handshake_kind(), Some(rustls::HandshakeKind::Full));
    }
}
