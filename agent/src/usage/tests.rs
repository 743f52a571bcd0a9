use std::{fs, sync::Arc};

use spillway_device_plugin::{
    config::{Config, Overrides},
    device::{Health, Partition, Process, Readings, Replica},
    inventory::BackendState,
    sharing::Rules,
};

use super::*;
use crate::holders::Holding;

fn id(text: &str) -> DeviceId {
    DeviceId::new(text).unwrap()
}

fn process(pid: u32, partition: Option<&str>, memory_mib: Option<u64>) -> Process {
    Process { pid, partition: partition.map(id), memory_mib }
}

/// A GPU that says it is used by these processes.
fn gpu(name: &str, utilization: Option<u32>, processes: &[Process]) -> Accelerator {
    Accelerator {
        product: Some("NVIDIA Stand-in".to_owned()),
        memory_mib: Some(16_384),
        readings: Readings {
            utilization_percent: utilization,
            memory_used_mib: Some(1_000),
            processes: processes.to_vec(),
            ..Readings::default()
        },
        ..Accelerator::new(id(name))
    }
}

fn whole(accelerator: Accelerator) -> Device {
    Device {
        id: accelerator.id.clone(),
        resource: ResourceName::new("nvidia.com/gpu").unwrap(),
        health: Health::Healthy,
        nodes: [].into(),
        listed_in: None,
        accelerator: Arc::new(accelerator),
        partition: None,
        replica: None,
    }
}

/// Replicas with this budget each, in MiB.
fn replicas(accelerator: Accelerator, of: u32, memory_mib: Option<u64>) -> Vec<Device> {
    let device = whole(accelerator);
    let replica = |number| Device {
        id: id(&format!("{}::{number}", device.id)),
        replica: Some(Replica { number, of, memory_mib }),
        ..device.clone()
    };
    (0..of).map(replica).collect()
}

fn partitions(accelerator: Accelerator, names: &[&str]) -> Vec<Device> {
    let device = whole(accelerator);
    let part = |name: &&str| Device {
        id: id(name),
        partition: Some(Arc::new(Partition {
            id: id(name),
            profile: "1g.5gb".to_owned(),
            memory_mib: Some(5_000),
            instance: None,
            index: None,
        })),
        ..device.clone()
    };
    names.iter().map(part).collect()
}

fn holding(pod: &str, container: &str, devices: &[&str]) -> Holding {
    Holding {
        pod: PodRef {
            uid: format!("uid-{pod}"),
            namespace: Some("default".to_owned()),
            name: Some(pod.to_owned()),
        },
        container: container.to_owned(),
        resource: ResourceName::new("nvidia.com/gpu").unwrap(),
        devices: devices.iter().map(|name| id(name)).collect(),
    }
}

fn look(devices: Vec<Device>, holdings: Vec<Holding>, pods: &[(u32, &str)]) -> Usage {
    let (inventory, refused) = Inventory::default().with("nvml", BackendState::Running, devices);
    assert!(refused.is_empty());
    let pods = pods.iter().map(|(pid, pod)| (*pid, format!("uid-{pod}"))).collect();
    Look { inventory: &inventory, holders: &Holders { holdings }, pods: &pods, sees_processes: true }.usage()
}

/// Pod, container, memory used in MiB, utilisation, whether idle.
type Brief<'a> = (&'a str, Option<&'a str>, Option<u64>, Option<f64>, Option<bool>);

fn brief(usage: &Usage) -> Vec<Brief<'_>> {
    let brief = |one: &'_ Use| (one.memory_used.map(|bytes| bytes / MIB), one.utilization, one.is_idle);
    usage
        .uses
        .iter()
        .map(|one| {
            let (memory, utilization, idle) = brief(one);
            (one.key.pod.name.as_deref().unwrap(), one.container(), memory, utilization, idle)
        })
        .collect()
}

#[test]
fn a_gpu_of_its_own_is_all_its_holders() {
    let processes = [process(10, None, Some(300)), process(11, None, Some(200)), process(99, None, Some(1))];
    let usage = look(
        vec![whole(gpu("GPU-0", Some(40), &processes)), whole(gpu("GPU-1", Some(0), &[]))],
        vec![holding("train", "main", &["GPU-0"]), holding("lazy", "main", &["GPU-1"])],
        &[(10, "train"), (11, "train")],
    );
    assert_eq!(
        brief(&usage),
        [
            ("lazy", Some("main"), Some(0), Some(0.0), Some(true)),
            ("train", Some("main"), Some(500), Some(0.4), Some(false)),
        ]
    );
    assert_eq!(usage.strangers, BTreeMap::from([(id("GPU-0"), 1), (id("GPU-1"), 0)]));
}

#[test]
fn of_a_shared_gpu_each_pod_has_its_processes() {
    let processes = [process(10, None, Some(300)), process(20, None, Some(700)), process(30, None, None)];
    let usage = look(
        replicas(gpu("GPU-0", Some(90), &processes), 4, Some(4_096)),
        vec![
            holding("a", "main", &["GPU-0::0"]),
            holding("b", "main", &["GPU-0::1", "GPU-0::2"]),
            holding("idle", "main", &["GPU-0::3"]),
        ],
        &[(10, "a"), (20, "b"), (30, "b")],
    );
    assert_eq!(
        brief(&usage),
        [
            ("a", Some("main"), Some(300), None, Some(false)),
            ("b", Some("main"), Some(700), None, Some(false)),
            // Without a process nobody computes.
            ("idle", Some("main"), Some(0), Some(0.0), Some(true)),
        ]
    );
    let limits: Vec<_> = usage.uses.iter().map(|one| one.memory_limit.map(|limit| limit / MIB)).collect();
    assert_eq!(limits, [Some(4_096), Some(8_192), Some(4_096)]);
}

#[test]
fn partitions_of_one_gpu_are_told_apart() {
    let processes = [process(10, Some("MIG-a"), Some(300)), process(10, Some("MIG-b"), Some(50))];
    let usage = look(
        partitions(gpu("GPU-0", None, &processes), &["MIG-a", "MIG-b", "MIG-c"]),
        vec![holding("a", "main", &["MIG-a", "MIG-b"]), holding("c", "main", &["MIG-c"])],
        &[(10, "a")],
    );
    assert_eq!(
        brief(&usage),
        [
            ("a", Some("main"), Some(300), None, Some(false)),
            ("a", Some("main"), Some(50), None, Some(false)),
            ("c", Some("main"), Some(0), Some(0.0), Some(true)),
        ]
    );
}

#[test]
fn of_a_shared_gpu_utilisation_is_that_of_a_pods_processes_where_the_driver_tells() {
    let processes = [10, 20, 21, 30].map(|pid| process(pid, None, Some(100)));
    let mut gpu = gpu("GPU-0", Some(95), &processes);
    // Samples of shared time add up to more than there is, at times.
    let told = [(20, 60), (21, 55), (30, 5), (99, 50)];
    gpu.readings.process_utilization_percent = Some(BTreeMap::from(told));
    let holdings = ["a", "b", "c"]
        .into_iter()
        .zip(["GPU-0::0", "GPU-0::1", "GPU-0::2"])
        .map(|(pod, id)| holding(pod, "main", &[id]));
    let pods = [(10, "a"), (20, "b"), (21, "b"), (30, "c")];
    let usage = look(replicas(gpu.clone(), 4, None), holdings.collect(), &pods);
    let told: Vec<_> = usage.uses.iter().map(|one| (one.utilization, one.is_idle)).collect();
    assert_eq!(told, [(Some(0.0), Some(true)), (Some(1.0), Some(false)), (Some(0.05), Some(false))]);
    // Alone, it has the whole, which is more certain.
    let usage = look(replicas(gpu, 4, None), vec![holding("b", "main", &["GPU-0::1"])], &pods);
    assert_eq!((usage.uses[0].utilization, usage.uses[0].is_idle), (Some(0.95), Some(false)));
}

#[test]
fn a_partition_has_a_utilisation_where_it_is_measured() {
    let mut gpu =
        gpu("GPU-0", None, &[process(10, Some("MIG-a"), Some(300)), process(11, Some("MIG-b"), None)]);
    gpu.readings.partition_utilization_percent = BTreeMap::from([(id("MIG-a"), 0)]);
    let usage = look(
        partitions(gpu, &["MIG-a", "MIG-b"]),
        vec![holding("a", "main", &["MIG-a"]), holding("b", "main", &["MIG-b"])],
        &[(10, "a"), (11, "b")],
    );
    assert_eq!(
        brief(&usage),
        [("a", Some("main"), Some(300), Some(0.0), Some(true)), ("b", Some("main"), None, None, Some(false)),]
    );
}

#[test]
fn containers_of_one_pod_on_one_gpu_are_the_pod() {
    let usage = look(
        replicas(gpu("GPU-0", Some(10), &[process(10, None, Some(300))]), 2, Some(100)),
        vec![holding("pod", "first", &["GPU-0::0"]), holding("pod", "second", &["GPU-0::1"])],
        &[(10, "pod")],
    );
    assert_eq!(brief(&usage), [("pod", None, Some(300), Some(0.1), Some(false))]);
    assert_eq!(usage.uses[0].memory_limit, Some(200 * MIB));
    // An init container's replica is its main container's afterwards, and counts once.
    let usage = look(
        replicas(gpu("GPU-0", None, &[]), 2, Some(100)),
        vec![holding("pod", "init", &["GPU-0::0"]), holding("pod", "main", &["GPU-0::0"])],
        &[],
    );
    assert_eq!(usage.uses[0].memory_limit, Some(100 * MIB));
}

#[test]
fn what_was_shared_otherwise_when_it_was_given_is_held_all_the_same() {
    let processes = [process(10, None, Some(300)), process(20, None, Some(50))];
    let shared = |pod, id| Holding {
        resource: ResourceName::new("nvidia.com/gpu.shared").unwrap(),
        ..holding(pod, "main", &[id])
    };
    // Shares of a GPU that is offered as a whole by now, and names that are of nobody here.
    let holdings = vec![
        shared("old", "GPU-0::1"),
        holding("new", "main", &["GPU-0"]),
        shared("unknown", "GPU-9::0"),
        shared("unknown", "GPU-0::x"),
        Holding {
            resource: ResourceName::new("example.com/gpu").unwrap(),
            ..holding("other", "main", &["GPU-0::0"])
        },
    ];
    let pods = [(10, "old"), (20, "new")];
    let usage = look(vec![whole(gpu("GPU-0", Some(50), &processes))], holdings, &pods);
    assert_eq!(
        brief(&usage),
        [
            ("new", Some("main"), Some(50), None, Some(false)),
            ("old", Some("main"), Some(300), None, Some(false)),
        ]
    );
    assert_eq!(usage.strangers[&id("GPU-0")], 0);
    let (_, resource) = usage.uses[1].containers.keys().next().unwrap();
    assert_eq!((resource.as_str(), usage.uses[1].memory_limit), ("nvidia.com/gpu.shared", None));
    // And the other way round.
    let sharing = b"sharing: {timeSlicing: {resources: [{name: nvidia.com/gpu, replicas: 2}]}}";
    let config = Config::load("a test", sharing, &Overrides::default()).unwrap().config;
    let found = vec![whole(gpu("GPU-0", Some(50), &processes))];
    let (inventory, _) = Inventory::default().ruled_by(Arc::new(Rules::of(&config))).with(
        "nvml",
        BackendState::Running,
        found,
    );
    let holders = Holders { holdings: vec![holding("old", "main", &["GPU-0"])] };
    let pods = BTreeMap::from([(10, "uid-old".to_owned())]);
    let usage = Look { inventory: &inventory, holders: &holders, pods: &pods, sees_processes: true }.usage();
    assert_eq!(brief(&usage), [("old", Some("main"), Some(300), Some(0.5), Some(false))]);
}

#[test]
fn what_does_not_show_is_not_claimed() {
    // An FPGA has neither processes nor utilisation.
    let fpga = whole(Accelerator::new(id("fpga-0")));
    let usage = look(vec![fpga], vec![holding("pod", "main", &["fpga-0"])], &[]);
    assert_eq!(brief(&usage), [("pod", Some("main"), None, None, None)]);
    assert_eq!((usage.uses[0].memory_limit, usage.strangers.len()), (None, 0));

    // Without a view of other containers' processes a shared GPU says nothing, one of its own what it measures itself.
    let devices = [replicas(gpu("GPU-0", Some(50), &[]), 2, None), vec![whole(gpu("GPU-1", Some(50), &[]))]];
    let (inventory, _) = Inventory::default().with("nvml", BackendState::Running, devices.concat());
    let holdings = vec![
        holding("a", "main", &["GPU-0::0"]),
        holding("b", "main", &["GPU-0::1"]),
        holding("c", "main", &["GPU-1"]),
    ];
    let (holders, pods) = (Holders { holdings }, BTreeMap::new());
    let blind = Look { inventory: &inventory, holders: &holders, pods: &pods, sees_processes: false };
    assert_eq!(
        brief(&blind.usage()),
        [
            ("a", Some("main"), None, None, None),
            ("b", Some("main"), None, None, None),
            ("c", Some("main"), None, Some(0.5), Some(false)),
        ]
    );
}

#[test]
fn too_many_holdings_are_counted_only() {
    let of = u32::try_from(LIMIT).unwrap() + 5;
    let devices = replicas(gpu("GPU-0", None, &[]), of, None);
    let holdings = (0..of).map(|n| holding(&format!("pod-{n}"), "main", &[&format!("GPU-0::{n}")]));
    let usage = look(devices, holdings.collect(), &[]);
    assert_eq!((usage.uses.len(), usage.left_out), (LIMIT, 5));
}

#[test]
fn only_time_spent_idle_counts_and_only_while_it_is_held() {
    let second = Duration::from_secs(1);
    let at = |utilization| {
        look(vec![whole(gpu("GPU-0", Some(utilization), &[]))], vec![holding("pod", "main", &["GPU-0"])], &[])
    };
    let mut idleness = Idleness::default();
    let mut seen = Vec::new();
    for utilization in [0, 0, 50, 0] {
        let mut usage = at(utilization);
        idleness.add(&mut usage, second);
        seen.push(usage.uses[0].idle_for);
    }
    assert_eq!(seen, [Duration::ZERO, second, second, second * 2]);
    idleness.add(&mut Usage::default(), second);
    let mut again = at(0);
    idleness.add(&mut again, second);
    assert_eq!(again.uses[0].idle_for, Duration::ZERO);
}

#[tokio::test]
async fn usage_follows_inventory_holders_and_processes() {
    let proc = tempfile::tempdir().unwrap();
    fs::create_dir(proc.path().join("10")).unwrap();
    fs::write(proc.path().join("10/cgroup"), "0::/kubepods/poduid-0/x\n").unwrap();
    let device = |processes: &[Process]| vec![whole(gpu("GPU-0", None, processes))];
    let (first, _) = Inventory::default().with("nvml", BackendState::Running, device(&[]));
    let inventory = watch::Sender::new(first.clone());
    let following = Following::default();
    following.all.send_replace(Holders { holdings: vec![holding("0", "main", &["GPU-0"])] });
    let sources = Sources {
        inventory: inventory.subscribe(),
        following: following.clone(),
        processes: Processes::at(proc.path()),
        sees_processes: true,
    };
    let usage = watch::Sender::new(Usage::default());
    let stop = CancellationToken::new();
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(run(sources, usage.clone(), Duration::from_millis(20), stop.clone()));

    let mut seen = usage.subscribe();
    let memory = |usage: &Usage| Some(usage.uses.first()?.memory_used? / MIB);
    seen.wait_for(|usage| memory(usage) == Some(0)).await.unwrap();
    inventory
        .send_replace(first.with("nvml", BackendState::Running, device(&[process(10, None, Some(7))])).0);
    seen.wait_for(|usage| memory(usage) == Some(7)).await.unwrap();
    // PodResources knows better than the checkpoint: the pod has ended.
    following.active.send_replace(Some(Holders::default()));
    seen.wait_for(|usage| usage.uses.is_empty() && usage.strangers[&id("GPU-0")] == 1).await.unwrap();
    stop.cancel();
    tasks.join_all().await;
}
