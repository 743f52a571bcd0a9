//! Memory and CPU time of a node's process with pods that rest.

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use serde_json::json;
use tokio::runtime::Runtime;

use super::{
    NAMESPACE, Options,
    api::Server,
    jobs::VIRTUAL,
    load,
    process::{Usage, received, usage},
    summary::Figures,
};
use crate::{cluster::Cluster, demo::report::count, image};

/// What comes after a burst of pods, status updates and the like, is over by then.
const SETTLE: Duration = Duration::from_secs(15);
/// How long a process that rests is looked at.
const WINDOW: Duration = Duration::from_secs(15);

/// How many real pods come and go beside those that rest.
const CHURNING: usize = 20;

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

/// What pods cost that come and go while others rest: the same whatever the number of the others, if no work is done for all pods.
#[derive(Debug, Clone)]
pub(super) struct Churn {
    /// Milliseconds of CPU time per pod.
    cpu_ms: f64,
    /// KiB per pod that the machine received.
    received_kib: f64,
    /// Of the API server, per pod.
    calls: f64,
    which: String,
}

impl Churn {
    pub(super) fn told(&self, others: usize) -> String {
        let Self { cpu_ms, received_kib, calls, which } = self;
        format!(
            "  a pod that comes and goes beside {others} others: {cpu_ms:.1} ms of CPU time, {received_kib:.1} KiB received, \
             {calls:.1} API calls: {which}"
        )
    }
}

/// Starts pods and deletes them again, while `others` rest.
pub(super) fn churn(
    cluster: &Cluster,
    runtime: &Runtime,
    (machine, name): (&str, &str),
    fresh: &[Pod],
    others: usize,
) -> anyhow::Result<Churn> {
    let wires = || received(&cluster.machine(machine)?);
    let (before, bytes) = (usage(cluster, machine, name)?, wires()?);
    let pods = count(fresh.len());
    let requests = runtime.block_on(async {
        let server = Server::new(cluster.client().await?);
        let before = server.requests().await?;
        server.create(NAMESPACE, fresh.iter().cloned()).await?;
        let all = others + fresh.len();
        server.until(NAMESPACE, "more pods Running", |seen| seen.running() == all).await?;
        server.delete(NAMESPACE, fresh.iter().filter_map(|pod| pod.metadata.name.clone())).await?;
        server.until(NAMESPACE, "the others alone", |seen| seen.total() == others).await?;
        // What is cleared away afterwards, and late events, are part of it.
        tokio::time::sleep(Duration::from_secs(3)).await;
        let own = [("POST pods", pods), ("DELETE pods", pods)];
        anyhow::Ok(server.requests().await?.since(&before, &own))
    })?;
    Ok(Churn {
        cpu_ms: (usage(cluster, machine, name)?.cpu - before.cpu) * 1000.0 / pods,
        received_kib: (wires()? - bytes) / 1024.0 / pods,
        calls: requests.total() / pods,
        which: requests.per_pod(pods),
    })
}

/// Starts pods that sleep for ever, and tells what they cost. They stay.
pub(super) fn real(
    cluster: &Cluster,
    runtime: &Runtime,
    options: &Options,
    idle: AtRest,
    figures: &mut Figures,
) -> anyhow::Result<()> {
    const OURS: (&str, &str) = (VIRTUAL, "spillway-vk");
    let pods = options.real_pods();
    let fresh: Vec<Pod> = (pods..pods + CHURNING).map(sleeper).collect();
    cluster.say(&format!("starting and deleting {CHURNING} pods"));
    let alone = churn(cluster, runtime, OURS, &fresh, 0)?;
    let before = at_rest(cluster, VIRTUAL, "spillway-vk")?;
    cluster.say(&format!("starting {pods} sleeping pods"));
    runtime.block_on(async {
        let server = Server::new(cluster.client().await?);
        server.create(NAMESPACE, (0..pods).map(sleeper)).await?;
        server.until(NAMESPACE, "all pods Running", |seen| seen.running() == pods).await
    })?;
    let starting = usage(cluster, VIRTUAL, "spillway-vk")?.cpu - before.usage.cpu;
    let full = at_rest(cluster, VIRTUAL, "spillway-vk")?;
    cluster.say(&format!("starting and deleting {CHURNING} pods beside them"));
    let beside = churn(cluster, runtime, OURS, &fresh, pods)?;
    let after = at_rest(cluster, VIRTUAL, "spillway-vk")?;
    println!("\nMemory and CPU time of spillway-vk, provider cri; load {}\n\n{}", load(), header());
    println!("{}", idle.row("started, no pods"));
    println!("{}", before.row("no pods, after those that went"));
    println!("{}", full.row(&format!("{pods} real pods")));
    println!("{}", after.row("the same, after more came and went"));
    let growth = growth_kib(&idle, &full, pods);
    println!(
        "  growth {growth:.1} KiB per pod; starting took {:.1} ms of CPU time per pod",
        starting / count(pods) * 1000.0
    );
    println!("{}\n{}", alone.told(0), beside.told(pods));
    figures.rss_mib_idle = Some(idle.usage.resident_mib());
    figures.rss_kib_per_pod = Some(figures.rss_kib_per_pod.unwrap_or(0.0).max(growth));
    Ok(())
}

fn sleeper(index: usize) -> Pod {
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
