//! What pods do with what they hold, by whoever tells: Spillway's agent, the DCGM exporter, metrics-server. All are reached through the API server, and all may be absent.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use futures::{StreamExt as _, stream};
use http::Request;
use http_body_util::{BodyExt as _, Limited};
use kube::{Client, client::Body};
use serde::Deserialize;
use tokio::time::{Instant, timeout, timeout_at};

use super::{
    exposition::{Sample, samples},
    objects::Pod,
    rights::{Granted, Right},
};
use crate::{
    history::prometheus::transport::Transport,
    report::{
        quantity,
        snapshot::{Snapshot, Use},
    },
    terminal,
};

/// Exporters that are asked at a time.
const AT_ONCE: usize = 32;
/// What one answer may take, and all of them together.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
const ALL_WITHIN: Duration = Duration::from_secs(30);
/// Bytes of an answer.
const ANSWER_LIMIT: usize = 32 << 20;
/// A pod that holds accelerators and uses less CPU than this does nothing, in thousandths of a core.
const NO_CPU_MILLI: i64 = 5;
/// Who has been running for less may only just begin, in seconds.
const BEGINS_S: f64 = 300.0;

/// Who tells what accelerators do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    Agent,
    Dcgm,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Agent => "spillway-agent",
            Self::Dcgm => "the DCGM exporter",
        }
    }
}

/// A pod that tells what accelerators do.
#[derive(Debug, Clone)]
pub(super) struct Exporter {
    pub(super) kind: Kind,
    pub(super) namespace: String,
    pub(super) pod: String,
    pub(super) port: u16,
}

/// All such pods.
#[derive(Debug, Default)]
pub(super) struct Sources(Vec<Exporter>);

impl Sources {
    /// Keeps it if it is one.
    pub(super) fn notice(&mut self, pod: &Pod) {
        self.0.extend(pod.exporter());
    }
}

impl Sources {
    /// All of them.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Exporter> {
        self.0.iter()
    }
}

impl FromIterator<Exporter> for Sources {
    fn from_iter<T: IntoIterator<Item = Exporter>>(all: T) -> Self {
        Self(all.into_iter().collect())
    }
}

pub(super) type ByPod = HashMap<(Arc<str>, Arc<str>), Use>;

/// Asks all of them; what can't be seen is said.
pub(super) async fn read(
    client: &Client,
    snapshot: &mut Snapshot,
    sources: &Sources,
    may: &Granted,
    prometheus: Option<&Transport>,
) {
    let mut usage = ByPod::new();
    // With Prometheus nobody has to be asked in the cluster, and the right to do so is no loss.
    if prometheus.is_none() || (!sources.0.is_empty() && may.place(&Right::PROXY).is_some()) {
        accelerators(client, snapshot, sources, may, &mut usage).await;
    }
    if let Some(transport) = prometheus {
        super::prometheus::read(transport, snapshot, &mut usage).await;
    }
    processors(client, snapshot, may, &mut usage).await;
    snapshot.beside.usage = usage;
}

async fn accelerators(
    client: &Client,
    snapshot: &mut Snapshot,
    sources: &Sources,
    may: &Granted,
    usage: &mut ByPod,
) {
    const WHAT: &str = "what accelerators do";
    if sources.0.is_empty() {
        let place = match &snapshot.pods_only_in {
            Some(namespace) => format!("the namespace {namespace}, and no other can be looked into"),
            None => "this cluster".to_owned(),
        };
        snapshot
            .beside
            .not_seen
            .push(format!("{WHAT}: neither spillway-agent nor a DCGM exporter runs in {place}"));
        return;
    }
    if may.place(&Right::PROXY).is_none() {
        snapshot.beside.not_seen.push(format!("{WHAT}: {}", may.lacking(&Right::PROXY)));
        return;
    }
    let progress = terminal::progress(u64::try_from(sources.0.len()).ok(), "exporters");
    let deadline = Instant::now() + ALL_WITHIN;
    let mut answers = stream::iter(&sources.0)
        .map(|exporter| async move { (exporter, timeout_at(deadline, ask(client, exporter)).await) })
        .buffer_unordered(AT_ONCE);
    let mut answered: BTreeMap<Kind, usize> = BTreeMap::new();
    let mut silent: BTreeMap<Kind, (usize, String)> = BTreeMap::new();
    let mut found: BTreeMap<Kind, Vec<(String, String, Use)>> = BTreeMap::new();
    while let Some((exporter, answer)) = answers.next().await {
        progress.inc(1);
        let answer = answer.unwrap_or_else(|_| Err("there was no time left for it".to_owned()));
        match answer {
            Ok(text) => {
                *answered.entry(exporter.kind).or_default() += 1;
                let told = match exporter.kind {
                    Kind::Agent => of_agent(&text),
                    Kind::Dcgm => of_dcgm(&text),
                };
                found.entry(exporter.kind).or_default().extend(told);
            }
            Err(why) => {
                let name = format!("{}/{}: {why}", exporter.namespace, exporter.pod);
                silent.entry(exporter.kind).or_insert((0, name)).0 += 1;
            }
        }
    }
    drop(answers);
    progress.finish_and_clear();
    // What the agent says holds: it knows who holds what of shared devices.
    for (namespace, pod, told) in found.into_values().flatten() {
        let key = (snapshot.names.word(&namespace), Arc::from(pod));
        usage.entry(key).or_insert(told);
    }
    for (kind, count) in answered {
        snapshot.beside.seen.push(format!(
            "what accelerators do: {} on {count} {}",
            kind.name(),
            nodes(count)
        ));
    }
    for (kind, (count, first)) in silent {
        snapshot.beside.not_seen.push(format!(
            "{WHAT} on {count} {}: {} does not answer ({first})",
            nodes(count),
            kind.name()
        ));
    }
}

fn nodes(count: usize) -> &'static str {
    if count == 1 { "node" } else { "nodes" }
}

async fn ask(client: &Client, exporter: &Exporter) -> Result<String, String> {
    let Exporter { namespace, pod, port, .. } = exporter;
    let path = format!("/api/v1/namespaces/{namespace}/pods/{pod}:{port}/proxy/metrics");
    let request = Request::get(path).body(Body::empty()).map_err(|error| error.to_string())?;
    let answer = async {
        let answer = client.send(request).await.map_err(|error| error.to_string())?;
        if !answer.status().is_success() {
            return Err(format!("HTTP status {}", answer.status().as_u16()));
        }
        let body = Limited::new(answer.into_body(), ANSWER_LIMIT).collect().await;
        let body = body.map_err(|error| error.to_string())?.to_bytes();
        Ok(String::from_utf8_lossy(&body).into_owned())
    };
    timeout(ANSWER_WITHIN, answer).await.unwrap_or_else(|_| Err("no answer in time".to_owned()))
}

type Told = Vec<(String, String, Use)>;

/// What an agent says of the pods of its node.
fn of_agent(text: &str) -> Told {
    /// One unit of hardware that a pod holds.
    #[derive(Default)]
    struct Unit {
        computes: Option<f64>,
        processes: Option<f64>,
        unused_s: Option<f64>,
    }
    let mut pods: BTreeMap<(String, String), BTreeMap<(String, String), Unit>> = BTreeMap::new();
    for sample in samples(text) {
        let Some(what) = sample.name.strip_prefix("spillway_container_device_") else { continue };
        let key = (sample.label("namespace").to_owned(), sample.label("pod").to_owned());
        let unit = (sample.label("device").to_owned(), sample.label("partition").to_owned());
        let unit = pods.entry(key).or_default().entry(unit).or_default();
        match what {
            "utilization_ratio" => unit.computes = Some(sample.value.clamp(0.0, 1.0)),
            "processes" => unit.processes = Some(sample.value),
            "unused_seconds" => unit.unused_s = Some(sample.value.max(0.0)),
            _ => {}
        }
    }
    let of_pod = |units: &BTreeMap<_, Unit>| {
        let computes: Option<Vec<f64>> = units.values().map(|unit| unit.computes).collect();
        let idle = |unit: &Unit| match (unit.computes, unit.processes) {
            (Some(computes), _) => computes == 0.0,
            (None, processes) => processes == Some(0.0),
        };
        let unused: Option<Vec<f64>> = units.values().map(|unit| unit.unused_s).collect();
        Use {
            computes: computes.map(|all| all.iter().sum()),
            idle: units.values().all(idle),
            idle_s: unused.and_then(|all| all.into_iter().reduce(f64::min)),
            ..Use::default()
        }
    };
    let named = pods.iter().filter(|((namespace, _), _)| !namespace.is_empty());
    named.map(|((namespace, pod), units)| (namespace.clone(), pod.clone(), of_pod(units))).collect()
}

/// What a DCGM exporter says of the pods of its node: of partitions only the profiling metric tells, which is the better one for whole GPUs, too.
fn of_dcgm(text: &str) -> Told {
    type Unit = (String, String);
    let mut pods: BTreeMap<(String, String), BTreeMap<Unit, f64>> = BTreeMap::new();
    let mut add = |sample: &Sample<'_>, share: f64, better: bool| {
        let either = |one: &str, other: &str| {
            Some(sample.label(one)).filter(|text| !text.is_empty()).unwrap_or(sample.label(other)).to_owned()
        };
        let (namespace, pod) = (either("namespace", "pod_namespace"), either("pod", "pod_name"));
        if namespace.is_empty() || pod.is_empty() {
            return;
        }
        let unit = (sample.label("UUID").to_owned(), sample.label("GPU_I_ID").to_owned());
        let units = pods.entry((namespace, pod)).or_default();
        if better || !units.contains_key(&unit) {
            units.insert(unit, share.clamp(0.0, 1.0));
        }
    };
    for sample in samples(text) {
        match sample.name {
            "DCGM_FI_PROF_GR_ENGINE_ACTIVE" => add(&sample, sample.value, true),
            "DCGM_FI_DEV_GPU_UTIL" => add(&sample, sample.value / 100.0, false),
            _ => {}
        }
    }
    let of_pod = |units: &BTreeMap<Unit, f64>| Use {
        computes: Some(units.values().sum()),
        // Whoever keeps a context open shows a few thousandths.
        idle: units.values().all(|share| *share < 0.005),
        ..Use::default()
    };
    pods.iter().map(|((namespace, pod), units)| (namespace.clone(), pod.clone(), of_pod(units))).collect()
}

#[derive(Deserialize)]
struct PodMetricsList {
    #[serde(default)]
    items: Vec<PodMetrics>,
}

#[derive(Deserialize)]
struct PodMetrics {
    metadata: Named,
    #[serde(default)]
    containers: Vec<ContainerMetrics>,
}

#[derive(Deserialize)]
struct Named {
    name: String,
    namespace: String,
}

#[derive(Deserialize)]
struct ContainerMetrics {
    #[serde(default)]
    usage: BTreeMap<String, String>,
}

/// CPU and memory, by metrics-server.
async fn processors(client: &Client, snapshot: &mut Snapshot, may: &Granted, usage: &mut ByPod) {
    const WHAT: &str = "CPU and memory in use";
    if may.place(&Right::METRICS).is_none() {
        snapshot.beside.not_seen.push(format!("{WHAT}: {}", may.lacking(&Right::METRICS)));
        return;
    }
    let path = match may.only_in(&Right::METRICS) {
        Some(namespace) => format!("/apis/metrics.k8s.io/v1beta1/namespaces/{namespace}/pods"),
        None => "/apis/metrics.k8s.io/v1beta1/pods".to_owned(),
    };
    let Ok(request) = Request::get(path).body(Vec::new()) else { return };
    let list: PodMetricsList = match timeout(ALL_WITHIN, client.request(request)).await {
        Ok(Ok(list)) => list,
        Ok(Err(kube::Error::Api(status))) if status.code == 404 => {
            snapshot.beside.not_seen.push(format!("{WHAT}: there is no metrics-server"));
            return;
        }
        Ok(Err(error)) => {
            snapshot.beside.not_seen.push(format!("{WHAT}: metrics-server: {error}"));
            return;
        }
        Err(_) => {
            snapshot.beside.not_seen.push(format!("{WHAT}: metrics-server does not answer"));
            return;
        }
    };
    let sum = |pod: &PodMetrics, resource: &str, parts: u16| {
        let each = pod.containers.iter().filter_map(|container| container.usage.get(resource));
        each.filter_map(|amount| quantity::parse(amount, parts)).fold(0, i64::saturating_add)
    };
    snapshot.beside.seen.push("CPU and memory in use: metrics-server".to_owned());
    for pod in &list.items {
        let key = (snapshot.names.word(&pod.metadata.namespace), Arc::from(pod.metadata.name.as_str()));
        let known = usage.entry(key).or_default();
        known.cpu_milli = Some(sum(pod, "cpu", 1000));
        known.memory_bytes = Some(sum(pod, "memory", 1));
    }
    let old = |pod: &&crate::report::snapshot::Pod| {
        pod.bound.is_some_and(|bound| snapshot.at.duration_since(bound).as_secs_f64() > BEGINS_S)
    };
    for pod in snapshot.pods.iter().filter(old) {
        let Some(known) = usage.get_mut(&(pod.namespace.clone(), pod.name.clone())) else { continue };
        let unknown = known.computes.is_none() && known.idle_s.is_none();
        known.idle |= unknown && known.cpu_milli.is_some_and(|milli| milli < NO_CPU_MILLI);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_tells_of_each_unit_and_a_pod_is_idle_if_all_are() {
        let label = |pod: &str, device: &str| {
            format!(
                "{{namespace=\"a\",pod=\"{pod}\",container=\"main\",resource=\"nvidia.com/gpu\",device=\"{device}\",partition=\"\",model=\"x\"}}"
            )
        };
        let (busy, half, lazy) = (label("busy", "0"), label("busy", "1"), label("lazy", "2"));
        let told = of_agent(&format!(
            "spillway_container_device_utilization_ratio{busy} 0.5\n\
             spillway_container_device_unused_seconds{busy} 0\n\
             spillway_container_device_utilization_ratio{half} 0\n\
             spillway_container_device_unused_seconds{half} 90\n\
             spillway_container_device_held{lazy} 1\n\
             spillway_container_device_processes{lazy} 0\n\
             spillway_container_device_unused_seconds{lazy} 3600\n\
             spillway_container_device_held{{namespace=\"\",pod=\"uid\",device=\"3\"}} 1\n\
             spillway_device_utilization_ratio{{device=\"0\"}} 1\n"
        ));
        let busy = Use { computes: Some(0.5), idle: false, idle_s: Some(0.0), ..Use::default() };
        let lazy = Use { computes: None, idle: true, idle_s: Some(3600.0), ..Use::default() };
        let named = |pod: &str, told| ("a".to_owned(), pod.to_owned(), told);
        assert_eq!(told, [named("busy", busy), named("lazy", lazy)]);
    }

    #[test]
    fn dcgm_tells_by_either_generation_of_labels() {
        let told = of_dcgm(
            "DCGM_FI_DEV_GPU_UTIL{gpu=\"0\",UUID=\"GPU-0\",modelName=\"T4\",namespace=\"a\",pod=\"x\",container=\"c\"} 40\n\
             DCGM_FI_DEV_GPU_UTIL{gpu=\"1\",UUID=\"GPU-1\",pod_namespace=\"a\",pod_name=\"y\"} 0\n\
             DCGM_FI_PROF_GR_ENGINE_ACTIVE{UUID=\"GPU-0\",namespace=\"a\",pod=\"x\"} 0.25\n\
             DCGM_FI_PROF_GR_ENGINE_ACTIVE{UUID=\"GPU-0\",GPU_I_ID=\"3\",namespace=\"a\",pod=\"x\"} 1\n\
             DCGM_FI_DEV_GPU_UTIL{UUID=\"GPU-2\",namespace=\"\",pod=\"\"} 90\n",
        );
        let x = Use { computes: Some(1.25), idle: false, ..Use::default() };
        let y = Use { computes: Some(0.0), idle: true, ..Use::default() };
        assert_eq!(told, [("a".to_owned(), "x".to_owned(), x), ("a".to_owned(), "y".to_owned(), y)]);
    }
}
