//! The files of NVIDIA's driver that a container needs. They are found where the NVML library is, by their names: what is installed
//! differs from driver to driver.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use super::Mount;
use crate::discovery::nvml::library;

/// What a library of the driver's is called. Its container toolkit, which is no part of the driver, is left out.
const LIBRARIES: [&str; 12] = [
    "libnvidia-",
    "libcuda.so",
    "libcudadebugger.so",
    "libnvcuvid.so",
    "libnvoptix.so",
    "libGLX_nvidia.so",
    "libEGL_nvidia.so",
    "libGLESv1_CM_nvidia.so",
    "libGLESv2_nvidia.so",
    "libvdpau_nvidia.so",
    "libnvrm",
    "libnvfm",
];
const TOOLKIT: &str = "libnvidia-container";
/// Programs that users expect beside them.
const PROGRAMS: [&str; 4] =
    ["nvidia-smi", "nvidia-debugdump", "nvidia-cuda-mps-control", "nvidia-cuda-mps-server"];
const PROGRAM_FOLDER: &str = "usr/bin";
/// The folder that NVIDIA's images have in their loader's path.
const IMAGES_FOLDER: &str = "/usr/local/nvidia/lib64";
/// A file, and nothing more: it can't be changed, and is no way to more rights.
const OPTIONS: [&str; 4] = ["ro", "nosuid", "nodev", "bind"];

/// Every file, by each of its names. `here` is the driver's root as this process sees it, `host` as the runtime does.
pub(super) fn mounts(here: &Path, host: &Path) -> Vec<Mount> {
    let Ok(root) = fs::canonicalize(here) else { return Vec::new() };
    let mut mounts = Vec::new();
    let mut seen = BTreeSet::new();
    let mut add = |file: &Path, container_path: PathBuf| {
        let Some(host_path) = below(&root, file).map(|below| host.join(below)) else { return };
        if seen.insert(container_path.clone()) {
            mounts.push(Mount {
                host_path: host_path.display().to_string(),
                container_path: container_path.display().to_string(),
                options: OPTIONS,
            });
        }
    };
    if let Some(folder) = library::folder(&root) {
        for name in names(&root.join(folder), is_library) {
            let file = root.join(folder).join(&name);
            add(&file, Path::new("/").join(folder).join(&name));
            add(&file, Path::new(IMAGES_FOLDER).join(&name));
        }
    }
    for name in names(&root.join(PROGRAM_FOLDER), |name| PROGRAMS.contains(&name)) {
        add(&root.join(PROGRAM_FOLDER).join(&name), Path::new("/").join(PROGRAM_FOLDER).join(&name));
    }
    mounts
}

fn is_library(name: &str) -> bool {
    LIBRARIES.iter().any(|prefix| name.starts_with(prefix))
        && !name.starts_with(TOOLKIT)
        && name.contains(".so")
}

/// The names in a folder that are wanted, in order. Those that a path can't be written with are not.
fn names(folder: &Path, wanted: impl Fn(&str) -> bool) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| wanted(name) && name.bytes().all(|byte| byte.is_ascii_graphic()))
        .collect();
    names.sort();
    names
}

/// The file that a name leads to, below the root: a link that leads out of it is somebody else's file.
fn below(root: &Path, file: &Path) -> Option<PathBuf> {
    let real = fs::canonicalize(file).ok().filter(|real| real.is_file())?;
    real.strip_prefix(root).ok().map(Path::to_owned)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn every_file_of_the_driver_is_mounted_by_each_of_its_names() {
        let root = tempfile::tempdir().unwrap();
        let lib = root.path().join("usr/lib/x86_64-linux-gnu");
        let bin = root.path().join("usr/bin");
        fs::create_dir_all(&lib).unwrap();
        fs::create_dir_all(&bin).unwrap();
        for name in ["libnvidia-ml.so.580.1", "libcuda.so.580.1", "libnvidia-container.so.1", "libc.so.6"] {
            fs::write(lib.join(name), name).unwrap();
        }
        symlink("libnvidia-ml.so.580.1", lib.join("libnvidia-ml.so.1")).unwrap();
        symlink("libcuda.so.580.1", lib.join("libcuda.so.1")).unwrap();
        symlink("/etc/passwd", lib.join("libnvidia-evil.so.1")).unwrap();
        symlink("nowhere", lib.join("libnvidia-gone.so.1")).unwrap();
        fs::write(bin.join("nvidia-smi"), "").unwrap();
        fs::write(bin.join("sh"), "").unwrap();

        let mounts = mounts(root.path(), Path::new("/run/nvidia/driver"));
        let pairs: Vec<_> =
            mounts.iter().map(|mount| (mount.host_path.as_str(), mount.container_path.as_str())).collect();
        let (host, own) = ("/run/nvidia/driver/usr/lib/x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu");
        let file = |name: &str| format!("{host}/{name}");
        let expected: Vec<(String, String)> =
            ["libcuda.so.1", "libcuda.so.580.1", "libnvidia-ml.so.1", "libnvidia-ml.so.580.1"]
                .iter()
                .flat_map(|name| {
                    let real = file(&name.replace(".so.1", ".so.580.1"));
                    [(real.clone(), format!("{own}/{name}")), (real, format!("{IMAGES_FOLDER}/{name}"))]
                })
                .chain([(
                    "/run/nvidia/driver/usr/bin/nvidia-smi".to_owned(),
                    "/usr/bin/nvidia-smi".to_owned(),
                )])
                .collect();
        let expected: Vec<_> = expected.iter().map(|(host, own)| (host.as_str(), own.as_str())).collect();
        assert_eq!(pairs, expected);
    }

    #[test]
    fn a_machine_without_a_driver_has_no_files() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(mounts(root.path(), Path::new("/")), []);
        assert_eq!(mounts(Path::new("/nonexistent"), Path::new("/")), []);
    }
}
