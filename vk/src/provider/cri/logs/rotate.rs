//! Rotation of containers' logs, as a kubelet's `container_log_manager.go` does it: a file that is too long gets the time as a suffix
//! and the runtime opens a new one; the oldest go. Unlike there, nothing is compressed: a pod's logs are bounded either way.

use std::{
    ffi::OsString,
    fs, io,
    path::{Path, PathBuf},
};

use jiff::Timestamp;
use serde::Deserialize;

/// Bytes, written as `10Mi`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct LogSize(pub u64);

impl TryFrom<String> for LogSize {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let number = text.trim_end_matches(|last: char| last.is_ascii_alphabetic());
        let bits = match &text[number.len()..] {
            "" => Some(0),
            "Ki" => Some(10),
            "Mi" => Some(20),
            "Gi" => Some(30),
            _ => None,
        };
        let bytes = bits.and_then(|bits| number.parse::<u64>().ok()?.checked_mul(1 << bits));
        bytes
            .filter(|bytes| *bytes > 0)
            .map(Self)
            .ok_or_else(|| format!("{text:?} is no size of a log, such as 10Mi"))
    }
}

/// Moves the current file away and drops the oldest, so that `files` are left once the runtime has opened a new one. Where the file
/// is now, in case the runtime does not.
pub(in crate::provider::cri) fn rotate(log: &Path, files: usize, now: Timestamp) -> io::Result<PathBuf> {
    let mut old = rotated(log)?;
    // The current one and the one that is just rotated come on top.
    let excess = old.len().saturating_sub(files.saturating_sub(2));
    for oldest in old.drain(..excess) {
        fs::remove_file(oldest)?;
    }
    let mut name = OsString::from(log);
    name.push(now.strftime(".%Y%m%d-%H%M%S").to_string());
    let target = PathBuf::from(name);
    fs::rename(log, &target)?;
    Ok(target)
}

/// The rotated files of a log, the oldest first.
pub(in crate::provider::cri) fn rotated(log: &Path) -> io::Result<Vec<PathBuf>> {
    let (Some(folder), Some(name)) = (log.parent(), log.file_name()) else { return Ok(Vec::new()) };
    let prefix = format!("{}.", name.to_string_lossy());
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(&prefix) {
            found.push(entry.path());
        }
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_go_and_others_logs_stay() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("0.log");
        fs::write(folder.path().join("10.log"), "").unwrap();
        for second in 0..5 {
            fs::write(&log, second.to_string()).unwrap();
            rotate(&log, 3, Timestamp::from_second(second).unwrap()).unwrap();
        }
        let kept: Vec<String> =
            rotated(&log).unwrap().iter().map(|path| fs::read_to_string(path).unwrap()).collect();
        assert_eq!(kept, ["3", "4"], "and the current one is the third");
        assert!(folder.path().join("10.log").exists() && !log.exists());
        assert!(rotate(&log, 3, Timestamp::UNIX_EPOCH).is_err(), "there is nothing to rotate");
    }

    #[test]
    fn sizes_are_read_as_a_kubelets() {
        let check = |text: &str, bytes: Option<u64>| {
            assert_eq!(LogSize::try_from(text.to_owned()).ok().map(|size| size.0), bytes, "{text}");
        };
        check("10Mi", Some(10 << 20));
        check("4096", Some(4096));
        for text in ["", "Mi", "0", "-1Mi", "1.5Mi", "10M", "99999999999Gi"] {
            check(text, None);
        }
    }
}
