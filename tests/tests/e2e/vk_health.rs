//! The same pods on a kubelet and on the virtual node: probes, hooks and sidecars have to look alike.

use anyhow::{Context as _, ensure};
use serde_json::Value;

use crate::{
    Test,
    beside::{NODES, events, on_both, wait_both},
    harness::{IMAGE, Namespace, Pool},
};

pub(crate) const TESTS: &[Test] = &[("vk_health::pods_look_as_on_a_real_node", pods_look_as_on_a_real_node)];

fn status(namespace: &Namespace<'_>, pod: &str) -> anyhow::Result<Value> {
    let text = namespace.kubectl(&["get", "pod", pod, "-o", "jsonpath={.status}"])?;
    serde_json::from_str(&text).context("kubectl gives a status")
}

/// What a user sees of a pod, without what is bound to differ: times, addresses, IDs.
fn looks(status: &Value) -> Vec<String> {
    let mut looks = vec![format!("phase {}", status["phase"])];
    for condition in status["conditions"].as_array().into_iter().flatten() {
        let [kind, holds, reason, message] =
            ["type", "status", "reason", "message"].map(|key| &condition[key]);
        looks.push(format!("condition {kind} {holds} {reason} {message}"));
    }
    for list in ["initContainerStatuses", "containerStatuses"] {
        for container in status[list].as_array().into_iter().flatten() {
            let [name, ready, started, restarts] =
                ["name", "ready", "started", "restartCount"].map(|key| &container[key]);
            let state = |state: &Value| -> String {
                let Some((kind, details)) = state.as_object().and_then(|state| state.iter().next()) else {
                    return "-".to_owned();
                };
                format!("{kind} {} {}", details["reason"], details["exitCode"])
            };
            let (now, last) = (state(&container["state"]), state(&container["lastState"]));
            looks.push(format!(
                "{name} ready {ready} started {started} restarts {restarts}: {now}, before {last}"
            ));
        }
    }
    looks.sort();
    looks
}

/// What events say about health, without addresses and IDs.
fn told(namespace: &Namespace<'_>, pod: &str) -> anyhow::Result<Vec<String>> {
    let ip = status(namespace, pod)?["podIP"].as_str().unwrap_or("none").to_owned();
    events(namespace, pod, |event| {
        let [kind, reason, message] =
            ["type", "reason", "message"].map(|key| event[key].as_str().unwrap_or_default());
        let of_health = ["Unhealthy", "Killing", "ProbeWarning", "FailedPostStartHook", "FailedPreStopHook"]
            .contains(&reason);
        // An attempt may fall into the moment between a server's end and its container's.
        let of_server = message.starts_with("Readiness") || message.starts_with("Liveness");
        let field = event["involvedObject"]["fieldPath"].as_str().unwrap_or("");
        (of_health && (!of_server || message.contains("statuscode")))
            .then(|| format!("{kind} {reason} {field}: {}", message.replace(&ip, "IP")))
    })
}

/// Waits until both pods look alike and the real one as expected.
fn wait_alike(
    namespace: &Namespace<'_>,
    pod: &str,
    what: &str,
    expected: impl Fn(&Value) -> bool,
) -> anyhow::Result<()> {
    let look = |kind: &str| {
        let status = status(namespace, &format!("{pod}-{kind}"))?;
        Ok((expected(&status), looks(&status)))
    };
    wait_both(&format!("both pods {pod}: {what}"), look, |(expected, real), (_, virtual_one)| {
        *expected && real == virtual_one
    })
    .map(drop)
}

/// Waits until the virtual node has told all of these, and all that the real one did. A kubelet drops events of a pod that has many, and at
/// other moments.
fn wait_told_alike(namespace: &Namespace<'_>, pod: &str, expected: &[&str]) -> anyhow::Result<()> {
    let look = |kind: &str| told(namespace, &format!("{pod}-{kind}"));
    wait_both(&format!("the events of both pods {pod}"), look, |real, virtual_one| {
        let as_real = real.iter().all(|event| virtual_one.contains(event));
        as_real && expected.iter().all(|event| virtual_one.iter().any(|told| told.ends_with(event)))
    })
    .map(drop)
}

fn ready(status: &Value) -> bool {
    let mut conditions = status["conditions"].as_array().into_iter().flatten();
    conditions.any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
}

fn pods_look_as_on_a_real_node(pool: &Pool) -> anyhow::Result<()> {
    let namespace = pool.namespace("vk-health")?;
    let shared = pool.cluster.shared();
    // Says TERM, and obeys.
    let polite = |name: &str| {
        format!(
            "trap \"echo {name} >> /srv/KIND; exit 0\" TERM; touch /tmp/up; while true; do sleep 0.1; done"
        )
    };
    on_both(
        &namespace,
        "server",
        &format!(
            "  terminationGracePeriodSeconds: 20
  volumes: [{{name: srv, hostPath: {{path: /srv/shared}}}}]
  initContainers:
  - {{name: slow, restartPolicy: Always, {IMAGE}, command: [sh, -c, 'sleep 2; {}'], volumeMounts: [{{name: srv, mountPath: /srv}}],
     startupProbe: {{exec: {{command: [test, -e, /tmp/up]}}, periodSeconds: 1, failureThreshold: 60}}}}
  - {{name: helper, restartPolicy: Always, {IMAGE}, command: [sh, -c, '{}'], volumeMounts: [{{name: srv, mountPath: /srv}}]}}
  containers:
  - name: main
    image: spillway.test/busybox:dev
    imagePullPolicy: Never
    command: [sh, -c, 'mkdir /www; touch /www/alive; sleep 2; httpd -p 8080 -h /www; {}']
    ports: [{{name: web, containerPort: 8080}}]
    volumeMounts: [{{name: srv, mountPath: /srv}}]
    startupProbe: {{tcpSocket: {{port: web}}, periodSeconds: 1, failureThreshold: 60}}
    readinessProbe: {{httpGet: {{path: /ready, port: web}}, periodSeconds: 1, failureThreshold: 1}}
    livenessProbe: {{httpGet: {{path: /alive, port: 8080}}, periodSeconds: 1, failureThreshold: 2}}
    lifecycle:
      postStart: {{exec: {{command: [touch, /tmp/hello]}}}}
      preStop: {{exec: {{command: [sh, -c, 'echo bye >> /srv/KIND; exit 3']}}}}
",
            polite("slow"),
            polite("helper"),
            polite("main")
        ),
    )?;
    on_both(
        &namespace,
        "job",
        &format!(
            "  restartPolicy: Never
  initContainers: [{{name: side, restartPolicy: Always, {IMAGE}, command: [sh, -c, 'trap \"exit 0\" TERM; while true; do sleep 0.1; done']}}]
  containers: [{{name: main, {IMAGE}, command: [sh, -c, 'test -e /proc/1; exit 0']}}]\n"
        ),
    )?;
    on_both(
        &namespace,
        "hooked",
        &format!(
            "  restartPolicy: Never
  terminationGracePeriodSeconds: 2
  containers: [{{name: main, {IMAGE}, command: [sleep, '1000'], lifecycle: {{postStart: {{exec: {{command: [sh, -c, 'exit 7']}}}}}}}}]\n"
        ),
    )?;

    let started = |status: &Value| status["containerStatuses"][0]["started"] == true;
    wait_alike(&namespace, "server", "started, and not ready", |status| started(status) && !ready(status))?;
    let on_each = |command: &[&str]| -> anyhow::Result<()> {
        for (kind, _) in NODES {
            let pod = format!("server-{kind}");
            namespace.kubectl(&[&["exec", pod.as_str(), "-c", "main", "--"], command].concat())?;
        }
        Ok(())
    };
    on_each(&["test", "-e", "/tmp/hello"])?;
    on_each(&["touch", "/www/ready"])?;
    wait_alike(&namespace, "server", "ready", ready)?;
    on_each(&["rm", "/www/ready"])?;
    wait_alike(&namespace, "server", "not ready again", |status| started(status) && !ready(status))?;
    on_each(&["rm", "/www/alive"])?;
    wait_alike(&namespace, "server", "restarted", |status| {
        status["containerStatuses"][0]["restartCount"] == 1 && started(status)
    })?;
    wait_told_alike(&namespace, "server", &["will be restarted", "failed with statuscode: 404"])?;

    wait_alike(&namespace, "job", "over", |status| status["phase"] == "Succeeded")?;
    wait_told_alike(&namespace, "job", &["Stopping container side"])?;
    wait_alike(&namespace, "hooked", "over", |status| status["phase"] == "Failed")?;
    wait_told_alike(&namespace, "hooked", &["PostStartHook failed", ": FailedPostStartHook"])?;

    for (kind, _) in NODES {
        std::fs::write(shared.join(kind), "")?;
        let pod = format!("server-{kind}");
        namespace.kubectl(&["delete", "pod", &pod])?;
        let said = std::fs::read_to_string(shared.join(kind))?;
        std::fs::remove_file(shared.join(kind))?;
        ensure!(said == "bye\nmain\nhelper\nslow\n", "{pod} ended in another order: {said:?}");
    }
    Ok(())
}
