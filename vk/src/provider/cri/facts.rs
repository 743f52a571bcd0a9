//! What the runtime and its machine tell for the node's status. Cheap: nothing here grows with the number of pods.

use std::path::Path;

use nix::sys::statvfs::{Statvfs, statvfs};
use spillway_proto::cri as wire;

use super::Cri;
use crate::provider::{
    ProviderError,
    facts::{Facts, Handler, Left, NodeImage, Share},
    images::{Images as _, StoredImage},
};

impl Cri {
    pub(super) async fn facts(&self) -> Result<Facts, ProviderError> {
        let status = self.status().await?;
        let images = self.stored().await?;
        let image_fs = self.image_fs().await.ok().flatten().and_then(|fs| fs.fs_id);
        let (root, log_root) = (Path::new("/").to_owned(), self.log_root.clone());
        let image_fs = image_fs.map(|fs| fs.mountpoint);
        // A file system may hang.
        let left = tokio::task::spawn_blocking(move || left(&root, &log_root, image_fs.as_deref()));
        Ok(Facts {
            handlers: status.runtime_handlers.iter().map(handler).collect(),
            supplemental_groups_policy: status.features.map(|features| features.supplemental_groups_policy),
            images: images
                .into_iter()
                .map(|StoredImage { names, size, .. }| NodeImage { names, size })
                .collect(),
            left: left.await.unwrap_or_default(),
            ..Facts::default()
        })
    }
}

/// Pods with user namespaces are refused here, so none of the handlers is said to have them.
pub(super) fn handler(handler: &wire::RuntimeHandler) -> Handler {
    Handler {
        name: handler.name.clone(),
        recursive_read_only_mounts: handler
            .features
            .as_ref()
            .is_some_and(|features| features.recursive_read_only_mounts),
    }
}

fn left(root: &Path, log_root: &Path, image_fs: Option<&str>) -> Left {
    let text = |path: &str| std::fs::read_to_string(root.join(path)).unwrap_or_default();
    let meminfo = text("proc/meminfo");
    let kib = |name: &str| -> Option<u64> {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(name))?;
        Some(line.trim().trim_end_matches("kB").trim().parse::<u64>().ok()?.saturating_mul(1024))
    };
    let memory = kib("MemAvailable:").zip(kib("MemTotal:"));
    // `0.20 0.18 0.12 1/80 11206`: running and all.
    let loadavg = text("proc/loadavg");
    let pids = loadavg.split(' ').nth(3).and_then(|counts| counts.split_once('/')?.1.parse::<u64>().ok());
    let most = text("proc/sys/kernel/pid_max").trim().parse::<u64>().ok();
    let node_fs = statvfs(log_root).ok();
    Left {
        memory: memory.map(|(available, capacity)| Share { available, capacity }),
        node_fs: node_fs.as_ref().map(bytes),
        node_fs_inodes: node_fs
            .as_ref()
            // Some file systems make them as they need them, and say none.
            .filter(|fs| fs.files() > 0)
            .map(|fs| Share { available: fs.files_available(), capacity: fs.files() }),
        image_fs: image_fs.and_then(|path| share(Path::new(path))),
        pids: most
            .zip(pids)
            .map(|(most, used)| Share { available: most.saturating_sub(used), capacity: most }),
    }
}

/// What is left of a file system, if it can be told.
pub(super) fn share(path: &Path) -> Option<Share> {
    statvfs(path).ok().as_ref().map(bytes)
}

fn bytes(fs: &Statvfs) -> Share {
    Share {
        available: fs.blocks_available().saturating_mul(fs.fragment_size()),
        capacity: fs.blocks().saturating_mul(fs.fragment_size()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_is_read_from_a_folder_and_what_is_missing_is_not_made_up() {
        let root = tempfile::tempdir().unwrap();
        let nothing = left(root.path(), Path::new("/nonexistent"), None);
        assert_eq!(nothing, Left::default());
        std::fs::create_dir_all(root.path().join("proc/sys/kernel")).unwrap();
        let write = |path: &str, text: &str| std::fs::write(root.path().join(path), text).unwrap();
        write("proc/meminfo", "MemTotal:       4000 kB\nMemFree: 1 kB\nMemAvailable:    1000 kB\n");
        write("proc/loadavg", "0.20 0.18 0.12 1/80 11206\n");
        write("proc/sys/kernel/pid_max", "100\n");
        let found = left(root.path(), root.path(), root.path().to_str());
        assert_eq!(found.memory, Some(Share { available: 1_024_000, capacity: 4_096_000 }));
        assert_eq!(found.pids, Some(Share { available: 20, capacity: 100 }));
        assert_eq!(found.node_fs.map(|fs| fs.capacity), found.image_fs.map(|fs| fs.capacity));
        assert!(found.node_fs.is_some_and(|fs| fs.capacity > 0 && fs.available <= fs.capacity));
    }
}
