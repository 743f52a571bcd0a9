//! Every example of `--help` runs as it stands, in a folder with the files of `examples`. Those that need a cluster run in `tests/tests/e2e/capacity.rs`.

use std::{fs, path::Path, process::Command};

use clap::CommandFactory as _;
use kubectl_spillway::args::Args;

/// How an example begins in a help text.
const EXAMPLE: &str = "  kubectl spillway ";

/// The commands that ask a cluster: their examples are for one.
const NEED_A_CLUSTER: [&str; 6] =
    ["report", "record", "serve", "html report", "history --prometheus", "showback --prometheus"];

fn examples(command: &clap::Command, found: &mut Vec<String>) {
    let help = command.get_after_long_help().map(ToString::to_string).unwrap_or_default();
    for line in help.lines() {
        assert!(line.chars().count() <= 80 || !line.starts_with("  "), "a terminal would break `{line}`");
    }
    // A backslash at a line's end: the example goes on in the next.
    let joined = help.replace(" \\\n      ", " ");
    found.extend(joined.lines().filter(|line| line.starts_with(EXAMPLE)).map(|line| line.trim().to_owned()));
    let has_examples = found.iter().any(|line| line.contains(command.get_name()));
    let leaf = command.get_subcommands().next().is_none();
    assert!(
        has_examples || !leaf || command.is_hide_set(),
        "`{}` has no example in its --help",
        command.get_name()
    );
    for sub in command.get_subcommands() {
        examples(sub, found);
    }
}

#[test]
fn every_example_runs_as_it_stands() {
    let mut found = Vec::new();
    examples(&Args::command(), &mut found);
    let folder = tempfile::tempdir().unwrap();
    for file in fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("examples")).unwrap() {
        let file = file.unwrap();
        fs::copy(file.path(), folder.path().join(file.file_name())).unwrap();
    }
    // What kubectl does with a plugin, less kubectl.
    let kubectl = format!("#!/bin/sh\nshift\nexec {} \"$@\"\n", env!("CARGO_BIN_EXE_kubectl-spillway"));
    let programs = folder.path().join("bin");
    fs::create_dir(&programs).unwrap();
    fs::write(programs.join("kubectl"), kubectl).unwrap();
    assert!(
        Command::new("chmod")
            .args(["+x", "bin/kubectl"])
            .current_dir(folder.path())
            .status()
            .unwrap()
            .success()
    );
    let path = format!("{}:{}", programs.display(), std::env::var("PATH").unwrap());

    let needs_a_cluster = |line: &str| {
        let words = line.trim_start_matches("kubectl spillway ");
        NEED_A_CLUSTER.iter().any(|command| words.starts_with(command))
    };
    for line in found.iter().filter(|line| !needs_a_cluster(line)) {
        let output = Command::new("bash")
            .args(["-o", "pipefail", "-ec", line])
            .current_dir(folder.path())
            .env("PATH", &path)
            .env("HOME", folder.path())
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "`{line}`: {}\n{}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
    }
}
