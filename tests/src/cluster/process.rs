//! One component of the cluster: a process on a machine that can be killed, paused and started again, by whoever reads the record.

use std::{
    collections::BTreeMap,
    fs::{self, OpenOptions},
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};

use super::machine::{Machine, ProcessId};

/// A component and how to start it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Process {
    /// The machine it runs on.
    pub machine: String,
    /// What it is called: `etcd`, `kubelet`, `spillway-vk`, …
    pub name: String,
    /// The program and its arguments, as the machine sees them.
    pub arguments: Vec<String>,
    /// What its environment holds beside PATH and HOME.
    pub environment: BTreeMap<String, String>,
    /// Where its output goes, on the host.
    pub log: PathBuf,
    /// The running process; `None` before the start.
    pub id: Option<ProcessId>,
}

impl Process {
    /// Starts it; its output is appended to the log.
    ///
    /// # Errors
    /// When it runs already or can't be started.
    pub fn start(&mut self, machine: &Machine) -> anyhow::Result<()> {
        if self.running() {
            bail!("{} runs already on machine {}", self.name, self.machine);
        }
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.log)
            .with_context(|| format!("can't open {}", self.log.display()))?;
        let mut command = Machine::command(&self.arguments[0]);
        command
            .args(&self.arguments[1..])
            .envs(&self.environment)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        let mut child = machine.spawn(command)?;
        self.id = i32::try_from(child.id()).ok().and_then(ProcessId::of);
        // Reaped as soon as it ends; whether it runs is asked of /proc, also by other processes than its parent.
        std::thread::spawn(move || child.wait());
        Ok(())
    }

    /// Whether it runs.
    pub fn running(&self) -> bool {
        self.id.is_some_and(ProcessId::alive)
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// When it doesn't run.
    pub fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        match self.id {
            Some(id) if id.signal(signal) => Ok(()),
            _ => bail!("{} on machine {} is not running", self.name, self.machine),
        }
    }

    /// Sends a signal and waits for the end.
    ///
    /// # Errors
    /// When it doesn't run, or outlives `limit`.
    pub fn end(&self, signal: Signal, limit: Duration) -> anyhow::Result<()> {
        self.signal(signal)?;
        let (begin, limit) = (Instant::now(), crate::patience(limit));
        while self.id.is_some_and(|id| !id.gone()) {
            if begin.elapsed() > limit {
                bail!(
                    "{} on machine {} still runs {} s after {signal}",
                    self.name,
                    self.machine,
                    limit.as_secs()
                );
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// The last lines of its log.
    pub fn log_tail(&self, lines: usize) -> String {
        log_tail(&self.log, lines)
    }
}

/// The last lines of a file, as well as it can be read.
pub fn log_tail(path: &Path, lines: usize) -> String {
    let text = fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    let all: Vec<_> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}
