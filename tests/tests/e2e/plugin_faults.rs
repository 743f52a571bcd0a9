//! What goes wrong around a device plugin, on the real kubelet: a kubelet that hangs, an agent that dies in the middle of a call, many
//! short pods, a full disk, a second agent. Afterwards pods get their GPUs as before.

use std::process::Stdio;

use anyhow::{Context as _, ensure};
use spillway_tests::cluster::machine::Machine;

use crate::{
    Test,
    harness::{DEDICATED, Namespace, Pool, replace_agent, wait, wait_gpus},
};

pub(crate) const TESTS: &[Test] = &[
    ("plugin_faults::a_kubelet_that_hangs_is_registered_with_when_it_goes_on", kubelet_hangs),
    ("plugin_faults::an_agent_killed_inside_allocate_costs_that_pod_only", killed_in_allocate),
    ("plugin_faults::an_agent_killed_before_a_container_starts_costs_nothing", killed_in_pre_start),
    ("plugin_faults::a_full_disk_is_got_over", full_disk),
    ("plugin_faults::a_second_agent_waits", second_agent),
    ("plugin_faults::many_short_pods_all_get_a_gpu", burst),
];

const GPU: &str = "nvidia.com/gpu";
const FOLDER: &str = "/var/lib/kubelet/device-plugins";
/// Pods of the burst; `SPILLWAY_TEST_BURST` says another number.
const BURST: u32 = 60;
/// A label of the node, and its value that shares each GPU by four pods.
const SHARED: (&str, &str) = ("nvidia.com/device-plugin.config", "shared");

fn spec(init: &str, command: &str) -> String {
    format!(
        "  nodeName: {DEDICATED}
  restartPolicy: Never
  terminationGracePeriodSeconds: 0
{init}  containers:
  - name: main
    image: spillway.test/busybox:dev
    imagePullPolicy: Never
    command: {command}
    resources: {{limits: {{{GPU}: 1}}}}
"
    )
}

fn holder(namespace: &Namespace<'_>, name: &str) -> anyhow::Result<()> {
    namespace.pod(name, &spec("", "[sleep, '100000']"))
}

/// Waits until two pods hold a GPU each: none was lost. Before kubelet and agent have found each other pods are refused for good.
fn both_gpus_can_be_had(pool: &Pool, namespace: &Namespace<'_>) -> anyhow::Result<()> {
    wait_gpus(pool, 2)?;
    let pods = ["one", "other"];
    for name in pods {
        holder(namespace, name)?;
    }
    for name in pods {
        wait(&format!("pod {name} to get a GPU"), || {
            let phase = namespace.field("pod", name, ".status.phase")?;
            if phase == "Failed" {
                let why = namespace.field("pod", name, ".status.message")?;
                eprintln!("    pod {name} is tried again, it was refused: {why}");
                namespace.kubectl(&["delete", "pod", name])?;
                holder(namespace, name)?;
            }
            Ok((phase == "Running").then_some(()))
        })?;
    }
    namespace.kubectl(&["delete", "pod", pods[0], pods[1]]).map(drop)
}

/// A process that is frozen, and goes on when this is dropped.
struct Frozen<'a>(&'a Pool);

impl<'a> Frozen<'a> {
    fn agent(pool: &'a Pool) -> anyhow::Result<Self> {
        pool.on(DEDICATED, "kill -STOP $(pidof spillway-agent)")?;
        Ok(Self(pool))
    }

    fn kill(self) -> anyhow::Result<()> {
        self.0.on(DEDICATED, "kill -KILL $(pidof spillway-agent)").map(drop)
    }
}

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        let _ = self.0.on(DEDICATED, "kill -CONT $(pidof spillway-agent)");
    }
}

fn kubelet_hangs(pool: &Pool) -> anyhow::Result<()> {
    let namespace = pool.namespace("hanging")?;
    wait_gpus(pool, 2)?;
    pool.cluster.pause(DEDICATED, "kubelet")?;
    let socket = format!("{FOLDER}/spillway-nvidia.com_gpu.sock");
    let serves = pool.on(DEDICATED, &format!("rm {socket}")).and_then(|_| {
        // It calls a kubelet that takes connections and answers nothing.
        wait("the agent to serve on a new socket", || {
            pool.on(DEDICATED, &format!("test -S {socket}")).map(|_| Some(()))
        })
    });
    pool.cluster.resume(DEDICATED, "kubelet")?;
    serves?;
    both_gpus_can_be_had(pool, &namespace)
}

fn killed_in_allocate(pool: &Pool) -> anyhow::Result<()> {
    let namespace = pool.namespace("in-allocate")?;
    wait_gpus(pool, 2)?;
    let frozen = Frozen::agent(pool)?;
    holder(&namespace, "unlucky")?;
    // It asks for a preference and then for the allocation, without a deadline: it is inside one of the calls until the agent is gone.
    wait("the kubelet to have seen the pod", || {
        let log = pool.cluster.process(DEDICATED, "kubelet")?.log_tail(200);
        Ok(log.contains("in-allocate/unlucky").then_some(()))
    })?;
    frozen.kill()?;
    namespace.wait_phase("unlucky", "Failed")?;
    let reason = namespace.field("pod", "unlucky", ".status.reason")?;
    ensure!(reason == "UnexpectedAdmissionError", "the pod failed for {reason}");
    namespace.kubectl(&["delete", "pod", "unlucky"])?;
    both_gpus_can_be_had(pool, &namespace)?;
    replace_agent(pool)
}

fn killed_in_pre_start(pool: &Pool) -> anyhow::Result<()> {
    let namespace = pool.namespace("in-pre-start")?;
    wait_gpus(pool, 2)?;
    let init = "  initContainers:
  - name: gate
    image: spillway.test/busybox:dev
    imagePullPolicy: Never
    command: [sh, -c, 'until [ -e /open ]; do sleep 0.1; done']
";
    namespace.pod("gated", &spec(init, "[sleep, '100000']"))?;
    wait("the gate to run", || {
        let state = namespace.field("pod", "gated", ".status.initContainerStatuses[0].state.running")?;
        Ok((!state.is_empty()).then_some(()))
    })?;
    // Admitted, its devices allocated, its container not started.
    let frozen = Frozen::agent(pool)?;
    namespace.kubectl(&["exec", "gated", "-c", "gate", "--", "touch", "/open"])?;
    wait("the gate to have ended", || {
        let state = namespace.field("pod", "gated", ".status.initContainerStatuses[0].state.terminated")?;
        Ok((!state.is_empty()).then_some(()))
    })?;
    frozen.kill()?;
    namespace.wait_ready("gated")?;
    namespace.kubectl(&["delete", "pod", "gated"])?;
    both_gpus_can_be_had(pool, &namespace)?;
    replace_agent(pool)
}

/// The kubelet's device plugin folder without room for another file; there is room again when this is dropped.
struct Full<'a>(&'a Pool);

impl<'a> Full<'a> {
    fn of(pool: &'a Pool) -> anyhow::Result<Self> {
        let full = Self(pool);
        pool.cluster.stop(DEDICATED, "kubelet")?;
        pool.on(DEDICATED, &format!("mount -t tmpfs -o size=64k,nr_inodes=24 tmpfs {FOLDER}"))?;
        pool.cluster.start(DEDICATED, "kubelet")?;
        // The old one has the folder below.
        replace_agent(pool)?;
        Ok(full)
    }

    fn fill(&self) -> anyhow::Result<()> {
        let until_refused = "i=0; while true >fill-$i; do i=$((i + 1)); done 2>/dev/null; cat /dev/zero >fill-0 2>/dev/null || true";
        self.0.on(DEDICATED, &format!("cd {FOLDER}; ({until_refused})")).map(drop)
    }

    fn empty(&self) -> anyhow::Result<()> {
        self.0.on(DEDICATED, &format!("rm -f {FOLDER}/fill-*")).map(drop)
    }
}

impl Drop for Full<'_> {
    fn drop(&mut self) {
        // Whichever of these fails, the others are due.
        let back = [
            self.0.cluster.stop(DEDICATED, "kubelet"),
            self.0.on(DEDICATED, &format!("umount -l {FOLDER}")).map(drop),
            self.0.cluster.start(DEDICATED, "kubelet"),
            replace_agent(self.0),
        ];
        for error in back.into_iter().filter_map(Result::err) {
            eprintln!("    setting the device plugin folder back: {error:#}");
        }
    }
}

fn full_disk(pool: &Pool) -> anyhow::Result<()> {
    let namespace = pool.namespace("full-disk")?;
    let full = Full::of(pool)?;
    both_gpus_can_be_had(pool, &namespace)?;
    pool.on(DEDICATED, &format!("cd {FOLDER}; ln spillway-nvidia.com_gpu.sock fill-link"))?;
    full.fill()?;
    let agent = pool.on(DEDICATED, "pidof spillway-agent")?;
    // The kubelet can't write down who gets what, so nobody gets anything; and there is no room for a socket.
    holder(&namespace, "unlucky")?;
    namespace.wait_phase("unlucky", "Failed")?;
    namespace.kubectl(&["delete", "pod", "unlucky"])?;
    // An agent that could act would have its new socket in the room of the old one before anything else. The link has that room in its
    // stead.
    let frozen = Frozen::agent(pool)?;
    pool.on(DEDICATED, &format!("cd {FOLDER}; rm spillway-nvidia.com_gpu.sock; touch fill-last"))?;
    drop(frozen);
    wait("the agent to say that there is no room", || {
        let log = ["-n", "spillway-system", "logs", "-l", "app.kubernetes.io/component=agent", "--tail=-1"];
        Ok(pool.cluster.kubectl(&log)?.contains("No space left on device").then_some(()))
    })?;
    full.empty()?;
    both_gpus_can_be_had(pool, &namespace)?;
    ensure!(pool.on(DEDICATED, "pidof spillway-agent")? == agent, "the agent did not live through it");
    drop(full);
    both_gpus_can_be_had(pool, &namespace)
}

fn second_agent(pool: &Pool) -> anyhow::Result<()> {
    let namespace = pool.namespace("second-agent")?;
    wait_gpus(pool, 2)?;
    let sockets = || pool.on(DEDICATED, &format!("ls -i {FOLDER} | grep spillway-"));
    let before = sockets()?;
    let log = "/tmp/second-agent.log";
    let machine = pool.cluster.machine(DEDICATED)?;
    let mut second = Machine::command("/bin/sh");
    second
        .args(["-c", &format!("exec /opt/spillway/build/spillway-agent --admin-address off >{log} 2>&1")])
        .stdin(Stdio::null());
    let mut second = machine.spawn(second)?;
    let waits = wait("the second agent to say that it waits", || {
        let said = pool.on(DEDICATED, &format!("cat {log}"))?;
        Ok(said.contains("another spillway-agent holds").then_some(()))
    });
    let after = sockets();
    let served = both_gpus_can_be_had(pool, &namespace);
    second.kill().context("can't end the second agent")?;
    second.wait()?;
    waits?;
    ensure!(after? == before, "the second agent touched the first one's sockets");
    served
}

/// The node with four shares of each GPU; with whole GPUs again when this is dropped.
struct Shares<'a>(&'a Pool);

impl<'a> Shares<'a> {
    fn of(pool: &'a Pool) -> anyhow::Result<Self> {
        let shares = Self(pool);
        shares.label(&format!("{}={}", SHARED.0, SHARED.1))?;
        wait_gpus(pool, 8)?;
        Ok(shares)
    }

    fn label(&self, label: &str) -> anyhow::Result<()> {
        self.0.cluster.kubectl(&["label", "node", DEDICATED, "--overwrite", label]).map(drop)
    }
}

impl Drop for Shares<'_> {
    fn drop(&mut self) {
        let back = self.label(&format!("{}-", SHARED.0)).and_then(|()| wait_gpus(self.0, 2));
        if let Err(error) = back {
            eprintln!("    the node was not set back: {error:#}");
        }
    }
}

fn burst(pool: &Pool) -> anyhow::Result<()> {
    let count = std::env::var("SPILLWAY_TEST_BURST").ok().map_or(Ok(BURST), |number| number.parse())?;
    let namespace = pool.namespace("burst")?;
    let shares = Shares::of(pool)?;
    // A scheduler that knows of fewer would only be slower.
    wait("eight shares to be in the node's status", || {
        let path = "jsonpath={.status.allocatable.nvidia\\.com/gpu}";
        let now = pool.cluster.kubectl(&["get", "node", DEDICATED, "-o", path])?;
        Ok((now == "8").then_some(()))
    })?;
    namespace.apply(&format!(
        "apiVersion: batch/v1
kind: Job
metadata: {{name: burst}}
spec:
  completions: {count}
  parallelism: 8
  backoffLimit: 0
  template:
    spec:
      restartPolicy: Never
      terminationGracePeriodSeconds: 0
      nodeSelector: {{kubernetes.io/hostname: {DEDICATED}}}
      containers:
      - name: main
        image: spillway.test/busybox:dev
        imagePullPolicy: Never
        command: [sh, -c, 'test -n \"$NVIDIA_VISIBLE_DEVICES\" && test -e /dev/nvidiactl']
        resources: {{limits: {{{GPU}: 1}}}}
"
    ))?;
    let mut done = String::new();
    // As long as it goes on, it may take as long as it does.
    while done != count.to_string() {
        let before = done.clone();
        wait("more of the burst's pods to be done", || {
            let failed = namespace.field("job", "burst", ".status.failed")?;
            if !(failed.is_empty() || failed == "0") {
                return Err(spillway_tests::Fatal(format!("{failed} pods failed")).into());
            }
            done = namespace.field("job", "burst", ".status.succeeded")?;
            Ok((done != before).then_some(()))
        })?;
    }
    namespace.kubectl(&["delete", "job", "burst", "--wait=false"])?;
    drop(shares);
    Ok(())
}
