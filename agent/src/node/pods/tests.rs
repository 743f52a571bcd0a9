use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::*;
use crate::node::fake_api::{self, Answer};

fn pod(uid: &str, name: &str, extra: &Value) -> Value {
    let mut metadata = json!({ "uid": uid, "name": name, "namespace": "team", "resourceVersion": "2" });
    metadata.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    json!({ "apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata", "metadata": metadata })
}

#[tokio::test]
async fn pods_of_the_node_come_and_go_static_ones_by_their_hash() {
    let (events, stream) = mpsc::unbounded_channel();
    let stream = std::sync::Mutex::new(Some(stream));
    let (client, calls) = fake_api::client(move |call| {
        assert!(call.query.contains("spec.nodeName%3Dn"), "{}", call.query);
        if call.name.ends_with("?watch") {
            let (_, silent) = mpsc::unbounded_channel();
            return Answer::Events(stream.lock().unwrap().take().unwrap_or(silent));
        }
        let labelled = pod("1", "dcgm", &json!({ "labels": { "app": "dcgm" } }));
        let list = json!({
            "apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadataList",
            "metadata": { "resourceVersion": "1" }, "items": [labelled],
        });
        Answer::Json(200, list)
    });
    let (sender, mut seen) = watch::channel(None);
    let story = async {
        let uids = |pods: &Option<Vec<PodMeta>>| {
            pods.iter().flatten().map(|pod| pod.uid.clone()).collect::<Vec<_>>()
        };
        let first = seen.wait_for(Option::is_some).await.unwrap().clone();
        assert_eq!(uids(&first), ["1"]);
        assert_eq!(first.unwrap()[0].labels["app"], "dcgm");
        let mirror = json!({ "annotations": { STATIC_HASH: "hash" } });
        events.send(json!({ "type": "ADDED", "object": pod("2", "mirror", &mirror) })).unwrap();
        assert_eq!(uids(&seen.wait_for(|pods| uids(pods).len() == 2).await.unwrap()), ["1", "hash"]);
        events.send(json!({ "type": "DELETED", "object": pod("1", "dcgm", &json!({})) })).unwrap();
        assert_eq!(uids(&seen.wait_for(|pods| uids(pods).len() == 1).await.unwrap()), ["hash"]);
        calls.wait_for("GET /api/v1/pods?watch", 1).await;
    };
    tokio::select! {
        () = keep(client, "n".to_owned(), sender) => panic!("it ended"),
        () = story => {}
    }
}
