//! Images: there already, or pulled with the pod's secrets, one at a time and less and less often.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use k8s_openapi::api::core::v1::{Container, Pod, Secret};
use tokio::sync::OwnedSemaphorePermit;

use super::{
    Worker,
    start::{NotStarted, waits},
};
use crate::{
    backoff::Backoff,
    pod::{events::Kind, objects, pull},
    provider::{
        ProviderError,
        runtime::{ContainerRuntime, Image},
    },
};

/// First and longest wait between pulls of an image.
const PULL_AGAIN: (Duration, Duration) = (Duration::from_secs(10), Duration::from_mins(5));
/// The pulls of one image that failed.
pub(super) struct Pull {
    pub(super) again_at: Instant,
    backoff: Backoff,
    error: String,
}

impl Worker {
    /// The image, pulled if the pod's policy says so.
    pub(super) async fn ensure_image(
        &mut self,
        pod: &Arc<Pod>,
        runtime: &dyn ContainerRuntime,
        container: &Container,
        permit: &mut Option<OwnedSemaphorePermit>,
    ) -> Result<Image, NotStarted> {
        let name = container.image.clone().unwrap_or_default();
        let policy = container.image_pull_policy.as_deref().unwrap_or("IfNotPresent");
        let tell = |kind, reason: &str, message: &str| {
            self.shared.recorder.container(pod, &container.name, kind, reason, message);
        };
        if let Some(why) = pull::invalid_name(&name) {
            let message = format!("Failed to apply default image tag {name:?}: {why}");
            tell(Kind::Warning, "InspectFailed", &message);
            return Err(waits("InvalidImageName", message));
        }
        if policy != "Always" {
            let present = runtime.image(&name).await.map_err(|error| match error {
                ProviderError::Failed { message, .. } => waits("ImageInspectError", message),
                error => error.into(),
            })?;
            if let Some(image) = present
                && self.may_use(pod, &image).await
            {
                let message = format!(
                    "Container image {name:?} already present on machine and can be accessed by the pod"
                );
                tell(Kind::Normal, "Pulled", &message);
                return Ok(image);
            }
            if policy == "Never" {
                let message = format!("Container image {name:?} is not present with pull policy of Never");
                tell(Kind::Warning, "ErrImageNeverPull", &message);
                return Err(waits("ErrImageNeverPull", message));
            }
        }
        if let Some(pull) = self.memory.pulls.get(&name)
            && pull.again_at > Instant::now()
        {
            let message = format!("Back-off pulling image {name:?}");
            tell(Kind::Normal, "BackOff", &message);
            return Err(waits("ImagePullBackOff", format!("{message}: {}", pull.error)));
        }
        // A registry may take its time; others' turn.
        drop(permit.take());
        let lock = self.pull_lock(&name);
        let asked_at = Instant::now();
        let _one_at_a_time = lock.lock().await;
        tell(Kind::Normal, "Pulling", &format!("Pulling image {name:?}"));
        let started_at = Instant::now();
        match self.pull(pod, runtime, &name).await {
            Ok(image) => {
                let tell = |kind, reason: &str, message: &str| {
                    self.shared.recorder.container(pod, &container.name, kind, reason, message);
                };
                let message = format!(
                    "Successfully pulled image {name:?} in {:.3}s ({:.3}s including waiting). Image size: {} bytes.",
                    started_at.elapsed().as_secs_f64(),
                    asked_at.elapsed().as_secs_f64(),
                    image.size
                );
                tell(Kind::Normal, "Pulled", &message);
                self.memory.pulls.remove(&name);
                Ok(image)
            }
            Err(error) => {
                let text = error.message();
                let message = format!("Failed to pull image {name:?}: {text}");
                self.shared.recorder.container(pod, &container.name, Kind::Warning, "Failed", &message);
                let pull = self.memory.pulls.entry(name).or_insert_with(|| Pull {
                    again_at: Instant::now(),
                    backoff: Backoff::new(PULL_AGAIN.0, PULL_AGAIN.1),
                    error: String::new(),
                });
                pull.again_at = Instant::now() + pull.backoff.delay();
                pull.error = format!("ErrImagePull: {text}");
                Err(waits("ErrImagePull", text))
            }
        }
    }

    /// Pulls with each of the pod's credentials for the registry, without any if there are none.
    async fn pull(
        &self,
        pod: &Pod,
        runtime: &dyn ContainerRuntime,
        image: &str,
    ) -> Result<Image, ProviderError> {
        let secrets = self.pull_secrets(pod).await;
        let mut credentials: Vec<_> = secrets
            .iter()
            .flat_map(|secret| {
                pull::credentials(secret, image).into_iter().map(move |own| Some((secret, own)))
            })
            .collect();
        if credentials.is_empty() {
            credentials.push(None);
        }
        let mut result = Err(ProviderError::Failed { operation: "PullImage", message: String::new() });
        for credentials in &credentials {
            result = runtime.pull(image, credentials.as_ref().map(|(_, own)| own)).await;
            if let Ok(pulled) = &result {
                let secret = credentials.as_ref().and_then(|(secret, _)| secret.metadata.uid.as_deref());
                if let Err(error) = self.shared.access.pulled(&pulled.id, secret) {
                    tracing::warn!(image, %error, "who may use the image is not on record for after a restart");
                }
                break;
            }
        }
        result
    }

    /// The pod's `imagePullSecrets` that are there.
    async fn pull_secrets(&self, pod: &Pod) -> Vec<Secret> {
        let named = pod.spec.as_ref().and_then(|spec| spec.image_pull_secrets.as_deref()).unwrap_or_default();
        let references = objects::References {
            secrets: named.iter().map(|secret| secret.name.clone()).collect(),
            ..Default::default()
        };
        let objects =
            self.shared.reader.load(&self.entry.pod.namespace, &references, self.memory.first_seen).await;
        named.iter().filter_map(|secret| objects.secret(&secret.name, true).ok().flatten().cloned()).collect()
    }

    /// Whether the pod may use an image that is there.
    async fn may_use(&self, pod: &Pod, image: &Image) -> bool {
        let access = &self.shared.access;
        if access.is_open(&image.id) {
            return true;
        }
        let secrets = self.pull_secrets(pod).await;
        access.opens(&image.id, secrets.iter().filter_map(|secret| secret.metadata.uid.as_deref()))
    }
}
