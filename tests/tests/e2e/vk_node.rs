//! The virtual node as the cluster sees it: several in one process, replicas that stand by, outages, drain, deletion, eviction. Each test starts
//! processes of its own beside the pool's, on the same runtime, as `deploy/systemd` would.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use spillway_tests::cluster::process::Process;

use crate::{
    Test,
    harness::{IMAGE, Namespace, Pool, VIRTUAL, wait},
};

pub(crate) const TESTS: &[Test] = &[
    ("vk_node::several_nodes_in_one_process", several_nodes_in_one_process),
    ("vk_node::a_holder_that_stood_still_doubles_nothing", a_holder_that_stood_still),
    ("vk_node::outages_evictions_and_drains_as_on_any_node", outages_evictions_and_drains),
];

/// A `spillway-vk` beside the pool's own. Goes, with its nodes, when the value does.
pub(crate) struct Daemon<'a> {
    pool: &'a Pool,
    name: &'static str,
    config: &'static str,
    nodes: Vec<&'static str>,
}

impl<'a> Daemon<'a> {
    /// `config` is a name, too: replicas share it.
    pub(crate) fn start(
        pool: &'a Pool,
        name: &'static str,
        config: &'static str,
        nodes: &[&'static str],
        flags: &str,
    ) -> anyhow::Result<Self> {
        let line = format!(
            "/opt/spillway/build/spillway-vk --config /etc/spillway/{config}.yaml --bootstrap-kubeconfig \
             /etc/spillway/bootstrap.kubeconfig --cert-dir /var/lib/{name}/pki --root-dir /var/lib/{config} {flags}"
        );
        let daemon = Self { pool, name, config, nodes: nodes.to_vec() };
        pool.cluster.add_process(Process {
            machine: VIRTUAL.to_owned(),
            name: name.to_owned(),
            arguments: line.split_whitespace().map(str::to_owned).collect(),
            environment: BTreeMap::new(),
            log: pool.cluster.folder().join("log").join(format!("{VIRTUAL}-{name}.log")),
            id: None,
        })?;
        Ok(daemon)
    }

    fn log(&self) -> anyhow::Result<String> {
        let log = self.pool.cluster.process(VIRTUAL, self.name)?.log;
        Ok(std::fs::read_to_string(&log)?)
    }

    fn wait_log(&self, what: &str) -> anyhow::Result<()> {
        wait(&format!("{} to log {what:?}", self.name), || Ok(self.log()?.contains(what).then_some(())))
    }
}

impl Drop for Daemon<'_> {
    fn drop(&mut self) {
        let cluster = &self.pool.cluster;
        let _ = cluster.resume(VIRTUAL, self.name);
        let _ = cluster.remove_process(VIRTUAL, self.name);
        for node in &self.nodes {
            let _ = cluster.kubectl(&["delete", "node", node, "--ignore-not-found", "--wait=false"]);
        }
        let _ = self.pool.on(VIRTUAL, &format!("rm -rf /var/lib/{} /var/lib/{}", self.name, self.config));
    }
}

/// The share of a machine's cgroups that these processes' pods are in.
pub(crate) fn configure(pool: &Pool, config: &str, text: &str) -> anyhow::Result<()> {
    let root = pool.cluster.cgroup_root(VIRTUAL);
    let path = pool.cluster.machine(VIRTUAL)?.live_path(&format!("/etc/spillway/{config}.yaml"));
    let new = path.with_extension("new");
    std::fs::write(&new, format!("evictionHard: {{}}\ncri: {{cgroupRoot: {root}}}\n{text}"))?;
    // As a ConfigMap's is: in one step, by another file.
    std::fs::rename(&new, &path).context("can't replace the configuration")
}

fn node(pool: &Pool, name: &str, path: &str) -> anyhow::Result<String> {
    pool.cluster.kubectl(&["get", "node", name, "--ignore-not-found", "-o", &format!("jsonpath={{{path}}}")])
}

pub(crate) fn wait_node(pool: &Pool, name: &str, path: &str, expected: &str) -> anyhow::Result<()> {
    let mut last = String::new();
    wait(&format!("{path} of node {name} to be {expected:?}"), || {
        last = node(pool, name, path)?;
        Ok((last == expected).then_some(()))
    })
    .with_context(|| format!("last: {last:?}"))
}

pub(crate) const READY: &str = ".status.conditions[?(@.type=='Ready')].status";
const REASON: &str = ".status.conditions[?(@.type=='Ready')].reason";

fn sleeper(namespace: &Namespace<'_>, node: &str, pod: &str, more: &str) -> anyhow::Result<()> {
    namespace.pod(
        pod,
        &format!(
            "  nodeName: {node}\n  terminationGracePeriodSeconds: 1\n{more}  containers: [{{name: main, {IMAGE}, command: [sleep, '10000']}}]\n"
        ),
    )
}

fn container(namespace: &Namespace<'_>, pod: &str) -> anyhow::Result<(String, String)> {
    let field = |path: &str| namespace.field("pod", pod, &format!(".status.containerStatuses[0].{path}"));
    Ok((field("containerID")?, field("restartCount")?))
}

const SEVERAL: &str = "
clusterDNS: [10.96.0.10]
capacity: {cpu: \"8\", memory: 16Gi}
labels: {shared: \"yes\"}
nodes:
- {name: many-cri, kubeletPort: 10261, labels: {kind: real}, maxPods: 20}
- {name: many-none, provider: none, kubeletPort: 10262, capacity: {cpu: \"500\"}}
# Its port is taken by another process.
- {name: many-broken, provider: none, kubeletPort: 10250}
";

fn several_nodes_in_one_process(pool: &Pool) -> anyhow::Result<()> {
    let namespace = pool.namespace("vk-node-several")?;
    configure(pool, "several", SEVERAL)?;
    let daemon = Daemon::start(
        pool,
        "several",
        "several",
        &["many-cri", "many-none", "many-broken"],
        "--admin-address 127.0.0.1:9461",
    )?;
    for node in ["many-cri", "many-none"] {
        wait_node(pool, node, READY, "True")?;
        sleeper(&namespace, node, node, "")?;
    }
    for node in ["many-cri", "many-none"] {
        namespace.wait_ready(node)?;
    }
    let looks = [
        ("many-cri", ".metadata.labels.kind", "real"),
        ("many-cri", ".metadata.labels.shared", "yes"),
        ("many-cri", ".status.capacity.pods", "20"),
        ("many-cri", ".spec.taints[0].value", "cri"),
        ("many-none", ".spec.taints[0].value", "none"),
        ("many-none", ".status.allocatable.cpu", "500"),
        ("many-none", ".status.daemonEndpoints.kubeletEndpoint.Port", "10262"),
        // What a kubelet tells of its runtime.
        ("many-cri", ".status.features.supplementalGroupsPolicy", "true"),
    ];
    for (name, path, expected) in looks {
        let found = node(pool, name, path)?;
        ensure!(found == expected, "{path} of {name} is {found:?} instead of {expected:?}");
    }
    ensure!(
        node(pool, "many-cri", ".status.runtimeHandlers[*].name")?.contains("runc"),
        "no runtime handlers"
    );
    ensure!(
        node(pool, "many-cri", ".status.images[*].names")?.contains("spillway.test/busybox"),
        "no images"
    );

    // The third one fails on its own, as soon as it may serve.
    approve(pool, "many-broken")?;
    daemon.wait_log("this virtual node failed; the others go on")?;

    // What can be changed live is; the rest stays and is said.
    let changed =
        SEVERAL.replace("\"500\"", "\"600\"").replace("kind: real", "sort: real").replace("10262", "10263");
    configure(pool, "several", &changed)?;
    wait_node(pool, "many-none", ".status.allocatable.cpu", "600")?;
    wait_node(pool, "many-cri", ".metadata.labels.sort", "real")?;
    ensure!(node(pool, "many-cri", ".metadata.labels.kind")?.is_empty(), "a label that is gone stays");
    daemon.wait_log("kubelet port or address of node many-none: in force after a restart")?;
    ensure!(node(pool, "many-none", ".status.daemonEndpoints.kubeletEndpoint.Port")? == "10262");
    configure(pool, "several", "nodes: [")?;
    daemon.wait_log("what was in force stays")?;
    for name in ["many-cri", "many-none"] {
        ensure!(node(pool, name, READY)? == "True", "{name} is not ready any more");
    }
    let (_, restarts) = container(&namespace, "many-cri")?;
    ensure!(restarts == "0", "the pod was restarted {restarts} times");
    for pod in ["many-cri", "many-none"] {
        namespace.kubectl(&["delete", "pod", pod])?;
    }
    Ok(())
}

/// Approves the serving certificate of a node, as an admin does.
pub(crate) fn approve(pool: &Pool, node: &str) -> anyhow::Result<()> {
    wait(&format!("the serving certificate request of {node}"), || {
        let listed = pool.cluster.kubectl(&[
            "get", "csr", "-o",
            "jsonpath={range .items[*]}{.metadata.name} {.spec.signerName} {.spec.username} {.status.conditions[*].type}{'\\n'}{end}",
        ])?;
        let mut found = None;
        for line in listed.lines() {
            if let [request, "kubernetes.io/kubelet-serving", requestor] =
                line.split_whitespace().collect::<Vec<_>>()[..]
                && requestor == format!("system:node:{node}")
            {
                pool.cluster.kubectl(&["certificate", "approve", request])?;
                found = Some(());
            }
        }
        Ok(found)
    })
}

const ELECTED: &str = "
clusterDNS: [10.96.0.10]
nodes: [{name: elected, kubeletPort: 0, maxPods: 500}]
";
const TIMES: &str = "--leader-elect --leader-elect-lease-duration=8s --leader-elect-renew-deadline=6s --leader-elect-retry-period=1s";

/// Two processes for one node.
struct Replicas<'a> {
    pool: &'a Pool,
    daemons: [Daemon<'a>; 2],
}

impl<'a> Replicas<'a> {
    fn start(pool: &'a Pool) -> anyhow::Result<Self> {
        configure(pool, "elected", ELECTED)?;
        let start = |name, port| {
            let flags = format!("{TIMES} --admin-address 127.0.0.1:{port}");
            Daemon::start(pool, name, "elected", &["elected"], &flags)
        };
        let first = start("elect-a", 9471)?;
        wait_node(pool, "elected", READY, "True")?;
        let second = start("elect-b", 9472)?;
        second.wait_log("standing by")?;
        Ok(Self { pool, daemons: [first, second] })
    }

    fn holder(&self) -> anyhow::Result<String> {
        let path = "jsonpath={.spec.holderIdentity}";
        let lease = ["-n", "kube-node-lease", "get", "lease", "elected", "--ignore-not-found", "-o", path];
        self.pool.cluster.kubectl(&lease)
    }

    /// Who acts now, and as whom. Under load a lease may also be lost by itself.
    fn acting(&self) -> anyhow::Result<(&Daemon<'a>, String)> {
        wait("one of the two to hold the lease", || {
            let holder = self.holder()?;
            for daemon in &self.daemons {
                if !holder.is_empty()
                    && daemon
                        .log()?
                        .lines()
                        .any(|line| line.contains("this process acts") && line.contains(&holder))
                {
                    return Ok(Some((daemon, holder)));
                }
            }
            Ok(None)
        })
    }

    fn wait_other_than(&self, before: &str) -> anyhow::Result<()> {
        wait("the other process to hold the lease", || {
            let now = self.holder()?;
            Ok((!now.is_empty() && now != before).then_some(()))
        })
    }
}

fn a_holder_that_stood_still(pool: &Pool) -> anyhow::Result<()> {
    let namespace = pool.namespace("vk-node-elect")?;
    let replicas = Replicas::start(pool)?;
    // Each container's start is one line, written by itself.
    let told = pool.cluster.shared().join("starts");
    std::fs::write(&told, "")?;
    let mut pods = Vec::new();
    let mut churn = |round: &str| {
        for n in 0..5 {
            let name = format!("once-{round}-{n}");
            run_to_end(&namespace, &name, "Never", "sleep 1; exit 0")?;
            pods.push((name, 1));
        }
        for n in 0..2 {
            let name = format!("thrice-{round}-{n}");
            run_to_end(&namespace, &name, "OnFailure", "test $(grep -c $POD_UID /srv/starts) = 3")?;
            pods.push((name, 3));
        }
        anyhow::Ok(())
    };
    sleeper(&namespace, "elected", "lasting", "")?;
    namespace.wait_ready("lasting")?;
    let lasting = container(&namespace, "lasting")?;
    for round in ["a", "b"] {
        churn(&format!("{round}1"))?;
        let (holds, before) = replicas.acting()?;
        // In the middle of it.
        pool.cluster.pause(VIRTUAL, holds.name)?;
        churn(&format!("{round}2"))?;
        replicas.wait_other_than(&before)?;
        churn(&format!("{round}3"))?;
        wait("a pod to run under the new holder", || {
            let phase = namespace.field("pod", &format!("once-{round}3-0"), ".status.phase")?;
            Ok((phase == "Succeeded" || phase == "Running").then_some(()))
        })?;
        let lost = holds.log()?.matches("is lost:").count();
        pool.cluster.resume(VIRTUAL, holds.name)?;
        wait("the old holder to step down", || {
            Ok((holds.log()?.matches("is lost:").count() > lost).then_some(()))
        })?;
    }
    for (name, _) in &pods {
        namespace.wait_phase(name, "Succeeded")?;
    }
    let starts = std::fs::read_to_string(&told)?;
    for (name, expected) in &pods {
        let uid = namespace.field("pod", name, ".metadata.uid")?;
        let lines = starts.lines().filter(|line| *line == uid).count();
        let (_, restarts) = container(&namespace, name)?;
        ensure!(
            lines == *expected,
            "the container of {name} was started {lines} times instead of {expected}"
        );
        ensure!(restarts == (expected - 1).to_string(), "{name} has restart count {restarts}");
    }
    ensure!(container(&namespace, "lasting")? == lasting, "a container that ran all the time was replaced");
    ensure!(node(pool, "elected", READY)? == "True");

    // Given back, the lease is taken at once; and neither process's end ends a pod.
    namespace.kubectl(&["delete", "pods", "--wait=false", "--field-selector=status.phase=Succeeded"])?;
    let (holds, before) = replicas.acting()?;
    pool.cluster.stop(VIRTUAL, holds.name)?;
    replicas.wait_other_than(&before)?;
    wait("deleted pods to go", || {
        let left = namespace.kubectl(&["get", "pods", "-o", "name"])?;
        Ok((left.trim() == "pod/lasting").then_some(()))
    })?;
    ensure!(container(&namespace, "lasting")? == lasting, "a hand-over replaced a container");
    namespace.kubectl(&["delete", "pod", "lasting"])?;
    let left = pool.on(VIRTUAL, "ctr -n k8s.io containers ls -q 'labels.\"spillway.dev/node\"==elected'")?;
    ensure!(left.trim().is_empty(), "left on the runtime:\n{left}");
    Ok(())
}

/// A pod whose container says that it starts, and then does as told.
fn run_to_end(namespace: &Namespace<'_>, name: &str, policy: &str, script: &str) -> anyhow::Result<()> {
    namespace.pod(
        name,
        &format!(
            "  nodeName: elected
  restartPolicy: {policy}
  terminationGracePeriodSeconds: 1
  automountServiceAccountToken: false
  volumes: [{{name: srv, hostPath: {{path: /srv/shared}}}}]
  containers:
  - name: main
    image: spillway.test/busybox:dev
    imagePullPolicy: Never
    command: [sh, -c, 'echo $POD_UID >> /srv/starts; {script}']
    env: [{{name: POD_UID, valueFrom: {{fieldRef: {{fieldPath: metadata.uid}}}}}}]
    volumeMounts: [{{name: srv, mountPath: /srv}}]
"
        ),
    )
}

fn outages_evictions_and_drains(pool: &Pool) -> anyhow::Result<()> {
    let namespace = pool.namespace("vk-node-life")?;
    configure(pool, "lonely", "clusterDNS: [10.96.0.10]\nnodes: [{name: lonely, kubeletPort: 0}]\n")?;
    let daemon = Daemon::start(pool, "lonely", "lonely", &["lonely"], "--admin-address 127.0.0.1:9481")?;
    wait_node(pool, "lonely", READY, "True")?;
    let evicted = "  tolerations:\n  - {key: node.kubernetes.io/unreachable, operator: Exists, effect: NoExecute, tolerationSeconds: 0}\n";
    sleeper(&namespace, "lonely", "evicted", evicted)?;
    sleeper(&namespace, "lonely", "patient", "")?;
    sleeper(&namespace, VIRTUAL, "through-outage", "")?;
    for pod in ["evicted", "patient", "through-outage"] {
        namespace.wait_ready(pod)?;
    }
    let (patient, through) = (container(&namespace, "patient")?, container(&namespace, "through-outage")?);

    // One node is cut off while the other's runtime is away: both take their time.
    pool.cluster.pause(VIRTUAL, daemon.name)?;
    let (began, runtime) = (Instant::now(), "containerd");
    pool.cluster.stop(VIRTUAL, runtime)?;
    wait_node(pool, VIRTUAL, READY, "False")?;
    let after = began.elapsed();
    let (reason, message) = (
        node(pool, VIRTUAL, REASON)?,
        node(pool, VIRTUAL, ".status.conditions[?(@.type=='Ready')].message")?,
    );
    pool.cluster.start(VIRTUAL, runtime)?;
    ensure!(after >= Duration::from_secs(29), "a runtime's outage shows after {after:?}");
    ensure!(
        reason == "KubeletNotReady" && message.contains("container runtime is down"),
        "{reason}: {message}"
    );
    wait_node(pool, VIRTUAL, READY, "True")?;
    namespace.wait_ready("through-outage")?;
    ensure!(container(&namespace, "through-outage")? == through, "the runtime's outage replaced a container");

    // The node controller's own judgement: taints, and pods deleted that don't stand it.
    wait_node(pool, "lonely", READY, "Unknown")?;
    wait("the pod that stands no cut-off to be evicted", || {
        let deleted = namespace.field("pod", "evicted", ".metadata.deletionTimestamp")?;
        Ok((!deleted.is_empty()).then_some(()))
    })?;
    let target =
        namespace.field("pod", "evicted", ".status.conditions[?(@.type=='DisruptionTarget')].reason")?;
    ensure!(target == "DeletionByTaintManager", "DisruptionTarget says {target:?}");
    pool.cluster.resume(VIRTUAL, daemon.name)?;
    namespace.wait_gone("evicted")?;
    wait_node(pool, "lonely", READY, "True")?;
    wait_node(pool, "lonely", ".spec.taints[?(@.key=='node.kubernetes.io/unreachable')].key", "")?;
    namespace.wait_ready("patient")?;
    ensure!(container(&namespace, "patient")? == patient, "a cut-off replaced a container");

    // An admin deletes the node object: it comes back, with its pods as they were.
    let uid = node(pool, "lonely", ".metadata.uid")?;
    pool.cluster.kubectl(&["delete", "node", "lonely"])?;
    wait("the node to be registered again", || {
        let new = node(pool, "lonely", ".metadata.uid")?;
        Ok((!new.is_empty() && new != uid).then_some(()))
    })?;
    wait_node(pool, "lonely", READY, "True")?;
    wait("the lease to be the new node's", || {
        let path = "jsonpath={.metadata.ownerReferences[0].uid}";
        let owner = pool.cluster.kubectl(&[
            "-n",
            "kube-node-lease",
            "get",
            "lease",
            "lonely",
            "--ignore-not-found",
            "-o",
            path,
        ])?;
        Ok((owner == node(pool, "lonely", ".metadata.uid")?).then_some(()))
    })?;
    ensure!(container(&namespace, "patient")? == patient, "the node's deletion replaced a container");

    // A stop ends no pod, and the next start finds it.
    pool.cluster.stop(VIRTUAL, daemon.name)?;
    pool.cluster.start(VIRTUAL, daemon.name)?;
    wait_node(pool, "lonely", READY, "True")?;
    ensure!(container(&namespace, "patient")? == patient, "a restart replaced a container");

    // The way to end it all.
    pool.cluster.kubectl(&[
        "drain",
        "lonely",
        "--force",
        "--ignore-daemonsets",
        "--delete-emptydir-data",
        "--timeout=60s",
    ])?;
    ensure!(node(pool, "lonely", ".spec.unschedulable")? == "true");
    namespace.wait_gone("patient")?;
    pool.cluster.stop(VIRTUAL, daemon.name)?;
    pool.cluster.kubectl(&["delete", "node", "lonely"])?;
    let left = pool.on(VIRTUAL, "ctr -n k8s.io containers ls -q 'labels.\"spillway.dev/node\"==lonely'")?;
    ensure!(left.trim().is_empty(), "left on the runtime:\n{left}");
    ensure!(node(pool, "lonely", ".metadata.name")?.is_empty(), "the node came back by itself");
    namespace.kubectl(&["delete", "pod", "through-outage"])?;
    Ok(())
}
