//! Probes, hooks and sidecars: what a pod's containers are asked and told, and in which order.

use serde_json::{Value, json};

use super::{
    fakes::{World, wait},
    spec, start,
};

fn exec(command: &str) -> Value {
    json!({ "exec": { "command": [command] } })
}

/// Asked each second; one failure counts.
fn probe(command: &str) -> Value {
    json!({ "exec": { "command": [command] }, "periodSeconds": 1, "failureThreshold": 1, "timeoutSeconds": 1 })
}

fn main_status(world: &World, uid: &str) -> Value {
    world.api.status(uid)["containerStatuses"][0].clone()
}

fn is_ready(world: &World, uid: &str) -> bool {
    main_status(world, uid)["ready"] == true
}

fn condition(world: &World, uid: &str, kind: &str) -> String {
    let status = world.api.status(uid);
    let found = status["conditions"].as_array().into_iter().flatten().find(|c| c["type"] == kind).cloned();
    found.unwrap_or_default()["status"].as_str().unwrap_or_default().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_is_ready_when_its_probe_says_so_and_no_longer_when_not() {
    let world = World::new();
    world.runtime.answer_with("ready", Some(1));
    let _daemon = start(&world);
    let mut spec = spec("Always");
    spec["containers"][0]["readinessProbe"] = probe("ready");
    let uid = world.api.create("web", spec);
    wait(|| world.api.told("Readiness probe failed: out err")).await;
    let status = main_status(&world, &uid);
    assert_eq!((&status["started"], &status["ready"]), (&json!(true), &json!(false)));
    assert_eq!(world.api.phase(&uid), "Running");
    assert_eq!(condition(&world, &uid, "Ready"), "False");
    world.runtime.answer_with("ready", Some(0));
    wait(|| is_ready(&world, &uid) && condition(&world, &uid, "Ready") == "True").await;
    world.runtime.answer_with("ready", Some(1));
    wait(|| !is_ready(&world, &uid)).await;
    assert_eq!(world.runtime.calls("stop_container"), 0, "nobody is ended for that");
    assert_eq!(main_status(&world, &uid)["restartCount"], 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn readiness_is_told_while_an_image_is_pulled() {
    let world = World::new();
    world.runtime.pulls_endlessly("huge");
    let _daemon = start(&world);
    let mut spec = spec("Always");
    spec["containers"][0]["readinessProbe"] = probe("ready");
    let uid = world.api.create("web", spec);
    wait(|| is_ready(&world, &uid)).await;
    world.api.change(&uid, |pod| {
        pod["spec"]["ephemeralContainers"] = json!([{ "name": "shell", "image": "huge" }]);
    });
    wait(|| world.runtime.calls("pull") == 1).await;
    world.runtime.answer_with("ready", Some(1));
    wait(|| condition(&world, &uid, "Ready") == "False").await;
    world.runtime.answer_with("ready", Some(0));
    wait(|| condition(&world, &uid, "Ready") == "True").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_liveness_probe_restarts_with_its_own_grace_period() {
    let world = World::new();
    let _daemon = start(&world);
    let mut spec = spec("Always");
    spec["containers"][0]["livenessProbe"] = probe("alive");
    spec["containers"][0]["livenessProbe"]["terminationGracePeriodSeconds"] = json!(3);
    // So that the next run is asked when the answer is another again.
    spec["containers"][0]["livenessProbe"]["initialDelaySeconds"] = json!(2);
    spec["containers"][0]["lifecycle"] = json!({ "preStop": exec("bye") });
    let uid = world.api.create("web", spec);
    wait(|| world.runtime.ran("alive") > 0).await;
    assert!(is_ready(&world, &uid), "without a readiness probe it is ready at once");
    world.runtime.answer_with("alive", Some(1));
    wait(|| world.runtime.calls("stop_container") > 0).await;
    world.runtime.answer_with("alive", Some(0));
    wait(|| main_status(&world, &uid)["restartCount"] == 1).await;
    assert_eq!(world.runtime.grace("main"), Some(3));
    wait(|| world.api.told("Container main failed liveness probe, will be restarted")).await;
    wait(|| world.api.told("Liveness probe failed: out err")).await;
    let story = world.runtime.story();
    let stop = story.iter().position(|event| event == "stop main").unwrap();
    assert_eq!(story[stop - 1..=stop + 1], ["exec main bye", "stop main", "start main"]);
    wait(|| world.runtime.story()[stop + 2..].contains(&"exec main alive".to_owned())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_we_end_is_started_again_however_well_it_ends() {
    let world = World::new();
    world.runtime.end_with(0);
    let _daemon = start(&world);
    let mut spec = spec("OnFailure");
    spec["containers"][0]["livenessProbe"] = probe("alive");
    spec["containers"][0]["livenessProbe"]["initialDelaySeconds"] = json!(2);
    let uid = world.api.create("web", spec);
    wait(|| world.runtime.ran("alive") > 0).await;
    world.runtime.answer_with("alive", Some(1));
    wait(|| world.runtime.calls("stop_container") > 0).await;
    world.runtime.answer_with("alive", Some(0));
    wait(|| main_status(&world, &uid)["restartCount"] == 1 && world.api.phase(&uid) == "Running").await;
    assert_eq!(main_status(&world, &uid)["lastState"]["terminated"]["exitCode"], 0);
    // When it ends by itself, that is the end.
    world.runtime.exit("main", 0);
    wait(|| world.api.phase(&uid) == "Succeeded").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_may_still_run_is_ended_before_its_successor_starts_and_with_its_pod() {
    let world = World::new();
    let first = start(&world);
    let uid = world.api.create("web", spec("Always"));
    wait(|| world.api.phase(&uid) == "Running").await;
    drop(first);
    world.runtime.lose_sight("main");
    let _second = start(&world);
    wait(|| main_status(&world, &uid)["restartCount"] == 1).await;
    assert_eq!(world.runtime.story(), ["start main", "pod cgroup None", "stop main", "start main"]);
    world.runtime.lose_sight("main");
    world.api.delete(&uid, 5);
    wait(|| world.api.is_gone(&uid) && world.is_empty()).await;
    assert_eq!(world.runtime.story()[4..], ["stop main"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_runs_once_ends_when_its_liveness_probe_fails() {
    let world = World::new();
    world.runtime.answer_with("alive", Some(1));
    let _daemon = start(&world);
    let mut spec = spec("Never");
    spec["containers"][0]["livenessProbe"] = probe("alive");
    let uid = world.api.create("web", spec);
    wait(|| world.api.phase(&uid) == "Failed").await;
    assert_eq!(world.runtime.started("main"), 1);
    wait(|| world.api.told("Container main failed liveness probe")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_else_is_asked_before_a_container_has_started() {
    let world = World::new();
    world.runtime.answer_with("up", Some(1));
    let _daemon = start(&world);
    let mut spec = spec("Always");
    spec["containers"][0]["startupProbe"] = probe("up");
    spec["containers"][0]["startupProbe"]["failureThreshold"] = json!(100);
    spec["containers"][0]["livenessProbe"] = probe("alive");
    spec["containers"][0]["readinessProbe"] = probe("ready");
    let uid = world.api.create("web", spec);
    wait(|| world.runtime.ran("up") >= 2).await;
    assert_eq!((world.runtime.ran("alive"), world.runtime.ran("ready")), (0, 0));
    assert_eq!(main_status(&world, &uid)["started"], false);
    world.runtime.answer_with("up", Some(0));
    wait(|| world.runtime.ran("alive") > 0 && is_ready(&world, &uid)).await;
    assert_eq!(main_status(&world, &uid)["started"], true);
    let asked = world.runtime.ran("up");
    wait(|| world.runtime.ran("alive") >= 3).await;
    assert_eq!(world.runtime.ran("up"), asked, "once started it is not asked again");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_that_never_starts_is_restarted() {
    let world = World::new();
    world.runtime.answer_with("up", None);
    let _daemon = start(&world);
    let mut spec = spec("Always");
    spec["containers"][0]["startupProbe"] = probe("up");
    let uid = world.api.create("web", spec);
    wait(|| main_status(&world, &uid)["restartCount"] == 1).await;
    wait(|| world.api.told("Container main failed startup probe, will be restarted")).await;
    wait(|| world.api.told("Startup probe failed: command timed out: \"up\" timed out after 1s")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_daemon_takes_health_over() {
    let world = World::new();
    let first = start(&world);
    let mut spec = spec("Always");
    spec["containers"][0]["startupProbe"] = probe("up");
    spec["containers"][0]["readinessProbe"] = probe("ready");
    spec["containers"][0]["readinessProbe"]["failureThreshold"] = json!(1000);
    let uid = world.api.create("web", spec);
    wait(|| is_ready(&world, &uid)).await;
    drop(first);
    world.runtime.answer_with("ready", Some(1));
    let (ups, readies) = (world.runtime.ran("up"), world.runtime.ran("ready"));
    let _second = start(&world);
    wait(|| world.runtime.ran("ready") > readies + 1).await;
    assert!(is_ready(&world, &uid), "no word against it so far");
    assert_eq!(world.runtime.ran("up"), ups, "it had started long ago");
}

#[tokio::test(flavor = "multi_thread")]
async fn while_a_pod_ends_its_readiness_is_still_asked_and_its_life_is_not() {
    let world = World::new();
    world.runtime.answer_with("bye", None);
    let _daemon = start(&world);
    let mut spec = spec("Always");
    spec["containers"][0]["readinessProbe"] = probe("ready");
    spec["containers"][0]["livenessProbe"] = probe("alive");
    spec["containers"][0]["lifecycle"] = json!({ "preStop": exec("bye") });
    let uid = world.api.create("web", spec);
    wait(|| is_ready(&world, &uid)).await;
    world.runtime.answer_with("ready", Some(1));
    world.runtime.answer_with("alive", Some(1));
    world.api.delete(&uid, 5);
    wait(|| world.api.is_gone(&uid) || !is_ready(&world, &uid)).await;
    assert!(!world.api.is_gone(&uid), "it was not ready any more before it was gone");
    wait(|| world.api.is_gone(&uid) && world.is_empty()).await;
    assert!(!world.api.told("Container main failed liveness probe, will be restarted"));
    assert_eq!(world.runtime.grace("main"), Some(2), "the hook took the rest");
    assert_eq!(world.runtime.ran("bye"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn hooks_run_after_the_start_and_before_the_end() {
    let world = World::new();
    let _daemon = start(&world);
    let mut spec = spec("Always");
    spec["containers"][0]["lifecycle"] = json!({ "postStart": exec("hello"), "preStop": exec("bye") });
    let uid = world.api.create("web", spec);
    wait(|| is_ready(&world, &uid)).await;
    assert_eq!(world.runtime.story(), ["start main", "exec main hello"]);
    world.runtime.answer_with("bye", Some(3));
    world.api.delete(&uid, 5);
    wait(|| world.api.is_gone(&uid) && world.is_empty()).await;
    assert_eq!(world.runtime.story()[2..], ["exec main bye", "stop main"]);
    wait(|| world.api.told("PreStopHook failed")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_whose_first_hook_fails_is_ended_and_tried_again() {
    let world = World::new();
    world.runtime.answer_with("hello", Some(7));
    let _daemon = start(&world);
    let mut spec = spec("Always");
    spec["containers"][0]["lifecycle"] = json!({ "postStart": exec("hello") });
    let uid = world.api.create("web", spec);
    wait(|| main_status(&world, &uid)["state"]["waiting"]["reason"] == "PostStartHookError").await;
    let message = main_status(&world, &uid)["state"]["waiting"]["message"].as_str().unwrap().to_owned();
    let expected = "Exec lifecycle hook ([hello]) for Container \"main\" in Pod \"web_ns(uid-0)\" failed - error: command 'hello' exited with 7: err, message: \"out err\"";
    assert_eq!(message, expected);
    wait(|| world.api.told("PostStartHook failed") && world.api.told("FailedPostStartHook")).await;
    world.runtime.answer_with("hello", Some(0));
    wait(|| is_ready(&world, &uid)).await;
    assert!(world.runtime.started("main") >= 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_can_be_deleted_while_a_hook_hangs() {
    let world = World::new();
    world.runtime.answer_with("hello", None);
    let _daemon = start(&world);
    let mut spec = spec("Always");
    spec["containers"][0]["lifecycle"] = json!({ "postStart": exec("hello") });
    spec["containers"].as_array_mut().unwrap().push(json!({ "name": "later", "image": "busybox" }));
    let uid = world.api.create("web", spec);
    wait(|| world.runtime.ran("hello") == 1).await;
    world.api.delete(&uid, 5);
    wait(|| world.api.is_gone(&uid) && world.is_empty()).await;
    assert_eq!(world.runtime.started("later"), 0);
}

fn with_sidecars(policy: &str) -> Value {
    let mut spec = spec(policy);
    let sidecar = |name: &str| json!({ "name": name, "image": "busybox", "restartPolicy": "Always" });
    let mut proxy = sidecar("proxy");
    proxy["startupProbe"] = probe("proxy-up");
    proxy["startupProbe"]["failureThreshold"] = json!(100);
    spec["initContainers"] =
        json!([sidecar("logs"), { "name": "setup", "image": "busybox" }, proxy, sidecar("cache")]);
    spec
}

#[tokio::test(flavor = "multi_thread")]
async fn sidecars_start_in_order_and_end_in_reverse_after_the_others() {
    let world = World::new();
    world.runtime.answer_with("proxy-up", Some(1));
    let _daemon = start(&world);
    let uid = world.api.create("web", with_sidecars("Always"));
    wait(|| world.runtime.started("setup") == 1).await;
    assert_eq!(world.runtime.started("proxy"), 0);
    world.runtime.exit("setup", 0);
    wait(|| world.runtime.ran("proxy-up") >= 2).await;
    assert_eq!((world.runtime.started("cache"), world.runtime.started("main")), (0, 0));
    assert_eq!(world.api.phase(&uid), "Pending");
    assert_eq!(condition(&world, &uid, "Initialized"), "False");
    world.runtime.answer_with("proxy-up", Some(0));
    wait(|| condition(&world, &uid, "Ready") == "True").await;
    let starts: Vec<_> =
        world.runtime.story().into_iter().filter(|event| event.starts_with("start")).collect();
    assert_eq!(starts, ["start logs", "start setup", "start proxy", "start cache", "start main"]);
    let status = world.api.status(&uid);
    let inits = status["initContainerStatuses"].as_array().unwrap();
    let told: Vec<_> = inits.iter().map(|init| (init["started"] == true, init["ready"] == true)).collect();
    assert_eq!(told, [(true, true), (false, true), (true, true), (true, true)]);

    // One that ends comes back, and the pod is not initialized again.
    world.runtime.exit("logs", 0);
    wait(|| world.api.status(&uid)["initContainerStatuses"][0]["restartCount"] == 1).await;
    assert_eq!(world.api.phase(&uid), "Running");
    assert_eq!((world.runtime.started("setup"), world.runtime.started("main")), (1, 1));

    world.api.delete(&uid, 5);
    wait(|| world.api.is_gone(&uid) && world.is_empty()).await;
    let stops: Vec<_> = world.runtime.story().into_iter().filter(|event| event.starts_with("stop")).collect();
    assert_eq!(stops, ["stop main", "stop cache", "stop proxy", "stop logs"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_ends_with_its_containers_and_takes_its_sidecars_along() {
    let world = World::new();
    let _daemon = start(&world);
    let uid = world.api.create("job", with_sidecars("Never"));
    wait(|| world.runtime.started("setup") == 1).await;
    world.runtime.exit("setup", 0);
    wait(|| world.api.phase(&uid) == "Running").await;
    world.runtime.exit("main", 0);
    wait(|| world.api.phase(&uid) == "Succeeded").await;
    assert_eq!(world.runtime.running(), 0, "a terminal phase is told when nothing runs");
    let stops: Vec<_> = world.runtime.story().into_iter().filter(|event| event.starts_with("stop")).collect();
    assert_eq!(stops, ["stop cache", "stop proxy", "stop logs"]);
    let status = world.api.status(&uid);
    let inits = status["initContainerStatuses"].as_array().unwrap();
    let codes: Vec<_> = inits.iter().map(|init| init["state"]["terminated"]["exitCode"].as_i64()).collect();
    assert_eq!(codes, [Some(143), Some(0), Some(143), Some(143)]);
    assert_eq!(world.runtime.started("logs"), 1, "nothing comes back after that");
}
