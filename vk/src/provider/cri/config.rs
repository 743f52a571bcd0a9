//! What can be set of the provider.

use std::{collections::BTreeMap, path::PathBuf};

use serde::Deserialize;

use super::logs::rotate::LogSize;

/// Settings of the provider.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct CriConfig {
    /// The runtime's socket.
    pub endpoint: String,
    /// Folder above the containers' log files. Links to these, for log collectors, are in the folder `containers` beside it.
    pub log_root: PathBuf,
    /// Cgroup above the node's pods. Two nodes on one machine need two.
    pub cgroup_root: String,
    /// A container's log that is longer is rotated.
    pub container_log_max_size: LogSize,
    /// How many files a container's log has at most; at least 2.
    pub container_log_max_files: usize,
    /// Devices of the machine that pods may ask for: CDI names by extended resource.
    pub devices: BTreeMap<String, Vec<String>>,
}

impl Default for CriConfig {
    fn default() -> Self {
        Self {
            endpoint: "unix:///run/containerd/containerd.sock".to_owned(),
            log_root: PathBuf::from("/var/log/pods"),
            cgroup_root: "/".to_owned(),
            container_log_max_size: LogSize(10 << 20),
            container_log_max_files: 5,
            devices: BTreeMap::new(),
        }
    }
}
