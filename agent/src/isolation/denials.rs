//! What was denied to whom: counts from the kernel, attributed to pods, told once for each pod and node.

use std::collections::{BTreeMap, BTreeSet};

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};
use tokio::sync::mpsc;

use super::{
    cgroup::PodCgroup,
    nodes::Nodes,
    program::{DenyKey, Effect, Number},
};
use crate::{holders::PodRef, pods::PodInfo};

/// Series that are kept of pods that have gone.
const GONE_LIMIT: usize = 256;
/// Cgroups whose pods are remembered: a process may be gone before its denial is read.
const CGROUP_LIMIT: usize = 4096;
/// Nodes that are told apart for one pod, which may make as many as it likes.
const NODE_LIMIT: usize = 64;
/// What the nodes beyond that are called.
const FURTHER: &str = "further nodes";

/// An open that a pod was refused, or would have been.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Denial {
    /// Who. Without a name where it isn't known.
    pub pod: PodRef,
    /// What, as on the host.
    pub node: String,
    /// How often, this time.
    pub count: u64,
    /// Whether it was really refused.
    pub enforced: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, EncodeLabelSet)]
struct Labels {
    namespace: String,
    pod: String,
    node: String,
}

/// What is counted.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    denials: Family<Labels, Counter>,
    /// How often the filter was put back.
    pub(super) restored: Counter,
    /// 1: in force.
    pub(super) in_force: Gauge,
    /// Pods that wait for a device in which another's processes still run.
    pub(super) waiting: Gauge,
    /// Pairs of a pod and a node in the kernel.
    pub(super) allowed: Gauge,
}

impl Metrics {
    /// Adds them to `registry`, whose prefix they take.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "denials",
            "Opens of accelerators' nodes that pods were refused, or would be when audited",
            self.denials.clone(),
        );
        registry.register(
            "restored",
            "Times that the device filter was found detached, replaced or unpinned, and was put back",
            self.restored.clone(),
        );
        registry.register("in_force", "Whether the device filter is attached", self.in_force.clone());
        registry.register(
            "waiting_pods",
            "Pods that wait for a device in whose former pod something still runs",
            self.waiting.clone(),
        );
        registry.register(
            "allowed_entries",
            "Pairs of a pod and an accelerator's node that the kernel allows",
            self.allowed.clone(),
        );
    }
}

/// Attributes denials.
#[derive(Debug)]
pub(super) struct Ledger {
    metrics: Metrics,
    tell: mpsc::Sender<Denial>,
    told: BTreeSet<(String, String)>,
    uids: BTreeMap<u64, String>,
    series: BTreeMap<String, BTreeSet<Labels>>,
}

impl Ledger {
    pub(super) fn new(metrics: Metrics, tell: mpsc::Sender<Denial>) -> Self {
        Self { metrics, tell, told: BTreeSet::new(), uids: BTreeMap::new(), series: BTreeMap::new() }
    }

    /// Remembers whose cgroup is whose.
    pub(super) fn saw(&mut self, cgroups: &[PodCgroup]) {
        if self.uids.len() > CGROUP_LIMIT {
            self.uids.clear();
        }
        self.uids.extend(cgroups.iter().map(|pod| (pod.id, pod.uid.clone())));
        if self.series.len() > GONE_LIMIT {
            let live: BTreeSet<_> = cgroups.iter().map(|pod| pod.uid.as_str()).collect();
            self.told.retain(|(uid, _)| live.contains(uid.as_str()));
            self.series.retain(|uid, labels| {
                let keep = live.contains(uid.as_str());
                if !keep {
                    for labels in &*labels {
                        self.metrics.denials.remove(labels);
                    }
                }
                keep
            });
        }
    }

    /// Counts that the filter was put back.
    pub(super) fn restored(&self) {
        self.metrics.restored.inc();
    }

    /// Counts and tells.
    pub(super) fn record(
        &mut self,
        denials: BTreeMap<DenyKey, u64>,
        nodes: &Nodes,
        pods: &[PodInfo],
        effect: Effect,
    ) {
        for (key, count) in denials {
            let uid = self.uids.get(&key.lower).or_else(|| self.uids.get(&key.upper)).cloned();
            let uid = uid.unwrap_or_default();
            let info = pods.iter().find(|pod| pod.uid == uid);
            let series = self.series.entry(uid.clone()).or_default();
            let mut labels = Labels {
                namespace: info.map(|pod| pod.namespace.clone()).unwrap_or_default(),
                pod: info.map_or_else(|| uid.clone(), |pod| pod.name.clone()),
                node: name(nodes, key.number),
            };
            if series.len() >= NODE_LIMIT && !series.contains(&labels) {
                FURTHER.clone_into(&mut labels.node);
            }
            self.metrics.denials.get_or_create(&labels).inc_by(count);
            series.insert(labels.clone());
            let node = labels.node.clone();
            let enforced = effect == Effect::Enforce;
            if self.told.insert((uid.clone(), node.clone())) {
                let what = if enforced { "was refused" } else { "would have been refused" };
                tracing::warn!(
                    pod.uid = uid,
                    pod.namespace = labels.namespace,
                    pod.name = labels.pod,
                    node,
                    count,
                    "a pod {what} an accelerator that it was not given"
                );
                let pod = PodRef {
                    uid,
                    namespace: info.map(|pod| pod.namespace.clone()),
                    name: info.map(|pod| pod.name.clone()),
                };
                // Nobody listens, or there is too much to tell: the log and the counters have it.
                let _ = self.tell.try_send(Denial { pod, node, count, enforced });
            }
        }
    }
}

/// What a node is called here. Those that a pod has made up share a name.
fn name(nodes: &Nodes, number: Number) -> String {
    let unknown = || format!("unknown nodes of major {}", number.major);
    nodes.names.get(&number).map_or_else(unknown, |node| node.display().to_string())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn a_denial_is_counted_each_time_and_told_once() {
        let metrics = Metrics::default();
        let (tell, mut told) = mpsc::channel(8);
        let mut ledger = Ledger::new(metrics.clone(), tell);
        let pod = |uid: &str, id| PodCgroup { uid: uid.to_owned(), id, populated: true };
        ledger.saw(&[pod("a", 11), pod("b", 22)]);
        // A pod that has gone since.
        ledger.saw(&[pod("b", 22)]);
        let info = PodInfo {
            uid: "a".to_owned(),
            namespace: "default".to_owned(),
            name: "greedy".to_owned(),
            labels: None,
            certain: true,
        };
        let number = Number { major: 195, minor: 1 };
        let guaranteed = DenyKey { upper: 11, lower: 99, number };
        let burstable = DenyKey { upper: 5, lower: 22, number };
        let unknown = DenyKey { upper: 5, lower: 6, number };
        for count in [3, 4] {
            let denials = BTreeMap::from([(guaranteed, count), (burstable, 1), (unknown, 1)]);
            ledger.record(denials, &Nodes::default(), std::slice::from_ref(&info), Effect::Enforce);
        }
        let mut names = Vec::new();
        while let Ok(denial) = told.try_recv() {
            assert!(denial.enforced && denial.node == "unknown nodes of major 195");
            names.push((denial.pod.uid, denial.pod.name));
        }
        names.sort();
        let expected = [("", None), ("a", Some("greedy")), ("b", None)];
        assert_eq!(names, expected.map(|(uid, name)| (uid.to_owned(), name.map(str::to_owned))));

        let mut registry = Registry::with_prefix("spillway_isolation");
        metrics.register(&mut registry);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        let line = r#"spillway_isolation_denials_total{namespace="default",pod="greedy",node="unknown nodes of major 195"} 7"#;
        assert!(text.contains(line), "{text}");
    }

    #[test]
    fn pods_that_have_gone_leave_a_bounded_number_of_series() {
        let (tell, _told) = mpsc::channel(1);
        let metrics = Metrics::default();
        let mut ledger = Ledger::new(metrics.clone(), tell);
        for id in 0..1000 {
            let pod = PodCgroup { uid: format!("pod-{id}"), id, populated: true };
            ledger.saw(std::slice::from_ref(&pod));
            let key = DenyKey { upper: 1 << 40, lower: id, number: Number { major: 195, minor: 0 } };
            ledger.record(BTreeMap::from([(key, 1)]), &Nodes::default(), &[], Effect::Audit);
        }
        assert!(ledger.series.len() <= GONE_LIMIT + 1, "{}", ledger.series.len());
        assert!(ledger.told.len() <= GONE_LIMIT + 1);
        let mut registry = Registry::default();
        metrics.register(&mut registry);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        assert!(text.lines().filter(|line| line.starts_with("denials_total")).count() <= GONE_LIMIT + 1);
    }
    #[test]
    fn a_pod_that_tries_a_million_nodes_is_told_of_a_few_times() {
        let (tell, mut told) = mpsc::channel(1024);
        let metrics = Metrics::default();
        let mut ledger = Ledger::new(metrics.clone(), tell);
        ledger.saw(&[PodCgroup { uid: "greedy".to_owned(), id: 1, populated: true }]);
        let mut nodes = Nodes::default();
        let number = |minor| Number { major: 195, minor };
        nodes.names.extend((0..500).map(|minor| (number(minor), format!("/dev/nvidia{minor}").into())));
        for round in 0..4_u32 {
            let tried = (0..4096)
                .map(|minor| (DenyKey { upper: 1, lower: 0, number: number(4096 * round + minor) }, 1));
            ledger.record(tried.collect(), &nodes, &[], Effect::Enforce);
        }
        let mut registry = Registry::default();
        metrics.register(&mut registry);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        let counted = text.lines().filter(|line| line.starts_with("denials_total"));
        let counts: Vec<u64> =
            counted.map(|line| line.rsplit_once(' ').unwrap().1.parse().unwrap()).collect();
        assert_eq!((counts.len(), counts.iter().sum()), (NODE_LIMIT + 1, 4 * 4096), "all are counted");
        assert_eq!(std::iter::from_fn(|| told.try_recv().ok()).count(), NODE_LIMIT + 1);
    }
}
