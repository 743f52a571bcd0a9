//! A stand-in of the Kubernetes API that serves the lists of a large cluster, page by page, and nothing else.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    sync::Arc,
    thread,
};

use anyhow::Context as _;

const GPUS_EACH: usize = 8;

/// Who waits in the cluster that is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Waiting {
    /// One in five hundred.
    Few,
    /// One in ten, each with a shape of its own and with rules about machines and other pods, and none fits anywhere: each has to be looked for on each machine.
    Many,
}

/// What is served.
#[derive(Debug)]
struct Lists {
    nodes: Vec<String>,
    pods: Vec<String>,
}

/// Serves a cluster of so many nodes and pods for as long as this process runs, and gives the kubeconfig that leads there.
pub(super) fn serve(folder: &Path, nodes: usize, pods: usize, waiting: Waiting) -> anyhow::Result<PathBuf> {
    let lists = Arc::new(Lists {
        nodes: (0..nodes).map(node).collect(),
        pods: (0..pods)
            .map(|index| match waiting {
                Waiting::Many if index.is_multiple_of(10) => picky(index),
                Waiting::Many => holder(index, nodes),
                Waiting::Few => pod(index, nodes),
            })
            .collect(),
    });
    let listener = TcpListener::bind("127.0.0.1:0").context("can't listen on loopback")?;
    let kubeconfig = folder.join(format!("kubeconfig-{waiting:?}"));
    let text = format!(
        "{{apiVersion: v1, kind: Config, current-context: b, clusters: [{{name: b, cluster: {{server: 'http://{}'}}}}], contexts: [{{name: b, context: {{cluster: b, user: b}}}}], users: [{{name: b, user: {{}}}}]}}\n",
        listener.local_addr()?
    );
    fs::write(&kubeconfig, text).with_context(|| format!("can't write {}", kubeconfig.display()))?;
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let lists = lists.clone();
            // Who breaks off has had enough.
            thread::spawn(move || answer_all(&stream, &lists).ok());
        }
    });
    Ok(kubeconfig)
}

/// Answers the requests of one connection, one after the other.
fn answer_all(stream: &TcpStream, lists: &Lists) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Ok(());
        }
        let path = line.split_whitespace().nth(1).unwrap_or("/").to_owned();
        let mut length = 0;
        loop {
            let mut header = String::new();
            reader.read_line(&mut header)?;
            if header.trim().is_empty() {
                break;
            }
            if let Some(value) = header.to_ascii_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().unwrap_or(0);
            }
        }
        std::io::copy(&mut reader.by_ref().take(length), &mut std::io::sink())?;
        let (status, body) = answer(&path, lists);
        write!(
            &mut &*stream,
            "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
            body.len()
        )?;
        (&mut &*stream).write_all(body.as_bytes())?;
    }
}

fn answer(path: &str, lists: &Lists) -> (&'static str, String) {
    let (path, query) = path.split_once('?').unwrap_or((path, ""));
    let found = match path {
        "/api/v1/nodes" => page("NodeList", &lists.nodes, query),
        "/api/v1/pods" => page("PodList", &lists.pods, query),
        "/api/v1/events" => page("EventList", &[], query),
        _ if path.ends_with("/selfsubjectaccessreviews") => {
            r#"{"kind":"SelfSubjectAccessReview","apiVersion":"authorization.k8s.io/v1","spec":{},"status":{"allowed":true}}"#.to_owned()
        }
        _ => {
            let body = r#"{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"NotFound","message":"not found","code":404}"#;
            return ("404 Not Found", body.to_owned());
        }
    };
    ("200 OK", found)
}

/// A page as `limit` and `continue` ask for it.
fn page(kind: &str, items: &[String], query: &str) -> String {
    let value = |name: &str| {
        let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
        pairs.find(|(key, _)| *key == name).and_then(|(_, value)| value.parse::<usize>().ok())
    };
    let from = value("continue").unwrap_or(0).min(items.len());
    let to = items.len().min(from.saturating_add(value("limit").unwrap_or(usize::MAX)));
    let next = if to < items.len() { to.to_string() } else { String::new() };
    let items = items[from..to].join(",");
    format!(
        r#"{{"kind":"{kind}","apiVersion":"v1","metadata":{{"resourceVersion":"1","continue":"{next}"}},"items":[{items}]}}"#
    )
}

fn node(index: usize) -> String {
    let amounts = format!(
        r#"{{"cpu":"96","memory":"768Gi","pods":"110","ephemeral-storage":"1Ti","hugepages-1Gi":"0","nvidia.com/gpu":"{GPUS_EACH}"}}"#
    );
    format!(
        r#"{{"metadata":{{"name":"node-{index:05}","uid":"00000000-0000-0000-0000-{index:012}","labels":{{"kubernetes.io/hostname":"node-{index:05}","kubernetes.io/arch":"amd64","topology.kubernetes.io/zone":"zone-{}","nvidia.com/gpu.product":"NVIDIA-H100-80GB-HBM3"}}}},"spec":{{}},"status":{{"capacity":{amounts},"allocatable":{amounts},"conditions":[{{"type":"Ready","status":"True","lastHeartbeatTime":"2026-11-01T00:00:00Z","lastTransitionTime":"2026-11-01T00:00:00Z"}}],"nodeInfo":{{"architecture":"amd64","bootID":"","containerRuntimeVersion":"containerd://2.1","kernelVersion":"6.12","kubeProxyVersion":"","kubeletVersion":"v1.35.0","machineID":"","operatingSystem":"linux","osImage":"Debian","systemUUID":""}}}}}}"#,
        index % 10
    )
}

/// Nine of these are on each machine of ten, and hold all of its GPUs but one.
fn holder(index: usize, nodes: usize) -> String {
    let asked = match index % 10 {
        1..=7 => r#"{"cpu":"8","memory":"64Gi","nvidia.com/gpu":"1"}"#,
        _ => r#"{"cpu":"500m","memory":"512Mi"}"#,
    };
    running(index, index / 10 % nodes, asked)
}

fn running(index: usize, node: usize, asked: &str) -> String {
    format!(
        r#"{{"metadata":{{"name":"pod-{index:06}","namespace":"team-{}","uid":"00000000-0000-0000-0001-{index:012}","creationTimestamp":"2026-11-01T00:00:00Z","labels":{{"app":"app-{}","zone":"a"}}}},"spec":{{"nodeName":"node-{node:05}","containers":[{{"name":"main","image":"registry.example/app:1","resources":{{"requests":{asked},"limits":{asked}}}}}]}},"status":{{"phase":"Running","startTime":"2026-11-01T00:00:00Z","conditions":[{{"type":"PodScheduled","status":"True"}},{{"type":"Ready","status":"True"}}]}}}}"#,
        index % 40,
        index % 700
    )
}

/// Waits for two GPUs of one machine, where each has one, apart from its like, near another app, and evenly over the zones.
fn picky(index: usize) -> String {
    let (team, app, other) = (index % 40, index % 700, (index + 7) % 700);
    let asked = format!(r#"{{"cpu":"{}m","memory":"64Gi","nvidia.com/gpu":"2"}}"#, 8000 + index);
    let apart = format!(
        r#"[{{"topologyKey":"kubernetes.io/hostname","labelSelector":{{"matchLabels":{{"app":"app-{app}"}}}}}}]"#
    );
    let near = format!(
        r#"[{{"topologyKey":"topology.kubernetes.io/zone","namespaceSelector":{{}},"labelSelector":{{"matchLabels":{{"app":"app-{other}"}}}}}}]"#
    );
    let spread = format!(
        r#"[{{"maxSkew":5,"topologyKey":"topology.kubernetes.io/zone","whenUnsatisfiable":"DoNotSchedule","labelSelector":{{"matchLabels":{{"app":"app-{app}"}}}}}}]"#
    );
    format!(
        r#"{{"metadata":{{"name":"pod-{index:06}","namespace":"team-{team}","uid":"00000000-0000-0000-0001-{index:012}","creationTimestamp":"2026-11-01T00:00:00Z","labels":{{"app":"app-{app}","zone":"a"}}}},"spec":{{"nodeSelector":{{"nvidia.com/gpu.product":"NVIDIA-H100-80GB-HBM3"}},"affinity":{{"podAntiAffinity":{{"requiredDuringSchedulingIgnoredDuringExecution":{apart}}},"podAffinity":{{"requiredDuringSchedulingIgnoredDuringExecution":{near}}}}},"topologySpreadConstraints":{spread},"containers":[{{"name":"main","image":"registry.example/app:1","resources":{{"requests":{asked},"limits":{asked}}}}}]}},"status":{{"phase":"Pending","conditions":[{{"type":"PodScheduled","status":"False","reason":"Unschedulable","message":"0/5000 nodes are available: 5000 Insufficient nvidia.com/gpu."}}]}}}}"#
    )
}

/// One in ten has GPUs and one in fifty of these waits; the others are what else runs in a cluster.
fn pod(index: usize, nodes: usize) -> String {
    let gpus = if index.is_multiple_of(10) { 1 << (index / 10 % 4) } else { 0 };
    let waits = gpus > 0 && (index / 10).is_multiple_of(50);
    let asked = match gpus {
        0 => r#"{"cpu":"500m","memory":"512Mi"}"#.to_owned(),
        gpus => format!(r#"{{"cpu":"{}","memory":"{}Gi","nvidia.com/gpu":"{gpus}"}}"#, gpus * 8, gpus * 64),
    };
    let node = if waits { String::new() } else { format!(r#""nodeName":"node-{:05}","#, index % nodes) };
    let status = if waits {
        r#"{"phase":"Pending","conditions":[{"type":"PodScheduled","status":"False","reason":"Unschedulable","message":"0/5000 nodes are available: 5000 Insufficient nvidia.com/gpu."}]}"#
    } else {
        r#"{"phase":"Running","startTime":"2026-11-01T00:00:00Z","conditions":[{"type":"PodScheduled","status":"True"},{"type":"Ready","status":"True"}]}"#
    };
    format!(
        r#"{{"metadata":{{"name":"pod-{index:06}","namespace":"team-{}","uid":"00000000-0000-0000-0001-{index:012}","creationTimestamp":"2026-11-01T00:00:00Z","labels":{{"app":"app-{}"}}}},"spec":{{{node}"containers":[{{"name":"main","image":"registry.example/app:1","resources":{{"requests":{asked},"limits":{asked}}}}}]}},"status":{status}}}"#,
        index % 40,
        index % 700
    )
}
