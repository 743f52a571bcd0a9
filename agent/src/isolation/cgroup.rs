//! Where pods are in the cgroup hierarchy: found by looking, under an injectable root, never computed from a configuration that we
//! don't know. Read only.

use std::{
    collections::VecDeque,
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

/// How deep kubepods is looked for; a `--cgroup-root` of a few levels, in a node that is a container itself.
const DEPTH_LIMIT: usize = 10;

/// Why pods' cgroups can't be found.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// There is no hierarchy of version 2.
    #[error(
        "{} holds no cgroup v2 hierarchy (neither itself nor its folder `unified`): boot the machine with systemd.unified_cgroup_hierarchy=1",
        .0.display()
    )]
    NoV2(PathBuf),
    /// A cgroup can't be read.
    #[error("can't read cgroup {}", path.display())]
    Read {
        /// The cgroup.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// This pod's own cgroup is in none that is called kubepods.
    #[error(
        "this pod's cgroup {} is not below one called kubepods: name it by --kubepods-cgroup (with cgroupsPerQOS: false there is none, and isolation is impossible)",
        .0.display()
    )]
    Unusual(PathBuf),
    /// Processes of pods are not in this hierarchy: nothing would be kept from them.
    #[error(
        "this pod ({uid}) is not below {}, as the container runtime uses another hierarchy: boot the machine with \
         systemd.unified_cgroup_hierarchy=1, or use a runtime that joins hybrid hierarchies (runc 1.1)",
        kubepods.display()
    )]
    Unused {
        /// What is called kubepods.
        kubepods: PathBuf,
        /// This pod.
        uid: String,
    },
    /// There are several.
    #[error("there are {} cgroups called kubepods ({}): name the right one by --kubepods-cgroup", .0.len(), list(.0))]
    Several(Vec<PathBuf>),
    /// There is none.
    #[error(
        "no cgroup called kubepods below {}: the kubelet has not made it yet, or it has another name (--kubepods-cgroup)",
        .0.display()
    )]
    None(PathBuf),
}

fn list(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
}

/// The v2 hierarchy below `root`: itself, or `unified` on a host where v1 and v2 live side by side.
///
/// # Errors
/// When there is none.
pub fn hierarchy(root: &Path) -> Result<PathBuf, CgroupError> {
    [root.to_owned(), root.join("unified")]
        .into_iter()
        .find(|path| path.join("cgroup.controllers").is_file())
        .ok_or_else(|| CgroupError::NoV2(root.to_owned()))
}

/// The v1 hierarchy of the `devices` controller below `root`.
pub fn devices(root: &Path) -> Option<PathBuf> {
    Some(root.join("devices")).filter(|path| path.join("devices.deny").is_file())
}

/// A pod's cgroup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodCgroup {
    /// The pod's UID.
    pub uid: String,
    /// The cgroup's ID as BPF programs see it.
    pub id: u64,
    /// Whether a process is in it or below.
    pub populated: bool,
}

/// The cgroup of all pods.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kubepods {
    /// Where it is.
    pub path: PathBuf,
    /// Its ID.
    pub id: u64,
    /// How far below the root that we see: directly below it is 1.
    pub level: u32,
}

/// Finds the cgroup of all pods in the v2 hierarchy: the one that is named, relative to the hierarchy; else the one that this pod's own
/// cgroup is in; else, for an agent that is in none, the only one with the right name.
///
/// # Errors
/// When none is found, or several; or when this pod's processes are not there.
pub fn find(hierarchy: &Path, named: Option<&Path>, own_uid: Option<&str>) -> Result<Kubepods, CgroupError> {
    if let Some(named) = named {
        let path = hierarchy.join(named.strip_prefix("/").unwrap_or(named));
        return kubepods(hierarchy, path);
    }
    if let Some(uid) = own_uid {
        let own = search(hierarchy, |name| pod_uid(name).is_some_and(|found| found == uid))?;
        if let Some(own) = own.into_iter().next() {
            let parent = own.ancestors().skip(1).find(|path| !name_of(path).is_some_and(is_qos));
            return match parent {
                Some(path) if name_of(path).is_some_and(is_kubepods) => {
                    // This process runs. v1 has no such file.
                    if populated(&own).is_ok_and(|populated| !populated) {
                        return Err(CgroupError::Unused { kubepods: path.to_owned(), uid: uid.to_owned() });
                    }
                    kubepods(hierarchy, path.to_owned())
                }
                _ => Err(CgroupError::Unusual(own)),
            };
        }
    }
    let mut found = search(hierarchy, is_kubepods)?;
    match (found.pop(), found.is_empty()) {
        (Some(kubepods), true) if let Some(uid) = own_uid => {
            Err(CgroupError::Unused { kubepods, uid: uid.to_owned() })
        }
        (Some(path), true) => kubepods(hierarchy, path),
        (Some(path), false) => {
            found.push(path);
            found.sort();
            Err(CgroupError::Several(found))
        }
        (None, _) => Err(CgroupError::None(hierarchy.to_owned())),
    }
}

fn kubepods(hierarchy: &Path, path: PathBuf) -> Result<Kubepods, CgroupError> {
    let id = match fs::metadata(&path) {
        Ok(data) if data.is_dir() => data.ino(),
        Ok(_) => return Err(CgroupError::None(path)),
        Err(source) => return Err(CgroupError::Read { path, source }),
    };
    let below = path.strip_prefix(hierarchy).map_or(0, |below| below.components().count());
    Ok(Kubepods { id, level: u32::try_from(below).unwrap_or_default(), path })
}

impl Kubepods {
    /// Every pod's cgroup that there is.
    ///
    /// # Errors
    /// When one can't be read: a list that may lack pods is never given. What goes meanwhile is no error.
    pub fn pods(&self) -> Result<Vec<PodCgroup>, CgroupError> {
        Ok(self.pods_by(populated)?.into_iter().map(|(pod, _)| pod).collect())
    }

    /// The same in a v1 hierarchy, and where each is.
    ///
    /// # Errors
    /// The same.
    pub fn pods_v1(&self) -> Result<Vec<(PodCgroup, PathBuf)>, CgroupError> {
        self.pods_by(populated_v1)
    }

    fn pods_by(&self, populated: Populated) -> Result<Vec<(PodCgroup, PathBuf)>, CgroupError> {
        let mut pods = Vec::new();
        for class in children(&self.path, true)? {
            if let Some(pod) = pod(&class, populated)? {
                pods.push((pod, class));
            } else if name_of(&class).is_some_and(is_qos) {
                for path in children(&class, false)? {
                    pods.extend(pod(&path, populated)?.map(|pod| (pod, path)));
                }
            }
        }
        Ok(pods)
    }

    /// The cgroups in which pods' cgroups are made.
    ///
    /// # Errors
    /// When they can't be read.
    pub fn parents(&self) -> Result<Vec<PathBuf>, CgroupError> {
        let mut parents = vec![self.path.clone()];
        parents
            .extend(children(&self.path, true)?.into_iter().filter(|path| name_of(path).is_some_and(is_qos)));
        Ok(parents)
    }

    /// Whether it still is where it was: a kubelet with another configuration makes another.
    pub fn in_place(&self) -> bool {
        fs::metadata(&self.path).is_ok_and(|data| data.ino() == self.id)
    }
}

fn name_of(path: &Path) -> Option<&str> {
    path.file_name()?.to_str()
}

fn is_kubepods(name: &str) -> bool {
    name == "kubepods" || name == "kubepods.slice" || name.ends_with("-kubepods.slice")
}

fn is_qos(name: &str) -> bool {
    ["burstable", "besteffort"].into_iter().any(|class| {
        name == class || name.strip_suffix(".slice").is_some_and(|name| name.ends_with(&format!("-{class}")))
    })
}

/// The UID in the name of a pod's cgroup: `pod<uid>`, or under systemd `kubepods-besteffort-pod<uid>.slice` with `_` for `-`
/// (`pkg/kubelet/cm/cgroup_manager_linux.go`).
pub fn pod_uid(name: &str) -> Option<String> {
    let uid = match name.strip_suffix(".slice") {
        Some(unit) => unit.rsplit_once("-pod")?.1.replace('_', "-"),
        None => name.strip_prefix("pod")?.to_owned(),
    };
    (!uid.is_empty()).then_some(uid)
}

/// Whether a process is in a cgroup or below.
type Populated = fn(&Path) -> io::Result<bool>;

fn populated(path: &Path) -> io::Result<bool> {
    Ok(fs::read_to_string(path.join("cgroup.events"))?.lines().any(|line| line == "populated 1"))
}

/// v1 doesn't say, and lists only processes that the reader can see. The runtime removes a container's cgroup when it has ended, and can't
/// while something runs in it.
fn populated_v1(path: &Path) -> io::Result<bool> {
    if !fs::read_to_string(path.join("cgroup.procs"))?.trim().is_empty() {
        return Ok(true);
    }
    for entry in fs::read_dir(path)? {
        if entry?.file_type()?.is_dir() {
            return Ok(true);
        }
    }
    Ok(false)
}

fn pod(path: &Path, populated: Populated) -> Result<Option<PodCgroup>, CgroupError> {
    let Some(uid) = name_of(path).and_then(pod_uid) else { return Ok(None) };
    let read = || {
        let before = fs::metadata(path)?.ino();
        let populated = populated(path)?;
        // Between the two it may have gone and come again.
        let after = fs::metadata(path)?.ino();
        Ok((before == after).then_some((before, populated)))
    };
    match read() {
        Ok(found) => Ok(found.map(|(id, populated)| PodCgroup { uid, id, populated })),
        Err(error) if gone(&error) => Ok(None),
        Err(source) => Err(CgroupError::Read { path: path.to_owned(), source }),
    }
}

/// A cgroup that is being removed answers ENODEV.
fn gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(nix::libc::ENODEV)
}

/// The cgroups directly below; with `required` it must be there.
fn children(path: &Path, required: bool) -> Result<Vec<PathBuf>, CgroupError> {
    let read = || {
        let mut children = Vec::new();
        for entry in fs::read_dir(path)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                children.push(entry.path());
            }
        }
        io::Result::Ok(children)
    };
    match read() {
        Err(error) if gone(&error) && !required => Ok(Vec::new()),
        other => other.map_err(|source| CgroupError::Read { path: path.to_owned(), source }),
    }
}

/// The cgroups whose name fits, nearest to the root first; what lies below one of them is not looked at.
fn search(root: &Path, fits: impl Fn(&str) -> bool) -> Result<Vec<PathBuf>, CgroupError> {
    let mut found = Vec::new();
    let mut queue = VecDeque::from([(root.to_owned(), 0)]);
    while let Some((path, depth)) = queue.pop_front() {
        for child in children(&path, depth == 0)? {
            if name_of(&child).is_some_and(&fits) {
                found.push(child);
            } else if depth < DEPTH_LIMIT {
                queue.push_back((child, depth + 1));
            }
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests;
