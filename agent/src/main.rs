//! The `spillway-agent` daemon.

use std::process::ExitCode;

use clap::Parser as _;
use spillway_agent::{args::Args, run};

fn main() -> ExitCode {
    let args = Args::parse();
    spillway_daemon::exit::report("spillway-agent", run::run(&args))
}
