//! How far the advice could be off: demand drawn again from blocks of itself, since samples a minute apart are not independent.

use rand::{RngExt as _, SeedableRng as _};
use rand_pcg::Pcg64Mcg;
use serde::Serialize;

use super::{Menu, Question, menu::least};
use crate::demand::Series;

/// What the advice would be for demand that is drawn again from blocks of the demand observed: a circular block bootstrap (Politis and Romano, 1992).
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Interval {
    /// In how many of the draws it is within the interval.
    pub confidence: f64,
    /// From so many GPUs.
    pub from_gpus: u32,
    /// To so many.
    pub to_gpus: u32,
    /// What the advice costs per hour: from.
    pub from_per_hour: f64,
    /// To.
    pub to_per_hour: f64,
    /// How long each block is.
    pub block_s: f64,
    /// How often it was drawn.
    pub resamples: u32,
    /// With which seed.
    pub seed: u64,
    /// To how many GPUs it is exact; more than a machine's for very large clusters only.
    pub resolution_gpus: u32,
}

const CONFIDENCE: f64 = 0.95;
/// GPU-seconds beyond a size until a time are kept for so many pairs of them: 32 MB.
const CELLS: usize = 4_000_000;
/// Rows of them, where there are many sizes.
const ROWS: usize = 500;
/// A trace has at least so many blocks.
pub(super) const LEAST_BLOCKS: usize = 4;

/// Sums up to each time, so that a block costs two look-ups whatever its length.
struct Sums {
    rows: usize,
    /// Which of the menu's sizes.
    columns: Vec<usize>,
    /// GPU-seconds beyond each size, by time and size; one row more than there are `rows`.
    beyond_gpu_s: Vec<f64>,
    observed_s: Vec<f64>,
    width_s: f64,
}

impl Sums {
    fn of(series: &Series, menu: &Menu, best: usize) -> Self {
        let most_rows = if series.blocks() * menu.len() > CELLS { ROWS } else { usize::MAX };
        let together = series.blocks().div_ceil(most_rows);
        let rows = series.blocks().div_ceil(together);
        let every = (menu.len() * (rows + 1)).div_ceil(CELLS);
        // The advice itself is among them.
        let columns: Vec<usize> = (best % every..menu.len()).step_by(every).collect();
        let sizes: Vec<u32> = columns.iter().map(|index| menu.gpus(*index)).collect();
        let mut beyond_gpu_s = vec![0.0; sizes.len()];
        let mut observed_s = vec![0.0];
        let (mut sums, mut block) = (vec![0.0; sizes.len()], vec![0.0; sizes.len()]);
        for row in 0..rows {
            let blocks = row * together..((row + 1) * together).min(series.blocks());
            let mut observed = observed_s[row];
            for index in blocks {
                series.beyond_gpu_s(index, &sizes, &mut block);
                sums.iter_mut().zip(&block).for_each(|(sum, beyond)| *sum += beyond);
                observed += series.observed_s(index);
            }
            beyond_gpu_s.extend_from_slice(&sums);
            observed_s.push(observed);
        }
        Self { rows, columns, beyond_gpu_s, observed_s, width_s: series.width_s() * together as f64 }
    }

    fn beyond_gpu_s(&self, row: usize, column: usize) -> f64 {
        self.beyond_gpu_s[row * self.columns.len() + column]
    }
}

/// Rows from and to, all of one circle.
type Block = (usize, usize);

/// Draws demand again and again, and gives what the advice would be, and what `best` would cost.
pub(super) fn interval(
    series: &Series,
    menu: &Menu,
    rented_per_gpu_hour: f64,
    best: usize,
    question: &Question,
) -> Interval {
    let sums = Sums::of(series, menu, best);
    let rows_each = ((question.block_s / sums.width_s).round() as usize).min(sums.rows / LEAST_BLOCKS).max(1);
    let count = sums.rows.div_ceil(rows_each);
    let mut random = Pcg64Mcg::seed_from_u64(question.seed);
    let mut blocks: Vec<Block> = Vec::with_capacity(count * 2);
    let (mut sizes, mut costs) = (Vec::new(), Vec::new());
    // Where most of the time is a gap, a draw may have nothing in it.
    for _ in 0..question.resamples {
        blocks.clear();
        for _ in 0..count {
            let from = random.random_range(0..sums.rows);
            let to = from + rows_each;
            blocks.push((from, to.min(sums.rows)));
            if to > sums.rows {
                blocks.push((0, to - sums.rows));
            }
        }
        let observed_s: f64 =
            blocks.iter().map(|&(from, to)| sums.observed_s[to] - sums.observed_s[from]).sum();
        if observed_s <= 0.0 {
            continue;
        }
        let cost = |column: usize| {
            let beyond_gpu_s: f64 = blocks
                .iter()
                .map(|&(from, to)| sums.beyond_gpu_s(to, column) - sums.beyond_gpu_s(from, column))
                .sum();
            menu.per_hour(sums.columns[column]) + rented_per_gpu_hour * beyond_gpu_s / observed_s
        };
        let column = least(sums.columns.len(), menu.convex(), cost);
        sizes.push(menu.gpus(sums.columns[column]));
        costs.push(cost(sums.columns.partition_point(|index| *index < best)));
    }
    let resolution_gpus = match sums.columns.get(..2) {
        Some(pair) => menu.gpus(pair[1]) - menu.gpus(pair[0]),
        None => 1,
    };
    let length_s = rows_each as f64 * sums.width_s;
    Interval::of(sizes, costs, length_s, question.resamples, question.seed, resolution_gpus)
}

impl Interval {
    /// The interval of what was drawn.
    pub(super) fn of(
        mut sizes: Vec<u32>,
        mut costs: Vec<f64>,
        block_s: f64,
        resamples: u32,
        seed: u64,
        resolution_gpus: u32,
    ) -> Self {
        sizes.sort_unstable();
        costs.sort_by(f64::total_cmp);
        let tail = (1.0 - CONFIDENCE) / 2.0;
        let at = |share: f64, count: usize| ((share * count as f64) as usize).min(count.saturating_sub(1));
        let size = |share| sizes.get(at(share, sizes.len())).copied().unwrap_or_default();
        let cost = |share| costs.get(at(share, costs.len())).copied().unwrap_or_default();
        Self {
            confidence: CONFIDENCE,
            from_gpus: size(tail),
            to_gpus: size(1.0 - tail),
            from_per_hour: cost(tail),
            to_per_hour: cost(1.0 - tail),
            block_s,
            resamples,
            seed,
            resolution_gpus,
        }
    }
}
