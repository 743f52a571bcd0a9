//! What goes wrong around a device plugin, on the real kubelet: a kubelet that hangs, an agent that dies in the middle of a call, many
//! short pods, a full disk, a second agent. Afterwards pods get their GPUs as before.

use std::process::{Child, Stdio};

use anyhow::{Context as _, bail, ensure};
use spillway_tests::{cluster::machine::Machine, standin::GpuStandin};

use crate::{
    Test,
    harness::{
        DEDICATED, Frozen, Namespace, Pool, agent_log, metric, replace_agent, wait, wait_gpus,
        wait_gpus_in_status,
    },
};

pub(crate) const TESTS: &[Test] = &[
    ("plugin_faults::a_kubelet_that_hangs_is_registered_with_when_it_goes_on", kubelet_hangs),
    ("plugin_faults::an_agent_killed_at_any_answer_costs_that_pod_at_most", killed_at_each_answer),
    ("plugin_faults::an_agent_killed_before_a_container_starts_costs_nothing", killed_in_pre_start),
    ("plugin_faults::a_full_disk_is_got_over", full_disk),
    ("plugin_faults::a_second_agent_waits", second_agent),
    ("plugin_faults::many_short_pods_all_get_a_gpu", burst),
];

const GPU: &str = "nvidia.com/gpu";
const KUBELET: &str = "/var/lib/kubelet";
const FOLDER: &str = "/var/lib/kubelet/device-plugins";
/// Pods of the burst; `SPILLWAY_TEST_BURST` says another number.
const BURST: u32 = 60;
/// As which of its next answers the agent is killed: seen were the preference, the allocation, and what comes later.
const ANSWERS: [u32; 3] = [1, 2, 8];
/// Shares of the GPUs during it.
const SHARES: u32 = 8;
/// Connections and files that the agent has open for a moment.
const DESCRIPTORS_IN_PASSING: u32 = 8;
/// Threads that its runtime keeps for 10 s for the next file to be read, which is sooner than that.
const THREADS_IN_PASSING: u32 = 8;
/// What the kernel allows while nobody holds a device: the agent's own pod looks at all of them, as one entry.
const AGENTS_OWN: i64 = 1;
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

/// Kills the agent as it is about to write to a connection for the nth time from now on, as one of its threads counts.
struct Fatal(Child);

impl Fatal {
    fn at(pool: &Pool, nth: u32) -> anyhow::Result<Self> {
        let attach = "exec strace -f -qq -o /dev/null -p $(pidof spillway-agent) -e trace=writev";
        let mut strace = Machine::command("/bin/sh");
        strace.args(["-c", &format!("{attach} -e inject=writev:signal=KILL:when={nth}")]);
        strace.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let fatal = Self(pool.cluster.machine(DEDICATED)?.spawn(strace)?);
        wait("strace to have every thread of the agent", || {
            let traced =
                "! grep -h ^TracerPid /proc/$(pidof spillway-agent)/task/*/status | grep -q '[[:space:]]0$'";
            Ok(pool.on(DEDICATED, traced).ok())
        })?;
        Ok(fatal)
    }

    fn has_killed(&mut self) -> anyhow::Result<bool> {
        Ok(self.0.try_wait()?.is_some())
    }
}

impl Drop for Fatal {
    fn drop(&mut self) {
        // It lets go of what it traces.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// While a pod comes the agent writes to its connections when it answers a question for a preference, an allocation, a start.
fn killed_at_each_answer(pool: &Pool) -> anyhow::Result<()> {
    let namespace = pool.namespace("at-each-answer")?;
    for nth in ANSWERS {
        wait_gpus(pool, 2)?;
        let mut fatal = Fatal::at(pool, nth)?;
        let pod = format!("at-{nth}");
        holder(&namespace, &pod)?;
        let mut phase = String::new();
        wait("the agent to be killed, or the pod to be through", || {
            phase = namespace.field("pod", &pod, ".status.phase")?;
            // A pod may be refused a moment before the killed process is gone.
            Ok((fatal.has_killed()? || phase == "Running").then_some(()))
        })?;
        let killed = fatal.has_killed()?;
        drop(fatal);
        // Refused for good, or started later: never in between.
        wait(&format!("pod {pod} to run or to be refused"), || {
            phase = namespace.field("pod", &pod, ".status.phase")?;
            Ok((phase == "Running" || phase == "Failed").then_some(()))
        })?;
        let why = namespace.field("pod", &pod, ".status.message")?;
        eprintln!("    {nth}: killed: {killed}; the pod is {phase} {why}");
        if phase == "Failed" {
            let reason = namespace.field("pod", &pod, ".status.reason")?;
            ensure!(killed && reason == "UnexpectedAdmissionError", "pod {pod} failed for {reason}: {why}");
        }
        replace_agent(pool)?;
        namespace.kubectl(&["delete", "pod", &pod])?;
    }
    both_gpus_can_be_had(pool, &namespace)
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

/// The kubelet's root folder on a small disk, and the plugins' on another, which can be filled; the usual one when this is dropped. The
/// kubelet gives back, at any moment, what it wrote of pods before it failed: not so to the plugins.
struct Full<'a>(&'a Pool);

impl<'a> Full<'a> {
    fn of(pool: &'a Pool) -> anyhow::Result<Self> {
        let full = Self(pool);
        pool.cluster.stop(DEDICATED, "kubelet")?;
        pool.on(
            DEDICATED,
            &format!("mount -t tmpfs -o size=8m,nr_inodes=2000 tmpfs {KUBELET}; mkdir {FOLDER}"),
        )?;
        pool.on(DEDICATED, &format!("mount -t tmpfs -o size=1m,nr_inodes=100 tmpfs {FOLDER}"))?;
        pool.cluster.start(DEDICATED, "kubelet")?;
        wait("the kubelet to make its folders", || {
            let folders = format!("test -S {FOLDER}/kubelet.sock && test -d {KUBELET}/plugins_registry");
            Ok(pool.on(DEDICATED, &format!("{folders} && test -S {KUBELET}/pod-resources/kubelet.sock")).ok())
        })?;
        // The old one has the folders below.
        replace_agent(pool)?;
        Ok(full)
    }

    /// Neither a file nor a byte more. Again, too, when something was given back since.
    fn fill(&self) -> anyhow::Result<()> {
        let files = "i=$(ls | wc -l); while true >$i; do i=$((i + 1)); done 2>/dev/null; cat /dev/zero >0 2>/dev/null || true";
        let fill = |folder| format!("mkdir -p {folder}/fill; cd {folder}/fill; ({files})");
        self.0.on(DEDICATED, &format!("{}; {}", fill(KUBELET), fill(FOLDER))).map(drop)
    }

    fn empty(&self) -> anyhow::Result<()> {
        self.0.on(DEDICATED, &format!("rm -rf {KUBELET}/fill {FOLDER}/fill")).map(drop)
    }
}

impl Drop for Full<'_> {
    fn drop(&mut self) {
        // Whichever of these fails, the others are due.
        let back = [
            self.0.cluster.stop(DEDICATED, "kubelet"),
            self.0.on(DEDICATED, &format!("umount -l {KUBELET}")).map(drop),
            self.0.cluster.start(DEDICATED, "kubelet"),
            replace_agent(self.0),
        ];
        for error in back.into_iter().filter_map(Result::err) {
            eprintln!("    setting the kubelet's folder back: {error:#}");
        }
    }
}

/// The command that prints the UIDs of the pods that have a cgroup on the dedicated node, one for each hierarchy.
fn pod_cgroups(pool: &Pool) -> String {
    let root = pool.cluster.cgroup_root(DEDICATED);
    format!(
        "find /sys/fs/cgroup/*{root} /sys/fs/cgroup{root} -type d -name 'pod*' 2>/dev/null | sed 's|.*/pod||'"
    )
}

/// What the kernel allows pods.
fn allowed(pool: &Pool) -> anyhow::Result<i64> {
    metric(pool, "spillway_isolation_allowed_entries")?.context("the agent does not say what it allows")
}

fn full_disk(pool: &Pool) -> anyhow::Result<()> {
    let namespace = pool.namespace("full-disk")?;
    let gpus = GpuStandin::at(&pool.cluster.machine(DEDICATED)?.path("/opt/spillway-standin"));
    let full = Full::of(pool)?;
    wait_gpus(pool, 2)?;
    // A pod that has ended keeps what no other one needs for itself until its cgroup is gone.
    wait("nobody but the agent to be allowed anything", || Ok((allowed(pool)? == AGENTS_OWN).then_some(())))?;
    holder(&namespace, "steady")?;
    namespace.wait_phase("steady", "Running")?;
    wait("what the steady pod may open to be in the kernel", || {
        Ok((allowed(pool)? > AGENTS_OWN).then_some(()))
    })?;
    let (agent, before) = (pool.on(DEDICATED, "pidof spillway-agent")?, allowed(pool)?);
    full.fill()?;

    // The kubelet can't write down who gets what, so nobody gets anything.
    holder(&namespace, "unlucky")?;
    namespace.wait_phase("unlucky", "Failed")?;
    namespace.kubectl(&["delete", "pod", "unlucky"])?;
    // What happens to devices reaches it as ever.
    let (path, major, minor) = GpuStandin::device_node(2);
    pool.on(DEDICATED, &format!("mknod -m 666 {path} c {major} {minor}"))?;
    gpus.add(2)?;
    let came = wait_gpus(pool, 3);
    gpus.remove(2)?;
    pool.on(DEDICATED, &format!("rm {path}"))?;
    came?;
    wait_gpus(pool, 2)?;
    // Who runs keeps what it has.
    let open = "for node in /dev/nvidia[0-9]; do (: <$node) 2>&1; done; true";
    let opens = namespace.exec("steady", &["sh", "-c", open])?;
    ensure!(opens.contains("No such device or address"), "the steady pod opening its GPU: {opens}");
    ensure!(allowed(pool)? == before, "{before} entries became {}", allowed(pool)?);

    // An agent that could act would have its new socket in the room of the old one before anything else. That one's room is free when
    // the agent has closed it: it has a second name instead.
    let frozen = Frozen::agent(pool)?;
    pool.on(DEDICATED, &format!("cd {FOLDER}; mv spillway-nvidia.com_gpu.sock fill/socket"))?;
    full.fill()?;
    drop(frozen);
    wait("the agent to say that there is no room", || {
        Ok(agent_log(pool)?.contains("No space left on device").then_some(()))
    })?;
    full.empty()?;
    wait_gpus(pool, 2)?;
    ensure!(allowed(pool)? == before, "{before} entries became {}", allowed(pool)?);
    namespace.kubectl(&["delete", "pod", "steady"])?;
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

/// What pods may leave behind on the machine, and in the agent.
#[derive(Debug)]
struct Leftovers {
    descriptors: u32,
    tasks: u32,
    anonymous_kib: u32,
    pod_cgroups: u32,
    checkpointed_pods: u32,
    allowed_entries: i64,
}

impl Leftovers {
    fn now(pool: &Pool) -> anyhow::Result<Self> {
        let pod_cgroups = pod_cgroups(pool);
        let script = format!(
            "agent=/proc/$(pidof spillway-agent); ls $agent/fd | wc -l; ls $agent/task | wc -l; awk '/^RssAnon/ {{print $2}}' $agent/status
             {pod_cgroups} | sort -u | wc -l
             grep -o '\"PodUID\"' {FOLDER}/kubelet_internal_checkpoint | wc -l"
        );
        let said = pool.on(DEDICATED, &script)?;
        let numbers: Vec<u32> = said.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
        let [descriptors, tasks, anonymous_kib, pod_cgroups, checkpointed_pods] = numbers[..] else {
            bail!("{said:?} are not five numbers");
        };
        let allowed_entries = allowed(pool)?;
        Ok(Self { descriptors, tasks, anonymous_kib, pod_cgroups, checkpointed_pods, allowed_entries })
    }

    /// Waits until there is no more than `before`. Memory is told, not judged: how much of it an allocator keeps is its own matter.
    fn wait(pool: &Pool, before: &Self) -> anyhow::Result<()> {
        let mut last = None;
        let gone = wait("nothing to be left of the burst", || {
            let now = Self::now(pool)?;
            let fits = now.descriptors <= before.descriptors + DESCRIPTORS_IN_PASSING
                && now.tasks <= before.tasks + THREADS_IN_PASSING
                && now.pod_cgroups <= before.pod_cgroups
                && now.allowed_entries <= before.allowed_entries
                // The kubelet forgets ended pods when it next allocates.
                && now.checkpointed_pods <= before.checkpointed_pods + SHARES;
            last = Some(now);
            Ok(fits.then_some(()))
        });
        let anonymous = last.as_ref().map_or(0, |last| last.anonymous_kib);
        eprintln!(
            "    the agent's memory of its own: {} KiB before, {anonymous} KiB after",
            before.anonymous_kib
        );
        gone.with_context(|| format!("before: {before:?}; last: {last:?}"))
    }
}

fn burst(pool: &Pool) -> anyhow::Result<()> {
    let count = std::env::var("SPILLWAY_TEST_BURST").ok().map_or(Ok(BURST), |number| number.parse())?;
    let namespace = pool.namespace("burst")?;
    let shares = Shares::of(pool)?;
    let before = Leftovers::now(pool)?;
    // A scheduler that knows of fewer would only be slower.
    wait_gpus_in_status(pool, 8)?;
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
    Leftovers::wait(pool, &before)?;
    drop(shares);
    Ok(())
}
