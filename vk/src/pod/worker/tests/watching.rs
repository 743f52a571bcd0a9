//! What happened while nobody told: a watch that is silent, cut, or at a version that the API server has forgotten.

use super::{fakes::Gone, *};

fn named(name: &str) -> serde_json::Value {
    let mut spec = spec("Always");
    spec["containers"][0]["name"] = json!(name);
    spec
}

/// Pods come, go and are replaced under their names without a word; then the watch ends, and the next one may begin where this one ended, or
/// may not.
async fn what_was_missed_is_made_up_for(gone: Option<Gone>) {
    let world = World::new();
    let daemon = start(&world);
    let create = |name: &str, container: &str| world.api.create(name, named(container));
    let (lasting, replaced, deleted) = (create("lasting", "a"), create("same", "b"), create("deleted", "c"));
    for uid in [&lasting, &replaced, &deleted] {
        wait(|| world.api.phase(uid) == "Running").await;
    }
    world.api.be_silent();
    world.api.vanish(&replaced);
    let again = world.api.create("same", named("d"));
    let late = world.api.create("late", named("e"));
    let never = world.api.create("never", named("f"));
    world.api.vanish(&never);
    world.api.delete(&deleted, 1);
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!((world.runtime.running(), world.runtime.started("e")), (3, 0), "it was told nothing");
    world.api.end_watches(gone);

    for uid in [&again, &late] {
        wait(|| world.api.phase(uid) == "Running").await;
    }
    wait(|| world.api.is_gone(&deleted) && world.runtime.pods() == 3).await;
    assert_eq!(["a", "d", "e", "f"].map(|name| world.runtime.started(name)), [1, 1, 1, 0]);
    assert_eq!(world.runtime.running(), 3);
    let uid = daemon.pods.get("ns", "same").and_then(|pod| pod.metadata.uid.clone());
    assert_eq!(uid.as_deref(), Some(again.as_str()));
    // And it hears again.
    let after = world.api.create("after", named("g"));
    wait(|| world.api.phase(&after) == "Running").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_that_ended_goes_on_where_it_was() {
    what_was_missed_is_made_up_for(None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_version_that_is_gone_within_a_watch_is_listed_anew() {
    what_was_missed_is_made_up_for(Some(Gone::AsEvent)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_version_that_is_gone_before_a_watch_is_listed_anew() {
    what_was_missed_is_made_up_for(Some(Gone::AsAnswer)).await;
}
