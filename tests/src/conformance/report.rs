//! What Kubernetes' tests came to: read from Ginkgo's JSON report, judged by the list of exceptions, told as text and as a table.

use std::{collections::BTreeMap, fmt::Write as _, fs, path::Path, time::Duration};

use anyhow::Context as _;
use serde::Deserialize;

use super::{
    Target,
    exceptions::{Exceptions, Scope},
};
use crate::components;

/// Name of the report that the suite writes.
pub const FILE: &str = "report.json";

/// What the tests that ran came to, by their names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// When the suite began, as RFC 3339.
    pub began: String,
    /// Why a test failed; `None` for one that passed.
    pub tests: BTreeMap<String, Option<String>>,
}

/// An outcome beside the exceptions.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Failed, and no exception.
    pub unexpected: Vec<String>,
    /// Failed as an exception may.
    pub excepted: Vec<String>,
    /// Passed although an exception.
    pub outdated: Vec<String>,
}

// Ginkgo v2's `types.Report`, as far as it is used.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Report {
    start_time: String,
    #[serde(default)]
    spec_reports: Option<Vec<Spec>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Spec {
    #[serde(default)]
    container_hierarchy_texts: Option<Vec<String>>,
    leaf_node_type: String,
    leaf_node_text: String,
    state: String,
    #[serde(default)]
    failure: Failure,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Failure {
    #[serde(default)]
    message: String,
}

impl Outcome {
    /// Reads a report.
    ///
    /// # Errors
    /// When it is not there or not Ginkgo's.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let text = fs::read_to_string(path).with_context(|| format!("can't read {}", path.display()))?;
        Self::parse(&text).with_context(|| format!("{} is no report of Ginkgo's", path.display()))
    }

    fn parse(text: &str) -> anyhow::Result<Self> {
        let report = serde_json::from_str::<Vec<Report>>(text)?.into_iter().next().context("it is empty")?;
        let mut tests = BTreeMap::new();
        for spec in report.spec_reports.into_iter().flatten() {
            let failure = match spec.state.as_str() {
                "passed" => None,
                // What wasn't chosen, and what a test itself finds not to apply to this cluster.
                "skipped" | "pending" => continue,
                state => Some(format!("{state}: {}", spec.failure.message.trim())),
            };
            let name = if spec.leaf_node_type == "It" {
                let parts = spec.container_hierarchy_texts.unwrap_or_default();
                parts.into_iter().chain([spec.leaf_node_text]).collect::<Vec<_>>().join(" ")
            } else if failure.is_some() {
                // The suite's own preparation counts when it fails.
                spec.leaf_node_type
            } else {
                continue;
            };
            tests.insert(name, failure);
        }
        Ok(Self { began: report.start_time, tests })
    }

    /// How many passed.
    pub fn passed(&self) -> usize {
        self.tests.values().filter(|failure| failure.is_none()).count()
    }

    /// Holds the outcome against the exceptions.
    pub fn judge(&self, node: Target, exceptions: &Exceptions) -> Verdict {
        let mut verdict = Verdict::default();
        for (test, failure) in &self.tests {
            let excepted = exceptions
                .of(test)
                .is_some_and(|exception| exception.on == Scope::Machine || node == Target::Virtual);
            match (failure, excepted) {
                (Some(_), true) => verdict.excepted.push(test.clone()),
                (Some(_), false) => verdict.unexpected.push(test.clone()),
                (None, true) => verdict.outdated.push(test.clone()),
                (None, false) => {}
            }
        }
        verdict
    }

    /// What a person reads at the end.
    pub fn summary(&self, node: Target, took: Duration, verdict: &Verdict) -> String {
        let mut text = String::new();
        for (title, tests) in [
            ("failed", &verdict.unexpected),
            ("failed, as the list of exceptions says", &verdict.excepted),
            ("passed although on the list of exceptions", &verdict.outdated),
        ] {
            for test in tests {
                let _ = writeln!(text, "{title}: {test}");
                if let Some(Some(failure)) = self.tests.get(test) {
                    let first: String = failure.lines().take(3).collect::<Vec<_>>().join("\n    ");
                    let _ = writeln!(text, "    {}", first.chars().take(600).collect::<String>());
                }
            }
        }
        let _ = write!(
            text,
            "Kubernetes' tests ({}) on the {} node: {} of {} passed in {:.0} s",
            components::KUBERNETES_VERSION,
            node.name(),
            self.passed(),
            self.tests.len(),
            took.as_secs_f64()
        );
        text
    }
}

/// A Markdown table of the last run on either node, from the reports below `folder`.
///
/// # Errors
/// When a report is there and can't be read.
pub fn table(folder: &Path, exceptions: &Exceptions) -> anyhow::Result<String> {
    let read = |node: Target| {
        let path = folder.join(node.name()).join(FILE);
        path.exists().then(|| Outcome::read(&path)).transpose()
    };
    Ok(render(read(Target::Virtual)?.as_ref(), read(Target::Real)?.as_ref(), exceptions))
}

fn render(on_virtual: Option<&Outcome>, on_real: Option<&Outcome>, exceptions: &Exceptions) -> String {
    let mut text = format!("# Kubernetes' own tests ({})\n\n", components::KUBERNETES_VERSION);
    for (node, outcome) in [("virtual node", on_virtual), ("kubelet", on_real)] {
        if let Some(outcome) = outcome {
            let day = outcome.began.split('T').next().unwrap_or_default();
            let _ =
                writeln!(text, "- {node}: {} of {} passed ({day})", outcome.passed(), outcome.tests.len());
        }
    }
    text += "\nWritten by `cargo xtask conformance --table FILE`.\n\n| test | virtual node | kubelet | why |\n|---|---|---|---|\n";
    let names = on_virtual.into_iter().chain(on_real).flat_map(|outcome| outcome.tests.keys());
    for name in names.collect::<std::collections::BTreeSet<_>>() {
        let cell = |outcome: Option<&Outcome>| match outcome.and_then(|outcome| outcome.tests.get(name)) {
            None => "not run",
            Some(None) => "passed",
            Some(Some(_)) => "**failed**",
        };
        let why = exceptions.of(name).map_or("", |exception| exception.why.as_str());
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} |",
            name.replace('|', "\\|"),
            cell(on_virtual),
            cell(on_real),
            why.trim()
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::{super::exceptions::Exception, *};

    const REPORT: &str = r#"[{"StartTime": "2026-01-02T03:04:05Z", "SpecReports": [
        {"ContainerHierarchyTexts": null, "LeafNodeType": "SynchronizedBeforeSuite", "LeafNodeText": "", "State": "passed"},
        {"ContainerHierarchyTexts": ["[sig-node] Pods"], "LeafNodeType": "It", "LeafNodeText": "should run", "State": "passed"},
        {"ContainerHierarchyTexts": ["[sig-node] Pods"], "LeafNodeType": "It", "LeafNodeText": "should a|b", "State": "timedout",
         "Failure": {"Message": "too slow\nmore"}},
        {"ContainerHierarchyTexts": ["[sig-node] Pods"], "LeafNodeType": "It", "LeafNodeText": "windows", "State": "skipped"}]}]"#;

    #[test]
    fn a_report_is_judged_by_the_exceptions() {
        let outcome = Outcome::parse(REPORT).unwrap();
        assert_eq!((outcome.passed(), outcome.tests.len()), (1, 2));
        let failed = "[sig-node] Pods should a|b".to_owned();
        assert_eq!(outcome.tests[&failed].as_deref(), Some("timedout: too slow\nmore"));
        let none = Exceptions::default();
        assert_eq!(outcome.judge(Target::Virtual, &none).unexpected, std::slice::from_ref(&failed));
        let exception = |test: &str, on| Exception { test: test.to_owned(), on, why: "it can't".to_owned() };
        let list = Exceptions {
            exceptions: vec![
                exception(&failed, Scope::Virtual),
                exception("[sig-node] Pods should run", Scope::Machine),
            ],
        };
        let verdict = outcome.judge(Target::Virtual, &list);
        assert_eq!((verdict.unexpected.len(), verdict.excepted.len(), verdict.outdated.len()), (0, 1, 1));
        assert_eq!(outcome.judge(Target::Real, &list).unexpected, [failed]);
        let table = render(Some(&outcome), None, &list);
        assert!(
            table.contains("| [sig-node] Pods should a\\|b | **failed** | not run | it can't |"),
            "{table}"
        );
        assert!(table.contains("virtual node: 1 of 2 passed (2026-01-02)"), "{table}");
    }

    #[test]
    fn what_is_no_report_is_an_error() {
        for text in ["", "[]", "{}", "[{}]"] {
            assert!(Outcome::parse(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_suite_that_could_not_begin_has_failed() {
        let text = r#"[{"StartTime": "", "SpecReports": [{"LeafNodeType": "SynchronizedBeforeSuite", "LeafNodeText": "", "State": "failed",
            "Failure": {"Message": "no nodes"}}]}]"#;
        let outcome = Outcome::parse(text).unwrap();
        assert_eq!(
            outcome.judge(Target::Virtual, &Exceptions::default()).unexpected,
            ["SynchronizedBeforeSuite"]
        );
    }
}
