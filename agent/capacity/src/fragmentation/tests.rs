use proptest::prelude::*;

use super::*;

const GI: i64 = 1 << 30;

fn shape(devices: i64, cores: i64, memory_gi: i64) -> Shape {
    Shape { devices, cpu_milli: cores * 1000, memory_bytes: memory_gi * GI }
}

fn room(devices: i64, cores: i64, memory_gi: i64, pods: i64) -> Room {
    Room { devices, cpu_milli: cores * 1000, memory_bytes: memory_gi * GI, pods }
}

/// A room, the shapes that there are, and what is lost.
type Case<'a> = (Room, &'a [Shape], &'a [(Cause, i64)]);

#[test]
fn each_device_that_is_lost_has_one_cause() {
    let job = [shape(4, 16, 64)];
    let cases: [Case<'_>; 9] = [
        (room(8, 64, 512, 100), &job, &[]),
        (room(2, 64, 512, 100), &job, &[(Cause::TooFew, 2)]),
        (room(6, 64, 512, 100), &job, &[(Cause::TooFew, 2)]),
        (room(4, 2, 512, 100), &job, &[(Cause::Cpu, 4)]),
        (room(4, 64, 8, 100), &job, &[(Cause::Memory, 4)]),
        (room(4, 2, 8, 100), &job, &[(Cause::CpuAndMemory, 4)]),
        (room(4, 64, 512, 0), &job, &[(Cause::Pods, 4)]),
        (room(7, 16, 512, 100), &job, &[(Cause::TooFew, 3)]),
        // 4 + 3 take all.
        (room(7, 64, 512, 100), &[shape(4, 1, 1), shape(3, 1, 1)], &[]),
    ];
    for (room, shapes, lost) in cases {
        assert_eq!(room.stranded(shapes), lost, "{room:?}");
    }
}

#[test]
fn the_largest_pod_needs_cpu_beside_its_devices() {
    let beside = least_beside(&[shape(4, 16, 64), shape(1, 8, 8)]);
    assert_eq!(beside, Shape { devices: 1, cpu_milli: 4000, memory_bytes: 8 * GI });
    assert_eq!(room(8, 12, 512, 9).largest(&beside), 3);
    assert_eq!(room(8, 128, 512, 0).largest(&beside), 0);
    assert_eq!(room(8, 0, 0, 1).largest(&least_beside(&[])), 8);
}

#[test]
fn shapes_that_only_take_more_are_left_out() {
    let all = vec![shape(1, 8, 8), shape(1, 4, 16), shape(1, 8, 16), shape(2, 1, 1), shape(1, 8, 8)];
    assert_eq!(distinct(all), [shape(2, 1, 1), shape(1, 8, 8), shape(1, 4, 16)]);
}

#[test]
fn fragmentation_is_what_a_random_pod_cant_use() {
    let rooms = [room(2, 64, 64, 9), room(6, 64, 64, 9)];
    // A quarter of the pods want 4: they can't use 2 of 8.
    let share = expected(&rooms, &[(shape(1, 1, 1), 3), (shape(4, 1, 1), 1)]).unwrap();
    assert!((share - 0.25 * 0.25).abs() < 1e-12, "{share}");
    assert_eq!(expected(&[], &[(shape(1, 1, 1), 1)]), None);
    assert_eq!(expected(&rooms, &[]), None);
}

/// The most devices by trying everything.
fn brute(room: &Room, shapes: &[Shape]) -> i64 {
    let tries = shapes.iter().filter(|shape| room.fits(shape) > 0);
    tries.map(|shape| shape.devices + brute(&room.without(shape, 1), shapes)).max().unwrap_or(0)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn usable_is_what_trying_everything_finds(
        devices in 0..10_i64, cores in 0..16_i64, memory in 0..16_i64, pods in 0..6_i64,
        shapes in prop::collection::vec((1..5_i64, 0..6_i64, 0..6_i64), 0..4),
    ) {
        let room = room(devices, cores, memory, pods);
        let shapes: Vec<_> = shapes.into_iter().map(|(devices, cores, memory)| shape(devices, cores, memory)).collect();
        let usable = room.usable(&shapes);
        prop_assert_eq!(usable, brute(&room, &shapes));
        prop_assert_eq!(room.usable(&distinct(shapes.clone())), usable, "dropping shapes changed it");
        let lost: i64 = room.stranded(&shapes).iter().map(|(_, count)| count).sum();
        prop_assert_eq!(lost, devices - usable, "a device was lost without a cause");
    }

    #[test]
    fn nothing_overflows(values in prop::array::uniform4(any::<i64>()), shapes in prop::collection::vec(any::<(i64, i64, i64)>(), 0..3)) {
        let [devices, cpu_milli, memory_bytes, pods] = values;
        let room = Room { devices, cpu_milli, memory_bytes, pods };
        let shapes: Vec<_> = shapes.into_iter().map(|(devices, cpu_milli, memory_bytes)| Shape { devices, cpu_milli, memory_bytes }).collect();
        room.stranded(&shapes);
        room.largest(&least_beside(&shapes));
    }
}
