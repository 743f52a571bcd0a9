//! The flags of every command that reads a trace.

use std::{
    path::PathBuf,
    sync::{Arc, atomic::AtomicU64},
};

use jiff::tz::TimeZone;

use super::{
    Trace,
    error::Error,
    input,
    jobs::Jobs,
    key::Mapping,
    layout::{Counted, Layout},
    lists,
    preset::Preset,
    progress::Progress,
    reports::Reading,
    rows::Rows,
    samples::Samples,
    value::{TimeUnit, Times},
    warnings::Kind,
};

/// Which files make a trace, and how they are read.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "Trace")]
#[group(id = "trace")]
pub struct Args {
    /// CSV files of one trace, plain or compressed with gzip or zstd; `-` is standard input. Parts of it in any order, or one file for each part of a cluster, whose demand is summed.
    #[arg(value_name = "TRACE", value_hint = clap::ValueHint::FilePath)]
    pub files: Vec<PathBuf>,
    /// What the columns mean. Without it the header tells.
    #[arg(long, value_enum, value_name = "NAME")]
    pub preset: Option<Preset>,
    /// Which column holds what, by name or number: `submit=created,duration=runtime,gpus=3`. A preset's other columns stay.
    #[arg(long, value_name = "KEY=COLUMN,…")]
    pub columns: Option<Mapping>,
    /// The first line is data; columns are `1`, `2`, ….
    #[arg(long, requires = "columns")]
    pub no_header: bool,
    /// What separates columns: one character, or `tab`. Without it the first line tells.
    #[arg(long, value_name = "CHARACTER", value_parser = delimiter)]
    pub delimiter: Option<u8>,
    /// The unit of times and durations that are plain numbers. Without it the size of times tells: seconds, or from twelve digits on milliseconds, microseconds or nanoseconds; durations are seconds.
    #[arg(long, value_enum, value_name = "UNIT")]
    pub time_unit: Option<TimeUnit>,
    /// The zone of times that name none: a name such as Europe/Berlin, or how far it is ahead of UTC, ±HH:MM.
    #[arg(long, value_name = "ZONE", value_parser = super::value::zone, allow_hyphen_values = true, visible_alias = "utc-offset")]
    pub time_zone: Option<TimeZone>,
    /// How many GPUs a pod has at most, where a trace tells only how many a job has in all: larger jobs are gangs of equal pods.
    #[arg(long, value_name = "GPUS", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub gpus_per_pod: Option<u32>,
    /// Which GPUs are demanded where a trace tells running from pending.
    #[arg(long, value_enum, value_name = "WHICH", default_value_t)]
    pub demand: Counted,
    /// End at the first row that would be skipped, moved or doubted, instead of counting it.
    #[arg(long)]
    pub strict: bool,
    /// Only what jobs ask for matters: those that never ran, or have no end, count as well, with a duration of 0.
    #[arg(skip)]
    pub asks_only: bool,
}

fn delimiter(text: &str) -> Result<u8, String> {
    match text.as_bytes() {
        _ if text == "tab" || text == "\\t" => Ok(b'\t'),
        [byte] if byte.is_ascii() && !matches!(byte, b'"' | b'\n' | b'\r') => Ok(*byte),
        _ => Err("one ASCII character, or tab".to_owned()),
    }
}

impl Args {
    /// Opens all files and reads their headers. A progress bar runs while the trace is read, where standard error is a terminal.
    ///
    /// # Errors
    /// When a file can't be opened, or its columns aren't understood.
    pub fn open(&self) -> Result<Trace, Error> {
        let read = Arc::new(AtomicU64::new(0));
        let mut total = Some(0);
        let mut opened = Vec::new();
        for path in &self.files {
            let (bytes, length) = input::open(path, &read)?;
            total = total.zip(length).map(|(total, length)| total + length);
            opened.push((input::name(path), bytes));
        }
        self.read(opened, Progress::new(read, total))
    }

    /// Reads what is open already; the progress bar stays silent.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_bytes(&self, files: Vec<(String, Box<dyn std::io::Read + Send>)>) -> Result<Trace, Error> {
        let files = files
            .into_iter()
            .map(|(name, bytes)| Ok((name.clone(), input::decompress(bytes, &name)?)))
            .collect::<Result<_, Error>>()?;
        self.read(files, Progress::silent())
    }

    fn read(&self, files: Vec<(String, input::Bytes)>, progress: Progress) -> Result<Trace, Error> {
        let times = Times { unit: self.time_unit, zone: self.time_zone.clone().unwrap_or(TimeZone::UTC) };
        let mapping = self.columns.clone().unwrap_or_default();
        let mut reading = Reading::new(times, self.asks_only, self.strict, progress);
        reading.gpus_per_pod = self.gpus_per_pod;
        let (mut jobs, mut demand) = (Vec::new(), Vec::new());
        let (mut machines, mut owned) = (None, Vec::new());
        for (name, bytes) in files {
            let rows = Rows::new(bytes, &name, self.delimiter, !self.no_header)?;
            match Layout::of(&rows, self.preset, &mapping, self.demand, self.asks_only)? {
                Layout::Jobs(columns) => jobs.push((rows, columns)),
                Layout::Demand(columns) => demand.push((rows, columns)),
                Layout::Owned => owned.push((name, rows)),
                Layout::Machines => machines = Some(name),
            }
        }
        if let Some(file) = machines {
            return Err(Error::Machines { file });
        }
        match (jobs.first(), demand.first()) {
            (Some((job, _)), Some((sample, _))) => Err(Error::Mixed {
                first: job.file.to_string(),
                first_is: "jobs",
                second: sample.file.to_string(),
                second_is: "demand over time",
            }),
            (Some(_), None) => {
                for (name, rows) in owned {
                    reading.reports.warn(Kind::LeftOut, &name, rows.header_line(), || {
                        "it tells what was owned, not what was asked for".to_owned()
                    })?;
                }
                Ok(Trace::Jobs(Jobs::new(jobs, reading)?))
            }
            (None, Some(_)) => {
                let owned = owned.into_iter().next().map(|(_, rows)| lists::owned(rows)).transpose()?;
                Ok(Trace::Demand(Samples::new(demand, owned.unwrap_or_default(), reading)?))
            }
            (None, None) => {
                Err(owned.into_iter().next().map_or(Error::NoFiles, |(file, _)| Error::Owned { file }))
            }
        }
    }
}
