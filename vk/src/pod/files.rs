//! A pod's folder on the machine: `<root>/pods/<uid>` with its volumes, its hosts file, its containers' termination messages.
//!
//! All calls block. Nothing outside the folder is written, except what a hostPath volume asks to be created; the folder is never
//! deleted while anything is mounted below it, because what a mount shows may be the machine's own.

use std::{
    ffi::OsString,
    fs, io,
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::{
            ffi::OsStringExt as _,
            fs::{
                DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _,
                PermissionsExt as _, symlink,
            },
        },
    },
    path::{Component, Path, PathBuf},
};

use nix::{
    fcntl::{OFlag, OpenHow, ResolveFlag, openat2},
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::stat::Mode,
};

use super::volumes::{Content, File, Files, HostKind};

/// Kubernetes keeps this much of a termination message.
const MAX_MESSAGE_BYTES: usize = 4096;
/// The link that readers go through; swapping it changes all files at once.
const DATA: &str = "..data";

/// What went wrong on the file system.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FilesError {
    #[error("can't {action} {}", path.display())]
    Io { action: &'static str, path: PathBuf, source: io::Error },
    #[error("hostPath type check failed: {} is not a {expected}", path.display())]
    HostPath { path: PathBuf, expected: &'static str },
    #[error("subPath {sub:?} can't be reached inside its volume")]
    SubPath { sub: String, source: io::Error },
    #[error("{} is still mounted", .0.display())]
    Mounted(PathBuf),
}

trait At<T> {
    fn at(self, action: &'static str, path: &Path) -> Result<T, FilesError>;
}

impl<T, E: Into<io::Error>> At<T> for Result<T, E> {
    fn at(self, action: &'static str, path: &Path) -> Result<T, FilesError> {
        self.map_err(|error| FilesError::Io { action, path: path.to_owned(), source: error.into() })
    }
}

/// The folder of one pod.
#[derive(Debug, Clone)]
pub(crate) struct PodFolder {
    path: PathBuf,
}

impl PodFolder {
    pub(crate) fn new(root: &Path, uid: &str) -> Self {
        Self { path: root.join("pods").join(uid) }
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    fn volume(&self, name: &str) -> PathBuf {
        self.path.join("volumes").join(name)
    }

    /// Makes the volume so, and says where it is.
    pub(crate) fn put_volume(
        &self,
        name: &str,
        content: &Content,
        fs_group: Option<u32>,
    ) -> Result<PathBuf, FilesError> {
        let path = self.volume(name);
        match content {
            Content::Host { path, kind } => {
                check_host_path(path, *kind)?;
                return Ok(path.clone());
            }
            Content::Empty { memory, bytes } => {
                // Once made it is the containers' own.
                if make_folder(&path, *memory, *bytes)? {
                    chmod(&path, 0o777)?;
                    if let Some(group) = fs_group {
                        chown(&path, None, Some(group))?;
                        chmod(&path, 0o2777)?;
                    }
                }
            }
            Content::Files { files, memory } => {
                make_folder(&path, *memory, None)?;
                write_files(&path, files, fs_group)?;
            }
        }
        Ok(path)
    }

    /// Writes the pod's `/etc/hosts` and says where it is.
    pub(crate) fn put_hosts(&self, text: &str) -> Result<PathBuf, FilesError> {
        let path = self.path.join("etc-hosts");
        make_dirs(&self.path)?;
        // In place: containers have this very file mounted.
        fs::write(&path, text).at("write", &path)?;
        chmod(&path, 0o644)?;
        Ok(path)
    }

    /// Makes the file that a container leaves its last words in, and says where it is.
    pub(crate) fn put_termination_log(&self, container: &str, attempt: u32) -> Result<PathBuf, FilesError> {
        let path = self.termination_log(container, attempt);
        if let Some(folder) = path.parent() {
            make_dirs(folder)?;
        }
        fs::write(&path, "").at("write", &path)?;
        // Whoever the container runs as shall be able to write it.
        chmod(&path, 0o666)?;
        Ok(path)
    }

    fn termination_log(&self, container: &str, attempt: u32) -> PathBuf {
        self.path.join("containers").join(container).join(attempt.to_string())
    }

    /// What a container left as its last words; empty if nothing.
    pub(crate) fn termination_message(&self, container: &str, attempt: u32) -> String {
        let path = self.termination_log(container, attempt);
        let mut bytes = Vec::new();
        let read = fs::OpenOptions::new()
            .read(true)
            .custom_flags((OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits())
            .open(&path)
            .and_then(|file| {
                io::Read::read_to_end(&mut io::Read::take(file, MAX_MESSAGE_BYTES as u64), &mut bytes)
            });
        match read {
            Ok(_) => String::from_utf8_lossy(&bytes).into_owned(),
            Err(_) => String::new(),
        }
    }

    /// Pins `sub` inside the volume at `volume` by a bind mount that no later change of a symbolic link moves, and says where it is.
    pub(crate) fn put_sub_path(
        &self,
        volume: &Path,
        sub: &str,
        container: &str,
        attempt: u32,
        index: usize,
    ) -> Result<PathBuf, FilesError> {
        let failed = |source| FilesError::SubPath { sub: sub.to_owned(), source };
        let found = open_beneath(volume, Path::new(sub)).map_err(failed)?;
        let of_attempt =
            |attempt: u32| self.path.join("subpaths").join(container).join(format!("{attempt}-{index}"));
        if let Some(previous) = attempt.checked_sub(1) {
            // Its container has ended.
            let _ = umount2(&of_attempt(previous), MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW);
        }
        let target = of_attempt(attempt);
        let _ = umount2(&target, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW);
        let source = PathBuf::from(format!("/proc/self/fd/{}", found.as_raw_fd()));
        if let Some(folder) = target.parent() {
            make_dirs(folder)?;
        }
        if fs::metadata(&source).at("look at", &source)?.is_dir() {
            make_dirs(&target)?;
        } else {
            fs::write(&target, "").at("write", &target)?;
        }
        mount(Some(&source), &target, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>)
            .at("bind mount to", &target)?;
        Ok(target)
    }

    /// Takes all mounts away, and then the folder. May be repeated.
    pub(crate) fn remove(&self) -> Result<(), FilesError> {
        if !self.path.exists() {
            return Ok(());
        }
        for mount in self.mounts()? {
            if umount2(&mount, MntFlags::UMOUNT_NOFOLLOW).is_err() {
                umount2(&mount, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW).at("unmount", &mount)?;
            }
        }
        if let Some(mount) = self.mounts()?.pop() {
            return Err(FilesError::Mounted(mount));
        }
        match fs::remove_dir_all(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error).at("remove", &self.path),
            _ => Ok(()),
        }
    }

    /// What is mounted below, the deepest first.
    fn mounts(&self) -> Result<Vec<PathBuf>, FilesError> {
        let table = Path::new("/proc/self/mountinfo");
        let text = fs::read(table).at("read", table)?;
        // The table has real paths.
        let folder = self.path.canonicalize().at("look at", &self.path)?;
        Ok(mounts_below(&text, &folder))
    }
}

/// Mount points below a folder, the last mounted first, from the text of `/proc/self/mountinfo`.
fn mounts_below(mountinfo: &[u8], folder: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = mountinfo
        .split(|byte| *byte == b'\n')
        .filter_map(|line| line.split(|byte| *byte == b' ').nth(4))
        .map(unescaped)
        .filter(|path| path != folder && path.starts_with(folder))
        .collect();
    found.reverse();
    found
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

/// Folders of pods that are there, by UID.
pub(crate) fn pod_uids(root: &Path) -> Vec<String> {
    let entries = fs::read_dir(root.join("pods")).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

fn make_dirs(path: &Path) -> Result<(), FilesError> {
    fs::DirBuilder::new().recursive(true).mode(0o755).create(path).at("make folder", path)
}

/// Makes the folder; `true`: it was not there before.
fn make_folder(path: &Path, memory: bool, bytes: Option<u64>) -> Result<bool, FilesError> {
    let is_new = !path.exists();
    make_dirs(path)?;
    if !memory {
        return Ok(is_new);
    }
    let device = |path: &Path| fs::metadata(path).at("look at", path).map(|metadata| metadata.dev());
    if device(path)? != device(path.parent().unwrap_or(path))? {
        return Ok(false);
    }
    let options = bytes.map(|bytes| format!("size={bytes}"));
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(Some("tmpfs"), path, Some("tmpfs"), flags, options.as_deref()).at("mount a tmpfs at", path)?;
    Ok(true)
}

fn chmod(path: &Path, mode: u32) -> Result<(), FilesError> {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).at("set the mode of", path)
}

fn chown(path: &Path, user: Option<u32>, group: Option<u32>) -> Result<(), FilesError> {
    std::os::unix::fs::lchown(path, user, group).at("set the owner of", path)
}

/// Writes all files into a new folder and then turns the one link that leads to them, so that a reader sees all of the old or all of
/// the new. Files that are right are left alone.
fn write_files(volume: &Path, files: &Files, fs_group: Option<u32>) -> Result<(), FilesError> {
    let data = volume.join(DATA);
    let old = fs::read_link(&data).ok();
    if old.is_some() && is_written(&data, files) {
        return Ok(());
    }
    let stamp = format!("..{}", jiff::Timestamp::now().strftime("%Y_%m_%d_%H_%M_%S.%9f"));
    let fresh = volume.join(&stamp);
    make_dirs(&fresh)?;
    for (path, file) in files {
        write_file(&fresh, path, file, fs_group)?;
    }
    if let Some(group) = fs_group {
        chown(&fresh, None, Some(group))?;
    }
    let next = volume.join("..data_tmp");
    let _ = fs::remove_file(&next);
    symlink(&stamp, &next).at("link", &next)?;
    fs::rename(&next, &data).at("replace", &data)?;

    let wanted: Vec<&std::ffi::OsStr> =
        files.keys().filter_map(|path| path.components().next()).map(Component::as_os_str).collect();
    for name in &wanted {
        let link = volume.join(name);
        if fs::symlink_metadata(&link).is_err() {
            symlink(Path::new(DATA).join(name), &link).at("link", &link)?;
        }
    }
    for entry in fs::read_dir(volume).at("list", volume)? {
        let entry = entry.at("list", volume)?;
        let name = entry.file_name();
        let is_link = entry.file_type().is_ok_and(|kind| kind.is_symlink());
        if is_link && name != DATA && !wanted.contains(&name.as_os_str()) {
            fs::remove_file(entry.path()).at("remove", &entry.path())?;
        }
    }
    if let Some(old) = old.filter(|old| old.as_os_str() != stamp.as_str()) {
        let old = volume.join(old);
        fs::remove_dir_all(&old).at("remove", &old)?;
    }
    Ok(())
}

fn write_file(folder: &Path, path: &Path, file: &File, fs_group: Option<u32>) -> Result<(), FilesError> {
    let mut parent = folder.to_path_buf();
    for part in path.parent().into_iter().flat_map(Path::components) {
        parent.push(part);
        make_dirs(&parent)?;
        if let Some(group) = fs_group {
            chown(&parent, None, Some(group))?;
        }
    }
    let path = folder.join(path);
    fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&path)
        .and_then(|mut out| io::Write::write_all(&mut out, &file.data))
        .at("write", &path)?;
    chown(&path, file.owner, fs_group)?;
    // The group may read what it owns.
    chmod(&path, if fs_group.is_some() { file.mode | 0o040 } else { file.mode })
}

fn is_written(data: &Path, files: &Files) -> bool {
    fn count(folder: &Path) -> usize {
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        entries
            .map(|entry| match entry.file_type() {
                Ok(kind) if kind.is_dir() => count(&entry.path()),
                _ => 1,
            })
            .sum()
    }
    files.iter().all(|(path, file)| fs::read(data.join(path)).is_ok_and(|found| found == file.data))
        && count(data) == files.len()
}

fn check_host_path(path: &Path, kind: HostKind) -> Result<(), FilesError> {
    match kind {
        HostKind::DirectoryOrCreate if !path.exists() => make_dirs(path)?,
        HostKind::FileOrCreate if !path.exists() => {
            fs::OpenOptions::new().write(true).create_new(true).mode(0o644).open(path).at("make", path)?;
        }
        _ => {}
    }
    let found = fs::metadata(path).map(|metadata| metadata.file_type());
    let is = |test: fn(&fs::FileType) -> bool| found.as_ref().is_ok_and(test);
    let (holds, expected) = match kind {
        HostKind::Anything => return Ok(()),
        HostKind::DirectoryOrCreate | HostKind::Directory => (is(fs::FileType::is_dir), "directory"),
        HostKind::FileOrCreate | HostKind::File => (is(fs::FileType::is_file), "file"),
        HostKind::Socket => (is(fs::FileType::is_socket), "socket"),
        HostKind::CharDevice => (is(fs::FileType::is_char_device), "character device"),
        HostKind::BlockDevice => (is(fs::FileType::is_block_device), "block device"),
    };
    if holds { Ok(()) } else { Err(FilesError::HostPath { path: path.to_owned(), expected }) }
}

/// Opens a path below a folder, making folders that are missing. No link on the way leads out: the kernel sees to it.
fn open_beneath(folder: &Path, path: &Path) -> io::Result<OwnedFd> {
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    let root = fs::OpenOptions::new()
        .read(true)
        .custom_flags((OFlag::O_PATH | OFlag::O_DIRECTORY).bits())
        .open(folder)?;
    match openat2(&root, path, how) {
        Err(nix::errno::Errno::ENOENT) => {}
        result => return Ok(result?),
    }
    let mode = Mode::from_bits_truncate(root.metadata()?.mode() & 0o777);
    let mut current: OwnedFd = root.into();
    for part in path.components() {
        current = match openat2(&current, part.as_os_str(), how) {
            Err(nix::errno::Errno::ENOENT) => {
                match nix::sys::stat::mkdirat(&current, part.as_os_str(), mode) {
                    Ok(()) | Err(nix::errno::Errno::EEXIST) => {}
                    Err(error) => return Err(error.into()),
                }
                openat2(&current, part.as_os_str(), how)?
            }
            result => result?,
        };
    }
    Ok(current)
}

#[cfg(test)]
mod tests;
