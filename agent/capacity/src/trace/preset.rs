//! Presets for known exports: the names that their columns have.
//!
//! | preset | columns | gives |
//! | --- | --- | --- |
//! | `jobs` | `submit` or else `start`, `duration` or `end`, and what else of [`Key`] there is | jobs |
//! | `demand` | `at`, `gpus` | demand |
//! | `helios` | `time`, `running_gpu_num`, `pending_gpu_num`, as in `HeliosArtifact`'s cluster sequences, a file for each virtual cluster | demand |
//! | `openb` | `name`, `cpu_milli`, `memory_mib`, `num_gpu`, `gpu_milli`, `gpu_spec`, `creation_time`, `deletion_time`, `scheduled_time` | jobs |
//! | `sacct` | `sacct --allusers --allocations --parsable2 --format=JobID,User,Account,Submit,Start,End,Elapsed,NNodes,State,AllocTRES,ReqTRES` | jobs |
//! | `grafana` | a time, and a column for each series: what Grafana's panel inspector downloads | demand |
//! | `prometheus` | `timestamp`, `value`, and labels, of which each has its own row | demand |
//! | `record` | `at`, `pool`, `owner`, `gpus`: what `kubectl spillway history` exports; `at` in RFC 3339, a row for each pool and owner at each time, 0 where it holds none any more | demand |
//!
//! The series of `grafana` are summed, cells without a value are 0.
//!
//! Rows of one time are summed in `prometheus` and `record`, and wherever there is an `owner`; else the later row of one time is the one that counts.

use super::key::Key;

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
    /// A time, and a column for each series, as Grafana downloads them; their sum counts.
    Grafana,
}

impl Preset {
    pub(super) const ALL: [Self; 8] = [
        // The most particular first: the first that fits is taken.
        Self::Helios,
        Self::Openb,
        Self::Sacct,
        Self::Record,
        Self::Jobs,
        Self::Prometheus,
        Self::Demand,
        Self::Grafana,
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
            Self::Grafana => "grafana",
        }
    }

    /// Whether it gives jobs.
    pub(super) fn jobs(self) -> bool {
        matches!(self, Self::Jobs | Self::Openb | Self::Sacct)
    }

    /// The names under which it has `key`, in small letters, the best first.
    pub(super) fn aliases(self, key: Key) -> &'static [&'static str] {
        match (self, key) {
            (Self::Jobs, key) => of_jobs(key),

            (Self::Openb, Key::Id) => &["name"],
            (Self::Openb, Key::Submit) => &["creation_time"],
            (Self::Openb, Key::Start) => &["scheduled_time"],
            (Self::Openb, Key::End) => &["deletion_time"],
            (Self::Openb, Key::Gpus) => &["num_gpu"],
            (Self::Openb, Key::GpuMilli) => &["gpu_milli"],
            (Self::Openb, Key::CpuMilli) => &["cpu_milli"],
            (Self::Openb, Key::MemoryMib) => &["memory_mib"],
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
            (Self::Sacct, Key::Priority) => &["priority"],

            (Self::Demand | Self::Grafana, Key::At) => {
                &["at", "at_s", "time", "timestamp", "date", "datetime", "ts"]
            }
            (Self::Demand, Key::Gpus) => &[
                "gpus",
                "demand",
                "gpu",
                "value",
                "gpu_demand",
                "gpus_in_use",
                "gpus_used",
                "used_gpus",
                "num_gpus",
            ],
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
    pub(super) fn needs(self) -> &'static [&'static [Key]] {
        match self {
            Self::Jobs => &[&[Key::Submit, Key::Start], &[Key::Duration, Key::End]],
            Self::Openb => &[&[Key::Submit], &[Key::End], &[Key::Gpus]],
            Self::Sacct => {
                &[&[Key::Submit], &[Key::Duration, Key::End], &[Key::Tres, Key::AskedTres, Key::Gpus]]
            }
            Self::Helios => &[&[Key::At], &[Key::Running], &[Key::Pending]],
            Self::Record => &[&[Key::At], &[Key::Gpus], &[Key::Owner]],
            Self::Grafana => &[&[Key::At]],
            Self::Prometheus | Self::Demand => &[&[Key::At], &[Key::Gpus]],
        }
    }
}

/// The names of columns in traces of jobs, in any spelling; the best first.
fn of_jobs(key: Key) -> &'static [&'static str] {
    match key {
        Key::Id => &["id", "job_id", "uid", "task_id", "vm_id"],
        Key::Submit => &[
            "submit",
            "submit_s",
            "submit_time",
            "submitted",
            "submitted_time",
            "submitted_at",
            "submit_at",
            "submission_time",
            "submit_timestamp",
            "created",
            "created_at",
            "creation_time",
            "creation_timestamp",
            "arrival",
            "arrival_time",
            "qtime",
            "queued_at",
            "enqueued_at",
            "vm_created",
        ],
        Key::Start => &["start", "start_s", "start_time", "started", "started_at", "scheduled_time"],
        Key::End => &[
            "end",
            "end_s",
            "end_time",
            "ended",
            "ended_at",
            "finish",
            "finish_time",
            "finished",
            "finished_at",
            "completed_at",
            "completion_time",
            "deletion_time",
            "deleted_at",
            "vm_deleted",
        ],
        Key::Duration => &[
            "duration",
            "duration_s",
            "run_time",
            "elapsed",
            "elapsed_time",
            "wall_time",
            "resources_used.walltime",
            "job_duration",
            "job_runtime",
        ],
        Key::Gpus => &["gpus", "gpus_per_pod"],
        Key::TotalGpus => &[
            "total_gpus",
            "gpu_num",
            "num_gpus",
            "num_gpu",
            "ngpus",
            "Resource_List.ngpus",
            "gpu_count",
            "gpus_requested",
            "requested_gpus",
            "gpu_request",
            "req_gpus",
            "gpu_share",
            "gpu_shares",
            "gpu_fraction",
            "gpu",
        ],
        Key::GpuMilli => &["gpu_milli"],
        Key::GpuPercent => &["gpu_percent", "plan_gpu"],
        Key::Pods => &[
            "pods",
            "nodes",
            "node_num",
            "num_nodes",
            "nnodes",
            "replicas",
            "inst_num",
            "Resource_List.nodect",
            "nexec_host",
        ],
        Key::Gang => &["gang"],
        Key::Cpu => &["cpu", "cpus"],
        Key::CpuMilli => &["cpu_milli"],
        Key::Memory => &["memory", "mem"],
        Key::MemoryMib => &["memory_mib"],
        Key::Models => &["models", "model", "gpu_model", "gpu_type", "gpu_spec"],
        Key::Deadline => &["deadline", "deadline_s"],
        Key::Priority => &["priority"],
        Key::Owner => &["owner", "namespace", "user", "account", "vc"],
        _ => &[],
    }
}
