//! Which of Kubernetes' tests may fail, and why.

use std::fs;

use anyhow::Context as _;
use serde::Deserialize;

const FILE: &str = "tests/cluster/conformance/exceptions.yaml";

/// The list in the repository.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Exceptions {
    /// Each by itself, so that one that is no longer needed shows.
    pub exceptions: Vec<Exception>,
}

/// A test that may fail.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Exception {
    /// Its whole name.
    pub test: String,
    /// Where: on the virtual node alone, or on every node, because of the machine that this runs on.
    pub on: Scope,
    /// Why it fails.
    pub why: String,
}

/// Where a test may fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// On the virtual node.
    Virtual,
    /// On this machine, whatever the node.
    Machine,
}

impl Exceptions {
    /// Reads the list.
    ///
    /// # Errors
    /// When it can't be read or parsed.
    pub fn read() -> anyhow::Result<Self> {
        let path = crate::repository().join(FILE);
        let text = fs::read_to_string(&path).with_context(|| format!("can't read {}", path.display()))?;
        serde_saphyr::from_str(&text)
            .with_context(|| format!("{} is not a list of exceptions", path.display()))
    }

    /// The exception that a test is.
    pub fn of(&self, test: &str) -> Option<&Exception> {
        self.exceptions.iter().find(|exception| exception.test == test)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_in_the_repository_gives_reasons_once_each() {
        let exceptions = Exceptions::read().unwrap().exceptions;
        for (n, exception) in exceptions.iter().enumerate() {
            assert!(exception.why.len() > 20, "no reason for {}", exception.test);
            assert!(exceptions[..n].iter().all(|other| other.test != exception.test), "{}", exception.test);
        }
    }
}
