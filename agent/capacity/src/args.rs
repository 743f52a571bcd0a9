//! The command line: flags that all commands share, as kubectl has them. Each command's own flags stand with the command.

use std::path::PathBuf;

use clap::{Args as ClapArgs, Parser};
use clap_complete::{ArgValueCandidates, CompletionCandidate};
use kube::config::Kubeconfig;

use crate::{command::Command, output::Format};

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
    #[arg(short, long, global = true, value_name = "NAMESPACE")]
    pub namespace: Option<String>,
    /// What is in all namespaces; the default.
    #[arg(short = 'A', long, global = true, conflicts_with = "namespace")]
    pub all_namespaces: bool,
    /// How to print the result.
    #[arg(short, long, global = true, value_enum, default_value_t, value_name = "FORMAT")]
    pub output: Format,
}

/// For completion: the contexts of the kubeconfig that is found without flags.
fn contexts() -> Vec<CompletionCandidate> {
    let Ok(config) = Kubeconfig::read() else { return Vec::new() };
    config.contexts.into_iter().map(|context| CompletionCandidate::new(context.name)).collect()
}
