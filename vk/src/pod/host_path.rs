//! What has to be at a hostPath, and what is made there when it is asked for. Errors are a kubelet's.

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, OpenOptionsExt as _},
    path::Path,
};

use super::{
    files::{At as _, FilesError},
    volumes::HostKind,
};

/// Makes what may be made, and looks whether the right kind of thing is there.
pub(crate) fn check(path: &Path, kind: HostKind) -> Result<(), FilesError> {
    let is_missing = || fs::metadata(path).is_err_and(|error| error.kind() == io::ErrorKind::NotFound);
    match kind {
        HostKind::DirectoryOrCreate if is_missing() => {
            fs::DirBuilder::new().recursive(true).mode(0o755).create(path).at("make folder", path)?;
        }
        HostKind::FileOrCreate if is_missing() => {
            let made = fs::OpenOptions::new().write(true).create(true).truncate(false).mode(0o644).open(path);
            made.at("make file", path)?;
        }
        _ => {}
    }
    let found = fs::metadata(path).map(|metadata| metadata.file_type());
    let is = |test: fn(&fs::FileType) -> bool| found.as_ref().is_ok_and(test);
    let (holds, expected) = match kind {
        HostKind::Anything => return Ok(()),
        HostKind::DirectoryOrCreate | HostKind::Directory => (is(fs::FileType::is_dir), "directory"),
        HostKind::FileOrCreate | HostKind::File => (is(fs::FileType::is_file), "file"),
        HostKind::Socket => (is(fs::FileType::is_socket), "socket file"),
        HostKind::CharDevice => (is(fs::FileType::is_char_device), "character device"),
        HostKind::BlockDevice => (is(fs::FileType::is_block_device), "block device"),
    };
    if holds { Ok(()) } else { Err(FilesError::HostPath { path: path.to_owned(), expected }) }
}

#[cfg(test)]
mod tests {
    use std::os::unix::{fs::symlink, net::UnixListener};

    use super::*;

    #[test]
    fn host_paths_are_checked_and_made_as_asked() {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        let check = |name: &str, kind| check(&at(name), kind).map_err(|error| error.to_string());
        let _socket = UnixListener::bind(at("socket")).unwrap();
        symlink("made", at("link")).unwrap();
        let wrong = |name: &str, expected: &str| {
            Err(format!("hostPath type check failed: {} is not a {expected}", at(name).display()))
        };

        assert_eq!(check("missing", HostKind::Anything), Ok(()), "the runtime makes or refuses it");
        assert_eq!(check("missing", HostKind::Directory), wrong("missing", "directory"));
        assert_eq!(check("missing", HostKind::File), wrong("missing", "file"));
        assert_eq!(check("missing", HostKind::Socket), wrong("missing", "socket file"));
        assert!(!at("missing").exists());
        assert_eq!(check("made/deep", HostKind::DirectoryOrCreate), Ok(()));
        assert_eq!(check("made", HostKind::Directory), Ok(()));
        assert_eq!(check("link", HostKind::Directory), Ok(()), "links lead on");
        assert_eq!(check("made", HostKind::FileOrCreate), wrong("made", "file"));
        assert_eq!(check("file", HostKind::FileOrCreate), Ok(()));
        fs::write(at("file"), "kept").unwrap();
        assert_eq!(check("file", HostKind::FileOrCreate), Ok(()));
        assert_eq!(fs::read_to_string(at("file")).unwrap(), "kept");
        assert_eq!(check("file", HostKind::DirectoryOrCreate), wrong("file", "directory"));
        assert!(check("no/parent", HostKind::FileOrCreate).is_err());
        assert_eq!(check("socket", HostKind::Socket), Ok(()));
        assert_eq!(check("file", HostKind::CharDevice), wrong("file", "character device"));
        assert_eq!(check("file", HostKind::BlockDevice), wrong("file", "block device"));
        assert!(super::check(Path::new("/dev/null"), HostKind::CharDevice).is_ok());
        assert!(super::check(Path::new("/dev/null"), HostKind::BlockDevice).is_err());
    }
}
