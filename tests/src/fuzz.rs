//! Running the fuzz targets of `tests/fuzz`, one after another. They are built by the stable compiler, with libFuzzer's instrumentation and
//! without a sanitizer: there is next to no `unsafe` in what they try.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, bail};
use clap::Args;
use tempfile::TempDir;

/// The release of cargo-fuzz that is known to do it.
const CARGO_FUZZ: &str = "0.13.2";
/// Where files in memory are: most targets make a small machine of files for each input.
const MEMORY: &str = "/dev/shm";
/// No input may take longer than this, nor more memory.
const SECONDS_EACH: u32 = 25;
const MEBIBYTES: u32 = 1536;

/// What to run.
#[derive(Debug, Args)]
pub struct FuzzOptions {
    /// Only this target.
    target: Option<String>,
    /// How long each target runs.
    #[arg(long, default_value_t = 600)]
    seconds: u32,
}

/// Runs each target until its time is over, or it has found something.
///
/// # Errors
/// When a target can't be built, or has found something.
pub fn run(options: &FuzzOptions) -> anyhow::Result<()> {
    let folder = crate::repository().join("tests/fuzz");
    let known = targets(&folder.join("seeds"))?;
    let wanted = match &options.target {
        Some(target) if known.contains(target) => vec![target.clone()],
        Some(target) => bail!("there is no fuzz target {target}; there are {}", known.join(", ")),
        None => known,
    };
    let program = cargo_fuzz()?;
    let place = crate::target().join("fuzz");
    let memory = Path::new(MEMORY).is_dir();
    let mut found = Vec::new();
    for target in wanted {
        eprintln!("fuzzing {target} for {} s", options.seconds);
        // Inputs that reach something new are kept from run to run; those of the repository are read only.
        let corpus = place.join("corpus").join(&target);
        fs::create_dir_all(&corpus).with_context(|| format!("can't make {}", corpus.display()))?;
        let files = if memory { TempDir::new_in(MEMORY) } else { TempDir::new() }?;
        let status = Command::new(&program)
            .args(["fuzz", "run", "--sanitizer", "none", "--fuzz-dir"])
            .arg(&folder)
            .arg("--target-dir")
            .arg(&place)
            .arg(&target)
            .arg(&corpus)
            .arg(folder.join("seeds").join(&target))
            .arg("--")
            .arg(format!("-dict={}", folder.join("dictionaries").join(format!("{target}.txt")).display()))
            .arg(format!("-max_total_time={}", options.seconds))
            .arg(format!("-timeout={SECONDS_EACH}"))
            .arg(format!("-rss_limit_mb={MEBIBYTES}"))
            // Long inputs from the beginning: structure takes bytes.
            .args(["-max_len=4096", "-len_control=0", "-print_final_stats=1"])
            .env("TMPDIR", files.path())
            .current_dir(crate::repository())
            .status()
            .with_context(|| format!("can't run {}", program.display()))?;
        if !status.success() {
            found.push(target);
        }
    }
    if found.is_empty() {
        return Ok(());
    }
    bail!("{} found something: see above, and {}", found.join(", "), folder.join("artifacts").display())
}

/// Every target has seeds.
fn targets(seeds: &Path) -> anyhow::Result<Vec<String>> {
    let entries = fs::read_dir(seeds).with_context(|| format!("can't read {}", seeds.display()))?;
    let mut targets: Vec<String> =
        entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect();
    targets.sort();
    Ok(targets)
}

/// cargo-fuzz, which is installed below the target folder if it isn't there.
fn cargo_fuzz() -> anyhow::Result<PathBuf> {
    let tools = crate::target().join("fuzz/tools");
    let program = tools.join("bin/cargo-fuzz");
    if !program.exists() {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let status = Command::new(cargo)
            .args(["install", "cargo-fuzz", "--locked", "--version", CARGO_FUZZ, "--root"])
            .arg(&tools)
            .status()
            .context("can't run cargo")?;
        if !status.success() {
            bail!("`cargo install cargo-fuzz` failed");
        }
    }
    Ok(program)
}
