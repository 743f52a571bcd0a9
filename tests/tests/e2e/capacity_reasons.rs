//! Some thirty pods that wait for as many reasons, on the real cluster: what `kubectl spillway report` says of each, beside what the scheduler itself says.

use std::collections::BTreeMap;

use anyhow::{Context as _, bail, ensure};
use serde_json::Value;

use crate::{
    Test,
    capacity::json,
    harness::{DEDICATED, Pool, wait, wait_gpus},
};

pub(crate) const TESTS: &[Test] = &[("capacity_reasons::each_pod_waits_for_the_reason_that_is_told", told)];

/// A pod that waits.
struct Case {
    name: &'static str,
    /// Lines of its spec, and of its labels.
    spec: &'static str,
    labels: &'static str,
    container: &'static str,
    /// What a report says: the word, and a part of the sentence.
    reason: &'static str,
    why: &'static str,
    /// A part of what the scheduler says; empty where it says nothing.
    scheduler: &'static str,
}

const GPU: &str = "resources: {limits: {nvidia.com/gpu: 1}}";
const LITTLE: &str = "resources: {requests: {cpu: 10m}}";

impl Case {
    const fn new(name: &'static str, container: &'static str, spec: &'static str) -> Self {
        Self { name, spec, labels: "", container, reason: "", why: "", scheduler: "" }
    }

    const fn labelled(self, labels: &'static str) -> Self {
        Self { labels, ..self }
    }

    const fn waits(self, reason: &'static str, why: &'static str, scheduler: &'static str) -> Self {
        Self { reason, why, scheduler, ..self }
    }

    fn manifest(&self) -> String {
        let Self { name, spec, labels, container, .. } = self;
        format!(
            "---
apiVersion: v1
kind: Pod
metadata: {{name: {name}, labels: {{case: {name}{labels}}}}}
spec:
  terminationGracePeriodSeconds: 0
{spec}
  containers: [{{name: main, image: spillway.test/busybox:dev, imagePullPolicy: Never, command: [sleep, '100000'], {container}}}]
"
        )
    }
}

/// What the pods find: a GPU of two is held, and a port of the host.
const SCENE: &str = "
apiVersion: v1
kind: Pod
metadata: {name: holder, labels: {app: holder}}
spec:
  terminationGracePeriodSeconds: 0
  containers: [{name: main, image: spillway.test/busybox:dev, imagePullPolicy: Never, command: [sleep, '100000'], ports: [{containerPort: 7777, hostPort: 7777}], resources: {limits: {nvidia.com/gpu: 1}}}]
---
apiVersion: scheduling.k8s.io/v1
kind: PriorityClass
metadata: {name: spillway-test-polite}
value: 1000
preemptionPolicy: Never
---
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {name: spillway-test-far}
provisioner: csi.example.com
---
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {name: spillway-test-local}
provisioner: kubernetes.io/no-provisioner
volumeBindingMode: WaitForFirstConsumer
---
apiVersion: v1
kind: PersistentVolume
metadata: {name: spillway-test-elsewhere}
spec:
  capacity: {storage: 1Gi}
  accessModes: [ReadWriteOnce]
  storageClassName: spillway-test-bound
  hostPath: {path: /tmp/elsewhere}
  nodeAffinity: {required: {nodeSelectorTerms: [{matchExpressions: [{key: type, operator: In, values: [virtual-kubelet]}]}]}}
  claimRef: {namespace: reasons, name: elsewhere}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: elsewhere}
spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}, storageClassName: spillway-test-bound, volumeName: spillway-test-elsewhere}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: unbound}
spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}, storageClassName: spillway-test-far}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: late}
spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}, storageClassName: spillway-test-local}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: classless}
spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}, storageClassName: ''}
---
apiVersion: resource.k8s.io/v1
kind: DeviceClass
metadata: {name: spillway-test.example.com}
spec: {}
---
apiVersion: resource.k8s.io/v1
kind: ResourceClaim
metadata: {name: devices}
spec: {devices: {requests: [{name: one, exactly: {deviceClassName: spillway-test.example.com}}]}}
---
apiVersion: resource.k8s.io/v1
kind: ResourceClaim
metadata: {name: no-class}
spec: {devices: {requests: [{name: one, exactly: {deviceClassName: gone.example.com}}]}}
";

/// What of it no namespace takes along.
const LEFT: [&str; 5] = [
    "priorityclass/spillway-test-polite",
    "storageclass/spillway-test-far",
    "storageclass/spillway-test-local",
    "persistentvolume/spillway-test-elsewhere",
    "deviceclass/spillway-test.example.com",
];

const CASES: [Case; 29] = [
    Case::new("too-few", "resources: {limits: {nvidia.com/gpu: 2}}", "")
        .waits("full", "asks for 2 GPUs: 1 of 2 is free", "Insufficient nvidia.com/gpu"),
    Case::new("huge", "resources: {limits: {nvidia.com/gpu: 16}}", "")
        .waits("too_large", "16 GPUs on one machine, and the largest (dedicated-1) has 2", "Insufficient nvidia.com/gpu"),
    Case::new("no-cpu-beside", "resources: {requests: {cpu: ALMOST}, limits: {nvidia.com/gpu: 1}}", "")
        .waits("nothing_beside", "1 GPU is free on dedicated-1, but only ", "Insufficient cpu"),
    Case::new("much-memory", "resources: {requests: {memory: 3Ti}, limits: {nvidia.com/gpu: 1}}", "")
        .waits("too_large", "asks for 1 GPU and 3Ti of memory, and dedicated-1 has at most ", "Insufficient memory"),
    Case::new("much-cpu", "resources: {requests: {cpu: 640}}", "")
        .waits("too_large", "asks for 640 cores, and the largest machine (dedicated-1) has ", "Insufficient cpu"),
    Case::new("init-cpu", LITTLE, "  initContainers: [{name: first, image: spillway.test/busybox:dev, command: ['true'], resources: {requests: {cpu: 320}}}]")
        .waits("too_large", "asks for 320 cores", "Insufficient cpu"),
    Case::new("much-disk", "resources: {requests: {ephemeral-storage: 9Ti}}", "")
        .waits("too_large", "asks for 9Ti of ephemeral-storage", "Insufficient ephemeral-storage"),
    Case::new("profile", "resources: {limits: {nvidia.com/mig-1g.5gb: 1}}", "")
        .waits("not_offered", "asks for nvidia.com/mig-1g.5gb, which no machine offers", "Insufficient nvidia.com/mig-1g.5gb"),
    Case::new("selector", GPU, "  nodeSelector: {nvidia.com/gpu.product: H100}")
        .waits("not_selected", "no machine has the label nvidia.com/gpu.product=H100", "didn't match Pod's node affinity/selector"),
    Case::new("affinity", GPU, "  affinity: {nodeAffinity: {requiredDuringSchedulingIgnoredDuringExecution: {nodeSelectorTerms: [{matchExpressions: [{key: zone, operator: In, values: [b]}]}]}}}")
        .waits("not_selected", "its node affinity (zone In b) fits none", "didn't match Pod's node affinity/selector"),
    Case::new("one-machine", LITTLE, "  affinity: {nodeAffinity: {requiredDuringSchedulingIgnoredDuringExecution: {nodeSelectorTerms: [{matchFields: [{key: metadata.name, operator: In, values: [gone-7]}]}]}}}")
        .waits("not_selected", "it is meant for gone-7 alone", "NodeAffinity"),
    Case::new("taint", LITTLE, "  nodeSelector: {type: virtual-kubelet}")
        .waits("kept_off", "virtual-1 has the taint virtual-kubelet.io/provider=cri:NoSchedule", "untolerated taint"),
    Case::new("virtual-limit", "resources: {requests: {cpu: 2000}}", "  nodeSelector: {type: virtual-kubelet}\n  tolerations: [{key: virtual-kubelet.io/provider, operator: Exists}]")
        .waits("too_large", "asks for 2000 cores, and the largest machine (virtual-1) has 1000 cores", "Insufficient cpu"),
    Case::new("apart", LITTLE, "  affinity: {podAntiAffinity: {requiredDuringSchedulingIgnoredDuringExecution: [{topologyKey: kubernetes.io/os, labelSelector: {matchLabels: {app: holder}}}]}}")
        .waits("neighbours", "its pod anti-affinity keeps it away from reasons/holder", "didn't match pod anti-affinity rules"),
    Case::new("together", LITTLE, "  affinity: {podAffinity: {requiredDuringSchedulingIgnoredDuringExecution: [{topologyKey: kubernetes.io/hostname, labelSelector: {matchLabels: {app: nobody}}}]}}")
        .waits("neighbours", "no pod runs that its pod affinity wants to be near (app=nobody)", "didn't match pod affinity rules"),
    Case::new("spread", LITTLE, "  nodeSelector: {kubernetes.io/hostname: dedicated-1}\n  topologySpreadConstraints: [{maxSkew: 1, topologyKey: kubernetes.io/hostname, whenUnsatisfiable: DoNotSchedule, nodeAffinityPolicy: Ignore, labelSelector: {matchLabels: {app: holder}}}]")
        .labelled(", app: holder")
        .waits("neighbours", "its topology spread constraint (maxSkew 1 of kubernetes.io/hostname)", "didn't match pod topology spread constraints"),
    Case::new("port", "ports: [{containerPort: 7777, hostPort: 7777}], resources: {requests: {cpu: 10m}}", "")
        .waits("neighbours", "reasons/holder has the host's port 7777", "didn't have free ports"),
    Case::new("polite", "resources: {limits: {nvidia.com/gpu: 2}}", "  priorityClassName: spillway-test-polite")
        .waits("full", "asks for 2 GPUs: 1 of 2 is free", "preemptionPolicy=Never"),
    Case::new("scheduler", GPU, "  schedulerName: volcano").waits("scheduler", "volcano has not looked at it: does it run?", ""),
    Case::new("gate", GPU, "  schedulingGates: [{name: example.com/hold}]")
        .waits("gated", "held back by its scheduling gate example.com/hold", "scheduling gates"),
    Case::new("volume-missing", LITTLE, "  volumes: [{name: data, persistentVolumeClaim: {claimName: nowhere}}]")
        .waits("volume", "its volume claim nowhere does not exist", "persistentvolumeclaim \"nowhere\" not found"),
    Case::new("volume-unbound", LITTLE, "  volumes: [{name: data, persistentVolumeClaim: {claimName: unbound}}]")
        .waits("volume", "its storage class spillway-test-far has no volume for it yet", "unbound immediate PersistentVolumeClaims"),
    Case::new("volume-classless", LITTLE, "  volumes: [{name: data, persistentVolumeClaim: {claimName: classless}}]")
        .waits("volume", "its volume claim classless is not bound: it names no storage class", "unbound immediate PersistentVolumeClaims"),
    Case::new("volume-late", LITTLE, "  volumes: [{name: data, persistentVolumeClaim: {claimName: late}}]")
        .waits("volume", "no machine that could hold it gets a volume of the storage class spillway-test-local", "persistent volumes to bind"),
    Case::new("volume-elsewhere", LITTLE, "  volumes: [{name: data, persistentVolumeClaim: {claimName: elsewhere}}]\n  nodeSelector: {spillway.dev/accelerators: 'true'}")
        .waits("volume", "the volume of its claim elsewhere can be reached from virtual-1 only", "PersistentVolume's node affinity"),
    Case::new("devices", LITTLE, "  resourceClaims: [{name: one, resourceClaimName: devices}]")
        .waits("claim", "no machine that could hold it has enough free devices of the class spillway-test.example.com", "cannot allocate all claims"),
    Case::new("devices-missing", LITTLE, "  resourceClaims: [{name: one, resourceClaimName: nowhere}]")
        .waits("claim", "its claim of devices nowhere does not exist", ""),
    Case::new("devices-classless", LITTLE, "  resourceClaims: [{name: one, resourceClaimName: no-class}]")
        .waits("claim", "names the device class gone.example.com, which does not exist", "device class gone.example.com does not exist"),
    Case::new("full-cpu", "resources: {requests: {cpu: ALMOST}}", "  nodeSelector: {kubernetes.io/hostname: dedicated-1}")
        .waits("full", "cores: the most that is free on one machine is ", "Insufficient cpu"),
];

fn told(pool: &Pool) -> anyhow::Result<()> {
    wait_gpus(pool, 2)?;
    let namespace = pool.namespace("reasons")?;
    let outcome = (|| {
        namespace.apply(SCENE)?;
        namespace.wait_ready("holder")?;
        let almost = format!("{}m", cpu_milli(pool)? - 5);
        namespace.apply(&CASES.iter().map(Case::manifest).collect::<String>().replace("ALMOST", &almost))?;
        // One that was told to end waits for nothing.
        let ending = Case::new("ending", GPU, "  schedulerName: nobody").manifest();
        namespace.apply(&ending.replace("labels:", "finalizers: [example.com/keep], labels:"))?;
        namespace.kubectl(&["delete", "pod", "ending", "--wait=false"])?;
        let mut wrong = Vec::new();
        let right = wait("the reasons to be those that are told", || {
            wrong = judged(pool)?;
            Ok(wrong.is_empty().then_some(()))
        });
        if right.is_err() {
            bail!("{}", wrong.join("\n"));
        }
        Ok(())
    })();
    let patch = r#"{"metadata":{"finalizers":null}}"#;
    let _ = namespace.kubectl(&["patch", "pod", "ending", "--type=merge", "-p", patch]);
    pool.cluster.kubectl(&[&["delete", "--ignore-not-found", "--wait=false"][..], &LEFT].concat())?;
    outcome
}

/// What pods may have of the dedicated node, which runs some already.
fn cpu_milli(pool: &Pool) -> anyhow::Result<u32> {
    let path = "jsonpath={.status.allocatable.cpu}";
    let cpu = pool.cluster.kubectl(&["get", "node", DEDICATED, "-o", path])?;
    let cpu = cpu.trim();
    let milli = match cpu.strip_suffix('m') {
        Some(milli) => milli.parse(),
        None => cpu.parse().map(|cores: u32| cores * 1000),
    };
    milli.with_context(|| format!("{cpu} is no amount of CPU"))
}

/// What is not as it should be.
fn judged(pool: &Pool) -> anyhow::Result<Vec<String>> {
    let said = scheduler(pool)?;
    let report = json(pool, &["-n", "reasons"])?;
    let waiting = report["waiting"].as_array().context("nothing waits")?;
    ensure!(waiting.iter().all(|one| one["pod"] != "ending"), "a pod that ends waits");
    let mut wrong = Vec::new();
    for case in &CASES {
        let Some(found) = waiting.iter().find(|one| one["pod"] == case.name) else {
            wrong.push(format!("{}: it doesn't wait", case.name));
            continue;
        };
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let (reason, why) = (text(&found["reason"]), text(&found["why"]));
        let words = said.get(case.name).map_or("", String::as_str);
        let agrees = words.contains(case.scheduler) && (!case.scheduler.is_empty() || words.is_empty());
        if reason != case.reason || !why.contains(case.why) || !agrees {
            wrong.push(format!("{}: {reason}: {why}; the scheduler says: {words}", case.name));
        }
        if found["starts_if"].as_array().is_none_or(Vec::is_empty) {
            wrong.push(format!("{}: nothing would let it start: {why}", case.name));
        }
    }
    Ok(wrong)
}

/// By pod, the scheduler's own words.
fn scheduler(pool: &Pool) -> anyhow::Result<BTreeMap<String, String>> {
    let pods: Value =
        serde_json::from_str(&pool.cluster.kubectl(&["-n", "reasons", "get", "pods", "-o", "json"])?)?;
    let pods = pods["items"].as_array().context("no pods")?.iter();
    let words = |pod: &Value| {
        let conditions = pod["status"]["conditions"].as_array()?;
        let scheduled = conditions.iter().find(|condition| condition["type"] == "PodScheduled")?;
        Some((pod["metadata"]["name"].as_str()?.to_owned(), scheduled["message"].as_str()?.to_owned()))
    };
    Ok(pods.filter_map(words).collect())
}
