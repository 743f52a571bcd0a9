//! One pod's work: one tile in, one result out. A result appears whole or not at all, and is never replaced.

use std::{
    io,
    path::{Path, PathBuf},
    time::Instant,
};

use image::imageops::FilterType;

use crate::{files, layout};

/// Size of a result in pixels.
pub(crate) const RESULT_SIZE: (u32, u32) = (320, 240);

#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("{} exists: this tile was processed before, and a result is never replaced", .0.display())]
    AlreadyThere(PathBuf),
    #[error("can't put the result in place as {}", .0.display())]
    Publish(PathBuf, #[source] io::Error),
    #[error(transparent)]
    File(#[from] files::Error),
}

/// What was done.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) name: String,
    pub(crate) from: (u32, u32),
    pub(crate) to: (u32, u32),
    pub(crate) seconds: f64,
}

/// Sharpens and resizes tile `index` of `input` into `output`.
pub(crate) fn process(input: &Path, output: &Path, index: usize) -> Result<Done, Error> {
    let started = Instant::now();
    let name = layout::tile_name(index);
    let result = output.join(&name);
    if result.exists() {
        return Err(Error::AlreadyThere(result));
    }
    let tile = files::read(&input.join(&name))?;
    let from = (tile.width(), tile.height());
    let (width, height) = RESULT_SIZE;
    // Sharpened at the size at which it is looked at.
    let picture = tile.resize_exact(width, height, FilterType::Lanczos3).unsharpen(1.0, 2);

    files::make_folder(output)?;
    let unfinished = output.join(format!(".{name}.{}.partial", unique()));
    let published = files::write_jpeg(&unfinished, &picture)
        .map_err(Error::from)
        // A link, unlike a rename, fails when the name is taken: of two that race, one loses and says so.
        .and_then(|()| match std::fs::hard_link(&unfinished, &result) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                Err(Error::AlreadyThere(result.clone()))
            }
            Err(error) => Err(Error::Publish(result.clone(), error)),
        });
    let _ = std::fs::remove_file(&unfinished);
    published?;
    Ok(Done { name, from, to: RESULT_SIZE, seconds: started.elapsed().as_secs_f64() })
}

/// Differs between pods, which share the output folder but not their host names, and between runs on one machine.
fn unique() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    format!("{}.{}", host.trim(), std::process::id())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cut;

    #[test]
    fn a_result_has_its_size_its_name_and_no_remains() {
        let source = cut::tests::photographs(1, 640, 480);
        let (tiles, results) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        cut::cut(source.path(), tiles.path(), 3).unwrap();
        let results = results.path().join("made");
        let done = process(tiles.path(), &results, 2).unwrap();
        assert_eq!((done.name.as_str(), done.to), ("tile-0002.jpg", RESULT_SIZE));
        assert_eq!(files::names(&results).unwrap(), ["tile-0002.jpg"]);
        let picture = files::read(&results.join("tile-0002.jpg")).unwrap();
        assert_eq!((picture.width(), picture.height()), RESULT_SIZE);
    }

    #[test]
    fn a_result_is_never_replaced() {
        let source = cut::tests::photographs(1, 320, 240);
        let (tiles, results) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        cut::cut(source.path(), tiles.path(), 1).unwrap();
        std::fs::write(results.path().join("tile-0000.jpg"), b"somebody else's").unwrap();
        let error = process(tiles.path(), results.path(), 0).unwrap_err();
        assert!(matches!(error, Error::AlreadyThere(_)), "{error}");
        assert_eq!(std::fs::read(results.path().join("tile-0000.jpg")).unwrap(), b"somebody else's");
    }

    #[test]
    fn of_many_that_race_exactly_one_wins() {
        let source = cut::tests::photographs(1, 320, 240);
        let (tiles, results) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        cut::cut(source.path(), tiles.path(), 1).unwrap();
        // All see an empty folder, and each publishes a file of its own, as racing pods do.
        let outcomes = std::thread::scope(|scope| {
            let runs: Vec<_> =
                (0..4).map(|_| scope.spawn(|| process(tiles.path(), results.path(), 0))).collect();
            runs.into_iter().flat_map(|run| run.join().unwrap()).count()
        });
        assert_eq!(outcomes, 1);
        assert_eq!(files::names(results.path()).unwrap(), ["tile-0000.jpg"]);
    }

    #[test]
    fn a_missing_tile_is_named() {
        let (tiles, results) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let error = process(tiles.path(), results.path(), 7).unwrap_err().to_string();
        assert!(error.contains("tile-0007.jpg"), "{error}");
        assert!(files::names(results.path()).unwrap().is_empty());
    }
}
