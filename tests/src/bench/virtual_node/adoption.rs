//! A node's process is killed and started again: how soon it knows its pods again. Witnesses are pods all over the node to which something
//! happened while nobody looked: the clock stops when the last of it is told.

use std::time::Duration;

use anyhow::Context as _;
use tokio::{runtime::Runtime, time::Instant};

use super::{
    NAMESPACE, Options,
    api::Server,
    jobs::VIRTUAL,
    load,
    noop::{self, Contender},
    summary,
    summary::Figures,
};
use crate::cluster::Cluster;

/// How many pods something happens to.
const WITNESSES: usize = 20;
/// Nobody looks for so long.
const AWAY: Duration = Duration::from_secs(2);

fn witnesses(pods: usize, round: usize) -> impl Iterator<Item = usize> {
    let apart = (pods / WITNESSES).max(1);
    (0..WITNESSES.min(pods)).map(move |index| index * apart + round).filter(move |index| *index < pods)
}

/// Of the sleeping pods that [`super::footprint::real`] has started: some processes end while nobody looks.
pub(super) fn real(
    cluster: &Cluster,
    runtime: &Runtime,
    options: &Options,
    figures: &mut Figures,
) -> anyhow::Result<()> {
    let pods = options.real_pods();
    let mut seconds = Vec::new();
    let mut ended = 0;
    for round in 0..usize::from(options.rounds) {
        let names: Vec<String> = witnesses(pods, round).map(|index| format!("real-{index}")).collect();
        let ids = containers(cluster, &names)?;
        cluster.kill(VIRTUAL, "spillway-vk")?;
        let machine = cluster.machine(VIRTUAL)?;
        for id in &ids {
            machine.run("ctr", &["-n", "k8s.io", "task", "kill", "-s", "SIGKILL", id])?;
        }
        ended += ids.len();
        std::thread::sleep(AWAY);
        let begin = Instant::now();
        cluster.start(VIRTUAL, "spillway-vk")?;
        runtime.block_on(async {
            let server = Server::new(cluster.client().await?);
            server.until(NAMESPACE, "ended pods to be told", |seen| seen.with_status("Error") == ended).await
        })?;
        seconds.push(begin.elapsed().as_secs_f64());
    }
    figures.adopt_real_s = summary::median(&seconds);
    print(&format!("{pods} real pods"), &seconds);
    Ok(())
}

/// IDs of the pods' containers.
fn containers(cluster: &Cluster, pods: &[String]) -> anyhow::Result<Vec<String>> {
    let form = "jsonpath={range .items[*]}{.status.containerStatuses[0].containerID}{'\\n'}{end}";
    let mut arguments = vec!["-n", NAMESPACE, "get", "pod"];
    arguments.extend(pods.iter().map(String::as_str));
    // Of one pod kubectl prints no list.
    arguments.extend(["no-such-pod", "--ignore-not-found", "-o", form]);
    let listed = cluster.kubectl(&arguments)?;
    Ok(listed.lines().filter_map(|line| Some(line.strip_prefix("containerd://")?.to_owned())).collect())
}

/// Of the pods that are there: some are deleted and as many created while nobody looks.
pub(super) fn noop(
    cluster: &Cluster,
    runtime: &Runtime,
    options: &Options,
    contender: &Contender,
) -> anyhow::Result<f64> {
    let pods = usize::from(options.noop_pods);
    let mut seconds = Vec::new();
    for round in 0..usize::from(options.rounds) {
        cluster.kill(contender.node, contender.component)?;
        runtime.block_on(async {
            let server = Server::new(cluster.client().await?);
            server.delete(NAMESPACE, witnesses(pods, round).map(|index| contender.pod_name(index))).await?;
            let fresh = witnesses(pods, round).map(|index| noop::pod(contender, pods * (round + 1) + index));
            server.create(NAMESPACE, fresh).await
        })?;
        std::thread::sleep(AWAY);
        let begin = Instant::now();
        cluster.start(contender.node, contender.component)?;
        runtime.block_on(async {
            let server = Server::new(cluster.client().await?);
            let adopted = |seen: &super::api::Seen| seen.total() == pods && seen.running() == pods;
            server.until(NAMESPACE, "deleted pods to be gone and new ones to run", adopted).await
        })?;
        seconds.push(begin.elapsed().as_secs_f64());
    }
    print(&format!("{pods} no-op pods, {}", contender.component), &seconds);
    summary::median(&seconds).context("nothing was measured")
}

fn print(what: &str, seconds: &[f64]) {
    let all: Vec<String> = seconds.iter().map(|seconds| format!("{seconds:.2}")).collect();
    println!(
        "\nAdoption of {what} after SIGKILL and a start: median {:.2} s of {} s; load {}",
        summary::median(seconds).unwrap_or(f64::NAN),
        all.join(", "),
        load()
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn witnesses_are_all_over_the_node_and_others_in_each_round() {
        let first: Vec<usize> = witnesses(300, 0).collect();
        assert_eq!((first.len(), first[0], first[19]), (WITNESSES, 0, 285));
        assert!(witnesses(300, 1).all(|index| !first.contains(&index) && index < 300));
        assert_eq!(witnesses(5, 0).collect::<Vec<_>>(), [0, 1, 2, 3, 4]);
    }
}
