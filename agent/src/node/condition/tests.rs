use spillway_device_plugin::device::{Device, Health};

use super::*;
use crate::node::{
    fake_api::{self, Answer},
    tests::{gpu, inventory, seen},
};

fn sick(id: &str, why: &str) -> Device {
    Device { health: Health::Unhealthy(why.to_owned()), ..gpu(id) }
}

#[test]
fn a_sick_accelerator_is_named_once_with_its_reasons() {
    assert_eq!(verdict(&Inventory::starting(["nvml"])), None, "nobody has looked yet");
    let healthy = verdict(&inventory(vec![gpu("GPU-0"), gpu("GPU-1")])).unwrap();
    assert_eq!((healthy.status, healthy.message.as_str()), ("True", "all 2 accelerators are healthy"));

    // Two replicas of one GPU.
    let share = |number: &str| Device {
        id: spillway_device_plugin::device::DeviceId::new(format!("GPU-1::{number}")).unwrap(),
        ..sick("GPU-1", "XID 79")
    };
    let bad = verdict(&inventory(vec![gpu("GPU-0"), share("0"), share("1")])).unwrap();
    assert_eq!((bad.status, bad.reason), ("False", "AcceleratorsUnhealthy"));
    assert_eq!(bad.message, "1 of 2 accelerators must not be used: GPU-1: XID 79");
}

#[test]
fn a_machine_without_accelerators_says_why() {
    let (none, _) = Inventory::starting(["nvml"]).with(
        "nvml",
        BackendState::Unavailable("no driver".to_owned()),
        Vec::new(),
    );
    let verdict = verdict(&none).unwrap();
    assert_eq!((verdict.status, verdict.reason), ("Unknown", "NoAccelerators"));
    assert_eq!(verdict.message, "no accelerator was found; nvml: no driver");
}

#[test]
fn messages_stay_within_what_the_api_takes() {
    let many = (0..100).map(|gpu| sick(&format!("GPU-{gpu}"), &"é".repeat(200))).collect();
    let verdict = verdict(&inventory(many)).unwrap();
    assert!(verdict.message.len() <= MESSAGE_LIMIT, "{}", verdict.message.len());
    assert!(verdict.message.starts_with("100 of 100 accelerators"), "{}", verdict.message);
    assert!(verdict.message.ends_with("..."), "{}", verdict.message);
}

#[test]
fn a_restart_does_not_move_the_last_transition() {
    let long_ago = Timestamp::from_second(100).unwrap();
    let found = [NodeCondition {
        type_: CONDITION.to_owned(),
        status: "True".to_owned(),
        last_transition_time: Some(Time(long_ago)),
        ..NodeCondition::default()
    }];
    let healthy = verdict(&inventory(vec![gpu("GPU-0")])).unwrap();
    assert_eq!(transition(&found, &healthy), Some(long_ago));
    assert_eq!(transition(&found, &Verdict::stopped()), None);
    assert_eq!(transition(&[], &healthy), None);
}

#[tokio::test(start_paused = true)]
async fn the_condition_follows_the_devices_and_is_taken_back_at_the_end() {
    let failures = std::sync::atomic::AtomicU32::new(2);
    let (client, calls) = fake_api::client(move |call| {
        use std::sync::atomic::Ordering::SeqCst;
        // The API server is away at first.
        if failures.fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1)).is_ok() {
            return Answer::status(503, "ServiceUnavailable", &json!([]));
        }
        assert!(call.name.starts_with("GET") || call.body["metadata"]["uid"] == "uid-1", "{call:?}");
        Answer::Json(200, json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": "n" } }))
    });
    let (devices, devices_seen) = watch::channel(Inventory::starting(["nvml"]));
    let (_node, node_seen) = watch::channel(Some(seen("uid-1", &[])));
    let stop = CancellationToken::new();
    let nodes = Api::all(client);
    let keeper = keep(nodes, "n".to_owned(), devices_seen, node_seen, stop.clone());
    let story = async {
        let status = |call: &fake_api::Call| call.body["status"]["conditions"][0]["status"].clone();
        devices.send_replace(inventory(vec![gpu("GPU-0")]));
        let first = calls.wait_for("PATCH /api/v1/nodes/n/status", 1).await;
        assert_eq!(status(&first[0]), "True");
        devices.send_replace(inventory(vec![sick("GPU-0", "XID 79")]));
        let second = calls.wait_for("PATCH /api/v1/nodes/n/status", 2).await;
        assert_eq!(status(&second[1]), "False");
        stop.cancel();
        let third = calls.wait_for("PATCH /api/v1/nodes/n/status", 3).await;
        assert_eq!(status(&third[2]), "Unknown");
    };
    tokio::join!(keeper, story);
}
