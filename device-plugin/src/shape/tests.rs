use std::sync::Arc;

use super::*;
use crate::{
    device::{Health, Partition, Replica},
    inventory::{BackendState, tests::device},
};

const GPU: &str = "nvidia.com/gpu";

fn inventory(devices: Vec<Device>) -> Inventory {
    Inventory::default().with("nvml", BackendState::Running, devices).0
}

fn of(inventory: &Inventory, held: &[&str], resource: &str) -> Shape {
    let shapes = Shapes::of(inventory, |name, id| name.as_str() == resource && held.contains(&id.as_str()));
    shapes.iter().find(|(name, _)| *name == resource).unwrap().1.clone()
}

/// Eight GPUs: two NUMA nodes of four; on each, two pairs with an NVLink between. The way between pairs is the bus.
fn pairs() -> Vec<Device> {
    let id = |number: u32| format!("GPU-{number}");
    let linked = |number: u32| {
        let mut gpu = device(GPU, &id(number), Some(number / 4));
        let link =
            |peer: u32| (DeviceId::new(id(peer)).unwrap(), if peer / 2 == number / 2 { 240 } else { 40 });
        Arc::make_mut(&mut gpu.accelerator).links = (0..8).filter(|peer| *peer != number).map(link).collect();
        gpu
    };
    (0..8).map(linked).collect()
}

#[test]
fn groups_shrink_with_what_is_held_or_sick() {
    let mut devices = pairs();
    let whole = inventory(devices.clone());
    let check = |inventory: &Inventory, held: &[&str], nvlink, numa, node| {
        let expected = Shape { nvlink: Some(nvlink), numa, node, profile: None };
        assert_eq!(of(inventory, held, GPU), expected, "{held:?}");
    };
    check(&whole, &[], 2, 4, 8);
    check(&whole, &["GPU-0"], 2, 4, 7);
    check(&whole, &["GPU-0", "GPU-2", "GPU-4", "GPU-6"], 1, 2, 4);
    check(&whole, &["GPU-0", "GPU-1", "GPU-2", "GPU-3", "GPU-4", "GPU-5", "GPU-6", "GPU-7"], 0, 0, 0);
    for sick in &mut devices[..4] {
        sick.health = Health::Unhealthy("XID 79".to_owned());
    }
    check(&inventory(devices), &["GPU-7"], 2, 3, 3);
}

#[test]
fn an_island_ends_where_its_way_through_is_held() {
    // A chain: 0 - 1 - 2 - 3.
    let chained = |number: u32| {
        let mut gpu = device(GPU, &format!("GPU-{number}"), None);
        let peers = (0..4_u32).filter(|peer| peer.abs_diff(number) == 1);
        let peer = |peer: u32| (DeviceId::new(format!("GPU-{peer}")).unwrap(), 100);
        Arc::make_mut(&mut gpu.accelerator).links = peers.map(peer).collect();
        gpu
    };
    let chain = inventory((0..4).map(chained).collect());
    assert_eq!(of(&chain, &[], GPU).nvlink, Some(4));
    assert_eq!(of(&chain, &["GPU-1"], GPU), Shape { nvlink: Some(2), numa: 3, node: 3, profile: None });
}

#[test]
fn shares_of_one_gpu_count_once_and_its_parts_each() {
    let whole = [device(GPU, "GPU-0", Some(0)), device(GPU, "GPU-1", Some(1))];
    let shares = whole.iter().flat_map(|gpu| {
        (0..3).map(|number| Device {
            id: DeviceId::new(format!("{}::{number}", gpu.id)).unwrap(),
            replica: Some(Replica { number, of: 3, memory_mib: None }),
            ..gpu.clone()
        })
    });
    let shares = inventory(shares.collect());
    let free = Shape { nvlink: None, numa: 1, node: 2, profile: None };
    assert_eq!(of(&shares, &["GPU-0::0", "GPU-0::2"], GPU), free);
    assert_eq!(of(&shares, &["GPU-0::0", "GPU-0::1", "GPU-0::2"], GPU), Shape { node: 1, ..free });

    let part = |name: &str, profile: &str, memory_mib| Device {
        id: DeviceId::new(name).unwrap(),
        partition: Some(Arc::new(Partition {
            id: DeviceId::new(name).unwrap(),
            profile: profile.to_owned(),
            memory_mib: Some(memory_mib),
            instance: None,
            index: None,
        })),
        ..whole[0].clone()
    };
    let parts = inventory(vec![
        part("MIG-a", "1g.5gb", 4864),
        part("MIG-b", "3g.20gb", 19_968),
        part("MIG-c", "4g.20gb", 19_968),
    ]);
    let all = Shape { nvlink: None, numa: 3, node: 3, profile: Some("4g.20gb".to_owned()) };
    assert_eq!(of(&parts, &[], GPU), all);
    let small = Shape { numa: 1, node: 1, profile: Some("1g.5gb".to_owned()), ..all };
    assert_eq!(of(&parts, &["MIG-b", "MIG-c"], GPU), small);
}

#[test]
fn ports_of_one_card_are_counted_each_and_a_hold_is_of_its_resource() {
    let card = device("fpga.intel.com/region-0", "0000:5e:00.0", Some(1));
    let port = |number: u32| Device { id: DeviceId::new(format!("port{number}")).unwrap(), ..card.clone() };
    let ports = inventory(vec![port(0), port(1)]);
    let shapes = Shapes::of(&ports, |name, id| name.as_str() == GPU && id.as_str() == "port0");
    let both = Shape { nvlink: None, numa: 2, node: 2, profile: None };
    assert_eq!(shapes.iter().collect::<Vec<_>>(), [("fpga.intel.com/region-0", &both)]);
}
