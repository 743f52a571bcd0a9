//! The device filter in the real kernel: cgroups of our own, a bpffs of our own, and processes that open device nodes. No driver is
//! behind the nodes, so an open that is let through fails with ENXIO, and one that is refused with EPERM.
//!
//! Needs root and a cgroup v2 hierarchy; left out, loudly, without.

#![allow(clippy::unwrap_used)]

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::stat::{Mode, SFlag, makedev, mknod},
};
use spillway_agent::isolation::{
    cgroup::{self, Kubepods},
    filter::{self, Filter, Outcome, Recipe},
    kernel::Link,
    policy::{Changes, Owner},
    program::{AllowKey, Effect, Number, Rules},
};
use tempfile::TempDir;

const GPU: Number = Number { major: 195, minor: 0 };
const OTHER_GPU: Number = Number { major: 195, minor: 1 };
/// Belongs to nobody that we know.
const FREE: Number = Number { major: 240, minor: 7 };

/// A made-up node: kubepods with three pods, device nodes, and a bpffs. Everything goes when it is dropped.
struct Node {
    folder: TempDir,
    cgroups: PathBuf,
}

impl Node {
    /// None without root, which is said.
    fn new(name: &str) -> Option<Self> {
        let hierarchy = cgroup::hierarchy(Path::new("/sys/fs/cgroup"));
        let Ok(hierarchy) = hierarchy.inspect_err(|error| eprintln!("left out: {error}")) else {
            return None;
        };
        let cgroups = hierarchy.join(format!("spillway-test-{name}-{}", std::process::id()));
        if let Err(error) = fs::create_dir(&cgroups) {
            eprintln!("left out: can't make cgroup {} (needs root): {error}", cgroups.display());
            return None;
        }
        let node = Self { folder: tempfile::tempdir().unwrap(), cgroups };
        for pod in ["podguaranteed", "burstable/podb/container", "besteffort/pode"] {
            fs::create_dir_all(node.cgroups.join("kubepods").join(pod)).unwrap();
        }
        fs::create_dir(node.bpffs()).unwrap();
        mount(Some("bpf"), &node.bpffs(), Some("bpf"), MsFlags::empty(), None::<&str>).unwrap();
        for number in [GPU, OTHER_GPU, FREE] {
            let device = makedev(number.major.into(), number.minor.into());
            mknod(&node.device(number), SFlag::S_IFCHR, Mode::from_bits_truncate(0o666), device).unwrap();
        }
        Some(node)
    }

    fn bpffs(&self) -> PathBuf {
        self.folder.path().join("bpf")
    }

    fn device(&self, number: Number) -> PathBuf {
        self.folder.path().join(number.to_string())
    }

    fn kubepods(&self) -> Kubepods {
        let all = cgroup::hierarchy(Path::new("/sys/fs/cgroup")).unwrap();
        cgroup::find(&all, Some(self.cgroups.strip_prefix(&all).unwrap().join("kubepods").as_path()), None)
            .unwrap()
    }

    fn id(&self, uid: &str) -> u64 {
        self.kubepods().pods().unwrap().into_iter().find(|pod| pod.uid == uid).unwrap().id
    }

    fn entry(&self, uid: &str, number: Number) -> (AllowKey, Owner) {
        (AllowKey { cgroup: self.id(uid), number }, Owner::of(uid))
    }

    fn recipe(&self, effect: Effect) -> Recipe {
        let mut rules = Rules::default();
        rules.protect_major(195);
        Recipe { rules, kubepods: self.kubepods(), effect }
    }

    /// What becomes of a process in this cgroup that opens the node.
    fn open(&self, cgroup: &str, number: Number) -> &'static str {
        let script = format!(
            "echo 0 >{}/cgroup.procs && exec 3<{}",
            self.cgroups.join(cgroup).display(),
            self.device(number).display()
        );
        let output = Command::new("sh").args(["-c", &script]).env("LC_ALL", "C").output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        match () {
            () if said.contains("No such device or address") => "ENXIO",
            () if said.contains("Operation not permitted") => "EPERM",
            () => panic!("opening {number} in {cgroup}: {said:?}"),
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = umount2(&self.bpffs(), MntFlags::MNT_DETACH);
        for cgroup in [
            "kubepods/burstable/podb/container",
            "kubepods/burstable/podb",
            "kubepods/burstable",
            "kubepods/besteffort/pode",
            "kubepods/besteffort",
            "kubepods/podguaranteed",
            "kubepods",
            ".",
        ] {
            let _ = fs::remove_dir(self.cgroups.join(cgroup).components().collect::<PathBuf>());
        }
        if self.cgroups.exists() {
            eprintln!("left behind: {}", self.cgroups.display());
        }
    }
}

fn allow(entries: impl IntoIterator<Item = (AllowKey, Owner)>) -> Changes {
    Changes { allow: entries.into_iter().collect(), ..Changes::default() }
}

#[test]
fn each_pod_opens_its_own_devices_and_no_others() {
    let Some(node) = Node::new("own") else { return };
    let mut filter = Filter::open(&node.bpffs()).unwrap();
    filter.probe().unwrap();
    filter
        .apply(&allow([
            node.entry("guaranteed", GPU),
            node.entry("b", OTHER_GPU),
            node.entry("e", Number::ALL),
        ]))
        .unwrap();
    assert_eq!(filter.enforce(node.recipe(Effect::Enforce)).unwrap(), Outcome::Attached);
    for (cgroup, opens) in [
        ("kubepods/podguaranteed", ["ENXIO", "EPERM", "ENXIO"]),
        ("kubepods/burstable/podb", ["EPERM", "ENXIO", "ENXIO"]),
        ("kubepods/burstable/podb/container", ["EPERM", "ENXIO", "ENXIO"]),
        ("kubepods/besteffort/pode", ["ENXIO", "ENXIO", "ENXIO"]),
        ("kubepods/besteffort", ["EPERM", "EPERM", "ENXIO"]),
        // What is no pod is nobody's business.
        (".", ["ENXIO", "ENXIO", "ENXIO"]),
    ] {
        let found = [GPU, OTHER_GPU, FREE].map(|number| node.open(cgroup, number));
        assert_eq!(found, opens, "{cgroup}");
    }
    let denials: Vec<_> =
        filter.denials().unwrap().into_iter().map(|(key, count)| (key.number, count)).collect();
    // podb's own and its container's differ in what is below the class.
    assert_eq!(denials.iter().map(|(_, count)| count).sum::<u64>(), 5, "{denials:?}");
    let deny = |uid: &str, number| {
        let id = node.id(uid);
        node.open(
            if uid == "b" { "kubepods/burstable/podb/container" } else { "kubepods/podguaranteed" },
            number,
        );
        let denials = filter.denials().unwrap();
        assert!(denials.keys().any(|key| key.upper == id || key.lower == id), "{uid}: {denials:?}");
        denials.into_values().sum::<u64>()
    };
    assert_eq!(deny("b", GPU), 1, "and they are counted once");
    assert_eq!(deny("guaranteed", OTHER_GPU), 1);
}

#[test]
fn denials_are_counted_exactly_and_only_counted_in_an_audit() {
    let Some(node) = Node::new("audit") else { return };
    let mut filter = Filter::open(&node.bpffs()).unwrap();
    filter.enforce(node.recipe(Effect::Audit)).unwrap();
    for _ in 0..3 {
        assert_eq!(node.open("kubepods/podguaranteed", GPU), "ENXIO");
    }
    let denials = filter.denials().unwrap();
    let (key, count) = denials.first_key_value().unwrap();
    assert_eq!((denials.len(), key.upper, key.number, *count), (1, node.id("guaranteed"), GPU, 3));
    assert_eq!(filter.enforce(node.recipe(Effect::Enforce)).unwrap(), Outcome::Replaced);
    assert_eq!(filter.enforce(node.recipe(Effect::Enforce)).unwrap(), Outcome::Unchanged);
    assert_eq!(node.open("kubepods/podguaranteed", GPU), "EPERM");
}

#[test]
fn an_agent_that_ends_changes_nothing_and_the_next_one_takes_over() {
    let Some(node) = Node::new("adopt") else { return };
    let mut first = Filter::open(&node.bpffs()).unwrap();
    first.apply(&allow([node.entry("guaranteed", GPU)])).unwrap();
    first.enforce(node.recipe(Effect::Enforce)).unwrap();
    drop(first);
    let opens = || (node.open("kubepods/podguaranteed", GPU), node.open("kubepods/podguaranteed", OTHER_GPU));
    assert_eq!(opens(), ("ENXIO", "EPERM"));

    let mut second = Filter::open(&node.bpffs()).unwrap();
    assert_eq!(second.denials().unwrap().into_values().sum::<u64>(), 1, "it hears what happened meanwhile");
    assert_eq!(second.entries().unwrap(), [node.entry("guaranteed", GPU)].into());
    assert_eq!(second.enforce(node.recipe(Effect::Enforce)).unwrap(), Outcome::Adopted);
    assert_eq!(opens(), ("ENXIO", "EPERM"));
    assert_eq!(second.tampered().unwrap(), None);

    drop(second);
    assert!(filter::uninstall(&node.bpffs()).unwrap());
    assert_eq!(opens(), ("ENXIO", "ENXIO"));
    assert!(!node.bpffs().join("spillway").exists(), "a pin is left");
    assert!(!filter::uninstall(&node.bpffs()).unwrap());
}

#[test]
fn what_somebody_does_to_the_filter_is_noticed_and_put_back() {
    let Some(node) = Node::new("tamper") else { return };
    let mut filter = Filter::open(&node.bpffs()).unwrap();
    filter.enforce(node.recipe(Effect::Enforce)).unwrap();
    let pins = node.bpffs().join("spillway");
    let link = || Link::open(&pins.join("link")).unwrap().unwrap();
    let foreign = || {
        // Another program in the same link, as only root could load it.
        let mut other = Filter::open(&node.bpffs()).unwrap();
        assert_eq!(other.enforce(node.recipe(Effect::Audit)).unwrap(), Outcome::Adopted);
    };
    for (what, disturb) in [
        ("the device program was detached", &(|| link().detach().unwrap()) as &dyn Fn()),
        ("the device program was detached", &|| assert!(filter::uninstall(&node.bpffs()).unwrap())),
        ("the device program was replaced", &foreign),
        ("the pin of the device program was removed", &|| fs::remove_file(pins.join("link")).unwrap()),
        ("the pin of a map was removed", &|| fs::remove_file(pins.join("allowed")).unwrap()),
    ] {
        assert_eq!(filter.tampered().unwrap(), None);
        disturb();
        assert_eq!(filter.tampered().unwrap(), Some(what));
        filter.restore().unwrap();
        assert_eq!(filter.tampered().unwrap(), None, "{what}");
        assert_eq!(node.open("kubepods/podguaranteed", GPU), "EPERM", "{what}");
        // And the next agent finds it all.
        assert_eq!(link().state().unwrap().cgroup, node.kubepods().id);
    }
}

#[test]
fn pins_of_another_version_are_replaced_and_a_cgroup_made_anew_is_attached_to() {
    let Some(node) = Node::new("version") else { return };
    let pins = node.bpffs().join("spillway");
    {
        let mut filter = Filter::open(&node.bpffs()).unwrap();
        filter.enforce(node.recipe(Effect::Enforce)).unwrap();
    }
    // As if another version had left a map of another kind.
    fs::rename(pins.join("allowed"), pins.join("x")).unwrap();
    fs::rename(pins.join("denied"), pins.join("allowed")).unwrap();
    fs::rename(pins.join("x"), pins.join("denied")).unwrap();
    let mut filter = Filter::open(&node.bpffs()).unwrap();
    filter.apply(&allow([node.entry("guaranteed", GPU)])).unwrap();
    assert_eq!(filter.enforce(node.recipe(Effect::Enforce)).unwrap(), Outcome::Adopted);
    assert_eq!(node.open("kubepods/podguaranteed", GPU), "ENXIO");
    assert_eq!(node.open("kubepods/podguaranteed", OTHER_GPU), "EPERM");

    // A kubelet that was configured anew has its pods elsewhere.
    let elsewhere = node.cgroups.join("kubepods/besteffort");
    let kubepods = Kubepods { level: node.kubepods().level + 1, ..at(&elsewhere) };
    let recipe = Recipe { kubepods, ..node.recipe(Effect::Enforce) };
    assert_eq!(filter.enforce(recipe).unwrap(), Outcome::Attached);
    assert_eq!(node.open("kubepods/podguaranteed", OTHER_GPU), "ENXIO", "nothing is left at the old place");
    assert_eq!(node.open("kubepods/besteffort/pode", GPU), "EPERM");
}

/// Where a test of this binary, run again with fewer capabilities, finds its node.
const CHILD: &str = "SPILLWAY_TEST_ISOLATION_CHILD";

#[test]
fn two_capabilities_are_enough_and_both_are_needed() {
    if let Ok(found) = std::env::var(CHILD) {
        let (bpffs, kubepods) = found.split_once(':').unwrap();
        let mut rules = Rules::default();
        rules.protect_major(195);
        let kubepods = Kubepods { level: 2, ..at(Path::new(kubepods)) };
        let mut filter = Filter::open(Path::new(bpffs)).unwrap();
        filter.enforce(Recipe { rules, kubepods, effect: Effect::Enforce }).unwrap();
        assert_eq!(filter.tampered().unwrap(), None);
        return;
    }
    let Some(node) = Node::new("capabilities") else { return };
    let with = |capabilities: &str| {
        let output = Command::new("setpriv")
            .args(["--inh-caps", "-all", "--bounding-set", capabilities, "--no-new-privs"])
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", "two_capabilities_are_enough_and_both_are_needed"])
            .env(CHILD, format!("{}:{}", node.bpffs().display(), node.kubepods().path.display()))
            .output()
            .unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned())
    };
    for one in ["-all,+bpf", "-all,+net_admin"] {
        let (worked, said) = with(one);
        assert!(!worked && said.contains("PermissionDenied"), "{one}: {said}");
    }
    let (worked, said) = with("-all,+bpf,+net_admin");
    assert!(worked, "{said}");
    assert_eq!(node.open("kubepods/podguaranteed", GPU), "EPERM");
}

fn at(path: &Path) -> Kubepods {
    use std::os::unix::fs::MetadataExt as _;
    Kubepods { path: path.to_owned(), id: fs::metadata(path).unwrap().ino(), level: 0 }
}

#[test]
fn what_is_no_bpffs_is_refused_with_the_remedy() {
    let folder = tempfile::tempdir().unwrap();
    let error = Filter::open(folder.path()).unwrap_err().to_string();
    assert!(error.contains("mount -t bpf bpf") && error.contains("--bpf-dir"), "{error}");
}
