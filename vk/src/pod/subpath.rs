//! A part of a volume, pinned. What a pod's containers do to their volume meanwhile, with symbolic links and renames, never leads out of
//! it: the kernel resolves the path below the volume, and what it found is bound by its descriptor, not by a name.

use std::{
    fs, io,
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _},
    },
    path::{Component, Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::{OFlag, OpenHow, ResolveFlag, openat2},
    mount::{MsFlags, mount},
    sys::stat::{Mode, fchmod, mkdirat},
};

use super::mounts;

/// Renames on the way make the kernel ask for another try.
const TRIES: usize = 64;

/// A kubelet tells its user no more: the rest may be about the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Folders that are missing are made.
    Create,
    /// What is there is opened.
    Prepare,
}

impl Step {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Create => "create subPath directory",
            Self::Prepare => "prepare subPath",
        }
    }
}

/// Which part of what, and for whom.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Part<'a> {
    pub(crate) volume: &'a Path,
    pub(crate) sub: &'a Path,
    /// Mounts that the container makes there are the machine's too.
    pub(crate) shared: bool,
}

/// Binds the part at `<folder>/<attempt>-<index>`, instead of what earlier attempts had there, and says where it is.
pub(crate) fn bind(
    part: Part<'_>,
    folder: &Path,
    attempt: u32,
    index: usize,
) -> Result<PathBuf, (Step, io::Error)> {
    let found = open(part.volume, part.sub)?;
    bind_opened(&found, part.shared, folder, attempt, index).map_err(|error| (Step::Prepare, error))
}

fn bind_opened(
    found: &OwnedFd,
    shared: bool,
    folder: &Path,
    attempt: u32,
    index: usize,
) -> io::Result<PathBuf> {
    fs::DirBuilder::new().recursive(true).mode(0o750).create(folder)?;
    clear(folder, index)?;
    let target = folder.join(format!("{attempt}-{index}"));
    let source = PathBuf::from(format!("/proc/self/fd/{}", found.as_raw_fd()));
    if fs::metadata(&source)?.is_dir() {
        fs::DirBuilder::new().mode(0o750).create(&target)?;
    } else {
        fs::OpenOptions::new().write(true).create_new(true).mode(0o640).open(&target)?;
    }
    // Not what is mounted in it: unmounting that again would reach the machine's own.
    mount(Some(&source), &target, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
    if !shared {
        // Later mounts of the machine still come in, none go out.
        mount(None::<&str>, &target, None::<&str>, MsFlags::MS_SLAVE, None::<&str>)?;
    }
    Ok(target)
}

/// Takes away what any attempt had for this mount: its container has ended, or never was.
fn clear(folder: &Path, index: usize) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let of_mount = entry.file_name().to_str().and_then(|name| name.split_once('-')?.1.parse().ok());
        if of_mount != Some(index) {
            continue;
        }
        let path = entry.path();
        for _ in 0..TRIES {
            // What is no mount says so.
            if mounts::unmount(&path).is_err() {
                break;
            }
        }
        // A folder in which something is still mounted stays, and says so.
        if entry.file_type()?.is_dir() {
            fs::remove_dir(&path)?;
        } else {
            fs::remove_file(&path)?;
        }
    }
    Ok(())
}

/// Opens a path below a folder, making folders that are missing, with the folder's own mode.
///
/// # Errors
/// When it can't be opened or made, or leads out of the folder; and in which step.
pub fn open(folder: &Path, path: &Path) -> Result<OwnedFd, (Step, io::Error)> {
    let root = fs::OpenOptions::new()
        .read(true)
        .custom_flags((OFlag::O_PATH | OFlag::O_DIRECTORY).bits())
        .open(folder)
        .map_err(|error| (Step::Prepare, error))?;
    let mode = root.metadata().map_err(|error| (Step::Prepare, error))?.mode();
    let root: OwnedFd = root.into();
    match beneath(&root, path, OFlag::O_PATH) {
        Err(Errno::ENOENT) => make(&root, path, mode).map_err(|error| (Step::Create, error.into())),
        Err(Errno::EXDEV) => back(folder, &root, path).map_err(|error| (Step::Prepare, error.into())),
        result => result.map_err(|error| (Step::Prepare, error.into())),
    }
}

/// What leads out of the folder and back into it, as an absolute link to something in the folder does. The way is found by names, which may
/// change meanwhile; what is opened in the end is below the folder without any link, whatever they mean by then.
fn back(folder: &Path, root: &OwnedFd, path: &Path) -> nix::Result<OwnedFd> {
    if path.components().any(|part| !matches!(part, Component::Normal(_) | Component::CurDir)) {
        return Err(Errno::EXDEV);
    }
    let real = |path: &Path| fs::canonicalize(path).map_err(|_| Errno::EXDEV);
    let target = real(&folder.join(path))?;
    let inside = target.strip_prefix(real(folder)?).map_err(|_| Errno::EXDEV)?;
    let inside = if inside.as_os_str().is_empty() { Path::new(".") } else { inside };
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS);
    openat2(root, inside, how)
}

/// Nothing on the way leads out of the folder, be it a link, `..` or `/proc`: the kernel sees to it, at one moment.
fn beneath(folder: &OwnedFd, path: &Path, flags: OFlag) -> nix::Result<OwnedFd> {
    let how = OpenHow::new()
        .flags(flags | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    let mut last = Errno::EAGAIN;
    for _ in 0..TRIES {
        match openat2(folder, path, how) {
            Err(Errno::EAGAIN) => last = Errno::EAGAIN,
            result => return result,
        }
    }
    Err(last)
}

/// Each folder is made in the one that was just opened, so that nobody puts another in between.
fn make(root: &OwnedFd, path: &Path, mode: u32) -> nix::Result<OwnedFd> {
    let mut current = root.try_clone().map_err(|_| Errno::EMFILE)?;
    let mut prefix = PathBuf::new();
    for part in path.components().map(|part| Path::new(part.as_os_str())) {
        prefix.push(part);
        current = match beneath(root, &prefix, OFlag::O_PATH) {
            Err(Errno::ENOENT) => {
                mkdirat(&current, part, Mode::from_bits_truncate(mode & 0o777))?;
                let fresh =
                    beneath(&current, part, OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW)?;
                // The process's own mask has taken something away.
                fchmod(&fresh, Mode::from_bits_truncate(mode & 0o7777))?;
                fresh
            }
            result => result?,
        };
    }
    Ok(current)
}

#[cfg(test)]
mod tests;
