//! What a provider tells of itself for the node's status, beyond that it answers.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// Everything is optional: what a provider can't tell is left as it is.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Facts {
    /// Ways to run a pod that a `RuntimeClass` may name.
    pub handlers: Vec<Handler>,
    /// Whether a container may leave out the groups that its image gives its user.
    pub supplemental_groups_policy: Option<bool>,
    /// What needs no pull.
    pub images: Vec<NodeImage>,
    /// What there is for pods, by resource; more than nothing wins over the machine's own.
    pub capacity: BTreeMap<String, Quantity>,
    /// What is left of what pods share without asking for it.
    pub left: Left,
}

/// A runtime handler and what it can do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Handler {
    /// Empty: the default one.
    pub name: String,
    /// Mounts that are read-only all the way down.
    pub recursive_read_only_mounts: bool,
}

/// An image that is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeImage {
    /// Digests and tags.
    pub names: Vec<String>,
    /// Bytes.
    pub size: u64,
}

/// What is left, and of how much.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    /// Still to be had.
    pub available: u64,
    /// In all.
    pub capacity: u64,
}

/// What pods use up together. `None`: the provider can't tell.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Left {
    /// Bytes of memory.
    pub memory: Option<Share>,
    /// Bytes where volumes and logs are.
    pub node_fs: Option<Share>,
    /// Inodes there.
    pub node_fs_inodes: Option<Share>,
    /// Bytes where images are.
    pub image_fs: Option<Share>,
    /// Process IDs.
    pub pids: Option<Share>,
}
