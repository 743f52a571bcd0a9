//! Measurements on a real cluster. They print tables and assert nothing: a number that a machine must reach belongs in no test.

pub mod capacity;
pub mod cri_loop;
pub mod device_plugin;
pub mod footprint;
pub mod many_nodes;
pub mod virtual_node;

use std::{fs, path::Path, time::Duration};

use anyhow::Context as _;

use crate::{
    cluster::{self, Cluster, serverless},
    demo::report::count,
    image,
};

/// What to measure.
#[derive(Debug, Clone, clap::Subcommand)]
pub enum Bench {
    /// Memory of both daemons: spillway-agent with GPUs, spillway-vk with running pods.
    Footprint {
        /// GPUs that the NVML stand-in shows to the agent.
        #[arg(long, default_value_t = 8)]
        gpus: u32,
        /// Sleeping pods on the virtual node.
        #[arg(long, default_value_t = 200)]
        pods: u32,
    },
    /// The agent's device plugins: how fast they answer beside a bare server, how soon they are there, what they cost. Without a cluster.
    DevicePlugin(device_plugin::Options),
    /// The virtual node beside a real kubelet, a bare CRI loop and kwok: pods per second, memory, calls, adoption after a restart.
    VirtualNode(virtual_node::Options),
    /// Capacity planning: `kubectl spillway` beside numpy, and how it grows with a trace. Without a cluster.
    Capacity(capacity::Options),
    /// A bare loop over the CRI of a serverless runtime, without Kubernetes: how fast this machine can start containers at all.
    CriLoop {
        /// Rounds, each a sandbox with a container that sleeps for a second.
        #[arg(long, default_value_t = 60)]
        pods: usize,
    },
}

/// Measures, with the programs in `binaries`; what needs a cluster starts one and ends it.
///
/// # Errors
/// When something can't be started or measured.
pub fn run(bench: &Bench, binaries: &Path) -> anyhow::Result<()> {
    match *bench {
        Bench::Footprint { gpus, pods } => footprint::run(gpus, pods),
        Bench::DevicePlugin(ref options) => device_plugin::run(options, binaries),
        Bench::VirtualNode(ref options) => virtual_node::run(options, binaries),
        Bench::Capacity(ref options) => capacity::run(options, binaries),
        Bench::CriLoop { pods } => measure_cri_loop(pods),
    }
}

fn measure_cri_loop(pods: usize) -> anyhow::Result<()> {
    let name = "virtual-1";
    let cluster = Cluster::up(&cluster::Options {
        nodes: Vec::new(),
        serverless: vec![serverless::Options { start_vk: false, ..serverless::Options::named(name) }],
        ..cluster::Options::default()
    })?;
    let machine = cluster.machine(name)?;
    let workload = sleepers(&cluster, name)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    println!(
        "{pods} sandboxes with a container each that runs `sleep 1`\n\n  in flight   seconds   pods per second"
    );
    for in_flight in [1, 2, 4, 8] {
        let elapsed: Duration = runtime.block_on(async {
            let client = cri_loop::connect(&machine).await?;
            cri_loop::run(&client, &workload, pods, in_flight, cri_loop::Removal::Within).await
        })?;
        let seconds = elapsed.as_secs_f64();
        println!("  {in_flight:9}   {seconds:7.1}   {:15.1}", count(pods) / seconds);
    }
    cluster.down()
}

/// What the loop runs on a machine: containers that sleep for a second.
fn sleepers(cluster: &Cluster, machine: &str) -> anyhow::Result<cri_loop::Workload> {
    let logs = cluster.machine(machine)?.path("/var/log/cri-loop");
    fs::create_dir_all(&logs).with_context(|| format!("can't create {}", logs.display()))?;
    Ok(cri_loop::Workload {
        image: image::BUSYBOX.to_owned(),
        arguments: ["sleep", "1"].map(str::to_owned).into(),
        mount: None,
        cgroup_parent: format!("{}/cri-loop", cluster.cgroup_root(machine)),
        logs: Path::new("/var/log/cri-loop").to_owned(),
    })
}
