//! The folders of pods' logs: `NAMESPACE_NAME_UID` (`BuildPodLogsDirectory` in `pkg/kubelet/kuberuntime`). The kubelet makes one before the
//! pod's sandbox, and for a static pod it has the same hash as its cgroup. The one place on the machine that has all three.

use std::path::Path;

use super::{Name, is_name, is_uid};

/// More pods than a machine has, dead ones included. What is beyond is not looked at.
pub(crate) const LIMIT: usize = 20_000;

/// All pods that have a folder, by UID. None when the folder can't be read: names are a convenience.
pub(super) async fn list(folder: &Path) -> Vec<(String, Name)> {
    let mut pods = Vec::new();
    let mut entries = match tokio::fs::read_dir(folder).await {
        Ok(entries) => entries,
        Err(error) => {
            tracing::debug!(folder = %folder.display(), %error, "no names of pods from their logs");
            return pods;
        }
    };
    for _ in 0..LIMIT {
        let Ok(Some(entry)) = entries.next_entry().await else { break };
        pods.extend(entry.file_name().to_str().and_then(parse));
    }
    pods
}

/// The pod of one folder. Neither namespaces nor names have an underscore.
pub fn parse(folder: &str) -> Option<(String, Name)> {
    let (namespace, rest) = folder.split_once('_')?;
    let (name, uid) = rest.split_once('_')?;
    let sound = is_name(namespace) && is_name(name) && is_uid(uid);
    sound.then(|| (uid.to_owned(), (namespace.to_owned(), name.to_owned())))
}
