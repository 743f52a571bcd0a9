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

/// Between which costs owning so many GPUs lies in as many of the same draws as [`Interval::confidence`] says: a point of the band around the cost curve.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Band {
    /// Dedicated GPUs.
    pub gpus: u32,
    /// What they and what is rented beside them cost per hour: from.
    pub from_per_hour: f64,
    /// To.
    pub to_per_hour: f64,
}

/// A band has about so many points.
const BAND: usize = 100;
const CONFIDENCE: f64 = 0.95;
/// Beyond it on each side.
const TAIL: f64 = (1.0 - CONFIDENCE) / 2.0;
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

/// Draws demand again and again, and gives what the advice would be, what `best` would cost, and the band around the cost curve.
pub(super) fn interval(
    series: &Series,
    menu: &Menu,
    rented_per_gpu_hour: f64,
    best: usize,
    question: &Question,
) -> (Interval, Vec<Band>) {
    let sums = Sums::of(series, menu, best);
    let rows_each = ((question.block_s / sums.width_s).round() as usize).min(sums.rows / LEAST_BLOCKS).max(1);
    let count = sums.rows.div_ceil(rows_each);
    let mut random = Pcg64Mcg::seed_from_u64(question.seed);
    let mut blocks: Vec<Block> = Vec::with_capacity(count * 2);
    let (mut sizes, mut costs) = (Vec::new(), Vec::new());
    let advised = sums.columns.partition_point(|index| *index < best);
    let every = sums.columns.len().div_ceil(BAND);
    let mut band: Vec<(usize, Vec<f64>)> = (0..sums.columns.len())
        .filter(|column| column % every == 0 || *column == advised || column + 1 == sums.columns.len())
        .map(|column| (column, Vec::new()))
        .collect();
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
        costs.push(cost(advised));
        for (column, costs) in &mut band {
            costs.push(cost(*column));
        }
    }
    let resolution_gpus = match sums.columns.get(..2) {
        Some(pair) => menu.gpus(pair[1]) - menu.gpus(pair[0]),
        None => 1,
    };
    let length_s = rows_each as f64 * sums.width_s;
    let band = band.into_iter().filter(|(_, costs)| !costs.is_empty()).map(|(column, mut costs)| {
        costs.sort_by(f64::total_cmp);
        Band {
            gpus: menu.gpus(sums.columns[column]),
            from_per_hour: quantile(&costs, TAIL),
            to_per_hour: quantile(&costs, 1.0 - TAIL),
        }
    });
    let band = band.collect();
    (Interval::of(sizes, costs, length_s, question.resamples, question.seed, resolution_gpus), band)
}

/// A quantile of what is sorted; nothing's is 0.
fn quantile<T: Copy + Default>(sorted: &[T], share: f64) -> T {
    let at = ((share * sorted.len() as f64) as usize).min(sorted.len().saturating_sub(1));
    sorted.get(at).copied().unwrap_or_default()
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
        Self {
            confidence: CONFIDENCE,
            from_gpus: quantile(&sizes, TAIL),
            to_gpus: quantile(&sizes, 1.0 - TAIL),
            from_per_hour: quantile(&costs, TAIL),
            to_per_hour: quantile(&costs, 1.0 - TAIL),
            block_s,
            resamples,
            seed,
            resolution_gpus,
        }
    }
}
