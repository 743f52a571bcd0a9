//! Reading traces: jobs or demand over time, from CSV (plain, gzip, zstd), in constant memory. Every byte is hostile: what is wrong becomes an error with its line, or a warning that is counted.
//!
//! ```text
//! files ─ input (decompress) ─ rows (CSV, bounded) ─ preset (which column is what) ─ jobs ─── merge by time ─ window (sort) ─ Job
//!                                                                                 └ demand ─ window (sort) ─ sum of files ─ Demand
//! ```
//!
//! Several files are one trace: parts of it in any order, or one file for each part of a cluster, whose demand is summed. A file counts from its first to its last sample, so a trace split at
//! any row reads as it did whole.

mod args;
mod decoder;
mod error;
mod input;
mod jobs;
mod key;
mod layout;
pub mod lists;
mod preset;
mod progress;
mod reports;
mod rows;
mod samples;
pub mod summary;
mod value;
mod warnings;
mod window;

pub use args::Args;
pub use error::Error;
pub use jobs::Jobs;
pub use key::{Key, Mapping};
pub use layout::Counted;
pub use preset::Preset;
pub use samples::Samples;
pub use value::{TimeUnit, duration};
pub use warnings::{Kind, Warning, Warnings};

/// An open trace. Each kind is an iterator; ask for its warnings when it has ended.
#[derive(Debug)]
pub enum Trace {
    /// Jobs by submit time.
    Jobs(Jobs),
    /// Demand by time.
    Demand(Samples),
}

impl Trace {
    /// What was wrong so far.
    pub fn warnings(&self) -> Warnings {
        match self {
            Self::Jobs(jobs) => jobs.warnings(),
            Self::Demand(samples) => samples.warnings(),
        }
    }

    /// Its jobs.
    ///
    /// # Errors
    /// When it has demand only.
    pub fn jobs(self) -> Result<Jobs, Error> {
        match self {
            Self::Jobs(jobs) => Ok(jobs),
            Self::Demand(samples) => Err(Error::NoJobs { file: samples.name().to_owned() }),
        }
    }
}

#[cfg(test)]
mod tests;
