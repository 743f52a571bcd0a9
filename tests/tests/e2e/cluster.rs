//! The cluster library itself: what the other tests take for granted.

use std::process::{Command, Stdio};

use anyhow::{Context as _, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use spillway_tests::cluster::{current_binaries, machine::ProcessId, registry};

use crate::{
    Alone, Test,
    harness::{DEDICATED, Pool, VIRTUAL, wait},
};

pub(crate) const TESTS: &[Test] =
    &[("cluster::pods_reach_pods_services_and_names_on_both_sides", pods_reach_each_other)];
pub(crate) const ALONE: &[Alone] = &[("cluster::a_killed_run_is_swept_by_the_next", a_killed_run_is_swept)];

fn pods_reach_each_other(pool: &Pool) -> anyhow::Result<()> {
    let namespace = pool.namespace("reach")?;
    for (side, node) in [("dedicated", DEDICATED), ("virtual", VIRTUAL)] {
        namespace.apply(&format!(
            "apiVersion: v1
kind: Pod
metadata: {{name: {side}, labels: {{side: {side}}}}}
spec:
  nodeName: {node}
  terminationGracePeriodSeconds: 0
  containers:
  - name: web
    image: spillway.test/busybox:dev
    imagePullPolicy: Never
    command: [sh, -c, 'mkdir /tmp/www && echo from {side} > /tmp/www/index.html && exec httpd -f -p 8080 -h /tmp/www']
---
apiVersion: v1
kind: Service
metadata: {{name: {side}}}
spec:
  selector: {{side: {side}}}
  ports: [{{port: 80, targetPort: 8080}}]
"
        ))?;
    }
    namespace.wait_ready("dedicated")?;
    namespace.wait_ready("virtual")?;
    for from in ["dedicated", "virtual"] {
        for to in ["dedicated", "virtual"] {
            let pod = namespace.field("pod", to, ".status.podIP")?;
            let service = namespace.field("service", to, ".spec.clusterIP")?;
            for url in [format!("http://{pod}:8080/"), format!("http://{service}/")] {
                // Endpoints reach kube-proxy a moment after the pod is Ready.
                let answer = wait(&format!("{url} from the {from} side"), || {
                    namespace.exec(from, &["timeout", "5", "wget", "-q", "-O", "-", &url]).map(Some)
                })?;
                ensure!(answer == format!("from {to}\n"), "{url} answered {answer:?} to the {from} side");
            }
            // busybox is linked statically: of its applets only nslookup asks DNS.
            let name = format!("{to}.reach.svc.cluster.local");
            wait(&format!("{name} to have the address {service} on the {from} side"), || {
                let found = namespace.exec(from, &["nslookup", &name])?;
                Ok(found.contains(&format!("Address: {service}")).then_some(()))
            })?;
        }
    }
    Ok(())
}

fn a_killed_run_is_swept() -> anyhow::Result<()> {
    let mut run = Command::new(current_binaries()?.join("xtask"))
        .args(["cluster", "up", "--no-build"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context("can't run xtask")?;
    let owner = i32::try_from(run.id()).ok().and_then(ProcessId::of).context("xtask ended at once")?;
    let find = || anyhow::Ok(registry::all()?.into_iter().find(|record| record.owner == owner));
    // Late enough that containers' cgroups exist and early enough that the cluster isn't kept yet.
    let seen = wait("the other run to start a kubelet", || {
        Ok(find()?.filter(|record| record.processes.iter().any(|process| process.name == "kubelet")))
    });
    kill(Pid::from_raw(owner.pid), Signal::SIGKILL)?;
    run.wait()?;
    let seen = seen?;
    // Another test that starts a cluster sweeps, too.
    let left = find()?.unwrap_or(seen);
    registry::sweep()?;
    ensure!(find()?.is_none(), "the sweep left the record of {}", left.id);
    ensure!(!left.running(), "the sweep left machines of {}", left.id);
    for process in left.processes.iter().filter_map(|process| process.id) {
        ensure!(!process.alive(), "the sweep left process {}", process.pid);
    }
    ensure!(left.forwarder.is_some_and(|forwarder| !forwarder.alive()), "the sweep left the forwarder");
    for hierarchy in registry::cgroup_hierarchies() {
        let cgroup = hierarchy.join(&left.id);
        ensure!(!cgroup.exists(), "the sweep left {}", cgroup.display());
    }
    let folder: Vec<_> = std::fs::read_dir(&left.folder)?.collect();
    ensure!(folder.len() == 1, "the sweep left more than logs in {}: {folder:?}", left.folder.display());
    Ok(())
}
