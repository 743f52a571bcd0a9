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

/// Installs the process-wide subscriber. Call it once, first.
///
/// # Errors
/// When `level` is no level and no filter, or a subscriber is installed already.
pub fn init(format: LogFormat, level: &str) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(level).with_context(|| {
        format!("--log-level {level:?} is neither a level nor a filter such as info,kube=debug")
    })?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let installed = match format {
        LogFormat::Text => builder.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    installed.map_err(|error| anyhow::anyhow!("can't install the log subscriber: {error}"))
}
