//! TEMPORARY stub; its owner overwrites this file.
/// Options.
#[derive(Debug, Clone, clap::Args)]
pub struct DemoOptions {}
/// Runs.
pub fn run(_: &DemoOptions) -> anyhow::Result<()> { Ok(()) }
