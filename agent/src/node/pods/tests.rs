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
        let mirror = json!({ "annotations": { STATIC_HASH: "hash", MIRROR: "hash" } });
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

#[test]
fn no_pod_passes_for_another_by_its_annotations() {
    let meta = |uid: &str, name: &str, annotations: &Value| {
        let pod = pod(uid, name, &json!({ "annotations": annotations }));
        let pod = PodMeta::of(serde_json::from_value(pod).unwrap()).unwrap();
        (uid.to_owned(), pod)
    };
    let claim = |hash: &str| json!({ STATIC_HASH: hash, MIRROR: hash });
    let names = |pods: Vec<(String, PodMeta)>| {
        sound(&pods.into_iter().collect()).into_iter().map(|pod| (pod.uid, pod.name)).collect::<Vec<_>>()
    };
    let expected = |pods: &[(&str, &str)]| {
        pods.iter().map(|(uid, name)| ((*uid).to_owned(), (*name).to_owned())).collect::<Vec<_>>()
    };
    let none = json!({});
    let victim = || meta("1", "dcgm", &none);
    // The hash alone is no mirror's; and a UID of the API's own can't be claimed, whichever of the two comes first.
    assert_eq!(
        names(vec![
            victim(),
            meta("0", "a", &json!({ STATIC_HASH: "1" })),
            meta("2", "b", &json!({ STATIC_HASH: "1", MIRROR: "x" }))
        ]),
        expected(&[("0", "a"), ("1", "dcgm"), ("2", "b")])
    );
    assert_eq!(
        names(vec![victim(), meta("0", "a", &claim("1")), meta("2", "b", &claim("1"))]),
        expected(&[("1", "dcgm")])
    );
    // Which of two mirrors is the kubelet's can't be told.
    assert_eq!(
        names(vec![victim(), meta("2", "etcd", &claim("hash"))]),
        expected(&[("1", "dcgm"), ("hash", "etcd")])
    );
    let two = vec![victim(), meta("2", "etcd", &claim("hash")), meta("3", "b", &claim("hash"))];
    assert_eq!(names(two), expected(&[("1", "dcgm")]));
}
