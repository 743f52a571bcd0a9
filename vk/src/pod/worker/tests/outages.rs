//! Containers that start again while the API server gives no answer, from what it said last.

use serde_json::{Value, json};

use super::{
    fakes::{World, wait},
    spec, start,
};

const MAP: &str = "/api/v1/namespaces/ns/configmaps/settings";
const ABSENT: &str = "/api/v1/namespaces/ns/configmaps/absent";
const SECRET: &str = "/api/v1/namespaces/ns/secrets/key";
const PULL: &str = "/api/v1/namespaces/ns/secrets/pull";
const CLASS: &str = "/apis/node.k8s.io/v1/runtimeclasses/sandboxed";

fn set(world: &World, text: &str) {
    let object = |name: &str, kind: &str, data: Value| {
        json!({ "kind": kind, "apiVersion": "v1", "metadata": { "name": name, "namespace": "ns", "uid": name },
            "data": data })
    };
    world.api.set(MAP, Some(object("settings", "ConfigMap", json!({ "TEXT": text }))));
    world.api.set(SECRET, Some(object("key", "Secret", json!({ "k": "a2V5" }))));
    world.api.set(
        CLASS,
        Some(json!({ "kind": "RuntimeClass", "apiVersion": "node.k8s.io/v1",
            "metadata": { "name": "sandboxed" }, "handler": "gvisor" })),
    );
}

/// A pod that asks for all that a container can ask of the API server.
fn pod() -> Value {
    let mut spec = spec("Always");
    spec["runtimeClassName"] = json!("sandboxed");
    spec["imagePullSecrets"] = json!([{ "name": "pull" }]);
    spec["volumes"] = json!([{ "name": "v", "emptyDir": {} }]);
    let container = &mut spec["containers"][0];
    container["image"] = json!("r.example/app:1");
    container["imagePullPolicy"] = json!("IfNotPresent");
    container["volumeMounts"] =
        json!([{ "name": "v", "mountPath": "/v", "readOnly": true, "recursiveReadOnly": "IfPossible" }]);
    container["envFrom"] = json!([
        { "configMapRef": { "name": "settings" } },
        { "configMapRef": { "name": "absent", "optional": true } },
    ]);
    container["env"] = json!([
        { "name": "KEY", "valueFrom": { "secretKeyRef": { "name": "key", "key": "k" } } },
        { "name": "CPUS", "valueFrom": { "resourceFieldRef": { "resource": "limits.cpu" } } },
    ]);
    spec
}

fn variable(world: &World, name: &str) -> Option<String> {
    let made = world.runtime.spec("main")?;
    made.env.into_iter().find(|(key, _)| key == name).map(|(_, value)| value)
}

async fn restart(world: &World) {
    let before = world.runtime.started("main");
    world.runtime.exit("main", 1);
    wait(|| world.runtime.started("main") == before + 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn containers_start_again_while_the_api_server_is_away() {
    let world = World::new();
    world.runtime.lacks("r.example/app:1", Some(("me", "pw")));
    set(&world, "first");
    let _daemon = start(&world);
    let uid = world.api.create("web", pod());
    wait(|| world.api.phase(&uid) == "Running").await;
    assert_eq!(world.runtime.handler(&uid).as_deref(), Some("gvisor"));

    world.api.fail_all(Some(503));
    restart(&world).await;
    let values = ["TEXT", "KEY", "CPUS"].map(|name| variable(&world, name));
    assert_eq!(values, ["first", "key", "4"].map(|value| Some(value.to_owned())));
    assert_eq!(world.runtime.calls("pull"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_found_a_container_running_can_start_it_while_the_api_server_is_away() {
    let world = World::new();
    world.runtime.lacks("r.example/app:1", Some(("me", "pw")));
    set(&world, "first");
    let first = start(&world);
    let uid = world.api.create("web", pod());
    wait(|| world.api.phase(&uid) == "Running").await;
    drop(first);
    let reads = || [MAP, ABSENT, SECRET, PULL].map(|path| world.api.reads(path));
    let before = reads();
    set(&world, "second");
    let _second = start(&world);
    wait(|| reads() == before.map(|reads| reads + 1)).await;
    world.api.fail_all(Some(503));
    restart(&world).await;
    assert_eq!(variable(&world, "TEXT").as_deref(), Some("second"));
}

#[tokio::test(flavor = "multi_thread")]
async fn each_start_has_the_variables_of_the_moment_when_the_api_server_answers() {
    let world = World::new();
    set(&world, "first");
    let _daemon = start(&world);
    let uid = world.api.create("web", pod());
    wait(|| world.api.phase(&uid) == "Running").await;
    assert_eq!(variable(&world, "TEXT").as_deref(), Some("first"));
    set(&world, "second");
    restart(&world).await;
    assert_eq!(variable(&world, "TEXT").as_deref(), Some("second"));
}

#[tokio::test(flavor = "multi_thread")]
async fn that_an_object_is_not_there_is_an_answer_and_the_last_one_does_not_serve() {
    let world = World::new();
    set(&world, "first");
    let _daemon = start(&world);
    let uid = world.api.create("web", pod());
    wait(|| world.api.phase(&uid) == "Running").await;
    world.api.set(MAP, None);
    world.runtime.exit("main", 1);
    let waiting = || world.api.status(&uid)["containerStatuses"][0]["state"]["waiting"].clone();
    wait(|| waiting()["reason"] == "CreateContainerConfigError").await;
    assert_eq!(waiting()["message"], "configmap \"settings\" not found");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_runtime_class_that_is_gone_stops_no_container_of_a_pod_that_runs() {
    let world = World::new();
    set(&world, "first");
    let first = start(&world);
    let uid = world.api.create("web", pod());
    wait(|| world.api.phase(&uid) == "Running").await;
    world.api.set(CLASS, None);
    drop(first);
    let reads = world.api.reads(CLASS);
    let _second = start(&world);
    restart(&world).await;
    assert_eq!(world.api.reads(CLASS), reads, "the sandbox is there");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_restart_waits_for_an_api_server_that_gives_no_answer() {
    let world = World::new();
    let _daemon = start(&world);
    let mut spec = spec("Always");
    spec["containers"] =
        json!([{ "name": "main", "image": "busybox" }, { "name": "other", "image": "busybox" }]);
    let uid = world.api.create("web", spec);
    wait(|| world.api.phase(&uid) == "Running").await;

    world.api.be_unreachable(true);
    restart(&world).await;
    // By now it is being told of that.
    world.runtime.exit("other", 1);
    wait(|| world.runtime.started("other") == 2).await;

    world.api.be_unreachable(false);
    let restarts = || {
        let statuses = world.api.status(&uid)["containerStatuses"].clone();
        [0, 1].map(|n| statuses[n]["restartCount"].as_i64())
    };
    wait(|| restarts() == [Some(1), Some(1)]).await;
}
