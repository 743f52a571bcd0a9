//! Which kinds of pods there are, and which of them usually come.

use std::{cmp::Reverse, collections::HashMap, sync::Arc};

use super::{
    packing::Usual,
    state::{Kind, QuickHash, WHOLE},
};
use crate::{job::Request, pool::Pool};

/// Usual pods are so many kinds that they make up this share of all pods.
const USUAL_PERCENT: u64 = 95;

/// More kinds than this are not usual.
const USUAL_KINDS: usize = 64;

/// Kinds of pods, numbered as they come.
#[derive(Debug)]
pub(super) struct Kinds {
    all: Vec<Kind>,
    by_request: HashMap<Request, u32, QuickHash>,
    /// The kind that was asked for last: most often the next asks for the same.
    last: u32,
    /// Of each shape of machines.
    models: Vec<Arc<str>>,
    usual: Usual,
    seen: u64,
    relearn_at: u64,
}

impl Kinds {
    pub(super) fn new(pool: &Pool) -> Self {
        Self {
            all: Vec::new(),
            by_request: HashMap::default(),
            last: 0,
            models: pool.machines.iter().map(|shape| shape.model.clone()).collect(),
            usual: Vec::new(),
            seen: 0,
            relearn_at: 1,
        }
    }

    /// The number of a kind of pods; the same for equal requests.
    pub(super) fn number(&mut self, request: &Request) -> u32 {
        if let Some(kind) = self.all.get(self.last as usize)
            && kind.request == *request
        {
            return self.last;
        }
        self.last = match self.by_request.get(request) {
            Some(kind) => *kind,
            None => self.learn(request),
        };
        self.last
    }

    fn learn(&mut self, request: &Request) -> u32 {
        let gpus = if request.gpu_milli == 0 { 0 } else { request.gpus };
        let is_possible = request.gpu_milli <= u32::from(WHOLE);
        let will_do = |model: &Arc<str>| {
            model.is_empty() || request.models.is_empty() || request.models.contains(model)
        };
        let kind = Kind {
            gpus,
            // More than a whole GPU of each fits nowhere.
            milli: u16::try_from(request.gpu_milli).unwrap_or(u16::MAX),
            models: self.models.iter().map(|model| is_possible && will_do(model)).collect(),
            tag: if gpus == 0 {
                0
            } else if request.gpu_milli < u32::from(WHOLE) {
                1
            } else {
                1 << gpus.min(127)
            },
            request: request.clone(),
            seen: 0,
        };
        let number = super::groups::index_of(self.all.len());
        self.all.push(kind);
        self.by_request.insert(request.clone(), number);
        number
    }

    pub(super) fn of(&self, kind: u32) -> &Kind {
        &self.all[kind as usize]
    }

    /// The kinds that usually come, with how many of each came.
    pub(super) fn usual(&self) -> &Usual {
        &self.usual
    }

    /// Notes that `pods` of a kind came. Tells whether it was learnt anew which are usual, as it is now and then.
    pub(super) fn came(&mut self, kind: u32, pods: u32) -> bool {
        self.all[kind as usize].seen += u64::from(pods);
        self.seen += 1;
        if self.seen < self.relearn_at {
            return false;
        }
        self.relearn_at = self.seen * 2;
        self.relearn();
        true
    }

    /// Takes these kinds for what usually comes, for ever.
    pub(super) fn know(&mut self, kinds: &[u32]) {
        for kind in kinds {
            self.all[*kind as usize].seen += 1;
        }
        self.relearn_at = u64::MAX;
        self.relearn();
    }

    /// FGD tells pods apart by CPU, GPUs and models, but not by memory.
    fn relearn(&mut self) {
        let mut usual: Usual = Vec::new();
        let mut known: HashMap<Request, usize> = HashMap::new();
        for kind in &self.all {
            let request = Request { memory_mib: 0, ..kind.request.clone() };
            let at = *known.entry(request.clone()).or_insert(usual.len());
            match usual.get_mut(at) {
                Some((seen, _)) => *seen += kind.seen,
                None => usual.push((kind.seen, Kind { request, ..kind.clone() })),
            }
        }
        // Kinds stand in the order in which they came, and equals stay in it.
        usual.sort_by_key(|(seen, _)| Reverse(*seen));
        let total: u64 = usual.iter().map(|(seen, _)| seen).sum();
        let mut sum = 0;
        let last = usual.iter().position(|(seen, _)| {
            sum += seen;
            u128::from(sum) * 100 >= u128::from(total) * u128::from(USUAL_PERCENT)
        });
        usual.truncate(last.map_or(0, |last| last + 1).min(USUAL_KINDS));
        self.usual = usual;
    }
}
