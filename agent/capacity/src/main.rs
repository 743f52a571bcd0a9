//! `kubectl spillway`.

use std::process::ExitCode;

use clap::Parser as _;
use kubectl_spillway::{args::Args, command};

fn main() -> ExitCode {
    command::run(&Args::parse())
}
