//! Who holds which devices, as the kubelet says: the link between devices and pods that isolation and usage are built on.
//!
//! The kubelet's device checkpoint is the source: it is written inside Allocate, has every pod's UID, and has init containers. It has no
//! names, and it keeps ended pods for a while. Names come from the folders of the pods' logs, which the kubelet makes before it makes a
//! sandbox, and from PodResources, which is also what the checkpoint is checked against: it can be asked only sparingly, has no UIDs,
//! leaves out init containers, and is empty just after a kubelet's start.

pub mod checkpoint;
pub mod compare;
pub mod pod_logs;
pub mod pod_resources;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use notify::{RecursiveMode, Watcher as _};
use spillway_device_plugin::{
    causes::one_line,
    device::{DeviceId, ResourceName},
    held::Held,
    inventory::Inventory,
};
use tokio::{
    io::AsyncReadExt as _,
    sync::watch,
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use compare::Comparison;
use pod_resources::Listing;

/// The checkpoint's name in the kubelet's device plugin folder (`kubeletDeviceManagerCheckpoint` in `pkg/kubelet/cm/devicemanager`).
const CHECKPOINT: &str = "kubelet_internal_checkpoint";
/// Far more than any checkpoint has: thousands of devices, with what Allocate answered for each container.
const CHECKPOINT_LIMIT: u64 = 32 << 20;
/// inotify tells of changes at once; it can lose them, or be unavailable.
const LOOK_EVERY: Duration = Duration::from_secs(30);
/// Several changes at once are one.
const SETTLE: Duration = Duration::from_millis(200);

/// A pod of this machine.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PodRef {
    /// Its UID; for a static pod the hash that its cgroup is called by.
    pub uid: String,
    /// Its namespace, where it is known.
    pub namespace: Option<String>,
    /// Its name, where it is known.
    pub name: Option<String>,
}

impl fmt::Display for PodRef {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.namespace, &self.name) {
            (Some(namespace), Some(name)) => write!(formatter, "{namespace}/{name}"),
            _ => formatter.write_str(&self.uid),
        }
    }
}

/// What one container holds of one resource.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holding {
    /// The pod.
    pub pod: PodRef,
    /// The container's name within it.
    pub container: String,
    /// The resource.
    pub resource: ResourceName,
    /// The devices' IDs.
    pub devices: BTreeSet<DeviceId>,
}

/// Everything that pods of this machine hold. The kubelet may still list pods that have ended.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Holders {
    /// By pod, container and resource.
    pub holdings: Vec<Holding>,
}

/// Why it can't be told who holds what.
#[derive(Debug, thiserror::Error)]
pub enum HoldersError {
    /// There is no checkpoint: no plugin has ever been registered with this kubelet, or this is not its folder.
    #[error("the kubelet has no device checkpoint {0}: it writes one when a plugin lists its devices")]
    Missing(PathBuf),
    /// A file or folder can't be read.
    #[error("can't read {path}")]
    Read {
        /// The file or folder.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The checkpoint is not what this version knows.
    #[error("{path} is not a device checkpoint as kubelets 1.27 to 1.35 write it: {message}")]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong, and where.
        message: String,
    },
    /// The kubelet does not answer on its pod resources socket.
    #[error("the kubelet does not answer on {path}: {message}")]
    PodResources {
        /// The socket.
        path: PathBuf,
        /// Why.
        message: String,
    },
}

/// Where the kubelet keeps what is read here, as this process sees it.
#[derive(Debug, Clone)]
pub struct Paths {
    /// The folder of the device plugins' sockets.
    pub device_plugins: PathBuf,
    /// The socket of the pod resources API.
    pub pod_resources: PathBuf,
    /// The folder of all pods' logs.
    pub pod_logs: PathBuf,
}

impl Paths {
    fn checkpoint(&self) -> PathBuf {
        self.device_plugins.join(CHECKPOINT)
    }
}

/// Namespace and name.
pub type Name = (String, String);

/// Reads who holds what. Clones share what they know of names.
#[derive(Debug, Clone)]
pub struct HoldersReader {
    paths: Arc<Paths>,
    /// By UID. A pod never changes its name.
    names: Arc<Mutex<BTreeMap<String, Name>>>,
}

impl HoldersReader {
    /// A reader of these files.
    pub fn new(paths: Paths) -> Self {
        Self { paths: Arc::new(paths), names: Arc::default() }
    }

    /// Who holds what now. Inside PreStartContainer this has the container that is about to start: the kubelet writes the checkpoint
    /// before it makes the pod's sandbox.
    ///
    /// # Errors
    /// When there is no checkpoint, or neither it nor PodResources can be read.
    pub async fn look(&self) -> Result<Holders, HoldersError> {
        match self.checkpoint().await {
            Err(HoldersError::Format { path, message }) => match self.without_checkpoint().await {
                Ok(holders) => Ok(holders),
                Err(error) => {
                    let message = format!("{message}; and without it: {error}");
                    Err(HoldersError::Format { path, message })
                }
            },
            other => other,
        }
    }

    /// Tells `inventory` who holds what now, as far as that can be read.
    pub async fn tell(&self, inventory: &watch::Sender<Inventory>) {
        if let Ok(holders) = self.look().await {
            holders.tell(inventory);
        }
    }

    /// By the checkpoint, with the names that are known or to be found among the logs.
    async fn checkpoint(&self) -> Result<Holders, HoldersError> {
        let path = self.paths.checkpoint();
        let bytes = match read_bounded(&path).await {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(HoldersError::Missing(path));
            }
            Err(source) => return Err(HoldersError::Read { path, source }),
        };
        let mut holders =
            checkpoint::parse(&bytes).map_err(|message| HoldersError::Format { path, message })?;
        self.add_names(&mut holders).await;
        Ok(holders)
    }

    async fn add_names(&self, holders: &mut Holders) {
        let uids: BTreeSet<_> = holders.holdings.iter().map(|holding| holding.pod.uid.clone()).collect();
        let unknown = {
            let names = self.names();
            uids.iter().any(|uid| !names.contains_key(uid))
        };
        let found = if unknown { pod_logs::list(&self.paths.pod_logs).await } else { Vec::new() };
        let mut names = self.names();
        names.retain(|uid, _| uids.contains(uid));
        names.extend(found.into_iter().filter(|(uid, _)| uids.contains(uid)));
        for holding in &mut holders.holdings {
            if let Some((namespace, name)) = names.get(&holding.pod.uid) {
                holding.pod.namespace = Some(namespace.clone());
                holding.pod.name = Some(name.clone());
            }
        }
    }

    /// What PodResources says, with UIDs from the folders of logs: without init containers.
    async fn without_checkpoint(&self) -> Result<Holders, HoldersError> {
        let listed = self.listed().await?;
        Ok(compare::join(&listed.held, &pod_logs::list(&self.paths.pod_logs).await))
    }

    async fn listed(&self) -> Result<Listing, HoldersError> {
        let path = &self.paths.pod_resources;
        pod_resources::list(path)
            .await
            .map_err(|message| HoldersError::PodResources { path: path.clone(), message })
    }

    fn names(&self) -> MutexGuard<'_, BTreeMap<String, Name>> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Who holds what, for whoever wants to follow it.
#[derive(Debug, Clone, Default)]
pub struct Following {
    /// Everything that the kubelet has on record, ended pods included.
    pub all: watch::Sender<Holders>,
    /// What pods hold that have not ended, as PodResources saw it last. None before it has answered.
    pub active: watch::Sender<Option<Holders>>,
}

impl Following {
    /// Tells `inventory` what containers hold, until `stop`: what one has by another name than it is offered by now must not be handed out.
    pub async fn tell(self, inventory: watch::Sender<Inventory>, stop: CancellationToken) {
        let (mut all, mut active) = (self.all.subscribe(), self.active.subscribe());
        let (mut seen, mut said) = (inventory.subscribe(), BTreeSet::new());
        loop {
            let holders = active.borrow_and_update().clone();
            let holders = holders.unwrap_or_else(|| all.borrow_and_update().clone());
            holders.tell(&inventory);
            loop {
                let kept_back: BTreeSet<_> = seen.borrow_and_update().kept_back().collect();
                for device in kept_back.difference(&said) {
                    tracing::warn!("kept back: {device}");
                }
                said = kept_back;
                let changed = tokio::select! {
                    () = stop.cancelled() => return,
                    changed = active.changed() => changed,
                    changed = all.changed() => changed,
                    changed = seen.changed() => match changed {
                        Ok(()) => continue,
                        Err(_) => return,
                    },
                };
                if changed.is_err() {
                    return;
                }
                break;
            }
        }
    }
}

impl Holders {
    /// Tells `inventory` what these hold. A pod whose name nobody knows has ended, and the kubelet has not noticed: it would keep its
    /// devices from everybody, and the kubelet forgets it only when it gives somebody a device.
    pub fn tell(&self, inventory: &watch::Sender<Inventory>) {
        let known = self.holdings.iter().filter(|holding| holding.pod.name.is_some());
        let held = known.flat_map(|holding| {
            holding.devices.iter().map(|device| (holding.resource.clone(), device.clone()))
        });
        let held: Held = held.collect();
        inventory.send_if_modified(|current| {
            let next = current.with_held(held);
            // Pods come and go: that is news only where it makes a difference to what is offered.
            let differs = !next.devices().eq(current.devices());
            *current = next;
            differs
        });
    }
}

/// Keeps `following` up to date until `stop`. While the kubelet can't be asked it stays as it was: a list that can't be had says nothing
/// about who holds what.
pub async fn run(reader: HoldersReader, following: Following, stop: CancellationToken) {
    stop.run_until_cancelled(keep(&reader, &following)).await;
}

async fn keep(reader: &HoldersReader, following: &Following) {
    let changes = watch::Sender::new(());
    let _watchers =
        [&reader.paths.device_plugins, &reader.paths.pod_logs].map(|path| watcher(path, &changes));
    let mut changes = changes.subscribe();
    let mut said = String::new();
    let mut comparison = Comparison::default();
    loop {
        changes.mark_unchanged();
        match reader.look().await {
            Ok(now) => {
                said.clear();
                if publish(&following.all, now) {
                    comparison.hasten(Instant::now());
                }
            }
            Err(error) => {
                let message = one_line(&error);
                if message != said {
                    // There is none on a new machine, before the first plugin.
                    if matches!(error, HoldersError::Missing(_)) {
                        tracing::info!("{message}");
                    } else {
                        tracing::warn!("{message}");
                    }
                    said = message;
                }
            }
        }
        if comparison.is_due(Instant::now()) {
            compare(reader, following, &mut comparison).await;
        }
        if timeout(LOOK_EVERY.min(comparison.due_in(Instant::now())), changes.changed()).await.is_ok() {
            sleep(SETTLE).await;
        }
    }
}

/// Whether it is news.
fn publish<T: PartialEq>(place: &watch::Sender<T>, now: T) -> bool {
    place.send_if_modified(|before| {
        let differs = *before != now;
        *before = now;
        differs
    })
}

/// Asks PodResources what it knows, takes names from it, and tells of what the checkpoint does not have.
async fn compare(reader: &HoldersReader, following: &Following, comparison: &mut Comparison) {
    let listing = match reader.listed().await {
        Ok(listing) => listing,
        Err(error) => return comparison.failed(Some(&error), Instant::now()),
    };
    // The checkpoint is read after the list: what was listed is in it already.
    let Ok(mut now) = reader.checkpoint().await else { return comparison.failed(None, Instant::now()) };
    for line in comparison.news(compare::missing(&now, &listing.held), Instant::now()) {
        tracing::warn!("the kubelet's checkpoint does not have what its pod resources API lists: {line}");
    }
    reader.names().extend(compare::names(&now, &listing.held));
    reader.add_names(&mut now).await;
    // A list without any pod is that of a kubelet that has just started: this agent is in a pod itself, usually.
    if !listing.pods.is_empty() {
        publish(&following.active, Some(comparison.held(&now, &listing, Instant::now())));
    }
    publish(&following.all, now);
}

/// Ticks `changes` when an entry of the folder comes or goes; never, where inotify is not available.
fn watcher(path: &Path, changes: &watch::Sender<()>) -> Option<notify::RecommendedWatcher> {
    let tick = changes.clone();
    // Only what has to do with whole entries: sockets that are written to, or files that are read, say nothing.
    let seen = move |event: notify::Result<notify::Event>| {
        if event.is_ok_and(|event| concerns(&event)) {
            tick.send_replace(());
        }
    };
    notify::recommended_watcher(seen)
        .and_then(|mut watcher| watcher.watch(path, RecursiveMode::NonRecursive).map(|()| watcher))
        .inspect_err(|error| {
            tracing::warn!(folder = %path.display(), %error, "can't watch it: looking every {LOOK_EVERY:?} instead");
        })
        .ok()
}

fn concerns(event: &notify::Event) -> bool {
    use notify::event::{EventKind, ModifyKind};
    // The kubelet writes the checkpoint beside its place and renames it. Of the same folder's sockets, changes say nothing; folders of pods'
    // logs all matter, and have two underscores.
    let of_interest = event.paths.iter().any(|path| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        name == CHECKPOINT || pod_logs::parse(name).is_some()
    });
    of_interest && matches!(event.kind, EventKind::Create(_) | EventKind::Modify(ModifyKind::Name(_)))
}

async fn read_bounded(path: &Path) -> io::Result<Vec<u8>> {
    if !tokio::fs::metadata(path).await?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no regular file"));
    }
    let mut bytes = Vec::new();
    tokio::fs::File::open(path).await?.take(CHECKPOINT_LIMIT + 1).read_to_end(&mut bytes).await?;
    if bytes.len() as u64 > CHECKPOINT_LIMIT {
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            format!("more than {CHECKPOINT_LIMIT} bytes"),
        ));
    }
    Ok(bytes)
}

/// Whether a pod's UID may become part of a path or a log line. Kubernetes makes UUIDs, and hashes for static pods; a static pod's manifest
/// may have one of its own.
pub fn is_uid(uid: &str) -> bool {
    (1..=128).contains(&uid.len())
        && !uid.starts_with('.')
        && uid.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-.".contains(&byte))
}

/// Whether this can be a namespace's, a pod's or a container's name.
pub fn is_name(name: &str) -> bool {
    (1..=253).contains(&name.len())
        && name
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-.".contains(&byte))
}
