use serde_json::{Value, json};

use super::*;
use crate::{
    cluster::usage::Kind,
    report::snapshot::{self, ClaimOf, Phase},
};

fn pod(value: Value) -> (snapshot::Pod, Names) {
    let mut names = Names::default();
    let pod: Pod = serde_json::from_value(value).unwrap();
    (pod.shown(&mut names), names)
}

/// What the scheduler sets aside, by resource.
fn asks(spec: &Value) -> BTreeMap<String, i64> {
    let (pod, names) = pod(json!({ "metadata": { "name": "p" }, "spec": spec }));
    pod.requests.iter().map(|(resource, amount)| (names.name(resource).to_owned(), amount)).collect()
}

fn container(name: &str, requests: &Value) -> Value {
    json!({ "name": name, "resources": { "requests": requests } })
}

fn amounts_of(pairs: &[(&str, i64)]) -> BTreeMap<String, i64> {
    pairs.iter().map(|(name, amount)| ((*name).to_owned(), *amount)).collect()
}

#[test]
fn containers_add_up_and_overhead_comes_on_top() {
    let spec = json!({
        "containers": [
            container("a", &json!({ "cpu": "500m", "memory": "1Gi", "nvidia.com/gpu": "2" })),
            // A limit alone is a request.
            { "name": "b", "resources": { "limits": { "cpu": "1", "nvidia.com/gpu": 1 } } },
        ],
        "overhead": { "cpu": "250m" },
    });
    assert_eq!(
        asks(&spec),
        amounts_of(&[("cpu", 1750), ("memory", 1 << 30), ("nvidia.com/gpu", 3), ("pods", 1)])
    );
}

#[test]
fn init_containers_count_alone_and_sidecars_with_all_that_come_after() {
    let sidecar = |name: &str, cpu: &str| json!({ "name": name, "restartPolicy": "Always", "resources": { "requests": { "cpu": cpu } } });
    let spec = |init: Value| json!({ "initContainers": init, "containers": [container("a", &json!({ "cpu": "1" }))] });
    let cpu = |init: Value| asks(&spec(init))["cpu"];
    assert_eq!(cpu(json!([container("i", &json!({ "cpu": "3" }))])), 3000);
    assert_eq!(cpu(json!([container("i", &json!({ "cpu": "500m" }))])), 1000);
    assert_eq!(cpu(json!([sidecar("s", "2")])), 3000);
    // Beside the sidecar that was started before it.
    assert_eq!(cpu(json!([sidecar("s", "2"), container("i", &json!({ "cpu": "3" }))])), 5000);
    assert_eq!(cpu(json!([container("i", &json!({ "cpu": "3" })), sidecar("s", "2")])), 3000);
}

#[test]
fn what_is_said_of_the_whole_pod_and_what_a_resize_left_count() {
    let whole = json!({
        "resources": { "requests": { "cpu": "4" } },
        "containers": [container("a", &json!({ "cpu": "1", "memory": "1Ki", "nvidia.com/gpu": "1" }))],
    });
    assert_eq!(
        asks(&whole),
        amounts_of(&[("cpu", 4000), ("memory", 1024), ("nvidia.com/gpu", 1), ("pods", 1)])
    );
    let (shrinking, _) = pod(json!({
        "metadata": { "name": "p" },
        "spec": { "containers": [container("a", &json!({ "cpu": "1" }))] },
        "status": { "containerStatuses": [{
            "name": "a", "allocatedResources": { "cpu": "3" }, "resources": { "requests": { "cpu": "2" } },
        }] },
    }));
    assert_eq!(shrinking.requests.get(ResourceId::CPU), 3000);
}

#[test]
fn who_holds_accelerators_and_runs_nothing_is_noticed() {
    let stands = |state: Value| {
        let (pod, _) = pod(json!({
            "metadata": { "name": "p" },
            "spec": { "nodeName": "n", "containers": [
                { "name": "gpu", "resources": { "limits": { "nvidia.com/gpu": 1 } } }, { "name": "log" },
            ] },
            "status": { "phase": "Running", "containerStatuses": [
                { "name": "gpu", "state": state }, { "name": "log", "state": { "running": {} } },
            ] },
        }));
        pod.stands.map(|stands| (stands.why, stands.since.is_some()))
    };
    assert_eq!(stands(json!({ "running": { "startedAt": "2026-11-22T07:00:00Z" } })), None);
    let pulling = json!({ "waiting": { "reason": "ImagePullBackOff" } });
    assert_eq!(stands(pulling), Some(("ImagePullBackOff".to_owned(), false)));
    let ended = json!({ "terminated": { "exitCode": 0, "reason": "Completed", "finishedAt": "2026-11-22T07:00:00Z" } });
    assert_eq!(stands(ended), Some(("Completed".to_owned(), true)));
}

#[test]
fn virtual_nodes_are_known_by_their_marks() {
    let provider = |labels: Value, taints: Value| {
        let node: Node = serde_json::from_value(
            json!({ "metadata": { "name": "n", "labels": labels }, "spec": { "taints": taints } }),
        )
        .unwrap();
        node.shown(&mut Names::default()).provider.map(|provider| provider.to_string())
    };
    let taint = |value: &str| json!([{ "key": "virtual-kubelet.io/provider", "value": value, "effect": "NoSchedule" }]);
    assert_eq!(provider(json!({}), json!(null)), None);
    assert_eq!(provider(json!({ "type": "virtual-kubelet" }), taint("azure")).as_deref(), Some("azure"));
    assert_eq!(provider(json!({ "type": "virtual-kubelet" }), json!([])).as_deref(), Some("virtual-kubelet"));
    assert_eq!(
        provider(json!({ "eks.amazonaws.com/compute-type": "fargate" }), json!([])).as_deref(),
        Some("fargate")
    );
    assert_eq!(provider(json!({ "type": "kwok" }), json!([])), None);
}

#[test]
fn objects_with_next_to_nothing_in_them_are_read() {
    let (empty, _) = pod(json!({ "metadata": {} }));
    assert_eq!((&*empty.name, empty.phase), ("", Phase::Pending));
    let node: Node = serde_json::from_value(json!({ "metadata": {
        "name": "n", "annotations": { "spillway.dev/largest-group": "no JSON", "other": "x" }, "managedFields": [{ "manager": "m" }],
    } }))
    .unwrap();
    let node = node.shown(&mut Names::default());
    assert!(node.groups.is_empty() && node.not_ready.is_some());
    let event: Event =
        serde_json::from_value(json!({ "metadata": { "namespace": "a" }, "involvedObject": {} })).unwrap();
    assert_eq!(event.refusal().owner, "/");
}

#[test]
fn the_port_of_an_exporter_is_found() {
    let exporter = |labels: Value, ports: Value, phase: &str| {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": { "name": "p", "namespace": "n", "labels": labels },
            "spec": { "containers": [{ "name": "c", "ports": ports }] },
            "status": { "phase": phase },
        }))
        .unwrap();
        pod.exporter().map(|exporter| (exporter.kind, exporter.port))
    };
    let agent = json!({ "app.kubernetes.io/name": "spillway", "app.kubernetes.io/component": "agent" });
    let ports = json!([{ "name": "x", "containerPort": 1 }, { "name": "admin", "containerPort": 9401 }]);
    assert_eq!(exporter(agent.clone(), ports.clone(), "Running"), Some((Kind::Agent, 9401)));
    assert_eq!(exporter(agent, ports, "Pending"), None);
    assert_eq!(
        exporter(json!({ "app": "nvidia-dcgm-exporter" }), json!([]), "Running"),
        Some((Kind::Dcgm, 9400))
    );
    assert_eq!(exporter(json!({ "app": "web" }), json!([]), "Running"), None);
}

#[test]
fn what_a_pod_claims_is_named_until_it_has_its_machine() {
    let claims = |node: Option<&str>| {
        let (pod, _) = pod(json!({
            "metadata": { "name": "p" },
            "spec": {
                "nodeName": node,
                "volumes": [
                    { "name": "data", "persistentVolumeClaim": { "claimName": "data-0" } },
                    { "name": "scratch", "ephemeral": {} },
                    { "name": "config", "configMap": { "name": "c" } },
                ],
                "resourceClaims": [
                    { "name": "gpu", "resourceClaimTemplateName": "one" }, { "name": "shared", "resourceClaimName": "all" },
                    { "name": "late", "resourceClaimTemplateName": "two" },
                ],
                "containers": [],
            },
            "status": { "resourceClaimStatuses": [{ "name": "gpu", "resourceClaimName": "p-gpu-x7" }] },
        }));
        let claims = pod.wish.map(|wish| wish.claims).unwrap_or_default();
        claims
            .into_iter()
            .map(|claim| (claim.of, claim.name.map(|name| name.to_string())))
            .collect::<Vec<_>>()
    };
    let named = |of, name: &str| (of, Some(name.to_owned()));
    assert_eq!(
        claims(None),
        [
            named(ClaimOf::Volume, "data-0"),
            named(ClaimOf::Volume, "p-scratch"),
            named(ClaimOf::Devices, "p-gpu-x7"),
            named(ClaimOf::Devices, "all"),
            (ClaimOf::Devices, None),
        ]
    );
    assert_eq!(claims(Some("n")), []);
}

#[test]
fn a_sidecar_takes_its_port_of_the_host_too() {
    let (pod, _) = pod(json!({
        "metadata": { "name": "p" },
        "spec": {
            "initContainers": [
                { "name": "s", "restartPolicy": "Always", "ports": [{ "containerPort": 1, "hostPort": 81 }] },
                { "name": "i", "ports": [{ "containerPort": 1, "hostPort": 82 }] },
            ],
            "containers": [{ "name": "c", "ports": [{ "containerPort": 1, "hostPort": 80 }, { "containerPort": 2 }] }],
        },
    }));
    assert_eq!(pod.ports.iter().map(|port| port.port).collect::<Vec<_>>(), [80, 81]);
}
