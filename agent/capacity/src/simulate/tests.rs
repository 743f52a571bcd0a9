//! Replays against simulators that are written plainly, and against queueing theory.

mod brute;
mod packing;
mod prices;
mod theory;
mod words;

use std::convert::Infallible;

use super::{Options, Simulation, run_with};
use crate::{
    job::Job,
    policy::Policy,
    pool::Pool,
    price::{Currency, Rates},
};

/// The prices of the Waiting Game's example.
fn rates() -> Rates {
    Rates::new(Currency::USD, 3.84, 9.6).unwrap()
}

fn replay(jobs: impl IntoIterator<Item = Job>, pool: &Pool, policy: &Policy) -> Simulation {
    let Ok(result) =
        run_with(jobs.into_iter().map(Ok::<_, Infallible>), pool, policy, &rates(), &Options::default());
    result
}
