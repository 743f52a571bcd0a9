//! What a Job leaves behind, looked for where it would be: in the API server, in the runtimes, and in the kernel.

use std::{
    fs,
    net::IpAddr,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::Context as _;

use super::workload::{JOB, NAMESPACE};
use crate::{
    bench::cri_loop,
    cluster::{Cluster, machine::Machine},
};

/// How long the cluster may take to remove what belongs to a deleted Job. A kubelet looks for dead sandboxes once a minute.
const LIMIT: Duration = Duration::from_mins(3);

/// What was counted, and how much of it there is.
pub type Counts = Vec<(&'static str, usize)>;

/// Counts until nothing is left, or time is up; the last count.
///
/// # Errors
/// When something can't be counted.
pub async fn wait_for_none(counts: impl AsyncFn() -> anyhow::Result<Counts>) -> anyhow::Result<Counts> {
    let begin = Instant::now();
    loop {
        let counts = counts().await?;
        if counts.iter().all(|(_, count)| *count == 0) || begin.elapsed() > LIMIT {
            return Ok(counts);
        }
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
}

/// What there is of the Job in the API server, and of any pod on the virtual node's machine, which must be empty altogether.
///
/// # Errors
/// When something can't be counted.
pub async fn on_virtual(cluster: &Cluster, node: &str) -> anyhow::Result<Counts> {
    let selector = format!("batch.kubernetes.io/job-name={JOB}");
    let pods =
        cluster.kubectl(&["-n", NAMESPACE, "get", "pods", "-l", &selector, "-o", "name"])?.lines().count();
    let machine = cluster.machine(node)?;
    let (sandboxes, containers) = in_runtime(&machine, false).await?;
    let ctr = |arguments: &[&str]| machine.run("ctr", &[&["-n", "k8s.io"], arguments].concat());
    // Committed snapshots are the images' layers; the others are containers' own.
    let snapshots = ctr(&["snapshots", "ls"])?;
    let snapshots = snapshots.lines().skip(1).filter(|line| !line.trim_end().ends_with("Committed")).count();
    Ok(vec![
        ("pods of the Job in the API server", pods),
        ("sandboxes on the virtual node's runtime", sandboxes),
        (
            "containers there, also outside the CRI",
            containers.max(ctr(&["containers", "ls", "-q"])?.lines().count()),
        ),
        ("running processes of containers there", ctr(&["tasks", "ls", "-q"])?.lines().count()),
        ("snapshots of containers there", snapshots),
        ("leases on content there", ctr(&["leases", "ls", "-q"])?.lines().count()),
        ("pod network namespaces there", entries(&machine.live_path("/run/netns"), |_| true)?),
        ("pod addresses in use there", entries(&machine.path("/var/lib/cni/networks/spillway"), is_address)?),
    ])
}

/// What there is of the Job on the dedicated node's machine, which has other pods too.
///
/// # Errors
/// When something can't be counted.
pub async fn on_dedicated(cluster: &Cluster, node: &str) -> anyhow::Result<Counts> {
    let (sandboxes, containers) = in_runtime(&cluster.machine(node)?, true).await?;
    Ok(vec![
        ("sandboxes of the Job on the dedicated node", sandboxes),
        ("containers of the Job on the dedicated node", containers),
    ])
}

/// Sandboxes and containers that a runtime knows: all of them, or the Job's.
async fn in_runtime(machine: &Machine, of_job: bool) -> anyhow::Result<(usize, usize)> {
    let (sandboxes, containers) = cri_loop::listed(&mut cri_loop::connect(machine).await?).await?;
    let job = sandboxes.iter().filter(|sandbox| {
        let label = |name: &str| sandbox.labels.get(name).map(String::as_str);
        !of_job || label("batch.kubernetes.io/job-name") == Some(JOB)
    });
    let wanted: Vec<_> = job.map(|sandbox| sandbox.id.clone()).collect();
    let of_wanted =
        containers.iter().filter(|container| !of_job || wanted.contains(&container.pod_sandbox_id)).count();
    Ok((wanted.len(), of_wanted))
}

/// Entries of a folder whose names pass; none where there is no folder.
fn entries(folder: &Path, passes: impl Fn(&str) -> bool) -> anyhow::Result<usize> {
    match fs::read_dir(folder) {
        Ok(entries) => {
            Ok(entries.flatten().filter(|entry| entry.file_name().to_str().is_some_and(&passes)).count())
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(0),
        Err(error) => Err(error).with_context(|| format!("can't list {}", folder.display())),
    }
}

/// The `host-local` plugin keeps a file per address in use, and others.
fn is_address(name: &str) -> bool {
    name.parse::<IpAddr>().is_ok()
}
