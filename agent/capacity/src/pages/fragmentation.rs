//! When GPUs were free and of no use: a map whose rows are as long as the time needs, and the same in numbers. Simulated and recorded ones look alike.

use super::model::{Axis, Drawing, Heat, Plot, Unit};
use crate::{
    optimize::words::{percent, time},
    output::{Column, Table},
};

/// Rows of the table.
const ROWS: usize = 12;
/// Lengths of a row of the map, and of its cells: the first with no more than so many rows is taken.
const GRIDS: [(f64, f64); 6] = [
    (3600.0, 150.0),
    (6.0 * 3600.0, 900.0),
    (DAY_S, 3600.0),
    (7.0 * DAY_S, 6.0 * 3600.0),
    (28.0 * DAY_S, DAY_S),
    (364.0 * DAY_S, 14.0 * DAY_S),
];
const GRID_ROWS: f64 = 40.0;
const DAY_S: f64 = 86_400.0;

/// Some of the time, and how much of the GPUs was of no use in it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Spell {
    /// In seconds, on any clock.
    pub(super) from_s: f64,
    pub(super) until_s: f64,
    /// Of all GPUs.
    pub(super) percent: f64,
}

/// Time in rows and cells.
pub(super) struct Map {
    row_s: f64,
    tile_s: f64,
    /// Where the first row begins: at a multiple of its length, so that a row of a day is a day.
    first_s: f64,
    cells: Vec<Vec<Option<f64>>>,
}

impl Map {
    pub(super) fn of(spells: impl Iterator<Item = Spell>, begin_s: f64, end_s: f64) -> Self {
        let first_s = |row_s: f64| (begin_s / row_s).floor() * row_s;
        let (row_s, tile_s) = GRIDS
            .into_iter()
            .find(|(row_s, _)| (end_s - first_s(*row_s)) / row_s <= GRID_ROWS)
            .unwrap_or(GRIDS[GRIDS.len() - 1]);
        let first_s = first_s(row_s);
        let height = whole(((end_s - first_s) / row_s).ceil().max(1.0));
        let width = whole((row_s / tile_s).round());
        let mut sums = vec![vec![(0.0, 0.0); width]; height];
        for Spell { from_s, until_s, percent } in spells {
            // It tells of every cell that it reaches into.
            let (from, until) = ((from_s - first_s) / tile_s, (until_s - 1e-6 - first_s) / tile_s);
            for cell in whole(from)..=whole(until.max(from)) {
                if let Some((sum, seen)) =
                    sums.get_mut(cell / width).and_then(|row| row.get_mut(cell % width))
                {
                    *sum += percent;
                    *seen += 1.0;
                }
            }
        }
        let mean = |&(sum, seen): &(f64, f64)| (seen > 0.0).then(|| sum / seen);
        let cells = sums.iter().map(|row| row.iter().map(mean).collect()).collect();
        Self { row_s, tile_s, first_s, cells }
    }

    /// The most of all cells, in per cent.
    pub(super) fn most(&self) -> f64 {
        self.cells.iter().flatten().flatten().copied().fold(0.0, f64::max)
    }

    /// How long a row is, in words.
    pub(super) fn row(&self) -> String {
        time(self.row_s)
    }

    /// Whether rows begin at midnight.
    pub(super) fn by_day(&self) -> bool {
        self.row_s >= DAY_S
    }

    /// The drawing, with rows called by when they begin.
    pub(super) fn plot(&self, caption: String, called: impl Fn(f64) -> String) -> Plot {
        let width = self.cells.first().map_or(0, Vec::len);
        Plot {
            caption,
            drawing: Drawing::Heat(Heat {
                x: Axis::new(format!("Within {}", self.row()), Unit::Duration),
                columns: (0..width).map(|column| number(column) * self.tile_s).collect(),
                column_names: Vec::new(),
                rows: (0..self.cells.len()).map(|row| called(self.begin(row))).collect(),
                value: Axis::new("Fragmented", Unit::Percent),
                cells: self.cells.clone(),
            }),
        }
    }

    /// In numbers, several rows in one where there are many.
    pub(super) fn table(&self, title: &str, called: impl Fn(f64) -> String) -> Table {
        let height = self.cells.len().div_ceil(ROWS).max(1);
        let rows = self.cells.chunks(height).enumerate().map(|(at, part)| {
            let known: Vec<f64> = part.iter().flatten().flatten().copied().collect();
            let name = called(self.begin(at * height));
            if known.is_empty() {
                return vec![name, "unknown".to_owned(), "unknown".to_owned()];
            }
            let mean = known.iter().sum::<f64>() / number(known.len());
            let most = known.iter().copied().fold(0.0, f64::max);
            vec![name, percent(mean / 100.0), percent(most / 100.0)]
        });
        Table {
            title: title.to_owned(),
            columns: vec![Column::text("TIME"), Column::number("MEAN"), Column::number("MOST")],
            rows: rows.collect(),
        }
    }

    fn begin(&self, row: usize) -> f64 {
        self.first_s + number(row) * self.row_s
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "small and positive")]
fn whole(value: f64) -> usize {
    value.max(0.0) as usize
}

#[expect(clippy::cast_precision_loss, reason = "small")]
fn number(value: usize) -> f64 {
    value as f64
}

#[cfg(test)]
mod tests {
    use super::{DAY_S, Map, Spell};

    #[test]
    fn a_row_is_a_day_and_what_nobody_saw_is_unknown() {
        let begin_s = 100.0 * DAY_S;
        let spell = |from_h: f64, until_h: f64, percent| Spell {
            from_s: begin_s + from_h * 3600.0,
            until_s: begin_s + until_h * 3600.0,
            percent,
        };
        // Twenty days from noon on, of most of which nothing is known.
        let spells = [spell(12.0, 13.0, 50.0), spell(96.0, 120.0, 10.0), spell(250.0, 251.0, 20.0)];
        let map = Map::of(spells.into_iter(), begin_s + DAY_S / 2.0, begin_s + 20.5 * DAY_S);
        assert_eq!((map.cells.len(), map.cells[0].len(), map.row().as_str()), (21, 24, "1 d"));
        assert_eq!((map.cells[0][11], map.cells[0][12], map.cells[0][13]), (None, Some(50.0), None));
        assert!(map.cells[1].iter().all(Option::is_none));
        assert!(map.cells[4].iter().all(|cell| *cell == Some(10.0)));
        assert!((map.most() - 50.0).abs() < 1e-9);
        let rows = map.table("", |at_s| format!("day {}", at_s / DAY_S)).rows;
        assert_eq!(rows[0], ["day 100", "50 %", "50 %"]);
        assert_eq!(rows[1], ["day 102", "unknown", "unknown"]);
    }
}
