//! Doing faults, and undoing them.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::Context as _;
use nix::{sys::signal::Signal, sys::signal::kill, unistd::Pid};

use super::{
    history::{Happened, History, now},
    plan::{Deed, Fault, Random, Victim, fault},
};
use crate::cluster::{Cluster, control_plane, machine::ProcessId, registry};

/// Where faults are done.
pub struct Site {
    cluster: Cluster,
    node: String,
    /// The bridge's end of the virtual node's cable.
    port: String,
    history: Arc<History>,
    /// Who has a fault now.
    busy: HashMap<Victim, Mutex<()>>,
    /// Faults done so far.
    pub done: AtomicUsize,
}

const VICTIMS: [Victim; 7] = [
    Victim::VirtualNode,
    Victim::Runtime,
    Victim::ApiServer,
    Victim::Etcd,
    Victim::Cable,
    Victim::Container,
    Victim::Shim,
];

fn lock(mutex: &Mutex<()>) -> MutexGuard<'_, ()> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Site {
    /// The cluster and its virtual node.
    ///
    /// # Errors
    /// When the node's cable can't be told.
    pub fn new(cluster: &Cluster, node: &str, history: Arc<History>) -> anyhow::Result<Self> {
        // Machines have addresses by their number, and so have cables.
        let address = cluster.machine(node)?.shell("ip -4 -o addr show dev eth0")?;
        let number = address
            .split_whitespace()
            .find_map(|word| word.strip_prefix("10.201.0.")?.split('/').next()?.parse::<u32>().ok())
            .and_then(|last| last.checked_sub(11))
            .with_context(|| format!("no address of a machine: {address:?}"))?;
        Ok(Self {
            cluster: cluster.clone(),
            node: node.to_owned(),
            port: format!("port{number}"),
            history,
            busy: VICTIMS.map(|victim| (victim, Mutex::new(()))).into(),
            done: AtomicUsize::new(0),
        })
    }

    /// The machine and the name of a victim that is a component.
    fn component(&self, victim: Victim) -> Option<(&str, &'static str)> {
        match victim {
            Victim::VirtualNode => Some((&self.node, "spillway-vk")),
            Victim::Runtime => Some((&self.node, "containerd")),
            Victim::ApiServer => Some((control_plane::MACHINE, "kube-apiserver")),
            Victim::Etcd => Some((control_plane::MACHINE, "etcd")),
            Victim::Cable | Victim::Container | Victim::Shim => None,
        }
    }

    /// Does so many faults, each at its time, also overlapping; comes back when all are undone.
    pub fn storm(&self, random: &mut Random, count: usize) {
        let ended = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let supervisor = scope.spawn(|| self.supervise(&ended));
            let mut running = Vec::new();
            for _ in 0..count {
                let fault = fault(random);
                std::thread::sleep(Duration::from_millis(fault.after_ms));
                running.push(scope.spawn(move || {
                    if let Err(error) = self.happen(&fault) {
                        self.history
                            .wrong()
                            .push(format!("the test's own: {fault:?} could not be done: {error:#}"));
                    }
                }));
            }
            for thread in running {
                let _ = thread.join();
            }
            ended.store(true, Ordering::Relaxed);
            let _ = supervisor.join();
        });
    }

    fn happen(&self, fault: &Fault) -> anyhow::Result<()> {
        let _own = self.busy.get(&fault.victim).map(lock);
        let index = {
            let mut faults = self.history.faults();
            faults.push(Happened {
                what: format!("{:?} {:?} for {} ms", fault.deed, fault.victim, fault.lasts_ms),
                from: now(),
                to: f64::INFINITY,
                runtime: fault.victim == Victim::Runtime,
                pod: None,
            });
            faults.len() - 1
        };
        let done = self.act(fault);
        let mut faults = self.history.faults();
        faults[index].to = now();
        match &done {
            Ok(Some((uid, what))) => {
                faults[index].pod = Some(uid.clone());
                faults[index].what = format!("{:?} {:?} {what}", fault.deed, fault.victim);
            }
            Ok(None) if self.component(fault.victim).is_none() && fault.deed == Deed::Kill => {
                faults[index].what = format!("{:?} {:?}-missed", fault.deed, fault.victim);
            }
            _ => {}
        }
        self.done.fetch_add(1, Ordering::Relaxed);
        done.map(drop)
    }

    fn act(&self, fault: &Fault) -> anyhow::Result<Option<(String, String)>> {
        let wait = || std::thread::sleep(Duration::from_millis(fault.lasts_ms));
        match (self.component(fault.victim), fault.deed) {
            (Some((machine, name)), Deed::Pause) => {
                self.cluster.pause(machine, name)?;
                wait();
                self.cluster.resume(machine, name)?;
            }
            (Some((machine, name)), deed) => {
                let signal = if deed == Deed::Stop { Signal::SIGTERM } else { Signal::SIGKILL };
                let process = self.cluster.process(machine, name)?;
                if process.end(signal, Duration::from_secs(20)).is_err() {
                    self.history
                        .wrong()
                        .push(format!("{name} did not end within 20 s of {signal} at {:.2}", now()));
                    process.end(Signal::SIGKILL, Duration::from_mins(1))?;
                }
                wait();
                self.cluster.start(machine, name)?;
            }
            (None, Deed::Cut) => {
                let bridge = self.cluster.machine(control_plane::MACHINE)?;
                bridge.run("ip", &["link", "set", &self.port, "down"])?;
                wait();
                bridge.run("ip", &["link", "set", &self.port, "up"])?;
            }
            (None, _) => return self.kill_process(fault),
        }
        Ok(None)
    }

    /// Kills a container's or sandbox's first process, or the shim above it. Found in the cgroups, so that it works without the runtime.
    fn kill_process(&self, fault: &Fault) -> anyhow::Result<Option<(String, String)>> {
        for _ in 0..200 {
            let all = processes(&self.cluster.cgroup_root(&self.node));
            if let Ok(count) = u64::try_from(all.len())
                && count > 0
            {
                let (uid, id, mut pid) = all[usize::try_from(fault.draw % count)?].clone();
                if fault.victim == Victim::Shim {
                    let Some(shim) = shim_above(pid) else { continue };
                    pid = shim;
                }
                if kill(Pid::from_raw(pid), Signal::SIGKILL).is_ok() {
                    return Ok(Some((uid.clone(), format!("of pod {uid} ({id:.12})"))));
                }
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(None)
    }

    /// What ended by itself is started again, as a supervisor would; for some that is wrong.
    fn supervise(&self, ended: &AtomicBool) {
        while !ended.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(500));
            self.start_what_ended();
        }
    }

    /// Starts what nobody has stopped; that some of it ended by itself is told.
    pub fn start_what_ended(&self) {
        for process in self.cluster.processes() {
            let victim = VICTIMS.into_iter().find(|victim| {
                self.component(*victim) == Some((process.machine.as_str(), process.name.as_str()))
            });
            let guard = victim.and_then(|victim| self.busy.get(&victim)).map(Mutex::try_lock);
            let Ok(now_process) = self.cluster.process(&process.machine, &process.name) else { continue };
            if matches!(guard, Some(Err(_))) || now_process.running() {
                continue;
            }
            if matches!(victim, Some(Victim::VirtualNode | Victim::Runtime)) {
                let tail = now_process.log_tail(15);
                self.history.wrong().push(format!(
                    "{} ended by itself before {:.2}:\n{tail}",
                    process.name,
                    now()
                ));
            }
            let _ = self.cluster.start(&process.machine, &process.name);
        }
    }

    /// Everything runs again, and the API server answers.
    ///
    /// # Errors
    /// When it doesn't within five minutes.
    pub fn heal(&self) -> anyhow::Result<()> {
        crate::wait_for("the API server and the node to be ready again", Duration::from_mins(5), || {
            self.start_what_ended();
            self.cluster.kubectl(&["get", "--raw", "/readyz", "--request-timeout=5s"])?;
            let ready =
                ["get", "node", &self.node, "-o", "jsonpath={.status.conditions[?(@.type=='Ready')].status}"];
            Ok((self.cluster.kubectl(&ready)? == "True").then_some(()))
        })
    }
}

/// Pod UID, container ID and first process of everything in the machine's cgroups.
pub fn processes(cgroup_root: &str) -> Vec<(String, String, i32)> {
    let mut found = Vec::new();
    let Some(hierarchy) = registry::cgroup_hierarchies()
        .into_iter()
        .find(|path| path.join(cgroup_root.trim_start_matches('/')).is_dir())
    else {
        return found;
    };
    for pod in pod_cgroups(&hierarchy.join(cgroup_root.trim_start_matches('/'))) {
        let uid = uid_of(&pod).unwrap_or_default();
        for container in fs::read_dir(&pod).into_iter().flatten().flatten() {
            let id = container.file_name().to_string_lossy().into_owned();
            let text = fs::read_to_string(container.path().join("cgroup.procs")).unwrap_or_default();
            // The first process is the oldest.
            let pids = text.lines().filter_map(|line| line.parse().ok()).filter_map(ProcessId::of);
            if let Some(first) = pids.min_by_key(|process| process.start) {
                found.push((uid.clone(), id, first.pid));
            }
        }
    }
    found.sort();
    found
}

/// The cgroups of pods below a folder.
pub fn pod_cgroups(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        let path = entry.path();
        if uid_of(&path).is_some() {
            found.push(path);
        } else {
            found.extend(pod_cgroups(&path));
        }
    }
    found
}

/// The UID in the name of a pod's cgroup.
pub fn uid_of(cgroup: &Path) -> Option<String> {
    let uid = cgroup.file_name()?.to_str()?.strip_prefix("pod")?;
    (uid.len() == 36).then(|| uid.to_owned())
}

fn shim_above(pid: i32) -> Option<i32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let parent: i32 = status.lines().find_map(|line| line.strip_prefix("PPid:"))?.trim().parse().ok()?;
    let command = fs::read_to_string(format!("/proc/{parent}/comm")).ok()?;
    command.starts_with("containerd-shim").then_some(parent)
}
