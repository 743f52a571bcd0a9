//! The v1 devices controller: a cgroup folder that has nothing but its hierarchy.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
    time::Duration,
};

use spillway_agent::{
    holders::{self, Holders, HoldersReader},
    isolation::{
        Isolation, Sources,
        cgroup::{self, Kubepods},
        controller::Controller,
        denials::Metrics,
        nodes::Roots,
        policy::{Changes, Owner},
        program::{AllowKey, Number},
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
use tempfile::TempDir;
use tokio::{sync::watch, time::sleep};
use tokio_util::sync::CancellationToken;

use crate::machine::{Cgroups, GPU, OTHER_GPU, again_with, left_out, make_node, open};

const RESOURCE: &str = "example.com/gpu";

/// A made-up node whose cgroup folder has only the v1 hierarchy. Everything goes when it is dropped.
struct Node {
    folder: TempDir,
    /// In the real hierarchy.
    cgroups: Cgroups,
}

impl Node {
    /// None without root or the hierarchy, which is said.
    fn new(name: &str) -> Option<Self> {
        let Some(hierarchy) = cgroup::devices(Path::new("/sys/fs/cgroup")) else {
            return left_out("there is no v1 hierarchy of the devices controller");
        };
        let node = Self { folder: tempfile::tempdir().unwrap(), cgroups: Cgroups::make(&hierarchy, name)? };
        for folder in ["cgroup", "dev", "sys", "proc", "device-plugins", "pod-logs", "bpf"] {
            fs::create_dir(node.folder.path().join(folder)).unwrap();
        }
        std::os::unix::fs::symlink(&hierarchy, node.folder.path().join("cgroup/devices")).unwrap();
        for number in [GPU, OTHER_GPU] {
            make_node(&node.device(number), number);
        }
        node.make("burstable");
        node.hold(&[]);
        Some(node)
    }

    fn device(&self, number: Number) -> PathBuf {
        self.folder.path().join(format!("dev/nvidia{}", number.minor))
    }

    fn make(&self, cgroup: &str) {
        fs::create_dir_all(self.pods().join(cgroup)).unwrap();
    }

    fn pods(&self) -> PathBuf {
        self.cgroups.path().join("kubepods")
    }

    fn kubepods_name(&self) -> PathBuf {
        self.cgroups.name().join("kubepods")
    }

    fn kubepods(&self) -> Kubepods {
        let hierarchy = cgroup::devices(&self.folder.path().join("cgroup")).unwrap();
        cgroup::find(&hierarchy, Some(&self.kubepods_name()), None).unwrap()
    }

    fn controller(&self) -> Controller {
        Controller::open(cgroup::devices(&self.folder.path().join("cgroup")).unwrap()).unwrap()
    }

    fn write(&self, cgroup: &str, file: &str, rule: &str) -> Result<(), i32> {
        fs::write(self.pods().join(cgroup).join(file), rule).map_err(|error| error.raw_os_error().unwrap())
    }

    /// What runc does for an unprivileged container: everything is denied, then single rules are allowed.
    fn start_container(&self, cgroup: &str, rule: Option<&str>) -> Result<(), i32> {
        self.make(cgroup);
        self.write(cgroup, "devices.deny", "a")?;
        for rule in ["c *:* m", "b *:* m", "c 1:3 rwm"].into_iter().chain(rule) {
            self.write(cgroup, "devices.allow", rule)?;
        }
        Ok(())
    }

    /// What becomes of a process in this cgroup that opens the node.
    fn open(&self, cgroup: &str, number: Number) -> &'static str {
        open(&self.pods().join(cgroup), &self.device(number))
    }

    fn opens(&self, cgroup: &str) -> [&'static str; 2] {
        [GPU, OTHER_GPU].map(|number| self.open(cgroup, number))
    }

    /// Writes the kubelet's checkpoint: who holds which GPU.
    fn hold(&self, holdings: &[(&str, Number)]) {
        let entries: Vec<_> = holdings
            .iter()
            .map(|(uid, number)| {
                serde_json::json!({
                    "PodUID": uid, "ContainerName": "main", "ResourceName": RESOURCE,
                    "DeviceIDs": {"0": [format!("gpu{}", number.minor)]}, "AllocResp": "CgA=",
                })
            })
            .collect();
        let text = serde_json::json!({
            "Data": {"PodDeviceEntries": entries, "RegisteredDevices": {}}, "Checksum": 1,
        });
        let fresh = self.folder.path().join("fresh");
        fs::write(&fresh, text.to_string()).unwrap();
        fs::rename(fresh, self.folder.path().join("device-plugins/kubelet_internal_checkpoint")).unwrap();
    }

    fn args(&self, mode: Mode, while_away: WhileAway) -> IsolationArgs {
        IsolationArgs {
            mode,
            while_away,
            exempt: Vec::new(),
            bpf_dir: self.folder.path().join("bpf"),
            cgroup_dir: self.folder.path().join("cgroup"),
            kubepods_cgroup: Some(self.kubepods_name()),
            pod_uid: None,
        }
    }

    fn isolation(&self, mode: Mode, while_away: WhileAway) -> Result<Arc<Isolation>, String> {
        let at = |name: &str| self.folder.path().join(name);
        let device = |number: Number| Device {
            id: DeviceId::new(format!("gpu{}", number.minor)).unwrap(),
            resource: ResourceName::new(RESOURCE).unwrap(),
            health: Health::Healthy,
            nodes: [format!("/dev/nvidia{}", number.minor).into()].into(),
            listed_in: None,
            accelerator: Arc::new(Accelerator::new(DeviceId::new(format!("gpu{}", number.minor)).unwrap())),
            partition: None,
            replica: None,
        };
        let devices = [GPU, OTHER_GPU].map(device).into();
        let (inventory, _) = Inventory::starting(["test"]).with("test", BackendState::Running, devices);
        // The senders go, as if nothing ever changed: only cgroups and time bring rounds.
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
        let roots = Roots { sys: at("sys"), dev: at("dev"), proc: at("proc") };
        Isolation::open(
            &self.args(mode, while_away),
            roots,
            sources,
            Readiness::default(),
            Metrics::default(),
        )
        .map(|(isolation, _)| Arc::new(isolation))
        .map_err(|error| error.to_string())
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

#[test]
fn denials_reach_containers_old_and_new_and_runtimes_can_still_start_them() {
    let Some(node) = Node::new("reach") else { return };
    node.make("burstable/poda/privileged");
    node.start_container("burstable/poda/greedy", Some("c 195:* rw")).unwrap();
    node.start_container("burstable/poda/own", Some("c 195:0 rw")).unwrap();
    assert_eq!(node.opens("burstable/poda/greedy"), ["ENXIO", "ENXIO"]);
    let mut controller = node.controller();
    let pods = controller.pods(&node.kubepods()).unwrap();
    assert_eq!((pods.len(), pods[0].uid.as_str(), pods[0].populated), (1, "a", true));
    let entry = |number| (AllowKey { cgroup: pods[0].id, number }, Owner::of("a"));
    controller.apply(&Changes { allow: [entry(GPU)].into(), ..Changes::default() });
    controller.enforce([GPU, OTHER_GPU].into()).unwrap();

    assert_eq!(node.opens("burstable/poda/privileged"), ["ENXIO", "EPERM"]);
    assert_eq!(node.opens("burstable/poda/own"), ["ENXIO", "EPERM"]);
    // The kernel takes a rule away as a whole.
    assert_eq!(node.opens("burstable/poda/greedy"), ["EPERM", "EPERM"]);
    node.start_container("burstable/poda/new", Some("c 195:0 rwm")).unwrap();
    assert_eq!(node.opens("burstable/poda/new"), ["ENXIO", "EPERM"]);
    node.make("burstable/poda/newprivileged");
    node.write("burstable/poda/newprivileged", "devices.allow", "a").unwrap();
    assert_eq!(node.opens("burstable/poda/newprivileged"), ["ENXIO", "EPERM"]);
    // Nobody below can lift it, a runtime that was told to included.
    let refused = Err(nix::libc::EPERM);
    assert_eq!(node.start_container("burstable/poda/another", Some("c 195:1 rw")), refused);
    assert_eq!(node.write("burstable/poda/newprivileged", "devices.allow", "c 195:1 rw"), refused);

    // Given later: pods and their privileged containers get it; it is a runtime's business to list it for the others.
    controller.apply(&Changes { allow: [entry(OTHER_GPU)].into(), ..Changes::default() });
    controller.enforce([GPU, OTHER_GPU].into()).unwrap();
    assert_eq!(node.opens("burstable/poda/privileged"), ["ENXIO", "ENXIO"]);
    assert_eq!(node.opens("burstable/poda/own"), ["ENXIO", "EPERM"]);
    controller.apply(&Changes { revoke: [entry(OTHER_GPU).0].into(), ..Changes::default() });
    controller.enforce([GPU, OTHER_GPU].into()).unwrap();
    assert_eq!(node.opens("burstable/poda/privileged"), ["ENXIO", "EPERM"]);
    controller.lift(&[GPU, OTHER_GPU].into()).unwrap();
    assert_eq!(node.opens("burstable/poda/privileged"), ["ENXIO", "ENXIO"]);
}

#[test]
fn denying_the_making_of_nodes_or_a_whole_major_would_break_containers() {
    let Some(node) = Node::new("break") else { return };
    let refused = Err(nix::libc::EPERM);
    node.make("poda");
    node.write("poda", "devices.deny", "c 195:1 rwm").unwrap();
    assert_eq!(node.start_container("poda/container", None), refused);
    node.make("podb");
    node.write("podb", "devices.deny", "c 195:* rw").unwrap();
    node.write("podb", "devices.allow", "c 195:0 rw").unwrap();
    assert_eq!(node.start_container("podb/container", Some("c 195:0 rw")), refused);
}

#[test]
fn the_race_that_it_does_not_close_a_pod_that_is_faster_keeps_what_it_opened() {
    let Some(node) = Node::new("race") else { return };
    node.make("poda/container");
    // /dev/zero is a node with a driver: it stands for an accelerator's.
    let zero = Number { major: 1, minor: 5 };
    let script = format!(
        "echo 0 >{}/cgroup.procs && exec 3</dev/zero && echo open && read line && head -c 4 <&3 | wc -c && exec 4</dev/zero",
        node.pods().join("poda/container").display()
    );
    let mut faster = Command::new("sh")
        .args(["-c", &script])
        .env("LC_ALL", "C")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = [0; 5];
    std::io::Read::read_exact(faster.stdout.as_mut().unwrap(), &mut line).unwrap();
    assert_eq!(&line, b"open\n", "nothing was written yet, and it got what it wanted");
    let mut controller = node.controller();
    controller.pods(&node.kubepods()).unwrap();
    controller.enforce([zero].into()).unwrap();
    std::io::Write::write_all(faster.stdin.as_mut().unwrap(), b"go\n").unwrap();
    let output = faster.wait_with_output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "4", "what is open stays");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("Operation not permitted"), "and nothing is opened any more: {said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_pod_that_comes_is_denied_what_it_does_not_hold() {
    let Some(node) = Node::new("run") else { return };
    node.make("podold");
    node.hold(&[("old", GPU)]);
    let isolation = node.isolation(Mode::Enforce, WhileAway::Open).unwrap();
    let stop = CancellationToken::new();
    let mut run = tokio::task::JoinSet::new();
    run.spawn({
        let (isolation, stop) = (isolation.clone(), stop.clone());
        async move { isolation.run(stop).await }
    });
    until("the old pod has its own only", || node.opens("podold") == ["ENXIO", "EPERM"]).await;
    node.make("burstable/podgreedy/container");
    until("the new one has none", || node.opens("burstable/podgreedy/container") == ["EPERM", "EPERM"]).await;

    // One that is given a device has it before its container starts.
    node.hold(&[("old", GPU), ("new", OTHER_GPU)]);
    node.make("podnew");
    let resource = ResourceName::new(RESOURCE).unwrap();
    isolation.before_start(&resource, &[DeviceId::new("gpu1").unwrap()]).await.unwrap();
    assert_eq!(node.opens("podnew"), ["EPERM", "ENXIO"]);
    node.start_container("podnew/container", Some("c 195:1 rw")).unwrap();

    stop.cancel();
    run.join_next().await.unwrap().unwrap();
    assert_eq!(node.opens("podold"), ["ENXIO", "ENXIO"], "nothing is refused while an open agent is away");
}

#[tokio::test(flavor = "multi_thread")]
async fn while_no_agent_runs_old_pods_stay_as_they_are_and_new_ones_are_denied_nothing() {
    let Some(node) = Node::new("away") else { return };
    node.make("podold");
    node.hold(&[("old", GPU)]);
    for pod in ["podold", "podnew"] {
        node.make(pod);
        let isolation = node.isolation(Mode::Enforce, WhileAway::Closed).unwrap();
        let stop = CancellationToken::new();
        let mut run = tokio::task::JoinSet::new();
        let stopped = stop.clone();
        run.spawn(async move { isolation.run(stopped).await });
        let expected = if pod == "podold" { ["ENXIO", "EPERM"] } else { ["EPERM", "EPERM"] };
        until("it is denied what it does not hold", || node.opens(pod) == expected).await;
        stop.cancel();
        run.join_next().await.unwrap().unwrap();
        assert_eq!(
            node.opens("podold"),
            ["ENXIO", "EPERM"],
            "while the agent is away, and with the next one"
        );
        if pod == "podold" {
            node.make("podnew");
            assert_eq!(node.opens("podnew"), ["ENXIO", "ENXIO"], "nobody is there to see it come");
        }
    }
}

#[tokio::test]
async fn it_can_only_be_enforced() {
    let Some(node) = Node::new("audit") else { return };
    let error = node.isolation(Mode::Audit, WhileAway::Closed).unwrap_err();
    assert!(error.contains("holds no cgroup v2 hierarchy"), "{error}");
}

/// Where a test of this binary, run again with fewer capabilities, finds the hierarchy.
const CHILD: &str = "SPILLWAY_TEST_CONTROLLER_CHILD";

#[test]
fn one_capability_is_needed_and_enough() {
    if let Ok(found) = std::env::var(CHILD) {
        let (hierarchy, kubepods) = found.split_once(':').unwrap();
        let mut controller = match Controller::open(hierarchy.into()) {
            Ok(controller) => controller,
            Err(error) => panic!("{error}"),
        };
        let kubepods = cgroup::find(Path::new(hierarchy), Some(Path::new(kubepods)), None).unwrap();
        controller.pods(&kubepods).unwrap();
        controller.enforce([GPU].into()).unwrap();
        return;
    }
    let Some(node) = Node::new("capability") else { return };
    node.make("poda");
    let place =
        format!("{}:{}", node.folder.path().join("cgroup/devices").display(), node.kubepods_name().display());
    let with = |capabilities: &str| {
        again_with(capabilities, "controller::one_capability_is_needed_and_enough", (CHILD, &place))
    };
    let (worked, said) = with("-all");
    assert!(!worked && said.contains("CAP_SYS_ADMIN"), "{said}");
    assert_eq!(node.opens("poda"), ["ENXIO", "ENXIO"]);
    let (worked, said) = with("-all,+sys_admin");
    assert!(worked, "{said}");
    assert_eq!(node.opens("poda"), ["EPERM", "ENXIO"]);
}
