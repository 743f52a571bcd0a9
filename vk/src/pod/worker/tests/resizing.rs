//! Resizing in place.

use serde_json::{Value, json};

use super::{
    Daemon,
    fakes::{World, wait},
    spec, start,
};

fn sized(cpu: &str, memory: &str) -> Value {
    let both = json!({ "cpu": cpu, "memory": memory });
    json!({ "requests": both, "limits": both })
}

async fn running(world: &World, name: &str, resources: &Value, policy: &Value) -> String {
    let mut spec = spec("Always");
    spec["containers"][0]["resources"] = resources.clone();
    spec["containers"][0]["resizePolicy"] = policy.clone();
    let uid = world.api.create(name, spec);
    wait(|| world.api.phase(&uid) == "Running").await;
    uid
}

fn resize(world: &World, uid: &str, resources: &Value) {
    world.api.change(uid, |pod| pod["spec"]["containers"][0]["resources"] = resources.clone());
}

fn condition(world: &World, uid: &str, kind: &str) -> Option<Value> {
    let status = world.api.status(uid);
    status["conditions"].as_array()?.iter().find(|condition| condition["type"] == kind).cloned()
}

/// Until the container has what is asked for and nothing more is said of it.
async fn has(world: &World, uid: &str, resources: &Value) {
    wait(|| {
        let status = &world.api.status(uid)["containerStatuses"][0];
        status["resources"] == *resources
            && status["allocatedResources"] == resources["requests"]
            && condition(world, uid, "PodResizeInProgress").is_none()
            && condition(world, uid, "PodResizePending").is_none()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_container_gets_more_and_less_in_place() {
    let world = World::new();
    let _daemon = start(&world);
    let uid = running(&world, "web", &sized("500m", "1Gi"), &json!([])).await;
    resize(&world, &uid, &sized("1", "2Gi"));
    has(&world, &uid, &sized("1", "2Gi")).await;
    resize(&world, &uid, &sized("250m", "512Mi"));
    has(&world, &uid, &sized("250m", "512Mi")).await;
    assert_eq!(world.api.status(&uid)["observedGeneration"], 3);
    // The pod is widened before and narrowed after its container.
    let story: Vec<String> =
        world.runtime.story().into_iter().filter(|event| event != "start main").collect();
    let expected =
        ["Some(100000)", "update main", "Some(100000)", "Some(100000)", "update main", "Some(25000)"];
    let told: Vec<_> = story.iter().map(|event| event.trim_start_matches("pod cgroup ")).collect();
    assert_eq!(told, expected);
    assert_eq!(world.runtime.started("main"), 1);
    wait(|| world.api.events().iter().filter(|event| *event == "ResizeCompleted").count() == 2).await;
    assert_eq!(world.api.events().iter().filter(|event| *event == "ResizeStarted").count(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_that_waits_to_be_started_again_gets_a_cgroup_that_has_room() {
    let world = World::new();
    let _daemon = start(&world);
    let uid = running(&world, "web", &sized("500m", "1Gi"), &json!([])).await;
    for restarts in 1..=2 {
        world.runtime.exit("main", 137);
        wait(|| {
            let status = &world.api.status(&uid)["containerStatuses"][0];
            status["restartCount"] == restarts || status["state"]["waiting"]["reason"] == "CrashLoopBackOff"
        })
        .await;
    }
    resize(&world, &uid, &sized("1", "2Gi"));
    wait(|| world.api.events().contains(&"ResizeCompleted".to_owned())).await;
    assert_eq!(world.runtime.story().last().map(String::as_str), Some("pod cgroup Some(100000)"));
    assert_eq!(world.runtime.started("main"), 2, "its time has not come");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_whose_policy_says_so_is_started_anew() {
    let world = World::new();
    let _daemon = start(&world);
    let policy = json!([{ "resourceName": "memory", "restartPolicy": "RestartContainer" }]);
    let uid = running(&world, "web", &sized("500m", "1Gi"), &policy).await;
    resize(&world, &uid, &sized("600m", "1Gi"));
    has(&world, &uid, &sized("600m", "1Gi")).await;
    assert_eq!(world.runtime.started("main"), 1, "CPU is changed in place");
    resize(&world, &uid, &sized("600m", "2Gi"));
    wait(|| world.runtime.started("main") == 2).await;
    has(&world, &uid, &sized("600m", "2Gi")).await;
    assert_eq!(world.api.status(&uid)["containerStatuses"][0]["restartCount"], 1);
    assert!(world.api.told("Container main resize requires restart"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_node_can_not_give_is_said_and_given_when_there_is_room() {
    let world = World::new();
    let first = start(&world);
    let big = running(&world, "big", &sized("3", "1Gi"), &json!([])).await;
    let uid = running(&world, "web", &sized("500m", "1Gi"), &json!([])).await;
    resize(&world, &uid, &sized("5", "1Gi"));
    let pending = |uid: &str| condition(&world, uid, "PodResizePending").unwrap_or_default();
    wait(|| pending(&uid)["reason"] == "Infeasible").await;
    assert_eq!(
        pending(&uid)["message"],
        "Node didn't have enough capacity: cpu, requested: 5000, capacity: 4000"
    );
    assert_eq!(pending(&uid)["observedGeneration"], 2);
    resize(&world, &uid, &sized("2", "1Gi"));
    wait(|| pending(&uid)["reason"] == "Deferred").await;
    assert_eq!(
        pending(&uid)["message"],
        "Node didn't have enough resource: cpu, requested: 2000, used: 3000, capacity: 4000"
    );
    wait(|| world.api.events().contains(&"ResizeDeferred".to_owned())).await;
    let status = world.api.status(&uid);
    assert_eq!(status["containerStatuses"][0]["allocatedResources"]["cpu"], "500m");

    // Nothing is taken for given after a restart.
    drop(first);
    let _second = start(&world);
    wait(|| world.runtime.calls("observe") > 8).await;
    assert_eq!(world.runtime.calls("update_container"), 0);
    assert_eq!(world.api.status(&uid)["containerStatuses"][0]["resources"], sized("500m", "1Gi"));
    world.api.delete(&big, 1);
    has(&world, &uid, &sized("2", "1Gi")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_dies_amid_a_resize_goes_on_with_it() {
    for calls_before_death in 1..6 {
        let world = World::new();
        let first = start(&world);
        let uid = running(&world, "web", &sized("500m", "1Gi"), &json!([])).await;
        world.runtime.die_after(calls_before_death);
        resize(&world, &uid, &sized("1", "2Gi"));
        wait(|| world.runtime.is_dead()).await;
        drop(first);
        world.runtime.revive();
        let _second: Daemon = start(&world);
        has(&world, &uid, &sized("1", "2Gi")).await;
        assert_eq!(world.runtime.started("main"), 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_of_the_runtime_is_told_and_another_wish_is_tried() {
    let world = World::new();
    let _daemon = start(&world);
    let uid = running(&world, "web", &sized("500m", "1Gi"), &json!([])).await;
    world.runtime.refuse("update_container", Some("the kernel said no"));
    resize(&world, &uid, &sized("1", "1Gi"));
    let progress = || condition(&world, &uid, "PodResizeInProgress").unwrap_or_default();
    wait(|| progress()["reason"] == "Error").await;
    assert_eq!(progress()["message"], "the kernel said no");
    let status = world.api.status(&uid);
    assert_eq!(status["containerStatuses"][0]["resources"], sized("500m", "1Gi"), "what it really has");
    wait(|| world.api.events().contains(&"ResizeError".to_owned())).await;
    world.runtime.refuse("update_container", None);
    resize(&world, &uid, &sized("700m", "1Gi"));
    has(&world, &uid, &sized("700m", "1Gi")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_for_which_there_is_no_room_is_refused() {
    let world = World::new();
    let _daemon = start(&world);
    let big = running(&world, "big", &sized("3", "1Gi"), &json!([])).await;
    let mut spec = spec("Always");
    spec["containers"][0]["resources"] = sized("2", "1Gi");
    let uid = world.api.create("web", spec.clone());
    wait(|| world.api.phase(&uid) == "Failed").await;
    let status = world.api.status(&uid);
    assert_eq!(status["reason"], "OutOfcpu");
    assert_eq!(
        status["message"],
        "Pod was rejected: Node didn't have enough resource: cpu, requested: 2000, used: 3000, capacity: 4000"
    );
    // One that has ended holds nothing.
    world.api.delete(&big, 1);
    wait(|| world.api.is_gone(&big)).await;
    let uid = world.api.create("again", spec);
    wait(|| world.api.phase(&uid) == "Running").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_provider_is_told_what_burstable_pods_weigh_together() {
    let world = World::new();
    let first = start(&world);
    let asks = |cpu: &str| json!({ "requests": { "cpu": cpu } });
    let one = running(&world, "one", &asks("500m"), &json!([])).await;
    let two = running(&world, "two", &asks("1500m"), &json!([])).await;
    running(&world, "guaranteed", &sized("1", "1Gi"), &json!([])).await;
    assert_eq!(world.runtime.burstable_shares(), Some(2048));
    resize(&world, &two, &asks("500m"));
    wait(|| world.runtime.burstable_shares() == Some(1024)).await;
    // Also what changes while nobody looks.
    drop(first);
    world.api.delete(&one, 0);
    let _second = start(&world);
    wait(|| world.runtime.burstable_shares() == Some(512)).await;
    world.api.delete(&two, 1);
    wait(|| world.runtime.burstable_shares() == Some(2)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_of_a_pod_that_nobody_would_enforce_are_refused() {
    let world = World::new();
    let _daemon = start(&world);
    let mut limited = spec("Always");
    limited["resources"] = json!({ "limits": { "cpu": "1" } });
    let uid = world.api.create("before", limited.clone());
    wait(|| world.api.phase(&uid) == "Running").await;
    world.runtime.lack_pod_limits("systemd does");
    let uid = world.api.create("limited", limited);
    wait(|| world.api.phase(&uid) == "Failed").await;
    let status = world.api.status(&uid);
    assert_eq!(status["reason"], "PodFeatureUnsupported");
    let message = status["message"].as_str().unwrap_or_default();
    assert!(message.contains("spec.resources.limits") && message.contains("systemd"), "{message}");
    running(&world, "other", &sized("500m", "1Gi"), &json!([])).await;
}
