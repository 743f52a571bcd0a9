//! A pod's folder on the machine: `<root>/pods/<uid>` with its volumes, its hosts file, its containers' termination messages.
//!
//! All calls block. Nothing outside the folder is written, except what a hostPath volume asks to be created; the folder is never
//! deleted while anything is mounted below it, because what a mount shows may be the machine's own.

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, symlink},
    path::{Component, Path, PathBuf},
};

use nix::{
    fcntl::OFlag,
    mount::{MsFlags, mount},
};

use super::{
    host_path, mounts, storage, subpath,
    volumes::{Content, File, Files},
};

/// Kubernetes keeps this much of a termination message.
const MAX_MESSAGE_BYTES: usize = 4096;
/// How notes of starts end, after the attempt.
const STARTED: &str = ".started";
/// How notes of ends to be followed by a start end, after the attempt.
const KILLED: &str = ".killed";
/// The link that readers go through; swapping it changes all files at once.
const DATA: &str = "..data";

/// What went wrong on the file system.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FilesError {
    #[error("can't {action} {}", path.display())]
    Io { action: &'static str, path: PathBuf, source: io::Error },
    #[error("hostPath type check failed: {} is not a {expected}", path.display())]
    HostPath { path: PathBuf, expected: &'static str },
    #[error("failed to {step} for volumeMount {volume:?} of container {container:?}")]
    SubPath { step: &'static str, volume: String, container: String },
    #[error("{} is still mounted", .0.display())]
    Mounted(PathBuf),
}

/// Says what was done, and where, when it went wrong.
pub(crate) trait At<T> {
    fn at(self, action: &'static str, path: &Path) -> Result<T, FilesError>;
}

impl<T, E: Into<io::Error>> At<T> for Result<T, E> {
    fn at(self, action: &'static str, path: &Path) -> Result<T, FilesError> {
        self.map_err(|error| FilesError::Io { action, path: path.to_owned(), source: error.into() })
    }
}

/// What is on record of a pod's containers, by name: the last attempt of each.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Noted {
    /// They were about to be started.
    pub(crate) started: BTreeMap<String, u32>,
    /// They were about to be ended to have the next one started.
    pub(crate) killed: BTreeMap<String, u32>,
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

    pub(crate) fn volume(&self, name: &str) -> PathBuf {
        self.path.join("volumes").join(name)
    }

    /// Bytes that these volumes take on the disk, and the pod's own files. A volume that is not there takes nothing.
    pub(crate) fn disk_usage(&self, volumes: &[String]) -> Result<(BTreeMap<String, u64>, u64), FilesError> {
        let mut found = BTreeMap::new();
        for name in volumes {
            let path = self.volume(name);
            match storage::bytes_below(&path) {
                Ok(bytes) => drop(found.insert(name.clone(), bytes)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error).at("measure", &path),
            }
        }
        Ok((found, storage::bytes_of_file(&self.path.join("etc-hosts"))))
    }

    /// Makes the volume so, and says where it is. `nested`: folders that other volumes will be mounted on.
    pub(crate) fn put_volume(
        &self,
        name: &str,
        content: &Content,
        fs_group: Option<u32>,
        nested: &[PathBuf],
    ) -> Result<PathBuf, FilesError> {
        let path = self.volume(name);
        // Once made, a folder is the containers' own.
        match content {
            Content::Host { path, kind } => {
                host_path::check(path, *kind)?;
                return Ok(path.clone());
            }
            Content::Empty { memory: false, .. } => self.make_folder(&path, fs_group)?,
            Content::Empty { memory: true, bytes } => {
                self.make_tmpfs(&path, *bytes, fs_group, MsFlags::empty())?;
            }
            Content::Files { files, memory } => {
                if *memory {
                    self.make_tmpfs(&path, None, fs_group, MsFlags::MS_NOSUID | MsFlags::MS_NODEV)?;
                } else {
                    self.make_folder(&path, fs_group)?;
                }
                make_nested(&path, nested, fs_group)?;
                write_files(&path, files, fs_group)?;
            }
        }
        Ok(path)
    }

    /// Makes the folders down to a volume, which are nobody's business but ours.
    fn make_parent(&self, volume: &Path) -> Result<(), FilesError> {
        make_private_dirs(&self.path)?;
        volume.parent().map_or(Ok(()), make_private_dirs)
    }

    /// An empty folder that everybody may use, or that the group owns. It appears as a whole or not at all.
    fn make_folder(&self, path: &Path, fs_group: Option<u32>) -> Result<(), FilesError> {
        if fs::symlink_metadata(path).is_ok() {
            return Ok(());
        }
        self.make_parent(path)?;
        let Some(name) = path.file_name() else { return Ok(()) };
        // No volume is called so.
        let half_made = path.with_file_name(format!(".{}.new", name.to_string_lossy()));
        match fs::remove_dir_all(&half_made) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(error).at("remove", &half_made);
            }
            _ => {}
        }
        fs::DirBuilder::new().mode(0o700).create(&half_made).at("make folder", &half_made)?;
        chown(&half_made, None, fs_group)?;
        chmod(&half_made, folder_mode(0o777, fs_group))?;
        fs::rename(&half_made, path).at("make", path)
    }

    /// The same in memory, which is never swapped to a disk where the kernel can promise it.
    fn make_tmpfs(
        &self,
        path: &Path,
        bytes: Option<u64>,
        fs_group: Option<u32>,
        flags: MsFlags,
    ) -> Result<(), FilesError> {
        self.make_parent(path)?;
        make_dirs(path)?;
        let device = |path: &Path| fs::metadata(path).at("look at", path).map(|metadata| metadata.dev());
        if device(path)? != device(path.parent().unwrap_or(path))? {
            return Ok(());
        }
        let mode = Some(format!("mode={:o}", folder_mode(0o1777, fs_group)));
        let group = fs_group.map(|group| format!("gid={group}"));
        let size = bytes.map(|bytes| format!("size={bytes}"));
        let options = [mode, group, size].into_iter().flatten().collect::<Vec<_>>().join(",");
        let mount_with = |options: &str| mount(Some("tmpfs"), path, Some("tmpfs"), flags, Some(options));
        // Since Linux 6.4.
        mount_with(&format!("{options},noswap"))
            .or_else(|_| mount_with(&options))
            .at("mount a tmpfs at", path)
    }

    pub(crate) fn hosts(&self) -> PathBuf {
        self.path.join("etc-hosts")
    }

    /// Writes the pod's `/etc/hosts` and says where it is.
    pub(crate) fn put_hosts(&self, text: &str) -> Result<PathBuf, FilesError> {
        let path = self.hosts();
        make_private_dirs(&self.path)?;
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

    pub(crate) fn termination_log(&self, container: &str, attempt: u32) -> PathBuf {
        self.path.join("containers").join(container).join(attempt.to_string())
    }

    /// Notes that the attempt is about to be started, and no earlier one any more. Written to last longer than this process and the runtime,
    /// not than the machine, which containers do not survive either.
    pub(crate) fn note_start(&self, container: &str, attempt: u32) -> Result<(), FilesError> {
        let folder = self.note(container, attempt, STARTED)?;
        if let Some(before) = attempt.checked_sub(1) {
            for kind in [STARTED, KILLED] {
                let _ = fs::remove_file(folder.join(format!("{before}{kind}")));
            }
        }
        Ok(())
    }

    /// Notes that the attempt is about to be ended to have the next one started.
    pub(crate) fn note_kill(&self, container: &str, attempt: u32) -> Result<(), FilesError> {
        self.note(container, attempt, KILLED).map(drop)
    }

    fn note(&self, container: &str, attempt: u32, kind: &str) -> Result<PathBuf, FilesError> {
        let folder = self.path.join("containers").join(container);
        let path = folder.join(format!("{attempt}{kind}"));
        make_dirs(&folder)?;
        fs::write(&path, "").at("write", &path)?;
        Ok(folder)
    }

    /// All that was noted.
    pub(crate) fn noted(&self) -> Result<Noted, FilesError> {
        let mut noted = Noted::default();
        let folder = self.path.join("containers");
        let containers = match fs::read_dir(&folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(noted),
            containers => containers.at("list", &folder)?,
        };
        for container in containers {
            let container = container.at("list", &folder)?;
            let Ok(name) = container.file_name().into_string() else { continue };
            for entry in fs::read_dir(container.path()).at("list", &container.path())?.flatten() {
                let file = entry.file_name();
                for (kind, attempts) in [(STARTED, &mut noted.started), (KILLED, &mut noted.killed)] {
                    let attempt = file.to_str().and_then(|file| file.strip_suffix(kind)?.parse::<u32>().ok());
                    let last = attempt.max(attempts.get(&name).copied());
                    attempts.extend(last.map(|last| (name.clone(), last)));
                }
            }
        }
        Ok(noted)
    }

    /// What a container left as its last words, the end of it if they are many; empty if nothing.
    pub(crate) fn termination_message(&self, container: &str, attempt: u32) -> String {
        let path = self.termination_log(container, attempt);
        let mut bytes = Vec::new();
        let read = fs::OpenOptions::new()
            .read(true)
            .custom_flags((OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits())
            .open(&path)
            .and_then(|mut file| {
                let about = file.metadata()?;
                if about.is_file() {
                    let skipped = about.len().saturating_sub(MAX_MESSAGE_BYTES as u64);
                    io::Seek::seek(&mut file, io::SeekFrom::Start(skipped))?;
                }
                io::Read::read_to_end(&mut io::Read::take(file, MAX_MESSAGE_BYTES as u64), &mut bytes)
            });
        match read {
            Ok(_) => String::from_utf8_lossy(&bytes).into_owned(),
            Err(_) => String::new(),
        }
    }

    /// Pins a part of a volume for a container by a bind mount that no later change of a symbolic link moves, and says where it is.
    pub(crate) fn put_sub_path(
        &self,
        part: subpath::Part<'_>,
        volume: &str,
        container: &str,
        attempt: u32,
        index: usize,
    ) -> Result<PathBuf, FilesError> {
        let folder = self.path.join("subpaths").join(container);
        subpath::bind(part, &folder, attempt, index).map_err(|(step, error)| {
            // The part may be named by a variable, and that one by a secret.
            tracing::warn!(path = %self.path.display(), index, %error, volume, container, "a subPath is not to be had");
            FilesError::SubPath {
                step: step.as_str(),
                volume: volume.to_owned(),
                container: container.to_owned(),
            }
        })
    }

    /// Takes all mounts away, and then the folder. May be repeated.
    pub(crate) fn remove(&self) -> Result<(), FilesError> {
        if !self.path.exists() {
            return Ok(());
        }
        if let Some(mount) = mounts::unmount_below(&self.path).at("unmount what is in", &self.path)?.pop() {
            return Err(FilesError::Mounted(mount));
        }
        match fs::remove_dir_all(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error).at("remove", &self.path),
            _ => Ok(()),
        }
    }
}

/// Folders of pods that are there, by UID.
pub(crate) fn pod_uids(root: &Path) -> Vec<String> {
    let entries = fs::read_dir(root.join("pods")).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

fn make_dirs(path: &Path) -> Result<(), FilesError> {
    fs::DirBuilder::new().recursive(true).mode(0o755).create(path).at("make folder", path)
}

/// For us alone: what is in there is shown to containers, and to nobody else on the machine.
fn make_private_dirs(path: &Path) -> Result<(), FilesError> {
    fs::DirBuilder::new().recursive(true).mode(0o750).create(path).at("make folder", path)
}

/// As a kubelet gives a folder to a group.
fn folder_mode(mode: u32, fs_group: Option<u32>) -> u32 {
    if fs_group.is_some() { mode | 0o2770 } else { mode }
}

/// Read-only files and folders that a group owns may be read by it.
fn shown_mode(mode: u32, fs_group: Option<u32>, is_folder: bool) -> u32 {
    match (fs_group, is_folder) {
        (None, _) => mode,
        (Some(_), true) => mode | 0o2550,
        (Some(_), false) => mode | 0o440,
    }
}

/// Nobody can make them later: the volume is read-only.
fn make_nested(volume: &Path, nested: &[PathBuf], fs_group: Option<u32>) -> Result<(), FilesError> {
    for path in nested {
        let mut folder = volume.to_path_buf();
        for part in path.components() {
            folder.push(part);
            if fs::symlink_metadata(&folder).is_err() {
                make_shown_dir(&folder, fs_group)?;
            }
        }
    }
    Ok(())
}

fn make_shown_dir(path: &Path, fs_group: Option<u32>) -> Result<(), FilesError> {
    make_dirs(path)?;
    chown(path, None, fs_group)?;
    chmod(path, shown_mode(0o755, fs_group, true))
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
    let current = match fs::read_link(&data) {
        Ok(old) if is_written(&data, files) => old,
        _ => swap_files(volume, files, fs_group)?,
    };
    // Also after a swap whose process died: what is left to do is seen.
    let wanted: Vec<&std::ffi::OsStr> =
        files.keys().filter_map(|path| path.components().next()).map(Component::as_os_str).collect();
    for name in &wanted {
        let link = volume.join(name);
        if fs::symlink_metadata(&link).is_err() {
            symlink(Path::new(DATA).join(name), &link).at("link", &link)?;
            chown(&link, None, fs_group)?;
        }
    }
    for entry in fs::read_dir(volume).at("list", volume)? {
        let entry = entry.at("list", volume)?;
        let (name, path) = (entry.file_name(), entry.path());
        let kind = entry.file_type().at("look at", &path)?;
        if kind.is_symlink() && name != DATA && !wanted.contains(&name.as_os_str()) {
            fs::remove_file(&path).at("remove", &path)?;
        } else if kind.is_dir() && name.as_encoded_bytes().starts_with(b"..") && name != current {
            fs::remove_dir_all(&path).at("remove", &path)?;
        }
    }
    Ok(())
}

/// Says where the files are now.
fn swap_files(volume: &Path, files: &Files, fs_group: Option<u32>) -> Result<PathBuf, FilesError> {
    let stamp = PathBuf::from(jiff::Timestamp::now().strftime("..%Y_%m_%d_%H_%M_%S.%9f").to_string());
    let fresh = volume.join(&stamp);
    make_shown_dir(&fresh, fs_group)?;
    for (path, file) in files {
        write_file(&fresh, path, file, fs_group)?;
    }
    let next = volume.join("..data_tmp");
    let _ = fs::remove_file(&next);
    symlink(&stamp, &next).at("link", &next)?;
    chown(&next, None, fs_group)?;
    let data = volume.join(DATA);
    fs::rename(&next, &data).at("replace", &data)?;
    Ok(stamp)
}

fn write_file(folder: &Path, path: &Path, file: &File, fs_group: Option<u32>) -> Result<(), FilesError> {
    let mut parent = folder.to_path_buf();
    for part in path.parent().into_iter().flat_map(Path::components) {
        parent.push(part);
        make_shown_dir(&parent, fs_group)?;
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
    chmod(&path, shown_mode(file.mode, fs_group, false))
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

#[cfg(test)]
mod tests;
