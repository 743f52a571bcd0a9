//! What Prometheus is asked, depending on who is scraped: kube-state-metrics tells requests, capacity and who waits; Spillway's agent tells what is held; the DCGM exporter
//! tells it, too, and what computes.

use std::collections::BTreeMap;

use super::{Error, Query, Range, transport::Transport};
use crate::history::{Key, Owner, Pool, What, sampling};

/// Accelerators in the names that kube-state-metrics makes of resources' names.
const RESOURCES: &str =
    ".+_(gpu|gpu_shared|tpu|npu|gaudi|mig_.+|neuron.*|fpga.*)|(fpga|gpu)_intel_com_.+|xilinx_com_.+";
/// What tells who is scraped.
const REQUESTS: &str = "kube_pod_container_resource_requests";
const HELD: &str = "spillway_container_device_held";
const RATIO: &str = "spillway_container_device_utilization_ratio";
const DCGM: &str = "DCGM_FI_DEV_GPU_UTIL";
/// Spillway's shares of one device are one device.
const DEVICES: &str = "spillway_device_healthy";
/// Virtual kubelets mark their nodes with it.
const VIRTUAL: &str = r#"max by (node) (kube_node_spec_taint{key="virtual-kubelet.io/provider"})"#;
/// The model, where kube-state-metrics is told to show that label.
const PRODUCT: &str = "label_nvidia_com_gpu_product";

/// What the series of a query are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kind {
    /// What they count.
    pub what: What,
    /// Whether they are of virtual nodes, each of which is a pool.
    pub serverless: bool,
}

impl Kind {
    const fn dedicated(what: What) -> Self {
        Self { what, serverless: false }
    }

    const fn serverless(what: What) -> Self {
        Self { what, serverless: true }
    }

    /// Which series it is, by its labels.
    pub fn key(&self, labels: &BTreeMap<String, String>) -> Key {
        let label = |names: &[&str]| {
            names
                .iter()
                .find_map(|name| labels.get(*name).filter(|value| !value.is_empty()))
                .cloned()
                .unwrap_or_default()
        };
        let resource = resource(&label(&["resource"]));
        let model = sampling::model(&label(&["model", "modelName", PRODUCT]));
        let named = if self.serverless { label(&["node"]) } else { label(&["pool"]) };
        let pool = if self.what == What::Waiting {
            sampling::waiting_pool(&resource)
        } else {
            let name = [&named, &model, &resource]
                .into_iter()
                .find(|name| !name.is_empty())
                .map_or("all", String::as_str);
            Pool { name: name.to_owned(), resource, model, serverless: self.serverless }
        };
        let owner = match self.what {
            What::Capacity => Owner::default(),
            _ => Owner {
                namespace: label(&["namespace", "exported_namespace"]),
                label: label(&["label", "team"]),
                user: label(&["user"]),
            },
        };
        Key { what: self.what, pool, owner }
    }

    /// How much of a GPU one is.
    pub fn unit(&self, labels: &BTreeMap<String, String>) -> f64 {
        let name = labels.get("resource").map(|name| resource(name)).unwrap_or_default();
        let model = labels.get(PRODUCT).map_or("", String::as_str);
        let milli = sampling::slices(&name, model).and_then(|milli| u32::try_from(milli).ok());
        milli.map_or(1.0, |milli| f64::from(milli) / 1000.0)
    }
}

/// A resource's name as Kubernetes has it: kube-state-metrics writes `nvidia_com_gpu`, and what that was can be told of those that are known.
fn resource(name: &str) -> String {
    let domains = [
        "nvidia_com_",
        "amd_com_",
        "gpu_intel_com_",
        "fpga_intel_com_",
        "habana_ai_",
        "google_com_",
        "aws_amazon_com_",
        "xilinx_com_",
    ];
    let Some((domain, rest)) = domains.iter().find_map(|domain| Some((*domain, name.strip_prefix(domain)?)))
    else {
        return name.to_owned();
    };
    let domain = domain.trim_end_matches('_').replace('_', ".");
    match rest.strip_prefix("mig_") {
        Some(profile) => format!("{domain}/mig-{}", profile.replace('_', ".")),
        None if rest == "gpu_shared" => format!("{domain}/gpu.shared"),
        None => format!("{domain}/{rest}"),
    }
}

/// The queries that fit what is scraped.
///
/// # Errors
/// When Prometheus doesn't answer, or has nothing of accelerators.
pub async fn detect(transport: &Transport, range: Range) -> Result<Vec<Query>, Error> {
    let known = [REQUESTS, HELD, RATIO, DCGM].join("|");
    let names = transport.names(&format!("{{__name__=~\"{known}\"}}"), range.since_s, range.until_s).await?;
    let has = |name: &str| names.iter().any(|found| found == name);
    let mut queries = if has(REQUESTS) {
        state_metrics()
    } else if has(HELD) {
        agent()
    } else if has(DCGM) {
        dcgm()
    } else {
        return Err(Error::NoMetrics { address: transport.address().to_owned() });
    };
    if has(RATIO) {
        let used = format!("sum by (namespace, model) ({})", of_pods(RATIO, ""));
        queries.push(Query { promql: used, counts: Some(Kind::dedicated(What::Used)) });
    } else if has(DCGM) {
        let used = format!(
            "sum by (namespace, modelName) (max by (UUID, GPU_I_ID, namespace, modelName) ({})) / 100",
            of_pods(DCGM, NOT_ITSELF)
        );
        queries.push(Query { promql: used, counts: Some(Kind::dedicated(What::Used)) });
    }
    Ok(queries)
}

/// The admin's own query: GPUs demanded, by the labels `namespace`, and `pool`, `model` or `resource` where it has them.
pub fn own(promql: &str) -> Vec<Query> {
    vec![Query { promql: promql.to_owned(), counts: Some(Kind::dedicated(What::Allocated)) }]
}

fn state_metrics() -> Vec<Query> {
    // Of two kube-state-metrics each says the same. Pods that have ended still have their requests.
    let pods = |node: &str, phases: &str| {
        format!(
            "max by (namespace, pod, uid, container, node, resource) ({REQUESTS}{{resource=~\"{RESOURCES}\",node{node}\"\"}}) \
             * on (namespace, pod, uid) group_left () max by (namespace, pod, uid) (kube_pod_status_phase{{phase=~\"{phases}\"}} == 1)"
        )
    };
    let bound = pods("!=", "Pending|Running");
    let nodes = format!("max by (node, resource) (kube_node_status_capacity{{resource=~\"{RESOURCES}\"}})");
    // Nodes whose model nobody tells stay in.
    let with_model = |of: &str, same: &str| {
        let model = format!("max by (node, {PRODUCT}) (kube_node_labels{{{PRODUCT}!=\"\"}})");
        let owned = format!("(({of}) unless on (node) {VIRTUAL})");
        format!("({owned} * on (node) group_left ({PRODUCT}) {model} or on ({same}) {owned})")
    };
    let query = |promql, counts| Query { promql, counts };
    vec![
        query("count(kube_node_status_capacity)".to_owned(), None),
        query(
            format!("sum by (resource, {PRODUCT}) ({})", with_model(&nodes, "node, resource")),
            Some(Kind::dedicated(What::Capacity)),
        ),
        query(
            format!(
                "sum by (namespace, resource, {PRODUCT}) ({})",
                with_model(&bound, "namespace, pod, uid, container, resource")
            ),
            Some(Kind::dedicated(What::Allocated)),
        ),
        query(
            format!("sum by (node, resource) (({nodes}) and on (node) {VIRTUAL})"),
            Some(Kind::serverless(What::Capacity)),
        ),
        query(
            format!("sum by (namespace, node, resource) (({bound}) and on (node) {VIRTUAL})"),
            Some(Kind::serverless(What::Allocated)),
        ),
        query(
            format!("sum by (namespace, resource) ({})", pods("=", "Pending")),
            Some(Kind::dedicated(What::Waiting)),
        ),
    ]
}

fn agent() -> Vec<Query> {
    let held = format!("sum by (namespace, resource, model) ({})", of_pods(HELD, ""));
    vec![
        Query { promql: format!("count({DEVICES})"), counts: None },
        Query {
            promql: format!("count by (resource, model) ({DEVICES})"),
            counts: Some(Kind::dedicated(What::Capacity)),
        },
        Query { promql: held, counts: Some(Kind::dedicated(What::Allocated)) },
    ]
}

/// A GPU that nobody has is shown with the exporter's own pod, which its scrape has for a label.
const NOT_ITSELF: &str = r#",pod!="",pod!~".*dcgm-exporter.*""#;

fn dcgm() -> Vec<Query> {
    let each = "UUID, GPU_I_ID, namespace, modelName";
    let held = format!("count by (namespace, modelName) (count by ({each}) ({}))", of_pods(DCGM, NOT_ITSELF));
    vec![
        Query {
            promql: format!("count by (modelName) (count by (UUID, modelName) ({DCGM}))"),
            counts: Some(Kind::dedicated(What::Capacity)),
        },
        Query { promql: held, counts: Some(Kind::dedicated(What::Allocated)) },
    ]
}

/// A metric with its pods' namespaces in the label `namespace`: unless a scrape honours labels, they are in `exported_namespace`.
fn of_pods(metric: &str, more: &str) -> String {
    format!(
        "(label_replace({metric}{{exported_namespace!=\"\"}}, \"namespace\", \"$1\", \"exported_namespace\", \"(.+)\") \
         or {metric}{{exported_namespace=\"\",namespace!=\"\"{more}}})"
    )
}
