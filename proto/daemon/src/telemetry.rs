//! Structured logs on standard error.

use anyhow::Context as _;
use tracing_subscriber::EnvFilter;

/// Format of the log lines.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// One human-readable line an event.
    #[default]
    Text,
    /// One JSON object an event.
    Json,
}

/// A watch that the API server forbids is tried again and again, and kube warns of it each time, with all that it knows. Whoever watches says
/// it once, with what to do; the rest is heard by who asks for it by name.
const TOLD_ELSEWHERE: &str = "kube_runtime::watcher=error";

fn filter(level: &str) -> Result<EnvFilter, tracing_subscriber::filter::ParseError> {
    // Of two directives for one target the later one counts.
    EnvFilter::try_new(format!("{TOLD_ELSEWHERE},{level}"))
}

/// Installs the process-wide subscriber. Call it once, first.
///
/// # Errors
/// When `level` is no level and no filter, or a subscriber is installed already.
pub fn init(format: LogFormat, level: &str) -> anyhow::Result<()> {
    let filter = filter(level).with_context(|| {
        format!("--log-level {level:?} is neither a level nor a filter such as info,kube=debug")
    })?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let installed = match format {
        LogFormat::Text => builder.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    installed.map_err(|error| anyhow::anyhow!("can't install the log subscriber: {error}"))
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl std::io::Write for Written {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_watchs_own_warnings_are_heard_only_by_who_asks_for_them() {
        let heard = |level: &str| {
            let written = Written::default();
            let writer = written.clone();
            let subscriber = tracing_subscriber::fmt()
                .with_env_filter(filter(level).unwrap())
                .with_ansi(false)
                .with_writer(move || writer.clone())
                .finish();
            tracing::subscriber::with_default(subscriber, || {
                tracing::warn!(target: "kube_runtime::watcher", "watch");
                tracing::warn!(target: "kube_runtime::controller", "controller");
                tracing::info!(target: "spillway_agent", "agent");
            });
            let text = String::from_utf8(written.0.lock().unwrap().clone()).unwrap();
            ["watch", "controller", "agent"].map(|what| text.contains(&format!(": {what}")))
        };
        assert_eq!(heard("info"), [false, true, true]);
        assert_eq!(heard("warn"), [false, true, false]);
        assert_eq!(heard("info,kube_runtime::watcher=warn"), [true, true, true]);
        assert!(filter("info=no level").is_err());
    }
}
