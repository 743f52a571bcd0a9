//! What `GPUDirect` and its kin need besides GPUs: device nodes of other drivers, and two paths of the host. Given to every container with a
//! GPU where the configuration says so, as far as the machine has it.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::{Common, Mount};
use crate::config::Flags;

/// `GPUDirect` RDMA's copies.
const GDRCOPY: &str = "gdrdrv";
/// `GPUDirect` Storage: `nvidia-fs0`, …
const GDS: &str = "nvidia-fs";
/// What its library reads, below the driver's root.
const GDS_PATHS: [&str; 2] = ["run/udev", "etc/cufile.json"];
/// Network cards: `uverbs0`, …, and the connection manager.
const MOFED_FOLDER: &str = "infiniband";
const MOFED: &str = "uverbs";
const MOFED_MANAGER: &str = "rdma_cm";
/// The host's and the container's only: what changes there is seen.
const OPTIONS: [&str; 4] = ["ro", "nosuid", "nodev", "rbind"];

/// `dev` and `here` are the host's `/dev` and the driver's root as this process sees them, `host` the latter as the runtime does.
pub(super) fn common(flags: &Flags, dev: &Path, here: &Path, host: &Path) -> Common {
    let mut nodes = Vec::new();
    let mut mounts = Vec::new();
    if flags.gdrcopy_enabled {
        nodes.extend(named(dev, "", |name| name == GDRCOPY));
    }
    if flags.gds_enabled {
        let storage = named(dev, "", |name| numbered(name, GDS));
        // Without the driver's nodes the paths are of no use.
        if !storage.is_empty() {
            mounts.extend(GDS_PATHS.iter().filter(|path| here.join(path).exists()).map(|path| Mount {
                host_path: host.join(path).display().to_string(),
                container_path: Path::new("/").join(path).display().to_string(),
                options: OPTIONS,
            }));
        }
        nodes.extend(storage);
    }
    if flags.mofed_enabled {
        nodes.extend(named(dev, MOFED_FOLDER, |name| numbered(name, MOFED) || name == MOFED_MANAGER));
    }
    Common { nodes, mounts }
}

fn numbered(name: &str, prefix: &str) -> bool {
    name.strip_prefix(prefix).is_some_and(|number| number.bytes().all(|byte| byte.is_ascii_digit()))
}

/// The names below `/dev` that are wanted, in order, as a container sees them.
fn named(dev: &Path, folder: &str, wanted: impl Fn(&str) -> bool) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(dev.join(folder))
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| wanted(name))
        .collect();
    names.sort();
    names
        .into_iter()
        .map(|name| PathBuf::from("/dev").join(folder).join(name).display().to_string())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, Overrides};

    #[test]
    fn a_feature_brings_what_the_machine_has_of_it_and_nothing_unless_it_is_asked_for() {
        let root = tempfile::tempdir().unwrap();
        let dev = root.path().join("dev");
        for path in
            ["dev/infiniband/uverbs0", "dev/infiniband/umad0", "dev/infiniband/rdma_cm", "etc/cufile.json"]
        {
            fs::create_dir_all(root.path().join(path).parent().unwrap()).unwrap();
            fs::write(root.path().join(path), "").unwrap();
        }
        for name in ["gdrdrv", "nvidia-fs0", "nvidia-fs10", "nvidia-fs", "nvidia-fsx", "nvidia0", "sda"] {
            fs::write(dev.join(name), "").unwrap();
        }
        let said = |text: &str| {
            let config = Config::load("a test", text.as_bytes(), &Overrides::default()).unwrap().config;
            let common = common(&config.flags, &dev, root.path(), Path::new("/run/nvidia/driver"));
            let mounts =
                common.mounts.iter().map(|mount| format!("{}={}", mount.container_path, mount.host_path));
            common.nodes.iter().cloned().chain(mounts).collect::<Vec<_>>()
        };
        assert_eq!(said(""), [""; 0]);
        assert_eq!(said("flags: {gdrcopyEnabled: true}"), ["/dev/gdrdrv"]);
        assert_eq!(
            said("flags: {gdsEnabled: true}"),
            [
                "/dev/nvidia-fs",
                "/dev/nvidia-fs0",
                "/dev/nvidia-fs10",
                "/etc/cufile.json=/run/nvidia/driver/etc/cufile.json"
            ]
        );
        assert_eq!(
            said("flags: {mofedEnabled: true}"),
            ["/dev/infiniband/rdma_cm", "/dev/infiniband/uverbs0"]
        );
        fs::remove_dir_all(&dev).unwrap();
        assert_eq!(said("flags: {gdrcopyEnabled: true, gdsEnabled: true, mofedEnabled: true}"), [""; 0]);
    }
}
