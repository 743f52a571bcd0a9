//! Pods that wait for something else than a machine's free devices, and devices that are free and not together, on the real cluster: what `kubectl spillway report` says
//! beside what scheduler and kubelet say. Neither Volcano nor Kueue runs here: their objects are written by hand, as their API has them.

use anyhow::{Context as _, ensure};
use serde_json::Value;
use spillway_tests::standin::GpuStandin;

use crate::{
    Test,
    capacity::{free_gpus, json},
    harness::{DEDICATED, Namespace, Pool, replace_agent, wait, wait_gpus_in_status},
};

pub(crate) const TESTS: &[Test] = &[
    ("capacity_waits::gangs_wait_for_what_their_own_objects_say", gangs),
    ("capacity_waits::who_preempts_waits_for_those_that_end", preempting),
    ("capacity_waits::what_a_machine_cant_start_waits_too", stuck),
    ("capacity_waits::namespaces_are_meant_by_their_labels", namespaces),
    ("capacity_waits::free_gpus_that_nvlink_does_not_connect_are_stranded", unconnected),
];

/// Whatever has the fields that are read.
fn definition(group: &str, version: &str, kind: &str) -> String {
    let plural = format!("{}s", kind.to_lowercase());
    format!(
        "---
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {{name: {plural}.{group}}}
spec:
  group: {group}
  scope: Namespaced
  names: {{plural: {plural}, singular: {singular}, kind: {kind}}}
  versions: [{{name: {version}, served: true, storage: true, schema: {{openAPIV3Schema: {{type: object, x-kubernetes-preserve-unknown-fields: true}}}}}}]
",
        singular = kind.to_lowercase()
    )
}

const DEFINED: [(&str, &str, &str); 3] = [
    ("scheduling.volcano.sh", "v1beta1", "PodGroup"),
    ("scheduling.x-k8s.io", "v1alpha1", "PodGroup"),
    ("kueue.x-k8s.io", "v1beta2", "Workload"),
];

/// A pod's container that asks for GPUs.
fn container(gpus: u32) -> String {
    format!(
        "  terminationGracePeriodSeconds: 0
  containers: [{{name: main, image: spillway.test/busybox:dev, imagePullPolicy: Never, command: [sleep, '100000'], resources: {{limits: {{nvidia.com/gpu: {gpus}}}}}}}]
"
    )
}

/// The entry of what waits that is called so, once it has this reason.
fn waiting(pool: &Pool, namespace: &str, name: &str, reason: &str) -> anyhow::Result<Value> {
    let mut last = Value::Null;
    wait(&format!("{name} to be told as {reason}"), || {
        let report = json(pool, &["-n", namespace])?;
        let all = report["waiting"].as_array().context("nothing waits")?;
        let Some(found) = all.iter().find(|one| one["pod"] == name || one["owner"] == name) else {
            return Ok(None);
        };
        last = found.clone();
        Ok((found["reason"] == reason).then(|| found.clone()))
    })
    .with_context(|| format!("last: {last}"))
}

fn says(found: &Value, why: &str) -> anyhow::Result<()> {
    eprintln!("    {}; it would start {}", found["why"], found["starts_if"]);
    ensure!(found["why"].as_str().is_some_and(|text| text.contains(why)), "{why:?} is not in {found}");
    ensure!(found["starts_if"].as_array().is_some_and(|all| !all.is_empty()), "nothing helps: {found}");
    Ok(())
}

fn gangs(pool: &Pool) -> anyhow::Result<()> {
    free_gpus(pool)?;
    let definitions: String = DEFINED.map(|(group, version, kind)| definition(group, version, kind)).concat();
    pool.cluster.apply(&definitions)?;
    let outcome = in_gangs(pool);
    for (group, _, kind) in DEFINED {
        let name = format!("{}s.{group}", kind.to_lowercase());
        pool.cluster.kubectl(&["delete", "crd", &name, "--wait=false"])?;
    }
    outcome
}

fn in_gangs(pool: &Pool) -> anyhow::Result<()> {
    let namespace = pool.namespace("gangs")?;
    wait("the new kinds to be there", || {
        let all =
            ["podgroups.scheduling.volcano.sh", "podgroups.scheduling.x-k8s.io", "workloads.kueue.x-k8s.io"];
        let served = |kind: &&str| {
            namespace.kubectl_output(&["get", kind]).is_ok_and(|output| output.status.success())
        };
        Ok(all.iter().all(served).then_some(()))
    })?;
    // As Kueue leaves it while it waits: suspended, and its Workload would go if it did not exist.
    let job = "apiVersion: batch/v1
kind: Job
metadata: {name: sweep}
spec:
  suspend: true
  template: {spec: {restartPolicy: Never, containers: [{name: main, image: spillway.test/busybox:dev}]}}
";
    namespace.apply(job)?;
    let uid = namespace.field("job", "sweep", ".metadata.uid")?;
    let volcano = "  schedulerName: volcano\n";
    let pod = |name: &str, metadata: &str, spec: &str| {
        format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, {metadata}}}\nspec:\n{spec}{}",
            container(1)
        )
    };
    let manifest = [
        "apiVersion: scheduling.volcano.sh/v1beta1
kind: PodGroup
metadata: {name: train}
spec: {minMember: 4, queue: default}
---
apiVersion: scheduling.volcano.sh/v1beta1
kind: PodGroup
metadata: {name: small}
spec: {minMember: 2, queue: default}
status: {phase: Pending, conditions: [{type: Unschedulable, status: 'True', message: 'queue resource quota insufficient'}]}
---
apiVersion: scheduling.x-k8s.io/v1alpha1
kind: PodGroup
metadata: {name: team}
spec: {minMember: 3}
---
apiVersion: kueue.x-k8s.io/v1beta2
kind: Workload
metadata: {name: job-sweep-1a2b3, ownerReferences: [{apiVersion: batch/v1, kind: Job, name: sweep, uid: UID}]}
spec: {queueName: research, podSets: [{name: main, count: 3}]}
status: {conditions: [{type: QuotaReserved, status: 'False', reason: Pending, message: 'insufficient unused quota for nvidia.com/gpu in flavor a100, 1 more needed'}]}
"
        .to_owned(),
        pod("gang", "annotations: {scheduling.k8s.io/group-name: train}", volcano),
        pod("queued", "annotations: {scheduling.k8s.io/group-name: small}", volcano),
        pod("member", "labels: {scheduling.x-k8s.io/pod-group: team}", volcano),
        pod(
            "gated",
            "labels: {kueue.x-k8s.io/queue-name: research}",
            "  schedulingGates: [{name: kueue.x-k8s.io/admission}]\n",
        ),
    ];
    namespace.apply(&manifest.concat().replace("UID", &uid))?;
    let told = |name: &str, reason: &str, why: &str| says(&waiting(pool, "gangs", name, reason)?, why);
    told("gang", "gang", "its PodGroup train starts 4 pods together, and only 2 more such as this fit now")?;
    told("member", "gang", "its PodGroup team starts 3 pods together, and only 2 more such as this fit now")?;
    let queued = waiting(pool, "gangs", "queued", "gang")?;
    let words = "volcano says of its PodGroup small: queue resource quota insufficient";
    ensure!(queued["why"] == words, "{queued}");
    told("gated", "gated", "Kueue has not admitted it from its queue research")?;
    // It has no pods.
    told(
        "Job/sweep",
        "gated",
        "from its queue research: insufficient unused quota for nvidia.com/gpu in flavor a100",
    )?;
    // Gates are the scheduler's, too.
    let said = namespace.field("pod", "gated", ".status.conditions[?(@.type=='PodScheduled')].message")?;
    ensure!(said.contains("scheduling gates"), "{said}");
    Ok(())
}

fn preempting(pool: &Pool) -> anyhow::Result<()> {
    free_gpus(pool)?;
    let class = "apiVersion: scheduling.k8s.io/v1\nkind: PriorityClass\nmetadata: {name: spillway-test-first}\nvalue: 1000\n";
    pool.cluster.apply(class)?;
    let namespace = pool.namespace("preempting")?;
    let outcome = (|| {
        // It does not listen when it is told to end.
        let victim = container(2)
            .replace("Seconds: 0", "Seconds: 100")
            .replace("[sleep, '100000']", "[sh, -c, \"trap '' TERM; while true; do sleep 1; done\"]");
        namespace.pod("victim", &victim)?;
        namespace.wait_ready("victim")?;
        namespace.pod("first", &format!("  priorityClassName: spillway-test-first\n{}", container(2)))?;
        let found = waiting(pool, "preempting", "first", "preempting")?;
        says(&found, &format!("preempting/victim, of lower priority, is being ended on {DEDICATED} for it"))?;
        let nominated = namespace.field("pod", "first", ".status.nominatedNodeName")?;
        ensure!(nominated == DEDICATED, "the scheduler has nominated {nominated:?}");
        namespace.kubectl(&["delete", "pod", "victim", "--grace-period=0", "--force"])?;
        namespace.wait_ready("first")
    })();
    pool.cluster.kubectl(&["delete", "priorityclass", "spillway-test-first"])?;
    outcome
}

fn stuck(pool: &Pool) -> anyhow::Result<()> {
    let namespace = pool.namespace("stuck")?;
    let pod = |name: &str, image: &str, more: &str| {
        let spec = format!(
            "  nodeSelector: {{kubernetes.io/hostname: {DEDICATED}}}
  terminationGracePeriodSeconds: 0
  containers: [{{name: main, image: '{image}', {more}}}]
"
        );
        namespace.pod(name, &spec)
    };
    pod("pull", "nowhere.invalid/none:1", "imagePullPolicy: Always")?;
    pod("absent", "spillway.test/none:1", "imagePullPolicy: Never")?;
    pod(
        "secret",
        "spillway.test/busybox:dev",
        "imagePullPolicy: Never, envFrom: [{secretRef: {name: nowhere}}]",
    )?;
    for (name, words) in [
        ("pull", ["ErrImagePull", "ImagePullBackOff"].as_slice()),
        ("absent", &["ErrImageNeverPull"]),
        ("secret", &["CreateContainerConfigError"]),
    ] {
        let found = waiting(pool, "stuck", name, "not_started")?;
        says(&found, &format!("has its place on {DEDICATED}, which can't start its container main: "))?;
        let why = found["why"].as_str().unwrap_or_default();
        ensure!(words.iter().any(|word| why.contains(word)), "{why}");
        let kubelet = namespace.field("pod", name, ".status.containerStatuses[0].state.waiting.reason")?;
        ensure!(words.contains(&&*kubelet), "the kubelet says {kubelet}");
    }
    Ok(())
}

fn namespaces(pool: &Pool) -> anyhow::Result<()> {
    let (shop, namespace) = (pool.namespace("shop")?, pool.namespace("apart")?);
    pool.cluster.kubectl(&["label", "namespace", "shop", "tier=prod"])?;
    shop.apply(&format!(
        "apiVersion: v1
kind: Pod
metadata: {{name: other, labels: {{app: other}}}}
spec:
  nodeSelector: {{kubernetes.io/hostname: {DEDICATED}}}
  containers: [{{name: main, image: spillway.test/busybox:dev, imagePullPolicy: Never, command: [sleep, '100000']}}]
"
    ))?;
    shop.wait_ready("other")?;
    let pod = |name: &str, tier: &str| {
        let rule = format!(
            "{{topologyKey: kubernetes.io/hostname, namespaceSelector: {{matchLabels: {{tier: {tier}}}}}, labelSelector: {{matchLabels: {{app: other}}}}}}"
        );
        namespace.pod(
            name,
            &format!(
                "  nodeSelector: {{kubernetes.io/hostname: {DEDICATED}}}
  affinity: {{podAntiAffinity: {{requiredDuringSchedulingIgnoredDuringExecution: [{rule}]}}}}
{}",
                container(0).replace(", resources: {limits: {nvidia.com/gpu: 0}}", "")
            ),
        )
    };
    pod("away", "prod")?;
    pod("near", "test")?;
    // Of another tier's pods it minds none.
    namespace.wait_ready("near")?;
    says(
        &waiting(pool, "apart", "away", "neighbours")?,
        "its pod anti-affinity keeps it away from shop/other",
    )?;
    let said = namespace.field("pod", "away", ".status.conditions[?(@.type=='PodScheduled')].message")?;
    ensure!(said.contains("didn't match pod anti-affinity rules"), "{said}");
    Ok(())
}

/// What is stranded on the dedicated node for a cause, once it is so many GPUs: why.
pub(crate) fn stranded(pool: &Pool, cause: &str, devices: i64) -> anyhow::Result<String> {
    let mut last = Value::Null;
    wait(&format!("{devices} GPUs to be stranded: {cause}"), || {
        let report = json(pool, &[])?;
        last = report["stranded"].clone();
        let found = last
            .as_array()
            .into_iter()
            .flatten()
            .find(|one| one["cause"] == cause && one["devices"] == devices);
        Ok(found.and_then(|one| one["why"].as_str()).map(str::to_owned))
    })
    .with_context(|| format!("last: {last}"))
}

/// A pod that asks for two GPUs and may not start yet.
pub(crate) fn wants_two(namespace: &Namespace<'_>) -> anyhow::Result<()> {
    namespace.pod("pair", &format!("  schedulingGates: [{{name: example.com/hold}}]\n{}", container(2)))
}

/// A third GPU, to which the first has links; all is as it was when this is dropped.
struct Linked<'a>(&'a Pool, GpuStandin);

impl Drop for Linked<'_> {
    fn drop(&mut self) {
        let _ = self.1.remove(2);
        let back = [
            self.0
                .on(
                    DEDICATED,
                    "rm -f /dev/nvidia2; find /opt/spillway-standin -name nvlinks -prune -exec rm -r {} +",
                )
                .map(drop),
            replace_agent(self.0),
        ];
        for error in back.into_iter().filter_map(Result::err) {
            eprintln!("    setting the GPUs back: {error:#}");
        }
    }
}

fn unconnected(pool: &Pool) -> anyhow::Result<()> {
    free_gpus(pool)?;
    let namespace = pool.namespace("unconnected")?;
    let gpus = GpuStandin::at(&pool.cluster.machine(DEDICATED)?.path("/opt/spillway-standin"));
    let (path, major, minor) = GpuStandin::device_node(2);
    let linked = Linked(pool, gpus);
    pool.on(DEDICATED, &format!("mknod -m 666 {path} c {major} {minor}"))?;
    linked.1.add(2)?;
    linked.1.connect(0, 2, 4)?;
    let agents = ["-n", "spillway-system", "delete", "pod", "-l", "app.kubernetes.io/component=agent"];
    pool.cluster.kubectl(&agents)?;
    wait_gpus_in_status(pool, 3)?;
    // Of the pair that has links one is gone: the two that are left are no pair.
    linked.1.set_lost(2, true)?;
    wait_gpus_in_status(pool, 2)?;
    wants_two(&namespace)?;
    let why = stranded(pool, "nvlink", 2)?;
    ensure!(why.starts_with("at most 1 of 2 free reach each other by NVLink"), "{why}");
    Ok(())
}
