//! What a column can hold, and `--columns`.

use std::{collections::BTreeMap, str::FromStr};

use super::error::Error;

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
    /// GPUs of each pod in hundredths: 400 are four, 25 a quarter of one.
    GpuPercent,
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
    /// A job's name or number; Slurm's steps have that of their job, a point and more.
    Id,
    /// What Slurm granted.
    Tres,
    /// What Slurm was asked for.
    AskedTres,
    /// Slurm's word for how a job ended.
    State,
}

impl Key {
    pub(super) const ALL: [Self; 25] = [
        Self::Submit,
        Self::Start,
        Self::End,
        Self::Duration,
        Self::Gpus,
        Self::TotalGpus,
        Self::GpuMilli,
        Self::GpuPercent,
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

    /// Whether it is a time or a duration.
    pub(super) fn is_time(self) -> bool {
        matches!(self, Self::Submit | Self::Start | Self::End | Self::Duration | Self::Deadline | Self::At)
    }

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
            Self::GpuPercent => "gpu_percent",
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
pub struct Mapping(pub(super) BTreeMap<Key, String>);

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
