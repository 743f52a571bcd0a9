//! The agent's device plugins, without a cluster: how fast they answer beside a bare server, how soon they are there, what they cost. The
//! measuring is `spillway-plugin-bench`'s, which like the agent is built with optimisation; the kubelet and the GPUs are stand-ins.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, bail};
use serde_json::{Value, json};

use crate::standin::{self, GpuStandin};

const RESOURCE: &str = "nvidia.com/gpu";
const GPUS: u32 = 8;
/// GPUs whose sickening is timed; the others stay for the calls.
const SICKENED: u32 = 3;
/// What no machine has, but what a choice must be quick for.
const MANY_GPUS: u32 = 64;
const CHOSEN: u32 = 8;

/// How it is measured.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Write the figures to this file, too, as one JSON object.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Calls of each kind.
    #[arg(long, default_value_t = 5000)]
    calls: u32,
    /// How long to look at the idle agent, in seconds.
    #[arg(long, default_value_t = 30)]
    idle_seconds: u32,
}

/// Measures with the programs in `binaries`, and prints a table.
///
/// # Errors
/// When something can't be started or measured.
pub fn run(options: &Options, binaries: &Path) -> anyhow::Result<()> {
    let usual = measure(binaries, GPUS, 2, SICKENED, options)?;
    let many = measure(binaries, MANY_GPUS, CHOSEN, 0, &Options { idle_seconds: 1, ..options.clone() })?;
    let opens = json_of(Command::new(binaries.join("spillway-plugin-bench")).arg("opens"))?;
    let number = |found: &Value, path: &str| {
        found.pointer(path).and_then(Value::as_f64).with_context(|| format!("{path} was not measured"))
    };
    let ratio = |call: &str, percentile: &str| -> anyhow::Result<f64> {
        let ours = number(&usual, &format!("/{call}/{percentile}_us"))?;
        Ok(ours / number(&usual, &format!("/{call}_echo/{percentile}_us"))?)
    };
    let figures = json!({
        "allocate_p50_over_echo": ratio("allocate", "p50")?,
        "allocate_p99_over_echo": ratio("allocate", "p99")?,
        "preferred_p50_over_echo": ratio("preferred", "p50")?,
        "preferred_p99_over_echo": ratio("preferred", "p99")?,
        "registered_s": number(&usual, "/registered_s")?,
        "reregistered_s": number(&usual, "/reregistered_s")?,
        "unhealthy_s": number(&usual, "/unhealthy_s")?,
        "rss_mib": number(&usual, "/rss_mib")?,
        "idle_cpu_percent": number(&usual, "/idle_cpu_percent")?,
        "preferred_ms": number(&many, "/preferred/p50_us")? / 1000.0,
        "open_overhead_ns": number(&opens, "/allowed/overhead_ns")?,
        "open_over_none": number(&opens, "/allowed/ratio")?,
        "open_unprotected_overhead_ns": number(&opens, "/unprotected/overhead_ns")?,
        "open_unprotected_over_none": number(&opens, "/unprotected/ratio")?,
    });
    println!(
        "Device plugins of spillway-agent, {GPUS} stand-in GPUs, {} calls of each kind\n",
        options.calls
    );
    let rows = [
        ("Allocate, p50, times a bare server's", "allocate_p50_over_echo", "<= 1.5"),
        ("Allocate, p99, times a bare server's", "allocate_p99_over_echo", "<= 1.5"),
        ("GetPreferredAllocation, p50, the same", "preferred_p50_over_echo", "<= 1.5"),
        ("GetPreferredAllocation, p99, the same", "preferred_p99_over_echo", "<= 1.5"),
        ("start until all devices are listed, s", "registered_s", ""),
        ("the same after a kubelet restart, s", "reregistered_s", "< 1"),
        ("XID until the kubelet knows, longest, s", "unhealthy_s", "< 1"),
        ("resident memory, MiB", "rss_mib", "<= 10"),
        ("CPU while idle, % of one", "idle_cpu_percent", "< 0.1"),
        ("preference, 8 of 64, over the socket, ms", "preferred_ms", "< 1"),
        ("isolation, per open of an own device, ns", "open_overhead_ns", ""),
        ("the same, times an open without", "open_over_none", ""),
        ("isolation, per open of another node, ns", "open_unprotected_overhead_ns", ""),
        ("the same, times an open without", "open_unprotected_over_none", ""),
    ];
    println!("  {:42}{:>10}   goal", "", "measured");
    for (what, key, goal) in rows {
        println!("  {what:42}{:>10.3}   {goal}", number(&figures, &format!("/{key}"))?);
    }
    for call in ["allocate", "allocate_echo", "preferred", "preferred_echo"] {
        let (p50, p99) =
            (number(&usual, &format!("/{call}/p50_us"))?, number(&usual, &format!("/{call}/p99_us"))?);
        println!("  {call:42}{p50:>10.0}{p99:>10.0}   microseconds, p50 and p99");
    }
    if let Some(path) = &options.json {
        fs::write(path, format!("{figures:#}\n"))
            .with_context(|| format!("can't write {}", path.display()))?;
    }
    Ok(())
}

/// One agent on a machine that is a folder.
fn measure(binaries: &Path, gpus: u32, size: u32, sickened: u32, options: &Options) -> anyhow::Result<Value> {
    let base = tempfile::tempdir()?;
    let path = |name: &str| base.path().join(name);
    standin::install(base.path(), binaries, gpus, 0)?;
    let plugins = path("device-plugins");
    fs::create_dir_all(&plugins)?;
    for (node, ..) in standin::device_nodes(gpus, 0) {
        // The agent looks only whether it is there.
        let node = base.path().join(node.trim_start_matches('/'));
        fs::create_dir_all(node.parent().unwrap_or(base.path()))?;
        fs::write(node, "")?;
    }
    let argument = |name: &str, path: &Path| [format!("--{name}"), path.display().to_string()];
    let mut measuring = Command::new(binaries.join("spillway-plugin-bench"));
    measuring
        .arg("measure")
        .args(argument("folder", &plugins))
        .args(["--resource", RESOURCE, "--devices", &gpus.to_string(), "--size", &size.to_string()])
        .args(["--calls", &options.calls.to_string(), "--idle-seconds", &options.idle_seconds.to_string()]);
    for minor in (gpus - sickened)..gpus {
        let (file, line) = (GpuStandin::at(base.path()).xids(), GpuStandin::xid_line(minor, 79));
        measuring.args(["--sicken", &format!("{}={line}", file.display())]);
    }
    measuring
        .arg("--")
        .arg(binaries.join("spillway-agent"))
        .args(["--admin-address", "off"])
        .args(argument("device-plugin-dir", &plugins))
        .args(argument("nvidia-driver-root", &path("driver")))
        .args(argument("sys-root", &path("sys")))
        .args(argument("dev-root", &path("dev")));
    json_of(&mut measuring)
}

/// Runs spillway-plugin-bench, and gives what it found.
fn json_of(measuring: &mut Command) -> anyhow::Result<Value> {
    let output = measuring.output().context("can't run spillway-plugin-bench")?;
    if !output.status.success() {
        bail!("measuring failed: {}", String::from_utf8_lossy(&output.stderr));
    }
    serde_json::from_slice(&output.stdout).context("spillway-plugin-bench printed no JSON")
}
