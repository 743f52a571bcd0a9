//! Wiring of isolation, and of what it needs to know of pods.

use std::{path::Path, sync::Arc};

use anyhow::Context as _;
use spillway_daemon::{admin::Readiness, supervisor::Supervisor};
use spillway_device_plugin::registration::{FolderError, KubeletFolder};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::{
    args::Args,
    isolation::{self, Isolation, Sources, denials::Denial, settings::Mode},
    node::{EventSink, PodMeta, events::Kind},
    pods::{self, PodInfo},
};

/// Isolation, and what it denies.
pub(super) type Opened = (Arc<Isolation>, mpsc::Receiver<Denial>);

/// Isolation, if it is wanted and this machine can. None where it is only to be audited and can't be.
pub(super) fn open(
    args: &Args,
    sources: Sources,
    readiness: &Readiness,
    metrics: isolation::denials::Metrics,
) -> anyhow::Result<Option<Opened>> {
    let roots = isolation::nodes::Roots {
        sys: args.sys_root.clone(),
        dev: args.dev_root.clone(),
        proc: args.proc_root.clone(),
    };
    let opened = match args.isolation.mode {
        Mode::Off => return Ok(None),
        _ => Isolation::open(&args.isolation, roots, sources, readiness.clone(), metrics),
    };
    match opened {
        Ok((isolation, denials)) => Ok(Some((Arc::new(isolation), denials))),
        Err(error) if args.isolation.mode == Mode::Audit => {
            let why = anyhow::Error::from(error);
            tracing::warn!("isolation can't be audited here, pods are not watched: {why:#}");
            Ok(None)
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
fn remove_filter(bpf_dir: &Path) {
    match isolation::filter::uninstall(bpf_dir) {
        Ok(true) => tracing::info!("isolation is off: the filter that an earlier agent left was removed"),
        Ok(false) => {}
        Err(error) => {
            tracing::warn!(
                "isolation is off, but what an earlier agent left can't be removed: {:#}",
                anyhow::Error::from(error)
            );
        }
    }
}

/// The command `uninstall`.
pub(super) fn uninstall(args: &Args) -> anyhow::Result<()> {
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
    isolation: Option<Opened>,
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
    let (mode, bpf_dir) = (args.isolation.mode, args.isolation.bpf_dir.clone());
    supervisor.start("isolation", async move {
        let serves = stop.run_until_cancelled(serving.wait_for(|serving| *serving)).await;
        if serves.is_some_and(|serves| serves.is_ok()) {
            match isolation {
                Some((isolation, denials)) => {
                    tokio::join!(isolation.run(stop.clone()), tell(denials, events, &stop));
                }
                None if mode == Mode::Off => remove_filter(&bpf_dir),
                None => {}
            }
        }
        stop.cancelled().await;
        Ok(())
    });
}
