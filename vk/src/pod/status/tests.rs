#![allow(clippy::needless_pass_by_value)] // `json!` reads best where it is used.

use serde_json::json;

use super::*;
use crate::provider::observed::{Exit, Sandbox};

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_767_225_600 + second).unwrap()
}

fn pod(spec: serde_json::Value, status: serde_json::Value) -> Pod {
    serde_json::from_value(json!({
        "metadata": { "name": "p", "namespace": "ns", "uid": "u", "generation": 1 },
        "spec": spec, "status": status,
    }))
    .unwrap()
}

fn once() -> serde_json::Value {
    json!({ "restartPolicy": "Never", "containers": [{ "name": "a", "image": "busybox" }] })
}

fn seen(ready: bool, containers: Vec<observed::Container>) -> ObservedPod {
    let ips = if ready { vec!["10.1.0.9".parse().unwrap()] } else { Vec::new() };
    let sandbox =
        Sandbox { id: "s".into(), attempt: 0, ready, created_at: at(0), ips, runtime_handler: String::new() };
    ObservedPod { sandboxes: vec![sandbox], containers }
}

fn container(name: &str, attempt: u32, state: State) -> observed::Container {
    observed::Container {
        id: format!("{name}{attempt}"),
        sandbox_id: "s".into(),
        name: name.into(),
        attempt,
        state,
        image: "docker.io/library/busybox:latest".into(),
        image_id: "sha256:1".into(),
        asked_image: None,
        user: None,
        resources: None,
    }
}

fn exited(code: i32) -> State {
    State::Exited(Exit {
        code,
        reason: (if code == 0 { "Completed" } else { "Error" }).into(),
        message: "bye".into(),
        started_at: Some(at(1)),
        finished_at: Some(at(2)),
    })
}

fn running() -> State {
    State::Running { started_at: at(1) }
}

struct Case<'a> {
    pod: &'a Pod,
    seen: ObservedPod,
    waiting: &'a [(&'a str, &'a str)],
    loops: CrashLoops,
    healths: Healths,
    resize: Resize,
    ended: bool,
    verdict: Option<Verdict>,
}

impl<'a> Case<'a> {
    fn new(pod: &'a Pod, seen: ObservedPod) -> Self {
        let (loops, healths) = (CrashLoops::default(), Healths::default());
        let resize = Resize::default();
        Self { pod, seen, waiting: &[], loops, healths, resize, ended: false, verdict: None }
    }

    fn build(&self) -> PodStatus {
        let waiting = self.waiting.iter().map(|(name, reason)| {
            ((*name).to_owned(), Waiting { reason: (*reason).to_owned(), message: "why".to_owned() })
        });
        build(&Facts {
            pod: self.pod,
            seen: &self.seen,
            waiting: &waiting.collect(),
            loops: &self.loops,
            healths: Some(&self.healths),
            resize: &self.resize,
            memory_requests: &BTreeMap::new(),
            host_ips: &["10.0.0.1".parse().unwrap()],
            scheme: "containerd",
            ended: self.ended,
            deep_read_only: false,
            verdict: self.verdict.as_ref(),
            now: at(10),
        })
    }

    /// Phase, containers and conditions in a few words.
    fn brief(&self) -> String {
        let status = self.build();
        let word = |state: &Option<ContainerState>| {
            let Some(state) = state else { return "none".to_owned() };
            match (&state.waiting, &state.running, &state.terminated) {
                (Some(waiting), ..) => waiting.reason.clone().unwrap_or_else(|| "waiting".to_owned()),
                (_, Some(_), _) => "running".to_owned(),
                (.., Some(ended)) => {
                    format!("{}({})", ended.reason.clone().unwrap_or_default(), ended.exit_code)
                }
                _ => String::new(),
            }
        };
        let containers = status.init_container_statuses.iter().chain(&status.container_statuses).flatten();
        let containers = containers
            .map(|c| {
                let last = word(&c.last_state);
                let last = if last.is_empty() { String::new() } else { format!(" after {last}") };
                format!("{}:{} {}{last}", c.name, c.restart_count, word(&c.state))
            })
            .collect::<Vec<_>>();
        let truths = status.conditions.iter().flatten().filter(|condition| condition.status == "True");
        let truths = truths.map(|condition| condition.type_.as_str()).collect::<Vec<_>>();
        format!("{} | {} | {}", status.phase.unwrap_or_default(), containers.join(", "), truths.join(" "))
    }
}

#[test]
fn a_running_pod_as_a_kubelet_writes_it() {
    let mut spec = once();
    spec["containers"][0]["resources"] = json!({ "requests": { "cpu": "100m" } });
    spec["containers"][0]["volumeMounts"] = json!([{ "name": "v", "mountPath": "/v", "readOnly": true }]);
    let status = json!({ "phase": "Pending", "qosClass": "Burstable", "conditions": [
        { "type": "PodScheduled", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z" },
        { "type": "example.com/gate", "status": "False" },
    ] });
    let pod = pod(spec, status);
    let mut running = container("a", 0, running());
    running.user = Some(observed::User { uid: 0, gid: 0, supplemental_groups: vec![0, 10] });
    let status = Case::new(&pod, seen(true, vec![running])).build();
    insta::assert_snapshot!(serde_json::to_string_pretty(&status).unwrap());
}

#[test]
fn an_ended_pod_as_a_kubelet_writes_it() {
    let status = json!({ "phase": "Running", "startTime": "2026-01-01T00:00:00Z", "podIP": "10.1.0.9",
        "podIPs": [{ "ip": "10.1.0.9" }], "qosClass": "BestEffort" });
    let pod = pod(once(), status);
    let status = Case::new(&pod, seen(false, vec![container("a", 0, exited(3))])).build();
    insta::assert_snapshot!(serde_json::to_string_pretty(&status).unwrap());
}

#[test]
fn a_pod_goes_through_its_phases() {
    let pod = pod(once(), json!({}));
    let check = |seen: ObservedPod, expected: &str| assert_eq!(Case::new(&pod, seen).brief(), expected);
    check(ObservedPod::default(), "Pending | a:0 ContainerCreating | Initialized PodScheduled");
    check(
        seen(true, vec![]),
        "Pending | a:0 ContainerCreating | PodReadyToStartContainers Initialized PodScheduled",
    );
    check(
        seen(true, vec![container("a", 0, running())]),
        "Running | a:0 running | PodReadyToStartContainers Initialized Ready ContainersReady PodScheduled",
    );
    check(
        seen(true, vec![container("a", 0, exited(0))]),
        "Succeeded | a:0 Completed(0) | Initialized PodScheduled",
    );
    check(
        seen(false, vec![container("a", 0, exited(1))]),
        "Failed | a:0 Error(1) | Initialized PodScheduled",
    );
}

#[test]
fn what_we_ended_to_have_it_started_again_is_not_told_as_the_pods_end() {
    let spec = json!({ "restartPolicy": "OnFailure", "containers": [{ "name": "a" }] });
    let pod = pod(spec, json!({ "phase": "Running" }));
    let ended = || seen(true, vec![container("a", 0, exited(0))]);
    let check = |seen, loops: &CrashLoops, expected: &str| {
        let case = Case { loops: loops.clone(), ..Case::new(&pod, seen) };
        assert_eq!(case.brief().rsplit_once(" |").unwrap().0, expected);
    };
    let none = CrashLoops::default();
    check(ended(), &none, "Succeeded | a:0 Completed(0)");
    let mut loops = none.clone();
    let (name, id, message) = ("a".to_owned(), "a0".to_owned(), String::new());
    let kill = lifecycle::Kill { name, id, message, failed: None, returns: true };
    loops.killing(&ended(), &kill);
    check(ended(), &loops, "Running | a:0 ContainerCreating after Completed(0)");
    let made = vec![container("a", 1, State::Created), container("a", 0, exited(0))];
    check(seen(true, made), &none, "Running | a:1 waiting after Completed(0)");
    let again = vec![container("a", 1, exited(0)), container("a", 0, exited(0))];
    check(seen(true, again), &loops, "Succeeded | a:1 Completed(0) after Completed(0)");
}

#[test]
fn init_containers_hold_the_others_back() {
    let pod = pod(
        json!({ "restartPolicy": "Never", "initContainers": [{ "name": "i" }], "containers": [{ "name": "a" }] }),
        json!({}),
    );
    let check =
        |containers, expected: &str| assert_eq!(Case::new(&pod, seen(true, containers)).brief(), expected);
    check(
        vec![container("i", 0, running())],
        "Pending | i:0 running, a:0 PodInitializing | PodReadyToStartContainers PodScheduled",
    );
    check(
        vec![container("i", 0, exited(0))],
        "Pending | i:0 Completed(0), a:0 PodInitializing | PodReadyToStartContainers Initialized PodScheduled",
    );
    check(vec![container("i", 0, exited(1))], "Failed | i:0 Error(1), a:0 PodInitializing | PodScheduled");
}

fn health(id: &str, started: bool, ready: bool) -> Healths {
    Healths([(id.to_owned(), crate::pod::probe::Health { started, ready, failed: None })].into())
}

#[test]
fn probes_decide_what_is_started_and_ready() {
    let spec = json!({ "containers": [{ "name": "a", "startupProbe": {}, "readinessProbe": {} }] });
    let pod = pod(spec, json!({}));
    let mut case = Case::new(&pod, seen(true, vec![container("a", 0, running())]));
    let mut check = |healths: Option<Healths>, started: bool, ready: bool| {
        case.healths = healths.unwrap_or_default();
        let status = case.build();
        let main = &status.container_statuses.as_ref().unwrap()[0];
        assert_eq!((main.started, main.ready), (Some(started), ready));
        assert_eq!(status.phase.as_deref(), Some("Running"));
        let conditions = status.conditions.unwrap();
        let holds = conditions.iter().find(|condition| condition.type_ == "Ready").unwrap();
        assert_eq!(holds.status == "True", ready, "{holds:?}");
        if !ready {
            assert_eq!(holds.message.as_deref(), Some("containers with unready status: [a]"));
        }
    };
    check(None, false, false);
    check(Some(health("a0", false, true)), false, false);
    check(Some(health("a0", true, false)), true, false);
    check(Some(health("a0", true, true)), true, true);
    check(Some(health("another run", true, true)), false, false);
}

#[test]
fn sidecars_count_as_a_kubelet_counts_them() {
    let inits = json!([{ "name": "s", "restartPolicy": "Always", "startupProbe": {} }, { "name": "i" }]);
    let pod = pod(
        json!({ "restartPolicy": "Never", "initContainers": inits, "containers": [{ "name": "a" }] }),
        json!({}),
    );
    let check = |containers, started: bool, expected: &str| {
        let healths = health("s0", started, started);
        let case = Case { healths, ..Case::new(&pod, seen(true, containers)) };
        assert_eq!(case.brief(), expected);
    };
    let sidecar = || container("s", 0, running());
    let done = || container("i", 0, exited(0));
    let waits = "a:0 PodInitializing | PodReadyToStartContainers PodScheduled";
    check(vec![sidecar()], false, &format!("Pending | s:0 running, i:0 PodInitializing, {waits}"));
    check(
        vec![sidecar(), container("i", 0, running())],
        true,
        &format!("Pending | s:0 running, i:0 running, {waits}"),
    );
    check(
        vec![sidecar(), done(), container("a", 0, running())],
        true,
        "Running | s:0 running, i:0 Completed(0), a:0 running | PodReadyToStartContainers Initialized Ready ContainersReady PodScheduled",
    );
    // A sidecar that is not ready makes the pod unready, and never pending again.
    check(
        vec![sidecar(), done(), container("a", 0, running())],
        false,
        "Running | s:0 running, i:0 Completed(0), a:0 running | PodReadyToStartContainers Initialized PodScheduled",
    );
    check(
        vec![sidecar(), done(), container("a", 0, exited(0))],
        true,
        "Running | s:0 running, i:0 Completed(0), a:0 Completed(0) | PodReadyToStartContainers Initialized PodScheduled",
    );
    check(
        vec![container("s", 0, exited(143)), done(), container("a", 0, exited(0))],
        false,
        "Succeeded | s:0 Error(143), i:0 Completed(0), a:0 Completed(0) | Initialized PodScheduled",
    );
    // A terminal phase is told when nothing runs any more.
    check(
        vec![sidecar(), container("i", 0, exited(1))],
        true,
        &format!("Pending | s:0 running, i:0 Error(1), {waits}"),
    );
}

#[test]
fn a_restarting_container_shows_why_it_waits_and_how_it_ended() {
    let pod = pod(json!({ "restartPolicy": "Always", "containers": [{ "name": "a" }] }), json!({}));
    let crashed = || vec![container("a", 1, exited(1)), container("a", 0, exited(2))];
    let mut case = Case::new(&pod, seen(true, crashed()));
    assert!(case.brief().starts_with("Running | a:1 Error(1) after Error(2) |"));
    case.waiting = &[("a", "CrashLoopBackOff")];
    assert!(case.brief().starts_with("Running | a:1 CrashLoopBackOff after Error(1) |"), "{}", case.brief());
    let mut again = crashed();
    again.insert(0, container("a", 2, running()));
    case.seen = seen(true, again);
    assert!(case.brief().starts_with("Running | a:2 running after Error(1) |"), "{}", case.brief());
}

#[test]
fn why_a_container_waits_does_not_hide_that_it_is_done() {
    let pod = pod(once(), json!({}));
    let mut case = Case::new(&pod, seen(true, vec![container("a", 0, exited(128))]));
    case.waiting = &[("a", "RunContainerError")];
    assert!(case.brief().starts_with("Failed | a:0 Error(128) |"), "{}", case.brief());
    case.seen = seen(true, vec![]);
    case.waiting = &[("a", "ErrImagePull")];
    assert!(case.brief().starts_with("Pending | a:0 ErrImagePull |"), "{}", case.brief());
}

#[test]
fn a_deleted_pod_ends_in_a_terminal_phase() {
    let pod = pod(
        json!({ "restartPolicy": "Always", "containers": [{ "name": "a" }, { "name": "b" }] }),
        json!({}),
    );
    let check = |containers, expected: &str| {
        let case = Case { ended: true, ..Case::new(&pod, seen(false, containers)) };
        assert_eq!(case.brief(), expected);
    };
    let both = vec![container("a", 0, exited(0)), container("b", 0, exited(0))];
    check(both, "Succeeded | a:0 Completed(0), b:0 Completed(0) | Initialized PodScheduled");
    check(
        vec![container("a", 0, exited(137))],
        "Failed | a:0 Error(137), b:0 ContainerStatusUnknown(137) | Initialized PodScheduled",
    );
}

#[test]
fn what_never_ran_of_a_pod_that_has_ended_has_failed_as_far_as_the_pod_got() {
    let inits = json!([{ "name": "i" }, { "name": "j" }]);
    let pod = pod(json!({ "initContainers": inits, "containers": [{ "name": "a" }] }), json!({}));
    let check = |containers, expected: &str| {
        let case = Case { ended: true, ..Case::new(&pod, seen(false, containers)) };
        assert_eq!(case.brief().rsplit_once(" |").unwrap().0, expected);
    };
    let done = |name: &str| container(name, 0, exited(0));
    let waits = "a:0 PodInitializing";
    check(vec![], &format!("Failed | i:0 ContainerStatusUnknown(137), j:0 PodInitializing, {waits}"));
    check(vec![done("i")], &format!("Failed | i:0 Completed(0), j:0 PodInitializing, {waits}"));
    check(
        vec![done("i"), done("j")],
        "Failed | i:0 Completed(0), j:0 Completed(0), a:0 ContainerStatusUnknown(137)",
    );
}

#[test]
fn how_a_resize_stands_is_told_until_the_pod_has_ended() {
    let pod = pod(once(), json!({ "phase": "Running" }));
    let check = |ready, state: State, ended, expected: bool| {
        let resize = Resize { pending: Some(Note::default()), in_progress: Some(Note::default()) };
        let case = Case { resize, ended, ..Case::new(&pod, seen(ready, vec![container("a", 0, state)])) };
        let conditions = case.build().conditions.unwrap();
        assert_eq!(conditions.iter().any(|condition| condition.type_.contains("Resize")), expected);
    };
    check(true, running(), false, true);
    check(true, exited(0), false, false);
    check(false, exited(1), true, false);
}

#[test]
fn a_condemned_pod_is_not_ready_any_more_and_fails_when_nothing_runs() {
    let pod = pod(once(), json!({ "phase": "Running" }));
    let verdict = Some(Verdict { reason: "Evicted".into(), message: "too much".into() });
    let case = Case { verdict, ..Case::new(&pod, seen(true, vec![container("a", 0, running())])) };
    let status = case.build();
    assert_eq!((status.phase.as_deref(), status.reason), (Some("Running"), None));
    let ready = status.conditions.into_iter().flatten().find(|condition| condition.type_ == "Ready").unwrap();
    assert_eq!((&*ready.status, ready.reason.as_deref()), ("False", Some("PodFailed")));
}

#[test]
fn a_condemned_or_refused_pod_says_why_and_stays_failed() {
    let running = pod(once(), json!({ "phase": "Running" }));
    let verdict = Verdict { reason: "DeadlineExceeded".into(), message: "too long".into() };
    let case = Case {
        ended: true,
        verdict: Some(verdict),
        ..Case::new(&running, seen(false, vec![container("a", 0, exited(0))]))
    };
    let status = case.build();
    assert_eq!(status.phase.as_deref(), Some("Failed"));
    assert_eq!(status.reason.as_deref(), Some("DeadlineExceeded"));

    let failed =
        pod(once(), json!({ "phase": "Failed", "reason": "DeadlineExceeded", "message": "too long" }));
    let status = Case::new(&failed, seen(false, vec![container("a", 0, exited(0))])).build();
    assert_eq!(status.phase.as_deref(), Some("Failed"), "a terminal phase is final");
    assert_eq!(status.reason.as_deref(), Some("DeadlineExceeded"));
}

#[test]
fn an_end_that_was_told_stands_whatever_the_runtime_says_later() {
    let told = |code: i32| json!({ "terminated": { "exitCode": code, "reason": "Told", "containerID": "containerd://a0" } });
    let check = |count: i32, state: serde_json::Value, last: serde_json::Value, seen, expected: &str| {
        let status = json!({ "name": "a", "image": "busybox", "imageID": "", "ready": false, "restartCount": count,
            "state": state, "lastState": last });
        let pod = pod(once(), json!({ "phase": "Running", "containerStatuses": [status] }));
        let status = Case::new(&pod, seen).build().container_statuses.unwrap().remove(0);
        let ends = [status.state, status.last_state].map(|state| {
            let end = state.unwrap_or_default().terminated;
            end.map_or_else(
                || "-".to_owned(),
                |end| format!("{}({})", end.reason.unwrap_or_default(), end.exit_code),
            )
        });
        assert_eq!(ends.join(" "), expected);
    };
    let ended = || container("a", 0, exited(128));
    check(0, told(137), json!({}), seen(true, vec![ended()]), "Told(137) -");
    let next = || seen(true, vec![container("a", 1, running()), ended()]);
    check(0, told(137), json!({}), next(), "- Told(137)");
    check(0, json!({ "waiting": {} }), told(137), next(), "- Told(137)");
    check(1, json!({ "running": {} }), told(137), next(), "- Told(137)");
    let another = seen(true, vec![container("a", 1, exited(3)), ended()]);
    check(0, told(137), json!({}), another, "Error(3) Told(137)");
}

#[test]
fn the_last_state_is_that_of_the_attempt_before_whoever_knows_it() {
    let check = |old: serde_json::Value, before: &[u32], expected: &str| {
        let pod = pod(once(), json!({ "phase": "Running", "containerStatuses": [old] }));
        let left = before.iter().map(|attempt| container("a", *attempt, exited(91)));
        let left: Vec<_> = left.collect();
        for state in [running(), exited(7)] {
            let seen = seen(true, [container("a", 2, state)].into_iter().chain(left.clone()).collect());
            let status = Case::new(&pod, seen).build().container_statuses.unwrap().remove(0);
            let end = status.last_state.unwrap().terminated;
            let end = end.map_or_else(|| "-".to_owned(), |end| format!("{}", end.exit_code));
            assert_eq!(end, expected, "{before:?}");
        }
    };
    let status = |count: i32, state: &serde_json::Value, last: &serde_json::Value| {
        json!({ "name": "a", "image": "busybox", "imageID": "", "ready": false, "restartCount": count,
            "state": state, "lastState": last })
    };
    let ended = |code: i32| json!({ "terminated": { "exitCode": code } });
    let (runs, waits, none) = (json!({ "running": {} }), json!({ "waiting": {} }), json!({}));
    check(status(1, &runs, &none), &[1, 0], "91");
    check(status(1, &ended(137), &ended(91)), &[0], "137");
    check(status(1, &waits, &ended(137)), &[0], "137");
    check(status(2, &runs, &ended(137)), &[0], "137");
    check(status(1, &ended(137), &ended(91)), &[], "137");
    check(status(0, &ended(3), &none), &[0], "91");
    check(status(2, &waits, &ended(7)), &[], "-");
}

#[test]
fn readiness_gates_are_for_others_to_open() {
    let mut spec = once();
    spec["readinessGates"] = json!([{ "conditionType": "example.com/gate" }]);
    let ready = |gate: &str| {
        let conditions = json!([{ "type": "example.com/gate", "status": gate }]);
        let pod = pod(spec.clone(), json!({ "conditions": conditions }));
        Case::new(&pod, seen(true, vec![container("a", 0, running())])).brief()
    };
    assert!(!ready("False").contains(" Ready"), "{}", ready("False"));
    assert!(ready("True").contains(" Ready"), "{}", ready("True"));
}

#[test]
fn transition_times_move_only_with_the_status() {
    let old = json!({ "type": "Ready", "status": "False", "lastTransitionTime": "2025-01-01T00:00:00Z" });
    let pod = pod(once(), json!({ "conditions": [old] }));
    let time = |seen: ObservedPod| {
        let status = Case::new(&pod, seen).build();
        let ready =
            status.conditions.into_iter().flatten().find(|condition| condition.type_ == "Ready").unwrap();
        ready.last_transition_time.unwrap().0.to_string()
    };
    assert_eq!(time(seen(true, vec![])), "2025-01-01T00:00:00Z");
    assert_eq!(time(seen(true, vec![container("a", 0, running())])), at(10).to_string());
}

#[test]
fn a_rejected_pod_fails_without_containers() {
    let pod = pod(once(), json!({ "phase": "Pending", "qosClass": "BestEffort" }));
    let verdict = Verdict { reason: "PodFeatureUnsupported".into(), message: "Pod was rejected: x".into() };
    let status = rejected(&pod, &verdict, at(3));
    let found = serde_json::to_value(status).unwrap();
    let expected = json!({ "phase": "Failed", "reason": "PodFeatureUnsupported", "message": "Pod was rejected: x",
        "qosClass": "BestEffort", "startTime": "2026-01-01T00:00:03Z", "observedGeneration": 1 });
    assert_eq!(found, expected);
}

#[test]
fn an_init_container_that_runs_again_in_a_new_sandbox_stays_ended_where_the_api_server_wants_it_so() {
    let check = |policy: &str, code: i32, expected: &str| {
        let spec = json!({
            "restartPolicy": policy, "initContainers": [{ "name": "i", "image": "busybox" }],
            "containers": [{ "name": "a", "image": "busybox" }],
        });
        let ended = json!({
            "phase": "Running",
            "initContainerStatuses": [{ "name": "i", "image": "busybox", "imageID": "", "ready": true, "restartCount": 0,
                "state": { "terminated": { "exitCode": code, "reason": "Completed" } } }],
        });
        let pod = pod(spec, ended);
        let status = Case::new(&pod, seen(true, vec![container("i", 1, running())])).build();
        let init = &status.init_container_statuses.unwrap()[0];
        let state = init.state.clone().unwrap();
        let word = if state.running.is_some() { "runs" } else { "ended" };
        assert_eq!(format!("{word} {}", init.restart_count), expected, "{policy} {code}");
    };
    check("OnFailure", 0, "ended 0");
    check("Always", 0, "runs 1");
    check("OnFailure", 1, "runs 1");
}

#[test]
fn messages_of_many_containers_are_cut() {
    let pod = pod(
        json!({ "containers": [{ "name": "a" }, { "name": "b" }, { "name": "c" }, { "name": "d" }] }),
        json!({}),
    );
    let mut last = container("a", 0, exited(1));
    if let State::Exited(exit) = &mut last.state {
        exit.message = "x".repeat(4096);
    }
    let status = Case::new(&pod, seen(true, vec![last])).build();
    let end = status.container_statuses.unwrap().remove(0).state.unwrap().terminated.unwrap();
    assert_eq!(end.message.unwrap().len(), 3072);
}
