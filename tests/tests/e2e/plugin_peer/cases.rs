//! What both plugins are started with and asked for.

use std::io;

use spillway_tests::standin::{GpuStandin, MigStandin};

use super::case::{Ask, Case, GPU, PLAIN, Shape, allocate, prefer};

fn one_and_two() -> Vec<Ask> {
    vec![allocate(GPU, &[0]), allocate(GPU, &[0, 1])]
}

/// A DGX-1's links.
const CUBE_MESH: &[(u32, u32, u32)] = &[
    (0, 1, 1),
    (0, 2, 1),
    (0, 3, 2),
    (0, 4, 2),
    (1, 2, 2),
    (1, 3, 1),
    (1, 5, 2),
    (2, 3, 2),
    (2, 6, 1),
    (3, 7, 1),
    (4, 5, 1),
    (4, 6, 1),
    (4, 7, 2),
    (5, 6, 2),
    (5, 7, 1),
    (6, 7, 2),
];

fn sevenths(gpus: u32) -> Vec<(u32, Vec<MigStandin>)> {
    (0..gpus).map(|minor| (minor, (7..14).map(|gi| MigStandin::new(gi, "1g.5gb")).collect())).collect()
}

fn several() -> Vec<(u32, Vec<MigStandin>)> {
    let first = [(1, "3g.20gb"), (5, "2g.10gb"), (9, "1g.5gb"), (10, "1g.5gb+me")];
    let second = [(3, "2g.10gb"), (7, "1g.10gb"), (8, "1g.5gb")];
    [&first[..], &second[..]]
        .into_iter()
        .zip(0..)
        .map(|(list, minor)| {
            (minor, list.iter().map(|(gi, profile)| MigStandin::new(*gi, profile)).collect())
        })
        .collect()
}

fn parts_of_an_instance() -> Vec<(u32, Vec<MigStandin>)> {
    let part = |ci| MigStandin { gi: 1, ci, profile: "1c.3g.20gb" };
    vec![(0, vec![part(0), part(1), MigStandin::new(9, "1g.5gb")])]
}

/// Nearer on the same NUMA node, as NVML has it (`NVML_TOPOLOGY_NODE`, `NVML_TOPOLOGY_SYSTEM`).
fn two_nodes(gpus: &GpuStandin, count: u32) -> io::Result<()> {
    for one in 0..count {
        gpus.set_numa_node(one, one * 2 / count)?;
        for other in 0..one {
            let level = if one * 2 / count == other * 2 / count { 40 } else { 50 };
            gpus.set(one, &format!("topology/{}", GpuStandin::uuid(other)), level)?;
        }
    }
    Ok(())
}

pub(super) fn all() -> Vec<Case> {
    let mut cases = plain();
    cases.extend(lists());
    cases.extend(shared());
    cases.extend(partitioned());
    cases.extend(places());
    cases.extend(broken());
    cases.extend(features());
    cases.extend(mistakes());
    cases
}

fn plain() -> Vec<Case> {
    vec![
        Case {
            name: "defaults",
            gpus: 8,
            offers: &[(GPU, 8)],
            asks: vec![
                allocate(GPU, &[0]),
                allocate(GPU, &[1, 4, 7]),
                Ask { resource: GPU, shape: Shape::Unknown },
            ],
            ..PLAIN
        },
        Case { name: "no gpu", gpus: 0, offers: &[], ..PLAIN },
    ]
}

fn lists() -> Vec<Case> {
    let one = |name, config| Case { name, config, asks: one_and_two(), ..PLAIN };
    vec![
        one("device specs", "version: v1\nflags: {plugin: {passDeviceSpecs: true}}\n"),
        one(
            "no device specs, index",
            "version: v1\nflags: {plugin: {passDeviceSpecs: false, deviceIDStrategy: index}}\n",
        ),
        one(
            "volume mounts",
            "version: v1\nflags: {plugin: {passDeviceSpecs: false, deviceListStrategy: volume-mounts}}\n",
        ),
        one(
            "cdi annotations",
            "version: v1\nflags: {plugin: {passDeviceSpecs: true, deviceListStrategy: [cdi-annotations]}}\n",
        ),
        one(
            "cdi cri",
            "version: v1\nflags: {plugin: {passDeviceSpecs: true, deviceListStrategy: [cdi-cri]}}\n",
        ),
        one(
            "every strategy, index",
            "version: v1
flags:
  plugin:
    passDeviceSpecs: true
    deviceIDStrategy: index
    cdiAnnotationPrefix: example.com/
    deviceListStrategy: [envvar, volume-mounts, cdi-annotations, cdi-cri]
",
        ),
    ]
}

fn shared() -> Vec<Case> {
    const SHARES: &[(&str, usize)] = &[(GPU, 8)];
    vec![
        Case {
            name: "time slicing",
            config: "version: v1\nflags: {plugin: {passDeviceSpecs: false}}\nsharing: {timeSlicing: {resources: [{name: nvidia.com/gpu, replicas: 4}]}}\n",
            offers: SHARES,
            asks: vec![
                allocate(GPU, &[0]),
                allocate(GPU, &[0, 1]),
                allocate(GPU, &[0, 5]),
                prefer(&[], &[], 2),
                prefer(&[0, 1], &[], 2),
                prefer(&[], &[2], 4),
            ],
            ..PLAIN
        },
        Case {
            name: "time slicing, renamed, one each",
            config: "version: v1
flags: {plugin: {passDeviceSpecs: false, deviceIDStrategy: index}}
sharing:
  timeSlicing: {renameByDefault: true, failRequestsGreaterThanOne: true, resources: [{name: nvidia.com/gpu, replicas: 4}]}
",
            offers: &[("nvidia.com/gpu.shared", 8)],
            asks: vec![allocate("nvidia.com/gpu.shared", &[5]), allocate("nvidia.com/gpu.shared", &[0, 5])],
            ..PLAIN
        },
        Case {
            name: "mps",
            config: "version: v1\nflags: {mpsRoot: /run/nvidia/mps, plugin: {passDeviceSpecs: false}}\nsharing: {mps: {resources: [{name: nvidia.com/gpu, replicas: 4}]}}\n",
            offers: SHARES,
            asks: vec![allocate(GPU, &[0]), allocate(GPU, &[0, 1])],
            ..PLAIN
        },
        Case {
            name: "mps, renamed",
            config: "version: v1\nflags: {mpsRoot: /run/nvidia/mps, plugin: {passDeviceSpecs: false}}\nsharing: {mps: {renameByDefault: true, resources: [{name: nvidia.com/gpu, replicas: 2}]}}\n",
            offers: &[("nvidia.com/gpu.shared", 4)],
            asks: vec![allocate("nvidia.com/gpu.shared", &[3])],
            ..PLAIN
        },
    ]
}

fn partitioned() -> Vec<Case> {
    let mut cases = alike();
    cases.extend(mixed());
    cases
}

fn alike() -> Vec<Case> {
    vec![
        Case {
            name: "mig on, strategy none",
            migs: || sevenths(1),
            asks: one_and_two(),
            config: "version: v1\nflags: {plugin: {passDeviceSpecs: true}}\n",
            ..PLAIN
        },
        Case {
            name: "mig single",
            migs: || sevenths(2),
            config: "version: v1\nflags: {migStrategy: single, plugin: {passDeviceSpecs: true}}\n",
            offers: &[(GPU, 14)],
            asks: vec![allocate(GPU, &[0]), allocate(GPU, &[0, 13]), prefer(&[], &[], 3)],
            ..PLAIN
        },
        Case {
            name: "mig single, none enabled",
            config: "version: v1\nflags: {migStrategy: single, plugin: {passDeviceSpecs: true}}\n",
            asks: one_and_two(),
            ..PLAIN
        },
        Case {
            name: "mig single, time slicing",
            migs: || sevenths(2),
            config: "version: v1\nflags: {migStrategy: single, plugin: {passDeviceSpecs: false}}\nsharing: {timeSlicing: {resources: [{name: nvidia.com/gpu, replicas: 2}]}}\n",
            offers: &[(GPU, 28)],
            asks: vec![allocate(GPU, &[0]), allocate(GPU, &[0, 1, 27]), prefer(&[], &[], 3)],
            ..PLAIN
        },
        Case {
            name: "mig single, several profiles",
            migs: several,
            ours: Some(&[(GPU, 7)]),
            ends: (true, false),
            config: "version: v1\nflags: {migStrategy: single}\n",
            offers: &[],
            ..PLAIN
        },
        Case {
            name: "mig single, one gpu without",
            migs: || sevenths(1),
            ours: Some(&[(GPU, 8)]),
            ends: (true, false),
            config: "version: v1\nflags: {migStrategy: single}\n",
            offers: &[],
            ..PLAIN
        },
    ]
}

fn mixed() -> Vec<Case> {
    vec![
        Case {
            name: "mig mixed",
            gpus: 3,
            migs: several,
            config: "version: v1\nflags: {migStrategy: mixed, plugin: {passDeviceSpecs: true}}\n",
            offers: &[
                (GPU, 1),
                ("nvidia.com/mig-3g.20gb", 1),
                ("nvidia.com/mig-2g.10gb", 2),
                ("nvidia.com/mig-1g.5gb", 3),
                ("nvidia.com/mig-1g.10gb", 1),
            ],
            ours: Some(&[
                (GPU, 1),
                ("nvidia.com/mig-3g.20gb", 1),
                ("nvidia.com/mig-2g.10gb", 2),
                ("nvidia.com/mig-1g.5gb", 2),
                ("nvidia.com/mig-1g.5gb.me", 1),
                ("nvidia.com/mig-1g.10gb", 1),
            ]),
            asks: vec![
                allocate(GPU, &[0]),
                allocate("nvidia.com/mig-2g.10gb", &[0, 1]),
                allocate("nvidia.com/mig-1g.5gb.me", &[0]),
            ],
            ..PLAIN
        },
        Case {
            name: "mig mixed, index, cdi, shared",
            gpus: 3,
            migs: several,
            config: "version: v1
flags: {migStrategy: mixed, plugin: {passDeviceSpecs: true, deviceIDStrategy: index, deviceListStrategy: [envvar, cdi-cri]}}
sharing: {timeSlicing: {resources: [{name: nvidia.com/mig-2g.10gb, replicas: 2}]}}
",
            offers: &[
                (GPU, 1),
                ("nvidia.com/mig-3g.20gb", 1),
                ("nvidia.com/mig-2g.10gb", 4),
                ("nvidia.com/mig-1g.5gb", 3),
                ("nvidia.com/mig-1g.10gb", 1),
            ],
            ours: Some(&[
                (GPU, 1),
                ("nvidia.com/mig-3g.20gb", 1),
                ("nvidia.com/mig-2g.10gb", 4),
                ("nvidia.com/mig-1g.5gb", 2),
                ("nvidia.com/mig-1g.5gb.me", 1),
                ("nvidia.com/mig-1g.10gb", 1),
            ]),
            asks: vec![
                allocate(GPU, &[0]),
                allocate("nvidia.com/mig-2g.10gb", &[0]),
                allocate("nvidia.com/mig-2g.10gb", &[0, 3]),
                allocate("nvidia.com/mig-1g.5gb", &[0]),
            ],
            ..PLAIN
        },
        Case {
            name: "mig mixed, compute instances",
            gpus: 1,
            migs: parts_of_an_instance,
            config: "version: v1\nflags: {migStrategy: mixed}\n",
            offers: &[("nvidia.com/mig-3g.20gb", 2), ("nvidia.com/mig-1g.5gb", 1)],
            ours: Some(&[("nvidia.com/mig-1g.5gb", 1)]),
            ..PLAIN
        },
    ]
}

fn places() -> Vec<Case> {
    vec![
        Case {
            name: "numa",
            gpus: 4,
            machine: |gpus| {
                two_nodes(gpus, 4)?;
                gpus.set(0, "bus-id", "00000000:10:00.0")
            },
            offers: &[(GPU, 4)],
            asks: vec![prefer(&[], &[], 2), prefer(&[0], &[], 2), prefer(&[], &[3], 2)],
            ..PLAIN
        },
        Case {
            name: "nvlink",
            gpus: 8,
            machine: |gpus| two_nodes(gpus, 8),
            links: CUBE_MESH,
            offers: &[(GPU, 8)],
            asks: vec![
                prefer(&[], &[], 1),
                prefer(&[], &[], 2),
                prefer(&[], &[], 4),
                prefer(&[], &[5], 2),
                prefer(&[0, 3], &[], 3),
                prefer(&[], &[], 8),
            ],
            ..PLAIN
        },
    ]
}

fn broken() -> Vec<Case> {
    vec![
        Case {
            name: "xid",
            gpus: 3,
            offers: &[(GPU, 3)],
            breaks: Some((
                |gpus| {
                    gpus.xid(1, 13)?;
                    gpus.xid(2, 79)
                },
                "marked unhealthy",
            )),
            ..PLAIN
        },
        Case {
            name: "xid of a shared gpu",
            config: "version: v1\nsharing: {timeSlicing: {resources: [{name: nvidia.com/gpu, replicas: 2}]}}\n",
            offers: &[(GPU, 4)],
            breaks: Some((|gpus| gpus.xid(1, 79), "marked unhealthy")),
            ..PLAIN
        },
        Case {
            name: "xid of a partition",
            migs: || sevenths(1),
            gpus: 1,
            config: "version: v1\nflags: {migStrategy: single}\n",
            offers: &[(GPU, 7)],
            breaks: Some((|gpus| gpus.xid_of(0, MigStandin::new(9, "1g.5gb"), 94), "Processing event")),
            ..PLAIN
        },
    ]
}

fn features() -> Vec<Case> {
    vec![
        Case {
            name: "gds, mofed, gdrcopy",
            config: "version: v1\nflags: {gdsEnabled: true, mofedEnabled: true, gdrcopyEnabled: true, plugin: {passDeviceSpecs: false}}\n",
            asks: one_and_two(),
            ..PLAIN
        },
        Case {
            name: "gds, mofed, gdrcopy by cdi",
            config: "version: v1\nflags: {gdsEnabled: true, mofedEnabled: true, gdrcopyEnabled: true, plugin: {deviceListStrategy: [cdi-cri]}}\n",
            asks: one_and_two(),
            ..PLAIN
        },
        Case {
            name: "what gds, mofed, gdrcopy need",
            config: "version: v1\nflags: {gdsEnabled: true, mofedEnabled: true, gdrcopyEnabled: true, plugin: {deviceListStrategy: [cdi-cri]}}\n",
            asks: one_and_two(),
            nodes: &["/dev/gdrdrv", "/dev/nvidia-fs0", "/dev/infiniband/uverbs0", "/dev/infiniband/rdma_cm"],
            ..PLAIN
        },
        Case {
            name: "imex channel that there isn't",
            config: "version: v1\nimex: {channelIDs: [0]}\nflags: {plugin: {passDeviceSpecs: false}}\n",
            asks: one_and_two(),
            ..PLAIN
        },
        Case {
            name: "imex channel",
            config: "version: v1\nimex: {channelIDs: [0]}\nflags: {plugin: {passDeviceSpecs: true, deviceListStrategy: [envvar, cdi-cri]}}\n",
            asks: one_and_two(),
            nodes: &["/dev/nvidia-caps-imex-channels/channel0"],
            ..PLAIN
        },
        Case {
            name: "imex channel by mounts",
            config: "version: v1\nimex: {channelIDs: [0]}\nflags: {plugin: {passDeviceSpecs: true, deviceListStrategy: [volume-mounts]}}\n",
            asks: one_and_two(),
            nodes: &["/dev/nvidia-caps-imex-channels/channel0"],
            ..PLAIN
        },
        Case {
            name: "fabric",
            machine: |gpus| {
                for minor in 0..2 {
                    gpus.set(minor, "fabric", "8f5c9b0e-5e1c-4d7f-9f6b-6d9a3b2c1d0e 7")?;
                }
                Ok(())
            },
            ..PLAIN
        },
        Case {
            name: "names that are no labels",
            machine: |gpus| {
                gpus.set(0, "name", "NVIDIA  RTX\u{2122} (made/up) Ada_Generation+")?;
                gpus.set(1, "name", "NVIDIA  RTX\u{2122} (made/up) Ada_Generation+")?;
                gpus.set(0, "compute-capability", "8.9")?;
                gpus.set(1, "compute-capability", "8.9")
            },
            ..PLAIN
        },
        Case { name: "two products", machine: |gpus| gpus.set(1, "name", "NVIDIA Another Standin"), ..PLAIN },
    ]
}

fn mistakes() -> Vec<Case> {
    let wrong =
        |name, config| Case { name, config, offers: &[], ends: (true, true), only_starts: true, ..PLAIN };
    vec![
        wrong("unknown version", "version: v2\n"),
        wrong("unknown mig strategy", "version: v1\nflags: {migStrategy: some}\n"),
        wrong("unknown list strategy", "version: v1\nflags: {plugin: {deviceListStrategy: [cdi]}}\n"),
        wrong("unknown id strategy", "version: v1\nflags: {plugin: {deviceIDStrategy: name}}\n"),
        wrong("a flag of another type", "version: v1\nflags: {failOnInitError: 7}\n"),
        wrong(
            "no replicas",
            "version: v1\nsharing: {timeSlicing: {resources: [{name: nvidia.com/gpu, replicas: 0}]}}\n",
        ),
        wrong(
            "a replica without a name",
            "version: v1\nsharing: {timeSlicing: {resources: [{replicas: 2}]}}\n",
        ),
        wrong("no yaml", "version: v1\nflags: [\n"),
        wrong(
            "mps and mixed",
            "version: v1\nflags: {migStrategy: mixed, mpsRoot: /run/nvidia/mps}\nsharing: {mps: {resources: [{name: nvidia.com/gpu, replicas: 2}]}}\n",
        ),
        wrong("another imex channel", "version: v1\nimex: {channelIDs: [1]}\n"),
        Case {
            ends: (true, false),
            ours: Some(&[(GPU, 2)]),
            ..wrong("a required imex channel", "version: v1\nimex: {channelIDs: [0], required: true}\n")
        },
        Case {
            offers: &[(GPU, 2)],
            ends: (false, true),
            ..wrong("unknown key", "version: v1\nflags: {migStrategie: single}\n")
        },
        Case {
            offers: &[(GPU, 2)],
            ends: (false, false),
            ..wrong(
                "one replica",
                "version: v1\nsharing: {timeSlicing: {resources: [{name: nvidia.com/gpu, replicas: 1}]}}\n",
            )
        },
    ]
}
