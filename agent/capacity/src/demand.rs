//! Demand as a distribution over time: gathered in one pass and constant memory, by blocks of time; its quantiles, its holes, its gaps.
//!
//! Refuses to guess: what is suspected to be a hole in the data is told with from and to, and dropped only when asked.

#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    reason = "indices of blocks and levels, which are bounded"
)]

mod collect;
mod curve;
mod jobs;
#[cfg(test)]
mod tests;

use serde::Serialize;

pub use collect::Collector;
pub use curve::LoadCurve;
pub use jobs::offered;

use crate::job;

/// The most GPUs at one time that a trace may tell of.
pub const MAX_GPUS: u32 = 1 << 20;

/// What can't be made into demand over time.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It has no samples, or none that lasted.
    #[error("the trace has no demand in it: not one row with a time and a number of GPUs")]
    Empty,
    /// A level that no pool can have.
    #[error("line {line}: {gpus} GPUs at one time; a number from 0 to {MAX_GPUS} was expected")]
    Level {
        /// Where.
        line: u64,
        /// What it says.
        gpus: f64,
    },
    /// A time that is none.
    #[error("line {line}: {at_s} is no time")]
    Time {
        /// Where.
        line: u64,
        /// What it says.
        at_s: f64,
    },
    /// A sample before the one that came before it.
    #[error(
        "line {line}: its time is {back_s} s before that of the row above; sort the trace by time, for example with `sort -t, -k1`"
    )]
    Unsorted {
        /// Where.
        line: u64,
        /// By how much it is too early.
        back_s: f64,
    },
}

/// How long demand was at a level from `gpus` up to, but not including, the next whole GPU.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Level {
    gpus: u32,
    seconds: f64,
    /// GPU-seconds beyond `gpus`: 0 where demand is of whole GPUs.
    part_gpu_s: f64,
}

/// A stretch of time: what was demanded in it, and for how long each.
#[derive(Debug, Clone, PartialEq, Default)]
struct Block {
    /// By level, ascending.
    levels: Vec<Level>,
    min_gpus: f64,
    max_gpus: f64,
}

impl Block {
    fn observed_s(&self) -> f64 {
        self.levels.iter().map(|level| level.seconds).sum()
    }

    fn gpu_s(&self) -> f64 {
        self.levels.iter().map(|level| f64::from(level.gpus) * level.seconds + level.part_gpu_s).sum()
    }
}

/// A stretch of time.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Span {
    /// On the scale of [`job::Demand::at_s`].
    pub from_s: f64,
    /// On the same scale.
    pub to_s: f64,
}

impl Span {
    /// How long it is.
    pub fn seconds(&self) -> f64 {
        self.to_s - self.from_s
    }
}

/// Time stamps that are missing from a trace with regular ones.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Gaps {
    /// How many.
    pub count: u64,
    /// How long they are together.
    pub total_s: f64,
    /// The first of them.
    pub first: Vec<Span>,
    /// The longest.
    pub longest: Option<Span>,
}

/// Demand in a stretch of time, for plots.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Point {
    /// Where the stretch begins, on the scale of [`job::Demand::at_s`].
    pub at_s: f64,
    /// How much of the stretch the trace tells of; 0 in a gap.
    pub observed_s: f64,
    /// The least.
    pub min_gpus: f64,
    /// On average over the time observed.
    pub mean_gpus: f64,
    /// The most.
    pub max_gpus: f64,
}

/// Demand over time, in at most 2,000 blocks of equal length.
#[derive(Debug, Clone, PartialEq)]
pub struct Series {
    origin_s: f64,
    width_s: f64,
    blocks: Vec<Block>,
    samples: u64,
    /// The usual time between samples; none where they come as demand changes.
    step_s: Option<f64>,
    gaps: Gaps,
    holes: Vec<Span>,
}

impl Series {
    /// Gathers `demand`, sorted by time.
    ///
    /// # Errors
    /// The first error of `demand`, and what [`Error`] lists.
    pub fn collect<E: From<Error>>(
        demand: impl IntoIterator<Item = Result<job::Demand, E>>,
    ) -> Result<Self, E> {
        let mut collector = Collector::default();
        for sample in demand {
            collector.push(sample?)?;
        }
        Ok(collector.finish()?)
    }

    /// How many blocks of time it has.
    pub fn blocks(&self) -> usize {
        self.blocks.len()
    }

    /// How long each block is.
    pub fn width_s(&self) -> f64 {
        self.width_s
    }

    /// Where block `index` begins.
    pub fn start_s(&self, index: usize) -> f64 {
        self.origin_s + self.width_s * index as f64
    }

    /// From the first sample until the last has passed.
    pub fn span(&self) -> Span {
        Span { from_s: self.origin_s, to_s: self.start_s(self.blocks.len()) }
    }

    /// How many samples it was made of.
    pub fn samples(&self) -> u64 {
        self.samples
    }

    /// The usual time between samples; none where they come as demand changes.
    pub fn step_s(&self) -> Option<f64> {
        self.step_s
    }

    /// Time stamps that are missing.
    pub fn gaps(&self) -> &Gaps {
        &self.gaps
    }

    /// Stretches without any demand that look like missing data, in a trace with regular samples: demand falls to nothing, or comes back from it, by at least half its median from one sample to the next,
    /// in a trace that has no demand at all in at most a tenth of its time, and seldom: where it happens for about as long more than twice and once in 10,000 samples, that is how demand is.
    pub fn holes(&self) -> &[Span] {
        &self.holes
    }

    /// The same without its holes: as if nothing had been observed there.
    #[must_use]
    pub fn without_holes(mut self) -> Self {
        for hole in &self.holes {
            let first = ((hole.from_s - self.origin_s) / self.width_s).floor().max(0.0) as usize;
            for index in first..self.blocks.len() {
                let (begin, end) = (self.start_s(index), self.start_s(index + 1));
                if begin >= hole.to_s {
                    break;
                }
                let block = &mut self.blocks[index];
                let Some(zero) = block.levels.first_mut().filter(|level| level.gpus == 0) else { continue };
                zero.seconds -= hole.to_s.min(end) - hole.from_s.max(begin);
                // What rounding leaves of it is nothing.
                if zero.seconds <= 1e-6 * self.width_s && zero.part_gpu_s == 0.0 {
                    block.levels.remove(0);
                }
                block.min_gpus = block.levels.first().map_or(0.0, |level| f64::from(level.gpus));
            }
        }
        self
    }

    /// How long each GPU would have been busy over all of it.
    pub fn curve(&self) -> LoadCurve {
        self.curve_of(0..self.blocks.len())
    }

    /// The same over the blocks of a range.
    pub fn curve_of(&self, range: std::ops::Range<usize>) -> LoadCurve {
        LoadCurve::of(self.blocks[range].iter().flat_map(|block| &block.levels))
    }

    /// How much of block `index` was observed.
    pub fn observed_s(&self, index: usize) -> f64 {
        self.blocks[index].observed_s()
    }

    /// The number of blocks after which `share` of the time observed has passed, as nearly as blocks allow.
    pub fn after_share(&self, share: f64) -> usize {
        let total: f64 = self.blocks.iter().map(Block::observed_s).sum();
        let (mut passed, mut nearest) = (0.0, (0, total * share));
        for (index, block) in self.blocks.iter().enumerate() {
            passed += block.observed_s();
            let distance = (passed - total * share).abs();
            if distance < nearest.1 {
                nearest = (index + 1, distance);
            }
        }
        nearest.0
    }

    /// GPU-seconds of demand beyond each of `sizes`, ascending, in block `index`.
    pub(crate) fn beyond_gpu_s(&self, index: usize, sizes: &[u32], beyond: &mut [f64]) {
        let mut levels = self.blocks[index].levels.iter().rev().peekable();
        let (mut seconds, mut gpu_s) = (0.0, 0.0);
        for (size, beyond) in sizes.iter().zip(beyond).rev() {
            while let Some(level) = levels.next_if(|level| level.gpus >= *size) {
                seconds += level.seconds;
                gpu_s += f64::from(level.gpus) * level.seconds + level.part_gpu_s;
            }
            *beyond = gpu_s - f64::from(*size) * seconds;
        }
    }

    /// Demand over time, one point a block.
    pub fn over_time(&self) -> Vec<Point> {
        let point = |(index, block): (usize, &Block)| {
            let observed_s = block.observed_s();
            let mean_gpus = if observed_s > 0.0 { block.gpu_s() / observed_s } else { 0.0 };
            let (min_gpus, max_gpus) = (block.min_gpus, block.max_gpus);
            Point { at_s: self.start_s(index), observed_s, min_gpus, mean_gpus, max_gpus }
        };
        self.blocks.iter().enumerate().map(point).collect()
    }

    /// Mean demand in stretches of about `width_s`, those that were observed for at least half of it.
    pub fn means(&self, width_s: f64) -> Vec<f64> {
        let together = ((width_s / self.width_s).round() as usize).max(1);
        let mean = |blocks: &[Block]| {
            let observed_s: f64 = blocks.iter().map(Block::observed_s).sum();
            let gpu_s: f64 = blocks.iter().map(Block::gpu_s).sum();
            (observed_s * 2.0 >= self.width_s * together as f64).then(|| gpu_s / observed_s)
        };
        self.blocks.chunks(together).filter_map(mean).collect()
    }
}
