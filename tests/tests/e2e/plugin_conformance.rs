//! What upstream's end-to-end tests of nodes ask of a device plugin, on the real kubelet: which container holds which device, through the
//! restarts of container, kubelet and agent, and without an agent. The GPUs are stand-ins.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, ensure};
use spillway_tests::standin::GpuStandin;

use crate::{
    Test,
    agent::{GPU, wait_offered},
    harness::{DEDICATED, Namespace, Pool, held, replace_agent, wait, wait_gpus},
};

pub(crate) const TESTS: &[Test] = &[
    ("plugin_conformance::a_container_keeps_its_device_through_restarts", through_restarts),
    ("plugin_conformance::pods_that_ended_while_nobody_looked", ended_unseen),
    ("plugin_conformance::init_containers_hand_on_and_sidecars_keep", init_containers),
    ("plugin_conformance::a_device_s_health_is_in_its_pod_s_status", health_in_status),
];

/// The label that the agent's pod needs of its node.
const SELECTED: &str = "spillway.dev/accelerators";

/// A container with a GPU that says which, and ends when it is told to.
fn container(name: &str, command: &str, further: &str) -> String {
    format!(
        "  - name: {name}
    image: spillway.test/busybox:dev
    imagePullPolicy: Never
    command: [sh, -c, 'trap exit TERM; echo $NVIDIA_VISIBLE_DEVICES; {command}']
    resources: {{limits: {{{GPU}: 1}}}}
{further}"
    )
}

const FOREVER: &str = "sleep 100000 & wait";

/// A pod's spec from its containers'.
fn spec(restart: &str, init: &str, containers: &str) -> String {
    format!(
        "  nodeName: {DEDICATED}
  restartPolicy: {restart}
  terminationGracePeriodSeconds: 0
{init}  containers:
{containers}"
    )
}

/// The device that a container has printed, by its log.
fn printed(namespace: &Namespace<'_>, pod: &str, container: &str) -> anyhow::Result<String> {
    let log = wait(&format!("container {container} of pod {pod} to say what it has"), || {
        let log = namespace.kubectl(&["logs", pod, "-c", container])?;
        Ok(log.ends_with('\n').then_some(log))
    })?;
    ensure!(log.starts_with("GPU-") && log.lines().count() == 1, "container {container} printed {log:?}");
    Ok(log.trim().to_owned())
}

/// What the kubelet says that a pod's containers hold, by container.
fn holds(
    pool: &Pool,
    namespace: &Namespace<'_>,
    pod: &str,
) -> anyhow::Result<BTreeMap<String, BTreeSet<String>>> {
    let all = held(pool, GPU)?;
    let of_pod = all.into_iter().filter(|((within, name, _), _)| *within == namespace.name && name == pod);
    Ok(of_pod.map(|((.., container), devices)| (container, devices)).collect())
}

/// A namespace on a node that has two GPUs, which nobody holds.
fn begin<'a>(pool: &'a Pool, name: &str) -> anyhow::Result<Namespace<'a>> {
    wait_offered(pool, GPU, 2, 2)?;
    wait_gpus(pool, 2)?;
    wait("nobody to hold a GPU", || Ok(held(pool, GPU)?.is_empty().then_some(())))?;
    pool.namespace(name)
}

/// A pod that holds one GPU with its container `main`.
struct Holder<'a> {
    pool: &'a Pool,
    namespace: &'a Namespace<'a>,
    name: &'a str,
    device: String,
}

impl<'a> Holder<'a> {
    fn start(pool: &'a Pool, namespace: &'a Namespace<'a>, name: &'a str) -> anyhow::Result<Self> {
        namespace.pod(name, &spec("Always", "", &container("main", FOREVER, "")))?;
        namespace.wait_ready(name)?;
        let device = printed(namespace, name, "main")?;
        let holder = Self { pool, namespace, name, device };
        holder.holds_it()?;
        Ok(holder)
    }

    /// That the kubelet counts the container's device, and no other, as its.
    fn holds_it(&self) -> anyhow::Result<()> {
        let expected = BTreeMap::from([("main".to_owned(), BTreeSet::from([self.device.clone()]))]);
        // A kubelet that has just started knows of no pods yet.
        let now = wait(&format!("the kubelet to say what pod {} holds", self.name), || {
            Ok(Some(holds(self.pool, self.namespace, self.name)?).filter(|held| !held.is_empty()))
        })?;
        ensure!(now == expected, "pod {} holds {now:?} instead of {expected:?}", self.name);
        Ok(())
    }

    /// Which container it is, by ID, and how often it was restarted.
    fn instance(&self) -> anyhow::Result<(String, u32)> {
        let field = |field: &str| {
            self.namespace.field("pod", self.name, &format!(".status.containerStatuses[0].{field}"))
        };
        let restarts = field("restartCount")?;
        Ok((field("containerID")?, restarts.parse().with_context(|| format!("{restarts:?} restarts"))?))
    }

    /// Lets the container end, and looks at the one that comes after it.
    fn restart(&self) -> anyhow::Result<()> {
        let (_, before) = self.instance()?;
        // What runs in it ends with it, and kubectl says so or doesn't.
        self.namespace.kubectl_output(&["exec", self.name, "--", "sh", "-c", "kill 1"])?;
        wait(&format!("the container of pod {} to be started again", self.name), || {
            Ok((self.instance()?.1 > before).then_some(()))
        })?;
        self.namespace.wait_ready(self.name)?;
        let device = printed(self.namespace, self.name, "main")?;
        ensure!(device == self.device, "{} came back with {device} instead of {}", self.name, self.device);
        self.holds_it()
    }

    /// Does something that is none of the container's business.
    fn unmoved(&self, disturb: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<()> {
        let before = self.instance()?;
        disturb()?;
        wait_gpus(self.pool, 2)?;
        self.holds_it()?;
        let after = self.instance()?;
        ensure!(after == before, "the container was touched: {before:?}, {after:?}");
        Ok(())
    }
}

fn through_restarts(pool: &Pool) -> anyhow::Result<()> {
    let namespace = begin(pool, "keeping")?;
    let steady = Holder::start(pool, &namespace, "steady")?;
    steady.restart().context("after the container's end")?;
    steady.unmoved(|| replace_agent(pool)).context("after the agent's")?;
    // From here on the kubelet knows of no earlier restart, after which it would wait.
    steady.unmoved(|| pool.cluster.restart(DEDICATED, "kubelet")).context("after the kubelet's")?;
    steady.restart().context("after the kubelet's and the container's")?;
    let both = || {
        pool.cluster.stop(DEDICATED, "kubelet")?;
        pool.on(DEDICATED, "kill -9 $(pidof spillway-agent)")?;
        pool.cluster.start(DEDICATED, "kubelet")
    };
    steady.unmoved(both).context("after the kubelet's and the agent's")?;
    steady.restart().context("after the end of all three")?;

    // Nobody else was given it meanwhile, and nobody is now.
    let other = Holder::start(pool, &namespace, "other")?;
    ensure!(other.device != steady.device, "two pods have {}", other.device);
    steady.holds_it()?;
    namespace.kubectl(&["delete", "pod", "--all"]).map(drop)
}

/// A node without an agent; it comes back when this goes.
struct WithoutAgent<'a>(&'a Pool);

impl<'a> WithoutAgent<'a> {
    fn on(pool: &'a Pool) -> anyhow::Result<Self> {
        let without = Self(pool);
        pool.cluster.kubectl(&["label", "node", DEDICATED, &format!("{SELECTED}-")])?;
        wait("the agent to be gone", || Ok(pool.on(DEDICATED, "! pidof spillway-agent").ok()))?;
        Ok(without)
    }
}

impl Drop for WithoutAgent<'_> {
    fn drop(&mut self) {
        let _ =
            self.0.cluster.kubectl(&["label", "--overwrite", "node", DEDICATED, &format!("{SELECTED}=true")]);
    }
}

/// Starts the kubelet, and waits until it has looked at all pods that there were before.
fn start_kubelet(pool: &Pool, namespace: &Namespace<'_>, marker: &str) -> anyhow::Result<()> {
    pool.cluster.start(DEDICATED, "kubelet")?;
    // It comes after them.
    let without_device = container("main", "", "").replace(&format!("{GPU}: 1"), "");
    namespace.pod(marker, &spec("Never", "", &without_device))?;
    namespace.wait_phase(marker, "Succeeded")
}

fn ended_unseen(pool: &Pool) -> anyhow::Result<()> {
    let namespace = begin(pool, "unseen")?;
    let steady = Holder::start(pool, &namespace, "steady")?;
    namespace.pod("done", &spec("Never", "", &container("main", "true", "")))?;
    namespace.wait_phase("done", "Succeeded")?;

    let before = steady.instance()?;
    let without = WithoutAgent::on(pool)?;
    // The kubelet's rule: what was there is counted for a while, and not given to anybody.
    wait_offered(pool, GPU, 0, 2)?;
    steady.holds_it()?;
    pool.cluster.stop(DEDICATED, "kubelet")?;
    start_kubelet(pool, &namespace, "first-look")?;
    wait_offered(pool, GPU, 0, 0).context("to a kubelet that has just started nothing was ever offered")?;
    let phase = namespace.field("pod", "done", ".status.phase")?;
    ensure!(phase == "Succeeded", "a pod that was done became {phase}");
    steady.holds_it()?;
    ensure!(steady.instance()? == before, "without an agent the container was touched");
    drop(without);
    wait_offered(pool, GPU, 2, 2)?;
    steady.holds_it()?;
    ensure!(steady.instance()? == before, "when the agent came back the container was touched");

    pool.cluster.stop(DEDICATED, "kubelet")?;
    namespace.kubectl(&["delete", "pod", "steady", "--force", "--grace-period=0"])?;
    start_kubelet(pool, &namespace, "second-look")?;
    wait_gpus(pool, 2)?;
    wait("the device of the pod that was deleted meanwhile to be free", || {
        Ok(holds(pool, &namespace, "steady")?.is_empty().then_some(()))
    })?;
    let (one, other) = (Holder::start(pool, &namespace, "one")?, Holder::start(pool, &namespace, "other")?);
    ensure!(one.device != other.device, "two pods have {}", one.device);
    namespace.kubectl(&["delete", "pod", "--all"]).map(drop)
}

fn init_containers(pool: &Pool) -> anyhow::Result<()> {
    let namespace = begin(pool, "init-containers")?;
    let main = container("main", FOREVER, "");
    let device = |name: &str, container: &str| printed(&namespace, name, container);
    let one_each = |containers: &[(&str, &str)]| -> BTreeMap<String, BTreeSet<String>> {
        let one =
            |(name, device): &(&str, &str)| ((*name).to_owned(), BTreeSet::from([(*device).to_owned()]));
        containers.iter().map(one).collect()
    };

    // A container that is done before the others start hands its device on.
    let first = format!("  initContainers:\n{}", container("first", "true", ""));
    namespace.pod("handing-on", &spec("Always", &first, &main))?;
    namespace.wait_ready("handing-on")?;
    let (given, taken) = (device("handing-on", "first")?, device("handing-on", "main")?);
    ensure!(given == taken, "the init container had {given}, the main one has {taken}");
    let held = holds(pool, &namespace, "handing-on")?;
    ensure!(held == one_each(&[("main", &taken)]), "the kubelet says {held:?}");
    // The other one is free.
    let other = Holder::start(pool, &namespace, "other")?;
    ensure!(other.device != taken, "two pods have {taken}");
    namespace.kubectl(&["delete", "pod", "--all"])?;

    // One that runs beside the others doesn't.
    let sidecar = container("beside", FOREVER, "    restartPolicy: Always\n");
    namespace.pod("with-sidecar", &spec("Always", &format!("{first}{sidecar}"), &main))?;
    namespace.wait_ready("with-sidecar")?;
    let [given, kept, own] = ["first", "beside", "main"].map(|container| device("with-sidecar", container));
    let (given, kept, own) = (given?, kept?, own?);
    ensure!(given == kept && kept != own, "init container, sidecar and main have {given}, {kept}, {own}");
    let held = holds(pool, &namespace, "with-sidecar")?;
    ensure!(held == one_each(&[("beside", &kept), ("main", &own)]), "the kubelet says {held:?}");
    namespace.kubectl(&["delete", "pod", "--all"]).map(drop)
}

fn health_in_status(pool: &Pool) -> anyhow::Result<()> {
    let gpus = GpuStandin::at(&pool.cluster.machine(DEDICATED)?.path("/opt/spillway-standin"));
    let namespace = begin(pool, "health-in-status")?;
    let steady = Holder::start(pool, &namespace, "steady")?;
    let minor = u32::from(steady.device != GpuStandin::uuid(0));
    let before = steady.instance()?;
    let says = |health: &str| {
        let expected = format!("{GPU} {} {health}", steady.device);
        let field = "{.name} {.resources[*].resourceID} {.resources[*].health}";
        let path = format!(
            "jsonpath={{range .status.containerStatuses[0].allocatedResourcesStatus[*]}}{field}{{end}}"
        );
        let mut last = String::new();
        wait(&format!("the pod's status to call its device {health}"), || {
            last = namespace.kubectl(&["get", "pod", "steady", "-o", &path])?;
            Ok((last == expected).then_some(()))
        })
        .with_context(|| format!("last: {last:?}"))
    };
    says("Healthy")?;
    gpus.set_lost(minor, true)?;
    let sick = says("Unhealthy");
    gpus.set_lost(minor, false)?;
    sick?;
    says("Healthy")?;
    ensure!(steady.instance()? == before, "the container was touched");
    wait_gpus(pool, 2)?;
    namespace.kubectl(&["delete", "pod", "steady"]).map(drop)
}
