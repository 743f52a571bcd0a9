//! `cargo xtask`: sets up everything, then runs the demo, the tests, the benchmarks, or a cluster to work with by hand.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
};

use anyhow::{Context as _, bail};
use clap::{Parser, Subcommand};
use spillway_tests::{
    bench, chaos,
    cluster::{self, Cluster, forward, node, registry, serverless, signals},
    components, conformance, demo, fuzz, repository, target, vm,
};

/// Spillway's development tasks. All but `cluster status` and `fuzz` need root.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", version, disable_help_subcommand = true)]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Run the main job on a hybrid pool of real Kubernetes: set up, run, report, leave nothing behind.
    Demo(demo::DemoOptions),
    /// Run every check: format, lints, unit, integration and end-to-end tests.
    Test {
        /// Only end-to-end tests whose name contains this; skips the other checks.
        filter: Option<String>,
        /// In a virtual machine with cgroup v2 alone and two NUMA nodes: what depends on these, or end-to-end tests by the filter.
        /// `kernel` is what needs no cluster; it runs on cgroup v1 alone, too, and is a part of a run of every check.
        #[arg(long)]
        vm: bool,
    },
    /// Run Kubernetes' own tests, with every test pod on the virtual node or on the kubelet beside it.
    Conformance(conformance::ConformanceOptions),
    /// Random faults over a churn of pods on the virtual node: nothing may be lost, doubled or left over.
    Chaos(chaos::ChaosOptions),
    /// Start, end or poke a cluster by hand.
    Cluster {
        #[command(subcommand)]
        action: ClusterAction,
    },
    /// Measure.
    Bench {
        #[command(subcommand)]
        bench: bench::Bench,
    },
    /// Feed the parsers of foreign bytes with whatever reaches something new in them.
    Fuzz(fuzz::FuzzOptions),
    #[command(name = forward::SUBCOMMAND, hide = true)]
    Forward { first: i32, target: SocketAddr },
}

#[derive(Subcommand)]
enum ClusterAction {
    /// Start a cluster that stays until `down`.
    Up {
        /// How many dedicated nodes.
        #[arg(long, default_value_t = 1)]
        dedicated: u32,
        /// How many serverless runtimes, each with a virtual node.
        #[arg(long = "virtual", default_value_t = 1)]
        virtual_nodes: u32,
        /// How many GPUs the NVML stand-in of each dedicated node shows.
        #[arg(long, default_value_t = 2)]
        gpus: u32,
        /// How many FPGAs the sysfs stand-in of each dedicated node shows.
        #[arg(long, default_value_t = 1)]
        fpgas: u32,
        /// Start no spillway-vk: its serverless runtime waits for one started by hand.
        #[arg(long)]
        no_vk: bool,
        /// Build nothing: take the programs as they are.
        #[arg(long)]
        no_build: bool,
    },
    /// End one cluster, or all that `up` and `demo --keep` left.
    Down {
        /// The cluster's ID, as `status` shows it.
        id: Option<String>,
    },
    /// List clusters, their machines and components.
    Status,
    /// Run a command on a machine.
    Exec {
        /// The machine, as `status` shows it.
        machine: String,
        /// The command; a shell when empty.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<String>,
        /// The cluster's ID, when there are several.
        #[arg(long)]
        id: Option<String>,
    },
    /// Start, end, kill, freeze or thaw a component.
    Component {
        /// What to do with it.
        #[arg(value_enum)]
        action: ComponentAction,
        /// The machine, as `status` shows it.
        machine: String,
        /// The component, as `status` shows it.
        component: String,
        /// The cluster's ID, when there are several.
        #[arg(long)]
        id: Option<String>,
    },
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum ComponentAction {
    Start,
    Stop,
    Kill,
    Restart,
    Pause,
    Resume,
}

fn main() -> ExitCode {
    match run(Arguments::parse().task) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(task: Task) -> anyhow::Result<()> {
    if let Task::Forward { first, target } = task {
        return forward::run(first, target);
    }
    signals::end_clusters_on_signal()?;
    match task {
        Task::Demo(options) => {
            set_up()?;
            demo::run(&options)
        }
        Task::Test { filter, vm: false } => test(filter.as_deref()),
        Task::Test { filter, vm: true } => {
            if filter.as_deref().is_none_or(|filter| filter == vm::KERNEL) {
                vm::run_kernel(&build_test("spillway-agent", vm::KERNEL)?)?;
            }
            if filter.as_deref() == Some(vm::KERNEL) {
                return Ok(());
            }
            set_up()?;
            vm::run(&build_test("spillway-tests", "e2e")?, filter.as_deref())
        }
        Task::Conformance(options) => {
            set_up()?;
            conformance::run(&options)
        }
        Task::Chaos(options) => {
            set_up()?;
            chaos::run(&options)
        }
        Task::Cluster { action } => by_hand(action),
        Task::Fuzz(options) => fuzz::run(&options),
        Task::Bench { bench } => {
            let binaries = cluster::current_binaries()?;
            if matches!(bench, bench::Bench::DevicePlugin(_)) {
                let packages = ["spillway-agent", "spillway-plugin-bench", "spillway-standin-nvml"];
                return bench::run(&bench, &release_build(&binaries, &packages)?);
            }
            if matches!(bench, bench::Bench::Capacity(_)) {
                return bench::run(&bench, &release_build(&binaries, &["kubectl-spillway"])?);
            }
            set_up()?;
            if matches!(&bench, bench::Bench::VirtualNode(options) if !options.unoptimised) {
                return bench::run(&bench, &release_build(&binaries, &["spillway-vk"])?);
            }
            bench::run(&bench, &binaries)
        }
        Task::Forward { .. } => Ok(()),
    }
}

/// Components and packages, then this repository's programs.
fn set_up() -> anyhow::Result<()> {
    components::ensure()?;
    eprintln!("building the programs of this repository");
    cargo(&[
        "build",
        "--package",
        "spillway-agent",
        "--package",
        "spillway-vk",
        "--package",
        "spillway-tiles",
        "--package",
        "spillway-standin-nvml",
        "--package",
        "kubectl-spillway",
    ])
}

/// What is measured, built with optimisation; the folder it is in.
fn release_build(binaries: &Path, packages: &[&str]) -> anyhow::Result<PathBuf> {
    eprintln!("building {} with optimisation", packages.join(", "));
    let packages = packages.iter().flat_map(|package| ["--package", package]);
    cargo(&["build", "--release"].into_iter().chain(packages).collect::<Vec<_>>())?;
    Ok(binaries.with_file_name("release"))
}

fn cargo(arguments: &[&str]) -> anyhow::Result<()> {
    cargo_with(arguments, &[])
}

fn cargo_with(arguments: &[&str], environment: &[(&str, &str)]) -> anyhow::Result<()> {
    let status = cargo_command(arguments).envs(environment.iter().copied()).status();
    if !status.context("can't run cargo")?.success() {
        bail!("`cargo {}` failed", arguments.join(" "));
    }
    Ok(())
}

fn cargo_command(arguments: &[&str]) -> Command {
    let program = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(program);
    // What `cargo run` told us about our own package is no business of other packages' build scripts: some (ring's) would run again
    // at each change between us and a cargo of the user's, and all that depends on them with it.
    for (name, _) in std::env::vars_os() {
        if name
            .to_str()
            .is_some_and(|name| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_"))
        {
            command.env_remove(&name);
        }
    }
    command.args(arguments).current_dir(spillway_tests::repository());
    command
}

fn test(filter: Option<&str>) -> anyhow::Result<()> {
    set_up()?;
    if filter.is_none() {
        components::ensure_peer()?;
        components::ensure_conformance()?;
        components::ensure_metrics_server()?;
        components::ensure_prometheus()?;
    }
    if filter.is_none() {
        eprintln!("checking format and lints");
        cargo(&["fmt", "--all", "--check"])?;
        cargo(&["clippy", "--workspace", "--all-targets", "--quiet", "--", "-D", "warnings"])?;
        // A workspace of its own, with this one's compiled dependencies.
        let (fuzz, target) = (repository().join("tests/fuzz/Cargo.toml"), target());
        let [fuzz, target] = [&fuzz, &target].map(|path| path.to_string_lossy());
        cargo(&[
            "clippy",
            "--manifest-path",
            &fuzz,
            "--target-dir",
            &target,
            "--locked",
            "--quiet",
            "--",
            "-D",
            "warnings",
        ])?;
        eprintln!("running unit and integration tests");
        cargo(&["test", "--workspace", "--exclude", "spillway-tests"])?;
        cargo(&["test", "--package", "spillway-tests", "--lib", "--bins"])?;
        eprintln!("running isolation's tests in virtual machines, with cgroup v2 alone and with v1 alone");
        vm::run_kernel(&build_test("spillway-agent", vm::KERNEL)?)?;
    }
    eprintln!("running end-to-end tests on real clusters");
    let arguments = ["test", "--package", "spillway-tests", "--test", "e2e", "--"];
    let arguments: Vec<&str> = arguments.into_iter().chain(filter).collect();
    cargo_with(&arguments, &[(spillway_tests::CLUSTER_TESTS, "1")])
}

/// Builds a test program and tells where it is.
fn build_test(package: &str, name: &str) -> anyhow::Result<PathBuf> {
    let arguments = ["test", "--package", package, "--test", name, "--no-run"];
    let output = cargo_command(&arguments)
        .arg("--message-format=json-render-diagnostics")
        .stderr(Stdio::inherit())
        .output()
        .context("can't run cargo")?;
    if !output.status.success() {
        bail!("`cargo {}` failed", arguments.join(" "));
    }
    let messages = String::from_utf8_lossy(&output.stdout);
    messages
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .find(|message| message["target"]["name"] == name && message["executable"].is_string())
        .and_then(|message| message["executable"].as_str().map(PathBuf::from))
        .with_context(|| format!("cargo does not say where the test {name} is"))
}

fn by_hand(action: ClusterAction) -> anyhow::Result<()> {
    match action {
        ClusterAction::Up { dedicated, virtual_nodes, gpus, fpgas, no_vk, no_build } => {
            if !no_build {
                set_up()?;
            }
            let cluster = Cluster::up(&cluster::Options {
                nodes: (1..=dedicated)
                    .map(|n| node::Options { gpus, fpgas, ..node::Options::named(&format!("dedicated-{n}")) })
                    .collect(),
                serverless: (1..=virtual_nodes)
                    .map(|n| serverless::Options {
                        start_vk: !no_vk,
                        ..serverless::Options::named(&format!("virtual-{n}"))
                    })
                    .collect(),
                keep: true,
                ..cluster::Options::default()
            })?;
            println!("{}", cluster.usage());
        }
        ClusterAction::Down { id } => {
            let mut ended = 0;
            for record in registry::all()? {
                if id.as_ref().map_or(record.keep || !record.owner.alive(), |id| *id == record.id) {
                    registry::end(&record)?;
                    println!("ended {}", record.id);
                    ended += 1;
                }
            }
            match id {
                Some(id) if ended == 0 => {
                    bail!("there is no cluster {id}; `cargo xtask cluster status` lists them")
                }
                _ if ended == 0 => println!("no cluster is kept"),
                _ => {}
            }
        }
        ClusterAction::Status => status()?,
        ClusterAction::Exec { machine, command, id } => {
            let machine = Cluster::attach(id.as_deref())?.machine(&machine)?;
            let shell = ["/bin/bash".to_owned()];
            let command = if command.is_empty() { &shell[..] } else { &command[..] };
            // nsenter keeps the terminal, which a session of the command's own would lose.
            let status = Command::new("nsenter")
                .args([
                    "--target",
                    &machine.first.pid.to_string(),
                    "--mount",
                    "--uts",
                    "--ipc",
                    "--net",
                    "--pid",
                    "--",
                ])
                .args(["env", "PATH=/opt/spillway/bin:/usr/sbin:/usr/bin:/sbin:/bin"])
                .args(command)
                .status()
                .context("can't run nsenter")?;
            if !status.success() {
                bail!("`{}` on {} ended with {status}", command.join(" "), machine.name);
            }
        }
        ClusterAction::Component { action, machine, component, id } => {
            let cluster = Cluster::attach(id.as_deref())?;
            match action {
                ComponentAction::Start => cluster.start(&machine, &component),
                ComponentAction::Stop => cluster.stop(&machine, &component),
                ComponentAction::Kill => cluster.kill(&machine, &component),
                ComponentAction::Restart => cluster.restart(&machine, &component),
                ComponentAction::Pause => cluster.pause(&machine, &component),
                ComponentAction::Resume => cluster.resume(&machine, &component),
            }?;
        }
    }
    Ok(())
}

fn status() -> anyhow::Result<()> {
    let records = registry::all()?;
    if records.is_empty() {
        println!("no cluster is running");
    }
    for record in records {
        let state = match (record.running(), record.keep) {
            (false, _) => "has ended; the next run sweeps it",
            (true, true) => "kept until `cluster down`",
            (true, false) => "ends with its owner",
        };
        println!("{} {state}; export KUBECONFIG={}", record.id, record.kubeconfig().display());
        for machine in &record.machines {
            println!("  {} (first process {})", machine.name, machine.first.pid);
            for process in record.processes.iter().filter(|process| process.machine == machine.name) {
                let state = match process.id {
                    Some(id) if id.alive() => format!("runs as {}", id.pid),
                    Some(_) => "has ended".to_owned(),
                    None => "was not started".to_owned(),
                };
                println!("    {:24} {state}", process.name);
            }
        }
    }
    Ok(())
}
