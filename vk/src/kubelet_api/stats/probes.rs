//! `/metrics/probes`: what probes have found. Names, labels and help are a kubelet's (`pkg/kubelet/prober/prober_manager.go`). Pure.

use jiff::Timestamp;

use super::text::{Families, Kind, unix};
use crate::pod::{BOUNDS, Probed};

type Name = (&'static str, Kind, &'static str);

const START: Name = (
    "process_start_time_seconds",
    Kind::Gauge,
    "[ALPHA] Start time of the process since unix epoch in seconds.",
);
const TOTAL: Name = (
    "prober_probe_total",
    Kind::Counter,
    "[BETA] Cumulative number of a liveness, readiness or startup probe for a container by result.",
);
const DURATION: Name =
    ("prober_probe_duration_seconds", Kind::Histogram, "[ALPHA] Duration in seconds for a probe response.");

pub(super) fn encode(started_at: Timestamp, probed: &[Probed]) -> String {
    let mut families = Families::default();
    families.add(START, &[], unix(started_at), None);
    for probe in probed {
        let [container, namespace, pod, uid, kind] = [
            ("container", probe.container.as_str()),
            ("namespace", probe.pod.namespace.as_str()),
            ("pod", probe.pod.name.as_str()),
            ("pod_uid", probe.pod.uid.as_str()),
            ("probe_type", probe.kind),
        ];
        let count = &probe.count;
        for (result, value) in [("failed", count.failed), ("successful", count.successful)] {
            // One that never came is not told, as a kubelet's.
            if value > 0 {
                let labels = [container, namespace, pod, uid, kind, ("result", result)];
                families.add(TOTAL, &labels, super::text::count(value), None);
            }
        }
        if count.successful > 0 {
            let labels = [container, namespace, pod, kind];
            families.add_histogram(
                DURATION,
                &labels,
                &BOUNDS,
                &count.within,
                count.successful,
                count.seconds,
            );
        }
    }
    families.text()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{pod::ProbeCount, provider::observed::PodRef};

    #[test]
    fn a_probe_is_told_as_a_kubelet_tells_it() {
        let pod = PodRef { uid: "u1".into(), namespace: "default".into(), name: "web".into() };
        let probed = |kind, count| Probed { pod: pod.clone(), container: "main".to_owned(), kind, count };
        let mut within = [0; BOUNDS.len()];
        (within[0], within[2]) = (2, 1);
        let alive = ProbeCount { successful: 4, failed: 1, within, seconds: 12.5 };
        let unready = ProbeCount { failed: 7, ..ProbeCount::default() };
        let text = encode(
            Timestamp::from_second(3).unwrap(),
            &[probed("Liveness", alive), probed("Readiness", unready)],
        );
        insta::assert_snapshot!(text);
    }
}
