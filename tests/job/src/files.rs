//! Pictures in files, with errors that name the file.

use std::{
    io,
    path::{Path, PathBuf},
};

use image::{DynamicImage, ImageError, codecs::jpeg::JpegEncoder};

/// What went wrong with a file or folder.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// A folder can't be listed.
    #[error("can't list the folder {}", .0.display())]
    List(PathBuf, #[source] io::Error),
    /// A folder can't be made.
    #[error("can't make the folder {}", .0.display())]
    MakeFolder(PathBuf, #[source] io::Error),
    /// A picture can't be opened or is damaged.
    #[error("can't read the picture {}", .0.display())]
    Read(PathBuf, #[source] ImageError),
    /// A picture can't be written.
    #[error("can't write the picture {}", .0.display())]
    Write(PathBuf, #[source] ImageError),
}

/// Names of the entries of a folder, sorted.
pub(crate) fn names(folder: &Path) -> Result<Vec<String>, Error> {
    let list = |error| Error::List(folder.to_owned(), error);
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(list)? {
        names.push(entry.map_err(list)?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

pub(crate) fn make_folder(folder: &Path) -> Result<(), Error> {
    std::fs::create_dir_all(folder).map_err(|error| Error::MakeFolder(folder.to_owned(), error))
}

pub(crate) fn read(path: &Path) -> Result<DynamicImage, Error> {
    image::open(path).map_err(|error| Error::Read(path.to_owned(), error))
}

/// Writes a JPEG and has it on the disk before it returns.
pub(crate) fn write_jpeg(path: &Path, picture: &DynamicImage) -> Result<(), Error> {
    let write = |error| Error::Write(path.to_owned(), error);
    let file = std::fs::File::create(path).map_err(|error| write(error.into()))?;
    let mut buffer = io::BufWriter::new(&file);
    picture.to_rgb8().write_with_encoder(JpegEncoder::new_with_quality(&mut buffer, 90)).map_err(write)?;
    buffer.into_inner().map_err(|error| write(error.into_error().into()))?;
    file.sync_all().map_err(|error| write(error.into()))
}
