//! The virtual node without an API server, and after what no watch could tell it: pods go on, and all that happened meanwhile is told or made up for.

use anyhow::{Context as _, ensure};
use spillway_tests::cluster::control_plane::MACHINE;

use crate::{
    Test,
    harness::{IMAGE, Namespace, ON_VIRTUAL, Pool, VIRTUAL, wait},
};

pub(crate) const TESTS: &[Test] = &[
    ("vk_outage::an_api_server_that_is_away_ends_no_pod", an_api_server_that_is_away_ends_no_pod),
    ("vk_outage::what_a_compacted_history_hides_is_found", what_a_compacted_history_hides_is_found),
];

const SERVER: &str = "kube-apiserver";

fn start_server(pool: &Pool) -> anyhow::Result<()> {
    pool.cluster.start(MACHINE, SERVER)?;
    wait("the API server to be ready", || {
        Ok(pool.cluster.kubectl_output(&["get", "--raw", "/readyz"])?.status.success().then_some(()))
    })
}

/// A pod whose container says in a file that it starts, and then does as told.
fn pod(namespace: &Namespace<'_>, name: &str, policy: &str, script: &str, more: &str) -> anyhow::Result<()> {
    namespace.pod(
        name,
        &format!(
            "{ON_VIRTUAL}  restartPolicy: {policy}
  terminationGracePeriodSeconds: 1
  automountServiceAccountToken: false
  volumes: [{{name: srv, hostPath: {{path: /srv/shared}}}}]
  containers:
  - name: main
    {}
    command: [sh, -c, 'echo {name} >> /srv/outage; {script}']
    volumeMounts: [{{name: srv, mountPath: /srv}}]
{more}",
            IMAGE.replace(", ", "\n    ")
        ),
    )
}

fn restarts(namespace: &Namespace<'_>, pod: &str) -> anyhow::Result<String> {
    namespace.field("pod", pod, ".status.containerStatuses[0].restartCount")
}

fn id(namespace: &Namespace<'_>, pod: &str) -> anyhow::Result<String> {
    namespace.field("pod", pod, ".status.containerStatuses[0].containerID")
}

fn an_api_server_that_is_away_ends_no_pod(pool: &Pool) -> anyhow::Result<()> {
    let namespace = pool.namespace("vk-outage")?;
    let shared = pool.cluster.shared();
    let (told, signal) = (shared.join("outage"), shared.join("outage-ends"));
    std::fs::write(&told, "")?;
    let starts = |pod: &str| {
        let text = std::fs::read_to_string(&told)?;
        anyhow::Ok(text.lines().filter(|line| *line == pod).count())
    };
    pod(&namespace, "lasting", "Always", "exec sleep 10000", "")?;
    pod(&namespace, "ends", "Never", "until test -e /srv/outage-ends; do sleep 0.2; done; exit 7", "")?;
    pod(&namespace, "crashes", "Always", "until test -e /srv/outage-ends; do sleep 0.2; done; exit 3", "")?;
    let probe = "    livenessProbe: {periodSeconds: 1, failureThreshold: 1, exec: {command: [sh, -c, '! test -e /srv/outage-ends || test $(grep -c probed /srv/outage) -gt 1']}}\n";
    pod(&namespace, "probed", "Always", "exec sleep 10000", probe)?;
    for pod in ["lasting", "ends", "crashes", "probed"] {
        namespace.wait_ready(pod)?;
    }
    let before = id(&namespace, "lasting")?;
    pool.cluster.kill(MACHINE, SERVER)?;
    let happened = (|| {
        std::fs::write(&signal, "")?;
        // After 0, 10 and 20 seconds: the node's lease has run out by then.
        wait("a crash loop to go on without an API server", || Ok((starts("crashes")? == 4).then_some(())))?;
        wait("a probe to have its container replaced", || Ok((starts("probed")? == 2).then_some(())))
    })();
    start_server(pool)?;
    happened?;

    namespace.wait_phase("ends", "Failed")?;
    let code = namespace.field("pod", "ends", ".status.containerStatuses[0].state.terminated.exitCode")?;
    ensure!(code == "7", "the exit code is {code:?}");
    wait("all restarts to be told", || {
        let crashes = restarts(&namespace, "crashes")? == (starts("crashes")? - 1).to_string();
        Ok((crashes && restarts(&namespace, "probed")? == "1").then_some(()))
    })?;
    wait("the node to be Ready", || {
        let ready = "jsonpath={.status.conditions[?(@.type=='Ready')].status}";
        Ok((pool.cluster.kubectl(&["get", "node", VIRTUAL, "-o", ready])? == "True").then_some(()))
    })?;
    namespace.wait_ready("lasting")?;
    ensure!(
        id(&namespace, "lasting")? == before && restarts(&namespace, "lasting")? == "0",
        "it was replaced"
    );
    ensure!((starts("lasting")?, starts("ends")?, starts("probed")?) == (1, 1, 2), "started more than once");
    std::fs::remove_file(&signal)?;
    pod(&namespace, "after", "Always", "exec sleep 10000", "")?;
    namespace.wait_ready("after")
}

/// Makes etcd forget all that came before now.
fn compact(pool: &Pool) -> anyhow::Result<()> {
    let ask = |what: &str, body: &str| {
        pool.on(MACHINE, &format!("curl -sf http://127.0.0.1:2379/v3/kv/{what} -d '{body}'"))
    };
    let found: serde_json::Value = serde_json::from_str(&ask("range", r#"{"key": "AA=="}"#)?)?;
    let revision = found["header"]["revision"].as_str().context("etcd tells its revision")?.to_owned();
    ask("compaction", &format!(r#"{{"revision": "{revision}", "physical": true}}"#)).map(drop)
}

fn what_a_compacted_history_hides_is_found(pool: &Pool) -> anyhow::Result<()> {
    let namespace = pool.namespace("vk-compacted")?;
    let sleeper = |name: &str| pod(&namespace, name, "Always", "exec sleep 10000", "");
    namespace.kubectl(&["create", "configmap", "settings", "--from-literal=colour=red"])?;
    namespace.pod(
        "lasting",
        &format!(
            "{ON_VIRTUAL}  terminationGracePeriodSeconds: 1
  volumes: [{{name: v, configMap: {{name: settings}}}}]
  containers: [{{name: main, {IMAGE}, command: [sleep, '10000'], volumeMounts: [{{name: v, mountPath: /v}}]}}]\n"
        ),
    )?;
    sleeper("same")?;
    sleeper("deleted")?;
    for pod in ["lasting", "same", "deleted"] {
        namespace.wait_ready(pod)?;
    }
    let (before, lost) = (id(&namespace, "lasting")?, id(&namespace, "same")?);
    let log = || {
        let path = pool.cluster.process(VIRTUAL, "spillway-vk")?.log;
        anyhow::Ok(std::fs::read_to_string(path)?)
    };
    let said = log()?.len();

    // While it sees nothing, the past goes: the API server begins anew, with a store that only knows what is.
    pool.cluster.pause(VIRTUAL, "spillway-vk")?;
    let changed = (|| {
        namespace.kubectl(&["delete", "pod", "same", "--force", "--grace-period=0"])?;
        sleeper("same")?;
        sleeper("late")?;
        sleeper("never")?;
        namespace.kubectl(&["delete", "pod", "never", "--force", "--grace-period=0"])?;
        namespace.kubectl(&["delete", "pod", "deleted", "--wait=false"])?;
        let patch = r#"{"data": {"colour": "blue"}}"#;
        namespace.kubectl(&["patch", "configmap", "settings", "-p", patch])?;
        compact(pool)?;
        pool.cluster.kill(MACHINE, SERVER)?;
        start_server(pool)
    })();
    pool.cluster.resume(VIRTUAL, "spillway-vk")?;
    changed?;
    for pod in ["same", "late"] {
        namespace.wait_ready(pod)?;
    }
    namespace.wait_gone("deleted")?;
    wait("the configuration to be the new one", || {
        Ok((namespace.exec("lasting", &["cat", "/v/colour"])? == "blue").then_some(()))
    })?;
    ensure!(id(&namespace, "lasting")? == before, "a container was replaced");
    ensure!(id(&namespace, "same")? != lost, "another pod's container is taken for its own");
    let lost = lost.rsplit('/').next().unwrap_or_default().to_owned();
    wait("what only the runtime knew to go", || {
        let left = pool.on(VIRTUAL, "ctr -n k8s.io containers ls -q")?;
        Ok((!left.contains(&lost)).then_some(()))
    })?;
    let said = log()?.split_off(said);
    ensure!(said.contains("too old"), "its watches could go on: nothing was tried\n{said}");
    Ok(())
}
