//! Jobs that wait for dedicated machines, in the order in which they are looked at; those that ask for the same stand together, since one that doesn't fit speaks for all of them.

use std::collections::{BTreeMap, HashMap};

use super::state::QuickHash;
use crate::policy::Order;

/// Where a job stands: priority, then what the order looks at, then when it came.
pub(super) type Key = (i64, u64, u64);

/// Jobs that wait.
#[derive(Debug)]
pub(super) struct Queue {
    classes: Vec<Class>,
    by_request: HashMap<(u32, u32), u32, QuickHash>,
    /// All of them by key, where they are looked at in that order.
    ordered: Option<BTreeMap<Key, u32>>,
    /// Classes in which a job waits.
    open: Vec<u32>,
    length: usize,
}

/// Jobs that ask for the same.
#[derive(Debug)]
struct Class {
    kind: u32,
    jobs: BTreeMap<Key, u32>,
}

/// What the order looks at.
pub(super) struct Standing {
    pub(super) priority: i32,
    pub(super) duration_s: f64,
    pub(super) milli: u64,
    pub(super) deadline_s: Option<f64>,
    pub(super) number: u64,
}

impl Standing {
    pub(super) fn key(&self, order: Order) -> Key {
        // Non-negative numbers are ordered as their bits.
        let bits = |number: f64| number.max(0.0).to_bits();
        let middle = match order {
            Order::Fifo => 0,
            Order::ShortestFirst => bits(self.duration_s),
            Order::SmallestFirst => self.milli,
            Order::LeastWorkFirst => bits(self.duration_s * super::tally::float(self.milli)),
            Order::EarliestDeadlineFirst => self.deadline_s.map_or(u64::MAX, bits),
        };
        (-i64::from(self.priority), middle, self.number)
    }
}

impl Queue {
    /// `ordered` where jobs are looked at in order, not class by class.
    pub(super) fn new(ordered: bool) -> Self {
        Self {
            classes: Vec::new(),
            by_request: HashMap::default(),
            ordered: ordered.then(BTreeMap::new),
            open: Vec::new(),
            length: 0,
        }
    }

    /// The class of jobs with pods of a kind; a gang's size matters, since a smaller one may fit where a larger doesn't.
    pub(super) fn class(&mut self, kind: u32, gang: u32) -> u32 {
        let next = u32::try_from(self.classes.len()).unwrap_or(u32::MAX);
        let class = *self.by_request.entry((kind, gang)).or_insert(next);
        if class == next {
            self.classes.push(Class { kind, jobs: BTreeMap::new() });
        }
        class
    }

    /// Of which kind the pods of a class are.
    pub(super) fn kind(&self, class: u32) -> u32 {
        self.classes[class as usize].kind
    }

    pub(super) fn is_empty(&self) -> bool {
        self.length == 0
    }

    pub(super) fn push(&mut self, class: u32, key: Key, job: u32) {
        let jobs = &mut self.classes[class as usize].jobs;
        if jobs.is_empty() {
            self.open.push(class);
        }
        if jobs.insert(key, job).is_none() {
            self.length += 1;
        }
        if let Some(ordered) = &mut self.ordered {
            ordered.insert(key, job);
        }
    }

    pub(super) fn remove(&mut self, class: u32, key: Key) {
        let jobs = &mut self.classes[class as usize].jobs;
        if jobs.remove(&key).is_some() {
            self.length -= 1;
            if jobs.is_empty() {
                self.open.retain(|other| *other != class);
            }
        }
        if let Some(ordered) = &mut self.ordered {
            ordered.remove(&key);
        }
    }

    /// Classes in which a job waits.
    pub(super) fn classes(&self) -> &[u32] {
        &self.open
    }

    /// The first job of a class.
    pub(super) fn first(&self, class: u32) -> Option<(Key, u32)> {
        self.classes[class as usize].jobs.first_key_value().map(|(key, job)| (*key, *job))
    }

    /// The first job of all.
    pub(super) fn head(&self) -> Option<(Key, u32)> {
        match &self.ordered {
            Some(ordered) => ordered.first_key_value().map(|(key, job)| (*key, *job)),
            None => self.open.iter().filter_map(|class| self.first(*class)).min(),
        }
    }

    /// All jobs, or the first of them, in order.
    pub(super) fn all(&self, most: usize) -> Vec<(Key, u32)> {
        let pair = |(key, job): (&Key, &u32)| (*key, *job);
        if let Some(ordered) = &self.ordered {
            return ordered.iter().map(pair).take(most).collect();
        }
        let open = self.open.iter();
        let mut jobs: Vec<(Key, u32)> =
            open.flat_map(|class| self.classes[*class as usize].jobs.iter().map(pair)).collect();
        jobs.sort_unstable();
        jobs.truncate(most);
        jobs
    }
}
