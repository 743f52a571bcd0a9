use jiff::SignedDuration;
use serde::Deserialize;

use super::{
    snapshot::{Refusal, Use},
    *,
};
use crate::{
    cluster::objects,
    fragmentation::Cause,
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
fn the_reason_names_what_is_missing_and_who_has_it() {
    let mut told = Vec::new();
    let waits = |more: &str, requests: &str| scattered().pod("waits", "", requests, more);
    told.push(waits("", "nvidia.com/gpu: 3").why());
    told.push(waits("", "nvidia.com/gpu: 4").why());
    told.push(waits("", "nvidia.com/gpu: 8").why());
    told.push(waits("", "nvidia.com/gpu: 1, cpu: 60").why());
    told.push(waits("", "nvidia.com/gpu: 1, memory: 1Ti").why());
    told.push(waits("", "nvidia.com/mig-1g.5gb: 1").why());
    told.push(waits("", "cpu: 60").why());
    told.push(waits("  nodeSelector: {nvidia.com/gpu.product: H100}", "nvidia.com/gpu: 1").why());
    told.push(waits("  nodeSelector: {kubernetes.io/hostname: gpu-2}", "nvidia.com/gpu: 2").why());
    told.push(waits("  schedulingGates: [{name: kueue.x-k8s.io/admission}]", "nvidia.com/gpu: 1").why());
    told.push(waits("  schedulerName: volcano", "nvidia.com/gpu: 1").why());
    insta::assert_snapshot!(told.join("\n"));
}

#[test]
fn what_keeps_pods_off_is_named_with_what_would_let_them_on() {
    let mut told = Vec::new();
    let rented = "metadata: {name: virtual-1, labels: {type: virtual-kubelet}}
spec: {taints: [{key: virtual-kubelet.io/provider, value: aci, effect: NoSchedule}]}
status:
  capacity: &has {cpu: 1k, memory: 4Ti, pods: 1k, nvidia.com/gpu: 100}
  allocatable: *has
  conditions: [{type: Ready, status: 'True'}]
";
    let full = || {
        Scene::new()
            .machine("gpu-1", 4, "")
            .machine("gpu-2", 4, "spec: {unschedulable: true, taints: [{key: node.kubernetes.io/unschedulable, effect: NoSchedule}]}")
            .machine("gpu-3", 4, "spec: {taints: [{key: team, value: other, effect: NoSchedule}]}")
            .pod("holder", "gpu-1", "nvidia.com/gpu: 4", "")
    };
    told.push(full().pod("waits", "", "nvidia.com/gpu: 2", "").why());
    told.push(full().node(rented).pod("waits", "", "nvidia.com/gpu: 2", "").why());
    // Nothing is added up over machines and virtual nodes.
    let tolerates = "  tolerations: [{key: virtual-kubelet.io/provider, operator: Exists}]";
    let both = full().node(rented).pod("far", "virtual-1", "nvidia.com/gpu: 99", "");
    told.push(both.pod("waits", "", "nvidia.com/gpu: 2", tolerates).why());
    let kept =
        Scene::new().machine("gpu-3", 4, "spec: {taints: [{key: team, value: other, effect: NoSchedule}]}");
    told.push(kept.pod("waits", "", "nvidia.com/gpu: 2", "").why());
    insta::assert_snapshot!(told.join("\n"));
}

#[test]
fn neighbours_are_looked_at() {
    let mut told = Vec::new();
    let anti = "  affinity: {podAntiAffinity: {requiredDuringSchedulingIgnoredDuringExecution: [{topologyKey: kubernetes.io/hostname, labelSelector: {matchLabels: {app: holder}}}]}}";
    let scene = || Scene::new().machine("gpu-1", 4, "").pod("holder", "gpu-1", "nvidia.com/gpu: 1", "");
    told.push(scene().pod("waits", "", "nvidia.com/gpu: 1", anti).why());
    let affinity = anti.replace("podAnti", "pod").replace("holder", "nobody");
    told.push(scene().pod("waits", "", "nvidia.com/gpu: 1", &affinity).why());
    let first = anti.replace("podAnti", "pod").replace("holder", "waits");
    assert!(scene().pod("waits", "", "nvidia.com/gpu: 1", &first).why().contains("does it run?"));
    let spread = "  topologySpreadConstraints: [{maxSkew: 1, topologyKey: kubernetes.io/hostname, whenUnsatisfiable: DoNotSchedule, labelSelector: {matchLabels: {app: waits}}}]";
    let uneven = scene()
        .machine("gpu-2", 1, "")
        .pod("full", "gpu-2", "nvidia.com/gpu: 1", "")
        .raw_pod("{metadata: {name: waits-0, namespace: team, labels: {app: waits}}, spec: {nodeName: gpu-1, containers: []}, status: {phase: Running}}")
        .pod("waits", "", "nvidia.com/gpu: 1", spread);
    told.push(uneven.why());
    insta::assert_snapshot!(told.join("\n"));
}

#[test]
fn who_is_idle_is_asked_first_and_who_is_ending_even_before() {
    let mut told = Vec::new();
    let idle = Use { computes: Some(0.0), idle: true, idle_s: Some(3.0 * 3600.0), ..Use::default() };
    let busy = Use { computes: Some(2.5), idle: false, idle_s: Some(0.0), ..Use::default() };
    let scene =
        || scattered().uses("train", idle).uses("holder", busy).pod("waits", "", "nvidia.com/gpu: 4", "");
    told.push(scene().why());
    let report = scene().report();
    assert_eq!((report.idle.len(), report.idle[0].devices, report.dedicated[0].idle), (1, 3, 3));
    assert_eq!(report.dedicated[0].used, Some(2.5));
    assert_eq!(report.idle[0].since, Some(scene().snapshot.at - SignedDuration::from_hours(3)));
    let mut ending = scene();
    ending.snapshot.pods[0].ending = true;
    told.push(ending.why());
    // Idle for too short a time to be told.
    let briefly = Use { idle_s: Some(60.0), ..idle };
    assert_eq!(scattered().uses("train", briefly).report().idle, []);
    insta::assert_snapshot!(told.join("\n"));
}

#[test]
fn what_is_stranded_has_a_cause() {
    let scene = Scene::new()
        .machine("gpu-1", 4, "")
        .machine("gpu-2", 4, "spec: {unschedulable: true}")
        .machine("gpu-3", 4, "")
        .machine("gpu-4", 4, "")
        .pod("a", "gpu-1", "nvidia.com/gpu: 2, cpu: 8", "")
        .pod("b", "gpu-2", "nvidia.com/gpu: 1, cpu: 8", "")
        .pod("hog", "gpu-3", "cpu: 63", "")
        .pod("waits", "", "nvidia.com/gpu: 4, cpu: 4", "  nodeSelector: {kubernetes.io/hostname: gpu-1}");
    insta::assert_snapshot!(text(&scene.report(), Format::Wide));
    let report = scene.report();
    let pool = &report.dedicated[0];
    assert_eq!(
        (pool.free, pool.stranded, pool.largest_pod.as_ref().map(|largest| largest.devices)),
        (13, 9, Some(4))
    );
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

#[test]
fn what_is_claimed_and_not_there_is_the_reason() {
    use super::snapshot::{ClaimName, ClaimOf, ClaimState};
    let volume = "  volumes: [{name: data, persistentVolumeClaim: {claimName: data}}]";
    let devices = "  resourceClaims: [{name: gpu, resourceClaimName: pair}]";
    let near_gpu_2 = || {
        let yaml = "nodeSelectorTerms: [{matchExpressions: [{key: kubernetes.io/hostname, operator: In, values: [gpu-2]}]}]";
        ClaimState::Within(Scene::object(yaml))
    };
    let with = |more: &str, of: ClaimOf, name: &str, state: ClaimState| {
        let mut scene = scattered().pod("waits", "", "nvidia.com/gpu: 2", more);
        let claim = ClaimName { of, name: Some(name.into()) };
        scene.snapshot.beside.claims.insert(("team".into(), claim), state);
        if let Some(wish) = scene.snapshot.pods.last_mut().and_then(|pod| pod.wish.as_mut()) {
            wish.said = Some("0/2 nodes are available: 2 node(s) didn't find available persistent volumes to bind, cannot allocate all claims.".to_owned());
        }
        scene.why()
    };
    let class = || "fast".to_owned();
    let mut told: Vec<String> = [
        ClaimState::Missing,
        ClaimState::Lost,
        ClaimState::NoClass(class()),
        ClaimState::Classless,
        ClaimState::Unbound { class: class(), by: "csi.example.com".to_owned() },
        ClaimState::WaitsForMachine { class: class() },
        near_gpu_2(),
        ClaimState::Well,
    ]
    .into_iter()
    .map(|state| with(volume, ClaimOf::Volume, "data", state))
    .collect();
    for state in [
        ClaimState::Missing,
        ClaimState::NoClass("gpu.example.com".to_owned()),
        ClaimState::WaitsForMachine { class: "gpu.example.com".to_owned() },
        near_gpu_2(),
    ] {
        told.push(with(devices, ClaimOf::Devices, "pair", state));
    }
    insta::assert_snapshot!(told.join("\n"));
}

#[test]
fn a_pod_of_one_namespace_alone_gets_the_words_that_can_be_had() {
    let said = "0/9 nodes are available: 9 Insufficient nvidia.com/gpu.";
    let scene = |machines_seen: bool| {
        let mut scene =
            scattered().pod("waits", "", "nvidia.com/gpu: 1", "").pod("large", "", "nvidia.com/gpu: 9", "");
        scene.snapshot.pods_only_in = Some("team".to_owned());
        scene.snapshot.machines_seen = machines_seen;
        if !machines_seen {
            scene.snapshot.nodes.clear();
        }
        for wish in scene.snapshot.pods.iter_mut().filter_map(|pod| pod.wish.as_mut()) {
            wish.said = Some(said.to_owned());
        }
        scene.uses("train", Use { idle: true, idle_s: Some(3600.0), ..Use::default() })
    };
    let why = |report: &Report| report.waiting.iter().map(|one| one.why.clone()).collect::<Vec<_>>();
    let words = format!("default-scheduler says: {said}");
    // Machines are there, but who else is on them nobody tells: too large is too large.
    let report = scene(true).report();
    assert_eq!(
        why(&report),
        ["asks for 9 GPUs on one machine, and the largest (gpu-1) has 4", words.as_str()]
    );
    assert_eq!((report.dedicated.len(), report.stranded.len()), (0, 0));
    let report = scene(false).report();
    assert_eq!(why(&report), [words.as_str(), words.as_str()]);
    // What its own pods hold is known without.
    assert_eq!(
        report.idle.iter().map(|idle| (&*idle.pod, &*idle.node)).collect::<Vec<_>>(),
        [("train", "gpu-2")]
    );
}

#[test]
fn pods_alike_are_one_line_whatever_the_scheduler_said_when() {
    let mut scene = scattered();
    for (index, said) in
        ["0/2 nodes are available.", "0/2 nodes are available: 2 Insufficient nvidia.com/gpu."]
            .into_iter()
            .enumerate()
    {
        scene = scene.raw_pod(&format!(
            "{{metadata: {{name: sweep-{index}, namespace: team, ownerReferences: [{{apiVersion: batch/v1, kind: Job, name: sweep, uid: u, controller: true}}]}}, spec: {{containers: [{{name: c, resources: {{requests: {{nvidia.com/gpu: 4}}}}}}]}}, status: {{phase: Pending, conditions: [{{type: PodScheduled, status: 'False', message: '{said}'}}]}}}}"
        ));
    }
    assert_eq!(scene.report().waiting.iter().map(|one| one.pods).collect::<Vec<_>>(), [Some(2)]);
}

#[test]
fn of_several_affinities_one_pod_has_to_fit_all() {
    // `holder` fits the first and `train` the second: no pod fits both.
    let affinity = "  affinity: {podAffinity: {requiredDuringSchedulingIgnoredDuringExecution: [{topologyKey: kubernetes.io/hostname, labelSelector: {matchLabels: {app: holder}}}, {topologyKey: kubernetes.io/hostname, labelSelector: {matchLabels: {app: train}}}]}}";
    let why = scattered().pod("waits", "", "nvidia.com/gpu: 1", affinity).why();
    assert!(
        why.starts_with("no pod runs that its pod affinity wants to be near (app=holder; app=train)"),
        "{why}"
    );
}

#[test]
fn what_a_kubelet_refuses_for_numa_is_stranded() {
    let two_halves = "metadata: {name: gpu-1, labels: {kubernetes.io/hostname: gpu-1}, annotations: {spillway.dev/largest-group: '{\"nvidia.com/gpu\":{\"nvlink\":2,\"numa\":2,\"node\":4}}'}}
status:
  capacity: &has {cpu: 64, memory: 512Gi, pods: 110, nvidia.com/gpu: 8}
  allocatable: *has
  conditions: [{type: Ready, status: 'True'}]
";
    let mut scene = Scene::new().node(two_halves).pod("holder", "gpu-1", "nvidia.com/gpu: 4", "").pod(
        "waits",
        "",
        "nvidia.com/gpu: 4",
        "  schedulingGates: [{name: a}]",
    );
    // Nobody was refused: it may well take them from both.
    assert_eq!(scene.report().dedicated[0].stranded, 0);
    let refused: objects::Pod = Scene::object(
        "{metadata: {name: r, namespace: team}, spec: {nodeName: gpu-1, containers: []}, status: {phase: Failed, reason: TopologyAffinityError}}",
    );
    let node = refused.refused_for_numa().unwrap();
    scene.snapshot.numa_refused.insert(node.into());
    let report = scene.report();
    assert_eq!(report.dedicated[0].stranded_by, std::collections::BTreeMap::from([(Cause::Numa, 4)]));
    assert!(
        report.stranded[0].why.starts_with("at most 2 of 4 free are on one NUMA node"),
        "{:?}",
        report.stranded
    );
    assert!(text(&report, Format::Wide).contains("2 by NVLink, 2 on one NUMA node"));
}

#[test]
fn partitions_of_a_profile_that_nobody_wants_are_stranded() {
    let sliced =
        "metadata: {name: mig-1, labels: {kubernetes.io/hostname: mig-1, nvidia.com/gpu.product: A100}}
status:
  capacity: &has {cpu: 64, memory: 512Gi, pods: 110, nvidia.com/mig-1g.5gb: 7, nvidia.com/mig-3g.20gb: 2}
  allocatable: *has
  conditions: [{type: Ready, status: 'True'}]
";
    let stranded = |scene: Scene| {
        let report = scene.report();
        let found = report.stranded.iter().map(|one| (one.resource.clone(), one.devices, one.cause));
        found.collect::<Vec<_>>()
    };
    let large = |count: u32| format!("nvidia.com/mig-3g.20gb: {count}");
    // Both large ones are taken, one more is wanted, and seven small ones lie about.
    let scene = Scene::new().node(sliced).pod("a", "mig-1", &large(2), "").pod("waits", "", &large(1), "");
    assert!(
        scene.why().starts_with("asks for 1 nvidia.com/mig-3g.20gb: none of 2 is free"),
        "{}",
        scene.why()
    );
    assert_eq!(stranded(scene), [("nvidia.com/mig-1g.5gb".to_owned(), 7, Cause::Profile)]);
    // As soon as somebody runs on a small one, there is use for them.
    let scene = Scene::new().node(sliced).pod("a", "mig-1", &large(2), "").pod("waits", "", &large(1), "");
    assert_eq!(stranded(scene.pod("b", "mig-1", "nvidia.com/mig-1g.5gb: 1", "")), []);
    // Of two large ones one is free, and the pod that waits wants two.
    let scene = Scene::new().node(sliced).pod("a", "mig-1", &large(1), "").pod("waits", "", &large(2), "");
    assert_eq!(
        stranded(scene),
        [
            ("nvidia.com/mig-1g.5gb".to_owned(), 7, Cause::Profile),
            ("nvidia.com/mig-3g.20gb".to_owned(), 1, Cause::TooFew)
        ]
    );
}
