//! What both share: cgroups and device nodes that go with the value.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use spillway_agent::isolation::program::Number;

pub(crate) const GPU: Number = Number { major: 195, minor: 0 };
pub(crate) const OTHER_GPU: Number = Number { major: 195, minor: 1 };

/// Set where nothing may be left out.
const COMPLETE: &str = "SPILLWAY_TEST_KERNEL";

/// Says why a test is left out, or fails it.
pub(crate) fn left_out<T>(why: &str) -> Option<T> {
    assert!(std::env::var_os(COMPLETE).is_none(), "{why}");
    eprintln!("left out: {why}");
    None
}

/// A cgroup of our own in a real hierarchy, with all that is below.
pub(crate) struct Cgroups(PathBuf);

impl Cgroups {
    /// None without root, which is said.
    pub(crate) fn make(hierarchy: &Path, name: &str) -> Option<Self> {
        let path = hierarchy.join(format!("spillway-test-{name}-{}", std::process::id()));
        match fs::create_dir(&path) {
            Ok(()) => Some(Self(path)),
            Err(error) => left_out(&format!("can't make cgroup {} (needs root): {error}", path.display())),
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// As it is called within its hierarchy.
    pub(crate) fn name(&self) -> &Path {
        Path::new(self.0.file_name().unwrap())
    }
}

impl Drop for Cgroups {
    fn drop(&mut self) {
        fn remove(path: &Path) {
            for entry in fs::read_dir(path).into_iter().flatten().flatten() {
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    remove(&entry.path());
                }
            }
            if let Err(error) = fs::remove_dir(path) {
                eprintln!("left behind: {}: {error}", path.display());
            }
        }
        remove(&self.0);
    }
}

/// Makes a node of a device.
pub(crate) fn make_node(path: &Path, number: Number) {
    let device = makedev(number.major.into(), number.minor.into());
    mknod(path, SFlag::S_IFCHR, Mode::from_bits_truncate(0o666), device).unwrap();
}

/// What becomes of a process in this cgroup that opens the node.
pub(crate) fn open(cgroup: &Path, node: &Path) -> &'static str {
    let script = format!("echo 0 >{}/cgroup.procs && exec 3<{}", cgroup.display(), node.display());
    let output = Command::new("sh").args(["-c", &script]).env("LC_ALL", "C").output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    match () {
        () if said.contains("No such device or address") => "ENXIO",
        () if said.contains("Operation not permitted") => "EPERM",
        () => panic!("opening {} in {}: {said:?}", node.display(), cgroup.display()),
    }
}

/// Runs one test of this program again, as a process with these capabilities and no others; whether it passed, and what it said.
pub(crate) fn again_with(capabilities: &str, test: &str, variable: (&str, &str)) -> (bool, String) {
    let output = Command::new("setpriv")
        .args(["--inh-caps", "-all", "--bounding-set", capabilities, "--no-new-privs"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test])
        .env(variable.0, variable.1)
        .output()
        .unwrap();
    (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned())
}
