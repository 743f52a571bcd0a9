//! The kubelet's topology manager, `single-numa-node`: a container's CPUs and its GPU are on one NUMA node. A machine that hasn't exactly
//! two nodes gets made-up ones, half of its CPUs on each; kubelet and CPU sets are real.

use std::collections::BTreeSet;

use anyhow::{Context as _, ensure};
use spillway_tests::standin::GpuStandin;

use crate::{
    Test,
    capacity_waits::{stranded, wants_two},
    harness::{DEDICATED, Namespace, Pool, replace_agent},
};

pub(crate) const TESTS: &[Test] =
    &[("topology::gpu_and_cpus_are_aligned_or_the_pod_is_refused", aligned_or_refused)];

/// Two nodes in place of the machine's own, unless it has two, with links to its CPUs as the kernel has them.
const TWO_NODES: &str = r#"
[ "$(cat /sys/devices/system/node/online)" != 0-1 ] || exit 0
base=/opt/spillway-numa
half=$(($(nproc --all) / 2))
memory=$(($(sed -n 's/^MemTotal: *\([0-9]*\) kB/\1/p' /proc/meminfo) / 2))
for node in 0 1; do
  mkdir -p $base/node$node/hugepages
  echo "Node $node MemTotal:       $memory kB" >$base/node$node/meminfo
done
echo 10 20 >$base/node0/distance
echo 20 10 >$base/node1/distance
for cpu in $(seq 0 $(($(nproc --all) - 1))); do
  node=$((cpu >= half))
  ln -sfn ../../cpu/cpu$cpu $base/node$node/cpu$cpu
done
seq -s, $half $(($(nproc --all) - 1)) >$base/node1/cpulist
for file in online possible has_cpu has_memory has_normal_memory; do echo 0-1 >$base/$file; done
mount --bind $base /sys/devices/system/node
"#;

/// The node with two NUMA nodes and the strictest policy; all is as it was when this is dropped.
struct Numa<'a>(&'a Pool);

const USUAL: (&str, &str) = ("none", "none");
const STRICT: (&str, &str) = ("static", "single-numa-node");

impl<'a> Numa<'a> {
    fn of(pool: &'a Pool) -> anyhow::Result<Self> {
        let numa = Self(pool);
        pool.cluster.stop(DEDICATED, "kubelet")?;
        pool.on(DEDICATED, TWO_NODES)?;
        numa.policies(USUAL, STRICT)?;
        numa.second_gpu_on(1)?;
        pool.cluster.start(DEDICATED, "kubelet")?;
        replace_agent(pool)?;
        Ok(numa)
    }

    /// Replaces the policies for CPUs and for topology, of a kubelet that doesn't run.
    fn policies(&self, from: (&str, &str), to: (&str, &str)) -> anyhow::Result<()> {
        let replace = |policy, from, to| format!("s/^{policy}: {from}$/{policy}: {to}/");
        let cpu = replace("cpuManagerPolicy", from.0, to.0);
        let topology = replace("topologyManagerPolicy", from.1, to.1);
        // A kubelet with another policy than the state's does not start.
        let script = format!(
            "sed -i '{cpu}; {topology}' /etc/kubernetes/kubelet.yaml; rm -f /var/lib/kubelet/cpu_manager_state"
        );
        self.0.on(DEDICATED, &script).map(drop)
    }

    /// An agent that starts afterwards sees it.
    fn second_gpu_on(&self, node: u32) -> anyhow::Result<()> {
        let base = self.0.cluster.machine(DEDICATED)?.path("/opt/spillway-standin");
        Ok(GpuStandin::at(&base).set_numa_node(1, node)?)
    }
}

impl Drop for Numa<'_> {
    fn drop(&mut self) {
        // Whichever of these fails, the others are due.
        let unmount = "[ ! -e /opt/spillway-numa ] || { umount -l /sys/devices/system/node; rm -r /opt/spillway-numa; }";
        let back = [
            self.0.cluster.stop(DEDICATED, "kubelet"),
            self.0.on(DEDICATED, unmount).map(drop),
            self.policies(STRICT, USUAL),
            self.second_gpu_on(0),
            self.0.cluster.start(DEDICATED, "kubelet"),
            replace_agent(self.0),
        ];
        for error in back.into_iter().filter_map(Result::err) {
            eprintln!("    setting the node's topology back: {error:#}");
        }
    }
}

/// A Guaranteed pod.
fn pod(namespace: &Namespace<'_>, name: &str, cpus: &str, gpus: u32) -> anyhow::Result<()> {
    namespace.pod(
        name,
        &format!(
            "  nodeName: {DEDICATED}
  restartPolicy: Never
  terminationGracePeriodSeconds: 0
  containers:
  - name: main
    image: spillway.test/busybox:dev
    imagePullPolicy: Never
    command: [sleep, '100000']
    resources: {{limits: {{cpu: {cpus}, memory: 32Mi, nvidia.com/gpu: {gpus}}}}}
"
        ),
    )
}

/// Reads the kernel's way to list CPUs, such as `0-3,8`.
fn cpus_of(list: &str) -> Option<BTreeSet<u32>> {
    let mut cpus = BTreeSet::new();
    for range in list.trim().split(',') {
        let (from, to) = range.split_once('-').unwrap_or((range, range));
        cpus.extend(from.parse::<u32>().ok()?..=to.parse().ok()?);
    }
    Some(cpus)
}

fn aligned_or_refused(pool: &Pool) -> anyhow::Result<()> {
    let cpus: usize = pool.on(DEDICATED, "nproc --all")?.trim().parse()?;
    ensure!(cpus >= 2, "a machine with one CPU has no second NUMA node");
    let second = GpuStandin::uuid(1);
    let namespace = pool.namespace("topology")?;
    let numa = Numa::of(pool)?;
    let list = pool.on(DEDICATED, "cat /sys/devices/system/node/node1/cpulist")?;
    // One CPU is the system's, on the first node: so many are free together on the second only.
    let on_second = cpus_of(&list).with_context(|| format!("{list:?} is no list of CPUs"))?;

    // First, while the kubelet that was just started has nothing given away: GPUs that are taken would look like GPUs apart. A part of a
    // CPU is on any node.
    pod(&namespace, "torn", "100m", 2)?;
    namespace.wait_phase("torn", "Failed")?;
    let reason = namespace.field("pod", "torn", ".status.reason")?;
    ensure!(reason == "TopologyAffinityError", "two GPUs of two nodes: {reason}");
    // A report reads the policy, and says what it makes of GPUs that nobody has.
    wants_two(&namespace)?;
    let why = stranded(pool, "numa", 2)?;
    let expected = "at most 1 of 2 free are on one NUMA node, and the machine's kubelet refuses pods that need several (its Topology Manager's policy is single-numa-node)";
    ensure!(why == expected, "{why}");
    namespace.kubectl(&["delete", "pod", "pair"])?;

    pod(&namespace, "aligned", &on_second.len().to_string(), 1)?;
    namespace.wait_phase("aligned", "Running")?;
    let gpu = namespace.exec("aligned", &["sh", "-c", "echo -n $NVIDIA_VISIBLE_DEVICES"])?;
    ensure!(gpu == second, "the only free CPUs are on the second node, the GPU is {gpu}");
    let allowed = namespace.exec("aligned", &["grep", "Cpus_allowed_list", "/proc/self/status"])?;
    let cpus = allowed.split_once(':').and_then(|(_, list)| cpus_of(list));
    ensure!(cpus.as_ref() == Some(&on_second), "the GPU is on the second node, of CPUs {list}; {allowed}");
    namespace.kubectl(&["delete", "pod", "aligned"])?;

    drop(numa);
    Ok(())
}
