//! All images of the runtime, ours or not.

use std::{collections::BTreeSet, path::PathBuf, time::Duration};

use async_trait::async_trait;
use futures::{StreamExt as _, TryStreamExt as _};
use spillway_proto::cri as wire;

use super::{
    CALL_TIMEOUT, Cri, convert,
    errors::{absent_is_done, as_told},
    facts,
};
use crate::provider::{
    ProviderError,
    facts::Share,
    images::{Images, StoredImage},
    runtime::{ContainerRuntime as _, Credentials, Image, Puller},
};

/// A pull goes on as long as a registry does.
const PULL_TIMEOUT: Duration = Duration::from_hours(1);
/// Containers that are asked about at a time.
const AT_ONCE: usize = 8;

#[async_trait]
impl Images for Cri {
    async fn stored(&self) -> Result<Vec<StoredImage>, ProviderError> {
        let request = wire::ListImagesRequest { filter: None };
        let mut client = self.images.clone();
        let answer = self.call("ListImages", CALL_TIMEOUT, client.list_images(request)).await?;
        Ok(answer.images.into_iter().map(stored).collect())
    }

    async fn in_use(&self) -> Result<BTreeSet<String>, ProviderError> {
        let request = wire::ListContainersRequest { filter: None };
        let answer =
            self.call("ListContainers", CALL_TIMEOUT, self.runtime().list_containers(request)).await?;
        let mut used = BTreeSet::new();
        for container in &answer.containers {
            used.extend([container.image_ref.clone(), container.image_id.clone()]);
            used.extend(container.image.iter().map(|image| image.image.clone()));
        }
        // Lists don't tell what is mounted. What ends meanwhile uses nothing.
        let mounted: Vec<_> = futures::stream::iter(answer.containers)
            .map(|container| async move { self.container_status(&container.id).await })
            .buffer_unordered(AT_ONCE)
            .try_collect()
            .await?;
        let mounts = mounted.into_iter().flatten().flat_map(|status| status.mounts);
        used.extend(mounts.filter_map(|mount| mount.image).map(|image| image.image));
        used.remove("");
        Ok(used)
    }

    async fn room(&self) -> Result<Option<Share>, ProviderError> {
        let Some(fs) = self.image_fs().await?.and_then(|fs| fs.fs_id) else { return Ok(None) };
        // A file system may hang.
        let look = tokio::task::spawn_blocking(move || facts::share(&PathBuf::from(fs.mountpoint)));
        Ok(look.await.unwrap_or_default())
    }

    async fn remove(&self, id: &str) -> Result<(), ProviderError> {
        let request = wire::RemoveImageRequest { image: Some(convert::image_spec(id)) };
        let mut client = self.images.clone();
        absent_is_done(self.call("RemoveImage", CALL_TIMEOUT, client.remove_image(request)).await)
    }
}

/// Fetches an image and says what it resolved to.
pub(super) async fn pull(
    cri: &Cri,
    pod: &Puller,
    image: &str,
    credentials: Option<&Credentials>,
) -> Result<Image, ProviderError> {
    let operation = "PullImage";
    let request = pull_request(&cri.node, pod, image, credentials);
    let call = Box::pin(async move { cri.images.clone().pull_image(request).await.map_err(as_told) });
    let answer = cri.call(operation, PULL_TIMEOUT, call).await?;
    match cri.image(&answer.image_ref).await? {
        Some(image) => Ok(image),
        None => Err(ProviderError::NotFound { operation, what: image.to_owned() }),
    }
}

/// With the pod's annotations, as a kubelet sends them: by one, containerd unpacks the image for another runtime handler's snapshotter; by the
/// namespace, CRI-O looks up which signatures it demands.
fn pull_request(
    node: &str,
    pod: &Puller,
    image: &str,
    credentials: Option<&Credentials>,
) -> wire::PullImageRequest {
    let mut spec = convert::image_spec(image);
    spec.annotations = pod.annotations.clone().into_iter().collect();
    wire::PullImageRequest {
        image: Some(spec),
        auth: credentials.map(|credentials| wire::AuthConfig {
            username: credentials.username.clone(),
            password: credentials.password.clone(),
            ..Default::default()
        }),
        sandbox_config: Some(wire::PodSandboxConfig {
            metadata: Some(convert::identity(&pod.pod, 0)),
            labels: convert::labels(node, &pod.pod, &pod.labels),
            annotations: pod.annotations.clone().into_iter().collect(),
            ..Default::default()
        }),
    }
}

fn stored(image: wire::Image) -> StoredImage {
    StoredImage {
        names: image.repo_digests.into_iter().chain(image.repo_tags).collect(),
        id: image.id,
        size: image.size,
        pinned: image.pinned,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::provider::observed::PodRef;

    #[test]
    fn a_runtime_is_told_which_pod_an_image_is_for() {
        let annotations =
            BTreeMap::from([("io.containerd.cri.runtime-handler".to_owned(), "kata".to_owned())]);
        let pod = PodRef { uid: "u".into(), namespace: "ns".into(), name: "web".into() };
        let puller = Puller { pod, annotations, ..Puller::default() };
        let own = Credentials { username: "me".into(), password: "pw".into() };
        let request = pull_request("vk", &puller, "r.io/app", Some(&own));
        let image = request.image.expect("it is sent");
        let sandbox = request.sandbox_config.expect("it is sent");
        assert_eq!(
            (image.image.as_str(), request.auth.expect("it is sent").username.as_str()),
            ("r.io/app", "me")
        );
        for annotations in [image.annotations, sandbox.annotations] {
            assert_eq!(annotations["io.containerd.cri.runtime-handler"], "kata");
        }
        let identity = sandbox.metadata.expect("it is sent");
        assert_eq!((identity.namespace.as_str(), identity.name.as_str()), ("ns", "web"));
        assert_eq!(sandbox.labels[convert::NODE_LABEL], "vk");
    }
}
