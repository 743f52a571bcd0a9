//! What is free and can't be used.

use super::*;
use crate::fragmentation::Cause;

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

#[test]
fn machines_alike_are_one_line_where_people_read() {
    let scene = Scene::new()
        .machine("gpu-1", 2, "")
        .machine("gpu-2", 2, "")
        .pod("a", "gpu-1", "nvidia.com/gpu: 1", "")
        .pod("b", "gpu-2", "nvidia.com/gpu: 1", "")
        .pod("waits", "", "nvidia.com/gpu: 2", "");
    let report = scene.report();
    let mut brief = Vec::new();
    output::print(&mut brief, Format::Csv, &report, &report.brief_tables()).unwrap();
    let brief = String::from_utf8(brief).unwrap();
    let line = "\ngpu-1 and gpu-2,nvidia.com/gpu,2,2,\"on each: 1 free on this machine, and pods that wait ask for 2\"\n";
    assert!(brief.contains(line), "{brief}");
    assert_eq!(report.stranded.len(), 2);
}

/// A machine of eight whose free GPUs are in groups, and a pod that asks for so many and may not start yet.
fn grouped(groups: &str, taken: u32, asks: u32) -> Scene {
    let machine = format!(
        "metadata: {{name: gpu-1, labels: {{kubernetes.io/hostname: gpu-1}}, annotations: {{spillway.dev/largest-group: '{{\"nvidia.com/gpu\":{groups}}}'}}}}
status:
  capacity: &has {{cpu: 64, memory: 512Gi, pods: 110, nvidia.com/gpu: 8}}
  allocatable: *has
  conditions: [{{type: Ready, status: 'True'}}]
"
    );
    let gate = "  schedulingGates: [{name: a}]";
    Scene::new().node(&machine).pod("holder", "gpu-1", &format!("nvidia.com/gpu: {taken}"), "").pod(
        "waits",
        "",
        &format!("nvidia.com/gpu: {asks}"),
        gate,
    )
}

fn by_cause(scene: &Scene) -> Vec<(Cause, i64)> {
    scene.report().dedicated.iter().flat_map(|pool| pool.stranded_by.clone()).collect()
}

#[test]
fn a_kubelets_policy_tells_what_it_would_refuse() {
    let stranded = |policy: NumaPolicy, taken: u32, asks: u32, groups: &str| {
        let mut scene = grouped(groups, taken, asks);
        // What it refused under another policy is past.
        scene.snapshot.numa_refused.insert("gpu-1".into());
        scene.snapshot.beside.numa_policies.insert("gpu-1".into(), policy);
        by_cause(&scene)
    };
    let (halves, most) = (r#"{"numa":2,"node":4}"#, r#"{"numa":3,"node":6}"#);
    assert_eq!(stranded(NumaPolicy::Lenient, 4, 4, halves), []);
    assert_eq!(stranded(NumaPolicy::SingleNode, 4, 4, halves), [(Cause::Numa, 4)]);
    assert_eq!(stranded(NumaPolicy::SingleNode, 4, 2, halves), []);
    assert_eq!(stranded(NumaPolicy::Restricted, 4, 4, halves), [(Cause::Numa, 4)]);
    // Six are on no NUMA node of a machine of eight, so that two are allowed.
    assert_eq!(stranded(NumaPolicy::Restricted, 2, 6, most), []);
    assert_eq!(stranded(NumaPolicy::SingleNode, 2, 6, most), [(Cause::Numa, 6)]);
}

#[test]
fn what_nvlink_no_longer_connects_is_stranded() {
    // One of each of two pairs.
    let pairs = r#"{"nvlink":1,"numa":2,"node":2}"#;
    assert_eq!(by_cause(&grouped(pairs, 6, 2)), [(Cause::Nvlink, 2)]);
    assert_eq!(by_cause(&grouped(pairs, 6, 1)), []);
    // No machine of this pool connects four, so nobody misses it; until one does.
    let two_pairs = r#"{"nvlink":2,"numa":4,"node":4}"#;
    assert_eq!(by_cause(&grouped(two_pairs, 4, 4)), []);
    let whole = "metadata: {name: gpu-2, annotations: {spillway.dev/largest-group: '{\"nvidia.com/gpu\":{\"nvlink\":8,\"numa\":4,\"node\":8}}'}}
status:
  capacity: &has {cpu: 64, memory: 512Gi, pods: 110, nvidia.com/gpu: 8}
  allocatable: *has
  conditions: [{type: Ready, status: 'True'}]
";
    let scene = grouped(two_pairs, 4, 4).node(whole);
    assert_eq!(by_cause(&scene), [(Cause::Nvlink, 4)]);
    assert_eq!(
        scene.report().stranded[0].why,
        "at most 2 of 4 free reach each other by NVLink: a pod that needs more would run here, at the speed of the bus"
    );
    // Without NVLink there is nothing to miss.
    assert_eq!(by_cause(&grouped(r#"{"numa":1,"node":2}"#, 6, 2)), []);
}
