//! End-to-end tests: real Kubernetes, real containers, the daemons deployed as a user deploys them. They run when `cargo xtask test` asks
//! for them, each in a namespace of its own on a cluster that it has to itself meanwhile; otherwise they are listed as ignored.

mod agent;
mod beside;
mod capacity;
mod capacity_history;
mod capacity_pages;
mod capacity_prometheus;
mod capacity_reasons;
mod capacity_waits;
mod chart;
mod clock;
mod cluster;
mod fpga;
mod gpu;
mod harness;
mod isolation;
mod main_job;
mod neighbour;
mod node;
mod plugin_conformance;
mod plugin_faults;
mod plugin_peer;
mod privileges;
mod recovery;
mod sharing;
mod topology;
mod upgrade;
mod usage;
mod vk;
mod vk_api;
mod vk_chaos;
mod vk_chart;
mod vk_conformance;
mod vk_health;
mod vk_images;
mod vk_kubectl;
mod vk_library;
mod vk_metrics;
mod vk_mounts;
mod vk_node;
mod vk_outage;
mod vk_pods;
mod vk_privileges;
mod vk_volumes;

use std::process::ExitCode;

use libtest_mimic::{Arguments, Trial};
use spillway_tests::{BARE_POOL, CLUSTER_TESTS, cluster::signals};

/// A test: its name, and what it does with the cluster.
type Test = (&'static str, fn(&harness::Pool) -> anyhow::Result<()>);
/// A test that needs no cluster, or starts one by itself.
type Alone = (&'static str, fn() -> anyhow::Result<()>);

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // Each has a cluster, as several kill what the others need. Mostly they wait: a machine of two cores has room for three.
    let at_once = if std::env::var_os(BARE_POOL).is_some() { 1 } else { 3 };
    arguments.test_threads.get_or_insert(at_once);
    let with_cluster = std::env::var_os(CLUSTER_TESTS).is_some();
    let tests: Vec<Test> = [
        cluster::TESTS,
        agent::TESTS,
        node::TESTS,
        neighbour::TESTS,
        privileges::TESTS,
        chart::TESTS,
        isolation::TESTS,
        gpu::TESTS,
        sharing::TESTS,
        fpga::TESTS,
        topology::TESTS,
        upgrade::TESTS,
        plugin_faults::TESTS,
        plugin_conformance::TESTS,
        clock::TESTS,
        vk::TESTS,
        vk_api::TESTS,
        vk_kubectl::TESTS,
        vk_library::TESTS,
        vk_health::TESTS,
        vk_images::TESTS,
        vk_conformance::TESTS,
        vk_node::TESTS,
        vk_chart::TESTS,
        vk_privileges::TESTS,
        vk_outage::TESTS,
        vk_metrics::TESTS,
        vk_mounts::TESTS,
        vk_pods::TESTS,
        vk_volumes::TESTS,
        usage::TESTS,
        capacity_history::TESTS,
        capacity_prometheus::TESTS,
        capacity::TESTS,
        capacity_reasons::TESTS,
        capacity_waits::TESTS,
        recovery::TESTS,
        vk_chaos::TESTS,
    ]
    .into_iter()
    .flatten()
    .copied()
    .collect();
    // First, while there is not yet a cluster for each that runs: a machine has room for so many, and some of these start one.
    let alone: Vec<Alone> =
        [main_job::ALONE, cluster::ALONE, plugin_peer::ALONE, capacity_pages::ALONE].concat();
    if !with_cluster && !arguments.list {
        eprintln!(
            "leaving out {} end-to-end tests: they start a real cluster and need root; `cargo xtask test` runs them",
            tests.len() + alone.len()
        );
    }
    if with_cluster && let Err(error) = signals::end_clusters_on_signal() {
        eprintln!("{error:#}");
        return ExitCode::FAILURE;
    }
    let alone =
        alone.into_iter().map(|(name, test)| Trial::test(name, move || harness::run_alone(name, test)));
    let tests = tests.into_iter().map(|(name, test)| Trial::test(name, move || harness::run(name, test)));
    let trials = alone.chain(tests).map(|trial| trial.with_ignored_flag(!with_cluster)).collect();
    let conclusion = libtest_mimic::run(&arguments, trials);
    // Statics are never dropped: the cluster must be ended by hand, and its end is part of the verdict.
    match harness::finish() {
        Ok(()) => conclusion.exit_code(),
        Err(error) => {
            eprintln!("the cluster did not end cleanly: {error:#}");
            ExitCode::FAILURE
        }
    }
}
