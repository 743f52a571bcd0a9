//! Local disks: what a pod's volumes, logs and layers may take, and what they do. Only pods with a limit are looked at. A pod that takes
//! more is evicted in a kubelet's words (`pkg/kubelet/eviction`).

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    os::{
        fd::AsRawFd as _,
        unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    },
    path::{Path, PathBuf},
};

use k8s_openapi::{
    api::core::v1::{Container, PodSpec},
    apimachinery::pkg::api::resource::Quantity,
};
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};

use super::{probe::is_sidecar, resources, volumes};

const RESOURCE: &str = "ephemeral-storage";
/// `SystemCriticalPriority`. A kubelet calls static pods critical too, which this node does not have.
const SYSTEM_CRITICAL: i32 = 2_000_000_000;

/// A limit in bytes, and as the pod writes it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Limit {
    bytes: i64,
    text: String,
}

impl Limit {
    fn is_passed(&self, used: u64) -> bool {
        i64::try_from(used).unwrap_or(i64::MAX) > self.bytes
    }
}

/// What a pod may take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Limits {
    /// Folders on the disk, by volume.
    volumes: BTreeMap<String, Limit>,
    pod: Option<Limit>,
    containers: BTreeMap<String, Limit>,
    /// All volumes that count to what the pod takes.
    on_disk: BTreeSet<String>,
}

impl Limits {
    /// The volumes that have to be looked at.
    pub(crate) fn volumes(&self) -> Vec<String> {
        match self.pod {
            Some(_) => self.on_disk.iter().cloned().collect(),
            None => self.volumes.keys().cloned().collect(),
        }
    }

    /// Whether what containers write has to be looked at.
    pub(crate) fn concern_containers(&self) -> bool {
        self.pod.is_some()
    }
}

/// What a pod takes, in bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Used {
    pub(crate) volumes: BTreeMap<String, u64>,
    /// Layers and logs.
    pub(crate) containers: BTreeMap<String, u64>,
    /// The pod's own files.
    pub(crate) files: u64,
}

/// What the pod may take; `None`: as much as there is. A pod that the cluster can't do without is never evicted, whatever its limits.
pub(crate) fn limits(spec: &PodSpec) -> Option<Limits> {
    if spec.priority.is_some_and(|priority| priority >= SYSTEM_CRITICAL) {
        return None;
    }
    let mut of_volumes = BTreeMap::new();
    let mut on_disk = BTreeSet::new();
    for volume in spec.volumes.iter().flatten() {
        let folder = volume
            .empty_dir
            .as_ref()
            .filter(|source| source.medium.as_deref().unwrap_or_default().is_empty());
        if folder.is_some() || volume.config_map.is_some() {
            on_disk.insert(volume.name.clone());
        }
        let limit =
            folder.and_then(|source| Some((volumes::size_limit(source)?, source.size_limit.as_ref()?)));
        if let Some((bytes, text)) = limit {
            of_volumes.insert(volume.name.clone(), Limit { bytes, text: text.0.clone() });
        }
    }
    let containers: BTreeMap<String, Limit> = spec
        .containers
        .iter()
        .filter_map(|container| Some((container.name.clone(), of_container(container)?)))
        .filter(|(_, limit)| limit.bytes > 0)
        .collect();
    let limits = Limits { volumes: of_volumes, pod: of_pod(spec), containers, on_disk };
    (!limits.volumes.is_empty() || limits.pod.is_some()).then_some(limits)
}

fn of_container(container: &Container) -> Option<Limit> {
    let quantity = container.resources.as_ref()?.limits.as_ref()?.get(RESOURCE)?;
    Some(Limit { bytes: resources::whole(quantity)?, text: quantity.0.clone() })
}

/// All that runs at the same time, or what an init container has alone.
fn of_pod(spec: &PodSpec) -> Option<Limit> {
    let mut found: Vec<&Container> = Vec::new();
    let mut sum = 0_i64;
    let mut most = 0_i64;
    let mut sidecars = 0_i64;
    for container in &spec.containers {
        if let Some(limit) = of_container(container) {
            sum = sum.saturating_add(limit.bytes);
            found.push(container);
        }
    }
    for container in spec.init_containers.iter().flatten() {
        let Some(limit) = of_container(container) else { continue };
        found.push(container);
        if is_sidecar(container) {
            sidecars = sidecars.saturating_add(limit.bytes);
            most = most.max(sidecars);
        } else {
            most = most.max(sidecars.saturating_add(limit.bytes));
        }
    }
    let overhead = spec.overhead.as_ref().and_then(|overhead| resources::whole(overhead.get(RESOURCE)?));
    let bytes = sum.saturating_add(sidecars).max(most).saturating_add(overhead.unwrap_or(0));
    let first = of_container(found.first()?)?;
    let text = if first.bytes == bytes { first.text } else { written(bytes, &first.text) };
    Some(Limit { bytes, text })
}

/// A sum, as Kubernetes writes it: in the largest unit of the first part's kind that leaves no rest.
fn written(bytes: i64, like: &str) -> String {
    let (step, units) = if like.ends_with('i') {
        (1024, ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"])
    } else {
        (1000, ["", "k", "M", "G", "T", "P", "E"])
    };
    let (mut amount, mut unit) = (bytes, 0);
    while amount != 0 && amount % step == 0 && unit + 1 < units.len() {
        amount /= step;
        unit += 1;
    }
    Quantity(format!("{amount}{}", units[unit])).0
}

/// What the pod is told when it takes too much.
pub(crate) fn exceeded(limits: &Limits, used: &Used) -> Option<String> {
    let passed = |limit: &Limit, used: Option<&u64>| used.is_some_and(|used| limit.is_passed(*used));
    if let Some((name, limit)) =
        limits.volumes.iter().find(|(name, limit)| passed(limit, used.volumes.get(*name)))
    {
        return Some(format!("Usage of EmptyDir volume {name:?} exceeds the limit {:?}. ", limit.text));
    }
    let all = used
        .volumes
        .values()
        .chain(used.containers.values())
        .fold(used.files, |sum, n| sum.saturating_add(*n));
    if let Some(limit) = limits.pod.as_ref().filter(|limit| limit.is_passed(all)) {
        return Some(format!(
            "Pod ephemeral local storage usage exceeds the total limit of containers {}. ",
            limit.text
        ));
    }
    let (name, limit) =
        limits.containers.iter().find(|(name, limit)| passed(limit, used.containers.get(*name)))?;
    Some(format!("Container {name} exceeded its local ephemeral storage limit {:?}. ", limit.text))
}

/// What all files of a folder take on its disk. Blocks. Whoever may write there can't lead this out of it; folders that go while they are
/// looked at don't count.
pub(crate) fn bytes_below(folder: &Path) -> io::Result<u64> {
    let root = fs::OpenOptions::new().read(true).custom_flags(OFlag::O_DIRECTORY.bits()).open(folder)?;
    let how = OpenHow::new().flags(OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC).resolve(
        ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_XDEV,
    );
    let mut linked = BTreeSet::new();
    let mut total = bytes_of(&root.metadata()?);
    let mut left = vec![PathBuf::from(".")];
    // One folder is open at a time, however deep they are.
    while let Some(path) = left.pop() {
        let Ok(opened) = openat2(&root, &path, how) else { continue };
        let Ok(entries) = fs::read_dir(format!("/proc/self/fd/{}", opened.as_raw_fd())) else { continue };
        for entry in entries.flatten() {
            let Ok(found) = entry.metadata() else { continue };
            if found.is_dir() {
                left.push(path.join(entry.file_name()));
            } else if found.nlink() > 1 && !linked.insert((found.dev(), found.ino())) {
                continue;
            }
            total = total.saturating_add(bytes_of(&found));
        }
    }
    Ok(total)
}

fn bytes_of(found: &fs::Metadata) -> u64 {
    found.blocks().saturating_mul(512)
}

/// What one file takes.
pub(crate) fn bytes_of_file(path: &Path) -> u64 {
    fs::symlink_metadata(path).map_or(0, |found| bytes_of(&found))
}

#[cfg(test)]
mod tests;
