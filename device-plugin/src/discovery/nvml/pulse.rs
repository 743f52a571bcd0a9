//! What is asked between two looks, besides GPUs' vital signs, to learn that it is time for another: so little that it costs next to
//! nothing, so much that nothing that a pod could notice escapes it. A pulse is only compared with the one before.

use std::{
    collections::BTreeSet,
    ffi::OsString,
    fs,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::SystemTime,
};

use nvml_wrapper::{Device, Nvml};

use super::{
    look::{Gpu, MOST_INSTANCES},
    raw,
};
use crate::discovery::Roots;

/// What the kernel shows without NVML: which GPUs the driver drives, the driver itself, and how GPUs are partitioned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Outside {
    bound: BTreeSet<String>,
    driver: u64,
    /// None where the driver's folder is hidden, as NVIDIA's container runtime does.
    partitions: Option<u64>,
}

impl Outside {
    pub(super) fn now(roots: &Roots, libraries: &[PathBuf]) -> Self {
        let mut driver = DefaultHasher::new();
        for library in libraries {
            (library, modified(library)).hash(&mut driver);
        }
        fs::read(roots.proc.join("driver/nvidia/version")).ok().hash(&mut driver);
        let capabilities = roots.proc.join("driver/nvidia/capabilities");
        let partitions = capabilities.is_dir().then(|| {
            let mut names = DefaultHasher::new();
            partitions(&capabilities, &mut names);
            names.finish()
        });
        Self { bound: bound(&roots.sys), driver: driver.finish(), partitions }
    }

    /// Whether it shows how GPUs are partitioned.
    pub(super) fn shows_partitions(&self) -> bool {
        self.partitions.is_some()
    }
}

/// How each GPU is partitioned by what NVML says. None: it can't be asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Inside(Option<Vec<Option<Parts>>>);

/// Whether MIG is enabled on a GPU, and the numbers of its instances, if they are asked for.
type Parts = (Option<u32>, Vec<(u32, u32)>);

impl Inside {
    /// `partitions`: whether NVML is asked for them, too.
    pub(super) fn now(nvml: &Nvml, partitions: bool) -> Self {
        let gpu = |index| {
            let device = nvml.device_by_index(index).ok()?;
            let mode = device.mig_mode().ok().map(|mode| mode.current);
            let instances = if partitions && mode.is_some_and(|mode| mode != 0) {
                instances(&device)
            } else {
                Vec::new()
            };
            Some((mode, instances))
        };
        Self(nvml.device_count().ok().map(|count| (0..count).map(gpu).collect()))
    }
}

/// Which folders stand for the compute instances that a look has seen. When one takes another's place, its name stays, and its UUID and
/// its folder are others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Folders(Vec<Option<(u64, i64, i64)>>);

impl Folders {
    pub(super) fn now(roots: &Roots, gpus: &[Gpu]) -> Self {
        let capabilities = roots.proc.join("driver/nvidia/capabilities");
        let identity = |folder: PathBuf| {
            let meta = fs::metadata(folder).ok()?;
            // The kernel reuses its numbers at once, but not the time.
            Some((meta.ino(), meta.ctime(), meta.ctime_nsec()))
        };
        let of = |gpu: &Gpu| {
            let gpu_folder = gpu.fixed.minor.map(|minor| capabilities.join(format!("gpu{minor}/mig")));
            let instances = gpu.mig.instances().iter().map(|instance| (instance.gi, instance.ci));
            let folders =
                instances.filter_map(|(gi, ci)| Some(gpu_folder.as_ref()?.join(format!("gi{gi}/ci{ci}"))));
            folders.map(identity).collect::<Vec<_>>()
        };
        Self(gpus.iter().flat_map(of).collect())
    }
}

fn instances(device: &Device<'_>) -> Vec<(u32, u32)> {
    let most = device.mig_device_count().unwrap_or(0).min(MOST_INSTANCES);
    let instance = |index| raw::instance(&device.mig_device_by_index(index).ok()?).ok();
    (0..most).filter_map(instance).collect()
}

fn modified(path: &Path) -> Option<SystemTime> {
    fs::metadata(path).and_then(|meta| meta.modified()).ok()
}

/// PCI addresses of the devices that the NVIDIA driver drives now.
fn bound(sys: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(sys.join("bus/pci/drivers/nvidia")).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| name.contains(':'))
        .collect()
}

/// What there is below `gpuN/mig`. How many compute instances a GPU instance has is told by its links, which is asked faster than
/// their names; one that takes another's place is [`Folders`]' matter.
fn partitions(capabilities: &Path, hasher: &mut DefaultHasher) {
    for gpu in names(capabilities) {
        let mig = capabilities.join(&gpu).join("mig");
        for instance in names(&mig) {
            let links = fs::metadata(mig.join(&instance)).ok().map(|meta| meta.nlink());
            (&gpu, instance, links).hash(hasher);
        }
    }
}

fn names(folder: &Path) -> Vec<OsString> {
    let mut names: Vec<_> =
        fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.file_name()).collect();
    names.sort();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_an_admin_does_changes_the_pulse() {
        let folder = tempfile::tempdir().unwrap();
        let at = |path: &str| folder.path().join(path);
        let roots = Roots { sys: at("sys"), dev: at("dev"), proc: at("proc") };
        let mut last = Outside::now(&roots, &[at("lib")]);
        assert_eq!(Outside::now(&roots, &[at("lib")]), last);
        let mut changed = |what: &str| {
            let now = Outside::now(&roots, &[at("lib")]);
            assert_ne!(now, last, "{what}");
            last = now;
        };
        fs::write(at("lib"), "").unwrap();
        changed("a library is installed");
        fs::create_dir_all(at("sys/bus/pci/drivers/nvidia/0000:3b:00.0")).unwrap();
        changed("a GPU is bound");
        fs::create_dir_all(at("proc/driver/nvidia/capabilities/gpu0/mig/gi7/ci0")).unwrap();
        changed("a GPU is partitioned");
        fs::create_dir(at("proc/driver/nvidia/capabilities/gpu0/mig/gi7/ci1")).unwrap();
        changed("a GPU instance is partitioned");
        fs::remove_dir_all(at("proc/driver/nvidia/capabilities/gpu0")).unwrap();
        changed("a GPU is not partitioned any more");
        fs::write(at("proc/driver/nvidia/version"), "580.1").unwrap();
        changed("a driver is loaded");
        fs::write(at("proc/driver/nvidia/version"), "580.2").unwrap();
        changed("another driver is loaded");
    }
}
