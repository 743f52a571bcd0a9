//! Images: there already, or pulled with the pod's secrets, one at a time and less and less often.

use std::{
    sync::{Arc, PoisonError},
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
    pod::{access::Access, events::Kind, objects, pull, spec},
    provider::{
        ProviderError,
        runtime::{ContainerRuntime, Image, Puller},
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
        // A secret that a registry has refused may have been mended since.
        if self.memory.pulls.contains_key(&name) {
            self.memory.read_again(Instant::now());
        }
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
                && self.may_use(pod, &image, &name).await
            {
                let message = format!(
                    "Container image {name:?} already present on machine and can be accessed by the pod"
                );
                tell(Kind::Normal, "Pulled", &message);
                self.shared.access.touch(&image.id);
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
        let secrets = self.pull_secrets(pod).await;
        let shared = Arc::clone(&self.shared);
        let tell = |kind, reason: &str, message: &str| {
            shared.recorder.container(pod, &container.name, kind, reason, message);
        };
        let asked_at = Instant::now();
        let pulling = async {
            let _one_at_a_time = lock.lock().await;
            tell(Kind::Normal, "Pulling", &format!("Pulling image {name:?}"));
            let started_at = Instant::now();
            let image = pull_with(&shared.access, runtime, &spec::puller(pod), &name, &secrets).await?;
            let message = format!(
                "Successfully pulled image {name:?} in {} ({} including waiting). Image size: {} bytes.",
                milliseconds(started_at.elapsed()),
                milliseconds(asked_at.elapsed()),
                image.size
            );
            tell(Kind::Normal, "Pulled", &message);
            Ok::<_, ProviderError>(image)
        };
        match self.telling_meanwhile(pod, runtime, pulling).await {
            Ok(image) => {
                self.memory.pulls.remove(&name);
                self.shared.access.touch(&image.id);
                Ok(image)
            }
            Err(error) => {
                let (reason, text) = told(&name, error.message());
                let message = format!("Failed to pull image {name:?}: {}", error.message());
                tell(Kind::Warning, "Failed", &message);
                let pull = self.memory.pulls.entry(name).or_insert_with(|| Pull {
                    again_at: Instant::now(),
                    backoff: Backoff::new(PULL_AGAIN.0, PULL_AGAIN.1),
                    error: String::new(),
                });
                pull.again_at = Instant::now() + pull.backoff.delay();
                pull.error = format!("{reason}: {text}");
                Err(waits(reason, text))
            }
        }
    }

    /// Whoever holds this is the only one to pull the image.
    fn pull_lock(&self, image: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut locks = self.shared.pulls.lock().unwrap_or_else(PoisonError::into_inner);
        locks.retain(|_, lock| Arc::strong_count(lock) > 1);
        Arc::clone(locks.entry(image.to_owned()).or_default())
    }

    /// The pod's `imagePullSecrets` that are there.
    async fn pull_secrets(&self, pod: &Pod) -> Vec<Secret> {
        let wanted: Vec<_> = pull_secrets(pod).collect();
        let references =
            objects::References { secrets: wanted.iter().cloned().collect(), ..Default::default() };
        let objects = self.load(&references).await;
        let of = |name: &String| objects.secret(name, true).ok().flatten().cloned();
        let missing: Vec<_> = wanted.iter().filter(|name| of(name).is_none()).cloned().collect();
        if !missing.is_empty() {
            let message = format!(
                "Unable to retrieve some image pull secrets ({}); attempting to pull the image may not succeed.",
                missing.join(", ")
            );
            self.shared.recorder.pod(pod, Kind::Warning, "FailedToRetrieveImagePullSecret", &message);
        }
        wanted.iter().filter_map(of).collect()
    }

    /// Whether the pod may use an image that is there.
    async fn may_use(&self, pod: &Pod, image: &Image, name: &str) -> bool {
        let access = &self.shared.access;
        if access.is_open(&image.id, name) {
            return true;
        }
        let secrets = self.pull_secrets(pod).await;
        // A secret that says nothing of this registry any more opens nothing of it.
        let hold = pull::credentials(&secrets, name);
        access.opens(&image.id, name, hold.iter().filter_map(|(secret, _)| secret.metadata.uid.as_deref()))
    }
}

/// Pulls with each of the pod's credentials for the registry, without any if there are none.
async fn pull_with(
    access: &Access,
    runtime: &dyn ContainerRuntime,
    pod: &Puller,
    image: &str,
    secrets: &[Secret],
) -> Result<Image, ProviderError> {
    let written = |result: std::io::Result<()>| {
        result.map_err(|error| ProviderError::Failed {
            operation: "PullImage",
            message: format!("can't write down who may use it: {error}"),
        })
    };
    let mut credentials: Vec<_> = pull::credentials(secrets, image).into_iter().map(Some).collect();
    if credentials.is_empty() {
        credentials.push(None);
    }
    written(access.begin(image))?;
    let mut errors = Vec::new();
    for credentials in &credentials {
        match runtime.pull(pod, image, credentials.as_ref().map(|(_, own)| own)).await {
            Ok(pulled) => {
                let secret = credentials.as_ref().and_then(|(secret, _)| secret.metadata.uid.as_deref());
                written(access.pulled(&pulled.id, image, secret))?;
                return Ok(pulled);
            }
            Err(error) => errors.push(error),
        }
    }
    written(access.failed(image))?;
    Err(together(errors))
}

/// The names of the pod's `imagePullSecrets`. The API server once let in some without one.
pub(super) fn pull_secrets(pod: &Pod) -> impl Iterator<Item = String> {
    let named = pod.spec.as_ref().and_then(|spec| spec.image_pull_secrets.as_deref()).unwrap_or_default();
    named.iter().map(|secret| secret.name.clone()).filter(|name| !name.is_empty())
}

/// The reason of a failed pull and its message, as a kubelet tells them: some refusals have words of their own.
fn told(image: &str, message: String) -> (&'static str, String) {
    let cases = [
        ("RegistryUnavailable", "the registry is unavailable"),
        ("SignatureValidationFailed", "the signature validation failed"),
    ];
    for (reason, why) in cases {
        if let Some(rest) = message.strip_prefix(reason) {
            return (reason, format!("image pull failed for {image} because {why}{rest}"));
        }
    }
    ("ErrImagePull", message)
}

/// One error of many, each text once; one that says that nobody answered stays so.
fn together(mut errors: Vec<ProviderError>) -> ProviderError {
    let mut texts: Vec<String> = Vec::new();
    for error in &errors {
        if !texts.contains(&error.message()) {
            texts.push(error.message());
        }
    }
    match errors.pop() {
        Some(ProviderError::Failed { operation, .. }) if texts.len() > 1 => {
            ProviderError::Failed { operation, message: format!("[{}]", texts.join(", ")) }
        }
        Some(last) => last,
        None => ProviderError::Failed { operation: "PullImage", message: String::new() },
    }
}

/// As Go prints milliseconds: `85ms`, `1.085s`, `2m3.5s`.
fn milliseconds(duration: Duration) -> String {
    let (seconds, rest) = (duration.as_secs(), duration.subsec_millis());
    if seconds == 0 {
        return format!("{rest}ms");
    }
    let minutes = if seconds < 60 { String::new() } else { format!("{}m", seconds / 60) };
    let fraction = format!(".{rest:03}");
    format!("{minutes}{}{}s", seconds % 60, fraction.trim_end_matches('0').trim_end_matches('.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failed_pulls_are_told_as_a_kubelet_tells_them() {
        assert_eq!(told("a", "no".to_owned()), ("ErrImagePull", "no".to_owned()));
        assert_eq!(
            told("a", "RegistryUnavailable: it sleeps".to_owned()),
            (
                "RegistryUnavailable",
                "image pull failed for a because the registry is unavailable: it sleeps".to_owned()
            )
        );
        let failed = |message: &str| ProviderError::Failed { operation: "pull", message: message.to_owned() };
        assert_eq!(together(vec![failed("a")]).message(), "a");
        assert_eq!(together(vec![failed("a"), failed("a")]).message(), "a");
        assert_eq!(together(vec![failed("a"), failed("b")]).message(), "[a, b]");
        for (milli, text) in [(85, "85ms"), (1000, "1s"), (1085, "1.085s"), (123_500, "2m3.5s")] {
            assert_eq!(milliseconds(Duration::from_millis(milli)), text);
        }
    }
}
