//! Which column is what: presets for known exports, and `--columns`.
//!
//! | preset | columns | gives |
//! | --- | --- | --- |
//! | `jobs` | `submit`, `duration` or `end`, and what else of [`Key`] there is | jobs |
//! | `demand` | `at`, `gpus` | demand |
//! | `helios` | `time`, `running_gpu_num`, `pending_gpu_num`, as in `HeliosArtifact`'s cluster sequences, a file for each virtual cluster | demand |
//! | `openb` | `name`, `cpu_milli`, `memory_mib`, `num_gpu`, `gpu_milli`, `gpu_spec`, `creation_time`, `deletion_time`, `scheduled_time` | jobs |
//! | `sacct` | `sacct --allusers --allocations --parsable2 --format=JobID,User,Account,Submit,Start,End,Elapsed,NNodes,State,AllocTRES,ReqTRES` | jobs |
//! | `prometheus` | `timestamp`, `value`, and labels, of which each has its own row | demand |
//! | `record` | `at`, `pool`, `owner`, `gpus`: what `kubectl spillway history` exports; `at` in RFC 3339, a row for each pool and owner at each time, 0 where it holds none any more | demand |
//!
//! Rows of one time are summed in `prometheus` and `record`, and wherever there is an `owner`; else the later row of one time is the one that counts.

use std::{collections::BTreeMap, str::FromStr};

use csv::ByteRecord;

use super::{error::Error, lists, reports::Skipped, rows::Rows, warnings::Kind};

/// What a trace's columns mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Preset {
    /// Spillway's own: `submit`, `duration`, `gpus`, and more.
    Jobs,
    /// Spillway's own: `at`, `gpus`.
    Demand,
    /// Helios' cluster sequences, one file for each virtual cluster.
    Helios,
    /// Alibaba's GPU cluster of 2023, the list of pods.
    Openb,
    /// Slurm's `sacct --parsable2`.
    Sacct,
    /// `timestamp,value,…` of a Prometheus query.
    Prometheus,
    /// What Spillway's recorder exports.
    Record,
}

impl Preset {
    const ALL: [Self; 7] = [
        // The most particular first: the first that fits is taken.
        Self::Helios,
        Self::Openb,
        Self::Sacct,
        Self::Record,
        Self::Jobs,
        Self::Prometheus,
        Self::Demand,
    ];

    /// Its word on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Jobs => "jobs",
            Self::Demand => "demand",
            Self::Helios => "helios",
            Self::Openb => "openb",
            Self::Sacct => "sacct",
            Self::Prometheus => "prometheus",
            Self::Record => "record",
        }
    }

    /// Whether it gives jobs.
    fn jobs(self) -> bool {
        matches!(self, Self::Jobs | Self::Openb | Self::Sacct)
    }

    /// The names under which it has `key`, in small letters, the best first.
    fn aliases(self, key: Key) -> &'static [&'static str] {
        match (self, key) {
            (Self::Jobs, Key::Submit) => &["submit", "submit_s", "submit_time", "submitted", "submit_at"],
            (Self::Jobs, Key::Start) => &["start", "start_s", "start_time"],
            (Self::Jobs, Key::End) => &["end", "end_s", "end_time"],
            (Self::Jobs, Key::Duration) => {
                &["duration", "duration_s", "run_time", "runtime", "elapsed", "runtime_s"]
            }
            (Self::Jobs, Key::Gpus) => &["gpus", "gpus_per_pod"],
            (Self::Jobs, Key::TotalGpus) => &["total_gpus", "gpu_num", "num_gpus", "num_gpu", "ngpus", "gpu"],
            (Self::Jobs | Self::Openb, Key::GpuMilli) => &["gpu_milli"],
            (Self::Jobs, Key::Pods) => &["pods", "nodes", "node_num", "num_nodes", "nnodes", "replicas"],
            (Self::Jobs, Key::Gang) => &["gang"],
            (Self::Jobs, Key::Cpu) => &["cpu", "cpus"],
            (Self::Jobs | Self::Openb, Key::CpuMilli) => &["cpu_milli"],
            (Self::Jobs, Key::Memory) => &["memory", "mem"],
            (Self::Jobs | Self::Openb, Key::MemoryMib) => &["memory_mib"],
            (Self::Jobs, Key::Models) => &["models", "model", "gpu_model", "gpu_type", "gpu_spec"],
            (Self::Jobs, Key::Deadline) => &["deadline", "deadline_s"],
            (Self::Jobs | Self::Sacct, Key::Priority) => &["priority"],
            (Self::Jobs, Key::Owner) => &["owner", "namespace", "user", "account", "vc"],

            (Self::Openb, Key::Submit) => &["creation_time"],
            (Self::Openb, Key::Start) => &["scheduled_time"],
            (Self::Openb, Key::End) => &["deletion_time"],
            (Self::Openb, Key::Gpus) => &["num_gpu"],
            (Self::Openb, Key::Models) => &["gpu_spec"],
            (Self::Openb, Key::Owner) => &["qos"],

            (Self::Sacct, Key::Id) => &["jobid", "jobidraw"],
            (Self::Sacct, Key::Submit) => &["submit"],
            (Self::Sacct, Key::Start) => &["start"],
            (Self::Sacct, Key::End) => &["end"],
            (Self::Sacct, Key::Duration) => &["elapsedraw", "elapsed"],
            (Self::Sacct, Key::Pods) => &["nnodes", "allocnodes"],
            (Self::Sacct, Key::Owner) => &["account", "user"],
            (Self::Sacct, Key::Tres) => &["alloctres"],
            (Self::Sacct, Key::AskedTres) => &["reqtres"],
            (Self::Sacct, Key::State) => &["state"],

            (Self::Demand, Key::At) => &["at", "at_s", "time", "timestamp", "date"],
            (Self::Demand, Key::Gpus) => &["gpus", "demand", "gpu", "value"],
            (Self::Demand, Key::Owner) => &["owner", "namespace", "user"],
            (Self::Helios, Key::At) => &["time"],
            (Self::Helios, Key::Running) => &["running_gpu_num"],
            (Self::Helios, Key::Pending) => &["pending_gpu_num"],
            (Self::Prometheus, Key::At) => &["timestamp", "time", "at"],
            (Self::Prometheus, Key::Gpus) => &["value"],
            (Self::Record, Key::At) => &["at"],
            (Self::Record, Key::Gpus) => &["gpus"],
            (Self::Record, Key::Owner) => &["owner", "pool"],
            _ => &[],
        }
    }

    /// What it can't do without: one of each list.
    fn needs(self) -> &'static [&'static [Key]] {
        match self {
            Self::Jobs => &[&[Key::Submit], &[Key::Duration, Key::End]],
            Self::Openb => &[&[Key::Submit], &[Key::End], &[Key::Gpus]],
            Self::Sacct => {
                &[&[Key::Submit], &[Key::Duration, Key::End], &[Key::Tres, Key::AskedTres, Key::Gpus]]
            }
            Self::Helios => &[&[Key::At], &[Key::Running], &[Key::Pending]],
            Self::Record => &[&[Key::At], &[Key::Gpus], &[Key::Owner]],
            Self::Prometheus | Self::Demand => &[&[Key::At], &[Key::Gpus]],
        }
    }
}

/// What a column holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key {
    /// When a job was asked for.
    Submit,
    /// When it began to run.
    Start,
    /// When it ended.
    End,
    /// How long it ran.
    Duration,
    /// GPUs of each pod; of a sample, the GPUs demanded.
    Gpus,
    /// GPUs of all pods together.
    TotalGpus,
    /// How much of each GPU, in thousandths.
    GpuMilli,
    /// How many equal pods.
    Pods,
    /// Whether they start together or not at all.
    Gang,
    /// Cores of each pod, as Kubernetes writes them.
    Cpu,
    /// The same in thousandths.
    CpuMilli,
    /// Memory of each pod, as Kubernetes writes it.
    Memory,
    /// The same in MiB.
    MemoryMib,
    /// Models that will do, separated by `|`.
    Models,
    /// When it should have ended.
    Deadline,
    /// The higher, the sooner.
    Priority,
    /// For whom.
    Owner,
    /// The time of a sample.
    At,
    /// GPUs of running jobs.
    Running,
    /// GPUs of pending jobs.
    Pending,
    /// Slurm's number of a job or step.
    Id,
    /// What Slurm granted.
    Tres,
    /// What Slurm was asked for.
    AskedTres,
    /// Slurm's word for how a job ended.
    State,
}

impl Key {
    const ALL: [Self; 24] = [
        Self::Submit,
        Self::Start,
        Self::End,
        Self::Duration,
        Self::Gpus,
        Self::TotalGpus,
        Self::GpuMilli,
        Self::Pods,
        Self::Gang,
        Self::Cpu,
        Self::CpuMilli,
        Self::Memory,
        Self::MemoryMib,
        Self::Models,
        Self::Deadline,
        Self::Priority,
        Self::Owner,
        Self::At,
        Self::Running,
        Self::Pending,
        Self::Id,
        Self::Tres,
        Self::AskedTres,
        Self::State,
    ];

    /// Its word in `--columns`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Submit => "submit",
            Self::Start => "start",
            Self::End => "end",
            Self::Duration => "duration",
            Self::Gpus => "gpus",
            Self::TotalGpus => "total_gpus",
            Self::GpuMilli => "gpu_milli",
            Self::Pods => "pods",
            Self::Gang => "gang",
            Self::Cpu => "cpu",
            Self::CpuMilli => "cpu_milli",
            Self::Memory => "memory",
            Self::MemoryMib => "memory_mib",
            Self::Models => "models",
            Self::Deadline => "deadline",
            Self::Priority => "priority",
            Self::Owner => "owner",
            Self::At => "at",
            Self::Running => "running",
            Self::Pending => "pending",
            Self::Id => "id",
            Self::Tres => "tres",
            Self::AskedTres => "asked_tres",
            Self::State => "state",
        }
    }
}

/// `--columns`: which column holds what.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Mapping(BTreeMap<Key, String>);

impl FromStr for Mapping {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let wrong = |what: String| Error::Mapping { what };
        let mut mapping = BTreeMap::new();
        for pair in text.split(',').filter(|pair| !pair.trim().is_empty()) {
            let (key, column) =
                pair.split_once('=').ok_or_else(|| wrong(format!("{pair:?} is not KEY=COLUMN")))?;
            let key = key.trim().to_ascii_lowercase().replace('-', "_");
            let known = Key::ALL.into_iter().find(|known| known.name() == key).ok_or_else(|| {
                let all = Key::ALL.map(Key::name).join(", ");
                wrong(format!("no key {key:?}; there are {all}"))
            })?;
            if mapping.insert(known, column.trim().to_owned()).is_some() {
                return Err(wrong(format!("{key} is there twice")));
            }
        }
        Ok(Self(mapping))
    }
}

/// Which GPUs are demanded, where a trace tells running from pending.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Counted {
    /// Those of running and of pending jobs; work that waits is counted again at each sample.
    #[default]
    #[value(name = "running+pending")]
    All,
    /// Those of running jobs; what was never admitted isn't seen.
    Running,
}

/// What a file is, and where in its rows what is.
#[derive(Debug)]
pub(super) enum Layout {
    Jobs(Columns),
    Demand(Columns),
    /// Helios' list of what was owned each day.
    Owned,
    /// A list of machines.
    Machines,
}

/// Where in a row what is.
#[derive(Debug, Clone)]
pub(super) struct Columns {
    pub(super) preset: Preset,
    at: [Option<usize>; Key::ALL.len()],
    /// Each row of one time counts.
    pub(super) labelled: bool,
    /// Pending GPUs count.
    pub(super) counted: Counted,
    /// The last column that a row must have.
    last: usize,
    /// How many columns there are.
    width: usize,
}

impl Columns {
    /// Whether there is a column of GPUs.
    pub(super) fn tells_gpus(&self) -> bool {
        [Key::Gpus, Key::TotalGpus, Key::GpuMilli, Key::Tres, Key::AskedTres]
            .into_iter()
            .any(|key| self.of(key).is_some())
    }

    /// Whether a row has a cell for each column that matters, and no other.
    pub(super) fn fits(&self, row: &ByteRecord) -> Result<(), Skipped> {
        if row.len() <= self.last {
            return Err(Skipped { kind: Kind::ShortRow, key: None, what: "the row has cells missing" });
        }
        // A separator at the end is harmless.
        if row.len() > self.width && row.iter().skip(self.width).any(|cell| !cell.is_empty()) {
            return Err(Skipped {
                kind: Kind::LongRow,
                key: None,
                what: "the row has more cells than columns",
            });
        }
        Ok(())
    }

    /// The column of `key`.
    pub(super) fn of(&self, key: Key) -> Option<usize> {
        self.at[key as usize]
    }
}

impl Layout {
    /// What the header of `rows` says.
    pub(super) fn of(
        rows: &Rows,
        preset: Option<Preset>,
        mapping: &Mapping,
        counted: Counted,
    ) -> Result<Self, Error> {
        let header: Vec<String> = rows.header.iter().map(|name| name.to_ascii_lowercase()).collect();
        let has = |names: &[&str]| names.iter().all(|name| header.iter().any(|column| column == name));
        if has(&lists::MACHINES) {
            return Ok(Self::Machines);
        }
        let clusters = header.len().saturating_sub(2);
        if clusters > 0
            && header.first().is_some_and(|first| first == "date")
            && header.last().is_some_and(|last| last == "total")
            && header[1..=clusters].iter().all(|name| name.starts_with("vc"))
        {
            return Ok(Self::Owned);
        }
        let header = Header { rows, names: &header, mapping };
        let preset = match preset {
            Some(preset) => preset,
            None => header.recognise()?,
        };
        let columns = header.columns_of(preset, preset.needs(), counted)?;
        Ok(if preset.jobs() { Self::Jobs(columns) } else { Self::Demand(columns) })
    }
}

impl Layout {
    /// Where a list of Openb's pods has what each asks for; times may be missing.
    pub(super) fn requests(rows: &Rows) -> Result<Columns, Error> {
        let names: Vec<String> = rows.header.iter().map(|name| name.to_ascii_lowercase()).collect();
        let header = Header { rows, names: &names, mapping: &Mapping::default() };
        header.columns_of(Preset::Openb, &[&[Key::Gpus], &[Key::GpuMilli]], Counted::All)
    }
}

struct Header<'a> {
    rows: &'a Rows,
    /// In small letters.
    names: &'a [String],
    mapping: &'a Mapping,
}

impl Header<'_> {
    fn recognise(&self) -> Result<Preset, Error> {
        let fits = |preset: &Preset| {
            preset.needs().iter().all(|any| {
                any.iter().any(|key| {
                    self.mapping.0.contains_key(key)
                        || preset
                            .aliases(*key)
                            .iter()
                            .any(|alias| self.names.iter().any(|name| name == alias))
                })
            })
        };
        if let Some(preset) = Preset::ALL.into_iter().find(|preset| fits(preset)) {
            return Ok(preset);
        }
        let mapped = |key| self.mapping.0.contains_key(&key);
        if mapped(Key::Submit) || mapped(Key::Duration) {
            return Ok(Preset::Jobs);
        }
        if mapped(Key::At) {
            return Ok(Preset::Demand);
        }
        let data = |name: &String| name.starts_with(|first: char| first.is_ascii_digit());
        if self.names.iter().any(data) {
            return Err(Error::NoHeader {
                file: self.rows.file.to_string(),
                line: self.rows.header_line(),
                example: "submit=1,duration=2,gpus=3",
            });
        }
        Err(Error::Unrecognised {
            file: self.rows.file.to_string(),
            header: self.listed(),
            presets: Preset::ALL.map(Preset::name).join(", "),
        })
    }

    /// What columns there are, for people.
    fn listed(&self) -> String {
        const SHOWN: usize = 40;
        let mut listed: Vec<String> = self
            .rows
            .header
            .iter()
            .take(SHOWN)
            .map(|name| {
                let short: String = name.chars().take(60).collect();
                if short.len() < name.len() { format!("{short}…") } else { short }
            })
            .collect();
        if self.names.len() > SHOWN {
            listed.push(format!("and {} more", self.names.len() - SHOWN));
        }
        listed.join(", ")
    }

    fn columns_of(&self, preset: Preset, needs: &[&[Key]], counted: Counted) -> Result<Columns, Error> {
        let mut at = [None; Key::ALL.len()];
        for key in Key::ALL {
            at[key as usize] = match self.mapping.0.get(&key) {
                Some(name) => Some(self.mapped(key, name, preset)?),
                None => self.known(key, preset)?,
            };
        }
        for any in needs {
            if any.iter().all(|key| at[*key as usize].is_none()) {
                return Err(self.missing(preset, any));
            }
        }
        let last = needs.iter().flat_map(|any| any.iter().filter_map(|key| at[*key as usize])).max();
        let labelled = match preset {
            Preset::Prometheus => self.names.len() > 2,
            _ => at[Key::Owner as usize].is_some(),
        };
        Ok(Columns { preset, at, labelled, counted, last: last.unwrap_or(0), width: self.names.len() })
    }

    fn missing(&self, preset: Preset, any: &[Key]) -> Error {
        let names: Vec<&str> =
            any.iter().map(|key| preset.aliases(*key).first().copied().unwrap_or(key.name())).collect();
        Error::Missing {
            file: self.rows.file.to_string(),
            preset: preset.name(),
            missing: names.join(" or "),
            header: self.listed(),
            example: any[0].name(),
        }
    }

    /// The column that `--columns` names: by name, else by number from 1.
    fn mapped(&self, key: Key, name: &str, preset: Preset) -> Result<usize, Error> {
        if let Some(column) = self.only(key, &name.to_ascii_lowercase())? {
            return Ok(column);
        }
        match name.parse::<usize>() {
            Ok(number) if (1..=self.names.len()).contains(&number) => Ok(number - 1),
            _ => Err(Error::Missing {
                file: self.rows.file.to_string(),
                preset: preset.name(),
                missing: format!("{name} for {}", key.name()),
                header: self.listed(),
                example: key.name(),
            }),
        }
    }

    /// The column that the preset knows.
    fn known(&self, key: Key, preset: Preset) -> Result<Option<usize>, Error> {
        for alias in preset.aliases(key) {
            if let Some(column) = self.only(key, alias)? {
                return Ok(Some(column));
            }
        }
        Ok(None)
    }

    fn only(&self, key: Key, name: &str) -> Result<Option<usize>, Error> {
        let mut found = self.names.iter().enumerate().filter(|(_, column)| *column == name);
        let first = found.next();
        let more = found.count();
        if more > 0 {
            return Err(Error::Ambiguous {
                file: self.rows.file.to_string(),
                column: name.to_owned(),
                count: more + 1,
                key: key.name(),
            });
        }
        Ok(first.map(|(column, _)| column))
    }
}
