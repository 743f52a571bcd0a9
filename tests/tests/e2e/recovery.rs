//! Every process of the cluster killed in turn while a Job runs over both sides: nothing may be lost, doubled or left over.

use std::{collections::BTreeMap, fs};

use anyhow::{Context as _, ensure};

use crate::{
    Test,
    harness::{DEDICATED, Pool, VIRTUAL, wait},
};

pub(crate) const TESTS: &[Test] =
    &[("recovery::every_process_killed_during_a_job", every_process_killed_during_a_job)];

const PODS: usize = 40;
const PARALLEL: usize = 8;

fn every_process_killed_during_a_job(pool: &Pool) -> anyhow::Result<()> {
    let namespace = pool.namespace("recovery")?;
    let shared = pool.cluster.shared().join("recovery");
    fs::create_dir_all(&shared)?;
    // Each container writes who it is once, when it begins: a second start of the same index shows as a second line.
    namespace.apply(&format!(
        "apiVersion: batch/v1
kind: Job
metadata: {{name: steady}}
spec:
  completionMode: Indexed
  completions: {PODS}
  parallelism: {PARALLEL}
  backoffLimit: 0
  template:
    spec:
      restartPolicy: Never
      tolerations: [{{key: virtual-kubelet.io/provider, operator: Exists}}]
      topologySpreadConstraints:
      - {{maxSkew: 2, topologyKey: kubernetes.io/hostname, whenUnsatisfiable: ScheduleAnyway, labelSelector: {{matchLabels: {{job-name: steady}}}}}}
      containers:
      - name: work
        image: spillway.test/busybox:dev
        imagePullPolicy: Never
        command: [sh, -c, 'echo $JOB_COMPLETION_INDEX $HOSTNAME >> /shared/started; sleep 4']
        volumeMounts: [{{name: shared, mountPath: /shared}}]
      volumes: [{{name: shared, hostPath: {{path: /srv/shared/recovery}}}}]
"
    ))?;
    wait("the job to have pods on both sides", || {
        let nodes = namespace.kubectl(&["get", "pods", "-o", "jsonpath={.items[*].spec.nodeName}"])?;
        Ok((nodes.contains(DEDICATED) && nodes.contains(VIRTUAL)).then_some(()))
    })?;
    for process in pool.cluster.processes() {
        let (machine, name) = (process.machine.as_str(), process.name.as_str());
        pool.cluster.kill(machine, name)?;
        pool.cluster.start(machine, name)?;
        wait(
            &format!("the API server and both nodes to be Ready after {name} on {machine} was killed"),
            || {
                let ready = pool.cluster.kubectl(&[
                    "get",
                    "nodes",
                    "-o",
                    "jsonpath={range .items[*]}{.status.conditions[?(@.type=='Ready')].status} {end}",
                ])?;
                Ok((ready.trim() == "True True").then_some(()))
            },
        )?;
    }
    wait("the job to complete", || {
        let failed = namespace.field("job", "steady", ".status.failed")?;
        ensure!(failed.is_empty() || failed == "0", "{failed} pods failed");
        let done = namespace.field("job", "steady", ".status.conditions[?(@.type=='Complete')].status")?;
        Ok((done == "True").then_some(()))
    })
    .with_context(|| namespace.kubectl(&["describe", "pods"]).unwrap_or_default())?;

    let started = fs::read_to_string(shared.join("started")).context("no container wrote that it started")?;
    let mut indices: BTreeMap<usize, Vec<&str>> = BTreeMap::new();
    for line in started.lines() {
        let (index, pod) = line.split_once(' ').with_context(|| format!("{line:?} is not index and pod"))?;
        indices.entry(index.parse()?).or_default().push(pod);
    }
    let doubled: Vec<_> = indices.iter().filter(|(_, pods)| pods.len() != 1).collect();
    ensure!(doubled.is_empty(), "started more than once: {doubled:?}");
    ensure!(indices.len() == PODS, "only {} of {PODS} indices ran", indices.len());

    namespace.kubectl(&["delete", "job", "steady"])?;
    wait("the job's pods to be gone", || {
        let left = namespace.kubectl(&["get", "pods", "-o", "name"])?;
        Ok(left.is_empty().then_some(()))
    })?;
    for machine in [DEDICATED, VIRTUAL] {
        wait(&format!("the job's containers and logs on {machine} to be gone"), || {
            let list = r#"ctr -n k8s.io containers ls -q 'labels."io.kubernetes.pod.namespace"==recovery'; ls /var/log/pods"#;
            let left = pool.on(machine, list)?;
            let containers = left.lines().any(|line| !line.contains('_') || line.starts_with("recovery_"));
            Ok((!containers).then_some(()))
        })?;
    }
    Ok(())
}
