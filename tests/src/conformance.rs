//! Kubernetes' own end-to-end tests, unmodified, with every test pod on the virtual node, or on the real kubelet beside it: the same
//! cluster, images and network, so that what fails on both is this machine's fault.
//!
//! Which tests may fail on the virtual node, and why, is `tests/cluster/conformance/exceptions.yaml`.

pub mod exceptions;
pub mod report;

use std::{
    fs::{self, File},
    io::Write as _,
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};

use self::{exceptions::Exceptions, report::Outcome};
use crate::{
    cluster::{Cluster, Options, control_plane, machine::Machine, node, serverless},
    components, image,
};

const REAL: &str = "dedicated-1";
const VIRTUAL: &str = "virtual-1";

/// Key and effect of the taint by which the suite knows a node that it must leave alone.
pub const KEEP_OFF: (&str, &str) = ("node-role.kubernetes.io/control-plane", "NoSchedule");
/// Which tests run unless told otherwise.
const NODE_CONFORMANCE: &str = r"\[NodeConformance\]";

/// Tests that want the cluster for themselves, break it, or take many minutes each.
const NEVER: &str = r"\[(Serial|Disruptive|Slow)\]";

/// Where the test pods go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Target {
    /// The virtual node.
    Virtual,
    /// The kubelet's.
    Real,
}

impl Target {
    fn name(self) -> &'static str {
        match self {
            Self::Virtual => "virtual",
            Self::Real => "real",
        }
    }

    /// Its node, and the other one.
    fn nodes(self) -> (&'static str, &'static str) {
        match self {
            Self::Virtual => (VIRTUAL, REAL),
            Self::Real => (REAL, VIRTUAL),
        }
    }
}

/// What the user chose.
#[derive(Debug, Clone, clap::Args)]
pub struct ConformanceOptions {
    /// The node that every test pod goes to.
    #[arg(long, value_enum, default_value = "virtual")]
    pub node: Target,
    /// Run tests whose name matches one of these regular expressions.
    #[arg(long, value_name = "REGEX", default_value = NODE_CONFORMANCE)]
    pub focus: Vec<String>,
    /// Leave out tests whose name matches one of these, besides those that are [Serial], [Disruptive] or [Slow].
    #[arg(long, value_name = "REGEX")]
    pub skip: Vec<String>,
    /// How many tests run at once; most of their time they wait.
    #[arg(long, default_value_t = 14, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub procs: u32,
    /// Write a table of the last runs on either node to this file, as Markdown.
    #[arg(long, value_name = "FILE")]
    pub table: Option<PathBuf>,
    /// Leave the cluster up, and say how to use it.
    #[arg(long)]
    pub keep: bool,
}

impl ConformanceOptions {
    /// The defaults, on this node.
    pub fn on(node: Target) -> Self {
        let focus = vec![NODE_CONFORMANCE.to_owned()];
        Self { node, focus, skip: Vec::new(), procs: 14, table: None, keep: false }
    }
}

/// Starts a cluster, runs the tests, says what failed, and ends the cluster.
///
/// # Errors
/// When something can't be started, or a test failed that is no exception.
pub fn run(options: &ConformanceOptions) -> anyhow::Result<()> {
    let source = components::ensure_conformance()?;
    let exceptions = Exceptions::read()?;
    let (components, out) = (components::folder(), crate::target().join("images"));
    let mut images = image::kubernetes::build(&source, &components, &out)?;
    if options.focus.iter().any(|focus| focus != NODE_CONFORMANCE) {
        images.extend(image::kubernetes::build_more(&source, &components, &out)?);
    }
    let cluster = Cluster::up(&Options {
        nodes: vec![node::Options { gpus: 0, fpgas: 0, ..node::Options::named(REAL) }],
        serverless: vec![serverless::Options { taint: false, ..serverless::Options::named(VIRTUAL) }],
        images,
        keep: options.keep,
        ..Options::default()
    })?;
    let outcome = on(&cluster, options, &exceptions);
    let ended = if options.keep {
        println!("\n{}", cluster.usage());
        Ok(())
    } else {
        cluster.down()
    };
    outcome.and(ended)
}

/// Runs the tests on a cluster of one real and one virtual node that has the images.
///
/// # Errors
/// When the suite can't be run, or a test failed that is no exception.
pub fn on(cluster: &Cluster, options: &ConformanceOptions, exceptions: &Exceptions) -> anyhow::Result<()> {
    let (_, other) = options.node.nodes();
    let (key, effect) = KEEP_OFF;
    cluster.kubectl(&["taint", "node", other, &format!("{key}=:{effect}")])?;
    let folder = crate::target().join("conformance").join(options.node.name());
    fs::create_dir_all(&folder).with_context(|| format!("can't create {}", folder.display()))?;
    let began = Instant::now();
    let finished = suite(cluster, options, &folder)?;
    let outcome = Outcome::read(&folder.join(report::FILE)).with_context(|| {
        format!(
            "the suite ended with {finished} and left no report; its output is {}",
            folder.join("output.log").display()
        )
    })?;
    let verdict = outcome.judge(options.node, exceptions);
    println!("{}", outcome.summary(options.node, began.elapsed(), &verdict));
    if let Some(file) = &options.table {
        let table = report::table(&crate::target().join("conformance"), exceptions)?;
        fs::write(file, table).with_context(|| format!("can't write {}", file.display()))?;
    }
    if outcome.passed() == 0 {
        bail!("no test passed; the suite's output is {}", folder.join("output.log").display());
    }
    if !verdict.unexpected.is_empty() {
        bail!(
            "{} of Kubernetes' tests failed on the {} node; the suite's output is {}",
            verdict.unexpected.len(),
            options.node.name(),
            folder.join("output.log").display()
        );
    }
    Ok(())
}

/// Runs the suite on the control plane's machine, from where every pod and node is reached.
fn suite(cluster: &Cluster, options: &ConformanceOptions, folder: &Path) -> anyhow::Result<String> {
    let machine = cluster.machine(control_plane::MACHINE)?;
    let mut command = Machine::command("ginkgo");
    command.args([
        format!("--procs={}", options.procs),
        "--timeout=90m".to_owned(),
        "--no-color".to_owned(),
        "--output-dir=/tmp".to_owned(),
        format!("--json-report={}", report::FILE),
        format!("--skip={NEVER}"),
    ]);
    command.args(options.focus.iter().map(|focus| format!("--focus={focus}")));
    command.args(options.skip.iter().map(|skip| format!("--skip={skip}")));
    command.args(["/opt/spillway/bin/e2e.test", "--"]);
    command.args([
        &format!("--kubeconfig={}", control_plane::ADMIN_CONF),
        "--provider=skeleton",
        "--kubectl-path=/opt/spillway/bin/kubectl",
        // The other node is one that the suite leaves alone: this one must be Ready after each test.
        "--allowed-not-ready-nodes=0",
        "--dump-logs-on-failure=true",
    ]);
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    let log = folder.join("output.log");
    let mut output = File::create(&log).with_context(|| format!("can't create {}", log.display()))?;
    command.stderr(output.try_clone()?);
    let (under_test, _) = options.node.nodes();
    cluster.say(&format!("running Kubernetes' tests on {under_test}; their output is {}", log.display()));
    let mut child = machine.spawn(command)?;
    let stdout = child.stdout.take().context("the suite has no standard output")?;
    follow(cluster, stdout, &mut output)?;
    let status = child.wait().context("can't wait for the suite")?;
    let report = folder.join(report::FILE);
    let _ = fs::remove_file(&report);
    let _ = fs::copy(machine.live_path("/tmp").join(report::FILE), &report);
    Ok(status.to_string())
}

/// Copies the suite's output into its log and tells each half minute how far it is: a bullet is a finished test.
fn follow(cluster: &Cluster, mut stdout: impl std::io::Read, log: &mut File) -> anyhow::Result<()> {
    let (mut finished, mut failed, mut shown) = (0, 0, Instant::now());
    let mut buffer = [0; 1 << 14];
    loop {
        let length = stdout.read(&mut buffer).context("can't read the suite's output")?;
        if length == 0 {
            return Ok(());
        }
        let text = String::from_utf8_lossy(&buffer[..length]);
        finished += text.matches('•').count();
        failed += text.matches("• [FAILED]").count();
        log.write_all(&buffer[..length]).context("can't write the suite's log")?;
        if shown.elapsed() > Duration::from_secs(30) {
            shown = Instant::now();
            cluster.say(&format!("{finished} tests done, {failed} failed"));
        }
    }
}
