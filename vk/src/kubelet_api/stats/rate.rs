//! CPU use now, out of two looks at a counter. A kubelet looks every ten seconds whether anyone asks or not; here only who asks looks, so
//! the first answer about something is its mean since it began.

use std::collections::HashMap;

use jiff::Timestamp;

use crate::provider::usage::{GroupUsage, Usage};

/// Looks closer together say more about the clock than about the program.
const MIN_NS: i128 = 10_000_000_000;

/// The looks that are remembered, by cgroup: of what ran at the last one.
#[derive(Debug, Clone, Default)]
pub(in crate::kubelet_api) struct Rates(HashMap<String, Looks>);

#[derive(Debug, Clone, Copy)]
struct Looks {
    /// What the present is compared with.
    older: Look,
    /// What takes its place once it is old enough itself.
    newer: Look,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Look {
    time: Timestamp,
    total_ns: u64,
}

impl Rates {
    /// With a new look at everything, and without what is gone.
    pub(super) fn updated(&self, usage: &Usage) -> Self {
        let mut next = HashMap::with_capacity(self.0.len());
        let machine = &usage.machine;
        let mut look = |group: &GroupUsage, began: Timestamp| {
            let Some(cpu) = group.cpu else { return };
            let now = Look { time: group.time, total_ns: cpu.total_ns };
            let looks = match self.0.get(&group.path) {
                Some(known) if known.newer.total_ns <= now.total_ns => {
                    if nanoseconds(known.newer.time, now.time) >= MIN_NS {
                        Looks { older: known.newer, newer: now }
                    } else {
                        *known
                    }
                }
                // New, or its counter went back: then it is another of the same name.
                _ => Looks { older: Look { time: began, total_ns: 0 }, newer: now },
            };
            next.insert(group.path.clone(), looks);
        };
        look(&machine.total, machine.booted_at);
        for (_, group) in &machine.system {
            look(group, machine.booted_at);
        }
        for pod in &usage.pods {
            look(&pod.total, pod.created_at);
            for container in &pod.containers {
                look(&container.total, container.created_at);
            }
        }
        Self(next)
    }

    /// Nanoseconds of processor time a second, of a group that was just looked at.
    pub(super) fn nano_cores(&self, group: &GroupUsage) -> Option<u64> {
        let older = self.0.get(&group.path)?.older;
        let used = i128::from(group.cpu?.total_ns) - i128::from(older.total_ns);
        let time = nanoseconds(older.time, group.time);
        if time <= 0 || used < 0 {
            return None;
        }
        u64::try_from(used * 1_000_000_000 / time).ok()
    }
}

fn nanoseconds(from: Timestamp, to: Timestamp) -> i128 {
    to.as_nanosecond() - from.as_nanosecond()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::provider::usage::{Cpu, MachineUsage};

    fn usage(second: i64, total_ns: u64) -> Usage {
        let total = GroupUsage {
            path: "/".to_owned(),
            time: Timestamp::from_second(second).unwrap(),
            cpu: Some(Cpu { total_ns, ..Cpu::default() }),
            ..GroupUsage::default()
        };
        let booted_at = Timestamp::from_second(100).unwrap();
        Usage { machine: MachineUsage { booted_at, total, ..MachineUsage::default() }, ..Usage::default() }
    }

    #[test]
    fn the_first_answer_is_the_mean_and_later_ones_are_of_ten_seconds_or_more() {
        let mut rates = Rates::default();
        let mut ask = |second, total_ns| {
            let usage = usage(second, total_ns);
            rates = rates.updated(&usage);
            rates.nano_cores(&usage.machine.total)
        };
        assert_eq!(ask(110, 1_000), Some(100), "since it began");
        assert_eq!(ask(115, 2_500), Some(166), "too early for another base");
        assert_eq!(ask(120, 3_000), Some(200), "since the first look");
        assert_eq!(ask(125, 4_000), Some(200), "still since the first look");
        assert_eq!(ask(130, 13_000), Some(1_000), "since the look at 120");
        assert_eq!(ask(140, 500), Some(12), "another one: its mean");
        assert_eq!(ask(140, 500), Some(12));
    }

    #[test]
    fn nothing_is_made_of_clocks_that_go_back_and_nothing_is_kept() {
        let mut rates = Rates::default();
        rates = rates.updated(&usage(120, 5));
        let earlier = usage(90, 6);
        rates = rates.updated(&earlier);
        assert_eq!(rates.nano_cores(&earlier.machine.total), None);
        rates = rates.updated(&Usage::default());
        assert!(rates.0.is_empty());
    }
}
