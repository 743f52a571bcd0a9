//! `kubectl spillway <TAB>`: kubectl asks a program `kubectl_complete-spillway` on the PATH what a word may become
//! (kubernetes: `staging/src/k8s.io/kubectl/pkg/cmd/plugin/plugin_completion.go`), and understands cobra's answers.

use std::{
    ffi::OsString,
    fmt::Write as _,
    io::{self, Write as _},
};

use clap::CommandFactory as _;
use clap_complete::{CompletionCandidate, engine};

use crate::{args, command::Outcome, output, terminal::printable};

/// Cobra's directives (`cobra: completions.go`): what the shell does with the candidates.
const NO_SPACE: u8 = 2;
const NO_FILES: u8 = 4;

/// What `kubectl spillway completion` prints.
const SCRIPT: &str = "#!/bin/sh\nexec kubectl spillway __complete -- \"$@\"\n";

/// Flags of `completion`: none.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Examples:
  # Completion for every shell that kubectl has completion for
  kubectl spillway completion > kubectl_complete-spillway && chmod +x \\
      kubectl_complete-spillway

Move the file to a folder of your PATH, beside kubectl-spillway.")]
pub struct Args {}

/// The words typed so far, the last of which is to be completed.
#[derive(Debug, clap::Args)]
pub struct Words {
    /// What stands after `kubectl spillway`.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    words: Vec<OsString>,
}

/// Prints the program that kubectl asks.
pub(super) fn script() -> anyhow::Result<Outcome> {
    told(SCRIPT)
}

/// Answers kubectl: a candidate a line, with what it means after a tab, and last what the shell is to do.
pub(super) fn complete(words: &Words) -> anyhow::Result<Outcome> {
    told(&answer(&words.words)?)
}

fn told(text: &str) -> anyhow::Result<Outcome> {
    let mut out = output::stdout();
    out.write_all(text.as_bytes())?;
    out.flush()?;
    Ok(Outcome::Done)
}

fn answer(words: &[OsString]) -> io::Result<String> {
    let mut line = vec![OsString::from("kubectl-spillway")];
    line.extend_from_slice(words);
    if words.is_empty() {
        line.push(OsString::new());
    }
    let last = line.len() - 1;
    let folder = std::env::current_dir().ok();
    let candidates = engine::complete(&mut args::Args::command(), line, last, folder.as_deref())?;
    // As with kubectl's own commands, flags are offered to whom begins with one.
    let flags = words.last().is_some_and(|word| word.as_encoded_bytes().starts_with(b"-"));
    let wanted = |candidate: &&CompletionCandidate| {
        !candidate.is_hide_set() && (flags || !candidate.get_value().as_encoded_bytes().starts_with(b"-"))
    };
    let shown: Vec<&CompletionCandidate> = candidates.iter().filter(wanted).collect();
    let mut text = String::new();
    for candidate in &shown {
        text.push_str(&printable(&candidate.get_value().to_string_lossy()));
        if let Some(help) = candidate.get_help() {
            text.push('\t');
            text.push_str(&printable(help.to_string().lines().next().unwrap_or_default()));
        }
        text.push('\n');
    }
    let folder_follows = shown.iter().any(|candidate| candidate.get_value().to_string_lossy().ends_with('/'));
    let directive = if folder_follows { NO_FILES | NO_SPACE } else { NO_FILES };
    let _ = writeln!(text, ":{directive}");
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::answer;

    fn answered(words: &[&str]) -> String {
        answer(&words.iter().map(Into::into).collect::<Vec<_>>()).unwrap()
    }

    #[test]
    fn commands_flags_and_values_are_completed_as_cobra_says_them() {
        let commands = answered(&["ma"]);
        assert_eq!(commands, "man\tPrint the manual page\n:4\n");
        assert!(answered(&["man", "--kubec"]).starts_with("--kubeconfig\t"));
        assert_eq!(
            answered(&["man", "-o", "js"]).lines().next().and_then(|line| line.split('\t').next()),
            Some("json")
        );
        let nothing = answered(&[]);
        assert!(
            nothing.contains("man\t") && !nothing.contains("__complete") && !nothing.contains("--"),
            "{nothing}"
        );
    }
}
