//! Ending containers as a kubelet does: the event, the preStop hook, its turn, the stop signal; all of it within one grace period.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures::future::join_all;
use k8s_openapi::api::core::v1::{Container, Pod};
use tokio::{sync::watch, time::Instant};

use super::{
    Next, Shared, SyncError, Worker,
    hooks::{self, unwanted},
    teardown::{LEAST_GRACE_SECONDS, grace_seconds},
};
use crate::{
    pod::{
        ephemeral,
        events::Kind,
        lifecycle::{self, Kill},
        probe,
    },
    provider::{ProviderError, observed::ObservedPod, runtime::ContainerRuntime},
};

/// A container to end.
pub(super) struct Ending {
    pub(super) name: String,
    /// The provider's ID.
    pub(super) id: String,
    /// What its event says.
    pub(super) message: String,
    /// Seconds, the hook's and the wait for others included.
    pub(super) grace: u64,
}

/// What all containers that are ended together share.
struct Together<'a> {
    shared: Arc<Shared>,
    runtime: &'a dyn ContainerRuntime,
    pod: Option<&'a Arc<Pod>>,
    pod_ip: &'a str,
    /// IDs of containers whose hook has ended.
    hooked: Arc<Mutex<BTreeSet<String>>>,
    /// Who waits for whom.
    order: BTreeMap<String, BTreeSet<String>>,
    /// Names of those that have ended.
    ended: watch::Sender<BTreeSet<String>>,
}

impl Worker {
    /// Ends containers that have failed a probe or get other resources; the pod goes on.
    pub(super) async fn kill(
        &mut self,
        pod: &Arc<Pod>,
        runtime: &dyn ContainerRuntime,
        seen: &ObservedPod,
        kills: &[Kill],
    ) -> Result<Next, SyncError> {
        let mut endings = Vec::new();
        for kill in kills {
            self.memory.loops.killing(seen, kill);
            let own = ephemeral::named(pod, &kill.name)
                .and_then(|container| probe::grace_seconds(&container, kill.failed?))
                .map(|seconds| seconds.max(0).unsigned_abs());
            endings.push(Ending {
                name: kill.name.clone(),
                id: kill.id.clone(),
                message: kill.message.clone(),
                grace: own.unwrap_or_else(|| grace_seconds(pod)),
            });
        }
        self.note_kills(seen, kills).await?;
        let ip = self.pod_ip(pod, seen);
        let unwanted = unwanted(self.latest.clone());
        if self.end_containers(runtime, Some(pod), &ip, endings, unwanted).await? {
            for kill in kills {
                self.memory.loops.killed(kill);
            }
        }
        Ok(Next::Again)
    }

    /// Whatever dies from here on: these are ended, and started again.
    async fn note_kills(&self, seen: &ObservedPod, kills: &[Kill]) -> Result<(), SyncError> {
        let returning = kills.iter().filter(|kill| kill.returns);
        let runs = returning.filter_map(|kill| seen.containers.iter().find(|run| run.id == kill.id));
        let runs: Vec<_> = runs.map(|run| (run.name.clone(), run.attempt)).collect();
        if runs.is_empty() {
            return Ok(());
        }
        let folder = self.folder.clone();
        let note = move || runs.iter().try_for_each(|(name, attempt)| folder.note_kill(name, *attempt));
        let noted = tokio::task::spawn_blocking(note).await;
        noted.map_err(|error| SyncError::Waiting(error.to_string()))??;
        Ok(())
    }

    /// Ends containers, and tells how far that is. `false`: `interrupt` came first; whoever has not ended by then goes on ending.
    pub(super) async fn end_containers(
        &mut self,
        runtime: &dyn ContainerRuntime,
        pod: Option<&Arc<Pod>>,
        pod_ip: &str,
        endings: Vec<Ending>,
        interrupt: impl Future<Output = ()>,
    ) -> Result<bool, SyncError> {
        let running = endings.iter().map(|ending| ending.name.clone()).collect();
        let spec = pod.and_then(|pod| pod.spec.as_ref());
        let together = Together {
            shared: Arc::clone(&self.shared),
            runtime,
            pod,
            pod_ip,
            hooked: Arc::clone(&self.memory.pre_stopped),
            order: spec.map(|spec| lifecycle::ends_after(spec, &running)).unwrap_or_default(),
            ended: watch::Sender::default(),
        };
        let all = join_all(endings.iter().map(|ending| together.end(ending)));
        let work = async {
            tokio::select! {
                results = all => results.into_iter().collect::<Result<Vec<()>, ProviderError>>().map(|_| true),
                () = interrupt => Ok(false),
            }
        };
        // A single container's end is told by whoever called.
        Ok(match pod.filter(|_| endings.len() > 1 || self.prober.is_asking()) {
            Some(pod) => self.telling_meanwhile(pod, runtime, work).await?,
            None => work.await?,
        })
    }

    /// Waits for something that takes its time, while the status goes on telling how the pod's containers are.
    pub(super) async fn telling_meanwhile<T>(
        &mut self,
        pod: &Arc<Pod>,
        runtime: &dyn ContainerRuntime,
        work: impl Future<Output = T>,
    ) -> T {
        let entry = Arc::clone(&self.entry);
        let mut work = std::pin::pin!(work);
        let mut is_news = false;
        let done = loop {
            tokio::select! {
                done = &mut work => break done,
                () = entry.wake.notified() => is_news = true,
                () = self.pen.next_end() => {}
            }
            let tell = self.tell(pod, runtime);
            tokio::select! {
                done = &mut work => break done,
                told = tell => if let Err(error) = told {
                    tracing::debug!(pod = %entry.pod, %error, "how the pod is can't be told");
                },
            }
        };
        // It may take more than a status.
        if is_news {
            entry.wake.notify_one();
        }
        done
    }

    /// Writes the status of the moment.
    async fn tell(&mut self, pod: &Arc<Pod>, runtime: &dyn ContainerRuntime) -> Result<(), SyncError> {
        let seen = self.observe(runtime, pod).await?;
        self.show(pod, &seen).await;
        Ok(())
    }
}

impl Together<'_> {
    async fn end(&self, ending: &Ending) -> Result<(), ProviderError> {
        let began = Instant::now();
        let left = || ending.grace.saturating_sub(began.elapsed().as_secs());
        if let Some(pod) = self.pod {
            let recorder = &self.shared.recorder;
            recorder.container(pod, &ending.name, Kind::Normal, "Killing", &ending.message);
            if let Some(container) = ephemeral::named(pod, &ending.name) {
                self.pre_stop(pod, &container, ending).await;
            }
        }
        if let Some(others) = self.order.get(&ending.name) {
            let mut ended = self.ended.subscribe();
            let turn = ended.wait_for(|ended| others.is_subset(ended));
            let _ = tokio::time::timeout(Duration::from_secs(left()), turn).await;
        }
        self.runtime.stop_container(&ending.id, left().max(LEAST_GRACE_SECONDS)).await?;
        self.ended.send_modify(|ended| {
            ended.insert(ending.name.clone());
        });
        Ok(())
    }

    /// Runs the hook once, as long as the grace period lasts.
    async fn pre_stop(&self, pod: &Arc<Pod>, container: &Container, ending: &Ending) {
        let hook = container.lifecycle.as_ref().and_then(|lifecycle| lifecycle.pre_stop.as_ref());
        let done = || self.hooked.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(hook) = hook.filter(|_| ending.grace > 0 && !done().contains(&ending.id)) else { return };
        let limit = Duration::from_secs(ending.grace);
        let run =
            hooks::run(&self.shared.recorder, pod, container, hook, self.pod_ip, self.runtime, &ending.id);
        match tokio::time::timeout(limit, run).await {
            Ok(Ok(())) => drop(done().insert(ending.id.clone())),
            Ok(Err(why)) => {
                tracing::debug!(
                    pod.uid = pod.metadata.uid,
                    container = container.name,
                    why,
                    "a preStop hook failed"
                );
                // What it said may be secret.
                let recorder = &self.shared.recorder;
                recorder.container(
                    pod,
                    &container.name,
                    Kind::Warning,
                    "FailedPreStopHook",
                    "PreStopHook failed",
                );
                done().insert(ending.id.clone());
            }
            Err(_) => {
                tracing::debug!(
                    pod.uid = pod.metadata.uid,
                    container = container.name,
                    "a preStop hook took all of the grace period"
                );
            }
        }
    }
}
