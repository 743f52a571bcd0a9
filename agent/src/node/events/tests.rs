use spillway_device_plugin::device::{Device, Health};

use super::*;
use crate::node::{
    fake_api::{self, Answer},
    tests::{gpu, inventory},
};

impl Queue {
    /// The next event's text.
    pub(in crate::node) async fn next_note(&mut self) -> String {
        self.0.recv().await.unwrap().0.note
    }
}

fn sick(id: &str, why: &str) -> Device {
    Device { health: Health::Unhealthy(why.to_owned()), ..gpu(id) }
}

#[test]
fn what_happens_to_an_accelerator_is_told_once() {
    let check = |before: Option<&Inventory>, now: &Inventory, expected: &[(&str, &str)]| {
        let told = news(before, now);
        let told: Vec<_> = told.iter().map(|(_, reason, note)| (*reason, note.as_str())).collect();
        assert_eq!(told, expected);
    };
    let both = inventory(vec![gpu("GPU-0"), gpu("GPU-1")]);
    let one = inventory(vec![gpu("GPU-0")]);
    let bad = inventory(vec![gpu("GPU-0"), sick("GPU-1", "XID 79")]);
    let worse = inventory(vec![gpu("GPU-0"), sick("GPU-1", "lost")]);
    check(None, &both, &[]);
    check(None, &bad, &[("AcceleratorUnhealthy", "GPU-1 is not handed out: XID 79")]);
    check(Some(&one), &both, &[("AcceleratorAdded", "GPU-1 was found")]);
    check(
        Some(&one),
        &bad,
        &[
            ("AcceleratorAdded", "GPU-1 was found"),
            ("AcceleratorUnhealthy", "GPU-1 is not handed out: XID 79"),
        ],
    );
    check(Some(&both), &one, &[("AcceleratorRemoved", "GPU-1 is gone; what runs on it is left alone")]);
    check(Some(&both), &bad, &[("AcceleratorUnhealthy", "GPU-1 is not handed out: XID 79")]);
    check(Some(&bad), &bad, &[]);
    check(Some(&bad), &worse, &[("AcceleratorUnhealthy", "GPU-1 is not handed out: lost")]);
    check(Some(&bad), &both, &[("AcceleratorHealthy", "GPU-1 is healthy again and may be handed out")]);

    let many = |why: &str| inventory((0..40).map(|gpu| sick(&format!("GPU-{gpu}"), why)).collect());
    let told = news(Some(&many("lost")), &many("XID 79"));
    assert_eq!(told.len(), TOLD_AT_ONCE + 1);
    assert_eq!(told[TOLD_AT_ONCE].2, "24 more accelerators changed");
}

fn pod() -> PodRef {
    PodRef { uid: "pod-uid".to_owned(), namespace: Some("team".to_owned()), name: Some("train".to_owned()) }
}

#[tokio::test(start_paused = true)]
async fn events_are_written_where_they_are_looked_for_and_repetitions_counted() {
    let failures = std::sync::atomic::AtomicU32::new(3);
    let (client, calls) = fake_api::client(move |_| {
        use std::sync::atomic::Ordering::SeqCst;
        if failures.fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1)).is_ok() {
            return Answer::status(500, "InternalError", &json!([]));
        }
        let event =
            json!({ "apiVersion": "events.k8s.io/v1", "kind": "Event", "metadata": {}, "eventTime": null });
        Answer::Json(201, event)
    });
    let (sink, queue) = channel();
    let (_node, seen) = watch::channel(Some(crate::node::tests::seen("node-uid", &[])));
    let story = async {
        sink.node(Kind::Warning, "AcceleratorUnhealthy", "GPU-1");
        let node = "POST /apis/events.k8s.io/v1/namespaces/default/events";
        // Three refusals first.
        let written = calls.wait_for(node, 4).await;
        assert_eq!(written[3].body["regarding"]["uid"], "node-uid");
        assert_eq!(written[3].body["type"], "Warning");
        for _ in 0..3 {
            sink.pod(&pod(), Kind::Warning, "DeviceDenied", "GPU-1 is not its own");
        }
        sink.pod(&pod(), Kind::Warning, "DeviceDenied", "GPU-2 is not its own");
        let team = "POST /apis/events.k8s.io/v1/namespaces/team/events";
        let written = calls.wait_for(team, 2).await;
        assert_eq!(written.len(), 2, "one an accelerator");
        let name = written[0].body["metadata"]["name"].as_str().unwrap().to_owned();
        let patch = format!("PATCH /apis/events.k8s.io/v1/namespaces/team/events/{name}");
        let counted = calls.wait_for(&patch, 1).await;
        assert_eq!(counted[0].body["series"]["count"], 3);
    };
    tokio::select! {
        () = Writer::new(client, "n".to_owned()).run(queue, seen) => panic!("it ended"),
        () = story => {}
    }
}

#[tokio::test(start_paused = true)]
async fn a_flood_is_slowed_down_and_its_oldest_part_lost() {
    let (client, calls) = fake_api::client(|_| {
        let event =
            json!({ "apiVersion": "events.k8s.io/v1", "kind": "Event", "metadata": {}, "eventTime": null });
        Answer::Json(201, event)
    });
    let (sink, queue) = channel();
    for number in 0..1000 {
        sink.node(Kind::Normal, "Flood", &number.to_string());
    }
    let begin = Instant::now();
    let story = async {
        let posts = "POST /apis/events.k8s.io/v1/namespaces/default/events";
        let written = calls.wait_for(posts, QUEUE).await;
        assert_eq!(written.len(), QUEUE);
        assert_eq!(written[0].body["note"], (1000 - QUEUE).to_string());
        assert_eq!(written[QUEUE - 1].body["note"], "999");
        let seconds = u64::try_from(QUEUE).unwrap() - u64::from(BURST.0);
        assert!(begin.elapsed() >= BURST.1 * u32::try_from(seconds).unwrap(), "{:?}", begin.elapsed());
    };
    tokio::select! {
        () = Writer::new(client, "n".to_owned()).run(queue, watch::channel(None).1) => panic!("it ended"),
        () = story => {}
    }
}

#[test]
fn an_event_about_a_pod_without_a_name_is_told_about_the_node() {
    let (sink, mut queue) = channel();
    sink.pod(&PodRef { name: None, ..pod() }, Kind::Normal, "Test", "note");
    let (told, _) = queue.0.try_recv().unwrap();
    assert_eq!((told.about, told.note.as_str()), (About::Node, "pod pod-uid: note"));
    // A sink that nobody listens to takes everything.
    EventSink::default().node(Kind::Normal, "Test", "note");
}
