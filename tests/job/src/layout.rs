//! Where tiles lie: pure arithmetic over the number of tiles and photographs.
//!
//! The contact sheet is a grid in reading order. `cut` divides that grid into one block per photograph and gives each cell of a
//! block the region of the photograph that lies there, so that the finished sheet shows whole photographs again, each made by
//! many pods.

use std::ops::Range;

/// Name of a tile, and of its result: `tile-0007.jpg`.
pub(crate) fn tile_name(index: usize) -> String {
    format!("tile-{index:04}.jpg")
}

/// A grid of cells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Grid {
    pub(crate) columns: usize,
    pub(crate) rows: usize,
}

/// The contact sheet's grid for `count` tiles: between square and half as wide again as high, with as few empty cells as possible.
pub(crate) fn grid(count: usize) -> Grid {
    let count = count.max(1);
    let root = count.isqrt();
    let side = if root * root == count { root } else { root + 1 };
    let columns = (side..=side + side / 2)
        .min_by_key(|columns| (columns * count.div_ceil(*columns) - count, *columns))
        .unwrap_or(side);
    Grid { columns, rows: count.div_ceil(columns) }
}

/// Which photograph a cell shows, and which part of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Cell {
    /// Number of the photograph.
    pub(crate) photograph: usize,
    /// The block of cells that shows this photograph.
    pub(crate) block: Grid,
    /// Position in the block, from the upper left.
    pub(crate) column: usize,
    /// See `column`.
    pub(crate) row: usize,
}

/// The cell of every tile, in order.
///
/// Blocks form a grid of their own. Photographs that don't fit into it are left out.
pub(crate) fn cells(count: usize, photographs: usize) -> Vec<Cell> {
    let sheet = grid(count);
    let blocks_across = grid(photographs).columns.min(sheet.columns);
    let blocks_down = (photographs / blocks_across).clamp(1, sheet.rows);
    (0..count)
        .map(|index| {
            let (block_column, columns) = span(index % sheet.columns, sheet.columns, blocks_across);
            let (block_row, rows) = span(index / sheet.columns, sheet.rows, blocks_down);
            Cell {
                photograph: block_row * blocks_across + block_column,
                block: Grid { columns: columns.len(), rows: rows.len() },
                column: index % sheet.columns - columns.start,
                row: index / sheet.columns - rows.start,
            }
        })
        .collect()
}

/// The part that `position` falls into when `length` positions are divided into `parts` as even as possible.
fn span(position: usize, length: usize, parts: usize) -> (usize, Range<usize>) {
    let start = |part: usize| part * length / parts;
    let part = (0..parts).rev().find(|part| start(*part) <= position).unwrap_or(0);
    (part, start(part)..start(part + 1))
}

/// A rectangle of pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Region {
    pub(crate) x: u32,
    pub(crate) y: u32,
    pub(crate) width: u32,
    pub(crate) height: u32,
}

/// Width and height of a cell stand in this ratio.
pub(crate) const ASPECT: (u32, u32) = (4, 3);

/// The part of a photograph of `width` × `height` pixels that a cell shows: the photograph, cropped about its middle to the
/// proportions of its block, divided evenly. `None` when that leaves less than a pixel.
pub(crate) fn region(cell: &Cell, width: u32, height: u32) -> Option<Region> {
    let columns = u32::try_from(cell.block.columns).ok()?;
    let rows = u32::try_from(cell.block.rows).ok()?;
    let unit = (width / (columns * ASPECT.0)).min(height / (rows * ASPECT.1));
    let (tile_width, tile_height) = (unit * ASPECT.0, unit * ASPECT.1);
    (unit > 0).then(|| Region {
        x: (width - tile_width * columns) / 2 + tile_width * u32::try_from(cell.column).unwrap_or(0),
        y: (height - tile_height * rows) / 2 + tile_height * u32::try_from(cell.row).unwrap_or(0),
        width: tile_width,
        height: tile_height,
    })
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;

    #[test]
    fn grids_have_room_for_every_tile_and_few_holes() {
        assert_eq!(grid(0), Grid { columns: 1, rows: 1 });
        assert_eq!(grid(1), Grid { columns: 1, rows: 1 });
        assert_eq!(grid(12), Grid { columns: 4, rows: 3 });
        assert_eq!(grid(200), Grid { columns: 20, rows: 10 });
        for count in 1..2000 {
            let Grid { columns, rows } = grid(count);
            assert!(columns * rows >= count && columns * (rows - 1) < count, "{count}: {columns}x{rows}");
        }
    }

    #[test]
    fn few_tiles_are_whole_photographs_each_another_one() {
        let cells = cells(12, 12);
        let shown: BTreeSet<usize> = cells.iter().map(|cell| cell.photograph).collect();
        assert_eq!(shown, (0..12).collect());
        assert!(cells.iter().all(|cell| cell.block == Grid { columns: 1, rows: 1 }));
    }

    #[test]
    fn a_full_sheet_shows_every_region_of_every_photograph_once() {
        let mut shown: BTreeMap<usize, BTreeSet<(usize, usize)>> = BTreeMap::new();
        let cells = cells(200, 12);
        for cell in &cells {
            assert!(shown.entry(cell.photograph).or_default().insert((cell.column, cell.row)));
        }
        assert_eq!(shown.len(), 12);
        for cell in &cells {
            assert_eq!(shown[&cell.photograph].len(), cell.block.columns * cell.block.rows);
        }
    }

    #[test]
    fn any_count_stays_within_photographs_and_blocks() {
        for count in 1..300 {
            for photographs in 1..20 {
                for cell in cells(count, photographs) {
                    assert!(cell.photograph < photographs);
                    assert!(cell.column < cell.block.columns && cell.row < cell.block.rows);
                }
            }
        }
    }

    #[test]
    fn regions_tile_the_middle_of_the_photograph() {
        let block = Grid { columns: 2, rows: 1 };
        let left = Cell { photograph: 0, block, column: 0, row: 0 };
        let right = Cell { photograph: 0, block, column: 1, row: 0 };
        assert_eq!(region(&left, 801, 500), Some(Region { x: 0, y: 100, width: 400, height: 300 }));
        assert_eq!(region(&right, 801, 500), Some(Region { x: 400, y: 100, width: 400, height: 300 }));
        assert_eq!(region(&left, 7, 500), None);
    }
}
