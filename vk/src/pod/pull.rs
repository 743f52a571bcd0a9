//! Registries' credentials from a pod's `imagePullSecrets`. Pure.

use std::collections::BTreeMap;

use base64::{
    Engine as _,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use k8s_openapi::api::core::v1::Secret;
use serde::Deserialize;

use crate::provider::runtime::Credentials;

/// Some tools leave the padding out.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Docker's own registry, as its client has always written it.
const DEFAULT_REGISTRY: &str = "index.docker.io";

#[derive(Deserialize)]
struct DockerConfig {
    #[serde(default)]
    auths: BTreeMap<String, Entry>,
}

#[derive(Deserialize)]
struct Entry {
    #[serde(default)]
    username: String,
    #[serde(default)]
    password: String,
    #[serde(default)]
    auth: String,
}

/// What the secrets have for the registry of an image, each with its secret, in the order in which a kubelet tries it
/// (`pkg/credentialprovider/keyring.go`): by key and backwards, so that a longer path comes before its beginning, then as the pod names the
/// secrets. What can't be read holds nothing.
pub(crate) fn credentials<'a>(secrets: &'a [Secret], image: &str) -> Vec<(&'a Secret, Credentials)> {
    let mut known: Vec<(String, (&Secret, Credentials))> = secrets
        .iter()
        .flat_map(|secret| entries(secret).into_iter().map(move |entry| (secret, entry)))
        .filter_map(|(secret, (registry, entry))| Some((key(&registry), (secret, entry.credentials()?))))
        .collect();
    known.sort_by(|(one, _), (other, _)| other.cmp(one));
    let repository = repository(image);
    let (found, others): (Vec<_>, Vec<_>) = known.into_iter().partition(|(key, _)| matches(key, &repository));
    let found = if found.is_empty() && repository.starts_with("docker.io/") {
        others.into_iter().filter(|(key, _)| key == DEFAULT_REGISTRY).collect()
    } else {
        found
    };
    found.into_iter().map(|(_, own)| own).collect()
}

/// By registry.
fn entries(secret: &Secret) -> BTreeMap<String, Entry> {
    let data = |kind: &str, key: &str| {
        let data = secret.data.as_ref().filter(|_| secret.type_.as_deref() == Some(kind))?;
        Some(data.get(key)?.0.as_slice())
    };
    if let Some(bytes) = data("kubernetes.io/dockerconfigjson", ".dockerconfigjson") {
        serde_json::from_slice::<DockerConfig>(bytes).map(|config| config.auths).unwrap_or_default()
    } else if let Some(bytes) = data("kubernetes.io/dockercfg", ".dockercfg") {
        serde_json::from_slice(bytes).unwrap_or_default()
    } else {
        BTreeMap::new()
    }
}

impl Entry {
    fn credentials(self) -> Option<Credentials> {
        if self.auth.trim().is_empty() {
            let named = !self.username.is_empty();
            return named.then_some(Credentials { username: self.username, password: self.password });
        }
        let bytes = BASE64.decode(self.auth.trim()).ok()?;
        let text = String::from_utf8(bytes).ok()?;
        let (username, password) = text.split_once(':')?;
        Some(Credentials { username: username.to_owned(), password: password.to_owned() })
    }
}

/// Why a text names no image, in the words of the reference library that kubelets use.
pub(crate) fn invalid_name(image: &str) -> Option<String> {
    let wrong = |why: &str| Some(format!("couldn't parse image name {image:?}: {why}"));
    let (rest, digest) = match image.split_once('@') {
        Some((rest, digest)) => (rest, Some(digest)),
        None => (image, None),
    };
    let hex = |text: &str| text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    if image.len() == 64 && hex(image) {
        return wrong(&format!(
            "invalid repository name ({image}), cannot specify 64-byte hexadecimal strings"
        ));
    }
    let digest_holds = digest.is_none_or(|digest| {
        digest.split_once(':').is_some_and(|(algorithm, value)| {
            algorithm.starts_with(|c: char| c.is_ascii_alphabetic()) && value.len() >= 32 && hex(value)
        })
    });
    let (name, tag) = match rest.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
        _ => (rest, None),
    };
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let tag_holds = tag.is_none_or(|tag| {
        tag.starts_with(word) && tag.len() <= 128 && tag.chars().all(|c| word(c) || matches!(c, '.' | '-'))
    });
    let (host, path) = split(name);
    let host_holds = !host.is_empty()
        && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-:[]_".contains(&byte));
    if path.bytes().any(|byte| byte.is_ascii_uppercase()) {
        return wrong(&format!("invalid reference format: repository name ({path}) must be lowercase"));
    }
    if !digest_holds || !tag_holds || !host_holds || name.is_empty() || name.len() > 255 {
        return wrong("invalid reference format");
    }
    if path.split('/').all(is_path_component) { None } else { wrong("invalid reference format") }
}

/// Letters and digits, with single separators between them.
fn is_path_component(text: &str) -> bool {
    let end = |c: Option<char>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
    let separated = text.split(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit());
    end(text.chars().next())
        && end(text.chars().next_back())
        && separated
            .into_iter()
            .all(|gap| matches!(gap, "" | "." | "_" | "__") || gap.bytes().all(|byte| byte == b'-'))
}

/// Registry and path of an image's name: the first part is a registry if it looks like a host. Docker's own has two names, and of its images
/// the official ones a short one.
fn split(image: &str) -> (String, String) {
    let (host, path) = match image.split_once('/') {
        Some((DEFAULT_REGISTRY, path)) => ("docker.io", path),
        // No repository is called so, but hosts may be.
        Some((host, path))
            if host.contains(['.', ':'])
                || host == "localhost"
                || host.bytes().any(|byte| byte.is_ascii_uppercase()) =>
        {
            (host, path)
        }
        _ => ("docker.io", image),
    };
    let official = if host == "docker.io" && !path.contains('/') { "library/" } else { "" };
    (host.to_owned(), format!("{official}{path}"))
}

/// Where an image comes from, without its tag and digest.
pub(crate) fn repository(image: &str) -> String {
    let rest = image.split_once('@').map_or(image, |(rest, _)| rest);
    let name = match rest.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => name,
        _ => rest,
    };
    let (host, path) = split(name);
    format!("{host}/{path}")
}

/// An image as runtimes list it: with registry, and tag or digest.
pub(crate) fn full_name(image: &str) -> String {
    let (rest, digest) = image.split_once('@').map_or((image, None), |(rest, digest)| (rest, Some(digest)));
    let repository = repository(rest);
    match (digest, rest.rsplit_once(':')) {
        (Some(digest), _) => format!("{repository}@{digest}"),
        (None, Some((_, tag))) if !tag.contains('/') => format!("{repository}:{tag}"),
        (None, _) => format!("{repository}:latest"),
    }
}

/// Host and path that credentials are for, without the version of the API that clients once wrote there.
fn key(registry: &str) -> String {
    let rest = ["https://", "http://"].into_iter().find_map(|scheme| registry.strip_prefix(scheme));
    let (host, path) = host_and_path(rest.unwrap_or(registry));
    let path = if path.starts_with("/v1/") || path.starts_with("/v2/") { &path[3..] } else { path };
    format!("{host}{}", if path == "/" { "" } else { path })
}

/// The path begins with its slash, or is empty.
fn host_and_path(text: &str) -> (&str, &str) {
    text.split_at(text.find('/').unwrap_or(text.len()))
}

/// Whether credentials of this key are for the repository: its host, label by label, and any beginning of its path.
fn matches(key: &str, repository: &str) -> bool {
    let ((pattern, beginning), (host, path)) = (host_and_path(key), host_and_path(repository));
    path.starts_with(beginning) && host_matches(pattern, host)
}

/// Label by label, each of which may have wildcards; the port is the same.
fn host_matches(pattern: &str, host: &str) -> bool {
    let parts = |text: &str| {
        let (name, port) = text.rsplit_once(':').unwrap_or((text, ""));
        (name.split('.').map(str::to_owned).collect::<Vec<_>>(), port.to_owned())
    };
    let ((patterns, pattern_port), (labels, port)) = (parts(pattern), parts(host));
    pattern_port == port
        && patterns.len() == labels.len()
        && patterns.iter().zip(&labels).all(|(pattern, label)| glob(pattern, label))
}

/// `*`: anything. A kubelet reads keys as URLs, in which a `?` ends the host and brackets hold an address.
fn glob(pattern: &str, text: &str) -> bool {
    let Some((first, rest)) = pattern.split_once('*') else { return pattern == text };
    let (middle, last) = rest.rsplit_once('*').unwrap_or(("", rest));
    let Some(text) = text.strip_prefix(first).and_then(|text| text.strip_suffix(last)) else { return false };
    // The earliest place of each leaves the most for those that follow.
    middle.split('*').try_fold(text, |text, part| Some(&text[text.find(part)? + part.len()..])).is_some()
}

#[cfg(test)]
mod tests {
    use k8s_openapi::ByteString;
    use serde_json::json;

    use super::*;

    fn secret(kind: &str, key: &str, config: &serde_json::Value) -> Secret {
        let data = [(key.to_owned(), ByteString(config.to_string().into_bytes()))];
        Secret { type_: Some(kind.to_owned()), data: Some(data.into()), ..Default::default() }
    }

    fn users_of(secrets: &[Secret], image: &str) -> Vec<String> {
        let found = credentials(secrets, image).into_iter();
        found.map(|(_, own)| format!("{}:{}", own.username, own.password)).collect()
    }

    fn users(config: &serde_json::Value, image: &str) -> Vec<String> {
        users_of(&[secret("kubernetes.io/dockerconfigjson", ".dockerconfigjson", config)], image)
    }

    #[test]
    fn names_that_no_registry_knows_are_told_at_once() {
        let digest = format!("busybox@sha256:{}", "a".repeat(64));
        for image in [
            "busybox",
            "busybox:1.36",
            "r.example.com:5000/a/b-c_d.e:v1",
            "localhost/x",
            &digest,
            "a--b/c__d",
            "registry.k8s.io/e2e-test-images/agnhost:2.56",
            "spillway.test/busybox:dev",
        ] {
            assert_eq!(invalid_name(image), None, "{image}");
        }
        for image in [
            "",
            ":",
            "a:",
            "a b",
            "a//b",
            "-a",
            "a_",
            "a___b",
            "x/a..b",
            "busybox@sha256:1",
            "a:b:c",
            "http://a/b",
        ] {
            let said = invalid_name(image).unwrap_or_else(|| panic!("{image} passes"));
            assert_eq!(said, format!("couldn't parse image name {image:?}: invalid reference format"));
        }
        assert!(
            invalid_name("BusyBox").unwrap().ends_with("repository name (library/BusyBox) must be lowercase")
        );
        assert!(invalid_name("Upper/Case:1").unwrap().ends_with("repository name (Case) must be lowercase"));
        assert!(invalid_name(&"a".repeat(64)).is_some());
    }

    #[test]
    fn a_name_is_told_in_full() {
        for (name, repository_of, full) in [
            ("busybox", "docker.io/library/busybox", "docker.io/library/busybox:latest"),
            ("me/app:1", "docker.io/me/app", "docker.io/me/app:1"),
            ("docker.io/busybox", "docker.io/library/busybox", "docker.io/library/busybox:latest"),
            ("index.docker.io/me/app:1", "docker.io/me/app", "docker.io/me/app:1"),
            ("10.0.0.1:5000/a/b", "10.0.0.1:5000/a/b", "10.0.0.1:5000/a/b:latest"),
            ("r.example/a:1@sha256:00", "r.example/a", "r.example/a@sha256:00"),
        ] {
            assert_eq!((repository(name).as_str(), full_name(name).as_str()), (repository_of, full));
        }
    }

    #[test]
    fn the_registry_of_the_image_decides() {
        let config = json!({ "auths": {
            "https://index.docker.io/v1/": { "auth": "aHViOnB3" },
            "r.example.com": { "username": "all", "password": "1" },
            "r.example.com/team": { "username": "team", "password": "2" },
            "*.wild.example": { "username": "wild", "password": "3" },
            "mi*.*.io:5000/x": { "username": "glob", "password": "4" },
            "https://old.example/v1/": { "username": "none", "password": "none", "auth": "b2xkOnB3MQ" },
            "broken.example": { "auth": "%%%" },
        } });
        assert_eq!(users(&config, "busybox"), ["hub:pw"]);
        assert_eq!(users(&config, "someone/app:1"), ["hub:pw"]);
        for image in ["r.example.com/team/app", "r.example.com/team:1.2", "r.example.com/team@sha256:00"] {
            assert_eq!(users(&config, image), ["team:2", "all:1"], "{image}");
        }
        assert_eq!(users(&config, "r.example.com/teamster/app"), ["team:2", "all:1"], "a kubelet's rule");
        assert_eq!(users(&config, "r.example.com/te/app"), ["all:1"]);
        assert_eq!(users(&config, "x.wild.example/app"), ["wild:3"]);
        assert_eq!(users(&config, "deep.x.wild.example/app"), [""; 0]);
        assert_eq!(users(&config, "mine.r.io:5000/x/app:2"), ["glob:4"]);
        assert_eq!(users(&config, "mine.r.io/x/app:2"), [""; 0], "another port");
        assert_eq!(users(&config, "old.example/app"), ["old:pw1"]);
        assert_eq!(users(&config, "broken.example/app"), [""; 0]);
        assert_eq!(users(&json!("garbage"), "busybox"), [""; 0]);
    }

    /// The cases of `TestURLsMatch` and others (`pkg/credentialprovider/keyring_test.go`).
    #[test]
    fn keys_match_as_a_kubelets() {
        for (pattern, repository, expected) in [
            ("*.kubernetes.io", "prefix.kubernetes.io", true),
            ("prefix.*.io", "prefix.kubernetes.io", true),
            ("prefix.kubernetes.*", "prefix.kubernetes.io", true),
            ("*-good.kubernetes.io", "prefix-good.kubernetes.io", true),
            ("*.kubernetes.io/blah", "prefix.kubernetes.io/blah", true),
            ("prefix.*.io/foo", "prefix.kubernetes.io/foo/bar", true),
            ("*.kubernetes.io:1111/blah", "prefix.kubernetes.io:1111/blah", true),
            ("prefix.*.io:1111/foo", "prefix.kubernetes.io:1111/foo/bar", true),
            ("*.kubernetes.io", "kubernetes.io", false),
            ("*.*.kubernetes.io", "prefix.kubernetes.io", false),
            ("*kubernetes.io", "a.kubernetes.io", false),
            ("*kubernetes.io", "kubernetes.io", true),
            ("*.*.*.kubernetes.io", "a.b.c.kubernetes.io", true),
            ("kubernetes.io", "kubernetes.com", false),
            ("k*.io", "quay.io", false),
            ("a*b*b.io", "ab.io", false),
            ("a*b*b.io", "axbxb.io", true),
            ("*.kubernetes.io:1234/blah", "prefix.kubernetes.io:1111/blah", false),
            ("prefix.*.io/foo", "prefix.kubernetes.io:1111/foo/bar", false),
            ("r.io:*", "r.io:5000", false),
            ("r?.io", "r1.io", false),
            ("https://r.io/v1/team", "r.io/team", true),
            ("https://r.io/v2/", "r.io/any", true),
            ("r.io/team/", "r.io/team", false),
            ("http://r.io/", "r.io/any", true),
        ] {
            assert_eq!(matches(&key(pattern), repository), expected, "{pattern} {repository}");
        }
    }

    #[test]
    fn secrets_are_tried_in_a_kubelets_order() {
        let json = |auths: serde_json::Value| {
            secret("kubernetes.io/dockerconfigjson", ".dockerconfigjson", &json!({ "auths": auths }))
        };
        let user = |name: &str| json!({ "username": name, "password": "" });
        let secrets = [
            json(json!({ "r.io": user("a"), "r.io/team": user("b") })),
            secret(
                "kubernetes.io/dockercfg",
                ".dockercfg",
                &json!({ "r.io/team/app": user("c"), "r.io": user("d") }),
            ),
            secret("Opaque", ".dockerconfigjson", &json!({ "auths": { "r.io": user("e") } })),
            json(json!({ "https://index.docker.io/v1/": user("f") })),
        ];
        assert_eq!(users_of(&secrets, "r.io/team/app"), ["c:", "b:", "a:", "d:"]);
        assert_eq!(users_of(&secrets, "busybox"), ["f:"]);
        let secrets = [json(json!({ "index.docker.io": user("a"), "docker.io": user("b") }))];
        assert_eq!(users_of(&secrets, "busybox"), ["b:"], "the default serves where nothing else does");
    }
}
