//! What no policy can beat that lets no job wait: as if every job started at once, could be moved at any time, and fit everywhere, only what exceeds the dedicated GPUs is rented.

use std::{cmp::Reverse, collections::BinaryHeap};

use super::tally::float;

/// Demand over time, were no job to wait.
#[derive(Debug)]
pub(super) struct Demand {
    ends: BinaryHeap<Reverse<(u64, u64)>>,
    now_s: f64,
    milli: u64,
    capacity_milli: u64,
}

impl Demand {
    pub(super) fn new(capacity_milli: u64) -> Self {
        Self { ends: BinaryHeap::new(), now_s: 0.0, milli: 0, capacity_milli }
    }

    /// Adds a job that is submitted at `submit_s`, no earlier than the one before. `rent` is told how much was rented from when to when.
    pub(super) fn add(
        &mut self,
        submit_s: f64,
        duration_s: f64,
        milli: u64,
        rent: impl FnMut(f64, f64, f64),
    ) {
        self.until(submit_s, rent);
        if duration_s.is_finite() && milli > 0 {
            self.milli += milli;
            self.ends.push(Reverse(((submit_s + duration_s).to_bits(), milli)));
        }
    }

    /// Time goes on; to the last end where it is infinite.
    pub(super) fn until(&mut self, to_s: f64, mut rent: impl FnMut(f64, f64, f64)) {
        while let Some(Reverse((end, milli))) = self.ends.peek().copied() {
            let end_s = f64::from_bits(end);
            if end_s > to_s {
                break;
            }
            self.ends.pop();
            self.pass(end_s, &mut rent);
            self.milli -= milli;
        }
        if to_s.is_finite() {
            self.pass(to_s, &mut rent);
        }
    }

    fn pass(&mut self, to_s: f64, rent: &mut impl FnMut(f64, f64, f64)) {
        if self.milli > self.capacity_milli && to_s > self.now_s {
            rent(self.now_s, to_s, float(self.milli - self.capacity_milli));
        }
        self.now_s = to_s;
    }
}
