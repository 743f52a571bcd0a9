//! A volume whose owner makes folders, links and swaps in it, and the parts of it that are asked for meanwhile. What is found is always
//! below the volume. Each line is one thing that happens: `mkdir a/b`, `file a`, `link TARGET a`, `move a b`, `swap a b`, `remove a`,
//! `ask a/b/c`, and `race a b a/c`: while two names are swapped again and again, one is asked for.

use std::{
    fs::{self, File},
    os::{fd::AsRawFd as _, unix::fs::symlink},
    path::{Component, Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use spillway_vk::pod::subpath;
use tempfile::TempDir;

/// Lines that are looked at.
const MOST: usize = 48;
/// How often what is raced for is asked for.
const RACES: usize = 24;

struct Scene {
    _folder: TempDir,
    outside: PathBuf,
    volume: PathBuf,
}

/// Makes a volume, and lets everything happen.
pub fn run(bytes: &[u8]) {
    let folder = TempDir::new().expect("a folder");
    let root = folder.path().canonicalize().expect("it is there");
    let (outside, volume) = (root.join("outside"), root.join("volume"));
    for path in [&outside, &volume] {
        fs::create_dir(path).expect("it is new");
    }
    fs::write(outside.join("secret"), "secret").expect("it is new");
    let scene = Scene { _folder: folder, outside, volume };
    for line in String::from_utf8_lossy(bytes).lines().take(MOST) {
        scene.happen(line);
    }
    // Whoever was led out would have left something there.
    let left: Vec<_> = fs::read_dir(&scene.outside).expect("it is there").flatten().collect();
    assert!(left.len() == 1, "something was made outside: {left:?}");
}

impl Scene {
    fn happen(&self, line: &str) {
        let mut words = line.splitn(3, ' ');
        let (what, first, second) = (
            words.next().unwrap_or_default(),
            words.next().unwrap_or_default(),
            words.next().unwrap_or_default(),
        );
        match what {
            "mkdir" => self.inside(first).map(fs::create_dir_all).map(drop),
            "file" => self.inside(first).map(|path| fs::write(path, "")).map(drop),
            "link" => self.inside(second).map(|path| symlink(self.target(first), path)).map(drop),
            "move" => self.both(first, second).map(|(from, to)| fs::rename(from, to)).map(drop),
            "swap" => self.both(first, second).map(|(one, other)| self.swap(&one, &other)),
            "remove" => self
                .inside(first)
                .map(|path| fs::remove_dir(&path).or_else(|_| fs::remove_file(&path)))
                .map(drop),
            "race" => {
                let (other, sub) = second.split_once(' ').unwrap_or((second, first));
                self.both(first, other).map(|(one, other)| self.race(&one, &other, sub))
            }
            "ask" => {
                self.ask(line.split_once(' ').map_or("", |(_, sub)| sub));
                Some(())
            }
            _ => None,
        };
    }

    /// Links lead where hostile ones do: out, up, round, or to the machine.
    fn target(&self, text: &str) -> PathBuf {
        PathBuf::from(
            text.replace("OUTSIDE", &self.outside.to_string_lossy())
                .replace("VOLUME", &self.volume.to_string_lossy()),
        )
    }

    /// The owner of the volume writes in it alone: no link of its own leads this target out.
    fn inside(&self, name: &str) -> Option<PathBuf> {
        let path = Path::new(name);
        let is_plain = path.components().all(|part| matches!(part, Component::Normal(_)));
        if name.is_empty() || name.contains('\0') || !is_plain {
            return None;
        }
        let parent = path.parent()?;
        let real = self.volume.join(parent).canonicalize().or_else(|_| {
            let first = parent.components().next().map(|part| self.volume.join(part.as_os_str()));
            // Nothing of it is there.
            match first {
                Some(first) if first.symlink_metadata().is_ok() => Err(std::io::ErrorKind::NotFound),
                _ => Ok(self.volume.clone()),
            }
        });
        let is_below = real.is_ok_and(|real| real.starts_with(&self.volume));
        let is_link = self.volume.join(path).symlink_metadata().is_ok_and(|found| found.is_symlink());
        (is_below && !is_link).then(|| self.volume.join(path))
    }

    /// Names alone are moved, whatever they lead to.
    fn both(&self, one: &str, other: &str) -> Option<(PathBuf, PathBuf)> {
        let plain = |name: &str| {
            let is_plain = !name.is_empty() && name != "." && name != ".." && !name.contains(['/', '\0']);
            is_plain.then(|| self.volume.join(name))
        };
        Some((plain(one)?, plain(other)?))
    }

    fn swap(&self, one: &Path, other: &Path) {
        let between = self.volume.join(".between");
        if fs::rename(one, &between).is_ok() {
            let _ = fs::rename(other, one);
            let _ = fs::rename(&between, other);
        }
    }

    fn race(&self, one: &Path, other: &Path, sub: &str) {
        let over = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    self.swap(one, other);
                }
            });
            for _ in 0..RACES {
                self.ask(sub);
            }
            over.store(true, Ordering::Relaxed);
        });
    }

    /// What is asked for is below the volume, or is refused.
    fn ask(&self, sub: &str) {
        let Ok(found) = subpath::open(&self.volume, Path::new(sub)) else { return };
        let volume = File::open(&self.volume).expect("it is there");
        let name = |descriptor: i32| {
            fs::read_link(format!("/proc/self/fd/{descriptor}")).expect("every descriptor has a name")
        };
        let (found, volume) = (name(found.as_raw_fd()), name(volume.as_raw_fd()));
        assert!(found.starts_with(&volume), "{sub:?} leads to {}", found.display());
    }
}
