use std::sync::{
    Mutex,
    atomic::{AtomicBool, Ordering},
};

use spillway_device_plugin::inventory::BackendState;

use super::*;
use crate::node::{
    events,
    fake_api::{self, Answer},
    tests::{gpu, inventory, seen},
};

fn labelled(labels: &[(&str, &str)]) -> Inventory {
    let labels = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
    inventory(vec![gpu("GPU-0")]).with_labels("nvml", labels.collect())
}

fn keeper(client: kube::Client) -> Labels {
    Labels {
        nodes: Api::all(client),
        node: "n".to_owned(),
        prefixes: vec!["nvidia.com/".to_owned()],
        force: false,
        annotate: None,
        events: EventSink::default(),
    }
}

#[tokio::test]
async fn only_labels_that_kubernetes_takes_are_said() {
    let labels = keeper(fake_api::client(|_| unreachable!()).0);
    let long = "x".repeat(64);
    let inventory = labelled(&[
        ("nvidia.com/gpu.count", "2"),
        ("nvidia.com/gpu.product", "a b"),
        ("nvidia.com/-", "1"),
        ("nvidia.com/", "1"),
        ("nvidia.com/long", &long),
        ("node-role.kubernetes.io/control-plane", ""),
        ("nvidia.com/empty", ""),
    ]);
    let desired = labels.desired(&inventory, &mut BTreeSet::new()).unwrap();
    let keys: Vec<_> = desired.labels.keys().map(String::as_str).collect();
    assert_eq!(keys, ["nvidia.com/empty", "nvidia.com/gpu.count"]);

    let (starting, _) = Inventory::starting(["nvml", "dfl"]).with("nvml", BackendState::Running, Vec::new());
    assert_eq!(labels.desired(&starting, &mut BTreeSet::new()), None, "a restart takes no label away");
}

#[test]
fn conflicts_name_the_key_and_its_holder() {
    let cause = |field: &str, message: &str, reason: &str| kube::core::response::StatusCause {
        reason: reason.to_owned(),
        message: message.to_owned(),
        field: field.to_owned(),
    };
    let mut status = Status::failure("conflict", "Conflict").with_code(409);
    let causes = vec![
        cause(
            ".metadata.labels.nvidia.com/gpu.count",
            "conflict with \"nfd-master\" using v1",
            "FieldManagerConflict",
        ),
        cause(".metadata.annotations.spillway.dev/x", "conflict", "FieldManagerConflict"),
        cause(".spec.taints", "conflict with \"kubectl\"", "FieldManagerConflict"),
        cause(".metadata.labels.nvidia.com/other", "no", "FieldValueInvalid"),
    ];
    status.details = Some(kube::core::response::StatusDetails {
        name: "n".to_owned(),
        group: String::new(),
        kind: "nodes".to_owned(),
        uid: String::new(),
        causes,
        retry_after_seconds: 0,
    });
    let expected = [("nvidia.com/gpu.count", "nfd-master"), ("spillway.dev/x", "another manager")];
    let expected: Foreign = expected.map(|(key, who)| (key.to_owned(), who.to_owned())).into();
    assert_eq!(conflicts(&status), expected);
}

#[tokio::test(start_paused = true)]
async fn what_others_hold_is_left_alone_and_the_rest_is_applied() {
    let taken = std::sync::Arc::new(AtomicBool::new(true));
    let held = taken.clone();
    let (client, calls) = fake_api::client(move |call| {
        assert!(call.query.contains("fieldManager=spillway-agent"), "{}", call.query);
        assert!(!call.query.contains("force=true"), "{}", call.query);
        assert_eq!(call.body["metadata"]["uid"], "uid-1");
        let asks = call.body["metadata"]["labels"].get("nvidia.com/gpu.count").is_some();
        if asks && held.load(Ordering::SeqCst) {
            let cause = json!({
                "reason": "FieldManagerConflict", "message": "conflict with \"nfd-master\" using v1",
                "field": ".metadata.labels.nvidia.com/gpu.count",
            });
            return Answer::status(409, "Conflict", &json!([cause]));
        }
        let node = json!({
            "apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata", "metadata": { "name": "n" },
        });
        Answer::Json(200, node)
    });
    let (sink, mut queue) = events::channel();
    let labels = Labels { events: sink, ..keeper(client) };
    let (_devices, devices) =
        watch::channel(labelled(&[("nvidia.com/gpu.count", "2"), ("nvidia.com/gpu.family", "hopper")]));
    let (node, node_seen) = watch::channel(Some(seen("uid-1", &[])));
    let story = async {
        const PATCH: &str = "PATCH /api/v1/nodes/n";
        let first = calls.wait_for(PATCH, 2).await;
        assert_eq!(first[0].body["metadata"]["labels"].as_object().unwrap().len(), 2);
        assert_eq!(first[1].body["metadata"]["labels"], json!({ "nvidia.com/gpu.family": "hopper" }));
        let told = queue.next_note().await;
        assert!(told.contains("nfd-master") && told.contains("nvidia.com/gpu.count"), "{told}");

        // Somebody changes ours: it is put back, and the other's is asked for once more.
        let others = ("nvidia.com/gpu.count", "many");
        node.send_replace(Some(seen("uid-1", &[("nvidia.com/gpu.family", "ada"), others])));
        calls.wait_for(PATCH, 4).await;
        // The other lets go of its own: it is ours at once.
        taken.store(false, Ordering::SeqCst);
        node.send_replace(Some(seen("uid-1", &[("nvidia.com/gpu.family", "hopper")])));
        let begin = tokio::time::Instant::now();
        let last = calls.wait_for(PATCH, 5).await;
        assert_eq!(last[4].body["metadata"]["labels"].as_object().unwrap().len(), 2);
        assert!(begin.elapsed() < REPEAT, "only when everything was repeated");
    };
    tokio::select! {
        () = labels.keep(devices, node_seen) => panic!("it ended"),
        () = story => {}
    }
}

#[tokio::test(start_paused = true)]
async fn a_node_that_is_made_anew_is_labelled_anew() {
    let uids = std::sync::Arc::new(Mutex::new(Vec::new()));
    let seen_uids = uids.clone();
    let (client, calls) = fake_api::client(move |call| {
        seen_uids.lock().unwrap().push(call.body["metadata"]["uid"].clone());
        Answer::Json(
            200,
            json!({ "apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata", "metadata": {} }),
        )
    });
    let (_devices, devices) = watch::channel(labelled(&[("nvidia.com/gpu.count", "2")]));
    let (node, node_seen) = watch::channel(Some(seen("uid-1", &[])));
    let story = async {
        calls.wait_for("PATCH /api/v1/nodes/n", 1).await;
        node.send_replace(Some(seen("uid-2", &[("nvidia.com/gpu.count", "2")])));
        calls.wait_for("PATCH /api/v1/nodes/n", 2).await;
        assert_eq!(*uids.lock().unwrap(), ["uid-1", "uid-2"]);
    };
    tokio::select! {
        () = keeper(client).keep(devices, node_seen) => panic!("it ended"),
        () = story => {}
    }
}
