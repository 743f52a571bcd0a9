//! The main job, shown on a pool of one dedicated and one virtual node: photographs in shared storage, an Indexed Job over both nodes,
//! a contact sheet, and nothing left at the end.
//!
//! What it claims it counts: results on disk, pods by UID in the API server, remains in the runtimes. It succeeds only if every result
//! is there once and nothing is left.

pub mod leftovers;
pub mod report;
pub mod watch;
pub mod workload;

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::{Api, api::ListParams};

use self::{
    report::{Report, count},
    watch::Progress,
    workload::{Division, JOB, NAMESPACE, STEADY},
};
use crate::{
    bench::cri_loop::{self, Workload},
    cluster::{self, Cluster, current_binaries, node, registry},
    components, image, photos,
};

const DEDICATED: &str = "dedicated-1";
const VIRTUAL: &str = "virtual-1";
/// How many rounds of the bare loop run at a time; more than 8 are no faster on two cores.
const IN_FLIGHT: usize = 4;
/// How long a step may take. Generous: it only matters when something is broken.
const STEP: Duration = Duration::from_mins(3);

/// What the user chose.
#[derive(Debug, Clone, clap::Args)]
pub struct DemoOptions {
    /// How many pods the Job has: one photograph, or region of one, each.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u16).range(1..=9999))]
    pub pods: u16,
    /// How many of the Job's pods fit on the dedicated node at a time; the others spill onto the virtual node.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u16).range(0..=200))]
    pub dedicated_slots: u16,
    /// Leave the cluster up, and say how to use it.
    #[arg(long)]
    pub keep: bool,
    /// Write the numbers to this file, as JSON.
    #[arg(long, value_name = "FILE")]
    pub report: Option<PathBuf>,
    /// Where to put the contact sheet. Default: target/demo/contact-sheet.png.
    #[arg(long, value_name = "FILE")]
    pub picture: Option<PathBuf>,
}

/// Starts a pool, runs the main job on it, and ends the pool.
///
/// # Errors
/// When something can't be done, a result is missing or doubled, or anything is left over.
pub fn run(options: &DemoOptions) -> anyhow::Result<()> {
    // Rather told now than after the run.
    if let Some(folder) = options.report.as_deref().and_then(Path::parent)
        && !folder.as_os_str().is_empty()
        && !folder.is_dir()
    {
        bail!("--report: there is no folder {}", folder.display());
    }
    let photographs = photos::ensure()?;
    let pool = cluster::Options { keep: options.keep, ..cluster::Options::default() };
    let (gpus, fpgas) = pool.nodes.first().map_or((0, 0), |node: &node::Options| (node.gpus, node.fpgas));
    println!("Spillway's main job: {} pods on a pool of one dedicated and one virtual node", options.pods);
    println!(
        "  real:      Kubernetes {}, containerd, runc, every container and picture",
        components::KUBERNETES_VERSION
    );
    println!(
        "  simulated: {gpus} GPUs (a stand-in for NVIDIA's library) and {fpgas} FPGA (a stand-in sysfs tree), without drivers"
    );
    let cluster = Cluster::up(&pool)?;
    let outcome = on(&cluster, options, &photographs).with_context(|| {
        format!("the main job failed; all logs are in {}", cluster.folder().join("log").display())
    });
    let ended = if options.keep {
        println!("\n{}", cluster.usage());
        Ok(())
    } else {
        cluster.down().and_then(|()| prove_ended(&cluster))
    };
    outcome.and(ended)
}

/// After the pool's end: its processes, cgroups and record are gone.
fn prove_ended(cluster: &Cluster) -> anyhow::Result<()> {
    let id = cluster.id();
    let processes = cluster.processes().iter().filter(|process| process.running()).count();
    let cgroups = registry::cgroup_hierarchies().iter().filter(|root| root.join(&id).exists()).count();
    let records = registry::all()?.iter().filter(|record| record.id == id).count();
    if processes + cgroups + records > 0 {
        bail!("cluster {id} left {processes} processes, {cgroups} cgroups and {records} records behind");
    }
    println!(
        "\nThe pool has ended: none of its processes, mounts, network namespaces and cgroups is left on this machine."
    );
    Ok(())
}

/// Runs the main job on a pool that is up, once, and removes it again; the steady Deployment stays.
///
/// # Errors
/// When something can't be done, a result is missing or doubled, or anything is left over.
pub fn on(cluster: &Cluster, options: &DemoOptions, photographs: &Path) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let client = runtime.block_on(cluster.client())?;
    cluster.create_namespace(NAMESPACE)?;
    let pods_of_node = || {
        let pods: Api<Pod> = Api::all(client.clone());
        let on_node = ListParams::default().fields(&format!("spec.nodeName={DEDICATED}"));
        runtime.block_on(async { pods.list(&on_node).await })
    };
    cluster.install_chart(&[])?;
    let node = wait_for_accelerators(cluster)?;
    let free = workload::free_millicpu(&node, &pods_of_node()?.items)?;
    let division = workload::divide(free, options.dedicated_slots.into())?;
    start_steady_work(cluster, options, &workload::accelerators(&node), division)?;
    run_job(cluster, options, photographs, division, &runtime, &client)
}

/// The Deployment that holds the accelerators, and fills the dedicated node but for the Job's slots.
fn start_steady_work(
    cluster: &Cluster,
    options: &DemoOptions,
    accelerators: &[(String, u64)],
    division: Division,
) -> anyhow::Result<()> {
    cluster.apply(&in_namespace("apps/v1", "Deployment", &workload::steady(accelerators, division)?)?)?;
    cluster.kubectl(&["-n", NAMESPACE, "rollout", "status", "deployment", STEADY, "--timeout=120s"])?;
    let offers: Vec<_> = accelerators.iter().map(|(name, amount)| format!("{amount} {name}")).collect();
    println!("\nThe pool");
    println!("  {DEDICATED}  offers {}", offers.join(", "));
    println!("               the steady Deployment holds them all; its container sees");
    for line in held(cluster)?.lines() {
        println!("                 {line}");
    }
    println!("               {} pods of the Job fit beside it at a time", options.dedicated_slots);
    println!("  {VIRTUAL}    takes what spills: spillway-vk runs it on a container runtime of its own");
    Ok(())
}

/// The Job from its tiles to its remains, and the yardstick.
fn run_job(
    cluster: &Cluster,
    options: &DemoOptions,
    photographs: &Path,
    division: Division,
    runtime: &tokio::runtime::Runtime,
    client: &kube::Client,
) -> anyhow::Result<()> {
    let pods = usize::from(options.pods);
    println!("\nThe Job: {pods} pods, each sharpens and resizes one tile from shared storage");
    let shared = Shared::prepare(cluster, photographs, pods)?;
    let job = workload::job(pods, division)?;
    let progress = runtime
        .block_on(watch::follow(client.clone(), NAMESPACE, &job, [DEDICATED, VIRTUAL]))
        .with_context(|| cluster.log_tails(10, Some("spillway-vk")))?;
    show_logs(cluster, &progress)?;
    let sheet = shared.contact_sheet(options, pods);
    println!("\nDeleting the Job and its pods");
    let deleting = Instant::now();
    cluster.kubectl(&["-n", NAMESPACE, "delete", "job", JOB, "--cascade=foreground", "--timeout=120s"])?;
    let on_virtual = async || leftovers::on_virtual(cluster, VIRTUAL).await;
    let mut left = runtime.block_on(leftovers::wait_for_none(on_virtual))?;
    println!("  the virtual node was empty after {:.1} s", deleting.elapsed().as_secs_f64());

    println!(
        "\nThe yardstick: a bare loop over the runtime's interface (CRI) starts the same containers, {IN_FLIGHT} at a time"
    );
    let bare_s = runtime.block_on(bare_loop(cluster, pods))?;
    let left_by_loop = runtime.block_on(leftovers::wait_for_none(on_virtual))?;
    let on_dedicated = async || leftovers::on_dedicated(cluster, DEDICATED).await;
    left.extend(runtime.block_on(leftovers::wait_for_none(on_dedicated))?);

    let done_s = progress.last_done_s().unwrap_or_default();
    let (pods_per_s, cri_loop_pods_per_s) = (count(pods) / done_s, count(pods) / bare_s);
    let sides = [progress.side(DEDICATED), progress.side(VIRTUAL)];
    let report = Report {
        pods,
        dedicated: sides[0].done,
        r#virtual: sides[1].done,
        results: shared.results(pods),
        left_over: left.iter().map(|(_, count)| count).sum(),
        first_running_s: progress.first_running_s().unwrap_or_default(),
        done_s,
        pods_per_s,
        cri_loop_pods_per_s,
        ratio: pods_per_s / cri_loop_pods_per_s,
    };
    println!("\nWhat happened\n{}", report::table([DEDICATED, VIRTUAL], sides, &report));
    println!("What is left after the Job's deletion");
    for (what, count) in &left {
        println!("  {count:3} {what}");
    }
    if let Some(path) = &options.report {
        let text = serde_json::to_string_pretty(&report)? + "\n";
        fs::write(path, text).with_context(|| format!("can't write the report {}", path.display()))?;
        println!("\nThe numbers: {}", path.display());
    }
    verdict(&progress, &report, sheet, &left_by_loop)
}

/// Whether every result is there once and nothing is left.
fn verdict(
    progress: &Progress,
    report: &Report,
    sheet: anyhow::Result<PathBuf>,
    left_by_loop: &leftovers::Counts,
) -> anyhow::Result<()> {
    let sheet = sheet.context("not every result is there once")?;
    println!("\nThe contact sheet, made of all {} results: {}", report.results, sheet.display());
    for failure in progress.failures() {
        println!("A pod failed, and the Job made another in its place: {failure}");
    }
    let faults = progress.faults(report.pods);
    if !faults.is_empty() {
        bail!("not every pod ran once: {}", faults.join("; "));
    }
    if report.left_over > 0 {
        bail!("{} things are left after the Job", report.left_over);
    }
    if let Some((what, count)) = left_by_loop.iter().find(|(_, count)| *count > 0) {
        bail!("the bare loop left {count} {what}");
    }
    println!("Every result is there once, and nothing is left.");
    Ok(())
}

/// The demo's part of the shared storage, as this program sees it.
struct Shared {
    folder: PathBuf,
}

impl Shared {
    /// Cuts the tiles, and makes the folders for results, where every user may write.
    fn prepare(cluster: &Cluster, photographs: &Path, count: usize) -> anyhow::Result<Self> {
        let folder = cluster.shared().join("demo");
        let _ = fs::remove_dir_all(&folder);
        for results in ["results", "loop-results"] {
            let results = folder.join(results);
            fs::create_dir_all(&results).with_context(|| format!("can't create {}", results.display()))?;
            fs::set_permissions(&results, fs::Permissions::from_mode(0o1777))?;
        }
        let (source, tiles) = (photographs.display().to_string(), folder.join("tiles").display().to_string());
        let said =
            spillway_tiles(&["cut", "--source", &source, "--out", &tiles, "--count", &count.to_string()])?;
        println!("  {said}");
        Ok(Self { folder })
    }

    /// How many of the expected results are there.
    fn results(&self, count: usize) -> usize {
        (0..count).filter(|index| self.folder.join(format!("results/tile-{index:04}.jpg")).is_file()).count()
    }

    /// Makes the picture, which fails unless exactly the expected results are there.
    fn contact_sheet(&self, options: &DemoOptions, count: usize) -> anyhow::Result<PathBuf> {
        let out = options.picture.clone().unwrap_or_else(|| crate::target().join("demo/contact-sheet.png"));
        if let Some(folder) = out.parent() {
            fs::create_dir_all(folder).with_context(|| format!("can't create {}", folder.display()))?;
        }
        let (results, file) = (self.folder.join("results").display().to_string(), out.display().to_string());
        spillway_tiles(&["sheet", "--results", &results, "--out", &file, "--count", &count.to_string()])?;
        Ok(out)
    }
}

fn spillway_tiles(arguments: &[&str]) -> anyhow::Result<String> {
    let program = current_binaries()?.join("spillway-tiles");
    let output = Command::new(&program)
        .args(arguments)
        .output()
        .with_context(|| format!("can't run {}", program.display()))?;
    if !output.status.success() {
        bail!("{}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn wait_for_accelerators(cluster: &Cluster) -> anyhow::Result<Node> {
    crate::wait_for(&format!("GPUs and FPGAs on node {DEDICATED}"), STEP, || {
        let node: Node = serde_json::from_str(&cluster.kubectl(&["get", "node", DEDICATED, "-o", "json"])?)?;
        let offered = workload::accelerators(&node);
        let has = |prefix: &str| offered.iter().any(|(name, _)| name.starts_with(prefix));
        Ok((has("nvidia.com/") && has("fpga.intel.com/")).then_some(node))
    })
}

/// What the steady Deployment's container sees of its devices.
fn held(cluster: &Cluster) -> anyhow::Result<String> {
    let script = "ls -d /dev/nvidia[0-9]* /dev/dfl-* 2>/dev/null | tr '\\n' ' '; echo; echo NVIDIA_VISIBLE_DEVICES=$NVIDIA_VISIBLE_DEVICES";
    let printed = cluster.kubectl(&[
        "-n",
        NAMESPACE,
        "exec",
        &format!("deployment/{STEADY}"),
        "--",
        "sh",
        "-c",
        script,
    ])?;
    Ok(printed.trim().to_owned())
}

fn in_namespace(version: &str, kind: &str, object: &impl serde::Serialize) -> anyhow::Result<String> {
    let mut value = serde_json::to_value(object)?;
    value["apiVersion"] = version.into();
    value["kind"] = kind.into();
    value["metadata"]["namespace"] = NAMESPACE.into();
    Ok(value.to_string())
}

/// `kubectl logs` of one pod of the virtual node; of the dedicated node where the virtual one had none.
fn show_logs(cluster: &Cluster, progress: &Progress) -> anyhow::Result<()> {
    let pod =
        progress.example(VIRTUAL).or_else(|| progress.example(DEDICATED)).context("no pod succeeded")?;
    println!(
        "\n$ kubectl -n {NAMESPACE} logs {pod}\n{}",
        cluster.kubectl(&["-n", NAMESPACE, "logs", pod])?.trim_end()
    );
    Ok(())
}

/// Seconds that the bare loop takes on the virtual node's runtime.
async fn bare_loop(cluster: &Cluster, pods: usize) -> anyhow::Result<f64> {
    let machine = cluster.machine(VIRTUAL)?;
    let client = cri_loop::connect(&machine).await?;
    let logs = Path::new("/var/log/cri-loop");
    let logs_here = machine.path("/var/log/cri-loop");
    fs::create_dir_all(&logs_here).with_context(|| format!("can't create {}", logs_here.display()))?;
    let workload = Workload {
        image: image::TILES.to_owned(),
        arguments: workload::arguments("loop-results"),
        mount: Some((workload::SHARED.into(), "/shared".into())),
        cgroup_parent: format!("{}/cri-loop", cluster.cgroup_root(VIRTUAL)),
        logs: logs.to_owned(),
    };
    let elapsed = cri_loop::run(&client, &workload, pods, IN_FLIGHT, cri_loop::Removal::Within).await?;
    fs::remove_dir_all(&logs_here).with_context(|| format!("can't delete {}", logs_here.display()))?;
    Ok(elapsed.as_secs_f64())
}
