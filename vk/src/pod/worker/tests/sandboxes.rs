//! Sandboxes that are lost, and what is left running of them.

use serde_json::{Value, json};

use super::{
    fakes::{World, wait},
    spec, start,
};

fn with_hook(policy: &str) -> Value {
    let mut spec = spec(policy);
    spec["containers"][0]["lifecycle"] = json!({ "preStop": { "exec": { "command": ["bye"] } } });
    spec
}

#[tokio::test(flavor = "multi_thread")]
async fn what_outlives_its_sandbox_is_ended_with_its_hook_and_started_again_without_waiting() {
    let world = World::new();
    let first = start(&world);
    let uid = world.api.create("web", with_hook("Always"));
    wait(|| world.api.phase(&uid) == "Running").await;
    for restarts in 1..3 {
        world.runtime.lose_pauses();
        world.api.change(&uid, |pod| pod["metadata"]["labels"] = json!({ "round": restarts.to_string() }));
        let status = || world.api.status(&uid)["containerStatuses"][0].clone();
        wait(|| status()["restartCount"] == restarts && status()["state"]["running"].is_object()).await;
        let told = world.runtime.story().len() - 3;
        assert_eq!(world.runtime.story()[told..], ["exec main bye", "stop main", "start main"]);
    }
    assert_eq!((world.runtime.grace("main"), world.runtime.running()), (Some(5), 1));
    drop(first);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_is_deleted_while_it_leaves_its_sandbox_gets_no_other() {
    let world = World::new();
    world.runtime.answer_with("bye", None);
    let _daemon = start(&world);
    let uid = world.api.create("web", with_hook("Always"));
    wait(|| world.api.phase(&uid) == "Running").await;
    world.runtime.lose_pauses();
    world.api.change(&uid, |pod| pod["metadata"]["labels"] = json!({ "look": "again" }));
    wait(|| world.runtime.ran("bye") == 1).await;
    world.api.delete(&uid, 2);
    wait(|| world.api.is_gone(&uid) && world.is_empty()).await;
    assert_eq!((world.runtime.started("main"), world.runtime.calls("create_sandbox")), (1, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_killed_while_it_changes_the_sandbox_goes_on_with_it() {
    let deaths = (1..12).flat_map(|calls| [(calls, "Always", 143), (calls, "OnFailure", 0)]);
    for (calls_before_death, policy, code) in deaths {
        let world = World::new();
        world.runtime.end_with(code);
        let first = start(&world);
        let uid = world.api.create("web", spec(policy));
        wait(|| world.api.phase(&uid) == "Running").await;
        drop(first);
        world.runtime.lose_pauses();
        world.runtime.die_after(calls_before_death);
        let second = start(&world);
        let is_back = || {
            let status = world.api.status(&uid)["containerStatuses"][0].clone();
            status["restartCount"] == 1 && status["state"]["running"].is_object()
        };
        wait(|| world.runtime.is_dead() || is_back()).await;
        drop(second);
        world.runtime.revive();
        let _third = start(&world);
        wait(is_back).await;
        let counts = (world.runtime.started("main"), world.runtime.running(), world.runtime.pods());
        assert_eq!(counts, (2, 1, 1), "{policy} died after {calls_before_death} calls");
    }
}
