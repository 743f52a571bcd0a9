//! Jobs that are replayed again and again: kept in memory where they are few, read again where they are many.

use anyhow::{Context as _, bail};

use crate::{
    job::Job,
    policy::Policy,
    pool::Pool,
    price::Rates,
    simulate::{self, Simulation},
    trace,
};

/// Jobs of one trace.
#[derive(Debug)]
pub(super) struct Jobs {
    trace: trace::Args,
    kept: Option<Vec<Job>>,
    /// Half of the time in which they are submitted.
    middle_s: f64,
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

/// More are read again each time: some 200 MB.
const KEPT: usize = 1_000_000;

impl Jobs {
    /// Reads them once.
    pub(super) fn read(trace: &trace::Args) -> anyhow::Result<Self> {
        let (mut kept, mut many, mut span) = (Vec::new(), false, None);
        for job in trace.open()?.jobs()? {
            let job = job?;
            let (first_s, _) = span.unwrap_or((job.submit_s, job.submit_s));
            span = Some((first_s, job.submit_s));
            if many || kept.len() == KEPT {
                (many, kept) = (true, Vec::new());
            } else {
                kept.push(job);
            }
        }
        if many && trace.files.iter().any(|file| file.as_os_str() == "-") {
            bail!("more than {KEPT} jobs on standard input, which can be read but once: name a file");
        }
        let (first_s, last_s) = span.unwrap_or_default();
        Ok(Self {
            trace: trace.clone(),
            kept: (!many).then_some(kept),
            middle_s: f64::midpoint(first_s, last_s),
        })
    }

    /// Those of a half, by submit time.
    pub(super) fn half(&self, half: Half) -> anyhow::Result<impl Iterator<Item = anyhow::Result<Job>> + '_> {
        let wanted = move |job: &anyhow::Result<Job>| match (job, half) {
            (Ok(job), Half::First) => job.submit_s < self.middle_s,
            (Ok(job), Half::Second) => job.submit_s >= self.middle_s,
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

/// Replays jobs.
pub(super) fn replay(
    jobs: impl Iterator<Item = anyhow::Result<Job>>,
    pool: &Pool,
    policy: &Policy,
    rates: &Rates,
    seed: u64,
) -> anyhow::Result<Simulation> {
    let options = simulate::Options { seed, bound: false, ..simulate::Options::default() };
    simulate::run_with(jobs, pool, policy, rates, &options)
}
