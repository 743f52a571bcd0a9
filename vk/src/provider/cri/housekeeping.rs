//! What is looked after whatever pods do: the length of logs, the links to them, and what is left of them.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
};

use spillway_proto::cri as wire;

use super::{
    CALL_TIMEOUT, Cri,
    errors::io_failed,
    log_directory,
    logs::{links::Link, rotate},
};
use crate::provider::{
    ProviderError,
    observed::{Container, ObservedPod, PodRef},
};

/// Links the logs of running containers that are not linked, and removes links that lead nowhere any more.
pub(super) async fn link_logs(cri: &Cri, pods: &BTreeMap<PodRef, ObservedPod>) -> Result<(), ProviderError> {
    let operation = "link logs";
    if cri.may(operation).is_err() {
        // Whoever acts for the node does it.
        return Ok(());
    }
    let wanted: Vec<Link> = running(cri, pods)
        .map(|(pod, container, log)| Link::new(pod, &container.name, &container.id, log))
        .collect();
    let links = cri.links.clone();
    let done = tokio::task::spawn_blocking(move || {
        wanted.iter().try_for_each(|link| links.put(link))?;
        links.sweep()
    });
    let done = done.await.unwrap_or_else(|error| Err(io::Error::other(error)));
    done.map_err(|error| io_failed(operation, cri.links.folder(), &error))
}

/// Links the log of a container that was just started. What fails now is tried again with the others'.
pub(super) async fn link_log(cri: &Cri, id: &str) {
    let status = cri.container_status(id).await.unwrap_or_default();
    if let Some(link) = status.and_then(|status| cri.link(&status))
        && let Err(error) = cri.links.put(&link)
    {
        tracing::debug!(container = id, log = %link.log.display(), %error, "the log is not linked");
    }
}

/// Rotates the logs of running containers that are too long.
pub(super) async fn rotate_logs(
    cri: &Cri,
    pods: &BTreeMap<PodRef, ObservedPod>,
) -> Result<(), ProviderError> {
    let mut result = Ok(());
    for (_, container, log) in running(cri, pods) {
        let done = match tokio::fs::metadata(&log).await {
            Ok(found) if found.len() >= cri.log_limits.0 => rotate_log(cri, &container.id, &log).await,
            // A rotation was cut off: it writes on into the file that was moved.
            Err(error) if error.kind() == io::ErrorKind::NotFound => reopen_log(cri, &container.id).await,
            _ => Ok(()),
        };
        // The others' turn all the same.
        result = done.and(result);
    }
    result
}

/// Containers that run, each with its pod and where its log is.
fn running<'a>(
    cri: &'a Cri,
    pods: &'a BTreeMap<PodRef, ObservedPod>,
) -> impl Iterator<Item = (&'a PodRef, &'a Container, PathBuf)> {
    let containers = pods.iter().flat_map(|(pod, seen)| seen.containers.iter().map(move |own| (pod, own)));
    containers.filter(|(_, container)| container.is_running()).map(move |(pod, container)| {
        let folder = log_directory(&cri.log_root, pod).join(&container.name);
        (pod, container, folder.join(format!("{}.log", container.attempt)))
    })
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
