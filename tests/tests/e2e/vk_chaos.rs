//! A short run of random faults over a churn of pods on the virtual node; `cargo xtask chaos` does a long one.

use spillway_tests::chaos::{self, ChaosOptions};

use crate::{Test, harness::Pool};

pub(crate) const TESTS: &[Test] =
    &[("vk_chaos::nothing_is_lost_and_nothing_doubled", nothing_is_lost_and_nothing_doubled)];

fn nothing_is_lost_and_nothing_doubled(pool: &Pool) -> anyhow::Result<()> {
    // One plan, so that what fails here can be looked for; `cargo xtask chaos` finds new ones.
    let options = ChaosOptions { faults: 25, seed: Some(404_011_158), pods: 8, round: 25, keep: false };
    chaos::on(&pool.cluster, &options)
}
