//! Pods that see more than what they hold: driver containers, DCGM, programmers of FPGAs. One text says who and what:
//! `NAMESPACE`, `NAMESPACE/POD` or `NAMESPACE:KEY=VALUE+KEY=VALUE`, optionally followed by `@/dev/NODE`. A `*` ends a pod's or a node's
//! name with anything.

use std::{collections::BTreeMap, path::Path, str::FromStr};

use crate::pods::PodInfo;

/// Why a text says no exemption.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no exemption: expected NAMESPACE, NAMESPACE/POD or NAMESPACE:KEY=VALUE+KEY=VALUE, optionally followed by @/dev/NODE; POD and NODE may end with *"
)]
pub struct NoExemption(String);

/// A name, or the beginning of one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern {
    text: String,
    open: bool,
}

impl Pattern {
    fn new(text: &str) -> Self {
        match text.strip_suffix('*') {
            Some(begin) => Self { text: begin.to_owned(), open: true },
            None => Self { text: text.to_owned(), open: false },
        }
    }

    fn fits(&self, text: &str) -> bool {
        if self.open { text.starts_with(&self.text) } else { text == self.text }
    }

    /// Whether it means this node.
    pub fn matches(&self, node: &Path) -> bool {
        node.to_str().is_some_and(|node| self.fits(node))
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Who {
    Everybody,
    Named(Pattern),
    Labelled(BTreeMap<String, String>),
}

/// One exemption.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exemption {
    namespace: String,
    who: Who,
    /// The nodes; without them all.
    pub nodes: Option<Pattern>,
}

impl Exemption {
    /// Whether it is about this pod. None: its namespace, its name or its labels decide, and aren't known for certain yet.
    pub fn covers(&self, pod: &PodInfo) -> Option<bool> {
        if !pod.certain {
            return None;
        }
        if pod.namespace != self.namespace {
            return Some(false);
        }
        match &self.who {
            Who::Everybody => Some(true),
            Who::Named(pattern) => Some(pattern.fits(&pod.name)),
            Who::Labelled(wanted) => {
                let labels = pod.labels.as_ref()?;
                Some(wanted.iter().all(|(key, value)| labels.get(key) == Some(value)))
            }
        }
    }
}

impl FromStr for Exemption {
    type Err = NoExemption;

    fn from_str(text: &str) -> Result<Self, NoExemption> {
        let wrong = || NoExemption(text.to_owned());
        let (who, nodes) = match text.split_once('@') {
            Some((who, node)) if node.starts_with("/dev/") => (who, Some(Pattern::new(node))),
            Some(_) => return Err(wrong()),
            None => (text, None),
        };
        let (namespace, who) = if let Some((namespace, name)) = who.split_once('/') {
            if !is_name(name.strip_suffix('*').unwrap_or(name)) {
                return Err(wrong());
            }
            (namespace, Who::Named(Pattern::new(name)))
        } else if let Some((namespace, labels)) = who.split_once(':') {
            let labels = labels.split('+').map(|label| {
                let (key, value) = label.split_once('=')?;
                (!key.is_empty()).then(|| (key.to_owned(), value.to_owned()))
            });
            (namespace, Who::Labelled(labels.collect::<Option<_>>().ok_or_else(wrong)?))
        } else {
            (who, Who::Everybody)
        };
        if is_name(namespace) {
            Ok(Self { namespace: namespace.to_owned(), who, nodes })
        } else {
            Err(wrong())
        }
    }
}

fn is_name(text: &str) -> bool {
    !text.is_empty()
        && text
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-.".contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(namespace: &str, name: &str, labels: &[(&str, &str)]) -> PodInfo {
        PodInfo {
            uid: "u".to_owned(),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            labels: Some(
                labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
            ),
            certain: true,
        }
    }

    #[test]
    fn exemptions_cover_whom_they_name() {
        let dcgm = pod("monitoring", "dcgm-x7k2p", &[("app", "dcgm"), ("tier", "node")]);
        for (text, covers) in [
            ("monitoring", true),
            ("monitor", false),
            ("monitoring/dcgm-x7k2p", true),
            ("monitoring/dcgm-*", true),
            ("monitoring/dcgm", false),
            ("other/dcgm-*", false),
            ("monitoring:app=dcgm", true),
            ("monitoring:app=dcgm+tier=node", true),
            ("monitoring:app=dcgm+tier=pod", false),
            ("monitoring:app=", false),
        ] {
            assert_eq!(text.parse::<Exemption>().unwrap().covers(&dcgm), Some(covers), "{text}");
        }
        let unlabelled = PodInfo { labels: None, ..dcgm };
        assert_eq!("monitoring:app=dcgm".parse::<Exemption>().unwrap().covers(&unlabelled), None);
        assert_eq!("other:app=dcgm".parse::<Exemption>().unwrap().covers(&unlabelled), Some(false));
        let uncertain = PodInfo { certain: false, ..unlabelled };
        for text in ["monitoring", "monitoring/dcgm-*", "other"] {
            assert_eq!(text.parse::<Exemption>().unwrap().covers(&uncertain), None, "{text}");
        }
        let some: Exemption = "fpga/flasher@/dev/xclmgmt*".parse().unwrap();
        let nodes = some.nodes.unwrap();
        assert!(nodes.matches(Path::new("/dev/xclmgmt256")) && !nodes.matches(Path::new("/dev/nvidia0")));
    }

    #[test]
    fn nonsense_exempts_nobody() {
        for text in
            ["", "*", "a/", "/a", "a/*", "a:b", "a:=b", "A", "a b", "a@nvidia0", "a@/etc/x", "a,b", "a/b/c"]
        {
            assert!(text.parse::<Exemption>().is_err(), "{text}");
        }
    }
}
