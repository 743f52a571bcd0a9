//! What would let a pod start: whose end, or what the admin or its owner could change.

use std::cmp::Reverse;

use super::{
    super::{
        selector::told,
        snapshot::{Amounts, Pod, ResourceId},
        state::Machine,
        words::{amount, few, lasting},
    },
    reason::{Question, Spot},
};

/// So many pods are named whose end would help; with more that is no advice.
const NAMED: usize = 3;
/// So many machines are looked at pod by pod.
const CLOSELY: usize = 100;

impl Question<'_> {
    /// Whose end would make room: those that end anyway, else those that hold and do nothing.
    pub(super) fn relieved(&self, open: &[&Spot<'_>]) -> Vec<String> {
        let mut options = Vec::new();
        let ending = self.fewest(open, |machine| machine.ending, |pod| pod.ending, usize::MAX);
        if let Some((machine, pods)) = ending {
            let verb = if pods.len() == 1 { "is" } else { "are" };
            options.push(format!(
                "when {}, which {verb} ending, {verb} gone ({})",
                named(&pods),
                machine.node.name
            ));
            return options;
        }
        let lazy = |pod: &Pod| self.idle.holder(pod).is_some();
        if let Some((machine, pods)) = self.fewest(open, |machine| self.idle.is_on(machine), lazy, usize::MAX)
        {
            options.push(format!("if {} ended on {}", self.holding(&pods), machine.node.name));
            return options;
        }
        options
    }

    /// Who takes the fewest pods to end, though they may well be at work.
    pub(super) fn displaced(&self, open: &[&Spot<'_>]) -> Option<String> {
        let holds = |pod: &Pod| self.key.is_none_or(|(resource, _)| pod.requests.get(resource) > 0);
        let (machine, pods) = self.fewest(open, |_| true, holds, NAMED)?;
        Some(format!("if {} ended on {}", self.holding(&pods), machine.node.name))
    }

    /// Whether the end of pods of lower priority would make room.
    pub(super) fn could_preempt(&self, open: &[&Spot<'_>]) -> bool {
        let lower = |pod: &Pod| pod.priority < self.pod.priority;
        self.fewest(open, |machine| machine.lowest_priority < self.pod.priority, lower, usize::MAX).is_some()
    }

    /// How many of these pods fit on a machine.
    pub(super) fn times(&self, machine: &Machine<'_>) -> i64 {
        let asked = self.pod.requests.iter().filter(|(_, asked)| *asked > 0);
        asked.map(|(resource, asked)| machine.free(resource) / asked).min().unwrap_or(0)
    }

    /// What belongs to a machine, or to the cluster itself, nobody ends to make room; nor one of a Job's pods for another.
    fn may_end(&self, pod: &Pod) -> bool {
        let owner = pod.owner.as_deref();
        let of_node =
            owner.is_some_and(|owner| owner.starts_with("DaemonSet/") || owner.starts_with("Node/"));
        let sibling = owner.is_some() && pod.owner == self.pod.owner && pod.namespace == self.pod.namespace;
        pod.ending || !(of_node || sibling || &*pod.namespace == "kube-system")
    }

    /// The machine on which the fewest of such pods have to end, and these: `most` of them at most. No such pod is on a machine that `there` denies.
    fn fewest<'m>(
        &self,
        open: &[&Spot<'m>],
        there: impl Fn(&Machine<'_>) -> bool,
        such: impl Fn(&Pod) -> bool,
        most: usize,
    ) -> Option<(&'m Machine<'m>, Vec<&'m Pod>)> {
        let key = self.key.map_or(ResourceId::CPU, |(resource, _)| resource);
        let levels = self.cluster.levels(key);
        let candidate = |pod: &Pod| such(pod) && self.may_end(pod);
        let machines = open.iter().map(|(machine, _)| *machine).filter(|machine| there(machine));
        // Where most is free, the fewest have to end; what is rented comes last.
        let mut machines: Vec<_> = machines
            .filter(|machine| machine.pods.iter().any(|pod| candidate(pod)))
            .map(|machine| {
                let free = levels.get(machine.place).map_or(0, |level| level.free);
                ((machine.is_virtual(), Reverse(free), machine.place), machine)
            })
            .collect();
        if machines.len() > CLOSELY {
            machines.select_nth_unstable_by_key(CLOSELY, |(rank, _)| *rank);
            machines.truncate(CLOSELY);
        }
        machines.sort_unstable_by_key(|(rank, _)| *rank);
        let mut best: Option<(&Machine<'_>, Vec<&Pod>)> = None;
        for (_, machine) in machines {
            let most = best.as_ref().map_or(most, |(_, fewest)| fewest.len() - 1);
            let pods = machine.pods.iter().copied().filter(|pod| candidate(pod));
            if let Some(needed) = self.needed(machine, key, pods, most) {
                let one = needed.len() == 1;
                best = Some((machine, needed));
                if one {
                    break;
                }
            }
        }
        best
    }

    /// Those of these pods of a machine that have to end, no more than `most`; those that hold most first.
    fn needed<'m>(
        &self,
        machine: &Machine<'_>,
        key: ResourceId,
        pods: impl Iterator<Item = &'m Pod>,
        most: usize,
    ) -> Option<Vec<&'m Pod>> {
        let asked = &self.pod.requests;
        let mut pods: Vec<_> = pods.map(|pod| (Reverse(pod.requests.get(key)), &*pod.name, pod)).collect();
        pods.sort_unstable_by_key(|(held, name, _)| (*held, *name));
        let of_most = pods.iter().take(most).fold(0_i64, |sum, (held, ..)| sum.saturating_add(held.0));
        if machine.free.get(key).saturating_add(of_most) < asked.get(key) {
            return None;
        }
        let mut free = machine.free.clone();
        let mut gone = Vec::new();
        for (_, _, pod) in pods {
            if suffices(&free, asked) {
                break;
            }
            free.add(&pod.requests);
            gone.push(pod);
        }
        if !suffices(&free, asked) || gone.is_empty() {
            return None;
        }
        // What was taken before something larger came may not be needed.
        let mut needed = gone.clone();
        for pod in gone {
            let mut without = free.clone();
            without.subtract(&pod.requests);
            if suffices(&without, asked) {
                free = without;
                needed.retain(|other| !std::ptr::eq(*other, pod));
            }
        }
        (needed.len() <= most).then_some(needed)
    }

    /// Pods with what they hold and for how long they have done nothing.
    fn holding(&self, pods: &[&Pod]) -> String {
        let told = pods.iter().map(|pod| {
            let holder = self.idle.holder(pod);
            let holds =
                self.key.map(|(resource, _)| amount(self.names, resource, pod.requests.get(resource)));
            let idle = holder.map(|holder| match holder.idle_s {
                Some(seconds) => format!(", idle for {}", lasting(seconds)),
                None => ", idle".to_owned(),
            });
            format!(
                "{}/{} ({}{})",
                pod.namespace,
                pod.name,
                holds.unwrap_or_default(),
                idle.unwrap_or_default()
            )
        });
        let told: Vec<_> = told.collect();
        few(told.iter().map(String::as_str))
    }

    /// Machines that have room, but are kept shut.
    pub(super) fn opened(spots: &[Spot<'_>]) -> Vec<String> {
        let room: Vec<_> = spots.iter().filter(|(_, found)| found.only_kept_off()).collect();
        let mut options = Vec::new();
        let cordoned: Vec<_> = room
            .iter()
            .filter(|(_, found)| found.taint.is_none())
            .map(|(machine, _)| &*machine.node.name)
            .collect();
        if let Some(first) = cordoned.first() {
            options.push(format!("after `kubectl uncordon {first}`"));
        }
        for own in [true, false] {
            let tainted = room.iter().find(|(machine, found)| {
                found.taint.is_some_and(|taint| !taint.key.starts_with("node.kubernetes.io/"))
                    && !found.cordoned
                    && machine.is_virtual() != own
            });
            if let Some((machine, found)) = tainted {
                let taint = found.taint.map(told).unwrap_or_default();
                let kind = if own { "" } else { "the virtual node " };
                options.push(format!("on {kind}{}, if it tolerated {taint}", machine.node.name));
            }
        }
        options
    }
}

fn named(pods: &[&Pod]) -> String {
    let names: Vec<_> = pods.iter().map(|pod| format!("{}/{}", pod.namespace, pod.name)).collect();
    few(names.iter().map(String::as_str))
}

fn suffices(free: &Amounts, asked: &Amounts) -> bool {
    asked.iter().all(|(resource, asked)| asked <= 0 || asked <= free.get(resource))
}
