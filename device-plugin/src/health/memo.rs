//! What is wrong with devices, in a small file for the next agent: it would otherwise hand out a GPU whose fatal XID only the last one saw.
//!
//! It holds for this boot alone, because a boot resets devices. There are no times in it: nobody watched between two agents, so the time that
//! a device has to be quiet starts anew, and no clock is trusted. It is gone when nothing is wrong.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Read as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use nix::fcntl::OFlag;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::{causes::one_line, device::DeviceId};

/// Another one at each boot; the same in every container.
pub const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// Far more than all devices of a machine take.
const SIZE_LIMIT: u64 = 256 << 10;
const REASON_LIMIT: usize = 256;

/// What is wrong with which device.
pub(crate) type Standing = BTreeMap<DeviceId, String>;

/// Why it can't be read or written.
#[derive(Debug, thiserror::Error)]
enum MemoError {
    #[error("can't read {path}")]
    Read { path: PathBuf, source: io::Error },
    #[error("{path} is not what an agent wrote")]
    Content { path: PathBuf, source: serde_json::Error },
    #[error("can't write {path}")]
    Write { path: PathBuf, source: io::Error },
}

#[derive(Debug, Serialize, Deserialize)]
struct Content {
    boot: String,
    faults: BTreeMap<String, String>,
}

/// Where memos are kept.
#[derive(Debug, Clone)]
pub struct Memos {
    /// The folder, which is made when there is something to write, and goes with its last file.
    pub folder: PathBuf,
    /// Where the kernel says which boot this is, usually [`BOOT_ID`].
    pub boot_id: PathBuf,
    /// Whether this process may write: of two agents only the one that serves.
    pub serving: watch::Receiver<bool>,
}

impl Memos {
    /// The memo called `name`, and what it says. One that can't be read says nothing; that is logged.
    pub(crate) fn open(&self, name: &str) -> (Memo, Standing) {
        let path = self.folder.join(format!("faults-{name}.json"));
        let boot = read_bounded(&self.boot_id).unwrap_or_else(|error| {
            tracing::warn!(path = %self.boot_id.display(), %error, "can't tell one boot from another: faults are forgotten with this process");
            String::new()
        });
        let boot = boot.trim().to_owned();
        let found = recall(&path, &boot).unwrap_or_else(|error| {
            tracing::warn!("{}: what was wrong with devices before is not known", one_line(&error));
            Standing::new()
        });
        for (device, why) in &found {
            tracing::warn!(device.id = %device, why, "the last agent left this device Unhealthy: it has to be quiet anew");
        }
        (Memo { path, boot, written: None, serving: self.serving.clone(), said: String::new() }, found)
    }
}

/// One file.
#[derive(Debug, Clone)]
pub(crate) struct Memo {
    path: PathBuf,
    boot: String,
    /// None: it is not known what the file says.
    written: Option<Standing>,
    serving: watch::Receiver<bool>,
    said: String,
}

impl Memo {
    /// Makes the file say this, if it doesn't. A failure is logged once, and tried again the next time.
    pub(crate) fn keep(&mut self, standing: &Standing) {
        if self.boot.is_empty() || self.written.as_ref() == Some(standing) || !*self.serving.borrow() {
            return;
        }
        match self.write(standing) {
            Ok(()) => {
                self.written = Some(standing.clone());
                self.said.clear();
            }
            Err(error) => {
                let message = one_line(&error);
                if self.said != message {
                    tracing::warn!(
                        "{message}: an agent that starts now would not know what is wrong with devices"
                    );
                    self.said = message;
                }
            }
        }
    }

    fn write(&self, standing: &Standing) -> Result<(), MemoError> {
        let failed = |source| MemoError::Write { path: self.path.clone(), source };
        let folder = self.path.parent().unwrap_or(Path::new("."));
        if standing.is_empty() {
            match fs::remove_file(&self.path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
                _ => {}
            }
            // Another memo may be in it.
            let _ = fs::remove_dir(folder);
            return Ok(());
        }
        let faults = standing.iter().map(|(id, why)| (id.to_string(), why.clone())).collect();
        let content = Content { boot: self.boot.clone(), faults };
        let bytes = serde_json::to_vec(&content)
            .map_err(|source| MemoError::Content { path: self.path.clone(), source })?;
        // In one step: half a file would be no file. It need not outlive a crash of the machine.
        let new = self.path.with_extension("new");
        fs::create_dir_all(folder)
            .and_then(|()| fs::write(&new, bytes))
            .and_then(|()| fs::rename(&new, &self.path))
            .map_err(|error| {
                let _ = fs::remove_file(&new);
                failed(error)
            })
    }
}

fn recall(path: &Path, boot: &str) -> Result<Standing, MemoError> {
    let text = match read_bounded(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Standing::new()),
        Err(source) => return Err(MemoError::Read { path: path.to_owned(), source }),
    };
    let content: Content =
        serde_json::from_str(&text).map_err(|source| MemoError::Content { path: path.to_owned(), source })?;
    if boot.is_empty() || content.boot != boot {
        return Ok(Standing::new());
    }
    let sound = content.faults.into_iter().filter_map(|(id, why)| {
        let why = why.chars().filter(|character| !character.is_control()).take(REASON_LIMIT).collect();
        Some((DeviceId::new(id).ok()?, why))
    });
    Ok(sound.collect())
}

/// A regular file's text, if it is not too long.
fn read_bounded(path: &Path) -> io::Result<String> {
    let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
    let file = File::options().read(true).custom_flags(flags.bits()).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no regular file"));
    }
    let mut text = String::new();
    file.take(SIZE_LIMIT + 1).read_to_string(&mut text)?;
    if text.len() as u64 > SIZE_LIMIT {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("more than {SIZE_LIMIT} bytes")));
    }
    Ok(text)
}

#[cfg(test)]
pub(crate) mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// Memos below `folder`, in a boot called `boot`.
    pub(crate) fn memos(folder: &Path, boot: &str) -> Memos {
        let boot_id = folder.join("boot_id");
        fs::write(&boot_id, format!("{boot}\n")).unwrap();
        Memos { folder: folder.join("kept"), boot_id, serving: watch::channel(true).1 }
    }

    fn standing(faults: &[(&str, &str)]) -> Standing {
        faults.iter().map(|(id, why)| (DeviceId::new(*id).unwrap(), (*why).to_owned())).collect()
    }

    #[test]
    fn the_next_agent_of_the_same_boot_knows() {
        let folder = tempfile::tempdir().unwrap();
        let memos = memos(folder.path(), "one");
        let (mut memo, before) = memos.open("nvml");
        assert_eq!(before, Standing::new());
        memo.keep(&Standing::new());
        assert!(!memos.folder.exists(), "there is nothing to keep");
        let faults = standing(&[("GPU-1", "XID 79")]);
        memo.keep(&faults);
        assert_eq!(memos.open("nvml").1, faults);
        assert_eq!(memos.open("other").1, Standing::new());
        // One that only waits to serve leaves it alone.
        let waiting = Memos { serving: watch::channel(false).1, ..memos.clone() };
        waiting.open("nvml").0.keep(&Standing::new());
        assert_eq!(memos.open("nvml").1, faults);
        assert_eq!(
            self::memos(folder.path(), "two").open("nvml").1,
            Standing::new(),
            "a boot resets devices"
        );
        let (mut next, _) = self::memos(folder.path(), "one").open("nvml");
        next.keep(&Standing::new());
        assert!(!memos.folder.exists(), "it left something");
    }

    #[test]
    fn what_cannot_be_written_is_written_when_it_can() {
        let folder = tempfile::tempdir().unwrap();
        let memos = memos(folder.path(), "one");
        fs::write(&memos.folder, "in the way").unwrap();
        let (mut memo, _) = memos.open("nvml");
        let faults = standing(&[("GPU-1", "XID 79")]);
        memo.keep(&faults);
        fs::remove_file(&memos.folder).unwrap();
        memo.keep(&faults);
        assert_eq!(memos.open("nvml").1, faults);
    }

    #[test]
    fn a_hostile_file_says_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let memos = memos(folder.path(), "one");
        fs::create_dir(&memos.folder).unwrap();
        let path = memos.folder.join("faults-nvml.json");
        let huge = format!(r#"{{"boot":"one","faults":{{"GPU-1":"{}"}}}}"#, "x".repeat(300 << 10));
        for bad in
            ["", "{", "[]", "\u{0}", r#"{"boot":"one"}"#, r#"{"boot":"one","faults":{"GPU-1":3}}"#, &huge]
        {
            fs::write(&path, bad).unwrap();
            assert_eq!(memos.open("nvml").1, Standing::new(), "{}", bad.get(..20).unwrap_or(bad));
        }
        fs::write(&path, [0xff, 0xfe]).unwrap();
        assert_eq!(memos.open("nvml").1, Standing::new());
        let long = "y".repeat(1000);
        let mixed = format!(r#"{{"boot":"one","faults":{{"../x":"a","GPU-1":"b\u0007{long}"}},"more":1}}"#);
        fs::write(&path, &mixed).unwrap();
        let why = format!("b{}", "y".repeat(REASON_LIMIT - 1));
        assert_eq!(memos.open("nvml").1, standing(&[("GPU-1", &why)]));
        let elsewhere = folder.path().join("elsewhere");
        fs::rename(&path, &elsewhere).unwrap();
        symlink(&elsewhere, &path).unwrap();
        assert_eq!(memos.open("nvml").1, Standing::new(), "a link was followed");
        fs::remove_file(&path).unwrap();
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRUSR).unwrap();
        assert_eq!(memos.open("nvml").1, Standing::new(), "a pipe was read");
        // Whatever lies there is replaced.
        let faults = standing(&[("GPU-2", "XID 48")]);
        memos.open("nvml").0.keep(&faults);
        assert_eq!(memos.open("nvml").1, faults);
    }
}
