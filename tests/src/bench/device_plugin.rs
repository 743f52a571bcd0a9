//! The agent's device plugins, without a cluster: how fast they answer beside a bare server, how soon they are there, what they cost. The
//! measuring is `spillway-plugin-bench`'s, which like the agent is built with optimisation; the kubelet and the GPUs are stand-ins.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, bail};
use serde_json::{Value, json};

use crate::standin::{self, GpuStandin, MigStandin};

const RESOURCE: &str = "nvidia.com/gpu";
/// A machine that is partitioned and shared as far as that goes: 8 GPUs of 7 MIG devices, each with 10 replicas.
const FULL: Case = Case { gpus: 8, migs: 7, replicas: 10, size: 2, sickened: 3 };
/// What no machine has, but what a choice must be quick for: whole GPUs.
const MANY: Case = Case { gpus: 64, migs: 0, replicas: 1, size: 8, sickened: 0 };
/// The smallest MIG device, and the number of the first one's GPU instance, as NVIDIA's driver counts.
const PROFILE: &str = "1g.5gb";
const FIRST_INSTANCE: u32 = 7;

/// A machine, and what is asked of it.
#[derive(Debug, Clone, Copy)]
struct Case {
    gpus: u32,
    /// MIG devices of each GPU; with none they are whole.
    migs: u32,
    /// Shares of each device.
    replicas: u32,
    /// How many devices a container asks for.
    size: u32,
    /// GPUs whose sickening is timed; the others stay for the calls.
    sickened: u32,
}

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
    let full = measure(binaries, FULL, options)?;
    let many = measure(binaries, MANY, &Options { idle_seconds: 1, ..options.clone() })?;
    let opens = json_of(Command::new(binaries.join("spillway-plugin-bench")).arg("opens"))?;
    let number = |found: &Value, path: &str| {
        found.pointer(path).and_then(Value::as_f64).with_context(|| format!("{path} was not measured"))
    };
    let ratio = |call: &str, percentile: &str| -> anyhow::Result<f64> {
        let ours = number(&full, &format!("/{call}/{percentile}_us"))?;
        Ok(ours / number(&full, &format!("/{call}_echo/{percentile}_us"))?)
    };
    let figures = json!({
        "allocate_p50_over_echo": ratio("allocate", "p50")?,
        "allocate_p99_over_echo": ratio("allocate", "p99")?,
        "registered_s": number(&full, "/registered_s")?,
        "reregistered_s": number(&full, "/reregistered_s")?,
        "unhealthy_s": number(&full, "/unhealthy_s")?,
        "rss_mib": number(&full, "/rss_mib")?,
        "idle_cpu_percent": number(&full, "/idle_cpu_percent")?,
        "preferred_ms": number(&many, "/preferred/p50_us")? / 1000.0,
        "open_overhead_ns": number(&opens, "/allowed/overhead_ns")?,
    });
    let Case { gpus, migs, replicas, .. } = FULL;
    println!(
        "Device plugins of spillway-agent, {gpus} stand-in GPUs x {migs} MIG devices x {replicas} replicas, {} calls of each kind\n",
        options.calls
    );
    println!("  {:42}{:>10}   goal", "", "measured");
    let rows = [
        ("Allocate, p50, times a bare server's", ratio("allocate", "p50")?, "<= 1.5"),
        ("Allocate, p99, times a bare server's", ratio("allocate", "p99")?, "<= 1.5"),
        ("GetPreferredAllocation, p50, the same", ratio("preferred", "p50")?, "<= 1.5"),
        ("GetPreferredAllocation, p99, the same", ratio("preferred", "p99")?, "<= 1.5"),
        ("start until all devices are listed, s", number(&full, "/registered_s")?, ""),
        ("the same after a kubelet restart, s", number(&full, "/reregistered_s")?, "< 1"),
        ("XID until the kubelet knows, longest, s", number(&full, "/unhealthy_s")?, "< 1"),
        ("resident memory, MiB", number(&full, "/rss_mib")?, "<= 10"),
        ("  of it anonymous: heap, stacks", number(&full, "/anonymous_mib")?, ""),
        ("  of it the program's file", number(&full, "/program_mib")?, ""),
        ("  of it libraries' files", number(&full, "/libraries_mib")?, ""),
        ("CPU while idle, % of one", number(&full, "/idle_cpu_percent")?, "< 0.1"),
        ("  of it inside the stand-in of NVML", number(&full, "/standin_cpu_percent")?, ""),
        ("preference, 8 of 64, over the socket, ms", number(&many, "/preferred/p50_us")? / 1000.0, "< 1"),
        ("isolation, per open of an own device, ns", number(&opens, "/allowed/overhead_ns")?, ""),
        ("  times an open without", number(&opens, "/allowed/ratio")?, ""),
        ("isolation, per open of another node, ns", number(&opens, "/unprotected/overhead_ns")?, ""),
        ("  times an open without", number(&opens, "/unprotected/ratio")?, ""),
    ];
    for (what, measured, goal) in rows {
        println!("  {what:42}{measured:>10.3}   {goal}");
    }
    for call in ["allocate", "allocate_echo", "preferred", "preferred_echo"] {
        let (p50, p99) =
            (number(&full, &format!("/{call}/p50_us"))?, number(&full, &format!("/{call}/p99_us"))?);
        println!("  {call:42}{p50:>10.0}{p99:>10.0}   microseconds, p50 and p99");
    }
    if let Some(path) = &options.json {
        fs::write(path, format!("{figures:#}\n"))
            .with_context(|| format!("can't write {}", path.display()))?;
    }
    Ok(())
}

/// One agent on a machine that is a folder.
fn measure(binaries: &Path, case: Case, options: &Options) -> anyhow::Result<Value> {
    let Case { gpus, migs, replicas, size, sickened } = case;
    let base = tempfile::tempdir()?;
    let path = |name: &str| base.path().join(name);
    standin::install(base.path(), binaries, gpus, 0)?;
    let mut nodes = standin::device_nodes(gpus, 0);
    if migs > 0 {
        let layout: Vec<_> =
            (0..migs).map(|number| MigStandin::new(FIRST_INSTANCE + number, PROFILE)).collect();
        for gpu in 0..gpus {
            GpuStandin::at(base.path()).set_mig(gpu, &layout)?;
            nodes.extend(layout.iter().flat_map(|mig| mig.device_nodes(gpu)));
        }
    }
    for (node, ..) in nodes {
        // The agent looks only whether it is there.
        let node = base.path().join(node.trim_start_matches('/'));
        fs::create_dir_all(node.parent().unwrap_or(base.path()))?;
        fs::write(node, "")?;
    }
    let spent = GpuStandin::at(base.path()).count_time()?;
    let (plugins, config) = (path("device-plugins"), path("config.yaml"));
    fs::create_dir_all(&plugins)?;
    fs::write(&config, configuration(replicas))?;
    let argument = |name: &str, path: &Path| [format!("--{name}"), path.display().to_string()];
    let mut measuring = Command::new(binaries.join("spillway-plugin-bench"));
    measuring
        .arg("measure")
        .args(argument("folder", &plugins))
        .args(argument("spent", &spent))
        .args(["--resource", RESOURCE, "--devices", &(gpus * migs.max(1) * replicas).to_string()])
        .args(["--size", &size.to_string(), "--calls", &options.calls.to_string()])
        .args(["--idle-seconds", &options.idle_seconds.to_string()]);
    for minor in (gpus - sickened)..gpus {
        let (file, line) = (GpuStandin::at(base.path()).xids(), GpuStandin::xid_line(minor, 79));
        measuring.args(["--sicken", &format!("{}={line}", file.display())]);
    }
    measuring
        .arg("--")
        .arg(binaries.join("spillway-agent"))
        // Any port: somebody may be using the usual one.
        .args(["--admin-address", "127.0.0.1:0"])
        .args(argument("config", &config))
        .args(argument("device-plugin-dir", &plugins))
        .args(argument("nvidia-driver-root", &path("driver")))
        .args(argument("sys-root", &path("sys")))
        .args(argument("dev-root", &path("dev")))
        .args(argument("proc-root", &path("proc")))
        .args(argument("pod-logs-dir", &path("pods")))
        // Neither is there: this machine's own cgroups are left alone.
        .args(argument("bpf-dir", &path("bpf")))
        .args(argument("cgroup-dir", &path("cgroup")));
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

/// MIG devices are called as GPUs are, and shared.
fn configuration(replicas: u32) -> String {
    let shared =
        format!("sharing: {{timeSlicing: {{resources: [{{name: {RESOURCE}, replicas: {replicas}}}]}}}}\n");
    let flags = "version: v1\nflags: {migStrategy: single}\n";
    if replicas > 1 { format!("{flags}{shared}") } else { flags.to_owned() }
}
