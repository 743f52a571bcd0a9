//! What the kernel does for isolation: maps, device programs, links, and where they are pinned. `call` is the system call, and the only
//! `unsafe`; what it does for us is given types here.

mod call;
mod link;
mod map;

use std::{
    ffi::CString,
    io,
    os::{fd::OwnedFd, unix::ffi::OsStrExt as _},
    path::{Path, PathBuf},
};

pub use self::{
    link::{Link, LinkState, Program},
    map::{Layout, Map, MapKind},
};

/// `BPF_FS_MAGIC`, `CGROUP2_SUPER_MAGIC` and `CGROUP_SUPER_MAGIC`, linux/magic.h.
const BPF_FS: i64 = 0xcafe_4a11;
const CGROUP2_FS: i64 = 0x6367_7270;
const CGROUP1_FS: i64 = 0x0027_e0eb;

/// Why the kernel did not do what it was asked to.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// A bpf(2) command failed.
    #[error("the kernel can't {what}")]
    Call {
        /// What was asked.
        what: &'static str,
        /// Its answer.
        source: io::Error,
    },
    /// The verifier refused the program.
    #[error("the kernel refuses the device program{}", if log.is_empty() { String::new() } else { format!(": {log}") })]
    Refused {
        /// The verifier's words; empty where it was not asked, as without the right to load a program.
        log: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A path could not be used.
    #[error("can't {what} {}", path.display())]
    Path {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
}

impl KernelError {
    /// Whether a capability is missing.
    pub fn is_permission(&self) -> bool {
        let (Self::Call { source, .. } | Self::Refused { source, .. } | Self::Path { source, .. }) = self;
        source.kind() == io::ErrorKind::PermissionDenied
    }

    /// Whether there was nothing at a path.
    pub fn is_absent(&self) -> bool {
        matches!(self, Self::Path { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }
}

fn name(text: &str) -> call::Name {
    let mut name = [0; 16];
    // The last byte stays zero.
    for (to, from) in name[..15].iter_mut().zip(text.bytes()) {
        *to = from;
    }
    name
}

fn c_path(path: &Path) -> Result<CString, KernelError> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| KernelError::Path {
        what: "use",
        path: path.to_owned(),
        source: io::Error::from(io::ErrorKind::InvalidInput),
    })
}

/// Makes the object live on at `path`, in a bpffs.
///
/// # Errors
/// When something is there, or it isn't in a bpffs.
fn pin(fd: &OwnedFd, path: &Path) -> Result<(), KernelError> {
    call::pin(fd, &c_path(path)?).map_err(|source| KernelError::Path {
        what: "pin a BPF object at",
        path: path.to_owned(),
        source,
    })
}

fn pinned(path: &Path) -> Result<OwnedFd, KernelError> {
    call::pinned(&c_path(path)?).map_err(|source| KernelError::Path {
        what: "open the pinned BPF object",
        path: path.to_owned(),
        source,
    })
}

fn file_system(path: &Path) -> Result<i64, KernelError> {
    let found = nix::sys::statfs::statfs(path).map_err(|source| KernelError::Path {
        what: "look at",
        path: path.to_owned(),
        source: source.into(),
    })?;
    Ok(found.filesystem_type().0)
}

/// Whether a folder is in a bpffs, where BPF objects can be pinned.
///
/// # Errors
/// When it can't be looked at.
pub fn is_bpffs(path: &Path) -> Result<bool, KernelError> {
    Ok(file_system(path)? == BPF_FS)
}

/// Whether a folder is a cgroup of version 2.
///
/// # Errors
/// When it can't be looked at.
pub fn is_cgroup2(path: &Path) -> Result<bool, KernelError> {
    Ok(file_system(path)? == CGROUP2_FS)
}

/// Whether a folder is a cgroup of version 1.
///
/// # Errors
/// When it can't be looked at.
pub fn is_cgroup1(path: &Path) -> Result<bool, KernelError> {
    Ok(file_system(path)? == CGROUP1_FS)
}
