use super::*;

/// A machine's `/sys` and `/dev` with the driver's nodes for GPUs 0 and 1, and a back end over them.
fn machine() -> (tempfile::TempDir, NvmlBackend) {
    let folder = tempfile::tempdir().unwrap();
    let roots = Roots {
        sys: folder.path().join("sys"),
        dev: folder.path().join("dev"),
        proc: folder.path().join("proc"),
    };
    fs::create_dir_all(&roots.dev).unwrap();
    for node in ["nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm"] {
        fs::write(roots.dev.join(node), "").unwrap();
    }
    let pci = roots.sys.join("bus/pci/devices/0000:3b:00.0");
    fs::create_dir_all(&pci).unwrap();
    fs::write(pci.join("numa_node"), "1\n").unwrap();
    let backend = NvmlBackend::new(PathBuf::from("/"), roots, Duration::from_secs(5), GpuConfig::default());
    (folder, backend)
}

fn gpu(minor: u32) -> Gpu {
    Gpu {
        id: DeviceId::new(format!("GPU-{minor}")).unwrap(),
        minor: Some(minor),
        pci_address: Some("0000:3b:00.0".to_owned()),
        temperature_celsius: Some(40),
        recovery: None,
    }
}

fn seen(gpus: &[Gpu]) -> Look {
    Look { gpus: gpus.to_vec(), unreadable: BTreeMap::new() }
}

fn health(devices: &[Device], id: &str) -> Health {
    devices.iter().find(|device| device.id.as_str() == id).expect("the device is listed").health.clone()
}

fn unhealthy(why: &str) -> Health {
    Health::Unhealthy(why.to_owned())
}

#[test]
fn a_gpu_comes_with_its_nodes_and_its_place() {
    let (_folder, mut backend) = machine();
    let devices = backend.judge(&seen(&[gpu(0)]), Instant::now());
    assert_eq!(
        devices,
        [Device {
            id: DeviceId::new("GPU-0").unwrap(),
            resource: ResourceName::new("nvidia.com/gpu").unwrap(),
            health: Health::Healthy,
            nodes: ["/dev/nvidia0", "/dev/nvidiactl", "/dev/nvidia-uvm"].map(PathBuf::from).to_vec(),
            listed_in: Some("NVIDIA_VISIBLE_DEVICES"),
            accelerator: Arc::new(Accelerator {
                pci_address: Some("0000:3b:00.0".to_owned()),
                numa_node: Some(1),
                readings: Readings { temperature_celsius: Some(40), ..Readings::default() },
                ..Accelerator::new(DeviceId::new("GPU-0").unwrap())
            }),
            partition: None,
            replica: None,
        }]
    );
}

#[test]
fn a_gpu_whose_node_is_missing_cannot_be_handed_out() {
    let (_folder, mut backend) = machine();
    let nameless = Gpu { minor: None, ..gpu(0) };
    let devices = backend.judge(&seen(&[nameless, gpu(7)]), Instant::now());
    assert_eq!(health(&devices, "GPU-0"), unhealthy("NVML names no device node"));
    assert_eq!(health(&devices, "GPU-7"), unhealthy("the host has no /dev/nvidia7"));
}

#[test]
fn a_lost_gpu_stays_listed_and_a_gone_one_does_not() {
    let (_folder, mut backend) = machine();
    let start = Instant::now();
    backend.judge(&seen(&[gpu(0), gpu(1)]), start);

    let lost = Look { unreadable: BTreeMap::from([(1, "fell off the bus".to_owned())]), ..seen(&[gpu(0)]) };
    let devices = backend.judge(&lost, start);
    assert_eq!(health(&devices, "GPU-0"), Health::Healthy);
    assert_eq!(health(&devices, "GPU-1"), unhealthy("lost: fell off the bus"));
    // However long it lasts.
    let later = start + backend.config.recovery() * 3;
    assert!(!health(&backend.judge(&lost, later), "GPU-1").is_healthy());

    let devices = backend.judge(&seen(&[gpu(0)]), later);
    assert_eq!(devices.len(), 1, "{devices:?}");
    // Put in again, it starts afresh.
    let devices = backend.judge(&seen(&[gpu(0), gpu(1)]), later);
    assert_eq!(health(&devices, "GPU-1"), Health::Healthy);
}

#[test]
fn a_gpu_recovers_only_when_the_driver_asks_for_nothing() {
    let (_folder, mut backend) = machine();
    let start = Instant::now();
    let quiet = backend.config.recovery();
    let asking = Gpu { recovery: recovery_action(&SampleValue::U32(1)), ..gpu(0) };
    let devices = backend.judge(&seen(std::slice::from_ref(&asking)), start);
    assert_eq!(health(&devices, "GPU-0"), unhealthy("the driver asks for a reset of the GPU"));
    assert!(!health(&backend.judge(&seen(&[asking]), start + quiet * 2), "GPU-0").is_healthy());
    assert!(!health(&backend.judge(&seen(&[gpu(0)]), start + quiet * 5 / 2), "GPU-0").is_healthy());
    assert!(health(&backend.judge(&seen(&[gpu(0)]), start + quiet * 3), "GPU-0").is_healthy());
}

#[test]
fn what_the_machine_does_not_know_is_absent() {
    let (_folder, backend) = machine();
    let sys = &backend.roots.sys;
    assert_eq!(numa_node(sys, "0000:3b:00.0"), Some(1));
    for nonsense in ["-1\n", "", "\u{fffd}\u{0}", "4294967296"] {
        fs::write(sys.join("bus/pci/devices/0000:3b:00.0/numa_node"), nonsense).unwrap();
        assert_eq!(numa_node(sys, "0000:3b:00.0"), None, "{nonsense:?}");
    }
    assert_eq!(numa_node(sys, "0000:ff:00.0"), None);

    assert_eq!(pci_address("00000000:3B:00.0").as_deref(), Some("0000:3b:00.0"));
    assert_eq!(pci_address("00010000:01:00.0").as_deref(), Some("10000:01:00.0"));
    for nonsense in ["", "N/A", "zz:00:00.0", "0:../..", "0000:3b/00.0"] {
        assert_eq!(pci_address(nonsense), None, "{nonsense:?}");
    }

    assert_eq!(recovery_action(&SampleValue::U32(0)), None);
    assert_eq!(recovery_action(&SampleValue::U32(u32::MAX)), None);
    assert_eq!(recovery_action(&SampleValue::F64(1.0)), None);
}
