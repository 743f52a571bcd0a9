//! Jobs of real pods, on the virtual node and on a real kubelet in turns, and a bare loop over the CRI beside them.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    pin::pin,
    time::Duration,
};

use anyhow::{Context as _, bail};
use futures::StreamExt as _;
use k8s_openapi::api::{batch::v1::Job, core::v1::Pod};
use kube::{
    Api, Client,
    api::{DeleteParams, PostParams},
    runtime::{WatchStreamExt as _, watcher},
};
use serde_json::json;
use tokio::{runtime::Runtime, time::Instant};

use super::{
    NAMESPACE, Options, Part, adoption, footprint, in_turns, load,
    process::{self, Spent},
    runtimes, summary,
    summary::Figures,
};
use crate::{
    bench::{cri_loop, sleepers},
    cluster::{self, Cluster, node, serverless},
    demo::report::count,
    image,
};

pub(super) const REAL: &str = "dedicated-1";
pub(super) const VIRTUAL: &str = "virtual-1";
/// How long one Job may take.
const LIMIT: Duration = Duration::from_mins(15);
/// What is tried to find the bare loop's best.
const IN_FLIGHT: [usize; 3] = [4, 8, 16];

/// Everything that is measured on real containers, on one cluster.
pub(super) fn with_cluster(options: &Options, program: &Path, figures: &mut Figures) -> anyhow::Result<()> {
    let max_pods = u32::try_from(options.real_pods()).unwrap_or(u32::MAX).saturating_add(100).max(250);
    let wants_jobs = options.wants(Part::Jobs);
    let cluster = Cluster::up(&cluster::Options {
        nodes: wants_jobs
            .then(|| node::Options { max_pods, gpus: 0, fpgas: 0, ..node::Options::named(REAL) })
            .into_iter()
            .collect(),
        serverless: vec![serverless::Options {
            program: Some(program.to_owned()),
            ..serverless::Options::named(VIRTUAL)
        }],
        bare: true,
        ..cluster::Options::default()
    })?;
    cluster.create_namespace(NAMESPACE)?;
    let runtime = super::runtime()?;
    let idle = footprint::at_rest(&cluster, VIRTUAL, "spillway-vk")?;
    if wants_jobs {
        compare(&cluster, &runtime, options, figures)?;
    }
    if options.wants(Part::Runtimes) {
        runtimes::compare(&cluster, &runtime, options)?;
    }
    if options.wants(Part::Footprint) || options.wants(Part::Adoption) {
        footprint::real(&cluster, &runtime, options, idle, figures)?;
    }
    if options.wants(Part::Adoption) {
        adoption::real(&cluster, &runtime, options, figures)?;
    }
    cluster.down()
}

/// What one Job has shown, in pods per second since the first was bound.
#[derive(Debug, Clone, Default)]
pub(super) struct Rates {
    pub(super) running: f64,
    pub(super) succeeded: f64,
    /// Seconds that the median pod needed.
    pub(super) to_run: f64,
    /// And from then to its end.
    pub(super) to_end: f64,
    /// CPU time from the Job's creation to the last pod's end.
    pub(super) spent: Spent,
}

fn compare(
    cluster: &Cluster,
    runtime: &Runtime,
    options: &Options,
    figures: &mut Figures,
) -> anyhow::Result<()> {
    let mut found: BTreeMap<(u16, &str), Vec<Rates>> = BTreeMap::new();
    let mut bare: BTreeMap<(usize, bool), Vec<f64>> = BTreeMap::new();
    for round in 0..options.rounds {
        for pods in &options.pods {
            for node in in_turns(round, [VIRTUAL, REAL]) {
                let rates = job(cluster, runtime, node, None, usize::from(*pods))?;
                cluster.say(&format!("round {round}: {pods} pods on {node}: {}", rates.told()));
                found.entry((*pods, node)).or_default().push(rates);
            }
        }
        for within in [true, false] {
            let removal = if within { cri_loop::Removal::Within } else { cri_loop::Removal::After };
            // The first round finds out how many in flight are best.
            let best = best(&bare, true).filter(|_| !within || round > 0).map(|(best, _)| best);
            for in_flight in IN_FLIGHT.into_iter().filter(|number| best.is_none_or(|best| best == *number)) {
                let rate = bare_loop(cluster, runtime, options.few(), in_flight, removal)?;
                cluster.say(&format!(
                    "round {round}: bare loop, {in_flight} in flight, removal within: {within}: {rate:.2}/s; load {}",
                    load()
                ));
                bare.entry((in_flight, within)).or_default().push(rate);
            }
        }
    }
    print(options, &found, &bare, figures);
    Ok(())
}

/// What was measured in each round, or the best of the first.
fn best(bare: &BTreeMap<(usize, bool), Vec<f64>>, within: bool) -> Option<(usize, &Vec<f64>)> {
    let of = bare.iter().filter(|((_, of), _)| *of == within);
    of.map(|((in_flight, _), rates)| (*in_flight, rates)).max_by(|(_, a), (_, b)| {
        let middle = |rates: &[f64]| summary::median(rates).unwrap_or(0.0);
        a.len().cmp(&b.len()).then(middle(a).total_cmp(&middle(b)))
    })
}

fn print(
    options: &Options,
    found: &BTreeMap<(u16, &str), Vec<Rates>>,
    bare: &BTreeMap<(usize, bool), Vec<f64>>,
    figures: &mut Figures,
) {
    let all = |pods: u16, node: &str, of: fn(&Rates) -> f64| -> Vec<f64> {
        found.get(&(pods, node)).into_iter().flatten().map(of).collect()
    };
    let (mut over_kubelet, mut over_loop, mut over_stops) = (Vec::new(), Vec::new(), Vec::new());
    println!(
        "\nJobs of pods that sleep for a second; medians of {} rounds; load {}\n",
        options.rounds,
        load()
    );
    println!("{}", header());
    for pods in &options.pods {
        for node in [VIRTUAL, REAL] {
            if let Some(rounds) = found.get(&(*pods, node)) {
                println!("{}", row(&format!("{pods} pods on {node}"), rounds));
            }
        }
        let ours = all(*pods, VIRTUAL, |rates| rates.succeeded);
        over_kubelet.extend(summary::ratio(&ours, &all(*pods, REAL, |rates| rates.succeeded)));
        over_loop.extend(best(bare, true).and_then(|(_, rates)| summary::ratio(&ours, rates)));
        over_stops.extend(best(bare, false).and_then(|(_, rates)| summary::ratio(&ours, rates)));
        let running = |node| all(*pods, node, |rates| rates.running);
        println!(
            "  {:34}{:12.2}{:12.2}",
            "  virtual / real",
            summary::ratio(&running(VIRTUAL), &running(REAL)).unwrap_or(f64::NAN),
            over_kubelet.last().copied().unwrap_or(f64::NAN)
        );
    }
    for pods in &options.pods {
        for node in [VIRTUAL, REAL] {
            let rounds = found.get(&(*pods, node)).into_iter().flatten();
            let spent = Spent::median(&rounds.map(|rates| &rates.spent).collect::<Vec<_>>());
            println!("  CPU ms per pod, {pods} on {node}: {}", spent.per_pod(count(usize::from(*pods))));
        }
    }
    for ((in_flight, within), rates) in bare {
        let what = if *within { "removal within" } else { "removal after" };
        let rate = summary::median(rates).unwrap_or(f64::NAN);
        println!("  {:34}{:>12}{rate:12.2}", format!("bare loop, {in_flight} in flight, {what}"), "");
    }
    figures.job_rate_over_kubelet = summary::least(over_kubelet);
    figures.job_rate_over_cri_loop = summary::least(over_loop);
    println!(
        "  virtual / bare loop at its best: {:.2}; at its best with removal after the clock: {:.2}",
        figures.job_rate_over_cri_loop.unwrap_or(f64::NAN),
        summary::least(over_stops).unwrap_or(f64::NAN)
    );
}

pub(super) fn header() -> String {
    format!("  {:34}{:>12}{:>12}{:>12}{:>12}", "", "Running/s", "Succeeded/s", "to run, s", "to end, s")
}

/// The medians of some rounds.
pub(super) fn row(what: &str, rounds: &[Rates]) -> String {
    let middle = |of: fn(&Rates) -> f64| {
        summary::median(&rounds.iter().map(of).collect::<Vec<_>>()).unwrap_or(f64::NAN)
    };
    format!(
        "  {what:34}{:12.2}{:12.2}{:12.2}{:12.2}",
        middle(|rates| rates.running),
        middle(|rates| rates.succeeded),
        middle(|rates| rates.to_run),
        middle(|rates| rates.to_end)
    )
}

/// Runs one Job and removes it, and everything that it left. `class`: its pods' `RuntimeClass`.
pub(super) fn job(
    cluster: &Cluster,
    runtime: &Runtime,
    node: &str,
    class: Option<&str>,
    pods: usize,
) -> anyhow::Result<Rates> {
    let machine = cluster.machine(node)?;
    runtime
        .block_on(async {
            let job = sleeping_job(node, class, pods)?;
            let rates = tokio::time::timeout(LIMIT, Box::pin(follow(cluster, job, pods)))
                .await
                .with_context(|| format!("it took longer than {} s", LIMIT.as_secs()))??;
            // What is left must not be somebody's work in the next measurement. A kubelet removes sandboxes once a minute.
            let containers = cri_loop::connect(&machine).await?;
            cri_loop::remove_stopped(&containers, NAMESPACE).await?;
            tokio::time::sleep(Duration::from_secs(2)).await;
            anyhow::Ok(rates)
        })
        .with_context(|| format!("in a Job of {pods} on {node}"))
}

/// When each pod got how far, in seconds.
#[derive(Debug, Default)]
struct Timeline {
    bound: BTreeMap<String, f64>,
    running: BTreeMap<String, f64>,
    succeeded: BTreeMap<String, f64>,
}

impl Timeline {
    fn take(&mut self, pod: &Pod, now: f64) -> anyhow::Result<()> {
        let Some(uid) = pod.metadata.uid.clone() else { return Ok(()) };
        if pod.spec.as_ref().is_some_and(|spec| spec.node_name.is_some()) {
            self.bound.entry(uid.clone()).or_insert(now);
        }
        let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default();
        if matches!(phase, "Running" | "Succeeded") {
            self.running.entry(uid.clone()).or_insert(now);
        }
        if phase == "Succeeded" {
            self.succeeded.entry(uid).or_insert(now);
        }
        if phase == "Failed" {
            bail!("pod {} failed", pod.metadata.name.as_deref().unwrap_or_default());
        }
        Ok(())
    }

    fn rates(&self, pods: usize, spent: Spent) -> Option<Rates> {
        let begin = self.bound.values().copied().reduce(f64::min)?;
        let rate = |times: &BTreeMap<String, f64>| {
            let end = times.values().copied().reduce(f64::max).filter(|_| times.len() == pods)?;
            Some(count(pods) / (end - begin))
        };
        let between = |from: &BTreeMap<String, f64>, to: &BTreeMap<String, f64>| {
            let waits = to.iter().filter_map(|(uid, at)| Some(at - from.get(uid)?));
            summary::median(&waits.collect::<Vec<_>>())
        };
        Some(Rates {
            running: rate(&self.running)?,
            succeeded: rate(&self.succeeded)?,
            to_run: between(&self.bound, &self.running)?,
            to_end: between(&self.running, &self.succeeded)?,
            spent,
        })
    }
}

impl Rates {
    /// For the progress of a run.
    pub(super) fn told(&self) -> String {
        format!("{:.2}/s Running, {:.2}/s Succeeded; load {}", self.running, self.succeeded, load())
    }
}

/// Creates the Job, follows its pods to their end, deletes it and waits until no pod is left.
async fn follow(cluster: &Cluster, job: Job, pods: usize) -> anyhow::Result<Rates> {
    let client: Client = cluster.client().await?;
    let api: Api<Pod> = Api::namespaced(client.clone(), NAMESPACE);
    let jobs: Api<Job> = Api::namespaced(client, NAMESPACE);
    let mut events = pin!(watcher(api, watcher::Config::default()).default_backoff());
    let mut timeline = Timeline::default();
    let begin = Instant::now();
    let before = process::spent(cluster)?;
    let (mut created, mut listing, mut found) = (false, false, None);
    let mut present = BTreeSet::new();
    while let Some(event) = events.next().await {
        match event {
            Ok(watcher::Event::Init) => {
                listing = true;
                present.clear();
            }
            Ok(watcher::Event::InitDone) if !created => {
                jobs.create(&PostParams::default(), &job).await?;
                (created, listing) = (true, false);
            }
            Ok(watcher::Event::InitDone) => listing = false,
            Ok(watcher::Event::Apply(pod) | watcher::Event::InitApply(pod)) => {
                timeline.take(&pod, begin.elapsed().as_secs_f64())?;
                present.extend(pod.metadata.uid);
            }
            Ok(watcher::Event::Delete(pod)) => {
                present.remove(&pod.metadata.uid.unwrap_or_default());
            }
            Err(error) => eprintln!("the watch of pods broke and begins anew: {error}"),
        }
        if timeline.succeeded.len() == pods && found.is_none() {
            let rates = timeline.rates(pods, process::spent(cluster)?.since(&before));
            found = Some(rates.context("not all pods were seen to start")?);
            jobs.delete("sleepers", &DeleteParams::background()).await?;
        }
        if present.is_empty()
            && !listing
            && let Some(rates) = found.take()
        {
            return Ok(rates);
        }
    }
    bail!("the watch of pods ended")
}

fn sleeping_job(node: &str, class: Option<&str>, pods: usize) -> anyhow::Result<Job> {
    Ok(serde_json::from_value(json!({
        "metadata": { "name": "sleepers" },
        "spec": { "completions": pods, "parallelism": pods, "backoffLimit": 0, "template": { "spec": {
            "restartPolicy": "Never",
            "runtimeClassName": class,
            "nodeSelector": { "kubernetes.io/hostname": node },
            "tolerations": [{ "key": "virtual-kubelet.io/provider", "operator": "Exists" }],
            "containers": [{ "name": "main", "image": image::BUSYBOX, "imagePullPolicy": "Never",
                "command": ["sleep", "1"] }],
        } } },
    }))?)
}

fn bare_loop(
    cluster: &Cluster,
    runtime: &Runtime,
    pods: usize,
    in_flight: usize,
    removal: cri_loop::Removal,
) -> anyhow::Result<f64> {
    let workload = sleepers(cluster, VIRTUAL)?;
    let machine = cluster.machine(VIRTUAL)?;
    let elapsed = runtime.block_on(async {
        let client = cri_loop::connect(&machine).await?;
        cri_loop::run(&client, &workload, pods, in_flight, removal).await
    })?;
    Ok(count(pods) / elapsed.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(uid: &str, node: Option<&str>, phase: &str) -> Pod {
        serde_json::from_value(json!({
            "metadata": { "uid": uid }, "spec": { "nodeName": node, "containers": [] }, "status": { "phase": phase },
        }))
        .unwrap()
    }

    #[test]
    fn the_bare_loops_best_is_what_each_round_has() {
        let mut bare = BTreeMap::from([
            ((4, true), vec![5.0]),
            ((8, true), vec![6.0]),
            ((16, true), vec![5.5]),
            ((4, false), vec![9.0]),
        ]);
        assert_eq!(best(&bare, true).unwrap().0, 8);
        bare.get_mut(&(8, true)).unwrap().push(3.0);
        assert_eq!(best(&bare, true).unwrap().0, 8, "a worse second round changes nothing");
        assert!(best(&BTreeMap::new(), true).is_none());
    }

    #[test]
    fn rates_count_from_the_first_binding_to_the_last_end() {
        let mut timeline = Timeline::default();
        for (at, pod) in [
            (0.0, pod("a", None, "Pending")),
            (1.0, pod("a", Some("n"), "Pending")),
            (2.0, pod("b", Some("n"), "Pending")),
            (3.0, pod("a", Some("n"), "Running")),
            (4.0, pod("a", Some("n"), "Running")),
            (4.5, pod("a", Some("n"), "Succeeded")),
        ] {
            timeline.take(&pod, at).unwrap();
        }
        assert!(timeline.rates(2, Spent::default()).is_none(), "b has not ended");
        // Nobody saw it Running.
        timeline.take(&pod("b", Some("n"), "Succeeded"), 5.0).unwrap();
        let rates = timeline.rates(2, Spent::default()).unwrap();
        assert_eq!((rates.running, rates.succeeded, rates.to_run, rates.to_end), (0.5, 0.5, 2.5, 0.75));
        assert!(timeline.take(&pod("c", Some("n"), "Failed"), 6.0).is_err());
    }
}
