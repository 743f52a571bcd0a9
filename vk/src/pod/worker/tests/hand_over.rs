//! Two daemons for one node, of which one may act.

use super::*;
use crate::lead::Lead;

fn start_elected(world: &World, lead: &Lead) -> Daemon {
    let settings = Settings {
        root_dir: world.folder.path().to_owned(),
        lead: lead.clone(),
        ..Settings::new("vk", vec!["10.0.0.1".parse().unwrap()])
    };
    let provider = Provider::Runtime(Arc::clone(&world.runtime) as _);
    let pods = Arc::new(Pods::new(world.api.client(), provider, settings));
    let mut task = JoinSet::new();
    task.spawn(Arc::clone(&pods).run(CancellationToken::new()));
    Daemon { pods, _task: task }
}

fn leading() -> Lead {
    let lead = Lead::elected("vk");
    lead.hold_until(lead.now() + Duration::from_hours(1));
    lead
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_has_lost_the_lease_changes_nothing_though_it_goes_on() {
    let world = World::new();
    let (first, second) = (leading(), leading());
    second.give_up();
    let old = start_elected(&world, &first);
    let new = start_elected(&world, &second);
    let uid = world.api.create("web", spec("Never"));
    wait(|| world.api.phase(&uid) == "Running").await;

    // Both still run: nobody has stopped the old one yet.
    first.give_up();
    let writes = world.api.writes(&uid);
    world.runtime.exit("main", 3);
    wait(|| old.pods.get("ns", "web").is_some() && new.pods.get("ns", "web").is_some()).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(world.api.writes(&uid), writes, "nobody may say anything");

    second.hold_until(second.now() + Duration::from_hours(1));
    wait(|| world.api.phase(&uid) == "Failed").await;
    assert_eq!(world.api.status(&uid)["containerStatuses"][0]["state"]["terminated"]["exitCode"], 3);
    assert_eq!((world.runtime.calls("create_container"), world.runtime.calls("start_container")), (1, 1));
}
