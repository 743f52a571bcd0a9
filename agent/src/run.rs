//! Wiring: from arguments to supervised subsystems. Everything that fails here fails the process with one line.

mod account;
mod everywhere;
mod isolate;
mod mps;
mod threads;

use std::{path::Path, sync::Arc, time::Duration};

use spillway_daemon::{
    admin::{self, Readiness},
    supervisor::Supervisor,
    telemetry,
};
use spillway_device_plugin::{
    config::store::{Check, Document, Source, Store},
    discovery::{self, Memory, Roots, Setting},
    health::memo::{BOOT_ID, Memos},
    hold_back::HoldBack,
    inventory::Inventory,
    metrics::Metrics,
    plugins::{self, Neighbour},
    programming::{DflProgrammer, Programming},
    registration::{FolderError, KubeletFolder, Registrations},
    server::{PreStart, Shared},
    sharing::Rules,
};
use tokio::{sync::watch, time::timeout};
use tokio_util::sync::CancellationToken;

use account::Accounts;

use crate::{
    args::{Args, Command},
    check,
    holders::{Holders, HoldersReader},
    isolation::{self, Sources},
    metrics::{self, Now},
    neighbours::{self, Lookout},
    node::{EventSink, Node, PodMeta, Wiring},
    offering, readiness,
    shape::{self, LargestGroup},
};

/// How often to try again while another agent holds the device plugin folder.
const RETRY: Duration = Duration::from_secs(1);

/// Runs the agent until a signal, or until something that it can't do without has failed.
///
/// # Errors
/// What the user has to know, with its whole chain of causes.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let overrides = args.nvidia.overrides().map_err(anyhow::Error::msg)?;
    if let Some(Command::Check { file }) = &args.command {
        return check::check(file, &overrides);
    }
    telemetry::init(args.daemon.log_format, &args.daemon.log_level)?;
    if let Some(Command::Uninstall { everywhere }) = &args.command {
        return isolate::uninstall(args, everywhere.as_deref());
    }
    if let Some(Command::Mps) = &args.command {
        return mps::run(args, &overrides);
    }
    let configuration = Store::open(args.config_file(), overrides)?;
    let runtime = threads::runtime()?;
    // The only provider there is; without it TLS to the API server panics.
    let _ = rustls::crypto::ring::default_provider().install_default();
    runtime.block_on(serve(args, configuration))
}

async fn serve(args: &Args, configuration: Store) -> anyhow::Result<()> {
    let folder = take_folder(&args.device_plugin_dir)?;
    let serving = watch::Sender::new(false);
    let setting = setting(args, &configuration, serving.subscribe());
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        configuration = setting.config.summary(),
        "spillway-agent starts"
    );
    let inventory = watch::Sender::new(setting.inventory());
    let configuration = configuration.checked_by(possible(inventory.subscribe()));
    let registrations = watch::Sender::new(Registrations::new());
    let accounts = Accounts::default();
    let holders = accounts.following.all.clone();
    let (plugin_metrics, isolation_metrics) = (Metrics::default(), isolation::denials::Metrics::default());
    let readiness = Readiness::default();

    let mut supervisor = Supervisor::new();
    let stop = supervisor.stop();
    if let Some(address) = args.daemon.admin_address.0 {
        let now = Now {
            inventory: inventory.subscribe(),
            registrations: registrations.subscribe(),
            configuration: configuration.validity(),
            usage: accounts.usage.subscribe(),
        };
        let mut registry = metrics::registry(now, &plugin_metrics, &accounts.budgets);
        isolation_metrics.register(registry.sub_registry_with_prefix("isolation"));
        registry.register_collector(Box::new(LargestGroup {
            inventory: inventory.subscribe(),
            holders: holders.subscribe(),
        }));
        supervisor.start("admin", admin::serve(address, Arc::new(registry), readiness.clone(), stop.clone()));
    }
    let reader = HoldersReader::new(args.kubelet_paths());
    // Before anything is offered: devices may have been given by another configuration than this agent's.
    reader.tell(&inventory).await;
    let pods = watch::Sender::new(Vec::new());
    let isolation = isolate::open(
        args,
        Sources {
            inventory: inventory.subscribe(),
            holders: holders.subscribe(),
            reader: reader.clone(),
            pods: pods.subscribe(),
        },
        &readiness,
        isolation_metrics,
    )?;
    supervisor.start("readiness", {
        let (inventory, registrations) = (inventory.subscribe(), registrations.subscribe());
        let stop = stop.clone();
        async move {
            readiness::run(readiness, inventory, registrations, stop).await;
            Ok(())
        }
    });
    // A sick device is not worth waiting for. Then isolation: it waits until the last holder is gone, who would still use what is programmed.
    let held_back = HoldBack { inventory: inventory.subscribe(), configs: configuration.subscribe() };
    let isolating = isolation.step();
    let before_start = [Arc::new(held_back) as Arc<dyn PreStart>]
        .into_iter()
        .chain(isolating)
        .chain([programming(&setting.roots, &configuration)])
        .collect();
    let listed = watch::Sender::new(None);
    let seen = listed.subscribe();
    let (chosen, events) =
        start_node(args, &mut supervisor, &configuration, &inventory, holders.subscribe(), &serving, listed);
    accounts.start(args, &mut supervisor, reader, &configuration, &inventory, events.clone());
    isolate::start(&mut supervisor, args, isolation, pods, seen, serving.subscribe(), events.clone());
    let neighbours = start_neighbours(args, &mut supervisor, &inventory, events).await;
    supervisor.start("discovery", {
        let (configuration, inventory, stop) = (configuration.clone(), inventory.clone(), stop.clone());
        async move {
            // Where the node's label picks the configuration, nothing is offered by another one before.
            if let Some(mut chosen) = chosen {
                let _ = stop.run_until_cancelled(chosen.wait_for(|chosen| *chosen)).await;
            }
            let setting = Setting { config: configuration.current(), ..setting };
            Ok(discovery::run(setting, configuration.subscribe(), inventory, stop).await?)
        }
    });
    offering::start(&mut supervisor, args, &configuration, &inventory, serving.subscribe());
    supervisor.start("plugins", {
        let (path, inventory) = (args.device_plugin_dir.clone(), inventory.subscribe());
        let others = args.neighbour_folders();
        let configs = configuration.subscribe();
        threads::on_its_own("kubelet", async move {
            let folder = match folder {
                Some(folder) => Some(folder),
                None => wait_for_folder(&path, &others, &stop).await?,
            };
            if let Some(folder) = folder {
                serving.send_replace(true);
                let shared = Shared { inventory, before_start, configs, metrics: plugin_metrics };
                plugins::run(folder, shared, neighbours, registrations, stop).await;
            }
            Ok(())
        })
    });
    supervisor.run(args.grace()).await
}

/// Starts what is done in the Kubernetes API, if anything is. Gives whether the node's configuration has been chosen, and where events go.
fn start_node(
    args: &Args,
    supervisor: &mut Supervisor,
    configuration: &Store,
    inventory: &watch::Sender<Inventory>,
    holders: watch::Receiver<Holders>,
    serving: &watch::Sender<bool>,
    pods: watch::Sender<Option<Vec<PodMeta>>>,
) -> (Option<watch::Receiver<bool>>, EventSink) {
    let Some(node) = Node::new(&args.node) else { return (None, EventSink::default()) };
    let (chosen, events, stop) = (node.chosen(), node.events(), supervisor.stop());
    let configuration = configuration.clone();
    let wiring = Wiring {
        inventory: inventory.subscribe(),
        annotate: Some(Arc::new(move |inventory| {
            let value = shape::annotation(inventory, &holders.borrow());
            [(shape::ANNOTATION.to_owned(), value)].into()
        })),
        accept: Some(Arc::new(move |choice| {
            let document = choice.map(|(name, bytes)| Document { name, bytes });
            configuration.offer(Source::Node, document)
        })),
        pods: Some(pods),
        serving: serving.subscribe(),
    };
    supervisor.start("node", async move {
        node.run(wiring, stop).await;
        Ok(())
    });
    (Some(chosen), events)
}

/// A configuration that asks for what this machine's devices can't give is not put in force.
fn possible(inventory: watch::Receiver<Inventory>) -> Check {
    Arc::new(move |config| {
        let offered = inventory.borrow().ruled_by(Arc::new(Rules::of(config)));
        let refused = offered.refused();
        if refused.is_empty() { Ok(()) } else { Err(refused.join("; ")) }
    })
}

/// Looks for others who serve this machine's devices, once now and then all the time.
async fn start_neighbours(
    args: &Args,
    supervisor: &mut Supervisor,
    inventory: &watch::Sender<Inventory>,
    events: EventSink,
) -> watch::Receiver<Vec<Neighbour>> {
    let mut lookout = Lookout::new(args.neighbour_folders());
    let neighbours = watch::Sender::new(lookout.look(&inventory.subscribe()).await);
    let seen = neighbours.subscribe();
    let watching = neighbours::run(lookout, neighbours, inventory.subscribe(), events, supervisor.stop());
    supervisor.start("neighbours", async move {
        watching.await;
        Ok(())
    });
    seen
}

fn setting(args: &Args, configuration: &Store, serving: watch::Receiver<bool>) -> Setting {
    // A kubelet that starts may clean up beside its socket; folders it leaves alone.
    let folder = args.device_plugin_dir.join("spillway");
    let memos = Memos { folder, boot_id: BOOT_ID.into(), serving };
    Setting {
        roots: Roots { sys: args.sys_root.clone(), dev: args.dev_root.clone(), proc: args.proc_root.clone() },
        interval: args.refresh(),
        config: configuration.current(),
        memory: Memory::kept(memos),
    }
}

/// What programs FPGAs for containers.
fn programming(roots: &Roots, configuration: &Store) -> Arc<dyn PreStart> {
    let programmer = Arc::new(DflProgrammer::new(roots.dev.clone()));
    Arc::new(Programming::new(roots.clone(), configuration.subscribe(), programmer))
}

/// Takes the device plugin folder; none while another agent holds it.
fn take_folder(path: &Path) -> Result<Option<KubeletFolder>, FolderError> {
    match KubeletFolder::open(path) {
        Err(FolderError::Held(_)) => Ok(None),
        other => other.map(Some),
    }
}

/// Waits until the other agent has ended, as it does when this one replaces it, and the kubelet knows. None when this one is to stop first.
async fn wait_for_folder(
    path: &Path,
    others: &neighbours::Folders,
    stop: &CancellationToken,
) -> Result<Option<KubeletFolder>, FolderError> {
    tracing::warn!(folder = %path.display(), "another spillway-agent holds the device plugin folder: waiting until it ends");
    loop {
        if timeout(RETRY, stop.cancelled()).await.is_ok() {
            return Ok(None);
        }
        if let Some(folder) = take_folder(path)? {
            neighbours::settled(others).await;
            return Ok(Some(folder));
        }
    }
}
