//! What the demo found: numbers, and how they are shown.

use serde::Serialize;

/// The numbers of one run, as `--report` writes them.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// Pods that the Job asked for.
    pub pods: usize,
    /// Pods that ran on the dedicated node.
    pub dedicated: usize,
    /// Pods that ran on the virtual node.
    pub r#virtual: usize,
    /// Results in shared storage that the Job should have made, each counted once.
    pub results: usize,
    /// Pods, sandboxes, containers, snapshots, leases, network namespaces and addresses of the Job that outlived it.
    pub left_over: usize,
    /// Seconds from the Job's creation until its first container was seen running.
    pub first_running_s: f64,
    /// Seconds from the Job's creation until its last pod was seen to have succeeded.
    pub done_s: f64,
    /// `pods` / `done_s`.
    pub pods_per_s: f64,
    /// The same containers on the virtual node's runtime, started by a loop over its interface, 4 in flight.
    pub cri_loop_pods_per_s: f64,
    /// `pods_per_s` / `cri_loop_pods_per_s`: 1 is as fast as the bare loop.
    pub ratio: f64,
}

/// What was seen of one side of the pool.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Side {
    /// Pods that were bound to it.
    pub pods: usize,
    /// Pods that wait there for their container.
    pub waiting: usize,
    /// Pods with a running container.
    pub running: usize,
    /// Pods that succeeded.
    pub done: usize,
    /// Seconds until the first container was seen running.
    pub first_running_s: Option<f64>,
    /// Seconds until the last pod was seen to have succeeded.
    pub last_done_s: Option<f64>,
}

/// The table at the end: both sides and the whole.
pub fn table(names: [&str; 2], sides: [Side; 2], report: &Report) -> String {
    let [dedicated, elastic] = sides;
    let seconds = |value: Option<f64>| value.map_or("–".to_owned(), |value| format!("{value:.1} s"));
    let rate = |side: Side| match side.last_done_s {
        Some(last) if side.done > 0 => format!("{:.1}", count(side.done) / last),
        _ => "–".to_owned(),
    };
    let whole = |value: String| [String::new(), String::new(), value];
    let rows = [
        ("", [names[0].to_owned(), names[1].to_owned(), "both".to_owned()]),
        ("pods", [dedicated.pods.to_string(), elastic.pods.to_string(), report.pods.to_string()]),
        (
            "first container running after",
            [
                seconds(dedicated.first_running_s),
                seconds(elastic.first_running_s),
                seconds(Some(report.first_running_s)),
            ],
        ),
        (
            "last pod done after",
            [seconds(dedicated.last_done_s), seconds(elastic.last_done_s), seconds(Some(report.done_s))],
        ),
        ("pods per second", [rate(dedicated), rate(elastic), format!("{:.1}", report.pods_per_s)]),
        (
            "bare CRI loop on the same runtime, pods per second",
            whole(format!("{:.1}", report.cri_loop_pods_per_s)),
        ),
        ("ratio to the bare loop", whole(format!("{:.2}", report.ratio))),
    ];
    let label = rows.iter().map(|(label, _)| label.len()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..3)
        .map(|column| rows.iter().map(|(_, cells)| cells[column].chars().count()).max().unwrap_or(0))
        .collect();
    let line = |(name, cells): &(&str, [String; 3])| {
        let [one, two, both] = cells;
        let text = format!(
            "  {name:label$}  {one:>w0$}  {two:>w1$}  {both:>w2$}",
            w0 = widths[0],
            w1 = widths[1],
            w2 = widths[2]
        );
        text.trim_end().to_owned() + "\n"
    };
    rows.iter().map(line).collect()
}

/// A number of pods, for division.
#[allow(clippy::cast_precision_loss)] // There are never 2^52 pods.
pub fn count(pods: usize) -> f64 {
    pods as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        Report {
            pods: 200,
            dedicated: 23,
            r#virtual: 177,
            results: 200,
            left_over: 0,
            first_running_s: 0.84,
            done_s: 40.0,
            pods_per_s: 5.0,
            cri_loop_pods_per_s: 6.25,
            ratio: 0.8,
        }
    }

    #[test]
    fn the_keys_of_the_report_are_fixed() {
        let serde_json::Value::Object(report) = serde_json::to_value(report()).unwrap() else { panic!() };
        let mut keys: Vec<_> = report.keys().map(String::as_str).collect();
        keys.sort_unstable();
        assert_eq!(
            keys,
            [
                "cri_loop_pods_per_s",
                "dedicated",
                "done_s",
                "first_running_s",
                "left_over",
                "pods",
                "pods_per_s",
                "ratio",
                "results",
                "virtual"
            ]
        );
    }

    #[test]
    fn the_table_lines_up() {
        let dedicated = Side {
            pods: 23,
            done: 23,
            first_running_s: Some(0.84),
            last_done_s: Some(11.5),
            ..Side::default()
        };
        let elastic = Side {
            pods: 177,
            done: 177,
            first_running_s: Some(1.2),
            last_done_s: Some(40.0),
            ..Side::default()
        };
        let expected = "
                                                      dedicated-1  virtual-1    both
  pods                                                         23        177     200
  first container running after                             0.8 s      1.2 s   0.8 s
  last pod done after                                      11.5 s     40.0 s  40.0 s
  pods per second                                             2.0        4.4     5.0
  bare CRI loop on the same runtime, pods per second                             6.2
  ratio to the bare loop                                                        0.80
";
        assert_eq!(table(["dedicated-1", "virtual-1"], [dedicated, elastic], &report()), expected[1..]);
    }
}
