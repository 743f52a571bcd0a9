//! The command line: flags that all commands share, as kubectl has them. Each command's own flags stand with the command.

use std::{ffi::OsString, path::PathBuf, time::Duration};

use clap::{Args as ClapArgs, Parser};
use clap_complete::{ArgValueCandidates, CompletionCandidate};
use kube::config::Kubeconfig;

use crate::{cluster, command::Command, output::Format};

/// Capacity planning for pools of dedicated and serverless accelerators: what is there and who holds it, how much to own, how much to rent, and why a pod waits.
#[derive(Debug, Parser)]
#[command(
    name = "kubectl-spillway",
    bin_name = "kubectl spillway",
    version,
    disable_help_subcommand = true,
    max_term_width = 120
)]
pub struct Args {
    /// What all commands share.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Flags that all commands share.
#[derive(Debug, Clone, Default, ClapArgs)]
#[command(next_help_heading = "Global options")]
pub struct Global {
    /// Path to the kubeconfig file; else $KUBECONFIG, ~/.kube/config, or the pod's service account.
    #[arg(long, global = true, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// The name of the kubeconfig context to use.
    #[arg(long, global = true, value_name = "NAME", add = ArgValueCandidates::new(contexts))]
    pub context: Option<String>,
    /// Only what is in this namespace. Machines and pools are always shown whole.
    #[arg(short, long, global = true, value_name = "NAMESPACE", add = ArgValueCandidates::new(namespaces))]
    pub namespace: Option<String>,
    /// What is in all namespaces; the default.
    #[arg(short = 'A', long, global = true, conflicts_with = "namespace")]
    pub all_namespaces: bool,
    /// How to print the result.
    #[arg(short, long, global = true, value_enum, default_value_t, value_name = "FORMAT")]
    pub output: Format,
}

/// Who completes a word doesn't wait for longer.
const COMPLETE_WITHIN: Duration = Duration::from_millis(1500);

/// For completion: the contexts of the kubeconfig.
fn contexts() -> Vec<CompletionCandidate> {
    let config = match typed("--kubeconfig") {
        Some(path) => Kubeconfig::read_from(PathBuf::from(path)),
        None => Kubeconfig::read(),
    };
    let contexts = config.map(|config| config.contexts).unwrap_or_default();
    contexts.into_iter().map(|context| CompletionCandidate::new(context.name)).collect()
}

/// For completion: the namespaces of the cluster that the line means so far; none where it does not answer at once.
fn namespaces() -> Vec<CompletionCandidate> {
    let global = Global {
        kubeconfig: typed("--kubeconfig").map(PathBuf::from),
        context: typed("--context").and_then(|name| name.into_string().ok()),
        ..Global::default()
    };
    let found = cluster::namespaces(global, COMPLETE_WITHIN);
    found.into_iter().map(CompletionCandidate::new).collect()
}

/// The value of a flag on the line that is being completed, which is a part of this process' own.
fn typed(flag: &str) -> Option<OsString> {
    value_of(flag, &std::env::args_os().collect::<Vec<_>>())
}

fn value_of(flag: &str, words: &[OsString]) -> Option<OsString> {
    let value = words.iter().enumerate().rev().find_map(|(at, word)| {
        let after = word.to_str().and_then(|word| word.strip_prefix(flag));
        match after {
            Some("") => words.get(at + 1).cloned(),
            Some(after) => after.strip_prefix('=').map(OsString::from),
            None => None,
        }
    });
    value.filter(|value| !value.is_empty())
}

#[cfg(test)]
mod tests {
    use super::value_of;

    #[test]
    fn flags_typed_before_are_found() {
        let found = |line: &str| {
            let words: Vec<_> = line.split(' ').map(Into::into).collect();
            value_of("--context", &words).map(|value| value.into_string().unwrap())
        };
        assert_eq!(found("report --context a -n "), Some("a".to_owned()));
        assert_eq!(found("report --context=a --context=b"), Some("b".to_owned()));
        assert_eq!(found("report --contexts a --context"), None);
        assert_eq!(found("report --context= -n"), None);
    }
}
