//! What a cheaper low-level runtime would give: the same Jobs on the virtual node, with the runtime's default and by a `RuntimeClass`.

use std::fs;

use anyhow::Context as _;
use tokio::runtime::Runtime;

use super::{
    Options, in_turns,
    jobs::{Rates, VIRTUAL, header, job, row},
    load, summary,
};
use crate::{
    cluster::{Cluster, serverless::install, write},
    components,
};

/// The `RuntimeClass`, its handler, and what it stands for.
const CLASS: &str = "youki";

/// Measures both in turns.
pub(super) fn compare(cluster: &Cluster, runtime: &Runtime, options: &Options) -> anyhow::Result<()> {
    offer(cluster)?;
    let pods = options.few();
    let (mut default, mut other) = (Vec::new(), Vec::new());
    for round in 0..options.rounds {
        for class in in_turns(round, [None, Some(CLASS)]) {
            let rates = job(cluster, runtime, VIRTUAL, class, pods)?;
            let name = class.unwrap_or("the default runtime");
            cluster.say(&format!("round {round}: {pods} pods with {name}: {}", rates.told()));
            if class.is_some() { &mut other } else { &mut default }.push(rates);
        }
    }
    println!(
        "\n{pods} pods by low-level runtime; medians of {} rounds; load {}\n\n{}",
        options.rounds,
        load(),
        header()
    );
    println!("{}\n{}", row("runc", &default), row(CLASS, &other));
    let of = |rounds: &[Rates], of: fn(&Rates) -> f64| rounds.iter().map(of).collect::<Vec<f64>>();
    let ratio = |figure| summary::ratio(&of(&other, figure), &of(&default, figure)).unwrap_or(f64::NAN);
    println!(
        "  {:34}{:12.2}{:12.2}",
        format!("  {CLASS} / runc"),
        ratio(|rates| rates.running),
        ratio(|rates| rates.succeeded)
    );
    Ok(())
}

/// Makes the virtual node's containerd know it.
fn offer(cluster: &Cluster) -> anyhow::Result<()> {
    let machine = cluster.machine(VIRTUAL)?;
    let program = install(&machine, &components::ensure_youki()?)?;
    let path = machine.path("/etc/containerd/config.toml");
    let text = fs::read_to_string(&path).with_context(|| format!("can't read {}", path.display()))?;
    let table = format!("[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.{CLASS}");
    let handler = format!(
        "{table}]\nruntime_type = \"io.containerd.runc.v2\"\n{table}.options]\nBinaryName = \"{program}\"\n"
    );
    write(&path, &(text + &handler))?;
    cluster.restart(VIRTUAL, "containerd")?;
    cluster.apply(&format!(
        "apiVersion: node.k8s.io/v1\nkind: RuntimeClass\nmetadata: {{name: {CLASS}}}\nhandler: {CLASS}\n"
    ))
}
