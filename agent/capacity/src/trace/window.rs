//! Rows in the order of time: those that come late are sorted in, as long as they aren't later than a bounded number of rows.
//!
//! A trace that is sorted passes through a queue; only rows that come late are compared. What came too late for its place is told, never misplaced.

use std::{
    cmp::{Ordering, Reverse},
    collections::{BinaryHeap, VecDeque},
};

/// What has a finite time.
pub(super) trait Timed {
    fn at_s(&self) -> f64;
}

#[derive(Debug)]
struct Entry<T> {
    /// The file, and the order in it, which rows of one time keep.
    place: (usize, u64),
    item: T,
}

impl<T: Timed> Ord for Entry<T> {
    fn cmp(&self, other: &Self) -> Ordering {
        self.item.at_s().total_cmp(&other.item.at_s()).then(self.place.cmp(&other.place))
    }
}

impl<T: Timed> PartialOrd for Entry<T> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<T: Timed> PartialEq for Entry<T> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl<T: Timed> Eq for Entry<T> {}

/// How a row came.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Came {
    InOrder,
    /// Earlier than a row before it.
    Late,
    /// Earlier than a row that was already given.
    TooLate,
}

/// Rows that were read and not given yet.
#[derive(Debug)]
pub(super) struct Window<T> {
    limit: usize,
    in_order: VecDeque<Entry<T>>,
    late: BinaryHeap<Reverse<Entry<T>>>,
    number: u64,
    given_s: f64,
}

impl<T: Timed> Window<T> {
    /// Holds up to `limit` rows.
    pub(super) fn new(limit: usize) -> Self {
        Self {
            limit,
            in_order: VecDeque::new(),
            late: BinaryHeap::new(),
            number: 0,
            given_s: f64::NEG_INFINITY,
        }
    }

    pub(super) fn limit(&self) -> usize {
        self.limit
    }

    /// Nothing more fits until something is taken.
    pub(super) fn is_full(&self) -> bool {
        self.in_order.len() + self.late.len() >= self.limit
    }

    /// Takes a row of the file with that number.
    pub(super) fn push(&mut self, item: T, file: usize) -> Came {
        let at_s = item.at_s();
        if at_s < self.given_s {
            return Came::TooLate;
        }
        let entry = Entry { place: (file, self.number), item };
        self.number += 1;
        let Some(last) = self.in_order.back().filter(|last| entry < **last) else {
            self.in_order.push_back(entry);
            return Came::InOrder;
        };
        let came = if at_s < last.item.at_s() { Came::Late } else { Came::InOrder };
        self.late.push(Reverse(entry));
        came
    }

    /// The time of the earliest.
    pub(super) fn first_s(&self) -> Option<f64> {
        let in_order = self.in_order.front().map(|entry| entry.item.at_s());
        let late = self.late.peek().map(|Reverse(entry)| entry.item.at_s());
        match (in_order, late) {
            (Some(in_order), Some(late)) => Some(in_order.min(late)),
            (one, other) => one.or(other),
        }
    }

    /// The earliest.
    pub(super) fn pop(&mut self) -> Option<T> {
        let late = match (self.in_order.front(), self.late.peek()) {
            (Some(first), Some(Reverse(late))) => late < first,
            (None, Some(_)) => true,
            (_, None) => false,
        };
        let entry =
            if late { self.late.pop().map(|Reverse(entry)| entry) } else { self.in_order.pop_front() };
        let item = entry?.item;
        self.given_s = item.at_s();
        Some(item)
    }
}
