//! One round of isolation: look at the machine, decide, tell the kernel, and see to it that the filter still is as and where it was put.

use std::{collections::BTreeSet, path::PathBuf};

use spillway_device_plugin::{
    device::{DeviceId, ResourceName},
    inventory::{BackendState, Inventory},
};

use super::{
    backend::Backend,
    cgroup::{self, CgroupError, Kubepods, PodCgroup},
    controller::ControllerError,
    denials::Ledger,
    filter::{FilterError, Outcome, Recipe},
    nodes::{self, Nodes, Roots},
    policy::{self, Changes, Entries, View, Wait},
    settings::{IsolationArgs, Mode, WhileAway},
};
use crate::{holders::Holders, pods::PodInfo};

/// Why isolation is not in force.
#[derive(Debug, thiserror::Error)]
pub enum GuardError {
    /// This machine can't.
    #[error(
        "the kernel ({release}) does not take the device program: isolation needs Linux 6.1, CAP_BPF and CAP_NET_ADMIN"
    )]
    Impossible {
        /// The kernel's release.
        release: String,
        /// What it said.
        source: FilterError,
    },
    /// The hierarchy is not what it seems.
    #[error("{0} is no cgroup v2 file system: name the host's cgroups by --cgroup-dir")]
    NoCgroups(String),
    /// Pods' cgroups can't be found.
    #[error(transparent)]
    Cgroups(#[from] CgroupError),
    /// The filter does not work.
    #[error(transparent)]
    Filter(#[from] FilterError),
    /// The controller does not work.
    #[error(transparent)]
    Controller(#[from] ControllerError),
    /// The machine's devices are not known yet.
    #[error("{0} has not looked for devices yet")]
    Starting(String),
}

/// What a round needs to know of the world.
#[derive(Debug, Clone, Copy)]
pub(super) struct Facts<'a> {
    pub(super) inventory: &'a Inventory,
    pub(super) holders: &'a Holders,
    pub(super) pods: &'a [PodInfo],
}

/// The state of isolation on this machine.
#[derive(Debug)]
pub(super) struct Guard {
    args: IsolationArgs,
    roots: Roots,
    backend: Backend,
    kubepods: Option<Kubepods>,
    nodes: Nodes,
    /// Majors of accelerators' drivers at the last look.
    majors: BTreeSet<u32>,
    cgroups: Vec<PodCgroup>,
    /// What is in the map, if nobody else wrote there. None before the first round, and after one that failed half-way.
    written: Option<Entries>,
    waits: Vec<Wait>,
    pub(super) ledger: Ledger,
}

impl Guard {
    /// Sees whether this machine can.
    pub(super) fn open(args: IsolationArgs, roots: Roots, ledger: Ledger) -> Result<Self, GuardError> {
        let backend = Backend::open(&args, &roots)?;
        Ok(Self {
            args,
            roots,
            backend,
            kubepods: None,
            nodes: Nodes::default(),
            majors: BTreeSet::new(),
            cgroups: Vec::new(),
            written: None,
            waits: Vec::new(),
            ledger,
        })
    }

    /// Looks, decides, does.
    pub(super) fn round(&mut self, facts: Facts<'_>) -> Result<(), GuardError> {
        let kubepods = match self.kubepods.take().filter(Kubepods::in_place) {
            Some(kubepods) => kubepods,
            None => self.find()?,
        };
        self.kubepods = Some(kubepods.clone());
        self.majors = nodes::majors(&self.roots);
        let nodes = Nodes::look(facts.inventory, &self.roots);
        for doubt in nodes.doubts.difference(&self.nodes.doubts) {
            tracing::warn!("{doubt}");
        }
        self.nodes = nodes;
        self.cgroups = self.backend.pods(&kubepods)?;
        self.ledger.saw(&self.cgroups);
        self.vouch()?;
        let entries = self.backend.entries()?;
        let changes = policy::decide(&View {
            nodes: &self.nodes,
            holders: facts.holders,
            cgroups: &self.cgroups,
            pods: facts.pods,
            exemptions: &self.args.exempt,
            own_uid: self.args.pod_uid.as_deref(),
            entries: &entries,
        });
        self.written = None;
        self.backend.apply(&changes)?;
        self.written = Some(policy::after(&entries, &changes));
        for (key, owner) in entries.iter().filter(|(key, _)| changes.revoke.contains(key)) {
            tracing::debug!(cgroup = key.cgroup, node = %key.number, ?owner, "access ended");
        }
        for key in changes.allow.keys() {
            let uid = self.cgroups.iter().find(|pod| pod.id == key.cgroup).map(|pod| pod.uid.as_str());
            tracing::debug!(pod.uid = uid, node = %key.number, "access given");
        }
        self.waits = changes.waits;
        // An incomplete list would leave the rest unprotected for a moment, or refuse it to pods that hold it.
        let starting = facts.inventory.backends().find(|(_, state)| **state == BackendState::Starting);
        if let Some((backend, _)) = starting {
            return Err(GuardError::Starting(backend.to_owned()));
        }
        let recipe = Recipe {
            rules: self.nodes.rules.clone(),
            kubepods: kubepods.clone(),
            effect: self.args.mode.effect(),
        };
        match self.backend.enforce(recipe, &self.nodes)? {
            Outcome::Unchanged => {}
            Outcome::Attached => {
                tracing::info!(mode = ?self.args.mode, cgroup = %kubepods.path.display(), "isolation is in force");
            }
            Outcome::Adopted => {
                tracing::info!(mode = ?self.args.mode, cgroup = %kubepods.path.display(), "isolation was in force, and is taken over");
            }
            Outcome::Replaced => tracing::info!("other device nodes are protected now"),
        }
        self.check(facts.pods)
    }

    /// Puts the filter back if somebody touched it, and reads what was denied.
    pub(super) fn check(&mut self, pods: &[PodInfo]) -> Result<(), GuardError> {
        // A cgroup that is gone takes its filter along: no tampering. The next round looks for the new one.
        if self.kubepods.as_ref().is_some_and(Kubepods::in_place)
            && let Some(what) = self.backend.restore()?
        {
            self.ledger.restored();
            tracing::error!(
                "{what} behind the agent's back: put back. Somebody on this machine may load BPF programs"
            );
        }
        self.vouch()?;
        let denials = self.backend.denials()?;
        self.ledger.record(denials, &self.nodes, pods, self.args.mode.effect());
        Ok(())
    }

    /// Whether other drivers are loaded now than at the last look; said once.
    pub(super) fn is_outdated(&mut self) -> bool {
        let majors = nodes::majors(&self.roots);
        let differs = majors != self.majors;
        self.majors = majors;
        differs
    }

    /// Sees to it that the map has what this agent put there: whoever can open its pin needs no capability to write to it.
    fn vouch(&mut self) -> Result<(), GuardError> {
        let Some(written) = &self.written else { return Ok(()) };
        let found = self.backend.entries()?;
        let Changes { allow, revoke, .. } = policy::between(&found, written);
        if allow.is_empty() && revoke.is_empty() {
            return Ok(());
        }
        self.ledger.restored();
        tracing::error!(
            added = revoke.len(),
            removed_or_changed = allow.len(),
            "the map of who may open what was changed behind the agent's back: put back. Somebody on this machine can write to the bpffs"
        );
        Ok(self.backend.apply(&Changes { allow, revoke, waits: Vec::new() })?)
    }

    fn find(&self) -> Result<Kubepods, GuardError> {
        let hierarchy = self.backend.hierarchy(&self.args)?;
        let (named, own) = (self.args.kubepods_cgroup.as_deref(), self.args.pod_uid.as_deref());
        Ok(cgroup::find(&hierarchy, named, own)?)
    }

    /// The folders in which pods' cgroups and device nodes come and go.
    pub(super) fn watched(&self) -> Vec<PathBuf> {
        let mut folders =
            self.kubepods.as_ref().and_then(|kubepods| kubepods.parents().ok()).unwrap_or_default();
        folders.push(self.roots.dev.clone());
        folders
    }

    /// Whether the filter is attached.
    pub(super) fn in_force(&self) -> bool {
        self.backend.is_held()
    }

    /// How many entries the kernel has.
    pub(super) fn allowed(&self) -> usize {
        self.written.as_ref().map_or(0, Entries::len)
    }

    /// How many pods wait.
    pub(super) fn waiting(&self) -> usize {
        self.waits.len()
    }

    /// Whether a container that was given these devices may start, after a round.
    pub(super) fn admits(
        &self,
        holders: &Holders,
        resource: &ResourceName,
        devices: &[DeviceId],
    ) -> Result<(), String> {
        let list = devices.iter().map(DeviceId::as_str).collect::<Vec<_>>().join(", ");
        let named: Vec<_> = holders
            .holdings
            .iter()
            .filter(|holding| {
                holding.resource == *resource && devices.iter().any(|id| holding.devices.contains(id))
            })
            .collect();
        if named.is_empty() {
            return Err(format!("the kubelet's checkpoint names no pod that holds {resource} {list}"));
        }
        let live: Vec<_> = self
            .cgroups
            .iter()
            .filter(|cgroup| named.iter().any(|holding| holding.pod.uid == cgroup.uid))
            .collect();
        if live.is_empty() {
            return Err(format!("no cgroup of the pod that holds {resource} {list} is to be found"));
        }
        for id in devices {
            if let Some(Err(why)) = self.nodes.of(resource, id) {
                return Err(format!("{resource} {id} can't be given to its pod: {why}"));
            }
        }
        let wait = self.waits.iter().find(|wait| live.iter().any(|pod| pod.uid == wait.uid && pod.populated));
        match wait {
            None => Ok(()),
            Some(wait) => Err(format!(
                "{} still belongs to pod {}, in which processes run: it is free when they have ended",
                self.nodes.name(wait.number),
                wait.behind
            )),
        }
    }

    /// What holds from now on, when the agent stops.
    pub(super) fn stop(self) -> Result<(), GuardError> {
        if self.args.while_away == WhileAway::Open {
            self.backend.remove(&self.args, &self.nodes)?;
            tracing::info!("isolation is not in force while the agent is away");
        }
        Ok(())
    }

    pub(super) fn mode(&self) -> Mode {
        self.args.mode
    }
}
