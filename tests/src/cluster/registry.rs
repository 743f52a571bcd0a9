//! Which clusters exist on this host, and how one ends. Each has a record in `/run/spillway-tests`, written before anything is started,
//! so that whoever comes later can end what a killed run left behind, and never touches anything else.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Context as _;
use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};

use super::machine::{Machine, ProcessId};
use super::process::Process;

const RECORDS: &str = "/run/spillway-tests";
/// How many folders with logs of ended clusters are kept.
const LOGS_KEPT: usize = 5;

/// All that is needed to find, use and end a cluster.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Record {
    /// `spw-` and four random hex digits: also the name of its cgroup in every hierarchy.
    pub id: String,
    /// Everything on disk: `log/` stays when the cluster ends, the rest goes.
    pub folder: PathBuf,
    /// Who started it. When that process is gone and the cluster is not kept, the next run ends it.
    pub owner: ProcessId,
    /// Outlives its owner, until `cluster down`.
    pub keep: bool,
    /// Its machines; the first is the control plane's.
    pub machines: Vec<Machine>,
    /// Its processes outside any machine: the forwarder of the API server's port.
    pub forwarder: Option<ProcessId>,
    /// Its components.
    pub processes: Vec<Process>,
}

impl Record {
    fn path(id: &str) -> PathBuf {
        Path::new(RECORDS).join(format!("{id}.json"))
    }

    /// Writes the record, atomically.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn save(&self) -> anyhow::Result<()> {
        fs::create_dir_all(RECORDS).with_context(|| format!("can't create {RECORDS}"))?;
        let path = Self::path(&self.id);
        let fresh = path.with_extension("new");
        fs::write(&fresh, serde_json::to_vec_pretty(self)?)
            .and_then(|()| fs::rename(&fresh, &path))
            .with_context(|| format!("can't write {}", path.display()))
    }

    /// The kubeconfig of the cluster's administrator.
    pub fn kubeconfig(&self) -> PathBuf {
        self.folder.join("kubeconfig")
    }

    /// The folder of all logs.
    pub fn logs(&self) -> PathBuf {
        self.folder.join("log")
    }

    /// Whether something of it still runs.
    pub fn running(&self) -> bool {
        self.machines.iter().any(|machine| machine.first.alive())
    }
}

/// Every cluster on record, oldest first.
///
/// # Errors
/// When a record can't be read: it is named, since deleting it unread could leave things behind.
pub fn all() -> anyhow::Result<Vec<Record>> {
    let mut records = Vec::new();
    let Ok(entries) = fs::read_dir(RECORDS) else { return Ok(Vec::new()) };
    for entry in entries {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "json") {
            // Another run may end its cluster while we look.
            let Ok(text) = fs::read(&path) else { continue };
            let record: Record = serde_json::from_slice(&text).with_context(|| {
                format!(
                    "{} is not a cluster record; delete it once you know nothing of it runs",
                    path.display()
                )
            })?;
            records.push((fs::metadata(&path).and_then(|data| data.modified()).ok(), record));
        }
    }
    records.sort_by_key(|(modified, _)| *modified);
    Ok(records.into_iter().map(|(_, record)| record).collect())
}

/// Ends what runs left behind whose process is gone, except what they meant to keep.
///
/// # Errors
/// When something can't be ended.
pub fn sweep() -> anyhow::Result<()> {
    fs::create_dir_all(RECORDS).with_context(|| format!("can't create {RECORDS}"))?;
    // One at a time: what another run sweeps is gone before this one looks.
    let lock = fs::File::create(Path::new(RECORDS).join("sweep.lock"))
        .with_context(|| format!("can't write to {RECORDS}"))?;
    lock.lock().with_context(|| format!("can't lock {RECORDS}"))?;
    for record in all()? {
        let abandoned = !record.keep && !record.owner.alive();
        if abandoned || (record.keep && !record.running()) {
            eprintln!("sweeping cluster {} that an earlier run left behind", record.id);
            end(&record)?;
        }
    }
    Ok(())
}

/// Ends a cluster: processes, and with them namespaces and mounts, then cgroups, folder and record. Logs stay. Safe to repeat.
///
/// # Errors
/// When something survives; the record stays then, so that the next run tries again.
pub fn end(record: &Record) -> anyhow::Result<()> {
    let firsts = record.machines.iter().map(|machine| machine.first).chain(record.forwarder);
    for process in firsts.clone() {
        process.signal(Signal::SIGKILL);
    }
    let what = format!("the first processes of cluster {} to end after SIGKILL", record.id);
    crate::wait_for(&what, Duration::from_mins(1), || {
        Ok((!firsts.clone().any(ProcessId::alive)).then_some(()))
    })?;
    remove_cgroups(&record.id)?;
    remove_all_but_logs(&record.folder)?;
    prune_logs(&record.folder);
    let path = Record::path(&record.id);
    fs::remove_file(&path).or_else(|error| match error.kind() {
        std::io::ErrorKind::NotFound => Ok(()),
        _ => Err(error).with_context(|| format!("can't delete {}", path.display())),
    })
}

/// The roots of all cgroup hierarchies: one on a v2 host, one a controller on v1, those and `unified` on a hybrid.
pub fn cgroup_hierarchies() -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mut found: Vec<PathBuf> = mounts
        .lines()
        .filter_map(|line| {
            let (before, after) = line.split_once(" - ")?;
            after.starts_with("cgroup").then(|| before.split(' ').nth(4).map(PathBuf::from))?
        })
        .collect();
    found.sort();
    found.dedup();
    found
}

fn remove_cgroups(id: &str) -> anyhow::Result<()> {
    for hierarchy in cgroup_hierarchies() {
        let root = hierarchy.join(id);
        crate::wait_for(&format!("cgroup {} to go", root.display()), Duration::from_mins(1), || {
            // The kernel refuses while a killed process is not yet reaped.
            remove_cgroup(&root)?;
            Ok(Some(()))
        })?;
    }
    Ok(())
}

fn remove_cgroup(path: &Path) -> std::io::Result<()> {
    let Ok(entries) = fs::read_dir(path) else { return Ok(()) };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_cgroup(&entry.path())?;
        }
    }
    fs::remove_dir(path)
}

fn remove_all_but_logs(folder: &Path) -> anyhow::Result<()> {
    let Ok(entries) = fs::read_dir(folder) else { return Ok(()) };
    for entry in entries {
        let path = entry?.path();
        if path.file_name().is_some_and(|name| name == "log") {
            continue;
        }
        // A mount's end can lag behind its namespace's: the removal is tried again, never forced.
        crate::wait_for(&format!("{} to be deleted", path.display()), Duration::from_mins(1), || {
            let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
            match removed {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
                _ => Ok(Some(())),
            }
        })?;
    }
    Ok(())
}

fn prune_logs(ended: &Path) {
    let Some(Ok(entries)) = ended.parent().map(fs::read_dir) else { return };
    let running: Vec<_> = all().unwrap_or_default().into_iter().map(|record| record.folder).collect();
    let mut folders: Vec<_> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.is_dir() && (path == ended || !running.contains(path)))
        .collect();
    folders.sort_by_key(|path| fs::metadata(path).and_then(|data| data.modified()).ok());
    for folder in folders.iter().rev().skip(LOGS_KEPT) {
        let _ = fs::remove_dir_all(folder);
    }
}
