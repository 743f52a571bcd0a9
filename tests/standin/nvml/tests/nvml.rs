//! The real NVML back end, through the real `nvml-wrapper`, over the stand-in library: GPUs come, go, break and recover while it looks.

#![allow(clippy::unwrap_used, reason = "every function here is part of a test")]

use std::{fs, future::Future, path::PathBuf, sync::Arc, time::Duration};

use spillway_device_plugin::{
    config::{Config, Overrides},
    device::Health,
    discovery::{Roots, nvml::NvmlBackend, supervise},
    inventory::{BackendState, Inventory},
};
use spillway_tests::standin::{self, GpuStandin};
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
        for (path, ..) in standin::device_nodes(4, 0) {
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
        let yaml = format!("gpu: {{recoverySeconds: 1}}\n{}", self.config);
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
                assert_eq!(gpu.nodes, nodes.map(|name| PathBuf::from("/dev").join(name)));
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
