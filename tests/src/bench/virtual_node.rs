//! The virtual node beside its yardsticks: a real kubelet on the same kind of runtime, a bare loop over the CRI, and kwok where nothing
//! runs. What is compared is measured in turns on the same machine, so that ratios hold where absolute figures depend on what else the
//! machine does. `spillway-vk` is built with optimisation, as users get it.

mod adoption;
mod api;
mod footprint;
mod jobs;
mod noop;
mod process;
mod runtimes;
mod summary;

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::Context as _;

use self::summary::Figures;

/// Where the pods are.
const NAMESPACE: &str = "bench";

/// What is measured, each by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Part {
    /// Jobs of real pods, against the kubelet and the CRI loop.
    Jobs,
    /// The same Jobs on the virtual node with a cheaper low-level runtime, by a `RuntimeClass`.
    Runtimes,
    /// Pods of provider `none`, against kwok.
    Noop,
    /// Memory and CPU time, at rest.
    Footprint,
    /// How soon a process that was killed and started again knows its pods.
    Adoption,
}

/// How it is measured.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Write the figures to this file, too, as one JSON object.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// How many times each thing is measured; the median counts.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..))]
    rounds: u16,
    /// Pods of each Job; the last number is also how many real pods the other parts have.
    #[arg(long, value_delimiter = ',', default_values_t = [100, 300])]
    pods: Vec<u16>,
    /// Pods of provider `none`.
    #[arg(long, default_value_t = 5000)]
    noop_pods: u16,
    /// Measure the build that is not optimised, which is there sooner. It says what is slow, not how slow.
    #[arg(long)]
    pub unoptimised: bool,
    /// Only these parts.
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Part>,
}

impl Options {
    fn wants(&self, part: Part) -> bool {
        self.only.is_empty() || self.only.contains(&part)
    }

    /// Pods where a rate is enough, and the size of a Job says nothing more.
    fn few(&self) -> usize {
        self.pods.first().copied().map_or(1, usize::from).min(60)
    }

    fn real_pods(&self) -> usize {
        self.pods.last().copied().map_or(1, usize::from)
    }
}

/// Measures with the programs in `binaries`, and prints tables.
///
/// # Errors
/// When something can't be started or measured.
pub fn run(options: &Options, binaries: &Path) -> anyhow::Result<()> {
    let program = binaries.join("spillway-vk");
    let size = fs::metadata(&program).with_context(|| format!("can't read {}", program.display()))?.len();
    let profile = binaries.file_name().map(|name| name.display().to_string()).unwrap_or_default();
    println!("spillway-vk: {profile} build of {} KiB; load of the machine before: {}", size >> 10, load());
    let mut figures = Figures::default();
    let measured = measure(options, &program, &mut figures);
    // What was measured before something failed took its time.
    println!("\nSummary; load of the machine at the end: {}\n{}", load(), figures.table());
    if let Some(path) = &options.json {
        let text = serde_json::to_string_pretty(&figures.json())?;
        fs::write(path, text + "\n").with_context(|| format!("can't write {}", path.display()))?;
    }
    measured
}

fn measure(options: &Options, program: &Path, figures: &mut Figures) -> anyhow::Result<()> {
    let wants = |parts: &[Part]| parts.iter().any(|part| options.wants(*part));
    if wants(&[Part::Jobs, Part::Runtimes, Part::Footprint, Part::Adoption]) {
        jobs::with_cluster(options, program, figures)?;
    }
    if wants(&[Part::Noop, Part::Footprint, Part::Adoption]) {
        noop::with_cluster(options, program, figures)?;
    }
    Ok(())
}

/// What else the machine does spoils absolute figures: said with each table.
fn load() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split_whitespace().take(3).collect::<Vec<_>>().join(" ")
}

/// Who comes second finds warmer caches: in turns.
fn in_turns<T>(round: u16, mut both: [T; 2]) -> [T; 2] {
    if round % 2 == 1 {
        both.reverse();
    }
    both
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?)
}
