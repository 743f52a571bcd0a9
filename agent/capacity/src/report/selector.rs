//! Whether labels and taints fit, as the scheduler says (`component-helpers/scheduling/corev1`). Pure.

use std::{collections::BTreeSet, sync::Arc};

use k8s_openapi::{
    api::core::v1::{NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, Taint, Toleration},
    apimachinery::pkg::apis::meta::v1::LabelSelector,
};

use super::snapshot::{Labels, Node, Wish};

/// Whether a node has the labels, and fits the affinity, that a pod demands.
pub(super) fn selects(wish: &Wish, node: &Node) -> bool {
    let labelled = wish.selector.iter().all(|(key, value)| has(&node.labels, key, value));
    labelled && required(wish).is_none_or(|selector| selected(selector, node))
}

/// Whether a node is one of those that a selector of nodes means.
pub(super) fn selected(selector: &NodeSelector, node: &Node) -> bool {
    selector.node_selector_terms.iter().any(|term| term_fits(term, node))
}

/// What pods demand of nodes' labels.
#[derive(Debug, Default)]
pub(super) struct Demands<'a> {
    /// The labels that any of them looks at.
    pub(super) keys: BTreeSet<&'a str>,
    /// Whether any looks at what each node has of its own: its name.
    pub(super) single: bool,
}

impl<'a> Demands<'a> {
    pub(super) fn add(&mut self, wish: &'a Wish) {
        self.keys.extend(wish.selector.keys().map(String::as_str));
        if let Some(selector) = required(wish) {
            self.add_selector(selector);
        }
    }

    pub(super) fn add_selector(&mut self, selector: &'a NodeSelector) {
        for term in &selector.node_selector_terms {
            let expressions = term.match_expressions.iter().flatten();
            self.keys.extend(expressions.map(|one| &*one.key));
            self.single |= term.match_fields.iter().flatten().next().is_some();
        }
    }
}

/// The node affinity that a pod demands.
pub(super) fn required(wish: &Wish) -> Option<&NodeSelector> {
    wish.affinity.node_affinity.as_ref()?.required_during_scheduling_ignored_during_execution.as_ref()
}

pub(super) fn has(labels: &Labels, key: &str, value: &str) -> bool {
    labels.get(key).is_some_and(|found| &**found == value)
}

/// An empty term fits nothing.
fn term_fits(term: &NodeSelectorTerm, node: &Node) -> bool {
    let expressions = term.match_expressions.as_deref().unwrap_or_default();
    let fields = term.match_fields.as_deref().unwrap_or_default();
    let named = |field: &str| (field == "metadata.name").then_some(&node.name);
    !(expressions.is_empty() && fields.is_empty())
        && expressions.iter().all(|one| requirement_fits(one, node.labels.get(&*one.key)))
        && fields.iter().all(|one| requirement_fits(one, named(&one.key)))
}

fn requirement_fits(requirement: &NodeSelectorRequirement, found: Option<&Arc<str>>) -> bool {
    let values = requirement.values.as_deref().unwrap_or_default();
    let among = |found: &Arc<str>| values.iter().any(|value| **value == **found);
    let number = |text: &str| text.parse::<i64>().ok();
    let bound = || values.first().and_then(|value| number(value));
    match requirement.operator.as_str() {
        "In" => found.is_some_and(among),
        "NotIn" => !found.is_some_and(among),
        "Exists" => found.is_some(),
        "DoesNotExist" => found.is_none(),
        "Gt" => {
            found.and_then(|found| number(found)).zip(bound()).is_some_and(|(found, bound)| found > bound)
        }
        "Lt" => {
            found.and_then(|found| number(found)).zip(bound()).is_some_and(|(found, bound)| found < bound)
        }
        _ => false,
    }
}

/// Whether labels fit a selector of labels; none fits nothing, an empty one everything.
pub(super) fn labels_fit(selector: Option<&LabelSelector>, labels: &Labels) -> bool {
    let Some(selector) = selector else { return false };
    selector.match_labels.iter().flatten().all(|(key, value)| has(labels, key, value))
        && selector.match_expressions.iter().flatten().all(|one| {
            let found = labels.get(&*one.key);
            let values = one.values.as_deref().unwrap_or_default();
            let among = |found: &Arc<str>| values.iter().any(|value| **value == **found);
            match one.operator.as_str() {
                "In" => found.is_some_and(among),
                "NotIn" => !found.is_some_and(among),
                "Exists" => found.is_some(),
                "DoesNotExist" => found.is_none(),
                _ => false,
            }
        })
}

/// The first taint that keeps the pod off.
pub(super) fn repels<'a>(wish: &Wish, node: &'a Node) -> Option<&'a Taint> {
    let mut hard = node.taints.iter().filter(|taint| taint.effect != "PreferNoSchedule");
    hard.find(|taint| !wish.tolerations.iter().any(|toleration| tolerates(toleration, taint)))
}

/// Whether the pod may go where others are kept off by `kubectl cordon`.
pub(super) fn minds_cordon(wish: &Wish) -> bool {
    let cordon = Taint {
        key: "node.kubernetes.io/unschedulable".to_owned(),
        effect: "NoSchedule".to_owned(),
        ..Taint::default()
    };
    !wish.tolerations.iter().any(|toleration| tolerates(toleration, &cordon))
}

fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let is = |text: &Option<String>| text.as_deref().filter(|text| !text.is_empty()).map(str::to_owned);
    if is(&toleration.effect).is_some_and(|effect| effect != taint.effect) {
        return false;
    }
    let key = is(&toleration.key);
    if key.as_ref().is_some_and(|key| *key != taint.key) {
        return false;
    }
    let (own, its) = (toleration.value.as_deref().unwrap_or(""), taint.value.as_deref().unwrap_or(""));
    let numbers = own.parse::<i64>().ok().zip(its.parse::<i64>().ok());
    match toleration.operator.as_deref().unwrap_or("Equal") {
        "Exists" => true,
        "" | "Equal" => key.is_some() && own == its,
        "Lt" => numbers.is_some_and(|(own, its)| its < own),
        "Gt" => numbers.is_some_and(|(own, its)| its > own),
        _ => false,
    }
}

/// A taint as `kubectl taint` takes it.
pub(super) fn told(taint: &Taint) -> String {
    let value = taint.value.as_deref().filter(|value| !value.is_empty());
    let value = value.map(|value| format!("={value}")).unwrap_or_default();
    format!("{}{value}:{}", taint.key, taint.effect)
}

/// A selector of labels, as `kubectl -l` takes it: `a=b,c!=d,e in (f,g),h notin (i),j,!k`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Selector(Vec<Demand>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Demand {
    key: String,
    /// Whether the label has to be there, with one of `values` if there are any; or must not.
    wanted: bool,
    values: Vec<String>,
}

/// A text that is no selector.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0:?} is no selector of labels, such as pool=a100,tier!=test or zone in (a,b)")]
pub struct NotASelector(String);

impl std::str::FromStr for Selector {
    type Err = NotASelector;

    fn from_str(text: &str) -> Result<Self, NotASelector> {
        let wrong = || NotASelector(text.to_owned());
        if text.trim().is_empty() {
            return Ok(Self::default());
        }
        let mut demands = Vec::new();
        let mut depth = 0_i32;
        let parts = text.split(|char| {
            depth += match char {
                '(' => 1,
                ')' => -1,
                _ => 0,
            };
            char == ',' && depth == 0
        });
        for part in parts.map(str::trim) {
            demands.push(demand(part).ok_or_else(wrong)?);
        }
        Ok(Self(demands))
    }
}

fn demand(part: &str) -> Option<Demand> {
    let sound = |text: &str| {
        let text = text.trim();
        let fits = |char: char| char.is_ascii_alphanumeric() || "-_./".contains(char);
        text.chars().all(fits).then(|| text.to_owned())
    };
    let key = |text: &str| sound(text).filter(|key| !key.is_empty());
    if let Some((head, list)) = part.strip_suffix(')').and_then(|part| part.split_once('(')) {
        let (name, word) = head.trim().rsplit_once(char::is_whitespace)?;
        let wanted = match word {
            "in" => true,
            "notin" => false,
            _ => return None,
        };
        let values = list.split(',').map(sound).collect::<Option<Vec<_>>>()?;
        return Some(Demand { key: key(name)?, wanted, values });
    }
    if let Some((name, value)) = part.split_once("!=") {
        return Some(Demand { key: key(name)?, wanted: false, values: vec![sound(value)?] });
    }
    if let Some((name, value)) = part.split_once("==").or_else(|| part.split_once('=')) {
        return Some(Demand { key: key(name)?, wanted: true, values: vec![sound(value)?] });
    }
    match part.strip_prefix('!') {
        Some(name) => Some(Demand { key: key(name)?, wanted: false, values: Vec::new() }),
        None if part.is_empty() => None,
        None => Some(Demand { key: key(part)?, wanted: true, values: Vec::new() }),
    }
}

impl Selector {
    /// Whether it fits everything.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether it fits an object with these labels.
    pub fn fits(&self, labels: &Labels) -> bool {
        self.0.iter().all(|demand| {
            let found = labels.get(&*demand.key);
            let among = |found: &Arc<str>| {
                demand.values.is_empty() || demand.values.iter().any(|value| **value == **found)
            };
            found.is_some_and(among) == demand.wanted
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(text: &str) -> Labels {
        let pairs = text.split(',').filter_map(|pair| pair.split_once('='));
        pairs.map(|(key, value)| (key.into(), value.into())).collect()
    }

    #[test]
    fn selectors_are_kubectls() {
        let node = labels("pool=a100,zone=b");
        for (text, fits) in [
            ("", true),
            ("pool=a100", true),
            ("pool==a100,zone!=c", true),
            ("pool!=a100", false),
            ("gone!=x", true),
            ("zone in (a, b)", true),
            ("zone notin (a,b)", false),
            ("gone notin (a)", true),
            ("pool", true),
            ("!pool", false),
            ("!gone , pool in (a100),zone", true),
        ] {
            assert_eq!(text.parse::<Selector>().unwrap().fits(&node), fits, "{text}");
        }
        for wrong in ["=", "a,,b", "a in b", "a within (b)", "(a)", "a=b c", "\u{1b}[2J", ","] {
            assert_eq!(wrong.parse::<Selector>(), Err(NotASelector(wrong.to_owned())));
        }
    }

    #[test]
    fn taints_are_tolerated_as_the_scheduler_says() {
        let taint = |key: &str, value: &str| Taint {
            key: key.to_owned(),
            value: Some(value.to_owned()),
            effect: "NoSchedule".to_owned(),
            ..Taint::default()
        };
        let toleration =
            |key: Option<&str>, operator: &str, value: Option<&str>, effect: Option<&str>| Toleration {
                key: key.map(str::to_owned),
                operator: Some(operator.to_owned()),
                value: value.map(str::to_owned),
                effect: effect.map(str::to_owned),
                ..Toleration::default()
            };
        for (given, fits) in [
            (toleration(Some("gpu"), "Exists", None, None), true),
            (toleration(None, "Exists", None, None), true),
            (toleration(Some("gpu"), "Equal", Some("a"), None), true),
            (toleration(Some("gpu"), "Equal", Some("b"), None), false),
            (toleration(Some("gpu"), "Exists", None, Some("NoExecute")), false),
            (toleration(Some("cpu"), "Exists", None, None), false),
        ] {
            assert_eq!(tolerates(&given, &taint("gpu", "a")), fits, "{given:?}");
        }
        assert!(!tolerates(&toleration(None, "Equal", Some("a"), None), &taint("gpu", "a")));
        assert_eq!(told(&taint("gpu", "")), "gpu:NoSchedule");
    }
}
