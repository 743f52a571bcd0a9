//! Rounds of a storm, a calm and a balance.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use k8s_openapi::api::{batch::v1::Job, core::v1::Pod};
use kube::{ResourceExt as _, api::ListParams};

use super::{
    ChaosOptions, NAMESPACE, NODE,
    churn::Churn,
    faults::Site,
    history::{self, Happened, History, Wrote},
    judge::Case,
    plan::Random,
    remains::{self, Foreign, Remains},
};
use crate::cluster::Cluster;

/// How long it may take until all is calm. A container that was often killed is started again after up to 5 minutes, as on any node.
const CALM: Duration = Duration::from_mins(7);
/// So many rounds that never become calm end it all: the next ones would tell nothing new.
const ENOUGH: usize = 5;
/// Pods that live on into the next round.
const OLD: usize = 4;

/// What runs now and what the API server has.
struct Books {
    pods: Vec<Pod>,
    jobs: Vec<Job>,
    remains: Remains,
    wrote: BTreeMap<String, Wrote>,
}

/// All that the rounds need, and what they found.
pub(super) struct Rounds<'a> {
    cluster: &'a Cluster,
    runtime: &'a tokio::runtime::Runtime,
    churn: Churn,
    site: Site,
    history: Arc<History>,
    foreign: &'a Foreign,
    lines: PathBuf,
    told: BTreeSet<(String, String)>,
    /// Pods that never became calm, which later rounds don't wait for.
    stuck: BTreeSet<String>,
    counts: BTreeMap<&'static str, usize>,
    began: Instant,
}

impl<'a> Rounds<'a> {
    pub(super) fn new(
        cluster: &'a Cluster,
        runtime: &'a tokio::runtime::Runtime,
        churn: Churn,
        site: Site,
        history: Arc<History>,
        foreign: &'a Foreign,
        lines: PathBuf,
    ) -> Self {
        let (told, stuck, counts) = (BTreeSet::new(), BTreeSet::new(), BTreeMap::new());
        Self {
            cluster,
            runtime,
            churn,
            site,
            history,
            foreign,
            lines,
            told,
            stuck,
            counts,
            began: Instant::now(),
        }
    }

    /// All rounds; how many violations there were.
    pub(super) fn all(&mut self, options: &ChaosOptions, seed: u64) -> anyhow::Result<usize> {
        let (mut faults, mut pods) = (Random::new(seed, 1), Random::new(seed, 2));
        let (mut left, mut number, mut stormy) = (options.faults, 0, 0);
        while left > 0 && stormy < ENOUGH {
            let count = left.min(usize::from(options.round));
            left -= count;
            let enough = Arc::new(AtomicBool::new(false));
            number = std::thread::scope(|scope| {
                let (churn, runtime, stop) = (self.churn.clone(), self.runtime, Arc::clone(&enough));
                let pods = &mut pods;
                let at_a_time = usize::from(options.pods);
                let living = scope.spawn(move || runtime.block_on(churn.run(pods, number, at_a_time, stop)));
                self.site.storm(&mut faults, count);
                enough.store(true, Ordering::Relaxed);
                let healed = self.site.heal();
                let number = living.join().map_err(|_| anyhow::anyhow!("the churn panicked"))?;
                healed.map(|()| number)
            })?;
            stormy += usize::from(!self.balance(seed)?);
            let done = self.site.done.load(Ordering::Relaxed);
            let (pods, wrong) = (number, self.told.len());
            println!(
                "{:6.0} s: {done} faults, {pods} pods and Jobs planned, {wrong} violations",
                self.began.elapsed().as_secs_f64()
            );
        }
        Ok(self.told.len())
    }

    /// Waits for calm, judges, clears away, judges again. Whether calm came.
    fn balance(&mut self, seed: u64) -> anyhow::Result<bool> {
        let began = Instant::now();
        let calm = self.wait(None, seed);
        self.judge(seed)?;
        eprintln!("         calm after {:.0} s", began.elapsed().as_secs_f64());
        let books = self.books()?;
        let old: BTreeSet<String> =
            books.pods.iter().filter(|pod| !ended(pod)).filter_map(Pod::uid).take(OLD).collect();
        self.runtime.block_on(async {
            for job in &books.jobs {
                self.churn.delete_job(&job.name_any()).await;
            }
            let others = books.pods.iter().filter(|pod| pod.uid().is_none_or(|uid| !old.contains(&uid)));
            futures::future::join_all(others.map(|pod| async {
                self.churn.delete(&pod.name_any(), &pod.uid().unwrap_or_default(), false).await;
            }))
            .await;
        });
        let clear = self.wait(Some(&old), seed);
        self.judge(seed)?;
        if let Err(error) = self.runtime.block_on(self.foreign.check()) {
            self.tell("", &format!("{error:#}"), seed);
        }
        let wrote = history::read(&self.lines)?.0;
        let mut stories = self.history.stories();
        for (name, count) in [
            ("pods", stories.values().filter(|story| story.gone.is_some()).count()),
            ("starts", stories.keys().filter_map(|uid| wrote.get(uid)).map(|wrote| wrote.starts.len()).sum()),
            (
                "told ends",
                stories.values().filter(|story| story.gone.is_some()).map(|story| story.told.len()).sum(),
            ),
        ] {
            *self.counts.entry(name).or_default() += count;
        }
        stories.retain(|_, story| story.gone.is_none());
        Ok(calm && clear)
    }

    fn books(&self) -> anyhow::Result<Books> {
        self.runtime.block_on(async {
            let all = ListParams::default();
            let limit = Duration::from_secs(20);
            let pods = tokio::time::timeout(limit, self.churn.pods().list(&all)).await??.items;
            let jobs = tokio::time::timeout(limit, self.churn.jobs().list(&all)).await??.items;
            let remains = tokio::time::timeout(limit, remains::look(self.cluster, NODE)).await??;
            Ok(Books { pods, jobs, remains, wrote: history::read(&self.lines)?.0 })
        })
    }

    /// Waits until nothing is to be done any more. With `old`, only those pods shall be there. What is not as it should be after a long
    /// time is told.
    fn wait(&mut self, old: Option<&BTreeSet<String>>, seed: u64) -> bool {
        let mut last = Vec::new();
        let calm = crate::wait_for("calm", CALM, || {
            last.clear();
            let books = self.books()?;
            last = self.unrest(&books, old);
            last.retain(|(uid, _)| !self.stuck.contains(uid));
            if last.is_empty() {
                return Ok(Some(()));
            }
            self.site.start_what_ended();
            Ok(None)
        });
        if let Err(error) = &calm
            && last.is_empty()
        {
            self.tell("", &format!("the books can't be read: {error:#}"), seed);
        }
        for (uid, what) in last {
            self.tell(&uid, &format!("after {} s still: {what}", CALM.as_secs()), seed);
            if !uid.is_empty() {
                self.stuck.insert(uid);
            }
        }
        calm.is_ok()
    }

    /// What is still to be done, by pod.
    fn unrest(&self, books: &Books, old: Option<&BTreeSet<String>>) -> Vec<(String, String)> {
        let mut unrest = Vec::new();
        let mut should_run = BTreeSet::new();
        let mut uids = BTreeSet::new();
        for pod in &books.pods {
            let uid = pod.uid().unwrap_or_default();
            if let Some(why) = restless(pod, books.wrote.get(&uid)) {
                unrest.push((uid.clone(), why));
            }
            if old.is_some_and(|old| !old.contains(&uid)) {
                unrest.push((uid.clone(), "it is not gone".to_owned()));
            }
            let seen = self.history.stories().get(&uid).and_then(|story| story.pod.resource_version());
            if seen != pod.resource_version() {
                unrest.push((uid.clone(), "the watch is behind".to_owned()));
            }
            should_run.extend(running(pod).into_iter().map(|(name, id)| (uid.clone(), name, id)));
            uids.insert(uid);
        }
        for job in &books.jobs {
            let conditions =
                job.status.as_ref().and_then(|status| status.conditions.clone()).unwrap_or_default();
            if !conditions.iter().any(|is| is.status == "True" && matches!(&*is.type_, "Complete" | "Failed"))
            {
                unrest.push((String::new(), format!("Job {} is not over", job.name_any())));
            }
        }
        for (uid, name, id) in books.remains.running.symmetric_difference(&should_run) {
            let runs = books.remains.running.contains(&(uid.clone(), name.clone(), id.clone()));
            let which =
                if runs { "runs, and its pod doesn't say so" } else { "doesn't run, and its pod says so" };
            unrest.push((uid.clone(), format!("container {name} {id:.12} {which}")));
        }
        for (uid, things) in books.remains.by_pod.iter().filter(|(uid, _)| !uids.contains(*uid)) {
            unrest.push((uid.clone(), format!("its pod is gone, and left {things:?}")));
        }
        unrest.extend(books.remains.stray.iter().map(|stray| (String::new(), stray.clone())));
        unrest
    }

    fn judge(&mut self, seed: u64) -> anyhow::Result<()> {
        let (wrote, strange) = history::read(&self.lines)?;
        let nothing = Wrote::default();
        let stories = self.history.stories().clone();
        let faults = self.history.faults().clone();
        for (uid, story) in &stories {
            let case = Case { uid, story, wrote: wrote.get(uid).unwrap_or(&nothing), faults: &faults };
            for wrong in case.wrong() {
                self.tell(uid, &wrong, seed);
            }
        }
        for line in strange {
            self.tell("", &format!("a container wrote {line:?}"), seed);
        }
        let wrong = std::mem::take(&mut *self.history.wrong());
        for wrong in wrong {
            self.tell("", &wrong, seed);
        }
        Ok(())
    }

    /// Tells a violation once, with the pod's history and the faults around it.
    fn tell(&mut self, uid: &str, wrong: &str, seed: u64) {
        if !self.told.insert((uid.to_owned(), wrong.to_owned())) {
            return;
        }
        let story = self.history.stories().get(uid).cloned().unwrap_or_default();
        println!("\nVIOLATION (seed {seed}, at {:.2}): pod {} {uid}: {wrong}", history::now(), story.name);
        if uid.is_empty() {
            return;
        }
        let spec = story.pod.spec.clone().unwrap_or_default();
        println!("  {:?}, grace {:?}", spec.restart_policy, spec.termination_grace_period_seconds);
        for change in &story.changes {
            println!("  api    {change}");
        }
        let text = std::fs::read_to_string(&self.lines).unwrap_or_default();
        for line in text.lines().filter(|line| line.contains(uid)) {
            println!("  wrote  {}", line.replace(uid, ""));
        }
        let until = story.gone.unwrap_or(f64::INFINITY);
        let around = |fault: &&Happened| fault.to > story.since - 5.0 && fault.from < until + 5.0;
        for fault in self.history.faults().iter().filter(around) {
            println!("  fault  {:.2}–{:.2} {}", fault.from, fault.to, fault.what);
        }
        let about = format!("involvedObject.uid={uid}");
        let columns = "-o=custom-columns=T:.metadata.creationTimestamp,N:.count,R:.reason,M:.message";
        let events = ["-n", NAMESPACE, "get", "events", "--no-headers", "--field-selector", &about, columns];
        for event in self.cluster.kubectl(&events).unwrap_or_default().lines() {
            println!("  event  {event}");
        }
        let log = self.cluster.process(NODE, "spillway-vk").map(|process| process.log);
        let log = log.ok().and_then(|log| std::fs::read_to_string(log).ok()).unwrap_or_default();
        let own: Vec<_> = log.lines().filter(|line| line.contains(uid)).collect();
        for line in &own[own.len().saturating_sub(25)..] {
            println!("  log    {line}");
        }
    }

    /// What happened, in a few lines.
    pub(super) fn summary(&self) -> String {
        let mut kinds = BTreeMap::<String, usize>::new();
        for fault in self.history.faults().iter() {
            let kind: Vec<_> = fault.what.split(' ').take(2).collect();
            *kinds.entry(kind.join(" ")).or_default() += 1;
        }
        let kinds: Vec<_> = kinds.iter().map(|(kind, count)| format!("{count} × {kind}")).collect();
        let counts: Vec<_> = self.counts.iter().map(|(what, count)| format!("{count} {what}")).collect();
        let (seconds, wrong) = (self.began.elapsed().as_secs(), self.told.len());
        format!("{} in {seconds} s: {}; {wrong} violations", counts.join(", "), kinds.join(", "))
    }
}

fn ended(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

/// The containers that run as the API server has it, with their IDs.
fn running(pod: &Pod) -> Vec<(String, String)> {
    let status = pod.status.clone().unwrap_or_default();
    let all = status.init_container_statuses.into_iter().chain(status.container_statuses).flatten();
    all.filter(|container| container.state.as_ref().is_some_and(|state| state.running.is_some()))
        .map(|container| {
            let id = container.container_id.unwrap_or_default();
            (container.name, id.rsplit('/').next().unwrap_or_default().to_owned())
        })
        .collect()
}

/// Why a pod has not yet come to where it stays.
fn restless(pod: &Pod, wrote: Option<&Wrote>) -> Option<String> {
    if pod.metadata.deletion_timestamp.is_some() {
        return Some("it is being deleted".to_owned());
    }
    if ended(pod) {
        return None;
    }
    let spec = pod.spec.clone().unwrap_or_default();
    if spec.restart_policy.as_deref() != Some("Always") {
        return Some("it has not ended".to_owned());
    }
    let running = running(pod);
    for container in &spec.containers {
        // Its argument after its name: how often it fails before it runs for good.
        let fails =
            container.command.as_ref().and_then(|command| command.get(5)?.parse().ok()).unwrap_or(0_usize);
        let starts =
            wrote.map_or(0, |wrote| wrote.starts.iter().filter(|(name, ..)| *name == container.name).count());
        if !running.iter().any(|(name, _)| *name == container.name) || starts <= fails {
            return Some(format!("{} doesn't run for good yet ({starts} starts)", container.name));
        }
    }
    None
}
