//! One simulated machine: PID, mount, network, UTS and IPC namespaces held by one first process. Killing that process ends every
//! process in it, and with the last one go its mounts and network devices: nothing of a machine is left on the host but cgroups.

use std::{
    ffi::OsStr,
    fs::{self, File},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::Duration,
};

use anyhow::{Context as _, bail};
use nix::{
    sched::{CloneFlags, setns},
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde::{Deserialize, Serialize};

const SCRIPT: &str = include_str!("../../cluster/machine.sh");

/// A process as its ID and its start time, so that a reused ID is never mistaken for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessId {
    /// The process ID in the host's namespace.
    pub pid: i32,
    /// Clock ticks after boot, field 22 of `/proc/PID/stat`.
    pub start: u64,
}

impl ProcessId {
    /// The process that has this ID now, unless it is a zombie.
    pub fn of(pid: i32) -> Option<Self> {
        let (id, state) = Self::read(pid)?;
        (state != "Z" && state != "X").then_some(id)
    }

    fn read(pid: i32) -> Option<(Self, String)> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The command's name may hold spaces and parentheses: count fields behind the last one.
        let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
        let state = fields.next()?.to_owned();
        let began = fields.nth(18)?.parse().ok()?;
        Some((Self { pid, start: began }, state))
    }

    /// Whether nothing is left of it. A zombie's other threads may still hold its sockets: only what was reaped is gone.
    pub fn gone(self) -> bool {
        Self::read(self.pid).is_none_or(|(id, _)| id != self)
    }

    /// Whether it still runs (a zombie doesn't).
    pub fn alive(self) -> bool {
        Self::of(self.pid) == Some(self)
    }

    /// Sends a signal if it still is the same process. Tells whether it was.
    pub fn signal(self, signal: Signal) -> bool {
        self.alive() && kill(Pid::from_raw(self.pid), signal).is_ok()
    }
}

/// A running machine.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Machine {
    /// Its hostname, and the name of its folder.
    pub name: String,
    /// What it keeps on the host's disk; its root file system is `root/` below.
    pub folder: PathBuf,
    /// Process 1 of its PID namespace.
    pub first: ProcessId,
}

impl Machine {
    /// Starts a machine whose files lie in `folder`. `components` and `binaries` appear in it as `/opt/spillway/{bin,build}`, `shared` as
    /// `/srv/shared`.
    ///
    /// # Errors
    /// When the namespaces or mounts can't be made; holds what the script printed.
    pub fn start(
        name: &str,
        folder: &Path,
        components: &Path,
        binaries: &Path,
        shared: &Path,
        log: &Path,
    ) -> anyhow::Result<Self> {
        fs::create_dir_all(folder).with_context(|| format!("can't create {}", folder.display()))?;
        let script = folder.join("machine.sh");
        fs::write(&script, SCRIPT).with_context(|| format!("can't write {}", script.display()))?;
        let output = File::create(log).with_context(|| format!("can't create {}", log.display()))?;
        let mut unshare = Command::new("unshare")
            .args(["--mount", "--propagation", "private", "--pid", "--fork", "--uts", "--ipc", "--net", "--"])
            .arg("/bin/sh")
            .arg(&script)
            .arg(name)
            .args([folder, components, binaries, shared])
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            // Ctrl-C on the terminal is for us: the machine ends when the cluster does.
            .process_group(0)
            .spawn()
            .context("can't run unshare")?;

        let parent = unshare.id();
        let first = crate::wait_for(&format!("machine {name} to start"), Duration::from_mins(1), || {
            if let Some(status) = unshare.try_wait()? {
                let printed = fs::read_to_string(log).unwrap_or_default();
                return Err(crate::Fatal(format!("it ended with {status}: {printed}")).into());
            }
            let children = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children"))?;
            let Some(first) =
                children.split_whitespace().next().and_then(|pid| ProcessId::of(pid.parse().ok()?))
            else {
                return Ok(None);
            };
            let ready = format!("/proc/{}/root/run/machine-ready", first.pid);
            // Before its pivot the first process still sees the host's /run, where this file is not.
            Ok(Path::new(&ready).exists().then_some(first))
        })?;
        // `unshare --fork` only waits for its child; when that ends, it does.
        std::thread::spawn(move || unshare.wait());
        Ok(Self { name: name.to_owned(), folder: folder.to_owned(), first })
    }

    /// A path of the machine as the host sees it.
    pub fn path(&self, inside: &str) -> PathBuf {
        self.folder.join("root").join(inside.trim_start_matches('/'))
    }

    /// A path in one of the machine's own mounts (`/run`, `/dev`, `/tmp`), as the host reaches it while the machine runs.
    pub fn live_path(&self, inside: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{inside}", self.first.pid))
    }

    /// Prepares a command to run inside; give it to [`Machine::spawn`].
    pub fn command(program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        command
            .env_clear()
            .env("PATH", "/opt/spillway/bin:/usr/sbin:/usr/bin:/sbin:/bin")
            .env("HOME", "/root");
        command
    }

    /// Starts a command inside the machine, in a session of its own.
    ///
    /// # Errors
    /// When the machine is gone or the program can't be started.
    pub fn spawn(&self, mut command: Command) -> anyhow::Result<Child> {
        if !self.first.alive() {
            bail!("machine {} has ended", self.name);
        }
        let open = |namespace: &str| {
            let path = format!("/proc/{}/ns/{namespace}", self.first.pid);
            File::open(&path).with_context(|| format!("can't open {path} of machine {}", self.name))
        };
        let pid_namespace = open("pid")?;
        let others = [
            (open("uts")?, CloneFlags::CLONE_NEWUTS),
            (open("ipc")?, CloneFlags::CLONE_NEWIPC),
            (open("net")?, CloneFlags::CLONE_NEWNET),
            // Last: it changes what every path means.
            (open("mnt")?, CloneFlags::CLONE_NEWNS),
        ];
        // Entering a PID namespace changes only where the calling thread's next children are born: hence a thread of its own.
        let name = self.name.clone();
        std::thread::spawn(move || {
            setns(&pid_namespace, CloneFlags::CLONE_NEWPID)
                .with_context(|| format!("can't enter the PID namespace of machine {name}"))?;
            enter_before_exec(&mut command, others);
            command
                .spawn()
                .with_context(|| format!("can't start {} on machine {name}", command.get_program().display()))
        })
        .join()
        .map_err(|_| anyhow::anyhow!("the thread that entered machine {} panicked", self.name))?
    }

    /// Runs a command inside to its end.
    ///
    /// # Errors
    /// When it can't be started or fails; holds what it printed.
    pub fn run(&self, program: &str, arguments: &[&str]) -> anyhow::Result<String> {
        let output = self.output(program, arguments)?;
        if !output.status.success() {
            bail!(
                "`{program} {}` on machine {} ended with {}: {}{}",
                arguments.join(" "),
                self.name,
                output.status,
                String::from_utf8_lossy(&output.stdout),
                String::from_utf8_lossy(&output.stderr),
            );
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// The same, where a failure is an answer too.
    ///
    /// # Errors
    /// When it can't be started.
    pub fn output(&self, program: &str, arguments: &[&str]) -> anyhow::Result<Output> {
        let mut command = Self::command(program);
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        self.spawn(command)?.wait_with_output().with_context(|| format!("can't wait for {program}"))
    }

    /// Runs a shell script inside to its end.
    ///
    /// # Errors
    /// When it fails; holds what it printed.
    pub fn shell(&self, script: &str) -> anyhow::Result<String> {
        self.run("/bin/sh", &["-euc", script])
    }
}

/// Makes the command's process enter these namespaces, and a session of its own, after the fork.
fn enter_before_exec(command: &mut Command, namespaces: [(File, CloneFlags); 4]) {
    let enter = move || {
        for (file, kind) in &namespaces {
            setns(file, *kind)?;
        }
        nix::unistd::setsid()?;
        Ok(())
    };
    // SAFETY: between fork and exec the closure makes only system calls (setns, setsid) on descriptors opened before the fork; it
    // allocates nothing and takes no lock.
    #[allow(unsafe_code)]
    unsafe {
        command.pre_exec(enter);
    }
}
