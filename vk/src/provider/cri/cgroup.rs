//! The pods' cgroups, made with the pod's limits before its sandbox and removed after it: `<root>/spillway/<class>/pod<uid>`, and
//! `<root>/spillway/pod<uid>` of guaranteed pods. As under a kubelet, each of these competes for the CPU with the classes as wholes.
//!
//! Containers' own cgroups below are the runtime's. The branch is called `spillway` and not `kubepods`, because a real kubelet on the
//! same machine ends what it doesn't know under its own.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    sync::OnceLock,
};

use cgroups_rs::fs::{
    Cgroup, Hierarchy,
    cgroup_builder::CgroupBuilder,
    hierarchies::{V1, V2, is_cgroup2_unified_mode},
};
use nix::{
    errno::Errno,
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::provider::runtime::{PodCgroup, QosClass};

mod limits;
mod memory;
mod read;
pub(super) use memory::Memory;
pub(super) use read::{Reader, parse_pressure};

/// The branch under the configured root.
const BRANCH: &str = "spillway";
/// Where older versions put guaranteed pods; they run on there.
const OLD_GUARANTEED: &str = "guaranteed";

/// Why a pod's cgroup could not be made or removed.
#[derive(Debug, thiserror::Error)]
pub(super) enum CgroupError {
    #[error("can't read /proc/self/mountinfo, which tells where cgroups are")]
    Mounts(#[source] io::Error),
    #[error("can't make cgroup {path}")]
    Create { path: String, source: cgroups_rs::fs::error::Error },
    #[error("can't set {what} of cgroup {path}")]
    Limit { what: &'static str, path: String, source: cgroups_rs::fs::error::Error },
    #[error("can't limit huge pages by {}", path.display())]
    HugePages { path: PathBuf, source: io::Error },
    #[error("can't remove cgroup {}", path.display())]
    Remove { path: PathBuf, source: io::Error },
}

/// Who makes cgroups on this machine; the runtime says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Driver {
    /// Folders: ours to make.
    Cgroupfs,
    /// Slices: systemd's to make, when the runtime names them.
    Systemd,
}

/// The part of the tree that the node's pods are in.
#[derive(Debug, Clone)]
pub(super) struct Tree {
    root: String,
    driver: Driver,
    machine: OnceLock<Machine>,
}

/// The machine's hierarchies. They stay as they are, and are looked up once: the table of mounts grows with the pods, and with it the time
/// that the kernel takes to write it.
#[derive(Debug, Clone)]
struct Machine {
    /// `None`: there is one hierarchy of version 2 for all.
    v1: Option<V1>,
    /// Where they are mounted.
    mounts: Vec<PathBuf>,
    memory: Memory,
}

impl Machine {
    fn look() -> io::Result<Self> {
        let mounts = cgroup_mounts(&fs::read_to_string("/proc/self/mountinfo")?);
        let unified = is_cgroup2_unified_mode();
        Ok(Self { v1: (!unified).then(V1::new), mounts, memory: Memory::look(Path::new("/"), unified) })
    }

    /// Whether there is such a cgroup.
    fn has(&self, path: &str) -> bool {
        self.mounts.iter().any(|mount| mount.join(path).is_dir())
    }

    fn hierarchy(&self) -> Box<dyn Hierarchy> {
        match &self.v1 {
            Some(v1) => Box::new(v1.clone()),
            None => Box::new(V2::new()),
        }
    }
}

impl Tree {
    pub(super) fn new(root: &str, driver: Driver) -> Self {
        Self { root: root.trim_matches('/').to_owned(), driver, machine: OnceLock::new() }
    }

    fn machine(&self) -> Result<&Machine, CgroupError> {
        if let Some(machine) = self.machine.get() {
            return Ok(machine);
        }
        let machine = Machine::look().map_err(CgroupError::Mounts)?;
        Ok(self.machine.get_or_init(|| machine))
    }

    /// What is asked of containers' memory on this machine.
    pub(super) fn memory(&self) -> Result<Memory, CgroupError> {
        Ok(self.machine()?.memory)
    }

    /// How the runtime is told where the pod is: `cgroup_parent` of the sandbox.
    pub(super) fn parent(&self, uid: &str, qos: QosClass) -> String {
        match self.driver {
            Driver::Cgroupfs => format!("/{}", self.path(class(qos), uid)),
            Driver::Systemd => {
                // A slice's name spells its place: a-b.slice is in a.slice. A dash within a name would be a level.
                format!("{}.slice", self.slice(class(qos), uid).join("-"))
            }
        }
    }

    /// Why pods' cgroups have no limits; `None`: they have.
    pub(super) fn lacks_pod_limits(&self) -> Option<&'static str> {
        match self.driver {
            Driver::Cgroupfs => None,
            Driver::Systemd => Some("the runtime's cgroup driver is systemd, and pods' slices are systemd's"),
        }
    }

    /// Makes the pod's cgroup and sets its limits; of huge pages it gets what is said, in bytes by the size of a page, and no others. May
    /// be repeated.
    pub(super) fn create(
        &self,
        uid: &str,
        cgroup: PodCgroup,
        huge_pages: &BTreeMap<u64, u64>,
    ) -> Result<(), CgroupError> {
        if self.driver == Driver::Systemd {
            return Ok(());
        }
        let path = self.path(class(cgroup.qos), uid);
        let machine = self.machine()?;
        let hierarchy = machine.hierarchy();
        let mut controllers = vec!["cpu", "cpuset", "memory", "pids"];
        // Not every kernel has it, nor is it everywhere delegated to us.
        if hierarchy.subsystems().iter().any(|known| known.controller_name() == "hugetlb") {
            controllers.push("hugetlb");
        }
        let made = make(hierarchy, &path, &controllers)?;
        for mount in &machine.mounts {
            limits::huge_pages(&mount.join(&path), huge_pages)
                .map_err(|(path, source)| CgroupError::HugePages { path, source })?;
        }
        limits::set(&made, cgroup.limits).map_err(|(what, source)| CgroupError::Limit { what, path, source })
    }

    /// Gives the classes their shares of the CPU: as much as burstable pods ask for together, and next to nothing for those that ask for
    /// nothing. May be repeated.
    pub(super) fn weigh(&self, burstable_shares: u64) -> Result<(), CgroupError> {
        if self.driver == Driver::Systemd {
            return Ok(());
        }
        let machine = self.machine()?;
        weigh_classes(|| machine.hierarchy(), &self.branch(), burstable_shares)
    }

    /// Sets other limits; what has none stays as it is. systemd's slices have none to begin with.
    pub(super) fn update(&self, uid: &str, cgroup: PodCgroup) -> Result<(), CgroupError> {
        if self.driver == Driver::Systemd {
            return Ok(());
        }
        let machine = self.machine()?;
        let found = self.places(uid).into_iter().find(|place| machine.has(place));
        let path = found.unwrap_or_else(|| self.path(class(cgroup.qos), uid));
        let controllers = ["cpu", "memory"].map(str::to_owned).to_vec();
        let found = Cgroup::load_with_specified_controllers(machine.hierarchy(), &path, controllers);
        limits::set(&found, cgroup.limits).map_err(|(what, source)| CgroupError::Limit { what, path, source })
    }

    /// Removes the pod's cgroup from every hierarchy, whatever its class, with the empty ones below. Nothing of the pod's runs any more; what
    /// is in there all the same the runtime has lost (a runc that was cut off while it made a container): it is killed, as by a kubelet,
    /// and the next try succeeds.
    pub(super) fn remove(&self, uid: &str) -> Result<(), CgroupError> {
        if self.driver == Driver::Systemd {
            return Ok(());
        }
        for hierarchy in &self.machine()?.mounts {
            for place in self.places(uid) {
                let path = hierarchy.join(place);
                remove_tree(&path).map_err(|source| {
                    if source.kind() == io::ErrorKind::ResourceBusy {
                        end_processes(&path);
                    }
                    CgroupError::Remove { path, source }
                })?;
            }
        }
        Ok(())
    }

    /// Kills what is left of a container that does not run.
    pub(super) fn end_container(&self, id: &str) {
        let Ok(machine) = self.machine() else { return };
        for hierarchy in &machine.mounts {
            for path in of_container(&hierarchy.join(self.branch()), id) {
                end_processes(&path);
            }
        }
    }

    /// Where the node's pods are, and everything under them.
    pub(super) fn branch(&self) -> String {
        match self.driver {
            Driver::Cgroupfs if self.root.is_empty() => BRANCH.to_owned(),
            Driver::Cgroupfs => format!("{}/{BRANCH}", self.root),
            Driver::Systemd => {
                let names = self.root.split('/').map(unit_name).filter(|name| !name.is_empty());
                slice_path(&names.chain([BRANCH.to_owned()]).collect::<Vec<_>>())
            }
        }
    }

    /// Where the pod may be, by class. Where older versions had it comes last: a pod whose sandbox was made anew is in both places.
    pub(super) fn places(&self, uid: &str) -> [String; 4] {
        let [best_effort, burstable, guaranteed] =
            [QosClass::BestEffort, QosClass::Burstable, QosClass::Guaranteed].map(class);
        [best_effort, burstable, guaranteed, Some(OLD_GUARANTEED)].map(|class| match self.driver {
            Driver::Cgroupfs => self.path(class, uid),
            Driver::Systemd => slice_path(&self.slice(class, uid)),
        })
    }

    fn path(&self, class: Option<&str>, uid: &str) -> String {
        let class = class.map(|class| format!("/{class}")).unwrap_or_default();
        format!("{}{class}/pod{uid}", self.branch())
    }

    /// The names that a pod's slice is made of.
    fn slice(&self, class: Option<&str>, uid: &str) -> Vec<String> {
        let mut names: Vec<String> = self.root.split('/').map(unit_name).collect();
        names.extend([BRANCH, class.unwrap_or_default()].map(str::to_owned));
        names.push(format!("pod{}", unit_name(uid)));
        names.retain(|name| !name.is_empty());
        names
    }
}

/// The cgroup between the branch and the pods; guaranteed pods have none.
fn class(qos: QosClass) -> Option<&'static str> {
    match qos {
        QosClass::Guaranteed => None,
        QosClass::Burstable => Some("burstable"),
        QosClass::BestEffort => Some("besteffort"),
    }
}

fn weigh_classes(
    hierarchy: impl Fn() -> Box<dyn Hierarchy>,
    branch: &str,
    burstable_shares: u64,
) -> Result<(), CgroupError> {
    let classes = [(QosClass::BestEffort, limits::LEAST_SHARES), (QosClass::Burstable, burstable_shares)];
    for (qos, shares) in classes {
        let Some(class) = class(qos) else { continue };
        let path = format!("{branch}/{class}");
        let made = make(hierarchy(), &path, &["cpu"])?;
        limits::weigh(&made, shares).map_err(|(what, source)| CgroupError::Limit { what, path, source })?;
    }
    Ok(())
}

fn make(hierarchy: Box<dyn Hierarchy>, path: &str, controllers: &[&str]) -> Result<Cgroup, CgroupError> {
    CgroupBuilder::new(path)
        .set_specified_controllers(controllers.iter().map(|&name| name.to_owned()).collect())
        .build(hierarchy)
        .map_err(|source| CgroupError::Create { path: path.to_owned(), source })
}

/// Where systemd has the slice of these names: `a.slice/a-b.slice`.
fn slice_path(names: &[String]) -> String {
    let levels = (1..=names.len()).map(|depth| format!("{}.slice", names[..depth].join("-")));
    levels.collect::<Vec<_>>().join("/")
}

fn unit_name(name: &str) -> String {
    name.replace('-', "_")
}

/// Mount points of all cgroup hierarchies, v1 and v2, from the text of `/proc/self/mountinfo`.
fn cgroup_mounts(mountinfo: &str) -> Vec<PathBuf> {
    mountinfo
        .lines()
        .filter_map(|line| {
            let (left, right) = line.split_once(" - ")?;
            let kind = right.split(' ').next()?;
            (kind == "cgroup" || kind == "cgroup2").then_some(())?;
            left.split(' ').nth(4).map(PathBuf::from)
        })
        .collect()
}

fn end_processes(path: &Path) {
    for process in processes(path) {
        tracing::warn!(process, cgroup = %path.display(), "the runtime has left a process of what runs no more: it is killed");
        match kill(Pid::from_raw(process), Signal::SIGKILL) {
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(error) => tracing::error!(process, %error, "it can't be killed"),
        }
    }
}

/// The cgroups of a container: its class's if there is one, its pod's, and then one that has its ID in its name, whoever names it.
fn of_container(branch: &Path, id: &str) -> Vec<PathBuf> {
    let below = |path: &PathBuf| -> Vec<PathBuf> {
        fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
    };
    let second: Vec<_> = below(&branch.to_owned()).iter().flat_map(below).collect();
    let third: Vec<_> = second.iter().flat_map(below).collect();
    second
        .into_iter()
        .chain(third)
        .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().contains(id)))
        .collect()
}

/// The processes in a cgroup and those below, as our own PID namespace numbers them.
fn processes(path: &Path) -> Vec<i32> {
    let text = fs::read_to_string(path.join("cgroup.procs")).unwrap_or_default();
    // 0 is one of another namespace; 1 and what is less would be more than one process.
    let mut found: Vec<i32> =
        text.lines().filter_map(|line| line.parse().ok()).filter(|pid| *pid > 1).collect();
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.extend(processes(&entry.path()));
        }
    }
    found
}

/// Removes a tree of folders; the kernel removes their files with them. What is not there is removed.
fn remove_tree(path: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    match fs::remove_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processes_of_a_cgroup_are_found_below_it_and_never_all_of_the_machines() {
        let folder = tempfile::tempdir().unwrap();
        let inner = folder.path().join("container");
        fs::create_dir(&inner).unwrap();
        fs::write(folder.path().join("cgroup.procs"), "12\n").unwrap();
        fs::write(inner.join("cgroup.procs"), "0\n1\n-1\n34\nx\n").unwrap();
        assert_eq!(processes(folder.path()), [12, 34]);
        assert!(processes(&folder.path().join("nothing")).is_empty());
    }

    #[test]
    fn a_containers_cgroup_is_found_by_its_id() {
        let folder = tempfile::tempdir().unwrap();
        let one = folder.path().join("besteffort/pod1/abc");
        let other = folder.path().join("x-burstable.slice/x-burstable-pod2.slice/cri-containerd-abc.scope");
        let third = folder.path().join("pod3/abc");
        for path in [&one, &other, &third, &folder.path().join("pod4/def")] {
            fs::create_dir_all(path).unwrap();
        }
        let mut found = of_container(folder.path(), "abc");
        found.sort();
        assert_eq!(found, [one, third, other]);
        assert!(of_container(&folder.path().join("nothing"), "abc").is_empty());
    }

    #[test]
    fn parents_are_spelled_as_the_driver_wants_them() {
        let tree = Tree::new("/", Driver::Cgroupfs);
        assert_eq!(tree.parent("a-b", QosClass::Burstable), "/spillway/burstable/poda-b");
        let tree = Tree::new("/vk/one", Driver::Cgroupfs);
        assert_eq!(tree.parent("a-b", QosClass::Guaranteed), "/vk/one/spillway/poda-b");
        let tree = Tree::new("/", Driver::Systemd);
        assert_eq!(tree.parent("a-b", QosClass::BestEffort), "spillway-besteffort-poda_b.slice");
        assert_eq!(tree.parent("a-b", QosClass::Guaranteed), "spillway-poda_b.slice");
        assert!(tree.lacks_pod_limits().unwrap().contains("systemd"));
    }

    #[test]
    fn pods_are_looked_for_where_they_are_made() {
        let tree = Tree::new("/vk/one", Driver::Cgroupfs);
        assert_eq!(tree.branch(), "vk/one/spillway");
        assert_eq!(
            tree.places("a-b"),
            ["besteffort/poda-b", "burstable/poda-b", "poda-b", "guaranteed/poda-b"]
                .map(|place| format!("vk/one/spillway/{place}"))
        );
        let tree = Tree::new("/vk", Driver::Systemd);
        assert_eq!(tree.branch(), "vk.slice/vk-spillway.slice");
        assert!(tree.places("a-b").contains(
            &"vk.slice/vk-spillway.slice/vk-spillway-besteffort.slice/vk-spillway-besteffort-poda_b.slice"
                .to_owned()
        ));
    }

    #[test]
    fn pods_of_older_versions_are_found_and_removed() {
        let folder = tempfile::tempdir().unwrap();
        let tree = Tree::new("/", Driver::Cgroupfs);
        let machine = Machine {
            v1: None,
            mounts: vec![folder.path().to_owned()],
            memory: Memory::look(folder.path(), true),
        };
        tree.machine.set(machine.clone()).unwrap();
        let old = folder.path().join("spillway/guaranteed/pod1");
        fs::create_dir_all(old.join("container")).unwrap();
        let found = || tree.places("1").into_iter().find(|place| machine.has(place));
        assert_eq!(found().as_deref(), Some("spillway/guaranteed/pod1"));
        // Its next sandbox.
        let new = folder.path().join("spillway/pod1");
        fs::create_dir(&new).unwrap();
        assert_eq!(found().as_deref(), Some("spillway/pod1"));
        tree.remove("1").unwrap();
        assert!(!old.exists() && !new.exists());
    }

    #[test]
    fn hierarchies_of_both_versions_are_found() {
        let text = "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
                    32 31 0:29 / /sys/fs/cgroup/cpu rw shared:3 - cgroup cgroup rw,cpu\n\
                    41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        assert_eq!(
            cgroup_mounts(text),
            [PathBuf::from("/sys/fs/cgroup/cpu"), PathBuf::from("/sys/fs/cgroup/unified")]
        );
    }

    #[test]
    fn the_machines_hierarchies_are_looked_up_once() {
        let tree = Tree::new("/", Driver::Cgroupfs);
        let first: *const Machine = tree.machine().unwrap();
        assert!(std::ptr::eq(first, tree.machine().unwrap()));
        // What is not there is removed, wherever the machine has its cgroups.
        tree.remove("no-such-pod-of-a-test").unwrap();
    }

    #[test]
    fn trees_are_removed_from_the_leaves_up() {
        let folder = tempfile::tempdir().unwrap();
        let pod = folder.path().join("pod1");
        fs::create_dir_all(pod.join("container/nested")).unwrap();
        remove_tree(&pod).unwrap();
        remove_tree(&pod).unwrap();
        assert!(!pod.exists());
    }
}
