//! Kubernetes' own tests for nodes, those of them that take seconds, with every pod on the virtual node.

use anyhow::Context as _;
use spillway_tests::{
    components,
    conformance::{self, ConformanceOptions, Target, exceptions::Exceptions},
    image,
};

use crate::{
    Test,
    harness::{DEDICATED, Pool, VIRTUAL},
};

pub(crate) const TESTS: &[Test] = &[("vk_conformance::of_kubernetes_own_tests", of_kubernetes_own_tests)];

/// Tests that look for minutes whether something never happens; `cargo xtask conformance` runs them, too.
const MINUTES: &str = r"\*not\* be restarted|never be ready|not be ready (before|with an exec)|monotonically|startup probe fails";
/// Tests outside of `[NodeConformance]` that read events, which they know by their source.
const EVENTS: &str = "sent by kubelets and the scheduler|not create extra sandbox if all containers are done";
const TAINT: &str = "virtual-kubelet.io/provider";

fn of_kubernetes_own_tests(pool: &Pool) -> anyhow::Result<()> {
    let cluster = &pool.cluster;
    let source = components::ensure_conformance()?;
    let images =
        image::kubernetes::build(&source, &components::folder(), &spillway_tests::target().join("images"))?;
    cluster.load_images(VIRTUAL, &images)?;
    // The suite places its pods by the scheduler alone.
    cluster.kubectl(&["taint", "node", VIRTUAL, &format!("{TAINT}-")])?;
    let mut options =
        ConformanceOptions { skip: vec![MINUTES.to_owned()], ..ConformanceOptions::on(Target::Virtual) };
    options.focus.push(EVENTS.to_owned());
    let outcome = conformance::on(cluster, &options, &Exceptions::read()?);
    let restored = cluster
        .kubectl(&["taint", "node", DEDICATED, &format!("{}-", conformance::KEEP_OFF.0)])
        .and(cluster.kubectl(&["taint", "node", VIRTUAL, &format!("{TAINT}=cri:NoSchedule")]))
        .context("can't give the nodes their taints back");
    outcome.and(restored.map(drop))
}
