use proptest::prelude::*;

use super::*;
use crate::{
    config::{Config, Overrides},
    device::{DeviceId, Readings},
    discovery::nvml::{
        look::Fixed,
        mig::{Attributes, Mig, Profile},
        vitals::Vitals,
    },
};

fn gpu(number: u32, mig: Mig) -> Gpu {
    Gpu {
        id: DeviceId::new(format!("GPU-{number}")).unwrap(),
        index: number,
        fixed: Fixed {
            product: Some("NVIDIA A100-SXM4-40GB".to_owned()),
            memory_mib: Some(40960),
            compute: Some((8, 0)),
            ..Fixed::default()
        },
        mig,
        readings: Readings::default(),
        vitals: Vitals::default(),
    }
}

fn on(profiles: &[&str]) -> Mig {
    let instance = |(number, name): (u32, &&str)| Instance {
        id: DeviceId::new(format!("MIG-{number}")).unwrap(),
        index: number,
        gi: number,
        ci: 0,
        profile: Profile::parse(name).unwrap(),
        attributes: Some(Attributes {
            memory_mib: 4864,
            multiprocessors: 14,
            gpu_slices: 1,
            compute_slices: 1,
            copy_engines: 1,
            ..Attributes::default()
        }),
    };
    Mig::On((0..).zip(profiles).map(instance).collect())
}

fn sharing(yaml: &str) -> Sharing {
    let loaded = Config::load("test.yaml", yaml.as_bytes(), &Overrides::default());
    loaded.unwrap_or_else(|error| panic!("{error}")).config.sharing
}

fn label(gpus: &[Gpu], strategy: MigStrategy, sharing: &Sharing) -> BTreeMap<String, String> {
    labels(&Machine {
        driver_version: Some("580.65.06"),
        cuda_version: Some(13000),
        product: Some("ProLiant DL380 Gen10"),
        class: Some("0x030200"),
        vgpu: None,
        gpus,
        strategy,
        sharing,
    })
}

/// The labels whose keys begin with `prefix`, which is left out, one a line.
fn under(labels: &BTreeMap<String, String>, prefix: &str) -> String {
    let lines =
        labels.iter().filter_map(|(key, value)| Some(format!("{}={value}", key.strip_prefix(prefix)?)));
    lines.collect::<Vec<_>>().join("\n")
}

#[test]
fn a_machine_of_whole_gpus_has_the_labels_of_feature_discovery() {
    let labels = label(&[gpu(0, Mig::Off), gpu(1, Mig::Off)], MigStrategy::None, &Sharing::default());
    let expected = "\
cuda.driver-version.full=580.65.06
cuda.driver-version.major=580
cuda.driver-version.minor=65
cuda.driver-version.revision=06
cuda.driver.major=580
cuda.driver.minor=65
cuda.driver.rev=06
cuda.runtime-version.full=13.0
cuda.runtime-version.major=13
cuda.runtime-version.minor=0
cuda.runtime.major=13
cuda.runtime.minor=0
gpu.compute.major=8
gpu.compute.minor=0
gpu.count=2
gpu.family=ampere
gpu.machine=ProLiant-DL380-Gen10
gpu.memory=40960
gpu.mode=compute
gpu.product=NVIDIA-A100-SXM4-40GB
gpu.replicas=1
gpu.sharing-strategy=none
mig.capable=true
mps.capable=false";
    assert_eq!(under(&labels, "nvidia.com/"), expected);
    assert!(label(&[], MigStrategy::None, &Sharing::default()).is_empty());
}

#[test]
fn mixed_labels_every_profile() {
    let gpus = [gpu(0, on(&["1g.5gb", "1g.5gb", "1c.2g.10gb", "1g.5gb+me"])), gpu(1, Mig::Off)];
    let labels = label(&gpus, MigStrategy::Mixed, &Sharing::default());
    let expected = "\
count=2
engines.copy=1
engines.decoder=0
engines.encoder=0
engines.jpeg=0
engines.ofa=0
memory=4864
multiprocessors=14
product=NVIDIA-A100-SXM4-40GB-MIG-1g.5gb
replicas=1
sharing-strategy=none
slices.ci=1
slices.gi=1";
    let profile = under(&labels, "nvidia.com/mig-1g.5gb.");
    let whole = profile.lines().filter(|line| !line.starts_with("me.")).collect::<Vec<_>>().join("\n");
    assert_eq!(whole, expected);
    assert_eq!(labels["nvidia.com/mig-1g.5gb.me.product"], "NVIDIA-A100-SXM4-40GB-MIG-1g.5gb.me");
    assert_eq!(labels["nvidia.com/mig-1c.2g.10gb.count"], "1");
    assert_eq!(labels["nvidia.com/mig.strategy"], "mixed");
    // Both GPUs count; the one that is handed out whole says how often.
    assert_eq!((&*labels["nvidia.com/gpu.count"], &*labels["nvidia.com/gpu.replicas"]), ("2", "1"));
    let partitioned = label(&gpus[..1], MigStrategy::Mixed, &Sharing::default());
    assert_eq!(partitioned["nvidia.com/gpu.replicas"], "0");
}

#[test]
fn single_labels_partitions_as_gpus_and_says_what_it_cannot() {
    let labels = label(&[gpu(0, on(&["1g.5gb"; 7]))], MigStrategy::Single, &Sharing::default());
    for (key, value) in [
        ("gpu.product", "NVIDIA-A100-SXM4-40GB-MIG-1g.5gb"),
        ("gpu.count", "7"),
        ("gpu.memory", "4864"),
        ("gpu.multiprocessors", "14"),
        ("gpu.slices.gi", "1"),
        ("gpu.family", "ampere"),
        ("mig.strategy", "single"),
    ] {
        assert_eq!(labels[&format!("nvidia.com/{key}")], value, "{key}");
    }
    let labels =
        label(&[gpu(0, on(&["1g.5gb"])), gpu(1, Mig::Off)], MigStrategy::Single, &Sharing::default());
    for (key, value) in
        [("product", "NVIDIA-A100-SXM4-40GB-MIG-INVALID"), ("count", "0"), ("replicas", "0"), ("memory", "0")]
    {
        assert_eq!(labels[&format!("nvidia.com/gpu.{key}")], value, "{key}");
    }
}

#[test]
fn shared_gpus_say_how_and_are_called_so_unless_they_are_renamed() {
    let sliced = |more: &str| {
        sharing(&format!(
            "sharing:\n  timeSlicing:\n{more}    resources:\n    - {{name: nvidia.com/gpu, replicas: 4}}\n"
        ))
    };
    let check = |sharing: &Sharing, product: &str, strategy: &str| {
        let labels = label(&[gpu(0, Mig::Off)], MigStrategy::None, sharing);
        assert_eq!(labels["nvidia.com/gpu.product"], product);
        assert_eq!(labels["nvidia.com/gpu.replicas"], "4");
        assert_eq!(labels["nvidia.com/gpu.sharing-strategy"], strategy);
        labels["nvidia.com/mps.capable"].clone()
    };
    let plain = "NVIDIA-A100-SXM4-40GB";
    let shared = "NVIDIA-A100-SXM4-40GB-SHARED";
    assert_eq!(check(&sliced(""), shared, "time-slicing"), "false");
    check(&sliced("    renameByDefault: true\n"), plain, "time-slicing");
    let mps = sharing("sharing:\n  mps:\n    resources:\n    - {name: nvidia.com/gpu, replicas: 4}\n");
    assert_eq!(check(&mps, shared, "mps"), "true");
    let partitioned = label(&[gpu(0, on(&["1g.5gb"]))], MigStrategy::None, &mps);
    assert_eq!(partitioned["nvidia.com/mps.capable"], "false");
    assert_eq!(partitioned["nvidia.com/gpu.product"], plain);
}

#[test]
fn only_gpus_of_one_fabric_have_a_clique() {
    let mut gpus = [gpu(0, Mig::Off), gpu(1, Mig::Off)];
    let cluster = *b"\x00\x11\x22\x33\x44\x55\x66\x77\x88\x99\xaa\xbb\xcc\xdd\xee\xff";
    gpus[0].fixed.fabric = Some((cluster, 7));
    let clique =
        |gpus: &[Gpu]| label(gpus, MigStrategy::None, &Sharing::default()).remove("nvidia.com/gpu.clique");
    assert_eq!(clique(&gpus).as_deref(), Some("00112233-4455-6677-8899-aabbccddeeff.7"));
    gpus[1].fixed.fabric = Some((cluster, 8));
    assert_eq!(clique(&gpus), None);
}

/// Whether the API server takes it as a label's value.
fn is_label(value: &str) -> bool {
    let edge = |byte: Option<&u8>| byte.is_none_or(u8::is_ascii_alphanumeric);
    value.len() <= 63
        && edge(value.as_bytes().first())
        && edge(value.as_bytes().last())
        && value.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
}

proptest! {
    #[test]
    fn whatever_firmware_says_becomes_a_label(text in ".{0,100}", profile in "[0-9cgb.+a-z-]{0,20}") {
        prop_assert!(is_label(&sanitised(&text)), "{text:?}");
        if let Some(parsed) = Profile::parse(&profile) {
            let name = product(&[&text, "MIG", &parsed.name()], true);
            prop_assert!(is_label(&sanitised(&name)));
            prop_assert!(sanitised(&name).ends_with("-SHARED"), "{name:?}");
            prop_assert_eq!(Profile::parse(&parsed.to_string()), Some(parsed.clone()), "it reads what it writes");
            let key = format!("mig-{}.engines.decoder", parsed.name());
            prop_assert!(is_label(&key), "{key:?}");
        }
    }
}

#[test]
fn hostile_names_become_labels_or_nothing() {
    let long = "GeForce ".repeat(100);
    for name in
        ["", " ", "-", "../../etc/passwd", "Tesla\u{0}T4", "RTX™ 4090 (D)", "a\nb=c", "ÄÖÜ", "._-x-_.", &long]
    {
        let mut one = gpu(0, on(&["1g.5gb"]));
        one.fixed.product = Some(name.to_owned());
        let labels = labels(&Machine {
            driver_version: Some(name),
            cuda_version: Some(i32::MIN),
            product: Some(name),
            class: Some(name),
            vgpu: Some(&Vgpu::Driver { version: name.to_owned(), branch: name.to_owned() }),
            gpus: &[one],
            strategy: MigStrategy::Single,
            sharing: &Sharing::default(),
        });
        for (key, value) in &labels {
            assert!(is_label(value), "{name:?}: {key}={value:?}");
            assert!(is_label(key.split_once('/').unwrap().1), "{key:?}");
        }
        assert_eq!(labels["nvidia.com/gpu.mode"], "unknown");
        assert!(labels["nvidia.com/gpu.product"].ends_with("MIG-1g.5gb"), "{labels:?}");
    }
    assert_eq!(sanitised("NVIDIA RTX™ 4090 (D)"), "NVIDIA-RTX-4090-D");
}

#[test]
fn families_are_those_of_feature_discovery() {
    for (compute, name) in [
        ((7, 0), "volta"),
        ((7, 5), "turing"),
        ((8, 6), "ampere"),
        ((8, 9), "ada-lovelace"),
        ((9, 0), "hopper"),
        ((10, 0), "blackwell"),
        ((12, 0), "blackwell"),
        ((99, 9), "undefined"),
    ] {
        assert_eq!(family(compute.0, compute.1), name);
    }
}
