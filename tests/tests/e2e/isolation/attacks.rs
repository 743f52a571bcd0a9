//! Pods that go further than to open what they see: that change what the agent looks at, or come by way of the node.

use anyhow::{Context as _, ensure};

use super::{LET_THROUGH, REFUSED, expect, greedy, holder, make, open, settle, told};
use crate::harness::{DEDICATED, Namespace, Pool, wait};

/// A pod that this node exempts, by its namespace and name: `tests/cluster/standin-values.yaml`.
const EXEMPT: &str = "isolation_exempt";

pub(super) fn pods_that_try_harder_gain_nothing(pool: &Pool) -> anyhow::Result<()> {
    settle(pool)?;
    let namespace = pool.namespace("attacks")?;
    let own = holder(&namespace, "holder")?;
    let other = 1 - own;
    greedy(&namespace, "greedy", "")?;
    let uid = namespace.field("pod", "greedy", ".metadata.uid")?;
    let folder = format!("/var/log/pods/{EXEMPT}_{uid}");
    let tried = try_harder(pool, &namespace, own, &folder);
    // The other tests need it as it was, whatever came of this one.
    let nodes = [own, other]
        .map(|minor| format!("rm -f /dev/nvidia{minor}; mknod -m 666 /dev/nvidia{minor} c 195 {minor}"));
    pool.on(DEDICATED, &format!("{}; rm -rf /dev/nvidia-null /dev/dfl-port.77 {folder}", nodes.join("; ")))?;
    tried
}

fn try_harder(pool: &Pool, namespace: &Namespace<'_>, own: u32, folder: &str) -> anyhow::Result<()> {
    let other = 1 - own;
    // A pod that has the host's /dev gives its own GPU's name the other one's number, takes the other one's node away, and calls a node of
    // everybody's like an accelerator's.
    let swap = format!(
        "cd /host-dev && rm nvidia{own} nvidia{other} && mknod nvidia{own} c 195 {other} && mknod nvidia-null c 1 3"
    );
    namespace.exec("holder", &["sh", "-c", &swap])?;
    // As a pod that collects logs could: as if this were an exempt pod.
    pool.on(DEDICATED, &format!("mkdir {folder}"))?;
    // When the agent has seen this node, it has seen all of the above.
    make(namespace, "greedy", "/tmp/witness", 400, 77)?;
    make(namespace, "greedy", "/host-dev/dfl-port.77", 400, 77)?;
    wait("the agent to have looked at /dev", || {
        Ok((open(namespace, "greedy", "/tmp/witness")? == REFUSED).then_some(()))
    })?;
    make(namespace, "holder", "/tmp/own", 195, own)?;
    make(namespace, "holder", "/tmp/other", 195, other)?;
    expect(namespace, "holder", "/tmp/own", LET_THROUGH)?;
    expect(namespace, "holder", "/tmp/other", REFUSED)?;
    make(namespace, "greedy", "/tmp/other", 195, other)?;
    expect(namespace, "greedy", "/tmp/other", REFUSED)?;
    namespace.exec("greedy", &["sh", "-c", "exec 3</dev/null"])?;

    // Whoever debugs the node is in a pod, too, whatever it may do there.
    let script = format!(
        "mknod /tmp/gpu c 195 {own}; (exec 3</tmp/gpu) 2>&1; (exec 3</host/dev/nvidiactl) 2>&1; true"
    );
    let node = format!("node/{DEDICATED}");
    namespace.kubectl(&[
        "debug",
        &node,
        "--profile=sysadmin",
        "--image=spillway.test/busybox:dev",
        "--image-pull-policy=Never",
        "--",
        "sh",
        "-c",
        &script,
    ])?;
    let debugger = wait("the debugger's pod", || {
        let pods = namespace.kubectl(&["get", "pods", "-o", "name"])?;
        Ok(pods.lines().find_map(|pod| pod.strip_prefix("pod/node-debugger-").map(|_| pod.to_owned())))
    })?;
    let log = wait("the debugger to end", || {
        let log = namespace.kubectl_output(&["logs", &debugger])?;
        let log = String::from_utf8_lossy(&log.stdout).into_owned();
        Ok((log.lines().count() >= 2).then_some(log))
    })?;
    let found: Vec<_> = log.lines().filter_map(told).collect();
    ensure!(found == [REFUSED, REFUSED], "the debugger found {log}");
    namespace.kubectl(&["delete", &debugger]).map(drop).context("can't remove the debugger")
}
