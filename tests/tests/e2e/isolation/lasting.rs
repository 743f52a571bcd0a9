//! How long isolation lasts: beyond the agent, or not, as was set; and not beyond the chart.

use anyhow::{Context as _, ensure};

use super::{LET_THROUGH, REFUSED, denied, expect, greedy, holder, open, settle, wait_told};
use crate::{
    agent::{GPU, wait_offered},
    harness::{DEDICATED, Pool, metric, wait},
};

pub(super) fn it_outlives_and_is_put_back(pool: &Pool) -> anyhow::Result<()> {
    settle(pool)?;
    let namespace = pool.namespace("outlive")?;
    let own = holder(&namespace, "holder")?;
    greedy(&namespace, "greedy", "")?;
    let (own, other) = (format!("/dev/nvidia{own}"), format!("/dev/nvidia{}", 1 - own));
    let unchanged = |when: &str| {
        let check = || {
            expect(&namespace, "holder", &own, LET_THROUGH)?;
            expect(&namespace, "holder", &other, REFUSED)?;
            expect(&namespace, "greedy", &own, REFUSED)
        };
        check().context(when.to_owned())
    };
    unchanged("before")?;
    let agent = || pool.on(DEDICATED, "pidof spillway-agent || true");
    let before = agent()?;
    pool.on(DEDICATED, "kill -9 $(pidof spillway-agent)")?;
    unchanged("without an agent")?;
    wait("another agent to run", || {
        let now = agent()?;
        Ok((!now.trim().is_empty() && now != before).then_some(()))
    })?;
    wait_offered(pool, GPU, 2, 2)?;
    unchanged("with another agent")?;
    pool.cluster.restart(DEDICATED, "kubelet")?;
    wait("the kubelet to answer", || open(&namespace, "holder", &own).map(Some))?;
    unchanged("after a restart of the kubelet")?;
    wait_offered(pool, GPU, 2, 2)?;
    unchanged("when the kubelet has its devices again")?;

    // An agent that runs would put it back: the command refuses. Where it can't know of it, the filter is taken away for a moment.
    let agent = "/opt/spillway/build/spillway-agent";
    let refused = pool.on(DEDICATED, &format!("{agent} uninstall"));
    ensure!(
        refused.is_err_and(|error| format!("{error:#}").contains("an agent runs on this machine")),
        "not refused"
    );
    let restored = "spillway_isolation_restored_total";
    let earlier = metric(pool, restored)?.unwrap_or(0);
    pool.on(
        DEDICATED,
        &format!("mkdir -p /tmp/elsewhere && {agent} --device-plugin-dir /tmp/elsewhere uninstall"),
    )?;
    wait("the filter to be put back", || Ok((metric(pool, restored)? > Some(earlier)).then_some(())))?;
    unchanged("after it was put back")?;
    let pins = pool.on(DEDICATED, "ls /sys/fs/bpf/spillway")?;
    ensure!(pins.split_whitespace().eq(["allowed", "denied", "link"]), "the pins are {pins}");

    // Access ends with the pod: nothing of it is left in the way of the next one.
    namespace.kubectl(&["delete", "pod", "holder"])?;
    let next = format!("/dev/nvidia{}", holder(&namespace, "next")?);
    expect(&namespace, "next", &next, LET_THROUGH)?;
    Ok(())
}

/// Takes the agent from its machine, as a drain or an upgrade does; it comes back with [`Away::back`], or when this is dropped.
struct Away<'a>(&'a Pool);

impl<'a> Away<'a> {
    fn now(pool: &'a Pool) -> anyhow::Result<Self> {
        let away = Self(pool);
        pool.cluster.kubectl(&["label", "node", DEDICATED, "spillway.dev/accelerators-"])?;
        wait("the agent to end", || {
            let runs = pool.on(DEDICATED, "pidof spillway-agent || true")?;
            Ok(runs.trim().is_empty().then_some(()))
        })?;
        Ok(away)
    }

    fn back(self) -> anyhow::Result<()> {
        let pool = self.0;
        drop(self);
        wait_offered(pool, GPU, 2, 2)
    }
}

impl Drop for Away<'_> {
    fn drop(&mut self) {
        let label = ["label", "node", DEDICATED, "--overwrite", "spillway.dev/accelerators=true"];
        if let Err(error) = self.0.cluster.kubectl(&label) {
            eprintln!("    bringing the agent back: {error:#}");
        }
    }
}

pub(super) fn while_the_agent_is_away(pool: &Pool) -> anyhow::Result<()> {
    settle(pool)?;
    let namespace = pool.namespace("away")?;
    greedy(&namespace, "greedy", "")?;
    expect(&namespace, "greedy", "/dev/nvidia0", REFUSED)?;

    let away = Away::now(pool)?;
    expect(&namespace, "greedy", "/dev/nvidia0", REFUSED).context("closed, as it is by default")?;
    pool.cluster.install_chart(&["agent.isolation.mode=enforce", "agent.isolation.whileAway=open"])?;
    away.back()?;
    wait("isolation to be in force", || {
        Ok((metric(pool, "spillway_isolation_in_force")? == Some(1)).then_some(()))
    })?;
    expect(&namespace, "greedy", "/dev/nvidia0", REFUSED).context("while the agent is there")?;

    let away = Away::now(pool)?;
    let opened = expect(&namespace, "greedy", "/dev/nvidia0", LET_THROUGH);
    let pins = pool.on(DEDICATED, "ls -A /sys/fs/bpf");
    away.back()?;
    opened.context("open")?;
    let pins = pins?;
    ensure!(!pins.contains("spillway"), "the pins of isolation are left: {pins}");
    wait("isolation to be in force again", || {
        Ok((open(&namespace, "greedy", "/dev/nvidia0")? == REFUSED).then_some(()))
    })
}

pub(super) fn nothing_is_left_when_the_chart_goes(pool: &Pool) -> anyhow::Result<()> {
    settle(pool)?;
    let namespace = pool.namespace("gone")?;
    greedy(&namespace, "greedy", "")?;
    expect(&namespace, "greedy", "/dev/nvidia0", REFUSED)?;
    let gone = pool.cluster.helm(&["uninstall", "spillway", "--namespace", "spillway-system", "--wait"]);
    let pins = pool.on(DEDICATED, "ls -A /sys/fs/bpf");
    let opened = expect(&namespace, "greedy", "/dev/nvidia0", LET_THROUGH);
    // The other tests need it again, whatever came of this one.
    pool.cluster.install_chart(&[])?;
    gone.context("helm uninstall")?;
    opened?;
    let pins = pins?;
    ensure!(!pins.contains("spillway"), "the pins of isolation are left: {pins}");
    // With the chart's own default: audited, so that what would be refused is only counted.
    wait_offered(pool, GPU, 2, 2)?;
    wait("isolation to be audited", || {
        Ok((metric(pool, "spillway_isolation_in_force")? == Some(1)).then_some(()))
    })?;
    for _ in 0..2 {
        expect(&namespace, "greedy", "/dev/nvidia0", LET_THROUGH)?;
    }
    let denied = |reason: &str, what: &str| denied("greedy", reason, what, "/dev/nvidia0");
    wait_told(
        &namespace,
        &[
            denied("AcceleratorDenialAudited", "would have been refused"),
            denied("AcceleratorDenied", "was refused"),
        ],
    )
}
