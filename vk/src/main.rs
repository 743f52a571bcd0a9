//! The `spillway-vk` daemon.

use std::process::ExitCode;

use clap::Parser as _;
use spillway_vk::{args::Args, run};

fn main() -> ExitCode {
    let args = Args::parse();
    spillway_daemon::exit::report("spillway-vk", run::run(&args))
}
