use std::{
    os::unix::fs::{PermissionsExt as _, symlink},
    sync::atomic::{AtomicBool, Ordering},
};

use super::*;

/// A mount that is gone when the test is.
struct Mounted(PathBuf);

impl Mounted {
    fn tmpfs(path: PathBuf) -> Self {
        fs::create_dir_all(&path).unwrap();
        mount(Some("tmpfs"), &path, Some("tmpfs"), MsFlags::empty(), Some("size=1m")).unwrap();
        mount(None::<&str>, &path, None::<&str>, MsFlags::MS_SHARED, None::<&str>).unwrap();
        Self(path)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = mounts::unmount_below(&self.0);
        let _ = mounts::unmount(&self.0);
    }
}

/// Ends the other thread, however this one ends.
struct Stop<'a>(&'a AtomicBool);
impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn part<'a>(volume: &'a Path, sub: &'a str) -> Part<'a> {
    Part { volume, sub: Path::new(sub), shared: false }
}

fn is_mounted(path: &Path) -> bool {
    let parent = path.parent().unwrap();
    mounts::points_below(parent).contains(&path.canonicalize().unwrap())
}

#[test]
fn what_leads_back_into_the_volume_is_followed() {
    let root = tempfile::tempdir().unwrap();
    let volume = root.path().join("volume");
    fs::create_dir_all(volume.join("data/deep")).unwrap();
    fs::create_dir(root.path().join("volume-2")).unwrap();
    fs::write(volume.join("data/file"), "x").unwrap();
    for (target, name) in [
        (volume.join("data"), "link"),
        (volume.clone(), "all"),
        (volume.join("data/../../secret"), "out"),
        (root.path().join("volume-2"), "neighbour"),
        (volume.join("none"), "dangling"),
        (volume.join("loop"), "loop"),
    ] {
        symlink(target, volume.join(name)).unwrap();
    }
    fs::write(root.path().join("secret"), "x").unwrap();
    // Also when the volume itself is reached through a link.
    let alias = root.path().join("alias");
    symlink(&volume, &alias).unwrap();
    let same = |opened: OwnedFd, path: &str| {
        let opened = fs::File::from(opened).metadata().unwrap();
        let wanted = fs::metadata(volume.join(path)).unwrap();
        (opened.ino(), opened.dev()) == (wanted.ino(), wanted.dev())
    };
    for volume in [&volume, &alias] {
        for (path, wanted) in
            [("link", "data"), ("link/file", "data/file"), ("link/deep", "data/deep"), ("all", ".")]
        {
            assert!(same(open(volume, Path::new(path)).unwrap(), wanted), "{path}");
        }
        for path in ["out", "neighbour", "dangling", "loop", "link/none", "link/../../secret", "/etc/passwd"]
        {
            assert!(open(volume, Path::new(path)).is_err(), "{path}");
        }
    }
    assert!(!root.path().join("volume/data/none").exists(), "nothing is made behind such a link");
}

#[test]
fn sub_paths_do_not_lead_out() {
    let root = tempfile::tempdir().unwrap();
    let volume = root.path().join("volume");
    fs::create_dir(&volume).unwrap();
    fs::write(root.path().join("secret"), "x").unwrap();
    fs::write(volume.join("file"), "y").unwrap();
    for (target, name) in [
        ("../secret", "out"),
        ("/etc/passwd", "absolute"),
        ("/proc/self/root", "magic"),
        ("../new", "dangling"),
        ("file", "inside"),
        ("deep/er", "later"),
    ] {
        symlink(target, volume.join(name)).unwrap();
    }
    for path in [
        "out",
        "absolute",
        "magic",
        "magic/etc",
        "../secret",
        "/etc/passwd",
        "new/../../secret",
        "dangling",
        "dangling/x",
    ] {
        assert!(open(&volume, Path::new(path)).is_err(), "{path}");
    }
    assert!(matches!(open(&volume, Path::new("file/below")), Err((Step::Prepare, _))));
    assert!(
        matches!(open(&volume, Path::new("later")), Err((Step::Create, _))),
        "nothing is made through a link"
    );
    for path in ["file", "inside", "made/on/demand", "."] {
        open(&volume, Path::new(path)).unwrap();
    }
    assert!(volume.join("made/on/demand").is_dir());
    assert!(!root.path().join("new").exists());
}

#[test]
fn made_folders_have_the_volumes_mode() {
    let root = tempfile::tempdir().unwrap();
    for mode in [0o777, 0o2770, 0o1777, 0o700] {
        let volume = root.path().join(format!("{mode:o}"));
        fs::create_dir(&volume).unwrap();
        fs::set_permissions(&volume, fs::Permissions::from_mode(mode)).unwrap();
        open(&volume, Path::new("a/b")).unwrap();
        for made in ["a", "a/b"] {
            assert_eq!(fs::metadata(volume.join(made)).unwrap().mode() & 0o7777, mode, "{made} in {mode:o}");
        }
    }
}

#[test]
fn a_bound_part_is_replaced_by_the_next_attempts_and_goes() {
    let root = tempfile::tempdir().unwrap();
    let (volume, folder) = (root.path().join("volume"), root.path().join("pod/subpaths/c"));
    fs::create_dir(&volume).unwrap();
    fs::write(volume.join("file"), "1").unwrap();
    let first = bind(part(&volume, "file"), &folder, 0, 1).unwrap();
    let other = bind(part(&volume, "made"), &folder, 0, 10).unwrap();
    assert_eq!(fs::read_to_string(&first).unwrap(), "1");
    fs::write(other.join("x"), "").unwrap();
    assert!(volume.join("made/x").exists());
    // Another file by the same name is not what the container has.
    fs::rename(volume.join("file"), volume.join("old")).unwrap();
    fs::write(volume.join("file"), "2").unwrap();
    assert_eq!(fs::read_to_string(&first).unwrap(), "1");

    // The process died before the container was made, and comes back; then the container restarts.
    let again = bind(part(&volume, "file"), &folder, 0, 1).unwrap();
    assert_eq!((again == first, fs::read_to_string(&again).unwrap()), (true, "2".to_owned()));
    let next = bind(part(&volume, "file"), &folder, 3, 1).unwrap();
    assert!(!first.exists() && is_mounted(&next) && is_mounted(&other));

    assert!(mounts::unmount_below(&root.path().join("pod")).unwrap().is_empty());
    assert!(!other.join("x").exists() && volume.join("made/x").exists());
    fs::remove_dir_all(root.path().join("pod")).unwrap();
    assert_eq!(fs::read_to_string(volume.join("file")).unwrap(), "2");
}

#[test]
fn unmounting_leaves_the_machines_own_mounts_alone() {
    let root = tempfile::tempdir().unwrap();
    let host = Mounted::tmpfs(root.path().join("host"));
    let sub = host.0.join("sub");
    let before = Mounted::tmpfs(sub.join("before"));
    fs::write(before.0.join("x"), "").unwrap();
    let folder = root.path().join("pod/subpaths/c");
    for shared in [false, true] {
        let bound = bind(Part { volume: &host.0, sub: Path::new("sub"), shared }, &folder, 0, 0).unwrap();
        // A mount of later comes in, as for a container with HostToContainer.
        let later = Mounted::tmpfs(sub.join("later"));
        fs::write(later.0.join("y"), "").unwrap();
        assert!(bound.join("later/y").exists());
        assert!(mounts::unmount_below(&root.path().join("pod")).unwrap().is_empty());
        assert!(before.0.join("x").exists() && later.0.join("y").exists(), "shared: {shared}");
    }
}

#[test]
fn swapping_links_under_us_never_leads_out() {
    let root = tempfile::tempdir().unwrap();
    let (volume, outside) = (root.path().join("volume"), root.path().join("outside"));
    for folder in [volume.join("real/deep"), outside.join("deep")] {
        fs::create_dir_all(&folder).unwrap();
        let is_outside = folder.starts_with(&outside);
        fs::write(folder.join("whose"), if is_outside { "the machine's" } else { "the pod's" }).unwrap();
    }
    symlink("real", volume.join("link")).unwrap();
    let stop = AtomicBool::new(false);
    let (mut opened, mut refused) = (0_u32, 0_u32);
    std::thread::scope(|scope| {
        // What a container with the volume would do, as fast as it can: a folder, a link inside, links outside, nothing.
        scope.spawn(|| {
            for n in 0_u64.. {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                let next = volume.join("next");
                let target = match n % 4 {
                    0 => "real".to_owned(),
                    1 => "../outside".to_owned(),
                    2 => outside.display().to_string(),
                    _ => "/proc/self/cwd".to_owned(),
                };
                let _ = symlink(target, &next);
                let _ = fs::rename(&next, volume.join("link"));
                if n % 5 == 0 {
                    let _ = fs::remove_file(volume.join("link"));
                    let _ = fs::create_dir(volume.join("link"));
                    let _ = fs::remove_dir_all(volume.join("link"));
                }
                let _ = fs::rename(volume.join("real/deep"), volume.join("moved"));
                let _ = fs::rename(volume.join("moved"), volume.join("real/deep"));
            }
        });
        let _stop = Stop(&stop);
        let folder = root.path().join("pod/subpaths/c");
        while opened < 300 || refused < 300 {
            match open(&volume, Path::new("link/deep")) {
                Ok(found) => {
                    opened += 1;
                    let whose = fs::read_to_string(format!("/proc/self/fd/{}/whose", found.as_raw_fd()));
                    assert_ne!(whose.ok().as_deref(), Some("the machine's"));
                }
                Err(_) => refused += 1,
            }
            if let Ok(target) = bind(part(&volume, "link/deep"), &folder, 0, 0) {
                assert_ne!(fs::read_to_string(target.join("whose")).ok().as_deref(), Some("the machine's"));
            }
            assert_eq!(fs::read_dir(&outside).unwrap().count(), 1, "nothing is made outside");
            assert_eq!(fs::read_dir(outside.join("deep")).unwrap().count(), 1, "nothing is made outside");
        }
    });
    mounts::unmount_below(&root.path().join("pod")).unwrap();
}
