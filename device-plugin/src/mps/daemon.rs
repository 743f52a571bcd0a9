//! One control daemon: started in the foreground, told its clients' limits, asked now and then whether it is there, and asked to quit.

use std::{
    env, fs, io,
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
    time::Duration,
};

use nvml_wrapper::enum_wrappers::device::ComputeMode;
use tokio::{
    io::AsyncWriteExt as _,
    process::{Child, Command},
    sync::{oneshot, watch},
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    ComputeModes, Plan,
    wire::{Order, Report, State},
};
use crate::{
    causes::one_line,
    device::{DeviceId, ResourceName},
    discovery::nvml::library,
};

/// The daemon, and the program that speaks to it.
const PROGRAM: &str = "nvidia-cuda-mps-control";
/// A question that any daemon answers.
const QUESTION: &str = "get_default_active_thread_percentage";
/// How long a daemon that has just been started may take to answer.
const START_WITHIN: Duration = Duration::from_secs(30);
/// One answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
const ASK_EVERY: Duration = Duration::from_secs(10);
/// After it was asked to quit. Clients may still compute; the daemon waits for them, we don't.
const QUIT_WITHIN: Duration = Duration::from_secs(3);
/// How soon one that failed is started again, at first and at most.
const RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));

/// Why there is no daemon.
#[derive(Debug, thiserror::Error)]
enum DaemonError {
    #[error("can't make {path}: --mps-dir must be writable")]
    Folder { path: PathBuf, source: io::Error },
    #[error("can't set the GPUs to exclusive mode: {0}")]
    Mode(String),
    #[error("can't start {program}: it is part of NVIDIA's driver, in usr/bin of the driver root")]
    Start { program: PathBuf, source: io::Error },
    #[error("the MPS daemon does not answer {command:?}")]
    Ask { command: String, source: io::Error },
    #[error("the MPS daemon does not answer {0:?}")]
    Silent(String),
    #[error("the MPS daemon refuses {command:?}: {why}")]
    Refused { command: String, why: String },
    #[error("the MPS daemon has ended: {0}")]
    Ended(String),
}

/// A daemon that is to run.
#[derive(Debug)]
pub(super) struct Daemon {
    pub(super) resource: ResourceName,
    pub(super) plan: Plan,
    pub(super) pipe: PathBuf,
    pub(super) log: PathBuf,
    /// Where the driver is, as this process sees it.
    pub(super) driver_root: PathBuf,
    pub(super) modes: Arc<dyn ComputeModes>,
    pub(super) reports: watch::Sender<Report>,
}

impl Daemon {
    /// Keeps it running until `stop`.
    pub(super) async fn keep(self, stop: CancellationToken) -> ResourceName {
        let mut pause = RETRY.0;
        self.tell(Some(Err("its MPS daemon is being started".to_owned())));
        while !stop.is_cancelled() {
            let failure = match self.once(&stop).await {
                Ok(()) => break,
                Err(error) => one_line(&error),
            };
            tracing::error!(resource = %self.resource, "{failure}; trying again in {pause:?}");
            self.tell(Some(Err(failure)));
            let _ = timeout(pause, stop.cancelled()).await;
            pause = (pause * 2).min(RETRY.1);
        }
        self.tell(None);
        if let Err(error) = self.exclusive(false).await {
            tracing::warn!(resource = %self.resource, %error, "the GPUs stay in exclusive mode");
        }
        self.resource
    }

    /// From its start to the time to stop, or to its failure.
    async fn once(&self, stop: &CancellationToken) -> Result<(), DaemonError> {
        for path in [&self.pipe, &self.log] {
            fs::create_dir_all(path).map_err(|source| DaemonError::Folder { path: path.clone(), source })?;
        }
        self.exclusive(true).await?;
        let mut child = self
            .command()
            .arg("-f")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .map_err(|source| DaemonError::Start { program: program(&self.driver_root), source })?;
        let attended = tokio::select! {
            attended = self.attend() => attended,
            ended = child.wait() => Err(DaemonError::Ended(
                ended.map_or_else(|error| error.to_string(), |status| status.to_string()),
            )),
            () = stop.cancelled() => Ok(()),
        };
        self.quit(&mut child).await;
        attended
    }

    /// Sets the limits, says that the daemon is ready, and goes on asking. Ends only with an error.
    async fn attend(&self) -> Result<(), DaemonError> {
        let mut first = self.ask(QUESTION).await;
        let answered = async {
            while first.is_err() {
                sleep(Duration::from_millis(100)).await;
                first = self.ask(QUESTION).await;
            }
        };
        timeout(START_WITHIN, answered).await.map_err(|_| DaemonError::Silent(QUESTION.to_owned()))?;
        for command in self.plan.commands() {
            self.ask(&command).await?;
        }
        tracing::info!(resource = %self.resource, gpus = self.plan.gpus.len(), clients = self.plan.clients, "the MPS daemon is ready");
        self.tell(Some(Ok(())));
        loop {
            sleep(ASK_EVERY).await;
            self.ask(QUESTION).await?;
        }
    }

    /// One command, as a user would type it.
    async fn ask(&self, command: &str) -> Result<(), DaemonError> {
        let failed = |source| DaemonError::Ask { command: command.to_owned(), source };
        let exchange = async {
            let mut child =
                self.command().stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().map_err(failed)?;
            if let Some(mut input) = child.stdin.take() {
                input.write_all(format!("{command}\n").as_bytes()).await.map_err(failed)?;
            }
            let output = child.wait_with_output().await.map_err(failed)?;
            if output.status.success() {
                Ok(())
            } else {
                let why = String::from_utf8_lossy(&output.stdout).trim().chars().take(200).collect();
                Err(DaemonError::Refused { command: command.to_owned(), why })
            }
        };
        timeout(ANSWER_WITHIN, exchange)
            .await
            .unwrap_or_else(|_| Err(DaemonError::Silent(command.to_owned())))
    }

    async fn quit(&self, child: &mut Child) {
        if matches!(child.try_wait(), Ok(None)) {
            let _ = self.ask("quit").await;
            if timeout(QUIT_WITHIN, child.wait()).await.is_err() {
                tracing::warn!(resource = %self.resource, "the MPS daemon does not quit: killed");
                let _ = child.kill().await;
            }
        }
    }

    /// The program with the environment by which daemon and clients find each other, and nothing else of ours.
    fn command(&self) -> Command {
        let root = &self.driver_root;
        let gpus: Vec<_> = self.plan.gpus.keys().map(DeviceId::as_str).collect();
        let path = env::var("PATH").unwrap_or_default();
        let mut command = Command::new(program(root));
        command
            .env_clear()
            // The daemon starts its server by name.
            .env("PATH", format!("{}:{path}", root.join("usr/bin").display()))
            .env("CUDA_MPS_PIPE_DIRECTORY", &self.pipe)
            .env("CUDA_MPS_LOG_DIRECTORY", &self.log)
            .env("CUDA_VISIBLE_DEVICES", gpus.join(","))
            .kill_on_drop(true);
        if let Some(folder) = library::folder(root) {
            command.env("LD_LIBRARY_PATH", root.join(folder));
        }
        command
    }

    async fn exclusive(&self, exclusive: bool) -> Result<(), DaemonError> {
        let gpus: Vec<_> = self.plan.gpus.keys().cloned().collect();
        let (modes, (done, result)) = (self.modes.clone(), oneshot::channel());
        // A thread of its own: the driver may hang, and the runtime would wait for its own threads.
        std::thread::Builder::new()
            .name("mps-mode".to_owned())
            .spawn(move || {
                let _ = done.send(modes.set_exclusive(&gpus, exclusive));
            })
            .map_err(|error| DaemonError::Mode(error.to_string()))?;
        match timeout(START_WITHIN, result).await {
            Ok(Ok(result)) => result.map_err(DaemonError::Mode),
            _ => Err(DaemonError::Mode("the driver does not answer".to_owned())),
        }
    }

    /// None: there is no daemon any more.
    fn tell(&self, state: Option<Result<(), String>>) {
        self.reports.send_if_modified(|report| {
            let before = report.clone();
            match state {
                Some(state) => {
                    let state = State { order: Order::from(&self.plan), trouble: state.err() };
                    report.daemons.insert(self.resource.to_string(), state);
                }
                None => {
                    report.daemons.remove(self.resource.as_str());
                }
            }
            *report != before
        });
    }
}

fn program(driver_root: &Path) -> PathBuf {
    let below = driver_root.join("usr/bin").join(PROGRAM);
    if below.exists() { below } else { PathBuf::from(PROGRAM) }
}

/// Compute modes by NVML, which is opened for the moment.
#[derive(Debug)]
pub struct NvmlModes {
    /// Where the driver is, as this process sees it.
    pub driver_root: PathBuf,
}

impl ComputeModes for NvmlModes {
    fn set_exclusive(&self, gpus: &[DeviceId], exclusive: bool) -> Result<(), String> {
        let (nvml, _) = library::open(&self.driver_root).map_err(|error| one_line(&error))?;
        let mode = if exclusive { ComputeMode::ExclusiveProcess } else { ComputeMode::Default };
        for gpu in gpus {
            let set = nvml.device_by_uuid(gpu.as_str()).and_then(|mut device| device.set_compute_mode(mode));
            set.map_err(|error| format!("{gpu}: {error}"))?;
        }
        Ok(())
    }
}
