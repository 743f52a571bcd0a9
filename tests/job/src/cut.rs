//! Cuts photographs into tiles. The same photographs and count always give the same tiles.

use std::path::{Path, PathBuf};

use crate::{files, layout};

#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("there is no photograph (.jpg, .jpeg, .png) in {}", .0.display())]
    NoPhotographs(PathBuf),
    #[error("--count must be from 1 to 9999, not {0}")]
    Count(usize),
    #[error("{} is too small: {width}x{height} pixels can't be cut into {columns}x{rows} tiles", path.display())]
    TooSmall { path: PathBuf, width: u32, height: u32, columns: usize, rows: usize },
    #[error(transparent)]
    File(#[from] files::Error),
}

/// Writes `count` tiles into `out` and returns how many photographs they come from.
pub(crate) fn cut(source: &Path, out: &Path, count: usize) -> Result<usize, Error> {
    if !(1..=9999).contains(&count) {
        return Err(Error::Count(count));
    }
    let photographs: Vec<PathBuf> = files::names(source)?
        .iter()
        .filter(|name| is_photograph(name))
        .map(|name| source.join(name))
        .collect();
    if photographs.is_empty() {
        return Err(Error::NoPhotographs(source.to_owned()));
    }
    files::make_folder(out)?;
    let cells = layout::cells(count, photographs.len());
    let mut used = 0;
    // Photograph by photograph, so that each is decoded once and only one is in memory.
    for (number, path) in photographs.iter().enumerate() {
        let mut tiles = cells.iter().enumerate().filter(|(_, cell)| cell.photograph == number).peekable();
        if tiles.peek().is_none() {
            continue;
        }
        used += 1;
        let photograph = files::read(path)?;
        let (width, height) = (photograph.width(), photograph.height());
        for (index, cell) in tiles {
            let region = layout::region(cell, width, height).ok_or_else(|| Error::TooSmall {
                path: path.clone(),
                width,
                height,
                columns: cell.block.columns,
                rows: cell.block.rows,
            })?;
            let tile = photograph.crop_imm(region.x, region.y, region.width, region.height);
            files::write_jpeg(&out.join(layout::tile_name(index)), &tile)?;
        }
    }
    Ok(used)
}

fn is_photograph(name: &str) -> bool {
    let extension = Path::new(name).extension().and_then(|extension| extension.to_str()).unwrap_or_default();
    ["jpg", "jpeg", "png"].contains(&extension.to_ascii_lowercase().as_str())
}

#[cfg(test)]
pub(crate) mod tests {
    use image::{DynamicImage, Rgb, RgbImage};

    use super::*;

    /// A folder with photographs, each of one colour: the first red, then green, then blue.
    pub(crate) fn photographs(count: usize, width: u32, height: u32) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for number in 0..count {
            let mut colour = [0; 3];
            colour[number % 3] = 255;
            let picture = DynamicImage::from(RgbImage::from_pixel(width, height, Rgb(colour)));
            files::write_jpeg(&folder.path().join(format!("{number}.jpg")), &picture).unwrap();
        }
        folder
    }

    #[test]
    fn tiles_are_regions_of_all_photographs_in_the_order_of_the_sheet() {
        let (source, out) = (photographs(2, 160, 120), tempfile::tempdir().unwrap());
        assert_eq!(cut(source.path(), out.path(), 4).unwrap(), 2);
        let tiles: Vec<String> = (0..4).map(layout::tile_name).collect();
        assert_eq!(files::names(out.path()).unwrap(), tiles);
        let red = |name: &String| files::read(&out.path().join(name)).unwrap().to_rgb8()[(5, 5)][0] > 128;
        assert_eq!(tiles.iter().map(red).collect::<Vec<_>>(), [true, false, true, false]);
    }

    #[test]
    fn the_same_photographs_give_the_same_tiles() {
        let source = photographs(3, 200, 150);
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        cut(source.path(), one.path(), 20).unwrap();
        cut(source.path(), two.path(), 20).unwrap();
        for index in 0..20 {
            let name = layout::tile_name(index);
            assert_eq!(
                std::fs::read(one.path().join(&name)).unwrap(),
                std::fs::read(two.path().join(&name)).unwrap()
            );
        }
    }

    #[test]
    fn what_cannot_be_cut_is_named() {
        let out = tempfile::tempdir().unwrap();
        let empty = tempfile::tempdir().unwrap();
        assert!(matches!(cut(empty.path(), out.path(), 1), Err(Error::NoPhotographs(_))));
        let tiny = photographs(1, 8, 6);
        let error = cut(tiny.path(), out.path(), 100).unwrap_err().to_string();
        assert!(error.contains("0.jpg is too small: 8x6"), "{error}");
        std::fs::write(empty.path().join("broken.jpg"), b"no picture").unwrap();
        let error = cut(empty.path(), out.path(), 1).unwrap_err().to_string();
        assert!(error.contains("broken.jpg"), "{error}");
        assert!(matches!(cut(tiny.path(), out.path(), 0), Err(Error::Count(0))));
    }
}
