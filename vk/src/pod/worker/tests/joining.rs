//! Ephemeral containers.

use serde_json::json;

use super::{
    fakes::{World, wait},
    spec, start,
};

#[tokio::test(flavor = "multi_thread")]
async fn an_ephemeral_container_joins_once_and_is_ended_with_the_pod() {
    let world = World::new();
    let first = start(&world);
    let uid = world.api.create("web", spec("Always"));
    wait(|| world.api.phase(&uid) == "Running").await;
    let join = |name: &str, target: &str| {
        let own = json!({ "name": name, "image": "tools", "targetContainerName": target });
        world.api.change(&uid, |pod| match pod["spec"]["ephemeralContainers"].as_array_mut() {
            Some(all) => all.push(own),
            None => pod["spec"]["ephemeralContainers"] = json!([own]),
        });
    };
    join("shell", "main");
    let state = |n: usize| world.api.status(&uid)["ephemeralContainerStatuses"][n]["state"].clone();
    wait(|| state(0)["running"].is_object()).await;
    assert_eq!(world.api.status(&uid)["observedGeneration"], 2);
    let target = world.runtime.spec("shell").unwrap().joins.unwrap();
    assert!(
        world.api.status(&uid)["containerStatuses"][0]["containerID"].as_str().unwrap().ends_with(&target)
    );

    world.runtime.exit("shell", 3);
    wait(|| state(0)["terminated"]["exitCode"] == 3).await;
    assert_eq!(world.api.phase(&uid), "Running");
    drop(first);
    // A restart is no reason to start it again, nor is a second one that joins.
    let _second = start(&world);
    join("trace", "");
    wait(|| state(1)["running"].is_object()).await;
    assert_eq!(world.runtime.started("shell"), 1);
    assert_eq!(world.runtime.spec("trace").unwrap().joins, None);

    world.api.delete(&uid, 5);
    wait(|| world.api.is_gone(&uid) && world.is_empty()).await;
    let last = world.api.last_status(&uid);
    assert_eq!(last["ephemeralContainerStatuses"][1]["state"]["terminated"]["exitCode"], 143);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ephemeral_container_without_its_target_waits_and_says_so() {
    let world = World::new();
    let _daemon = start(&world);
    let mut blocked = spec("Always");
    blocked["initContainers"] = json!([{ "name": "first", "image": "busybox" }]);
    let uid = world.api.create("web", blocked);
    wait(|| world.runtime.started("first") == 1).await;
    world.api.change(&uid, |pod| {
        pod["spec"]["ephemeralContainers"] =
            json!([{ "name": "shell", "image": "tools", "targetContainerName": "main" }]);
    });
    let waiting = || world.api.status(&uid)["ephemeralContainerStatuses"][0]["state"]["waiting"].clone();
    wait(|| waiting()["reason"] == "CreateContainerConfigError").await;
    assert_eq!(waiting()["message"], "unable to find target container main");
    // It joins as soon as there is one to join.
    world.runtime.exit("first", 0);
    wait(|| world.runtime.started("shell") == 1 && world.runtime.started("main") == 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ephemeral_container_with_a_name_that_leads_elsewhere_is_never_made() {
    let world = World::new();
    let _daemon = start(&world);
    let uid = world.api.create("web", spec("Always"));
    wait(|| world.api.phase(&uid) == "Running").await;
    let outside = world.folder.path().join("outside");
    world.api.change(&uid, |pod| {
        pod["spec"]["ephemeralContainers"] = json!([{ "name": outside, "image": "tools" }]);
    });
    wait(|| world.api.phase(&uid) == "Failed").await;
    assert!(!outside.exists() && world.runtime.spec(&outside.to_string_lossy()).is_none());
}
