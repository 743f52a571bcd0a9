//! Why pods wait, and what would let them start.

use super::*;

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
fn only_those_that_the_scheduler_ends_are_preempted() {
    let ending = |name: &str, conditions: &str| {
        format!(
            "metadata: {{name: {name}, namespace: team, deletionTimestamp: '2026-11-22T11:00:00Z'}}
spec: {{nodeName: gpu-1, containers: [{{name: main, resources: {{requests: {{nvidia.com/gpu: 2}}}}}}]}}
status: {{phase: Running, conditions: [{conditions}]}}
"
        )
    };
    let marked = "{type: DisruptionTarget, status: 'True', reason: PreemptionByScheduler}";
    let first = "metadata: {name: first, namespace: team}
spec: {priority: 1000, containers: [{name: main, resources: {requests: {nvidia.com/gpu: 2}}}]}
status: {phase: Pending, nominatedNodeName: gpu-1}
";
    let scene = Scene::new().machine("gpu-1", 4, "").raw_pod(&ending("victim", marked));
    let report = scene.raw_pod(&ending("leaves", "")).raw_pod(first).report();
    assert_eq!(report.waiting[0].why, "team/victim, of lower priority, is being ended on gpu-1 for it");
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
fn machines_that_other_pods_forbid_are_not_among_those_that_are_full() {
    let apart = "  affinity: {podAntiAffinity: {requiredDuringSchedulingIgnoredDuringExecution: [{topologyKey: kubernetes.io/hostname, labelSelector: {matchLabels: {app: holder}}}]}}";
    let why = scattered().pod("waits", "", "nvidia.com/gpu: 2", apart).why();
    let told =
        "asks for 2 GPUs: 1 of 4 is free; what it says of other pods, or they of it, allows 1 of 2 machines";
    assert!(why.starts_with(told), "{why}");
}

#[test]
fn pods_that_start_together_are_told_how_many_fit() {
    let gang = |running: i64, said: Option<&str>| {
        let mut scene = scattered().pod("waits", "", "nvidia.com/gpu: 1", "  schedulerName: volcano");
        let group = scene.snapshot.names.word("train");
        for pod in &mut scene.snapshot.pods {
            if let Some(wish) = &mut pod.wish {
                wish.group = Some(group.clone());
            }
        }
        let gang = Gang {
            name: "PodGroup train".to_owned(),
            pods: Some(4),
            running,
            said: said.map(str::to_owned),
            ..Gang::default()
        };
        scene.snapshot.beside.gangs.insert(("team".into(), Member::Group(group)), gang);
        scene.why()
    };
    // Three of eight GPUs are free.
    insta::assert_snapshot!([gang(0, None), gang(1, Some("queue full")), gang(1, None)].join("\n"));
}

#[test]
fn kueue_is_quoted_with_pods_and_without() {
    let gate = "  schedulingGates: [{name: kueue.x-k8s.io/admission}]";
    let mut scene = scattered().pod("waits", "", "nvidia.com/gpu: 1", gate);
    let gang = Gang {
        name: "Workload w".to_owned(),
        said: Some(
            "insufficient unused quota for nvidia.com/gpu in flavor default, 1 more needed".to_owned(),
        ),
        queue: Some("research".to_owned()),
        since: Some(scene.snapshot.at - SignedDuration::from_mins(7)),
        ..Gang::default()
    };
    let mut told = vec![scene.why()];
    for owner in ["Pod/waits", "Job/sweep"] {
        let member = Member::Owner(owner.into());
        scene.snapshot.beside.gangs.insert(("team".into(), member), gang.clone());
    }
    let report = scene.report();
    assert_eq!(report.waiting.iter().map(|one| one.pods).collect::<Vec<_>>(), [Some(1), None]);
    told.push(text(&report, Format::Table));
    insta::assert_snapshot!(told.join("\n"));
}

#[test]
fn who_has_a_machine_that_cant_start_it_waits_too() {
    let mut scene = scattered();
    for (name, image) in [("a", "gone:1"), ("b", "gone:1")] {
        scene = scene.raw_pod(&format!(
            "metadata: {{name: {name}, namespace: team, creationTimestamp: '2026-11-22T11:59:00Z', ownerReferences: [{{apiVersion: apps/v1, kind: ReplicaSet, name: web, uid: u, controller: true}}]}}
spec: {{nodeName: gpu-1, containers: [{{name: main, resources: {{requests: {{cpu: 1}}}}}}]}}
status: {{phase: Pending, containerStatuses: [{{name: main, state: {{waiting: {{reason: ImagePullBackOff, message: 'Back-off pulling image \"{image}\"'}}}}}}]}}
"
        ));
    }
    // It is only just being made.
    let made = "{metadata: {name: c, namespace: team}, spec: {nodeName: gpu-1, containers: []}, status: {phase: Pending, containerStatuses: [{name: main, state: {waiting: {reason: ContainerCreating}}}]}}";
    let report = scene.raw_pod(made).report();
    let found: Vec<_> = report.waiting.iter().map(|one| (one.reason, one.pods, &*one.asks)).collect();
    assert_eq!(found, [(Reason::NotStarted, Some(2), "1 core")]);
    insta::assert_snapshot!(format!(
        "{} | {}",
        report.waiting[0].why,
        report.waiting[0].starts_if.join("; or ")
    ));
}

#[test]
fn namespaces_are_meant_by_their_labels() {
    let apart = "  affinity: {podAntiAffinity: {requiredDuringSchedulingIgnoredDuringExecution: [{topologyKey: kubernetes.io/hostname, namespaceSelector: {matchLabels: {tier: prod}}, labelSelector: {matchLabels: {app: other}}}]}}";
    let other = "{metadata: {name: other, namespace: shop, labels: {app: other}}, spec: {nodeName: gpu-1, containers: []}, status: {phase: Running}}";
    let why = |tier: &str| {
        let mut scene =
            Scene::new().machine("gpu-1", 4, "").raw_pod(other).pod("waits", "", "nvidia.com/gpu: 1", apart);
        assert!(scene.snapshot.pods.iter().any(names_namespaces));
        let labels = [("tier".into(), tier.into())].into();
        scene.snapshot.beside.namespaces = Some([("shop".into(), labels)].into());
        scene.why()
    };
    assert!(
        why("prod").starts_with("its pod anti-affinity keeps it away from shop/other"),
        "{}",
        why("prod")
    );
    // Nothing is in its way, and nobody looks for its place.
    assert!(why("test").contains("does it run?"), "{}", why("test"));
}
