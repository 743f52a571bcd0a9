//! Who holds what, who uses what, and what happens to who uses too much, on the real kubelet with real processes. What the processes are
//! said to do with a GPU is made up: the stand-in library lists them.

use std::{
    collections::BTreeSet,
    io::Write as _,
    process::{Command, Stdio},
};

use anyhow::{Context as _, ensure};
use spillway_tests::standin::GpuStandin;

use crate::{
    Test,
    harness::{DEDICATED, Namespace, Pool, agents, metrics, wait},
};

pub(crate) const TESTS: &[Test] = &[
    ("usage::what_is_used_is_told_of_its_holder", attributed),
    ("usage::who_exceeds_a_memory_budget_is_killed_and_its_neighbour_is_not", budgets),
    ("usage::alert_rules_hold", alert_rules),
    ("usage::the_agent_leaves_while_its_node_says_that_the_driver_is_changed", paused),
    ("usage::a_restart_on_a_sick_gpu_is_held_back", held_back),
];

/// What the agent's metrics say, by whole lines without the value.
fn metric(pool: &Pool, name: &str, labels: &[(&str, &str)]) -> anyhow::Result<Option<f64>> {
    Ok(metrics(pool)?.lines().find_map(|line| {
        let rest = line.strip_prefix(name)?.strip_prefix('{')?;
        let all = labels.iter().all(|(label, value)| rest.contains(&format!("{label}=\"{value}\"")));
        if all { rest.rsplit(' ').next()?.parse().ok() } else { None }
    }))
}

fn wait_metric(
    pool: &Pool,
    name: &str,
    labels: &[(&str, &str)],
    fits: impl Fn(Option<f64>) -> bool,
) -> anyhow::Result<()> {
    let mut last = None;
    wait(&format!("{name}{labels:?}"), || {
        let now = metric(pool, name, labels)?;
        last = now;
        Ok(fits(now).then_some(()))
    })
    .with_context(|| format!("last: {last:?}"))
}

/// The minor number of the GPU that a pod sees.
fn minor(namespace: &Namespace<'_>, pod: &str) -> anyhow::Result<u32> {
    let seen = namespace.exec(pod, &["sh", "-c", "echo -n ${NVIDIA_VISIBLE_DEVICES##*-}"])?;
    let number = seen.split("::").next().unwrap_or_default();
    number.parse().with_context(|| format!("{seen:?} is no minor"))
}

/// The `sleep`s of a pod, as its machine counts processes: by the UID that its cgroup is called by.
fn sleeps(pool: &Pool, uid: &str) -> anyhow::Result<Vec<u32>> {
    let script = format!(
        "for p in $(grep -l pod{uid} /proc/[0-9]*/cgroup 2>/dev/null); do p=${{p%/cgroup}}; [ \"$(cat $p/comm)\" = sleep ] && echo ${{p#/proc/}}; done; true"
    );
    pool.on(DEDICATED, &script)?.lines().map(|pid| pid.parse().context("a PID is a number")).collect()
}

fn alive(pool: &Pool, pid: u32) -> anyhow::Result<bool> {
    Ok(pool.on(DEDICATED, &format!("[ -d /proc/{pid} ] && echo yes; true"))?.trim() == "yes")
}

fn gpus(pool: &Pool) -> anyhow::Result<GpuStandin> {
    Ok(GpuStandin::at(&pool.cluster.machine(DEDICATED)?.path("/opt/spillway-standin")))
}

fn spec(command: &str, limits: &str, init: &str) -> String {
    format!(
        "  nodeName: {DEDICATED}
  terminationGracePeriodSeconds: 0
{init}  containers:
  - name: main
    image: spillway.test/busybox:dev
    imagePullPolicy: Never
    command: [sh, -c, \"{command}\"]
    resources: {{limits: {{{limits}}}}}
"
    )
}

/// Nobody uses the GPUs any more when it is dropped.
struct Used(GpuStandin);

impl Drop for Used {
    fn drop(&mut self) {
        for minor in 0..2 {
            let clear =
                [("processes", ""), ("process-utilization", ""), ("utilization", "0"), ("memory-used", "0")];
            for (attribute, value) in clear {
                let _ = self.0.set(minor, attribute, value);
            }
        }
    }
}

fn attributed(pool: &Pool) -> anyhow::Result<()> {
    let used = Used(gpus(pool)?);
    let namespace = pool.namespace("usage")?;
    let init = "  initContainers:
  - name: prepare
    image: spillway.test/busybox:dev
    imagePullPolicy: Never
    command: ['true']
    resources: {limits: {cpu: 50m, memory: 16Mi, nvidia.com/gpu: 1}}
";
    let limits = "cpu: 50m, memory: 16Mi, nvidia.com/gpu: 1";
    namespace.pod("train", &spec("sleep 100000 & sleep 100000", limits, init))?;
    let manifest = pool.cluster.machine(DEDICATED)?.path("/etc/kubernetes/manifests/lazy.yaml");
    let lazy = spec("sleep 100000", "nvidia.com/gpu: 1", "").replace("  nodeName: dedicated-1\n", "");
    std::fs::write(
        &manifest,
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: lazy, namespace: {}}}\nspec:\n{lazy}",
            namespace.name
        ),
    )?;
    let result = attribute(pool, &namespace, &used.0);
    std::fs::remove_file(manifest)?;
    result?;

    let held = "spillway_container_device_held";
    namespace.kubectl(&["delete", "pod", "train"])?;
    wait_metric(pool, held, &[("namespace", "usage"), ("pod", "train")], |value| value.is_none())?;
    wait_metric(pool, held, &[("namespace", "usage"), ("pod", "lazy-dedicated-1")], |value| value.is_none())
}

fn attribute(pool: &Pool, namespace: &Namespace<'_>, gpus: &GpuStandin) -> anyhow::Result<()> {
    namespace.wait_ready("train")?;
    wait("the static pod to be there", || {
        let found =
            namespace.kubectl(&["get", "pod", "lazy-dedicated-1", "--ignore-not-found", "-o", "name"])?;
        Ok((!found.is_empty()).then_some(()))
    })?;
    namespace.wait_ready("lazy-dedicated-1")?;
    ensure!(namespace.field("pod", "train", ".status.qosClass")? == "Guaranteed");
    let (uid, number) = (namespace.field("pod", "train", ".metadata.uid")?, minor(namespace, "train")?);
    let device = GpuStandin::uuid(number);
    let own = sleeps(pool, &uid)?;
    let [first, second] = own.as_slice() else { anyhow::bail!("train has {own:?} instead of two processes") };
    // A process that is in no pod, too.
    gpus.set(number, "processes", format!("{first} 1000 compute\n{second} 24 graphics\n1 7 compute\n"))?;
    gpus.set(number, "memory-used", 1100)?;
    gpus.set(number, "utilization", 40)?;

    let train = [
        ("namespace", "usage"),
        ("pod", "train"),
        ("container", "main"),
        ("resource", "nvidia.com/gpu"),
        ("device", device.as_str()),
    ];
    wait_metric(pool, "spillway_container_device_memory_used_bytes", &train, |value| {
        value == Some(1024.0 * f64::from(1 << 20))
    })?;
    wait_metric(pool, "spillway_container_device_utilization_ratio", &train, |value| value == Some(0.4))?;
    wait_metric(pool, "spillway_device_stranger_processes", &[("device", &device)], |value| {
        value == Some(1.0)
    })?;
    let held = |pod: &str, container: &str| {
        let labels = [("namespace", "usage"), ("pod", pod), ("container", container)];
        metric(pool, "spillway_container_device_held", &labels)
    };
    ensure!(held("train", "main")? == Some(1.0));
    ensure!(held("train", "prepare")?.is_none(), "an init container that has ended holds nothing");

    // Held, but not used: the static pod from its start, the other from now on.
    let idle = "spillway_container_device_held_idle_seconds_total";
    let lazy = [("namespace", "usage"), ("pod", "lazy-dedicated-1"), ("container", "main")];
    wait_metric(pool, idle, &lazy, |value| value.is_some_and(|seconds| seconds > 0.0))?;
    // Until its first process showed up it was idle, too.
    let before = metric(pool, idle, &train)?.context("nothing is known of how idle train is")?;
    gpus.set(number, "utilization", 0)?;
    wait_metric(pool, idle, &train, |value| value.is_some_and(|seconds| seconds > before))
}

/// The agent's ordinary configuration when it is dropped.
struct Budgets<'a>(&'a Pool);

impl Drop for Budgets<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.0.cluster.install_chart(&[]) {
            eprintln!("    the agent was not set back: {error:#}");
        }
    }
}

fn budgets(pool: &Pool) -> anyhow::Result<()> {
    let used = Used(gpus(pool)?);
    let back = Budgets(pool);
    pool.cluster.install_chart(&[
        "agent.config.sharing.memory.mode=kill",
        "agent.config.sharing.memory.resources[0].name=nvidia.com/gpu",
        "agent.config.sharing.memory.resources[0].replicas=2",
        "agent.config.sharing.memory.resources[0].memoryMiB=1000",
        "agent.config.allocation.replicas=packed",
    ])?;
    let path = "jsonpath={.status.allocatable.nvidia\\.com/gpu}";
    wait("four shares to be allocatable", || {
        Ok((pool.cluster.kubectl(&["get", "node", DEDICATED, "-o", path])? == "4").then_some(()))
    })?;
    let namespace = pool.namespace("budget")?;
    let mut pods = Vec::new();
    for (name, command) in [
        ("greedy", "sleep 100000 & sleep 100000 & while :; do sleep 100000; done"),
        ("modest", "sleep 100000 & wait"),
    ] {
        namespace.pod(name, &spec(command, "nvidia.com/gpu: 1", ""))?;
        namespace.wait_ready(name)?;
        let uid = namespace.field("pod", name, ".metadata.uid")?;
        pods.push((minor(&namespace, name)?, sleeps(pool, &uid)?));
    }
    let [(number, greedy), (other, modest)] = pods.as_slice() else { anyhow::bail!("two pods were made") };
    ensure!(number == other, "packed shares are of one GPU, not of {number} and {other}");
    let ([large, small, ..], [neighbour, ..]) = (greedy.as_slice(), modest.as_slice()) else {
        anyhow::bail!("the pods have {greedy:?} and {modest:?}")
    };
    used.0.set(
        *number,
        "processes",
        format!("{large} 700 compute\n{small} 400 compute\n{neighbour} 990 compute\n"),
    )?;
    used.0.set(*number, "process-utilization", format!("{small} 30\n{neighbour} 55\n1 9\n"))?;
    used.0.set(*number, "memory-used", 2090)?;
    for (pod, ratio) in [("greedy", 0.3), ("modest", 0.55)] {
        let labels = [("namespace", "budget"), ("pod", pod)];
        let shares = |value: Option<f64>| value.is_some_and(|value| (value - ratio).abs() < 1e-9);
        wait_metric(pool, "spillway_container_device_utilization_ratio", &labels, shares)?;
    }
    wait("the large process to be killed", || Ok((!alive(pool, *large)?).then_some(())))?;
    wait_metric(
        pool,
        "spillway_memory_budget_exceeded_total",
        &[("device", &GpuStandin::uuid(*number)), ("outcome", "killed")],
        |value| value == Some(1.0),
    )?;
    for (reason, pod) in [("MemoryBudgetExceeded", "greedy"), ("MemoryBudgetNear", "modest")] {
        wait(&format!("an event {reason} of {pod}"), || {
            let selector = format!("involvedObject.name={pod},reason={reason}");
            let found = namespace.kubectl(&["get", "events", "--field-selector", &selector, "-o", "name"])?;
            Ok((!found.is_empty()).then_some(()))
        })?;
    }
    ensure!(alive(pool, *small)? && alive(pool, *neighbour)?, "a process within its budget was killed");
    for pod in ["greedy", "modest"] {
        let restarts = namespace.field("pod", pod, ".status.containerStatuses[0].restartCount")?;
        ensure!(restarts == "0", "{pod} was restarted {restarts} times");
    }
    drop(back);
    // The GPU is not shared any more, and they hold their shares of it all the same: nobody gets it whole.
    let whole = |count: &str| {
        wait(&format!("whole GPUs to be allocatable: {count}"), || {
            Ok((pool.cluster.kubectl(&["get", "node", DEDICATED, "-o", path])? == count).then_some(()))
        })
    };
    whole("1")?;
    for pod in ["greedy", "modest"] {
        let labels = [("namespace", "budget"), ("pod", pod), ("device", &GpuStandin::uuid(*number))];
        wait_metric(pool, "spillway_container_device_held", &labels, |value| value == Some(1.0))?;
        namespace.kubectl(&["delete", "pod", pod])?;
    }
    whole("2")
}

/// The node without the label when it is dropped.
struct Paused<'a>(&'a Pool);

const PAUSE: &str = "nvidia.com/gpu.deploy.client";

impl Drop for Paused<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.0.cluster.kubectl(&["label", "node", DEDICATED, &format!("{PAUSE}-")]) {
            eprintln!("    the node's label was not removed: {error:#}");
        }
    }
}

/// By the GPU Operator's label, so that a driver can be unloaded. What pods hold stays theirs.
fn paused(pool: &Pool) -> anyhow::Result<()> {
    let namespace = pool.namespace("paused")?;
    namespace.pod("worker", &spec("sleep 100000", "nvidia.com/gpu: 1", ""))?;
    namespace.wait_ready("worker")?;
    let agents = || agents(pool, "{.items[*].metadata.name}");
    let before = agents()?;
    let label = |value: &str| {
        pool.cluster.kubectl(&["label", "--overwrite", "node", DEDICATED, &format!("{PAUSE}={value}")])
    };
    let back = Paused(pool);
    // The value of every day.
    label("true")?;
    label("paused-for-driver-upgrade")?;
    wait("the agent to leave", || Ok(agents()?.is_empty().then_some(())))?;
    drop(back);
    wait("an agent to be back", || {
        let now = agents()?;
        Ok((!now.is_empty() && now != before).then_some(()))
    })?;
    let held = [("namespace", "paused"), ("pod", "worker")];
    wait_metric(pool, "spillway_container_device_held", &held, |value| value == Some(1.0))?;
    let restarts = namespace.field("pod", "worker", ".status.containerStatuses[0].restartCount")?;
    ensure!(restarts == "0", "the worker was restarted {restarts} times");
    let path = "jsonpath={.status.allocatable.nvidia\\.com/gpu}";
    wait("both GPUs to be allocatable", || {
        Ok((pool.cluster.kubectl(&["get", "node", DEDICATED, "-o", path])? == "2").then_some(()))
    })?;
    namespace.kubectl(&["delete", "pod", "worker"]).map(drop)
}

/// By Prometheus' own tool: what the agent serves is named by its conventions, the rules are sound, fire when they should, and so are the
/// dashboard's queries.
fn alert_rules(pool: &Pool) -> anyhow::Result<()> {
    conventional(&metrics(pool)?)?;
    let alerts = spillway_tests::repository().join("deploy/alerts");
    let promtool = |arguments: &[&str]| {
        let mut command = Command::new(spillway_tests::components::folder().join("promtool"));
        let output = command.args(arguments).current_dir(&alerts).output().context("can't run promtool")?;
        let said = [output.stdout, output.stderr].concat();
        ensure!(output.status.success(), "promtool {arguments:?}: {}", String::from_utf8_lossy(&said));
        anyhow::Ok(())
    };
    promtool(&["check", "rules", "--lint=all", "--lint-fatal", "spillway.rules.yaml"])?;
    promtool(&["test", "rules", "spillway.rules_test.yaml"])?;
    let dashboard = std::fs::read_to_string(alerts.join("../dashboards/accelerators.json"))?;
    let dashboard: serde_json::Value = serde_json::from_str(&dashboard)?;
    let panels = dashboard["panels"].as_array().context("the dashboard has panels")?;
    for target in panels.iter().filter_map(|panel| panel["targets"].as_array()).flatten() {
        let query = target["expr"].as_str().context("a panel asks nothing")?;
        // Grafana puts the interval in.
        promtool(&["--experimental", "promql", "format", &query.replace("$__rate_interval", "5m")])
            .with_context(|| query.to_owned())?;
    }
    Ok(())
}

/// The tool reads Prometheus' own format, in which a counter's description has the counter's whole name, and no more than that.
fn conventional(served: &str) -> anyhow::Result<()> {
    let counters: BTreeSet<_> =
        served.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.strip_suffix(" counter")).collect();
    ensure!(!counters.is_empty(), "no counters among {served}");
    let whole = |line: &str| {
        let [hash, what, name, rest] = line.splitn(4, ' ').collect::<Vec<_>>()[..] else { return None };
        (hash == "#" && counters.contains(name)).then(|| format!("{hash} {what} {name}_total {rest}\n"))
    };
    let text: String =
        served.lines().map(|line| whole(line).unwrap_or_else(|| format!("{line}\n"))).collect();
    let mut promtool = Command::new(spillway_tests::components::folder().join("promtool"));
    promtool.args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut promtool = promtool.spawn().context("can't run promtool")?;
    promtool.stdin.take().context("promtool reads nothing")?.write_all(text.as_bytes())?;
    let output = promtool.wait_with_output()?;
    let said = [output.stdout, output.stderr].concat();
    ensure!(output.status.success(), "promtool check metrics: {}", String::from_utf8_lossy(&said));
    Ok(())
}

fn held_back(pool: &Pool) -> anyhow::Result<()> {
    let gpus = gpus(pool)?;
    let namespace = pool.namespace("held-back")?;
    namespace.pod("worker", &spec("sleep 100000 & wait", "nvidia.com/gpu: 1", ""))?;
    namespace.wait_ready("worker")?;
    let number = minor(&namespace, "worker")?;
    let uid = namespace.field("pod", "worker", ".metadata.uid")?;
    gpus.set_lost(number, true)?;
    let told = (|| {
        let healthy = [("device", GpuStandin::uuid(number))];
        let healthy = healthy.each_ref().map(|(label, value)| (*label, value.as_str()));
        wait_metric(pool, "spillway_device_healthy", &healthy, |value| value == Some(0.0))?;
        let first = sleeps(pool, &uid)?;
        let first = first.first().context("the worker sleeps")?;
        // The container ends and is restarted in place.
        pool.on(DEDICATED, &format!("kill -9 {first}"))?;
        wait("the kubelet to say why the container doesn't start", || {
            let events = namespace.kubectl(&["get", "events", "-o", "jsonpath={.items[*].message}"])?;
            Ok((events.contains("is Unhealthy") && events.contains("holdBackSickRestarts")).then_some(()))
        })?;
        let running = namespace.field("pod", "worker", ".status.containerStatuses[0].state.running")?;
        ensure!(running.is_empty(), "the container runs on a lost GPU: {running}");
        Ok(())
    })();
    gpus.set_lost(number, false)?;
    told?;
    namespace.wait_ready("worker").context("it was held back for good")?;
    namespace.kubectl(&["delete", "pod", "worker"]).map(drop)
}
