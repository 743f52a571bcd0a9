//! Keeping one plugin registered for as long as it is wanted, whatever happens to the kubelet, to its socket, to ours or to the
//! stream between. The kubelet never dials a plugin again, so every loss is ours to notice.
//!
//! One registration: serve, dial ourselves, wait for the kubelet's socket, register. It is void, and the whole sequence starts over,
//! when the kubelet's socket is another, our own socket is gone, or a stream has ended. A successor registers only when the old
//! stream has ended and the kubelet has hung up.

use std::{
    collections::BTreeMap,
    fs::{self, File, TryLockError},
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use notify::{RecursiveMode, Watcher as _};
use sha2::{Digest as _, Sha256};
use spillway_proto::deviceplugin::{
    Empty, RegisterRequest, device_plugin_client::DevicePluginClient, registration_client::RegistrationClient,
};
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};

use crate::{
    causes::one_line,
    device::ResourceName,
    server::{Server, ServerError, Shared, SocketId},
};

/// The device plugin API's version, as Register spells it.
const VERSION: &str = "v1beta1";
/// Sockets of ours start so; a starting agent removes what an earlier one left.
const PREFIX: &str = "spillway-";
const SUFFIX: &str = ".sock";
/// Written and removed at once, to learn whether the folder can be written to.
const PROBE: &str = ".spillway-probe";

/// inotify tells of changes at once. It can lose them: so the sockets are looked at in any case this often; and this often where it is not
/// available.
const LOOK_EVERY: Duration = Duration::from_secs(3);
const LOOK_WITHOUT_INOTIFY_EVERY: Duration = Duration::from_millis(500);
/// How soon a failed Register is tried again, at first and at most. Any change in the folder brings it forward.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(1));
/// After our stream has ended and the kubelet has hung up, it still marks the resource as disconnected; a registration that arrives
/// before that would be marked instead.
const SETTLE: Duration = Duration::from_millis(100);
/// Inside Register the kubelet dials back, for up to 10 s.
const REGISTER_WITHIN: Duration = Duration::from_secs(15);
/// The kubelet opens its stream right after Register.
const STREAM_WITHIN: Duration = Duration::from_secs(10);
/// Dialling our own socket.
const DIAL_WITHIN: Duration = Duration::from_secs(5);

/// Why the kubelet's device plugin folder can't be used.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// It is not there.
    #[error(
        "there is no device plugin folder {0}: a kubelet makes it when it starts; run this on a node, or say with --device-plugin-dir \
         where it is"
    )]
    Missing(PathBuf),
    /// It can't be written to.
    #[error("can't use the device plugin folder {path}: it is the kubelet's, so this has to run as root")]
    Unwritable {
        /// The folder.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// Another agent serves from it.
    #[error("another spillway-agent holds {0}")]
    Held(PathBuf),
}

/// The kubelet's device plugin folder, held by this process alone.
#[derive(Debug)]
pub struct KubeletFolder {
    path: PathBuf,
    /// Ticks at every change in the folder; never, where inotify is not available.
    changes: watch::Sender<()>,
    watcher: Option<notify::RecommendedWatcher>,
    _lock: File,
}

impl KubeletFolder {
    /// The name of the kubelet's own socket.
    pub const KUBELET: &str = "kubelet.sock";

    /// Takes the folder: locks out other agents, removes the sockets of earlier ones, and watches it. Nothing but sockets is left in
    /// it: the lock is on the folder itself, and ends with the process.
    pub fn open(path: &Path) -> Result<Self, FolderError> {
        let unwritable = |source| FolderError::Unwritable { path: path.to_owned(), source };
        let lock = File::open(path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => FolderError::Missing(path.to_owned()),
            _ => unwritable(error),
        })?;
        lock.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => FolderError::Held(path.to_owned()),
            TryLockError::Error(source) => unwritable(source),
        })?;
        let probe = path.join(PROBE);
        File::create(&probe).and_then(|_| fs::remove_file(&probe)).map_err(unwritable)?;
        for entry in fs::read_dir(path).map_err(unwritable)?.flatten() {
            let name = entry.file_name();
            if name.to_str().is_some_and(Self::is_endpoint) {
                tracing::info!(socket = %entry.path().display(), "removing the socket of an earlier agent");
                fs::remove_file(entry.path()).map_err(unwritable)?;
            }
        }

        let changes = watch::Sender::new(());
        let tick = changes.clone();
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            // Somebody who only looks changes nothing; we do so ourselves.
            if !event.is_ok_and(|event| event.kind.is_access()) {
                tick.send_replace(());
            }
        })
        .and_then(|mut watcher| watcher.watch(path, RecursiveMode::NonRecursive).map(|()| watcher))
        .inspect_err(|error| {
            tracing::warn!(folder = %path.display(), %error, "inotify is not available: looking every {LOOK_WITHOUT_INOTIFY_EVERY:?} instead");
        })
        .ok();
        Ok(Self { path: path.to_owned(), changes, watcher, _lock: lock })
    }

    fn look_every(&self) -> Duration {
        if self.watcher.is_some() { LOOK_EVERY } else { LOOK_WITHOUT_INOTIFY_EVERY }
    }

    fn kubelet(&self) -> PathBuf {
        self.path.join(Self::KUBELET)
    }

    /// The plugin's socket: one per resource, the same at every start. A resource's name may be far longer than a socket's path: of a long one the
    /// beginning stays, for people, and a digest of the whole.
    pub fn endpoint(resource: &ResourceName) -> String {
        let name = resource.as_str().replace('/', "_");
        match name.get(..NAME_SHOWN).filter(|_| name.len() > NAME_LIMIT) {
            Some(beginning) => {
                let digest = Sha256::digest(resource.as_str());
                let digest = digest.first_chunk().map_or(0, |first| u64::from_be_bytes(*first));
                format!("{PREFIX}{beginning}-{digest:016x}{SUFFIX}")
            }
            None => format!("{PREFIX}{name}{SUFFIX}"),
        }
    }

    /// Whether a socket's name is that of a plugin of this program.
    pub fn is_endpoint(name: &str) -> bool {
        name.starts_with(PREFIX) && name.ends_with(SUFFIX)
    }
}

/// Resource names that fit a socket's path in the kubelet's folder (107 bytes), and how much of a longer one is shown.
const NAME_LIMIT: usize = 60;
const NAME_SHOWN: usize = 40;

/// How each plugin stands with the kubelet: registered, or why not.
pub type Registrations = BTreeMap<ResourceName, Result<(), String>>;

/// Why a registration holds no longer.
#[derive(Debug, thiserror::Error)]
enum Void {
    #[error("the plugin's own socket is gone")]
    OwnSocketGone,
    #[error("the kubelet's socket is a new one")]
    KubeletSocketReplaced,
    #[error("the kubelet's stream has ended")]
    StreamEnded,
    #[error("the kubelet has not opened its stream within {} s", STREAM_WITHIN.as_secs())]
    NoStream,
    #[error("the plugin does not answer on its own socket")]
    Deaf(#[source] DialError),
    #[error("the kubelet has opened its stream, but did not confirm the registration")]
    Unconfirmed(#[source] DialError),
}

impl Void {
    /// Whether a file in the folder changed, so that there is something new to register with, or from, at once.
    fn is_about_sockets(&self) -> bool {
        matches!(self, Self::OwnSocketGone | Self::KubeletSocketReplaced)
    }
}

/// Why a call over a socket failed.
#[derive(Debug, thiserror::Error)]
enum DialError {
    #[error("can't connect to {path}")]
    Connect { path: PathBuf, source: tonic::transport::Error },
    #[error("{path} refuses: {message}")]
    Refused { path: PathBuf, message: String },
    #[error("{path} has not answered within {within:?}")]
    Silent { path: PathBuf, within: Duration },
}

/// One resource's plugin.
#[derive(Debug)]
pub(crate) struct Registration<'a> {
    pub(crate) folder: &'a KubeletFolder,
    pub(crate) resource: ResourceName,
    pub(crate) shared: Shared,
    pub(crate) registrations: watch::Sender<Registrations>,
}

impl Registration<'_> {
    /// Serves and keeps registered until `stop`.
    pub(crate) async fn run(self, stop: CancellationToken) {
        let mut said = String::new();
        let mut pause = SETTLE;
        while !stop.is_cancelled() {
            let server = match self.bind() {
                Ok(server) => server,
                Err(error) => {
                    let message = one_line(&error);
                    if said != message {
                        tracing::error!(resource = %self.resource, "{message}; trying again every {} s", RETRY.1.as_secs());
                    }
                    self.set(Err(message.clone()));
                    said = message;
                    let _ = timeout(RETRY.1, stop.cancelled()).await;
                    continue;
                }
            };
            said.clear();
            let since = Instant::now();
            let void = tokio::select! {
                void = self.attend(&server) => Some(void),
                () = stop.cancelled() => None,
            };
            let streamed = server.streams().borrow().opened > 0;
            server.stop().await;
            if let Some(void) = void {
                tracing::info!(resource = %self.resource, why = %one_line(&void), "registering again");
                self.set(Err(one_line(&void)));
                // A kubelet that hangs up again and again is not called ten times a second.
                let hasty = since.elapsed() < RETRY.1 * 10 && !void.is_about_sockets();
                pause = if hasty { (pause * 2).min(RETRY.1) } else { SETTLE };
            }
            if streamed || pause > SETTLE {
                sleep(pause).await;
            }
        }
        self.registrations.send_modify(|all| {
            all.remove(&self.resource);
        });
    }

    fn bind(&self) -> Result<Server, ServerError> {
        let path = self.folder.path.join(KubeletFolder::endpoint(&self.resource));
        Server::bind(path, self.resource.clone(), self.shared.clone())
    }

    /// From a bound socket to the moment that a new one is needed.
    async fn attend(&self, server: &Server) -> Void {
        if let Err(error) = self.dial_self().await {
            return if server.in_place() { Void::Deaf(error) } else { Void::OwnSocketGone };
        }
        let mut changes = self.folder.changes.subscribe();
        let mut streams = server.streams();
        let mut retry = RETRY.0;
        let kubelet = loop {
            changes.mark_unchanged();
            if !server.in_place() {
                return Void::OwnSocketGone;
            }
            match SocketId::of(&self.folder.kubelet()) {
                None => self.waiting(format!(
                    "no {}: the kubelet has not started, or needs a restart since its socket was deleted",
                    self.folder.kubelet().display()
                )),
                Some(kubelet) => match self.register().await {
                    Ok(()) => break kubelet,
                    Err(error) if streams.borrow().opened > 0 => return Void::Unconfirmed(error),
                    Err(error) => self.waiting(one_line(&error)),
                },
            }
            if timeout(retry, changes.changed()).await.is_ok() {
                retry = RETRY.0;
            } else {
                retry = (retry * 2).min(RETRY.1);
            }
        };
        tracing::info!(resource = %self.resource, "registered with the kubelet");
        self.set(Ok(()));

        let stream_due = Instant::now() + STREAM_WITHIN;
        loop {
            changes.mark_unchanged();
            if !server.in_place() {
                return Void::OwnSocketGone;
            }
            // One that is only gone says nothing yet: the stream ends if the kubelet did.
            if SocketId::of(&self.folder.kubelet()).is_some_and(|now| now != kubelet) {
                return Void::KubeletSocketReplaced;
            }
            let seen = *streams.borrow_and_update();
            if seen.ended > 0 {
                return Void::StreamEnded;
            }
            if seen.opened == 0 && Instant::now() >= stream_due {
                return Void::NoStream;
            }
            tokio::select! {
                _ = changes.changed() => {}
                _ = streams.changed() => {}
                () = sleep(self.folder.look_every()) => {}
            }
        }
    }

    /// Tells what is being waited for, in the log only when it is news.
    fn waiting(&self, why: String) {
        if self.registrations.borrow().get(&self.resource) != Some(&Err(why.clone())) {
            tracing::warn!(resource = %self.resource, why, "waiting to register");
        }
        self.set(Err(why));
    }

    fn set(&self, state: Result<(), String>) {
        self.registrations
            .send_if_modified(|all| all.insert(self.resource.clone(), state.clone()) != Some(state));
    }

    async fn dial_self(&self) -> Result<(), DialError> {
        let path = self.folder.path.join(KubeletFolder::endpoint(&self.resource));
        call(&path, DIAL_WITHIN, async |channel| {
            DevicePluginClient::new(channel).get_device_plugin_options(Empty {}).await.map(drop)
        })
        .await
    }

    async fn register(&self) -> Result<(), DialError> {
        let request = RegisterRequest {
            version: VERSION.to_owned(),
            endpoint: KubeletFolder::endpoint(&self.resource),
            resource_name: self.resource.to_string(),
            options: Some(self.shared.options(&self.resource)),
        };
        let registered = call(&self.folder.kubelet(), REGISTER_WITHIN, async |channel| {
            RegistrationClient::new(channel).register(request).await.map(drop)
        })
        .await;
        self.shared.metrics.registration(&self.resource, registered.is_ok());
        registered
    }
}

/// One gRPC call on a connection of its own over the socket at `path`.
async fn call<F>(path: &Path, within: Duration, request: F) -> Result<(), DialError>
where
    F: AsyncFnOnce(Channel) -> Result<(), tonic::Status>,
{
    let failed = |source| DialError::Connect { path: path.to_owned(), source };
    let exchange = async {
        let endpoint = Endpoint::from_shared(format!("unix://{}", path.display())).map_err(failed)?;
        let channel = endpoint.connect().await.map_err(failed)?;
        request(channel).await.map_err(|status| DialError::Refused {
            path: path.to_owned(),
            message: format!("{}: {}", status.code(), status.message()),
        })
    };
    timeout(within, exchange)
        .await
        .unwrap_or_else(|_| Err(DialError::Silent { path: path.to_owned(), within }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_resource_has_a_socket_of_its_own_that_fits() {
        let endpoint = |name: &str| KubeletFolder::endpoint(&ResourceName::new(name).unwrap());
        assert_eq!(endpoint("nvidia.com/gpu"), "spillway-nvidia.com_gpu.sock");
        // Two functions of FPGAs differ late, and are the longest names that there are by themselves.
        let functions = ["KE", "KI"].map(|end| {
            endpoint(&format!("fpga.intel.com/af-57a.57a.V6TRAAAAAAAAAAAAAAAAAVek0QAAAAAAAAAAAAAAA{end}"))
        });
        assert_ne!(functions[0], functions[1]);
        let longest = endpoint(&format!("{}.example.com/{}", "d".repeat(60), "x".repeat(63)));
        for name in functions.iter().chain([&longest]) {
            assert!(KubeletFolder::is_endpoint(name) && name.starts_with("spillway-"), "{name}");
            assert!("/var/lib/kubelet/device-plugins/".len() + name.len() <= 107, "{name}");
        }
    }
}
