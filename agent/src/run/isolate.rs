//! Wiring of isolation, and of what it needs to know of pods.

use std::{path::Path, sync::Arc};

use anyhow::Context as _;
use spillway_daemon::{admin::Readiness, supervisor::Supervisor};
use spillway_device_plugin::{
    registration::{FolderError, KubeletFolder},
    server::PreStart,
};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::everywhere;
use crate::{
    args::Args,
    isolation::{self, Isolation, Sources, denials::Denial, settings::Mode},
    node::{EventSink, PodMeta, events::Kind},
    pods::{self, PodInfo},
};

/// The condition of readiness that is isolation's.
const CONDITION: &str = "isolation";

/// What came of opening it.
pub(super) enum Opened {
    /// It is not wanted. What an earlier agent left is to go before this one is ready.
    Off(Readiness),
    /// It is only to be audited, and can't be.
    Impossible,
    /// It is possible; and what it denies.
    On(Arc<Isolation>, mpsc::Receiver<Denial>),
}

impl Opened {
    /// What is to be done before a container starts, if anything.
    pub(super) fn step(&self) -> Option<Arc<dyn PreStart>> {
        match self {
            Self::On(isolation, _) => Some(isolation.clone()),
            Self::Off(_) | Self::Impossible => None,
        }
    }
}

/// Isolation, if it is wanted and this machine can.
pub(super) fn open(
    args: &Args,
    sources: Sources,
    readiness: &Readiness,
    metrics: isolation::denials::Metrics,
) -> anyhow::Result<Opened> {
    let roots = isolation::nodes::Roots {
        sys: args.sys_root.clone(),
        dev: args.dev_root.clone(),
        proc: args.proc_root.clone(),
    };
    let opened = match args.isolation.mode {
        Mode::Off => {
            readiness.set(CONDITION, Err("what an earlier agent left is not removed yet".to_owned()));
            return Ok(Opened::Off(readiness.clone()));
        }
        _ => Isolation::open(&args.isolation, roots, sources, readiness.clone(), metrics),
    };
    match opened {
        Ok((isolation, denials)) => Ok(Opened::On(Arc::new(isolation), denials)),
        Err(error) if args.isolation.mode == Mode::Audit => {
            let why = anyhow::Error::from(error);
            tracing::warn!("isolation can't be audited here, pods are not watched: {why:#}");
            Ok(Opened::Impossible)
        }
        Err(error) => Err(error).context("can't enforce isolation"),
    }
}

/// Makes an event of each pod's first denial of each node.
async fn tell(mut denials: mpsc::Receiver<Denial>, events: EventSink, stop: &CancellationToken) {
    while let Some(Some(denial)) = stop.run_until_cancelled(denials.recv()).await {
        let (reason, what) = if denial.enforced {
            ("AcceleratorDenied", "was refused")
        } else {
            ("AcceleratorDenialAudited", "would have been refused")
        };
        events.pod(
            &denial.pod,
            Kind::Warning,
            reason,
            &format!("it {what} {}, which it was not given", denial.node),
        );
    }
}

/// Takes away what an earlier agent left, now that isolation is off.
fn remove_filter(bpf_dir: &Path) -> Result<(), String> {
    match isolation::filter::uninstall(bpf_dir) {
        Ok(true) => tracing::info!("isolation is off: the filter that an earlier agent left was removed"),
        Ok(false) => {}
        Err(error) => {
            let why =
                format!("what an earlier agent left can't be removed: {:#}", anyhow::Error::from(error));
            tracing::warn!("isolation is off, but {why}");
            return Err(why);
        }
    }
    Ok(())
}

/// The command `uninstall`.
pub(super) fn uninstall(args: &Args, all: Option<&str>) -> anyhow::Result<()> {
    if let Some(set) = all {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("can't start the async runtime")?;
        return runtime.block_on(everywhere::run(set));
    }
    let folder = match KubeletFolder::open(&args.device_plugin_dir) {
        Err(error @ FolderError::Held(_)) => {
            return Err(error)
                .context("an agent runs on this machine, and would put back what is removed: end it first");
        }
        // Without a kubelet there is no agent either.
        other => other.ok(),
    };
    let found = isolation::filter::uninstall(&args.isolation.bpf_dir)?;
    drop(folder);
    tracing::info!(bpf_dir = %args.isolation.bpf_dir.display(), "{}", if found { "isolation was removed" } else { "there was nothing of isolation" });
    Ok(())
}

/// Starts it, to begin when this agent serves the kubelet: two at once would put each other's filter back.
pub(super) fn start(
    supervisor: &mut Supervisor,
    args: &Args,
    isolation: Opened,
    pods: watch::Sender<Vec<PodInfo>>,
    listed: watch::Receiver<Option<Vec<PodMeta>>>,
    mut serving: watch::Receiver<bool>,
    events: EventSink,
) {
    let stop = supervisor.stop();
    supervisor.start("pods", {
        let following = pods::follow(args.pod_logs_dir.clone(), listed, pods, stop.clone());
        async move {
            following.await;
            Ok(())
        }
    });
    let bpf_dir = args.isolation.bpf_dir.clone();
    supervisor.start("isolation", async move {
        let serves = stop.run_until_cancelled(serving.wait_for(|serving| *serving)).await;
        if serves.is_some_and(|serves| serves.is_ok()) {
            match isolation {
                Opened::On(isolation, denials) => {
                    tokio::join!(isolation.run(stop.clone()), tell(denials, events, &stop));
                }
                Opened::Off(readiness) => readiness.set(CONDITION, remove_filter(&bpf_dir)),
                Opened::Impossible => {}
            }
        }
        stop.cancelled().await;
        Ok(())
    });
}
