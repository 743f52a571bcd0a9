//! What the pod was given of the node: taken when it comes, changed in place when it asks for more or less, and brought into force in
//! its cgroup and its running containers.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use k8s_openapi::{
    api::core::v1::{Node, Pod, PodSpec},
    apimachinery::pkg::api::resource::Quantity,
};

use super::{Next, SyncError, Worker};
use crate::{
    identity::chain,
    pod::{
        admission::Refusal,
        allocation::{self, Allocation, Change},
        ephemeral,
        events::Kind,
        fit,
        ledger::Need,
        lifecycle::Kill,
        objects,
        ports::Taken,
        resources,
        status::{Note, Resize},
    },
    provider::{
        observed::ObservedPod,
        runtime::{ContainerRuntime, PodCgroup, Resources},
    },
};

/// How old what is known of the node may be; before a pod is refused it is read anew.
const NODE_AGE: Duration = Duration::from_mins(1);
/// Whoever has not given back by then what it holds may never do.
const GIVE_BACK_WITHIN: Duration = Duration::from_mins(2);
/// What failed is tried again after so long, unless the pod changes before.
const AGAIN: Duration = Duration::from_secs(10);

/// What is remembered of a pod's resources.
#[derive(Default)]
pub(super) struct Given {
    /// `None`: not looked at yet.
    allocation: Option<Allocation>,
    /// It ran before we were here.
    adopted: bool,
    /// As the status says it.
    pub(super) resize: Resize,
    /// What failed is not tried again before.
    again_at: Option<Instant>,
}

impl Given {
    /// The pod with what it was given.
    pub(super) fn of(&self, pod: &Arc<Pod>) -> Arc<Pod> {
        let resized =
            |allocation: &&Allocation| pod.spec.as_ref().is_some_and(|spec| allocation.is_resize(spec));
        match self.allocation.as_ref().filter(resized) {
            Some(allocation) => Arc::new(allocation.given(pod)),
            None => Arc::clone(pod),
        }
    }

    /// Memory that containers were made to ask for.
    pub(super) fn memory_requests(&self) -> BTreeMap<String, Quantity> {
        self.allocation.as_ref().map(Allocation::memory_requests).unwrap_or_default()
    }

    /// When what failed is to be tried again.
    pub(super) fn again_in(&self) -> Option<Duration> {
        Some(self.again_at?.saturating_duration_since(Instant::now()))
    }
}

impl Worker {
    /// Takes of the node what the pod asks for. The pod as it shall be made so, or why it can't be here.
    pub(super) async fn allocate(
        &mut self,
        pod: &Arc<Pod>,
        seen: &ObservedPod,
    ) -> Result<Result<Arc<Pod>, Refusal>, SyncError> {
        let default = PodSpec::default();
        let spec = pod.spec.as_ref().unwrap_or(&default);
        if self.memory.given.allocation.is_none() {
            if let Err(refusal) = self.take(pod, spec, seen).await? {
                return Ok(Err(refusal));
            }
            // Before it shares the CPU with others.
            self.shared.weigh().await;
        }
        let Some(allocation) = &self.memory.given.allocation else { return Ok(Ok(Arc::clone(pod))) };
        if allocation.is_resize(spec) {
            self.ask_for_more(pod, spec).await?;
            self.shared.weigh().await;
        } else if self.memory.given.resize.pending.take().is_some() {
            self.shared.ledger.withdraw(&self.entry.pod.uid);
        }
        Ok(Ok(self.memory.given.of(pod)))
    }

    /// The first look at a pod: what is on record, or else what it asks for.
    async fn take(
        &mut self,
        pod: &Pod,
        spec: &PodSpec,
        seen: &ObservedPod,
    ) -> Result<Result<(), Refusal>, SyncError> {
        let uid = &self.entry.pod.uid;
        self.shared.leaving.settled(uid);
        // Before it is seen what there is: what is given back meanwhile may not be in it.
        let others_leave = self.shared.leaving.any() && self.memory.first_seen.elapsed() < GIVE_BACK_WITHIN;
        let recorded = Allocation::load(self.folder.path());
        let mut allocation = recorded.clone().unwrap_or_else(|| Allocation::of(spec));
        let need = allocation.given(pod).spec.as_ref().map(Need::of).unwrap_or_default();
        if recorded.is_some() || !seen.is_empty() {
            // It was taken in before we were here.
            self.memory.given.adopted = true;
            self.shared.ledger.hold(uid, need);
            self.shared.ports.hold(uid, spec);
        } else {
            allocation.devices = match self.shared.devices.assign(uid, spec) {
                Ok(devices) => devices,
                Err(refusal) => return refuse_unless(others_leave, refusal),
            };
            if let Err(refusal) = self.admit(uid, need, spec).await? {
                self.shared.devices.free(uid);
                return refuse_unless(others_leave, refusal);
            }
        }
        if recorded.is_none() {
            save(&allocation, self.folder.path()).await?;
        }
        self.memory.given.resize = Resize::of(pod.status.as_ref());
        self.memory.given.allocation = Some(allocation);
        Ok(Ok(()))
    }

    /// Takes of the node what a new pod needs, all or nothing.
    async fn admit(&self, uid: &str, need: Need, spec: &PodSpec) -> Result<Result<(), Refusal>, SyncError> {
        let mut refused = None;
        // What is remembered of the node may have changed, and a refusal is for good.
        for age in [NODE_AGE, Duration::ZERO] {
            let node = self.node(age).await?;
            let room = Need::capacity(&objects::allocatable(&node));
            let taken = fit::lacks_feature(spec, &node)
                .map_or(Ok(()), Err)
                .and_then(|()| {
                    self.shared.ledger.admit(uid, need.clone(), &room).map_err(|lack| lack.refusal())
                })
                .and_then(|()| fit::refuse(spec, &node).map_or(Ok(()), Err))
                .and_then(|()| self.shared.ports.claim(uid, spec).map_err(|Taken| fit::port_taken()));
            let Err(refusal) = taken else { return Ok(Ok(())) };
            refused = Some(refusal);
            self.shared.ledger.free(uid);
        }
        Ok(refused.map_or(Ok(()), Err))
    }

    async fn ask_for_more(&mut self, pod: &Arc<Pod>, spec: &PodSpec) -> Result<(), SyncError> {
        let generation = pod.metadata.generation.unwrap_or(0);
        let uid = self.entry.pod.uid.clone();
        let need = Need::of(spec);
        let room = |node: &Node| Need::capacity(&objects::allocatable(node));
        let mut all = room(&*self.node(NODE_AGE).await?);
        if need.infeasible(&all).is_some() {
            all = room(&*self.node(Duration::ZERO).await?);
        }
        let refused = if let Some(why) = need.infeasible(&all) {
            self.shared.ledger.withdraw(&uid);
            Some(("Infeasible", "ResizeInfeasible", why))
        } else {
            let asked = self.shared.ledger.resize(pod, need, &all, &self.entry.wake);
            asked.err().map(|lack| ("Deferred", "ResizeDeferred", lack.to_string()))
        };
        let given = &mut self.memory.given;
        let recorder = &self.shared.recorder;
        if let Some((reason, event, message)) = refused {
            let why = Note { reason: Some(reason.to_owned()), message: Some(message), generation };
            let before = given.resize.pending.replace(why.clone());
            if before.is_none_or(|before| before.reason != why.reason || before.generation != generation) {
                let error = why.message.as_deref().unwrap_or_default();
                let text = allocation::summary(&format!("Pod resize {reason}"), pod, generation, error);
                recorder.pod(pod, Kind::Warning, event, &text);
            }
            return Ok(());
        }
        if let Some(allocation) = &mut given.allocation {
            let mut more = allocation.clone();
            more.give(spec);
            save(&more, self.folder.path()).await?;
            *allocation = more;
        }
        given.again_at = None;
        given.resize = Resize { pending: None, in_progress: Some(Note { generation, ..Note::default() }) };
        let text = allocation::summary("Pod resize started", pod, generation, "");
        recorder.pod(pod, Kind::Normal, "ResizeStarted", &text);
        Ok(())
    }

    /// This node, as of so long ago at most.
    pub(super) async fn node(&self, age: Duration) -> Result<Arc<Node>, SyncError> {
        let asked = self.shared.reader.node(&self.shared.settings.node_name, age).await;
        asked.map_err(|source| SyncError::Api { operation: "show this node", source })
    }

    /// Brings into force what was given, if it is not. `None`: there is nothing to do now.
    pub(super) async fn enforce(
        &mut self,
        pod: &Arc<Pod>,
        runtime: &dyn ContainerRuntime,
        seen: &ObservedPod,
    ) -> Result<Option<Next>, SyncError> {
        let default = PodSpec::default();
        let spec = pod.spec.as_ref().unwrap_or(&default);
        let given = &mut self.memory.given;
        let Some(allocation) = &given.allocation else { return Ok(None) };
        if std::mem::take(&mut given.adopted)
            && allocation.is_cgroup_in_force()
            && seen.sandbox().is_some_and(|sandbox| sandbox.ready)
            // An earlier version of ours may have weighed it otherwise. The pod runs on if that stays so.
            && let Err(error) = runtime.update_pod(&self.entry.pod.uid, resources::pod(spec)).await
        {
            tracing::warn!(pod = %self.entry.pod, error = chain(&error), "the pod's cgroup stays as it is");
        }
        let changes = allocation.changes(spec, seen);
        let is_due = given.again_at.is_none_or(|at| at <= Instant::now());
        if changes.is_empty() {
            if !allocation.is_cgroup_in_force() {
                if !is_due {
                    return Ok(None);
                }
                // No container runs that was given something else; the next will run in the same cgroup.
                match self.change_cgroup(runtime, seen, spec).await {
                    Ok(()) => {}
                    Err(Failure::Told(error)) => {
                        self.failed(pod, pod.metadata.generation.unwrap_or(0), &error);
                        return Ok(None);
                    }
                    Err(Failure::Sync(error)) => return Err(error),
                }
            }
            let given = &mut self.memory.given;
            given.again_at = None;
            if let Some(done) = given.resize.in_progress.take() {
                let text = allocation::summary("Pod resize completed", pod, done.generation, "");
                self.shared.recorder.pod(pod, Kind::Normal, "ResizeCompleted", &text);
            }
            return Ok(None);
        }
        if !is_due {
            return Ok(None);
        }
        let generation = pod.metadata.generation.unwrap_or(0);
        given.resize.in_progress.get_or_insert_with(|| Note { generation, ..Note::default() });
        let before = allocation.in_force(pod).spec.unwrap_or_default();
        self.show(pod, seen).await;
        match self.change(pod, runtime, seen, spec, &before, changes).await {
            Ok(next) => Ok(Some(next)),
            Err(Failure::Told(error)) => {
                self.failed(pod, generation, &error);
                Ok(None)
            }
            Err(Failure::Sync(error)) => Err(error),
        }
    }

    fn failed(&mut self, pod: &Pod, generation: i64, message: &str) {
        let given = &mut self.memory.given;
        given.again_at = Some(Instant::now() + AGAIN);
        let note = given.resize.in_progress.get_or_insert_with(|| Note { generation, ..Note::default() });
        let told = note.message.as_deref() == Some(message);
        (note.reason, note.message) = (Some("Error".to_owned()), Some(message.to_owned()));
        if !told {
            let text = allocation::summary("Pod resize error", pod, note.generation, message);
            self.shared.recorder.pod(pod, Kind::Warning, "ResizeError", &text);
        }
    }

    /// The pod's cgroup is widened first and narrowed last, so that containers always fit into it.
    async fn change(
        &mut self,
        pod: &Arc<Pod>,
        runtime: &dyn ContainerRuntime,
        seen: &ObservedPod,
        spec: &PodSpec,
        before: &PodSpec,
        changes: Vec<Change>,
    ) -> Result<Next, Failure> {
        let uid = self.entry.pod.uid.clone();
        let (old, new) = (resources::pod(before), resources::pod(spec));
        self.check_memory(runtime, spec, before, &changes).await?;
        let wide = PodCgroup { limits: wider(old.limits, new.limits), ..new };
        runtime.update_pod(&uid, wide).await.map_err(told)?;
        let mut kills = Vec::new();
        for Change { name, id, restart } in changes {
            if restart {
                let message = format!("Container {name} resize requires restart");
                kills.push(Kill { name, id, message, failed: None, returns: true });
                continue;
            }
            let Some(container) = ephemeral::own(spec, &name) else { continue };
            let resources = resources::container(spec, container, self.shared.machine_memory);
            runtime.update_container(&id, resources).await.map_err(told)?;
            self.enforced(&name).await?;
        }
        if !kills.is_empty() {
            self.kill(pod, runtime, seen, &kills).await?;
        }
        self.change_cgroup(runtime, seen, spec).await?;
        Ok(Next::Again)
    }

    /// Makes the pod's cgroup that of what was given.
    async fn change_cgroup(
        &mut self,
        runtime: &dyn ContainerRuntime,
        seen: &ObservedPod,
        spec: &PodSpec,
    ) -> Result<(), Failure> {
        // A sandbox that is yet to be made brings its cgroup.
        if seen.sandbox().is_some() {
            runtime.update_pod(&self.entry.pod.uid, resources::pod(spec)).await.map_err(told)?;
        }
        let Some(allocation) = &mut self.memory.given.allocation else { return Ok(()) };
        allocation.cgroup_enforced();
        Ok(save(allocation, self.folder.path()).await?)
    }

    /// CDI names of the devices that a container was given.
    pub(super) fn devices(&self, container: &str) -> Vec<String> {
        let given = self.memory.given.allocation.as_ref();
        given.and_then(|given| given.devices.get(container).cloned()).unwrap_or_default()
    }

    /// A container has what it was given.
    pub(super) async fn enforced(&mut self, name: &str) -> Result<(), SyncError> {
        let Some(allocation) = &mut self.memory.given.allocation else { return Ok(()) };
        if allocation.enforced(name) {
            save(allocation, self.folder.path()).await?;
        }
        Ok(())
    }

    /// The kernel would kill what uses more than it may.
    async fn check_memory(
        &self,
        runtime: &dyn ContainerRuntime,
        spec: &PodSpec,
        before: &PodSpec,
        changes: &[Change],
    ) -> Result<(), Failure> {
        let Some(stats) = runtime.stats() else { return Ok(()) };
        let limit_of = |spec: &PodSpec, name: &str| {
            resources::container(spec, ephemeral::own(spec, name)?, 0).memory_bytes
        };
        let of_pod =
            narrower(resources::pod(before).limits.memory_bytes, resources::pod(spec).limits.memory_bytes);
        let of_containers: Vec<(&str, u64)> = changes
            .iter()
            .filter(|change| !change.restart)
            .filter_map(|change| {
                let name = change.name.as_str();
                Some((name, narrower(limit_of(before, name), limit_of(spec, name))?))
            })
            .collect();
        if of_pod.is_none() && of_containers.is_empty() {
            return Ok(());
        }
        let usage = stats.usage().await.map_err(told)?;
        let Some(usage) = usage.pods.into_iter().find(|usage| usage.pod.uid == self.entry.pod.uid) else {
            return Err(Failure::Told(format!("unable to read memory usage for pod {}", self.entry.pod)));
        };
        let mut problems = Vec::new();
        if let (Some(limit), Some(used)) = (of_pod, usage.total.memory)
            && used.usage >= limit
        {
            let used = used.usage;
            problems
                .push(format!("attempting to set pod memory limit ({limit}) below current usage ({used})"));
        }
        for (name, limit) in of_containers {
            let container = usage.containers.iter().find(|container| container.name == name);
            if let Some(used) = container.and_then(|container| container.total.memory)
                && used.usage >= limit
            {
                let used = used.usage;
                problems.push(format!(
                    "attempting to set container {name:?} memory limit ({limit}) below current usage ({used})"
                ));
            }
        }
        match problems.as_slice() {
            [] => Ok(()),
            [one] => Err(Failure::Told(format!("cannot decrease memory limits: {one}"))),
            all => Err(Failure::Told(format!("cannot decrease memory limits: [{}]", all.join(", ")))),
        }
    }
}

/// Why what was given is not in force.
enum Failure {
    /// The pod's status says it, and it is tried again.
    Told(String),
    /// Nothing is wrong with the resize.
    Sync(SyncError),
}

impl From<SyncError> for Failure {
    fn from(error: SyncError) -> Self {
        Self::Sync(error)
    }
}

fn told(error: crate::provider::ProviderError) -> Failure {
    match error {
        error @ crate::provider::ProviderError::Unavailable { .. } => Failure::Sync(error.into()),
        error => Failure::Told(error.message()),
    }
}

async fn save(allocation: &Allocation, folder: &Path) -> Result<(), SyncError> {
    let (allocation, folder) = (allocation.clone(), folder.to_owned());
    let saved = tokio::task::spawn_blocking(move || allocation.save(&folder)).await;
    let saved = saved.map_err(|error| SyncError::Waiting(error.to_string()))?;
    saved.map_err(|error| SyncError::Waiting(chain(&error)))
}

/// What those have who are about to go is as good as free, if only in a moment.
fn refuse_unless<T>(others_leave: bool, refusal: Refusal) -> Result<Result<T, Refusal>, SyncError> {
    if others_leave {
        return Err(SyncError::Waiting(format!("other pods are about to end: {}", refusal.message)));
    }
    Ok(Err(refusal))
}

/// A limit that is new, or lower than before.
fn narrower(before: Option<i64>, after: Option<i64>) -> Option<u64> {
    let after = after.filter(|after| before.is_none_or(|before| *after < before))?;
    u64::try_from(after).ok()
}

/// What is enough for both.
fn wider(a: Resources, b: Resources) -> Resources {
    // Without a limit on one side nothing is to be raised: what there is stays.
    let higher = |a: Option<i64>, b: Option<i64>| a.zip(b).map(|(a, b)| a.max(b));
    Resources {
        cpu_shares: a.cpu_shares.max(b.cpu_shares),
        cpu_quota_us: higher(a.cpu_quota_us, b.cpu_quota_us),
        memory_bytes: higher(a.memory_bytes, b.memory_bytes),
        oom_score_adj: b.oom_score_adj,
    }
}
