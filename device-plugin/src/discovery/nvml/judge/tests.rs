use std::{collections::BTreeMap, fs};

use nvml_wrapper_sys::bindings::{
    nvmlEventMigConfigChange, nvmlEventTypeClock, nvmlEventTypeDoubleBitEccError,
    nvmlEventTypeGpuRecoveryAction, nvmlEventTypeGpuUnavailableError, nvmlEventTypeXidCriticalError,
};

use super::*;
use crate::{
    discovery::nvml::{
        look::Fixed,
        mig::{Mig, Profile},
        vitals::Vitals,
    },
    health::memo::tests::memos,
};

const QUIET: Duration = Duration::from_mins(5);

/// A machine's `/sys`, `/dev` and `/proc` with the driver's nodes for GPUs 0 and 1, and a judge over them.
struct Machine {
    folder: tempfile::TempDir,
    roots: Roots,
    rules: Rules,
    judge: Judge,
    now: Instant,
}

impl Machine {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let at = |path: &str| folder.path().join(path);
        let roots = Roots { sys: at("sys"), dev: at("dev"), proc: at("proc") };
        fs::create_dir_all(roots.dev.join("nvidia-caps")).unwrap();
        for node in ["nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm"] {
            fs::write(roots.dev.join(node), "").unwrap();
        }
        let pci = roots.sys.join("bus/pci/devices/0000:3b:00.0");
        fs::create_dir_all(&pci).unwrap();
        fs::write(pci.join("numa_node"), "1\n").unwrap();
        let rules = Rules {
            mig: MigStrategy::None,
            imex: Imex::default(),
            gpu: GpuConfig::default(),
            xids_disabled: false,
        };
        Self { folder, roots, rules, judge: Judge::new(QUIET), now: Instant::now() }
    }

    fn with(strategy: MigStrategy) -> Self {
        let mut machine = Self::new();
        machine.rules.mig = strategy;
        // GPU instances 1 to 3 of GPU 0, each of one compute instance.
        for instance in 1..4 {
            let gpu = format!("driver/nvidia/capabilities/gpu0/mig/gi{instance}");
            for (path, minor) in [("access", instance * 10), ("ci0/access", instance * 10 + 1)] {
                let path = machine.roots.proc.join(&gpu).join(path);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, format!("DeviceFileMinor: {minor}\n")).unwrap();
                fs::write(machine.roots.dev.join(format!("nvidia-caps/nvidia-cap{minor}")), "").unwrap();
            }
        }
        machine
    }

    fn see(&mut self, gpus: &[Gpu]) -> Vec<Device> {
        self.look(&Look { gpus: gpus.to_vec(), ..Look::default() })
    }

    fn look(&mut self, look: &Look) -> Vec<Device> {
        self.judge.devices(look, &self.rules, &self.roots, self.now)
    }

    fn xid(&mut self, gpu: Option<u32>, xid: u64, instance: Option<u32>) -> bool {
        let event = Event {
            uuid: gpu.map(|minor| format!("GPU-{minor}")),
            kind: nvmlEventTypeXidCriticalError.into(),
            xid: Some(xid),
            gpu_instance: instance,
            compute_instance: instance.map(|_| 0),
        };
        self.judge.event(&event, &self.rules, self.now) == Urgency::Tell
    }

    fn event(&mut self, gpu: u32, kind: u32) -> Urgency {
        let event = Event {
            uuid: Some(format!("GPU-{gpu}")),
            kind: kind.into(),
            xid: None,
            gpu_instance: Some(2),
            compute_instance: Some(0),
        };
        self.judge.event(&event, &self.rules, self.now)
    }
}

fn gpu(minor: u32) -> Gpu {
    Gpu {
        id: DeviceId::new(format!("GPU-{minor}")).unwrap(),
        index: minor,
        fixed: Fixed {
            minor: Some(minor),
            pci_address: Some("0000:3b:00.0".to_owned()),
            product: Some("NVIDIA A100-SXM4-40GB".to_owned()),
            memory_mib: Some(40960),
            ..Fixed::default()
        },
        mig: Mig::Incapable,
        readings: Readings { temperature_celsius: Some(40), ..Readings::default() },
        vitals: Vitals::default(),
    }
}

fn partitioned(minor: u32, profiles: &[&str]) -> Gpu {
    let instance = |(number, profile): (u32, &&str)| Instance {
        id: DeviceId::new(format!("MIG-{minor}-{number}")).unwrap(),
        index: number,
        gi: number,
        ci: 0,
        profile: Profile::parse(profile).unwrap(),
        attributes: None,
    };
    Gpu { mig: Mig::On((1..).zip(profiles).map(instance).collect()), ..gpu(minor) }
}

fn health(devices: &[Device], id: &str) -> Health {
    devices.iter().find(|device| device.id.as_str() == id).expect("the device is listed").health.clone()
}

fn unhealthy(why: &str) -> Health {
    Health::Unhealthy(why.to_owned())
}

/// The IDs of the devices that may not be handed out.
fn sick(devices: &[Device]) -> Vec<&str> {
    devices.iter().filter(|device| !device.health.is_healthy()).map(|device| device.id.as_str()).collect()
}

#[test]
fn a_gpu_comes_with_its_nodes_its_place_and_its_links() {
    let mut machine = Machine::new();
    let other = DeviceId::new("GPU-1").unwrap();
    let links = BTreeMap::from([(other.clone(), 200)]);
    let look = Look {
        gpus: vec![gpu(0)],
        links: BTreeMap::from([(DeviceId::new("GPU-0").unwrap(), links.clone())]),
        ..Look::default()
    };
    assert_eq!(
        machine.look(&look),
        [Device {
            id: DeviceId::new("GPU-0").unwrap(),
            resource: mig::gpu_resource(),
            health: Health::Healthy,
            nodes: ["/dev/nvidia0", "/dev/nvidiactl", "/dev/nvidia-uvm"].map(PathBuf::from).into(),
            listed_in: Some("NVIDIA_VISIBLE_DEVICES"),
            accelerator: Arc::new(Accelerator {
                index: Some(0),
                product: Some("NVIDIA A100-SXM4-40GB".to_owned()),
                pci_address: Some("0000:3b:00.0".to_owned()),
                numa_node: Some(1),
                memory_mib: Some(40960),
                links,
                readings: Readings { temperature_celsius: Some(40), ..Readings::default() },
                ..Accelerator::new(DeviceId::new("GPU-0").unwrap())
            }),
            partition: None,
            replica: None,
        }]
    );
}

#[test]
fn a_partition_comes_with_the_nodes_that_open_it() {
    let mut machine = Machine::with(MigStrategy::Mixed);
    let devices = machine.see(&[partitioned(0, &["1g.5gb", "2g.10gb"]), gpu(1)]);
    let spelled: Vec<_> =
        devices.iter().map(|device| (device.id.as_str(), device.resource.as_str())).collect();
    assert_eq!(
        spelled,
        [
            ("MIG-0-1", "nvidia.com/mig-1g.5gb"),
            ("MIG-0-2", "nvidia.com/mig-2g.10gb"),
            ("GPU-1", "nvidia.com/gpu")
        ]
    );
    let nodes =
        ["nvidia0", "nvidia-caps/nvidia-cap20", "nvidia-caps/nvidia-cap21", "nvidiactl", "nvidia-uvm"];
    assert_eq!(*devices[1].nodes, nodes.map(|node| PathBuf::from("/dev").join(node)));
    let partition = devices[1].partition.as_ref().unwrap();
    assert_eq!((partition.profile.as_str(), partition.instance), ("2g.10gb", Some((2, 0))));
    assert_eq!(sick(&devices), [""; 0]);

    // Without the node nobody could use it; without what the driver says of it, too.
    fs::remove_file(machine.folder.path().join("dev/nvidia-caps/nvidia-cap21")).unwrap();
    let devices = machine.see(&[partitioned(0, &["1g.5gb", "2g.10gb", "1g.5gb", "1g.5gb"])]);
    assert_eq!(health(&devices, "MIG-0-2"), unhealthy("the host has no /dev/nvidia-caps/nvidia-cap21"));
    assert!(matches!(health(&devices, "MIG-0-4"), Health::Unhealthy(why) if why.contains("gi4 of GPU 0")));
    assert_eq!(sick(&devices), ["MIG-0-2", "MIG-0-4"]);
}

#[test]
fn a_layout_that_single_cannot_offer_is_refused_with_the_reason() {
    let mut machine = Machine::with(MigStrategy::Single);
    assert_eq!(sick(&machine.see(&[partitioned(0, &["1g.5gb", "1g.5gb"])])), [""; 0]);
    let devices = machine.see(&[partitioned(0, &["1g.5gb", "2g.10gb"])]);
    assert_eq!(sick(&devices), ["MIG-0-1", "MIG-0-2"]);
    assert!(matches!(health(&devices, "MIG-0-1"), Health::Unhealthy(why) if why.contains("1g.5gb, 2g.10gb")));
    // As soon as it can, it does.
    assert_eq!(sick(&machine.see(&[partitioned(0, &["2g.10gb"])])), [""; 0]);
}

#[test]
fn a_gpu_whose_node_is_missing_cannot_be_handed_out() {
    let mut machine = Machine::new();
    let nameless = Gpu { fixed: Fixed::default(), ..gpu(0) };
    let devices = machine.see(&[nameless, gpu(7)]);
    assert_eq!(health(&devices, "GPU-0"), unhealthy("NVML names no device node"));
    assert_eq!(health(&devices, "GPU-7"), unhealthy("the host has no /dev/nvidia7"));
}

#[test]
fn a_lost_gpu_stays_listed_and_a_gone_one_does_not() {
    let mut machine = Machine::with(MigStrategy::Mixed);
    machine.see(&[partitioned(0, &["1g.5gb", "1g.5gb"]), gpu(1)]);

    let lost = Look {
        unreadable: BTreeMap::from([(0, "fell off the bus".to_owned())]),
        gpus: vec![gpu(1)],
        ..Look::default()
    };
    let devices = machine.look(&lost);
    assert_eq!(sick(&devices), ["MIG-0-1", "MIG-0-2"], "both of its partitions are lost");
    assert_eq!(health(&devices, "MIG-0-2"), unhealthy("lost: fell off the bus"));
    // However long it lasts.
    machine.now += QUIET * 3;
    assert_eq!(sick(&machine.look(&lost)).len(), 2);

    assert_eq!(machine.see(&[gpu(1)]).len(), 1);
    // Put in again, it starts afresh.
    assert_eq!(sick(&machine.see(&[partitioned(0, &["1g.5gb"]), gpu(1)])), [""; 0]);
}

#[test]
fn the_next_agent_knows_what_this_one_saw() {
    let mut machine = Machine::with(MigStrategy::Mixed);
    let kept = tempfile::tempdir().unwrap();
    let memos = memos(kept.path(), "this boot");
    let restart = |machine: &mut Machine, memos| {
        machine.judge = Judge::new(QUIET).remembering(memos, "nvml", machine.now);
    };
    let gpus = [partitioned(0, &["1g.5gb", "1g.5gb"]), gpu(1)];
    restart(&mut machine, &memos);
    assert_eq!(sick(&machine.see(&gpus)), [""; 0]);
    machine.xid(Some(1), 79, None);
    machine.xid(Some(0), 94, Some(2));

    // Killed at that moment; the next one starts when most of the quiet time is over.
    machine.now += QUIET * 3 / 4;
    restart(&mut machine, &memos);
    let devices = machine.see(&gpus);
    assert_eq!(sick(&devices), ["MIG-0-2", "GPU-1"]);
    assert_eq!(health(&devices, "GPU-1"), unhealthy("XID 79"));
    // Nobody watched meanwhile, so the device has to be quiet anew; nothing that is looked for in vain is forgotten.
    machine.now += QUIET * 3 / 4;
    let lost = Look {
        unreadable: BTreeMap::from([(1, "fell off the bus".to_owned())]),
        gpus: gpus[..1].to_vec(),
        ..Look::default()
    };
    restart(&mut machine, &memos);
    machine.look(&lost);
    machine.now += QUIET;
    machine.look(&lost);
    assert_eq!(sick(&machine.see(&gpus)), ["GPU-1"], "what can't be read is not quiet");
    machine.xid(Some(0), 94, Some(2));
    restart(&mut machine, &memos);
    assert_eq!(sick(&machine.see(&gpus)), ["MIG-0-2", "GPU-1"]);
    machine.now += QUIET;
    assert_eq!(sick(&machine.see(&gpus)), [""; 0]);
    restart(&mut machine, &memos);
    assert_eq!(sick(&machine.see(&gpus)), [""; 0]);
    assert!(!memos.folder.exists(), "nothing is wrong, but something was left");

    machine.xid(Some(1), 79, None);
    let rebooted = self::memos(kept.path(), "the next boot");
    restart(&mut machine, &rebooted);
    assert_eq!(sick(&machine.see(&gpus)), [""; 0]);
}

#[test]
fn a_gpu_recovers_only_when_the_driver_asks_for_nothing() {
    let mut machine = Machine::new();
    let asking = Gpu { vitals: Vitals { recovery: Some(1), ..Vitals::default() }, ..gpu(0) };
    assert_eq!(
        health(&machine.see(std::slice::from_ref(&asking)), "GPU-0"),
        unhealthy("the driver asks for a reset of the GPU")
    );
    machine.now += QUIET * 2;
    assert_eq!(sick(&machine.see(&[asking])), ["GPU-0"]);
    machine.now += QUIET / 2;
    assert_eq!(sick(&machine.see(&[gpu(0)])), ["GPU-0"]);
    machine.now += QUIET / 2;
    assert_eq!(sick(&machine.see(&[gpu(0)])), [""; 0]);
}

#[test]
fn an_error_counter_that_grows_is_a_fault_and_one_that_stands_is_none() {
    let mut machine = Machine::new();
    let count = |name: &'static str, errors: u64| {
        let mut gpu = gpu(0);
        gpu.readings.errors.insert(name, errors);
        gpu
    };
    // Errors of before the agent was there.
    assert_eq!(sick(&machine.see(&[count("ecc_uncorrected", 7)])), [""; 0]);
    let devices = machine.see(&[count("ecc_uncorrected", 9)]);
    assert_eq!(health(&devices, "GPU-0"), unhealthy("2 new uncorrected memory errors"));
    machine.now += QUIET;
    assert_eq!(sick(&machine.see(&[count("ecc_uncorrected", 9)])), [""; 0], "it has been quiet for long");
    assert_eq!(sick(&machine.see(&[count("ecc_uncorrected", 0)])), [""; 0], "a reset is no error");
    assert_eq!(sick(&machine.see(&[count("ecc_corrected", 0)])), [""; 0]);
    assert_eq!(sick(&machine.see(&[count("ecc_corrected", 1000)])), [""; 0], "what was corrected is sane");
    assert_eq!(sick(&machine.see(&[count("nvlink_replay", 0)])), [""; 0]);
    assert_eq!(sick(&machine.see(&[count("nvlink_replay", 1)])), ["GPU-0"]);
}

#[test]
fn an_xid_hits_what_it_names() {
    let mut machine = Machine::with(MigStrategy::Mixed);
    let gpus = [partitioned(0, &["1g.5gb", "1g.5gb", "1g.5gb"]), gpu(1)];
    let after = |xid: &dyn Fn(&mut Machine) -> bool, machine: &mut Machine| {
        machine.now += QUIET * 2;
        machine.see(&gpus);
        let news = xid(machine);
        let devices = machine.see(&gpus);
        let sick: Vec<_> = sick(&devices).into_iter().map(str::to_owned).collect();
        assert_eq!(news, !sick.is_empty());
        sick
    };
    let whole = ["MIG-0-1", "MIG-0-2", "MIG-0-3"];
    assert_eq!(after(&|machine| machine.xid(Some(0), 94, Some(2)), &mut machine), ["MIG-0-2"]);
    assert_eq!(after(&|machine| machine.xid(Some(0), 94, None), &mut machine), whole);
    assert_eq!(
        after(&|machine| machine.xid(Some(0), 94, Some(9)), &mut machine),
        whole,
        "an instance of nobody"
    );
    assert_eq!(after(&|machine| machine.xid(Some(0), 79, Some(2)), &mut machine), whole, "the whole GPU's");
    assert_eq!(after(&|machine| machine.xid(Some(1), 48, None), &mut machine), ["GPU-1"]);
    assert_eq!(after(&|machine| machine.xid(None, 48, None), &mut machine).len(), 4, "it may be any of them");
    assert_eq!(after(&|machine| machine.xid(Some(0), 13, None), &mut machine), [""; 0], "an application's");

    machine.rules.gpu.ignored_xids = vec![48];
    assert_eq!(after(&|machine| machine.xid(Some(1), 48, None), &mut machine), [""; 0]);
    assert_eq!(after(&|machine| machine.xid(Some(1), 13, None), &mut machine), ["GPU-1"]);
    machine.rules.xids_disabled = true;
    assert_eq!(after(&|machine| machine.xid(Some(1), 79, None), &mut machine), [""; 0]);

    let devices = machine.see(&gpus);
    let counted = &devices.last().unwrap().accelerator.readings.xids;
    assert_eq!(*counted, BTreeMap::from([(13, 1), (48, 2), (79, 1)]), "ignored ones are counted, too");
}

#[test]
fn events_of_newer_drivers_are_faults_or_ask_for_an_answer() {
    let mut machine = Machine::with(MigStrategy::Mixed);
    let gpus = [partitioned(0, &["1g.5gb", "1g.5gb"]), gpu(1)];
    machine.see(&gpus);
    for (kind, urgency) in [
        (nvmlEventTypeDoubleBitEccError, Urgency::Ask),
        (nvmlEventTypeGpuRecoveryAction, Urgency::Ask),
        (nvmlEventMigConfigChange, Urgency::Look),
        (nvmlEventTypeClock, Urgency::None),
        // Without its number an XID says nothing.
        (nvmlEventTypeXidCriticalError, Urgency::None),
    ] {
        assert_eq!(machine.event(0, kind), urgency, "{kind}");
    }
    assert_eq!(sick(&machine.see(&gpus)), [""; 0]);
    assert_eq!(machine.event(0, nvmlEventTypeGpuUnavailableError), Urgency::Tell);
    let devices = machine.see(&gpus);
    assert_eq!(sick(&devices), ["MIG-0-1", "MIG-0-2"], "it is the GPU's, whichever instance is named");
    assert_eq!(health(&devices, "MIG-0-1"), unhealthy("the driver says that it is unavailable"));
}

#[test]
fn what_the_machine_does_not_know_is_absent() {
    let machine = Machine::new();
    let sys = &machine.roots.sys;
    assert_eq!(numa_node(sys, "0000:3b:00.0"), Some(1));
    for nonsense in ["-1\n", "", "\u{fffd}\u{0}", "4294967296"] {
        fs::write(sys.join("bus/pci/devices/0000:3b:00.0/numa_node"), nonsense).unwrap();
        assert_eq!(numa_node(sys, "0000:3b:00.0"), None, "{nonsense:?}");
    }
    assert_eq!(numa_node(sys, "0000:ff:00.0"), None);
}
