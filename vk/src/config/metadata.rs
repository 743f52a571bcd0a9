//! Labels and annotations of a node object, as the API server takes them from a node: one that it refuses would hold back all the others. And
//! the syntax that they share with taints and resources.

use serde::Deserialize;

use super::is_dns_subdomain;
use crate::node::RESOURCES_ANNOTATION;

/// What a kubelet may set of the labels of Kubernetes; `kubeletLabels` in `k8s.io/kubelet/pkg/apis`.
const KUBELET_LABELS: [&str; 11] = [
    "beta.kubernetes.io/arch",
    "beta.kubernetes.io/instance-type",
    "beta.kubernetes.io/os",
    "failure-domain.beta.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
    "kubernetes.io/arch",
    "kubernetes.io/hostname",
    "kubernetes.io/os",
    "node.kubernetes.io/instance-type",
    "topology.kubernetes.io/region",
    "topology.kubernetes.io/zone",
];
/// And below which domains all of them; `kubeletLabelNamespaces` there.
const KUBELET_DOMAINS: [&str; 2] = ["kubelet.kubernetes.io", "node.kubernetes.io"];
/// The longest label value, and name behind a key's domain.
pub(super) const MAX_NAME: usize = 63;

/// The key of a label that a node may give itself.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "String")]
pub(super) struct LabelKey(String);

impl TryFrom<String> for LabelKey {
    type Error = String;

    fn try_from(key: String) -> Result<Self, String> {
        if !is_qualified_name(&key) {
            return Err(format!("{key:?} can't be the key of a label, such as rack or example.com/rack"));
        }
        let domain = key.split_once('/').map_or("", |(domain, _)| domain);
        let of_kubernetes = is_below(domain, "kubernetes.io") || is_below(domain, "k8s.io");
        let allowed = KUBELET_LABELS.contains(&key.as_str())
            || KUBELET_DOMAINS.iter().any(|allowed| is_below(domain, allowed));
        if of_kubernetes && !allowed {
            return Err(format!(
                "{key:?} is a label that a node may not give itself: set it with kubectl label nodes, or take one outside kubernetes.io and k8s.io, \
                 below {}, or of {}",
                KUBELET_DOMAINS.join("/ or ") + "/",
                KUBELET_LABELS.join(", ")
            ));
        }
        Ok(Self(key))
    }
}

impl From<LabelKey> for String {
    fn from(key: LabelKey) -> Self {
        key.0
    }
}

/// The value of a label.
#[derive(Debug, Clone, Deserialize)]
#[serde(try_from = "String")]
pub(super) struct LabelValue(String);

impl TryFrom<String> for LabelValue {
    type Error = String;

    fn try_from(value: String) -> Result<Self, String> {
        if value.is_empty() || is_name(&value) {
            return Ok(Self(value));
        }
        Err(format!(
            "{value:?} can't be the value of a label or taint: at most {MAX_NAME} of a-z, A-Z, 0-9, '-', '_' and '.', a letter or digit first and last"
        ))
    }
}

impl From<LabelValue> for String {
    fn from(value: LabelValue) -> Self {
        value.0
    }
}

/// The key of an annotation.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "String")]
pub(super) struct AnnotationKey(String);

impl TryFrom<String> for AnnotationKey {
    type Error = String;

    fn try_from(key: String) -> Result<Self, String> {
        if key == RESOURCES_ANNOTATION {
            return Err(format!("{key:?} is the virtual node's own note: choose another annotation"));
        }
        // The API server doesn't look at their case.
        if is_qualified_name(&key.to_lowercase()) {
            return Ok(Self(key));
        }
        Err(format!("{key:?} can't be the key of an annotation, such as note or example.com/note"))
    }
}

impl From<AnnotationKey> for String {
    fn from(key: AnnotationKey) -> Self {
        key.0
    }
}

/// `name` or `example.com/name`; `IsQualifiedName` in `k8s.io/apimachinery/pkg/util/validation`.
pub(super) fn is_qualified_name(key: &str) -> bool {
    match key.split_once('/') {
        Some((domain, name)) => is_dns_subdomain(domain) && is_name(name),
        None => is_name(key),
    }
}

fn is_name(text: &str) -> bool {
    let is_end = |end: Option<char>| end.is_some_and(|end| end.is_ascii_alphanumeric());
    text.len() <= MAX_NAME
        && is_end(text.chars().next())
        && is_end(text.chars().next_back())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
}

fn is_below(domain: &str, parent: &str) -> bool {
    domain.strip_suffix(parent).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_those_that_a_kubelet_may_set() {
        let label = |key: &str| LabelKey::try_from(key.to_owned());
        let long = "x".repeat(MAX_NAME);
        for good in [
            "rack",
            "Rack_7.b",
            "example.com/rack",
            "spillway.dev/pool",
            "mykubernetes.io/x",
            "kubernetes.io/arch",
            "beta.kubernetes.io/instance-type",
            "topology.kubernetes.io/zone",
            "node.kubernetes.io/pool",
            "a.kubelet.kubernetes.io/b",
            &long,
        ] {
            assert!(label(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "/x",
            "example.com/",
            "a/b/c",
            "Example.com/x",
            "-x",
            "x-",
            "x y",
            "é",
            "kubernetes.io/role",
            "node-role.kubernetes.io/gpu",
            "node-restriction.kubernetes.io/x",
            "x.k8s.io/y",
            "k8s.io/y",
            &(long.clone() + "x"),
        ] {
            let error = label(bad).unwrap_err();
            assert!(error.contains(&format!("{bad:?}")), "{error}");
        }
    }

    #[test]
    fn values_and_annotations_have_the_api_s_syntax() {
        let value = |value: &str| LabelValue::try_from(value.to_owned()).is_ok();
        assert!(value("") && value("a.B_c-1") && !value("a b") && !value("-") && !value(&"x".repeat(64)));
        let annotation = |key: &str| AnnotationKey::try_from(key.to_owned()).is_ok();
        assert!(annotation("Example.COM/Note") && annotation("kubernetes.io/note") && !annotation("a note"));
        assert!(!annotation(RESOURCES_ANNOTATION));
    }
}
