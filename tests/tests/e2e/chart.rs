//! What the chart does beside its objects: the hook that takes isolation out of the kernel when an upgrade switches it off, on the real
//! cluster, by the command that a user types.

use anyhow::{Context as _, ensure};

use crate::{
    Test,
    harness::{DEDICATED, Pool, wait},
    isolation::{LET_THROUGH, REFUSED, expect, greedy},
};

pub(crate) const TESTS: &[Test] =
    &[("chart::an_upgrade_that_ends_isolation_leaves_nothing_of_it", an_upgrade_that_ends_isolation)];

const SYSTEM: &str = "spillway-system";

/// Without what the other tests' upgrades are forced by: what somebody else has set is a conflict.
fn upgrade(pool: &Pool, set: &[&str]) -> anyhow::Result<()> {
    let repository = spillway_tests::repository();
    let chart = repository.join("deploy/chart").display().to_string();
    let values = repository.join("tests/cluster/standin-values.yaml").display().to_string();
    let command = ["upgrade", "spillway", &chart, "--namespace", SYSTEM, "--values", &values, "--wait"];
    let set: Vec<_> = set.iter().map(|value| format!("--set={value}")).collect();
    let arguments: Vec<_> = command.into_iter().chain(set.iter().map(String::as_str)).collect();
    pool.cluster.helm(&arguments).map(drop)
}

fn an_upgrade_that_ends_isolation(pool: &Pool) -> anyhow::Result<()> {
    let agent = |path: &str| {
        let path = format!("jsonpath={{{path}}}");
        pool.cluster.kubectl(&["-n", SYSTEM, "get", "daemonset", "spillway-agent", "-o", &path])
    };
    pool.cluster.install_chart(&["agent.isolation.mode=enforce"])?;
    let namespace = pool.namespace("chart-upgrade")?;
    greedy(&namespace, "greedy", "")?;
    expect(&namespace, "greedy", "/dev/nvidia0", REFUSED)?;

    // With another image, as an upgrade has. The agents of this chart see nothing of the kernel: it is the hook that clears up.
    let image = agent(".spec.template.spec.containers[0].image")?;
    let (name, _) = image.rsplit_once(':').context("the image has a tag")?;
    let [old, new] =
        [image.as_str(), &format!("{name}:next")].map(|name| format!("docker.io/library/{name}"));
    pool.on(DEDICATED, &format!("ctr -n k8s.io images tag {old} {new}"))?;
    let upgraded = upgrade(pool, &["agent.isolation.mode=off", "agent.image.tag=next"]);
    let pins = pool.on(DEDICATED, "ls -A /sys/fs/bpf");
    let opened = expect(&namespace, "greedy", "/dev/nvidia0", LET_THROUGH);
    let strategy = agent(".spec.updateStrategy.rollingUpdate.maxUnavailable");
    let managers = agent(".metadata.managedFields[*].manager");
    let image = agent(".spec.template.spec.containers[0].image");
    let left = wait("the hook's objects to go", || {
        let kinds = "jobs,pods,serviceaccounts,roles,rolebindings";
        let select =
            ["-n", SYSTEM, "get", kinds, "-l", "app.kubernetes.io/component=agent-uninstall", "-o", "name"];
        Ok(pool.cluster.kubectl(&select)?.is_empty().then_some(()))
    });
    // And back, while the hook's changes are nobody's any more.
    let back = upgrade(pool, &[]);
    if back.is_err() {
        pool.cluster.install_chart(&[])?;
    }
    pool.on(DEDICATED, &format!("ctr -n k8s.io images rm {new}"))?;
    upgraded.context("isolation is not switched off")?;
    let pins = pins?;
    ensure!(!pins.contains("spillway"), "the pins of isolation are left: {pins}");
    opened?;
    left?;
    let (strategy, managers, image) = (strategy?, managers?, image?);
    ensure!(strategy == "10%", "the agents are updated {strategy} at once");
    ensure!(!managers.contains("uninstall"), "the hook has a say in the DaemonSet: {managers}");
    ensure!(image.ends_with(":next"), "the image is {image}");
    back.context("isolation is not switched on again")
}
