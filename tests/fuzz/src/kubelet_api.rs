//! A request to the kubelet API, through the real routes and their guard, with a provider that writes down what it is asked for. The
//! first line is the request's, such as `GET /pods`; each word of the others is a header (`websocket`, `spdy`), a way to be nobody
//! (`no-token`, `bad-token`, `basic`) or a right that the caller has, such as `get/proxy`.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, LazyLock, Mutex},
};

use async_trait::async_trait;
use axum::body::Body;
use bytes::Bytes;
use futures::{StreamExt as _, stream::BoxStream};
use http::{Method, Request, Response, StatusCode, Uri};
use http_body_util::BodyExt as _;
use k8s_openapi::api::core::v1::Pod;
use kube::Client;
use serde_json::{Value, json};
use spillway_daemon::admin::Readiness;
use spillway_vk::{
    config::{KubeletApiConfig, ServingSource},
    identity::serving::{Resolver, Serving},
    kubelet_api::{KubeletApi, PodSource},
    metrics::Metrics,
    provider::{
        Attach, AttachRequest, Exec, ExecError, ExecRequest, LogError, LogOptions, Logs, PodService,
        PortForward, Provider, ProviderError, Stats, StreamError, Version,
        observed::{ObservedPod, PodRef},
        usage::Usage,
    },
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::ServiceExt as _;

/// What the provider was asked for.
#[derive(Debug)]
enum Asked {
    Logs(String, LogOptions),
    Exec(String, ExecRequest),
    Attach(String),
    Forward(String, Vec<u16>),
    Usage,
}

/// Names that are easily taken for each other.
const PODS: [(&str, &str, &str, &[&str]); 4] = [
    ("default", "web", "u1", &["main", "side"]),
    ("other", "web", "u2", &["main"]),
    ("default", "web2", "u3", &["main", "default"]),
    ("web", "default", "u4", &["web"]),
];

/// Sends the request, and looks at what came of it.
pub fn run(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let (line, rest) = text.split_once('\n').unwrap_or((&text, ""));
    let (method, target) = line.split_once(' ').unwrap_or(("GET", line));
    let (Ok(method), Ok(uri)) = (Method::from_bytes(method.as_bytes()), target.parse::<Uri>()) else {
        return;
    };
    let words: BTreeSet<&str> = rest.split_whitespace().collect();
    let mut request = Request::builder().method(&method).uri(&uri);
    let nobody = ["no-token", "bad-token", "basic"].into_iter().find(|way| words.contains(way));
    request = match nobody {
        Some("no-token") => request,
        Some("bad-token") => request.header("Authorization", "Bearer bad"),
        Some(_) => request.header("Authorization", "Basic good"),
        None => request.header("Authorization", "Bearer good"),
    };
    if words.contains("websocket") {
        request = request.header("Connection", "keep-alive, Upgrade").header("Upgrade", "websocket");
    } else if words.contains("spdy") {
        request = request.header("Connection", "Upgrade").header("Upgrade", "SPDY/3.1");
    }
    let Ok(request) = request.body(Body::empty()) else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    let rights: BTreeSet<String> = words.iter().map(|word| (*word).to_owned()).collect();
    let (status, body, asked) = runtime.block_on(send(request, rights.clone()));
    if nobody.is_some() {
        // The same answer whatever was asked for.
        assert!(status == StatusCode::UNAUTHORIZED && body == b"Unauthorized", "{line}: {status} for nobody");
    }
    if matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) {
        assert!(asked.is_empty(), "{status}, and yet {asked:?}");
    }
    let has = |verb: &str, subresource: &str| rights.contains(&format!("{verb}/{subresource}"));
    // Whoever has no right at all learns nothing, not even which routes there are.
    if nobody.is_none() && status != StatusCode::FORBIDDEN {
        let verb = verb(&method);
        assert!(rights.iter().any(|right| right.starts_with(&format!("{verb}/"))), "{line}: {status}");
    }
    for asked in &asked {
        allowed(asked, &method, &uri, &has);
        meant(asked, &uri);
    }
    let is_list = serde_json::from_slice::<Value>(&body).is_ok_and(|list| list.get("items").is_some());
    if is_list {
        assert!(has("get", "pods") || has("get", "proxy"), "{line}: a list of pods");
    }
}

/// As the API's documentation maps methods.
fn verb(method: &Method) -> &'static str {
    match method.as_str() {
        "GET" | "HEAD" => "get",
        "PUT" => "update",
        "PATCH" => "patch",
        "DELETE" => "delete",
        _ => "create",
    }
}

/// What was done was within the caller's rights.
fn allowed(asked: &Asked, method: &Method, uri: &Uri, has: &dyn Fn(&str, &str) -> bool) {
    let verb = verb(method);
    match asked {
        Asked::Logs(..) => assert!(has("get", "proxy"), "{uri}: {asked:?}"),
        Asked::Exec(..) | Asked::Attach(_) | Asked::Forward(..) => {
            assert!(has("create", "proxy") && has(verb, "proxy"), "{method} {uri}: {asked:?}");
        }
        Asked::Usage if uri.path().starts_with("/stats/") => assert!(has(verb, "stats"), "{method} {uri}"),
        Asked::Usage => {
            assert!(uri.path().starts_with("/metrics/") && has("get", "metrics"), "{method} {uri}");
        }
    }
}

/// What was done was done to what the path names, with what the query says.
fn meant(asked: &Asked, uri: &Uri) {
    let names: Vec<String> = uri.path().split('/').skip(1).map(|part| decoded(part, false)).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let query: Vec<(String, String)> = uri
        .query()
        .unwrap_or_default()
        .split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .map(|(key, value)| (decoded(key, true), decoded(value, true)))
        .collect();
    let all = |key: &str| -> Vec<String> {
        query.iter().filter(|(name, _)| name == key).map(|(_, value)| value.clone()).collect()
    };
    let is = |id: &str, kind: &str| match names.as_slice() {
        [found, namespace, pod, container] if *found == kind => *id == id_of(namespace, pod, None, container),
        [found, namespace, pod, uid, container] if *found == kind => {
            *id == id_of(namespace, pod, Some(uid), container)
        }
        _ => false,
    };
    match asked {
        Asked::Logs(id, options) => {
            assert!(is(id, "containerLogs") && names.len() == 4, "{uri}: {id}");
            let first = |key: &str| all(key).into_iter().next();
            if first("tail").is_none() {
                let tail = first("tailLines").map(|text| text.parse::<u64>().expect("a number"));
                assert_eq!(options.tail_lines, tail, "{uri}");
            }
            let limit = first("limitBytes").map(|text| text.parse::<u64>().expect("a number"));
            assert_eq!(options.limit_bytes, limit, "{uri}");
            assert!(limit != Some(0), "{uri}");
            let follow = first("follow").is_some_and(|text| text != "false" && text != "0");
            assert_eq!(options.follow, follow, "{uri}");
            assert_eq!(
                options.since.is_some(),
                first("sinceSeconds").or(first("sinceTime")).is_some(),
                "{uri}"
            );
        }
        Asked::Exec(id, request) => {
            assert!(is(id, "exec"), "{uri}: {id}");
            assert_eq!(request.command, all("command"), "{uri}");
            assert!(!request.command.is_empty(), "{request:?}");
            assert!(!request.tty || !request.stderr, "{request:?}");
        }
        Asked::Attach(id) => assert!(is(id, "attach"), "{uri}: {id}"),
        Asked::Forward(uid, ports) => {
            let (namespace, pod, asked) = match names.as_slice() {
                ["portForward", namespace, pod] => (namespace, pod, None),
                ["portForward", namespace, pod, uid] => (namespace, pod, Some(*uid)),
                _ => panic!("{uri}: {uid}"),
            };
            let found =
                PODS.iter().find(|known| known.0 == *namespace && known.1 == *pod).map(|known| known.2);
            assert!(found == Some(uid.as_str()) && asked.is_none_or(|asked| asked == uid), "{uri}: {uid}");
            let said = all("port").join(",");
            let is_said = ports.iter().all(|port| said.split(',').any(|said| said.parse() == Ok(*port)));
            assert!(is_said && ports.len() <= 128 && !ports.contains(&0), "{uri}: {ports:?}");
        }
        Asked::Usage => {}
    }
}

fn id_of(namespace: &str, pod: &str, uid: Option<&str>, container: &str) -> String {
    let found = PODS.iter().find(|known| known.0 == namespace && known.1 == pod);
    let found = found.unwrap_or_else(|| panic!("no pod is called {namespace:?}/{pod:?}"));
    assert!(uid.is_none_or(|uid| uid == found.2), "pod {namespace}/{pod} is not {uid:?}");
    assert!(found.3.contains(&container), "pod {namespace}/{pod} has no {container:?}");
    format!("{}.{container}", found.2)
}

/// RFC 3986, 2.1; a query writes blanks as `+`.
fn decoded(text: &str, is_query: bool) -> String {
    let hex = |at: usize| {
        let digits = text.as_bytes().get(at + 1..at + 3)?;
        (digits.iter().all(u8::is_ascii_hexdigit))
            .then(|| u8::from_str_radix(&text[at + 1..at + 3], 16).ok())?
    };
    let mut out = Vec::new();
    let mut at = 0;
    while at < text.len() {
        let (byte, length) = match text.as_bytes()[at] {
            b'%' => hex(at).map_or((b'%', 1), |byte| (byte, 3)),
            b'+' if is_query => (b' ', 1),
            byte => (byte, 1),
        };
        out.push(byte);
        at += length;
    }
    String::from_utf8_lossy(&out).into_owned()
}

async fn send(request: Request<Body>, rights: BTreeSet<String>) -> (StatusCode, Vec<u8>, Vec<Asked>) {
    static CERTIFICATE: LazyLock<Resolver> = LazyLock::new(certificate);
    let provider = Arc::new(Recorder::default());
    let api = KubeletApi {
        config: KubeletApiConfig {
            address: ([127, 0, 0, 1], 0).into(),
            client_ca_file: None,
            serving: ServingSource::SelfSigned,
        },
        node: "vk1".to_owned(),
        client: reviewer(rights),
        certificate: CERTIFICATE.clone(),
        pods: Arc::new(Known),
        provider: Provider::PodService(Arc::clone(&provider) as Arc<dyn PodService>),
        readiness: Readiness::default(),
        metrics: Metrics::default(),
        root_dir: "/nonexistent".into(),
        configz: json!({}),
        registry: Arc::default(),
    };
    let router = api.router(TaskTracker::new(), CancellationToken::new());
    let response = router.oneshot(request).await.expect("it never fails");
    let status = response.status();
    let body = response.into_body().collect().await.map(|body| body.to_bytes().to_vec()).unwrap_or_default();
    let asked = std::mem::take(&mut *provider.0.lock().expect("nobody panics with it"));
    (status, body, asked)
}

/// Nobody connects with it.
fn certificate() -> Resolver {
    let client = Client::new(
        tower::service_fn(|_| async { Ok::<_, kube::Error>(Response::new(Body::empty())) }),
        "default",
    );
    let folder = std::path::Path::new("/nonexistent");
    let address = [127, 0, 0, 1].into();
    Serving::new(
        ServingSource::SelfSigned,
        "vk1",
        address,
        folder,
        client,
        Readiness::default(),
        Metrics::default(),
    )
    .expect("a certificate")
    .1
}

/// An API server that knows one token, and what its owner may.
fn reviewer(rights: BTreeSet<String>) -> Client {
    let rights = Arc::new(rights);
    let service = tower::service_fn(move |request: Request<kube::client::Body>| {
        let rights = Arc::clone(&rights);
        async move {
            let bytes = request.into_body().collect().await.expect("it is in memory").to_bytes();
            let mut review: Value = serde_json::from_slice(&bytes).expect("a review");
            let attributes = &review["spec"]["resourceAttributes"];
            let right = |key: &str| attributes[key].as_str().unwrap_or_default();
            review["status"] = if attributes.is_null() {
                let is_known = review["spec"]["token"] == "good";
                json!({ "authenticated": is_known, "user": { "username": "somebody" } })
            } else {
                assert_eq!((right("resource"), right("name")), ("nodes", "vk1"));
                json!({ "allowed": rights.contains(&format!("{}/{}", right("verb"), right("subresource"))) })
            };
            let answer = Response::builder().status(201).body(Body::from(review.to_string()));
            Ok::<_, kube::Error>(answer.expect("a sound answer"))
        }
    });
    Client::new(service, "default")
}

struct Known;

impl PodSource for Known {
    fn get(&self, namespace: &str, name: &str) -> Option<Arc<Pod>> {
        let is = |pod: &Arc<Pod>| {
            let meta = &pod.metadata;
            meta.namespace.as_deref() == Some(namespace) && meta.name.as_deref() == Some(name)
        };
        self.list().into_iter().find(is)
    }

    fn list(&self) -> Vec<Arc<Pod>> {
        static PARSED: LazyLock<Vec<Arc<Pod>>> = LazyLock::new(|| PODS.iter().map(pod).collect());
        PARSED.clone()
    }

    fn phases(&self) -> HashMap<String, usize> {
        HashMap::new()
    }
}

fn pod((namespace, name, uid, containers): &(&str, &str, &str, &[&str])) -> Arc<Pod> {
    let specs: Vec<Value> = containers.iter().map(|name| json!({ "name": name })).collect();
    let status = |container: &&str| {
        let (id, previous) = (format!("fake://{uid}.{container}"), format!("fake://{uid}.{container}"));
        json!({
            "name": container, "image": "", "imageID": "", "ready": true, "restartCount": 1, "containerID": id,
            "state": { "running": {} },
            "lastState": { "terminated": { "exitCode": 1, "containerID": previous } },
        })
    };
    let statuses: Vec<Value> = containers.iter().map(status).collect();
    let pod = json!({
        "metadata": { "namespace": namespace, "name": name, "uid": uid },
        "spec": { "containers": specs },
        "status": { "containerStatuses": statuses },
    });
    Arc::new(serde_json::from_value(pod).expect("a pod"))
}

/// A provider that does nothing and remembers what.
#[derive(Default)]
struct Recorder(Mutex<Vec<Asked>>);

impl Recorder {
    fn asked(&self, what: Asked) {
        self.0.lock().expect("nobody panics with it").push(what);
    }
}

#[async_trait]
impl PodService for Recorder {
    fn name(&self) -> &'static str {
        "recorder"
    }
    async fn version(&self) -> Result<Version, ProviderError> {
        unreachable!()
    }
    async fn ping(&self) -> Result<(), ProviderError> {
        unreachable!()
    }
    fn refuses(&self, _: &Pod) -> Option<String> {
        None
    }
    async fn create(&self, _: &Pod) -> Result<(), ProviderError> {
        unreachable!()
    }
    async fn delete(&self, _: &PodRef, _: u64) -> Result<(), ProviderError> {
        unreachable!()
    }
    async fn list(&self) -> Result<BTreeMap<PodRef, ObservedPod>, ProviderError> {
        unreachable!()
    }
    async fn changes(&self) -> Result<Option<BoxStream<'static, String>>, ProviderError> {
        unreachable!()
    }
    fn logs(&self) -> Option<&dyn Logs> {
        Some(self)
    }
    fn exec(&self) -> Option<&dyn Exec> {
        Some(self)
    }
    fn attach(&self) -> Option<&dyn Attach> {
        Some(self)
    }
    fn port_forward(&self) -> Option<&dyn PortForward> {
        Some(self)
    }
    fn stats(&self) -> Option<&dyn Stats> {
        Some(self)
    }
}

#[async_trait]
impl Logs for Recorder {
    async fn logs(
        &self,
        id: &str,
        options: &LogOptions,
    ) -> Result<BoxStream<'static, std::io::Result<Bytes>>, LogError> {
        self.asked(Asked::Logs(id.to_owned(), options.clone()));
        Ok(futures::stream::empty().boxed())
    }
}

#[async_trait]
impl Exec for Recorder {
    async fn exec(&self, id: &str, request: &ExecRequest) -> Result<Uri, ExecError> {
        self.asked(Asked::Exec(id.to_owned(), request.clone()));
        Err(ExecError::NotRunning(id.to_owned()))
    }
}

#[async_trait]
impl Attach for Recorder {
    async fn attach(&self, id: &str, _: AttachRequest) -> Result<Uri, StreamError> {
        self.asked(Asked::Attach(id.to_owned()));
        Err(StreamError::NotRunning(id.to_owned()))
    }
}

#[async_trait]
impl PortForward for Recorder {
    async fn port_forward(&self, uid: &str, ports: &[u16]) -> Result<Uri, StreamError> {
        self.asked(Asked::Forward(uid.to_owned(), ports.to_vec()));
        Err(StreamError::NotRunning(uid.to_owned()))
    }
}

#[async_trait]
impl Stats for Recorder {
    async fn usage(&self) -> Result<Usage, ProviderError> {
        self.asked(Asked::Usage);
        Ok(Usage::default())
    }
}
