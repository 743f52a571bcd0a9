//! Devices of the node.

use serde_json::json;

use super::{
    fakes::{World, wait},
    spec, start,
};

#[tokio::test(flavor = "multi_thread")]
async fn a_device_is_one_pods_until_that_ends_whoever_restarts() {
    let world = World::new();
    let first = start(&world);
    let create = |name: &str, count: u32| {
        let mut spec = spec("Never");
        let things = json!({ "example.com/thing": count.to_string() });
        spec["containers"][0]["resources"] = json!({ "requests": things, "limits": things });
        spec["containers"][0]["name"] = json!(name);
        world.api.create(name, spec)
    };
    let devices = |name: &str| world.runtime.spec(name).map(|spec| spec.devices).unwrap_or_default();
    let one = create("one", 1);
    wait(|| world.api.phase(&one) == "Running").await;
    assert_eq!(devices("one"), ["example.com/thing=a"]);
    drop(first);

    let _second = start(&world);
    let two = create("two", 1);
    wait(|| world.api.phase(&two) == "Running").await;
    assert_eq!(devices("two"), ["example.com/thing=b"]);
    let three = create("three", 1);
    wait(|| world.api.phase(&three) == "Failed").await;
    assert_eq!(world.api.status(&three)["reason"], "UnexpectedAdmissionError");

    world.runtime.exit("one", 0);
    wait(|| world.api.phase(&one) == "Succeeded").await;
    let four = create("four", 1);
    wait(|| world.api.phase(&four) == "Running").await;
    assert_eq!(devices("four"), ["example.com/thing=a"]);
    world.api.delete(&two, 1);
    wait(|| world.api.is_gone(&two)).await;
    let five = create("five", 1);
    wait(|| world.api.phase(&five) == "Running").await;

    // By force: to the scheduler they are gone at once.
    for uid in [&four, &five] {
        world.api.vanish(uid);
    }
    let six = create("six", 2);
    wait(|| world.api.phase(&six) == "Running").await;
}
