//! The recorder as the chart deploys it: what it writes down while pods come and go, and what is left of it when it is killed.

use anyhow::{Context as _, ensure};
use spillway_tests::image;

use crate::{
    Test,
    harness::{DEDICATED, Pool, wait},
};

pub(crate) const TESTS: &[Test] = &[
    ("capacity_history::the_recorder_has_no_rights_to_spare", the_recorder_has_no_rights_to_spare),
    ("capacity_history::a_recorder_that_is_killed_goes_on", a_recorder_that_is_killed_goes_on),
];

const SYSTEM: &str = "spillway-system";
const FILE: &str = "/var/lib/spillway-recorder/history.db";

/// The chart with the recorder, until this is dropped.
struct Recorder<'a>(&'a Pool);

impl<'a> Recorder<'a> {
    fn install(pool: &'a Pool) -> anyhow::Result<Self> {
        let binaries = spillway_tests::target().join("debug");
        let image = image::recorder(&binaries, &spillway_tests::target().join("images"))?;
        pool.cluster.load_images(DEDICATED, &[image])?;
        let this = Self(pool);
        let node = format!("recorder.nodeSelector.kubernetes\\.io/hostname={DEDICATED}");
        pool.cluster.install_chart(&[
            "recorder.enabled=true",
            "recorder.image.pullPolicy=Never",
            "recorder.interval=1s",
            "recorder.label=team",
            "recorder.storage.emptyDir=true",
            &node,
        ])?;
        Ok(this)
    }

    /// Runs the program in the recorder's container, which has nothing else.
    fn run(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let exec = ["-n", SYSTEM, "exec", "deploy/spillway-recorder", "--", "/usr/bin/kubectl-spillway"];
        self.0.cluster.kubectl(&[&exec[..], arguments].concat())
    }

    /// What was recorded of the last hour, a row for each time, pool and team.
    fn history(&self) -> anyhow::Result<Vec<String>> {
        let history =
            ["history", "--database", FILE, "--since", "1h", "--step", "1s", "--by", "label", "-o", "csv"];
        Ok(self.run(&history)?.lines().map(str::to_owned).collect())
    }

    fn container(&self, path: &str) -> anyhow::Result<String> {
        let label = "app.kubernetes.io/component=recorder";
        let path = format!("jsonpath={{.items[0].{path}}}");
        self.0.cluster.kubectl(&["-n", SYSTEM, "get", "pods", "-l", label, "-o", &path])
    }
}

impl Drop for Recorder<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.0.cluster.install_chart(&[]) {
            eprintln!("    the chart is not as it was: {error:#}");
        }
    }
}

fn the_recorder_has_no_rights_to_spare(pool: &Pool) -> anyhow::Result<()> {
    let chart = spillway_tests::repository().join("deploy/chart").display().to_string();
    let render = |set: &str| {
        let command = ["template", "spillway", &chart, "--set=agent.enabled=false"];
        pool.cluster.helm(&[&command[..], &[set]].concat())
    };
    ensure!(!render("--set=vk.enabled=false")?.contains("recorder"), "it is there without being asked for");
    let rendered = render("--set=recorder.enabled=true")?;
    for needed in [
        "{apiGroups: [\"\"], resources: [nodes, pods], verbs: [get, list]}",
        "runAsNonRoot: true",
        "readOnlyRootFilesystem: true",
        "allowPrivilegeEscalation: false",
        "capabilities: {drop: [ALL]}",
        "strategy: {type: Recreate}",
        "helm.sh/resource-policy: keep",
        "persistentVolumeClaim: {claimName: spillway-recorder}",
    ] {
        ensure!(rendered.contains(needed), "no {needed} in {rendered}");
    }
    for never in ["containerPort", "hostPath", "hostPID", "hostNetwork", "secrets"] {
        ensure!(!rendered.contains(never), "{never} in {rendered}");
    }
    ensure!(rendered.matches("verbs:").count() == 1, "more than one rule in {rendered}");
    let claimed = render("--set=recorder.enabled=true,recorder.storage.existingClaim=ours")?;
    ensure!(
        claimed.contains("claimName: ours") && !claimed.contains("kind: PersistentVolumeClaim"),
        "{claimed}"
    );
    Ok(())
}

fn a_recorder_that_is_killed_goes_on(pool: &Pool) -> anyhow::Result<()> {
    let recorder = Recorder::install(pool)?;
    let namespace = pool.namespace("capacity-history")?;
    namespace.holder("holds", "nvidia.com/gpu", 1)?;
    namespace.kubectl(&["label", "pod", "holds", "team=vision"])?;
    namespace.wait_ready("holds")?;
    namespace.pod(
        "waits",
        "  containers: [{name: main, image: anything, resources: {limits: {nvidia.com/gpu: 64}}}]\n",
    )?;
    let holds = |row: &String| row.ends_with(",vision,1");
    wait("the recorder to write down who holds and who waits", || {
        let history = recorder.history()?;
        Ok((history.iter().any(holds) && history.iter().any(|row| row.ends_with(",64"))).then_some(()))
    })?;

    // One file has one recorder.
    let second = recorder.run(&["record", "--database", FILE, "--once"]);
    let refusal = second.err().context("a second recorder is not refused")?.to_string();
    ensure!(refusal.contains("is being written by another recorder"), "{refusal}");

    for round in 1..=3 {
        let before = recorder.history()?;
        let (first, last) = (before.get(1).cloned(), before.iter().rfind(|row| holds(row)).cloned());
        let restarts = recorder.container("status.containerStatuses[0].restartCount")?;
        let uid = recorder.container("metadata.uid")?;
        let kill = format!(
            "for p in $(grep -l pod{uid} /proc/[0-9]*/cgroup 2>/dev/null); do p=${{p%/cgroup}}; \
             [ \"$(cat $p/comm)\" != kubectl-spillwa ] || kill -KILL ${{p#/proc/}}; done"
        );
        pool.on(DEDICATED, &kill)?;
        wait("the killed recorder to be started again", || {
            Ok((recorder.container("status.containerStatuses[0].restartCount")? != restarts).then_some(()))
        })?;
        wait("the recorder to go on where it was", || {
            let Ok(after) = recorder.history() else { return Ok(None) };
            ensure!(after.get(1) == first.as_ref(), "the first of {} samples is lost", before.len());
            let last = last.as_ref().context("nobody held anything")?;
            ensure!(after.contains(last), "a sample is lost: {last}");
            Ok((after.iter().rfind(|row| holds(row)).is_some_and(|row| row > last)).then_some(()))
        })
        .with_context(|| format!("round {round}"))?;
    }
    let shown = recorder.run(&["history", "--database", FILE, "--since", "1h", "--by", "label"])?;
    ensure!(shown.contains("vision") && shown.contains("Not seen"), "{shown}");
    Ok(())
}
