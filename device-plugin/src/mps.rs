//! NVIDIA's multi-process service: what a container needs to take part in it.

use std::path::{Path, PathBuf};

use spillway_proto::deviceplugin::{ContainerAllocateResponse, Mount};

use crate::{config::Flags, device::ResourceName};

/// Where pipes and logs lie unless the configuration says so.
const ROOT: &str = "/run/nvidia/mps";
/// Where containers find the same, as with NVIDIA's plugin.
const CONTAINER_ROOT: &str = "/mps";
const SHARED_MEMORY: &str = "/dev/shm";

/// The folder of a resource's pipe below a root.
fn pipe_folder(root: &Path, resource: &ResourceName) -> PathBuf {
    root.join(resource.as_str()).join("pipe")
}

/// What a container of `resource` needs: the way to the daemon, and the memory that it shares with it.
pub(crate) fn join(flags: &Flags, resource: &ResourceName, answer: &mut ContainerAllocateResponse) {
    let root = flags.mps_root.as_deref().unwrap_or(Path::new(ROOT));
    let pipe = pipe_folder(Path::new(CONTAINER_ROOT), resource).display().to_string();
    answer.envs.insert("CUDA_MPS_PIPE_DIRECTORY".to_owned(), pipe.clone());
    let host = [(pipe, pipe_folder(root, resource)), (SHARED_MEMORY.to_owned(), root.join("shm"))];
    answer.mounts.extend(host.into_iter().map(|(container_path, path)| Mount {
        container_path,
        host_path: path.display().to_string(),
        read_only: false,
    }));
}
