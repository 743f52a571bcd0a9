//! Another agent takes this one's place while GPUs are in use: whoever runs goes on, who shares by MPS, too, and nothing that was known is
//! forgotten. Helm, kubelet and containers are real; the GPUs and NVIDIA's MPS daemon are stand-ins.

use anyhow::{Context as _, ensure};
use spillway_tests::{repository, standin::GpuStandin};

use crate::{
    Test,
    harness::{DEDICATED, Namespace, Pool, agent_log, agents, replace_agent, wait, wait_gpus},
};

pub(crate) const TESTS: &[Test] = &[
    ("upgrade::pods_that_share_by_mps_outlive_an_upgrade", pods_that_share_by_mps_outlive_an_upgrade),
    ("upgrade::a_sick_gpu_is_sick_to_the_next_agent", a_sick_gpu_is_sick_to_the_next_agent),
];

const GPU: &str = "nvidia.com/gpu";
const DRIVER: &str = "/opt/spillway-standin/driver";

/// The agent's pod.
fn agent(pool: &Pool) -> anyhow::Result<String> {
    agents(pool, "{.items[0].metadata.uid}")
}

/// Each GPU shared by two pods, by MPS; as before when this is dropped.
struct ByMps<'a>(&'a Pool);

impl<'a> ByMps<'a> {
    fn on(pool: &'a Pool) -> anyhow::Result<Self> {
        let by_mps = Self(pool);
        // The driver's folder of programs: the daemon, and what the stand-in needs to be a script, which the agent's image has none of.
        let standin = repository().join("tests/standin/mps/nvidia-cuda-mps-control");
        let script = std::fs::read_to_string(&standin)
            .with_context(|| standin.display().to_string())?
            .replace("#!/bin/sh", "#!/host/driver/usr/bin/sh");
        let base = pool.cluster.machine(DEDICATED)?.path(DRIVER).join("usr/bin");
        std::fs::create_dir_all(&base)?;
        std::fs::write(base.join("nvidia-cuda-mps-control"), script)?;
        let programs =
            "chmod 755 nvidia-cuda-mps-control; for name in sh rm sleep; do cp /bin/busybox $name; done";
        // The keeper sees the driver's folder read-only. What it sets a GPU's mode to goes where it may write, and where it can be seen.
        let modes = "n=0; for mode in $(find /opt/spillway-standin -name compute-mode | sort); do ln -sfn /mps/mode-$n $mode; n=$((n + 1)); done";
        pool.on(DEDICATED, &format!("cd {DRIVER}/usr/bin; {programs}; {modes}"))?;
        by_mps.install(&[])?;
        wait_gpus(pool, 4).with_context(|| {
            let log = ["logs", "-l", "app.kubernetes.io/component=mps", "--tail=20"];
            pool.cluster.kubectl(&[&["-n", "spillway-system"], &log[..]].concat()).unwrap_or_default()
        })?;
        Ok(by_mps)
    }

    fn install(&self, more: &[&str]) -> anyhow::Result<()> {
        let shares = "agent.config.sharing.mps.resources[0]";
        let [name, replicas] = [format!("{shares}.name={GPU}"), format!("{shares}.replicas=2")];
        self.0.cluster.install_chart(&[&[name.as_str(), replicas.as_str()], more].concat())
    }

    /// The daemon's process, and when it began.
    fn daemon(&self) -> anyhow::Result<String> {
        let find = "for process in /proc/[0-9]*; do tr '\\0' ' ' <$process/cmdline 2>/dev/null | grep -q '[m]ps-control -f' && \
                    cut -d ' ' -f 1,22 $process/stat; done; true";
        let found = self.0.on(DEDICATED, find)?;
        ensure!(found.lines().count() == 1, "there is not one MPS daemon, but {found:?}");
        Ok(found)
    }
}

impl Drop for ByMps<'_> {
    fn drop(&mut self) {
        let back = self.0.cluster.install_chart(&[]).and_then(|()| wait_gpus(self.0, 2));
        // It sets the GPUs' modes back as it ends.
        let gone = wait("the MPS daemon's pod to be gone", || {
            let keepers = ["get", "pods", "-l", "app.kubernetes.io/component=mps", "-o", "name"];
            let left = self.0.cluster.kubectl(&[&["-n", "spillway-system"], &keepers[..]].concat())?;
            Ok(left.is_empty().then_some(()))
        });
        let modes =
            "for mode in $(find /opt/spillway-standin -name compute-mode); do rm $mode; echo 0 >$mode; done";
        let programs = self.0.on(DEDICATED, &format!("rm -r {DRIVER}/usr/bin; {modes}"));
        for error in [back, gone, programs.map(drop)].into_iter().filter_map(Result::err) {
            eprintln!("    sharing by MPS was not set back: {error:#}");
        }
    }
}

/// What must not change while a pod runs: itself, its container, its GPU, and that it can open it and reach MPS' daemon.
fn state(namespace: &Namespace<'_>, pod: &str) -> anyhow::Result<String> {
    let path = "{.metadata.uid} {.status.phase} {.status.containerStatuses[0].containerID} {.metadata.deletionTimestamp}";
    let status = namespace.kubectl(&["get", "pod", pod, "-o", &format!("jsonpath={path}")])?;
    let seen = namespace.exec(
        pod,
        &[
            "sh",
            "-c",
            "echo $NVIDIA_VISIBLE_DEVICES; test -e $CUDA_MPS_PIPE_DIRECTORY/control && echo reaches the daemon; \
             for node in /dev/nvidia[0-9]; do (: <$node) 2>&1; done; true",
        ],
    )?;
    let sound = seen.contains("reaches the daemon") && seen.contains("No such device or address");
    ensure!(sound, "{pod} can't use what it holds: {seen}");
    Ok(format!("{status} {seen}"))
}

fn pods_that_share_by_mps_outlive_an_upgrade(pool: &Pool) -> anyhow::Result<()> {
    wait_gpus(pool, 2)?;
    let namespace = pool.namespace("upgrade")?;
    let by_mps = ByMps::on(pool)?;
    let pods = ["first", "second", "third"];
    for pod in pods {
        namespace.holder(pod, GPU, 1)?;
    }
    let states =
        || -> anyhow::Result<Vec<String>> { pods.into_iter().map(|pod| state(&namespace, pod)).collect() };
    for pod in pods {
        namespace.wait_ready(pod)?;
    }
    // NVML_COMPUTEMODE_EXCLUSIVE_PROCESS
    ensure!(modes(pool)? == "33", "the GPUs' modes are {}", modes(pool)?);
    let (before, daemon, old) = (states()?, by_mps.daemon()?, agent(pool)?);

    by_mps.install(&["agent.podAnnotations.upgrade=another"])?;
    ensure!(agent(pool)? != old, "no new agent came");
    wait_gpus(pool, 4)?;
    let after = states()?;
    ensure!(after == before, "running pods were touched: {before:?} became {after:?}");
    ensure!(by_mps.daemon()? == daemon, "the MPS daemon was started anew");

    // The new agent gives what is left, and nothing more.
    namespace.holder("last", GPU, 1)?;
    namespace.wait_ready("last")?;
    state(&namespace, "last")?;
    namespace.holder("one-too-many", GPU, 1)?;
    namespace.wait_phase("one-too-many", "Failed")?;
    namespace.kubectl(&["delete", "pod", "--all"])?;
    drop(by_mps);
    ensure!(modes(pool)? == "00", "the GPUs are left in modes {}", modes(pool)?);
    pool.on(DEDICATED, "rm -r /run/nvidia/mps").map(drop)
}

/// What the keeper last set the GPUs' compute modes to.
fn modes(pool: &Pool) -> anyhow::Result<String> {
    pool.on(DEDICATED, "echo -n $(cat /run/nvidia/mps/mode-*)")
}

fn a_sick_gpu_is_sick_to_the_next_agent(pool: &Pool) -> anyhow::Result<()> {
    wait_gpus(pool, 2)?;
    let gpus = GpuStandin::at(&pool.cluster.machine(DEDICATED)?.path("/opt/spillway-standin"));
    gpus.xid(1, 79)?;
    wait_gpus(pool, 1)?;
    pool.on(DEDICATED, "kill -9 $(pidof spillway-agent)")?;
    // Only the last one saw the XID. How this one found the GPU is in its log, however soon it recovers.
    wait("the next agent to find the GPU as it was", || {
        // Between the two there is none.
        let Ok(log) = agent_log(pool) else { return Ok(None) };
        let mut found =
            log.lines().filter(|line| line.contains("\"device found") && line.contains(&GpuStandin::uuid(1)));
        let Some(line) = found.next() else { return Ok(None) };
        if line.contains("device found, but Unhealthy") && line.contains("XID 79") {
            return Ok(Some(()));
        }
        // The log of the one that was killed, perhaps.
        ensure!(!log.contains("the last agent left"), "it was found otherwise: {line}");
        Ok(None)
    })?;
    wait_gpus(pool, 2).context("it did not recover")?;
    wait("nothing to be kept any more", || {
        pool.on(DEDICATED, "test ! -e /var/lib/kubelet/device-plugins/spillway").map(Some)
    })?;
    replace_agent(pool)
}
