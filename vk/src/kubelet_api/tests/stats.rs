//! What pods use, through the whole server.

use axum::extract::Query;

use super::*;
use crate::provider::usage::{
    ContainerUsage, Cpu, FileUsage, GroupUsage, Interface, Memory, PodUsage, Traffic,
};

fn group(path: &str, total_ns: u64, working_set: u64) -> GroupUsage {
    GroupUsage {
        path: path.to_owned(),
        time: "2026-01-01T00:00:10Z".parse().unwrap(),
        cpu: Some(Cpu { total_ns, quota_us: Some((50_000, 100_000)), ..Cpu::default() }),
        memory: Some(Memory { usage: working_set + 5, working_set, limit: Some(1000), ..Memory::default() }),
        ..GroupUsage::default()
    }
}

fn usage() -> Usage {
    let created_at = "2026-01-01T00:00:00Z".parse().unwrap();
    let pod = PodUsage {
        pod: PodRef { uid: "u1".into(), namespace: "default".into(), name: "web".into() },
        sandbox_id: "s1".to_owned(),
        created_at,
        total: group("/pods/u1", 3_000_000_000, 300),
        sandbox: Some(group("/pods/u1/s1", 1_000_000, 1)),
        network: Some(vec![Interface {
            name: "eth0".to_owned(),
            received: Traffic { bytes: 7, packets: Some(1), ..Traffic::default() },
            sent: Traffic { bytes: 8, ..Traffic::default() },
        }]),
        containers: vec![ContainerUsage {
            id: "c1".to_owned(),
            name: "main".to_owned(),
            image: "busybox:1".to_owned(),
            created_at,
            total: group("/pods/u1/c1", 2_000_000_000, 200),
            writable: Some((FileUsage { bytes: 4096, inodes: 2, time: created_at }, None)),
            logs: Some(FileUsage { bytes: 100, inodes: 1, time: created_at }),
        }],
    };
    let mut usage = Usage { pods: vec![pod], ..Usage::default() };
    usage.machine.booted_at = created_at;
    usage.machine.total = group("/", 9_000_000_000, 900);
    usage
}

async fn get(served: &Served, target: &str) -> String {
    let (status, body) =
        served.request(served.user("reader"), &format!("GET {target} HTTP/1.1")).await.unwrap();
    assert_eq!(status, 200, "{target}: {body}");
    body
}

#[tokio::test]
async fn the_summary_is_a_kubelet_s() {
    let served = serve().await;
    *served.provider.usage.lock().unwrap() = Some(usage());
    let whole: serde_json::Value = serde_json::from_str(&get(&served, "/stats/summary").await).unwrap();
    insta::assert_snapshot!("summary", serde_json::to_string_pretty(&whole).unwrap());
    let text = get(&served, "/stats/summary?only_cpu_and_memory=true").await;
    let short: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(short["pods"][0]["containers"][0]["cpu"], whole["pods"][0]["containers"][0]["cpu"]);
    for gone in ["network", "ephemeral-storage", "rootfs", "logs", "io"] {
        assert!(!text.contains(&format!("\"{gone}\":")), "{gone}: {text}");
    }
}

#[tokio::test]
async fn metrics_are_a_kubelet_s() {
    let served = serve().await;
    *served.provider.usage.lock().unwrap() = Some(usage());
    insta::assert_snapshot!("resource", get(&served, "/metrics/resource").await);
    insta::assert_snapshot!("cadvisor", get(&served, "/metrics/cadvisor").await);
    let probes = get(&served, "/metrics/probes").await;
    assert!(
        probes.contains("# TYPE process_start_time_seconds gauge\nprocess_start_time_seconds "),
        "{probes}"
    );
}

#[tokio::test(start_paused = true)]
async fn the_provider_is_asked_once_a_second_for_all() {
    let fake = Arc::new(Fake { usage: Mutex::new(Some(usage())), ..Fake::default() });
    let provider = Provider::PodService(Arc::clone(&fake) as Arc<dyn PodService>);
    let cache = super::super::stats::Cache::new("vk1", "/nonexistent".into());
    let ask = || cache.usage(&provider);
    assert!(tokio::join!(ask(), ask(), ask()).2.is_ok());
    assert_eq!(fake.asked(), ["usage"]);
    tokio::time::advance(Duration::from_millis(999)).await;
    assert!(ask().await.is_ok());
    assert!(fake.asked().is_empty());
    tokio::time::advance(Duration::from_millis(1)).await;
    assert!(ask().await.is_ok());
    assert_eq!(fake.asked(), ["usage"]);
    *fake.usage.lock().unwrap() = None;
    tokio::time::advance(Duration::from_secs(1)).await;
    assert!(ask().await.is_err(), "an old answer is none");
}

/// Tells how often it was asked for its pod.
#[derive(Default)]
struct Asked(std::sync::atomic::AtomicUsize);

impl PodSource for Asked {
    fn get(&self, namespace: &str, name: &str) -> Option<Arc<Pod>> {
        self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        OnePod.get(namespace, name)
    }

    fn list(&self) -> Vec<Arc<Pod>> {
        OnePod.list()
    }

    fn phases(&self) -> HashMap<String, usize> {
        OnePod.phases()
    }
}

#[test]
fn a_count_whose_request_is_given_up_is_there_for_the_next() {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_all().max_blocking_threads(1).build().unwrap();
    runtime.block_on(async {
        let pods = Arc::new(Asked::default());
        let shared = Shared {
            pods: Arc::clone(&pods) as Arc<dyn PodSource>,
            provider: Provider::PodService(Arc::new(Fake {
                usage: Mutex::new(Some(usage())),
                ..Fake::default()
            })),
            stats: Arc::new(super::super::stats::Cache::new("vk1", "/nonexistent".into())),
            configz: Arc::default(),
            registry: Arc::default(),
            metrics: Metrics::default(),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
        };
        let summary = || super::super::stats::summary(State(shared.clone()), Query(Vec::new()));
        // While the one thread is in use no count begins.
        let (in_use, over) = std::sync::mpsc::channel::<()>();
        let busy = tokio::task::spawn_blocking(move || over.recv());
        assert!(tokio::time::timeout(Duration::from_millis(50), summary()).await.is_err());
        drop(in_use);
        assert!(busy.await.unwrap().is_err());
        assert_eq!(summary().await.status(), 200);
        assert_eq!(pods.0.load(std::sync::atomic::Ordering::Relaxed), 1, "counted once");
    });
}

#[tokio::test]
async fn a_provider_that_fails_is_a_scrape_error() {
    let served = serve().await;
    let (status, body) = served.request(served.user("reader"), "GET /stats/summary HTTP/1.1").await.unwrap();
    assert_eq!((status.as_u16(), body.as_str()), (500, "Internal Error: usage: no idea"));
    let resource = get(&served, "/metrics/resource").await;
    assert!(resource.contains("\nresource_scrape_error 1\n"), "{resource}");
    assert!(!resource.contains("node_cpu"), "{resource}");
    let cadvisor = get(&served, "/metrics/cadvisor").await;
    assert!(cadvisor.contains("\ncontainer_scrape_error 1\n"), "{cadvisor}");
}

#[tokio::test]
async fn metrics_begin_with_the_daemon_s_and_end_with_a_kubelet_s() {
    let (mut api, ..) = api(Arc::default());
    let mut registry = Registry::default();
    api.metrics = Metrics::new(&mut registry).of("vk1");
    api.registry = Arc::new(registry);
    let hour = jiff::Timestamp::now() + Duration::from_hours(1);
    api.metrics.certificate_expires("client", hour);
    let router = api.router(TaskTracker::new(), CancellationToken::new());
    for (accept, kind) in [
        ("text/plain;version=0.0.4", "text/plain; version=0.0.4; charset=utf-8"),
        (
            "application/openmetrics-text;version=1.0.0,*/*;q=0.1",
            "application/openmetrics-text; version=1.0.0; charset=utf-8",
        ),
    ] {
        let request =
            Request::get("/metrics").header("Authorization", "Bearer good").header("Accept", accept);
        let request = request.body(axum::body::Body::empty()).unwrap();
        let answer = tower::ServiceExt::oneshot(router.clone(), request).await.unwrap();
        assert_eq!(answer.headers()["content-type"], kind);
        let text = axum::body::to_bytes(answer.into_body(), MAX_BYTES).await.unwrap();
        let text = String::from_utf8(text.to_vec()).unwrap();
        for sample in [
            "spillway_vk_node_registrations_total{node=\"vk1\"} 0",
            "kubelet_node_name{node=\"vk1\"} 1",
            "kubelet_running_pods 0",
        ] {
            assert!(text.lines().any(|line| line == sample), "{text}");
        }
        let left = text
            .lines()
            .find_map(|line| line.strip_prefix("kubelet_certificate_manager_client_ttl_seconds "));
        assert!((3590..=3600).contains(&left.unwrap().parse::<i64>().unwrap()), "{text}");
        assert!(text.ends_with("\n# EOF\n") && text.matches("# EOF").count() == 1, "{text}");
    }
}

#[tokio::test]
async fn the_small_routes() {
    let served = serve().await;
    for path in ["/healthz", "/healthz/ping", "/healthz/syncloop"] {
        assert_eq!(get(&served, path).await, "ok");
    }
    for path in ["/pods", "/pods/", "/runningpods", "/runningpods/"] {
        assert!(get(&served, path).await.contains("\"uid\":\"u1\""), "{path}");
    }
    assert_eq!(get(&served, "/configz").await, r#"{"kubeletconfig":{"maxPods":110}}"#);
    let verbose = "[+]ping ok\n[+]log ok\n[+]syncloop ok\nhealthz check passed\n";
    assert_eq!(get(&served, "/healthz?verbose").await, verbose);
    let checks = get(&served, "/metrics/slis").await;
    assert!(checks.contains("\nkubernetes_healthcheck{name=\"ping\",type=\"healthz\"} 1\n"), "{checks}");
    for path in ["/stats/summary", "/stats/summary/"] {
        let head = format!("GET {path} HTTP/1.1");
        assert_eq!(served.status(served.user("stats"), &head).await, 500, "may ask");
    }
    assert_eq!(served.status(served.user("stats"), "GET /metrics/resource HTTP/1.1").await, 403);
}
