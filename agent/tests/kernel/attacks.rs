//! Ways round the filter that somebody might try: those that lead nowhere, and those that SECURITY.md says are out of reach, so that what it
//! says of them is true.

use std::{
    fs::{self, OpenOptions},
    os::{fd::AsRawFd as _, unix::fs::OpenOptionsExt as _},
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::Duration,
};

use nix::libc;
use prometheus_client::registry::Registry;
use spillway_agent::{
    holders::{self, Holders, HoldersReader},
    isolation::{
        Isolation, Sources, cgroup,
        denials::Metrics,
        filter::Filter,
        nodes::Roots,
        policy::Changes,
        program::{Effect, Number},
        settings::{IsolationArgs, Mode, WhileAway},
    },
    pods::PodInfo,
};
use spillway_daemon::admin::Readiness;
use spillway_device_plugin::{
    device::{Accelerator, Device, DeviceId, Health, ResourceName},
    inventory::{BackendState, Inventory},
    server::PreStart as _,
};
use tokio::{sync::watch, task::JoinSet, time::sleep};
use tokio_util::sync::CancellationToken;

use crate::{
    filter::{Node, allow},
    machine::{GPU, OTHER_GPU, again_with, make_node},
};

/// A node with a driver behind it stands for a GPU where more is to be done than opening it: /dev/zero.
const ZERO: Number = Number { major: 1, minor: 5 };
const RESOURCE: &str = "example.com/gpu";
const UNPRIVILEGED: &str = "kubepods/burstable/podb/container";
const GUARANTEED: &str = "kubepods/podguaranteed";

/// What somebody tries, and on which file, in a process of its own: see [`child`].
const WAY: &str = "SPILLWAY_TEST_ATTACK";

/// What a shell script in this cgroup says: `$node` is the way to the node.
fn script(node: &Node, cgroup: &str, path: &Path, script: &str) -> String {
    let join = format!("echo 0 >{}/cgroup.procs || exit", node.cgroups.path().join(cgroup).display());
    let output = Command::new("sh")
        .args(["-c", &format!("{join}; {script}")])
        .env("LC_ALL", "C")
        .env("node", path)
        .env("folder", node.folder.path())
        .env("all", node.cgroups.path())
        .env("number", path.file_name().unwrap().to_str().unwrap().replace(':', " "))
        .env("me", std::env::current_exe().unwrap())
        .output()
        .unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

fn outcome(said: &str) -> &'static str {
    match () {
        () if said.contains("No such device or address") => "ENXIO",
        () if said.contains("Operation not permitted") => "EPERM",
        () => panic!("{said:?}"),
    }
}

/// Runs a way that no shell knows.
fn run(way: &str) -> String {
    format!("{WAY}={way} exec $me --exact attacks::child --nocapture")
}

#[test]
fn child() {
    let Ok(way) = std::env::var(WAY) else { return };
    let node = PathBuf::from(std::env::var_os("node").unwrap());
    let reopen = |flags| OpenOptions::new().read(true).custom_flags(flags).open(&node);
    let result = match &*way {
        // A descriptor for the path alone needs no permission; reading from it needs another open.
        "path" => reopen(libc::O_PATH)
            .and_then(|file| fs::File::open(format!("/proc/self/fd/{}", file.as_raw_fd()))),
        // Neither reading nor writing, but ioctl.
        "ioctl" => reopen(libc::O_ACCMODE),
        "nonblock" => reopen(libc::O_NONBLOCK | libc::O_NOCTTY | libc::O_CLOEXEC),
        "flood" => {
            let folder = node.parent().unwrap();
            let made_up = folder.join("made-up");
            for minor in 1000..8000 {
                make_node(&made_up, Number { major: 195, minor });
                assert!(fs::File::open(&made_up).is_err());
                fs::remove_file(&made_up).unwrap();
            }
            fs::File::open(&node)
        }
        _ => panic!("no such way: {way}"),
    };
    eprintln!("{}", result.unwrap_err());
}

#[test]
fn no_way_of_opening_a_node_gets_round_the_filter() {
    let Some(node) = Node::new("ways") else { return };
    let mut filter = Filter::open(&node.bpffs()).unwrap();
    filter.apply(&allow([node.entry("b", OTHER_GPU)])).unwrap();
    filter.enforce(node.recipe(Effect::Enforce)).unwrap();
    let (path, ioctl, nonblock) = (run("path"), run("ioctl"), run("nonblock"));
    for way in [
        "exec 3<$node",
        "exec 3>$node",
        "exec 3<>$node",
        // Other names of the same thing.
        "exec 3</proc/self/root$node",
        "cd $folder; exec 3<${node##*/}",
        "ln -s $node $folder/link; exec 3<$folder/link; ",
        "ln $node $folder/hard; exec 3<$folder/hard",
        "mknod $folder/made c $number; exec 3<$folder/made",
        // File systems of its own.
        "mkdir -p $folder/t; unshare -m sh -c 'mount -t tmpfs x $folder/t; mknod $folder/t/g c $number; exec 3<$folder/t/g'",
        "mkdir -p $folder/b; unshare -m sh -c 'mount -B $folder $folder/b; exec 3<$folder/b/${node##*/}'",
        "mkdir -p $folder/o $folder/l; mknod $folder/l/g c $number; unshare -m sh -c \
         'mount -t tmpfs x $folder/o; mkdir $folder/o/u $folder/o/w $folder/o/m; mount -t overlay o -o \
         lowerdir=$folder/l,upperdir=$folder/o/u,workdir=$folder/o/w $folder/o/m; exec 3<$folder/o/m/g'",
        // Namespaces of its own.
        "unshare -U -r sh -c 'exec 3<$node'",
        "unshare -p -f sh -c 'exec 3<$node'",
        "unshare -C sh -c 'exec 3<$node'",
        &path,
        &ioctl,
        &nonblock,
    ] {
        let clean = || {
            for name in ["link", "hard", "made", "l/g"] {
                let _ = fs::remove_file(node.folder.path().join(name));
            }
        };
        let found = [GPU, OTHER_GPU].map(|number| {
            clean();
            outcome(&script(&node, UNPRIVILEGED, &node.device(number), way))
        });
        assert_eq!(found, ["EPERM", "ENXIO"], "another's, and its own, by {way}");
    }
}

#[test]
fn what_a_pod_makes_of_its_own_cgroups_changes_nothing() {
    let Some(node) = Node::new("cgroups") else { return };
    let mut filter = Filter::open(&node.bpffs()).unwrap();
    filter.apply(&allow([node.entry("guaranteed", GPU), node.entry("b", OTHER_GPU)])).unwrap();
    filter.enforce(node.recipe(Effect::Enforce)).unwrap();
    let before = node.kubepods().pods().unwrap();
    let own = format!("$all/{UNPRIVILEGED}");
    for way in [
        // Named like the pod that holds it, at every depth at which pods are looked for.
        format!("mkdir -p {own}/podguaranteed; echo 0 >{own}/podguaranteed/cgroup.procs; exec 3<$node"),
        format!("mkdir -p {own}/kubepods/podguaranteed; echo 0 >{own}/kubepods/podguaranteed/cgroup.procs; exec 3<$node"),
        format!(
            "mkdir -p {own}/kubepods/burstable/podguaranteed; echo 0 >{own}/kubepods/burstable/podguaranteed/cgroup.procs; exec 3<$node"
        ),
        // A thread in a cgroup of threads.
        format!("mkdir -p {own}/t; echo threaded >{own}/t/cgroup.type; echo 0 >{own}/t/cgroup.threads; exec 3<$node"),
        // Its own view of the hierarchy, whose root is its own cgroup.
        "mkdir -p $folder/c; unshare -C -m sh -c 'mount -t cgroup2 x $folder/c; mkdir -p $folder/c/kubepods/podguaranteed; \
         echo 0 >$folder/c/kubepods/podguaranteed/cgroup.procs; exec 3<$node'"
            .to_owned(),
    ] {
        let found = [GPU, OTHER_GPU].map(|number| outcome(&script(&node, UNPRIVILEGED, &node.device(number), &way)));
        assert_eq!(found, ["EPERM", "ENXIO"], "{way}");
    }
    let after = node.kubepods().pods().unwrap();
    let uids =
        |pods: &[cgroup::PodCgroup]| pods.iter().map(|pod| (pod.uid.clone(), pod.id)).collect::<Vec<_>>();
    assert_eq!(uids(&before), uids(&after), "and nobody takes them for pods");
}

#[test]
fn a_flood_of_made_up_nodes_hides_neither_itself_nor_what_comes_later() {
    let Some(node) = Node::new("flood") else { return };
    let mut filter = Filter::open(&node.bpffs()).unwrap();
    filter.enforce(node.recipe(Effect::Enforce)).unwrap();
    assert_eq!(outcome(&script(&node, UNPRIVILEGED, &node.device(GPU), &run("flood"))), "EPERM");
    let denials = filter.denials().unwrap();
    assert!((1..=4096).contains(&denials.len()), "{}", denials.len());
    let flooder = node.id("b");
    assert!(denials.keys().all(|key| key.lower == flooder));
    assert_eq!(node.open(GUARANTEED, GPU), "EPERM");
    let later = filter.denials().unwrap();
    assert!(later.len() == 1 && later.keys().all(|key| key.upper == node.id("guaranteed")), "{later:?}");
}

/// The filter, and /dev/zero allowed to one pod.
fn zero_for(node: &Node, uid: &str) -> Filter {
    make_node(&node.device(ZERO), ZERO);
    let mut filter = Filter::open(&node.bpffs()).unwrap();
    filter.apply(&allow([node.entry(uid, ZERO)])).unwrap();
    let mut recipe = node.recipe(Effect::Enforce);
    recipe.rules.protect(ZERO);
    filter.enforce(recipe).unwrap();
    filter
}

const READ: &str = "head -c 4 <&3 | wc -c";

#[test]
fn out_of_reach_what_is_open_stays_open_wherever_it_goes() {
    let Some(node) = Node::new("passed") else { return };
    let filter = zero_for(&node, "guaranteed");
    let (key, _) = node.entry("guaranteed", ZERO);
    let move_on = format!("exec 3<$node; echo 0 >$all/{UNPRIVILEGED}/cgroup.procs; {READ}; exec 4<$node");
    let said = script(&node, GUARANTEED, &node.device(ZERO), &move_on);
    assert!(said.starts_with("4\n") && outcome(&said) == "EPERM", "{said}");
    // And when the pod that had it has lost it.
    filter.apply(&Changes { revoke: [key].into(), ..Changes::default() }).unwrap();
    assert_eq!(outcome(&script(&node, GUARANTEED, &node.device(ZERO), "exec 3<$node")), "EPERM");
}

#[test]
fn out_of_reach_whoever_may_write_the_hosts_cgroups_is_any_pod() {
    let Some(node) = Node::new("move") else { return };
    let _filter = zero_for(&node, "guaranteed");
    let into = |cgroup: &str| format!("echo 0 >$all/{cgroup}/cgroup.procs; exec 3<$node; {READ}");
    for cgroup in [GUARANTEED, "."] {
        assert_eq!(script(&node, UNPRIVILEGED, &node.device(ZERO), &into(cgroup)), "4\n", "{cgroup}");
    }
}

#[test]
fn out_of_reach_who_can_open_the_pins_needs_no_capability_to_write_to_the_map() {
    const PINS: &str = "SPILLWAY_TEST_PINS";
    if let Ok(found) = std::env::var(PINS) {
        let (bpffs, cgroup) = found.split_once(':').unwrap();
        let filter = Filter::open(Path::new(bpffs)).unwrap();
        let (mut key, owner) = filter.entries().unwrap().into_iter().next().unwrap();
        key.cgroup = cgroup.parse().unwrap();
        filter.apply(&allow([(key, owner)])).unwrap();
        return;
    }
    let Some(node) = Node::new("pins") else { return };
    let _filter = zero_for(&node, "guaranteed");
    let found = format!("{}:{}", node.bpffs().display(), node.id("b"));
    let name = "attacks::out_of_reach_who_can_open_the_pins_needs_no_capability_to_write_to_the_map";
    let (worked, said) = again_with("-all", name, (PINS, &found));
    assert!(worked, "{said}");
    assert_eq!(script(&node, UNPRIVILEGED, &node.device(ZERO), &format!("exec 3<$node; {READ}")), "4\n");
}

/// A whole agent's isolation of a made-up machine, two GPUs of which belong to pods.
struct Agent {
    node: Node,
    isolation: Arc<Isolation>,
    metrics: Metrics,
    tasks: JoinSet<()>,
}

impl Agent {
    fn new(name: &str) -> Option<Self> {
        let node = Node::new(name)?;
        let at = |name: &str| node.folder.path().join(name);
        for folder in ["dev", "sys", "proc", "device-plugins", "pod-logs"] {
            fs::create_dir(at(folder)).unwrap();
        }
        for minor in 0..3 {
            make_node(&at("dev").join(format!("nvidia{minor}")), Number { major: 195, minor });
        }
        let id = |minor: u32| DeviceId::new(format!("gpu{minor}")).unwrap();
        let device = |minor| Device {
            id: id(minor),
            resource: ResourceName::new(RESOURCE).unwrap(),
            health: Health::Healthy,
            nodes: [format!("/dev/nvidia{minor}").into()].into(),
            listed_in: None,
            accelerator: Arc::new(Accelerator::new(id(minor))),
            partition: None,
            replica: None,
        };
        let devices = (0..3).map(device).collect();
        let (inventory, _) = Inventory::starting(["test"]).with("test", BackendState::Running, devices);
        let held = [("b", 0), ("guaranteed", 1), ("e", 2)].map(|(uid, minor)| {
            serde_json::json!({
                "PodUID": uid, "ContainerName": "main", "ResourceName": RESOURCE,
                "DeviceIDs": {"0": [format!("gpu{minor}")]}, "AllocResp": "CgA=",
            })
        });
        let text =
            serde_json::json!({ "Data": {"PodDeviceEntries": held, "RegisteredDevices": {}}, "Checksum": 1 });
        fs::write(at("device-plugins/kubelet_internal_checkpoint"), text.to_string()).unwrap();
        let sources = Sources {
            inventory: watch::Sender::new(inventory).subscribe(),
            holders: watch::Sender::new(Holders::default()).subscribe(),
            reader: HoldersReader::new(holders::Paths {
                device_plugins: at("device-plugins"),
                pod_resources: at("none.sock"),
                pod_logs: at("pod-logs"),
            }),
            pods: watch::Sender::new(Vec::<PodInfo>::new()).subscribe(),
        };
        let args = IsolationArgs {
            mode: Mode::Enforce,
            while_away: WhileAway::Closed,
            exempt: Vec::new(),
            bpf_dir: node.bpffs(),
            cgroup_dir: "/sys/fs/cgroup".into(),
            kubepods_cgroup: Some(node.cgroups.name().join("kubepods")),
            pod_uid: None,
        };
        let roots = Roots { sys: at("sys"), dev: at("dev"), proc: at("proc") };
        let metrics = Metrics::default();
        let (isolation, _) =
            Isolation::open(&args, roots, sources, Readiness::default(), metrics.clone()).unwrap();
        Some(Self { node, isolation: Arc::new(isolation), metrics, tasks: JoinSet::new() })
    }

    /// Keeps it in force from now on.
    async fn run(&mut self) {
        let isolation = self.isolation.clone();
        self.tasks.spawn(async move { isolation.run(CancellationToken::new()).await });
        until("it is in force", || self.node.open(GUARANTEED, GPU) == "EPERM").await;
    }

    fn dev(&self, name: &str) -> PathBuf {
        self.node.folder.path().join("dev").join(name)
    }

    /// The kubelet's question before a container of the third pod starts, which is always answered after a round.
    async fn round(&self) {
        let id = DeviceId::new("gpu2").unwrap();
        self.isolation.before_start(&ResourceName::new(RESOURCE).unwrap(), &[id]).await.unwrap();
    }

    fn opens(&self, number: Number) -> &'static str {
        self.node.open(UNPRIVILEGED, number)
    }

    fn restored(&self) -> String {
        let mut registry = Registry::default();
        self.metrics.register(&mut registry);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        text.lines().find_map(|line| line.strip_prefix("restored_total ")).unwrap().to_owned()
    }
}

async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    for _ in 0..600 {
        if condition() {
            return;
        }
        sleep(Duration::from_millis(50)).await;
    }
    panic!("it never came to this: {what}");
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_changes_the_hosts_dev_gains_nothing() {
    let Some(agent) = Agent::new("dev") else { return };
    agent.round().await;
    assert_eq!([GPU, OTHER_GPU].map(|number| agent.opens(number)), ["ENXIO", "EPERM"]);
    // Its own GPU's name gets the other one's number; the other one's node goes.
    for name in ["nvidia0", "nvidia1"] {
        fs::remove_file(agent.dev(name)).unwrap();
    }
    make_node(&agent.dev("nvidia0"), OTHER_GPU);
    agent.round().await;
    assert_eq!([GPU, OTHER_GPU].map(|number| agent.opens(number)), ["ENXIO", "EPERM"]);
    assert_eq!(agent.node.open(GUARANTEED, OTHER_GPU), "ENXIO", "and whoever holds it keeps it");
    // A node of everybody's, called like an accelerator's.
    make_node(&agent.dev("nvidia-zero"), ZERO);
    agent.round().await;
    let said = script(&agent.node, UNPRIVILEGED, &agent.dev("nvidia-zero"), &format!("exec 3<$node; {READ}"));
    assert_eq!(said, "4\n");
    // As many as fit into no program.
    for minor in 0..600 {
        make_node(&agent.dev(&format!("nvidia-x{minor}")), Number { major: 400 + minor % 7, minor });
    }
    agent.round().await;
    assert_eq!([GPU, OTHER_GPU].map(|number| agent.opens(number)), ["ENXIO", "EPERM"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_somebody_writes_to_the_map_is_noticed_and_undone() {
    let Some(mut agent) = Agent::new("map") else { return };
    agent.run().await;
    assert_eq!((agent.opens(OTHER_GPU), &*agent.restored()), ("EPERM", "0"));
    let other = Filter::open(&agent.node.bpffs()).unwrap();
    let own = agent.node.entry("b", GPU).0;
    let given = Changes { revoke: [own].into(), ..allow([agent.node.entry("b", OTHER_GPU)]) };
    other.apply(&given).unwrap();
    until("it is undone", || agent.opens(OTHER_GPU) == "EPERM" && agent.opens(GPU) == "ENXIO").await;
    until("it is counted", || agent.restored() == "1").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn drivers_and_nodes_that_appear_are_protected_at_once() {
    let Some(mut agent) = Agent::new("appear") else { return };
    agent.run().await;
    let (by_driver, by_node) = (Number { major: 400, minor: 5 }, Number { major: 401, minor: 5 });
    for number in [by_driver, by_node] {
        make_node(&agent.node.device(number), number);
        assert_eq!(agent.opens(number), "ENXIO");
    }
    fs::write(agent.node.folder.path().join("proc/devices"), "Character devices:\n400 dfl-port\n").unwrap();
    until("the driver is known", || agent.opens(by_driver) == "EPERM").await;
    make_node(&agent.dev("dfl-port.5"), by_node);
    until("the node is known", || agent.opens(by_node) == "EPERM").await;
}
