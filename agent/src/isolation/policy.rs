//! Who may open what: from what the machine and the kubelet say to the changes of the map in the kernel. Pure.
//!
//! Access is a pod's: the union of what its containers hold. It is given to pods that are known to hold something. It is taken away only for
//! a reason: the pod's cgroup is gone, or is another pod's; another pod holds the device while nothing runs in this one any more; or
//! the kubelet lists the pod and everything that it holds, and this, which is known to be something else, isn't among it. A list that lacks
//! a pod is no reason, and neither is a node that is missing.

use std::collections::{BTreeMap, BTreeSet};

use sha2::{Digest as _, Sha256};
use spillway_device_plugin::sharing::shared_by;

use super::{
    cgroup::PodCgroup,
    exempt::Exemption,
    nodes::Nodes,
    program::{AllowKey, Number},
};
use crate::{
    holders::{Holders, Holding},
    pods::PodInfo,
};

/// The pod that an entry was made for, as the map keeps it: a cgroup ID alone may be used again one day.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Owner(pub [u8; Owner::SIZE]);

impl Owner {
    /// Bytes of a map value.
    pub const SIZE: usize = 16;

    /// Of a pod. UIDs of static pods may be any text.
    pub fn of(uid: &str) -> Self {
        let digest = Sha256::digest(uid.as_bytes());
        let mut owner = [0; Self::SIZE];
        owner.copy_from_slice(&digest[..Self::SIZE]);
        Self(owner)
    }
}

/// What is in the map.
pub type Entries = BTreeMap<AllowKey, Owner>;

/// All that a decision rests on.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    /// What is protected, and what each device needs.
    pub nodes: &'a Nodes,
    /// Who holds what, as far as the kubelet says.
    pub holders: &'a Holders,
    /// Every pod's cgroup that there is.
    pub cgroups: &'a [PodCgroup],
    /// Pods by name, as far as they are known.
    pub pods: &'a [PodInfo],
    /// Who is exempt.
    pub exemptions: &'a [Exemption],
    /// This agent's own pod: it looks at every device.
    pub own_uid: Option<&'a str>,
    /// What is in the map now.
    pub entries: &'a Entries,
}

/// A device that a pod holds and can't have yet: something still runs in the pod that had it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wait {
    /// Who waits.
    pub uid: String,
    /// For what.
    pub number: Number,
    /// For whom.
    pub behind: String,
}

/// What to do. Entries are removed before others are made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changes {
    /// Entries to make.
    pub allow: Entries,
    /// Entries to remove.
    pub revoke: BTreeSet<AllowKey>,
    /// Who has to wait.
    pub waits: Vec<Wait>,
}

/// What is in the map once these changes are made.
pub fn after(entries: &Entries, changes: &Changes) -> Entries {
    let mut entries = entries.clone();
    entries.retain(|key, _| !changes.revoke.contains(key));
    entries.extend(&changes.allow);
    entries
}

/// What makes `wanted` of what is found.
pub fn between(found: &Entries, wanted: &Entries) -> Changes {
    let allow = wanted.iter().filter(|(key, owner)| found.get(key) != Some(owner));
    let revoke = found.keys().filter(|key| !wanted.contains_key(key));
    Changes {
        allow: allow.map(|(key, owner)| (*key, *owner)).collect(),
        revoke: revoke.copied().collect(),
        waits: Vec::new(),
    }
}

/// A pod that is there, with what it is to have.
struct Pod<'a> {
    cgroup: &'a PodCgroup,
    owner: Owner,
    /// What the kubelet says that it holds.
    holds: BTreeSet<Number>,
    /// What of it was given to it as a share, by an earlier configuration: others of that time may have it, too.
    shares: BTreeSet<Number>,
    /// Whether what it holds is all for certain: the kubelet lists it, and every node of its devices is known.
    complete: bool,
    /// What it may have besides.
    exempt: BTreeSet<Number>,
    /// Whether that is all for certain.
    named: bool,
}

/// Decides.
pub fn decide(view: &View<'_>) -> Changes {
    let pods: Vec<Pod<'_>> = view.cgroups.iter().map(|cgroup| Pod::of(cgroup, view)).collect();
    let by_cgroup: BTreeMap<u64, &Pod<'_>> = pods.iter().map(|pod| (pod.cgroup.id, pod)).collect();
    let mut changes = Changes::default();
    let mut kept = BTreeMap::<Number, Vec<&Pod<'_>>>::new();
    for (key, owner) in view.entries {
        match by_cgroup.get(&key.cgroup) {
            Some(pod) if pod.owner == *owner && pod.keeps(key.number, &pods, view.nodes) => {
                kept.entry(key.number).or_default().push(pod);
            }
            _ => {
                changes.revoke.insert(*key);
            }
        }
    }
    for pod in &pods {
        for number in pod.holds.union(&pod.exempt) {
            let key = AllowKey { cgroup: pod.cgroup.id, number: *number };
            if view.entries.get(&key) == Some(&pod.owner) && !changes.revoke.contains(&key) {
                continue;
            }
            let free = pod.exempt.contains(number)
                || pod.shares.contains(number)
                || !view.nodes.exclusive.contains(number);
            let others = kept.entry(*number).or_default();
            let first = if free { None } else { pod.behind(*number, others, &pods) };
            if let Some(other) = first {
                let (uid, behind) = (pod.cgroup.uid.clone(), other.cgroup.uid.clone());
                changes.waits.push(Wait { uid, number: *number, behind });
            } else {
                changes.allow.insert(key, pod.owner);
                others.push(pod);
            }
        }
    }
    // An entry that is made anew, for another owner, is not removed as well.
    let Changes { allow, revoke, .. } = &mut changes;
    revoke.retain(|key| !allow.contains_key(key));
    changes
}

impl<'a> Pod<'a> {
    fn of(cgroup: &'a PodCgroup, view: &View<'_>) -> Self {
        let uid = cgroup.uid.as_str();
        let mut pod = Self {
            cgroup,
            owner: Owner::of(uid),
            holds: BTreeSet::new(),
            shares: BTreeSet::new(),
            complete: false,
            exempt: BTreeSet::new(),
            named: false,
        };
        let mut holdings = view.holders.holdings.iter().filter(|holding| holding.pod.uid == uid).peekable();
        let listed = holdings.peek().is_some();
        let mut known = true;
        for numbers in holdings.flat_map(|holding| of_holding(holding, view.nodes)) {
            match numbers {
                Some((numbers, was_share)) => {
                    pod.holds.extend(numbers);
                    pod.shares.extend(numbers.iter().filter(|_| was_share));
                }
                None => known = false,
            }
        }
        pod.complete = listed && known;
        if view.own_uid == Some(uid) {
            pod.exempt.insert(Number::ALL);
        }
        if let Some(info) = view.pods.iter().find(|info| info.uid == uid) {
            pod.named = view.exemptions.iter().all(|exemption| exemption.covers(info).is_some());
            for exemption in view.exemptions.iter().filter(|exemption| exemption.covers(info) == Some(true)) {
                match &exemption.nodes {
                    None => pod.exempt.extend([Number::ALL]),
                    Some(pattern) => {
                        let names = view.nodes.names.iter();
                        pod.exempt.extend(
                            names.filter(|(_, name)| pattern.matches(name)).map(|(number, _)| *number),
                        );
                    }
                }
            }
        }
        pod
    }

    /// Who has to go before it gets an exclusive node that `have` have, those just decided on included.
    fn behind<'p>(&self, number: Number, have: &[&'p Self], all: &'p [Self]) -> Option<&'p Self> {
        let other = |pod: &Self| pod.cgroup.id != self.cgroup.id;
        let before = have.iter().copied().find(|pod| {
            other(pod) && !pod.exempt.contains(&number) && (pod.cgroup.populated || !self.cgroup.populated)
        });
        // Two that are listed and neither has it: the one in which something runs is the one that is about to start.
        let rival = || {
            all.iter().find(|pod| {
                other(pod) && pod.holds.contains(&number) && pod.cgroup.populated && !self.cgroup.populated
            })
        };
        before.or_else(rival)
    }

    /// Whether there is no reason to take away what it has.
    fn keeps(&self, number: Number, all: &[Pod<'_>], nodes: &Nodes) -> bool {
        if self.holds.contains(&number) || self.exempt.contains(&number) {
            let taken = || {
                all.iter().any(|other| {
                    other.cgroup.id != self.cgroup.id
                        && other.holds.contains(&number)
                        && other.cgroup.populated
                })
            };
            // Listed twice, as a pod that has ended is for a while: nothing runs in it any more.
            return self.exempt.contains(&number)
                || self.shares.contains(&number)
                || self.cgroup.populated
                || !nodes.exclusive.contains(&number)
                || !taken();
        }
        if number == Number::ALL {
            // It was exempt once. Whether it still is can't be said of a pod whose name is not known.
            return !self.named;
        }
        // What has no name now, as when its node was removed from /dev, may still be what the pod was given.
        if self.complete && self.named && nodes.names.contains_key(&number) {
            return false;
        }
        let other_holds =
            || all.iter().any(|other| other.cgroup.id != self.cgroup.id && other.holds.contains(&number));
        self.cgroup.populated || !nodes.exclusive.contains(&number) || !other_holds()
    }
}

/// The nodes of each device of a holding, and whether it is a share of one that is not shared any more; none of one that is not known, or
/// not entirely.
fn of_holding<'a>(
    holding: &'a Holding,
    nodes: &'a Nodes,
) -> impl Iterator<Item = Option<(&'a BTreeSet<Number>, bool)>> {
    holding.devices.iter().map(|id| {
        let numbers = nodes.of(&holding.resource, id)?.as_ref().ok()?;
        let offered = nodes.devices.contains_key(&(holding.resource.clone(), id.clone()));
        Some((numbers, !offered && shared_by(id).is_some()))
    })
}

#[cfg(test)]
mod tests;
