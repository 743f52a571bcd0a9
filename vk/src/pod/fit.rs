//! Whether a pod may be on this node at all: its selector and affinity, and taints that drive pods away. A scheduler looks at them before
//! it binds; who names the node in the pod's spec has asked no scheduler, and is refused as a kubelet refuses
//! (`pkg/kubelet/lifecycle/predicate.go`).

use k8s_openapi::api::core::v1::{
    Node, NodeSelectorRequirement, NodeSelectorTerm, PodSpec, Taint, Toleration,
};

use super::{admission::Refusal, spec};

fn predicate(name: &str, description: &str) -> Refusal {
    Refusal { reason: name.to_owned(), message: format!("Predicate {name} failed: {description}") }
}

/// Another pod has a port of the machine that this one asks for.
pub(super) fn port_taken() -> Refusal {
    predicate("NodePorts", "node(s) didn't have free ports for the requested pod ports")
}

/// What the node's runtime can't do for the pod.
pub(super) fn lacks_feature(spec: &PodSpec, node: &Node) -> Option<Refusal> {
    let features = node.status.as_ref().and_then(|status| status.features.as_ref());
    let strict_groups = features.and_then(|features| features.supplemental_groups_policy).unwrap_or(false);
    (spec::wants_strict_groups(spec) && !strict_groups).then(|| Refusal {
        reason: "SupplementalGroupsPolicyNotSupported".to_owned(),
        message: "SupplementalGroupsPolicy=Strict is not supported in this node".to_owned(),
    })
}

/// The first thing about the node that the pod can't live with.
pub(super) fn refuse(spec: &PodSpec, node: &Node) -> Option<Refusal> {
    if !selects(spec, node) {
        return Some(predicate("NodeAffinity", "node(s) didn't match Pod's node affinity/selector"));
    }
    let taints = node.spec.iter().filter_map(|spec| spec.taints.as_ref()).flatten();
    let tolerations = spec.tolerations.as_deref().unwrap_or_default();
    taints
        .filter(|taint| taint.effect == "NoExecute")
        .any(|taint| !tolerations.iter().any(|toleration| tolerates(toleration, taint)))
        .then(|| predicate("TaintToleration", "node(s) had untolerated taint(s)"))
}

fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    let (effect, key) = (text(&toleration.effect), text(&toleration.key));
    if !(effect.is_empty() || effect == taint.effect) || !(key.is_empty() || key == taint.key) {
        return false;
    }
    match toleration.operator.as_deref().unwrap_or_default() {
        "Exists" => true,
        "" | "Equal" => text(&toleration.value) == text(&taint.value),
        _ => false,
    }
}

fn selects(spec: &PodSpec, node: &Node) -> bool {
    let label = |key: &str| node.metadata.labels.as_ref().and_then(|labels| labels.get(key));
    let mut selector = spec.node_selector.iter().flatten();
    if !selector.all(|(key, value)| label(key) == Some(value)) {
        return false;
    }
    let affinity = spec.affinity.as_ref().and_then(|affinity| affinity.node_affinity.as_ref());
    let required =
        affinity.and_then(|node| node.required_during_scheduling_ignored_during_execution.as_ref());
    required.is_none_or(|required| required.node_selector_terms.iter().any(|term| matches(term, node)))
}

/// An empty term selects nothing.
fn matches(term: &NodeSelectorTerm, node: &Node) -> bool {
    let expressions = term.match_expressions.as_deref().unwrap_or_default();
    let fields = term.match_fields.as_deref().unwrap_or_default();
    let label = |key: &str| node.metadata.labels.as_ref()?.get(key).cloned();
    // The one field that the API allows.
    let field = |key: &str| node.metadata.name.clone().filter(|_| key == "metadata.name");
    !(expressions.is_empty() && fields.is_empty())
        && expressions.iter().all(|requirement| holds(requirement, label(&requirement.key).as_deref()))
        && fields.iter().all(|requirement| holds(requirement, field(&requirement.key).as_deref()))
}

fn holds(requirement: &NodeSelectorRequirement, value: Option<&str>) -> bool {
    let values = requirement.values.as_deref().unwrap_or_default();
    let listed = || value.is_some_and(|value| values.iter().any(|other| other == value));
    let numbers = || Some((value?.parse::<i64>().ok()?, values.first()?.parse::<i64>().ok()?));
    match requirement.operator.as_str() {
        "In" => listed(),
        "NotIn" => !listed(),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => numbers().is_some_and(|(value, bound)| value > bound),
        "Lt" => numbers().is_some_and(|(value, bound)| value < bound),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn refused(spec: &Value) -> Option<String> {
        let node = json!({
            "metadata": { "name": "vk", "labels": { "zone": "a", "size": "7" } },
            "spec": { "taints": [
                { "key": "virtual", "effect": "NoSchedule" },
                { "key": "broken", "value": "yes", "effect": "NoExecute" },
            ] },
        });
        let mut spec = spec.clone();
        spec["containers"] = json!([]);
        let (spec, node) = (serde_json::from_value(spec).unwrap(), serde_json::from_value(node).unwrap());
        refuse(&spec, &node).map(|refusal| refusal.reason)
    }

    fn with_affinity(term: &Value) -> Value {
        json!({
            "tolerations": [{ "operator": "Exists" }],
            "affinity": { "nodeAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": { "nodeSelectorTerms": [{}, term] },
            } },
        })
    }

    #[test]
    fn strict_groups_need_a_runtime_that_knows_them() {
        let refused = |policy: &str, features: Value| {
            let spec = json!({ "securityContext": { "supplementalGroupsPolicy": policy }, "containers": [] });
            let node = json!({ "status": { "features": features } });
            let (spec, node) = (serde_json::from_value(spec).unwrap(), serde_json::from_value(node).unwrap());
            lacks_feature(&spec, &node).map(|refusal| refusal.reason)
        };
        let unsupported = Some("SupplementalGroupsPolicyNotSupported".to_owned());
        assert_eq!(refused("Strict", Value::Null), unsupported);
        assert_eq!(refused("Strict", json!({ "supplementalGroupsPolicy": false })), unsupported);
        assert_eq!(refused("Strict", json!({ "supplementalGroupsPolicy": true })), None);
        assert_eq!(refused("Merge", Value::Null), None);
    }

    #[test]
    fn taints_that_drive_pods_away_are_tolerated_or_not() {
        let tolerating = |toleration: Value| refused(&json!({ "tolerations": [toleration] }));
        let taint = Some("TaintToleration".to_owned());
        assert_eq!(refused(&json!({})), taint);
        assert_eq!(tolerating(json!({ "key": "broken", "value": "no" })), taint);
        assert_eq!(
            tolerating(json!({ "key": "broken", "operator": "Exists", "effect": "NoSchedule" })),
            taint
        );
        assert_eq!(tolerating(json!({ "key": "other", "operator": "Exists" })), taint);
        assert_eq!(tolerating(json!({ "key": "broken", "value": "yes" })), None);
        assert_eq!(tolerating(json!({ "key": "broken", "operator": "Exists", "effect": "NoExecute" })), None);
        assert_eq!(tolerating(json!({ "operator": "Exists" })), None);
    }

    #[test]
    fn selectors_and_affinity_choose_the_node_or_not() {
        let affinity = Some("NodeAffinity".to_owned());
        let selecting = |key: &str, value: &str| {
            refused(&json!({ "tolerations": [{ "operator": "Exists" }], "nodeSelector": { key: value } }))
        };
        assert_eq!((selecting("zone", "a"), selecting("zone", "b")), (None, affinity.clone()));
        for (expression, chosen) in [
            (json!({ "key": "zone", "operator": "In", "values": ["b", "a"] }), true),
            (json!({ "key": "zone", "operator": "In", "values": ["b"] }), false),
            (json!({ "key": "zone", "operator": "NotIn", "values": ["a"] }), false),
            (json!({ "key": "none", "operator": "NotIn", "values": ["a"] }), true),
            (json!({ "key": "zone", "operator": "Exists" }), true),
            (json!({ "key": "zone", "operator": "DoesNotExist" }), false),
            (json!({ "key": "size", "operator": "Gt", "values": ["6"] }), true),
            (json!({ "key": "size", "operator": "Lt", "values": ["7"] }), false),
            (json!({ "key": "zone", "operator": "Gt", "values": ["6"] }), false),
            (json!({ "key": "none", "operator": "Lt", "values": ["6"] }), false),
        ] {
            let spec = with_affinity(&json!({ "matchExpressions": [expression.clone()] }));
            assert_eq!(refused(&spec).is_none(), chosen, "{expression}");
        }
        let named = |name: &str| {
            let field = json!({ "key": "metadata.name", "operator": "In", "values": [name] });
            refused(&with_affinity(&json!({ "matchFields": [field] })))
        };
        assert_eq!((named("vk"), named("other")), (None, affinity.clone()));
        assert_eq!(refused(&with_affinity(&json!({}))), affinity);
    }
}
