#![allow(clippy::needless_pass_by_value)] // `json!` reads best where it is used.

use serde_json::json;

use super::*;

fn pod(container: serde_json::Value) -> Pod {
    serde_json::from_value(json!({
        "metadata": {
            "name": "p", "namespace": "ns", "uid": "u1",
            "labels": { "app": "web", "tier": "a\"b" }, "annotations": { "note": "line1\nline2" },
        },
        "spec": { "nodeName": "vk", "serviceAccountName": "sa", "containers": [container] },
    }))
    .unwrap()
}

fn objects() -> Objects {
    Objects::of(
        &[json!({ "metadata": { "name": "cm" }, "data": { "a": "1", "b": "2" } })],
        &[
            json!({ "metadata": { "name": "s" }, "data": { "pw": "c2VjcmV0" } }),
            json!({ "metadata": { "name": "bytes" }, "data": { "raw": "/wE=" } }),
            json!({ "metadata": { "name": "zero" }, "data": { "end": "YQBi" } }),
        ],
    )
}

fn env_of(container: serde_json::Value) -> Result<BTreeMap<String, String>, EnvError> {
    let pod = pod(container);
    let runtime = Runtime {
        host_ips: vec!["10.0.0.1".parse().unwrap()],
        pod_ips: vec!["10.1.0.9".parse().unwrap(), "fd00::9".parse().unwrap()],
        allocatable: Amounts::new(),
        env_files: [
            (("v".to_owned(), "good".to_owned()), Ok("A='1'".to_owned())),
            (("v".to_owned(), "bad".to_owned()), Ok("A=1".to_owned())),
            (("v".to_owned(), "none".to_owned()), Err("no such file".to_owned())),
        ]
        .into(),
    };
    let services = BTreeMap::from([("WEB_SERVICE_HOST".to_owned(), "10.96.0.7".to_owned())]);
    resolve(&pod, &pod.spec.as_ref().unwrap().containers[0], &objects(), &runtime, &services)
        .map(|env| env.into_iter().collect())
}

#[test]
fn later_variables_see_earlier_ones_and_win() {
    let env = env_of(json!({
        "name": "c",
        "envFrom": [{ "configMapRef": { "name": "cm" }, "prefix": "P_" }, { "secretRef": { "name": "s" } }],
        "env": [
            { "name": "P_a", "value": "own" },
            { "name": "URL", "value": "http://$(WEB_SERVICE_HOST)/$(P_a)/$(P_b)/$(NOPE)/$$(P_a)" },
            { "name": "EMPTY" },
        ],
    }))
    .unwrap();
    assert_eq!(env["P_a"], "own");
    assert_eq!(env["P_b"], "2");
    assert_eq!(env["pw"], "secret");
    assert_eq!(env["URL"], "http://10.96.0.7/own/2/$(NOPE)/$(P_a)");
    assert_eq!(env["EMPTY"], "");
    assert_eq!(env["WEB_SERVICE_HOST"], "10.96.0.7");
}

#[test]
fn references_lead_to_fields_and_keys() {
    let env = env_of(json!({
        "name": "c",
        "resources": { "limits": { "cpu": "2" } },
        "env": [
            { "name": "NAME", "valueFrom": { "fieldRef": { "fieldPath": "metadata.name" } } },
            { "name": "LABEL", "valueFrom": { "fieldRef": { "fieldPath": "metadata.labels['app']" } } },
            { "name": "IPS", "valueFrom": { "fieldRef": { "fieldPath": "status.podIPs" } } },
            { "name": "HOST", "valueFrom": { "fieldRef": { "fieldPath": "status.hostIP" } } },
            { "name": "CPU", "valueFrom": { "resourceFieldRef": { "resource": "limits.cpu" } } },
            { "name": "A", "valueFrom": { "configMapKeyRef": { "name": "cm", "key": "a" } } },
            { "name": "PW", "valueFrom": { "secretKeyRef": { "name": "s", "key": "pw" } } },
            { "name": "NO", "valueFrom": { "secretKeyRef": { "name": "s", "key": "no", "optional": true } } },
            { "name": "NONE", "valueFrom": { "configMapKeyRef": { "name": "x", "key": "y", "optional": true } } },
        ],
    }))
    .unwrap();
    let expected = [
        ("NAME", "p"),
        ("LABEL", "web"),
        ("IPS", "10.1.0.9,fd00::9"),
        ("HOST", "10.0.0.1"),
        ("CPU", "2"),
        ("A", "1"),
        ("PW", "secret"),
    ];
    for (name, value) in expected {
        assert_eq!(env[name], value, "{name}");
    }
    assert!(!env.contains_key("NO") && !env.contains_key("NONE"));
}

#[test]
fn what_is_missing_is_named() {
    let check = |source: serde_json::Value, expected: &str| {
        let error =
            env_of(json!({ "name": "c", "env": [{ "name": "X", "valueFrom": source }] })).unwrap_err();
        assert_eq!(error.to_string(), expected);
    };
    check(json!({ "configMapKeyRef": { "name": "none", "key": "a" } }), "configmap \"none\" not found");
    check(json!({ "secretKeyRef": { "name": "none", "key": "a" } }), "secret \"none\" not found");
    check(
        json!({ "configMapKeyRef": { "name": "cm", "key": "z" } }),
        "couldn't find key z in ConfigMap ns/cm",
    );
    check(json!({ "fieldRef": { "fieldPath": "spec.bogus" } }), "unsupported fieldPath: spec.bogus");
}

#[test]
fn what_is_no_text_is_said_and_not_altered() {
    for (name, key) in [("bytes", "raw"), ("zero", "end")] {
        let one = json!({ "name": "X", "valueFrom": { "secretKeyRef": { "name": name, "key": key } } });
        let expected = Err(EnvError::NoText { name: key.to_owned() });
        assert_eq!(env_of(json!({ "name": "c", "env": [one] })), expected);
        let all = json!([{ "secretRef": { "name": name } }]);
        assert_eq!(env_of(json!({ "name": "c", "envFrom": all })), expected);
    }
}

#[test]
fn maps_are_quoted_lines() {
    let pod = pod(json!({ "name": "c" }));
    let read = |path| field(&pod, path, &Runtime::default()).unwrap();
    assert_eq!(read("metadata.labels"), "app=\"web\"\ntier=\"a\\\"b\"");
    assert_eq!(read("metadata.annotations"), "note=\"line1\\nline2\"");
}

#[test]
fn services_of_the_namespace_and_the_api_servers_are_linked() {
    let service = |namespace: &str, name: &str, ip: &str| -> Service {
        serde_json::from_value(json!({
            "metadata": { "namespace": namespace, "name": name },
            "spec": { "clusterIP": ip, "ports": [{ "name": "web-ui", "port": 80, "protocol": "TCP" }] },
        }))
        .unwrap()
    };
    let all = [
        service("default", "kubernetes", "10.96.0.1"),
        service("ns", "my-app", "10.96.0.2"),
        service("ns", "headless", "None"),
        service("other", "theirs", "10.96.0.3"),
    ];
    let linked = services(all.iter(), "ns", true);
    assert_eq!(linked["MY_APP_SERVICE_HOST"], "10.96.0.2");
    assert_eq!(linked["MY_APP_SERVICE_PORT_WEB_UI"], "80");
    assert_eq!(linked["MY_APP_PORT"], "tcp://10.96.0.2:80");
    assert_eq!(linked["MY_APP_PORT_80_TCP_ADDR"], "10.96.0.2");
    assert_eq!(linked["KUBERNETES_SERVICE_HOST"], "10.96.0.1");
    assert!(!linked.keys().any(|key| key.contains("HEADLESS") || key.contains("THEIRS")));
    let unlinked = services(all.iter(), "ns", false);
    assert!(unlinked.keys().all(|key| key.starts_with("KUBERNETES_")));
}

#[test]
fn variables_that_double_each_other_are_refused_and_not_built() {
    let doubling: Vec<_> = (0..64)
        .map(|n| json!({ "name": format!("V{}", n + 1), "value": format!("$(V{n})$(V{n})") }))
        .collect();
    let all = [vec![json!({ "name": "V0", "value": "ha" })], doubling].concat();
    let error = env_of(json!({ "name": "c", "env": all })).unwrap_err();
    assert!(error.to_string().starts_with("variable V21: "), "{error}");
    // Nor is a way around: many that are long.
    let long = "x".repeat(1 << 20);
    let many: Vec<_> = (0..16).map(|n| json!({ "name": format!("V{n}"), "value": "$(LONG)" })).collect();
    let all = [vec![json!({ "name": "LONG", "value": long })], many].concat();
    assert!(matches!(env_of(json!({ "name": "c", "env": all })), Err(EnvError::Long { .. })));
    let words = vec!["$(LONG)".to_owned(); 16];
    assert_eq!(expand_words(&words, |_| Some(&long)), Err(TooLong));
    assert!(expand_words(&words[..4], |_| Some(&long)).is_ok());
}

proptest::proptest! {
    #[test]
    fn text_without_dollars_is_left_alone(text in "[^$]{0,40}") {
        proptest::prop_assert_eq!(expand(&text, |_| Some("x")), Ok(text));
    }

    #[test]
    fn no_text_makes_expansion_panic(text in "[$()A-Z]{0,40}") {
        let _ = expand(&text, |name| name.starts_with('A').then_some("$(B)"));
    }
}

#[test]
fn files_of_variables_are_read_or_waited_for() {
    let check = |path: &str, key: &str, optional: bool| {
        let selector = json!({ "volumeName": "v", "path": path, "key": key, "optional": optional });
        let env =
            env_of(json!({ "name": "c", "env": [{ "name": "X", "valueFrom": { "fileKeyRef": selector } }] }));
        env.map(|env| env.get("X").cloned()).map_err(|error| error.to_string())
    };
    assert_eq!(check("good", "A", false), Ok(Some("1".to_owned())));
    assert_eq!(check("good", "B", true), Ok(None));
    assert_eq!(
        check("good", "B", false),
        Err("environment variable key \"B\" not found in file \"good\"".to_owned())
    );
    for path in ["bad", "none"] {
        assert_eq!(check(path, "A", true), Err("couldn't parse env file".to_owned()));
    }
}

#[test]
fn limits_that_a_container_does_not_set_are_its_pods() {
    let amounts = |amounts: serde_json::Value| serde_json::from_value::<Amounts>(amounts).unwrap();
    let reference = |resource: &str| json!({ "resourceFieldRef": { "resource": resource } });
    let pod: Pod = serde_json::from_value(json!({ "spec": {
        "resources": { "limits": { "cpu": "2", "memory": "0", "ephemeral-storage": "1" } },
        "containers": [{ "name": "c", "env": [
            { "name": "CPU", "valueFrom": reference("limits.cpu") },
            { "name": "MEMORY", "valueFrom": reference("limits.memory") },
            { "name": "DISK", "valueFrom": reference("limits.ephemeral-storage") },
        ] }],
    } }))
    .unwrap();
    let runtime = Runtime {
        allocatable: amounts(json!({ "cpu": "8", "memory": "64", "ephemeral-storage": "99" })),
        ..Runtime::default()
    };
    let container = &pod.spec.as_ref().unwrap().containers[0];
    let env = resolve(&pod, container, &Objects::of(&[], &[]), &runtime, &BTreeMap::new()).unwrap();
    let values: Vec<(&str, &str)> = env.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    assert_eq!(values, [("CPU", "2"), ("DISK", "99"), ("MEMORY", "64")]);
}

#[test]
fn text_is_quoted_as_go_quotes_it() {
    let check = |text: &str, expected: &str| assert_eq!(quoted(text), format!("\"{expected}\""));
    check("a\"b\\c'", "a\\\"b\\\\c'");
    check("\x07\x08\x0c\n\r\t\x0b\0\x7f", r"\a\b\f\n\r\t\v\x00\x7f");
    check("\u{85}\u{a0}\u{200b}\u{e000}\u{10ffff}", r"\u0085\u00a0\u200b\ue000\U0010ffff");
    check("grün e\u{301} 日本 🦀", "grün e\u{301} 日本 🦀");
}
