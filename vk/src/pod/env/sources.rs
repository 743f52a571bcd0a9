//! Config maps and secrets that a container's variables come from, and what of them is not there.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::Container;

use super::EnvError;
use crate::pod::objects::{Kind, Missing, Objects, References};

/// An object that variables come from.
struct Source<'a> {
    kind: Kind,
    name: &'a str,
    /// What is wanted of it, if not everything.
    key: Option<&'a str>,
    optional: bool,
}

/// What a source led to.
enum Found {
    All,
    NoObject,
    NoKey,
}

/// Object, key and whether it need not be there.
type Reference<'a> = (&'a String, Option<&'a String>, Option<bool>);

fn sources(container: &Container) -> impl Iterator<Item = Source<'_>> {
    fn both<'a>(
        config_map: Option<Reference<'a>>,
        secret: Option<Reference<'a>>,
    ) -> impl Iterator<Item = Source<'a>> {
        [(Kind::ConfigMap, config_map), (Kind::Secret, secret)].into_iter().filter_map(|(kind, reference)| {
            let (name, key, optional) = reference?;
            Some(Source { kind, name, key: key.map(String::as_str), optional: optional.unwrap_or(false) })
        })
    }
    let whole = container.env_from.iter().flatten().flat_map(|from| {
        both(
            from.config_map_ref.as_ref().map(|map| (&map.name, None, map.optional)),
            from.secret_ref.as_ref().map(|secret| (&secret.name, None, secret.optional)),
        )
    });
    let variables = container.env.iter().flatten().filter_map(|variable| variable.value_from.as_ref());
    whole.chain(variables.flat_map(|from| {
        both(
            from.config_map_key_ref.as_ref().map(|map| (&map.name, Some(&map.key), map.optional)),
            from.secret_key_ref.as_ref().map(|secret| (&secret.name, Some(&secret.key), secret.optional)),
        )
    }))
}

impl Source<'_> {
    fn look_up(&self, objects: &Objects) -> Result<Found, Missing> {
        let has = |keys: Option<bool>| match keys {
            None => Found::NoObject,
            Some(true) => Found::All,
            Some(false) => Found::NoKey,
        };
        Ok(match self.kind {
            Kind::ConfigMap => has(objects.config_map(self.name, self.optional)?.map(|map| {
                self.key.is_none_or(|key| map.data.as_ref().is_some_and(|data| data.contains_key(key)))
            })),
            Kind::Secret => has(objects.secret(self.name, self.optional)?.map(|secret| {
                self.key.is_none_or(|key| secret.data.as_ref().is_some_and(|data| data.contains_key(key)))
            })),
        })
    }

    fn kind_name(&self) -> &'static str {
        match self.kind {
            Kind::ConfigMap => "ConfigMap",
            Kind::Secret => "Secret",
        }
    }
}

/// All that a container's environment names.
pub(crate) fn references(container: &Container) -> References {
    let mut found = References::default();
    for source in sources(container) {
        let names = match source.kind {
            Kind::ConfigMap => &mut found.config_maps,
            Kind::Secret => &mut found.secrets,
        };
        names.insert(source.name.to_owned());
    }
    found
}

/// Why the container's environment can't be had, if something that it needs is missing.
pub(crate) fn missing(namespace: &str, container: &Container, objects: &Objects) -> Option<EnvError> {
    sources(container).find_map(|source| match (source.look_up(objects), source.key) {
        (Err(missing), _) => Some(EnvError::Object(missing)),
        (Ok(Found::NoKey), Some(key)) if !source.optional => Some(EnvError::Key {
            key: key.to_owned(),
            kind: source.kind_name(),
            namespace: namespace.to_owned(),
            name: source.name.to_owned(),
        }),
        _ => None,
    })
}

/// What of that is not there, as events: reason and message, in the words of the virtual-kubelet library. Whether what can't be read is
/// there nobody knows.
pub(crate) fn not_found(container: &Container, objects: &Objects) -> BTreeSet<(String, String)> {
    let event = |source: Source<'_>| {
        let (need, kind) = (if source.optional { "Optional" } else { "Mandatory" }, source.kind_name());
        let what = format!("{} {:?}", kind.to_lowercase(), source.name);
        match (source.look_up(objects), source.key) {
            (Ok(Found::NoObject) | Err(Missing::NotFound { .. }), _) => {
                Some((format!("{need}{kind}NotFound"), format!("{what} not found")))
            }
            (Ok(Found::NoKey), Some(key)) => {
                Some((format!("{need}{kind}KeyNotFound"), format!("key {key:?} does not exist in {what}")))
            }
            _ => None,
        }
    };
    sources(container).filter_map(event).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_named_objects_are_read() {
        let container: Container = serde_json::from_value(json!({
            "name": "c",
            "env": [{ "name": "X", "valueFrom": { "secretKeyRef": { "name": "s1", "key": "k" } } }],
            "envFrom": [{ "configMapRef": { "name": "m1" } }],
        }))
        .unwrap();
        let set = |name: &str| BTreeSet::from([name.to_owned()]);
        assert_eq!(references(&container), References { config_maps: set("m1"), secrets: set("s1") });
    }

    #[test]
    fn what_is_not_there_is_told_by_kind_and_need() {
        let source = |kind: &str, name: &str, optional: bool| json!({ "name": "X", "valueFrom": { kind: { "name": name, "key": "k", "optional": optional } } });
        let container = |env: &[serde_json::Value]| -> Container {
            serde_json::from_value(json!({
                "name": "c", "env": env, "envFrom": [{ "configMapRef": { "name": "d", "optional": true } }],
            }))
            .unwrap()
        };
        let objects = Objects::of(
            &[json!({ "metadata": { "name": "e" }, "data": { "k": "there" } })],
            &[json!({ "metadata": { "name": "b" } })],
        );
        let optional = [
            source("secretKeyRef", "a", true),
            source("secretKeyRef", "b", true),
            source("configMapKeyRef", "c", true),
            source("configMapKeyRef", "e", false),
        ];
        assert_eq!(missing("n", &container(&optional), &objects), None);
        let mandatory = [source("secretKeyRef", "b", false), source("secretKeyRef", "a", false)];
        let all = container(&[&optional[..], &mandatory].concat());
        assert_eq!(missing("n", &all, &objects).unwrap().to_string(), "couldn't find key k in Secret n/b");
        let told: Vec<_> =
            not_found(&all, &objects).into_iter().map(|(reason, text)| format!("{reason}: {text}")).collect();
        assert_eq!(
            told,
            [
                "MandatorySecretKeyNotFound: key \"k\" does not exist in secret \"b\"",
                "MandatorySecretNotFound: secret \"a\" not found",
                "OptionalConfigMapNotFound: configmap \"c\" not found",
                "OptionalConfigMapNotFound: configmap \"d\" not found",
                "OptionalSecretKeyNotFound: key \"k\" does not exist in secret \"b\"",
                "OptionalSecretNotFound: secret \"a\" not found",
            ]
        );
    }
}
