use std::sync::Mutex;

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt as _, stream::BoxStream};
use http::{StatusCode, Uri};
use k8s_openapi::api::core::v1::Pod;
use rcgen::{CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName},
};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;
use crate::{
    config::ServingSource,
    fake_api::{self, Answer, Call, Calls},
    provider::{
        Exec, ExecError, ExecRequest, LogError, LogOptions, Logs, PodService, ProviderError, Version,
        observed::{ObservedPod, PodRef},
    },
};

/// A provider that logs and runs what a test wants.
struct Fake {
    streaming: Mutex<Option<Uri>>,
}

#[async_trait]
impl PodService for Fake {
    fn name(&self) -> &'static str {
        "fake"
    }
    async fn version(&self) -> Result<Version, ProviderError> {
        unimplemented!()
    }
    async fn ping(&self) -> Result<(), ProviderError> {
        unimplemented!()
    }
    fn refuses(&self, _: &Pod) -> Option<String> {
        None
    }
    async fn create(&self, _: &Pod) -> Result<(), ProviderError> {
        unimplemented!()
    }
    async fn delete(&self, _: &PodRef, _: u64) -> Result<(), ProviderError> {
        unimplemented!()
    }
    async fn list(&self) -> Result<std::collections::BTreeMap<PodRef, ObservedPod>, ProviderError> {
        unimplemented!()
    }
    async fn changes(&self) -> Result<Option<BoxStream<'static, String>>, ProviderError> {
        unimplemented!()
    }
    fn logs(&self) -> Option<&dyn Logs> {
        Some(self)
    }
    fn exec(&self) -> Option<&dyn Exec> {
        Some(self)
    }
}

#[async_trait]
impl Logs for Fake {
    async fn logs(
        &self,
        id: &str,
        options: &LogOptions,
    ) -> Result<BoxStream<'static, std::io::Result<Bytes>>, LogError> {
        let text = Bytes::from(format!("logs of {id}, tail {:?}\n", options.tail_lines));
        let first = futures::stream::iter([Ok(text)]);
        // What is followed never ends by itself here.
        Ok(if options.follow { first.chain(futures::stream::pending()).boxed() } else { first.boxed() })
    }
}

#[async_trait]
impl Exec for Fake {
    async fn exec(&self, id: &str, request: &ExecRequest) -> Result<Uri, ExecError> {
        assert_eq!((id, request.command.as_slice()), ("c1", ["cat".to_owned(), "-".to_owned()].as_slice()));
        Ok(self.streaming.lock().unwrap().clone().unwrap())
    }
}

struct OnePod;

impl PodSource for OnePod {
    fn get(&self, namespace: &str, name: &str) -> Option<Arc<Pod>> {
        self.list().into_iter().find(|pod| {
            pod.metadata.namespace.as_deref() == Some(namespace) && pod.metadata.name.as_deref() == Some(name)
        })
    }

    fn list(&self) -> Vec<Arc<Pod>> {
        let pod = json!({
            "metadata": { "name": "web", "namespace": "default", "uid": "u1" },
            "spec": { "containers": [{ "name": "main" }] },
            "status": { "containerStatuses": [{
                "name": "main", "image": "", "imageID": "", "ready": true, "restartCount": 0,
                "containerID": "fake://c1", "state": { "running": {} },
            }] },
        });
        vec![Arc::new(serde_json::from_value(pod).unwrap())]
    }
}

/// A certificate authority of a test.
struct Ca(CertifiedIssuer<'static, KeyPair>);

impl Ca {
    fn new(name: &str) -> Self {
        let mut parameters = CertificateParams::default();
        parameters.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        parameters.distinguished_name.push(DnType::CommonName, name);
        Self(CertifiedIssuer::self_signed(parameters, KeyPair::generate().unwrap()).unwrap())
    }

    fn issue(
        &self,
        user: &str,
        group: &str,
        usage: ExtendedKeyUsagePurpose,
    ) -> (CertificateDer<'static>, PrivateKeyDer<'static>) {
        let key = KeyPair::generate().unwrap();
        let mut parameters = CertificateParams::new(["vk1".to_owned()]).unwrap();
        parameters.distinguished_name = rcgen::DistinguishedName::new();
        parameters.distinguished_name.push(DnType::CommonName, user);
        parameters.distinguished_name.push(DnType::OrganizationName, group);
        parameters.extended_key_usages = vec![usage];
        let certificate = parameters.signed_by(&key, &self.0).unwrap();
        (certificate.der().clone(), PrivateKeyDer::Pkcs8(key.serialize_der().into()))
    }
}

type Identity = (CertificateDer<'static>, PrivateKeyDer<'static>);

/// A kubelet API on loopback.
struct Served {
    address: SocketAddr,
    server_ca: Ca,
    client_ca: Ca,
    provider: Arc<Fake>,
    calls: Calls,
    readiness: Readiness,
    stop: CancellationToken,
    _tasks: tokio::task::JoinSet<()>,
}

/// Rights in this cluster: `admin` may everything, `reader` may get but not create, `stats` may get stats alone.
fn review(call: &Call) -> Answer {
    match call.name().as_str() {
        "POST /apis/authentication.k8s.io/v1/tokenreviews" => {
            let mut review = call.body.clone();
            review["status"] = match call.body["spec"]["token"].as_str().unwrap() {
                "good" => json!({ "authenticated": true, "user": { "username": "reader" } }),
                _ => json!({ "authenticated": false, "user": { "username": "admin" } }),
            };
            Answer::Json(201, review)
        }
        "POST /apis/authorization.k8s.io/v1/subjectaccessreviews" => {
            let mut review = call.body.clone();
            let spec = &call.body["spec"];
            let attributes = &spec["resourceAttributes"];
            assert_eq!((&attributes["resource"], &attributes["name"]), (&json!("nodes"), &json!("vk1")));
            assert!(spec["groups"].as_array().unwrap().contains(&json!("system:authenticated")));
            if spec["user"] == "confused" {
                return Answer::status(500, "InternalError");
            }
            let allowed = match spec["user"].as_str().unwrap() {
                "admin" => true,
                "reader" => attributes["verb"] == "get",
                "stats" => attributes["subresource"] == "stats",
                _ => false,
            };
            review["status"] = json!({ "allowed": allowed });
            Answer::Json(201, review)
        }
        other => panic!("unexpected request: {other}"),
    }
}

async fn serve() -> Served {
    let (server_ca, client_ca) = (Ca::new("server"), Ca::new("clients"));
    let published = client_ca.0.pem();
    let (client, calls) = fake_api::client(move |call| {
        if call.path == "/api/v1/namespaces/kube-system/configmaps/extension-apiserver-authentication" {
            return Answer::ok(json!({
                "kind": "ConfigMap", "apiVersion": "v1", "metadata": { "name": "extension-apiserver-authentication" },
                "data": { "client-ca-file": published },
            }));
        }
        review(&call)
    });
    let (chain, key) =
        server_ca.issue("system:node:vk1", "system:nodes", ExtendedKeyUsagePurpose::ServerAuth);
    let key =
        rustls::sign::CertifiedKey::from_der(vec![chain], key, &rustls::crypto::ring::default_provider())
            .unwrap();
    // A port that is free now is most likely free in a moment.
    let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let provider = Arc::new(Fake { streaming: Mutex::default() });
    let readiness = Readiness::default();
    readiness.set(CONDITION, Err("not started".to_owned()));
    let stop = CancellationToken::new();
    let api = KubeletApi {
        config: KubeletApiConfig { address, client_ca_file: None, serving: ServingSource::Csr },
        node: "vk1".to_owned(),
        client,
        certificate: Resolver::fixed(key),
        pods: Arc::new(OnePod),
        provider: Provider::PodService(Arc::clone(&provider) as Arc<dyn PodService>),
        readiness: readiness.clone(),
        metrics: Metrics::default(),
    };
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn({
        let stop = stop.clone();
        async move { api.run(stop).await.unwrap() }
    });
    while !readiness.report().0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Served { address, server_ca, client_ca, provider, calls, readiness, stop, _tasks: tasks }
}

impl Served {
    fn user(&self, name: &str) -> Identity {
        self.client_ca.issue(name, "testers", ExtendedKeyUsagePurpose::ClientAuth)
    }

    async fn connect(
        &self,
        identity: impl Into<Option<Identity>>,
    ) -> std::io::Result<tokio_rustls::client::TlsStream<tokio::net::TcpStream>> {
        let mut roots = RootCertStore::empty();
        roots.add(self.server_ca.0.der().clone()).unwrap();
        let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        let config = match identity.into() {
            Some((certificate, key)) => config.with_client_auth_cert(vec![certificate], key).unwrap(),
            None => config.with_no_client_auth(),
        };
        let socket = tokio::net::TcpStream::connect(self.address).await?;
        let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
        connector.connect(ServerName::try_from("vk1").unwrap(), socket).await
    }

    /// One request on a connection of its own; status and body.
    async fn request(
        &self,
        identity: impl Into<Option<Identity>>,
        head: &str,
    ) -> std::io::Result<(StatusCode, String)> {
        let mut socket = self.connect(identity).await?;
        socket.write_all(format!("{head}\r\nHost: vk1\r\nConnection: close\r\n\r\n").as_bytes()).await?;
        let mut answer = String::new();
        // Some peers leave without a TLS farewell.
        match socket.read_to_string(&mut answer).await {
            Err(error) if answer.is_empty() => return Err(error),
            _ => {}
        }
        let status = answer.split(' ').nth(1).unwrap_or_default().parse().map_err(std::io::Error::other)?;
        Ok((status, answer.split_once("\r\n\r\n").unwrap().1.to_owned()))
    }

    async fn status(&self, identity: impl Into<Option<Identity>>, head: &str) -> u16 {
        self.request(identity, head).await.unwrap().0.as_u16()
    }
}

const PODS: &str = "GET /pods HTTP/1.1";
const LOGS: &str = "GET /containerLogs/default/web/main?tailLines=3 HTTP/1.1";
const EXEC: &str = "/exec/default/web/main?command=cat&command=-&input=1&output=1 HTTP/1.1";

#[tokio::test]
async fn who_may_what() {
    let served = serve().await;
    let with = |token: &str, head: &str| format!("{head}\r\nAuthorization: Bearer {token}");

    assert_eq!(served.status(None, PODS).await, 401, "nobody");
    assert_eq!(served.status(None, "GET /nothing-here HTTP/1.1").await, 401, "nobody learns no routes");
    assert_eq!(served.status(None, &with("bad", PODS)).await, 401, "a bad token");
    assert_eq!(served.status(None, &format!("{PODS}\r\nAuthorization: Basic YTpi")).await, 401, "no bearer");
    assert_eq!(served.status(None, &with("good", PODS)).await, 200, "a good token");

    assert_eq!(served.status(served.user("stranger"), PODS).await, 403, "no rights");
    assert_eq!(served.status(served.user("stranger"), "GET /nothing-here HTTP/1.1").await, 403);
    assert_eq!(served.status(served.user("stats"), PODS).await, 403, "other rights");
    assert_eq!(served.status(served.user("stats"), "GET /stats/summary HTTP/1.1").await, 501);
    assert_eq!(served.status(served.user("reader"), PODS).await, 200);
    assert_eq!(served.status(served.user("admin"), "GET /nothing-here HTTP/1.1").await, 404);
    assert_eq!(served.status(served.user("confused"), PODS).await, 500, "no review, no answer");

    for method in ["GET", "POST"] {
        let exec = format!("{method} {EXEC}");
        assert_eq!(
            served.status(served.user("reader"), &exec).await,
            403,
            "{method}: get is not enough for a command"
        );
        assert_eq!(served.status(None, &with("good", &exec)).await, 403, "{method}");
    }
}

#[tokio::test]
async fn a_certificate_that_is_not_a_client_s_of_this_cluster_is_refused() {
    let served = serve().await;
    let other = Ca::new("clients");
    let stranger = other.issue("admin", "system:masters", ExtendedKeyUsagePurpose::ClientAuth);
    assert!(served.request(stranger, PODS).await.is_err(), "another CA of the same name");
    let wrong_usage = served.client_ca.issue("admin", "system:masters", ExtendedKeyUsagePurpose::ServerAuth);
    assert!(served.request(wrong_usage, PODS).await.is_err(), "a server's certificate");
    assert_eq!(served.calls.count("POST /apis/authorization.k8s.io/v1/subjectaccessreviews"), 0);
}

#[tokio::test]
async fn reviews_are_remembered() {
    let served = serve().await;
    for _ in 0..3 {
        assert_eq!(served.status(None, &format!("{LOGS}\r\nAuthorization: Bearer good")).await, 200);
    }
    assert_eq!(served.calls.count("POST /apis/authentication.k8s.io/v1/tokenreviews"), 1);
    assert_eq!(served.calls.count("POST /apis/authorization.k8s.io/v1/subjectaccessreviews"), 1);
}

#[tokio::test]
async fn logs_reach_the_caller() {
    let served = serve().await;
    let (status, body) = served.request(served.user("reader"), LOGS).await.unwrap();
    assert_eq!(status, 200);
    assert!(body.contains("logs of c1, tail Some(3)\n"), "{body}");
    let (status, body) =
        served.request(served.user("reader"), "GET /containerLogs/default/none/main HTTP/1.1").await.unwrap();
    assert_eq!(status, 404);
    assert!(body.contains("pod \"none\" does not exist"), "{body}");
}

#[tokio::test]
async fn what_is_followed_is_sent_at_once_and_ends_with_us() {
    let served = serve().await;
    let mut socket = served.connect(served.user("reader")).await.unwrap();
    socket
        .write_all(b"GET /containerLogs/default/web/main?follow=true HTTP/1.1\r\nHost: vk1\r\n\r\n")
        .await
        .unwrap();
    let mut seen = String::new();
    let mut buffer = [0; 1024];
    while !seen.contains("logs of c1") {
        let length = socket.read(&mut buffer).await.unwrap();
        assert!(length > 0, "ended early: {seen}");
        seen.push_str(std::str::from_utf8(&buffer[..length]).unwrap());
    }
    served.stop.cancel();
    let mut rest = Vec::new();
    let ended = tokio::time::timeout(Duration::from_secs(10), socket.read_to_end(&mut rest)).await;
    assert!(ended.is_ok(), "a shutdown ends the connection");
}

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
async fn exec_refusals() {
    let served = serve().await;
    let ask = async |target: &str| {
        let head = format!("POST {target} HTTP/1.1");
        let (status, body) = served.request(served.user("admin"), &head).await.unwrap();
        (status.as_u16(), body)
    };
    let cases = [
        ("/exec/default/web/main?output=1", 400, "you must specify a command"),
        ("/exec/default/web/main?command=ls", 400, "at least 1 of stdin, stdout, stderr"),
        ("/exec/default/web/other?command=ls&output=1", 404, "container not found (\"other\")"),
        ("/exec/default/gone/main?command=ls&output=1", 404, "pod does not exist"),
        ("/exec/default/web/another-uid/main?command=ls&output=1", 404, "pod does not exist"),
        ("/attach/default/web/main", 501, "attach"),
        ("/portForward/default/web", 501, "port forwarding"),
    ];
    for (target, code, text) in cases {
        let (status, body) = ask(target).await;
        assert_eq!(status, code, "{target}: {body}");
        assert!(body.contains(text), "{target}: {body}");
    }
    // Nothing listens there.
    *served.provider.streaming.lock().unwrap() = Some("http://127.0.0.1:1/exec/token".parse().unwrap());
    let (status, body) = ask(EXEC.trim_end_matches(" HTTP/1.1")).await;
    assert_eq!(status, 502);
    assert!(body.contains("streaming server at 127.0.0.1:1"), "{body}");
}

#[tokio::test]
async fn garbage_and_endless_heads_cost_a_connection_and_no_more() {
    let served = serve().await;
    let mut raw = tokio::net::TcpStream::connect(served.address).await.unwrap();
    raw.write_all(&[0x55; 4096]).await.unwrap();
    let mut answer = Vec::new();
    let _ = raw.read_to_end(&mut answer).await;

    let mut socket = served.connect(None).await.unwrap();
    let flood = async {
        socket.write_all(b"GET /pods HTTP/1.1\r\n").await?;
        let line = format!("X: {}\r\n", "x".repeat(60_000));
        for _ in 0..100 {
            socket.write_all(line.as_bytes()).await?;
        }
        let mut answer = Vec::new();
        socket.read_to_end(&mut answer).await?;
        Ok::<_, std::io::Error>(String::from_utf8_lossy(&answer).into_owned())
    };
    if let Ok(answer) = flood.await {
        assert!(answer.starts_with("HTTP/1.1 431"), "{answer}");
    }
    assert_eq!(served.status(served.user("reader"), PODS).await, 200, "others are served");
    assert!(served.readiness.report().0);
}

#[tokio::test]
async fn without_a_ca_nothing_listens() {
    let (client, _) = fake_api::client(|_| Answer::status(403, "Forbidden"));
    let ca = Ca::new("server");
    let (chain, key) = ca.issue("system:node:vk1", "system:nodes", ExtendedKeyUsagePurpose::ServerAuth);
    let key =
        rustls::sign::CertifiedKey::from_der(vec![chain], key, &rustls::crypto::ring::default_provider())
            .unwrap();
    let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let readiness = Readiness::default();
    let api = |client_ca_file, client: &Client, key: &rustls::sign::CertifiedKey| KubeletApi {
        config: KubeletApiConfig { address, client_ca_file, serving: ServingSource::Csr },
        node: "vk1".to_owned(),
        client: client.clone(),
        certificate: Resolver::fixed(key.clone()),
        pods: Arc::new(OnePod),
        provider: Provider::PodService(Arc::new(Fake { streaming: Mutex::default() })),
        readiness: readiness.clone(),
        metrics: Metrics::default(),
    };
    let running = api(None, &client, &key).run(CancellationToken::new());
    assert!(tokio::time::timeout(Duration::from_millis(500), running).await.is_err(), "goes on trying");
    let (ready, report) = readiness.report();
    assert!(!ready && report.contains("extension-apiserver-authentication-reader"), "{report}");
    assert!(tokio::net::TcpStream::connect(address).await.is_err());

    let error = api(Some("/nonexistent/ca.crt".into()), &client, &key).run(CancellationToken::new()).await;
    assert_eq!(error.unwrap_err().to_string(), "can't read --client-ca-file /nonexistent/ca.crt");
}
