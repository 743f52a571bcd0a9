//! The demo as a user runs it: the command, its exit status, its report, its picture, and what it leaves behind.

use std::{
    fs,
    process::{Command, Stdio},
};

use anyhow::{Context as _, ensure};
use serde_json::Value;
use spillway_tests::cluster::{current_binaries, registry};

use crate::Alone;

pub(crate) const ALONE: &[Alone] =
    &[("main_job::the_demo_keeps_what_it_promises", the_demo_keeps_what_it_promises)];

const PODS: u64 = 24;
const SLOTS: u64 = 4;

fn the_demo_keeps_what_it_promises() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let (report, picture) = (folder.path().join("report.json"), folder.path().join("sheet.png"));
    let demo = Command::new(current_binaries()?.join("xtask"))
        .args(["demo", "--pods", &PODS.to_string(), "--dedicated-slots", &SLOTS.to_string()])
        .arg("--report")
        .arg(&report)
        .arg("--picture")
        .arg(&picture)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("can't run xtask demo")?;
    let owner = i32::try_from(demo.id())?;
    let output = demo.wait_with_output()?;
    let printed =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "the demo ended with {}:\n{printed}", output.status);

    let report: Value =
        serde_json::from_str(&fs::read_to_string(&report).context("the demo wrote no report")?)?;
    let number = |key: &str| report[key].as_f64().with_context(|| format!("{key} is no number in {report}"));
    let count = |key: &str| report[key].as_u64().with_context(|| format!("{key} is no count in {report}"));
    ensure!(count("pods")? == PODS && count("results")? == PODS && count("left_over")? == 0, "{report}");
    ensure!(count("dedicated")? + count("virtual")? == PODS, "pods are on neither side: {report}");
    ensure!(count("dedicated")? >= SLOTS && count("virtual")? > 0, "a side went without pods: {report}");
    let (first, done) = (number("first_running_s")?, number("done_s")?);
    ensure!(0.0 < first && first <= done, "{report}");
    ensure!(
        (number("ratio")? - number("pods_per_s")? / number("cri_loop_pods_per_s")?).abs() < 1e-9,
        "{report}"
    );

    let picture = fs::read(&picture).context("the demo made no picture")?;
    ensure!(picture.starts_with(b"\x89PNG"), "the contact sheet is no PNG");
    ensure!(printed.contains("sharpened, resized"), "no log of a pod was shown:\n{printed}");
    let left: Vec<_> = registry::all()?.into_iter().filter(|record| record.owner.pid == owner).collect();
    ensure!(left.is_empty(), "the demo left its cluster: {left:?}");
    Ok(())
}
