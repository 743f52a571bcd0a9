use serde_json::{Value, json};

use super::*;

fn pod(status: &Value) -> Pod {
    serde_json::from_value(json!({
        "metadata": { "name": "web", "namespace": "default" },
        "spec": {
            "containers": [{ "name": "main" }],
            "initContainers": [{ "name": "setup" }],
            "ephemeralContainers": [{ "name": "debugger" }],
        },
        "status": status,
    }))
    .unwrap()
}

fn id(state: &Value, last: &Value, previous: bool) -> Result<String, String> {
    let status = json!({ "containerStatuses": [{
        "name": "main", "image": "", "imageID": "", "ready": false, "restartCount": 0,
        "containerID": "containerd://now", "state": state, "lastState": last,
    }] });
    container_id(&pod(&status), "main", previous)
        .map_err(|(status, message)| format!("{} {message}", status.as_u16()))
}

#[test]
fn the_attempt_that_is_meant() {
    let running = json!({ "running": {} });
    let ended = |id: &str| json!({ "terminated": { "exitCode": 1, "containerID": id } });
    let waiting = |reason: &str| json!({ "waiting": { "reason": reason } });
    let none = json!({});
    let ok = |id: &str| Ok(id.to_owned());
    assert_eq!(id(&running, &none, false), ok("now"));
    assert_eq!(id(&running, &ended("containerd://before"), true), ok("before"));
    assert_eq!(id(&ended("containerd://ended"), &none, false), ok("ended"));
    assert_eq!(id(&waiting("CrashLoopBackOff"), &ended("containerd://before"), false), ok("before"));
    assert_eq!(
        id(&ended(""), &ended("containerd://before"), false),
        ok("before"),
        "the newest never started"
    );
}

#[test]
fn refusals_are_in_the_kubelet_s_words() {
    let waiting = |reason: &str| json!({ "waiting": { "reason": reason } });
    let none = json!({});
    let err = |message: &str| Err(message.to_owned());
    assert_eq!(
        id(&waiting("ContainerCreating"), &none, false),
        err("400 container \"main\" in pod \"web\" is waiting to start: ContainerCreating")
    );
    assert_eq!(
        id(&waiting("ErrImagePull"), &none, false),
        err("400 container \"main\" in pod \"web\" is waiting to start: image can't be pulled")
    );
    assert_eq!(
        id(&json!({ "running": {} }), &none, true),
        err("400 previous terminated container \"main\" in pod \"web\" not found")
    );
    assert_eq!(
        id(&json!({ "terminated": { "exitCode": 128 } }), &none, false),
        err("400 container \"main\" in pod \"web\" is terminated")
    );
    let other = container_id(&pod(&none), "other", false).unwrap_err();
    assert_eq!(other, (StatusCode::NOT_FOUND, "container \"other\" not found in pod \"web\"".to_owned()));
    for known in ["main", "setup", "debugger"] {
        let early = container_id(&pod(&none), known, false).unwrap_err();
        assert_eq!(early.0, StatusCode::BAD_REQUEST);
        assert_eq!(early.1, format!("container {known:?} in pod \"web\" is not available"));
    }
}

fn query(text: &str) -> Result<(LogOptions, bool), u16> {
    let uri = format!("/?{text}").parse::<http::Uri>().unwrap();
    let Query::<Vec<_>>(query) = Query::try_from_uri(&uri).unwrap();
    parse(&query, SystemTime::UNIX_EPOCH + Duration::from_secs(1000)).map_err(|(status, _)| status.as_u16())
}

#[test]
fn the_query_of_kubectl_logs() {
    assert_eq!(query(""), Ok((LogOptions::default(), false)));
    let at = |seconds| Some(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds));
    assert_eq!(
        query("follow=true&previous=true&timestamps=true&tailLines=5&limitBytes=7&sinceSeconds=10"),
        Ok((
            LogOptions {
                follow: true,
                tail_lines: Some(5),
                limit_bytes: Some(7),
                timestamps: true,
                since: at(990),
                stream: None,
            },
            true
        ))
    );
    let only = |options| Ok((options, false));
    assert_eq!(
        query("sinceTime=1970-01-01T00:00:07Z&follow=false"),
        only(LogOptions { since: at(7), ..LogOptions::default() })
    );
    let before_1970 = Some(SystemTime::UNIX_EPOCH - Duration::from_secs(4000));
    assert_eq!(query("sinceSeconds=5000"), only(LogOptions { since: before_1970, ..LogOptions::default() }));
    assert_eq!(
        query("stream=Stderr"),
        only(LogOptions { stream: Some(LogSource::Stderr), ..LogOptions::default() })
    );
    assert_eq!(query("tail=all"), only(LogOptions::default()));
    assert_eq!(query("tail=0"), only(LogOptions { tail_lines: Some(0), ..LogOptions::default() }));
}

#[test]
fn queries_that_can_t_be() {
    for text in [
        "tailLines=-1",
        "limitBytes=0",
        "sinceSeconds=0",
        "sinceSeconds=1&sinceTime=1970-01-01T00:00:07Z",
        "stream=Both",
        "stream=Stdout&tailLines=1",
    ] {
        assert_eq!(query(text).unwrap_err(), 422, "{text}");
    }
    for text in ["tailLines=x", "limitBytes=99999999999999999999", "sinceTime=yesterday"] {
        assert_eq!(query(text).unwrap_err(), 400, "{text}");
    }
}
