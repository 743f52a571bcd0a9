//! Answers as they should be, and as they should not.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    extract::{Query as Parameters, State},
    http::{HeaderMap, StatusCode},
    response::{IntoResponse as _, Response},
    routing::get,
};

use super::{
    Error, Kind, Query, Range, Told,
    answer::{Refusal, matrix},
    ask, own, reach,
    transport::{Credentials, Limits, Transport},
};
use crate::history::What;

fn answer(points: &str) -> String {
    format!(
        r#"{{"status":"success","data":{{"resultType":"matrix","result":[{{"metric":{{"namespace":"a"}},"values":[{points}]}}]}}}}"#
    )
}

#[test]
fn what_is_no_number_of_gpus_is_a_missing_point() {
    let text = answer(
        r#"[60,"1"],[120,"NaN"],[180,"+Inf"],[240,"-Inf"],[300,"-1"],[360,"1e300"],[420,"0.5"],[480,""],[540,"zwei"],[1e300,"1"]"#,
    );
    let answer = matrix(text.as_bytes()).unwrap();
    assert_eq!(answer.series[0].points, [(60, 1.0), (420, 0.5)]);
    assert_eq!(answer.left_out, 7, "a NaN is how Prometheus says that there is none");
}

#[test]
fn points_are_in_order_and_each_time_is_there_once() {
    let answer = matrix(answer(r#"[120,"2"],[60,"1"],[120.4,"3"]"#).as_bytes()).unwrap();
    assert_eq!(answer.series[0].points, [(60, 1.0), (120, 3.0)]);
}

#[test]
fn what_is_no_answer_is_refused_in_words() {
    let said = |text: &str| matrix(text.as_bytes()).unwrap_err().to_string();
    assert_eq!(
        said(r#"{"status":"error","errorType":"bad_data","error":"parse error: unexpected \")\""}"#),
        r#"bad_data: parse error: unexpected ")""#
    );
    assert_eq!(said(r#"{"status":"error"}"#), "it failed and does not say why");
    for kind in ["vector", "scalar", "string"] {
        let text = format!(r#"{{"status":"success","data":{{"resultType":"{kind}","result":[1,"2"]}}}}"#);
        assert!(said(&text).contains(kind), "{}", said(&text));
    }
    let whole = answer(r#"[60,"1"]"#);
    for end in 1..whole.len() {
        assert_eq!(matrix(&whole.as_bytes()[..end]), Err(Refusal::Cut), "{}", &whole[..end]);
    }
    for text in [
        "<html>",
        "[]",
        "1",
        r#"{"status":1}"#,
        r#"{"status":"success"}"#,
        r#"{"status":"success","data":null}"#,
        &answer("[60,1]"),
        &answer(r#"["60","1"]"#),
        &answer(r#"[60,"1",2]"#),
        &answer("[60]"),
        &answer("null"),
        &answer("{}"),
    ] {
        assert!(matches!(matrix(text.as_bytes()), Err(Refusal::Shape(_))), "{text}");
    }
    assert!(matrix(b"\xff\xfe").is_err() && matrix(b"").is_err());
    // As deep as a stack is not.
    matrix("[".repeat(100_000).as_bytes()).unwrap_err();
}

#[test]
fn warnings_and_histograms_are_told() {
    let text = r#"{"status":"success","warnings":["store gateway missing"],"infos":["x"],"data":{"resultType":"matrix","result":[{"metric":{},"histograms":[[1,{}]]}]}}"#;
    let answer = matrix(text.as_bytes()).unwrap();
    assert_eq!((answer.warnings, answer.left_out), (vec!["store gateway missing".to_owned()], 1));
}

#[test]
fn names_of_resources_are_given_back() {
    let kind = Kind { what: What::Allocated, serverless: false };
    let key = |resource: &str| {
        let labels = BTreeMap::from([("resource".to_owned(), resource.to_owned())]);
        (kind.key(&labels).pool.resource, kind.unit(&labels))
    };
    assert_eq!(key("nvidia_com_gpu"), ("nvidia.com/gpu".to_owned(), 1.0));
    assert_eq!(key("nvidia_com_mig_3g_20gb"), ("nvidia.com/mig-3g.20gb".to_owned(), 0.429));
    assert_eq!(key("gpu_intel_com_i915"), ("gpu.intel.com/i915".to_owned(), 1.0));
    assert_eq!(key("example_org_gpu"), ("example_org_gpu".to_owned(), 1.0));
}

#[test]
fn no_query_has_too_many_points() {
    let range = Range::of(1_000_001, 1_000_001 + 3 * 365 * 86_400, 60);
    let parts: Vec<Range> = range.parts(super::MOST_POINTS).collect();
    assert!(parts.iter().all(|part| (1..=11_000).contains(&part.points())));
    assert!(parts.windows(2).all(|pair| pair[0].until_s == pair[1].since_s));
    assert_eq!((parts[0].since_s, parts.last().unwrap().until_s), (range.since_s, range.until_s));
    assert_eq!(Range::of(10, 50, 60).parts(10).count(), 0);
}

const LIMITS: Limits = Limits {
    time: Duration::from_secs(5),
    bytes: 100_000,
    wait: Duration::from_millis(1),
    greeting: Duration::from_secs(5),
    patience: Duration::from_secs(5),
};

/// A server whose answers a function makes, of the parameters, the headers, and how many came before.
struct Server {
    address: String,
    asked: Arc<AtomicUsize>,
    _tasks: tokio::task::JoinSet<()>,
}

type Answering = fn(&BTreeMap<String, String>, &HeaderMap, usize) -> Response;

impl Server {
    async fn new(answering: Answering) -> Self {
        let asked = Arc::new(AtomicUsize::new(0));
        let handler = move |State(asked): State<Arc<AtomicUsize>>,
                            Parameters(parameters): Parameters<BTreeMap<String, String>>,
                            headers: HeaderMap| async move {
            answering(&parameters, &headers, asked.fetch_add(1, Ordering::Relaxed))
        };
        let router = Router::new()
            .route("/prefix/api/v1/query", get(handler))
            .route("/prefix/api/v1/query_range", get(handler))
            .with_state(asked.clone());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}/prefix/", listener.local_addr().unwrap());
        let mut tasks = tokio::task::JoinSet::new();
        tasks.spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { address, asked, _tasks: tasks }
    }

    fn transport(&self, credentials: &Credentials<'_>) -> Result<Transport, Error> {
        let _ = rustls::crypto::ring::default_provider().install_default();
        Ok(Transport::http(&self.address, credentials)?.within(LIMITS))
    }

    async fn ask(&self, until_s: i64, credentials: &Credentials<'_>) -> Result<Told, Error> {
        self.ask_within(LIMITS, until_s, credentials).await
    }

    async fn ask_within(
        &self,
        limits: Limits,
        until_s: i64,
        credentials: &Credentials<'_>,
    ) -> Result<Told, Error> {
        let transport = self.transport(credentials)?.within(limits);
        ask(&transport, &own("sum by (namespace) (gpus)"), Range::of(0, until_s, 60), &|_| {}).await
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }
}

/// One GPU at each time that is asked for.
fn ones(parameters: &BTreeMap<String, String>) -> String {
    let number = |name: &str| parameters[name].parse::<i64>().unwrap();
    let (start, end, step) = (number("start"), number("end"), number("step"));
    let points: Vec<String> =
        (0..=(end - start) / step).map(|index| format!(r#"[{},"1"]"#, start + index * step)).collect();
    answer(&points.join(","))
}

fn ok(text: String) -> Response {
    text.into_response()
}

fn seconds(told: &Told) -> (i64, i64) {
    let held = told.recorded.series.values().flatten().map(|cell| cell.milli_gpu_s / 1000).sum();
    (told.recorded.steps.iter().map(|step| step.seen_s).sum(), held)
}

#[tokio::test]
async fn what_passes_is_asked_again() {
    let server = Server::new(|parameters, _, before| match before {
        0 => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
        1 => (StatusCode::TOO_MANY_REQUESTS, [("retry-after", "0")]).into_response(),
        // A body that ends before it is whole.
        2 => ok(answer("[60,")[..40].to_owned()),
        _ => ok(ones(parameters)),
    })
    .await;
    let told = server.ask(600, &Credentials::default()).await.unwrap();
    assert_eq!((seconds(&told), server.asked()), ((600, 600), 4));
    assert!(told.warnings.is_empty(), "{:?}", told.warnings);
}

#[tokio::test]
async fn a_part_that_can_not_be_had_is_a_gap_and_told() {
    let server = Server::new(|parameters, _, _| {
        let start: i64 = parameters["start"].parse().unwrap();
        if start > 60 * 2000 {
            let why = r#"{"status":"error","errorType":"unavailable","error":"store is down"}"#;
            return (StatusCode::SERVICE_UNAVAILABLE, why).into_response();
        }
        ok(ones(parameters))
    })
    .await;
    let told = server.ask(60 * 3000, &Credentials::default()).await.unwrap();
    assert_eq!(seconds(&told), (60 * 2000, 60 * 2000));
    assert_eq!(told.warnings.len(), 1);
    assert!(
        told.warnings[0].starts_with("1970-01-02T09:20:00Z to 1970-01-03T02:00:00Z is missing"),
        "{:?}",
        told.warnings
    );
    assert!(told.warnings[0].contains("unavailable: store is down"), "{:?}", told.warnings);
}

/// As the API server answers for a service without a pod.
fn no_endpoints() -> Response {
    let why = r#"{"kind":"Status","status":"Failure","message":"no endpoints available for service \"prometheus\"","reason":"ServiceUnavailable","code":503}"#;
    (StatusCode::SERVICE_UNAVAILABLE, why).into_response()
}

/// Headers, and then nothing more.
fn stalled() -> Response {
    Response::new(Body::from_stream(futures::stream::pending::<Result<Vec<u8>, std::io::Error>>()))
}

#[tokio::test]
async fn who_is_replaced_is_waited_for() {
    let server = Server::new(|parameters, _, before| match before {
        0 | 8.. => ok(ones(parameters)),
        _ => no_endpoints(),
    })
    .await;
    let told = server.ask(60 * 4000, &Credentials::default()).await.unwrap();
    assert_eq!((seconds(&told), server.asked()), ((240_000, 240_000), 9));
    assert!(told.warnings.is_empty(), "{:?}", told.warnings);
}

#[tokio::test]
async fn who_does_not_come_back_is_given_up_once() {
    let server = Server::new(|parameters, _, before| match before {
        0 => ok(ones(parameters)),
        _ => no_endpoints(),
    })
    .await;
    let limits = Limits { patience: Duration::from_millis(20), ..LIMITS };
    let told = server.ask_within(limits, 60 * 100_000, &Credentials::default()).await.unwrap();
    assert_eq!(seconds(&told), (120_000, 120_000));
    assert_eq!(told.warnings.len(), 1, "{:?}", told.warnings);
    assert!(
        told.warnings[0].starts_with("1970-01-02T09:20:00Z to 1970-03-11T10:40:00Z is missing")
            && told.warnings[0].contains("no endpoints available")
            && server.asked() < 49,
        "{:?} after {} questions",
        told.warnings,
        server.asked()
    );
}

#[tokio::test]
async fn who_says_nothing_is_told_from_what_takes_long() {
    let quick = Limits { time: Duration::from_millis(20), greeting: Duration::from_millis(20), ..LIMITS };
    let silent = Server::new(|_, _, _| stalled()).await;
    let error = reach(&silent.transport(&Credentials::default()).unwrap().within(quick)).await.unwrap_err();
    assert!(matches!(error, Error::Silent { .. }) && silent.asked() >= 2, "{error}");

    // It lives, and whatever is asked takes too long.
    let slow = Server::new(
        |parameters, _, _| {
            if parameters.contains_key("start") { stalled() } else { ok("{}".to_owned()) }
        },
    )
    .await;
    let limits = Limits { greeting: Duration::from_secs(5), ..quick };
    reach(&slow.transport(&Credentials::default()).unwrap().within(limits)).await.unwrap();
    let error = slow.ask_within(limits, 60 * 100_000, &Credentials::default()).await.unwrap_err();
    let Error::Nothing { source, .. } = &error else { panic!("{error}") };
    assert!(matches!(**source, Error::Slow { .. }), "{source}");
    // Four halves of halves, each with a word to see who is there.
    assert_eq!(slow.asked(), 1 + 2 * 4);
}

#[tokio::test]
async fn what_prometheus_refuses_is_no_reason_not_to_ask() {
    let server = Server::new(|_, _, _| {
        let why = r#"{"status":"error","errorType":"unavailable","error":"starting up"}"#;
        (StatusCode::SERVICE_UNAVAILABLE, why).into_response()
    })
    .await;
    reach(&server.transport(&Credentials::default()).unwrap()).await.unwrap();
    let nobody = Transport::http("http://127.0.0.1:1/", &Credentials::default()).unwrap().within(LIMITS);
    let error = reach(&nobody).await.unwrap_err();
    assert!(matches!(error, Error::Away { .. }), "{error}");
}

#[tokio::test]
async fn what_is_too_much_is_asked_for_in_halves() {
    let server = Server::new(|parameters, _, _| {
        let number = |name: &str| parameters[name].parse::<i64>().unwrap();
        let points = (number("end") - number("start")) / 60 + 1;
        if points > 500 {
            let why = r#"{"status":"error","errorType":"execution","error":"query processing would load too many samples into memory in query execution"}"#;
            return (StatusCode::UNPROCESSABLE_ENTITY, why).into_response();
        }
        ok(ones(parameters))
    })
    .await;
    let told = server.ask(60 * 2000, &Credentials::default()).await.unwrap();
    assert_eq!(seconds(&told), (120_000, 120_000));
    assert_eq!(server.asked(), 7);
}

#[tokio::test]
async fn no_answer_fills_the_memory() {
    let server = Server::new(|_, _, _| {
        let endless = futures::stream::repeat_with(|| Ok::<_, std::io::Error>(vec![b' '; 10_000]));
        Response::new(Body::from_stream(endless))
    })
    .await;
    let error = server.ask(120, &Credentials::default()).await.unwrap_err();
    let Error::Nothing { source, .. } = &error else { panic!("{error}") };
    assert!(matches!(**source, Error::Large { most: 100_000, .. }), "{source}");
    // Both halves, once each, after the whole.
    assert_eq!(server.asked(), 3);
}

#[tokio::test]
async fn more_than_was_asked_for_counts_nowhere() {
    let server =
        Server::new(|_, _, _| ok(answer(r#"[-60,"9"],[0,"9"],[60,"1"],[90,"9"],[120,"1"],[180,"9"]"#))).await;
    let told = server.ask(120, &Credentials::default()).await.unwrap();
    assert_eq!(seconds(&told), (120, 120));
}

#[tokio::test]
async fn errors_that_stay_are_told_at_once() {
    let server = Server::new(|_, _, _| {
        let why = r#"{"status":"error","errorType":"bad_data","error":"1:5: parse error"}"#;
        (StatusCode::BAD_REQUEST, why).into_response()
    })
    .await;
    let error = server.ask(60, &Credentials::default()).await.unwrap_err().to_string();
    assert!(error.ends_with("answers 400: bad_data: 1:5: parse error"), "{error}");
    assert_eq!(server.asked(), 1);
    let server = Server::new(|_, _, _| ok("<html>welcome".to_owned())).await;
    let error = server.ask(60, &Credentials::default()).await.unwrap_err();
    assert!(matches!(error, Error::Garbage { source: Refusal::Shape(_), .. }), "{error}");
}

#[tokio::test]
async fn who_asks_is_said_in_a_header() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("secret");
    let server = Server::new(|parameters, headers, _| {
        match headers.get("authorization").map(|value| value.to_str().unwrap()) {
            Some("Bearer abc.def" | "Basic QWxhZGRpbjpvcGVuOnNlc2FtZQ==") => ok(ones(parameters)),
            _ => StatusCode::UNAUTHORIZED.into_response(),
        }
    })
    .await;
    let refused = server.ask(60, &Credentials::default()).await.unwrap_err().to_string();
    assert!(refused.contains("401") && refused.contains("--prometheus-token-file"), "{refused}");
    std::fs::write(&file, "abc.def\n").unwrap();
    server.ask(60, &Credentials { token_file: Some(&file), ..Credentials::default() }).await.unwrap();
    std::fs::write(&file, "Aladdin:open:sesame\n").unwrap();
    let basic = Credentials { auth_file: Some(&file), ..Credentials::default() };
    server.ask(60, &basic).await.unwrap();
    for wrong in ["", "no colon", "a:b\nc:d"] {
        std::fs::write(&file, wrong).unwrap();
        assert!(matches!(server.ask(60, &basic).await, Err(Error::Credentials { .. })), "{wrong:?}");
    }
}

#[tokio::test]
async fn a_service_is_asked_through_the_kubernetes_api() {
    let service = tower::service_fn(|request: http::Request<kube::client::Body>| async move {
        let uri = request.uri().to_string();
        assert!(
            uri.starts_with("/api/v1/namespaces/monitoring/services/https:prometheus:9090/proxy/prefix/api/v1/query_range?query=sum+by"),
            "{uri}"
        );
        Ok::<_, std::convert::Infallible>(http::Response::new(Body::from(answer(r#"[60,"1"]"#))))
    });
    let client = || kube::Client::new(service, "default");
    let transport = Transport::service("svc://monitoring/https:prometheus:9090/prefix/", client()).unwrap();
    let told =
        ask(&transport, &own("sum by (namespace) (gpus)"), Range::of(0, 60, 60), &|_| {}).await.unwrap();
    assert_eq!(seconds(&told), (60, 60));
    for wrong in [
        "svc://",
        "svc://a",
        "svc:///b:1",
        "svc://a/b:1/../../secrets",
        "svc://a/b%2f:1",
        "svc://a/b:1/?x",
        "svc://a/b:1:2:3",
        "http://a",
    ] {
        assert!(matches!(Transport::service(wrong, client()), Err(Error::Address(_))), "{wrong}");
    }
}

#[tokio::test]
async fn addresses_hold_no_secrets() {
    for wrong in
        ["", "prometheus:9090", "ftp://a", "http://", "http://user:secret@host/", "http://host/?token=1"]
    {
        let error = Transport::http(wrong, &Credentials::default()).err().unwrap().to_string();
        assert!(!error.contains("secret"), "{error}");
    }
}

#[tokio::test]
async fn time_of_which_nothing_is_known_is_no_zero() {
    let presence = Query { promql: "count(up)".to_owned(), counts: None };
    let server = Server::new(|parameters, _, _| {
        // Seen for ten minutes, of which somebody held something for five.
        let most = if parameters["query"] == "count(up)" { 600 } else { 300 };
        let mut parameters = parameters.clone();
        let end: i64 = parameters["end"].parse().unwrap();
        parameters.insert("end".to_owned(), end.min(most).to_string());
        ok(ones(&parameters))
    })
    .await;
    let _ = rustls::crypto::ring::default_provider().install_default();
    let transport = Transport::http(&server.address, &Credentials::default()).unwrap();
    let queries = [vec![presence], own("gpus")].concat();
    let told = ask(&transport, &queries, Range::of(0, 3600, 60), &|_| {}).await.unwrap();
    assert_eq!(seconds(&told), (600, 300));
}
