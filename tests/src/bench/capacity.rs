//! Capacity planning, without a cluster: `kubectl spillway optimize` beside numpy on the same trace, its growth with rows, its memory, and how fast `simulate` replays jobs.
//! The program is built as users get it.

#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    reason = "counts of rows, and figures"
)]

mod api;
mod golden;
mod traces;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use serde_json::{Value, json};

use super::footprint;
use crate::components;

/// Serverless over dedicated price.
const RATIO: &str = "3";
const RESAMPLES: &str = "1000";
const BRUTE_FORCE: &str = include_str!("capacity/brute_force.py");
/// Rows of the trace that is answered by numpy, too.
const MILLION: u64 = 1_000_000;
/// How often the peak of a process' memory is looked at.
const LOOK: Duration = Duration::from_millis(5);

/// How it is measured.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Write the figures to this file, too, as one JSON object.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// How many times each thing is measured; the median counts.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..))]
    rounds: u16,
    /// Rows of the traces by which growth is measured; one million is always among them.
    #[arg(long, value_delimiter = ',', default_values_t = [10_000, 100_000, MILLION, 10_000_000])]
    rows: Vec<u64>,
    /// Show the published numbers of Waiting Game and FGD beside what `simulate` says, too: long runs.
    #[arg(long)]
    golden: bool,
}

/// How a program ran.
#[derive(Debug, Clone)]
struct Run {
    seconds: f64,
    peak_mib: f64,
    answer: Value,
}

/// Measures with the programs in `binaries`, and prints tables.
///
/// # Errors
/// When something can't be started or measured, or numpy and the program don't agree.
pub fn run(options: &Options, binaries: &Path) -> anyhow::Result<()> {
    let folder = tempfile::tempdir_in(crate::target()).context("can't make a folder for the traces")?;
    let program = binaries.join("kubectl-spillway");
    let python = python()?;
    let mut rows = options.rows.clone();
    rows.push(MILLION);
    rows.sort_unstable();
    rows.dedup();

    println!(
        "kubectl spillway optimize, one row a minute, {RESAMPLES} resamples, median of {}\n",
        options.rounds
    );
    println!("  {:>12}{:>10}{:>16}{:>12}", "rows", "seconds", "us per row", "peak MiB");
    let (mut million, mut largest) = (None, None);
    for rows in rows {
        let trace = folder.path().join(format!("demand-{rows}.csv"));
        traces::demand(&trace, rows)?;
        let run = median(options.rounds, || optimize(&program, &trace))?;
        println!(
            "  {rows:>12}{:>10.3}{:>16.3}{:>12.1}",
            run.seconds,
            run.seconds * 1e6 / rows as f64,
            run.peak_mib
        );
        if rows == MILLION {
            million = Some((trace.clone(), run.clone()));
        }
        largest = Some((rows, run));
        if rows != MILLION {
            fs::remove_file(&trace)?;
        }
    }
    let (Some((trace, ours)), Some((most, largest))) = (million, largest) else {
        bail!("nothing was measured")
    };

    let script = folder.path().join("brute_force.py");
    fs::write(&script, BRUTE_FORCE)?;
    // It takes a minute, and its time is stable.
    let theirs = measured(Command::new(python).arg(&script).arg(&trace).args([RATIO, RESAMPLES]))?;
    same(&ours.answer, &theirs.answer)?;
    let over_numpy = theirs.seconds / ours.seconds;
    let part = |key: &str| theirs.answer[key].as_f64().unwrap_or_default();
    println!(
        "\nThe same answer for a million rows by numpy: {:.1} s, of which {:.1} s read and {:.1} s answer: {over_numpy:.0} times as long",
        theirs.seconds,
        part("read_s"),
        part("answer_s")
    );
    println!(
        "  both: own {}, {:.4} per hour; interval {} to {}, numpy's own draws {} to {}",
        ours.answer["advice"]["gpus"],
        ours.answer["advice"]["per_hour"].as_f64().unwrap_or_default(),
        ours.answer["interval"]["from_gpus"],
        ours.answer["interval"]["to_gpus"],
        theirs.answer["from_gpus"],
        theirs.answer["to_gpus"]
    );

    let mut figures = json!({ "optimize_s_per_million": ours.seconds, "optimize_over_numpy": over_numpy });
    if most >= 10_000_000 {
        figures["rss_mib_10m"] = json!(largest.peak_mib);
    } else {
        println!("\nrss_mib_10m is left out: no trace had ten million rows");
    }
    match simulate(&program, folder.path(), options.rounds) {
        Ok(events_per_s) => figures["simulate_events_per_s"] = json!(events_per_s),
        Err(error) => println!("\nsimulate_events_per_s is left out: {error:#}"),
    }
    match report(&program, folder.path(), options.rounds) {
        Ok(longest) => {
            figures["report_s_5000_nodes"] = json!(longest.seconds);
            for part in ["lists_s", "beside_s", "reckoning_s"] {
                figures[format!("report_{part}_5000_nodes")] = longest.answer["took"][part].clone();
            }
        }
        Err(error) => println!("\nreport_s_5000_nodes is left out: {error:#}"),
    }
    if options.golden {
        golden::run(&program)?;
    }
    if let Some(path) = &options.json {
        fs::write(path, format!("{figures:#}\n"))
            .with_context(|| format!("can't write {}", path.display()))?;
    }
    Ok(())
}

fn optimize(program: &Path, trace: &Path) -> anyhow::Result<Run> {
    measured(Command::new(program).arg("optimize").arg(trace).args([
        "--ratio",
        RATIO,
        "--resamples",
        RESAMPLES,
        "--output",
        "json",
    ]))
}

/// What happens to a job that is replayed: it is submitted, it starts, it ends.
const EVENTS: f64 = 3.0;

/// Replays a million jobs of a trace, and gives how many events it handles per second, in the slower of two policies; the trace is read in that time, too.
fn simulate(program: &Path, folder: &Path, rounds: u16) -> anyhow::Result<f64> {
    let trace = folder.join("jobs.csv");
    traces::jobs(&trace, MILLION)?;
    println!("\nkubectl spillway simulate, a million jobs on 60 machines of 8 GPUs\n");
    let mut slowest = f64::INFINITY;
    for burst in ["at-once", "all-wait"] {
        let run = median(rounds, || replay(program, &trace, burst))?;
        let events_per_s = EVENTS * MILLION as f64 / run.seconds;
        slowest = slowest.min(events_per_s);
        println!(
            "  {burst:10}{:>8.2} s{events_per_s:>12.0} events per second (submitted, started, ended){:>8.0} MiB",
            run.seconds, run.peak_mib
        );
    }
    Ok(slowest)
}

fn replay(program: &Path, trace: &Path, burst: &str) -> anyhow::Result<Run> {
    let mut command = Command::new(program);
    command.arg("simulate").arg(trace).args(["--burst", burst, "--output", "json"]);
    command.args(["--gpus", "480", "--gpus-per-machine", "8"]);
    measured(command.args(["--dedicated-price", "1", "--serverless-price", RATIO]))
}

/// Reports on a large cluster, and gives the run that took longer from the start of the program, the lists' way over loopback and their reading included, of two
/// clusters: one in which few pods wait and one in which thousands do that fit nowhere. The report itself tells what of it took how long.
fn report(program: &Path, folder: &Path, rounds: u16) -> anyhow::Result<Run> {
    const NODES: usize = 5000;
    const PODS: usize = 50_000;
    println!();
    let mut longest: Option<Run> = None;
    for (waiting, who) in
        [(api::Waiting::Few, "a hundred"), (api::Waiting::Many, "five thousand, all different")]
    {
        let kubeconfig = api::serve(folder, NODES, PODS, waiting)?;
        let run = median(rounds, || {
            measured(
                Command::new(program)
                    .args(["report", "--no-usage", "--output", "json", "--kubeconfig"])
                    .arg(&kubeconfig),
            )
        })?;
        println!(
            "kubectl spillway report, {NODES} nodes and {PODS} pods, of which {who} wait: {:.2} s from start to end, {:.0} MiB; {}",
            run.seconds,
            run.peak_mib,
            took(&run.answer)
        );
        if longest.as_ref().is_none_or(|longest| longest.seconds < run.seconds) {
            longest = Some(run);
        }
    }
    longest.context("nothing was measured")
}

/// What of a report took how long, in words.
fn took(report: &Value) -> String {
    let part = |name: &str| report["took"][name].as_f64().unwrap_or_default();
    format!(
        "the lists {:.2} s, what else is asked {:.2} s, the reckoning {:.2} s",
        part("lists_s"),
        part("beside_s"),
        part("reckoning_s")
    )
}

fn median(rounds: u16, mut run: impl FnMut() -> anyhow::Result<Run>) -> anyhow::Result<Run> {
    let mut runs = (0..rounds).map(|_| run()).collect::<anyhow::Result<Vec<Run>>>()?;
    runs.sort_by(|one, other| one.seconds.total_cmp(&other.seconds));
    Ok(runs.swap_remove(runs.len() / 2))
}

/// Runs a program that prints JSON, and looks at its memory as it runs.
fn measured(command: &mut Command) -> anyhow::Result<Run> {
    let output = tempfile::NamedTempFile::new()?;
    let errors = tempfile::NamedTempFile::new()?;
    let begun = Instant::now();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(output.reopen()?)
        .stderr(errors.reopen()?)
        .spawn()
        .with_context(|| format!("can't run {}", command.get_program().display()))?;
    let status = PathBuf::from(format!("/proc/{}/status", child.id()));
    let mut peak = 0;
    let exit = loop {
        // It has no memory any more once it has ended.
        peak = footprint::of(&status).map_or(peak, |memory| memory.peak.max(peak));
        if let Some(exit) = child.try_wait()? {
            break exit;
        }
        std::thread::sleep(LOOK);
    };
    let seconds = begun.elapsed().as_secs_f64();
    ensure!(
        exit.success(),
        "{} failed: {}",
        command.get_program().display(),
        fs::read_to_string(errors.path())?.trim()
    );
    let answer = serde_json::from_slice(&fs::read(output.path())?).context("it printed no JSON")?;
    Ok(Run { seconds, peak_mib: peak as f64 / 1024.0, answer })
}

/// Checks that both gave the same answer: what is drawn by chance is near, all else is equal.
fn same(ours: &Value, theirs: &Value) -> anyhow::Result<()> {
    let number = |value: &Value| value.as_f64().context("a number is missing in an answer");
    let near = |what: &str, ours: &Value, theirs: &Value, within: f64| -> anyhow::Result<()> {
        let (ours, theirs) = (number(ours)?, number(theirs)?);
        ensure!((ours - theirs).abs() <= within, "{what}: {ours}, but numpy says {theirs}");
        Ok(())
    };
    near("GPUs to own", &ours["advice"]["gpus"], &theirs["gpus"], 0.0)?;
    near("cost", &ours["advice"]["per_hour"], &theirs["per_hour"], 1e-6)?;
    near("interval from", &ours["interval"]["from_gpus"], &theirs["from_gpus"], 5.0)?;
    near("interval to", &ours["interval"]["to_gpus"], &theirs["to_gpus"], 5.0)?;
    let folds = ours["regret"].as_array().context("no regret")?;
    for (index, fold) in folds.iter().enumerate() {
        // The program cuts at its blocks, numpy at samples.
        near("regret", &fold["regret"], &theirs["regret"][index], 0.005)?;
    }
    Ok(())
}

/// A Python that has numpy; installed where there is none.
fn python() -> anyhow::Result<&'static str> {
    const PYTHONS: [&str; 2] = ["/usr/bin/python3", "python3"];
    let has_numpy = |python: &&str| {
        let mut probe = Command::new(python);
        probe.args(["-c", "import numpy"]).stdout(Stdio::null()).stderr(Stdio::null());
        probe.status().is_ok_and(|status| status.success())
    };
    if let Some(python) = PYTHONS.into_iter().find(|python| has_numpy(python)) {
        return Ok(python);
    }
    components::ensure_tools(&[("/usr/lib/python3/dist-packages/numpy", "python3-numpy")])?;
    PYTHONS
        .into_iter()
        .find(has_numpy)
        .context("there is no python3 with numpy: install python3-numpy, then run again")
}
