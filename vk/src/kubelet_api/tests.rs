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
use tokio_rustls::client::TlsStream;

use super::*;
use crate::{
    config::ServingSource,
    fake_api::{self, Answer, Call, Calls},
    provider::{
        Attach, AttachRequest, Exec, ExecError, ExecRequest, LogError, LogOptions, Logs, PodService,
        PortForward, ProviderError, Stats, StreamError, Version,
        observed::{ObservedPod, PodRef},
        usage::Usage,
    },
};

/// A provider that logs, runs and tells what a test wants.
#[derive(Default)]
struct Fake {
    streaming: Mutex<Option<Uri>>,
    usage: Mutex<Option<Usage>>,
    /// What it was asked for.
    asked: Mutex<Vec<String>>,
    /// It can log and exec, and nothing else.
    is_poor: bool,
}

impl Fake {
    fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.asked.lock().unwrap())
    }
}

#[async_trait]
impl PodService for Fake {
    fn name(&self) -> &'static str {
        "fake"
    }
    async fn version(&self) -> Result<Version, ProviderError> {
        unreachable!("no test asks for it")
    }
    async fn ping(&self) -> Result<(), ProviderError> {
        unreachable!("no test asks for it")
    }
    fn refuses(&self, _: &Pod) -> Option<String> {
        None
    }
    async fn create(&self, _: &Pod) -> Result<(), ProviderError> {
        unreachable!("no test asks for it")
    }
    async fn delete(&self, _: &PodRef, _: u64) -> Result<(), ProviderError> {
        unreachable!("no test asks for it")
    }
    async fn list(&self) -> Result<std::collections::BTreeMap<PodRef, ObservedPod>, ProviderError> {
        unreachable!("no test asks for it")
    }
    async fn changes(&self) -> Result<Option<BoxStream<'static, String>>, ProviderError> {
        unreachable!("no test asks for it")
    }
    fn logs(&self) -> Option<&dyn Logs> {
        Some(self)
    }
    fn exec(&self) -> Option<&dyn Exec> {
        Some(self)
    }
    fn attach(&self) -> Option<&dyn Attach> {
        (!self.is_poor).then_some(self as _)
    }
    fn port_forward(&self) -> Option<&dyn PortForward> {
        (!self.is_poor).then_some(self as _)
    }
    fn stats(&self) -> Option<&dyn Stats> {
        (!self.is_poor).then_some(self as _)
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

#[async_trait]
impl Attach for Fake {
    async fn attach(&self, id: &str, request: AttachRequest) -> Result<Uri, StreamError> {
        self.asked.lock().unwrap().push(format!("attach {id} {request:?}"));
        let url = self.streaming.lock().unwrap().clone();
        url.ok_or_else(|| StreamError::NotRunning(format!("container {id}")))
    }
}

#[async_trait]
impl PortForward for Fake {
    async fn port_forward(&self, uid: &str, ports: &[u16]) -> Result<Uri, StreamError> {
        self.asked.lock().unwrap().push(format!("ports {ports:?} of {uid}"));
        let url = self.streaming.lock().unwrap().clone();
        url.ok_or_else(|| StreamError::NotRunning(format!("pod {uid}")))
    }
}

#[async_trait]
impl Stats for Fake {
    async fn usage(&self) -> Result<Usage, ProviderError> {
        self.asked.lock().unwrap().push("usage".to_owned());
        let usage = self.usage.lock().unwrap().clone();
        usage.ok_or(ProviderError::Failed { operation: "usage", message: "no idea".to_owned() })
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
            "spec": {
                "containers": [{ "name": "main" }, { "name": "waiting" }],
                "ephemeralContainers": [{ "name": "shell", "tty": true, "stdin": true }],
                "volumes": [{ "name": "scratch", "emptyDir": {} }],
            },
            "status": { "containerStatuses": [{
                "name": "main", "image": "", "imageID": "", "ready": true, "restartCount": 0,
                "containerID": "fake://c1", "state": { "running": {} },
            }, {
                "name": "waiting", "image": "", "imageID": "", "ready": false, "restartCount": 0,
                "state": { "waiting": { "reason": "CrashLoopBackOff" } },
            }], "ephemeralContainerStatuses": [{
                "name": "shell", "image": "", "imageID": "", "ready": true, "restartCount": 0,
                "containerID": "fake://c2", "state": { "running": {} },
            }] },
        });
        vec![Arc::new(serde_json::from_value(pod).unwrap())]
    }

    fn phases(&self) -> HashMap<String, usize> {
        HashMap::from([("Pending".to_owned(), 1)])
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
        self.sign(&parameters(user, group, usage))
    }

    fn sign(&self, parameters: &CertificateParams) -> (CertificateDer<'static>, PrivateKeyDer<'static>) {
        let key = KeyPair::generate().unwrap();
        let certificate = parameters.signed_by(&key, &self.0).unwrap();
        (certificate.der().clone(), PrivateKeyDer::Pkcs8(key.serialize_der().into()))
    }
}

fn parameters(user: &str, group: &str, usage: ExtendedKeyUsagePurpose) -> CertificateParams {
    let mut parameters = CertificateParams::new(["vk1".to_owned()]).unwrap();
    parameters.distinguished_name = rcgen::DistinguishedName::new();
    parameters.distinguished_name.push(DnType::CommonName, user);
    parameters.distinguished_name.push(DnType::OrganizationName, group);
    parameters.extended_key_usages = vec![usage];
    parameters
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
    metrics: Metrics,
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
    serve_with(Fake::default()).await
}

/// A kubelet API that nobody has started, the CAs of its certificate and of its clients, and what it asks of the API server.
fn api(provider: Arc<Fake>) -> (KubeletApi, Ca, Ca, Calls) {
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
    let api = KubeletApi {
        config: KubeletApiConfig { address, client_ca_file: None, serving: ServingSource::Csr },
        node: "vk1".to_owned(),
        client,
        certificate: Resolver::fixed(key),
        pods: Arc::new(OnePod),
        provider: Provider::PodService(provider),
        readiness: Readiness::default(),
        metrics: Metrics::default(),
        root_dir: "/nonexistent".into(),
        configz: json!({ "kubeletconfig": { "maxPods": 110 } }),
        registry: Arc::default(),
    };
    (api, server_ca, client_ca, calls)
}

async fn serve_with(provider: Fake) -> Served {
    let provider = Arc::new(provider);
    let (api, server_ca, client_ca, calls) = api(Arc::clone(&provider));
    let (address, readiness, metrics) = (api.config.address, api.readiness.clone(), api.metrics.clone());
    readiness.set(CONDITION, Err("not started".to_owned()));
    let stop = CancellationToken::new();
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn({
        let stop = stop.clone();
        async move { api.run(stop).await.unwrap() }
    });
    while !readiness.report().0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Served { address, server_ca, client_ca, provider, calls, readiness, metrics, stop, _tasks: tasks }
}

impl Served {
    fn user(&self, name: &str) -> Identity {
        self.client_ca.issue(name, "testers", ExtendedKeyUsagePurpose::ClientAuth)
    }

    fn config(&self, identity: impl Into<Option<Identity>>) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        roots.add(self.server_ca.0.der().clone()).unwrap();
        let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        Arc::new(match identity.into() {
            Some((certificate, key)) => config.with_client_auth_cert(vec![certificate], key).unwrap(),
            None => config.with_no_client_auth(),
        })
    }

    async fn connect(&self, identity: impl Into<Option<Identity>>) -> std::io::Result<TlsStream<TcpStream>> {
        self.connect_with(self.config(identity)).await
    }

    async fn connect_with(&self, config: Arc<ClientConfig>) -> std::io::Result<TlsStream<TcpStream>> {
        let socket = TcpStream::connect(self.address).await?;
        let connector = tokio_rustls::TlsConnector::from(config);
        connector.connect(ServerName::try_from("vk1").unwrap(), socket).await
    }

    /// One request on a connection of its own; status and body.
    async fn request(
        &self,
        identity: impl Into<Option<Identity>>,
        head: &str,
    ) -> std::io::Result<(StatusCode, String)> {
        self.request_as_is(identity, &format!("{head}\r\nConnection: close")).await
    }

    /// The same, for heads that say themselves what becomes of the connection.
    async fn request_as_is(
        &self,
        identity: impl Into<Option<Identity>>,
        head: &str,
    ) -> std::io::Result<(StatusCode, String)> {
        let mut socket = self.connect(identity).await?;
        socket.write_all(format!("{head}\r\nHost: vk1\r\n\r\n").as_bytes()).await?;
        let mut answer = Vec::new();
        loop {
            // Connections stay open for a next request: the answer says how long it is.
            let text = String::from_utf8_lossy(&answer).into_owned();
            if let Some((head, body)) = text.split_once("\r\n\r\n") {
                let length =
                    head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
                if length.is_some_and(|length: usize| body.len() >= length) {
                    break;
                }
            }
            match socket.read_buf(&mut answer).await {
                // Some peers leave without a TLS farewell.
                Err(error) if answer.is_empty() => return Err(error),
                Ok(0) | Err(_) => break,
                Ok(_) => {}
            }
        }
        let answer = String::from_utf8_lossy(&answer).into_owned();
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

mod access;
mod connections;
mod hostile;
mod logs;
mod stats;
mod stream;
mod tls;
