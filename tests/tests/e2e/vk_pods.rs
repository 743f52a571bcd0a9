//! The same pods on a kubelet and on the virtual node, while they are changed: debugged, resized in place; and devices, which only the
//! virtual node's configuration offers.

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};

use crate::{
    Test,
    beside::{NODES, both, events, on_both, wait_both},
    harness::{IMAGE, Namespace, Pool, VIRTUAL, wait},
};

pub(crate) const TESTS: &[Test] = &[
    ("vk_pods::changed_pods_look_as_on_a_real_node", changed_pods_look_as_on_a_real_node),
    ("vk_pods::devices_are_exclusive_and_outlive_the_daemon", devices_are_exclusive_and_outlive_the_daemon),
    ("vk_pods::long_logs_are_rotated", long_logs_are_rotated),
];

/// What a container's cgroup says: memory limit, CPU limit, CPU weight; whether it dies whole, and how much it may swap, where the kernel
/// has that.
const CGROUP: &str = "cd /sys/fs/cgroup; cat memory.max cpu.max cpu.weight 2>/dev/null || \
     cat memory/memory.limit_in_bytes cpu/cpu.cfs_quota_us cpu/cpu.shares; \
     for file in memory.oom.group memory.swap.max memory/memory.memsw.limit_in_bytes; do \
     if test -e $file; then echo $file $(cat $file); fi; done";

/// What a user sees of the pod's containers, resources and resize; without times, IDs and the nodes' sizes.
fn looks(pod: &Value) -> Value {
    let status = &pod["status"];
    let state = |state: &Value| {
        let state = state.as_object().and_then(|state| state.iter().next());
        state.map(|(kind, details)| json!([kind, details["reason"], details["exitCode"], details["message"]]))
    };
    let list = |key: &str| -> Vec<Value> {
        let statuses = status[key].as_array().into_iter().flatten();
        statuses
            .map(|status| {
                json!({
                    "name": status["name"], "ready": status["ready"], "started": status["started"],
                    "restarts": status["restartCount"], "now": state(&status["state"]),
                    "resources": status["resources"], "allocated": status["allocatedResources"],
                })
            })
            .collect()
    };
    let conditions = status["conditions"].as_array().into_iter().flatten();
    let conditions: std::collections::BTreeMap<&str, Value> = conditions
        .map(|condition| {
            let message = condition["message"].as_str().unwrap_or_default();
            let message: String = message.chars().filter(|c| !c.is_ascii_digit()).collect();
            let kind = condition["type"].as_str().unwrap_or_default();
            (
                kind,
                json!([condition["status"], condition["reason"], message, condition["observedGeneration"]]),
            )
        })
        .collect();
    json!({
        "phase": status["phase"], "qos": status["qosClass"], "generation": status["observedGeneration"],
        "ephemeral": list("ephemeralContainerStatuses"), "containers": list("containerStatuses"),
        "conditions": conditions,
    })
}

/// Waits until both pods look alike and as expected.
fn wait_alike(
    namespace: &Namespace<'_>,
    pod: &str,
    what: &str,
    expected: impl Fn(&Value) -> bool,
) -> anyhow::Result<()> {
    let look = |kind: &str| {
        let text = namespace.kubectl(&["get", "pod", &format!("{pod}-{kind}"), "-o", "json"])?;
        Ok(looks(&serde_json::from_str(&text)?))
    };
    wait_both(&format!("both pods {pod}: {what}"), look, |real, virtual_one| {
        real == virtual_one && expected(real)
    })
    .map(drop)
}

/// Reasons of the pod's events about resizes, and their texts without numbers.
fn resize_events(namespace: &Namespace<'_>, pod: &str) -> anyhow::Result<Vec<String>> {
    events(namespace, pod, |event| {
        event["reason"].as_str().filter(|reason| reason.starts_with("Resize"))?;
        let text = event["message"].as_str().unwrap_or_default();
        // What is used and what there is depends on the node.
        let text = text.split("capacity:").next().unwrap_or_default();
        let text = text.split("below current usage").next().unwrap_or_default();
        Some(format!("{} {} {text}", event["type"], event["reason"]))
    })
}

/// The same command in both pods, which has to say the same.
fn says_alike(namespace: &Namespace<'_>, pod: &str, container: &str, script: &str) -> anyhow::Result<String> {
    let [real, virtual_one] = both(|kind| {
        let pod = format!("{pod}-{kind}");
        namespace.kubectl(&["exec", &pod, "-c", container, "--", "sh", "-c", script])
    })?;
    ensure!(real == virtual_one, "real and virtual {pod}: {:#?}", [real, virtual_one]);
    Ok(real)
}

fn running(pod: &Value) -> bool {
    let all = pod["containers"].as_array().into_iter().flatten();
    pod["phase"] == "Running" && all.into_iter().all(|container| container["ready"] == true)
}

fn settled(pod: &Value, generation: u32) -> bool {
    let conditions = pod["conditions"].as_object();
    let resizing = conditions.is_some_and(|all| all.keys().any(|kind| kind.starts_with("PodResize")));
    running(pod) && pod["generation"] == generation && !resizing
}

fn changed_pods_look_as_on_a_real_node(pool: &Pool) -> anyhow::Result<()> {
    let namespace = pool.namespace("vk-pods")?;
    on_both(
        &namespace,
        "web",
        &format!(
            "  terminationGracePeriodSeconds: 1
  containers:
  - {{name: main, {IMAGE}, command: [sleep, '100000'],
     resources: {{requests: {{cpu: 50m, memory: 32Mi}}, limits: {{cpu: 100m, memory: 64Mi}}}}}}
  - name: anew
    image: spillway.test/busybox:dev
    imagePullPolicy: Never
    command: [sleep, '100000']
    resources: {{requests: {{cpu: 50m, memory: 16Mi}}, limits: {{cpu: 100m, memory: 16Mi}}}}
    resizePolicy: [{{resourceName: memory, restartPolicy: RestartContainer}}]
"
        ),
    )?;
    on_both(
        &namespace,
        "whole",
        &format!(
            "  terminationGracePeriodSeconds: 1
  resources: {{requests: {{cpu: 100m, memory: 64Mi}}, limits: {{cpu: 100m, memory: 64Mi}}}}
  containers:
  - {{name: main, {IMAGE}, command: [sleep, '100000']}}
  - {{name: small, {IMAGE}, command: [sleep, '100000'], resources: {{limits: {{cpu: 50m, memory: 32Mi}}}}}}
"
        ),
    )?;
    wait_alike(&namespace, "web", "running", |pod| settled(pod, 1))?;
    wait_alike(&namespace, "whole", "running", |pod| settled(pod, 1) && pod["qos"] == "Guaranteed")?;
    for container in ["main", "small"] {
        says_alike(&namespace, "whole", container, CGROUP)?;
        says_alike(&namespace, "whole", container, "cat /proc/1/oom_score_adj")?;
    }
    debug(&namespace)?;
    resize(pool, &namespace)?;
    for (kind, _) in NODES {
        namespace.kubectl(&["delete", "pod", &format!("web-{kind}"), &format!("whole-{kind}")])?;
    }
    Ok(())
}

/// An ephemeral container sees its target's processes, says so in its log, and its exit code is told.
fn debug(namespace: &Namespace<'_>) -> anyhow::Result<()> {
    for (kind, _) in NODES {
        let pod = format!("web-{kind}");
        let image = "--image=spillway.test/busybox:dev";
        let script = "tr '\\0' ' ' < /proc/1/cmdline; echo; exit 3";
        namespace.kubectl(&[
            "debug",
            &pod,
            "-c",
            "shell",
            image,
            "--image-pull-policy=Never",
            "--target=main",
            "--profile=general",
            "--",
            "sh",
            "-c",
            script,
        ])?;
    }
    wait_alike(namespace, "web", "debugged", |pod| pod["ephemeral"][0]["now"][2] == 3)?;
    for (kind, _) in NODES {
        let log = namespace.kubectl(&["logs", &format!("web-{kind}"), "-c", "shell"])?;
        ensure!(log.trim() == "sleep 100000", "{kind}: {log:?}");
    }
    Ok(())
}

/// Waits until a node has noticed how much memory a pod's container `main` uses.
fn wait_uses(pool: &Pool, node: &str, pod: &str, bytes: u64) -> anyhow::Result<()> {
    wait(&format!("{node} to notice what {pod} uses"), || {
        let path = format!("/api/v1/nodes/{node}/proxy/stats/summary");
        let summary: Value = serde_json::from_str(&pool.cluster.kubectl(&["get", "--raw", &path])?)?;
        let pods = summary["pods"].as_array().into_iter().flatten();
        let mut containers = pods
            .filter(|found| found["podRef"]["name"] == pod)
            .flat_map(|pod| pod["containers"].as_array().into_iter().flatten());
        let main = containers.find(|container| container["name"] == "main");
        let used = main.and_then(|main| main["memory"]["usageBytes"].as_u64()).unwrap_or(0);
        Ok((used > bytes).then_some(()))
    })
}

fn resize(pool: &Pool, namespace: &Namespace<'_>) -> anyhow::Result<()> {
    let ask = |container: &str, requests: Value, limits: Value| -> anyhow::Result<()> {
        let resources = json!({ "requests": requests, "limits": limits });
        let patch =
            json!({ "spec": { "containers": [{ "name": container, "resources": resources }] } }).to_string();
        for (kind, _) in NODES {
            namespace.kubectl(&[
                "patch",
                "pod",
                &format!("web-{kind}"),
                "--subresource=resize",
                "-p",
                &patch,
            ])?;
        }
        Ok(())
    };
    // Debugging counted as a change.
    ask("main", json!({ "cpu": "100m", "memory": "48Mi" }), json!({ "cpu": "200m", "memory": "96Mi" }))?;
    wait_alike(namespace, "web", "has more", |pod| settled(pod, 3))?;
    let more = says_alike(namespace, "web", "main", CGROUP)?;
    ensure!(more.contains(&(96 << 20).to_string()) && more.contains("20000"), "{more}");

    ask("anew", json!({ "memory": "24Mi" }), json!({ "memory": "24Mi" }))?;
    wait_alike(namespace, "web", "has a container that was started anew", |pod| {
        settled(pod, 4) && pod["containers"][0]["restarts"] == 1 && pod["containers"][1]["restarts"] == 0
    })?;
    says_alike(namespace, "web", "anew", CGROUP)?;

    // What nobody has.
    ask("main", json!({ "memory": "4000Ti" }), json!({ "memory": "4000Ti" }))?;
    wait_alike(namespace, "web", "can't have so much", |pod| {
        pod["conditions"]["PodResizePending"][1] == "Infeasible" && pod["generation"] == 5
    })?;
    // Events on their way go with the process.
    wait_same_resize_events(namespace)?;
    // What was given holds whoever restarts.
    pool.cluster.kill(VIRTUAL, "spillway-vk")?;
    pool.cluster.start(VIRTUAL, "spillway-vk")?;
    ask("main", json!({ "memory": "48Mi" }), json!({ "cpu": "150m", "memory": "80Mi" }))?;
    wait_alike(namespace, "web", "has less", |pod| settled(pod, 6))?;
    says_alike(namespace, "web", "main", CGROUP)?;

    // 24 MiB in use.
    says_alike(
        namespace,
        "web",
        "main",
        "dd if=/dev/zero of=/dev/shm/x bs=1M count=24 2>/dev/null; ls /dev/shm",
    )?;
    for (kind, node) in NODES {
        wait_uses(pool, node, &format!("web-{kind}"), 24 << 20)?;
    }
    ask("main", json!({ "memory": "8Mi" }), json!({ "memory": "8Mi" }))?;
    wait_alike(namespace, "web", "uses more than that", |pod| {
        pod["conditions"]["PodResizeInProgress"][1] == "Error" && pod["generation"] == 7
    })?;
    says_alike(namespace, "web", "main", "rm /dev/shm/x")?;
    ask("main", json!({ "memory": "40Mi" }), json!({ "memory": "80Mi" }))?;
    wait_alike(namespace, "web", "has enough again", |pod| settled(pod, 8))?;

    wait_same_resize_events(namespace)
}

fn wait_same_resize_events(namespace: &Namespace<'_>) -> anyhow::Result<()> {
    let mut told = Vec::new();
    wait("the same events about resizes", || {
        told = vec![resize_events(namespace, "web-real")?, resize_events(namespace, "web-virtual")?];
        Ok((told[0] == told[1]).then_some(()))
    })
    .with_context(|| format!("real and virtual: {told:#?}"))
}

fn devices_are_exclusive_and_outlive_the_daemon(pool: &Pool) -> anyhow::Result<()> {
    let namespace = pool.namespace("vk-devices")?;
    let create = |name: &str| {
        namespace.pod(
            name,
            &format!(
                "  nodeName: {VIRTUAL}
  terminationGracePeriodSeconds: 1
  restartPolicy: Never
  containers:
  - {{name: main, {IMAGE}, command: [sleep, '100000'], resources: {{limits: {{spillway.test/null: 1}}}}}}
"
            ),
        )
    };
    let device = |name: &str| -> anyhow::Result<String> {
        let script =
            "ls /dev | grep spillway-null; echo > /dev/$(ls /dev | grep spillway-null); echo $SPILLWAY_NULL";
        namespace.exec(name, &["sh", "-c", script])
    };
    let offered = pool.cluster.kubectl(&[
        "get",
        "node",
        VIRTUAL,
        "-o",
        "jsonpath={.status.allocatable.spillway\\.test/null}",
    ])?;
    ensure!(offered == "2", "the node offers {offered:?}");
    create("one")?;
    namespace.wait_ready("one")?;
    ensure!(device("one")? == "spillway-null0\n0\n", "{}", device("one")?);
    pool.cluster.kill(VIRTUAL, "spillway-vk")?;
    pool.cluster.start(VIRTUAL, "spillway-vk")?;
    create("two")?;
    namespace.wait_ready("two")?;
    ensure!(device("two")? == "spillway-null1\n1\n", "{}", device("two")?);
    create("three")?;
    namespace.wait_phase("three", "Failed")?;
    let reason = namespace.field("pod", "three", ".status.reason")?;
    ensure!(reason == "UnexpectedAdmissionError", "three: {reason}");
    namespace.kubectl(&["delete", "pod", "one"])?;
    create("four")?;
    namespace.wait_ready("four")?;
    ensure!(device("four")? == "spillway-null0\n0\n", "{}", device("four")?);
    Ok(())
}

fn long_logs_are_rotated(pool: &Pool) -> anyhow::Result<()> {
    let namespace = pool.namespace("vk-logs")?;
    let script = "head -c 12000000 /dev/zero | tr '\\\\0' x | fold -w 1000; sleep 100000";
    namespace.pod(
        "long",
        &format!(
            "  nodeName: {VIRTUAL}
  terminationGracePeriodSeconds: 1
  containers: [{{name: main, {IMAGE}, command: [sh, -c, \"{script}\"]}}]
"
        ),
    )?;
    namespace.wait_ready("long")?;
    let uid = namespace.field("pod", "long", ".metadata.uid")?;
    let folder = format!("/var/log/pods/vk-logs_long_{uid}/main");
    wait("the log to be rotated", || {
        let files = pool.on(VIRTUAL, &format!("ls {folder}"))?;
        Ok((files.lines().count() == 2 && files.starts_with("0.log\n0.log.")).then_some(()))
    })?;
    namespace.exec("long", &["sh", "-c", "echo what follows > /proc/1/fd/1"])?;
    wait("the log to go on", || {
        let log = namespace.kubectl(&["logs", "long", "--tail=1"])?;
        Ok((log == "what follows\n").then_some(()))
    })?;
    let collected = pool.on(VIRTUAL, "tail -n 1 /var/log/containers/long_vk-logs_main-*.log")?;
    ensure!(collected.ends_with(" F what follows\n"), "a log collector would read {collected:?}");
    namespace.kubectl(&["delete", "pod", "long"])?;
    let left = pool.on(VIRTUAL, &format!("ls {folder} 2>/dev/null | wc -l"))?;
    ensure!(left.trim() == "0", "{left} log files are left");
    Ok(())
}
