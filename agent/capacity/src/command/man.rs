//! `kubectl spillway man`: the manual page, made of the command line itself.

use std::io;

use anyhow::Context as _;
use clap::CommandFactory as _;

use crate::{args::Args, command::Outcome};

/// Prints the manual page in roff.
pub(super) fn run() -> anyhow::Result<Outcome> {
    clap_mangen::Man::new(Args::command())
        .render(&mut io::stdout())
        .context("can't write the manual page")?;
    Ok(Outcome::Done)
}
