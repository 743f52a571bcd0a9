//! The main job's program: `cut` photographs into tiles, `process` one tile per pod, assemble the `sheet`.
//!
//! It knows files and pixels. That a pod runs it shows only in `JOB_COMPLETION_INDEX`, which Kubernetes sets for the pods of an
//! Indexed Job.

mod cut;
mod files;
mod layout;
mod process;
mod sheet;

use std::{path::PathBuf, process::ExitCode};

use anyhow::Context as _;
use clap::{Parser, Subcommand};

/// Exit status of `process` when the result is there already: somebody else did this tile.
const ALREADY_THERE: u8 = 3;

/// Sharpens and resizes photographs, one tile per pod.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Cut photographs into tiles: whole pictures while there are enough of them, regions of them otherwise.
    Cut {
        /// Folder with the photographs (.jpg, .jpeg, .png).
        #[arg(long)]
        source: PathBuf,
        /// Folder for tile-0000.jpg and so on; made if it is missing.
        #[arg(long)]
        out: PathBuf,
        /// How many tiles.
        #[arg(long)]
        count: usize,
    },
    /// Sharpen and resize one tile. Exits with 3, and changes nothing, when its result exists.
    Process {
        /// Folder with the tiles.
        #[arg(long)]
        input: PathBuf,
        /// Folder for the result, which gets the tile's name.
        #[arg(long)]
        output: PathBuf,
        /// Which tile, from 0.
        #[arg(long, env = "JOB_COMPLETION_INDEX")]
        index: usize,
    },
    /// Assemble one picture from all results. Fails, naming them, when results are missing or files are there that should not be.
    Sheet {
        /// Folder with the results.
        #[arg(long)]
        results: PathBuf,
        /// The picture to write (.png).
        #[arg(long)]
        out: PathBuf,
        /// How many results there must be.
        #[arg(long)]
        count: usize,
    },
}

fn main() -> ExitCode {
    let error = match run(Arguments::parse().command) {
        Ok(said) => {
            println!("{said}");
            return ExitCode::SUCCESS;
        }
        Err(error) => error,
    };
    eprintln!("spillway-tiles: {error:#}");
    match error.downcast_ref() {
        Some(process::Error::AlreadyThere(_)) => ExitCode::from(ALREADY_THERE),
        _ => ExitCode::FAILURE,
    }
}

fn run(command: Command) -> anyhow::Result<String> {
    match command {
        Command::Cut { source, out, count } => {
            let photographs = cut::cut(&source, &out, count)?;
            Ok(format!("cut {count} tiles from {photographs} photographs into {}", out.display()))
        }
        Command::Process { input, output, index } => {
            let done = process::process(&input, &output, index)?;
            Ok(format!(
                "{}: {}x{} sharpened, resized to {}x{} in {:.2} s{}",
                done.name,
                done.from.0,
                done.from.1,
                done.to.0,
                done.to.1,
                done.seconds,
                std::env::var("NODE_NAME").map(|node| format!(" on {node}")).unwrap_or_default(),
            ))
        }
        Command::Sheet { results, out, count } => {
            let (width, height) = sheet::sheet(&results, &out, count)
                .with_context(|| format!("no contact sheet {}", out.display()))?;
            Ok(format!("{}: {count} results, {width}x{height} pixels", out.display()))
        }
    }
}
