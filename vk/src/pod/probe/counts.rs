//! How often probes were tried, what came of it and how long it took, for `/metrics/probes` (a kubelet's `ProberResults` and `ProberDuration` in
//! pkg/kubelet/prober). Counted over all runs of a container; gone with the pod, or when it has ended.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use super::Kind;
use crate::provider::observed::PodRef;

/// Upper bounds of the classes that durations are counted in, in seconds: those that a Prometheus client has by default.
pub const BOUNDS: [f64; 11] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// What one probe of one container has found so far.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Count {
    /// Good answers.
    pub successful: u64,
    /// Bad ones. What could not be asked at all is neither.
    pub failed: u64,
    /// How many of the good answers came within each of [`BOUNDS`], and not within the one before.
    pub within: [u64; BOUNDS.len()],
    /// Seconds that the good answers took, together.
    pub seconds: f64,
}

impl Count {
    fn add(&mut self, good: bool, took: Duration) {
        if !good {
            self.failed += 1;
            return;
        }
        self.successful += 1;
        let seconds = took.as_secs_f64();
        self.seconds += seconds;
        if let Some(class) = BOUNDS.iter().position(|bound| seconds <= *bound) {
            self.within[class] += 1;
        }
    }
}

/// A count, and what of.
#[derive(Debug, Clone, PartialEq)]
pub struct Probed {
    /// Whose container.
    pub pod: PodRef,
    /// Its name.
    pub container: String,
    /// `Liveness`, `Readiness` or `Startup`.
    pub kind: &'static str,
    /// What was found.
    pub count: Count,
}

/// The counts of one pod. Its probes share it, and it is told of for as long as they do.
#[derive(Debug)]
pub(crate) struct PodCounts {
    pod: PodRef,
    counts: Mutex<BTreeMap<(String, &'static str), Count>>,
    of_node: Arc<Counts>,
}

impl PodCounts {
    pub(crate) fn add(&self, container: &str, kind: Kind, good: bool, took: Duration) {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        counts.entry((container.to_owned(), kind.as_str())).or_default().add(good, took);
    }
}

impl Drop for PodCounts {
    fn drop(&mut self) {
        let mut pods = self.of_node.lock();
        // A worker that starts anew may have been faster.
        if pods.get(&self.pod.uid).is_some_and(|counts| counts.strong_count() == 0) {
            pods.remove(&self.pod.uid);
        }
    }
}

/// The counts of all pods that are probed, by UID.
#[derive(Debug, Default)]
pub(crate) struct Counts(Mutex<HashMap<String, Weak<PodCounts>>>);

impl Counts {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Weak<PodCounts>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// For a pod that is probed from now on.
    pub(crate) fn of(self: &Arc<Self>, pod: PodRef) -> Arc<PodCounts> {
        let counts = Arc::new(PodCounts { pod, counts: Mutex::default(), of_node: Arc::clone(self) });
        self.lock().insert(counts.pod.uid.clone(), Arc::downgrade(&counts));
        counts
    }

    /// All of them, by namespace and name.
    pub(crate) fn list(&self) -> Vec<Probed> {
        // The last to let go of a pod's counts locks what is locked here.
        let pods: Vec<_> = self.lock().values().filter_map(Weak::upgrade).collect();
        let mut all = Vec::new();
        for pod in pods {
            let counts = pod.counts.lock().unwrap_or_else(PoisonError::into_inner);
            all.extend(counts.iter().map(|((container, kind), count)| Probed {
                pod: pod.pod.clone(),
                container: container.clone(),
                kind,
                count: count.clone(),
            }));
        }
        all.sort_by(|a, b| {
            (&a.pod.namespace, &a.pod.name, &a.pod.uid).cmp(&(&b.pod.namespace, &b.pod.name, &b.pod.uid))
        });
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(uid: &str) -> PodRef {
        PodRef { uid: uid.to_owned(), namespace: "ns".to_owned(), name: "web".to_owned() }
    }

    #[test]
    fn what_a_pod_s_probes_found_is_told_until_they_end() {
        let node = Arc::new(Counts::default());
        let counts = node.of(pod("u1"));
        let probing = Arc::clone(&counts);
        probing.add("main", Kind::Liveness, true, Duration::from_millis(5));
        probing.add("main", Kind::Liveness, true, Duration::from_millis(6));
        probing.add("main", Kind::Liveness, false, Duration::from_secs(1));
        probing.add("main", Kind::Readiness, true, Duration::from_secs(11));
        let [liveness, readiness] = &node.list()[..] else { panic!("{:?}", node.list()) };
        assert_eq!(
            (liveness.kind, liveness.container.as_str(), &liveness.pod),
            ("Liveness", "main", &pod("u1"))
        );
        assert_eq!((liveness.count.successful, liveness.count.failed), (2, 1));
        assert_eq!(liveness.count.within[..3], [1, 1, 0]);
        assert!((liveness.count.seconds - 0.011).abs() < 1e-9);
        assert_eq!((readiness.kind, readiness.count.successful), ("Readiness", 1));
        assert_eq!(readiness.count.within.iter().sum::<u64>(), 0, "longer than any class");

        drop(counts);
        assert_eq!(node.list().len(), 2, "a probe still has it");
        let again = node.of(pod("u1"));
        drop(probing);
        again.add("main", Kind::Startup, true, Duration::ZERO);
        assert_eq!(node.list().len(), 1, "the old one's end takes nothing from the new one");
        drop(again);
        assert!(node.list().is_empty() && node.lock().is_empty());
    }
}
