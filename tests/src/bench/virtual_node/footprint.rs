//! Memory and CPU time of a node's process with pods that rest.

use std::time::Duration;

use serde_json::json;
use tokio::runtime::Runtime;

use super::{
    NAMESPACE, Options,
    api::Server,
    jobs::VIRTUAL,
    load,
    process::{Usage, usage},
    summary::Figures,
};
use crate::{cluster::Cluster, demo::report::count, image};

/// What comes after a burst of pods, status updates and the like, is over by then.
const SETTLE: Duration = Duration::from_secs(15);
/// How long a process that rests is looked at.
const WINDOW: Duration = Duration::from_secs(15);

/// Of a process that has nothing to do.
#[derive(Debug, Clone, Copy)]
pub(super) struct AtRest {
    pub(super) usage: Usage,
    /// Per cent of one CPU.
    pub(super) cpu_percent: f64,
}

impl AtRest {
    pub(super) fn row(&self, what: &str) -> String {
        format!(
            "  {what:42}{:10.1}{:10.1}{:10.1}{:10.2}",
            self.usage.resident_mib(),
            self.usage.private_mib(),
            self.usage.peak_mib(),
            self.cpu_percent
        )
    }
}

pub(super) fn header() -> String {
    format!("  {:42}{:>10}{:>10}{:>10}{:>10}", "", "RSS, MiB", "private", "peak", "CPU, %")
}

/// Waits until a process has calmed down, and looks at it.
pub(super) fn at_rest(cluster: &Cluster, machine: &str, name: &str) -> anyhow::Result<AtRest> {
    std::thread::sleep(SETTLE);
    let before = usage(cluster, machine, name)?;
    std::thread::sleep(WINDOW);
    let usage = usage(cluster, machine, name)?;
    Ok(AtRest { usage, cpu_percent: (usage.cpu - before.cpu) / WINDOW.as_secs_f64() * 100.0 })
}

/// KiB for each pod.
pub(super) fn growth_kib(idle: &AtRest, full: &AtRest, pods: usize) -> f64 {
    (full.usage.resident_mib() - idle.usage.resident_mib()) * 1024.0 / count(pods)
}

/// Starts pods that sleep for ever, and tells what they cost. They stay.
pub(super) fn real(
    cluster: &Cluster,
    runtime: &Runtime,
    options: &Options,
    idle: AtRest,
    figures: &mut Figures,
) -> anyhow::Result<()> {
    let pods = options.real_pods();
    cluster.say(&format!("starting {pods} sleeping pods"));
    let before = at_rest(cluster, VIRTUAL, "spillway-vk")?;
    runtime.block_on(async {
        let server = Server::new(cluster.client().await?);
        server.create(NAMESPACE, (0..pods).map(sleeper)).await?;
        server.until(NAMESPACE, "all pods Running", |seen| seen.running() == pods).await
    })?;
    let churn = usage(cluster, VIRTUAL, "spillway-vk")?.cpu - before.usage.cpu;
    let full = at_rest(cluster, VIRTUAL, "spillway-vk")?;
    println!("\nMemory and CPU time of spillway-vk, provider cri; load {}\n\n{}", load(), header());
    println!("{}", idle.row("started, no pods"));
    println!("{}", before.row("no pods (after Jobs, if they were measured)"));
    println!("{}", full.row(&format!("{pods} real pods")));
    let growth = growth_kib(&idle, &full, pods);
    println!(
        "  growth {growth:.1} KiB per pod; starting took {:.1} ms of CPU time per pod",
        churn / count(pods) * 1000.0
    );
    figures.rss_mib_idle = Some(idle.usage.resident_mib());
    figures.rss_kib_per_pod = Some(figures.rss_kib_per_pod.unwrap_or(0.0).max(growth));
    Ok(())
}

fn sleeper(index: usize) -> k8s_openapi::api::core::v1::Pod {
    serde_json::from_value(json!({
        "metadata": { "name": format!("real-{index}") },
        "spec": {
            "nodeName": VIRTUAL,
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 0,
            "tolerations": [{ "operator": "Exists" }],
            "containers": [{ "name": "main", "image": image::BUSYBOX, "imagePullPolicy": "Never",
                "command": ["sleep", "864000"] }],
        },
    }))
    .unwrap_or_default()
}
