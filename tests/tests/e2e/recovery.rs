//! Every process of the cluster killed in turn while a Job runs over both sides: nothing may be lost, doubled or left over.
//!
//! A kubelet that loses its runtime while a container starts may call the pod failed, or start the container again (seen with Kubernetes
//! 1.35.4). On the virtual node no container may run twice, and a pod may fail only where containerd itself, killed, lost its exit code.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use anyhow::{Context as _, bail, ensure};

use crate::{
    Test,
    harness::{DEDICATED, Namespace, Pool, VIRTUAL, wait},
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
  backoffLimit: 100
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
        let done = namespace.field("job", "steady", ".status.conditions[?(@.type=='Complete')].status")?;
        Ok((done == "True").then_some(()))
    })
    .with_context(|| namespace.kubectl(&["describe", "pods"]).unwrap_or_default())?;

    check_pods(&namespace, &shared)?;

    check_nothing_is_left(pool, &namespace)
}

/// Every index succeeded once, and on the virtual node nothing failed or ran twice.
fn check_pods(namespace: &Namespace<'_>, shared: &Path) -> anyhow::Result<()> {
    let pods = namespace.kubectl(&[
        "get",
        "pods",
        "-o",
        "jsonpath={range .items[*]}{.metadata.name} {.spec.nodeName} {.status.phase} {.status.containerStatuses[0].restartCount} {.status.containerStatuses[0].state.terminated.reason}{'\\n'}{end}",
    ])?;
    let mut succeeded = 0;
    let mut on_virtual = BTreeSet::new();
    for pod in pods.lines() {
        let [name, node, phase, restarts, reason] = pod.split(' ').collect::<Vec<_>>()[..] else {
            bail!("{pod:?} is not a pod, its node, its phase, its restarts and the reason of its end");
        };
        succeeded += usize::from(phase == "Succeeded");
        if node == VIRTUAL {
            // containerd cleans up after a shim whose container ended while nobody listened: 255, Unknown.
            if phase != "Succeeded" && reason != "Unknown" {
                bail!("{name} on {node} is {phase}:\n{}", namespace.kubectl(&["describe", "pod", name])?);
            }
            ensure!(restarts == "0", "{name} on {node} was started again");
            on_virtual.insert(name);
        }
    }
    ensure!(succeeded == PODS, "{succeeded} of {PODS} pods succeeded:\n{pods}");

    let started = fs::read_to_string(shared.join("started")).context("no container wrote that it started")?;
    let mut starts: BTreeMap<&str, u32> = BTreeMap::new();
    let mut indices = BTreeSet::new();
    for line in started.lines() {
        let (index, pod) = line.split_once(' ').with_context(|| format!("{line:?} is not index and pod"))?;
        indices.insert(index);
        *starts.entry(pod).or_default() += 1;
    }
    let doubled: Vec<_> =
        starts.iter().filter(|(pod, starts)| **starts > 1 && on_virtual.contains(*pod)).collect();
    ensure!(doubled.is_empty(), "virtual pods whose container ran more than once: {doubled:?}");
    ensure!(indices.len() == PODS, "only {} of {PODS} indices ran", indices.len());
    Ok(())
}

/// After the Job's deletion neither runtime has anything of it.
fn check_nothing_is_left(pool: &Pool, namespace: &Namespace<'_>) -> anyhow::Result<()> {
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
