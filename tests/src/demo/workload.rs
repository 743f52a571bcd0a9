//! What the demo asks of Kubernetes: the steady Deployment and the Job, as an ordinary user would write them.

use anyhow::{Context as _, bail};
use k8s_openapi::{
    api::{
        apps::v1::Deployment,
        batch::v1::Job,
        core::v1::{Node, Pod},
    },
    apimachinery::pkg::api::resource::Quantity,
};
use serde_json::{Value, json};

use crate::image;

/// Everything of the demo is in this namespace.
pub const NAMESPACE: &str = "demo";
/// The Job.
pub const JOB: &str = "tiles";
/// The Deployment that holds the accelerators.
pub const STEADY: &str = "steady";
/// The label that marks nodes with accelerators.
pub const ACCELERATORS: &str = "spillway.dev/accelerators";
/// The demo's part of the shared storage, as every machine sees it.
pub const SHARED: &str = "/srv/shared/demo";

/// What a pod of the Job requests, where there is plenty: a tenth of a CPU.
const TILE_MILLICPU: u64 = 100;

/// How the dedicated node's CPU is divided, so that as many pods of the Job fit there at a time as wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Division {
    /// What each pod of the Job requests, in thousandths of a CPU.
    pub tile_millicpu: u64,
    /// What the steady Deployment requests: all the rest.
    pub steady_millicpu: u64,
}

/// Divides `free_millicpu` between the steady Deployment and `slots` pods of the Job.
///
/// # Errors
/// When so many slots can't be.
pub fn divide(free_millicpu: u64, slots: u64) -> anyhow::Result<Division> {
    let tile_millicpu = TILE_MILLICPU.min(free_millicpu / (slots + 1));
    if tile_millicpu == 0 {
        bail!(
            "the dedicated node has {free_millicpu} thousandths of a CPU free, too few for {slots} slots: ask for fewer with --dedicated-slots"
        );
    }
    Ok(Division { tile_millicpu, steady_millicpu: free_millicpu - slots * tile_millicpu })
}

/// What of a node's CPU no pod requests, in thousandths.
///
/// # Errors
/// When the node doesn't tell its allocatable CPU.
pub fn free_millicpu(node: &Node, pods: &[Pod]) -> anyhow::Result<u64> {
    let allocatable = node.status.as_ref().and_then(|status| status.allocatable.as_ref());
    let total = allocatable
        .and_then(|resources| millicpu(resources.get("cpu")?))
        .context("the dedicated node doesn't tell how much CPU can be allocated on it")?;
    let ended = |pod: &&Pod| {
        let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
        !matches!(phase, Some("Succeeded" | "Failed"))
    };
    let requested: u64 = pods
        .iter()
        .filter(ended)
        .flat_map(|pod| pod.spec.iter().flat_map(|spec| &spec.containers))
        .filter_map(|container| millicpu(container.resources.as_ref()?.requests.as_ref()?.get("cpu")?))
        .sum();
    Ok(total.saturating_sub(requested))
}

/// A CPU quantity as the API server writes it: `2` or `1900m`.
fn millicpu(quantity: &Quantity) -> Option<u64> {
    match quantity.0.strip_suffix('m') {
        Some(thousandths) => thousandths.parse().ok(),
        None => quantity.0.parse::<u64>().ok().map(|cpus| cpus * 1000),
    }
}

/// The accelerators that a node offers, by resource name: GPUs and FPGA regions.
pub fn accelerators(node: &Node) -> Vec<(String, u64)> {
    let allocatable = node.status.as_ref().and_then(|status| status.allocatable.as_ref());
    let offered = allocatable.into_iter().flatten().filter_map(|(name, amount)| {
        let amount: u64 = amount.0.parse().ok().filter(|amount| *amount > 0)?;
        (name == "nvidia.com/gpu" || name.starts_with("fpga.intel.com/")).then(|| (name.clone(), amount))
    });
    offered.collect()
}

/// One replica that holds all accelerators of the dedicated node, and says which.
///
/// # Errors
/// Never, in practice: the text is fixed.
pub fn steady(accelerators: &[(String, u64)], division: Division) -> anyhow::Result<Deployment> {
    let held: serde_json::Map<String, Value> =
        accelerators.iter().map(|(name, amount)| (name.clone(), amount.to_string().into())).collect();
    from_json(json!({
        "metadata": {"name": STEADY},
        "spec": {
            "replicas": 1,
            "selector": {"matchLabels": {"app": STEADY}},
            "template": {
                "metadata": {"labels": {"app": STEADY}},
                "spec": {
                    "terminationGracePeriodSeconds": 0,
                    "nodeSelector": {ACCELERATORS: "true"},
                    "containers": [{
                        "name": "model",
                        "image": image::BUSYBOX,
                        "imagePullPolicy": "Never",
                        "command": ["sleep", "86400"],
                        "resources": {
                            "requests": {"cpu": format!("{}m", division.steady_millicpu)},
                            "limits": held,
                        },
                    }],
                },
            },
        },
    }))
}

/// The main job: `pods` completions, as many at a time, that rather run on the dedicated node and may run on the virtual one.
///
/// # Errors
/// Never, in practice: the text is fixed.
pub fn job(pods: usize, division: Division) -> anyhow::Result<Job> {
    from_json(json!({
        "metadata": {"name": JOB},
        "spec": {
            "completionMode": "Indexed",
            "completions": pods,
            "parallelism": pods,
            "template": {
                "spec": {
                    "restartPolicy": "Never",
                    // What lets a pod spill. The scheduler sends it there when the dedicated node is full.
                    "tolerations": [{"key": "virtual-kubelet.io/provider", "operator": "Exists"}],
                    "affinity": {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [{
                        "weight": 100,
                        "preference": {"matchExpressions": [{"key": ACCELERATORS, "operator": "Exists"}]},
                    }]}},
                    "containers": [{
                        "name": "tile",
                        "image": image::TILES,
                        "imagePullPolicy": "Never",
                        "args": arguments("results"),
                        "env": [{"name": "NODE_NAME", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}}],
                        "resources": {"requests": {"cpu": format!("{}m", division.tile_millicpu)}},
                        "volumeMounts": [{"name": "shared", "mountPath": "/shared"}],
                    }],
                    "volumes": [{"name": "shared", "hostPath": {"path": SHARED, "type": "Directory"}}],
                },
            },
        },
    }))
}

/// What a container of the main job runs; results go into this folder of the shared storage.
pub fn arguments(results: &str) -> Vec<String> {
    ["process", "--input", "/shared/tiles", "--output", &format!("/shared/{results}")]
        .map(str::to_owned)
        .into()
}

fn from_json<T: serde::de::DeserializeOwned>(value: Value) -> anyhow::Result<T> {
    serde_json::from_value(value).context("the demo's own manifest doesn't fit the API")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_pods_fit_beside_the_steady_deployment_and_not_one_more() {
        for (free, slots) in [(1900, 8), (1900, 0), (1900, 40), (63_000, 8), (100, 99)] {
            let Division { tile_millicpu, steady_millicpu } = divide(free, slots).unwrap();
            assert_eq!((free - steady_millicpu) / tile_millicpu, slots, "{free} {slots}");
            assert!(steady_millicpu > 0 && steady_millicpu <= free);
        }
        let error = divide(100, 100).unwrap_err().to_string();
        assert!(error.contains("--dedicated-slots"), "{error}");
    }

    #[test]
    fn free_cpu_is_what_pods_that_have_not_ended_leave() {
        let node: Node =
            serde_json::from_value(json!({"status": {"allocatable": {"cpu": "1900m"}}})).unwrap();
        let pod = |cpu: &str, phase: &str| -> Pod {
            serde_json::from_value(json!({
                "spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": cpu}}}]},
                "status": {"phase": phase},
            }))
            .unwrap()
        };
        assert_eq!(free_millicpu(&node, &[]).unwrap(), 1900);
        assert_eq!(free_millicpu(&node, &[pod("100m", "Running"), pod("1", "Succeeded")]).unwrap(), 1800);
        assert_eq!(free_millicpu(&node, &[pod("2", "Pending")]).unwrap(), 0);
    }

    #[test]
    fn manifests_fit_the_api_and_ask_for_what_was_divided() {
        let division = Division { tile_millicpu: 100, steady_millicpu: 900 };
        let job = job(200, division).unwrap().spec.unwrap();
        assert_eq!((job.completions, job.parallelism), (Some(200), Some(200)));
        let container = &job.template.spec.unwrap().containers[0];
        assert_eq!(container.args.as_ref().unwrap().last().unwrap(), "/shared/results");
        let steady = steady(&[("nvidia.com/gpu".to_owned(), 2)], division).unwrap();
        let pod = steady.spec.unwrap().template.spec.unwrap();
        assert_eq!(
            pod.containers[0].resources.as_ref().unwrap().limits.as_ref().unwrap()["nvidia.com/gpu"].0,
            "2"
        );
    }

    #[test]
    fn accelerators_are_what_a_node_offers_more_than_none_of() {
        let node = json!({"status": {"allocatable": {"cpu": "2", "nvidia.com/gpu": "2", "fpga.intel.com/region-a": "0"}}});
        let node: Node = serde_json::from_value(node).unwrap();
        assert_eq!(accelerators(&node), [("nvidia.com/gpu".to_owned(), 2)]);
    }
}
