//! The configuration in force, and how it is replaced: by a change of the file, or by whoever else hands in a document. A document that
//! is not sound changes nothing but what is said about it.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use notify::{RecursiveMode, Watcher as _};
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{Config, ConfigError, Loaded, Overrides};
use crate::causes::one_line;

/// inotify can lose changes, or be unavailable: the file is read in any case this often.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// An editor, or the kubelet, changes several things at once.
const SETTLE: Duration = Duration::from_millis(50);

/// Where a configuration comes from. Of several, the greatest counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    /// The file that the command line names.
    File,
    /// What the node's label picks.
    Node,
}

/// A configuration's text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    /// What it is called in messages.
    pub name: String,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

/// Whether what was handed in last is in force, or why not.
pub type Validity = Result<(), String>;

/// A check of a configuration against what only a running agent knows.
pub type Check = Arc<dyn Fn(&Config) -> Result<(), String> + Send + Sync>;

/// The configuration in force. Cheap to clone; all clones are one.
#[derive(Clone)]
pub struct Store {
    overrides: Arc<Overrides>,
    check: Check,
    documents: Arc<Mutex<BTreeMap<Source, Document>>>,
    current: watch::Sender<Arc<Config>>,
    validity: watch::Sender<Validity>,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Store").field("current", &*self.current.borrow()).finish_non_exhaustive()
    }
}

impl Store {
    /// Begins with the file at `path`, or without any.
    ///
    /// # Errors
    /// When it is not sound: there is nothing else to go by yet.
    pub fn open(path: Option<&Path>, overrides: Overrides) -> Result<Self, ConfigError> {
        let loaded = match path {
            Some(path) => Config::read(path, &overrides)?,
            None => Config::without_file(&overrides)?,
        };
        warn(&loaded);
        Ok(Self {
            overrides: Arc::new(overrides),
            check: Arc::new(|_| Ok(())),
            documents: Arc::default(),
            current: watch::Sender::new(Arc::new(loaded.config)),
            validity: watch::Sender::new(Ok(())),
        })
    }

    /// The same, but new configurations have to pass `check`, too.
    #[must_use]
    pub fn checked_by(self, check: Check) -> Self {
        Self { check, ..self }
    }

    /// The configuration in force, and its successors.
    pub fn subscribe(&self) -> watch::Receiver<Arc<Config>> {
        self.current.subscribe()
    }

    /// The configuration in force.
    pub fn current(&self) -> Arc<Config> {
        self.current.borrow().clone()
    }

    /// Whether what was handed in last is in force.
    pub fn validity(&self) -> watch::Receiver<Validity> {
        self.validity.subscribe()
    }

    /// From now on `source` says this, or nothing. What is not sound is told, and leaves the configuration in force as it is.
    pub fn offer(&self, source: Source, document: Option<Document>) -> Validity {
        let mut documents = self.documents.lock().unwrap_or_else(PoisonError::into_inner);
        match document {
            Some(document) => documents.insert(source, document),
            None => documents.remove(&source),
        };
        let loaded = match documents.last_key_value() {
            Some((_, document)) => Config::load(&document.name, &document.bytes, &self.overrides),
            None => Config::without_file(&self.overrides),
        };
        let name = documents.last_key_value().map_or("flags and environment", |(_, document)| &document.name);
        let verdict = loaded.map_err(|error| one_line(&error)).and_then(|loaded| {
            (self.check)(&loaded.config)
                .map_err(|why| format!("the configuration {name} can't be put in force: {why}"))?;
            Ok(loaded)
        });
        let validity = match verdict {
            Ok(loaded) => {
                let changed = self.current.send_if_modified(|current| {
                    let changed = **current != loaded.config;
                    if changed {
                        *current = Arc::new(loaded.config.clone());
                    }
                    changed
                });
                if changed {
                    tracing::info!(from = %name, "a new configuration is in force");
                    warn(&loaded);
                }
                Ok(())
            }
            Err(why) => Err(why),
        };
        self.tell(validity.clone());
        validity
    }

    fn tell(&self, validity: Validity) {
        self.validity.send_if_modified(|before| {
            let news = *before != validity;
            if let (true, Err(why)) = (news, &validity) {
                tracing::error!("{why} (the one before stays in force)");
            }
            *before = validity;
            news
        });
    }

    /// Reads the file at `path` whenever it changes, until `stop`. It may be a link into a folder that is replaced as a whole, which is
    /// how the kubelet changes the files of a `ConfigMap`.
    pub async fn follow(self, path: PathBuf, stop: CancellationToken) {
        let (tick, mut changes) = watch::channel(());
        // The watcher lives as long as this function: its changes end with it.
        let _watcher = watch_folder(&path, tick);
        let mut last = None;
        loop {
            match tokio::fs::read(&path).await {
                Ok(bytes) => {
                    if last.as_ref() != Some(&bytes) {
                        let document = Document { name: path.display().to_string(), bytes: bytes.clone() };
                        let _ = self.offer(Source::File, Some(document));
                        last = Some(bytes);
                    }
                }
                // While a file is being replaced there may be none. What it said stays in force.
                Err(source) if source.kind() == io::ErrorKind::NotFound => {
                    last = None;
                    self.tell(Err(format!("the configuration {} is gone", path.display())));
                }
                Err(source) => {
                    last = None;
                    self.tell(Err(one_line(&ConfigError::Read { path: path.clone(), source })));
                }
            }
            tokio::select! {
                () = stop.cancelled() => return,
                looked = timeout(LOOK_EVERY, changes.changed()) => match looked {
                    Ok(Ok(())) => sleep(SETTLE).await,
                    Ok(Err(_)) => sleep(LOOK_EVERY).await,
                    Err(_) => {}
                },
            }
            changes.mark_unchanged();
        }
    }
}

fn watch_folder(path: &Path, tick: watch::Sender<()>) -> Option<notify::RecommendedWatcher> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        // Our own reading is no change.
        if !event.is_ok_and(|event| event.kind.is_access()) {
            tick.send_replace(());
        }
    })
    .and_then(|mut watcher| watcher.watch(folder, RecursiveMode::NonRecursive).map(|()| watcher))
    .inspect_err(|error| {
        tracing::warn!(folder = %folder.display(), %error, "inotify is not available: the configuration is read every {LOOK_EVERY:?} instead");
    })
    .ok()
}

fn warn(loaded: &Loaded) {
    for warning in &loaded.warnings {
        tracing::warn!("{warning}");
    }
}

#[cfg(test)]
mod tests;
