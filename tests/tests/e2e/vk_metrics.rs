//! What reads a kubelet's metrics reads the virtual node's: metrics-server, `kubectl top`, an autoscaler of pods.

use anyhow::Context as _;
use spillway_tests::{components, image};

use crate::{
    Test,
    harness::{DEDICATED, Pool, VIRTUAL, wait},
};

pub(crate) const TESTS: &[Test] = &[(
    "vk_metrics::a_deployment_is_scaled_by_what_its_pods_use",
    a_deployment_is_scaled_by_what_its_pods_use,
)];

const SERVER: &str = "tests/cluster/manifests/metrics-server.yaml";

/// A Deployment that uses more than half of what it asks for, and its autoscaler.
const BUSY: &str = "
apiVersion: apps/v1
kind: Deployment
metadata: {name: busy}
spec:
  selector: {matchLabels: {app: busy}}
  template:
    metadata: {labels: {app: busy}}
    spec:
      nodeSelector: {kubernetes.io/hostname: virtual-1}
      tolerations: [{key: virtual-kubelet.io/provider, operator: Exists}]
      terminationGracePeriodSeconds: 0
      containers:
      - name: busy
        image: spillway.test/busybox:dev
        imagePullPolicy: Never
        command: [sh, -c, 'while :; do :; done']
        resources: {requests: {cpu: 50m, memory: 16Mi}, limits: {cpu: 50m, memory: 64Mi}}
---
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata: {name: busy}
spec:
  scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: busy}
  minReplicas: 1
  maxReplicas: 2
  metrics: [{type: Resource, resource: {name: cpu, target: {type: Utilization, averageUtilization: 40}}}]
";

fn a_deployment_is_scaled_by_what_its_pods_use(pool: &Pool) -> anyhow::Result<()> {
    with_metrics_server(pool, || scaled(pool))
}

/// Runs `test` while metrics-server runs on the dedicated node.
pub(crate) fn with_metrics_server(
    pool: &Pool,
    test: impl FnOnce() -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let cluster = &pool.cluster;
    components::ensure_metrics_server()?;
    let image = image::metrics_server(&components::folder(), &spillway_tests::target().join("images"))?;
    cluster.load_images(DEDICATED, &[image])?;
    let manifest = spillway_tests::repository().join(SERVER);
    let manifest = manifest.to_string_lossy();
    cluster.kubectl(&["apply", "-f", &manifest])?;
    let outcome = test();
    let removed = cluster.kubectl(&["delete", "--wait=true", "-f", &manifest]);
    outcome.and(removed.map(drop).context("can't remove metrics-server"))
}

fn scaled(pool: &Pool) -> anyhow::Result<()> {
    let cluster = &pool.cluster;
    let namespace = pool.namespace("metrics")?;
    namespace.apply(BUSY)?;
    let number =
        |text: &str, unit: &str| text.strip_suffix(unit).and_then(|number| number.parse::<u64>().ok());
    // NAME CPU(cores) CPU(%) MEMORY(bytes) MEMORY(%)
    wait("kubectl top to show the virtual node", || {
        let top = cluster.kubectl(&["top", "node", VIRTUAL, "--no-headers"])?;
        let cells: Vec<_> = top.split_whitespace().collect();
        let (cpu, memory) = (number(cells[1], "m"), number(cells[3], "Mi"));
        Ok((cpu > Some(0) && memory > Some(0)).then_some(()))
    })?;
    wait("kubectl top to show what the pod uses, which is all that it may", || {
        let top = namespace.kubectl(&["top", "pod", "--no-headers"])?;
        let cells: Vec<_> = top.lines().next().unwrap_or_default().split_whitespace().collect();
        let (cpu, memory) = (number(cells[1], "m"), number(cells[2], "Mi"));
        Ok((cpu.is_some_and(|cpu| (25..=75).contains(&cpu)) && memory < Some(64)).then_some(()))
    })?;
    wait("the autoscaler to double the Deployment", || {
        let replicas =
            namespace.kubectl(&["get", "deployment", "busy", "-o", "jsonpath={.status.readyReplicas}"])?;
        Ok((replicas == "2").then_some(()))
    })
}
