#![allow(clippy::needless_pass_by_value)] // `json!` reads best where it is used.

use serde_json::json;

use super::*;

fn content_of(volume: serde_json::Value, spec: serde_json::Value) -> Result<Content, VolumeError> {
    let mut pod = json!({
        "metadata": { "name": "p", "namespace": "ns", "labels": { "app": "web" } },
        "spec": { "containers": [{ "name": "c" }] },
    });
    for (key, value) in spec.as_object().unwrap() {
        pod["spec"][key] = value.clone();
    }
    let mut volume = volume;
    volume["name"] = json!("v");
    let objects = Objects::of(
        &[json!({ "metadata": { "name": "cm" }, "data": { "a": "1" }, "binaryData": { "b": "AAE=" } })],
        &[json!({ "metadata": { "name": "s" }, "data": { "pw": "c2VjcmV0" } })],
    );
    let token = Token {
        text: "t0ken".into(),
        requested_at: jiff::Timestamp::UNIX_EPOCH,
        expires_at: jiff::Timestamp::UNIX_EPOCH,
    };
    let tokens = Tokens::from([((String::new(), 3607), Ok(token))]);
    let pod = serde_json::from_value(pod).unwrap();
    let volume = serde_json::from_value(volume).unwrap();
    content(&pod, &volume, &objects, &tokens, &Runtime::default())
}

fn listing(content: Result<Content, VolumeError>) -> Vec<String> {
    let Ok(Content::Files { files, .. }) = content else { panic!("no files: {content:?}") };
    files
        .iter()
        .map(|(path, file)| {
            format!(
                "{} {:o} {}",
                path.display(),
                file.mode,
                String::from_utf8_lossy(&file.data).escape_debug()
            )
        })
        .collect()
}

#[test]
fn config_maps_and_secrets_become_files() {
    assert_eq!(
        listing(content_of(json!({ "configMap": { "name": "cm" } }), json!({}))),
        ["a 644 1", "b 644 \\0\\u{1}"]
    );
    let items = json!([{ "key": "pw", "path": "deep/er", "mode": 0o400 }]);
    let volume = json!({ "secret": { "secretName": "s", "defaultMode": 0o600, "items": items } });
    assert_eq!(listing(content_of(volume, json!({}))), ["deep/er 400 secret"]);
}

#[test]
fn the_api_access_volume_has_token_ca_and_namespace() {
    let volume = json!({ "projected": { "defaultMode": 0o644, "sources": [
        { "serviceAccountToken": { "path": "token", "expirationSeconds": 3607 } },
        { "configMap": { "name": "cm", "items": [{ "key": "a", "path": "ca.crt" }] } },
        { "downwardAPI": { "items": [
            { "path": "namespace", "fieldRef": { "apiVersion": "v1", "fieldPath": "metadata.namespace" } },
        ] } },
    ] } });
    let all = ["ca.crt 644 1", "namespace 644 ns", "token 644 t0ken"];
    assert_eq!(listing(content_of(volume.clone(), json!({}))), all);
    let grouped = listing(content_of(volume, json!({ "securityContext": { "fsGroup": 7 } })));
    assert_eq!(grouped[2], "token 600 t0ken");
}

#[test]
fn optional_objects_may_be_missing_and_others_not() {
    let check = |volume: serde_json::Value, expected: Result<usize, &str>| {
        let found = match content_of(volume, json!({})) {
            Ok(Content::Files { files, .. }) => Ok(files.len()),
            Ok(other) => panic!("{other:?}"),
            Err(error) => Err(error.to_string()),
        };
        assert_eq!(found, expected.map_err(str::to_owned));
    };
    check(json!({ "configMap": { "name": "none", "optional": true } }), Ok(0));
    check(json!({ "configMap": { "name": "none" } }), Err("configmap \"none\" not found"));
    let items = json!([{ "key": "none", "path": "x" }]);
    check(
        json!({ "configMap": { "name": "cm", "items": items } }),
        Err("references non-existent key: none of configmap \"cm\""),
    );
    check(json!({ "configMap": { "name": "cm", "items": items, "optional": true } }), Ok(0));
}

#[test]
fn paths_stay_in_the_volume() {
    for path in ["../x", "/etc/passwd", "a/../../b", "", "..data/x"] {
        let items = json!([{ "key": "a", "path": path }]);
        let found = content_of(json!({ "configMap": { "name": "cm", "items": items } }), json!({}));
        assert_eq!(found, Err(VolumeError::Path(path.to_owned())));
    }
}

#[test]
fn folders_and_host_paths() {
    let empty = |source| content_of(json!({ "emptyDir": source }), json!({})).unwrap();
    assert_eq!(empty(json!({})), Content::Empty { memory: false, bytes: None });
    assert_eq!(
        empty(json!({ "medium": "Memory", "sizeLimit": "1Mi" })),
        Content::Empty { memory: true, bytes: Some(1 << 20) }
    );
    let host = content_of(json!({ "hostPath": { "path": "/x", "type": "Socket" } }), json!({}));
    assert_eq!(host, Ok(Content::Host { path: "/x".into(), kind: HostKind::Socket }));
    assert!(content_of(json!({ "nfs": { "server": "s", "path": "/" } }), json!({})).is_err());
}

#[test]
fn one_user_is_known_only_if_all_containers_have_it() {
    let check = |spec: serde_json::Value, expected| {
        assert_eq!(only_user(&serde_json::from_value(spec).unwrap()), expected);
    };
    check(json!({ "containers": [{ "name": "a" }] }), None);
    check(json!({ "containers": [{ "name": "a" }], "securityContext": { "runAsUser": 5 } }), Some(5));
    let other = json!({ "name": "b", "securityContext": { "runAsUser": 6 } });
    check(json!({ "containers": [{ "name": "a" }, other], "securityContext": { "runAsUser": 5 } }), None);
}
