//! What the virtual node's machine has, looked for where it would be: in the runtime, in folders, in mounts, in cgroups. And what is there
//! of somebody else, which has to stay as it is.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, ensure};
use spillway_proto::cri::{
    ContainerState, LinuxPodSandboxConfig, ListPodSandboxRequest, PodSandboxConfig, PodSandboxFilter,
    PodSandboxMetadata, PodSandboxState, RemovePodSandboxRequest, RunPodSandboxRequest,
    StopPodSandboxRequest,
};

use super::faults::{pod_cgroups, uid_of};
use crate::{
    bench::cri_loop,
    cluster::{Cluster, machine::Machine, registry},
    image::BUSYBOX,
};

/// The label by which the virtual node knows its own.
const MARK: &str = "spillway.dev/node";
const UID: &str = "io.kubernetes.pod.uid";
const NAME: &str = "io.kubernetes.container.name";
/// Name of what is somebody else's.
const FOREIGN: &str = "chaos-foreign";

/// What the machine has.
#[derive(Debug, Default)]
pub struct Remains {
    /// Running containers: pod UID, container and ID.
    pub running: BTreeSet<(String, String, String)>,
    /// By pod UID, everything that is there of it.
    pub by_pod: BTreeMap<String, BTreeSet<String>>,
    /// What no pod can be told of.
    pub stray: BTreeSet<String>,
}

/// Looks.
///
/// # Errors
/// When the runtime doesn't answer, or something can't be read.
pub async fn look(cluster: &Cluster, node: &str) -> anyhow::Result<Remains> {
    let machine = cluster.machine(node)?;
    let mut remains = Remains::default();
    let ids = in_runtime(&machine, node, &mut remains).await?;
    beside_the_cri(&machine, &ids, &mut remains)?;
    let mut found = |uid: &str, what: String| {
        if uid.len() == 36 {
            remains.by_pod.entry(uid.to_owned()).or_default().insert(what);
        }
    };
    for folder in ["/var/log/pods", "/var/lib/spillway-vk/pods"] {
        for name in names(&machine.path(folder))? {
            found(name.rsplit('_').next().unwrap_or_default(), format!("{folder}/{name}"));
        }
    }
    let links = "/var/log/containers";
    for name in names(&machine.path(links))? {
        let log = fs::read_link(machine.path(links).join(&name)).unwrap_or_default();
        let folder = log.components().nth(4).map(|part| part.as_os_str().to_string_lossy().into_owned());
        let uid = folder.as_deref().and_then(|folder| folder.rsplit('_').next()).unwrap_or_default();
        found(uid, format!("{links}/{name}"));
    }
    let mounts = fs::read_to_string(format!("/proc/{}/mountinfo", machine.first.pid))?;
    for mount in mounts.lines().filter_map(|line| line.split(' ').nth(4)) {
        if let Some((_, rest)) = mount.split_once("/pods/") {
            found(rest.split('/').next().unwrap_or_default(), format!("mount {mount}"));
        }
    }
    let root = cluster.cgroup_root(node);
    for hierarchy in registry::cgroup_hierarchies() {
        for cgroup in pod_cgroups(&hierarchy.join(root.trim_start_matches('/'))) {
            found(&uid_of(&cgroup).unwrap_or_default(), format!("cgroup {}", cgroup.display()));
        }
    }
    Ok(remains)
}

/// Containers and sandboxes by the CRI; all of their IDs, also others'.
async fn in_runtime(
    machine: &Machine,
    node: &str,
    remains: &mut Remains,
) -> anyhow::Result<BTreeSet<String>> {
    let mut client = cri_loop::connect(machine).await?;
    let mut ids = BTreeSet::new();
    let (sandboxes, containers) = cri_loop::listed(&mut client).await?;
    for sandbox in sandboxes {
        ids.insert(sandbox.id.clone());
        if sandbox.labels.get(MARK).is_some_and(|of| of == node) {
            let uid = sandbox.labels.get(UID).cloned().unwrap_or_default();
            let ready = if sandbox.state() == PodSandboxState::SandboxReady { "ready" } else { "dead" };
            remains.by_pod.entry(uid).or_default().insert(format!("{ready} sandbox {}", sandbox.id));
        }
    }
    for container in containers {
        ids.insert(container.id.clone());
        if container.labels.get(MARK).is_some_and(|of| of == node) {
            let of = |label: &str| container.labels.get(label).cloned().unwrap_or_default();
            let known = format!("container {} {}", of(NAME), container.id);
            remains.by_pod.entry(of(UID)).or_default().insert(known);
            if container.state() == ContainerState::ContainerRunning {
                remains.running.insert((of(UID), of(NAME), container.id));
            }
        }
    }
    Ok(ids)
}

/// What containerd has that its CRI doesn't show, and what CNI holds for sandboxes that are no more.
fn beside_the_cri(machine: &Machine, ids: &BTreeSet<String>, remains: &mut Remains) -> anyhow::Result<()> {
    let ctr = |arguments: &[&str]| machine.run("ctr", &[&["-n", "k8s.io"], arguments].concat());
    let listed = [("container", "containers"), ("task", "tasks")];
    for (what, list) in listed {
        for id in ctr(&[list, "ls", "-q"])?.lines().filter(|id| *id != FOREIGN && !ids.contains(*id)) {
            remains.stray.insert(format!("{what} {id} that the CRI doesn't have"));
        }
    }
    let addresses = machine.path("/var/lib/cni/networks/spillway");
    for name in names(&addresses)?.iter().filter(|name| name.parse::<std::net::IpAddr>().is_ok()) {
        let holder = fs::read_to_string(addresses.join(name)).unwrap_or_default();
        let holder = holder.lines().next().unwrap_or_default().trim();
        if !ids.contains(holder) {
            remains.stray.insert(format!("address {name} of sandbox {holder:.12}, which is no more"));
        }
    }
    Ok(())
}

fn names(folder: &Path) -> anyhow::Result<Vec<String>> {
    match fs::read_dir(folder) {
        Ok(entries) => {
            Ok(entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect())
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error).with_context(|| format!("can't list {}", folder.display())),
    }
}

/// A container and a sandbox of others on the same runtime.
#[derive(Debug)]
pub struct Foreign {
    machine: Machine,
    /// Of the runtime.
    log: PathBuf,
    task: String,
    sandbox: String,
}

impl Foreign {
    /// Starts them.
    ///
    /// # Errors
    /// When the runtime refuses.
    pub async fn start(cluster: &Cluster, node: &str) -> anyhow::Result<Self> {
        let machine = cluster.machine(node)?;
        let cgroup = format!("{}/{FOREIGN}", cluster.cgroup_root(node));
        let run = [
            "-n",
            "k8s.io",
            "run",
            "-d",
            "--null-io",
            "--cgroup",
            &cgroup,
            BUSYBOX,
            FOREIGN,
            "sleep",
            "100000",
        ];
        machine.run("ctr", &run)?;
        let mut client = cri_loop::connect(&machine).await?;
        let config = PodSandboxConfig {
            metadata: Some(PodSandboxMetadata {
                name: FOREIGN.to_owned(),
                uid: FOREIGN.to_owned(),
                namespace: FOREIGN.to_owned(),
                attempt: 0,
            }),
            hostname: FOREIGN.to_owned(),
            linux: Some(LinuxPodSandboxConfig { cgroup_parent: cgroup, ..Default::default() }),
            ..Default::default()
        };
        let request = RunPodSandboxRequest { config: Some(config), runtime_handler: String::new() };
        let sandbox = client
            .run_pod_sandbox(request)
            .await
            .context("RunPodSandbox failed")?
            .into_inner()
            .pod_sandbox_id;
        let log = cluster.process(node, "containerd")?.log;
        Ok(Self { task: task(&machine)?, machine, log, sandbox })
    }

    /// Both are as they were.
    ///
    /// # Errors
    /// When one is not, or the runtime doesn't answer.
    pub async fn check(&self) -> anyhow::Result<()> {
        let task = task(&self.machine)?;
        ensure!(
            task == self.task || self.lost(FOREIGN),
            "somebody else's container was {:?} and is {task:?}",
            self.task
        );
        let mut client = cri_loop::connect(&self.machine).await?;
        let filter = PodSandboxFilter { id: self.sandbox.clone(), ..Default::default() };
        let listed =
            client.list_pod_sandbox(ListPodSandboxRequest { filter: Some(filter) }).await?.into_inner().items;
        let ready = listed.iter().any(|sandbox| sandbox.state() == PodSandboxState::SandboxReady);
        ensure!(
            ready || self.lost(&self.sandbox),
            "somebody else's sandbox is not ready any more: {listed:?}"
        );
        Ok(())
    }

    /// Whether the runtime itself lost it: containerd that is stopped while it looks for its shims takes one that answers for dead and ends
    /// it. What is ended by a caller shows as a call.
    fn lost(&self, id: &str) -> bool {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let own = || log.lines().filter(|line| line.contains(id));
        own().any(|line| line.contains("cleaning up dead shim"))
            && !own()
                .any(|line| ["StopPodSandbox", "RemovePodSandbox"].iter().any(|call| line.contains(call)))
    }

    /// Ends them.
    ///
    /// # Errors
    /// When the runtime refuses.
    pub async fn end(&self) -> anyhow::Result<()> {
        self.machine.shell(&format!(
            "ctr -n k8s.io tasks kill -s KILL {FOREIGN} || true; ctr -n k8s.io tasks delete -f {FOREIGN} || true; \
             ctr -n k8s.io containers delete {FOREIGN}"
        ))?;
        let mut client = cri_loop::connect(&self.machine).await?;
        client.stop_pod_sandbox(StopPodSandboxRequest { pod_sandbox_id: self.sandbox.clone() }).await?;
        client.remove_pod_sandbox(RemovePodSandboxRequest { pod_sandbox_id: self.sandbox.clone() }).await?;
        Ok(())
    }
}

/// The foreign container's line in the runtime's list: its process and its state.
fn task(machine: &Machine) -> anyhow::Result<String> {
    let tasks = machine.run("ctr", &["-n", "k8s.io", "tasks", "ls"])?;
    let own =
        tasks.lines().find(|line| line.starts_with(FOREIGN)).context("somebody else's container is gone")?;
    Ok(own.split_whitespace().collect::<Vec<_>>().join(" "))
}
