//! How a daemon ends: the whole chain of causes in one line, on standard error and in the container's termination message.

use std::{path::Path, process::ExitCode};

/// Kubernetes' default `terminationMessagePath`. The kubelet keeps at most 4 KiB of it.
const TERMINATION_LOG: &str = "/dev/termination-log";

/// Turns the daemon's result into its exit status, telling the user what failed.
pub fn report(program: &str, result: anyhow::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let message = format!("{error:#}");
            eprintln!("{program}: {message}");
            // The file exists only inside a container whose pod asked for it; elsewhere nothing must be created.
            if Path::new(TERMINATION_LOG).exists() {
                let _ = std::fs::write(TERMINATION_LOG, message.as_bytes());
            }
            ExitCode::FAILURE
        }
    }
}
