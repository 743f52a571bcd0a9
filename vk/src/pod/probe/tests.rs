#![allow(clippy::needless_pass_by_value)] // `json!` reads best where it is used.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    service::TowerToHyperService,
};
use serde_json::{Value, json};
use spillway_proto::health::{
    HealthCheckRequest, HealthCheckResponse, health_check_response::ServingStatus, health_server,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
    task::JoinSet,
};

use super::{
    action::{Action, Outcome, attempt, of_hook, of_probe, run_hook},
    *,
};
use crate::pod::worker::tests::fakes::Runtime;

const LIMIT: Duration = Duration::from_secs(5);

fn container() -> Container {
    let ports = json!([{ "name": "web", "containerPort": 8080 }, { "name": "bad", "containerPort": 0 }]);
    serde_json::from_value(json!({ "name": "a", "ports": ports, "env": [{ "name": "X", "value": "1" }] }))
        .unwrap()
}

fn probe(probe: Value) -> Probe {
    serde_json::from_value(probe).unwrap()
}

fn action(text: Value) -> Result<Action, String> {
    of_probe(&probe(text), &container(), "10.1.0.9")
}

fn http(text: Value) -> super::http::Get {
    match action(json!({ "httpGet": text })) {
        Ok(Action::Http(get)) => get,
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_is_asked_follows_from_the_fields() {
    assert_eq!(
        action(json!({ "exec": { "command": ["sh", "$(X)", "$(Y)"] } })),
        Ok(Action::Exec(vec!["sh".into(), "1".into(), "$(Y)".into()]))
    );
    let tcp = |host: &str, port| Ok(Action::Tcp { host: host.to_owned(), port });
    assert_eq!(action(json!({ "tcpSocket": { "port": "web" } })), tcp("10.1.0.9", 8080));
    assert_eq!(action(json!({ "tcpSocket": { "port": "81", "host": "h" } })), tcp("h", 81));
    for port in [json!("nope"), json!("bad"), json!(0), json!(65_536), json!(-1)] {
        assert!(action(json!({ "tcpSocket": { "port": port } })).is_err(), "{port}");
    }
    assert_eq!(
        action(json!({ "grpc": { "port": 9, "service": "s" } })),
        Ok(Action::Grpc { host: "10.1.0.9".into(), port: 9, service: "s".into() })
    );
    assert!(action(json!({})).is_err());
}

#[test]
fn requests_carry_a_kubelets_headers_unless_the_pod_says_otherwise() {
    let plain = http(json!({ "port": "web", "path": "/x" }));
    assert_eq!(plain.url.to_string(), "http://10.1.0.9:8080/x");
    assert_eq!(
        (&plain.headers["user-agent"], &plain.headers["accept"]),
        (&"kube-probe/1.35".parse().unwrap(), &"*/*".parse().unwrap())
    );
    let headers = json!([
        { "name": "user-agent", "value": "me" }, { "name": "Accept", "value": "" },
        { "name": "Host", "value": "example.com" }, { "name": "X-A", "value": "1" }, { "name": "X-A", "value": "2" },
    ]);
    let own = http(json!({ "port": 1, "scheme": "HTTPS", "host": "h", "httpHeaders": headers }));
    assert_eq!(own.url.to_string(), "https://h:1/");
    assert_eq!(own.headers["user-agent"], "me");
    assert!(!own.headers.contains_key("accept") && !own.headers.contains_key("host"));
    assert_eq!(own.host.unwrap(), "example.com");
    assert_eq!(own.headers.get_all("x-a").iter().count(), 2);
}

#[test]
fn hooks_do_what_probes_do_not() {
    let hook = |hook: Value| of_hook(&serde_json::from_value(hook).unwrap(), &container(), "10.1.0.9");
    assert_eq!(hook(json!({ "sleep": { "seconds": 3 } })), Ok(Action::Sleep(Duration::from_secs(3))));
    assert!(hook(json!({ "tcpSocket": { "port": 1 } })).is_err());
    let Ok(Action::Http(get)) = hook(json!({ "httpGet": { "port": 1 } })) else { panic!("it is a request") };
    assert_eq!(get.headers["user-agent"], "kube-lifecycle/1.35");
}

/// Answers each connection with the next of these, and keeps what was asked.
struct Server {
    port: u16,
    asked: Arc<Mutex<Vec<String>>>,
    _task: JoinSet<()>,
}

async fn server(answers: Vec<String>) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let asked: Arc<Mutex<Vec<String>>> = Arc::default();
    let mut task = JoinSet::new();
    let kept = Arc::clone(&asked);
    task.spawn(async move {
        for answer in answers {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                match stream.read_u8().await {
                    Ok(byte) => request.push(byte),
                    Err(_) => break,
                }
            }
            kept.lock().unwrap().push(String::from_utf8_lossy(&request).into_owned());
            let _ = stream.write_all(answer.as_bytes()).await;
        }
        // Whoever comes now is left waiting.
        let mut open = Vec::new();
        while let Ok((stream, _)) = listener.accept().await {
            open.push(stream);
        }
    });
    Server { port, asked, _task: task }
}

fn answer(status: &str, headers: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\n{headers}Content-Length: {}\r\n\r\n{body}", body.len())
}

async fn ask(server: &Server) -> Outcome {
    let get = json!({ "httpGet": { "port": server.port, "path": "/start" } });
    let action = of_probe(&probe(get), &container(), "127.0.0.1").unwrap();
    attempt(&action, &Runtime::default(), "c", LIMIT).await.unwrap()
}

#[tokio::test]
async fn statuses_are_judged_as_a_kubelet_judges() {
    for (status, good) in [
        ("200 OK", true),
        ("204 No Content", true),
        ("404 Not Found", false),
        ("500 x", false),
        ("101 x", false),
    ] {
        let server = server(vec![answer(status, "", "secret")]).await;
        let outcome = ask(&server).await;
        assert_eq!(outcome == Outcome::Good, good, "{status}: {outcome:?}");
        assert!(!format!("{outcome:?}").contains("secret"));
        let asked = server.asked.lock().unwrap()[0].to_ascii_lowercase();
        assert!(asked.starts_with("get /start http/1.1\r\n"), "{asked}");
        let host = format!("host: 127.0.0.1:{}\r\n", server.port);
        for header in
            [host.as_str(), "user-agent: kube-probe/1.35\r\n", "accept: */*\r\n", "connection: close\r\n"]
        {
            assert!(asked.contains(header), "{header:?} is not in {asked}");
        }
    }
}

#[tokio::test]
async fn redirects_are_followed_on_the_same_host_and_not_for_ever() {
    let found = |to: &str| answer("302 Found", &format!("Location: {to}\r\n"), "");
    let near = server(vec![found("/next?x=1"), answer("200 OK", "", "")]).await;
    assert_eq!(ask(&near).await, Outcome::Good);
    let second = near.asked.lock().unwrap()[1].clone();
    assert!(second.starts_with("GET /next?x=1 "), "{second}");

    let far = server(vec![answer("302 Found", "Location: http://example.com/\r\n", "gone there")]).await;
    let text = "Probe terminated redirects, Response body: gone there".to_owned();
    assert_eq!(ask(&far).await, Outcome::Warning(text));
    assert_eq!(far.asked.lock().unwrap().len(), 1);

    let round = server(vec![found("/start"); 20]).await;
    let Outcome::Bad(text) = ask(&round).await else { panic!("it ends badly") };
    assert!(text.ends_with("stopped after 10 redirects"), "{text}");
    assert_eq!(round.asked.lock().unwrap().len(), 10);
}

#[tokio::test]
async fn nobody_is_waited_for_and_nothing_endless_is_read() {
    let silent = server(Vec::new()).await;
    let get = json!({ "httpGet": { "port": silent.port } });
    let get = of_probe(&probe(get), &container(), "127.0.0.1").unwrap();
    let outcome = attempt(&get, &Runtime::default(), "c", Duration::from_millis(50)).await.unwrap();
    let expected = format!(
        "Get \"http://127.0.0.1:{}/\": context deadline exceeded (Client.Timeout exceeded while awaiting headers)",
        silent.port
    );
    assert_eq!(outcome, Outcome::Bad(expected));

    // More than is promised to be read, and no end.
    let endless =
        server(vec![format!("HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\n\r\n{}", "x".repeat(20_000))])
            .await;
    assert_eq!(ask(&endless).await, Outcome::Good);
    let long = server(vec![format!("HTTP/1.1 200 OK\r\nX: {}\r\n\r\n", "x".repeat(1 << 20))]).await;
    assert!(matches!(ask(&long).await, Outcome::Bad(_)));
    let garbage = server(vec!["\0\u{1}nonsense\r\n\r\n".to_owned()]).await;
    assert!(matches!(ask(&garbage).await, Outcome::Bad(_)));
    let mute = server(vec![String::new()]).await;
    let Outcome::Bad(text) = ask(&mute).await else { panic!("it ends badly") };
    assert!(text.ends_with(": EOF"), "{text}");
}

#[tokio::test]
async fn an_answer_that_comes_before_the_question_counts() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.write_all(answer("200 OK", "", "").as_bytes()).await.unwrap();
            let _ = stream.read_u8().await;
        }
    });
    let get = of_probe(&probe(json!({ "httpGet": { "port": port } })), &container(), "127.0.0.1").unwrap();
    for _ in 0..20 {
        assert_eq!(attempt(&get, &Runtime::default(), "c", LIMIT).await, Ok(Outcome::Good));
    }
}

#[tokio::test]
async fn a_port_that_nobody_listens_on_is_told_as_go_tells_it() {
    let port = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    let refused = format!("dial tcp 127.0.0.1:{port}: connect: connection refused");
    for (text, expected) in [
        (json!({ "tcpSocket": { "port": port } }), refused.clone()),
        (json!({ "httpGet": { "port": port } }), format!("Get \"http://127.0.0.1:{port}/\": {refused}")),
    ] {
        let action = of_probe(&probe(text), &container(), "127.0.0.1").unwrap();
        let outcome = attempt(&action, &Runtime::default(), "c", LIMIT).await.unwrap();
        assert_eq!(outcome, Outcome::Bad(expected));
    }
    let open = server(Vec::new()).await;
    let action = Action::Tcp { host: "127.0.0.1".into(), port: open.port };
    assert_eq!(attempt(&action, &Runtime::default(), "c", LIMIT).await, Ok(Outcome::Good));
}

#[tokio::test]
async fn anybodys_certificate_is_good_enough() {
    let made = rcgen::generate_simple_self_signed(vec!["somebody".to_owned()]).unwrap();
    let key = rustls::pki_types::PrivateKeyDer::Pkcs8(made.signing_key.serialize_der().into());
    let config =
        rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let mut stream = acceptor.accept(stream).await.unwrap();
        let mut request = [0; 1024];
        let _ = stream.read(&mut request).await.unwrap();
        stream.write_all(answer("200 OK", "", "").as_bytes()).await.unwrap();
        let _ = stream.shutdown().await;
    });
    let get = json!({ "httpGet": { "port": port, "scheme": "HTTPS" } });
    let action = of_probe(&probe(get), &container(), "127.0.0.1").unwrap();
    assert_eq!(attempt(&action, &Runtime::default(), "c", LIMIT).await, Ok(Outcome::Good));
}

#[tokio::test]
async fn a_hook_that_asks_in_tls_and_is_answered_without_asks_again_without() {
    let plain = server(vec![answer("400 Bad Request", "", ""), answer("500 x", "", "")]).await;
    let headers = json!([{ "name": "Authorization", "value": "secret" }]);
    let hook = json!({ "httpGet": { "port": plain.port, "scheme": "HTTPS", "httpHeaders": headers } });
    let action = of_hook(&serde_json::from_value(hook).unwrap(), &container(), "127.0.0.1").unwrap();
    let Action::Http(_) = &action else { panic!("it is a request") };
    // The first connection reads a TLS hello up to an end that never comes, unless ours gives up; the answer comes when it does.
    let raw = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = raw.local_addr().unwrap().port();
    let asked: Arc<Mutex<Vec<String>>> = Arc::default();
    let kept = Arc::clone(&asked);
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        for _ in 0..2 {
            let (mut stream, _) = raw.accept().await.unwrap();
            let mut request = [0; 4096];
            let length = stream.read(&mut request).await.unwrap();
            kept.lock().unwrap().push(String::from_utf8_lossy(&request[..length]).into_owned());
            stream.write_all(answer("500 x", "", "").as_bytes()).await.unwrap();
        }
    });
    let Action::Http(mut get) = action else { unreachable!() };
    get.url.port = Some(port);
    assert_eq!(run_hook(&Action::Http(get), &Runtime::default(), "c").await, Ok(true));
    let second = asked.lock().unwrap()[1].clone();
    assert!(second.starts_with("GET / ") && !second.contains("secret"), "{second}");
}

struct Checked;

#[tonic::async_trait]
impl health_server::Health for Checked {
    async fn check(
        &self,
        request: tonic::Request<HealthCheckRequest>,
    ) -> Result<tonic::Response<HealthCheckResponse>, tonic::Status> {
        let status = match request.into_inner().service.as_str() {
            "" => ServingStatus::Serving,
            "ill" => ServingStatus::NotServing,
            _ => return Err(tonic::Status::not_found("unknown service")),
        };
        Ok(tonic::Response::new(HealthCheckResponse { status: status.into() }))
    }
}

#[tokio::test]
async fn health_is_checked_over_grpc() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let service = TowerToHyperService::new(health_server::HealthServer::new(Checked));
        let mut connections = JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            let service = service.clone();
            connections.spawn(async move {
                let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                let _ = server.serve_connection(TokioIo::new(stream), service).await;
            });
        }
    });
    let ask = async |service: &str, port: u16, limit| {
        let action = Action::Grpc { host: "127.0.0.1".into(), port, service: service.into() };
        attempt(&action, &Runtime::default(), "c", limit).await.unwrap()
    };
    assert_eq!(ask("", port, LIMIT).await, Outcome::Good);
    let ill = "service unhealthy (responded with \"NOT_SERVING\")".to_owned();
    assert_eq!(ask("ill", port, LIMIT).await, Outcome::Bad(ill));
    let unknown =
        "error: health rpc probe failed: rpc error: code = NotFound desc = unknown service".to_owned();
    assert_eq!(ask("other", port, LIMIT).await, Outcome::Bad(unknown));
    let silent = server(Vec::new()).await;
    let Outcome::Bad(late) = ask("", silent.port, Duration::from_millis(200)).await else {
        panic!("nobody is there")
    };
    assert!(late.starts_with("timeout: "), "{late}");
}

#[tokio::test]
async fn commands_and_their_failures() {
    let runtime = Runtime::default();
    let action = Action::Exec(vec!["x".into()]);
    let error = attempt(&action, &runtime, "no such container", LIMIT).await.unwrap_err();
    assert_eq!(error.state, "unknown");
    let hook = run_hook(&action, &runtime, "no such container").await.unwrap_err();
    assert!(hook.text.starts_with("error: "), "{}", hook.text);
}

#[test]
fn results_count_in_a_row() {
    let probe = probe(json!({ "successThreshold": 2, "failureThreshold": 3 }));
    let mut tally = Tally::default();
    let mut count = |good| tally.count(good, &probe);
    assert_eq!([count(true), count(true), count(true)], [None, Some(true), Some(true)]);
    assert_eq!([count(false), count(false), count(true)], [None, None, None]);
    assert_eq!([count(false), count(false), count(false)], [None, None, Some(false)]);
}

#[test]
fn health_needs_no_probe_and_a_start() {
    let with = |fields: Value| -> Container {
        let mut container = json!({ "name": "a" });
        container.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        serde_json::from_value(container).unwrap()
    };
    let check = |container: &Container, health: Option<Health>, expected: (bool, bool)| {
        let healths = Healths(health.map(|health| ("c".to_owned(), health)).into_iter().collect());
        assert_eq!((healths.has_started(container, "c"), healths.is_ready(container, "c")), expected);
    };
    let both = with(json!({ "startupProbe": {}, "readinessProbe": {} }));
    check(&with(json!({})), None, (true, true));
    check(&with(json!({ "readinessProbe": {} })), None, (true, false));
    check(&both, None, (false, false));
    check(&both, Some(Health { ready: true, ..Health::default() }), (false, false));
    check(&both, Some(Health { started: true, ..Health::default() }), (true, false));
    check(&both, Some(Health { started: true, ready: true, failed: None }), (true, true));
}

proptest::proptest! {
    /// A verdict is given exactly when the last so many results were equal.
    #[test]
    fn verdicts_are_what_the_last_results_say(
        results in proptest::collection::vec(proptest::bool::ANY, 1..40), success in 1..5_i32, failure in 1..5_i32,
    ) {
        let probe = probe(json!({ "successThreshold": success, "failureThreshold": failure }));
        let mut tally = Tally::default();
        for end in 1..=results.len() {
            let good = results[end - 1];
            let least = usize::try_from(if good { success } else { failure }).unwrap();
            let expected = (end >= least && results[end - least..end].iter().all(|one| *one == good)).then_some(good);
            proptest::prop_assert_eq!(tally.count(good, &probe), expected);
        }
    }
}
