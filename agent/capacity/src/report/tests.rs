mod stranded;
mod waiting;

use jiff::SignedDuration;
use serde::Deserialize;

use super::{
    snapshot::{Gang, Member, NumaPolicy, Refusal, Use},
    *,
};
use crate::{
    cluster::objects,
    output::{self, Format},
};

/// When everything here happens.
const NOW: &str = "2026-11-22T12:00:00Z";

/// A cluster in few words, made of the API's objects.
struct Scene {
    snapshot: Snapshot,
}

impl Scene {
    fn new() -> Self {
        Self { snapshot: Snapshot { at: NOW.parse().unwrap(), ..Snapshot::default() } }
    }

    fn object<'de, T: Deserialize<'de>>(yaml: &'de str) -> T {
        serde_saphyr::from_str(yaml).unwrap_or_else(|error| panic!("{error}\n{yaml}"))
    }

    /// A machine with 64 cores, 512Gi and `gpus` A100, and `more` of its YAML.
    fn machine(mut self, name: &str, gpus: u32, more: &str) -> Self {
        let yaml = format!(
            "metadata: {{name: {name}, labels: {{kubernetes.io/hostname: {name}, nvidia.com/gpu.product: A100, zone: z{}}}}}
status:
  capacity: &has {{cpu: 64, memory: 512Gi, pods: 110, nvidia.com/gpu: {gpus}}}
  allocatable: *has
  conditions: [{{type: Ready, status: 'True'}}]
{more}
",
            name.len() % 2
        );
        self.snapshot.nodes.push(Self::object::<objects::Node>(&yaml).shown(&mut self.snapshot.names));
        self
    }

    fn node(mut self, yaml: &str) -> Self {
        self.snapshot.nodes.push(Self::object::<objects::Node>(yaml).shown(&mut self.snapshot.names));
        self
    }

    /// A pod with `requests`, on a node or on none, and `more` lines of its spec.
    fn pod(mut self, name: &str, node: &str, requests: &str, more: &str) -> Self {
        let placed = if node.is_empty() { String::new() } else { format!("  nodeName: {node}\n") };
        let phase = if node.is_empty() { "Pending" } else { "Running" };
        let yaml = format!(
            "metadata: {{name: {name}, namespace: team, labels: {{app: {name}}}, creationTimestamp: '2026-11-22T11:00:00Z'}}
spec:
{placed}  containers: [{{name: main, resources: {{requests: {{{requests}}}}}}}]
{more}
status: {{phase: {phase}, startTime: '2026-11-22T11:00:00Z'}}
"
        );
        self.snapshot.pods.push(Self::object::<objects::Pod>(&yaml).shown(&mut self.snapshot.names));
        self
    }

    fn raw_pod(mut self, yaml: &str) -> Self {
        self.snapshot.pods.push(Self::object::<objects::Pod>(yaml).shown(&mut self.snapshot.names));
        self
    }

    fn uses(mut self, pod: &str, used: Use) -> Self {
        self.snapshot.beside.usage.insert((self.snapshot.names.word("team"), pod.into()), used);
        self
    }

    fn report(&self) -> Report {
        of(&self.snapshot, &Options::default())
    }

    /// Why the only pod that waits does so, and what would let it start.
    fn why(&self) -> String {
        let report = self.report();
        let [waiting] = &report.waiting[..] else { panic!("{:?}", report.waiting) };
        format!("{} | {}", waiting.why, waiting.starts_if.join("; or "))
    }
}

fn text(report: &Report, format: Format) -> String {
    let mut out = Vec::new();
    output::print(&mut out, format, report, &report.tables()).unwrap();
    String::from_utf8(out).unwrap()
}

/// Two machines: three of eight GPUs free, in two places.
fn scattered() -> Scene {
    Scene::new()
        .machine("gpu-1", 4, "")
        .machine("gpu-2", 4, "")
        .pod("holder", "gpu-1", "nvidia.com/gpu: 2, cpu: 8", "")
        .pod("train", "gpu-2", "nvidia.com/gpu: 3, cpu: 8", "")
}

#[test]
fn dedicated_and_serverless_are_never_added_up() {
    let scene = scattered()
        .node(
            "metadata: {name: virtual-1, labels: {type: virtual-kubelet}}
status:
  capacity: &has {cpu: 1k, memory: 4Ti, pods: 1k, nvidia.com/gpu: 1000}
  allocatable: *has
  conditions: [{type: Ready, status: 'True'}]
",
        )
        .pod("far", "virtual-1", "nvidia.com/gpu: 7", "");
    let report = scene.report();
    assert_eq!(report.dedicated.len(), 1);
    assert_eq!((report.dedicated[0].capacity, report.dedicated[0].allocated), (8, 5));
    let offer = &report.serverless[0].offers[0];
    assert_eq!((offer.resource.as_str(), offer.capacity, offer.allocated), ("nvidia.com/gpu", 1000, 7));
    let json = serde_json::to_string(&report).unwrap();
    assert!(!json.contains("1008") && !json.contains("1003"), "{json}");
}

#[test]
fn finished_pods_hold_nothing_and_ending_ones_wait_for_nothing() {
    let mut scene =
        scattered().pod("done", "gpu-1", "nvidia.com/gpu: 2", "").pod("gone", "", "nvidia.com/gpu: 2", "");
    for pod in &mut scene.snapshot.pods {
        match &*pod.name {
            "done" => pod.phase = snapshot::Phase::Ended,
            "gone" => pod.ending = true,
            _ => {}
        }
    }
    let report = scene.report();
    assert_eq!((report.dedicated[0].allocated, report.waiting.len()), (5, 0));
}

#[test]
fn a_pod_that_could_run_here_is_requested_here() {
    let report = scattered()
        .pod("waits", "", "nvidia.com/gpu: 4", "")
        .pod("large", "", "nvidia.com/gpu: 9", "")
        .report();
    // No machine could ever hold the larger one.
    assert_eq!((report.dedicated[0].requested, report.dedicated[0].waiting_pods), (9, 1));
}

#[test]
fn quotas_are_told_and_namespaces_chosen() {
    let mut told = Vec::new();
    let mut scene = scattered().pod("waits", "", "nvidia.com/gpu: 4", "");
    scene.snapshot.beside.refusals.push(Refusal {
        namespace: "other".to_owned(),
        owner: "Job/sweep".to_owned(),
        message: "Error creating: pods \"sweep-x\" is forbidden: exceeded quota: gpus, requested: requests.nvidia.com/gpu=1, used: requests.nvidia.com/gpu=2, limited: requests.nvidia.com/gpu=2".to_owned(),
        at: None,
    });
    let only = |namespace: &str| {
        of(&scene.snapshot, &Options { namespace: Some(namespace.to_owned()), ..Options::default() })
    };
    assert_eq!(scene.report().waiting.len(), 2);
    assert_eq!(only("other").waiting[0].reason, Reason::Quota);
    told.push(only("other").waiting[0].why.clone());
    assert_eq!(only("team").waiting.len(), 1);
    assert_eq!(only("team").dedicated, scene.report().dedicated);
    insta::assert_snapshot!(told.join("\n"));
}

#[test]
fn a_selector_chooses_machines_and_who_waits_for_such() {
    let scene = scattered().machine("cpu-01", 0, "").pod("waits", "", "cpu: 100", "").pod(
        "large",
        "",
        "nvidia.com/gpu: 9",
        "",
    );
    let chosen =
        |text: &str| of(&scene.snapshot, &Options { selector: text.parse().unwrap(), ..Options::default() });
    let report = chosen("kubernetes.io/hostname in (gpu-1)");
    assert_eq!((report.dedicated[0].nodes, report.dedicated[0].capacity), (1, 4));
    assert_eq!(report.waiting.iter().map(|one| one.pod.as_deref()).collect::<Vec<_>>(), [Some("large")]);
    assert_eq!(chosen("none").dedicated, []);
}

#[test]
fn conditions_hold_of_the_worst_pool() {
    let report = scattered().pod("waits", "", "nvidia.com/gpu: 4", "").report();
    let holds = |text: &str| text.parse::<condition::Condition>().unwrap().holds(&report);
    assert_eq!(
        holds("stranded>20%").unwrap().as_deref(),
        Some("stranded>20%: of nvidia.com/gpu A100 it is 37.5 %")
    );
    assert_eq!(holds("stranded>40%").unwrap(), None);
    assert_eq!(holds("waiting>0").unwrap().as_deref(), Some("waiting>0: it is 1"));
    assert_eq!(holds("waiting_s>=3600").unwrap().as_deref(), Some("waiting_s>=3600: it is 3600"));
    assert_eq!(
        holds("largest_pod<4").unwrap().as_deref(),
        Some("largest_pod<4: of nvidia.com/gpu A100 it is 2")
    );
    // Nobody measures.
    assert!(holds("used<30%").unwrap_err().to_string().contains("can't tell whether used<30% holds"));
}

#[test]
fn nobody_elses_escape_codes_reach_the_terminal() {
    let evil = "\u{1b}[2J\u{9b}31m\u{202e}";
    let mut scene = scattered().pod("waits", "", "nvidia.com/gpu: 4", "  nodeSelector: {\"a\": \"b\\e[2J\"}");
    let evil_node = scene.snapshot.names.word(&format!("gpu-{evil}"));
    scene.snapshot.nodes[0].name = evil_node;
    scene.snapshot.nodes[1].not_ready = Some(evil.to_owned());
    for pod in &mut scene.snapshot.pods {
        pod.name = format!("{}{evil}", pod.name).into();
        pod.namespace = evil.into();
        if let Some(wish) = &mut pod.wish {
            wish.said = Some(evil.to_owned());
        }
    }
    scene.snapshot.beside.not_seen.push(evil.to_owned());
    scene.snapshot.beside.refusals.push(Refusal {
        namespace: evil.to_owned(),
        owner: evil.to_owned(),
        message: format!("exceeded quota: {evil}"),
        at: None,
    });
    for format in [Format::Table, Format::Wide] {
        let text = text(&scene.report(), format);
        assert!(text.contains("\\u{1b}[2J"), "{text}");
        assert!(!text.contains(['\u{1b}', '\u{9b}', '\u{202e}']), "{text:?}");
    }
    let json = text(&scene.report(), Format::Json);
    assert!(!json.contains('\u{1b}'), "{json}");
}
