//! What accelerators did for a pod, by Prometheus: who computes how much now, and since when somebody has computed nothing.

use std::{collections::HashMap, sync::Arc};

use jiff::Timestamp;

use super::usage::ByPod;
use crate::{
    history::{
        Cell, Recorded, What,
        prometheus::{self, Kind, Query, Range, transport::Transport},
    },
    report::snapshot::Snapshot,
};

/// How far back is looked for somebody's last work, and how closely, in seconds.
const BACK_S: i64 = 7 * 24 * 3600;
const STEP_S: i64 = 600;
/// What is computed now, in seconds.
const NOW_S: i64 = 300;
/// Who keeps a context open shows a few thousandths.
const NOTHING_MILLI: i64 = 5;
/// A pod's name, in a label that owners have (`history::prometheus`).
const POD: &str = "label";

/// Metrics of utilisation, those first that hold: Spillway's agent knows who holds what of shared devices.
const METRICS: [(&str, &str, &str); 3] = [
    ("spillway_container_device_utilization_ratio", "device, partition", "1"),
    ("DCGM_FI_PROF_GR_ENGINE_ACTIVE", "UUID, GPU_I_ID", "1"),
    ("DCGM_FI_DEV_GPU_UTIL", "UUID, GPU_I_ID", "100"),
];

/// What is known of one pod.
#[derive(Debug, Default, Clone, Copy, PartialEq)]
struct Past {
    computes: f64,
    /// When it was last seen to compute, or nobody looked; `None`: not within the time looked back.
    busy_until_s: Option<i64>,
}

/// Fills in what nobody else has told of pods; what can't be had is said.
pub(super) async fn read(transport: &Transport, snapshot: &mut Snapshot, usage: &mut ByPod) {
    const WHAT: &str = "what accelerators did";
    let mut known: HashMap<(String, String), Past> = HashMap::new();
    let now_s = snapshot.at.as_second();
    let asked = async {
        prometheus::reach(transport).await?;
        for metric in METRICS {
            for (pod, past) in of_metric(transport, metric, now_s).await? {
                known.entry(pod).or_insert(past);
            }
        }
        Ok::<_, prometheus::Error>(())
    };
    if let Err(error) = asked.await {
        let causes = std::iter::successors(Some(&error as &dyn std::error::Error), |cause| cause.source());
        let why: Vec<_> = causes.map(ToString::to_string).collect();
        snapshot.beside.not_seen.push(format!("{WHAT}: {}", why.join(": ")));
        return;
    }
    let address = transport.address();
    if known.is_empty() {
        let names = METRICS.map(|(name, ..)| name).join(", ");
        snapshot.beside.not_seen.push(format!("{WHAT}: {address} has none of {names} with the pods' names"));
        return;
    }
    snapshot.beside.seen.push(format!("{WHAT}: Prometheus at {address}, {} pods", known.len()));
    let bound: HashMap<_, _> =
        snapshot.pods.iter().map(|pod| ((pod.namespace.clone(), pod.name.clone()), pod.bound)).collect();
    for ((namespace, pod), past) in known {
        let key = (snapshot.names.word(&namespace), Arc::from(pod));
        // Of a pod that is gone by now.
        let Some(bound) = bound.get(&key) else { continue };
        let told = usage.entry(key).or_default();
        let computes = *told.computes.get_or_insert(past.computes);
        if told.idle_s.is_none() {
            let began_s = bound.map_or(i64::MIN, Timestamp::as_second);
            let since_s = past.busy_until_s.unwrap_or(snapshot.at.as_second() - BACK_S).max(began_s);
            let idle_s = (snapshot.at.as_second() - since_s).max(0);
            told.idle = computes * 1000.0 <= float(NOTHING_MILLI);
            told.idle_s = told.idle.then_some(float(idle_s));
        }
    }
}

/// By namespace and pod, what one metric tells.
async fn of_metric(
    transport: &Transport,
    (name, units, whole): (&str, &str, &str),
    now_s: i64,
) -> Result<HashMap<(String, String), Past>, prometheus::Error> {
    let query = |over: &str, step_s: i64| Query {
        promql: by_pod(name, units, whole, over, step_s),
        counts: Some(Kind { what: What::Used, serverless: false }),
    };
    let ask = async |query: Query, range: Range| {
        prometheus::ask(transport, &[query], range, &|_| {}).await.map(|told| told.recorded)
    };
    // As of this very moment: the last scrape may be a minute old.
    let now = Range { since_s: now_s - NOW_S, until_s: now_s, step_s: NOW_S };
    let now = ask(query("avg_over_time", NOW_S), now).await?;
    if now.series.is_empty() {
        return Ok(HashMap::new());
    }
    let past = ask(query("max_over_time", STEP_S), Range::of(now_s - BACK_S, now_s, STEP_S)).await?;
    Ok(joined(&now, &past))
}

fn joined(now: &Recorded, past: &Recorded) -> HashMap<(String, String), Past> {
    let unseen_until_s = last_gap(past);
    let pod = |key: &crate::history::Key| (key.owner.namespace.clone(), key.owner.label.clone());
    let busy: HashMap<_, _> = past
        .series
        .iter()
        .map(|(key, cells)| {
            let works = |cell: &&Cell| cell.most > NOTHING_MILLI;
            (pod(key), cells.iter().filter(works).map(|cell| cell.end_s).max())
        })
        .collect();
    let found = now.series.iter().map(|(key, cells)| {
        let milli = cells.last().map_or(0, |cell| cell.most);
        let last = busy.get(&pod(key)).copied().flatten();
        (pod(key), Past { computes: float(milli) / 1000.0, busy_until_s: last.max(unseen_until_s) })
    });
    found.collect()
}

/// Until when nobody looked last: what was done then nobody knows.
fn last_gap(past: &Recorded) -> Option<i64> {
    let steps = past.steps.windows(2);
    steps.filter(|pair| pair[0].end_s + STEP_S < pair[1].end_s).map(|pair| pair[1].end_s - STEP_S).max()
}

/// Utilisation by pod in devices. Unless a scrape honours labels, pods are in `exported_pod`; of two Prometheus servers or exporters that tell the same, one counts.
fn by_pod(metric: &str, units: &str, whole: &str, over: &str, seconds: i64) -> String {
    let exported = format!("{over}({metric}{{exported_namespace!=\"\",exported_pod!=\"\"}}[{seconds}s])");
    let own = format!(
        "{over}({metric}{{exported_pod=\"\",namespace!=\"\",pod!=\"\",pod!~\".*dcgm-exporter.*\"}}[{seconds}s])"
    );
    let named = format!(
        "label_replace(label_replace({exported}, \"namespace\", \"$1\", \"exported_namespace\", \"(.+)\"), \"pod\", \"$1\", \"exported_pod\", \"(.+)\") or {own}"
    );
    let each = format!("max by (namespace, pod, {units}) ({named}) / {whole}");
    format!("label_replace(sum by (namespace, pod) ({each}), \"{POD}\", \"$1\", \"pod\", \"(.+)\")")
}

#[allow(clippy::cast_precision_loss)]
fn float(number: i64) -> f64 {
    number as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::{Key, Owner, Pool, Step};

    fn recorded(step_s: i64, ends_s: &[i64], series: &[(&str, &[(i64, i64)])]) -> Recorded {
        let pool =
            Pool { name: "all".to_owned(), resource: String::new(), model: String::new(), serverless: false };
        let owner =
            |pod: &str| Owner { namespace: "team".to_owned(), label: pod.to_owned(), user: String::new() };
        let cell = |(end_s, milli): &(i64, i64)| Cell {
            end_s: *end_s,
            milli_gpu_s: milli * step_s,
            least: *milli,
            most: *milli,
        };
        Recorded {
            steps: ends_s.iter().map(|end_s| Step { end_s: *end_s, len_s: step_s, seen_s: step_s }).collect(),
            series: series
                .iter()
                .map(|(pod, cells)| {
                    let key = Key { what: What::Used, pool: pool.clone(), owner: owner(pod) };
                    (key, cells.iter().map(cell).collect())
                })
                .collect(),
        }
    }

    #[test]
    fn idle_is_since_the_last_work_or_the_last_gap() {
        let now = recorded(NOW_S, &[6000], &[("busy", &[(6000, 700)]), ("lazy", &[]), ("never", &[])]);
        let steps = |gap: bool| {
            (1..=10).map(|step| step * STEP_S).filter(|end_s| !gap || *end_s != 2400).collect::<Vec<_>>()
        };
        let series: &[(&str, &[(i64, i64)])] =
            &[("busy", &[(6000, 900)]), ("lazy", &[(1200, 800), (1800, 4)])];
        let found = joined(&now, &recorded(STEP_S, &steps(false), series));
        let of =
            |found: &HashMap<(String, String), Past>, pod: &str| found[&("team".to_owned(), pod.to_owned())];
        assert_eq!(of(&found, "busy"), Past { computes: 0.7, busy_until_s: Some(6000) });
        // A few thousandths are nothing.
        assert_eq!(of(&found, "lazy"), Past { computes: 0.0, busy_until_s: Some(1200) });
        assert_eq!(of(&found, "never"), Past { computes: 0.0, busy_until_s: None });
        let found = joined(&now, &recorded(STEP_S, &steps(true), series));
        assert_eq!(of(&found, "lazy").busy_until_s, Some(2400));
    }
}
