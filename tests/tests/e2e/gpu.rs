//! NVIDIA GPUs on a dedicated node, as their admin changes them: MIG layouts, the driver, broken GPUs. What is offered is asked of the
//! kubelet itself, by its PodResources socket. The GPUs are stand-ins; kubelet, containers and device cgroups are real.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use spillway_tests::standin::{GpuStandin, MigStandin};

use crate::{
    Test,
    harness::{self, DEDICATED, Namespace, Offered, Pool, wait},
};

pub(crate) const TESTS: &[Test] = &[
    ("gpu::partitions_are_offered_by_profile_and_change_while_pods_run", mixed),
    ("gpu::equal_partitions_are_offered_as_gpus", single),
    ("gpu::driver_and_broken_gpus_reach_the_kubelet", driver_and_health),
];

const GPU: &str = "nvidia.com/gpu";

/// What the kubelet says of NVIDIA's.
fn allocatable(pool: &Pool) -> anyhow::Result<Offered> {
    let mut offered = harness::allocatable(pool)?;
    offered.retain(|resource, _| resource.starts_with("nvidia.com/"));
    Ok(offered)
}

/// Waits until the kubelet offers just this, and says how long it took.
fn wait_allocatable(pool: &Pool, what: &str, expected: &[(&str, Vec<String>)]) -> anyhow::Result<()> {
    let expected: Offered = expected
        .iter()
        .map(|(resource, ids)| ((*resource).to_owned(), ids.iter().cloned().collect()))
        .collect();
    let (begin, mut last) = (Instant::now(), None);
    wait(&format!("what the kubelet offers {what}"), || {
        let now = allocatable(pool)?;
        let fits = now == expected;
        last = Some(now);
        // The kubelet takes 100 questions a second from all who ask.
        std::thread::sleep(Duration::from_millis(20));
        Ok(fits.then_some(()))
    })
    .with_context(|| format!("expected {expected:?}; last: {last:?}"))?;
    eprintln!("    {what}: {:.2} s", begin.elapsed().as_secs_f64());
    Ok(())
}

/// The GPUs with MIG on, and the agent set for it; both are as they were when it is dropped.
struct Migs<'a> {
    pool: &'a Pool,
    gpus: GpuStandin,
}

impl<'a> Migs<'a> {
    fn with(pool: &'a Pool, strategy: &str) -> anyhow::Result<Self> {
        let base = pool.cluster.machine(DEDICATED)?.path("/opt/spillway-standin");
        let migs = Self { pool, gpus: GpuStandin::at(&base) };
        pool.cluster.install_chart(&[&format!("agent.config.flags.migStrategy={strategy}")])?;
        // The kubelet takes its time with a changed ConfigMap.
        wait(&format!("the node's label for MIG to be {strategy}"), || {
            let path = "jsonpath={.metadata.labels.nvidia\\.com/mig\\.strategy}";
            Ok((pool.cluster.kubectl(&["get", "node", DEDICATED, "-o", path])? == strategy).then_some(()))
        })?;
        Ok(migs)
    }

    /// Partitions a GPU, with the nodes that a driver would make.
    fn set(&self, minor: u32, migs: &[MigStandin]) -> anyhow::Result<()> {
        let make: Vec<_> = migs
            .iter()
            .flat_map(|mig| mig.device_nodes(minor))
            .map(|(path, major, cap)| format!("[ -e {path} ] || mknod -m 666 {path} c {major} {cap}"))
            .collect();
        self.pool.on(DEDICATED, &format!("mkdir -p /dev/nvidia-caps; {}", make.join("; ")))?;
        self.gpus.set_mig(minor, migs)?;
        Ok(())
    }
}

impl Drop for Migs<'_> {
    fn drop(&mut self) {
        for minor in 0..2 {
            let _ = self.gpus.disable_mig(minor);
        }
        let _ = self.pool.on(DEDICATED, "rm -rf /dev/nvidia-caps");
        if let Err(error) = self.pool.cluster.install_chart(&[]) {
            eprintln!("    the agent was not set back: {error:#}");
        }
    }
}

/// The pod has this MIG device of GPU 0 and can open what belongs to it, and nothing that belongs to `other`.
fn ensure_holds(
    namespace: &Namespace<'_>,
    pod: &str,
    own: MigStandin,
    other: MigStandin,
) -> anyhow::Result<()> {
    let visible = namespace.exec(pod, &["sh", "-c", "echo -n $NVIDIA_VISIBLE_DEVICES"])?;
    ensure!(visible == own.uuid(0), "{pod} sees {visible} instead of {}", own.uuid(0));
    let nodes = namespace
        .exec(pod, &["sh", "-c", "cd /dev && ls -d nvidia[0-9]* nvidia-caps/* 2>/dev/null; true"])?;
    let mut expected = own.device_nodes(0).map(|(path, ..)| path.replace("/dev/", "")).to_vec();
    expected.push("nvidia0".to_owned());
    let nodes: BTreeSet<_> = nodes.split_whitespace().map(str::to_owned).collect();
    ensure!(nodes == expected.iter().cloned().collect(), "{pod} has {nodes:?} instead of {expected:?}");
    // ENXIO: the container may open it, but there is no driver behind. EPERM: it may not.
    let open = |path: &str| -> anyhow::Result<String> {
        let output = namespace.kubectl_output(&["exec", pod, "--", "sh", "-c", &format!("exec 3<{path}")])?;
        Ok(String::from_utf8_lossy(&output.stderr).into_owned())
    };
    for (path, ..) in own.device_nodes(0) {
        let said = open(&path)?;
        ensure!(said.contains("No such device or address"), "{pod} opening its own {path}: {said}");
    }
    for (path, major, minor) in other.device_nodes(0) {
        let node = format!("/tmp/{minor}");
        namespace.exec(pod, &["mknod", &node, "c", &major.to_string(), &minor.to_string()])?;
        let said = open(&node)?;
        ensure!(said.contains("Operation not permitted"), "{pod} opening another's {path}: {said}");
    }
    Ok(())
}

fn ensure_untouched(namespace: &Namespace<'_>, pod: &str) -> anyhow::Result<()> {
    let phase = namespace.field("pod", pod, ".status.phase")?;
    let restarts = namespace.field("pod", pod, ".status.containerStatuses[0].restartCount")?;
    ensure!(
        (phase.as_str(), restarts.as_str()) == ("Running", "0"),
        "{pod} was touched: {phase}, {restarts}"
    );
    Ok(())
}

fn uuids(migs: &[MigStandin]) -> Vec<String> {
    migs.iter().map(|mig| mig.uuid(0)).collect()
}

fn mixed(pool: &Pool) -> anyhow::Result<()> {
    let small = [1, 2].map(|gi| MigStandin::new(gi, "1g.5gb"));
    let large = MigStandin::new(3, "3g.20gb");
    let migs = Migs::with(pool, "mixed")?;
    migs.set(0, &[small[0], small[1], large])?;
    let whole = vec![GpuStandin::uuid(1)];
    let offered = [
        (GPU, whole.clone()),
        ("nvidia.com/mig-1g.5gb", uuids(&small)),
        ("nvidia.com/mig-3g.20gb", uuids(&[large])),
    ];
    wait_allocatable(pool, "once GPU 0 is partitioned", &offered)?;
    let namespace = pool.namespace("mig-mixed")?;
    // By the scheduler's count, too: pods that are bound past it are refused by a kubelet whose node status is old.
    wait("the node to offer a partition", || {
        let path = "jsonpath={.status.allocatable.nvidia\\.com/mig-3g\\.20gb}";
        Ok((pool.cluster.kubectl(&["get", "node", DEDICATED, "-o", path])? == "1").then_some(()))
    })?;
    namespace.holder("large", "nvidia.com/mig-3g.20gb", 1)?;
    namespace.wait_ready("large")?;
    ensure_holds(&namespace, "large", large, small[0])?;

    // What nobody holds is partitioned anew.
    let middle = MigStandin::new(5, "2g.10gb");
    migs.set(0, &[large, middle])?;
    let offered = [
        (GPU, whole.clone()),
        ("nvidia.com/mig-2g.10gb", uuids(&[middle])),
        ("nvidia.com/mig-3g.20gb", uuids(&[large])),
    ];
    wait_allocatable(pool, "after another layout", &offered)?;
    ensure_untouched(&namespace, "large")?;
    ensure_holds(&namespace, "large", large, middle)?;

    // A partition's own trouble is its own, the GPU's is everybody's.
    migs.gpus.xid_of(0, middle, 94)?;
    let without_middle = [(GPU, whole.clone()), ("nvidia.com/mig-3g.20gb", uuids(&[large]))];
    wait_allocatable(pool, "after an XID of a partition", &without_middle)?;
    migs.gpus.xid(0, 79)?;
    wait_allocatable(pool, "after an XID of its GPU", &[(GPU, whole)])?;
    wait_allocatable(pool, "when it has recovered", &offered)?;
    ensure_untouched(&namespace, "large")?;

    namespace.kubectl(&["delete", "pod", "large"])?;
    migs.gpus.disable_mig(0)?;
    let both = (0..2).map(GpuStandin::uuid).collect();
    wait_allocatable(pool, "without MIG", &[(GPU, both)])
}

fn single(pool: &Pool) -> anyhow::Result<()> {
    let equal = [1, 2].map(|gi| MigStandin::new(gi, "3g.20gb"));
    let migs = Migs::with(pool, "single")?;
    migs.set(0, &equal)?;
    // GPU 1 is whole: nobody could tell what a pod gets.
    wait_allocatable(pool, "with one GPU partitioned", &[])?;
    migs.set(1, &equal[..1])?;
    let ids = [uuids(&equal), vec![equal[0].uuid(1)]].concat();
    wait_allocatable(pool, "with both GPUs partitioned", &[(GPU, ids)])?;

    migs.gpus.remove(1)?;
    wait_allocatable(pool, "after GPU 1 was taken out", &[(GPU, uuids(&equal))])?;
    let namespace = pool.namespace("mig-single")?;
    namespace.holder("holder", GPU, 1)?;
    namespace.wait_ready("holder")?;
    let visible = namespace.exec("holder", &["sh", "-c", "echo -n $NVIDIA_VISIBLE_DEVICES"])?;
    let (own, other) = if visible == equal[0].uuid(0) { (equal[0], equal[1]) } else { (equal[1], equal[0]) };
    ensure_holds(&namespace, "holder", own, other)?;
    namespace.kubectl(&["delete", "pod", "holder"])?;
    migs.gpus.add(1)?;
    Ok(())
}

fn driver_and_health(pool: &Pool) -> anyhow::Result<()> {
    let base = pool.cluster.machine(DEDICATED)?.path("/opt/spillway-standin");
    let gpus = GpuStandin::at(&base);
    let both: Vec<_> = (0..2).map(GpuStandin::uuid).collect();
    wait_allocatable(pool, "at first", &[(GPU, both.clone())])?;
    let namespace = pool.namespace("driver")?;
    namespace.holder("steady", GPU, 1)?;
    namespace.wait_ready("steady")?;

    for round in ["", " again"] {
        gpus.set_driver_loaded(false)?;
        wait_allocatable(pool, &format!("when the driver is unloaded{round}"), &[])?;
        gpus.set_driver_loaded(true)?;
        wait_allocatable(pool, &format!("when it is loaded{round}"), &[(GPU, both.clone())])?;
    }
    for (attribute, broken, sane) in [
        ("remapped-failure", "1", "0"),
        ("temperature", "95", "40"),
        ("clocks-event-reasons", "64", "0"),
        ("ecc-uncorrected", "1", "1"),
    ] {
        gpus.set(1, attribute, broken)?;
        wait_allocatable(pool, &format!("when {attribute} is {broken}"), &[(GPU, both[..1].to_vec())])?;
        gpus.set(1, attribute, sane)?;
        wait_allocatable(pool, &format!("when {attribute} is {sane}"), &[(GPU, both.clone())])?;
    }
    gpus.set_hanging(true)?;
    wait_allocatable(pool, "when the driver hangs", &[])?;
    gpus.set_hanging(false)?;
    wait_allocatable(pool, "when it doesn't any more", &[(GPU, both.clone())])?;
    gpus.xid(0, 48)?;
    wait_allocatable(pool, "after an XID", &[(GPU, both[1..].to_vec())])?;
    wait_allocatable(pool, "when it has recovered", &[(GPU, both)])?;
    ensure_untouched(&namespace, "steady")
}
