//! A pod's volumes on the machine: filled before its containers, kept fresh while they run.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;

use super::{SyncError, Worker, until};
use crate::{
    backoff,
    identity::chain,
    pod::{
        env::Runtime,
        ephemeral,
        events::Kind,
        objects::{self, Following},
        volumes::{self, Content},
    },
    provider::{Provider, observed::Sandbox},
};

/// After something went wrong with the volumes of a running pod they are tried again, and objects that were read so lately serve again.
const AGAIN: Duration = Duration::from_mins(1);
/// A Job's pods ask for their new tokens one after the other.
const SPREAD: Duration = Duration::from_secs(10);

/// Volumes that were filled.
pub(super) struct Mounted {
    /// Where they are, by name.
    pub(super) paths: BTreeMap<String, PathBuf>,
    /// The objects that are in them.
    following: Following,
    /// What the pod said of itself, if that is in them.
    told: Option<u64>,
    refresh_at: Option<Instant>,
}

impl Worker {
    /// Fills all volumes that can be filled, and makes what is wrong with one an event.
    pub(super) async fn mount_volumes(&mut self, pod: &Pod) -> Result<(), SyncError> {
        let wanted = pod.spec.as_ref().and_then(|spec| spec.volumes.clone()).unwrap_or_default();
        let namespace = &self.entry.pod.namespace;
        let objects = self.load(&objects::of_volumes(pod)).await;
        let following = self.shared.reader.follow(namespace, &objects, &self.entry.wake);
        self.renew_tokens(pod).await;
        let runtime = self.runtime_values(pod, Vec::new()).await?;
        let mut contents: Vec<(String, Content, Vec<PathBuf>)> = Vec::new();
        let mut failed = Vec::new();
        // What is in images is the runtime's matter.
        for volume in wanted.iter().filter(|volume| volume.image.is_none()) {
            match volumes::content(pod, volume, &objects, &self.memory.tokens, &runtime) {
                Ok(content) => {
                    contents.push((volume.name.clone(), content, volumes::nested(pod, &volume.name)));
                }
                Err(error) => failed.push(self.failed_mount(pod, &volume.name, &error)),
            }
        }
        let folder = self.folder.clone();
        let fs_group = volumes::fs_group(pod).and_then(|group| u32::try_from(group).ok());
        let put = tokio::task::spawn_blocking(move || {
            let put = |(name, content, nested): (String, Content, Vec<PathBuf>)| {
                let result = folder.put_volume(&name, &content, fs_group, &nested);
                (name, result)
            };
            contents.into_iter().map(put).collect::<Vec<_>>()
        });
        let mut paths = BTreeMap::new();
        for (name, result) in put.await.map_err(|error| SyncError::Waiting(error.to_string()))? {
            match result {
                Ok(path) => drop(paths.insert(name, path)),
                Err(error) => failed.push(self.failed_mount(pod, &name, &error)),
            }
        }
        let told = volumes::told(pod);
        if let Some(error) = failed.into_iter().next() {
            self.memory.read_again(Instant::now());
            // A running pod keeps what it has, and the rest is fresh.
            if let Some(mounted) = &mut self.memory.volumes {
                let refresh_at = Some(Instant::now() + AGAIN);
                *mounted = Mounted { paths: std::mem::take(&mut mounted.paths), following, told, refresh_at };
            }
            return Err(error);
        }
        let refresh_at = self.tokens_end().map(|left| {
            // One that could not be renewed is not asked for all the time.
            let left = if left.is_zero() { AGAIN } else { left };
            Instant::now() + left + SPREAD.mul_f64(backoff::random())
        });
        self.memory.volumes = Some(Mounted { paths, following, told, refresh_at });
        Ok(())
    }

    /// How long until a token of the pod has to be renewed.
    fn tokens_end(&self) -> Option<Duration> {
        self.memory.tokens.values().flatten().map(|token| until(token.renew_at())).min()
    }

    /// Whether the pod's runtime can make mounts within mounts read-only. Asked once, and only for pods to which it matters.
    pub(super) async fn deep_read_only(
        &mut self,
        pod: &Pod,
        sandbox: Option<&Sandbox>,
    ) -> Result<bool, SyncError> {
        if let Some(known) = self.memory.deep_read_only {
            return Ok(known);
        }
        // A debug container that asks may come later.
        if !asks_deep_read_only(pod) {
            return Ok(false);
        }
        let known = match &self.shared.provider {
            Provider::Runtime(runtime) => {
                // What the sandbox was made by holds, whatever has become of the RuntimeClass.
                let handler = match sandbox.map(|sandbox| &sandbox.runtime_handler) {
                    Some(told) if !told.is_empty() => told.clone(),
                    _ => self.runtime_handler(pod).await?,
                };
                Arc::clone(runtime).recursive_read_only(&handler).await?
            }
            Provider::PodService(_) => false,
        };
        self.memory.deep_read_only = Some(known);
        Ok(known)
    }

    fn failed_mount(&self, pod: &Pod, volume: &str, error: &(dyn std::error::Error + 'static)) -> SyncError {
        let message = format!("MountVolume.SetUp failed for volume {volume:?} : {}", chain(error));
        self.shared.recorder.pod(pod, Kind::Warning, "FailedMount", &message);
        SyncError::Waiting(message)
    }

    /// Brings the files of a running pod up to date if something in them has changed. Says when to look again.
    pub(super) async fn refresh_volumes(&mut self, pod: &Pod) -> Option<Duration> {
        let due = match &self.memory.volumes {
            // After a restart of ours: whatever they are now.
            None => true,
            Some(mounted) => {
                mounted.following.is_stale()
                    || mounted.told != volumes::told(pod)
                    || mounted.refresh_at.is_some_and(|at| at <= Instant::now())
            }
        };
        if due {
            // A running pod keeps what it has when something is wrong; the event tells.
            self.memory.read_again(Instant::now().checked_sub(AGAIN / 2)?);
            if let Err(error) = self.mount_volumes(pod).await {
                tracing::warn!(pod = %self.entry.pod, error = chain(&error), "volumes are not refreshed");
                return Some(AGAIN);
            }
        }
        let refresh_at = self.memory.volumes.as_ref()?.refresh_at?;
        Some(refresh_at.saturating_duration_since(Instant::now()).max(Duration::from_secs(1)))
    }

    async fn renew_tokens(&mut self, pod: &Pod) {
        for key in volumes::token_keys(pod) {
            let fresh = matches!(self.memory.tokens.get(&key), Some(Ok(token)) if token.renew_at() > Timestamp::now());
            if fresh {
                continue;
            }
            let (audience, seconds) = &key;
            let audience = (!audience.is_empty()).then_some(audience.as_str());
            // An old token that still holds is better than none.
            let older = self.memory.tokens.get(&key).and_then(|token| token.clone().ok());
            let older = older.filter(|token| token.expires_at > Timestamp::now());
            match self.shared.reader.token(pod, audience, *seconds, older.clone()).await {
                Err(error) if older.is_some() => {
                    tracing::warn!(pod = %self.entry.pod, %error, "a service account token is not renewed");
                }
                asked => drop(self.memory.tokens.insert(key, asked)),
            }
        }
    }

    /// What the pod learns about itself and its node.
    pub(super) async fn runtime_values(
        &self,
        pod: &Pod,
        pod_ips: Vec<std::net::IpAddr>,
    ) -> Result<Runtime, SyncError> {
        let allocatable = if names_resources(pod) {
            objects::allocatable(&*self.node(AGAIN).await?)
        } else {
            BTreeMap::new()
        };
        Ok(Runtime {
            host_ips: self.shared.settings.host_ips.clone(),
            pod_ips,
            allocatable,
            ..Runtime::default()
        })
    }
}

fn asks_deep_read_only(pod: &Pod) -> bool {
    let Some(spec) = &pod.spec else { return false };
    let mut mounts =
        ephemeral::each(spec, |own| &own.volume_mounts, |own| &own.volume_mounts).flatten().flatten();
    mounts.any(|mount| mount.recursive_read_only.as_deref().is_some_and(|mode| mode != "Disabled"))
}

/// Whether what the node has for pods matters to the pod: to a `resourceFieldRef`, or to the size of a tmpfs.
fn names_resources(pod: &Pod) -> bool {
    let Some(spec) = &pod.spec else { return false };
    let in_env = ephemeral::each(spec, |own| &own.env, |own| &own.env).flatten().flatten().any(|variable| {
        variable.value_from.as_ref().is_some_and(|source| source.resource_field_ref.is_some())
    });
    let of_items = |items: Option<&Vec<k8s_openapi::api::core::v1::DownwardAPIVolumeFile>>| {
        items.into_iter().flatten().any(|item| item.resource_field_ref.is_some())
    };
    let in_memory = spec.volumes.iter().flatten().any(|volume| {
        volume.empty_dir.as_ref().is_some_and(|source| source.medium.as_deref() == Some("Memory"))
    });
    in_env
        || in_memory
        || spec.volumes.iter().flatten().any(|volume| {
            let projected = volume.projected.as_ref().and_then(|source| source.sources.as_ref());
            of_items(volume.downward_api.as_ref().and_then(|source| source.items.as_ref()))
                || projected.into_iter().flatten().any(|source| {
                    of_items(source.downward_api.as_ref().and_then(|source| source.items.as_ref()))
                })
        })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_a_debug_container_asks_for_is_looked_up_too() {
        let pod = |debugger: serde_json::Value| -> Pod {
            let spec = json!({ "containers": [{ "name": "c" }], "ephemeralContainers": [debugger] });
            serde_json::from_value(json!({ "spec": spec })).unwrap()
        };
        let plain = pod(json!({ "name": "d", "volumeMounts": [{ "name": "v", "mountPath": "/v" }] }));
        assert!(!asks_deep_read_only(&plain) && !names_resources(&plain));
        let mount =
            json!({ "name": "v", "mountPath": "/v", "readOnly": true, "recursiveReadOnly": "Enabled" });
        assert!(asks_deep_read_only(&pod(json!({ "name": "d", "volumeMounts": [mount] }))));
        let limit = json!({ "name": "L", "valueFrom": { "resourceFieldRef": { "resource": "limits.cpu" } } });
        assert!(names_resources(&pod(json!({ "name": "d", "env": [limit] }))));
    }
}
