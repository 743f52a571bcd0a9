//! Samples into blocks of time, in one pass. Memory is bounded: blocks grow longer as the trace does, and as levels differ.

use super::{Block, Error, Gaps, Level, MAX_GPUS, Series, Span};
use crate::job;

/// Blocks grow longer rather than more than this many.
const MAX_BLOCKS: usize = 2000;
/// The same for levels over all blocks, down to [`FEW_BLOCKS`]: 24 bytes each.
const MAX_LEVELS: usize = 1_000_000;
const FEW_BLOCKS: usize = 64;
/// So many samples are looked at before it is known whether they come at regular times.
const HEAD: usize = 4096;
/// So many gaps and stretches without demand are remembered one by one.
const REMEMBERED: usize = 1000;

/// Makes a [`Series`] of samples, sorted by time.
#[derive(Debug, Default)]
pub struct Collector {
    head: Vec<job::Demand>,
    begun: Option<Begun>,
    last: Option<job::Demand>,
}

impl Collector {
    /// Takes the next sample.
    ///
    /// # Errors
    /// What [`Error`] lists; the sample is left out, and others may follow.
    pub fn push(&mut self, sample: job::Demand) -> Result<(), Error> {
        let job::Demand { line, at_s, gpus } = sample;
        if !at_s.is_finite() {
            return Err(Error::Time { line, at_s });
        }
        if !(0.0..=f64::from(MAX_GPUS)).contains(&gpus) {
            return Err(Error::Level { line, gpus });
        }
        if let Some(last) = self.last.filter(|last| last.at_s > at_s) {
            return Err(Error::Unsorted { line, back_s: last.at_s - at_s });
        }
        self.last = Some(sample);
        if let Some(begun) = &mut self.begun {
            begun.next(sample);
        } else {
            self.head.push(sample);
            if self.head.len() == HEAD {
                self.begin();
            }
        }
        Ok(())
    }

    fn begin(&mut self) {
        let Some(first) = self.head.first() else { return };
        let mut begun = Begun::new(*first, Step::of(&self.head));
        for sample in self.head.drain(..).skip(1) {
            begun.next(sample);
        }
        self.begun = Some(begun);
    }

    /// What they make.
    ///
    /// # Errors
    /// [`Error::Empty`].
    pub fn finish(mut self) -> Result<Series, Error> {
        if self.begun.is_none() {
            self.begin();
        }
        self.begun.ok_or(Error::Empty).map(Begun::finish)
    }
}

/// The time between samples.
#[derive(Debug, Clone, Copy)]
struct Step {
    usual_s: f64,
    /// Whether samples come at regular times; otherwise they come when demand changes, and a long time without is no gap.
    regular: bool,
    /// The last interval that was another, and how often it came in a row.
    other: (f64, u32),
}

/// A regular trace's interval may be so much off, and is a gap where it is so much longer.
const JITTER: f64 = 0.1;
const GAP: f64 = 1.5;
/// So often in a row another interval comes before it is the usual one: recorders keep what is older in longer steps.
const CHANGED: u32 = 3;

impl Step {
    fn of(head: &[job::Demand]) -> Self {
        let mut steps: Vec<f64> =
            head.windows(2).map(|pair| pair[1].at_s - pair[0].at_s).filter(|step| *step > 0.0).collect();
        steps.sort_by(f64::total_cmp);
        let usual_s = steps.get(steps.len() / 2).copied().unwrap_or(1.0);
        let alike = steps.iter().filter(|step| near(**step, usual_s)).count();
        // With fewer there is nothing to be regular.
        let regular = steps.len() >= 3 && alike * 10 >= steps.len() * 9;
        Self { usual_s, regular, other: (0.0, 0) }
    }

    /// How much of `elapsed_s` a sample stands for.
    fn of_sample(&mut self, elapsed_s: f64) -> f64 {
        if !self.regular || elapsed_s <= 0.0 || near(elapsed_s, self.usual_s) {
            self.other.1 = 0;
            return elapsed_s;
        }
        self.other =
            if near(elapsed_s, self.other.0) { (elapsed_s, self.other.1 + 1) } else { (elapsed_s, 1) };
        if self.other.1 >= CHANGED {
            self.usual_s = elapsed_s;
        }
        if elapsed_s > self.usual_s * GAP { self.usual_s } else { elapsed_s }
    }
}

fn near(a: f64, b: f64) -> bool {
    (a - b).abs() <= JITTER * b
}

/// What is known after the first samples.
#[derive(Debug)]
struct Begun {
    origin_s: f64,
    width_s: f64,
    blocks: Vec<Block>,
    /// Levels of all `blocks`, and how many of them are too many.
    levels: usize,
    too_many: usize,
    current: Current,
    previous: job::Demand,
    step: Step,
    samples: u64,
    gaps: Gaps,
    zeros: Zeros,
}

impl Begun {
    fn new(first: job::Demand, step: Step) -> Self {
        Self {
            origin_s: first.at_s,
            width_s: 1.0,
            blocks: Vec::new(),
            levels: 0,
            too_many: MAX_LEVELS,
            current: Current::default(),
            previous: first,
            step,
            samples: 1,
            gaps: Gaps::default(),
            zeros: Zeros::new(first),
        }
    }

    fn next(&mut self, sample: job::Demand) {
        let elapsed_s = sample.at_s - self.previous.at_s;
        let lasted_s = self.step.of_sample(elapsed_s);
        self.add(lasted_s);
        if lasted_s < elapsed_s {
            let gap = Span { from_s: self.previous.at_s + lasted_s, to_s: sample.at_s };
            self.gaps.count += 1;
            self.gaps.total_s += gap.seconds();
            if self.gaps.first.len() < REMEMBERED {
                self.gaps.first.push(gap);
            }
            if self.gaps.longest.is_none_or(|longest| gap.seconds() > longest.seconds()) {
                self.gaps.longest = Some(gap);
            }
        }
        self.zeros.next(self.previous, sample);
        self.previous = sample;
        self.samples += 1;
    }

    /// Counts that demand was as in the previous sample for so long.
    fn add(&mut self, lasted_s: f64) {
        if lasted_s <= 0.0 {
            return;
        }
        let (mut from_s, to_s) = (self.previous.at_s, self.previous.at_s + lasted_s);
        while (to_s - self.origin_s) / self.width_s > MAX_BLOCKS as f64 {
            self.lengthen();
        }
        while self.levels > self.too_many && self.blocks.len() > FEW_BLOCKS {
            self.lengthen();
            self.too_many = MAX_LEVELS.max(self.levels * 2);
        }
        let index = ((from_s - self.origin_s) / self.width_s) as usize;
        while self.blocks.len() < index {
            self.close();
        }
        loop {
            let end_s = self.origin_s + self.width_s * (self.blocks.len() + 1) as f64;
            let until_s = to_s.min(end_s);
            self.current.add(self.previous.gpus, until_s - from_s);
            if to_s <= end_s {
                return;
            }
            from_s = until_s;
            self.close();
        }
    }

    /// Ends the current block.
    fn close(&mut self) {
        let block = self.current.take();
        self.levels += block.levels.len();
        self.blocks.push(block);
    }

    /// Makes blocks of the next length of several each.
    fn lengthen(&mut self) {
        self.close();
        let together = longer(self.width_s);
        self.width_s *= together as f64;
        let mut blocks = std::mem::take(&mut self.blocks);
        self.levels = 0;
        for group in blocks.chunks_mut(together) {
            for block in group {
                self.current.merge(&std::mem::take(block));
            }
            self.close();
        }
        // The last one goes on.
        if let Some(block) = self.blocks.pop() {
            self.levels -= block.levels.len();
            self.current.merge(&block);
        }
    }

    fn finish(mut self) -> Series {
        // The last sample lasted as long as samples do; where they come as demand changes, none is the end.
        let end = self.previous.gpus == 0.0 && !self.step.regular && self.samples > 1;
        let lasted_s = if end { 0.0 } else { self.step.usual_s };
        self.add(lasted_s);
        self.zeros.end(self.previous.at_s + lasted_s);
        self.close();
        let mut series = Series {
            origin_s: self.origin_s,
            width_s: self.width_s,
            blocks: self.blocks,
            samples: self.samples,
            step_s: self.step.regular.then_some(self.step.usual_s),
            gaps: self.gaps,
            holes: Vec::new(),
        };
        series.holes = self.zeros.holes(&series);
        series
    }
}

/// How many blocks of `width_s` make one of the next length: 1, 5, 15 s, 1, 5, 15, 30 min, 1, 2, 6, 12 h, 1, 7 d, and twice that for ever.
fn longer(width_s: f64) -> usize {
    const FACTORS: [(f64, usize); 12] = [
        (1.0, 5),
        (5.0, 3),
        (15.0, 4),
        (60.0, 5),
        (300.0, 3),
        (900.0, 2),
        (1800.0, 2),
        (3600.0, 2),
        (7200.0, 3),
        (21_600.0, 2),
        (43_200.0, 2),
        (86_400.0, 7),
    ];
    FACTORS.iter().find(|(width, _)| width_s <= *width).map_or(2, |(_, factor)| *factor)
}

/// The block that is being filled.
#[derive(Debug, Default)]
struct Current {
    /// By whole GPUs: seconds, and GPU-seconds beyond.
    dense: Vec<(f64, f64)>,
    touched: Vec<u32>,
    range: Option<(f64, f64)>,
}

impl Current {
    fn add(&mut self, gpus: f64, seconds: f64) {
        let whole = gpus.floor();
        self.put(whole as u32, seconds, (gpus - whole) * seconds);
        let (min, max) = self.range.unwrap_or((gpus, gpus));
        self.range = Some((min.min(gpus), max.max(gpus)));
    }

    fn put(&mut self, gpus: u32, seconds: f64, part_gpu_s: f64) {
        let at = gpus as usize;
        if at >= self.dense.len() {
            self.dense.resize(at + 1, (0.0, 0.0));
        }
        let cell = &mut self.dense[at];
        if cell.0 == 0.0 && seconds > 0.0 {
            self.touched.push(gpus);
        }
        cell.0 += seconds;
        cell.1 += part_gpu_s;
    }

    fn merge(&mut self, block: &Block) {
        for level in &block.levels {
            self.put(level.gpus, level.seconds, level.part_gpu_s);
        }
        if !block.levels.is_empty() {
            let (min, max) = self.range.unwrap_or((block.min_gpus, block.max_gpus));
            self.range = Some((min.min(block.min_gpus), max.max(block.max_gpus)));
        }
    }

    fn take(&mut self) -> Block {
        self.touched.sort_unstable();
        let mut levels = Vec::with_capacity(self.touched.len());
        for gpus in self.touched.drain(..) {
            let (seconds, part_gpu_s) = std::mem::take(&mut self.dense[gpus as usize]);
            levels.push(Level { gpus, seconds, part_gpu_s });
        }
        let (min_gpus, max_gpus) = self.range.take().unwrap_or_default();
        Block { levels, min_gpus, max_gpus }
    }
}

/// Stretches without any demand.
#[derive(Debug)]
struct Zeros {
    /// When the present one began, and what was demanded before it.
    since: Option<(f64, f64)>,
    /// Where each began and ended, and the larger of what was demanded before and after.
    found: Vec<(Span, f64)>,
    /// There are more than can be remembered: they are nothing unusual.
    usual: bool,
}

impl Zeros {
    fn new(first: job::Demand) -> Self {
        let since = (first.gpus == 0.0).then_some((first.at_s, 0.0));
        Self { since, found: Vec::new(), usual: false }
    }

    fn next(&mut self, previous: job::Demand, sample: job::Demand) {
        if sample.gpus == 0.0 {
            self.since = self.since.or(Some((sample.at_s, previous.gpus)));
        } else {
            self.close(sample.at_s, sample.gpus);
        }
    }

    fn end(&mut self, at_s: f64) {
        self.close(at_s, 0.0);
    }

    fn close(&mut self, to_s: f64, after: f64) {
        let Some((from_s, before)) = self.since.take() else { return };
        self.usual |= self.found.len() >= REMEMBERED;
        if !self.usual {
            self.found.push((Span { from_s, to_s }, f64::max(before, after)));
        }
    }

    /// See [`Series::holes`].
    fn holes(self, series: &Series) -> Vec<Span> {
        // Who writes down changes has written down that there is no demand.
        if series.step_s.is_none() {
            return Vec::new();
        }
        let curve = series.curve();
        let zero = curve.share_between(0, 1);
        let median = f64::from(curve.quantile_gpus(0.5));
        if self.usual || zero > 0.1 || median <= 0.0 {
            return Vec::new();
        }
        let abrupt: Vec<Span> =
            self.found.into_iter().filter(|(_, edge)| *edge >= median / 2.0).map(|(span, _)| span).collect();
        // Where there are many about as long, that is how demand is.
        let seldom = |hole: &Span| {
            let as_long = abrupt.iter().filter(|other| other.seconds() >= hole.seconds() / 2.0).count();
            as_long as u64 <= 2 + series.samples / 10_000
        };
        abrupt.iter().copied().filter(seldom).collect()
    }
}
