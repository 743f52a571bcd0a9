//! What the device program costs each open of a device node: the same process opens and closes the same nodes inside and outside of a
//! pod's cgroup by turns, so that whatever else the machine does hits both. Cgroups and bpffs are our own; the program is the agent's.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::{Context as _, ensure};
use nix::{
    fcntl::{OFlag, open},
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
    sys::stat::Mode,
};
use serde_json::{Value, json};
use spillway_agent::isolation::{
    cgroup,
    filter::{Filter, Recipe},
    policy::{Changes, Owner},
    program::{AllowKey, Effect, Number, Rules},
};

/// A node with a driver, in the place of an accelerator's: protected, and allowed to the pod.
const ALLOWED: (&str, Number) = ("/dev/zero", Number { major: 1, minor: 5 });
/// One that is not protected.
const UNPROTECTED: &str = "/dev/null";
/// Two levels below kubepods: the program looks at most.
const POD: &str = "kubepods/burstable/podbench";

/// Cgroups of our own; they go with the value, and this process returns to where it was.
struct Cgroups {
    root: PathBuf,
    before: PathBuf,
}

impl Cgroups {
    fn make() -> anyhow::Result<Self> {
        let hierarchy = cgroup::hierarchy(Path::new("/sys/fs/cgroup"))?;
        let own = fs::read_to_string("/proc/self/cgroup").context("can't read /proc/self/cgroup")?;
        let own = own.lines().find_map(|line| line.strip_prefix("0::/")).context("no cgroup v2")?;
        let root = hierarchy.join(format!("spillway-bench-{}", std::process::id()));
        let cgroups = Self { before: hierarchy.join(own), root };
        for path in [POD, "outside/burstable/podbench"] {
            let path = cgroups.root.join(path);
            fs::create_dir_all(&path)
                .with_context(|| format!("can't make cgroup {} (needs root)", path.display()))?;
        }
        Ok(cgroups)
    }

    /// Puts this process into one of them.
    fn enter(&self, cgroup: &str) -> anyhow::Result<()> {
        let path = self.root.join(cgroup).join("cgroup.procs");
        fs::write(&path, "0").with_context(|| format!("can't write {}", path.display()))
    }
}

impl Drop for Cgroups {
    fn drop(&mut self) {
        let _ = fs::write(self.before.join("cgroup.procs"), "0");
        for cgroup in
            [POD, "kubepods/burstable", "kubepods", "outside/burstable/podbench", "outside/burstable"]
        {
            let _ = fs::remove_dir(self.root.join(cgroup));
        }
        for cgroup in [self.root.join("outside"), self.root.clone()] {
            if let Err(error) = fs::remove_dir(&cgroup) {
                eprintln!("left behind: {}: {error}", cgroup.display());
            }
        }
    }
}

/// Measures in `rounds` of `opens` each: by node, how much longer an open and close takes, in nanoseconds and as a ratio, each the median.
pub(crate) fn measure(rounds: usize, opens: u32) -> anyhow::Result<Value> {
    // What is mounted here ends with this process. Before any other thread has started.
    unshare(CloneFlags::CLONE_NEWNS).context("can't have mounts of our own (needs root)")?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
        .context("can't make mounts private")?;
    let folder = tempfile::tempdir()?;
    mount(Some("bpf"), folder.path(), Some("bpf"), MsFlags::empty(), None::<&str>)
        .context("can't mount a bpffs")?;
    let found = with_filter(folder.path(), rounds, opens);
    nix::mount::umount2(folder.path(), nix::mount::MntFlags::MNT_DETACH)
        .context("can't unmount the bpffs")?;
    found
}

fn with_filter(bpffs: &Path, rounds: usize, opens: u32) -> anyhow::Result<Value> {
    let cgroups = Cgroups::make()?;
    let hierarchy = cgroup::hierarchy(Path::new("/sys/fs/cgroup"))?;
    let named = cgroups.root.strip_prefix(&hierarchy)?.join("kubepods");
    let kubepods = cgroup::find(&hierarchy, Some(&named), None)?;
    let pods = kubepods.pods()?;
    let pod = pods.first().context("the pod's cgroup is not found")?;
    let mut rules = Rules::default();
    rules.protect(ALLOWED.1);
    let mut filter = Filter::open(bpffs)?;
    let key = AllowKey { cgroup: pod.id, number: ALLOWED.1 };
    filter.apply(&Changes { allow: [(key, Owner::of(&pod.uid))].into(), ..Changes::default() })?;
    filter.enforce(Recipe { rules, kubepods, effect: Effect::Enforce })?;

    let mut found = serde_json::Map::new();
    for (name, path) in [("allowed", ALLOWED.0), ("unprotected", UNPROTECTED)] {
        let (mut more, mut ratios) = (Vec::new(), Vec::new());
        // The first round only warms up.
        for round in 0..=rounds {
            cgroups.enter(POD)?;
            let with = each_ns(path, opens)?;
            cgroups.enter("outside/burstable/podbench")?;
            let without = each_ns(path, opens)?;
            if round > 0 {
                more.push(with - without);
                ratios.push(with / without);
            }
        }
        let entry = json!({ "overhead_ns": median(&mut more), "ratio": median(&mut ratios) });
        found.insert(name.to_owned(), entry);
    }
    let denials = filter.denials()?;
    ensure!(denials.is_empty(), "an open was refused that is allowed: {denials:?}");
    Ok(found.into())
}

/// What one open and close takes, in nanoseconds.
fn each_ns(path: &str, opens: u32) -> anyhow::Result<f64> {
    let began = Instant::now();
    for _ in 0..opens {
        drop(open(path, OFlag::O_RDWR, Mode::empty()).with_context(|| format!("can't open {path}"))?);
    }
    Ok(began.elapsed().as_secs_f64() * 1e9 / f64::from(opens))
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}
