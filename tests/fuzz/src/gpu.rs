//! What NVML and its driver's files say: names, numbers and layouts of any kind, made devices and labels.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    path::Component,
    time::{Duration, Instant},
};

use arbitrary::{Result, Unstructured};
use spillway_device_plugin::{
    allocate::{Manner, allocate},
    config::{Config, MigStrategy, Overrides},
    device::{Device, DeviceId, Readings},
    discovery::{
        Roots,
        nvml::{
            judge::{Judge, Rules},
            labels::{Machine, labels},
            look::{Fixed, Gpu, Look},
            mig::{Attributes, Instance, Mig, Profile, capability_nodes},
            vgpu::Vgpu,
            vitals::Vitals,
        },
    },
};

use crate::tree::Tree;

const PROFILES: [&str; 8] = [
    "1g.5gb",
    "3g.20gb",
    "1g.5gb+me",
    "1c.2g.10gb",
    "7g.40gb",
    "4294967295g.4294967295gb+abcdefghijklmno",
    "+",
    "1g.5gb-.+",
];
const SHARING: [&str; 4] = [
    "",
    "sharing: {timeSlicing: {resources: [{name: gpu, replicas: 3}, {name: mig-1g.5gb, replicas: 2}]}}",
    "sharing: {mps: {renameByDefault: true, resources: [{name: gpu, replicas: 3}]}}",
    "flags: {plugin: {deviceListStrategy: [volume-mounts, cdi-annotations, cdi-cri], deviceIDStrategy: index}}",
];

/// Makes a look at GPUs of the bytes, and judges it.
pub fn run(bytes: &[u8]) {
    let _ = tried(&mut Unstructured::new(bytes));
}

fn tried(bytes: &mut Unstructured<'_>) -> Result<()> {
    let strategy = *bytes.choose(&[MigStrategy::None, MigStrategy::Single, MigStrategy::Mixed])?;
    let text = *bytes.choose(&SHARING)?;
    let config = Config::load("a target", text.as_bytes(), &Overrides::default()).expect("sound").config;
    let mut tree = machine();
    let (_, more) = (tree.spoil(bytes)?, bytes.int_in_range(0..=2_u8)?);
    tree.set("dev/nvidiactl", "");
    let roots = Roots { sys: tree.at("sys"), dev: tree.at("dev"), proc: tree.at("proc") };
    let rules =
        Rules { mig: strategy, gpu: config.gpu.clone(), imex: config.imex.clone(), xids_disabled: false };
    let mut judge = Judge::new(Duration::from_secs(10));
    let mut now = Instant::now();
    for _ in 0..=more {
        let look = look(bytes)?;
        let devices = judge.devices(&look, &rules, &roots, now);
        offered(&tree, &devices);
        allocated(&config, &devices);
        let (driver, product) = (bytes.arbitrary::<Option<&str>>()?, bytes.arbitrary::<Option<&str>>()?);
        let vgpu = bytes.arbitrary::<Option<&[u8]>>()?.map(Vgpu::of);
        let machine = Machine {
            driver_version: driver,
            cuda_version: bytes.arbitrary()?,
            product,
            class: bytes.arbitrary()?,
            vgpu: vgpu.as_ref(),
            gpus: &look.gpus,
            strategy,
            sharing: &config.sharing,
        };
        for (key, value) in labels(&machine) {
            labelled(&key, &value);
        }
        now += Duration::from_secs(bytes.int_in_range(0..=20)?);
    }
    Ok(())
}

/// The driver's files for two GPUs, each in two partitions.
fn machine() -> Tree {
    let mut tree = Tree::new();
    let mut minors = String::new();
    for gpu in 0..2 {
        for instance in 1..3 {
            let minor = gpu * 10 + instance * 2;
            let folder = format!("proc/driver/nvidia/capabilities/gpu{gpu}/mig/gi{instance}");
            tree.set(&format!("{folder}/access"), format!("DeviceFileMinor: {minor}\nDeviceFileMode: 256\n"));
            tree.set(&format!("{folder}/ci0/access"), format!("DeviceFileMinor: {}\n", minor + 1));
            tree.set(&format!("dev/nvidia-caps/nvidia-cap{minor}"), "");
            tree.set(&format!("dev/nvidia-caps/nvidia-cap{}", minor + 1), "");
            writeln!(minors, "gpu{gpu}/gi{instance}/access {minor}").expect("text takes all");
        }
        tree.set(&format!("dev/nvidia{gpu}"), "");
        tree.set(&format!("sys/bus/pci/devices/0000:3{gpu}:00.0/numa_node"), "1\n");
    }
    tree.set("proc/driver/nvidia-caps/mig-minors", minors);
    tree
}

fn look(bytes: &mut Unstructured<'_>) -> Result<Look> {
    let mut look = Look::default();
    for index in 0..bytes.int_in_range(0..=4_u32)? {
        if bytes.ratio(1, 6)? {
            look.unreadable.insert(index, "GPU is lost".to_owned());
            continue;
        }
        let Some(id) = id(bytes, "GPU", index)? else { continue };
        look.gpus.push(Gpu {
            id,
            index,
            fixed: Fixed {
                minor: bytes.arbitrary::<bool>()?.then_some(index),
                pci_address: bytes.arbitrary::<bool>()?.then(|| format!("0000:3{index}:00.0")),
                product: bytes.arbitrary()?,
                memory_mib: bytes.arbitrary()?,
                compute: bytes.arbitrary()?,
                fabric: bytes.arbitrary()?,
                ..Fixed::default()
            },
            mig: mig(bytes, index)?,
            readings: Readings {
                errors: BTreeMap::from([("ecc_uncorrected", bytes.arbitrary()?)]),
                ..Readings::default()
            },
            // Judged by numbers alone; what of them is a fault is said in unit tests.
            vitals: Vitals::default(),
        });
    }
    Ok(look)
}

/// What NVML might call a device, if it can be called so at all: all begin alike, or are refused before.
fn id(bytes: &mut Unstructured<'_>, kind: &str, index: u32) -> Result<Option<DeviceId>> {
    let name = match bytes.int_in_range(0..=3_u8)? {
        0 => {
            let plain = |letter: &char| letter.is_ascii_alphanumeric() || *letter == '-';
            format!("{kind}-{}", bytes.arbitrary::<&str>()?.chars().filter(plain).collect::<String>())
        }
        1 => format!("{kind}-{}", bytes.choose(&["", "all", "0", "-", "0123456789abcdef"])?),
        _ => format!("{kind}-fef8089b-4820-abfc-e83e-9431819757{index:02}"),
    };
    Ok(DeviceId::new(name).ok())
}

fn mig(bytes: &mut Unstructured<'_>, gpu: u32) -> Result<Mig> {
    let mut instances = Vec::new();
    match bytes.int_in_range(0..=3_u8)? {
        0 => return Ok(Mig::Incapable),
        1 => return Ok(Mig::Off),
        _ => {}
    }
    for number in 0..bytes.int_in_range(0..=4_u32)? {
        let text = match bytes.int_in_range(0..=3_u8)? {
            0 => bytes.arbitrary::<&str>()?,
            _ => bytes.choose(&PROFILES)?,
        };
        let profile = if bytes.ratio(1, 4)? {
            Profile::of_size(bytes.arbitrary()?, bytes.arbitrary()?, bytes.arbitrary()?, bytes.arbitrary()?)
        } else {
            Profile::parse(text).or_else(|| Profile::of_name(&format!("NVIDIA MIG {text}")))
        };
        let (Some(profile), Some(id)) = (profile, id(bytes, "MIG", gpu * 8 + number)?) else { continue };
        assert_eq!(Profile::parse(&profile.to_string()).as_ref(), Some(&profile), "it reads what it writes");
        let attributes = Attributes {
            memory_mib: bytes.arbitrary()?,
            multiprocessors: bytes.arbitrary()?,
            ..Attributes::default()
        };
        instances.push(Instance {
            id,
            index: number,
            gi: bytes.int_in_range(0..=3)?,
            ci: bytes.int_in_range(0..=1)?,
            profile,
            attributes: bytes.arbitrary::<bool>()?.then_some(attributes),
        });
    }
    Ok(Mig::On(instances))
}

fn offered(tree: &Tree, devices: &[Device]) {
    for device in devices {
        for node in device.nodes.iter() {
            let below = node.strip_prefix("/dev").unwrap_or_else(|_| panic!("{} is no node", node.display()));
            assert!(
                below.components().all(|part| matches!(part, Component::Normal(_))),
                "{}",
                node.display()
            );
            assert!(tree.at("dev").join(below).exists(), "the host has no {}", node.display());
        }
        if device.health.is_healthy() {
            let own = device.nodes.iter().filter(|node| node.to_string_lossy() != "/dev/nvidiactl").count();
            let expected = if device.partition.is_some() { 3 } else { 1 };
            assert_eq!(own, expected, "{device:?} is Healthy without its nodes");
        }
        if let Some((gi, ci)) = device.partition.as_ref().and_then(|partition| partition.instance) {
            let _ = capability_nodes(&tree.at("proc"), 0, gi, ci);
        }
    }
}

/// No name in a container's list means more than the device.
fn allocated(config: &Config, devices: &[Device]) {
    for device in devices.iter().filter(|device| device.health.is_healthy()) {
        let alike: Vec<_> = devices.iter().filter(|other| other.resource == device.resource).collect();
        if alike.iter().filter(|other| other.id == device.id).count() > 1 {
            // The inventory has each once.
            continue;
        }
        let manner = Manner::of(config, &device.resource);
        let answer = allocate(manner, &device.resource, alike.iter().copied(), &[device.id.to_string()]);
        let answer = answer.expect("it is known and well");
        for value in answer.envs.values() {
            assert!(
                !value.contains(',') && !matches!(value.as_str(), "all" | "none" | "void" | ""),
                "{value:?}"
            );
        }
        for cdi in &answer.cdi_devices {
            assert!(!cdi.name.ends_with("=all"), "{cdi:?} is every device");
        }
    }
}

/// As the API server checks labels.
fn labelled(key: &str, value: &str) {
    let edges = |text: &str| {
        let edge = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
        edge(text.as_bytes().first()) && edge(text.as_bytes().last())
    };
    let sound = |text: &str| {
        text.len() <= 63 && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
    };
    let name = key.strip_prefix("nvidia.com/").unwrap_or_else(|| panic!("{key:?} is not below our prefix"));
    assert!(sound(name) && edges(name), "{key:?} is no label's key");
    assert!(sound(value) && (value.is_empty() || edges(value)), "{key}={value:?} is no label's value");
}
