//! The keeper of the MPS daemons: a process of its own, so that they and their clients outlive the agent. It does what the agent last said,
//! also while there is no agent; it knows no configuration and no other device.

use std::{
    collections::BTreeMap,
    fs::{self, File, Permissions, TryLockError},
    io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::{
    io::BufReader,
    net::{UnixListener, UnixStream},
    sync::watch,
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    ComputeModes, Plan, Plans,
    daemon::Daemon,
    log_folder, pipe_folder,
    wire::{BEAT, Ear, Orders, Report, SOCKET, WireError, say},
};
use crate::{causes::one_line, device::ResourceName};

/// Why there is no keeper.
#[derive(Debug, thiserror::Error)]
pub enum KeeperError {
    /// The folder can't be used.
    #[error("can't use {path}: --mps-dir must be a folder that can be written to")]
    Folder {
        /// The folder, or the socket in it.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// There is another one.
    #[error("another keeper of MPS daemons holds {0}")]
    Held(PathBuf),
}

/// A keeper that has its socket.
#[derive(Debug)]
pub struct Keeper {
    folder: PathBuf,
    driver_root: PathBuf,
    modes: Arc<dyn ComputeModes>,
    listener: UnixListener,
    _lock: File,
}

impl Keeper {
    /// Takes `folder`, and waits for agents there. `driver_root` is where the daemon's program is, as this process sees it.
    ///
    /// # Errors
    /// When the folder can't be used, or another keeper has it.
    pub fn open(
        folder: PathBuf,
        driver_root: PathBuf,
        modes: Arc<dyn ComputeModes>,
    ) -> Result<Self, KeeperError> {
        let failed = |source| KeeperError::Folder { path: folder.clone(), source };
        fs::create_dir_all(&folder).map_err(failed)?;
        let lock = File::open(&folder).map_err(failed)?;
        lock.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => KeeperError::Held(folder.clone()),
            TryLockError::Error(source) => failed(source),
        })?;
        let listener = listen(&folder.join(SOCKET))?;
        Ok(Self { folder, driver_root, modes, listener, _lock: lock })
    }

    /// Keeps the daemons that agents ask for until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        let orders = watch::Sender::new(None);
        let reports = watch::Sender::new(Report::default());
        let keeping = self.keep(orders.subscribe(), &reports, &stop);
        let listening = self.listen(&orders, &reports, &stop);
        tokio::join!(keeping, listening);
        let _ = fs::remove_file(self.folder.join(SOCKET));
    }

    async fn keep(
        &self,
        mut orders: watch::Receiver<Option<Plans>>,
        reports: &watch::Sender<Report>,
        stop: &CancellationToken,
    ) {
        let mut daemons: JoinSet<ResourceName> = JoinSet::new();
        let mut running: BTreeMap<ResourceName, (Plan, CancellationToken)> = BTreeMap::new();
        loop {
            let wanted = orders.borrow_and_update().clone().unwrap_or_default();
            for (resource, (plan, own)) in &running {
                if wanted.get(resource) != Some(plan) {
                    own.cancel();
                }
            }
            for (resource, plan) in wanted {
                // One that is still ending is started again when it has ended.
                if running.contains_key(&resource) {
                    continue;
                }
                let own = stop.child_token();
                running.insert(resource.clone(), (plan.clone(), own.clone()));
                let daemon = Daemon {
                    pipe: pipe_folder(&self.folder, &resource),
                    log: log_folder(&self.folder, &resource),
                    resource,
                    plan,
                    driver_root: self.driver_root.clone(),
                    modes: self.modes.clone(),
                    reports: reports.clone(),
                };
                daemons.spawn(daemon.keep(own));
            }
            tokio::select! {
                () = stop.cancelled() => break,
                changed = orders.changed() => if changed.is_err() { break },
                Some(ended) = daemons.join_next() => match ended {
                    Ok(resource) => { running.remove(&resource); }
                    Err(error) => std::panic::resume_unwind(error.into_panic()),
                },
            }
        }
        stop.cancel();
        while daemons.join_next().await.is_some() {}
    }

    async fn listen(
        &self,
        orders: &watch::Sender<Option<Plans>>,
        reports: &watch::Sender<Report>,
        stop: &CancellationToken,
    ) {
        let mut agents = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                () = stop.cancelled() => break,
                Some(_) = agents.join_next() => continue,
                accepted = self.listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, _)) => {
                    let (orders, reports) = (orders.clone(), reports.subscribe());
                    agents.spawn(async move {
                        let Err(error) = attend(stream, &orders, reports).await;
                        if !matches!(error, WireError::End) {
                            tracing::warn!("an agent is not heard any more: {}", one_line(&error));
                        }
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "can't accept an agent's connection");
                    sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
}

/// A socket for root alone.
fn listen(path: &Path) -> Result<UnixListener, KeeperError> {
    let failed = |source| KeeperError::Folder { path: path.to_owned(), source };
    let cleared = fs::remove_file(path).or_else(|error| match error.kind() {
        io::ErrorKind::NotFound => Ok(()),
        _ => Err(error),
    });
    let listener = cleared.and_then(|()| UnixListener::bind(path)).map_err(failed)?;
    fs::set_permissions(path, Permissions::from_mode(0o600)).map_err(failed)?;
    Ok(listener)
}

/// Hears what an agent orders, and tells it how things are. What it ordered stays when it goes.
async fn attend(
    stream: UnixStream,
    orders: &watch::Sender<Option<Plans>>,
    mut reports: watch::Receiver<Report>,
) -> Result<std::convert::Infallible, WireError> {
    let (read, mut write) = stream.into_split();
    let mut ear = Ear::new(BufReader::new(read));
    let hearing = async {
        loop {
            let plans: Plans = ear.hear::<Orders>().await?.try_into()?;
            orders.send_if_modified(|now| {
                let news = now.as_ref() != Some(&plans);
                *now = Some(plans);
                news
            });
        }
    };
    let telling = async {
        loop {
            let report = reports.borrow_and_update().clone();
            say(&mut write, &report).await?;
            let _ = timeout(BEAT, reports.changed()).await;
        }
    };
    tokio::select! { end = hearing => end, end = telling => end }
}
