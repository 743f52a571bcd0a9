//! What keeps isolation in force: the filter where there is cgroup v2, else the v1 devices controller.

use std::{collections::BTreeMap, path::PathBuf};

use super::{
    cgroup::{self, CgroupError, Kubepods, PodCgroup},
    controller::Controller,
    filter::{self, Filter, FilterError, Outcome, Recipe},
    guard::GuardError,
    kernel::{self, KernelError},
    nodes::{Nodes, Roots},
    policy::{Changes, Entries},
    program::DenyKey,
    settings::{IsolationArgs, Mode},
};

/// One of the two.
#[derive(Debug)]
pub(super) enum Backend {
    /// cgroup v2: complete.
    Filter(Filter),
    /// cgroup v1: best effort.
    Controller(Controller),
}

impl Backend {
    /// Sees what this machine can. The controller counts nothing, so there is no audit by it.
    pub(super) fn open(args: &IsolationArgs, roots: &Roots) -> Result<Self, GuardError> {
        let hierarchy = match cgroup::hierarchy(&args.cgroup_dir) {
            Ok(hierarchy) => hierarchy,
            Err(error) => {
                let devices = cgroup::devices(&args.cgroup_dir).filter(|_| args.mode == Mode::Enforce);
                let controller = Controller::open(devices.ok_or(error)?)?;
                tracing::warn!(
                    "there is no cgroup v2 here: isolation is kept by the v1 devices controller, best effort (see SECURITY.md)"
                );
                return Ok(Self::Controller(controller));
            }
        };
        if !kernel::is_cgroup2(&hierarchy).map_err(FilterError::from)? {
            return Err(GuardError::NoCgroups(hierarchy.display().to_string()));
        }
        let impossible = |source| GuardError::Impossible { release: release(roots), source };
        let filter = Filter::open(&args.bpf_dir).map_err(|error| match error {
            FilterError::Kernel(KernelError::Call { .. }) => impossible(error),
            other => other.into(),
        })?;
        filter.probe().map_err(impossible)?;
        Ok(Self::Filter(filter))
    }

    /// The hierarchy in which pods are looked for.
    pub(super) fn hierarchy(&self, args: &IsolationArgs) -> Result<PathBuf, CgroupError> {
        let v2 = cgroup::hierarchy(&args.cgroup_dir);
        match self {
            Self::Filter(_) => v2,
            Self::Controller(_) => cgroup::devices(&args.cgroup_dir).map_or(v2, Ok),
        }
    }

    /// Every pod's cgroup that there is.
    pub(super) fn pods(&mut self, kubepods: &Kubepods) -> Result<Vec<PodCgroup>, CgroupError> {
        match self {
            Self::Filter(_) => kubepods.pods(),
            Self::Controller(controller) => controller.pods(kubepods),
        }
    }

    pub(super) fn entries(&self) -> Result<Entries, FilterError> {
        match self {
            Self::Filter(filter) => filter.entries(),
            Self::Controller(controller) => Ok(controller.entries().clone()),
        }
    }

    pub(super) fn apply(&mut self, changes: &Changes) -> Result<(), FilterError> {
        match self {
            Self::Filter(filter) => filter.apply(changes),
            Self::Controller(controller) => {
                controller.apply(changes);
                Ok(())
            }
        }
    }

    pub(super) fn enforce(&mut self, recipe: Recipe, nodes: &Nodes) -> Result<Outcome, GuardError> {
        match self {
            Self::Filter(filter) => Ok(filter.enforce(recipe)?),
            // Whatever is protected and has a name: it takes no majors.
            Self::Controller(controller) => Ok(controller.enforce(nodes.names.keys().copied().collect())?),
        }
    }

    /// Puts back what somebody changed, and says what. Of the controller that can't be told: it is written anew in each round.
    pub(super) fn restore(&mut self) -> Result<Option<&'static str>, FilterError> {
        let Self::Filter(filter) = self else { return Ok(None) };
        let what = filter.tampered()?;
        if what.is_some() {
            filter.restore()?;
        }
        Ok(what)
    }

    pub(super) fn denials(&mut self) -> Result<BTreeMap<DenyKey, u64>, FilterError> {
        match self {
            Self::Filter(filter) => filter.denials(),
            Self::Controller(_) => Ok(BTreeMap::new()),
        }
    }

    pub(super) fn is_held(&self) -> bool {
        match self {
            Self::Filter(filter) => filter.is_held(),
            Self::Controller(controller) => controller.is_held(),
        }
    }

    /// Takes it out of force.
    pub(super) fn remove(self, args: &IsolationArgs, nodes: &Nodes) -> Result<(), GuardError> {
        match self {
            Self::Filter(_) => filter::uninstall(&args.bpf_dir).map(drop)?,
            Self::Controller(controller) => controller.lift(&nodes.names.keys().copied().collect())?,
        }
        Ok(())
    }
}

fn release(roots: &Roots) -> String {
    std::fs::read_to_string(roots.proc.join("sys/kernel/osrelease"))
        .map_or_else(|_| "of unknown release".to_owned(), |text| text.trim().to_owned())
}
