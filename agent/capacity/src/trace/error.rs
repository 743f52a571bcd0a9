//! What ends the reading of a trace.

use std::io;

/// Why a trace can't be read. Each says where.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file can't be opened.
    #[error("can't open {file}")]
    Open {
        /// Its path.
        file: String,
        /// Why.
        source: io::Error,
    },
    /// The file can't be read on: the disk, or damaged compression.
    #[error("can't read {file} after line {line}")]
    Read {
        /// Its path.
        file: String,
        /// The last line that was read.
        line: u64,
        /// Why.
        source: io::Error,
    },
    /// It is no text in columns.
    #[error("{file} is {what}; give CSV, plain or compressed with gzip or zstd")]
    Format {
        /// Its path.
        file: String,
        /// What it looks like.
        what: &'static str,
    },
    /// Nothing in it.
    #[error("{file} is empty: not even a header")]
    Empty {
        /// Its path.
        file: String,
    },
    /// A header, and nothing that could be used below it.
    #[error("{file} has no row that can be used{}", .first.as_ref().map(|first| format!(": {first}")).unwrap_or_default())]
    NoRows {
        /// The first file's path.
        file: String,
        /// What was wrong first.
        first: Option<String>,
    },
    /// The first line is no header.
    #[error(
        "{file}:{line}: the first line looks like data, not like column names; name the columns by number: --no-header --columns {example}"
    )]
    NoHeader {
        /// Its path.
        file: String,
        /// Where the header should be.
        line: u64,
        /// A mapping that would do.
        example: &'static str,
    },
    /// No preset fits the header.
    #[error(
        "{file}: can't tell what its columns mean ({header}); name the preset with --preset ({presets}) or the columns with --columns submit=…,duration=…,gpus=… or --columns at=…,gpus=…"
    )]
    Unrecognised {
        /// Its path.
        file: String,
        /// The columns that are there.
        header: String,
        /// The presets that there are.
        presets: String,
    },
    /// A column that is needed isn't there.
    #[error(
        "{file}: preset {preset} needs {missing}; the columns are {header}; map them: --columns {example}=NAME"
    )]
    Missing {
        /// Its path.
        file: String,
        /// What it was taken for.
        preset: &'static str,
        /// The columns that are missing.
        missing: String,
        /// The columns that are there.
        header: String,
        /// What stands to the left of `=`.
        example: &'static str,
    },
    /// A column that looks as if it told how many GPUs, and isn't known.
    #[error(
        "{file}: is {column:?} how many GPUs a job asks for? Say --columns gpus={column:?} (of each pod), total_gpus={column:?} (of all pods) or gpu_milli={column:?} (thousandths of one); --preset jobs takes each job for one GPU"
    )]
    Gpus {
        /// Its path.
        file: String,
        /// The column.
        column: String,
    },
    /// Two columns of one name, both meant.
    #[error("{file}: column {column} is there {count} times; name it by number: --columns {key}=NUMBER")]
    Ambiguous {
        /// Its path.
        file: String,
        /// The name.
        column: String,
        /// How often.
        count: usize,
        /// What it is for.
        key: &'static str,
    },
    /// A record that is longer than any row of a trace.
    #[error("{file}:{line}: a row of more than {limit} bytes; is a quote not closed?")]
    TooLong {
        /// Its path.
        file: String,
        /// Where it begins.
        line: u64,
        /// The most that is read.
        limit: usize,
    },
    /// Too far from its place to be sorted in memory.
    #[error(
        "{file}:{line}: earlier than rows that were already read, by more than the {limit} rows that are sorted in memory; sort the file by time first"
    )]
    Unsorted {
        /// Its path.
        file: String,
        /// Where.
        line: u64,
        /// Rows.
        limit: usize,
    },
    /// Plain numbers that can't all be times of one unit.
    #[error(
        "{file}:{line}: by their size, times above this row are in {first} and one of this row is in {now}; say which with --time-unit"
    )]
    Units {
        /// Its path.
        file: String,
        /// Where.
        line: u64,
        /// The unit of those above.
        first: &'static str,
        /// The unit of this.
        now: &'static str,
    },
    /// A warning, where `--strict` was given.
    #[error("{file}:{line}: {what}")]
    Strict {
        /// Its path.
        file: String,
        /// Where.
        line: u64,
        /// What is wrong.
        what: String,
    },
    /// The files can't be one trace.
    #[error("{first} has {first_is} and {second} has {second_is}; give one kind of trace")]
    Mixed {
        /// A file.
        first: String,
        /// What it has.
        first_is: &'static str,
        /// Another file.
        second: String,
        /// What that has.
        second_is: &'static str,
    },
    /// A machine list where a trace is wanted.
    #[error("{file} lists machines, not jobs; give it as the pool")]
    Machines {
        /// Its path.
        file: String,
    },
    /// A list of what was owned where a trace is wanted.
    #[error(
        "{file} tells how many GPUs were owned, not how many were demanded; give the clusters' own files, too"
    )]
    Owned {
        /// Its path.
        file: String,
    },
    /// A row of a list that must be read whole.
    #[error("{file}:{line}: {what}")]
    Row {
        /// Its path.
        file: String,
        /// Where.
        line: u64,
        /// What is wrong.
        what: String,
    },
    /// Jobs are needed, and there is demand only.
    #[error(
        "{file} has demand over time, but no jobs, which this needs: a trace with submit time and duration of each"
    )]
    NoJobs {
        /// The first file's path.
        file: String,
    },
    /// `--columns` is not understood.
    #[error("--columns: {what}")]
    Mapping {
        /// What is wrong.
        what: String,
    },
    /// No file was named.
    #[error("no trace: name its files, or - for standard input")]
    NoFiles,
}
