//! What would let a pod start: whose end, or what the admin or its owner could change.

use std::cmp::Reverse;

use super::{
    super::{
        Holder,
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
        let ending = self.fewest(open, |pod| pod.ending);
        if let Some((machine, pods)) = ending {
            let verb = if pods.len() == 1 { "is" } else { "are" };
            options.push(format!(
                "when {}, which {verb} ending, {verb} gone ({})",
                named(&pods),
                machine.node.name
            ));
            return options;
        }
        if self.idle.is_empty() {
            return options;
        }
        if let Some((machine, pods)) = self.fewest(open, |pod| self.holder(pod).is_some()) {
            options.push(format!("if {} ended on {}", self.holding(&pods), machine.node.name));
            return options;
        }
        options
    }

    /// Who takes the fewest pods to end, though they may well be at work.
    pub(super) fn displaced(&self, open: &[&Spot<'_>]) -> Option<String> {
        let holds = |pod: &Pod| self.key.is_none_or(|(resource, _)| pod.requests.get(resource) > 0);
        let (machine, pods) = self.fewest(open, holds).filter(|(_, pods)| pods.len() <= NAMED)?;
        Some(format!("if {} ended on {}", self.holding(&pods), machine.node.name))
    }

    /// Whether the end of pods of lower priority would make room.
    pub(super) fn could_preempt(&self, open: &[&Spot<'_>]) -> bool {
        self.fewest(open, |pod| pod.priority < self.pod.priority).is_some()
    }

    fn holder(&self, pod: &Pod) -> Option<&Holder> {
        self.idle.get(&(&*pod.namespace, &*pod.name)).copied()
    }

    /// What belongs to a machine, or to the cluster itself, nobody ends to make room; nor one of a Job's pods for another.
    fn may_end(&self, pod: &Pod) -> bool {
        let owner = pod.owner.as_deref();
        let of_node =
            owner.is_some_and(|owner| owner.starts_with("DaemonSet/") || owner.starts_with("Node/"));
        let sibling = owner.is_some() && pod.owner == self.pod.owner && pod.namespace == self.pod.namespace;
        pod.ending || !(of_node || sibling || &*pod.namespace == "kube-system")
    }

    /// The machine on which the fewest of such pods have to end, and these.
    fn fewest<'m>(
        &self,
        open: &[&Spot<'m>],
        such: impl Fn(&Pod) -> bool,
    ) -> Option<(&'m Machine<'m>, Vec<&'m Pod>)> {
        let key = self.key.map_or(ResourceId::CPU, |(resource, _)| resource);
        let mut best: Option<(&Machine<'_>, Vec<&Pod>)> = None;
        let with = |machine: &&Machine<'_>| machine.pods.iter().any(|pod| such(pod) && self.may_end(pod));
        let mut machines: Vec<&'m Machine<'m>> =
            open.iter().map(|(machine, _)| *machine).filter(with).collect();
        // Where most is free, the fewest have to end; what is rented comes last.
        let rank = |machine: &&'m Machine<'m>| {
            (machine.is_virtual(), Reverse(machine.free(key)), machine.node.name.clone())
        };
        if machines.len() > CLOSELY {
            machines.select_nth_unstable_by_key(CLOSELY, rank);
            machines.truncate(CLOSELY);
        }
        machines.sort_by_key(rank);
        for machine in machines {
            let mut pods: Vec<&'m Pod> =
                machine.pods.iter().copied().filter(|pod| such(pod) && self.may_end(pod)).collect();
            pods.sort_by_key(|pod| (Reverse(pod.requests.get(key)), &pod.name));
            let mut free = machine.free.clone();
            let mut gone = Vec::new();
            for pod in pods {
                if suffices(&free, &self.pod.requests) {
                    break;
                }
                free.add(&pod.requests);
                gone.push(pod);
            }
            if !suffices(&free, &self.pod.requests) || gone.is_empty() {
                continue;
            }
            // What was taken before something larger came may not be needed.
            let mut needed = gone.clone();
            for pod in gone {
                let mut without = free.clone();
                without.subtract(&pod.requests);
                if suffices(&without, &self.pod.requests) {
                    free = without;
                    needed.retain(|other| !std::ptr::eq(*other, pod));
                }
            }
            if best.as_ref().is_none_or(|(_, fewest)| needed.len() < fewest.len()) {
                let one = needed.len() == 1;
                best = Some((machine, needed));
                if one {
                    break;
                }
            }
        }
        best
    }

    /// Pods with what they hold and for how long they have done nothing.
    fn holding(&self, pods: &[&Pod]) -> String {
        let told = pods.iter().map(|pod| {
            let holder = self.holder(pod);
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
