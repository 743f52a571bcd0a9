//! Whether the node is short of what pods share: the conditions `MemoryPressure`, `DiskPressure` and `PIDPressure`. They keep new pods off; no
//! pod is evicted for them here.

use std::{collections::BTreeMap, time::Duration};

use tokio::time::Instant;

use crate::provider::facts::{Left, Share};

/// A condition holds so much longer than its cause; a kubelet's `evictionPressureTransitionPeriod`.
const CALM: Duration = Duration::from_mins(5);

/// So little left is too little, by a kubelet's names of signals.
pub type Thresholds = BTreeMap<Signal, Threshold>;

/// What can become short.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Signal {
    /// `memory.available`
    Memory,
    /// `nodefs.available`
    NodeFs,
    /// `nodefs.inodesFree`
    NodeFsInodes,
    /// `imagefs.available`
    ImageFs,
    /// `pid.available`
    Pids,
}

/// An amount, or a part of all.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Threshold {
    /// Bytes, inodes, processes.
    Amount(u64),
    /// 0 … 100.
    Percent(f64),
}

impl Signal {
    /// By the name that a kubelet's configuration gives it.
    pub fn named(name: &str) -> Option<Self> {
        Some(match name {
            "memory.available" => Self::Memory,
            "nodefs.available" => Self::NodeFs,
            "nodefs.inodesFree" => Self::NodeFsInodes,
            "imagefs.available" => Self::ImageFs,
            "pid.available" => Self::Pids,
            _ => return None,
        })
    }
}

/// A kubelet's for memory. It evicts at 10 % and 15 % of a disk; nothing is evicted here, so the disk may be a little fuller.
pub fn defaults() -> Thresholds {
    [
        (Signal::Memory, Threshold::Amount(100 << 20)),
        (Signal::NodeFs, Threshold::Percent(5.0)),
        (Signal::NodeFsInodes, Threshold::Percent(5.0)),
        (Signal::ImageFs, Threshold::Percent(5.0)),
    ]
    .into()
}

/// The three conditions.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Pressures {
    pub(super) memory: bool,
    pub(super) disk: bool,
    pub(super) pids: bool,
}

/// Since when each was last seen.
#[derive(Debug, Default)]
pub(super) struct Watcher {
    memory: Option<Instant>,
    disk: Option<Instant>,
    pids: Option<Instant>,
}

impl Watcher {
    /// Takes in what is left now.
    pub(super) fn look(&mut self, left: &Left, thresholds: &Thresholds, now: Instant) -> Pressures {
        let short = |signal: Signal, share: Option<Share>| {
            share.zip(thresholds.get(&signal)).is_some_and(|(share, threshold)| is_short(share, *threshold))
        };
        let disk = short(Signal::NodeFs, left.node_fs)
            || short(Signal::NodeFsInodes, left.node_fs_inodes)
            || short(Signal::ImageFs, left.image_fs);
        let holds = |seen: &mut Option<Instant>, short: bool| {
            if short {
                *seen = Some(now);
            }
            seen.is_some_and(|seen| now.duration_since(seen) < CALM)
        };
        Pressures {
            memory: holds(&mut self.memory, short(Signal::Memory, left.memory)),
            disk: holds(&mut self.disk, disk),
            pids: holds(&mut self.pids, short(Signal::Pids, left.pids)),
        }
    }
}

/// Whether less is left than should be.
#[allow(clippy::cast_precision_loss)] // A percentage of bytes.
pub(crate) fn is_short(share: Share, threshold: Threshold) -> bool {
    match threshold {
        Threshold::Amount(amount) => share.available < amount,
        Threshold::Percent(percent) => (share.available as f64) < share.capacity as f64 * percent / 100.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_shortage_shows_at_once_and_lasts_a_while() {
        let share = |available, capacity| Some(Share { available, capacity });
        let plenty = Left { memory: share(1 << 30, 4 << 30), node_fs: share(50, 100), ..Left::default() };
        let mut watcher = Watcher::default();
        let thresholds = defaults();
        assert_eq!(watcher.look(&plenty, &thresholds, Instant::now()), Pressures::default());
        let full = Left { node_fs: share(4, 100), ..plenty };
        let disk = Pressures { disk: true, ..Pressures::default() };
        assert_eq!(watcher.look(&full, &thresholds, Instant::now()), disk);
        tokio::time::advance(Duration::from_mins(4)).await;
        assert_eq!(watcher.look(&plenty, &thresholds, Instant::now()), disk);
        tokio::time::advance(Duration::from_mins(2)).await;
        assert_eq!(watcher.look(&plenty, &thresholds, Instant::now()), Pressures::default());
        let tight = Left { memory: share(99 << 20, 4 << 30), pids: share(0, 100), ..plenty };
        let memory = Pressures { memory: true, ..Pressures::default() };
        assert_eq!(watcher.look(&tight, &thresholds, Instant::now()), memory, "processes are not asked for");
        assert_eq!(Watcher::default().look(&tight, &Thresholds::new(), Instant::now()), Pressures::default());
        assert_eq!(
            Watcher::default().look(&Left::default(), &thresholds, Instant::now()),
            Pressures::default()
        );
    }
}
