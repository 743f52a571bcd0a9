//! Nothing lost, nothing doubled: random faults over a churn of pods on the virtual node, and afterwards the books must balance.
//!
//! What a container does it writes to a file of its machine, so that a second start is seen from outside. In rounds: a storm of faults,
//! then everything is healed, and once all is calm what runs has to be what shall run, each container started once per restart count,
//! each exit code told, and nothing left of pods that are no more.

pub mod churn;
pub mod faults;
pub mod history;
pub mod judge;
pub mod plan;
pub mod remains;
mod rounds;

use std::{fs, sync::Arc};

use anyhow::{Context as _, bail};

use self::{churn::Churn, faults::Site, history::History, remains::Foreign, rounds::Rounds};
use crate::cluster::{Cluster, Options, serverless};

const NODE: &str = "virtual-1";
const NAMESPACE: &str = "chaos";
/// Where containers write, on the virtual node's machine.
const FOLDER: &str = "/srv/chaos";

/// What the user chose.
#[derive(Debug, Clone, clap::Args)]
pub struct ChaosOptions {
    /// How many faults.
    #[arg(long, default_value_t = 500)]
    pub faults: usize,
    /// Repeats a plan; without it a new one is drawn.
    #[arg(long)]
    pub seed: Option<u64>,
    /// How many pods come and go at a time.
    #[arg(long, default_value_t = 12, value_parser = clap::value_parser!(u16).range(1..=200))]
    pub pods: u16,
    /// How many faults come between two balances.
    #[arg(long, default_value_t = 25, value_parser = clap::value_parser!(u16).range(1..))]
    pub round: u16,
    /// Leave the cluster up, and say how to use it.
    #[arg(long)]
    pub keep: bool,
}

/// Starts a cluster of one virtual node, does it all, and ends the cluster.
///
/// # Errors
/// When something can't be started, or the books don't balance.
pub fn run(options: &ChaosOptions) -> anyhow::Result<()> {
    let cluster = Cluster::up(&Options {
        nodes: Vec::new(),
        serverless: vec![serverless::Options::named(NODE)],
        bare: true,
        keep: options.keep,
        ..Options::default()
    })?;
    let outcome = on(&cluster, options);
    let ended = if options.keep {
        println!("\n{}", cluster.usage());
        Ok(())
    } else {
        cluster.down()
    };
    outcome.and(ended)
}

/// Does it on a cluster that has a virtual node `virtual-1`.
///
/// # Errors
/// When the books don't balance, or can't be read.
pub fn on(cluster: &Cluster, options: &ChaosOptions) -> anyhow::Result<()> {
    let seed = match options.seed {
        Some(seed) => seed,
        None => u64::try_from(jiff::Timestamp::now().as_microsecond()).unwrap_or_default() % 1_000_000_007,
    };
    println!("seed {seed}: {} faults, {} pods at a time", options.faults, options.pods);
    cluster.create_namespace(NAMESPACE)?;
    let outcome = in_namespace(cluster, options, seed).with_context(|| {
        format!("`cargo xtask chaos --seed {seed} --faults {}` repeats the plan", options.faults)
    });
    let _ = cluster.kubectl(&["delete", "namespace", NAMESPACE, "--wait=false"]);
    outcome
}

fn in_namespace(cluster: &Cluster, options: &ChaosOptions, seed: u64) -> anyhow::Result<()> {
    let folder = cluster.machine(NODE)?.path(FOLDER);
    fs::create_dir_all(&folder).with_context(|| format!("can't create {}", folder.display()))?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let history = Arc::new(History::default());
    let client = runtime.block_on(cluster.client())?;
    let churn = Churn {
        client,
        namespace: NAMESPACE.to_owned(),
        node: NODE.to_owned(),
        folder: FOLDER.to_owned(),
        history: Arc::clone(&history),
    };
    let site = Site::new(cluster, NODE, Arc::clone(&history))?;
    let foreign = runtime.block_on(Foreign::start(cluster, NODE))?;
    let mut watching = tokio::task::JoinSet::new();
    let (follower, pods) = (Arc::clone(&history), churn.pods());
    watching.spawn_on(async move { follower.follow(pods).await }, runtime.handle());
    let mut rounds = Rounds::new(cluster, &runtime, churn, site, history, &foreign, folder.join("lines"));
    let outcome = rounds.all(options, seed);
    println!("{}", rounds.summary());
    let ended = runtime.block_on(foreign.end());
    drop(watching);
    let wrong = outcome?;
    ended.context("what stood for somebody else's can't be ended")?;
    let _ = fs::remove_dir_all(&folder);
    if wrong > 0 {
        bail!("{wrong} violations; they are told above");
    }
    Ok(())
}
