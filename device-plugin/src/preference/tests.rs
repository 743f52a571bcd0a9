use std::{collections::BTreeMap, sync::Arc};

use proptest::prelude::*;

use super::*;
use crate::{
    device::{Health, Partition, Replica},
    inventory::tests::device,
};

fn ids(of: &[&str]) -> Vec<String> {
    of.iter().map(|id| (*id).to_owned()).collect()
}

fn names(devices: &[Device]) -> Vec<String> {
    devices.iter().map(|device| device.id.to_string()).collect()
}

fn gpu(number: usize, numa_node: Option<u32>) -> Device {
    device("nvidia.com/gpu", &format!("GPU-{number:02}"), numa_node)
}

/// GPUs on these NUMA nodes, with these links.
fn gpus(nodes: &[Option<u32>], links: impl Fn(usize, usize) -> u32) -> Vec<Device> {
    let mut gpus: Vec<_> = nodes.iter().enumerate().map(|(number, node)| gpu(number, *node)).collect();
    for from in 0..gpus.len() {
        let peers = (0..gpus.len()).filter(|to| *to != from && links(from, *to) > 0);
        let links = peers.map(|to| (gpus[to].id.clone(), links(from, to))).collect();
        Arc::make_mut(&mut gpus[from].accelerator).links = links;
    }
    gpus
}

fn shares(of: &Device, count: u32) -> impl Iterator<Item = Device> {
    (0..count).map(move |number| Device {
        id: DeviceId::new(format!("{}::{number}", of.id)).unwrap(),
        replica: Some(Replica { number, of: count, memory_mib: None }),
        ..of.clone()
    })
}

fn parts(of: &Device, count: u32) -> impl Iterator<Item = Device> {
    (0..count).map(move |number| {
        let id = DeviceId::new(format!("MIG-{}-{number}", of.id)).unwrap();
        let partition = Partition {
            id: id.clone(),
            profile: "1g.5gb".to_owned(),
            memory_mib: None,
            instance: None,
            index: None,
        };
        Device { id, partition: Some(Arc::new(partition)), ..of.clone() }
    })
}

fn ports(of: &Device, count: u32) -> impl Iterator<Item = Device> {
    (0..count).map(move |number| {
        let id = DeviceId::new(format!("{}-port{number}", of.id)).unwrap();
        let profile = Partition::PORT.to_owned();
        let partition = Partition { id: id.clone(), profile, memory_mib: None, instance: None, index: None };
        Device { id, partition: Some(Arc::new(partition)), ..of.clone() }
    })
}

/// All of `slice` is free but what is named.
fn without(slice: &[Device], held: &[&str]) -> Vec<String> {
    names(slice).into_iter().filter(|id| !held.contains(&id.as_str())).collect()
}

#[test]
fn numa_nodes_come_first_and_the_tightest_is_filled() {
    let slice = gpus(&[0, 0, 0, 0, 1, 1].map(Some), |_, _| 0);
    let check = |must: &[&str], size, expected: &[&str]| {
        assert_eq!(prefer(&slice, &names(&slice), &ids(must), size, Policy::default()), ids(expected));
    };
    check(&[], 1, &["GPU-04"]);
    check(&[], 2, &["GPU-04", "GPU-05"]);
    check(&[], 3, &["GPU-00", "GPU-01", "GPU-02"]);
    check(&["GPU-03"], 2, &["GPU-00", "GPU-03"]);
    check(&["GPU-00", "GPU-05"], 3, &["GPU-00", "GPU-04", "GPU-05"]);
    check(&["GPU-01"], 1, &["GPU-01"]);
}

#[test]
fn what_makes_no_sense_gets_no_hint() {
    let mut slice = gpus(&[None; 3], |_, _| 0);
    slice[2].health = Health::Unhealthy("XID 79".to_owned());
    let check = |available: &[&str], must: &[&str], size| {
        let empty = prefer(&slice, &ids(available), &ids(must), size, Policy::default());
        assert_eq!(empty, Vec::<String>::new(), "{available:?} {must:?} {size}");
    };
    check(&["GPU-00", "GPU-01"], &[], 0);
    check(&["GPU-00", "GPU-01"], &[], 3);
    check(&["GPU-00", "GPU-01"], &["GPU-02"], 1);
    check(&["GPU-00", "GPU-01"], &["GPU-00", "GPU-01"], 1);
    check(&["GPU-00", "GPU-99"], &[], 2);
    check(&["GPU-00", "GPU-99"], &["GPU-99"], 1);
    check(&["GPU-00", "GPU-02"], &[], 2);
    check(&["GPU-00", "GPU-00"], &[], 2);
    check(&[], &[], usize::MAX);
    let some = prefer(&slice, &ids(&["GPU-02", "../x", "GPU-01"]), &[], 1, Policy::default());
    assert_eq!(some, ["GPU-01"], "what is sick or unknown is passed over");
}

#[test]
fn linked_gpus_stay_together_and_islands_whole() {
    // Two islands of four, in each two pairs on a bridge.
    let links = |a: usize, b: usize| {
        if a / 2 == b / 2 { 400 } else { u32::from(a / 4 == b / 4) * 100 }
    };
    let slice = gpus(&[None; 8], links);
    let check = |held: &[&str], size, expected: &[&str]| {
        let answer = prefer(&slice, &without(&slice, held), &[], size, Policy::default());
        assert_eq!(answer, ids(expected), "{held:?} {size}");
    };
    check(&[], 2, &["GPU-00", "GPU-01"]);
    check(&[], 4, &["GPU-00", "GPU-01", "GPU-02", "GPU-03"]);
    check(&["GPU-00"], 4, &["GPU-04", "GPU-05", "GPU-06", "GPU-07"]);
    check(&["GPU-00"], 1, &["GPU-01"]);
    check(&["GPU-00"], 2, &["GPU-02", "GPU-03"]);
    check(&["GPU-04", "GPU-06"], 1, &["GPU-05"]);
    check(&["GPU-04", "GPU-06"], 2, &["GPU-00", "GPU-01"]);
}

#[test]
fn shares_are_distributed_or_packed_and_never_two_of_one_gpu_where_another_is_free() {
    let whole = gpus(&[None; 3], |_, _| 0);
    let slice: Vec<_> = whole.iter().flat_map(|gpu| shares(gpu, 3)).collect();
    let free = without(&slice, &["GPU-00::0", "GPU-00::1", "GPU-01::2"]);
    let check = |replicas, must: &[&str], size, expected: &[&str]| {
        let policy = Policy { replicas, ..Policy::default() };
        assert_eq!(prefer(&slice, &free, &ids(must), size, policy), ids(expected), "{replicas:?} {size}");
    };
    check(Replicas::Distributed, &[], 1, &["GPU-02::0"]);
    check(Replicas::Packed, &[], 1, &["GPU-00::2"]);
    check(Replicas::Distributed, &[], 2, &["GPU-01::0", "GPU-02::0"]);
    check(Replicas::Packed, &[], 2, &["GPU-00::2", "GPU-01::0"]);
    check(Replicas::Packed, &["GPU-01::1"], 2, &["GPU-00::2", "GPU-01::1"]);
    check(Replicas::Distributed, &["GPU-02::1"], 2, &["GPU-01::0", "GPU-02::1"]);
    check(Replicas::Distributed, &[], 4, &["GPU-00::2", "GPU-01::0", "GPU-02::0", "GPU-02::1"]);
    check(Replicas::Packed, &[], 4, &["GPU-00::2", "GPU-01::0", "GPU-01::1", "GPU-02::0"]);
}

#[test]
fn shares_of_one_device_need_not_follow_each_other() {
    let whole = gpus(&[None; 2], |_, _| 0);
    let [first, second]: [Vec<_>; 2] = [0, 1].map(|gpu| shares(&whole[gpu], 3).collect());
    let slice: Vec<_> = first.into_iter().zip(second).flat_map(|(one, other)| [one, other]).collect();
    let check = |replicas, expected: &str| {
        let policy = Policy { replicas, ..Policy::default() };
        assert_eq!(
            prefer(&slice, &without(&slice, &["GPU-00::0"]), &[], 1, policy),
            [expected],
            "{replicas:?}"
        );
    };
    check(Replicas::Distributed, "GPU-01::0");
    check(Replicas::Packed, "GPU-00::1");
}

#[test]
fn partitions_are_packed_onto_gpus_in_use() {
    let slice: Vec<_> = gpus(&[None; 3], |_, _| 100).iter().flat_map(|gpu| parts(gpu, 3)).collect();
    let check = |held: &[&str], size, expected: &[&str]| {
        assert_eq!(
            prefer(&slice, &without(&slice, held), &[], size, Policy::default()),
            ids(expected),
            "{held:?} {size}"
        );
    };
    check(&[], 2, &["MIG-GPU-00-0", "MIG-GPU-00-1"]);
    check(&["MIG-GPU-02-1"], 1, &["MIG-GPU-02-0"]);
    check(&["MIG-GPU-01-0", "MIG-GPU-02-0", "MIG-GPU-02-1"], 2, &["MIG-GPU-01-1", "MIG-GPU-01-2"]);
    check(&["MIG-GPU-01-0", "MIG-GPU-02-0"], 3, &["MIG-GPU-01-1", "MIG-GPU-01-2", "MIG-GPU-02-1"]);
}

#[test]
fn ports_of_a_card_follow_their_policy() {
    let slice: Vec<_> = gpus(&[None; 2], |_, _| 0).iter().flat_map(|card| ports(card, 2)).collect();
    let check = |cards, expected: &[&str]| {
        let policy = Policy { cards, ..Policy::default() };
        assert_eq!(prefer(&slice, &without(&slice, &["GPU-01-port0"]), &[], 1, policy), ids(expected));
    };
    check(Cards::Balanced, &["GPU-00-port0"]);
    check(Cards::Packed, &["GPU-01-port1"]);
    let policy = Policy { cards: Cards::Balanced, ..Policy::default() };
    let spread = prefer(&slice, &names(&slice), &[], 2, policy);
    assert_eq!(spread, ["GPU-00-port0", "GPU-01-port0"]);
    let policy = Policy { cards: Cards::None, ..Policy::default() };
    assert_eq!(prefer(&slice, &names(&slice), &[], 3, policy).len(), 3);
}

#[test]
fn sixty_four_gpus_are_chosen_from_within_bounds() {
    let island = |of: usize| of / 8;
    let slice = gpus(&[0; 64].map(|_: i32| None), |a, b| if island(a) == island(b) { 50 } else { 1 });
    let held: Vec<String> = names(&slice).into_iter().step_by(8).skip(1).collect();
    let held: Vec<_> = held.iter().map(String::as_str).collect();
    let answer = prefer(&slice, &without(&slice, &held), &[], 8, Policy::default());
    let expected: Vec<_> = (0..8).map(|number| format!("GPU-{number:02}")).collect();
    assert_eq!(answer, expected, "the only whole island");
    let many = gpus(&[None; 129], |_, _| 0);
    assert_eq!(prefer(&many, &names(&many), &[], 2, Policy::default()), Vec::<String>::new());
}

/// The rules of the module, one after the other, without regard to speed. The order of the fields is the order of the rules.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Worth {
    distinct: usize,
    nodes: Reverse<usize>,
    links: u64,
    fresh: Reverse<usize>,
    load: i64,
    broken: Reverse<usize>,
    largest_left: usize,
    left_squared: usize,
}

type Named = BTreeSet<String>;

fn worth(slice: &[Device], free: &Named, must: &Named, policy: Policy, chosen: &Named) -> Worth {
    let devices: Vec<_> = slice.iter().filter(|device| chosen.contains(device.id.as_str())).collect();
    let card = |device: &Device| device.accelerator.id.to_string();
    let unit = |device: &Device| device.unit().to_string();
    let replicated = slice.iter().any(|device| device.replica.is_some());
    let partitioned = slice.iter().any(|device| device.partition.is_some());
    let ports = slice.iter().any(|device| {
        device.partition.as_ref().is_some_and(|partition| partition.profile == Partition::PORT)
    });
    let pool = |device: &Device| if replicated { unit(device) } else { card(device) };
    let count = |of: &dyn Fn(&Device) -> bool| {
        let mut counts: BTreeMap<String, i64> = BTreeMap::new();
        for device in slice {
            *counts.entry(pool(device)).or_default() += i64::from(of(device));
        }
        counts
    };
    let before = count(&|device| !free.contains(device.id.as_str()) || must.contains(device.id.as_str()));
    let after = count(&|device| !free.contains(device.id.as_str()) || chosen.contains(device.id.as_str()));
    let fresh = after.iter().filter(|(pool, count)| **count > 0 && before[*pool] == 0).count();
    let squares: i64 = after.values().map(|count| count * count).sum();
    let (packed, spread) = if replicated {
        (policy.replicas == Replicas::Packed, policy.replicas == Replicas::Distributed)
    } else if partitioned && !ports {
        (true, false)
    } else {
        (policy.cards == Cards::Packed, policy.cards == Cards::Balanced)
    };

    let weight = |a: &str, b: &str| {
        let from = slice.iter().find(|device| card(device) == a).unwrap();
        let to = DeviceId::new(b).unwrap();
        if partitioned { 0 } else { from.accelerator.links.get(&to).copied().unwrap_or(0) }
    };
    let touched: Named = devices.iter().map(|device| card(device)).collect();
    let pairs = touched.iter().flat_map(|a| touched.iter().map(move |b| (a, b))).filter(|(a, b)| a < b);
    let links = pairs.map(|(a, b)| u64::from(weight(a, b))).sum();

    let busy: Named = slice
        .iter()
        .filter(|device| !free.contains(device.id.as_str()) || must.contains(device.id.as_str()))
        .map(card)
        .collect();
    let cards: BTreeMap<String, Option<u32>> =
        slice.iter().map(|device| (card(device), device.accelerator.numa_node)).collect();
    let idle: Named = cards.keys().filter(|card| !busy.contains(*card)).cloned().collect();
    let mut groups: BTreeSet<Named> = BTreeSet::new();
    for node in cards.values() {
        groups.insert(idle.iter().filter(|card| cards[*card] == *node).cloned().collect());
    }
    for level in 1..=4 {
        for first in &idle {
            let mut group = Named::from([first.clone()]);
            loop {
                let near = |card: &&String| group.iter().any(|member| weight(member, card) >= level);
                let more: Named = idle.iter().filter(near).cloned().collect();
                if more.is_subset(&group) {
                    break;
                }
                group.extend(more);
            }
            groups.insert(group);
        }
    }
    groups.retain(|group| group.len() > 1);
    let left: Vec<usize> = groups.iter().map(|group| group.difference(&touched).count()).collect();
    let broken = groups.iter().zip(&left).filter(|(group, left)| **left > 0 && **left < group.len()).count();
    Worth {
        distinct: devices.iter().map(|device| unit(device)).collect::<BTreeSet<_>>().len(),
        nodes: Reverse(
            devices.iter().map(|device| device.accelerator.numa_node).collect::<BTreeSet<_>>().len(),
        ),
        links,
        fresh: Reverse(if packed { fresh } else { 0 }),
        load: if packed { squares } else { i64::from(spread) * -squares },
        broken: Reverse(broken),
        largest_left: left.iter().copied().max().unwrap_or(0),
        left_squared: left.iter().map(|left| left * left).sum(),
    }
}

/// How the devices of a machine are cut.
#[derive(Debug, Clone, Copy)]
enum Kind {
    Whole,
    Shares(u32),
    Parts(u32),
    Ports(u32),
}

fn kinds() -> impl Strategy<Value = Kind> {
    prop_oneof![
        3 => Just(Kind::Whole),
        1 => (1..4_u32).prop_map(Kind::Shares),
        1 => (1..4_u32).prop_map(Kind::Parts),
        1 => (1..4_u32).prop_map(Kind::Ports),
    ]
}

fn machine(kind: Kind, nodes: &[Option<u32>], weights: &[u32]) -> Vec<Device> {
    let link = |a: usize, b: usize| weights[a.min(b) * 8 + a.max(b)];
    let nodes = if matches!(kind, Kind::Whole) { nodes } else { &nodes[..nodes.len().min(3)] };
    let whole = gpus(nodes, link);
    whole
        .iter()
        .flat_map(|gpu| -> Vec<Device> {
            match kind {
                Kind::Whole => vec![gpu.clone()],
                Kind::Shares(count) => shares(gpu, count).collect(),
                Kind::Parts(count) => parts(gpu, count).collect(),
                Kind::Ports(count) => ports(gpu, count).collect(),
            }
        })
        .collect()
}

fn policies() -> impl Strategy<Value = Policy> {
    let replicas = prop_oneof![Just(Replicas::Distributed), Just(Replicas::Packed)];
    let cards = prop_oneof![Just(Cards::None), Just(Cards::Balanced), Just(Cards::Packed)];
    (replicas, cards).prop_map(|(replicas, cards)| Policy { replicas, cards })
}

proptest! {
    #[test]
    fn no_choice_is_better_than_the_answer(
        kind in kinds(),
        nodes in prop::collection::vec(prop::option::of(0..2_u32), 1..9),
        weights in prop::collection::vec(prop_oneof![2 => Just(0), 1 => 1..5_u32], 64),
        free in any::<u32>(),
        must in any::<u32>(),
        size in 1..7_usize,
        policy in policies(),
    ) {
        let slice = machine(kind, &nodes, &weights);
        let all = names(&slice);
        let pick = |mask: u32| -> Named {
            all.iter().enumerate().filter(|(bit, _)| mask >> bit & 1 == 1).map(|(_, id)| id.clone()).collect()
        };
        // Mostly free, and few that the kubelet insists on.
        let free_mask = free | free.rotate_left(7);
        let free = pick(free_mask);
        let must = pick(free_mask & must & must.rotate_left(11) & must.rotate_left(19));
        prop_assume!(!free.is_empty());
        let size = size.clamp(must.len().max(1), free.len().max(must.len()));

        let answer = prefer(
            &slice,
            &free.iter().cloned().collect::<Vec<_>>(),
            &must.iter().cloned().collect::<Vec<_>>(),
            size,
            policy,
        );

        let chosen: Named = answer.iter().cloned().collect();
        prop_assert_eq!((answer.len(), chosen.len()), (size, size));
        prop_assert!(chosen.is_subset(&free) && chosen.is_superset(&must));
        let mut ours = worth(&slice, &free, &must, policy, &chosen);
        let mut best = (0..1_u32 << all.len())
            .filter(|mask| mask.count_ones() as usize == size && mask & !free_mask == 0)
            .map(pick)
            .filter(|choice| choice.is_superset(&must))
            .map(|choice| worth(&slice, &free, &must, policy, &choice))
            .max()
            .unwrap();
        if ours.distinct < size {
            // More shares than devices: they are filled one after the other, which is not always the best way to pack.
            (ours.load, best.load) = (0, 0);
        }
        prop_assert_eq!(ours, best);
    }

    #[test]
    fn the_bounded_search_spans_the_fewest_nodes_and_finds_free_islands(
        nodes in prop::collection::vec(0..4_u32, 20..64),
        free in any::<u64>(),
        size in 9..12_usize,
    ) {
        let slice = gpus(&nodes.iter().copied().map(Some).collect::<Vec<_>>(), |a, b| u32::from(nodes[a] == nodes[b]) * 9);
        let free: Vec<String> = names(&slice)
            .into_iter()
            .enumerate()
            .filter(|(bit, _)| (free | free.rotate_left(9)) >> bit & 1 == 1)
            .map(|(_, id)| id)
            .collect();
        prop_assume!(size <= free.len());
        let answer: Named = prefer(&slice, &free, &[], size, Policy::default()).into_iter().collect();
        prop_assert_eq!(answer.len(), size);
        let node = |id: &String| slice.iter().find(|device| device.id.as_str() == id).unwrap().accelerator.numa_node;
        let mut room: BTreeMap<Option<u32>, usize> = BTreeMap::new();
        for id in &free {
            *room.entry(node(id)).or_default() += 1;
        }
        let mut sizes: Vec<_> = room.values().copied().collect();
        sizes.sort_unstable_by_key(|size| Reverse(*size));
        let mut open = size;
        let fewest = sizes.iter().take_while(|room| {
            let needed = open > 0;
            open = open.saturating_sub(**room);
            needed
        });
        let fewest = fewest.count();
        prop_assert_eq!(answer.iter().map(node).collect::<BTreeSet<_>>().len(), fewest);
    }
}
