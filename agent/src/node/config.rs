//! The configuration that a label of the node picks from a folder, which is a `ConfigMap` mounted into the pod: no right to read them is
//! needed, and a change of either needs no restart. What can't be picked changes nothing.
//!
//! Without the label: `--default-config`, else the file `default`, else the only file, else what the command line says; NVIDIA's
//! config-manager calls this `named`, `single`, `empty`.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use notify::{RecursiveMode, Watcher as _};
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};

use super::{
    events::{EventSink, Kind},
    watch::Seen,
};

/// inotify can lose changes, or be unavailable: the folder is read in any case this often.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// The kubelet replaces a folder by several steps.
const SETTLE: Duration = Duration::from_millis(50);
/// How long the node's label is waited for at start, before devices are offered as for a node without one.
const FIRST_LABEL_WITHIN: Duration = Duration::from_secs(5);
/// A `ConfigMap` has no more.
const FILE_LIMIT: u64 = 1 << 20;

/// Takes a configuration's name and text, or none for what the command line says; `Err` says why it stays as it was.
pub type Accept = Arc<dyn Fn(Option<(String, Vec<u8>)>) -> Result<(), String> + Send + Sync>;

/// What to choose by, and where the choice goes.
pub(super) struct Selection {
    pub(super) label: String,
    pub(super) folder: PathBuf,
    pub(super) default: Option<String>,
    pub(super) accept: Accept,
    pub(super) events: EventSink,
    /// Becomes true with the first choice.
    pub(super) chosen: watch::Sender<bool>,
}

/// What is chosen.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Choice {
    /// This file.
    File(String),
    /// What the command line says.
    CommandLine,
    /// What is in force; the text says why.
    Stay(String),
}

fn choose(label: Option<&str>, default: Option<&str>, files: &BTreeMap<String, Vec<u8>>) -> Choice {
    let named = |name: &str, who: &str| {
        if files.contains_key(name) {
            return Choice::File(name.to_owned());
        }
        let known = files.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
        Choice::Stay(format!("{who} asks for the configuration {name:?}, but there are only: {known}"))
    };
    match (label.filter(|label| !label.is_empty()), default.filter(|default| !default.is_empty())) {
        (Some(label), _) => named(label, "the node's label"),
        (None, Some(default)) => named(default, "--default-config"),
        (None, None) if files.contains_key("default") => Choice::File("default".to_owned()),
        (None, None) if files.len() == 1 => {
            files.keys().next().map_or(Choice::CommandLine, |only| Choice::File(only.clone()))
        }
        (None, None) => Choice::CommandLine,
    }
}

impl Selection {
    /// Follows label and folder as long as the node is watched.
    pub(super) async fn keep(self, mut seen: watch::Receiver<Option<Seen>>) {
        let folder = self.folder.clone();
        let (tick, mut edits) = watch::channel(());
        let _watcher = watcher(&folder, tick);
        if timeout(FIRST_LABEL_WITHIN, seen.wait_for(Option::is_some)).await.is_err() {
            tracing::warn!(
                label = self.label,
                "the node's label can't be read yet: the configuration is that of a node without it"
            );
        }
        let mut last = None;
        let mut said = String::new();
        loop {
            let label =
                seen.borrow_and_update().as_ref().and_then(|seen| seen.labels.get(&self.label).cloned());
            let choice = match read(&folder) {
                Ok(files) => {
                    let choice = choose(label.as_deref(), self.default.as_deref(), &files);
                    let text = match &choice {
                        Choice::File(name) => files.get(name).cloned(),
                        _ => None,
                    };
                    (choice, text)
                }
                Err(error) => {
                    (Choice::Stay(format!("can't read the folder {}: {error}", folder.display())), None)
                }
            };
            if last.as_ref() != Some(&choice) {
                self.put_in_force(&choice, &mut said);
                last = Some(choice);
                self.chosen.send_replace(true);
            }
            tokio::select! {
                changed = seen.changed() => if changed.is_err() { return },
                changed = timeout(LOOK_EVERY, edits.changed()) => match changed {
                    Ok(Ok(())) => sleep(SETTLE).await,
                    Ok(Err(_)) => sleep(LOOK_EVERY).await,
                    Err(_) => {}
                },
            }
            edits.mark_unchanged();
        }
    }

    fn put_in_force(&self, (choice, text): &(Choice, Option<Vec<u8>>), said: &mut String) {
        let verdict = match (choice, text) {
            (Choice::Stay(why), _) => Err(why.clone()),
            (Choice::File(name), Some(text)) => (self.accept)(Some((name.clone(), text.clone()))),
            (Choice::CommandLine | Choice::File(_), _) => (self.accept)(None),
        };
        match verdict {
            Ok(()) => {
                tracing::info!(?choice, "the node's configuration is in force");
                said.clear();
            }
            Err(why) if *said != why => {
                tracing::error!(why, "the node's configuration stays as it was");
                let note = format!("the configuration stays as it was: {why}");
                self.events.node(Kind::Warning, "ConfigurationRefused", &note);
                *said = why;
            }
            Err(_) => {}
        }
    }
}

/// The folder's files. Names that begin with a dot are the kubelet's, or nobody's.
fn read(folder: &Path) -> io::Result<BTreeMap<String, Vec<u8>>> {
    let mut files = BTreeMap::new();
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let Some(name) = entry.file_name().to_str().map(str::to_owned) else { continue };
        // Behind the link that a ConfigMap's key is.
        let file =
            std::fs::metadata(entry.path()).is_ok_and(|meta| meta.is_file() && meta.len() <= FILE_LIMIT);
        if !name.starts_with('.') && file {
            files.insert(name, std::fs::read(entry.path())?);
        }
    }
    Ok(files)
}

fn watcher(folder: &Path, tick: watch::Sender<()>) -> Option<notify::RecommendedWatcher> {
    notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        // Our own reading is no change.
        if !event.is_ok_and(|event| event.kind.is_access()) {
            tick.send_replace(());
        }
    })
    .and_then(|mut watcher| watcher.watch(folder, RecursiveMode::NonRecursive).map(|()| watcher))
    .inspect_err(|error| {
        tracing::warn!(folder = %folder.display(), %error, "inotify is not available: looking every {LOOK_EVERY:?} instead");
    })
    .ok()
}

#[cfg(test)]
mod tests;
