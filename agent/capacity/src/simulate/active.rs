//! Jobs that have not ended, and their pods that run.

use std::{
    collections::BTreeSet,
    ops::{Deref, DerefMut},
    sync::Arc,
};

use super::{machines::Spot, queue::Key, slab::Slab};
use crate::policy::Burst;

/// A job that has not ended.
#[derive(Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each tells of something else")]
pub(super) struct Active {
    pub(super) line: u64,
    pub(super) owner: Arc<str>,
    pub(super) kind: u32,
    pub(super) class: u32,
    pub(super) key: Key,
    pub(super) submit_s: f64,
    pub(super) duration_s: f64,
    pub(super) deadline_s: Option<f64>,
    pub(super) priority: i32,
    pub(super) burst: Burst,
    /// How long it waits before that, where it does.
    pub(super) wait_s: f64,
    pub(super) gang: bool,
    pub(super) pods: u32,
    pub(super) waiting: u32,
    pub(super) running: u32,
    pub(super) queued: bool,
    pub(super) fits: bool,
    pub(super) rentable: bool,
    pub(super) spilled: bool,
    pub(super) settled: bool,
    /// When the pod that began last did.
    pub(super) begun_s: f64,
    pub(super) end_s: f64,
    /// What preempted pods have still to do, where that is less than all.
    pub(super) rest_s: Vec<f64>,
    /// What preempted pods have done that isn't lost, of the one that did most.
    pub(super) kept_s: f64,
    pub(super) foretold_s: f64,
    /// The timer that counts; 0 for none.
    pub(super) timer: u64,
    pub(super) held: bool,
}

/// Pods that run.
#[derive(Debug)]
pub(super) struct Run {
    pub(super) job: u32,
    pub(super) place: Place,
    pub(super) start_s: f64,
    pub(super) end_s: f64,
    pub(super) number: u32,
}

/// Where pods run.
#[derive(Debug, Clone)]
pub(super) enum Place {
    /// On one dedicated machine.
    One(Spot),
    /// A gang, on several.
    Gang(Vec<Spot>),
    /// On serverless machines.
    Serverless(u32),
}

impl Place {
    /// Where on dedicated machines; nowhere if on serverless ones.
    pub(super) fn spots(&self) -> &[Spot] {
        match self {
            Self::One(spot) => std::slice::from_ref(spot),
            Self::Gang(spots) => spots,
            Self::Serverless(_) => &[],
        }
    }
}

impl Active {
    /// How long its pods run that wait.
    pub(super) fn longest_s(&self) -> f64 {
        if self.rest_s.is_empty() { self.duration_s } else { self.rest_s.iter().copied().fold(0.0, f64::max) }
    }
}

/// All pods that run.
#[derive(Debug)]
pub(super) struct Runs {
    slab: Slab<Run>,
    /// Those on dedicated machines by the bits of their end, where that is asked for.
    by_end: Option<BTreeSet<(u64, u32)>>,
}

impl Runs {
    /// `by_end` where it is asked which end first.
    pub(super) fn new(by_end: bool) -> Self {
        Self { slab: Slab::default(), by_end: by_end.then(BTreeSet::new) }
    }

    pub(super) fn insert(&mut self, run: Run) -> u32 {
        let end = (!matches!(run.place, Place::Serverless(_))).then_some(run.end_s.to_bits());
        let slot = self.slab.insert(run);
        if let (Some(by_end), Some(end)) = (&mut self.by_end, end) {
            by_end.insert((end, slot));
        }
        slot
    }

    pub(super) fn remove(&mut self, slot: u32) -> Run {
        let run = self.slab.remove(slot);
        if let Some(by_end) = &mut self.by_end {
            by_end.remove(&(run.end_s.to_bits(), slot));
        }
        run
    }

    /// Those on dedicated machines, the first to end first.
    pub(super) fn by_end(&self) -> impl Iterator<Item = u32> {
        self.by_end.iter().flatten().map(|(_, run)| *run)
    }
}

impl Deref for Runs {
    type Target = Slab<Run>;

    fn deref(&self) -> &Slab<Run> {
        &self.slab
    }
}

impl DerefMut for Runs {
    fn deref_mut(&mut self) -> &mut Slab<Run> {
        &mut self.slab
    }
}
