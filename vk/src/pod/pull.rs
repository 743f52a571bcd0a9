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

/// All that a secret has for the registry of an image. What can't be read holds nothing.
pub(crate) fn credentials(secret: &Secret, image: &str) -> Vec<Credentials> {
    let data =
        |key: &str| secret.data.as_ref().and_then(|data| data.get(key)).map(|value| value.0.as_slice());
    let entries = if let Some(bytes) = data(".dockerconfigjson") {
        serde_json::from_slice::<DockerConfig>(bytes).map(|config| config.auths).unwrap_or_default()
    } else if let Some(bytes) = data(".dockercfg") {
        serde_json::from_slice(bytes).unwrap_or_default()
    } else {
        BTreeMap::new()
    };
    let repository = repository(image);
    let (host, path) = repository.split_once('/').unwrap_or((&repository, ""));
    let mut found: Vec<(usize, Credentials)> = entries
        .into_iter()
        .filter_map(|(registry, entry)| Some((matches(&registry, host, path)?, entry.credentials()?)))
        .collect();
    // The longest path is meant most.
    found.sort_by_key(|(length, _)| std::cmp::Reverse(*length));
    found.into_iter().map(|(_, credentials)| credentials).collect()
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

/// Registry and path of an image's name: the first part is a registry if it looks like a host.
fn split(image: &str) -> (String, String) {
    match image.split_once('/') {
        // No repository is called so, but hosts may be.
        Some((host, path))
            if host.contains(['.', ':'])
                || host == "localhost"
                || host.bytes().any(|byte| byte.is_ascii_uppercase()) =>
        {
            (host.to_owned(), path.to_owned())
        }
        Some(_) => ("docker.io".to_owned(), image.to_owned()),
        None => ("docker.io".to_owned(), format!("library/{image}")),
    }
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

/// How much of the image's path a registry key covers, if it covers it at all.
fn matches(registry: &str, host: &str, path: &str) -> Option<usize> {
    let registry =
        registry.trim_start_matches("https://").trim_start_matches("http://").trim_end_matches('/');
    let (key_host, key_path) = registry.split_once('/').unwrap_or((registry, ""));
    // What clients once wrote there is the API's version.
    let key_path = match key_path.split_once('/').unwrap_or((key_path, "")) {
        ("v1" | "v2", rest) => rest,
        _ => key_path,
    };
    let key_host = match key_host {
        "index.docker.io" | "registry-1.docker.io" => "docker.io",
        other => other,
    };
    let path_matches = key_path.is_empty() || path == key_path || path.starts_with(&format!("{key_path}/"));
    (host_matches(key_host, host) && path_matches).then_some(key_path.len())
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
        && patterns.iter().zip(&labels).all(|(pattern, label)| glob(pattern.as_bytes(), label.as_bytes()))
}

/// `*`: anything; `?`: one letter. Whoever wrote the pattern can't make it take long.
fn glob(pattern: &[u8], text: &[u8]) -> bool {
    let (mut at, mut read) = (0, 0);
    // The last `*`, and where in the text what it stands for ends.
    let mut star: Option<(usize, usize)> = None;
    while read < text.len() {
        match pattern.get(at) {
            Some(b'*') => {
                star = Some((at, read));
                at += 1;
            }
            Some(&wanted) if wanted == b'?' || wanted == text[read] => {
                at += 1;
                read += 1;
            }
            _ => {
                let Some((place, end)) = &mut star else { return false };
                *end += 1;
                (at, read) = (*place + 1, *end);
            }
        }
    }
    pattern[at..].iter().all(|letter| *letter == b'*')
}

#[cfg(test)]
mod tests {
    use k8s_openapi::ByteString;
    use serde_json::json;

    use super::*;

    fn users(config: &serde_json::Value, image: &str) -> Vec<String> {
        let data = [(".dockerconfigjson".to_owned(), ByteString(config.to_string().into_bytes()))];
        let secret = Secret { data: Some(data.into()), ..Default::default() };
        credentials(&secret, image).into_iter().map(|c| format!("{}:{}", c.username, c.password)).collect()
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
        assert_eq!(users(&config, "r.example.com/teamster/app"), ["all:1"]);
        assert_eq!(users(&config, "x.wild.example/app"), ["wild:3"]);
        assert_eq!(users(&config, "deep.x.wild.example/app"), [""; 0]);
        assert_eq!(users(&config, "mine.r.io:5000/x/app:2"), ["glob:4"]);
        assert_eq!(users(&config, "mine.r.io/x/app:2"), [""; 0], "another port");
        assert_eq!(users(&config, "old.example/app"), ["old:pw1"]);
        assert_eq!(users(&config, "broken.example/app"), [""; 0]);
        assert_eq!(users(&json!("garbage"), "busybox"), [""; 0]);
    }
}
