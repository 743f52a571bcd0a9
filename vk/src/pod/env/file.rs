//! Files of variables (`fileKeyRef`), as `pkg/kubelet/util/env` reads them: `NAME='value'`, in single quotes, over several lines if
//! need be. An init container writes them, so every byte is foreign.

use std::{
    fs::File,
    io::{self, Read as _},
    os::fd::AsFd as _,
    path::Path,
};

use nix::{
    fcntl::{OFlag, OpenHow, ResolveFlag, openat2},
    sys::stat::{SFlag, fstat},
};

/// Longest file that is read.
const MAX_BYTES: u64 = 1 << 20;

/// Reads a file below a volume. No link on the way leads out, and nothing but a plain file is opened.
pub(crate) fn read(volume: &Path, path: &str) -> io::Result<String> {
    let root = File::open(volume)?;
    let how = OpenHow::new()
        .flags(OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)
        .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    let file = openat2(root.as_fd(), path, how)?;
    let kind = SFlag::from_bits_truncate(fstat(&file)?.st_mode) & SFlag::S_IFMT;
    if kind != SFlag::S_IFREG {
        return Err(io::Error::other("it is no plain file"));
    }
    let mut text = String::new();
    File::from(file).take(MAX_BYTES + 1).read_to_string(&mut text)?;
    if text.len() as u64 > MAX_BYTES {
        return Err(io::Error::other("it is longer than 1 MiB"));
    }
    Ok(text)
}

/// The value of a variable; `None`: the file does not have it. What stands behind it is not looked at.
pub(crate) fn value(text: &str, key: &str) -> Result<Option<String>, String> {
    let wrong = |number: usize, why: &str| Err(format!("line {number}: {why}"));
    let mut lines = text.lines().enumerate().map(|(index, line)| (index + 1, line));
    while let Some((number, line)) = lines.next() {
        let line = line.trim_start_matches([' ', '\t']);
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let Some((name, rest)) = line.split_once('=') else { return wrong(number, "there is no '='") };
        if name.is_empty() {
            return wrong(number, "the variable has no name");
        }
        if name.ends_with([' ', '\t']) {
            return wrong(number, "there is a blank before '='");
        }
        if rest.starts_with([' ', '\t']) {
            // As in a shell: an empty value.
            if name == key {
                return Ok(None);
            }
            continue;
        }
        let Some(mut rest) = rest.strip_prefix('\'') else {
            return wrong(number, "the value is not in single quotes");
        };
        let mut value = String::new();
        loop {
            if let Some((last, tail)) = rest.split_once('\'') {
                value.push_str(last);
                let tail = tail.trim_start_matches([' ', '\t']);
                if !(tail.is_empty() || tail.starts_with('#')) {
                    return wrong(number, "something follows the closing quote");
                }
                break;
            }
            value.push_str(rest);
            value.push('\n');
            match lines.next() {
                Some((_, next)) => rest = next,
                None => return wrong(number, "the quote is never closed"),
            }
        }
        if name == key {
            return Ok(Some(value).filter(|value| !value.is_empty()));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_what_stands_between_quotes() {
        let text = "# a comment\n\nA='1'\n  B='two # lines\nof it' # and a comment\nE=''\nD= 'x'\nZ='$A'";
        let check = |key: &str, expected: Option<&str>| {
            assert_eq!(value(text, key), Ok(expected.map(str::to_owned)), "{key}");
        };
        check("A", Some("1"));
        check("B", Some("two # lines\nof it"));
        check("E", None);
        check("D", None);
        check("Z", Some("$A"));
        check("none", None);
    }

    #[test]
    fn what_a_shell_would_read_otherwise_is_refused() {
        for text in ["A", "A =''", "=''", "A=1", "A=\"1\"", "A='1'2", "A='1", "B\nA='1'"] {
            assert!(value(text, "A").is_err(), "{text:?}");
        }
        assert_eq!(value("A='1'\nB", "A"), Ok(Some("1".to_owned())), "what follows does not matter");
    }

    #[test]
    fn only_plain_files_of_the_volume_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let volume = folder.path().join("v");
        std::fs::create_dir_all(volume.join("sub")).unwrap();
        std::fs::write(folder.path().join("secret"), "A='1'").unwrap();
        std::fs::write(volume.join("sub/env"), "A='2'").unwrap();
        std::os::unix::fs::symlink("../secret", volume.join("out")).unwrap();
        nix::unistd::mkfifo(&volume.join("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert_eq!(read(&volume, "sub/env").unwrap(), "A='2'");
        for path in ["out", "../secret", "fifo", "sub", "none"] {
            assert!(read(&volume, path).is_err(), "{path}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in "[A='# \t\na]{0,40}") {
            let _ = value(&text, "A");
        }
    }
}
