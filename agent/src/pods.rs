//! The pods of this machine by name and labels: from the API server where it is asked, otherwise, and until it has answered, by name
//! only, from the folders in which the kubelet keeps their logs. Other pods may write there, such as those that collect logs: where the API
//! server is asked, nothing but a name to show rests on these folders.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use notify::{EventKind, RecursiveMode, Watcher as _};
use tokio::{sync::watch, time::timeout};
use tokio_util::sync::CancellationToken;

use crate::{holders::pod_logs, node::PodMeta};

/// Between two looks when nothing is said to have changed.
const LOOK_EVERY: Duration = Duration::from_secs(30);

/// A pod of this machine.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct PodInfo {
    /// Its UID as its cgroup has it: for a static pod the hash (the mirror pod's annotation `kubernetes.io/config.hash`).
    pub uid: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its labels, where the API server was asked.
    pub labels: Option<BTreeMap<String, String>>,
    /// Whether all that is so for certain: the API server says it, or isn't asked at all.
    pub certain: bool,
}

impl From<PodMeta> for PodInfo {
    fn from(pod: PodMeta) -> Self {
        let PodMeta { uid, namespace, name, labels } = pod;
        Self { uid, namespace, name, labels: Some(labels), certain: true }
    }
}

/// Keeps `pods` up to date until `stop`: as the API server says, and for pods of which it has said nothing from the folder of logs. While
/// that can't be read the list stays as it was.
pub async fn follow(
    folder: PathBuf,
    mut api: watch::Receiver<Option<Vec<PodMeta>>>,
    pods: watch::Sender<Vec<PodInfo>>,
    stop: CancellationToken,
) {
    let ticks = watch::Sender::new(());
    let mut tick = ticks.subscribe();
    let seen = move |event: notify::Result<notify::Event>| {
        if event.is_ok_and(|event| matches!(event.kind, EventKind::Create(_) | EventKind::Remove(_))) {
            ticks.send_replace(());
        }
    };
    let watcher = notify::recommended_watcher(seen)
        .and_then(|mut watcher| watcher.watch(&folder, RecursiveMode::NonRecursive).map(|()| watcher));
    if let Err(error) = &watcher {
        tracing::warn!(folder = %folder.display(), %error, "can't watch it: looking every {LOOK_EVERY:?} instead");
    }
    while !stop.is_cancelled() {
        tick.mark_unchanged();
        if let Ok(logged) = in_logs(&folder) {
            // Whoever asks the API server keeps the other end, also while there is no answer.
            let asked = api.has_changed().is_ok();
            let now = merged(api.borrow_and_update().clone().unwrap_or_default(), logged, asked);
            pods.send_if_modified(|before| {
                let differs = *before != now;
                *before = now;
                differs
            });
        }
        let asked = api.has_changed().is_ok();
        let changed = async {
            tokio::select! {
                Ok(()) = tick.changed() => {}
                _ = api.changed(), if asked => {}
                else => std::future::pending().await,
            }
        };
        let _ = stop.run_until_cancelled(timeout(LOOK_EVERY, changed)).await;
    }
}

fn merged(listed: Vec<PodMeta>, logged: Vec<PodInfo>, asked: bool) -> Vec<PodInfo> {
    let by_uid = |pod: PodInfo| (pod.uid.clone(), pod);
    let logged = logged.into_iter().map(|pod| PodInfo { certain: !asked, ..pod });
    let mut pods: BTreeMap<_, _> = logged.map(by_uid).collect();
    pods.extend(listed.into_iter().map(PodInfo::from).map(by_uid));
    pods.into_values().collect()
}

/// Reads the folder of pods' logs, `/var/log/pods`: its folders are called `NAMESPACE_NAME_UID`.
///
/// # Errors
/// When the folder can't be read.
pub fn in_logs(folder: &Path) -> io::Result<Vec<PodInfo>> {
    let mut pods = Vec::new();
    // Other pods may write there: no list of theirs fills the memory.
    for entry in std::fs::read_dir(folder)?.take(pod_logs::LIMIT) {
        if let Some(pod) = entry?.file_name().to_str().and_then(of_folder) {
            pods.push(pod);
        }
    }
    Ok(pods)
}

fn of_folder(folder: &str) -> Option<PodInfo> {
    let (uid, (namespace, name)) = pod_logs::parse(folder)?;
    Some(PodInfo { uid, namespace, name, labels: None, certain: false })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_are_known_by_the_folders_of_their_logs() {
        let folder = tempfile::tempdir().unwrap();
        for name in [
            "gpu-operator_nvidia-driver-x_0f8f-11",
            "kube-system_etcd-node_5d4d6a",
            "lost+found",
            "a_b",
            "__",
            "a__c",
        ] {
            std::fs::create_dir(folder.path().join(name)).unwrap();
        }
        let mut pods: Vec<_> = in_logs(folder.path())
            .unwrap()
            .into_iter()
            .map(|pod| (pod.namespace, pod.name, pod.uid))
            .collect();
        pods.sort();
        let expected =
            [("gpu-operator", "nvidia-driver-x", "0f8f-11"), ("kube-system", "etcd-node", "5d4d6a")];
        assert_eq!(
            pods,
            expected.map(|(namespace, name, uid)| (namespace.to_owned(), name.to_owned(), uid.to_owned()))
        );
        assert!(in_logs(&folder.path().join("none")).is_err());
    }

    #[test]
    fn the_api_server_knows_better() {
        let logged = |uid: &str| PodInfo {
            uid: uid.to_owned(),
            namespace: "default".to_owned(),
            name: format!("pod-{uid}"),
            labels: None,
            certain: false,
        };
        let listed = PodMeta {
            uid: "b".to_owned(),
            namespace: "default".to_owned(),
            name: "pod-b".to_owned(),
            labels: BTreeMap::from([("app".to_owned(), "dcgm".to_owned())]),
        };
        let labels: Vec<_> = merged(vec![listed], vec![logged("b"), logged("a")], true)
            .into_iter()
            .map(|pod| (pod.uid, pod.labels.is_some(), pod.certain))
            .collect();
        assert_eq!(labels, [("a".to_owned(), false, false), ("b".to_owned(), true, true)]);
        assert!(merged(Vec::new(), vec![logged("a")], false)[0].certain, "there is nobody else to ask");
    }
    #[tokio::test]
    async fn what_the_logs_say_is_certain_only_once_nobody_asks_the_api_server() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("monitoring_dcgm_a")).unwrap();
        let (api, listed) = watch::channel(None);
        let (pods, mut seen) = watch::channel(Vec::new());
        let stop = CancellationToken::new();
        let mut tasks = tokio::task::JoinSet::new();
        tasks.spawn(follow(folder.path().to_owned(), listed, pods, stop.clone()));
        let within = |certain: bool, seen: &mut watch::Receiver<Vec<PodInfo>>| {
            let mut seen = seen.clone();
            async move {
                let wanted = |pods: &Vec<PodInfo>| pods.iter().any(|pod| pod.certain == certain);
                timeout(Duration::from_secs(20), seen.wait_for(wanted)).await.unwrap().unwrap().len()
            }
        };
        assert_eq!(within(false, &mut seen).await, 1);
        drop(api);
        assert_eq!(within(true, &mut seen).await, 1);
        stop.cancel();
        tasks.join_all().await;
    }
}
