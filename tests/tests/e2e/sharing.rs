//! How GPUs are offered and given, by configurations that are put in force while the agent runs: shared by several pods, and injected by
//! containerd from a CDI specification. The GPUs are stand-ins; kubelet, containerd and device cgroups are real.

use std::collections::BTreeSet;

use anyhow::{Context as _, ensure};
use spillway_tests::standin::GpuStandin;

use crate::{
    Test,
    harness::{self, DEDICATED, Pool, agents, metric, wait},
};

pub(crate) const TESTS: &[Test] = &[
    (
        "sharing::a_new_configuration_shares_gpus_without_a_restart",
        a_new_configuration_shares_gpus_without_a_restart,
    ),
    (
        "sharing::containerd_injects_what_the_specification_says",
        containerd_injects_what_the_specification_says,
    ),
];

/// The metric that says whether the configuration in force is the one that was written.
const CONFIG_VALID: &str = "spillway_config_valid ";
const SPECIFICATION: &str = "/var/run/cdi/k8s.device-plugin.nvidia.com-gpu.json";

/// Another configuration in the agent's `ConfigMap`; the one before when this goes, whatever happened.
struct Configured<'a> {
    pool: &'a Pool,
    before: String,
}

impl<'a> Configured<'a> {
    fn with(pool: &'a Pool, text: &str) -> anyhow::Result<Self> {
        let path = "jsonpath={.data.agent\\.yaml}";
        let before = ["-n", "spillway-system", "get", "configmap", "spillway-agent", "-o", path];
        let configured = Self { pool, before: pool.cluster.kubectl(&before)? };
        configured.set(text)?;
        Ok(configured)
    }

    fn set(&self, text: &str) -> anyhow::Result<()> {
        let patch = serde_json::json!({"data": {"agent.yaml": text}}).to_string();
        self.pool.cluster.kubectl(&[
            "-n",
            "spillway-system",
            "patch",
            "configmap",
            "spillway-agent",
            "-p",
            &patch,
        ])?;
        self.pool.cluster.hasten_configuration()
    }
}

impl Drop for Configured<'_> {
    fn drop(&mut self) {
        // To the letter: Helm takes a value that differs for somebody else's.
        let _ = self.set(&self.before);
    }
}

/// The agent's pod and how often it was restarted.
fn life(pool: &Pool) -> anyhow::Result<String> {
    agents(pool, "{.items[0].metadata.uid} {.items[0].status.containerStatuses[0].restartCount}")
}

fn allocatable(pool: &Pool, resource: &str) -> anyhow::Result<String> {
    let path = format!("jsonpath={{.status.allocatable.{}}}", resource.replace('.', "\\."));
    pool.cluster.kubectl(&["get", "node", DEDICATED, "-o", &path])
}

fn wait_allocatable(pool: &Pool, resource: &str, count: u32) -> anyhow::Result<()> {
    let mut last = String::new();
    wait(&format!("{count} {resource} to be allocatable"), || {
        last = allocatable(pool, resource)?;
        // A resource that is gone may stay listed as none.
        let fits = last == count.to_string() || (count == 0 && last.is_empty());
        Ok(fits.then_some(()))
    })
    .with_context(|| format!("last: {last:?}"))
}

fn a_new_configuration_shares_gpus_without_a_restart(pool: &Pool) -> anyhow::Result<()> {
    let shared = "nvidia.com/gpu.shared";
    wait_allocatable(pool, "nvidia.com/gpu", 2)?;
    let before = life(pool)?;
    let configured = Configured::with(
        pool,
        "version: v1\nsharing:\n  timeSlicing:\n    renameByDefault: true\n    failRequestsGreaterThanOne: true\n    resources:\n    - \
         name: nvidia.com/gpu\n      replicas: 3\n",
    )?;
    wait_allocatable(pool, shared, 6)?;
    wait_allocatable(pool, "nvidia.com/gpu", 0)?;

    // More pods than GPUs, each with one of them.
    let namespace = pool.namespace("sharing")?;
    let pods = ["one", "two", "three", "four", "five"];
    for pod in pods {
        namespace.holder(pod, shared, 1)?;
    }
    let mut seen = Vec::new();
    for pod in pods {
        namespace.wait_ready(pod)?;
        seen.push(namespace.exec(pod, &["sh", "-c", "echo -n $NVIDIA_VISIBLE_DEVICES"])?);
    }
    for minor in 0..2 {
        let holders = seen.iter().filter(|uuid| **uuid == GpuStandin::uuid(minor)).count();
        ensure!(
            (2..=3).contains(&holders),
            "GPU {minor} is not among those that the pods see as it should be: {seen:?}"
        );
    }
    // Two shares are no faster than one: refused, and the user is told why.
    namespace.kubectl(&["delete", "pod", "one", "two"])?;
    namespace.holder("greedy", shared, 2)?;
    namespace.wait_phase("greedy", "Failed")?;
    let message = namespace.field("pod", "greedy", ".status.message")?;
    ensure!(
        message.contains("maximum request size for shared resources is 1"),
        "the pod was told {message:?}"
    );

    // A configuration that is not sound changes nothing but what is said about it.
    configured.set("sharing: {timeSlicing: {resources: [{name: nvidia.com/gpu}]}}")?;
    wait("the mistake to be reported", || Ok((metric(pool, CONFIG_VALID)? == Some(0)).then_some(())))?;
    ensure!(allocatable(pool, shared)? == "6", "a mistake has changed what is offered");

    drop(configured);
    // Whoever still has a share keeps its GPU from those who want a whole one.
    let held: BTreeSet<_> = seen[2..].iter().collect();
    let free: BTreeSet<_> = (0..2).map(GpuStandin::uuid).filter(|uuid| !held.contains(uuid)).collect();
    wait("GPUs to be offered whole again, but for those of which shares are held", || {
        let mut offered = harness::allocatable(pool)?;
        let whole = offered.remove("nvidia.com/gpu").unwrap_or_default();
        Ok((!offered.contains_key(shared) && whole == free).then_some(()))
    })?;
    wait_allocatable(pool, shared, 0)?;
    ensure!(metric(pool, CONFIG_VALID)? == Some(1), "the usual configuration is not in force");
    let running = namespace.field("pod", "three", ".status.phase")?;
    ensure!(running == "Running", "a pod that holds a share is {running}");
    ensure!(life(pool)? == before, "the agent was restarted: {before:?}, {:?}", life(pool)?);
    namespace.kubectl(&["delete", "pod", "--all"])?;
    wait_allocatable(pool, "nvidia.com/gpu", 2)
}

fn containerd_injects_what_the_specification_says(pool: &Pool) -> anyhow::Result<()> {
    let usual = Configured::with(
        pool,
        "flags: {plugin: {deviceListStrategy: [cdi-cri, cdi-annotations]}}\ngpu: {recoverySeconds: 12}",
    )?;
    wait("the CDI specification", || {
        Ok(pool
            .on(DEDICATED, &format!("cat {SPECIFICATION} 2>/dev/null || true"))?
            .contains("cdiVersion")
            .then_some(()))
    })?;
    wait_allocatable(pool, "nvidia.com/gpu", 2)?;
    let namespace = pool.namespace("cdi")?;
    namespace.holder("injected", "nvidia.com/gpu", 1)?;
    namespace.wait_ready("injected")?;

    let nodes = namespace.exec("injected", &["sh", "-c", "cd /dev && ls -d nvidia?"])?;
    let minor: u32 =
        nodes.trim().trim_start_matches("nvidia").parse().with_context(|| format!("it has {nodes}"))?;
    // ENXIO: the container may open it, but there is no driver behind. EPERM: it may not.
    let open = |path: &str| -> anyhow::Result<String> {
        let tried =
            namespace.kubectl_output(&["exec", "injected", "--", "sh", "-c", &format!("exec 3<{path}")])?;
        Ok(String::from_utf8_lossy(&tried.stderr).into_owned())
    };
    let own = open(&format!("/dev/nvidia{minor}"))?;
    ensure!(own.contains("No such device or address"), "opening its own GPU: {own}");
    namespace.exec("injected", &["mknod", "/tmp/other", "c", "195", &(1 - minor).to_string()])?;
    let other = open("/tmp/other")?;
    ensure!(other.contains("Operation not permitted"), "opening the other's GPU: {other}");

    let inside = "cmp /usr/lib/x86_64-linux-gnu/libnvidia-ml.so.1 /usr/local/nvidia/lib64/libnvidia-ml.so.1 && echo -n \
                  $NVIDIA_VISIBLE_DEVICES && ! touch /usr/local/nvidia/lib64/libnvidia-ml.so.1 2>/dev/null";
    let visible = namespace.exec("injected", &["sh", "-c", inside]).context("the driver's library")?;
    ensure!(visible == "void", "NVIDIA_VISIBLE_DEVICES is {visible:?}");
    namespace.kubectl(&["delete", "pod", "injected"])?;

    drop(usual);
    wait("the CDI specification to be gone", || {
        Ok(pool.on(DEDICATED, &format!("ls {SPECIFICATION} 2>/dev/null || true"))?.is_empty().then_some(()))
    })
}
