//! A configuration, and devices that it is put in force for. Everything up to a zero byte is the file, what follows makes the devices.

use std::collections::{BTreeMap, BTreeSet};

use arbitrary::Unstructured;
use prost::Message as _;
use spillway_device_plugin::{
    allocate::{Manner, allocate},
    config::{Config, ConfigError, DeviceIdStrategy, DeviceListStrategy, MigStrategy, Overrides, Way},
    device::{Device, DeviceId, ResourceName},
    sharing::{Offer, Rules, way_of},
};
use spillway_proto::deviceplugin::{self as wire, ContainerAllocateResponse};

use crate::machine;

/// The most that a kubelet receives.
const LIST_LIMIT: usize = 4 << 20;

/// Reads the file, and puts it in force.
pub fn run(bytes: &[u8]) {
    let mut parts = bytes.splitn(2, |byte| *byte == 0);
    let (file, rest) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let mut rest = Unstructured::new(rest);
    let overrides = overrides(rest.arbitrary().unwrap_or_default());
    let loaded = match Config::load("a file", file, &overrides) {
        Ok(loaded) => loaded,
        Err(error) => return refused(file, &error),
    };
    assert!(!loaded.config.summary().contains('\n'));
    let again = Config::load("a file", file, &overrides);
    assert_eq!(again.as_ref().ok(), Some(&loaded), "the same file says the same");
    let Ok(devices) = machine::gpus(&mut rest) else { return };
    let rules = Rules::of(&loaded.config);
    let offer = rules.offer(&devices);
    offered(&loaded.config, &devices, &offer);
    for resource in offer.devices.iter().map(|device| &device.resource).collect::<BTreeSet<_>>() {
        asked(&loaded.config, resource, &offer, &mut rest);
    }
}

fn overrides(bits: u8) -> Overrides {
    let set = |bit: u8| bits & (1 << bit) != 0;
    Overrides {
        mig_strategy: set(0).then_some(MigStrategy::Mixed),
        pass_device_specs: set(1).then_some(false),
        device_list_strategy: set(2).then(|| {
            vec![
                DeviceListStrategy::VolumeMounts,
                DeviceListStrategy::CdiAnnotations,
                DeviceListStrategy::CdiCri,
            ]
        }),
        device_id_strategy: set(3).then_some(DeviceIdStrategy::Index),
        ..Overrides::default()
    }
}

/// What a person is told: one line, and a place that is in the file.
fn refused(file: &[u8], error: &ConfigError) {
    let ConfigError::Invalid { messages, .. } = error else { panic!("{error} is about no file") };
    assert!(!messages.is_empty());
    // As YAML and editors count: what is behind the last line's end is a place, too.
    let text = String::from_utf8_lossy(file).replace("\r\n", "\n").replace('\r', "\n");
    let lines: Vec<&str> = text.split('\n').collect();
    for message in messages {
        assert!(!message.is_empty() && !message.contains(char::is_control), "{message:?}");
        // What the message repeats of the file may read like a place itself.
        if text.contains("line") {
            continue;
        }
        for (at, _) in message.match_indices("line ") {
            let (line, rest) = number(&message[at + 5..]);
            let Some(line) = line else { continue };
            assert!((1..=lines.len()).contains(&line), "{message:?}: the file has {} lines", lines.len());
            if let (Some(column), _) =
                number(rest.trim_start_matches([' ', ',', ':']).trim_start_matches("column "))
                && rest.contains("column")
            {
                let length = lines[line - 1].chars().count();
                assert!((1..=length + 1).contains(&column), "{message:?}: line {line} has {length} columns");
            }
        }
    }
}

fn number(text: &str) -> (Option<usize>, &str) {
    let end = text.find(|digit: char| !digit.is_ascii_digit()).unwrap_or(text.len());
    (text[..end].parse().ok(), &text[end..])
}

/// What is offered is what was found, whole or in shares, and no more.
fn offered(config: &Config, found: &[Device], offer: &Offer) {
    let found_units: BTreeMap<_, _> = found.iter().map(|device| (device.unit(), device)).collect();
    let mut ids = BTreeSet::new();
    let mut lists: BTreeMap<&ResourceName, wire::ListAndWatchResponse> = BTreeMap::new();
    let mut shares: BTreeMap<&DeviceId, Vec<&Device>> = BTreeMap::new();
    for device in &offer.devices {
        assert!(ids.insert((&device.resource, &device.id)), "{} is offered twice", device.id);
        let origin = found_units[device.unit()];
        assert_eq!((&device.health, &device.nodes), (&origin.health, &origin.nodes));
        lists.entry(&device.resource).or_default().devices.push(wire::Device {
            id: device.id.to_string(),
            health: "Unhealthy".to_owned(),
            topology: Some(wire::TopologyInfo { nodes: vec![wire::NumaNode { id: i64::from(u32::MAX) }] }),
        });
        shares.entry(device.unit()).or_default().push(device);
    }
    for (resource, list) in lists {
        assert!(list.encoded_len() <= LIST_LIMIT, "the list of {resource} has {} bytes", list.encoded_len());
    }
    for (unit, shares) in shares {
        let Some(of) = shares[0].replica.as_ref().map(|replica| replica.of) else {
            assert_eq!(shares.len(), 1, "{unit} is offered whole, and again");
            continue;
        };
        assert_eq!(shares.len(), of as usize, "{unit} has {of} shares");
        let way = way_of(&config.sharing, &shares[0].resource);
        let memory =
            shares[0].partition.as_ref().map_or(shares[0].accelerator.memory_mib, |part| part.memory_mib);
        if let (Some(Way::Memory | Way::Mps), Some(memory)) = (way, memory) {
            let promised =
                shares.iter().map(|share| share.replica.as_ref().and_then(|share| share.memory_mib));
            let promised: u64 = promised.map(Option::unwrap_or_default).sum();
            assert!(promised <= memory, "{promised} MiB of the {memory} MiB of {unit} are promised");
        }
    }
}

/// Whatever is asked for, what is granted was asked for, is known, and is well.
fn asked(config: &Config, resource: &ResourceName, offer: &Offer, rest: &mut Unstructured<'_>) {
    let slice: Vec<&Device> = offer.devices.iter().filter(|device| device.resource == *resource).collect();
    let mut ids = Vec::new();
    for _ in 0..rest.int_in_range(0..=3).unwrap_or(1) {
        ids.push(match rest.arbitrary::<u8>().unwrap_or(1) {
            0 => String::new(),
            2 => "../../etc/passwd".to_owned(),
            pick => slice[usize::from(pick) % slice.len()].id.to_string(),
        });
    }
    let Ok(answer) = allocate(Manner::of(config, resource), resource, slice.iter().copied(), &ids) else {
        return;
    };
    let named: Vec<&&Device> = slice.iter().filter(|device| ids.contains(&device.id.to_string())).collect();
    assert_eq!(named.len(), ids.len(), "each of {ids:?} is one device");
    assert!(named.iter().all(|device| device.health.is_healthy()));
    granted(&named, &answer);
}

fn granted(named: &[&&Device], answer: &ContainerAllocateResponse) {
    for node in &answer.devices {
        let own =
            named.iter().any(|device| device.nodes.iter().any(|path| path.to_str() == Some(&node.host_path)));
        assert!(own && node.permissions == "rw", "{node:?} is not of what was asked for");
    }
    let texts = answer.envs.iter().chain(&answer.annotations);
    for (key, value) in texts {
        assert!(!key.is_empty() && !value.contains(char::is_control), "{key}={value:?}");
    }
    for mount in &answer.mounts {
        assert!(mount.container_path.starts_with('/') && !mount.container_path.contains("/../"), "{mount:?}");
    }
}
