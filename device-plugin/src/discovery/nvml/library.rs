//! Finding and opening `libnvidia-ml.so.1`. It is the driver's, so it lies wherever the driver was installed: on the host, or in
//! the root of a driver container. Nothing is linked; without it the program runs all the same.

use std::path::{Path, PathBuf};

use nvml_wrapper::{Nvml, error::NvmlError};

const NAME: &str = "libnvidia-ml.so.1";

/// Where distributions put it below a root.
const FOLDERS: [&str; 8] = [
    "usr/lib/x86_64-linux-gnu/nvidia/current",
    "usr/lib/x86_64-linux-gnu",
    "usr/lib/aarch64-linux-gnu/nvidia/current",
    "usr/lib/aarch64-linux-gnu",
    "usr/lib64",
    "usr/lib",
    "usr/lib/wsl/lib",
    "run/opengl-driver/lib",
];

/// Why there is no NVML.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LibraryError {
    /// No such library.
    #[error(
        "no NVML library: looked for {NAME} below {root} (in {}) and where the loader looks; install the NVIDIA driver, say with \
         --nvidia-driver-root where it is, or configure gpu.enabled: false if there is no GPU",
        FOLDERS.join(", ")
    )]
    Absent {
        /// The driver root.
        root: PathBuf,
    },
    /// There is a library, but the loader refuses it.
    #[error("can't load the NVML library {path}")]
    Load {
        /// The library.
        path: PathBuf,
        /// What the loader says.
        source: NvmlError,
    },
    /// The library is loaded, but refuses to work.
    #[error("the NVML library {path} does not start{}", advice(.source))]
    Start {
        /// The library.
        path: PathBuf,
        /// What NVML says.
        source: NvmlError,
    },
}

fn advice(source: &NvmlError) -> &'static str {
    match source {
        NvmlError::DriverNotLoaded => ": load the kernel driver (modprobe nvidia)",
        NvmlError::NoPermission | NvmlError::Unknown => {
            ": a container opens NVIDIA's device nodes only under the runtime class of NVIDIA's container toolkit, or privileged"
        }
        NvmlError::LibRmVersionMismatch => {
            ": the library and the loaded kernel driver are of different versions; reload the driver or reboot"
        }
        _ => "",
    }
}

/// The libraries below `root`, in the order in which they are tried.
pub(super) fn present(root: &Path) -> Vec<PathBuf> {
    FOLDERS.iter().map(|folder| root.join(folder).join(NAME)).filter(|path| path.exists()).collect()
}

/// The folder below `root` in which the library lies: the driver's other libraries lie beside it.
pub(crate) fn folder(root: &Path) -> Option<&'static str> {
    FOLDERS.into_iter().find(|folder| root.join(folder).join(NAME).exists())
}

/// Opens and starts the first library that loads: below `root`, then wherever the loader looks.
pub(crate) fn open(root: &Path) -> Result<(Nvml, PathBuf), LibraryError> {
    let mut refused = None;
    for path in present(root).into_iter().chain([PathBuf::from(NAME)]) {
        match Nvml::builder().lib_path(path.as_os_str()).init() {
            Ok(nvml) => return Ok((nvml, path)),
            Err(source @ NvmlError::LibloadingError(_)) if path.is_absolute() => {
                refused.get_or_insert(LibraryError::Load { path, source });
            }
            Err(NvmlError::LibloadingError(_)) => {}
            Err(source) => return Err(LibraryError::Start { path, source }),
        }
    }
    Err(refused.unwrap_or_else(|| LibraryError::Absent { root: root.to_owned() }))
}

#[cfg(test)]
mod tests {
    use std::{error::Error as _, fs};

    use super::*;

    #[test]
    fn a_machine_without_driver_is_told_where_was_looked() {
        let root = tempfile::tempdir().unwrap();
        // Where the machine has a real driver the loader finds it.
        if let Err(error) = open(root.path()) {
            let message = error.to_string();
            assert!(message.contains(NAME) && message.contains(root.path().to_str().unwrap()), "{message}");
            assert!(matches!(error, LibraryError::Absent { .. }), "{error:?}");
        }
    }

    #[test]
    fn a_library_that_is_none_is_named() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("usr/lib64");
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join(NAME), "not an ELF file").unwrap();
        if let Err(error) = open(root.path()) {
            assert!(error.to_string().contains("usr/lib64/libnvidia-ml.so.1"), "{error}");
            assert!(error.source().is_some());
        }
    }
}
