//! Jobs that are replayed again and again: kept in memory where they are few, read again where they are many.

use anyhow::{Context as _, bail};

use crate::{job::Job, trace};

/// Jobs of one trace.
#[derive(Debug)]
pub(super) struct Jobs {
    trace: trace::Args,
    kept: Option<Vec<Job>>,
    count: usize,
    /// When the first and the last of them are submitted.
    span: Option<(f64, f64)>,
    warnings: trace::Warnings,
}

/// Which jobs are replayed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Half {
    /// Those submitted in the first half of the time.
    First,
    /// Those submitted in the second.
    Second,
    /// All.
    Both,
}

/// More are read again each time: some 100 MB.
const KEPT: usize = 500_000;

impl Jobs {
    /// Those of a trace that is about to be read; each is to be [taken](Self::take).
    pub(super) fn of(trace: &trace::Args) -> Self {
        Self {
            trace: trace.clone(),
            kept: Some(Vec::new()),
            count: 0,
            span: None,
            warnings: trace::Warnings::default(),
        }
    }

    /// Reads them once.
    pub(super) fn read(trace: &trace::Args) -> anyhow::Result<Self> {
        let mut jobs = Self::of(trace);
        let mut opened = trace.open()?.jobs()?;
        for job in opened.by_ref() {
            jobs.take(&job?);
        }
        jobs.warnings = opened.warnings();
        jobs.check()?;
        Ok(jobs)
    }

    /// Takes the next.
    pub(super) fn take(&mut self, job: &Job) {
        let (first_s, _) = self.span.unwrap_or((job.submit_s, job.submit_s));
        self.span = Some((first_s, job.submit_s));
        self.count += 1;
        if self.count > KEPT {
            self.kept = None;
        }
        if let Some(kept) = &mut self.kept {
            kept.push(job.clone());
        }
    }

    /// Refuses what can be read but once, and is too much to be kept.
    pub(super) fn check(&self) -> anyhow::Result<()> {
        if self.kept.is_none() && self.trace.files.iter().any(|file| file.as_os_str() == "-") {
            bail!("more than {KEPT} jobs on standard input, which can be read but once: name a file");
        }
        Ok(())
    }

    /// What was wrong with them, where they were [read](Self::read).
    pub(super) fn warnings(&self) -> &trace::Warnings {
        &self.warnings
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.count
    }

    /// Those of a half, by submit time.
    pub(super) fn half(&self, half: Half) -> anyhow::Result<impl Iterator<Item = anyhow::Result<Job>> + '_> {
        let middle_s = self.span.map_or(0.0, |(first_s, last_s)| f64::midpoint(first_s, last_s));
        let wanted = move |job: &anyhow::Result<Job>| match (job, half) {
            (Ok(job), Half::First) => job.submit_s < middle_s,
            (Ok(job), Half::Second) => job.submit_s >= middle_s,
            (Err(_), _) | (_, Half::Both) => true,
        };
        Ok(self.all()?.filter(wanted))
    }

    /// All of them, by submit time.
    pub(super) fn all(&self) -> anyhow::Result<Box<dyn Iterator<Item = anyhow::Result<Job>> + '_>> {
        if let Some(kept) = &self.kept {
            return Ok(Box::new(kept.iter().cloned().map(Ok)));
        }
        let again = self.trace.open().context("can't read the trace again")?.jobs()?;
        Ok(Box::new(again.map(|job| job.map_err(Into::into))))
    }
}
