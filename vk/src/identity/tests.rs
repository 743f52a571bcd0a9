use std::{
    os::unix::fs::PermissionsExt as _,
    sync::{Arc, Mutex},
    time::Duration,
};

use kube::Api;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::*;
use crate::fake_api::{self, Answer, Call, Calls};

pub(super) mod signer;

use signer::Signer as Authority;

/// Seconds that certificates live from now on, and whether requests are approved.
#[derive(Clone)]
pub(super) struct Approver {
    pub(super) authority: Arc<Authority>,
    pub(super) state: Arc<Mutex<State>>,
}

pub(super) struct State {
    pub(super) requests: Vec<Value>,
    /// Which of the requests came with a token.
    pub(super) tokens: Vec<bool>,
    pub(super) lives: Vec<i64>,
    pub(super) refuse: Option<&'static str>,
}

const CSRS: &str = "/apis/certificates.k8s.io/v1/certificatesigningrequests";

impl Approver {
    /// Signs the first request for the first of `lives`, and so on; the last one goes for all after it.
    pub(super) fn new(lives: &[i64]) -> Self {
        let state = State { requests: Vec::new(), tokens: Vec::new(), lives: lives.to_vec(), refuse: None };
        Self { authority: Arc::new(Authority::new()), state: Arc::new(Mutex::new(state)) }
    }

    pub(super) fn answer(&self, call: &Call) -> Answer {
        let mut state = self.state.lock().unwrap();
        match call.name().as_str() {
            name if name == format!("POST {CSRS}") => {
                let name = &call.body["metadata"]["name"];
                if state.requests.iter().any(|request| request["metadata"]["name"] == *name) {
                    return Answer::status(409, "AlreadyExists");
                }
                let mut request = call.body.clone();
                let life = if state.lives.len() > 1 { state.lives.remove(0) } else { state.lives[0] };
                request["metadata"]["resourceVersion"] = json!("1");
                request["status"] = match state.refuse {
                    Some(kind) => {
                        json!({ "conditions": [{ "type": kind, "status": "True", "message": "no" }] })
                    }
                    None => json!({ "certificate": self.authority.sign(&call.body, life) }),
                };
                state.requests.push(request.clone());
                state.tokens.push(call.with_token);
                Answer::Json(201, request)
            }
            name if name == format!("GET {CSRS}") => {
                let wanted =
                    |request: &&Value| call.query.contains(request["metadata"]["name"].as_str().unwrap());
                let items: Vec<_> = state.requests.iter().filter(wanted).cloned().collect();
                Answer::ok(json!({
                    "kind": "CertificateSigningRequestList", "apiVersion": "certificates.k8s.io/v1",
                    "metadata": { "resourceVersion": "1" }, "items": items,
                }))
            }
            "GET /api/v1/nodes/vk1" => Answer::ok(json!({
                "kind": "Node", "apiVersion": "v1", "metadata": { "name": "vk1" },
            })),
            other => panic!("unexpected request: {other}"),
        }
    }
}

struct Bootstrapped {
    folder: tempfile::TempDir,
    approver: Approver,
    config: IdentityConfig,
    calls: Calls,
    tasks: JoinSet<()>,
}

/// A cluster that signs, and a bootstrap kubeconfig for it.
async fn cluster(lives: &[i64]) -> Bootstrapped {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let approver = Approver::new(lives);
    let (url, calls, tasks) = fake_api::serve({
        let approver = approver.clone();
        move |call| approver.answer(&call)
    })
    .await;
    let folder = tempfile::tempdir().unwrap();
    let bootstrap = folder.path().join("bootstrap.kubeconfig");
    let text = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [{ "name": "k", "cluster": { "server": url } }],
        "contexts": [{ "name": "c", "context": { "cluster": "k", "user": "u" } }],
        "users": [{ "name": "u", "user": { "token": "abc.secret" } }],
    });
    std::fs::write(&bootstrap, text.to_string()).unwrap();
    let config = IdentityConfig {
        kubeconfig: None,
        bootstrap_kubeconfig: Some(bootstrap),
        cert_dir: folder.path().join("pki"),
    };
    Bootstrapped { folder, approver, config, calls, tasks }
}

impl Bootstrapped {
    /// Starts an identity and asks for the node with it, which waits for the certificate.
    async fn start(&mut self, node: &str) -> Readiness {
        let readiness = Readiness::default();
        let (identity, client, _) =
            Identity::new(&self.config, node, readiness.clone(), Metrics::default()).await.unwrap();
        self.tasks.spawn(async move { identity.run(CancellationToken::new()).await.unwrap() });
        let nodes: Api<k8s_openapi::api::core::v1::Node> = Api::all(client);
        tokio::time::timeout(Duration::from_secs(20), nodes.get("vk1")).await.unwrap().unwrap();
        readiness
    }

    fn requests(&self) -> usize {
        self.approver.state.lock().unwrap().requests.len()
    }
}

#[tokio::test]
async fn bootstrap_gets_a_certificate_and_keeps_it() {
    let mut cluster = cluster(&[3600]).await;
    let readiness = cluster.start("vk1").await;
    assert!(readiness.report().0, "{}", readiness.report().1);

    let request = cluster.approver.state.lock().unwrap().requests[0].clone();
    assert_eq!(request["spec"]["signerName"], "kubernetes.io/kube-apiserver-client-kubelet");
    assert_eq!(request["spec"]["usages"], json!(["digital signature", "client auth"]));

    let certificate = cluster.config.cert_dir.join("spillway-vk-client.pem");
    assert_eq!(std::fs::metadata(&certificate).unwrap().permissions().mode() & 0o777, 0o600);
    let kubeconfig = std::fs::read_to_string(cluster.config.cert_dir.join("kubeconfig")).unwrap();
    assert!(
        kubeconfig.contains("system:node:vk1") && kubeconfig.contains("spillway-vk-client.pem"),
        "{kubeconfig}"
    );
    assert!(!kubeconfig.contains("abc.secret"), "the token stays where it was");
    let left: Vec<_> = std::fs::read_dir(&cluster.config.cert_dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(left.len(), 2, "no key of a request is left: {left:?}");

    // A restart asks for nothing, also when the bootstrap file is gone.
    cluster.start("vk1").await;
    std::fs::remove_file(cluster.folder.path().join("bootstrap.kubeconfig")).unwrap();
    cluster.start("vk1").await;
    cluster.config.bootstrap_kubeconfig = None;
    cluster.start("vk1").await;
    assert_eq!(cluster.requests(), 1);
    assert_eq!(cluster.calls.count(&format!("POST {CSRS}")), 1);
}

#[tokio::test]
async fn another_node_s_certificate_is_not_used() {
    let mut cluster = cluster(&[3600]).await;
    cluster.start("vk1").await;
    cluster.start("vk2").await;
    assert_eq!(cluster.requests(), 2);
}

#[tokio::test]
async fn a_certificate_is_renewed_with_itself_before_it_ends() {
    // The first is past nine tenths of its life when it is signed.
    let mut cluster = cluster(&[30, 3600]).await;
    cluster.start("vk1").await;
    for _ in 0..200 {
        if cluster.requests() == 2 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(
        cluster.approver.state.lock().unwrap().tokens,
        [true, false],
        "with the token once, then without it"
    );
    let first = cluster.approver.state.lock().unwrap().requests[0]["metadata"]["name"].clone();
    let second = cluster.approver.state.lock().unwrap().requests[1]["metadata"]["name"].clone();
    assert_ne!(first, second, "a new key");
}

#[tokio::test]
async fn an_ended_certificate_without_a_bootstrap_file_ends_the_process_with_a_word() {
    let mut cluster = cluster(&[3600]).await;
    cluster.start("vk1").await;
    std::fs::remove_file(cluster.config.cert_dir.join("spillway-vk-client.pem")).unwrap();
    cluster.config.bootstrap_kubeconfig = None;
    let (identity, _, _) =
        Identity::new(&cluster.config, "vk1", Readiness::default(), Metrics::default()).await.unwrap();
    let error = identity.run(CancellationToken::new()).await.unwrap_err().to_string();
    assert!(
        error.contains("no valid certificate for node vk1") && error.contains("--bootstrap-kubeconfig"),
        "{error}"
    );
}

#[test]
fn what_the_api_server_answers_stands_in_its_own_words() {
    #[derive(Debug, thiserror::Error)]
    #[error("can't read the pod")]
    struct Unread(#[source] kube::Error);

    let answer = kube::core::Status::failure("pods \"p\" is forbidden", "Forbidden").with_code(403);
    let error = Unread(kube::Error::Api(answer.boxed()));
    assert_eq!(chain(&error), "can't read the pod: pods \"p\" is forbidden");
    let away = Unread(kube::Error::Service(std::io::Error::other("connection refused").into()));
    assert_eq!(chain(&away), "can't read the pod: connection refused");
}

#[tokio::test]
async fn start_up_errors_say_what_and_where() {
    let nothing =
        IdentityConfig { kubeconfig: None, bootstrap_kubeconfig: None, cert_dir: "/nonexistent".into() };
    let problem = async |config: &IdentityConfig| {
        let error =
            Identity::new(config, "vk1", Readiness::default(), Metrics::default()).await.err().unwrap();
        chain(&error)
    };
    assert!(problem(&nothing).await.starts_with("no way to the API server: give --kubeconfig"));
    let missing = IdentityConfig { kubeconfig: Some("/nonexistent/kubeconfig".into()), ..nothing.clone() };
    let text = problem(&missing).await;
    assert!(text.starts_with("can't use kubeconfig /nonexistent/kubeconfig: "), "{text}");
    assert!(text.contains("No such file"), "{text}");
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_is_set_right_lets_no_certificate_run_out() {
    let begun = tokio::time::Instant::now();
    // A machine that starts years back, and is told the time after ten minutes.
    let clock = || {
        let up = begun.elapsed().as_secs();
        let known = if up < 600 { 0 } else { 1_000_000_000 };
        jiff::Timestamp::from_second(known + i64::try_from(up).unwrap()).unwrap()
    };
    sleep_until_by(clock, jiff::Timestamp::from_second(900_000_000).unwrap()).await;
    let took = begun.elapsed();
    assert!(took >= Duration::from_mins(10) && took <= Duration::from_mins(10) + CLOCK_LOOK, "{took:?}");
    sleep_until_by(clock, jiff::Timestamp::from_second(5).unwrap()).await;
    assert_eq!(begun.elapsed(), took, "that is past");
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_stays_silent_is_given_up() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut held = Vec::new();
        loop {
            held.push(listener.accept().await.unwrap());
        }
    });
    let client = connect(Config::new(url.parse().unwrap())).unwrap();
    let nodes: Api<k8s_openapi::api::core::v1::Node> = Api::all(client);
    let begun = tokio::time::Instant::now();
    nodes.get("vk1").await.unwrap_err();
    assert!(begun.elapsed() >= SILENCE, "{:?}", begun.elapsed());
}
