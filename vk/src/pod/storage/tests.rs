use std::os::unix::fs::symlink;

use serde_json::json;

use super::*;

fn spec(value: &serde_json::Value) -> PodSpec {
    serde_json::from_value(value.clone()).unwrap()
}

fn container(name: &str, limit: &str) -> serde_json::Value {
    json!({ "name": name, "resources": { "limits": { "ephemeral-storage": limit } } })
}

#[test]
fn pods_without_a_limit_are_not_looked_at() {
    let free = json!({ "containers": [{ "name": "a" }], "volumes": [
        { "name": "e", "emptyDir": {} }, { "name": "z", "emptyDir": { "sizeLimit": "0" } },
        { "name": "m", "emptyDir": { "medium": "Memory", "sizeLimit": "1Mi" } },
    ] });
    assert_eq!(limits(&spec(&free)), None);
}

#[test]
fn what_the_cluster_needs_is_never_evicted() {
    for (priority, is_limited) in [(1_999_999_999, true), (2_000_000_000, false), (2_000_001_000, false)] {
        let pod = json!({ "priority": priority, "containers": [container("a", "1Mi")] });
        assert_eq!(limits(&spec(&pod)).is_some(), is_limited, "{priority}");
    }
}

#[test]
fn only_what_limits_name_is_measured() {
    let volumes = json!([
        { "name": "e", "emptyDir": {} }, { "name": "l", "emptyDir": { "sizeLimit": "1Ki" } },
        { "name": "c", "configMap": { "name": "c" } }, { "name": "s", "secret": { "secretName": "s" } },
        { "name": "m", "emptyDir": { "medium": "Memory" } }, { "name": "h", "hostPath": { "path": "/" } },
    ]);
    let of_volume = limits(&spec(&json!({ "containers": [{ "name": "a" }], "volumes": volumes }))).unwrap();
    assert_eq!((of_volume.volumes(), of_volume.concern_containers()), (vec!["l".to_owned()], false));
    let of_pod =
        limits(&spec(&json!({ "containers": [container("a", "1Mi")], "volumes": volumes }))).unwrap();
    assert_eq!(
        (of_pod.volumes(), of_pod.concern_containers()),
        (["c", "e", "l"].map(str::to_owned).to_vec(), true)
    );
}

#[test]
fn what_is_too_much_is_said_as_a_kubelet_says_it() {
    let limits = limits(&spec(&json!({
        "containers": [container("a", "1Mi"), container("b", "2Mi")],
        "volumes": [{ "name": "l", "emptyDir": { "sizeLimit": "1000k" } }, { "name": "e", "emptyDir": {} }],
    })))
    .unwrap();
    let used = |volumes: &[(&str, u64)], containers: &[(&str, u64)]| {
        let map =
            |all: &[(&str, u64)]| all.iter().map(|(name, bytes)| ((*name).to_owned(), *bytes)).collect();
        exceeded(&limits, &Used { volumes: map(volumes), containers: map(containers), files: 0 })
    };
    let mib = 1_u64 << 20;
    assert_eq!(used(&[("l", 1_000_000), ("e", mib)], &[("a", mib)]), None, "up to the limit");
    let volume = "Usage of EmptyDir volume \"l\" exceeds the limit \"1000k\". ";
    assert_eq!(used(&[("l", 1_000_001)], &[("a", 9 * mib)]).as_deref(), Some(volume));
    let pod = "Pod ephemeral local storage usage exceeds the total limit of containers 3Mi. ";
    assert_eq!(used(&[("e", 2 * mib)], &[("a", mib), ("b", 1)]).as_deref(), Some(pod));
    let one = "Container a exceeded its local ephemeral storage limit \"1Mi\". ";
    assert_eq!(used(&[], &[("a", mib + 1), ("b", 1)]).as_deref(), Some(one));
}

#[test]
fn a_pods_limit_is_that_of_all_that_runs_together() {
    let check = |value: serde_json::Value, expected: &str| {
        assert_eq!(of_pod(&spec(&value)).unwrap().text, expected);
    };
    let sidecar = |limit: &str| {
        let mut sidecar = container("s", limit);
        sidecar["restartPolicy"] = json!("Always");
        sidecar
    };
    check(json!({ "containers": [container("a", "1Gi"), { "name": "b" }] }), "1Gi");
    check(json!({ "containers": [container("a", "1Gi"), container("b", "512Mi")] }), "1536Mi");
    check(json!({ "containers": [container("a", "1G"), container("b", "500M")] }), "1500M");
    check(json!({ "containers": [container("a", "1Gi")], "initContainers": [container("i", "3Gi")] }), "3Gi");
    let inits = json!([sidecar("1Gi"), container("i", "1Gi")]);
    check(json!({ "containers": [container("a", "2Gi")], "initContainers": inits }), "3Gi");
}

#[test]
fn files_count_by_what_they_take_and_links_lead_nowhere() {
    let root = tempfile::tempdir().unwrap();
    let volume = root.path().join("volume");
    fs::create_dir_all(volume.join("deep/er")).unwrap();
    let outside = root.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("big"), vec![1; 1 << 20]).unwrap();
    let empty = bytes_below(&volume).unwrap();
    let grown = |by: u64| {
        let now = bytes_below(&volume).unwrap() - empty;
        assert!(now >= by && now < by + (64 << 10), "{now} instead of {by}");
    };
    fs::write(volume.join("deep/er/file"), vec![1; 256 << 10]).unwrap();
    grown(256 << 10);
    fs::hard_link(volume.join("deep/er/file"), volume.join("again")).unwrap();
    symlink(&outside, volume.join("out")).unwrap();
    grown(256 << 10);
    // A file that is mostly a hole takes what it takes.
    fs::File::create(volume.join("hole")).unwrap().set_len(1 << 40).unwrap();
    grown(256 << 10);
    assert!(bytes_below(&volume.join("none")).is_err());
}
