//! Wiring: from arguments to supervised subsystems. Everything that fails here fails the process with one line.

use std::{path::Path, sync::Arc, time::Duration};

use anyhow::Context as _;
use spillway_daemon::{
    admin::{self, Readiness},
    supervisor::Supervisor,
    telemetry,
};
use spillway_device_plugin::{
    config::Config,
    discovery::{self, Backend, Roots, dfl::DflBackend, nvml::NvmlBackend},
    inventory::Inventory,
    metrics::Metrics,
    plugins,
    preference::Policy,
    registration::{FolderError, KubeletFolder, Registrations},
    server::Shared,
};
use tokio::{sync::watch, time::timeout};
use tokio_util::sync::CancellationToken;

use crate::{
    args::Args,
    holders::{self, Holders, HoldersReader},
    metrics, readiness,
};

/// How often to try again while another agent holds the device plugin folder.
const RETRY: Duration = Duration::from_secs(1);

/// Runs the agent until a signal, or until something that it can't do without has failed.
///
/// # Errors
/// What the user has to know, with its whole chain of causes.
pub fn run(args: &Args) -> anyhow::Result<()> {
    telemetry::init(args.daemon.log_format, &args.daemon.log_level)?;
    let config = args.config.as_deref().map(Config::read).transpose()?.unwrap_or_default();
    // Two workers are plenty for a few sockets; one per core of a large machine would only hold memory.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("can't start the async runtime")?;
    runtime.block_on(serve(args, &config))
}

async fn serve(args: &Args, config: &Config) -> anyhow::Result<()> {
    let folder = take_folder(&args.device_plugin_dir)?;
    let backends = backends(args, config);
    let names = backends.iter().map(|backend| backend.name()).collect::<Vec<_>>();
    tracing::info!(version = env!("CARGO_PKG_VERSION"), backends = names.join(","), "spillway-agent starts");
    let inventory = watch::Sender::new(Inventory::starting(names));
    let registrations = watch::Sender::new(Registrations::new());
    let plugin_metrics = Metrics::default();
    let readiness = Readiness::default();

    let mut supervisor = Supervisor::new();
    let stop = supervisor.stop();
    if let Some(address) = args.daemon.admin_address.0 {
        let registry = metrics::registry(inventory.subscribe(), registrations.subscribe(), &plugin_metrics);
        supervisor.start("admin", admin::serve(address, Arc::new(registry), readiness.clone(), stop.clone()));
    }
    supervisor.start("readiness", {
        let (inventory, registrations) = (inventory.subscribe(), registrations.subscribe());
        let stop = stop.clone();
        async move {
            readiness::run(readiness, inventory, registrations, stop).await;
            Ok(())
        }
    });
    let reader = HoldersReader::new(args.kubelet_paths());
    let holders = watch::Sender::new(Holders::default());
    supervisor.start("holders", {
        let (reader, holders, stop) = (reader.clone(), holders.clone(), stop.clone());
        async move {
            holders::run(reader, holders, stop).await;
            Ok(())
        }
    });
    for backend in backends {
        supervisor.start(backend.name(), {
            let (inventory, stop) = (inventory.clone(), stop.clone());
            async move { Ok(discovery::supervise(backend, inventory, stop).await?) }
        });
    }
    supervisor.start("plugins", {
        let (path, inventory) = (args.device_plugin_dir.clone(), inventory.subscribe());
        async move {
            let folder = match folder {
                Some(folder) => Some(folder),
                None => wait_for_folder(&path, &stop).await?,
            };
            if let Some(folder) = folder {
                let shared = Shared {
                    inventory,
                    before_start: Vec::new(),
                    preference: Policy::default(),
                    metrics: plugin_metrics,
                };
                plugins::run(folder, shared, registrations, stop).await;
            }
            Ok(())
        }
    });
    supervisor.run(args.grace()).await
}

fn backends(args: &Args, config: &Config) -> Vec<Box<dyn Backend>> {
    let roots =
        Roots { sys: args.sys_root.clone(), dev: args.dev_root.clone(), proc: args.proc_root.clone() };
    let mut backends: Vec<Box<dyn Backend>> = Vec::new();
    if config.gpu.enabled {
        let root = args.nvidia_driver_root.clone();
        backends.push(Box::new(NvmlBackend::new(root, roots.clone(), args.refresh(), config.gpu.clone())));
    }
    if config.fpga.enabled {
        backends.push(Box::new(DflBackend::new(roots, args.refresh())));
    }
    backends
}

/// Takes the device plugin folder; none while another agent holds it.
fn take_folder(path: &Path) -> Result<Option<KubeletFolder>, FolderError> {
    match KubeletFolder::open(path) {
        Err(FolderError::Held(_)) => Ok(None),
        other => other.map(Some),
    }
}

/// Waits until the other agent ends, as it does when this one replaces it. None when this one is to stop first.
async fn wait_for_folder(
    path: &Path,
    stop: &CancellationToken,
) -> Result<Option<KubeletFolder>, FolderError> {
    tracing::warn!(folder = %path.display(), "another spillway-agent holds the device plugin folder: waiting until it ends");
    loop {
        if timeout(RETRY, stop.cancelled()).await.is_ok() {
            return Ok(None);
        }
        if let Some(folder) = take_folder(path)? {
            return Ok(Some(folder));
        }
    }
}
