//! A short run of random faults over a churn of pods on the virtual node; `cargo xtask chaos` does a long one.

use spillway_tests::chaos::{self, ChaosOptions};

use crate::{Test, harness::Pool};

pub(crate) const TESTS: &[Test] =
    &[("vk_chaos::nothing_is_lost_and_nothing_doubled", nothing_is_lost_and_nothing_doubled)];

fn nothing_is_lost_and_nothing_doubled(pool: &Pool) -> anyhow::Result<()> {
    chaos::on(&pool.cluster, &ChaosOptions { faults: 25, seed: None, pods: 8, round: 25, keep: false })
}
