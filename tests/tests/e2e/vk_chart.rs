//! The chart's virtual node, installed as a user does: what its tests share, and replicas. Provider `cri` has to run on the machine of its
//! runtime, so what a Deployment runs, on whatever machine, is a provider that needs none: `none`.

use anyhow::{Context as _, ensure};

use crate::{
    Test,
    harness::{DEDICATED, Namespace, Pool, wait},
};

pub(crate) const TESTS: &[Test] = &[
    ("vk_chart::what_needs_a_machine_of_its_own_is_refused", what_needs_a_machine_of_its_own_is_refused),
    ("vk_chart::a_replica_takes_over_and_nothing_is_started_twice", a_replica_takes_over),
];

pub(crate) const SYSTEM: &str = "spillway-system";
pub(crate) const VK: &str = "spillway-vk";

/// The chart's virtual nodes, until this is dropped.
pub(crate) struct Far<'a> {
    pool: &'a Pool,
    nodes: &'a [&'a str],
}

impl<'a> Far<'a> {
    /// `set` are values of the chart beside `vk.enabled`.
    pub(crate) fn install(pool: &'a Pool, nodes: &'a [&'a str], set: &[&str]) -> anyhow::Result<Self> {
        let chart = spillway_tests::repository().join("deploy/chart").display().to_string();
        let this = Self { pool, nodes };
        // Not --wait: it is ready when its certificates are approved. What other tests have set by hand is the chart's again.
        let command = ["upgrade", "spillway", &chart, "-n", SYSTEM, "--reuse-values", "--force-conflicts"];
        let set: Vec<_> =
            ["vk.enabled=true"].iter().chain(set).map(|value| format!("--set={value}")).collect();
        pool.cluster.helm(&command.into_iter().chain(set.iter().map(String::as_str)).collect::<Vec<_>>())?;
        Ok(this)
    }

    /// Approves the serving certificates that the nodes have asked for, as an admin does.
    pub(crate) fn approve(&self) -> anyhow::Result<()> {
        let listed = self.pool.cluster.kubectl(&[
            "get", "csr", "-o",
            "jsonpath={range .items[*]}{.metadata.name} {.spec.signerName} {.spec.username} {.status.conditions[*].type}{'\\n'}{end}",
        ])?;
        for line in listed.lines() {
            let [request, "kubernetes.io/kubelet-serving", user] =
                line.split_whitespace().collect::<Vec<_>>()[..]
            else {
                continue;
            };
            if self.nodes.iter().any(|node| user == format!("system:node:{node}")) {
                self.pool.cluster.kubectl(&["certificate", "approve", request])?;
            }
        }
        Ok(())
    }

    /// A field of each of the Deployment's pods.
    pub(crate) fn pods(&self, path: &str) -> anyhow::Result<Vec<String>> {
        let path = format!("jsonpath={{range .items[*]}}{{{path}}}{{'\\n'}}{{end}}");
        let label = format!("app.kubernetes.io/name={VK}");
        let text = self.pool.cluster.kubectl(&["-n", SYSTEM, "get", "pods", "-l", &label, "-o", &path])?;
        Ok(text.lines().map(str::to_owned).collect())
    }

    /// Waits until so many pods of the Deployment are Ready, and approves what they ask for.
    pub(crate) fn wait_ready(&self, count: usize) -> anyhow::Result<()> {
        wait(&format!("{count} pods of the Deployment to be Ready"), || {
            self.approve()?;
            let ready = self.pods(".status.conditions[?(@.type=='Ready')].status")?;
            Ok((ready.len() == count && ready.iter().all(|ready| ready == "True")).then_some(()))
        })
    }
}

impl Drop for Far<'_> {
    fn drop(&mut self) {
        // The values that the tests begin with, and none of before.
        if let Err(error) = self.pool.cluster.install_chart(&[]) {
            eprintln!("    the chart is not as it was: {error:#}");
        }
        for node in self.nodes {
            let _ =
                self.pool.cluster.kubectl(&["delete", "node", node, "--ignore-not-found", "--wait=false"]);
        }
    }
}

/// A pod on one of the nodes. Nothing is pulled: provider `none` looks at no image.
pub(crate) fn far_pod(namespace: &Namespace<'_>, name: &str, node: &str) -> anyhow::Result<()> {
    namespace.pod(
        name,
        &format!("  nodeName: {node}\n  containers: [{{name: main, image: anything, command: [sleep]}}]\n"),
    )
}

fn what_needs_a_machine_of_its_own_is_refused(pool: &Pool) -> anyhow::Result<()> {
    let chart = spillway_tests::repository().join("deploy/chart").display().to_string();
    let render = |set: &[&str]| {
        let command = ["template", "spillway", &chart, "--set=agent.enabled=false,vk.enabled=true"];
        pool.cluster.helm(&[&command[..], set].concat())
    };
    render(&["--set=vk.config.nodes[0].name=a"])?;
    for (set, address) in [(&[][..], "0.0.0.0:9400"), (&["--set=vk.admin.host=::"], "[::]:9400")] {
        let rendered = render(set)?;
        ensure!(rendered.contains(&format!("\"--admin-address={address}\"")), "{set:?}: {rendered}");
    }
    for set in [
        &["--set=vk.provider=cri"][..],
        &["--set=vk.config.nodes[0].name=a", "--set=vk.config.nodes[0].provider=cri"],
    ] {
        let refusal = render(set).err().with_context(|| format!("{set:?} is rendered"))?.to_string();
        ensure!(refusal.contains("cri runs on the machine of its container runtime"), "{refusal}");
    }
    Ok(())
}

const FAR: &str = "far-replicated";

/// What must not change while replicas do.
const RUN: &str = ".metadata.uid} {.status.phase} {.status.podIP} {.status.startTime} {.status.containerStatuses[0].containerID} \
                   {.status.containerStatuses[0].restartCount} {.status.containerStatuses[0].state.running.startedAt";

struct Replicas<'a> {
    pool: &'a Pool,
    far: Far<'a>,
}

impl Replicas<'_> {
    /// The lease's holder, and the pod that it is.
    fn holder(&self) -> anyhow::Result<(String, String)> {
        let lease = ["-n", "kube-node-lease", "get", "lease", FAR, "-o", "jsonpath={.spec.holderIdentity}"];
        wait("a process to hold the lease", || {
            let holder = self.pool.cluster.kubectl(&lease)?;
            Ok(holder.rsplit_once('_').map(|(pod, _)| (holder.clone(), pod.to_owned())))
        })
    }

    fn node(&self, path: &str) -> anyhow::Result<String> {
        self.pool.cluster.kubectl(&["get", "node", FAR, "-o", &format!("jsonpath={{{path}}}")])
    }

    /// Waits until another process acts and everything goes through it.
    fn taken_over(&self, namespace: &Namespace<'_>, before: &str, pod: &str) -> anyhow::Result<()> {
        let holder = wait("another process to hold the lease", || {
            let (holder, pod) = self.holder()?;
            Ok((holder != before).then_some(pod))
        })?;
        far_pod(namespace, pod, FAR)?;
        namespace.wait_ready(pod)?;
        let at = ["-n", SYSTEM, "get", "pod", &holder, "-o", "jsonpath={.status.podIP}"];
        let at = self.pool.cluster.kubectl(&at)?;
        wait("the node to be where its holder is", || {
            Ok((self.node(".status.addresses[?(@.type=='InternalIP')].address")? == at).then_some(()))
        })?;
        let mut said = String::new();
        wait("the holder's kubelet API to be asked", || {
            said = String::from_utf8_lossy(&namespace.kubectl_output(&["logs", pod])?.stderr).into_owned();
            Ok(said.contains("keeps no logs").then_some(()))
        })
        .with_context(|| format!("it says {said:?}"))
    }
}

fn a_replica_takes_over(pool: &Pool) -> anyhow::Result<()> {
    let namespace = pool.namespace("vk-chart-replicas")?;
    let name = format!("vk.nodeName={FAR}");
    let far = Far::install(pool, &[FAR], &["vk.replicas=2", &name])?;
    let this = Replicas { pool, far };
    this.far.wait_ready(2)?;
    let lasting = ["one", "two", "three"];
    for pod in lasting.into_iter().chain(["goes-a", "goes-b"]) {
        far_pod(&namespace, pod, FAR)?;
    }
    for pod in lasting {
        namespace.wait_ready(pod)?;
    }
    let runs = || {
        let runs = lasting.map(|pod| namespace.field("pod", pod, RUN));
        runs.into_iter().collect::<anyhow::Result<Vec<_>>>()
    };
    let is_ready = ".status.conditions[?(@.type=='Ready')].status";
    let since = ".status.conditions[?(@.type=='Ready')].lastTransitionTime";
    let before = (runs()?, this.node(since)?);
    ensure!(before.0.iter().all(|run| run.contains(" Running 198.1")), "{:?}", before.0);

    // In good order: the lease is given back.
    let (holder, pod) = this.holder()?;
    let both = this.far.pods(".metadata.name")?;
    pool.cluster.kubectl(&["-n", SYSTEM, "delete", "pod", &pod, "--wait=false"])?;
    namespace.kubectl(&["delete", "pod", "goes-a", "--wait=false"])?;
    this.taken_over(&namespace, &holder, "after-a")?;
    namespace.wait_gone("goes-a")?;
    // Not by the deleted pod's successor, which has no certificate before an admin approves it.
    ensure!(both.contains(&this.holder()?.1), "who can't be asked for logs has taken over");
    this.far.wait_ready(2)?;

    // Without a word: the lease has to run out. Its container starts again in its place, with the certificate that it had.
    let (holder, pod) = this.holder()?;
    let uid = pool.cluster.kubectl(&["-n", SYSTEM, "get", "pod", &pod, "-o", "jsonpath={.metadata.uid}"])?;
    let find = format!(
        "for p in $(grep -l pod{uid} /proc/[0-9]*/cgroup 2>/dev/null); do p=${{p%/cgroup}}; \
         [ \"$(cat $p/comm)\" != {VK} ] || echo ${{p#/proc/}}; done"
    );
    let found = pool.on(DEDICATED, &find)?;
    let id = found.lines().next().context("the holder has no process")?;
    pool.on(DEDICATED, &format!("kill -KILL {id}"))?;
    namespace.kubectl(&["delete", "pod", "goes-b", "--wait=false"])?;
    this.taken_over(&namespace, &holder, "after-b")?;
    namespace.wait_gone("goes-b")?;
    this.far.wait_ready(2)?;

    ensure!(this.node(is_ready)? == "True");
    let after = (runs()?, this.node(since)?);
    ensure!(after == before, "pods or node are not what they were:\n{before:#?}\n{after:#?}");
    namespace.kubectl(&["delete", "pods", "--all"]).map(drop)
}
