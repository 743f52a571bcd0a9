//! Published numbers beside what `simulate` says, with as many jobs and seeds as they need: Waiting Game (SC'20) and FGD (ATC'23).

use std::{path::Path, process::Command};

use serde_json::Value;

use super::measured;
use crate::repository;

/// Arrivals and service of the published example, and its prices.
const WAITING_GAME: &str = "simulate --arrivals poisson --rate 0.2 --service-rate 0.002 --warm-up 14d --dedicated-price 3.84 --serverless-price 9.6 --output json";
const FGD: &str =
    "--inflate 1.3 --no-departures --seeds 10 --dedicated-price 1 --serverless-price 3 --output json";

/// A row of Waiting Game: theory's numbers, of which the published ones are.
struct Row {
    what: &'static str,
    flags: &'static str,
    /// Where all wait, load is 99 % and its waves last for days: a standard error of 1 % takes so many.
    jobs: u64,
    price: f64,
    wait_s: f64,
    spilled: f64,
}

/// The published bound of what no policy without waiting can beat: 102 GPUs, and so much for a GPU-hour of work.
const BOUND: (&str, f64) = ("--gpus 102 --jobs 20000000", 4.212_354);

const ROWS: [Row; 3] = [
    Row {
        what: "no waiting, 108 GPUs",
        flags: "--gpus 108",
        jobs: 20_000_000,
        price: 4.482_662,
        wait_s: 0.0,
        spilled: 0.034_944,
    },
    Row {
        what: "short wait, 101 GPUs, 300 s",
        flags: "--gpus 101 --burst short-wait --wait 300",
        jobs: 20_000_000,
        price: 3.967_006,
        wait_s: 103.531,
        spilled: 0.009_229_8,
    },
    Row {
        what: "all wait, 101 GPUs",
        flags: "--gpus 101 --burst all-wait",
        jobs: 1_000_000_000,
        price: 3.8784,
        wait_s: 441.657,
        spilled: 0.0,
    },
];

/// Prints both tables; FGD's only where the traces are.
pub(super) fn run(program: &Path) -> anyhow::Result<()> {
    println!(
        "\nWaiting Game: found ± one standard error by batches of the run, beside what was published\n\n  {:30}{:>14}{:>30}{:>30}{:>36}{:>10}",
        "", "jobs", "GPU-hour of work costs", "mean wait, s", "spilled share", "seconds"
    );
    for row in ROWS {
        let jobs = row.jobs.to_string();
        let mut command = Command::new(program);
        command.args(WAITING_GAME.split(' ')).args(["--jobs", &jobs]).args(row.flags.split(' '));
        let run = measured(&mut command)?;
        let number = |at: &str| run.answer.pointer(at).and_then(Value::as_f64).unwrap_or(f64::NAN);
        let cell = |value: &str, error: &str, published: f64, digits: usize| {
            format!("{:.digits$} ± {:.digits$} ({published:.digits$})", number(value), number(error))
        };
        println!(
            "  {:30}{jobs:>14}{:>30}{:>30}{:>36}{:>10.0}",
            row.what,
            cell("/cost/per_gpu_hour_of_work", "/cost/per_gpu_hour_of_work_error", row.price, 4),
            cell("/wait/mean_s", "/wait/mean_error_s", row.wait_s, 2),
            cell("/spilled/gpu_hours_share", "/spilled/gpu_hours_share_error", row.spilled, 6),
            run.seconds
        );
    }
    let (flags, published) = BOUND;
    let run = measured(Command::new(program).args(WAITING_GAME.split(' ')).args(flags.split(' ')))?;
    let cost = |name: &str| run.answer["cost"][name].as_f64().unwrap_or(f64::NAN);
    let bound = cost("least_without_waiting") / cost("total") * cost("per_gpu_hour_of_work");
    println!(
        "  {:30}{:>14}{:>30}",
        "no waiting, at least",
        20_000_000,
        format!("{bound:.4} ({published:.4})")
    );
    let traces = repository().join("../shared/data/openb");
    let traces =
        std::env::var_os("SPILLWAY_TRACES").map_or(traces, |folder| Path::new(&folder).join("openb"));
    if !traces.is_dir() {
        println!("\nFGD's table is left out: {} is not there", traces.display());
        return Ok(());
    }
    println!(
        "\nFGD, 130 % arrivals, mean of 10 seeds\n\n  {:30}{:>12}{:>16}",
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
        let percent = |name: &str| answer[name].as_f64().unwrap_or(f64::NAN) * 100.0;
        let (found, error) = (percent("allocated_share"), percent("allocated_share_error"));
        println!("  {packing:30}{published:>12.2}{:>16}", format!("{found:.2} ± {error:.2}"));
    }
    Ok(())
}
