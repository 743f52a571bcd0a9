//! The device filter: a kubepods cgroup with pods, and a bpffs of our own.

use std::{
    fs,
    path::{Path, PathBuf},
};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use spillway_agent::isolation::{
    cgroup::{self, Kubepods},
    filter::{self, Filter, Outcome, Recipe},
    kernel::Link,
    policy::{Changes, Owner},
    program::{AllowKey, Effect, Number, Rules},
};
use tempfile::TempDir;

use crate::machine::{Cgroups, GPU, OTHER_GPU, again_with, left_out, make_node, open};

/// Belongs to nobody that we know.
const FREE: Number = Number { major: 240, minor: 7 };

/// A made-up node: kubepods with three pods, device nodes, and a bpffs. Everything goes when it is dropped.
pub(crate) struct Node {
    pub(crate) folder: TempDir,
    pub(crate) cgroups: Cgroups,
}

impl Node {
    /// None without root, which is said.
    pub(crate) fn new(name: &str) -> Option<Self> {
        let hierarchy = match cgroup::hierarchy(Path::new("/sys/fs/cgroup")) {
            Ok(hierarchy) => hierarchy,
            Err(error) => return left_out(&error.to_string()),
        };
        let node = Self { folder: tempfile::tempdir().unwrap(), cgroups: Cgroups::make(&hierarchy, name)? };
        for pod in ["podguaranteed", "burstable/podb/container", "besteffort/pode"] {
            node.make(&Path::new("kubepods").join(pod));
        }
        fs::create_dir(node.bpffs()).unwrap();
        mount(Some("bpf"), &node.bpffs(), Some("bpf"), MsFlags::empty(), None::<&str>).unwrap();
        for number in [GPU, OTHER_GPU, FREE] {
            make_node(&node.device(number), number);
        }
        Some(node)
    }

    pub(crate) fn bpffs(&self) -> PathBuf {
        self.folder.path().join("bpf")
    }

    pub(crate) fn device(&self, number: Number) -> PathBuf {
        self.folder.path().join(number.to_string())
    }

    pub(crate) fn make(&self, cgroup: &Path) {
        fs::create_dir_all(self.cgroups.path().join(cgroup)).unwrap();
    }

    pub(crate) fn kubepods(&self) -> Kubepods {
        self.kubepods_named("kubepods")
    }

    fn kubepods_named(&self, name: &str) -> Kubepods {
        let all = cgroup::hierarchy(Path::new("/sys/fs/cgroup")).unwrap();
        cgroup::find(&all, Some(&self.cgroups.name().join(name)), None).unwrap()
    }

    pub(crate) fn id(&self, uid: &str) -> u64 {
        self.kubepods().pods().unwrap().into_iter().find(|pod| pod.uid == uid).unwrap().id
    }

    pub(crate) fn entry(&self, uid: &str, number: Number) -> (AllowKey, Owner) {
        (AllowKey { cgroup: self.id(uid), number }, Owner::of(uid))
    }

    pub(crate) fn recipe(&self, effect: Effect) -> Recipe {
        let mut rules = Rules::default();
        rules.protect_major(195);
        Recipe { rules, kubepods: self.kubepods(), effect }
    }

    /// What becomes of a process in this cgroup that opens the node.
    pub(crate) fn open(&self, cgroup: &str, number: Number) -> &'static str {
        open(&self.cgroups.path().join(cgroup), &self.device(number))
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = umount2(&self.bpffs(), MntFlags::MNT_DETACH);
    }
}

pub(crate) fn allow(entries: impl IntoIterator<Item = (AllowKey, Owner)>) -> Changes {
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
        ("the pin of a map was replaced", &|| {
            // As anybody who can write to the bpffs can, without making a map.
            fs::rename(pins.join("denied"), pins.join("x")).unwrap();
            fs::rename(pins.join("allowed"), pins.join("denied")).unwrap();
            fs::rename(pins.join("x"), pins.join("allowed")).unwrap();
        }),
        ("the pin of a map was replaced", &|| {
            fs::remove_file(pins.join("allowed")).unwrap();
            // One just like ours.
            drop(Filter::open(&node.bpffs()).unwrap());
        }),
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
    let elsewhere = node.cgroups.path().join("kubepods/besteffort");
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
    let place = format!("{}:{}", node.bpffs().display(), node.kubepods().path.display());
    let with = |capabilities: &str| {
        let test = "filter::two_capabilities_are_enough_and_both_are_needed";
        again_with(capabilities, test, (CHILD, &place))
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
fn pods_are_found_by_the_names_that_systemd_gives_them() {
    let Some(node) = Node::new("systemd") else { return };
    let uid = |digit: &str| format!("{0}{0}{0}{0}-1111-4222-8333-444455556666", digit.repeat(2));
    let (guaranteed, burstable, besteffort) = (uid("a"), uid("b"), uid("c"));
    // As the kubelet's and containerd's systemd drivers make them.
    let slice = |class: &str, uid: &str| {
        let (unit, below) = match class {
            "" => ("kubepods".to_owned(), String::new()),
            class => (format!("kubepods-{class}"), format!("kubepods-{class}.slice/")),
        };
        format!(
            "kubepods.slice/{below}{unit}-pod{}.slice/cri-containerd-0123456789abcdef.scope",
            uid.replace('-', "_")
        )
    };
    let of = [slice("", &guaranteed), slice("burstable", &burstable), slice("besteffort", &besteffort)];
    for container in &of {
        node.make(Path::new(container));
    }
    let kubepods = node.kubepods_named("kubepods.slice");
    let pods = kubepods.pods().unwrap();
    let id = |uid: &str| pods.iter().find(|pod| pod.uid == uid).unwrap().id;
    let mut filter = Filter::open(&node.bpffs()).unwrap();
    let entry = |uid: &str, number| (AllowKey { cgroup: id(uid), number }, Owner::of(uid));
    filter.apply(&allow([entry(&guaranteed, GPU), entry(&burstable, OTHER_GPU)])).unwrap();
    filter.enforce(Recipe { kubepods, ..node.recipe(Effect::Enforce) }).unwrap();
    let opens = |cgroup: &str| [GPU, OTHER_GPU].map(|number| node.open(cgroup, number));
    assert_eq!(opens(&of[0]), ["ENXIO", "EPERM"]);
    assert_eq!(opens(&of[1]), ["EPERM", "ENXIO"]);
    assert_eq!(opens(&of[2]), ["EPERM", "EPERM"]);
    let denials = filter.denials().unwrap();
    let denied = |uid: &str| -> u64 {
        let own = denials.iter().filter(|(key, _)| [key.upper, key.lower].contains(&id(uid)));
        own.map(|(_, count)| count).sum()
    };
    assert_eq!([&guaranteed, &burstable, &besteffort].map(|uid| denied(uid)), [1, 1, 2]);
}

#[test]
fn what_is_no_bpffs_is_refused_with_the_remedy() {
    let folder = tempfile::tempdir().unwrap();
    let error = Filter::open(folder.path()).unwrap_err().to_string();
    assert!(error.contains("mount -t bpf bpf") && error.contains("--bpf-dir"), "{error}");
}
