//! The folder beside the library, read anew at every question. Whatever is missing or nonsense is "not there".

use std::{
    ffi::{CStr, OsStr, c_void},
    fs,
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
    sync::OnceLock,
};

static ROOT: OnceLock<PathBuf> = OnceLock::new();

/// `<library>.d`.
fn root() -> &'static Path {
    ROOT.get_or_init(|| {
        // SAFETY: an all-zero Dl_info is a valid one; dladdr fills it.
        let mut info: libc::Dl_info = unsafe { std::mem::zeroed() };
        // SAFETY: the address is of this very function, `info` outlives the call.
        let found = unsafe { libc::dladdr(root as *const c_void, &raw mut info) };
        if found == 0 || info.dli_fname.is_null() {
            return PathBuf::new();
        }
        // SAFETY: dladdr succeeded, so the name is a C string that lives as long as the library is loaded.
        let library = unsafe { CStr::from_ptr(info.dli_fname) };
        let mut path = OsStr::from_bytes(library.to_bytes()).to_owned();
        path.push(".d");
        PathBuf::from(path)
    })
}

/// The driver's version; none means that the driver is not loaded.
pub(crate) fn driver_version() -> Option<String> {
    text(root(), "driver-version")
}

/// The folders of all GPUs, in the order of the PCI bus.
pub(crate) fn gpus() -> Vec<PathBuf> {
    let entries = fs::read_dir(root().join("gpus")).into_iter().flatten().flatten();
    let mut gpus: Vec<_> =
        entries.map(|entry| entry.path()).filter(|path| uuid(path).starts_with("GPU-")).collect();
    gpus.sort_by_key(|gpu| (text(gpu, "bus-id"), gpu.clone()));
    gpus
}

/// The UUID of the GPU in this folder.
pub(crate) fn uuid(gpu: &Path) -> String {
    gpu.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Whether the GPU can't be asked: it is marked so, or its folder is gone.
pub(crate) fn lost(gpu: &Path) -> bool {
    !gpu.is_dir() || gpu.join("lost").exists()
}

/// A text attribute.
pub(crate) fn text(folder: &Path, name: &str) -> Option<String> {
    Some(fs::read_to_string(folder.join(name)).ok()?.trim().to_owned())
}

/// A number attribute.
pub(crate) fn number(gpu: &Path, name: &str) -> Option<u32> {
    text(gpu, name)?.parse().ok()
}

/// All XID events so far: UUID and number. A line that is still being written is not one yet.
pub(crate) fn xids() -> Vec<(String, u64)> {
    let text = fs::read_to_string(root().join("xids")).unwrap_or_default();
    text.split_inclusive('\n')
        .filter(|line| line.ends_with('\n'))
        .map(|line| {
            let (uuid, xid) = line.trim().split_once(' ').unwrap_or_default();
            (uuid.to_owned(), xid.trim().parse().unwrap_or_default())
        })
        .collect()
}
