//! Mounts below a pod's folder: which there are, and how they go without touching anything outside it.

use std::{
    ffi::OsString,
    fs, io,
    os::unix::ffi::OsStringExt as _,
    path::{Path, PathBuf},
};

use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// Mounts may lie upon each other.
const MAX_LAYERS: usize = 16;

/// Takes a mount away, with all that is mounted in it. Nothing of that crosses over to where it came from: a folder of the machine that was
/// shown here keeps what is mounted in it there.
pub(crate) fn unmount(target: &Path) -> io::Result<()> {
    mount(None::<&str>, target, None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)?;
    if umount2(target, MntFlags::UMOUNT_NOFOLLOW).is_err() {
        umount2(target, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW)?;
    }
    Ok(())
}

/// Takes away all that is mounted below a folder. What is still there afterwards is said.
pub(crate) fn unmount_below(folder: &Path) -> io::Result<Vec<PathBuf>> {
    for _ in 0..MAX_LAYERS {
        let found = below(&fs::read("/proc/self/mountinfo")?, &folder.canonicalize()?);
        if found.is_empty() {
            return Ok(found);
        }
        // With a mount goes all that is below it.
        for mount in found.iter().filter(|mount| {
            !found.iter().any(|other| mount.starts_with(other) && mount.as_path() != other.as_path())
        }) {
            unmount(mount)?;
        }
    }
    Ok(below(&fs::read("/proc/self/mountinfo")?, &folder.canonicalize()?))
}

/// All mount points below a folder.
#[cfg(test)]
pub(crate) fn points_below(folder: &Path) -> Vec<PathBuf> {
    below(&fs::read("/proc/self/mountinfo").unwrap(), &folder.canonicalize().unwrap())
}

/// Mount points below a folder, by their real paths, from the text of `/proc/self/mountinfo`.
fn below(mountinfo: &[u8], folder: &Path) -> Vec<PathBuf> {
    mountinfo
        .split(|byte| *byte == b'\n')
        .filter_map(|line| line.split(|byte| *byte == b' ').nth(4))
        .map(unescaped)
        .filter(|path| path != folder && path.starts_with(folder))
        .collect()
}

/// The table writes blanks and the like as `\040`.
fn unescaped(field: &[u8]) -> PathBuf {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, tail @ ..] = rest {
        if let (b'\\', [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', after @ ..]) = (first, tail) {
            out.push((a - b'0') * 64 + (b - b'0') * 8 + (c - b'0'));
            rest = after;
        } else {
            out.push(*first);
            rest = tail;
        }
    }
    PathBuf::from(OsString::from_vec(out))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_found_by_real_paths() {
        let table = b"1 0 0:1 / / rw - ext4 x rw\n\
            2 1 0:2 / /var/pods/u1/volumes/a rw - tmpfs t rw\n\
            3 2 0:3 / /var/pods/u1/volumes/a/with\\040blank rw - tmpfs t rw\n\
            4 1 0:4 / /var/pods/u10/volumes/a rw - tmpfs t rw\n";
        assert_eq!(
            below(table, Path::new("/var/pods/u1")),
            [PathBuf::from("/var/pods/u1/volumes/a"), PathBuf::from("/var/pods/u1/volumes/a/with blank")]
        );
    }
}
