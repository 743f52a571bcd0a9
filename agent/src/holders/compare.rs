//! The checkpoint beside PodResources: names that only the one has, UIDs that only the other has, and what they disagree about. Pure but
//! for the clock, which is an argument.
//!
//! What the checkpoint has more is no disagreement: ended pods, init containers, and everything just after a kubelet's start. What
//! PodResources has more is one, if it is still so at the next comparison: between two reads a pod may come or go.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use tokio::time::Instant;

use super::{
    Holders, HoldersError, Holding, Name, PodRef,
    pod_resources::{Listed, Listing},
};

/// How often the two are compared, and how soon at the earliest, when something has changed or differs.
const EVERY: Duration = Duration::from_secs(15);
const SOON: Duration = Duration::from_secs(3);

/// Whether a holding can be what is listed.
fn same(holding: &Holding, listed: &Listed) -> bool {
    let names = |held: &Option<String>, listed: &String| held.as_ref().is_none_or(|held| held == listed);
    names(&holding.pod.namespace, &listed.namespace)
        && names(&holding.pod.name, &listed.name)
        && holding.container == listed.container
        && holding.resource == listed.resource
        && holding.devices == listed.devices
}

/// The names of pods whose holdings leave no doubt, by UID, where they have none yet.
pub fn names(holders: &Holders, listed: &[Listed]) -> BTreeMap<String, Name> {
    let mut names = BTreeMap::new();
    for listed in listed {
        let mut alike = holders.holdings.iter().filter(|holding| same(holding, listed));
        if let (Some(one), None) = (alike.next(), alike.next())
            && one.pod.name.is_none()
        {
            names.insert(one.pod.uid.clone(), (listed.namespace.clone(), listed.name.clone()));
        }
    }
    names
}

/// What is listed, but not in the checkpoint.
pub fn missing(holders: &Holders, listed: &[Listed]) -> BTreeSet<Listed> {
    listed
        .iter()
        .filter(|listed| !holders.holdings.iter().any(|holding| same(holding, listed)))
        .cloned()
        .collect()
}

/// What of the checkpoint is held by pods that have not ended. PodResources lists those with their containers, but for plain init containers:
/// what only such a one has is held by it, as long as its pod is there. Pods without a known name are taken as they are.
pub fn active(holders: &Holders, listing: &Listing) -> Holders {
    let name = |pod: &PodRef| Some((pod.namespace.clone()?, pod.name.clone()?));
    let listed = |holding: &Holding| {
        name(&holding.pod)
            .and_then(|name| listing.pods.get(&name))
            .is_some_and(|pod| pod.contains(&holding.container))
    };
    let active = holders.holdings.iter().filter(|holding| {
        let Some(name) = name(&holding.pod) else { return true };
        let Some(containers) = listing.pods.get(&name) else { return false };
        if containers.contains(&holding.container) {
            // A kubelet before 1.34 lists ended pods, too, but without their devices.
            return listing.held.iter().any(|listed| same(holding, listed));
        }
        let also_held = |other: &&Holding| {
            other.pod == holding.pod
                && other.resource == holding.resource
                && listed(other)
                && !other.devices.is_disjoint(&holding.devices)
        };
        !holders.holdings.iter().any(|other| also_held(&other))
    });
    Holders { holdings: active.cloned().collect() }
}

/// Who holds what without the checkpoint. Of several pods that have had the same name, which of them it is can't be told: the holding is
/// left out, rather than given to a dead pod.
pub fn join(listed: &[Listed], pods: &[(String, Name)]) -> Holders {
    let mut uids: BTreeMap<(&str, &str), Vec<&str>> = BTreeMap::new();
    for (uid, (namespace, name)) in pods {
        uids.entry((namespace, name)).or_default().push(uid);
    }
    let holdings = listed.iter().filter_map(|listed| {
        let [uid] = uids.get(&(listed.namespace.as_str(), listed.name.as_str()))?.as_slice() else {
            return None;
        };
        Some(Holding {
            pod: PodRef {
                uid: (*uid).to_owned(),
                namespace: Some(listed.namespace.clone()),
                name: Some(listed.name.clone()),
            },
            container: listed.container.clone(),
            resource: listed.resource.clone(),
            devices: listed.devices.clone(),
        })
    });
    Holders { holdings: holdings.collect() }
}

/// What earlier comparisons found.
#[derive(Debug, Default)]
pub(super) struct Comparison {
    due: Option<Instant>,
    last: Option<Instant>,
    /// Seen once.
    suspected: BTreeSet<Listed>,
    /// Seen again, and said.
    said: BTreeSet<Listed>,
    /// What was held by the last list.
    active: Holders,
    unavailable: bool,
}

impl Comparison {
    /// The checkpoint has changed.
    pub(super) fn hasten(&mut self, now: Instant) {
        let soon = self.last.map_or(now, |last| last + SOON);
        self.due = self.due.map(|due| due.min(soon));
    }

    /// Whether it is time for the next.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        self.due.is_none_or(|due| due <= now)
    }

    /// How long until then.
    pub(super) fn due_in(&self, now: Instant) -> Duration {
        self.due.map_or(Duration::ZERO, |due| due.saturating_duration_since(now))
    }

    /// What has to be said of this comparison: differences that were there before, and were not told yet.
    pub(super) fn news(&mut self, missing: BTreeSet<Listed>, now: Instant) -> Vec<String> {
        self.unavailable = false;
        self.last = Some(now);
        self.said.retain(|said| missing.contains(said));
        let news: Vec<_> = missing
            .iter()
            .filter(|one| self.suspected.contains(*one) && !self.said.contains(*one))
            .cloned()
            .collect();
        self.said.extend(news.iter().cloned());
        let doubt = missing.iter().any(|one| !self.said.contains(one));
        self.due = Some(now + if doubt { SOON } else { EVERY });
        self.suspected = missing;
        news.iter().map(describe).collect()
    }

    /// What is held by now: what this list says, and what the last one said if it is on record still. Just after a kubelet's start a list
    /// lacks pods; what only one list lacks has not ended, and the next one is asked for soon.
    pub(super) fn held(&mut self, all: &Holders, listing: &Listing, now: Instant) -> Holders {
        let active = active(all, listing);
        let last = std::mem::replace(&mut self.active, active.clone());
        let same = |one: &Holding, other: &Holding| {
            (&one.pod.uid, &one.container, &one.resource)
                == (&other.pod.uid, &other.container, &other.resource)
        };
        let doubtful = all.holdings.iter().filter(|one| {
            last.holdings.iter().any(|other| same(one, other)) && !active.holdings.contains(one)
        });
        let mut held = active.clone();
        held.holdings.extend(doubtful.cloned());
        if held != active {
            self.due = Some(now + SOON);
        }
        held
    }

    /// One of the two could not be read, which is told once.
    pub(super) fn failed(&mut self, error: Option<&HoldersError>, now: Instant) {
        self.last = Some(now);
        self.due = Some(now + EVERY);
        if let Some(error) = error
            && !self.unavailable
        {
            tracing::info!("{error}; the device checkpoint is not checked against it meanwhile");
            self.unavailable = true;
        }
    }
}

fn describe(listed: &Listed) -> String {
    let devices: Vec<_> = listed.devices.iter().map(ToString::to_string).collect();
    format!(
        "container {} of pod {}/{} has {} {}",
        listed.container,
        listed.namespace,
        listed.name,
        listed.resource,
        devices.join(", ")
    )
}
