//! Published numbers beside what `simulate` says, with as many jobs and seeds as they need: Waiting Game (SC'20) and FGD (ATC'23).

use std::{path::Path, process::Command};

use super::measured;
use crate::repository;

/// Arrivals and service of the published example, and its prices.
const WAITING_GAME: &str = "simulate --arrivals poisson --rate 0.2 --service-rate 0.002 --jobs 20000000 --warm-up 14h --dedicated-price 3.84 --serverless-price 9.6 --output json";
const FGD: &str =
    "--inflate 1.3 --no-departures --seeds 10 --dedicated-price 1 --serverless-price 3 --output json";

/// Prints both tables; FGD's only where the traces are.
pub(super) fn run(program: &Path) -> anyhow::Result<()> {
    println!(
        "\nWaiting Game, 20 million jobs\n\n  {:30}{:>12}{:>12}",
        "price of a GPU-hour of work", "published", "found"
    );
    let rows = [
        ("no waiting, 108 GPUs", "--gpus 108", 4.482_662),
        ("all wait, 101 GPUs", "--gpus 101 --burst all-wait", 3.8784),
        ("short wait, 101 GPUs, 300 s", "--gpus 101 --burst short-wait --wait 300", 3.967_006),
    ];
    for (what, flags, published) in rows {
        let mut command = Command::new(program);
        command.args(WAITING_GAME.split(' ')).args(flags.split(' '));
        let found =
            measured(&mut command)?.answer["cost"]["per_gpu_hour_of_work"].as_f64().unwrap_or(f64::NAN);
        println!("  {what:30}{published:>12.4}{found:>12.4}");
    }
    let traces = repository().join("../shared/data/openb");
    let traces =
        std::env::var_os("SPILLWAY_TRACES").map_or(traces, |folder| Path::new(&folder).join("openb"));
    if !traces.is_dir() {
        println!("\nFGD's table is left out: {} is not there", traces.display());
        return Ok(());
    }
    println!(
        "\nFGD, 130 % arrivals, mean of 10 seeds\n\n  {:30}{:>12}{:>12}",
        "GPUs allocated, %", "published", "found"
    );
    let rows = [
        ("random", 87.47),
        ("dot-product", 90.85),
        ("clustering", 91.88),
        ("packing", 92.00),
        ("best-fit", 93.08),
        ("fgd", 95.39),
    ];
    for (packing, published) in rows {
        let mut command = Command::new(program);
        command.arg("simulate").arg(traces.join("openb_pod_list_default.csv.gz"));
        command.arg("--machines").arg(traces.join("openb_node_list_gpu_node.csv.gz"));
        command.args(FGD.split(' ')).args(["--packing", packing]);
        let answer = measured(&mut command)?.answer;
        let found = answer["allocated_share"].as_f64().unwrap_or(f64::NAN) * 100.0;
        println!("  {packing:30}{published:>12.2}{found:>12.2}");
    }
    Ok(())
}
