//! Makes jobs of rows.

use std::{collections::HashMap, sync::Arc};

use csv::ByteRecord;

use super::{
    key::Key,
    layout::Columns,
    preset::Preset,
    reports::{Cells, Reading, Skipped},
    value::{self, Times, Tres},
    warnings::Kind,
};
use crate::job::{Job, Request, WHOLE_GPU};

/// Different names that are kept once; beyond, each job has its own.
const NAMES: usize = 1 << 16;
const NAME: usize = 256;

/// More than this is a slip, or meant to hurt what sums it up.
const PODS: u32 = 1_000_000;
const GPUS: u32 = 1_000_000;

/// More GPUs than machines usually have.
const USUAL: u32 = 8;

/// Makes jobs of rows. Names are kept once.
#[derive(Debug)]
pub(super) struct Decoder {
    times: Times,
    asks_only: bool,
    gpus_per_pod: Option<u32>,
    /// The last job's GPUs were taken for those of one pod, more than machines usually have.
    one_pod: bool,
    names: HashMap<Box<[u8]>, Arc<str>>,
    models: HashMap<Box<[u8]>, Arc<[Arc<str>]>>,
    any: Arc<[Arc<str>]>,
    none: Arc<str>,
    /// A name that was made since it was last asked isn't UTF-8.
    replaced: bool,
    guessed: Guessed,
}

/// Whether the unit of a duration was guessed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Guessed {
    Never,
    Now,
    Told,
}

impl Decoder {
    pub(super) fn new(reading: &Reading) -> Self {
        Self {
            times: reading.times.clone(),
            asks_only: reading.asks_only,
            gpus_per_pod: reading.gpus_per_pod,
            one_pod: false,
            names: HashMap::new(),
            models: HashMap::new(),
            any: Arc::from([]),
            none: Arc::from(""),
            replaced: false,
            guessed: Guessed::Never,
        }
    }

    /// Whether a name that was made since the last call isn't UTF-8. One that is known already isn't told again.
    pub(super) fn replaced(&mut self) -> bool {
        std::mem::take(&mut self.replaced)
    }

    /// The job of a row; nothing where the row is a part of a job.
    pub(super) fn job(
        &mut self,
        line: u64,
        row: &ByteRecord,
        columns: &Columns,
    ) -> Result<Option<Job>, Skipped> {
        let cells = Cells { row, columns };
        if columns.preset == Preset::Sacct && cells.get(Key::Id).is_some_and(|id| id.contains(&b'.')) {
            return Ok(None);
        }
        columns.fits(row)?;
        let submit = if columns.of(Key::Submit).is_some() { Key::Submit } else { Key::Start };
        let submit_s = cells.at(&self.times, submit, columns.last_s.get())?;
        let submit_s = submit_s.or(self.asks_only.then_some(0.0)).ok_or(Skipped {
            kind: Kind::BadTime,
            key: Some(submit),
            what: "empty",
        })?;
        columns.last_s.set(submit_s);
        let duration_s = match self.duration(cells, submit_s) {
            Err(Skipped { kind: Kind::NeverRan | Kind::Unfinished, .. }) if self.asks_only => 0.0,
            duration_s => duration_s?,
        };
        let (pods, request) = self.request(cells)?;
        Ok(Some(Job {
            line,
            submit_s,
            duration_s,
            pods,
            gang: cells.read(Key::Gang, Kind::BadNumber, value::truth)?.unwrap_or(pods > 1),
            request,
            deadline_s: cells.at(&self.times, Key::Deadline, submit_s)?,
            priority: cells.read(Key::Priority, Kind::BadNumber, value::priority)?.unwrap_or(0),
            owner: self.name(cells.get(Key::Owner).unwrap_or_default()),
        }))
    }

    /// Whether the last job's GPUs were taken for those of one pod, more than machines usually have.
    pub(super) fn one_pod(&self) -> bool {
        self.one_pod
    }

    /// Whether a duration was taken for seconds beside times that are not in seconds, for the first time.
    pub(super) fn guessed(&mut self) -> bool {
        let now = self.guessed == Guessed::Now;
        if now {
            self.guessed = Guessed::Told;
        }
        now
    }

    fn duration(&mut self, cells: Cells, submit_s: f64) -> Result<f64, Skipped> {
        let (times, unit) = (&self.times, |key| cells.columns.unit(key));
        let long = cells.read(Key::Duration, Kind::BadTime, |cell| times.long(unit(Key::Duration), cell))?;
        let start = cells.at(times, Key::Start, submit_s)?;
        let end = cells.at(times, Key::End, start.unwrap_or(submit_s))?;
        let is = |key, test: &dyn Fn(&[u8]) -> bool| cells.get(key).is_some_and(test);
        if self.guessed == Guessed::Never
            && is(Key::Submit, &|cell| times.is_guessed(unit(Key::Submit), cell))
            && is(Key::Duration, &|cell| times.bare(unit(Key::Duration), cell).is_some())
        {
            self.guessed = Guessed::Now;
        }
        let negative = |key, what| Err(Skipped { kind: Kind::NegativeDuration, key: Some(key), what });
        if let Some(end) = end
            && end < submit_s
        {
            return negative(Key::End, "before it was submitted");
        }
        // Slurm tells how long a job ran so far, and the end as unknown.
        let unfinished =
            cells.columns.preset == Preset::Sacct && cells.get(Key::End).is_some() && end.is_none();
        match (long, start, end) {
            _ if unfinished => {
                Err(Skipped { kind: Kind::Unfinished, key: Some(Key::End), what: "no time: it still runs" })
            }
            (Some(long), ..) if long < 0.0 => negative(Key::Duration, "negative"),
            (Some(long), start, _) if never_ran(cells, long, start) => {
                Err(Skipped { kind: Kind::NeverRan, key: Some(Key::Start), what: "no time: it never ran" })
            }
            (Some(long), ..) => Ok(long),
            (None, Some(start), Some(end)) if end < start => negative(Key::End, "before it started"),
            (None, Some(start), Some(end)) => Ok(end - start),
            (None, None, Some(_)) if cells.get(Key::Start).is_some() => {
                Err(Skipped { kind: Kind::NeverRan, key: Some(Key::Start), what: "empty: it never ran" })
            }
            (None, None, Some(end)) => Ok(end - submit_s),
            (None, _, None) if cells.get(Key::End).is_some() => {
                Err(Skipped { kind: Kind::Unfinished, key: Some(Key::End), what: "no time: it has no end" })
            }
            (None, _, None) => {
                Err(Skipped { kind: Kind::Unfinished, key: Some(Key::Duration), what: "no duration" })
            }
        }
    }

    /// How many pods, and what each asks for.
    fn request(&mut self, cells: Cells) -> Result<(u32, Request), Skipped> {
        let number = |key| cells.read(key, Kind::BadNumber, value::count);
        let mut pods = number(Key::Pods)?.unwrap_or(1).max(1);
        self.one_pod = false;
        let mut request = Request { models: Arc::clone(&self.any), ..Request::gpus(1) };
        if let Some(milli) = number(Key::GpuMilli)? {
            if milli > WHOLE_GPU {
                return Err(Skipped {
                    kind: Kind::BadNumber,
                    key: Some(Key::GpuMilli),
                    what: "more than 1000: name whole GPUs in gpus",
                });
            }
            request.gpu_milli = milli;
        }
        let empty = |key| Skipped { kind: Kind::BadNumber, key: Some(key), what: "empty" };
        let gpus = |key| cells.read(key, Kind::BadNumber, value::gpus)?.ok_or(empty(key));
        let part = |milli: u32, share: u32| if share == WHOLE_GPU { milli } else { share };
        if cells.get(Key::Gpus).is_some() {
            let (gpus, share) = gpus(Key::Gpus)?;
            (request.gpus, request.gpu_milli) = (gpus, part(request.gpu_milli, share));
        } else if cells.get(Key::TotalGpus).is_some() {
            let (total, share) = gpus(Key::TotalGpus)?;
            let untold = cells.columns.of(Key::Pods).is_none();
            if let Some(most) = self.gpus_per_pod.filter(|_| untold) {
                let each = (1..=most.min(total)).rev().find(|each| total.is_multiple_of(*each));
                pods = each.map_or(1, |each| total / each);
            }
            self.one_pod = untold && self.gpus_per_pod.is_none() && total > USUAL;
            (pods, request.gpus) = spread(total, pods);
            request.gpu_milli = part(request.gpu_milli, share);
        } else if let Some((gpus, share)) =
            cells.read(Key::GpuPercent, Kind::BadNumber, value::gpu_percent)?
        {
            (request.gpus, request.gpu_milli) = (gpus, part(request.gpu_milli, share));
        } else if let Some(tres) = tres(cells)? {
            pods = pods.max(tres.nodes);
            let (spread_over, gpus) = spread(tres.gpus, pods);
            request.gpus = gpus;
            request.cpu_milli = tres.cpu_milli.div_ceil(pods.into());
            request.memory_mib = tres.memory_bytes.div_ceil(u64::from(pods) << 20);
            pods = spread_over;
            if let Some(model) = tres.model {
                request.models = self.models(model);
            }
        }
        if pods > PODS || request.gpus > GPUS || u64::from(pods) * u64::from(request.gpus) > u64::from(GPUS) {
            return Err(Skipped {
                kind: Kind::BadNumber,
                key: None,
                what: "the job asks for more than a million GPUs or pods",
            });
        }
        if request.gpu_milli == 0 {
            request.gpus = 0;
        }
        if request.gpus == 0 {
            request.gpu_milli = WHOLE_GPU;
        }
        let quantity = |key, parts| cells.read(key, Kind::BadNumber, |cell| value::quantity(cell, parts));
        if let Some(cpu_milli) = quantity(Key::Cpu, 1000)? {
            request.cpu_milli = cpu_milli;
        }
        if let Some(cpu_milli) = cells.read(Key::CpuMilli, Kind::BadNumber, value::number)? {
            request.cpu_milli = whole(cpu_milli);
        }
        if let Some(bytes) = quantity(Key::Memory, 1)? {
            request.memory_mib = bytes.div_ceil(1 << 20);
        }
        if let Some(mib) = cells.read(Key::MemoryMib, Kind::BadNumber, value::number)? {
            request.memory_mib = whole(mib);
        }
        if let Some(models) = cells.get(Key::Models) {
            request.models = self.models(models);
        }
        Ok((pods, request))
    }

    fn name(&mut self, name: &[u8]) -> Arc<str> {
        let name = name.trim_ascii();
        if name.is_empty() {
            return Arc::clone(&self.none);
        }
        if let Some(known) = self.names.get(name) {
            return Arc::clone(known);
        }
        let text = String::from_utf8_lossy(name);
        self.replaced |= matches!(text, std::borrow::Cow::Owned(_));
        let made: Arc<str> = Arc::from(text.as_ref());
        if self.names.len() < NAMES && name.len() <= NAME {
            self.names.insert(Box::from(name), Arc::clone(&made));
        }
        made
    }

    fn models(&mut self, cell: &[u8]) -> Arc<[Arc<str>]> {
        let cell = cell.trim_ascii();
        if cell.is_empty() {
            return Arc::clone(&self.any);
        }
        if let Some(known) = self.models.get(cell) {
            return Arc::clone(known);
        }
        let made: Arc<[Arc<str>]> = cell
            .split(|&byte| byte == b'|')
            .filter(|model| !model.trim_ascii().is_empty())
            .map(|model| self.name(model))
            .collect();
        if self.models.len() < NAMES && cell.len() <= NAME {
            self.models.insert(Box::from(cell), Arc::clone(&made));
        }
        made
    }
}

/// Slurm's jobs that were cancelled while they waited have an elapsed time of 0 and either no start, or that of their end and nothing granted.
fn never_ran(cells: Cells, long_s: f64, start_s: Option<f64>) -> bool {
    let nothing_granted = || cells.get(Key::Tres).is_some_and(|cell| cell.trim_ascii().is_empty());
    cells.columns.preset == Preset::Sacct
        && long_s == 0.0
        && cells.get(Key::Start).is_some()
        && (start_s.is_none() || nothing_granted())
}

fn tres(cells: Cells<'_>) -> Result<Option<Tres<'_>>, Skipped> {
    let mut found = None;
    for key in [Key::Tres, Key::AskedTres] {
        let Some(cell) = cells.get(key) else { continue };
        // A job that was never granted anything has an empty cell; one without GPUs doesn't name them.
        found = Some(Tres::default());
        if !cell.trim_ascii().is_empty() {
            return cells.read(key, Kind::BadNumber, Tres::of);
        }
    }
    Ok(found)
}

/// `total` GPUs over `pods`; where they don't divide evenly, a pod for each GPU.
fn spread(total: u32, pods: u32) -> (u32, u32) {
    if total.is_multiple_of(pods) { (pods, total / pods) } else { (total, 1) }
}

/// Not negative, and far below 2⁶⁴: see [`value::number`].
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturates")]
fn whole(number: f64) -> u64 {
    number.round() as u64
}
