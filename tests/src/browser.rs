//! A real browser without a screen: Chromium's headless shell, of Debian. What it makes of a page, what the page said, and what it asked the network for.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context as _, bail};
use serde_json::Value;

const PROGRAM: &str = "/usr/bin/chromium-headless-shell";
const TOOLS: &[(&str, &str)] = &[(PROGRAM, "chromium-headless-shell")];

/// How a page is looked at.
#[derive(Debug, Clone, Copy)]
pub struct Look {
    /// In pixels.
    pub width: u32,
    /// Whether the machine prefers dark pages.
    pub dark: bool,
    /// How long the page's own clock runs, in milliseconds.
    pub for_ms: u32,
}

impl Default for Look {
    fn default() -> Self {
        Self { width: 1400, dark: false, for_ms: 2000 }
    }
}

/// What came of a page.
#[derive(Debug)]
pub struct Visit {
    /// The document once its scripts have run.
    pub dom: String,
    /// What was written to the console: errors, and what the page's policy forbade.
    pub console: Vec<String>,
    /// Addresses that were asked of the network.
    pub asked: Vec<String>,
}

/// Installs the browser where it is not there.
///
/// # Errors
/// When it can't be installed.
pub fn ensure() -> anyhow::Result<()> {
    crate::components::ensure_tools(TOOLS)
}

/// Opens `url` and tells what came of it.
///
/// # Errors
/// When the browser can't be run, or fails.
pub fn visit(url: &str, look: Look) -> anyhow::Result<Visit> {
    let folder = tempfile::tempdir().context("can't make a temporary folder")?;
    let log = folder.path().join("net.json");
    let budget = format!("--virtual-time-budget={}", look.for_ms);
    let net = format!("--log-net-log={}", log.display());
    let (dom, said) =
        run(folder.path(), look, &["--enable-logging=stderr", &net, &budget, "--dump-dom", url])?;
    let console = said.lines().filter(|line| line.contains(":CONSOLE:")).map(str::to_owned).collect();
    let text = fs::read_to_string(&log).with_context(|| format!("can't read {}", log.display()))?;
    let log: Value = serde_json::from_str(&text).context("the browser's network log is no JSON")?;
    let mut asked: Vec<String> = log["events"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|event| event["params"]["url"].as_str().map(str::to_owned))
        .collect();
    asked.sort();
    asked.dedup();
    Ok(Visit { dom, console, asked })
}

/// Opens `url` and leaves what would be printed at `to`, as PDF.
///
/// # Errors
/// When the browser can't be run, or fails.
pub fn print(url: &str, to: &Path) -> anyhow::Result<()> {
    let folder = tempfile::tempdir().context("can't make a temporary folder")?;
    let to = format!("--print-to-pdf={}", to.display());
    run(folder.path(), Look::default(), &["--virtual-time-budget=2000", &to, url]).map(drop)
}

/// Opens `url` and leaves a picture at `to`, as PNG, of so many pixels' height.
///
/// # Errors
/// When the browser can't be run, or fails.
pub fn photograph(url: &str, look: Look, height: u32, to: &Path) -> anyhow::Result<()> {
    let folder = tempfile::tempdir().context("can't make a temporary folder")?;
    let (size, to) =
        (format!("--window-size={},{height}", look.width), format!("--screenshot={}", to.display()));
    run(folder.path(), look, &["--hide-scrollbars", "--virtual-time-budget=2000", &size, &to, url]).map(drop)
}

fn run(home: &Path, look: Look, arguments: &[&str]) -> anyhow::Result<(String, String)> {
    let mut command = Command::new(PROGRAM);
    command
        // Its sandbox is not for root.
        .args(["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--timeout=60000"])
        .arg(format!("--user-data-dir={}", home.display()))
        .arg(format!("--window-size={},1000", look.width))
        .args(look.dark.then_some("--blink-settings=preferredColorScheme=0"))
        .args(arguments)
        .stdin(Stdio::null());
    let output = command.output().with_context(|| format!("can't run {PROGRAM}"))?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    if !output.status.success() {
        bail!("{command:?} failed: {said}");
    }
    Ok((String::from_utf8_lossy(&output.stdout).into_owned(), said))
}
