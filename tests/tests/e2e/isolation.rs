//! Isolation on the real cluster: what pods try, and what becomes of it. No driver is behind the accelerators' nodes: an open that is let
//! through fails with ENXIO, one that is refused with EPERM. The machines' pods are below a `--cgroup-root`, on a host with cgroup v2 or with
//! both versions side by side.

mod attacks;
mod lasting;

use anyhow::{Context as _, bail, ensure};
use spillway_tests::standin::GpuStandin;

use crate::{
    Test,
    agent::{GPU, wait_offered},
    harness::{DEDICATED, Frozen, Namespace, Pool, metric, wait},
};

pub(crate) const TESTS: &[Test] = &[
    ("isolation::no_pod_reaches_anothers_accelerator", no_pod_reaches_anothers_accelerator),
    ("isolation::pods_that_try_harder_gain_nothing", attacks::pods_that_try_harder_gain_nothing),
    ("isolation::every_kind_of_pod_gets_its_own", every_kind_of_pod_gets_its_own),
    ("isolation::a_device_passes_on_when_its_pod_has_ended", a_device_passes_on_when_its_pod_has_ended),
    ("isolation::it_outlives_agent_and_kubelet_and_is_put_back", lasting::it_outlives_and_is_put_back),
    ("isolation::a_denial_is_one_event_for_each_pod_and_device", a_denial_is_one_event),
    ("isolation::while_the_agent_is_away_it_stays_or_goes_as_was_set", lasting::while_the_agent_is_away),
    ("isolation::nothing_is_left_when_the_chart_goes", lasting::nothing_is_left_when_the_chart_goes),
];

/// What an open says that is let through: no driver is there.
pub(crate) const LET_THROUGH: &str = "ENXIO";
/// What an open says that is refused.
pub(crate) const REFUSED: &str = "EPERM";

/// Waits until earlier tests' pods have gone, and with them what they held; and sees to it that isolation is enforced.
fn settle(pool: &Pool) -> anyhow::Result<()> {
    pool.cluster.install_chart(&["agent.isolation.mode=enforce"])?;
    wait("earlier tests' namespaces to go", || {
        let phases =
            pool.cluster.kubectl(&["get", "namespaces", "-o", "jsonpath={.items[*].status.phase}"])?;
        Ok((!phases.contains("Terminating")).then_some(()))
    })?;
    wait_offered(pool, GPU, 2, 2)
}

/// A privileged pod that sees all nodes of its machine and all of its processes. `more` is put into the container.
pub(crate) fn greedy(namespace: &Namespace<'_>, name: &str, more: &str) -> anyhow::Result<()> {
    namespace.pod(
        name,
        &format!(
            "  nodeName: {DEDICATED}
  hostPID: true
  terminationGracePeriodSeconds: 0
  volumes: [{{name: dev, hostPath: {{path: /dev}}}}]
  containers:
  - name: main
    image: spillway.test/busybox:dev
    imagePullPolicy: Never
    command: [sleep, '100000']
    env: [{{name: NVIDIA_VISIBLE_DEVICES, value: all}}]
    securityContext: {{privileged: true}}
    volumeMounts: [{{name: dev, mountPath: /host-dev}}]
{more}"
        ),
    )?;
    namespace.wait_ready(name)
}

fn holding(count: u32) -> String {
    format!("    resources: {{limits: {{{GPU}: {count}}}}}\n")
}

fn told(said: &str) -> Option<&'static str> {
    if said.contains("No such device or address") {
        Some(LET_THROUGH)
    } else if said.contains("Operation not permitted") {
        Some(REFUSED)
    } else {
        None
    }
}

/// What becomes of opening `path` in a pod.
fn open(namespace: &Namespace<'_>, pod: &str, path: &str) -> anyhow::Result<&'static str> {
    let output = namespace.kubectl_output(&["exec", pod, "--", "sh", "-c", &format!("exec 3<{path}")])?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    told(&said).with_context(|| format!("{pod} opening {path}: {said:?}"))
}

/// Opens `path` in a pod, and compares what becomes of it.
pub(crate) fn expect(namespace: &Namespace<'_>, pod: &str, path: &str, expected: &str) -> anyhow::Result<()> {
    let found = open(namespace, pod, path)?;
    ensure!(found == expected, "{pod} opening {path}: {found} instead of {expected}");
    Ok(())
}

/// Makes a node in a pod.
fn make(namespace: &Namespace<'_>, pod: &str, path: &str, major: u32, minor: u32) -> anyhow::Result<()> {
    let numbers = [major.to_string(), minor.to_string()];
    namespace.exec(pod, &["mknod", path, "c", &numbers[0], &numbers[1]]).map(drop)
}

/// The minor of the only GPU that a pod was given, as its environment says.
fn given(namespace: &Namespace<'_>, pod: &str) -> anyhow::Result<u32> {
    // The last of several variables of one name counts, and the plugin's comes last.
    let minor = namespace.exec(pod, &["sh", "-c", "echo -n ${NVIDIA_VISIBLE_DEVICES##*-}"])?;
    minor.parse().with_context(|| format!("{minor:?} is no minor"))
}

/// A pod that holds a GPU, like its neighbour privileged and with all nodes.
fn holder(namespace: &Namespace<'_>, name: &str) -> anyhow::Result<u32> {
    let spec = format!(
        "  nodeName: {DEDICATED}
  terminationGracePeriodSeconds: 0
  volumes: [{{name: dev, hostPath: {{path: /dev}}}}]
  containers:
  - name: main
    image: spillway.test/busybox:dev
    imagePullPolicy: Never
    command: [sleep, '100000']
    securityContext: {{privileged: true}}
    volumeMounts: [{{name: dev, mountPath: /host-dev}}]
{}",
        holding(1)
    );
    namespace.pod(name, &spec)?;
    namespace.wait_ready(name)?;
    given(namespace, name)
}

fn no_pod_reaches_anothers_accelerator(pool: &Pool) -> anyhow::Result<()> {
    settle(pool)?;
    // A management function: nobody's, whoever else may have made such a node.
    pool.on(DEDICATED, "mknod -m 666 /dev/xclmgmt256 c 392 0")?;
    let namespace = pool.namespace("isolation")?;
    let own = holder(&namespace, "holder")?;
    let other = 1 - own;
    greedy(&namespace, "greedy", "")?;

    // By environment, by the runtime (a privileged container has every node of its host), by hostPath, and by mknod.
    for node in ["nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm", "dfl-port.0", "xclmgmt256"] {
        expect(&namespace, "greedy", &format!("/dev/{node}"), REFUSED)?;
        expect(&namespace, "greedy", &format!("/host-dev/{node}"), REFUSED)?;
    }
    make(&namespace, "greedy", "/tmp/gpu", 195, own)?;
    expect(&namespace, "greedy", "/tmp/gpu", REFUSED)?;
    // By /proc of the pod that holds it: the same path is another process's own GPU.
    let find = format!(
        "for p in /proc/[0-9]*; do if tr '\\0' '\\n' <$p/environ | grep -qx 'NVIDIA_VISIBLE_DEVICES={}'; then echo $p; fi; done",
        GpuStandin::uuid(own)
    );
    let processes = namespace.exec("greedy", &["sh", "-c", &find])?;
    let holders_own = processes.lines().next().context("no process of the holder is to be seen")?;
    expect(&namespace, "greedy", &format!("{holders_own}/root/dev/nvidia{own}"), REFUSED)?;
    // What is no accelerator is as it was.
    make(&namespace, "greedy", "/tmp/free", 240, 7)?;
    expect(&namespace, "greedy", "/tmp/free", LET_THROUGH)?;
    namespace.exec("greedy", &["sh", "-c", "exec 3</dev/urandom 4>/dev/null"])?;

    // The holder: its own and the control nodes, and not the other.
    for (node, expected) in [
        (format!("nvidia{own}"), LET_THROUGH),
        ("nvidiactl".to_owned(), LET_THROUGH),
        (format!("nvidia{other}"), REFUSED),
        ("xclmgmt256".to_owned(), REFUSED),
    ] {
        expect(&namespace, "holder", &format!("/dev/{node}"), expected)?;
        expect(&namespace, "holder", &format!("/host-dev/{node}"), expected)?;
    }
    // Whoever debugs it is in the pod, and has what the pod has.
    let script = format!(
        "mknod /tmp/own c 195 {own}; mknod /tmp/other c 195 {other}; (exec 3</tmp/own) 2>&1; echo --; (exec 3</tmp/other) 2>&1; true"
    );
    namespace.kubectl(&[
        "debug",
        "holder",
        "--container=debugger",
        "--profile=sysadmin",
        "--image=spillway.test/busybox:dev",
        "--image-pull-policy=Never",
        "--",
        "sh",
        "-c",
        &script,
    ])?;
    let log = wait("the debugger to end", || {
        let log = namespace.kubectl(&["logs", "holder", "-c", "debugger"])?;
        Ok((log.lines().count() >= 3).then_some(log))
    })?;
    let (first, second) = log.split_once("--").context("no log")?;
    ensure!((told(first), told(second)) == (Some(LET_THROUGH), Some(REFUSED)), "the debugger found {log}");

    let denials = format!(
        r#"spillway_isolation_denials_total{{namespace="isolation",pod="greedy",node="/dev/nvidia{own}"}}"#
    );
    wait("the denials to be counted", || Ok((metric(pool, &denials)? == Some(4)).then_some(())))
        .with_context(|| format!("last: {:?}", metric(pool, &denials)))?;

    // Who is exempt sees what it is to see.
    greedy(&namespace, "exempt", "")?;
    greedy(&namespace, "control", "")?;
    wait("the exempt pods to be known", || {
        let seen =
            (open(&namespace, "exempt", "/dev/nvidia0")?, open(&namespace, "control", "/dev/nvidiactl")?);
        Ok((seen == (LET_THROUGH, LET_THROUGH)).then_some(()))
    })?;
    expect(&namespace, "exempt", "/dev/xclmgmt256", LET_THROUGH)?;
    expect(&namespace, "control", "/dev/nvidia0", REFUSED)?;
    pool.on(DEDICATED, "rm /dev/xclmgmt256").map(drop)
}

/// Opens the own GPU, a control node and the other GPU, and says what became of each.
const TRY: &str = r#"own=$(echo ${NVIDIA_VISIBLE_DEVICES##*-} | sed "s/^0*//"); own=${own:-0}; for n in $own ctl $((1 - own)); do (exec 3</dev/nvidia$n) 2>&1; done; true"#;

fn every_kind_of_pod_gets_its_own(pool: &Pool) -> anyhow::Result<()> {
    settle(pool)?;
    let namespace = pool.namespace("kinds")?;
    let container = |name: &str, more: &str| {
        format!(
            "  - name: {name}\n    image: spillway.test/busybox:dev\n    imagePullPolicy: Never\n    securityContext: {{privileged: true}}\n    \
             command: [sh, -c, '{}']\n{more}",
            TRY.replace('\'', "''")
        )
    };
    let plain = |more: &str| container("try", more);
    let with = |cpu: &str| format!("    resources: {{limits: {{{GPU}: 1{cpu}}}}}\n");
    let idle = "  - name: idle\n    image: spillway.test/busybox:dev\n    imagePullPolicy: Never\n    command: ['true']\n";
    for (kind, class, spec) in [
        ("guaranteed", "Guaranteed", format!("  containers:\n{}", plain(&with(", cpu: 100m, memory: 64Mi")))),
        (
            "burstable",
            "Burstable",
            format!(
                "  containers:\n{}",
                plain(&format!("    resources: {{limits: {{{GPU}: 1}}, requests: {{cpu: 50m}}}}\n"))
            ),
        ),
        ("besteffort", "BestEffort", format!("  containers:\n{}", plain(&with("")))),
        (
            "pod-level",
            "Guaranteed",
            format!(
                "  resources: {{limits: {{cpu: 100m, memory: 64Mi}}}}\n  containers:\n{}",
                plain(&with(""))
            ),
        ),
        ("init-only", "BestEffort", format!("  initContainers:\n{}  containers:\n{idle}", plain(&with("")))),
    ] {
        let spec = format!("  restartPolicy: Never\n  terminationGracePeriodSeconds: 0\n{spec}");
        namespace.pod(kind, &spec)?;
        namespace.wait_phase(kind, "Succeeded")?;
        let found = namespace.field("pod", kind, ".status.qosClass")?;
        ensure!(found == class, "{kind} is {found}");
        tried(&namespace.kubectl(&["logs", kind, "-c", "try"])?).context(kind)?;
    }

    // A static pod's cgroup goes by another UID than the object that mirrors it.
    let manifest = format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: static, namespace: {}}}\nspec:\n  terminationGracePeriodSeconds: 0\n  containers:\n{}",
        namespace.name,
        container("try", &with("")).replace("; true", "; exec sleep 100000")
    );
    let path = pool.cluster.machine(DEDICATED)?.path("/etc/kubernetes/manifests/static.yaml");
    std::fs::write(&path, manifest)?;
    let mirror = format!("static-{DEDICATED}");
    let result = wait("the static pod to try", || {
        let log = namespace.kubectl(&["logs", &mirror])?;
        Ok((log.lines().count() >= 3).then_some(log))
    });
    std::fs::remove_file(&path)?;
    tried(&result?).context("static")?;
    namespace.wait_gone(&mirror)
}

fn tried(log: &str) -> anyhow::Result<()> {
    let found: Vec<_> = log.lines().filter_map(told).collect();
    ensure!(found == [LET_THROUGH, LET_THROUGH, REFUSED], "it found {log}");
    Ok(())
}

fn a_device_passes_on_when_its_pod_has_ended(pool: &Pool) -> anyhow::Result<()> {
    settle(pool)?;
    let namespace = pool.namespace("handover")?;
    // The other GPU is taken, so that the next pod can only get this one.
    let spec = |grace: u64, command: &str| {
        format!(
            "  nodeName: {DEDICATED}\n  terminationGracePeriodSeconds: {grace}\n  containers:\n  - name: main\n    \
             image: spillway.test/busybox:dev\n    imagePullPolicy: Never\n    command: [sh, -c, '{command}']\n    \
             securityContext: {{privileged: true}}\n{}",
            holding(1)
        )
    };
    namespace.pod("old", &spec(0, "exec sleep 100000"))?;
    namespace.wait_ready("old")?;
    let minor = given(&namespace, "old")?;
    namespace.pod("neighbour", &spec(0, "exec sleep 100000"))?;
    namespace.wait_ready("neighbour")?;
    let uid = namespace.field("pod", "old", ".metadata.uid")?;
    // Of all hierarchies only the one of version 2 has this file.
    let find =
        format!("find /sys/fs/cgroup -type d -name pod{uid} -exec test -e '{{}}/cgroup.events' ';' -print");
    let cgroup = pool.on(DEDICATED, &find)?;
    let cgroup = cgroup.trim();
    ensure!(!cgroup.is_empty(), "no cgroup of pod {uid}");
    let alive = || {
        pool.on(
            DEDICATED,
            &format!("if grep -q 'populated 1' {cgroup}/cgroup.events 2>/dev/null; then echo yes; fi"),
        )
    };
    ensure!(alive()?.trim() == "yes", "nothing runs in {cgroup}");

    // While its runtime's process stands still nobody can end it.
    let process = format!("cat $(find {cgroup} -name cgroup.procs) | head -n 1");
    let shim = pool.on(DEDICATED, &format!("awk '/^PPid/ {{print $2}}' /proc/$({process})/status"))?;
    let shim = Frozen::process(pool, &shim)?;
    namespace.kubectl(&["delete", "pod", "old", "--force", "--grace-period=0"])?;
    // The kubelet may still count the device for a moment: a pod that it refuses is made again.
    wait("the next pod to be held back", || {
        if namespace.kubectl(&["get", "pod", "new", "--ignore-not-found", "-o", "name"])?.is_empty() {
            namespace.pod("new", &spec(0, "exec sleep 100000"))?;
        }
        if namespace.field("pod", "new", ".status.phase")? == "Failed" {
            namespace.kubectl(&["delete", "pod", "new"])?;
            return Ok(None);
        }
        let state = namespace.field("pod", "new", ".status.containerStatuses[0].state")?;
        if state.contains("running") {
            bail!(spillway_tests::Fatal("the next pod runs while the old one does".to_owned()));
        }
        Ok(state.contains("in which processes run").then_some(()))
    })
    .with_context(|| namespace.kubectl(&["describe", "pod", "new"]).unwrap_or_default())?;
    ensure!(alive()?.trim() == "yes", "the old pod has ended: nothing was tried");
    drop(shim);
    namespace.wait_phase("new", "Running")?;
    ensure!(alive()?.trim() != "yes", "the next pod runs while the old one does");
    ensure!(given(&namespace, "new")? == minor, "the next pod got another GPU");
    expect(&namespace, "new", &format!("/dev/nvidia{minor}"), LET_THROUGH)
}

/// The events about denials in a namespace: whose, which, of what, and how often it was told again.
fn denials_told(namespace: &Namespace<'_>) -> anyhow::Result<Vec<String>> {
    let fields = "jsonpath={range .items[*]}{.regarding.kind} {.regarding.name} {.reason} {.note} {.series.count}{\"\\n\"}{end}";
    let events = namespace.kubectl(&["get", "events.events.k8s.io", "-o", fields])?;
    let mut told: Vec<_> = events
        .lines()
        .filter(|line| line.contains(" AcceleratorDen"))
        .map(|line| line.trim().to_owned())
        .collect();
    told.sort();
    Ok(told)
}

fn denied(pod: &str, reason: &str, what: &str, node: &str) -> String {
    format!("Pod {pod} {reason} it {what} {node}, which it was not given")
}

fn wait_told(namespace: &Namespace<'_>, expected: &[String]) -> anyhow::Result<()> {
    let mut last = Vec::new();
    wait("the denials to be told", || {
        last = denials_told(namespace)?;
        Ok((last.len() >= expected.len()).then_some(()))
    })
    .with_context(|| format!("last: {last:?}"))?;
    ensure!(last == expected, "told was {last:#?} instead of {expected:#?}");
    Ok(())
}

fn a_denial_is_one_event(pool: &Pool) -> anyhow::Result<()> {
    settle(pool)?;
    let namespace = pool.namespace("told")?;
    greedy(&namespace, "first", "")?;
    greedy(&namespace, "second", "")?;
    for (pod, nodes) in [("first", ["nvidia0", "nvidia0", "nvidia1"]), ("second", ["nvidia0"; 3])] {
        for node in nodes {
            expect(&namespace, pod, &format!("/dev/{node}"), REFUSED)?;
        }
    }
    let event =
        |pod: &str, node: &str| denied(pod, "AcceleratorDenied", "was refused", &format!("/dev/{node}"));
    wait_told(
        &namespace,
        &[event("first", "nvidia0"), event("first", "nvidia1"), event("second", "nvidia0")],
    )?;
    // Later, too, there is no second one: what is told of another device afterwards is told behind it.
    expect(&namespace, "first", "/dev/nvidia0", REFUSED)?;
    let count = r#"spillway_isolation_denials_total{namespace="told",pod="first",node="/dev/nvidia0"}"#;
    wait("the denial to be counted", || Ok((metric(pool, count)? == Some(3)).then_some(())))
        .with_context(|| format!("last: {:?}", metric(pool, count)))?;
    expect(&namespace, "second", "/dev/nvidia1", REFUSED)?;
    let all = [("first", "nvidia0"), ("first", "nvidia1"), ("second", "nvidia0"), ("second", "nvidia1")];
    wait_told(&namespace, &all.map(|(pod, node)| event(pod, node)))
}
