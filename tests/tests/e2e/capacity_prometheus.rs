//! Usage over time from a real Prometheus in the cluster, through the API server's proxy and beside it: what kube-state-metrics told it of four days long ago, made up, and what
//! it scrapes of Spillway's agent.

use std::{
    fmt::Write as _,
    fs,
    io::{BufRead as _, BufReader},
    process::{Child, ChildStdout, Command, Stdio},
};

use anyhow::{Context as _, ensure};
use jiff::Timestamp;
use serde_json::Value;
use spillway_tests::{components, image};

use crate::{
    Test,
    capacity::{kubectl, spillway, told},
    harness::{DEDICATED, Namespace, Pool, agents, wait},
};

pub(crate) const TESTS: &[Test] =
    &[("capacity_prometheus::history_comes_from_a_real_prometheus", history_comes_from_a_real_prometheus)];

/// When the four days begin.
const BEGIN: &str = "2025-10-06T00:00:00Z";
const DAYS: &[&str] = &["--since", "2025-10-06", "--until", "2025-10-10"];
const WEEKS: &[&str] = &["--since", "2025-10-01", "--until", "2025-10-15", "--step", "1m"];
const HOUR: i64 = 3600;
const DAY: i64 = 24 * HOUR;
/// From the third day's begin on nothing was scraped.
const GAP: (i64, i64) = (2 * DAY, 2 * DAY + 6 * HOUR);
/// Seconds between two samples.
const EVERY: i64 = 120;

/// A series as kube-state-metrics has it, its value, and from when to when in the four days it is there.
type Told = (&'static str, u32, fn(i64) -> bool);

const ALWAYS: fn(i64) -> bool = |_| true;
/// From nine to five.
const BY_DAY: fn(i64) -> bool = |at_s| (9 * HOUR + 1..=17 * HOUR).contains(&(at_s % DAY));
const SECOND_NOON: fn(i64) -> bool = |at_s| (DAY + 12 * HOUR + 1..=DAY + 15 * HOUR).contains(&at_s);
const FIRST_MORNING: fn(i64) -> bool = |at_s| at_s <= 6 * HOUR;

/// Two machines of eight GPUs and a virtual node; who trains always, works by day, bursts once and waits a while; and a pod that has ended.
const SERIES: &[Told] = &[
    (r#"kube_node_status_capacity{node="gpu-1",resource="nvidia_com_gpu"}"#, 8, ALWAYS),
    (r#"kube_node_status_capacity{node="gpu-2",resource="nvidia_com_gpu"}"#, 8, ALWAYS),
    (r#"kube_node_status_capacity{node="burst",resource="nvidia_com_gpu"}"#, 100, ALWAYS),
    (
        r#"kube_node_spec_taint{node="burst",key="virtual-kubelet.io/provider",effect="NoSchedule"}"#,
        1,
        ALWAYS,
    ),
    (r#"kube_node_labels{node="gpu-1",label_nvidia_com_gpu_product="NVIDIA-H100"}"#, 1, ALWAYS),
    (r#"kube_node_labels{node="gpu-2",label_nvidia_com_gpu_product="NVIDIA-H100"}"#, 1, ALWAYS),
    (
        r#"kube_pod_container_resource_requests{namespace="vision",pod="train",uid="1",container="main",node="gpu-1",resource="nvidia_com_gpu"}"#,
        4,
        ALWAYS,
    ),
    (
        r#"kube_pod_container_resource_requests{namespace="nlp",pod="tune",uid="2",container="main",node="gpu-2",resource="nvidia_com_gpu"}"#,
        8,
        BY_DAY,
    ),
    (
        r#"kube_pod_container_resource_requests{namespace="vision",pod="more",uid="3",container="main",node="burst",resource="nvidia_com_gpu"}"#,
        2,
        SECOND_NOON,
    ),
    (
        r#"kube_pod_container_resource_requests{namespace="nlp",pod="next",uid="4",container="main",node="",resource="nvidia_com_gpu"}"#,
        16,
        FIRST_MORNING,
    ),
    (
        r#"kube_pod_container_resource_requests{namespace="nlp",pod="over",uid="5",container="main",node="gpu-1",resource="nvidia_com_gpu"}"#,
        4,
        ALWAYS,
    ),
    (r#"kube_pod_status_phase{namespace="vision",pod="train",uid="1",phase="Running"}"#, 1, ALWAYS),
    (r#"kube_pod_status_phase{namespace="nlp",pod="tune",uid="2",phase="Running"}"#, 1, BY_DAY),
    (r#"kube_pod_status_phase{namespace="vision",pod="more",uid="3",phase="Running"}"#, 1, SECOND_NOON),
    (r#"kube_pod_status_phase{namespace="nlp",pod="next",uid="4",phase="Pending"}"#, 1, FIRST_MORNING),
    (r#"kube_pod_status_phase{namespace="nlp",pod="over",uid="5",phase="Succeeded"}"#, 1, ALWAYS),
    (r#"kube_pod_status_phase{namespace="nlp",pod="over",uid="5",phase="Running"}"#, 0, ALWAYS),
];

/// The four days as promtool reads them.
fn four_days() -> anyhow::Result<String> {
    let begin_s = BEGIN.parse::<Timestamp>()?.as_second();
    let mut text = String::new();
    for (series, value, there) in SERIES {
        for at_s in (EVERY..=4 * DAY).step_by(usize::try_from(EVERY)?) {
            if there(at_s) && !(GAP.0 + 1..=GAP.1).contains(&at_s) {
                writeln!(text, "{series} {value} {}", begin_s + at_s)?;
            }
        }
    }
    text.push_str("# EOF\n");
    Ok(text)
}

/// Puts the blocks and the configuration where the pod finds them.
fn prepare(pool: &Pool) -> anyhow::Result<()> {
    let folder = pool.cluster.machine(DEDICATED)?.path(DATA);
    if folder.exists() {
        fs::remove_dir_all(&folder)?;
    }
    fs::create_dir_all(folder.join("tsdb"))?;
    let metrics = folder.join("metrics.om");
    fs::write(&metrics, four_days()?)?;
    let made = Command::new(components::folder().join("promtool"))
        .args(["tsdb", "create-blocks-from", "--max-block-duration=162h", "openmetrics"])
        .args([&metrics, &folder.join("tsdb")])
        .output()
        .context("can't run promtool")?;
    ensure!(made.status.success(), "promtool: {}", String::from_utf8_lossy(&made.stderr));
    let agent = agents(pool, "{.items[*].status.podIP}")?;
    let scrape = format!(
        "global: {{scrape_interval: 1s}}
scrape_configs: [{{job_name: spillway-agent, static_configs: [{{targets: ['{agent}:9400']}}]}}]
"
    );
    fs::write(folder.join("prometheus.yml"), scrape)?;
    Ok(())
}

/// As an admin names it.
const ADDRESS: &str = "svc://monitoring/prometheus:web";
/// On the node.
const DATA: &str = "/var/lib/capacity-prometheus";

fn deploy(namespace: &Namespace<'_>) -> anyhow::Result<()> {
    namespace.apply(&format!(
        "apiVersion: v1
kind: Pod
metadata: {{name: prometheus, labels: {{app: prometheus}}}}
spec:
  nodeName: {DEDICATED}
  terminationGracePeriodSeconds: 0
  containers:
  - name: main
    image: spillway.test/prometheus:dev
    imagePullPolicy: Never
    args: [--config.file=/data/prometheus.yml, --storage.tsdb.path=/data/tsdb, --storage.tsdb.retention.time=50y]
    ports: [{{containerPort: 9090}}]
    readinessProbe: {{httpGet: {{path: /-/ready, port: 9090}}, periodSeconds: 1}}
    volumeMounts: [{{name: data, mountPath: /data}}]
  volumes: [{{name: data, hostPath: {{path: {DATA}}}}}]
---
apiVersion: v1
kind: Service
metadata: {{name: prometheus}}
spec: {{selector: {{app: prometheus}}, ports: [{{name: web, port: 9090}}, {{name: closed, port: 9999}}]}}
"
    ))?;
    namespace.wait_ready("prometheus")
}

fn history(pool: &Pool, address: &str, more: &[&str]) -> anyhow::Result<Value> {
    let output = spillway(pool, &[&["history", "--prometheus", address, "-o", "json"], more].concat())?;
    ensure!(output.status.success(), "{more:?}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).context("the history is no JSON")
}

/// The GPU-hours of what there is, by kind, pool and owner.
fn hours(history: &Value) -> anyhow::Result<Vec<String>> {
    let series = history["series"].as_array().context("no series")?;
    let text = |one: &Value, name: &str| one[name].as_str().unwrap_or_default().to_owned();
    let line = |one: &Value| {
        let [what, pool, owner] = ["what", "pool", "owner"].map(|name| text(one, name));
        format!("{what} {pool} {owner} {:.2}", one["gpu_hours"].as_f64().unwrap_or(-1.0))
    };
    Ok(series.iter().map(line).collect())
}

/// `kubectl port-forward`, until this is dropped.
struct Forward {
    child: Child,
    address: String,
    /// It ends when nobody reads what it says.
    said: BufReader<ChildStdout>,
}

impl Forward {
    fn start(namespace: &Namespace<'_>, pool: &Pool) -> anyhow::Result<Self> {
        let arguments = ["-n", &namespace.name, "port-forward", "pod/prometheus", ":9090"];
        let mut child = pool.cluster.kubectl_command(&arguments).stdout(Stdio::piped()).spawn()?;
        let said = BufReader::new(child.stdout.take().context("no output")?);
        let mut this = Self { child, address: String::new(), said };
        let mut line = String::new();
        this.said.read_line(&mut line)?;
        // Forwarding from 127.0.0.1:40123 -> 9090
        let local = line.split_whitespace().nth(2).with_context(|| format!("no address in {line:?}"))?;
        this.address = format!("http://{local}");
        Ok(this)
    }
}

impl Drop for Forward {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn history_comes_from_a_real_prometheus(pool: &Pool) -> anyhow::Result<()> {
    components::ensure_prometheus()?;
    let image = image::prometheus(&components::folder(), &spillway_tests::target().join("images"))?;
    pool.cluster.load_images(DEDICATED, &[image])?;
    let namespace = pool.namespace("monitoring")?;
    namespace.holder("holds", "nvidia.com/gpu", 1)?;
    namespace.wait_ready("holds")?;
    prepare(pool)?;
    deploy(&namespace)?;
    four_days_are_read(pool, &namespace)?;
    by_the_minute(pool)?;
    a_month_is_divided(pool)?;
    what_is_exported_is_a_trace(pool)?;
    what_is_scraped_is_read(pool)?;
    who_may_not_is_told_which_right(pool, &namespace)?;
    who_is_not_there_is_told(pool, &namespace)?;
    who_is_replaced_is_waited_for(pool, &namespace)?;
    who_is_gone_is_told(pool, &namespace)
}

const EXPECTED: [&str; 6] = [
    "capacity NVIDIA-H100  1440.00",
    "capacity burst  9000.00",
    "allocated NVIDIA-H100 nlp 256.00",
    "allocated NVIDIA-H100 vision 360.00",
    "allocated burst vision 6.00",
    "waiting nvidia.com/gpu nlp 96.00",
];

/// Both ways, by the hour: what was there, and the gap as one.
fn four_days_are_read(pool: &Pool, namespace: &Namespace<'_>) -> anyhow::Result<()> {
    let through_api = history(pool, ADDRESS, DAYS)?;
    ensure!(hours(&through_api)? == EXPECTED, "{:#?}", hours(&through_api)?);
    let gaps = &through_api["gaps"];
    ensure!(
        gaps.as_array().is_some_and(|gaps| gaps.len() == 1)
            && gaps[0]["since"] == "2025-10-08T00:00:00Z"
            && gaps[0]["until"] == "2025-10-08T06:00:00Z",
        "{gaps}"
    );
    ensure!(through_api["warnings"].as_array().is_some_and(Vec::is_empty), "{}", through_api["warnings"]);
    let forward = Forward::start(namespace, pool)?;
    let by_http = history(pool, &forward.address, DAYS)?;
    for part in ["series", "gaps", "seen_share"] {
        ensure!(through_api[part] == by_http[part], "{part} is another by HTTP");
    }
    Ok(())
}

/// More points than Prometheus gives at once, and mostly time of which it has nothing.
fn by_the_minute(pool: &Pool) -> anyhow::Result<()> {
    let by_minute = history(pool, ADDRESS, WEEKS)?;
    let owned = by_minute["series"][0]["gpu_hours"].as_f64().context("no capacity")?;
    // A value holds for up to five minutes after its sample.
    ensure!((owned - 1440.0).abs() < 16.0 * 0.25, "{owned} GPU-hours by the minute");
    let gaps = by_minute["gaps"].as_array().context("no gaps")?;
    ensure!(gaps.len() == 3, "before, within and after: {gaps:?}");
    Ok(())
}

/// Sixteen GPUs for the 90 hours that were seen at 2 an hour, and two for three hours at 6.
fn a_month_is_divided(pool: &Pool) -> anyhow::Result<()> {
    let asked = ["showback", "--prometheus", ADDRESS, "--month", "2025-10", "-o", "csv"];
    let prices = ["--dedicated-price", "2", "--serverless-price", "6"];
    let output = spillway(pool, &[&asked[..], &prices].concat())?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let csv = String::from_utf8(output.stdout)?;
    let rows: Vec<&str> = csv.lines().skip(1).collect();
    let expected = [
        "vision,360.00,25.00,720.00,21600,36.00,756.00",
        "nlp,256.00,17.78,512.00,0,0.00,512.00",
        "(idle),824.00,57.22,1648.00,0,0.00,1648.00",
        "total,1440.00,100.00,2880.00,21600,36.00,2916.00",
    ];
    ensure!(rows == expected, "{csv}");
    Ok(())
}

/// What was asked for is what an optimum is found for.
fn what_is_exported_is_a_trace(pool: &Pool) -> anyhow::Result<()> {
    let exported = spillway(pool, &[&["history", "--prometheus", ADDRESS, "-o", "csv"], DAYS].concat())?;
    ensure!(exported.status.success(), "{}", String::from_utf8_lossy(&exported.stderr));
    let trace = tempfile::Builder::new().suffix(".csv").tempfile()?;
    fs::write(trace.path(), exported.stdout)?;
    let file = trace.path().to_str().context("a temporary path is text")?;
    let found = spillway(pool, &["optimize", file, "--ratio", "3", "-o", "json"])?;
    ensure!(found.status.success(), "{}", String::from_utf8_lossy(&found.stderr));
    let found: Value = serde_json::from_slice(&found.stdout)?;
    let mean = found["demand"]["mean_gpus"].as_f64().context("no mean")?;
    let asked_for = 256.0 + 360.0 + 6.0 + 96.0;
    ensure!((mean - asked_for / 90.0).abs() < 1e-3, "{mean} GPUs on average");
    Ok(())
}

/// The agent's own metrics of the last minutes: who holds a GPU, and how many there are.
fn what_is_scraped_is_read(pool: &Pool) -> anyhow::Result<()> {
    let mut last = Value::Null;
    wait("what the agent says to be in Prometheus", || {
        last = history(pool, ADDRESS, &["--since", "10m", "--step", "10s"])?;
        let series = last["series"].as_array().context("no series")?;
        let most = |what: &str, owner: &str| {
            let found = series.iter().find(|one| one["what"] == what && one["owner"] == owner);
            found.and_then(|one| one["max_gpus"].as_f64())
        };
        Ok((most("capacity", "") == Some(2.0) && most("allocated", "monitoring") == Some(1.0)).then_some(()))
    })
    .with_context(|| last.to_string())
}

/// Who may read through the API needs one right.
fn who_may_not_is_told_which_right(pool: &Pool, namespace: &Namespace<'_>) -> anyhow::Result<()> {
    namespace.kubectl(&["create", "serviceaccount", "reader"])?;
    let token = namespace.kubectl(&["create", "token", "reader"])?;
    let folder = tempfile::tempdir()?;
    let kubeconfig = folder.path().join("kubeconfig");
    fs::copy(pool.cluster.kubeconfig(), &kubeconfig)?;
    let kubeconfig = kubeconfig.to_str().context("a temporary path is text")?;
    let config =
        |words: &[&str]| pool.cluster.kubectl(&[&["--kubeconfig", kubeconfig, "config"], words].concat());
    let user = config(&["view", "-o", "jsonpath={.contexts[0].context.user}"])?;
    // Its certificate is the administrator's.
    config(&["unset", "users"])?;
    config(&["set-credentials", user.trim(), "--token", token.trim()])?;
    let asked = [&["history", "--prometheus", ADDRESS, "--kubeconfig", kubeconfig], DAYS].concat();
    let refusal = told(pool, &asked, 1)?;
    ensure!(refusal.contains("the right to get services/proxy"), "{refusal}");
    namespace.kubectl(&["create", "role", "reader", "--verb=get", "--resource=services/proxy"])?;
    let account = format!("--serviceaccount={}:reader", namespace.name);
    namespace.kubectl(&["create", "rolebinding", "reader", "--role=reader", &account])?;
    wait("the right to be enough", || Ok(spillway(pool, &asked)?.status.success().then_some(())))
}

/// What is said to whoever asks for four days in vain. Nobody waits longer than a minute for that: it would end with 124.
fn refused(pool: &Pool, address: &str, parts: &[&str]) -> anyhow::Result<()> {
    let kubectl = kubectl(pool)?;
    let mut command = Command::new("timeout");
    command.arg("60").arg(kubectl.get_program()).args(["spillway", "history", "--prometheus", address]);
    command.args(DAYS).envs(kubectl.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let output = command.output().context("can't run timeout")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(1), "{address}: {}, {said}", output.status);
    for part in parts {
        ensure!(said.contains(part), "{address}: no {part:?} in {said}");
    }
    Ok(())
}

/// Sends Prometheus' process a signal.
fn signal(pool: &Pool, namespace: &Namespace<'_>, signal: &str) -> anyhow::Result<()> {
    let uid = namespace.field("pod", "prometheus", ".metadata.uid")?;
    let send = format!(
        "for p in $(grep -l pod{uid} /proc/[0-9]*/cgroup 2>/dev/null); do p=${{p%/cgroup}}; \
         [ \"$(cat $p/comm)\" != prometheus ] || kill -{signal} ${{p#/proc/}}; done"
    );
    pool.on(DEDICATED, &send).map(drop)
}

/// A port on which nothing listens, and a process that is stopped: the kernel takes its connections.
fn who_is_not_there_is_told(pool: &Pool, namespace: &Namespace<'_>) -> anyhow::Result<()> {
    refused(
        pool,
        "svc://monitoring/prometheus:closed",
        &["answers 503", "connection refused", "does a pod of that service run"],
    )?;
    let forward = Forward::start(namespace, pool)?;
    signal(pool, namespace, "STOP")?;
    let told = refused(pool, &forward.address, &["says nothing for 10 s"]);
    signal(pool, namespace, "CONT")?;
    told?;
    namespace.wait_ready("prometheus")
}

/// How many ranges Prometheus was asked for; `None` while it can't be asked.
fn ranges(pool: &Pool) -> Option<u64> {
    let path = "/api/v1/namespaces/monitoring/services/prometheus:web/proxy/metrics";
    let metrics = pool.cluster.kubectl(&["get", "--raw", path]).ok()?;
    let name = r#"prometheus_http_requests_total{code="200",handler="/api/v1/query_range"} "#;
    metrics.lines().find_map(|line| line.strip_prefix(name))?.parse().ok()
}

/// Killed while it is asked: its container starts again, and what was asked for is whole.
fn who_is_replaced_is_waited_for(pool: &Pool, namespace: &Namespace<'_>) -> anyhow::Result<()> {
    let whole = history(pool, ADDRESS, WEEKS)?;
    let restarts = || namespace.field("pod", "prometheus", ".status.containerStatuses[0].restartCount");
    for round in 1..=2 {
        let (before, restarted) = (ranges(pool).context("no count of queries")?, restarts()?);
        let mut asks = kubectl(pool)?;
        asks.args(["spillway", "history", "--prometheus", ADDRESS, "-o", "json"]).args(WEEKS);
        let mut asks = asks.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        wait("a query to come", || {
            let ended = asks.try_wait()?.is_some();
            Ok((ended || ranges(pool).is_some_and(|now| now > before)).then_some(()))
        })?;
        signal(pool, namespace, "KILL")?;
        let output = asks.wait_with_output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "round {round}: {said}");
        let found: Value = serde_json::from_slice(&output.stdout).context("the history is no JSON")?;
        for part in ["series", "gaps", "warnings"] {
            ensure!(whole[part] == found[part], "round {round}: {part} is another: {said}");
        }
        wait("Prometheus to start again", || Ok((restarts()? != restarted).then_some(())))?;
        namespace.wait_ready("prometheus")?;
    }
    Ok(())
}

fn who_is_gone_is_told(pool: &Pool, namespace: &Namespace<'_>) -> anyhow::Result<()> {
    namespace.kubectl(&["delete", "pod", "prometheus"])?;
    refused(pool, ADDRESS, &["answers 503", "no endpoints available", "does a pod of that service run"])
}
