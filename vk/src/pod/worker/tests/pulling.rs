//! Images: where they come from, and what is said while they don't.

use serde_json::{Value, json};

use super::{
    fakes::{World, wait},
    spec, start,
};

fn create(world: &World, image: &str, policy: &str, secrets: &Value) -> String {
    let mut spec = spec("Always");
    spec["containers"][0]["image"] = json!(image);
    spec["containers"][0]["imagePullPolicy"] = json!(policy);
    spec["imagePullSecrets"] = secrets.clone();
    world.api.create("web", spec)
}

fn waiting(world: &World, uid: &str) -> Value {
    world.api.status(uid)["containerStatuses"][0]["state"]["waiting"].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_opens_its_registry() {
    let world = World::new();
    world.runtime.lacks("r.example/app:1", Some(("me", "pw")));
    let _daemon = start(&world);
    let uid =
        create(&world, "r.example/app:1", "IfNotPresent", &json!([{ "name": "none" }, { "name": "pull" }]));
    wait(|| world.api.phase(&uid) == "Running").await;
    wait(|| ["Pulling", "Pulled"].iter().all(|reason| world.api.events().contains(&(*reason).to_owned())))
        .await;
    let told =
        "Unable to retrieve some image pull secrets (none); attempting to pull the image may not succeed.";
    wait(|| world.api.told(told)).await;
    assert_eq!(world.runtime.calls("pull"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_pull_is_told_and_backed_off_from() {
    let world = World::new();
    world.runtime.lacks("r.example/app:1", None);
    let _daemon = start(&world);
    let uid = create(&world, "r.example/app:1", "Always", &json!([]));
    wait(|| waiting(&world, &uid)["reason"] == "ErrImagePull").await;
    assert_eq!(waiting(&world, &uid)["message"], "the registry says no");
    wait(|| waiting(&world, &uid)["reason"] == "ImagePullBackOff").await;
    assert_eq!(
        waiting(&world, &uid)["message"],
        "Back-off pulling image \"r.example/app:1\": ErrImagePull: the registry says no"
    );
    wait(|| world.api.told("Failed to pull image \"r.example/app:1\": the registry says no")).await;
    wait(|| world.api.told("Error: ErrImagePull")).await;
    wait(|| world.api.told("Error: ImagePullBackOff")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_never_pulled_or_has_no_name_waits_with_its_reason() {
    let world = World::new();
    world.runtime.lacks("busybox", None);
    let _daemon = start(&world);
    let never = create(&world, "busybox", "Never", &json!([]));
    wait(|| waiting(&world, &never)["reason"] == "ErrImageNeverPull").await;
    world.api.vanish(&never);
    let nameless = create(&world, "busy box", "Always", &json!([]));
    wait(|| waiting(&world, &nameless)["reason"] == "InvalidImageName").await;
    assert_eq!(
        waiting(&world, &nameless)["message"],
        "Failed to apply default image tag \"busy box\": couldn't parse image name \"busy box\": invalid reference format"
    );
    assert_eq!((world.runtime.calls("pull"), world.runtime.calls("create_container")), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_a_secret_opened_is_not_everybodys() {
    let world = World::new();
    world.runtime.lacks("r.example/app:1", Some(("me", "pw")));
    let first = start(&world);
    let opened = create(&world, "r.example/app:1", "IfNotPresent", &json!([{ "name": "pull" }]));
    wait(|| world.api.phase(&opened) == "Running").await;
    world.api.vanish(&opened);
    drop(first);
    let _second = start(&world);
    let same = create(&world, "r.example/app:1", "Never", &json!([{ "name": "pull" }]));
    wait(|| world.api.phase(&same) == "Running").await;
    world.api.vanish(&same);
    let other = create(&world, "r.example/app:1", "Never", &json!([]));
    wait(|| waiting(&world, &other)["reason"] == "ErrImageNeverPull").await;
    assert_eq!(world.runtime.calls("pull"), 1);
}
