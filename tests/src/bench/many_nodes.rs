//! A stand-in for the API server of a large cluster: thousands of nodes and tens of thousands of pods, as large as real ones are, page by page; and
//! `kubectl spillway report` on it.

use std::{
    fmt::Write as _,
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    path::Path,
    process::{Command, Stdio},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};

/// GPUs of each node.
const GPUS: usize = 8;

/// What a report on a large cluster took.
#[derive(Debug, Clone, Copy)]
pub struct Measured {
    /// From the last list's arrival until the report was printed and the program had ended, in seconds.
    pub after_lists_s: f64,
    /// From the program's start, in seconds.
    pub whole_s: f64,
    /// The most memory that it had at a time, in MiB.
    pub rss_mib: f64,
}

/// Runs `kubectl spillway report` of the folder `binaries` once on a made-up cluster. Four of five pods run, and hold GPUs; the others wait, of fifty
/// kinds.
///
/// # Errors
/// When the program can't be run, or fails.
pub fn report(binaries: &Path, nodes: usize, pods: usize) -> anyhow::Result<Measured> {
    let server = Server::start(nodes, pods)?;
    let folder = tempfile::tempdir()?;
    let kubeconfig = folder.path().join("kubeconfig");
    fs::write(&kubeconfig, server.kubeconfig())?;
    let begin = Instant::now();
    let mut child = Command::new(binaries.join("kubectl-spillway"))
        .arg("report")
        .env("KUBECONFIG", &kubeconfig)
        .env("NO_PROXY", "127.0.0.1")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("can't run kubectl-spillway; build it first")?;
    let status = format!("/proc/{}/status", child.id());
    let mut text = String::new();
    let ended = AtomicBool::new(false);
    let peak = thread::scope(|scope| {
        let (ended, status) = (&ended, &status);
        let peak = scope.spawn(move || {
            let mut peak = 0;
            while !ended.load(Ordering::Relaxed) {
                peak = high_water_kib(status).unwrap_or(0).max(peak);
                thread::sleep(Duration::from_millis(5));
            }
            peak
        });
        let read = child
            .stdout
            .take()
            .context("it prints nowhere")
            .and_then(|mut out| Ok(out.read_to_string(&mut text)?));
        ended.store(true, Ordering::Relaxed);
        read?;
        peak.join().map_err(|_| anyhow::anyhow!("nobody looked at its memory"))
    })?;
    ensure!(child.wait()?.success(), "the report failed");
    let end = Instant::now();
    ensure!(text.contains("DEDICATED") && text.contains("WAITING"), "this is no report: {text}");
    let arrived =
        server.shared.sent.lock().unwrap_or_else(PoisonError::into_inner).context("no list was asked for")?;
    Ok(Measured {
        after_lists_s: end.duration_since(arrived).as_secs_f64(),
        whole_s: end.duration_since(begin).as_secs_f64(),
        rss_mib: f64::from(peak) / 1024.0,
    })
}

fn high_water_kib(status: &str) -> Option<u32> {
    let text = fs::read_to_string(status).ok()?;
    text.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")?.parse().ok())
}

struct Server {
    port: u16,
    shared: Arc<Shared>,
}

struct Shared {
    nodes: Vec<Vec<u8>>,
    pods: Vec<Vec<u8>>,
    /// When the last page of a list was sent.
    sent: Mutex<Option<Instant>>,
    stopped: AtomicBool,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::Relaxed);
        // Whoever accepts looks at it then.
        drop(TcpStream::connect(("127.0.0.1", self.port)));
    }
}

impl Server {
    fn start(nodes: usize, pods: usize) -> anyhow::Result<Self> {
        let shared = Arc::new(Shared {
            nodes: pages("NodeList", nodes, node),
            pods: pages("PodList", pods, |number| pod(number, nodes)),
            sent: Mutex::new(None),
            stopped: AtomicBool::new(false),
        });
        let listener = TcpListener::bind("127.0.0.1:0").context("can't listen")?;
        let port = listener.local_addr()?.port();
        let served = Arc::clone(&shared);
        thread::spawn(move || {
            for connection in listener.incoming().flatten() {
                if served.stopped.load(Ordering::Relaxed) {
                    return;
                }
                let served = Arc::clone(&served);
                // It ends with the client's connection.
                thread::spawn(move || drop(serve(&served, &connection)));
            }
        });
        Ok(Self { port, shared })
    }

    fn kubeconfig(&self) -> String {
        json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "large",
            "clusters": [{ "name": "large", "cluster": { "server": format!("http://127.0.0.1:{}", self.port) } }],
            "contexts": [{ "name": "large", "context": { "cluster": "large", "user": "nobody" } }],
            "users": [{ "name": "nobody", "user": {} }],
        })
        .to_string()
    }
}

fn serve(shared: &Shared, connection: &TcpStream) -> std::io::Result<()> {
    connection.set_nodelay(true)?;
    let mut reader = BufReader::new(connection);
    loop {
        let mut request = String::new();
        if reader.read_line(&mut request)? == 0 {
            return Ok(());
        }
        let mut length = 0;
        loop {
            let mut header = String::new();
            reader.read_line(&mut header)?;
            let header = header.trim().to_ascii_lowercase();
            if header.is_empty() {
                break;
            }
            if let Some(value) = header.strip_prefix("content-length:") {
                length = value.trim().parse().unwrap_or(0);
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body)?;
        let path = request.split(' ').nth(1).unwrap_or_default();
        let reviewed;
        let answer: &[u8] = if path.contains("selfsubjectaccessreviews") {
            reviewed = review(&body);
            reviewed.as_bytes()
        } else {
            let pages = if path.contains("/nodes") { &shared.nodes } else { &shared.pods };
            let page: usize =
                path.split("continue=").nth(1).and_then(|token| token.parse().ok()).unwrap_or(0);
            pages.get(page).map_or(b"{}", Vec::as_slice)
        };
        let mut connection = connection;
        write!(
            connection,
            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            answer.len()
        )?;
        connection.write_all(answer)?;
        *shared.sent.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }
}

/// Nodes and pods may be listed, and nothing else.
fn review(body: &[u8]) -> String {
    let mut review: Value = serde_json::from_slice(body).unwrap_or_default();
    let asked = &review["spec"]["resourceAttributes"];
    let may = asked["verb"] == "list"
        && asked["group"].as_str().unwrap_or_default().is_empty()
        && asked["resource"] != "events";
    review["status"] = json!({ "allowed": may });
    review.to_string()
}

/// Lists of at most 500 objects each.
fn pages(kind: &str, count: usize, object: impl Fn(usize) -> String) -> Vec<Vec<u8>> {
    const PAGE: usize = 500;
    (0..count.max(1))
        .step_by(PAGE)
        .enumerate()
        .map(|(page, first)| {
            let last = (first + PAGE).min(count);
            let next = if last < count { (page + 1).to_string() } else { String::new() };
            let mut text = format!(
                r#"{{"kind":"{kind}","apiVersion":"v1","metadata":{{"resourceVersion":"1","continue":"{next}"}},"items":["#
            );
            for number in first..last {
                if number > first {
                    text.push(',');
                }
                text.push_str(&object(number));
            }
            text.push_str("]}");
            text.into_bytes()
        })
        .collect()
}

/// As long as what real objects say of who set which field.
fn managed(manager: &str) -> Value {
    let fields = |from: usize| -> Value {
        (from..from + 25)
            .map(|number| (format!("f:field{number}"), json!({ ".": {}, "f:value": {} })))
            .collect::<serde_json::Map<_, _>>()
            .into()
    };
    json!([
        { "manager": manager, "operation": "Update", "apiVersion": "v1", "time": "2026-11-22T07:00:00Z", "fieldsType": "FieldsV1", "fieldsV1": fields(0) },
        { "manager": "kubelet", "operation": "Update", "apiVersion": "v1", "time": "2026-11-22T07:00:00Z", "fieldsType": "FieldsV1", "fieldsV1": fields(25), "subresource": "status" },
    ])
}

fn node(number: usize) -> String {
    let name = format!("gpu-{number}");
    let model = ["NVIDIA-A100-SXM4-80GB", "NVIDIA-H100-80GB-HBM3", "Tesla-T4"][number % 3];
    let has = json!({
        "cpu": "96", "memory": "1056489984Ki", "pods": "110", "ephemeral-storage": "3840Gi", "nvidia.com/gpu": GPUS.to_string(),
    });
    let images: Vec<_> = (0..30)
        .map(|image| json!({ "names": [format!("registry.example.com/team/image-{image}@sha256:{image:064}")], "sizeBytes": 1_000_000 }))
        .collect();
    json!({
        "metadata": {
            "name": name, "uid": format!("node-{number}"), "resourceVersion": "1", "creationTimestamp": "2026-10-01T00:00:00Z",
            "labels": { "kubernetes.io/hostname": name, "nvidia.com/gpu.product": model, "topology.kubernetes.io/zone": format!("zone-{}", number % 3) },
            "annotations": { "spillway.dev/largest-group": r#"{"nvidia.com/gpu":{"nvlink":4,"numa":4,"node":8}}"# },
            "managedFields": managed("kubelet"),
        },
        "spec": { "unschedulable": number.is_multiple_of(97) },
        "status": {
            "capacity": has, "allocatable": has, "images": images,
            "conditions": [{ "type": "Ready", "status": if number.is_multiple_of(101) { "False" } else { "True" }, "reason": "KubeletReady" }],
        },
    })
    .to_string()
}

fn pod(number: usize, nodes: usize) -> String {
    let waits = number.is_multiple_of(5);
    let kind = number % 50;
    let gpus = if waits { 1 << (kind / 10 % 4) } else { usize::from(!number.is_multiple_of(3)) };
    let resources = json!({
        "requests": { "cpu": format!("{}m", 500 + kind * 10), "memory": "8Gi", "nvidia.com/gpu": gpus.to_string() },
        "limits": { "nvidia.com/gpu": gpus.to_string() },
    });
    let environment: Vec<_> =
        (0..20).map(|variable| json!({ "name": format!("VARIABLE_{variable}"), "value": "a value of ordinary length" })).collect();
    let mut spec = json!({
        "containers": [{ "name": "main", "image": "registry.example.com/team/train:1", "env": environment, "resources": resources }],
        "tolerations": [{ "key": "nvidia.com/gpu", "operator": "Exists" }, { "key": "node.kubernetes.io/not-ready", "operator": "Exists", "tolerationSeconds": 300 }],
        "schedulerName": "default-scheduler", "priority": 0,
    });
    let mut status = json!({ "phase": if waits { "Pending" } else { "Running" } });
    if waits {
        spec["nodeSelector"] = json!({ "topology.kubernetes.io/zone": format!("zone-{}", kind % 3) });
        status["conditions"] = json!([{
            "type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/5000 nodes are available: 5000 Insufficient nvidia.com/gpu.",
        }]);
    } else {
        spec["nodeName"] = json!(format!("gpu-{}", number % nodes.max(1)));
        status["containerStatuses"] =
            json!([{ "name": "main", "state": { "running": { "startedAt": "2026-11-22T07:00:00Z" } } }]);
        status["startTime"] = json!("2026-11-22T07:00:00Z");
    }
    let mut name = String::new();
    let _ = write!(name, "train-{kind}-{number}");
    json!({
        "metadata": {
            "name": name, "namespace": format!("team-{}", kind % 20), "uid": format!("pod-{number}"), "resourceVersion": "1",
            "creationTimestamp": "2026-11-22T07:00:00Z", "labels": { "app": format!("train-{kind}"), "team": format!("team-{}", kind % 20) },
            "ownerReferences": [{ "apiVersion": "batch/v1", "kind": "Job", "name": format!("train-{kind}"), "uid": format!("job-{kind}"), "controller": true }],
            "managedFields": managed("kube-controller-manager"),
        },
        "spec": spec, "status": status,
    })
    .to_string()
}
