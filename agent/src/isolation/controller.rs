//! The back end for machines without cgroup v2: the v1 `devices` controller at each pod's cgroup. Best effort: what a pod doesn't hold
//! is denied after its cgroup was found, so its containers may be faster; nothing counts denials; and nothing is kept from new pods
//! while the agent is away. SECURITY.md says it all.
//!
//! The kernel's rules (`security/device_cgroup.c`), as tried in `agent/tests/kernel/controller.rs`: a denial reaches the cgroups below at
//! once and those made later, and none of them can lift it. Lifting it reaches none of them. The runtime lets its containers make any node
//! (`c *:* m`) and the kernel refuses that as soon as one node's making is denied above: so only reading and writing are.
//! A denied range can't be opened in part: so each minor is denied by itself. What is denied can't be read back: so all is written anew in
//! each round.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, OpenOptions},
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use cgroups_rs::fs::{
    devices::{DevicePermissions, DeviceType, DevicesController},
    error::Error as ControllerCause,
};

use super::{
    cgroup::{CgroupError, Kubepods, PodCgroup},
    filter::Outcome,
    kernel::{self, KernelError},
    policy::{Changes, Entries},
    program::Number,
};

const OPEN: [DevicePermissions; 2] = [DevicePermissions::Read, DevicePermissions::Write];

/// Why the controller does not work.
#[derive(Debug, thiserror::Error)]
pub enum ControllerError {
    /// The folder is something else.
    #[error("{} is no cgroup v1 hierarchy with the devices controller", .0.display())]
    NoController(PathBuf),
    /// We may not write it.
    #[error(
        "can't write {}: without cgroup v2 isolation needs CAP_SYS_ADMIN and writable cgroups (agent.isolation.devicesController in the chart)",
        path.display()
    )]
    Forbidden {
        /// What could not be written.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The kernel refuses a rule.
    #[error("can't {what} device {number} in cgroup {}", path.display())]
    Rule {
        /// What was tried.
        what: &'static str,
        /// Which device.
        number: Number,
        /// Where.
        path: PathBuf,
        /// The answer.
        source: ControllerCause,
    },
    /// It can't be looked at.
    #[error(transparent)]
    Kernel(#[from] KernelError),
}

/// What to write at one pod's cgroup.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Orders {
    /// Nodes that the pod may not open.
    pub deny: BTreeSet<Number>,
    /// Nodes that it may: an earlier denial is lifted.
    pub allow: BTreeSet<Number>,
}

/// What to write where, of the nodes that are protected. Pure.
pub fn plan(
    protected: &BTreeSet<Number>,
    pods: impl IntoIterator<Item = u64>,
    entries: &Entries,
) -> BTreeMap<u64, Orders> {
    let orders = |cgroup| {
        let has = |number| entries.contains_key(&super::program::AllowKey { cgroup, number });
        let (allow, deny) = protected.iter().partition(|number| has(Number::ALL) || has(**number));
        (cgroup, Orders { deny, allow })
    };
    pods.into_iter().map(orders).collect()
}

/// The controller of this machine, and what is to be allowed, which nothing but this process remembers.
#[derive(Debug)]
pub struct Controller {
    hierarchy: PathBuf,
    entries: Entries,
    /// Pods' cgroups, by their IDs.
    paths: BTreeMap<u64, PathBuf>,
    /// What is denied to whoever doesn't hold it, since the last round that went well.
    protected: Option<BTreeSet<Number>>,
}

impl Controller {
    /// Sees whether this process may write the hierarchy.
    ///
    /// # Errors
    /// What is missing.
    pub fn open(hierarchy: PathBuf) -> Result<Self, ControllerError> {
        if !kernel::is_cgroup1(&hierarchy)? {
            return Err(ControllerError::NoController(hierarchy));
        }
        let path = hierarchy.join("devices.allow");
        // The kernel looks at the capability first, and then at the rule, which is none.
        let answer = OpenOptions::new().write(true).open(&path).and_then(|mut file| file.write_all(b"?"));
        match answer {
            Err(error) if error.raw_os_error() == Some(nix::libc::EINVAL) => {}
            Err(source) => return Err(ControllerError::Forbidden { path, source }),
            Ok(()) => return Err(ControllerError::NoController(hierarchy)),
        }
        Ok(Self { hierarchy, entries: Entries::new(), paths: BTreeMap::new(), protected: None })
    }

    /// Every pod's cgroup that there is.
    ///
    /// # Errors
    /// When one can't be read.
    pub fn pods(&mut self, kubepods: &Kubepods) -> Result<Vec<PodCgroup>, CgroupError> {
        let (pods, paths) =
            kubepods.pods_v1()?.into_iter().map(|(pod, path)| (pod.clone(), (pod.id, path))).unzip();
        self.paths = paths;
        Ok(pods)
    }

    /// Everything that is allowed.
    pub fn entries(&self) -> &Entries {
        &self.entries
    }

    /// Remembers what is allowed from now on; [`Controller::enforce`] writes it.
    pub fn apply(&mut self, changes: &Changes) {
        self.entries.retain(|key, _| !changes.revoke.contains(key));
        self.entries.extend(&changes.allow);
    }

    /// Denies these nodes to every pod that was last seen and isn't allowed them, then lifts the denial for those that are. All of
    /// it is tried, whatever fails.
    ///
    /// # Errors
    /// The first that the kernel refused.
    pub fn enforce(&mut self, protected: BTreeSet<Number>) -> Result<Outcome, ControllerError> {
        let orders = plan(&protected, self.paths.keys().copied(), &self.entries);
        let before = self.protected.take();
        let at = |(cgroup, orders): (&u64, &Orders)| Some((self.paths.get(cgroup)?.clone(), orders.clone()));
        let orders: Vec<_> = orders.iter().filter_map(at).collect();
        let denied = each(&orders, |orders| &orders.deny, |path, number| self.deny(path, number));
        each(&orders, |orders| &orders.allow, |path, number| self.allow(path, number)).and(denied)?;
        let outcome = match before {
            None => Outcome::Attached,
            Some(before) if before == protected => Outcome::Unchanged,
            Some(_) => Outcome::Replaced,
        };
        self.protected = Some(protected);
        Ok(outcome)
    }

    /// Lifts every denial of these nodes in the pods that were last seen.
    ///
    /// # Errors
    /// The first that the kernel refused.
    pub fn lift(&self, protected: &BTreeSet<Number>) -> Result<(), ControllerError> {
        let orders: Vec<_> = self.paths.values().map(|path| (path.clone(), protected.clone())).collect();
        each(&orders, |numbers| numbers, |path, number| self.allow(path, number))
    }

    /// Whether the last round went well.
    pub fn is_held(&self) -> bool {
        self.protected.is_some()
    }

    fn deny(&self, path: &Path, number: Number) -> Result<(), ControllerError> {
        let (major, minor) = (number.major.into(), number.minor.into());
        let written = self.at(path).deny_device(DeviceType::Char, major, minor, &OPEN);
        unless_gone(path, written, |source| ControllerError::Rule {
            what: "deny",
            number,
            path: path.to_owned(),
            source,
        })
    }

    /// Of the pod, and of those of its containers that may open everything else, as privileged ones: a lifted denial isn't passed on.
    /// The runtime listed for the others what they may open; that is no business of ours.
    fn allow(&self, path: &Path, number: Number) -> Result<(), ControllerError> {
        let controller = self.at(path);
        // Of a cgroup that is gone there is nothing to read.
        let listed = controller.allowed_devices().unwrap_or_default();
        if !listed.iter().any(|rule| rule.devtype == DeviceType::All) {
            return Ok(());
        }
        let (major, minor) = (number.major.into(), number.minor.into());
        let written = controller.allow_device(DeviceType::Char, major, minor, &OPEN);
        unless_gone(path, written, |source| ControllerError::Rule {
            what: "allow",
            number,
            path: path.to_owned(),
            source,
        })?;
        let below = fs::read_dir(path).into_iter().flatten().flatten();
        below
            .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
            .try_for_each(|entry| self.allow(&entry.path(), number))
    }

    fn at(&self, path: &Path) -> DevicesController {
        DevicesController::new(path.to_owned(), self.hierarchy.clone())
    }
}

/// Does it with every number of every pod, and gives the first error.
fn each<T>(
    orders: &[(PathBuf, T)],
    numbers: impl Fn(&T) -> &BTreeSet<Number>,
    act: impl Fn(&Path, Number) -> Result<(), ControllerError>,
) -> Result<(), ControllerError> {
    let mut result = Ok(());
    for (path, orders) in orders {
        for number in numbers(orders) {
            result = result.and(act(path, *number));
        }
    }
    result
}

/// Pods come and go: what is written to one that is gone is no error.
fn unless_gone(
    path: &Path,
    written: Result<(), ControllerCause>,
    error: impl FnOnce(ControllerCause) -> ControllerError,
) -> Result<(), ControllerError> {
    match written {
        Err(source) if path.is_dir() => Err(error(source)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
