//! The images of a runtime, for providers that can tell about all of them and remove some.

use std::collections::BTreeSet;

use async_trait::async_trait;

use super::{ProviderError, facts::Share};

/// An image that the runtime has, whoever brought it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredImage {
    /// As in [`super::runtime::Image::id`].
    pub id: String,
    /// Tags and digests, in full.
    pub names: Vec<String>,
    /// Bytes.
    pub size: u64,
    /// The runtime itself needs it.
    pub pinned: bool,
}

/// Tells of images and removes them.
#[async_trait]
pub trait Images: Send + Sync {
    /// All of them: the complete list, or an error.
    async fn stored(&self) -> Result<Vec<StoredImage>, ProviderError>;

    /// IDs and names of the images that any container is made of or shows to its processes, whosever it is.
    async fn in_use(&self) -> Result<BTreeSet<String>, ProviderError>;

    /// What is left where they are; `None`: nobody knows.
    async fn room(&self) -> Result<Option<Share>, ProviderError>;

    /// Removes an image under all its names. May be repeated.
    async fn remove(&self, id: &str) -> Result<(), ProviderError>;
}
