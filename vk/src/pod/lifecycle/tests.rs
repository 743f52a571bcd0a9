#![allow(clippy::needless_pass_by_value)] // `json!` reads best where it is used.

use serde_json::json;

use super::*;
use crate::{pod::probe::Health, provider::observed::Sandbox};

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn spec(policy: &str, inits: &[&str], mains: &[&str]) -> PodSpec {
    let named = |names: &[&str]| names.iter().map(|name| json!({ "name": name })).collect::<Vec<_>>();
    serde_json::from_value(json!({
        "restartPolicy": policy, "initContainers": named(inits), "containers": named(mains),
    }))
    .unwrap()
}

fn container(name: &str, attempt: u32, state: State) -> observed::Container {
    observed::Container {
        id: format!("{name}-{attempt}"),
        sandbox_id: "s0".into(),
        name: name.into(),
        attempt,
        state,
        image: String::new(),
        image_id: String::new(),
        asked_image: None,
        user: None,
        resources: None,
    }
}

fn exited(code: i32, from: i64, to: i64) -> State {
    State::Exited(Exit {
        code,
        reason: String::new(),
        message: String::new(),
        started_at: Some(at(from)),
        finished_at: Some(at(to)),
    })
}

fn running() -> State {
    State::Running { started_at: at(0) }
}

fn sandbox(id: &str, attempt: u32, ready: bool, created_at: Timestamp) -> Sandbox {
    let (ips, runtime_handler) = (Vec::new(), String::new());
    Sandbox { id: id.to_owned(), attempt, ready, created_at, ips, runtime_handler }
}

fn seen(ready: bool, mut containers: Vec<observed::Container>) -> ObservedPod {
    containers.sort_by_key(|container| std::cmp::Reverse(container.attempt));
    let sandbox = sandbox("s0", 0, ready, at(0));
    ObservedPod { sandboxes: vec![sandbox], containers }
}

/// A plan in one line.
fn planned(spec: &PodSpec, seen: &ObservedPod) -> String {
    planned_with(spec, seen, &Healths::default(), &mut CrashLoops::default())
}

fn planned_with(spec: &PodSpec, seen: &ObservedPod, healths: &Healths, loops: &mut CrashLoops) -> String {
    match plan(spec, seen, healths, loops, at(100)) {
        Plan::MakeSandbox(attempt) => format!("sandbox {attempt}"),
        Plan::Finished => "finished".to_owned(),
        Plan::Run { kill, start, wait } => {
            let kill = kill.iter().map(|kill| format!("kill {}", kill.id));
            let start = start.iter().map(|start| {
                let made = if start.made.is_some() { " (made)" } else { "" };
                format!("start {}:{}{made}", start.name, start.attempt)
            });
            let wait =
                wait.iter().map(|wait| format!("{} waits until {}", wait.name, wait.until.as_second()));
            kill.chain(start).chain(wait).collect::<Vec<_>>().join(", ")
        }
    }
}

#[test]
fn a_new_pod_gets_a_sandbox_and_then_its_containers() {
    let spec = spec("Always", &[], &["a", "b"]);
    assert_eq!(planned(&spec, &ObservedPod::default()), "sandbox 0");
    assert_eq!(planned(&spec, &seen(true, vec![])), "start a:0, start b:0");
    let half = seen(true, vec![container("a", 0, running())]);
    assert_eq!(planned(&spec, &half), "start b:0");
    let made = seen(true, vec![container("a", 0, running()), container("b", 0, State::Created)]);
    assert_eq!(planned(&spec, &made), "start b:0 (made)");
}

#[test]
fn init_containers_run_one_after_the_other() {
    let spec = spec("OnFailure", &["i", "j"], &["a"]);
    let check = |containers, expected: &str| assert_eq!(planned(&spec, &seen(true, containers)), expected);
    check(vec![], "start i:0");
    check(vec![container("i", 0, running())], "");
    check(vec![container("i", 0, exited(0, 0, 1))], "start j:0");
    check(vec![container("i", 0, exited(1, 0, 1))], "start i:1");
    let done = vec![container("i", 0, exited(0, 0, 1)), container("j", 0, exited(0, 1, 2))];
    check(done, "start a:0");
    // Once begun, it does not matter what became of the init containers.
    check(vec![container("a", 0, running())], "");
}

#[test]
fn a_failed_init_container_ends_a_pod_that_runs_once() {
    let spec = spec("Never", &["i"], &["a"]);
    assert_eq!(planned(&spec, &seen(true, vec![container("i", 0, exited(1, 0, 1))])), "finished");
    assert_eq!(planned(&spec, &seen(false, vec![container("i", 0, exited(1, 0, 1))])), "finished");
}

#[test]
fn restarts_follow_the_policy() {
    let check = |policy: &str, code: i32, expected: &str| {
        let seen = seen(true, vec![container("a", 0, exited(code, 0, 50))]);
        assert_eq!(planned(&spec(policy, &[], &["a"]), &seen), expected, "{policy} {code}");
    };
    check("Always", 0, "start a:1");
    check("OnFailure", 0, "finished");
    check("OnFailure", 1, "start a:1");
    check("Never", 0, "finished");
    check("Never", 1, "finished");
}

#[test]
fn rules_of_a_container_win_over_the_policy() {
    let mut spec = spec("Never", &[], &["a"]);
    let rule = json!([{ "action": "Restart", "exitCodes": { "operator": "In", "values": [42] } }]);
    spec.containers[0].restart_policy_rules = serde_json::from_value(rule).unwrap();
    let after = |code| planned(&spec, &seen(true, vec![container("a", 0, exited(code, 0, 1))]));
    assert_eq!((after(42).as_str(), after(1).as_str()), ("start a:1", "finished"));
}

#[test]
fn crash_loops_wait_longer_and_longer_until_calm() {
    let mut loops = CrashLoops::default();
    let mut delay = |attempt: u32, from: i64, to: i64| {
        let container = container("a", attempt, exited(1, from, to));
        let exit = container.exit().unwrap();
        loops.delay(&container, exit).map(|delay| delay.as_secs())
    };
    let delays: Vec<_> = (0..8).map(|attempt| delay(attempt, 0, 1)).collect();
    assert_eq!(delays, [None, Some(10), Some(20), Some(40), Some(80), Some(160), Some(300), Some(300)]);
    assert_eq!(delay(8, 0, 600), None, "it ran for ten minutes");
    assert_eq!(delay(9, 0, 1), Some(10));
    assert_eq!(delay(4_000_000, 0, 1), Some(300));
}

#[test]
fn a_container_in_a_crash_loop_waits_while_others_run() {
    let spec = spec("Always", &[], &["a", "b"]);
    let seen = seen(true, vec![container("a", 2, exited(1, 90, 95)), container("b", 0, running())]);
    assert_eq!(planned(&spec, &seen), "a waits until 115");
}

#[test]
fn a_clock_that_was_set_back_keeps_no_container_waiting() {
    let spec = spec("Always", &[], &["a"]);
    let ended = |to| seen(true, vec![container("a", 2, exited(1, to - 5, to))]);
    assert_eq!(planned(&spec, &ended(100)), "a waits until 120", "it ended now");
    assert_eq!(planned(&spec, &ended(4000)), "start a:3", "it ended an hour from now");
    assert_eq!(planned(&spec, &ended(79)), "start a:3", "it has waited");
}

#[test]
fn a_lost_sandbox_is_replaced_if_anything_shall_run_again() {
    let check = |policy: &str, containers, expected: &str| {
        assert_eq!(planned(&spec(policy, &[], &["a"]), &seen(false, containers)), expected, "{policy}");
    };
    check("Always", vec![container("a", 0, exited(137, 0, 1))], "sandbox 1");
    check("Always", vec![container("a", 0, running())], "kill a-0");
    check("Always", vec![container("a", 0, State::Unknown)], "kill a-0");
    check("OnFailure", vec![container("a", 0, exited(0, 0, 1))], "finished");
    check("Never", vec![container("a", 0, exited(137, 0, 1))], "finished");
    check("Never", vec![], "sandbox 1");
}

#[test]
fn in_a_new_sandbox_old_containers_are_restarted_and_init_containers_run_again() {
    let spec = spec("Always", &["i"], &["a"]);
    let mut pod = seen(true, vec![container("i", 0, exited(0, 0, 1)), container("a", 3, exited(137, 2, 3))]);
    pod.sandboxes.insert(0, sandbox("s1", 1, true, at(9)));
    assert_eq!(planned(&spec, &pod), "start i:1");
    let mut again = container("i", 1, exited(0, 10, 11));
    again.sandbox_id = "s1".into();
    pod.containers.insert(0, again);
    assert_eq!(planned(&spec, &pod), "start a:4");
    pod.containers.retain(|container| container.name != "a");
    pod.containers.push(container("a", 3, State::Created));
    assert_eq!(planned(&spec, &pod), "start a:4", "what was made in the lost sandbox can't be started");
}

#[test]
fn what_the_api_server_remembers_is_not_run_again() {
    let status: PodStatus = serde_json::from_value(json!({ "containerStatuses": [
        { "name": "a", "image": "x", "imageID": "", "ready": false, "restartCount": 2,
          "containerID": "containerd://abc",
          "state": { "terminated": { "exitCode": 3, "containerID": "containerd://abc" } } },
        { "name": "b", "image": "x", "imageID": "", "ready": true, "restartCount": 0,
          "containerID": "containerd://def", "state": { "running": { "startedAt": "2026-01-01T00:00:00Z" } } },
        { "name": "c", "image": "x", "imageID": "", "ready": false, "restartCount": 0,
          "state": { "waiting": { "reason": "ContainerCreating" } } },
    ] }))
    .unwrap();
    let pod = with_history(ObservedPod::default(), Some(&status));
    let found: Vec<_> = pod
        .containers
        .iter()
        .map(|c| (c.name.as_str(), c.id.as_str(), c.attempt, c.exit().map(|exit| exit.code)))
        .collect();
    assert_eq!(found, [("a", "abc", 2, Some(3)), ("b", "def", 0, Some(137))]);
    assert_eq!(planned(&spec("Never", &[], &["a", "b"]), &pod), "finished");
    assert_eq!(planned(&spec("Always", &[], &["a", "b"]), &pod), "sandbox 0");

    let known = seen(true, vec![container("a", 2, running()), container("b", 1, running())]);
    assert_eq!(with_history(known.clone(), Some(&status)), known, "the runtime knows better");
}

#[test]
fn an_attempt_that_was_to_be_started_counts_as_run() {
    let started = [("a".to_owned(), 1), ("b".to_owned(), 0), ("c".to_owned(), 0)].into();
    let pod = seen(
        true,
        vec![
            container("a", 1, State::Created),
            container("b", 0, running()),
            container("d", 0, State::Created),
        ],
    );
    assert_eq!(uncertain(&pod, &started), ["a-1"]);
    let later = seen(true, vec![container("a", 2, State::Created)]);
    assert!(uncertain(&later, &started).is_empty(), "it was made and no more");

    let gone = seen(true, vec![container("b", 0, running())]);
    let known = with_starts(gone, &started);
    let ends: Vec<_> = known
        .containers
        .iter()
        .map(|c| (c.name.as_str(), c.attempt, c.exit().map(|exit| exit.code)))
        .collect();
    assert_eq!(ends, [("a", 1, Some(137)), ("b", 0, None), ("c", 0, Some(137))]);
    let names = ["a", "b", "c", "d"];
    assert_eq!(planned(&spec("Never", &[], &names), &known), "start d:0");
    assert_eq!(planned(&spec("Always", &[], &names), &known), "start a:2, start c:1, start d:0");
}

#[test]
fn only_the_last_ended_attempt_is_kept() {
    let pod = seen(
        true,
        vec![
            container("a", 3, running()),
            container("a", 2, exited(1, 0, 1)),
            container("a", 1, exited(1, 0, 1)),
            container("a", 0, exited(1, 0, 1)),
            container("b", 0, exited(0, 0, 1)),
        ],
    );
    assert_eq!(superseded(&pod), ["a-1", "a-0"]);
}

fn with_sidecars(policy: &str, inits: serde_json::Value) -> PodSpec {
    let mut spec = spec(policy, &[], &["a"]);
    spec.init_containers = serde_json::from_value(inits).unwrap();
    spec
}

fn sidecar(name: &str) -> serde_json::Value {
    json!({ "name": name, "restartPolicy": "Always" })
}

#[test]
fn sidecars_are_passed_when_they_have_started_and_kept_from_then_on() {
    let mut slow = sidecar("s");
    slow["startupProbe"] = json!({});
    let spec = with_sidecars("Always", json!([sidecar("l"), { "name": "i" }, slow, sidecar("t")]));
    let check = |containers, healths: &Healths, expected: &str| {
        let found = planned_with(&spec, &seen(true, containers), healths, &mut CrashLoops::default());
        assert_eq!(found, expected);
    };
    let none = Healths::default();
    let up = Healths([("s-0".to_owned(), Health { started: true, ..Health::default() })].into());
    let run = |name: &str| container(name, 0, running());
    let done = |name: &str| container(name, 0, exited(0, 0, 1));
    check(vec![], &none, "start l:0");
    check(vec![run("l")], &none, "start i:0");
    check(vec![run("l"), run("i")], &none, "");
    check(vec![run("l"), done("i")], &none, "start s:0");
    check(vec![done("l"), done("i")], &none, "start l:1, start s:0");
    check(vec![run("l"), done("i"), run("s")], &none, "");
    check(vec![run("l"), done("i"), run("s")], &up, "start t:0");
    check(vec![run("l"), done("i"), run("s"), done("t")], &up, "start t:1");
    check(vec![run("l"), done("i"), run("s"), run("t")], &up, "start a:0");
    // Begun, all sidecars are kept, whatever they say of their start.
    check(vec![done("l"), run("s"), done("t"), run("a")], &none, "start l:1, start t:1");
    check(vec![run("a")], &none, "start l:0, start s:0, start t:0");
}

#[test]
fn sidecars_end_with_the_others() {
    let spec = with_sidecars("Never", json!([sidecar("s")]));
    let over = vec![container("s", 0, running()), container("a", 0, exited(0, 0, 1))];
    assert_eq!(planned(&spec, &seen(true, over)), "finished");
    let failed = with_sidecars("Never", json!([sidecar("s"), { "name": "i" }]));
    let init = vec![container("s", 0, running()), container("i", 0, exited(1, 0, 1))];
    assert_eq!(planned(&failed, &seen(true, init)), "finished");
    let crashed = vec![container("s", 0, exited(1, 0, 1))];
    assert_eq!(planned(&spec, &seen(true, crashed)), "start s:1", "its own policy counts");
}

#[test]
fn what_fails_a_probe_is_killed_and_started_without_waiting() {
    let mut spec = spec("Always", &[], &["a"]);
    spec.containers[0].liveness_probe = Some(k8s_openapi::api::core::v1::Probe::default());
    let ill = |id: &str| {
        Healths([(id.to_owned(), Health { failed: Some(Kind::Liveness), ..Health::default() })].into())
    };
    let mut loops = CrashLoops::default();
    let before = seen(true, vec![container("a", 1, running()), container("a", 0, exited(137, 0, 10))]);
    assert_eq!(planned_with(&spec, &before, &ill("a-1"), &mut loops), "kill a-1");
    // A kubelet counts the wait from the end before: here it was long ago.
    let Plan::Run { kill, .. } = plan(&spec, &before, &ill("a-1"), &mut loops, at(100)) else { panic!() };
    loops.killing(&before, &kill[0]);
    let after = seen(true, vec![container("a", 1, exited(137, 50, 99))]);
    assert_eq!(planned_with(&spec, &after, &Healths::default(), &mut loops), "start a:2");
    assert_eq!(planned(&spec, &after), "a waits until 109", "as it would after a crash");

    let kill = |spec: &PodSpec| match plan(spec, &before, &ill("a-1"), &mut CrashLoops::default(), at(100)) {
        Plan::Run { kill, .. } => kill[0].message.clone(),
        other => panic!("{other:?}"),
    };
    assert_eq!(kill(&spec), "Container a failed liveness probe, will be restarted");
    spec.restart_policy = Some("Never".to_owned());
    assert_eq!(kill(&spec), "Container a failed liveness probe");
}

#[test]
fn what_we_ended_is_started_again_whatever_its_exit_code_unless_the_policy_is_never() {
    let before = seen(true, vec![container("a", 0, running())]);
    let ill =
        Healths([("a-0".to_owned(), Health { failed: Some(Kind::Liveness), ..Health::default() })].into());
    let check = |policy: &str, own: Option<&str>, expected: &str| {
        let mut spec = spec(policy, &[], &["a"]);
        spec.containers[0].restart_policy = own.map(str::to_owned);
        let mut loops = CrashLoops::default();
        let Plan::Run { kill, .. } = plan(&spec, &before, &ill, &mut loops, at(100)) else { panic!() };
        loops.killing(&before, &kill[0]);
        let after = seen(true, vec![container("a", 0, exited(0, 0, 1))]);
        let found = planned_with(&spec, &after, &Healths::default(), &mut loops);
        assert_eq!(found, expected, "{policy} {own:?}");
        // And the sandbox may be lost at the same time.
        let lost = seen(false, after.containers);
        let found = planned_with(&spec, &lost, &Healths::default(), &mut loops);
        assert_eq!(found, if expected == "finished" { "finished" } else { "sandbox 1" }, "{policy} {own:?}");
    };
    check("OnFailure", None, "start a:1");
    check("Never", None, "finished");
    check("Never", Some("OnFailure"), "start a:1");
    check("OnFailure", Some("Never"), "finished");

    // An earlier process had begun with it.
    let (spec, mut loops) = (spec("OnFailure", &[], &["a"]), CrashLoops::default());
    loops.remember([("a".to_owned(), 0)].into());
    assert_eq!(planned_with(&spec, &before, &Healths::default(), &mut loops), "kill a-0");
    let after = seen(true, vec![container("a", 0, exited(0, 0, 1))]);
    assert_eq!(planned_with(&spec, &after, &Healths::default(), &mut loops), "start a:1");
    let next = seen(true, vec![container("a", 1, exited(0, 2, 3))]);
    assert_eq!(planned_with(&spec, &next, &Healths::default(), &mut loops), "finished");
}

#[test]
fn a_container_whose_image_changes_is_replaced_whatever_the_policy() {
    let of = |image: &str, mut container: observed::Container| {
        container.asked_image = Some(image.to_owned());
        container
    };
    let wants = |policy: &str| {
        let mut spec = with_sidecars(policy, json!([sidecar("s"), { "name": "i", "image": "app:2" }]));
        spec.init_containers.as_mut().unwrap()[0].image = Some("app:2".to_owned());
        spec.containers[0].image = Some("app:2".to_owned());
        spec
    };
    let both = |s: &str, a: &str| {
        seen(true, vec![of(s, container("s", 0, running())), of(a, container("a", 0, running()))])
    };
    let none = Healths::default();
    for policy in ["Always", "OnFailure", "Never"] {
        let (spec, mut loops) = (wants(policy), CrashLoops::default());
        assert_eq!(planned(&spec, &both("app:2", "app:2")), "");
        assert_eq!(planned(&spec, &both("app:1", "app:2")), "kill s-0");
        let before = both("app:2", "app:1");
        let Plan::Run { kill, .. } = plan(&spec, &before, &none, &mut loops, at(100)) else { panic!() };
        assert_eq!(kill[0].message, "Container a definition changed, will be restarted");
        loops.killing(&before, &kill[0]);
        let s = of("app:2", container("s", 0, running()));
        let after = seen(true, vec![s, of("app:1", container("a", 0, exited(0, 0, 1)))]);
        assert_eq!(planned_with(&spec, &after, &none, &mut loops), "start a:1", "{policy}");
    }
    let mut unknown = both("app:2", "app:2");
    unknown.containers.iter_mut().for_each(|container| container.asked_image = None);
    assert_eq!(planned(&wants("Always"), &unknown), "", "it was made by an earlier version");
    // Init containers end by themselves.
    let s = || of("app:2", container("s", 0, running()));
    let init = seen(true, vec![s(), of("app:1", container("i", 0, running()))]);
    assert_eq!(planned(&wants("Always"), &init), "");

    // A program that is mended does not pay for the one that crashed.
    let mut loops = CrashLoops::default();
    let crashed = |image| seen(true, vec![s(), of(image, container("a", 4, exited(1, 90, 95)))]);
    let found = planned_with(&wants("Always"), &crashed("app:2"), &none, &mut loops);
    assert_eq!(found, "a waits until 175");
    assert_eq!(planned_with(&wants("Always"), &crashed("app:1"), &none, &mut loops), "start a:5");
    let again = seen(true, vec![s(), of("app:2", container("a", 5, exited(1, 98, 99)))]);
    assert_eq!(planned_with(&wants("Always"), &again, &none, &mut loops), "start a:6");
    let made = seen(true, vec![s(), of("app:1", container("a", 0, State::Created))]);
    assert_eq!(planned(&wants("Always"), &made), "start a:1");
    // What has ended for good stays so.
    let over = seen(true, vec![s(), of("app:1", container("a", 0, exited(0, 0, 1)))]);
    assert_eq!(planned(&wants("OnFailure"), &over), "finished");
}

#[test]
fn what_may_run_is_ended_before_the_next_one_starts() {
    let all = with_sidecars("OnFailure", json!([sidecar("s"), { "name": "i" }]));
    let lost = |name: &str| container(name, 0, State::Unknown);
    let message = |containers, expected: &str| {
        let plan =
            plan(&all, &seen(true, containers), &Healths::default(), &mut CrashLoops::default(), at(100));
        let Plan::Run { kill, start, .. } = plan else { panic!("{plan:?}") };
        assert_eq!((kill.len(), start.len(), kill[0].message.as_str()), (1, 0, expected));
    };
    let s = || container("s", 0, running());
    message(vec![s(), lost("a")], "Container is in \"unknown\" state, try killing it before restart");
    let init = "Init container is in \"unknown\" state, try killing it before restart";
    message(vec![lost("s"), container("a", 0, running())], init);
    message(vec![s(), lost("i")], init);

    let check = |policy: &str, state: State, expected: &str| {
        let spec = spec(policy, &[], &["a"]);
        let before = seen(true, vec![lost("a")]);
        let mut loops = CrashLoops::default();
        let Plan::Run { kill, .. } = plan(&spec, &before, &Healths::default(), &mut loops, at(100)) else {
            panic!()
        };
        loops.killing(&before, &kill[0]);
        assert_eq!(planned_with(&spec, &before, &Healths::default(), &mut loops), "kill a-0", "it failed");
        loops.killed(&kill[0]);
        let after = seen(true, vec![container("a", 0, state)]);
        assert_eq!(planned_with(&spec, &after, &Healths::default(), &mut loops), expected, "{policy}");
    };
    check("OnFailure", exited(255, 0, 1), "start a:1");
    check("OnFailure", exited(0, 0, 1), "finished");
    check("Always", State::Unknown, "start a:1");
    check("Never", State::Unknown, "finished");
}

#[test]
fn sidecars_end_last_and_in_reverse() {
    let spec = with_sidecars("Always", json!([sidecar("s"), { "name": "i" }, sidecar("t"), sidecar("u")]));
    let set = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
    let order = ends_after(&spec, &set(&["a", "s", "t"]));
    assert_eq!(order, [("s".to_owned(), set(&["a", "t"])), ("t".to_owned(), set(&["a"]))].into());
}

proptest::proptest! {
    /// Nothing is started twice, and nothing that runs once is started again.
    #[test]
    fn no_history_starts_what_must_not_start(codes in proptest::collection::vec(0..3_i32, 0..5), ready in proptest::bool::ANY) {
        let attempts = codes.iter().zip(0..).map(|(code, n)| container("a", n, exited(*code, 0, 1))).collect();
        let pod = seen(ready, attempts);
        let plan = plan(&spec("Never", &[], &["a"]), &pod, &Healths::default(), &mut CrashLoops::default(), at(100));
        proptest::prop_assert_eq!(plan == Plan::Finished, !codes.is_empty());
    }

    /// Whatever runs and whatever probes say: everybody gets a turn to end, so nobody waits for ever.
    #[test]
    fn the_order_of_ending_has_no_circle(kinds in proptest::collection::vec(proptest::bool::ANY, 0..6), runs in proptest::collection::vec(proptest::bool::ANY, 8)) {
        let inits: Vec<_> = kinds.iter().enumerate().map(|(n, is_sidecar)| {
            if *is_sidecar { sidecar(&format!("i{n}")) } else { json!({ "name": format!("i{n}") }) }
        }).collect();
        let spec = with_sidecars("Always", json!(inits));
        let names = (0..kinds.len()).map(|n| format!("i{n}")).chain(["a".to_owned()]);
        let running: BTreeSet<String> = names.zip(&runs).filter(|(_, runs)| **runs).map(|(name, _)| name).collect();
        let order = ends_after(&spec, &running);
        let mut ended = BTreeSet::new();
        for _ in 0..=running.len() {
            for name in &running {
                if order.get(name).is_none_or(|others| others.is_subset(&ended)) {
                    ended.insert(name.clone());
                }
            }
        }
        proptest::prop_assert_eq!(ended, running);
    }

    /// From any state of a pod with sidecars: no container is started while it runs or while one before it has not had its turn.
    #[test]
    fn nothing_overtakes(states in proptest::collection::vec(0..4_u8, 4), started in proptest::bool::ANY) {
        let mut slow = sidecar("s");
        slow["startupProbe"] = json!({});
        let spec = with_sidecars("Always", json!([{ "name": "i" }, slow, sidecar("t")]));
        let names = ["i", "s", "t", "a"];
        let containers: Vec<_> = names.iter().zip(&states).filter_map(|(name, state)| match state {
            0 => None,
            1 => Some(container(name, 0, running())),
            2 => Some(container(name, 0, exited(0, 0, 1))),
            _ => Some(container(name, 0, State::Created)),
        }).collect();
        let healths = Healths([("s-0".to_owned(), Health { started, ..Health::default() })].into());
        let pod = seen(true, containers.clone());
        if let Plan::Run { start, .. } = plan(&spec, &pod, &healths, &mut CrashLoops::default(), at(100)) {
            for start in &start {
                proptest::prop_assert!(pod.container(&start.name).is_none_or(|last| !last.is_running()), "{} runs", start.name);
            }
            let begins_main = start.iter().any(|start| start.name == "a") && pod.container("a").is_none();
            if begins_main {
                let t = pod.container("t").is_some_and(observed::Container::is_running);
                proptest::prop_assert!(t, "the last sidecar does not run yet");
            }
        }
    }
}

#[test]
fn a_pod_whose_sandbox_was_lost_before_all_had_run_is_lost_and_others_are_not() {
    let spec = spec("Never", &["i"], &["a", "b"]);
    let check = |containers: Vec<observed::Container>, expected: bool| {
        let seen = seen(false, containers);
        assert_eq!(is_lost(&spec, &seen), expected, "{seen:?}");
    };
    let ended = |name: &str, code: i32| container(name, 0, exited(code, 1, 2));
    let after_init = vec![ended("i", 0)];
    assert_eq!(planned(&spec, &seen(false, after_init.clone())), "finished");
    check(after_init, true);
    check(vec![ended("i", 0), ended("a", 0)], true);
    check(vec![ended("i", 0), ended("a", 0), container("b", 0, State::Created)], true);
    check(vec![ended("i", 0), ended("a", 0), ended("b", 3)], false);
    check(vec![ended("i", 4)], false);
}
