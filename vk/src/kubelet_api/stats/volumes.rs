//! What pods' volumes take: those that are the node's own files, counted file by file, or asked of their file system when they have one
//! of their own. Blocks. How many files are looked at is bounded, whatever pods write.

use std::{
    collections::VecDeque,
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, Volume};

use super::summary::{VolumeUsage, Volumes};
use crate::provider::usage::{FileSystem, FileUsage};

/// Files looked at in one volume.
const MAX_FILES: u64 = 20_000;
/// Files looked at for one answer. Volumes that come after it are left out of this answer.
const MAX_FILES_IN_ALL: u64 = 200_000;

/// Volumes of these pods; `known` ones are taken as they are.
pub(super) fn count(root_dir: &Path, pods: Vec<Arc<Pod>>, known: &Volumes) -> Volumes {
    let mut left = MAX_FILES_IN_ALL;
    let mut found = Volumes::new();
    for pod in pods {
        let Some(uid) = pod.metadata.uid.clone() else { continue };
        let volumes = known.get(&uid).cloned().unwrap_or_else(|| {
            let folder = root_dir.join("pods").join(&uid).join("volumes");
            let spec = pod.spec.as_ref().and_then(|spec| spec.volumes.as_ref());
            let volumes = spec.into_iter().flatten().filter(|volume| is_ours(volume));
            volumes.filter_map(|volume| self::volume(&folder, volume, &mut left)).collect()
        });
        found.insert(uid, volumes);
    }
    found
}

/// Whether its files are the node's own. What a hostPath shows is the machine's.
fn is_ours(volume: &Volume) -> bool {
    volume.empty_dir.is_some()
        || volume.config_map.is_some()
        || volume.secret.is_some()
        || volume.downward_api.is_some()
        || volume.projected.is_some()
}

fn volume(folder: &Path, volume: &Volume, left: &mut u64) -> Option<VolumeUsage> {
    let path = folder.join(&volume.name);
    let metadata = fs::symlink_metadata(&path).ok().filter(fs::Metadata::is_dir)?;
    let file_system = FileSystem::at(&path)?;
    let has_its_own = fs::metadata(folder).is_ok_and(|parent| parent.dev() != metadata.dev());
    let time = Timestamp::now();
    let used = if has_its_own {
        let inodes = file_system.inodes.saturating_sub(file_system.inodes_free);
        FileUsage { bytes: file_system.used, inodes, time }
    } else {
        walk(path, metadata.dev(), left, time)?
    };
    Some(VolumeUsage {
        name: volume.name.clone(),
        used,
        file_system: Some(file_system),
        on_disk: !has_its_own,
    })
}

/// As `du -x`: no links are followed, nothing mounted below is counted. `None`: too many files.
fn walk(path: PathBuf, device: u64, left: &mut u64, time: Timestamp) -> Option<FileUsage> {
    let mut used = FileUsage::none(time);
    let mut folders = VecDeque::from([path]);
    while let Some(folder) = folders.pop_front() {
        used.inodes += 1;
        // Pods may take files away while we look.
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            *left = left.checked_sub(1)?;
            let Ok(metadata) = entry.metadata() else { continue };
            if metadata.dev() != device {
                continue;
            }
            used.bytes = used.bytes.saturating_add(metadata.blocks().saturating_mul(512));
            if metadata.is_dir() {
                folders.push_back(entry.path());
            } else {
                used.inodes += 1;
            }
            if used.inodes > MAX_FILES {
                return None;
            }
        }
    }
    Some(used)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod() -> Arc<Pod> {
        let pod = json!({
            "metadata": { "name": "web", "namespace": "default", "uid": "u1" },
            "spec": { "containers": [], "volumes": [
                { "name": "scratch", "emptyDir": {} },
                { "name": "machine", "hostPath": { "path": "/" } },
                { "name": "unmade", "emptyDir": {} },
            ] },
        });
        Arc::new(serde_json::from_value(pod).unwrap())
    }

    #[test]
    fn files_are_counted_and_links_not_followed() {
        let root = tempfile::tempdir().unwrap();
        let scratch = root.path().join("pods/u1/volumes/scratch");
        fs::create_dir_all(scratch.join("deeper")).unwrap();
        fs::create_dir_all(root.path().join("pods/u1/volumes/machine")).unwrap();
        fs::write(scratch.join("deeper/file"), vec![1; 100_000]).unwrap();
        std::os::unix::fs::symlink("/", scratch.join("all")).unwrap();
        let found = count(root.path(), vec![pod()], &Volumes::new());
        let [scratch] = found["u1"].as_slice() else { panic!("{found:?}") };
        assert_eq!((scratch.name.as_str(), scratch.used.inodes), ("scratch", 4));
        assert!((100_000..1_000_000).contains(&scratch.used.bytes), "{scratch:?}");
        assert!(scratch.file_system.as_ref().unwrap().capacity > 0);

        let known = Volumes::from([("u1".to_owned(), Vec::new())]);
        assert!(count(root.path(), vec![pod()], &known)["u1"].is_empty(), "not looked at again");
        assert!(count(root.path(), Vec::new(), &known).is_empty(), "and forgotten with its pod");
    }

    #[test]
    fn too_many_files_are_not_looked_at() {
        let root = tempfile::tempdir().unwrap();
        for number in 0..20 {
            fs::write(root.path().join(number.to_string()), "").unwrap();
        }
        let device = fs::metadata(root.path()).unwrap().dev();
        let walk = |mut left| walk(root.path().to_owned(), device, &mut left, Timestamp::UNIX_EPOCH);
        assert_eq!(walk(19), None);
        assert_eq!(walk(20).unwrap().inodes, 21);
    }
}
