//! The real NVML back end, through the real `nvml-wrapper`, over the stand-in library: GPUs come, go, break and recover while it looks.

#![allow(clippy::unwrap_used, reason = "every function here is part of a test")]

use std::{
    fs,
    future::Future,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use spillway_device_plugin::{
    config::{Config, Overrides},
    device::{Device, DeviceId, Health},
    discovery::{self, Memory, Roots, Setting, nvml::NvmlBackend, supervise},
    inventory::{BackendState, Inventory},
};
use spillway_tests::standin::{self, GpuStandin, MigStandin};
use tokio::{sync::watch, time::timeout};
use tokio_util::sync::CancellationToken;

struct Machine {
    base: tempfile::TempDir,
    gpus: GpuStandin,
    inventory: watch::Sender<Inventory>,
    /// What the configuration says besides.
    config: &'static str,
    /// The time between two looks.
    interval: Duration,
}

impl Machine {
    fn with_gpus(count: u32) -> Self {
        let base = tempfile::tempdir().unwrap();
        // Cargo puts the library of a package beside its tests.
        let binaries = std::env::current_exe().unwrap().parent().map(PathBuf::from).unwrap();
        standin::install(base.path(), &binaries, count, 0).unwrap();
        let dev = base.path().join("dev");
        fs::create_dir(&dev).unwrap();
        fs::create_dir(dev.join("nvidia-caps")).unwrap();
        for (path, ..) in standin::device_nodes(count.max(4), 0) {
            fs::write(dev.join(path.trim_start_matches("/dev/")), "").unwrap();
        }
        let gpus = GpuStandin::at(base.path());
        let inventory = watch::Sender::new(Inventory::starting(["nvml"]));
        Self { base, gpus, inventory, config: "", interval: Duration::from_millis(100) }
    }

    /// Runs `scenario` beside the back end.
    async fn run(&self, scenario: impl Future<Output = ()>) {
        let roots = Roots {
            sys: self.base.path().join("sys"),
            dev: self.base.path().join("dev"),
            proc: self.base.path().join("proc"),
        };
        let quick = if self.config.contains("recoverySeconds") { "" } else { "gpu: {recoverySeconds: 1}\n" };
        let yaml = format!("{quick}{}", self.config);
        let config = Config::load("test.yaml", yaml.as_bytes(), &Overrides::default()).unwrap().config;
        let root = self.base.path().join("driver");
        let backend = NvmlBackend::new(root, roots, self.interval, Arc::new(config));
        let stop = CancellationToken::new();
        let running = supervise(Box::new(backend), self.inventory.clone(), stop.clone());
        let scenario = async {
            scenario.await;
            stop.cancel();
        };
        let (ended, ()) = tokio::join!(running, scenario);
        ended.unwrap();
    }

    /// Partitions a GPU, and makes the nodes for it.
    fn set_mig(&self, minor: u32, migs: &[MigStandin]) {
        for (path, ..) in migs.iter().flat_map(|mig| mig.device_nodes(minor)) {
            fs::write(self.base.path().join(path.trim_start_matches('/')), "").unwrap();
        }
        self.gpus.set_mig(minor, migs).unwrap();
    }

    /// Takes the driver's folder away, and puts the list of all minors beside it.
    fn hide_capabilities(&self, minor: u32, migs: &[MigStandin]) {
        let proc = self.base.path().join("proc/driver");
        fs::create_dir_all(proc.join("nvidia-caps")).unwrap();
        let line = |mig: &MigStandin| {
            let [gi, ci] = mig.device_nodes(minor).map(|(.., cap)| cap);
            let (instance, place) = (format!("gpu{minor}/gi{}", mig.gi), mig.ci);
            format!("{instance}/access {gi}\n{instance}/ci{place}/access {ci}\n")
        };
        fs::write(proc.join("nvidia-caps/mig-minors"), migs.iter().map(line).collect::<String>()).unwrap();
        fs::remove_dir_all(proc.join("nvidia/capabilities")).unwrap();
    }

    /// Waits until what is offered, as `ID resource` without the resource's domain and with a `!` where it is Unhealthy, is this.
    async fn until_offered(&self, expected: &[String]) {
        let spell = |device: &Device| {
            let kind = device.resource.as_str().trim_start_matches("nvidia.com/");
            format!("{}{} {kind}", if device.health.is_healthy() { "" } else { "!" }, device.id)
        };
        let fits = |inventory: &Inventory| inventory.devices().map(spell).collect::<Vec<_>>() == expected;
        let mut seen = self.inventory.subscribe();
        let waited = timeout(Duration::from_secs(20), seen.wait_for(fits)).await.map(|_| ());
        assert!(waited.is_ok(), "never saw {expected:?}; last: {:#?}", *self.inventory.borrow());
    }

    /// Waits until the GPUs, by minor, have this health: none where healthy, else a part of the reason.
    async fn until(&self, expected: &[(u32, Option<&str>)]) {
        let fits = |inventory: &Inventory| {
            let devices: Vec<_> = inventory.devices().collect();
            devices.len() == expected.len()
                && devices.iter().zip(expected).all(|(device, (minor, part))| {
                    device.id.as_str() == GpuStandin::uuid(*minor)
                        && match (&device.health, part) {
                            (Health::Healthy, None) => true,
                            (Health::Unhealthy(why), Some(part)) => why.contains(part),
                            _ => false,
                        }
                })
        };
        let mut seen = self.inventory.subscribe();
        let waited = timeout(Duration::from_secs(20), seen.wait_for(fits)).await.map(|_| ());
        assert!(waited.is_ok(), "never saw {expected:?}; last: {:#?}", *self.inventory.borrow());
    }
}

#[tokio::test]
async fn gpus_are_found_come_and_go() {
    let machine = Machine::with_gpus(2);
    machine
        .run(async {
            machine.until(&[(0, None), (1, None)]).await;
            {
                let inventory = machine.inventory.borrow();
                let gpu = inventory.devices().next().unwrap();
                let accelerator = &gpu.accelerator;
                assert_eq!(
                    (accelerator.numa_node, accelerator.readings.temperature_celsius),
                    (Some(0), Some(35))
                );
                let nodes = ["nvidia0", "nvidiactl", "nvidia-uvm", "nvidia-uvm-tools", "nvidia-modeset"];
                assert_eq!(*gpu.nodes, nodes.map(|name| PathBuf::from("/dev").join(name)));
            }
            machine.gpus.add(2).unwrap();
            machine.until(&[(0, None), (1, None), (2, None)]).await;
            machine.gpus.remove(0).unwrap();
            machine.until(&[(1, None), (2, None)]).await;
        })
        .await;
}

#[tokio::test]
async fn a_gpu_breaks_alone_and_recovers_by_itself() {
    let machine = Machine::with_gpus(2);
    machine
        .run(async {
            machine.until(&[(0, None), (1, None)]).await;
            // What applications cause is nobody's fault but theirs.
            machine.gpus.xid(0, 13).unwrap();
            machine.gpus.xid(1, 79).unwrap();
            machine.until(&[(0, None), (1, Some("XID 79"))]).await;
            machine.until(&[(0, None), (1, None)]).await;

            machine.gpus.set_recovery_action(0, 2).unwrap();
            machine.until(&[(0, Some("reboot")), (1, None)]).await;
            machine.gpus.set_recovery_action(0, 0).unwrap();
            machine.until(&[(0, None), (1, None)]).await;

            machine.gpus.set_lost(1, true).unwrap();
            machine.until(&[(0, None), (1, Some("lost"))]).await;
            machine.gpus.set_lost(1, false).unwrap();
            machine.until(&[(0, None), (1, None)]).await;
        })
        .await;
}

#[tokio::test]
async fn a_driver_may_come_later_and_sentinels_are_no_numbers() {
    let machine = Machine::with_gpus(1);
    machine.gpus.set_driver_loaded(false).unwrap();
    machine.gpus.set_temperature(0, u32::MAX).unwrap();
    machine
        .run(async {
            let mut seen = machine.inventory.subscribe();
            let unavailable = |inventory: &Inventory| {
                inventory.backends().any(|(_, state)| {
                    matches!(state, BackendState::Unavailable(why) if why.contains("modprobe nvidia"))
                })
            };
            let waited = timeout(Duration::from_secs(20), seen.wait_for(unavailable)).await.map(|_| ());
            assert!(waited.is_ok(), "never unavailable; last: {:#?}", *machine.inventory.borrow());
            machine.gpus.set_driver_loaded(true).unwrap();
            machine.until(&[(0, None)]).await;
            let inventory = machine.inventory.borrow();
            assert_eq!(inventory.devices().next().unwrap().accelerator.readings.temperature_celsius, None);
        })
        .await;
}

#[tokio::test]
async fn partitions_come_and_go_while_it_looks() {
    let small = [1, 2, 3].map(|gi| MigStandin::new(gi, "1g.5gb"));
    let (large, shared) = (MigStandin::new(1, "3g.20gb"), MigStandin { gi: 5, ci: 1, profile: "1c.2g.10gb" });
    let mut machine = Machine::with_gpus(2);
    machine.config = "flags: {migStrategy: mixed}";
    // Looks are rare: only its pulse can tell it.
    machine.interval = Duration::from_mins(10);
    machine.set_mig(0, &small);
    let gpu = |minor| format!("{} gpu", GpuStandin::uuid(minor));
    let mig = |mig: MigStandin| format!("{} mig-{}", mig.uuid(0), mig.profile);
    machine
        .run(async {
            machine.until_offered(&[vec![gpu(1)], small.map(mig).to_vec()].concat()).await;
            {
                let inventory = machine.inventory.borrow();
                let first = inventory.devices().nth(1).unwrap();
                let caps = small[0].device_nodes(0).map(|(path, ..)| path);
                let expected = ["/dev/nvidia0", &caps[0], &caps[1], "/dev/nvidiactl", "/dev/nvidia-uvm"];
                assert_eq!(first.nodes[..5], expected.map(PathBuf::from));
                let partition = first.partition.as_ref().unwrap();
                assert_eq!((partition.memory_mib, partition.instance), (Some(4864), Some((1, 0))));
                assert_eq!(inventory.labels()["nvidia.com/mig-1g.5gb.count"], "3");
                assert_eq!(
                    inventory.labels()["nvidia.com/mig-1g.5gb.product"],
                    "NVIDIA-Standin-40GB-MIG-1g.5gb"
                );
            }
            // A compute instance that is not all of its GPU instance is not offered.
            machine.set_mig(0, &[large, shared]);
            machine.until_offered(&[gpu(1), mig(large)]).await;
            machine.gpus.disable_mig(0).unwrap();
            machine.until_offered(&[gpu(0), gpu(1)]).await;
            machine.set_mig(1, &small[..1]);
            machine.until_offered(&[gpu(0), format!("{} mig-1g.5gb", small[0].uuid(1))]).await;
            // Where the runtime hides what the driver shows, there is the list of all minors, and NVML tells of changes.
            machine.hide_capabilities(1, &small);
            machine.until_offered(&[gpu(0), format!("{} mig-1g.5gb", small[0].uuid(1))]).await;
            machine.set_mig(1, &small[1..]);
            machine.hide_capabilities(1, &small);
            let rest = small[1..].iter().map(|mig| format!("{} mig-1g.5gb", mig.uuid(1)));
            machine.until_offered(&[vec![gpu(0)], rest.collect()].concat()).await;
        })
        .await;
}

#[tokio::test]
async fn single_offers_partitions_as_gpus() {
    let small = [1, 2].map(|gi| MigStandin::new(gi, "1g.5gb"));
    let mut machine = Machine::with_gpus(1);
    machine.config = "flags: {migStrategy: single}";
    machine.set_mig(0, &small);
    let offered = |mark: &str, migs: &[MigStandin]| {
        migs.iter().map(|mig| format!("{mark}{} gpu", mig.uuid(0))).collect::<Vec<_>>()
    };
    machine
        .run(async {
            machine.until_offered(&offered("", &small)).await;
            let unequal = [small[0], MigStandin::new(2, "3g.20gb")];
            machine.set_mig(0, &unequal);
            machine.until_offered(&offered("!", &unequal)).await;
            machine.set_mig(0, &[]);
            machine.until_offered(&[format!("!{} gpu", GpuStandin::uuid(0))]).await;
            machine.gpus.disable_mig(0).unwrap();
            machine.until_offered(&[format!("{} gpu", GpuStandin::uuid(0))]).await;
        })
        .await;
}

#[tokio::test]
async fn an_xid_reaches_the_partition_it_names_and_a_gpus_sickness_all_of_them() {
    let small = [1, 2, 3].map(|gi| MigStandin::new(gi, "1g.5gb"));
    let mut machine = Machine::with_gpus(1);
    machine.config = "flags: {migStrategy: mixed}";
    machine.set_mig(0, &small);
    let offered = |sick: &[usize]| {
        let spell = |(place, mig): (usize, &MigStandin)| {
            format!("{}{} mig-1g.5gb", if sick.contains(&place) { "!" } else { "" }, mig.uuid(0))
        };
        small.iter().enumerate().map(spell).collect::<Vec<_>>()
    };
    machine
        .run(async {
            machine.until_offered(&offered(&[])).await;
            machine.gpus.xid_of(0, small[1], 94).unwrap();
            machine.until_offered(&offered(&[1])).await;
            machine.until_offered(&offered(&[])).await;
            machine.gpus.xid(0, 94).unwrap();
            machine.until_offered(&offered(&[0, 1, 2])).await;
            machine.until_offered(&offered(&[])).await;
        })
        .await;
}

#[tokio::test]
async fn what_wears_out_is_unhealthy_until_it_is_mended() {
    let machine = Machine::with_gpus(2);
    machine.gpus.connect(0, 1, 2).unwrap();
    machine
        .run(async {
            machine.until(&[(0, None), (1, None)]).await;
            for (attribute, broken, sane, part) in [
                ("ecc-uncorrected", "1", "1", "1 new uncorrected"),
                ("remapped-failure", "1", "0", "no spare rows"),
                ("remapped-pending", "1", "0", "next reset"),
                ("retired-pending", "1", "0", "retired"),
                ("nvlinks/2", "down", "up 00000000:11:00.0", "NVLink 2 is down"),
                ("temperature", "91", "60", "slows down (from 90"),
            ] {
                machine.gpus.set(0, attribute, broken).unwrap();
                machine.until(&[(0, Some(part)), (1, None)]).await;
                machine.gpus.set(0, attribute, sane).unwrap();
                machine.until(&[(0, None), (1, None)]).await;
            }
        })
        .await;
}

#[tokio::test]
async fn every_fault_is_noticed_between_looks() {
    let faults = [
        ("ecc-uncorrected", "1", "1 new uncorrected"),
        ("remapped-failure", "1", "no spare rows"),
        ("remapped-pending", "1", "next reset"),
        ("retired-pending", "1", "retired"),
        ("nvlinks/7", "down", "NVLink 7 is down"),
        ("nvlink-recovery", "3", "2 new NVLink recovery errors"),
        ("temperature", "91", "slows down (from 90"),
        ("clocks-event-reasons", "64", "hardware slows it down"),
        ("recovery-action", "1", "a reset of the GPU"),
        ("lost", "", "lost"),
    ];
    let count = u32::try_from(faults.len()).unwrap();
    let mut machine = Machine::with_gpus(count);
    // Looks are rare: only its pulse can tell it.
    machine.interval = Duration::from_mins(10);
    machine.config = "gpu: {recoverySeconds: 3600}";
    for gpu in 0..count {
        machine.gpus.set(gpu, "nvlinks/7", "up 00000000:11:00.0").unwrap();
        machine.gpus.set(gpu, "nvlink-recovery", 1).unwrap();
    }
    machine
        .run(async {
            let mut expected: Vec<_> = (0..count).map(|gpu| (gpu, None)).collect();
            machine.until(&expected).await;
            for (gpu, (attribute, broken, part)) in (0..).zip(faults) {
                let begin = Instant::now();
                machine.gpus.set(gpu, attribute, broken).unwrap();
                expected[gpu as usize].1 = Some(part);
                machine.until(&expected).await;
                println!("{attribute}: {} ms", begin.elapsed().as_millis());
            }
        })
        .await;
}

#[tokio::test]
async fn what_a_newer_driver_tells_is_acted_upon_at_once() {
    let mut machine = Machine::with_gpus(3);
    machine.interval = Duration::from_mins(10);
    machine.config = "gpu: {recoverySeconds: 3600}";
    // All kinds, and on the second only those of old drivers.
    machine.gpus.set(0, "event-types", 0xff9f).unwrap();
    machine.gpus.set(1, "event-types", 0x1f).unwrap();
    machine
        .run(async {
            machine.until(&[(0, None), (1, None), (2, None)]).await;
            for gpu in 0..3 {
                machine.gpus.tell(gpu, 0x10).unwrap();
                machine.gpus.tell(gpu, 0x4000).unwrap();
            }
            machine.until(&[(0, Some("unavailable")), (1, None), (2, None)]).await;
            machine.gpus.xid(1, 79).unwrap();
            machine.gpus.xid(2, 48).unwrap();
            machine.until(&[(0, Some("unavailable")), (1, Some("XID 79")), (2, Some("XID 48"))]).await;
        })
        .await;
}

#[tokio::test]
async fn a_compute_instance_that_takes_anothers_place_is_noticed_between_looks() {
    let small = [1, 2].map(|gi| MigStandin::new(gi, "1g.5gb"));
    let mut machine = Machine::with_gpus(1);
    machine.interval = Duration::from_mins(10);
    machine.config = "flags: {migStrategy: mixed}";
    machine.set_mig(0, &small);
    let offered = |first: String| {
        let mut offered = [first, small[1].uuid(0)].map(|uuid| format!("{uuid} mig-1g.5gb"));
        offered.sort();
        offered
    };
    machine
        .run(async {
            machine.until_offered(&offered(small[0].uuid(0))).await;
            let other = machine.gpus.replace_mig(0, small[0]).unwrap();
            assert_ne!(other, small[0].uuid(0));
            machine.until_offered(&offered(other)).await;
        })
        .await;
}

#[tokio::test]
async fn links_sensors_and_processes_are_read_and_sentinels_are_not() {
    let machine = Machine::with_gpus(3);
    machine.gpus.connect(0, 1, 4).unwrap();
    machine.gpus.set(0, &format!("topology/{}", GpuStandin::uuid(2)), 30).unwrap();
    machine.gpus.set(0, "utilization", 70).unwrap();
    machine.gpus.set(0, "memory-used", 1024).unwrap();
    machine.gpus.set(0, "processes", "4711 512 compute\n4711 100 graphics\n99 - mps").unwrap();
    for sensor in ["power", "utilization", "temperature", "ecc-uncorrected", "remapped-pending"] {
        machine.gpus.set(1, sensor, u32::MAX).unwrap();
    }
    machine.gpus.set(1, "ecc-uncorrected", u64::MAX).unwrap();
    machine.gpus.set(1, "memory-total", u64::MAX).unwrap();
    machine
        .run(async {
            machine.until(&[(0, None), (1, None), (2, None)]).await;
            let inventory = machine.inventory.borrow();
            let accelerator = |place| &inventory.devices().nth(place).unwrap().accelerator;
            let id = |minor| DeviceId::new(GpuStandin::uuid(minor)).unwrap();
            assert_eq!(accelerator(0).links, [(id(1), 400), (id(2), 20)].into());
            assert_eq!(accelerator(2).links, [(id(0), 20)].into());
            let readings = &accelerator(0).readings;
            assert_eq!((readings.power_milliwatts, readings.utilization_percent), (Some(50000), Some(70)));
            assert_eq!(readings.memory_used_mib, Some(1024));
            let processes: Vec<_> =
                readings.processes.iter().map(|process| (process.pid, process.memory_mib)).collect();
            assert_eq!(processes, [(99, None), (4711, Some(512))]);
            let readings = &accelerator(1).readings;
            assert_eq!((readings.power_milliwatts, readings.utilization_percent), (None, None));
            assert_eq!((readings.temperature_celsius, accelerator(1).memory_mib), (None, None));
            assert_eq!(readings.errors.get("ecc_uncorrected"), None);
        })
        .await;
}

#[tokio::test]
async fn who_computes_how_much_is_told_where_the_driver_tells() {
    let mut machine = Machine::with_gpus(4);
    machine.config = "flags: {migStrategy: mixed}";
    let mig = [MigStandin::new(1, "1g.5gb"), MigStandin { gi: 2, ci: 1, profile: "1c.2g.10gb" }];
    for gpu in 0..3 {
        machine.gpus.set(gpu, "memory-used", 1000).unwrap();
    }
    machine.gpus.set(0, "processes", "10 500 compute\n11 500 graphics").unwrap();
    machine.gpus.set(0, "process-utilization", "10 70").unwrap();
    machine.gpus.set(1, "processes", "12 1000 compute").unwrap();
    machine.gpus.set(2, "processes", "13 1000 mps").unwrap();
    machine.gpus.set(2, "process-utilization", "13 1").unwrap();
    machine.set_mig(3, &mig);
    machine.gpus.set(3, "gpm", "").unwrap();
    machine.gpus.set(3, &format!("mig/{}/utilization", mig[0].uuid(3)), "12.4").unwrap();
    let partition = DeviceId::new(mig[0].uuid(3)).unwrap();
    machine
        .run(async {
            let measured = |inventory: &Inventory| {
                let shares =
                    |device: &Device| device.accelerator.readings.partition_utilization_percent.clone();
                inventory.devices().any(|device| shares(device) == [(partition.clone(), 12)].into())
            };
            let mut seen = machine.inventory.subscribe();
            let waited = timeout(Duration::from_secs(20), seen.wait_for(measured)).await.map(|_| ());
            assert!(waited.is_ok(), "never measured; last: {:#?}", *machine.inventory.borrow());
            let told = |gpu: usize| {
                let inventory = machine.inventory.borrow();
                let uuid = GpuStandin::uuid(u32::try_from(gpu).unwrap());
                let mut devices = inventory.devices();
                let device = devices.find(|device| device.accelerator.id.as_str() == uuid).unwrap();
                device.accelerator.readings.process_utilization_percent.clone()
            };
            assert_eq!(told(0), Some([(10, 70)].into()));
            assert_eq!(told(1), None, "this driver doesn't tell");
            assert_eq!(told(2), None, "it would be the server's");
            // A process that goes takes its memory with it, and is seen to.
            machine.gpus.set(0, "processes", "").unwrap();
            machine.gpus.set(0, "memory-used", 1).unwrap();
            let gone = |inventory: &Inventory| {
                let mut devices = inventory.devices();
                devices.all(|device| {
                    device.accelerator.readings.processes.iter().all(|process| process.pid > 11)
                })
            };
            timeout(Duration::from_secs(20), seen.wait_for(gone)).await.unwrap().unwrap();
        })
        .await;
}

#[tokio::test]
async fn a_driver_that_goes_and_comes_is_noticed_between_looks() {
    let mut machine = Machine::with_gpus(1);
    machine.interval = Duration::from_mins(10);
    machine
        .run(async {
            machine.until(&[(0, None)]).await;
            for _ in 0..2 {
                machine.gpus.set_driver_loaded(false).unwrap();
                machine.until(&[(0, Some("driver"))]).await;
                machine.gpus.set_driver_loaded(true).unwrap();
                machine.until(&[(0, None)]).await;
            }
        })
        .await;
}

#[tokio::test]
async fn a_new_configuration_forgets_no_fault() {
    let machine = Machine::with_gpus(2);
    let root = machine.base.path().join("driver");
    let config = |strategy: &str| {
        let yaml = format!(
            "gpu: {{recoverySeconds: 3600}}\nflags: {{migStrategy: {strategy}, plugin: {{containerDriverRoot: {}}}}}",
            root.display()
        );
        Arc::new(Config::load("test.yaml", yaml.as_bytes(), &Overrides::default()).unwrap().config)
    };
    let at = |folder: &str| machine.base.path().join(folder);
    let setting = Setting {
        roots: Roots { sys: at("sys"), dev: at("dev"), proc: at("proc") },
        interval: Duration::from_millis(100),
        config: config("none"),
        memory: Memory::default(),
    };
    let configs = watch::Sender::new(setting.config.clone());
    let stop = CancellationToken::new();
    let running = discovery::run(setting, configs.subscribe(), machine.inventory.clone(), stop.clone());
    let scenario = async {
        machine.until(&[(0, None), (1, None)]).await;
        machine.gpus.xid(1, 79).unwrap();
        machine.until(&[(0, None), (1, Some("XID 79"))]).await;
        configs.send(config("mixed")).unwrap();
        let mut seen = machine.inventory.subscribe();
        let labelled = |inventory: &Inventory| inventory.labels().contains_key("nvidia.com/mig.strategy");
        timeout(Duration::from_secs(20), seen.wait_for(labelled)).await.unwrap().unwrap();
        // The successor has labelled; now it has looked, too.
        machine.gpus.set_temperature(0, 44).unwrap();
        let looked = |inventory: &Inventory| {
            let mut devices = inventory.devices();
            devices.any(|device| device.accelerator.readings.temperature_celsius == Some(44))
        };
        timeout(Duration::from_secs(20), seen.wait_for(looked)).await.unwrap().unwrap();
        machine.until(&[(0, None), (1, Some("XID 79"))]).await;
        stop.cancel();
    };
    let (ended, ()) = tokio::join!(running, scenario);
    ended.unwrap();
}
