//! Pods against a runtime and an API server that are values in memory: every step, restarts of the daemon included.

mod devices;
pub(in crate::pod) mod fakes;
mod hand_over;
mod health;
mod joining;
mod outages;
mod pulling;
mod resizing;
mod sandboxes;
mod services;
mod watching;

use std::{sync::Arc, time::Duration};

use fakes::{World, wait};
use serde_json::json;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::{
    pod::{Pods, PodsError, Settings},
    provider::Provider,
};

/// A daemon that looks after the world's pods. Dropping it is `kill -9`.
struct Daemon {
    pods: Arc<Pods>,
    _task: JoinSet<Result<(), PodsError>>,
}

fn start(world: &World) -> Daemon {
    let settings = Settings {
        root_dir: world.folder.path().to_owned(),
        devices: [(
            "example.com/thing".to_owned(),
            ["example.com/thing=a", "example.com/thing=b"].map(str::to_owned).to_vec(),
        )]
        .into(),
        ..Settings::new("vk", vec!["10.0.0.1".parse().unwrap()])
    };
    let provider = Provider::Runtime(Arc::clone(&world.runtime) as _);
    let pods = Arc::new(Pods::new(world.api.client(), provider, settings));
    let mut task = JoinSet::new();
    task.spawn(Arc::clone(&pods).run(CancellationToken::new()));
    Daemon { pods, _task: task }
}

#[tokio::test]
async fn being_told_to_stop_is_no_failure_whoever_hears_of_it_first() {
    for _ in 0..32 {
        let world = World::new();
        let provider = Provider::Runtime(Arc::clone(&world.runtime) as _);
        let settings = Settings {
            root_dir: world.folder.path().to_owned(),
            ..Settings::new("vk", vec!["10.0.0.1".parse().unwrap()])
        };
        let pods = Arc::new(Pods::new(world.api.client(), provider, settings));
        let stop = CancellationToken::new();
        let mut task = JoinSet::new();
        task.spawn(pods.run(stop.clone()));
        let uid = world.api.create("web", spec("Always"));
        wait(|| world.api.phase(&uid) == "Running").await;
        stop.cancel();
        let ended = task.join_next().await.unwrap().unwrap();
        assert!(ended.is_ok(), "{}", ended.unwrap_err());
    }
}

fn spec(policy: &str) -> serde_json::Value {
    json!({ "nodeName": "vk", "restartPolicy": policy, "terminationGracePeriodSeconds": 5,
        "containers": [{ "name": "main", "image": "busybox" }] })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_runs_ends_and_goes() {
    let world = World::new();
    let daemon = start(&world);
    let uid = world.api.create("web", spec("Never"));
    wait(|| world.api.phase(&uid) == "Running").await;
    let status = world.api.status(&uid);
    assert_eq!(status["podIP"], "10.1.0.1");
    assert_eq!(
        status["containerStatuses"][0]["state"]["running"]["startedAt"].as_str().map(str::len),
        Some(20)
    );
    assert!(daemon.pods.get("ns", "web").is_some());

    world.runtime.exit("main", 3);
    wait(|| world.api.phase(&uid) == "Failed").await;
    assert_eq!(world.api.status(&uid)["containerStatuses"][0]["state"]["terminated"]["exitCode"], 3);
    wait(|| world.runtime.calls("stop_sandbox") == 1).await;
    assert_eq!(world.runtime.containers(), 1, "its log can still be read");

    world.api.vanish(&uid);
    wait(|| world.is_empty() && daemon.pods.list().is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_end_that_nobody_saw_is_told_once_and_nothing_runs_twice() {
    let world = World::new();
    let first = start(&world);
    let ended = world.api.create("ended", spec("Never"));
    wait(|| world.api.phase(&ended) == "Running").await;
    drop(first);
    world.runtime.exit("main", 42);
    let second = start(&world);
    wait(|| world.api.phase(&ended) == "Failed").await;
    assert_eq!(world.api.status(&ended)["containerStatuses"][0]["state"]["terminated"]["exitCode"], 42);
    assert_eq!(world.runtime.calls("create_container"), 1);
    drop(second);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_runs_is_adopted() {
    let world = World::new();
    let first = start(&world);
    let uid = world.api.create("web", spec("Always"));
    wait(|| world.api.phase(&uid) == "Running").await;
    let before = world.api.status(&uid);
    let writes = world.api.writes(&uid);
    drop(first);
    let _second = start(&world);
    wait(|| world.runtime.calls("observe") >= 4).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(world.api.status(&uid), before);
    assert_eq!(world.api.writes(&uid), writes, "there was nothing to say");
    assert_eq!((world.runtime.calls("create_sandbox"), world.runtime.calls("create_container")), (1, 1));
    assert_eq!(world.runtime.calls("stop_container"), 0);
    assert_eq!(world.runtime.calls("update_pod"), 1, "its weight may be an earlier version's");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_killed_between_any_two_calls_finishes_what_it_began() {
    for calls_before_death in 1..12 {
        let world = World::new();
        world.runtime.die_after(calls_before_death);
        let first = start(&world);
        let uid = world.api.create("web", spec("Never"));
        wait(|| world.runtime.is_dead() || world.api.phase(&uid) == "Running").await;
        drop(first);
        world.runtime.revive();
        let _second = start(&world);
        wait(|| ["Running", "Failed"].contains(&&*world.api.phase(&uid))).await;
        if world.api.phase(&uid) == "Failed" {
            // It died between its note of the start and the call: nobody knows whether that was heard.
            let state = world.api.status(&uid)["containerStatuses"][0]["state"].clone();
            assert_eq!(state["terminated"]["reason"], "ContainerStatusUnknown");
            assert_eq!(world.runtime.started("main"), 0, "died after {calls_before_death} calls");
            continue;
        }
        assert_eq!(world.runtime.running(), 1, "died after {calls_before_death} calls");
        world.runtime.exit("main", 0);
        wait(|| world.api.phase(&uid) == "Succeeded").await;
        assert_eq!(world.runtime.started("main"), 1, "died after {calls_before_death} calls");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_may_have_run_is_not_started_again_as_the_same_attempt() {
    for (policy, daemon_too) in [("Never", false), ("Never", true), ("Always", false), ("Always", true)] {
        let world = World::new();
        world.runtime.forget_start(daemon_too);
        let mut daemon = start(&world);
        let uid = world.api.create("web", spec(policy));
        if daemon_too {
            wait(|| world.runtime.started("main") >= 1).await;
            drop(daemon);
            world.runtime.revive();
            daemon = start(&world);
        }
        let (state, starts, restarts) = if policy == "Never" { ("state", 1, 0) } else { ("lastState", 2, 1) };
        let status = || world.api.status(&uid)["containerStatuses"][0].clone();
        wait(|| status()[state]["terminated"]["reason"] == "ContainerStatusUnknown").await;
        let expected = if policy == "Never" { "Failed" } else { "Running" };
        wait(|| world.api.phase(&uid) == expected && world.runtime.started("main") == starts).await;
        assert_eq!(status()["restartCount"], restarts, "{policy}");
        drop(daemon);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_killed_while_it_removes_a_pod_leaves_nothing_that_the_next_one_does_not_find() {
    for calls_before_death in 1..12 {
        let world = World::new();
        let first = start(&world);
        let uid = world.api.create("web", spec("Never"));
        wait(|| world.api.phase(&uid) == "Running").await;
        world.runtime.exit("main", 0);
        wait(|| world.runtime.calls("stop_sandbox") == 1).await;
        world.runtime.die_after(calls_before_death);
        world.api.vanish(&uid);
        wait(|| world.runtime.is_dead() || world.is_empty()).await;
        drop(first);
        world.runtime.revive();
        let _second = start(&world);
        wait(|| world.is_empty()).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn deletion_tells_the_end_before_the_object_goes() {
    let world = World::new();
    let _daemon = start(&world);
    let uid = world.api.create("web", spec("Always"));
    wait(|| world.api.phase(&uid) == "Running").await;
    world.api.delete(&uid, 5);
    wait(|| world.api.is_gone(&uid) && world.is_empty()).await;
    let last = world.api.last_status(&uid);
    assert_eq!(last["phase"], "Failed");
    assert_eq!(last["containerStatuses"][0]["state"]["terminated"]["exitCode"], 143);
    assert_eq!(world.runtime.grace("main"), Some(5));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_keeps_a_pod_from_ending_is_told() {
    let world = World::new();
    let _daemon = start(&world);
    let uid = world.api.create("web", spec("Always"));
    wait(|| world.api.phase(&uid) == "Running").await;
    world.runtime.refuse("stop_sandbox", Some("the network plugin does not answer"));
    world.api.delete(&uid, 5);
    wait(|| world.api.told("error killing pod: the network plugin does not answer")).await;
    world.runtime.refuse("stop_sandbox", None);
    wait(|| world.api.is_gone(&uid) && world.is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_api_server_that_does_not_know_a_pod_yet_is_asked_again_to_let_it_go() {
    let world = World::new();
    let _daemon = start(&world);
    let uid = world.api.create("web", spec("Always"));
    wait(|| world.api.phase(&uid) == "Running").await;
    world.api.deny_deletes(2);
    world.api.delete(&uid, 1);
    wait(|| world.api.is_gone(&uid) && world.is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_somebody_else_called_ended_goes_when_it_is_deleted() {
    let world = World::new();
    let uid = world.api.create("web", spec("Always"));
    world.api.change(&uid, |pod| pod["status"]["phase"] = "Failed".into());
    let daemon = start(&world);
    wait(|| daemon.pods.get("ns", "web").is_some() && world.runtime.calls("observe") >= 2).await;
    world.api.delete(&uid, 1);
    wait(|| world.api.is_gone(&uid) && world.is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_used_again_while_the_old_pod_ends_is_another_pod() {
    let world = World::new();
    let _daemon = start(&world);
    let old = world.api.create("web", spec("Always"));
    wait(|| world.api.phase(&old) == "Running").await;
    world.api.vanish(&old);
    let new = world.api.create("web", spec("Always"));
    wait(|| world.api.phase(&new) == "Running" && world.runtime.containers() == 1).await;
    assert_eq!(world.runtime.running(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_pods_that_the_api_server_lacks_are_cleaned_up() {
    let world = World::new();
    let first = start(&world);
    let kept = world.api.create("kept", spec("Always"));
    let lost = world.api.create("lost", spec("Always"));
    wait(|| world.api.phase(&kept) == "Running" && world.api.phase(&lost) == "Running").await;
    drop(first);
    world.api.vanish(&lost);
    // As long as the API server gives no list nothing is ended.
    world.api.fail_lists(true);
    let _second = start(&world);
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(world.runtime.running(), 2);
    world.api.fail_lists(false);
    wait(|| world.runtime.running() == 1 && world.runtime.pods() == 1).await;
    assert_eq!(world.api.phase(&kept), "Running");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_can_not_be_done_is_refused_and_never_started() {
    let world = World::new();
    let _daemon = start(&world);
    let mut spec = spec("Always");
    spec["containers"][0]["lifecycle"] = json!({ "stopSignal": "SIGUSR1" });
    let uid = world.api.create("web", spec);
    wait(|| world.api.phase(&uid) == "Failed").await;
    let status = world.api.status(&uid);
    assert_eq!(status["reason"], "PodFeatureUnsupported");
    assert!(status["message"].as_str().unwrap().contains("spec.containers[0].lifecycle.stopSignal"));
    assert!(world.is_empty());
    wait(|| world.api.events().contains(&"PodFeatureUnsupported".to_owned())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_runtime_class_that_is_gone_is_told() {
    let world = World::new();
    let _daemon = start(&world);
    let mut spec = spec("Always");
    spec["runtimeClassName"] = "gone".into();
    world.api.create("web", spec);
    wait(|| world.api.events().iter().any(|reason| reason == "FailedCreatePodSandBox")).await;
    assert_eq!(world.runtime.calls("create_sandbox"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn init_containers_come_first_and_restarts_are_counted() {
    let world = World::new();
    let _daemon = start(&world);
    let mut spec = spec("Always");
    spec["initContainers"] = json!([{ "name": "first", "image": "busybox" }]);
    let uid = world.api.create("web", spec);
    wait(|| world.runtime.started("first") == 1).await;
    assert_eq!(world.runtime.started("main"), 0);
    world.runtime.exit("first", 0);
    wait(|| world.api.phase(&uid) == "Running").await;
    world.runtime.exit("main", 1);
    wait(|| world.api.status(&uid)["containerStatuses"][0]["restartCount"] == 1).await;
    let status = world.api.status(&uid);
    assert_eq!(status["containerStatuses"][0]["lastState"]["terminated"]["exitCode"], 1);
    assert_eq!(world.runtime.started("first"), 1, "it has done its work");
}

#[tokio::test(flavor = "multi_thread")]
async fn another_image_takes_the_place_of_the_one_that_runs() {
    for policy in ["Always", "Never"] {
        let world = World::new();
        let _daemon = start(&world);
        let uid = world.api.create("web", spec(policy));
        wait(|| world.api.phase(&uid) == "Running").await;
        world.api.change(&uid, |pod| pod["spec"]["containers"][0]["image"] = "busybox:2".into());
        let status = || world.api.status(&uid)["containerStatuses"][0].clone();
        wait(|| status()["restartCount"] == 1 && status()["state"]["running"].is_object()).await;
        assert_eq!(world.runtime.spec("main").unwrap().image, "busybox:2");
        assert_eq!(world.runtime.story(), ["start main", "stop main", "start main"], "{policy}");
        assert_eq!(world.runtime.grace("main"), Some(5));
        wait(|| world.api.told("Container main definition changed, will be restarted")).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_fills_the_disk_is_evicted() {
    let world = World::new();
    let mut spec = spec("Always");
    spec["volumes"] = json!([{ "name": "v", "emptyDir": { "sizeLimit": "64Ki" } }]);
    let fits = world.api.create("fits", spec.clone());
    let full = world.api.create("full", spec);
    for (uid, kib) in [(&fits, 32), (&full, 128)] {
        let volume = world.folder.path().join("pods").join(uid).join("volumes/v");
        std::fs::create_dir_all(&volume).unwrap();
        std::fs::write(volume.join("data"), vec![1; kib << 10]).unwrap();
    }
    let _daemon = start(&world);
    wait(|| world.api.phase(&full) == "Failed").await;
    let status = world.api.status(&full);
    assert_eq!(status["reason"], "Evicted");
    assert_eq!(status["message"], "Usage of EmptyDir volume \"v\" exceeds the limit \"64Ki\". ");
    assert_eq!(status["containerStatuses"][0]["state"]["terminated"]["exitCode"], 143);
    wait(|| world.api.events().contains(&"Evicted".to_owned())).await;
    wait(|| !world.folder.path().join("pods").join(&full).exists()).await;
    wait(|| world.api.phase(&fits) == "Running").await;
    assert_eq!(world.runtime.started("main"), 2, "it is not started again");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_that_can_not_start_leaves_the_others_looked_after() {
    let world = World::new();
    world.runtime.lacks("absent", None);
    let mut spec = spec("Always");
    spec["containers"] = json!([
        { "name": "main", "image": "busybox" }, { "name": "late", "image": "absent", "imagePullPolicy": "Never" },
    ]);
    spec["volumes"] = json!([{ "name": "v", "emptyDir": { "sizeLimit": "64Ki" } }]);
    let uid = world.api.create("web", spec);
    let volume = world.folder.path().join("pods").join(&uid).join("volumes/v");
    std::fs::create_dir_all(&volume).unwrap();
    std::fs::write(volume.join("data"), vec![1; 128 << 10]).unwrap();
    let _daemon = start(&world);
    wait(|| world.api.status(&uid)["reason"] == "Evicted").await;
    assert_eq!((world.runtime.started("main"), world.runtime.started("late")), (1, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_may_not_begin_again_fails_when_its_sandbox_is_lost_before_it_ran() {
    let world = World::new();
    let first = start(&world);
    let mut spec = spec("Never");
    spec["initContainers"] = json!([{ "name": "first", "image": "busybox" }]);
    let uid = world.api.create("web", spec);
    wait(|| world.runtime.started("first") == 1).await;
    drop(first);
    world.runtime.exit("first", 0);
    world.runtime.lose_sandboxes();
    let _second = start(&world);
    wait(|| world.api.phase(&uid) == "Failed").await;
    assert_eq!(world.api.status(&uid)["reason"], "SandboxLost");
    assert_eq!((world.runtime.started("first"), world.runtime.started("main")), (1, 0));
}

#[test]
fn durations_read_as_gos() {
    let check =
        |seconds, expected: &str| assert_eq!(super::go_duration(Duration::from_secs(seconds)), expected);
    check(10, "10s");
    check(80, "1m20s");
    check(300, "5m0s");
}
