use std::sync::{Arc, Mutex};

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use serde_json::Value;
use tokio::sync::mpsc;

use super::*;
use crate::{
    fake_api::{self, Answer, Call, Calls},
    provider::none::None as NoProvider,
};

const NODE: &str = "/api/v1/nodes/vk1";
const STATUS: &str = "/api/v1/nodes/vk1/status";
const LEASE: &str = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/vk1";

/// The API server's side: one node, one lease, and whoever watches.
#[derive(Default)]
struct Cluster {
    node: Option<Value>,
    lease: Option<Value>,
    created: u32,
    patches: Vec<Value>,
    /// As for a label that an admission plugin forbids.
    refuses_labels: bool,
    watchers: Vec<mpsc::UnboundedSender<Value>>,
}

impl Cluster {
    fn notify(&mut self, kind: &str, object: &Value) {
        self.watchers.retain(|watcher| watcher.send(json!({ "type": kind, "object": object })).is_ok());
    }

    fn delete_node(&mut self) {
        let node = self.node.take().unwrap();
        self.notify("DELETED", &node);
    }

    /// Somebody else puts a node in the place of ours.
    fn replace_node(&mut self, uid: &str) -> Value {
        let node = json!({
            "kind": "Node", "apiVersion": "v1",
            "metadata": { "name": "vk1", "uid": uid, "resourceVersion": "7" },
        });
        self.node = Some(node.clone());
        node
    }

    fn answer(&mut self, call: Call) -> Answer {
        match call.name().as_str() {
            "GET /api/v1/nodes" => Answer::ok(json!({
                "kind": "NodeList", "apiVersion": "v1", "metadata": { "resourceVersion": "1" },
                "items": self.node.iter().collect::<Vec<_>>(),
            })),
            "GET /api/v1/nodes?watch" => {
                let (sender, receiver) = mpsc::unbounded_channel();
                self.watchers.push(sender);
                Answer::Events(receiver)
            }
            name if name == format!("GET {NODE}") => {
                self.node.clone().map_or_else(|| Answer::status(404, "NotFound"), Answer::ok)
            }
            "POST /api/v1/nodes" if self.node.is_some() => Answer::status(409, "AlreadyExists"),
            name if name == format!("PATCH {NODE}") && self.refuses_labels => {
                Answer::status(403, "is not allowed to modify labels: zone")
            }
            "POST /api/v1/nodes" => {
                self.created += 1;
                let mut node = call.body;
                node["metadata"]["uid"] = json!(format!("uid-{}", self.created));
                node["metadata"]["resourceVersion"] = json!("2");
                self.node = Some(node.clone());
                self.notify("ADDED", &node);
                Answer::Json(201, node)
            }
            name if name == format!("PATCH {STATUS}") || name == format!("PATCH {NODE}") => {
                let Some(node) = &mut self.node else { return Answer::status(404, "NotFound") };
                self.patches.push(call.body.clone());
                for (object, maps) in
                    [("metadata", ["labels", "annotations"]), ("status", ["capacity", "allocatable"])]
                {
                    for map in maps {
                        merge(&mut node[object][map], &call.body[object][map]);
                    }
                }
                for condition in call.body["status"]["conditions"].as_array().into_iter().flatten() {
                    let conditions = &mut node["status"]["conditions"];
                    if conditions.is_null() {
                        *conditions = json!([]);
                    }
                    let conditions = conditions.as_array_mut().unwrap();
                    conditions.retain(|old| old["type"] != condition["type"]);
                    conditions.push(condition.clone());
                }
                let node = node.clone();
                self.notify("MODIFIED", &node);
                Answer::ok(node)
            }
            name if name == format!("GET {LEASE}") => match &self.lease {
                Some(lease) => Answer::ok(lease.clone()),
                None => Answer::status(404, "NotFound"),
            },
            name if name == format!("PUT {LEASE}") || name.starts_with("POST /apis/coordination") => {
                let mut lease = call.body;
                lease["metadata"]["resourceVersion"] = json!("1");
                self.lease = Some(lease.clone());
                Answer::ok(lease)
            }
            other => panic!("unexpected request: {other}"),
        }
    }
}

/// As the API server merges maps: what a patch leaves out stays, and what it has as `null` goes.
fn merge(map: &mut Value, patch: &Value) {
    for (key, value) in patch.as_object().into_iter().flatten() {
        map[key] = value.clone();
    }
    if let Some(map) = map.as_object_mut() {
        map.retain(|_, value| !value.is_null());
    }
}

struct Run {
    cluster: Arc<Mutex<Cluster>>,
    calls: Calls,
    readiness: Readiness,
    config: watch::Sender<NodeConfig>,
    _tasks: tokio::task::JoinSet<()>,
}

fn config() -> NodeConfig {
    let taint = k8s_openapi::api::core::v1::Taint {
        key: "virtual-kubelet.io/provider".to_owned(),
        value: Some("none".to_owned()),
        effect: "NoSchedule".to_owned(),
        time_added: None,
    };
    NodeConfig {
        name: "vk1".to_owned(),
        address: None,
        labels: [("zone".to_owned(), "a".to_owned())].into(),
        annotations: std::collections::BTreeMap::default(),
        taints: vec![taint],
        capacity: [("cpu".to_owned(), Quantity("7".to_owned()))].into(),
        quota: std::collections::BTreeMap::default(),
        thresholds: pressure::defaults(),
    }
}

/// Runs a node against a cluster that has `before`.
fn run(before: Option<Value>) -> Run {
    run_with(config(), before)
}

fn run_with(config: NodeConfig, before: Option<Value>) -> Run {
    let cluster = Arc::new(Mutex::new(Cluster { node: before, ..Cluster::default() }));
    let (client, calls) = fake_api::client({
        let cluster = Arc::clone(&cluster);
        move |call| cluster.lock().unwrap().answer(call)
    });
    let (sender, config) = watch::channel(config);
    let provider = Provider::PodService(Arc::new(NoProvider::new()));
    let readiness = Readiness::default();
    let address = "10.0.0.5".parse().unwrap();
    let node = Node::new(
        client,
        provider,
        config,
        address,
        10250,
        NodeLease::Own,
        readiness.clone(),
        Metrics::default(),
    );
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(node.run(CancellationToken::new()));
    Run { cluster, calls, readiness, config: sender, _tasks: tasks }
}

impl Run {
    async fn until(&self, what: &str, condition: impl Fn(&Cluster) -> bool) {
        for _ in 0..600 {
            if condition(&self.cluster.lock().unwrap()) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("not seen: {what}; ready: {:?}", self.readiness.report());
    }
}

fn condition<'a>(status: &'a Value, name: &str) -> &'a Value {
    let conditions = status["conditions"].as_array().unwrap();
    conditions.iter().find(|condition| condition["type"] == name).unwrap()
}

fn is_ready(cluster: &Cluster) -> bool {
    cluster.node.as_ref().is_some_and(|node| condition(&node["status"], "Ready")["status"] == "True")
}

#[tokio::test(start_paused = true)]
async fn registers_with_taint_labels_and_status() {
    let run = run(None);
    run.until("a ready node", is_ready).await;
    run.until("a lease", |cluster| cluster.lease.is_some()).await;
    let cluster = run.cluster.lock().unwrap();
    let node = cluster.node.as_ref().unwrap();
    assert_eq!(node["spec"]["taints"][0]["key"], "virtual-kubelet.io/provider");
    assert!(node["spec"].get("podCIDR").is_none());
    let labels = &node["metadata"]["labels"];
    assert_eq!(labels["type"], "virtual-kubelet");
    assert_eq!(labels["kubernetes.io/hostname"], "vk1");
    assert_eq!(labels["zone"], "a");
    assert_eq!(labels["beta.kubernetes.io/os"], "linux");
    assert!(labels.get("kubernetes.io/role").is_none(), "refused by NodeRestriction");
    let status = &node["status"];
    assert_eq!(
        status["addresses"],
        json!([
            { "type": "InternalIP", "address": "10.0.0.5" }, { "type": "Hostname", "address": "vk1" },
        ])
    );
    assert_eq!((&status["capacity"]["cpu"], &status["allocatable"]["pods"]), (&json!("7"), &json!("110")));
    assert_eq!(status["daemonEndpoints"]["kubeletEndpoint"]["Port"], 10250);
    for healthy in ["MemoryPressure", "DiskPressure", "PIDPressure", "NetworkUnavailable"] {
        assert_eq!(condition(status, healthy)["status"], "False");
    }
    let lease = cluster.lease.as_ref().unwrap();
    assert_eq!(lease["metadata"]["ownerReferences"][0]["uid"], "uid-1");
    assert_eq!(lease["spec"]["holderIdentity"], "vk1");
}

#[tokio::test(start_paused = true)]
async fn registers_again_when_an_admin_deletes_it() {
    let run = run(None);
    run.until("a ready node", is_ready).await;
    run.cluster.lock().unwrap().delete_node();
    run.until("a second registration", |cluster| cluster.created == 2 && is_ready(cluster)).await;
    run.until("the lease of the new node", |cluster| {
        cluster.lease.as_ref().is_some_and(|lease| lease["metadata"]["ownerReferences"][0]["uid"] == "uid-2")
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_deletion_that_no_watch_told_is_noticed() {
    let run = run(None);
    run.until("a ready node", is_ready).await;
    {
        let mut cluster = run.cluster.lock().unwrap();
        cluster.node = None;
    }
    // The next report, within five minutes, meets a 404.
    for _ in 0..10 {
        tokio::time::sleep(REPORT / 5).await;
    }
    assert_eq!(run.cluster.lock().unwrap().created, 2);
}

#[tokio::test(start_paused = true)]
async fn takes_over_an_existing_node_and_leaves_what_others_wrote() {
    let since = "2026-01-01T00:00:00Z";
    let run = run(Some(json!({
        "kind": "Node", "apiVersion": "v1",
        "metadata": {
            "name": "vk1", "uid": "old", "resourceVersion": "1",
            "labels": { "zone": "b", "theirs": "yes" }, "annotations": { "theirs": "yes" },
        },
        "spec": { "podCIDR": "10.9.0.0/24" },
        "status": { "conditions": [
            { "type": "Ready", "status": "True", "reason": "KubeletReady", "lastTransitionTime": since },
            { "type": "Theirs", "status": "True" },
        ] },
    })));
    run.until("a report", |cluster| cluster.patches.iter().any(|patch| patch["status"].is_object())).await;
    let cluster = run.cluster.lock().unwrap();
    assert_eq!(cluster.created, 0);
    let labels = &cluster.patches[0]["metadata"]["labels"];
    assert_eq!((&labels["zone"], labels.get("theirs")), (&json!("a"), None));
    let status = cluster.patches.iter().find(|patch| patch["status"].is_object()).unwrap();
    let ready = condition(&status["status"], "Ready");
    assert_eq!(
        (&ready["status"], &ready["lastTransitionTime"]),
        (&json!("True"), &json!(since)),
        "a restart is no flap"
    );
    assert!(
        status["status"]["conditions"]
            .as_array()
            .unwrap()
            .iter()
            .all(|condition| condition["type"] != "Theirs")
    );
    assert!(status.get("spec").is_none());
}

#[tokio::test(start_paused = true)]
async fn reports_every_five_minutes_and_renews_every_ten_seconds() {
    let run = run(None);
    run.until("a ready node", is_ready).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let (reports, renewals) =
        (run.calls.count(&format!("PATCH {STATUS}")), run.calls.count(&format!("PUT {LEASE}")));
    for _ in 0..60 {
        tokio::time::sleep(Duration::from_secs(10)).await;
    }
    let reports = run.calls.count(&format!("PATCH {STATUS}")) - reports;
    let renewals = run.calls.count(&format!("PUT {LEASE}")) - renewals;
    assert!((1..=2).contains(&reports), "{reports} reports in ten minutes");
    assert!((58..=61).contains(&renewals), "{renewals} renewals in ten minutes");
}

#[tokio::test(start_paused = true)]
async fn a_condition_that_the_node_controller_overwrote_is_put_right() {
    let run = run(None);
    run.until("a ready node", is_ready).await;
    {
        let mut cluster = run.cluster.lock().unwrap();
        let mut node = cluster.node.clone().unwrap();
        for condition in node["status"]["conditions"].as_array_mut().unwrap() {
            condition["status"] = json!("Unknown");
            condition["reason"] = json!("NodeStatusUnknown");
        }
        cluster.node = Some(node.clone());
        cluster.notify("MODIFIED", &node);
    }
    // A node that counts as unknown takes an answer of the provider, and there is one.
    run.until("ready again", is_ready).await;
}

#[tokio::test(start_paused = true)]
async fn whoever_makes_the_network_has_the_last_word_that_it_is_there() {
    let run = run(None);
    run.until("a ready node", is_ready).await;
    {
        let mut cluster = run.cluster.lock().unwrap();
        let mut node = cluster.node.clone().unwrap();
        for condition in node["status"]["conditions"].as_array_mut().unwrap() {
            if condition["type"] == "NetworkUnavailable" {
                condition["reason"] = json!("CiliumIsUp");
            }
        }
        cluster.node = Some(node.clone());
        cluster.patches.clear();
        cluster.notify("MODIFIED", &node);
    }
    tokio::time::sleep(2 * REPORT).await;
    let cluster = run.cluster.lock().unwrap();
    let told = |patch: &Value| {
        patch["status"]["conditions"]
            .as_array()
            .is_some_and(|all| all.iter().any(|condition| condition["type"] == "NetworkUnavailable"))
    };
    assert!(!cluster.patches.is_empty() && !cluster.patches.iter().any(told), "{:?}", cluster.patches);
}

#[tokio::test(start_paused = true)]
async fn a_changed_configuration_changes_the_node_and_nothing_of_others() {
    let run = run(None);
    run.until("a ready node", is_ready).await;
    run.cluster.lock().unwrap().node.as_mut().unwrap()["metadata"]["labels"]["theirs"] = json!("yes");
    run.config.send_modify(|config| {
        config.labels = [("rack".to_owned(), "7".to_owned())].into();
        config.capacity.insert("pods".to_owned(), Quantity("500".to_owned()));
        config.quota = [
            ("cpu".to_owned(), Quantity("2500m".to_owned())),
            ("pods".to_owned(), Quantity("1k".to_owned())),
        ]
        .into();
    });
    run.until("the new capacity", |cluster| {
        cluster.node.as_ref().is_some_and(|node| node["status"]["capacity"]["pods"] == "500")
    })
    .await;
    run.until("the new labels", |cluster| {
        cluster.node.as_ref().unwrap()["metadata"]["labels"]["rack"] == "7"
    })
    .await;
    let cluster = run.cluster.lock().unwrap();
    let node = cluster.node.as_ref().unwrap();
    assert_eq!(node["status"]["allocatable"]["cpu"], "2500m", "the quota is less than the capacity");
    let labels = &node["metadata"]["labels"];
    assert_eq!((labels.get("zone"), &labels["theirs"]), (None, &json!("yes")));
    assert_eq!(labels["type"], "virtual-kubelet");
}

/// The amounts of a resource that the node has and lets pods have.
fn amounts(cluster: &Cluster, name: &str) -> [Option<String>; 2] {
    let status = &cluster.node.as_ref().unwrap()["status"];
    ["capacity", "allocatable"].map(|map| status[map][name].as_str().map(str::to_owned))
}

#[tokio::test(start_paused = true)]
async fn a_resource_that_is_configured_no_more_leaves_the_node_and_others_stay() {
    let both = |amount: &str| [Some(amount.to_owned()), Some(amount.to_owned())];
    let with = |names: &[&str]| {
        let mut config = config();
        config.capacity.extend(names.iter().map(|name| ((*name).to_owned(), Quantity("2".to_owned()))));
        config
    };
    let first = run_with(with(&["x.y/gpu", "x.y/fpga"]), None);
    first.until("a ready node", is_ready).await;
    {
        let mut cluster = first.cluster.lock().unwrap();
        assert_eq!((amounts(&cluster, "x.y/gpu"), amounts(&cluster, "x.y/fpga")), (both("2"), both("2")));
        let node = cluster.node.as_mut().unwrap();
        for map in ["capacity", "allocatable"] {
            node["status"][map]["theirs.io/dongle"] = json!("1");
        }
        let node = node.clone();
        cluster.notify("MODIFIED", &node);
    }
    first.config.send_replace(with(&["x.y/fpga"]));
    first.until("one leave", |cluster| amounts(cluster, "x.y/gpu") == [None, None]).await;
    let node = {
        let cluster = first.cluster.lock().unwrap();
        assert_eq!(amounts(&cluster, "x.y/fpga"), both("2"));
        cluster.node.clone().unwrap()
    };
    let noted = node["metadata"]["annotations"][RESOURCES_ANNOTATION].as_str().unwrap();
    assert!(noted.starts_with("cpu,") && noted.ends_with(",pods,x.y/fpga"), "{noted}");

    // By a restart with another configuration.
    let second = run_with(with(&[]), Some(node));
    second.until("the other leave", |cluster| amounts(cluster, "x.y/fpga") == [None, None]).await;
    let cluster = second.cluster.lock().unwrap();
    assert_eq!((amounts(&cluster, "theirs.io/dongle"), amounts(&cluster, "cpu")), (both("1"), both("7")));
}

#[tokio::test(start_paused = true)]
async fn a_node_whose_labels_are_refused_reports_its_status_and_says_so() {
    let mut node = Cluster::default().replace_node("old");
    node["metadata"]["labels"] = json!({ "zone": "b" });
    let run = run(Some(node));
    run.cluster.lock().unwrap().refuses_labels = true;
    run.until("a ready node", |cluster| {
        cluster.node.as_ref().unwrap()["status"].is_object() && is_ready(cluster)
    })
    .await;
    tokio::time::sleep(UPDATE).await;
    let (_, report) = run.readiness.report();
    assert!(report.contains("can't set its labels") && report.contains("zone"), "{report}");

    run.cluster.lock().unwrap().refuses_labels = false;
    run.until("the label", |cluster| cluster.node.as_ref().unwrap()["metadata"]["labels"]["zone"] == "a")
        .await;
    tokio::time::sleep(UPDATE).await;
    assert!(run.readiness.report().0, "{:?}", run.readiness.report());
}

#[tokio::test(start_paused = true)]
async fn a_node_that_somebody_else_makes_anew_is_taken_over_too() {
    let ours = |cluster: &Cluster| {
        let node = cluster.node.as_ref().unwrap();
        node["metadata"]["labels"]["zone"] == "a" && node["status"].is_object() && is_ready(cluster)
    };
    let run = run(None);
    run.until("a ready node", is_ready).await;
    {
        let mut cluster = run.cluster.lock().unwrap();
        let other = cluster.replace_node("theirs");
        cluster.notify("MODIFIED", &other);
    }
    run.until("our labels on a node that a new watch shows", ours).await;
    {
        let mut cluster = run.cluster.lock().unwrap();
        cluster.delete_node();
        cluster.replace_node("theirs, too");
    }
    run.until("our labels on a node that our registration meets", ours).await;
    assert_eq!(run.cluster.lock().unwrap().created, 1);
}
