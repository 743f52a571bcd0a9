//! Shares with a memory budget: what a pod's processes hold of an accelerator's memory is compared with what its replicas may, and a pod
//! that takes more loses its largest process, or is only told of, as configured.
//!
//! Nothing is loaded into anybody's process, so nothing is prevented: between two looks a process may take what it wants, and its
//! neighbours' allocations may fail. What is promised is that it doesn't stay so.

mod kill;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};
use spillway_device_plugin::{
    causes::one_line,
    config::{Config, MemoryMode, MemoryShares},
};
use tokio::{sync::watch, time::sleep};
use tokio_util::sync::CancellationToken;

use crate::{
    node::{EventSink, events::Kind},
    usage::{Key, Usage, Use},
};
pub use kill::{Kill, KillError, ProcessKiller};

const RETRY: Duration = Duration::from_secs(10);

/// How a pod stands with its budget.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Standing {
    /// It has no budget, or is well below it.
    Fine,
    /// It nears its budget.
    Near,
    /// It is over it; the process that holds most, if any is known.
    Over { largest: Option<u32> },
}

/// Compares what a pod uses with what it may. Processes that were ended already, and are listed until the driver has cleaned up after them,
/// hold nothing that one could take away once more.
fn judge(one: &Use, ended: &BTreeSet<u32>, warn_percent: u32) -> Standing {
    let Some(limit) = one.memory_limit else { return Standing::Fine };
    let living: Vec<_> = one
        .processes
        .iter()
        .filter(|(pid, _)| !ended.contains(pid))
        .filter_map(|(pid, memory)| Some(((*memory)?, *pid)))
        .collect();
    let used = living.iter().fold(0, |sum: u64, (memory, _)| sum.saturating_add(*memory));
    if used > limit {
        Standing::Over { largest: living.into_iter().max().map(|(_, pid)| pid) }
    } else if u128::from(used) * 100 >= u128::from(limit) * u128::from(warn_percent) && used > 0 {
        Standing::Near
    } else {
        Standing::Fine
    }
}

/// What is to be done about one pod.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    Warn,
    Report,
    Kill(u32),
}

/// What was done before, so that it isn't done again at every look.
#[derive(Debug, Default)]
struct Enforcer {
    told: BTreeMap<Key, Standing>,
    /// Processes that were ended, as long as they are listed.
    ended: BTreeMap<Key, BTreeSet<u32>>,
    /// Processes that could not be, as long as they are listed.
    resisted: BTreeSet<u32>,
}

impl Enforcer {
    /// What has to be done now. What isn't held any more is forgotten, and so are processes that are gone.
    fn steps<'a>(&mut self, usage: &'a Usage, rules: &MemoryShares) -> Vec<(&'a Use, Step)> {
        let mut steps = Vec::new();
        let (mut told, mut ended) = (BTreeMap::new(), BTreeMap::new());
        for one in &usage.uses {
            let mut gone = self.ended.remove(&one.key).unwrap_or_default();
            gone.retain(|pid| one.processes.contains_key(pid));
            let before = self.told.remove(&one.key).unwrap_or(Standing::Fine);
            let now = match rules.mode {
                MemoryMode::Off => Standing::Fine,
                _ => judge(one, &gone, rules.warn_percent),
            };
            let was_over = matches!(before, Standing::Over { .. });
            match &now {
                Standing::Near if before == Standing::Fine => steps.push((one, Step::Warn)),
                Standing::Over { largest: Some(pid) } if rules.mode == MemoryMode::Kill => {
                    gone.insert(*pid);
                    steps.push((one, Step::Kill(*pid)));
                }
                Standing::Over { .. } if !was_over => steps.push((one, Step::Report)),
                _ => {}
            }
            // Who hovers around its budget is told of once, until it is well below.
            let kept = if was_over && now == Standing::Near { before } else { now };
            told.insert(one.key.clone(), kept);
            ended.insert(one.key.clone(), gone);
        }
        (self.told, self.ended) = (told, ended);
        self.resisted.retain(|pid| usage.uses.iter().any(|one| one.processes.contains_key(pid)));
        steps
    }

    /// A process could not be ended: it is tried again at the next look. Tells whether that is news.
    fn resists(&mut self, key: &Key, pid: u32) -> bool {
        if let Some(ended) = self.ended.get_mut(key) {
            ended.remove(&pid);
        }
        self.resisted.insert(pid)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    device: String,
    outcome: &'static str,
}

/// What was done about budgets, by accelerator. Which pods are over theirs, the gauges of containers tell.
#[derive(Debug, Clone, Default)]
pub struct BudgetMetrics {
    exceeded: Family<Labels, Counter>,
    neared: Family<[(&'static str, String); 1], Counter>,
}

impl BudgetMetrics {
    /// Adds the counters to `registry`, whose prefix they take.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "exceeded",
            "Times that a pod held more accelerator memory than it may, by what followed: a process was killed, could not be killed, or it \
             was only reported",
            self.exceeded.clone(),
        );
        registry.register(
            "neared",
            "Times that a pod came near what accelerator memory it may hold",
            self.neared.clone(),
        );
    }

    pub(crate) fn exceeded(&self, one: &Use, outcome: &'static str) {
        let labels = Labels { device: one.key.accelerator.to_string(), outcome };
        self.exceeded.get_or_create(&labels).inc();
    }

    pub(crate) fn neared(&self, one: &Use) {
        self.neared.get_or_create(&[("device", one.key.accelerator.to_string())]).inc();
    }
}

/// What watching over budgets takes.
#[derive(Debug)]
pub struct MemoryBudgets<K> {
    /// What pods use.
    pub usage: watch::Receiver<Usage>,
    /// What is to be done.
    pub configs: watch::Receiver<Arc<Config>>,
    /// Who does it.
    pub killer: K,
    /// Where it is counted.
    pub metrics: BudgetMetrics,
    /// Where it is told.
    pub events: EventSink,
}

impl<K: Kill> MemoryBudgets<K> {
    /// Watches over the budgets, at every change, until `stop`.
    pub async fn watch_over(mut self, stop: CancellationToken) {
        let mut enforcer = Enforcer::default();
        loop {
            let rules = self.configs.borrow_and_update().sharing.memory.clone();
            let now = self.usage.borrow_and_update().clone();
            for (one, step) in enforcer.steps(&now, &rules) {
                self.carry_out(one, &step, &mut enforcer);
            }
            tokio::select! {
                () = stop.cancelled() => return,
                changed = self.usage.changed() => if changed.is_err() { return },
                changed = self.configs.changed() => if changed.is_err() { return },
                // What could not be done is tried again, though nothing has changed.
                () = sleep(RETRY) => {}
            }
        }
    }

    fn carry_out(&self, one: &Use, step: &Step, enforcer: &mut Enforcer) {
        match step {
            Step::Warn => {
                self.tell(one, "MemoryBudgetNear", "it nears its budget");
                self.metrics.neared(one);
            }
            Step::Report => {
                self.tell(one, "MemoryBudgetExceeded", "that is over its budget");
                self.metrics.exceeded(one, "reported");
            }
            Step::Kill(pid) => match self.killer.kill(*pid, &one.key.pod.uid) {
                Ok(()) => {
                    let what = format!("that is over its budget: its largest process, {pid}, was killed");
                    self.tell(one, "MemoryBudgetExceeded", &what);
                    self.metrics.exceeded(one, "killed");
                }
                Err(KillError::Gone(_)) => {}
                Err(error) => {
                    if enforcer.resists(&one.key, *pid) {
                        let what = format!("that is over its budget, but {}", one_line(&error));
                        self.tell(one, "MemoryBudgetExceeded", &what);
                        self.metrics.exceeded(one, "failed");
                    }
                }
            },
        }
    }

    fn tell(&self, one: &Use, reason: &'static str, what: &str) {
        let mib = |bytes: Option<u64>| bytes.unwrap_or_default() >> 20;
        let (used, budget) = (mib(one.memory_used), mib(one.memory_limit));
        let unit = one.key.partition.as_ref().unwrap_or(&one.key.accelerator);
        let note = format!("the pod holds {used} MiB of {budget} MiB memory of {unit}: {what}");
        tracing::warn!(pod = %one.key.pod, container = one.container(), "{note}");
        self.events.pod(&one.key.pod, Kind::Warning, reason, &note);
    }
}
