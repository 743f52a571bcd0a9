//! A machine whose GPUs are stand-ins, and a device plugin that runs on it: NVIDIA's, or ours. Each plugin has a mount namespace and a
//! kubelet (a stand-in) of its own; what the driver, the kernel and the configuration say is the same.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use spillway_device_plugin::{
    config::{Config, Overrides},
    discovery::{Roots, nvml::NvmlBackend, supervise},
    inventory::Inventory,
};
use spillway_tests::{
    components, repository,
    standin::{self, GpuStandin, MigStandin},
};
use tokio::{
    process::{Child, Command},
    sync::watch,
};
use tokio_util::sync::CancellationToken;

use super::standin_kubelet::{Seen, StandinKubelet};

/// How long a plugin may take to say what is expected of it.
const LIMIT: Duration = Duration::from_secs(20);
/// Of the range for experiments.
const OTHERS_MAJOR: u32 = 240;
const LIBRARIES: &str = "driver/usr/lib/x86_64-linux-gnu";

/// The machine, below a folder of its own.
pub(super) struct Machine {
    base: tempfile::TempDir,
    pub(super) gpus: GpuStandin,
}

/// One of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Plugin {
    Nvidia,
    Ours,
}

/// A plugin that runs; it ends with the value.
pub(super) struct Side {
    pub(super) folder: PathBuf,
    pub(super) kubelet: StandinKubelet,
    process: Child,
    /// Of ours: the process that keeps MPS' daemons, where they are asked for. It ends with the value, they with the machine's folder.
    _keeper: Option<Child>,
}

impl Machine {
    /// With so many GPUs, and this configuration for both plugins.
    pub(super) fn new(gpus: u32, config: &str) -> anyhow::Result<Self> {
        let base = tempfile::tempdir()?;
        let binaries = spillway_tests::cluster::current_binaries()?;
        standin::install(base.path(), &binaries, gpus, 0)?;
        let machine = Self { gpus: GpuStandin::at(base.path()), base };
        machine.write("config.yaml", config)?;
        machine.write("sys/class/dmi/id/product_name", "Stand-in Machine 9000\n")?;
        for folder in ["sys/fs/cgroup", "proc/driver/nvidia-caps"] {
            fs::create_dir_all(machine.path(folder))?;
        }
        // The files that a driver has beside the library, each by its version and by the name that programs ask for.
        let version = fs::read_to_string(machine.gpus.driver_version())?;
        for name in ["libcuda.so", "libnvidia-ptxjitcompiler.so"] {
            machine.write(&format!("{LIBRARIES}/{name}.{version}"), "")?;
            symlink(format!("{name}.{version}"), machine.path(&format!("{LIBRARIES}/{name}.1")))?;
        }
        symlink("libnvidia-ml.so.1", machine.path(&format!("{LIBRARIES}/libnvidia-ml.so.{version}")))?;
        let mps = repository().join("tests/standin/mps/nvidia-cuda-mps-control");
        fs::create_dir_all(machine.path("driver/usr/bin"))?;
        fs::copy(mps, machine.path("driver/usr/bin/nvidia-cuda-mps-control"))?;
        Ok(machine)
    }

    fn path(&self, below: &str) -> PathBuf {
        self.base.path().join(below)
    }

    fn write(&self, below: &str, text: &str) -> anyhow::Result<()> {
        let path = self.path(below);
        fs::create_dir_all(path.parent().unwrap_or(&path))?;
        fs::write(&path, text).with_context(|| format!("can't write {}", path.display()))
    }

    /// Partitions GPUs: each entry is a GPU's minor number and what it is to have. Makes their device nodes, and others.
    pub(super) fn partition(
        &self,
        gpus: u32,
        layout: &[(u32, Vec<MigStandin>)],
        others: &[&str],
    ) -> anyhow::Result<()> {
        for (minor, migs) in layout {
            self.gpus.set_mig(*minor, migs)?;
        }
        self.list_nodes(gpus, layout, others)
    }

    /// The device nodes that there are, and the driver's list of what they stand for.
    fn list_nodes(
        &self,
        gpus: u32,
        layout: &[(u32, Vec<MigStandin>)],
        others: &[&str],
    ) -> anyhow::Result<()> {
        let mut nodes = standin::device_nodes(gpus, 0);
        let mut minors = String::from("config 1\nmonitor 2\n");
        for (minor, mig) in layout.iter().flat_map(|(minor, migs)| migs.iter().map(move |mig| (*minor, *mig)))
        {
            let [gi, ci] = mig.device_nodes(minor);
            let place = format!("gpu{minor}/gi{}", mig.gi);
            for line in
                [format!("{place}/access {}\n", gi.2), format!("{place}/ci{}/access {}\n", mig.ci, ci.2)]
            {
                if !minors.contains(&line) {
                    minors += &line;
                }
            }
            nodes.extend([gi, ci]);
        }
        // The kernel's numbers for what isn't there: nothing opens them.
        nodes.extend((0..).zip(others).map(|(minor, path)| ((*path).to_owned(), OTHERS_MAJOR, minor)));
        nodes.sort();
        nodes.dedup();
        let lines: Vec<_> =
            nodes.iter().map(|(path, major, minor)| format!("{path} {major} {minor}\n")).collect();
        self.write("nodes", &lines.concat())?;
        self.write("proc/driver/nvidia-caps/mig-minors", &minors)
    }

    /// A command that runs on this machine, in a mount namespace of its own.
    fn command(&self, side: &Path, program: &Path) -> Command {
        let mut command = Command::new("unshare");
        command
            .args(["--mount", "--propagation", "private", "sh"])
            .arg(repository().join("tests/cluster/peer.sh"))
            .args([self.base.path(), side, program])
            .env_clear()
            .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
            .stdin(Stdio::null())
            .kill_on_drop(true);
        command
    }

    /// Starts a plugin.
    pub(super) fn start(&self, plugin: Plugin) -> anyhow::Result<Side> {
        let folder = self.path(if plugin == Plugin::Nvidia { "nvidia" } else { "ours" });
        for below in ["plugins", "cdi", "mps"] {
            fs::create_dir_all(folder.join(below))?;
        }
        let kubelet = StandinKubelet::start(&folder.join("plugins"));
        let log = fs::File::create(folder.join("log"))?;
        let config = self.path("config.yaml");
        let keeper = match plugin {
            Plugin::Ours if fs::read_to_string(&config)?.contains("mps:") => Some(self.keeper(&folder)?),
            _ => None,
        };
        let mut command = match plugin {
            Plugin::Nvidia => {
                let mut command = self.command(&folder, &components::folder().join("nvidia-device-plugin"));
                // Its daemon is another program's business; this one only asks whether it is there.
                let bin = folder.join("bin");
                fs::create_dir_all(&bin)?;
                fs::write(bin.join("nvidia-cuda-mps-control"), "#!/bin/sh\ncat >/dev/null\necho 100.0\n")?;
                executable(&bin.join("nvidia-cuda-mps-control"))?;
                command.env("PATH", format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", bin.display()));
                // Go's gRPC sends a socket's path as the authority, which Rust's h2 (not a real kubelet) refuses if it has slashes.
                command.arg("--kubelet-socket=kubelet.sock").arg("--config-file").arg(config);
                command
            }
            Plugin::Ours => {
                let binaries = spillway_tests::cluster::current_binaries()?;
                let mut command = self.command(&folder, &binaries.join("spillway-agent"));
                command.args(["--isolation=off", "--admin-address=127.0.0.1:0", "--refresh-seconds=1"]);
                command.args(["--grace-seconds=1", "--log-level=info", "--config"]).arg(config);
                command.arg("--mps-dir").arg(folder.join("mps"));
                command
            }
        };
        command.args(["--nvidia-driver-root=/", "--container-driver-root"]).arg(self.path("driver"));
        let process = command
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("can't run unshare, which util-linux brings")?;
        Ok(Side { folder, kubelet, process, _keeper: keeper })
    }

    /// Starts the keeper of MPS' daemons, which is a pod of its own beside the agent's.
    fn keeper(&self, side: &Path) -> anyhow::Result<Child> {
        let log = fs::File::create(side.join("keeper-log"))?;
        self.command(side, &spillway_tests::cluster::current_binaries()?.join("spillway-agent"))
            .args(["--admin-address=off", "--container-driver-root"])
            .arg(self.path("driver"))
            .arg("--mps-dir")
            .arg(side.join("mps"))
            .arg("mps")
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("can't run unshare, which util-linux brings")
    }

    /// What NVIDIA's feature discovery says, or the end of its log where it fails.
    pub(super) async fn nvidias_labels(&self) -> anyhow::Result<Result<BTreeMap<String, String>, String>> {
        let folder = self.path("discovery");
        for below in ["plugins", "cdi"] {
            fs::create_dir_all(folder.join(below))?;
        }
        let output = self
            .command(&folder, &components::folder().join("gpu-feature-discovery"))
            .args(["--oneshot", "--no-timestamp", "--use-node-feature-api=false", "--output-file="])
            .arg("--config-file")
            .arg(self.path("config.yaml"))
            .env("LD_LIBRARY_PATH", self.path(LIBRARIES))
            .output()
            .await
            .context("can't run GPU feature discovery")?;
        let log = String::from_utf8_lossy(&output.stderr);
        fs::write(folder.join("log"), log.as_bytes())?;
        if !output.status.success() {
            let error = log.lines().rev().find(|line| line.starts_with('E'));
            let last = error.or(log.lines().last()).unwrap_or_default();
            return Ok(Err(last.split_once("] ").map_or(last, |(_, said)| said).to_owned()));
        }
        let text = String::from_utf8(output.stdout)?;
        let labels = text
            .lines()
            .filter_map(|line| line.split_once('='))
            .map(|(key, value)| (key.into(), value.into()));
        Ok(Ok(labels.collect()))
    }

    /// What our back end says with the same configuration; that it reaches the node is shown elsewhere.
    pub(super) async fn our_labels(&self) -> anyhow::Result<BTreeMap<String, String>> {
        let path = self.path("config.yaml");
        let config = Config::load("config.yaml", &fs::read(path)?, &Overrides::default())?.config;
        let dev = self.path("dev");
        for line in fs::read_to_string(self.path("nodes"))?.lines() {
            let node = line.split_whitespace().next().context("an empty line")?;
            let node = self.path(node.trim_start_matches('/'));
            fs::create_dir_all(node.parent().unwrap_or(&node))?;
            fs::write(node, "")?;
        }
        let roots = Roots { sys: self.path("sys"), dev, proc: self.path("proc") };
        let backend = NvmlBackend::new(self.path("driver"), roots, LIMIT, Arc::new(config));
        let inventory = watch::Sender::new(Inventory::starting(["nvml"]));
        let stop = CancellationToken::new();
        let mut seen = inventory.subscribe();
        let looking = async {
            let waited =
                tokio::time::timeout(LIMIT, seen.wait_for(|inventory| !inventory.labels().is_empty())).await;
            let labels = waited.context("our back end says no labels")??.labels();
            stop.cancel();
            anyhow::Ok(labels)
        };
        let (ended, labels) =
            tokio::join!(supervise(Box::new(backend), inventory.clone(), stop.clone()), looking);
        ended?;
        let mut labels = labels?;
        labels.remove("nvidia.com/gfd.timestamp");
        Ok(labels)
    }
}

impl Side {
    /// Waits until the plugin offers so many devices of each resource, well ones unless `sick` ones will do, or ends, which it must if
    /// it `ends`: true when it runs.
    pub(super) async fn settle(
        &mut self,
        expected: &[(&str, usize)],
        sick: bool,
        ends: bool,
    ) -> anyhow::Result<bool> {
        self.until(|seen| {
            !ends
                && expected.iter().all(|(resource, count)| {
                    let list = seen.devices(resource).unwrap_or_default();
                    list.iter().filter(|(_, health)| sick || *health == "Healthy").count() == *count
                })
        })
        .await
    }

    /// Waits for something that the kubelet is told; true when the plugin still runs. What never comes is not an error here: the
    /// comparison shows it.
    pub(super) async fn until(&mut self, condition: impl Fn(&Seen) -> bool) -> anyhow::Result<bool> {
        let begin = Instant::now();
        loop {
            if self.process.try_wait()?.is_some() {
                return Ok(false);
            }
            if condition(&self.kubelet.seen()) || begin.elapsed() > LIMIT {
                return Ok(true);
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Breaks something until it is noticed, or for as long as anything may take: a plugin that has just registered may not be listening
    /// for events yet.
    pub(super) async fn noticed(
        &mut self,
        breaks: impl Fn() -> std::io::Result<()>,
        noticed: impl Fn(&Seen, &str) -> bool,
    ) -> anyhow::Result<()> {
        let begin = Instant::now();
        while begin.elapsed() < LIMIT {
            breaks()?;
            for _ in 0..20 {
                if noticed(&self.kubelet.seen(), &self.log()) {
                    return Ok(());
                }
                tokio::time::sleep(Duration::from_millis(25)).await;
            }
        }
        Ok(())
    }

    /// What it wrote.
    pub(super) fn log(&self) -> String {
        fs::read_to_string(self.folder.join("log")).unwrap_or_default()
    }

    /// Ends it, and waits until it has.
    pub(super) async fn stop(mut self) -> anyhow::Result<()> {
        self.process.start_kill().context("can't end a plugin")?;
        self.process.wait().await.context("can't wait for a plugin")?;
        Ok(())
    }
}

fn executable(path: &Path) -> anyhow::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).context("can't make a script executable")
}

/// Fails early, and clearly, where the comparison can't work.
pub(super) fn require() -> anyhow::Result<()> {
    components::require_root()?;
    ensure!(
        Path::new("/proc/driver").is_dir(),
        "this kernel has no /proc/driver, over which the stand-in's is mounted"
    );
    for program in ["nvidia-device-plugin", "gpu-feature-discovery"] {
        if !components::folder().join(program).exists() {
            bail!("{program} was not built");
        }
    }
    Ok(())
}
