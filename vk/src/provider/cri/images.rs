//! All images of the runtime, ours or not.

use std::{collections::BTreeSet, path::PathBuf};

use async_trait::async_trait;
use futures::{StreamExt as _, TryStreamExt as _};
use spillway_proto::cri as wire;

use super::{CALL_TIMEOUT, Cri, convert, errors::absent_is_done, facts};
use crate::provider::{
    ProviderError,
    facts::Share,
    images::{Images, StoredImage},
};

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

fn stored(image: wire::Image) -> StoredImage {
    StoredImage {
        names: image.repo_digests.into_iter().chain(image.repo_tags).collect(),
        id: image.id,
        size: image.size,
        pinned: image.pinned,
    }
}
