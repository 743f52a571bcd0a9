//! What is looked after whatever pods do: the length of logs, and what is left of them.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
};

use spillway_proto::cri as wire;

use super::{CALL_TIMEOUT, Cri, errors::io_failed, log_directory, logs::rotate};
use crate::provider::{
    ProviderError,
    observed::{ObservedPod, PodRef},
};

/// Rotates the logs of running containers that are too long.
pub(super) async fn rotate_logs(
    cri: &Cri,
    pods: &BTreeMap<PodRef, ObservedPod>,
) -> Result<(), ProviderError> {
    let mut result = Ok(());
    for (pod, seen) in pods {
        for container in seen.containers.iter().filter(|container| container.is_running()) {
            let log = log_directory(&cri.log_root, pod)
                .join(&container.name)
                .join(format!("{}.log", container.attempt));
            let done = match tokio::fs::metadata(&log).await {
                Ok(found) if found.len() >= cri.log_limits.0 => rotate_log(cri, &container.id, &log).await,
                // A rotation was cut off: it writes on into the file that was moved.
                Err(error) if error.kind() == io::ErrorKind::NotFound => reopen_log(cri, &container.id).await,
                _ => Ok(()),
            };
            // The others' turn all the same.
            result = done.and(result);
        }
    }
    result
}

async fn rotate_log(cri: &Cri, id: &str, log: &Path) -> Result<(), ProviderError> {
    let operation = "ReopenContainerLog";
    cri.may(operation)?;
    let (path, files, now) = (log.to_owned(), cri.log_limits.1, jiff::Timestamp::now());
    let rotated = tokio::task::spawn_blocking(move || rotate::rotate(&path, files, now)).await;
    let rotated = rotated.unwrap_or_else(|error| Err(io::Error::other(error)));
    let aside = rotated.map_err(|error| io_failed(operation, log, &error))?;
    let reopened = reopen_log(cri, id).await;
    if reopened.is_err() {
        // The container goes on writing into the file that was moved.
        let _ = tokio::fs::rename(&aside, log).await;
    }
    reopened
}

async fn reopen_log(cri: &Cri, id: &str) -> Result<(), ProviderError> {
    let operation = "ReopenContainerLog";
    cri.may(operation)?;
    let request = wire::ReopenContainerLogRequest { container_id: id.to_owned() };
    let mut client = cri.runtime();
    cri.call(operation, CALL_TIMEOUT, client.reopen_container_log(request)).await.map(drop)
}

/// Removes a log and what was rotated of it.
pub(super) async fn remove_log(log: &Path) -> io::Result<()> {
    for old in rotate::rotated(log)? {
        tokio::fs::remove_file(old).await?;
    }
    match tokio::fs::remove_file(log).await {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Log folders of a pod whose name may no longer be known: `<namespace>_<name>_<uid>`.
pub(super) fn log_directories(log_root: &Path, uid: &str) -> Vec<PathBuf> {
    let suffix = format!("_{uid}");
    let entries = std::fs::read_dir(log_root).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_name().to_string_lossy().ends_with(&suffix))
        .map(|entry| entry.path())
        .collect()
}
