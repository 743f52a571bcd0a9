//! The commands: each wires a core to the Kubernetes API, to files and to the terminal, and owns its flags.

mod completion;
mod history;
mod html;
mod man;
mod optimize;
mod prices;
mod prometheus;
mod record;
mod replay;
pub mod report;
mod serve;
mod showback;
mod simulate;
mod sizes;
mod source;
mod subject;
mod trace;
mod usage;
mod waits;
mod what_if;

use std::process::ExitCode;

use crate::{
    args::{Args, Global},
    output,
    terminal::printable,
};

/// What to do.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Who has what of each pool, what is idle, what is stranded, and why a pod waits.
    Report(report::Telling),
    /// Print the program that completes `kubectl spillway <TAB>`.
    Completion(completion::Args),
    /// Answer kubectl.
    #[command(name = "__complete", hide = true)]
    Complete(completion::Words),
    /// Write down what the cluster shows, again and again, in one file that keeps years.
    Record(record::Args),
    /// Show usage over time, or export it as a trace.
    History(history::Args),
    /// How many GPUs to own and how many to rent, from a trace and two prices.
    Optimize(optimize::Args),
    /// Divide what a month cost among those who had it.
    Showback(showback::Args),
    /// Compare the pool as it is with one of other machines, prices or demand.
    WhatIf(what_if::Args),
    /// Replay jobs against a pool: what it costs, who waits how long, what spills.
    Simulate(simulate::Args),
    /// Write a result as one page for a browser: plots and tables that need no network.
    Html(html::Args),
    /// Show a result as a page that is made anew while one looks at it, for this machine alone.
    Serve(serve::Args),
    /// Print the manual page.
    Man(man::Args),
    /// Read a trace, and say what is in it and what is wrong with it.
    Trace(trace::Args),
    /// List the prices that are reckoned with, with their source and age.
    Prices(prices::Args),
}

/// How a command that did its work ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// As asked.
    Done,
    /// A condition of `--fail-if` holds: exit code 3.
    Failing,
}

/// Exit code of [`Outcome::Failing`]. 1 is an error, 2 a wrong command line.
const FAILING: u8 = 3;

/// Carries out what the command line says. Errors are told on standard error.
pub fn run(args: &Args) -> ExitCode {
    match carry_out(&args.command, &args.global) {
        Ok(Outcome::Done) => ExitCode::SUCCESS,
        Ok(Outcome::Failing) => ExitCode::from(FAILING),
        // `… | head` has seen enough.
        Err(error) if output::nobody_reads(&error) => ExitCode::SUCCESS,
        Err(error) => {
            let message = error.chain().map(ToString::to_string).collect::<Vec<_>>().join(": ");
            for line in format!("error: {message}").lines() {
                eprintln!("{}", printable(line));
            }
            ExitCode::FAILURE
        }
    }
}

fn carry_out(command: &Command, global: &Global) -> anyhow::Result<Outcome> {
    match command {
        Command::Report(args) => report::run(args, global),
        Command::Completion(_) => completion::script(),
        Command::Complete(words) => completion::complete(words),
        Command::Record(args) => record::run(args, global),
        Command::History(args) => history::run(args, global),
        Command::Optimize(args) => optimize::run(args, global),
        Command::Showback(args) => showback::run(args, global),
        Command::WhatIf(args) => what_if::run(args, global),
        Command::Simulate(args) => simulate::run(args, global),
        Command::Html(args) => html::run(args, global),
        Command::Serve(args) => serve::run(args, global),
        Command::Man(args) => man::run(args),
        Command::Trace(args) => trace::run(args, global),
        Command::Prices(args) => prices::run(args, global),
    }
}
