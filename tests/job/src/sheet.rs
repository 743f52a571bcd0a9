//! The contact sheet: all results in one picture, and the check that they are exactly the expected ones.

use std::{collections::BTreeSet, path::Path};

use image::{DynamicImage, Rgb, RgbImage, imageops};

use crate::{files, layout};

/// Width and height of a result on the sheet, and the gap around it, in pixels.
const CELL: (u32, u32) = (120, 90);
const GAP: u32 = 2;
const BACKGROUND: Rgb<u8> = Rgb([24, 26, 30]);
/// More names than this make a message longer, not clearer.
const NAMES_SHOWN: usize = 8;

#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("{} of {count} results are missing: {}", missing.len(), shortened(missing))]
    Missing { count: usize, missing: Vec<String> },
    #[error("{} too many, no results of this job: {}", .0.len(), shortened(.0))]
    Extra(Vec<String>),
    #[error("--count must be from 1 to 9999, not {0}")]
    Count(usize),
    #[error(transparent)]
    File(#[from] files::Error),
}

fn shortened(names: &[String]) -> String {
    let shown = names.iter().take(NAMES_SHOWN).map(String::as_str).collect::<Vec<_>>().join(", ");
    if names.len() > NAMES_SHOWN { format!("{shown}, …") } else { shown }
}

/// Checks that `results` holds the results 0 to `count` - 1 and nothing else, and writes them into one picture. Returns its size.
pub(crate) fn sheet(results: &Path, out: &Path, count: usize) -> Result<(u32, u32), Error> {
    if !(1..=9999).contains(&count) {
        return Err(Error::Count(count));
    }
    let expected: Vec<String> = (0..count).map(layout::tile_name).collect();
    check(&expected, files::names(results)?)?;

    let grid = layout::grid(count);
    let side = |cells: usize, cell: u32| GAP + u32::try_from(cells).unwrap_or(u32::MAX) * (cell + GAP);
    let (width, height) = (side(grid.columns, CELL.0), side(grid.rows, CELL.1));
    let mut picture = DynamicImage::from(RgbImage::from_pixel(width, height, BACKGROUND));
    for (index, name) in expected.iter().enumerate() {
        let result = files::read(&results.join(name))?.thumbnail_exact(CELL.0, CELL.1);
        let (x, y) = (side(index % grid.columns, CELL.0), side(index / grid.columns, CELL.1));
        imageops::replace(&mut picture, &result, x.into(), y.into());
    }
    picture.save(out).map_err(|error| files::Error::Write(out.to_owned(), error))?;
    Ok((width, height))
}

fn check(expected: &[String], present: Vec<String>) -> Result<(), Error> {
    let expected: BTreeSet<String> = expected.iter().cloned().collect();
    let present: BTreeSet<String> = present.into_iter().collect();
    let missing: Vec<String> = expected.difference(&present).cloned().collect();
    if !missing.is_empty() {
        return Err(Error::Missing { count: expected.len(), missing });
    }
    let extra: Vec<String> = present.difference(&expected).cloned().collect();
    if extra.is_empty() { Ok(()) } else { Err(Error::Extra(extra)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{cut, process};

    #[test]
    fn a_sheet_shows_the_photographs_again() {
        let source = cut::tests::photographs(2, 640, 480);
        let (tiles, results) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        cut::cut(source.path(), tiles.path(), 16).unwrap();
        for index in 0..16 {
            process::process(tiles.path(), results.path(), index).unwrap();
        }
        let out = tiles.path().join("sheet.png");
        let (width, height) = sheet(results.path(), &out, 16).unwrap();
        let picture = files::read(&out).unwrap().to_rgb8();
        assert_eq!((picture.width(), picture.height()), (width, height));
        // The left half is the red photograph, the right half the green one.
        assert!(picture[(width / 4 - 20, height / 2 - 20)][0] > 200);
        assert!(picture[(width * 3 / 4 - 20, height / 2 - 20)][1] > 200);
    }

    #[test]
    fn missing_and_extra_results_are_named() {
        let results = tempfile::tempdir().unwrap();
        let path = |name: &str| results.path().join(name);
        let out = path("sheet.png");
        std::fs::write(path("tile-0000.jpg"), b"").unwrap();
        let error = sheet(results.path(), &out, 3).unwrap_err().to_string();
        assert_eq!(error, "2 of 3 results are missing: tile-0001.jpg, tile-0002.jpg");
        std::fs::write(path("tile-0001.jpg"), b"").unwrap();
        std::fs::write(path(".tile-0001.jpg.pod.7.partial"), b"").unwrap();
        let error = sheet(results.path(), &out, 2).unwrap_err().to_string();
        assert_eq!(error, "1 too many, no results of this job: .tile-0001.jpg.pod.7.partial");
        assert!(!out.exists());
    }

    #[test]
    fn long_lists_are_shortened() {
        let results = tempfile::tempdir().unwrap();
        let error = sheet(results.path(), &results.path().join("s.png"), 100).unwrap_err().to_string();
        assert!(error.starts_with("100 of 100 results are missing: tile-0000.jpg") && error.ends_with(", …"));
    }
}
