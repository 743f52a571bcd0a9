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
        Err("configmap references non-existent config key: none"),
    );
    check(
        json!({ "secret": { "secretName": "s", "items": items } }),
        Err("references non-existent secret key: none"),
    );
    check(json!({ "configMap": { "name": "cm", "items": items, "optional": true } }), Ok(0));
}

#[test]
fn paths_stay_in_the_volume() {
    for path in ["../x", "/etc/passwd", "a/../../b", "", "..data/x", "./..data", "."] {
        let items = json!([{ "key": "a", "path": path }]);
        let found = content_of(json!({ "configMap": { "name": "cm", "items": items } }), json!({}));
        assert_eq!(found, Err(VolumeError::Path(path.to_owned())));
    }
}

#[test]
fn a_tmpfs_is_no_larger_than_volume_pod_and_node_allow() {
    let check = |limit: Option<&str>, memory: Option<&str>, node: &str, expected: u64| {
        let limits = memory.map(|memory| json!({ "limits": { "memory": memory } }));
        let pod = serde_json::from_value(
            json!({ "spec": { "containers": [{ "name": "a", "resources": limits }] } }),
        );
        let volume = json!({ "name": "v", "emptyDir": { "medium": "Memory", "sizeLimit": limit } });
        let allocatable =
            [("memory".to_owned(), k8s_openapi::apimachinery::pkg::api::resource::Quantity(node.to_owned()))];
        let runtime = Runtime { allocatable: allocatable.into(), ..Runtime::default() };
        let volume = serde_json::from_value(volume).unwrap();
        let found = content(&pod.unwrap(), &volume, &Objects::default(), &Tokens::new(), &runtime);
        assert_eq!(found, Ok(Content::Empty { memory: true, bytes: Some(expected) }));
    };
    check(None, None, "4Gi", 4 << 30);
    check(None, Some("2Gi"), "4Gi", 2 << 30);
    check(Some("1Gi"), Some("2Gi"), "4Gi", 1 << 30);
    check(Some("3Gi"), Some("2Gi"), "4Gi", 2 << 30);
    check(Some("0"), None, "4Gi", 4 << 30);
}

#[test]
fn mounts_within_a_mount_are_known() {
    let mounts = |paths: &[(&str, &str)]| -> serde_json::Value {
        paths.iter().map(|(name, path)| json!({ "name": name, "mountPath": path })).collect()
    };
    let pod: Pod = serde_json::from_value(json!({ "spec": {
        "initContainers": [{ "name": "i", "volumeMounts": mounts(&[("v", "/w"), ("x", "/w/init")]) }],
        "containers": [
            { "name": "a", "volumeMounts": mounts(&[
                ("v", "/dir/"), ("x", "/dir/nested"), ("y", "/dir/nested/double"), ("z", "/dir-other/x"), ("x", "/dir/../up"),
            ]) },
            { "name": "b", "volumeMounts": mounts(&[("x", "/b/c"), ("z", "/b")]) },
        ],
    } }))
    .unwrap();
    let check = |volume: &str, expected: &[&str]| {
        assert_eq!(nested(&pod, volume), expected.iter().map(PathBuf::from).collect::<Vec<_>>(), "{volume}");
    };
    check("v", &["init", "nested"]);
    check("x", &["double"]);
    check("z", &["c"]);
    check("y", &[]);
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
