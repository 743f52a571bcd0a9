//! Upgraded connections, through the whole server.

use super::*;

/// Stands in for the runtime's streaming server: switches protocols and echoes. Returns its URL; the head of the request comes
/// through the channel.
async fn echo_server() -> (Uri, tokio::sync::oneshot::Receiver<String>, tokio::task::JoinSet<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/exec/token", listener.local_addr().unwrap()).parse().unwrap();
    let (sender, receiver) = tokio::sync::oneshot::channel();
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(async move {
        let (mut socket, _) = listener.accept().await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(socket.read_u8().await.unwrap());
        }
        sender.send(String::from_utf8(head).unwrap()).unwrap();
        let answer = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\
                      X-Stream-Protocol-Version: v4.channel.k8s.io\r\n\r\nwelcome ";
        socket.write_all(answer.as_bytes()).await.unwrap();
        let (mut read, mut write) = socket.split();
        tokio::io::copy(&mut read, &mut write).await.unwrap();
    });
    (url, receiver, tasks)
}

#[tokio::test]
async fn exec_joins_the_client_to_the_streaming_server() {
    for (method, protocol) in [("POST", "SPDY/3.1"), ("GET", "websocket")] {
        let served = serve().await;
        let (url, head, _server) = echo_server().await;
        *served.provider.streaming.lock().unwrap() = Some(url);
        let mut socket = served.connect(served.user("admin")).await.unwrap();
        let request = format!(
            "{method} {EXEC}\r\nHost: vk1\r\nConnection: Upgrade\r\nUpgrade: {protocol}\r\n\
             X-Stream-Protocol-Version: v4.channel.k8s.io\r\nAuthorization: Bearer secret\r\n\r\n"
        );
        socket.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"welcome ") {
            answer.push(socket.read_u8().await.unwrap());
        }
        let answer = String::from_utf8(answer).unwrap().to_lowercase();
        assert!(answer.starts_with("http/1.1 101 "), "{answer}");
        assert!(answer.contains("x-stream-protocol-version: v4.channel.k8s.io"), "{answer}");

        let head = head.await.unwrap().to_lowercase();
        assert!(head.starts_with(&format!("{} /exec/token http/1.1", method.to_lowercase())), "{head}");
        assert!(head.contains(&format!("upgrade: {}", protocol.to_lowercase())), "{head}");
        assert!(!head.contains("secret"), "credentials stay with us: {head}");

        let mut echoed = [0; 9];
        socket.write_all(b"\x00\xffhello\r\n").await.unwrap();
        socket.read_exact(&mut echoed).await.unwrap();
        assert_eq!(&echoed, b"\x00\xffhello\r\n");
        // A half-closed stream is still answered.
        socket.write_all(b"bye").await.unwrap();
        socket.shutdown().await.unwrap();
        let mut rest = Vec::new();
        socket.read_to_end(&mut rest).await.unwrap();
        assert_eq!(rest, b"bye");
    }
}

#[tokio::test]
async fn a_stream_keeps_its_connection_s_slot() {
    let served = serve().await;
    let (url, _head, _server) = echo_server().await;
    *served.provider.streaming.lock().unwrap() = Some(url);
    let mut socket = served.connect(served.user("admin")).await.unwrap();
    let request = format!("POST {EXEC}\r\nHost: vk1\r\n{UPGRADE}\r\n\r\nping");
    socket.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"welcome ping") {
        answer.push(socket.read_u8().await.unwrap());
    }
    assert_eq!(served.metrics.connections().get(), 1);
    drop(socket);
    while served.metrics.connections().get() != 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_client_that_does_not_hang_up_keeps_no_slot() {
    let served = serve().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/exec/token", listener.local_addr().unwrap()).parse().unwrap();
    *served.provider.streaming.lock().unwrap() = Some(url);
    let mut client = served.connect(served.user("admin")).await.unwrap();
    client.write_all(format!("POST {EXEC}\r\nHost: vk1\r\n{UPGRADE}\r\n\r\n").as_bytes()).await.unwrap();
    let (mut runtime, _) = listener.accept().await.unwrap();
    let answer = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\r\nbye";
    runtime.write_all(answer.as_bytes()).await.unwrap();
    runtime.shutdown().await.unwrap();
    let mut answer = Vec::new();
    client.read_to_end(&mut answer).await.unwrap();
    assert!(answer.ends_with(b"\r\n\r\nbye"));
    // It goes on saying something to nobody.
    while served.metrics.connections().get() != 0 {
        let _ = client.write_all(b"x").await;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Headers of a client that asks for another protocol.
const UPGRADE: &str = "Connection: Upgrade\r\nUpgrade: SPDY/3.1";
const WEBSOCKET: &str = "Connection: keep-alive, upgrade\r\nUpgrade: WebSocket";

#[tokio::test]
async fn attach_and_port_forward_join_the_client_to_the_streaming_server() {
    for (target, headers, asked) in [
        (
            "GET /attach/default/web/main?input=1&output=1&error=1&tty=1",
            WEBSOCKET,
            "attach c1 AttachRequest { tty: false, stdin: true, stdout: true, stderr: false }",
        ),
        (
            "POST /attach/default/web/u1/shell?output=1&error=1",
            UPGRADE,
            "attach c2 AttachRequest { tty: true, stdin: false, stdout: true, stderr: false }",
        ),
        ("POST /portForward/default/web?port=abc", UPGRADE, "ports [] of u1"),
        ("GET /portForward/default/web/u1?port=80,81&port=82", WEBSOCKET, "ports [80, 81, 82] of u1"),
    ] {
        let served = serve().await;
        let (url, _head, _server) = echo_server().await;
        *served.provider.streaming.lock().unwrap() = Some(url);
        let mut socket = served.connect(served.user("admin")).await.unwrap();
        let request = format!("{target} HTTP/1.1\r\nHost: vk1\r\n{headers}\r\n\r\nping");
        socket.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"welcome ping") {
            answer.push(socket.read_u8().await.unwrap());
        }
        assert!(answer.starts_with(b"HTTP/1.1 101 "), "{target}");
        assert_eq!(served.provider.asked(), [asked], "{target}");
    }
}

#[tokio::test]
async fn refusals() {
    let served = serve().await;
    let cases = [
        ("/exec/default/web/main?output=1", UPGRADE, 400, "you must specify a command"),
        ("/exec/default/web/main?command=ls", UPGRADE, 400, "at least 1 of stdin, stdout, stderr"),
        ("/exec/default/web/other?command=ls&output=1", UPGRADE, 404, "container not found (\"other\")"),
        ("/exec/default/web/waiting?command=ls&output=1", UPGRADE, 400, "container not found (\"waiting\")"),
        ("/exec/default/gone/main?command=ls&output=1", UPGRADE, 404, "pod does not exist"),
        ("/exec/default/web/another-uid/main?command=ls&output=1", UPGRADE, 404, "pod not found"),
        ("/exec/default/web/main?command=cat&command=-&output=1", "X: y", 400, "Upgrade request required"),
        ("/attach/default/web/main", UPGRADE, 400, "at least 1 of stdin, stdout, stderr"),
        ("/attach/default/gone/main?output=1", UPGRADE, 404, "pod does not exist"),
        ("/attach/default/web/another-uid/main?output=1", UPGRADE, 404, "pod not found"),
        ("/attach/default/web/other?output=1", UPGRADE, 404, "container other not found in pod web_default"),
        ("/attach/default/web/waiting?output=1", UPGRADE, 400, "container \"waiting\" is not running"),
        ("/attach/default/web/main?output=1", "Upgrade: SPDY/3.1", 400, "Upgrade request required"),
        ("/attach/default/web/main?output=1", UPGRADE, 400, "container c1 is not running"),
        ("/portForward/default/gone", UPGRADE, 404, "pod does not exist"),
        ("/portForward/default/web/another-uid", UPGRADE, 404, "pod not found"),
        ("/portForward/default/web?port=80", "X: y", 400, "Upgrade request required"),
        ("/portForward/default/web", WEBSOCKET, 400, "query parameter \"port\" is required"),
        ("/portForward/default/web?port=http", WEBSOCKET, 400, "unable to parse \"http\" as a port"),
        (
            "/portForward/default/web?port=80",
            WEBSOCKET,
            404,
            "pod not found (\"web_default\"): it is not running",
        ),
    ];
    for (target, headers, code, text) in cases {
        let head = format!("POST {target} HTTP/1.1\r\n{headers}");
        let (status, body) = served.request_as_is(served.user("admin"), &head).await.unwrap();
        assert_eq!(status, code, "{target}: {body}");
        assert!(body.contains(text), "{target}: {body}");
    }
    // Nothing listens there.
    *served.provider.streaming.lock().unwrap() = Some("http://127.0.0.1:1/exec/token".parse().unwrap());
    for target in [EXEC, "/attach/default/web/main?output=1 HTTP/1.1", "/portForward/default/web HTTP/1.1"] {
        let head = format!("POST {target}\r\n{UPGRADE}");
        let (status, body) = served.request_as_is(served.user("admin"), &head).await.unwrap();
        assert_eq!(status, 502, "{target}");
        assert!(body.contains("streaming server at 127.0.0.1:1"), "{body}");
    }
}

#[tokio::test]
async fn a_provider_that_cannot_says_so() {
    let served = serve_with(Fake { is_poor: true, ..Fake::default() }).await;
    for (target, text) in [
        ("/attach/default/web/main?output=1", "provider \"fake\" can't attach to containers"),
        ("/portForward/default/web", "provider \"fake\" can't forward ports"),
    ] {
        let head = format!("POST {target} HTTP/1.1\r\n{UPGRADE}");
        let (status, body) = served.request_as_is(served.user("admin"), &head).await.unwrap();
        assert_eq!((status.as_u16(), body.as_str()), (501, text));
    }
    for target in ["/stats/summary", "/metrics/resource", "/metrics/cadvisor"] {
        let (status, body) =
            served.request(served.user("admin"), &format!("GET {target} HTTP/1.1")).await.unwrap();
        assert_eq!((status.as_u16(), body.as_str()), (501, "provider \"fake\" doesn't tell what pods use"));
    }
}
