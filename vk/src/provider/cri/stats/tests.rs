use super::*;

fn sandbox(id: &str, uid: &str, created_at: i64, state: wire::PodSandboxState) -> wire::PodSandbox {
    let metadata =
        wire::PodSandboxMetadata { name: "web".into(), namespace: "ns".into(), uid: uid.into(), attempt: 0 };
    wire::PodSandbox {
        id: id.to_owned(),
        metadata: Some(metadata),
        state: state.into(),
        created_at,
        ..Default::default()
    }
}

fn container(id: &str, sandbox: &str, state: wire::ContainerState) -> wire::Container {
    wire::Container {
        id: id.to_owned(),
        pod_sandbox_id: sandbox.to_owned(),
        metadata: Some(wire::ContainerMetadata { name: format!("name-of-{id}"), attempt: 0 }),
        state: state.into(),
        ..Default::default()
    }
}

fn told(id: &str, nanoseconds: u64) -> wire::ContainerStats {
    let value = |value| Some(wire::UInt64Value { value });
    wire::ContainerStats {
        attributes: Some(wire::ContainerAttributes { id: id.to_owned(), ..Default::default() }),
        cpu: Some(wire::CpuUsage {
            timestamp: 5,
            usage_core_nano_seconds: value(nanoseconds),
            usage_nano_cores: None,
        }),
        memory: Some(wire::MemoryUsage {
            working_set_bytes: value(100),
            available_bytes: value(0),
            ..Default::default()
        }),
        writable_layer: Some(wire::FilesystemUsage { used_bytes: value(9), ..Default::default() }),
    }
}

#[test]
fn without_cgroups_the_runtime_s_numbers_stand() {
    let root = tempfile::tempdir().unwrap();
    let folder = root.path().join("ns_web_u1/name-of-c1");
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("0.log"), vec![b'x'; 5000]).unwrap();
    let collector = Collector {
        tree: Tree::new("/", super::super::cgroup::Driver::Cgroupfs),
        reader: None,
        log_root: root.path().to_owned(),
        time: Timestamp::from_second(7).unwrap(),
    };
    let ready = wire::PodSandboxState::SandboxReady;
    let linux = wire::LinuxPodSandboxStats {
        network: Some(wire::NetworkUsage {
            default_interface: Some(wire::NetworkInterfaceUsage {
                name: "eth0".to_owned(),
                rx_bytes: Some(wire::UInt64Value { value: 3 }),
                ..Default::default()
            }),
            ..Default::default()
        }),
        ..Default::default()
    };
    let usage = collector.usage(Listed {
        sandboxes: vec![
            sandbox("old", "u1", 1, ready),
            sandbox("new", "u1", 2, ready),
            sandbox("dead", "u2", 3, wire::PodSandboxState::SandboxNotready),
        ],
        containers: vec![
            container("c1", "new", wire::ContainerState::ContainerRunning),
            container("c2", "new", wire::ContainerState::ContainerExited),
            container("c3", "old", wire::ContainerState::ContainerRunning),
        ],
        of_sandboxes: [("new".to_owned(), wire::PodSandboxStats { attributes: None, linux: Some(linux) })]
            .into(),
        of_containers: [("c1".to_owned(), told("c1", 42)), ("c2".to_owned(), told("c2", 1))].into(),
        images: None,
        problems: Vec::new(),
    });
    let [pod] = usage.pods.as_slice() else { panic!("{usage:?}") };
    assert_eq!((pod.pod.uid.as_str(), pod.sandbox_id.as_str()), ("u1", "new"));
    let [used] = pod.containers.as_slice() else { panic!("{pod:?}") };
    assert_eq!(used.name, "name-of-c1");
    assert_eq!(used.total.cpu.unwrap().total_ns, 42);
    assert_eq!(used.total.path, "/c1");
    let memory = used.total.memory.unwrap();
    assert_eq!((memory.working_set, memory.limit), (100, None), "0 available is how no limit is told");
    assert_eq!(used.writable.as_ref().unwrap().0.bytes, 9);
    let logs = used.logs.unwrap();
    assert!((5000..100_000).contains(&logs.bytes) && logs.inodes == 1, "{logs:?}");
    assert_eq!(pod.network.as_ref().unwrap()[0].received.bytes, 3);
    assert_eq!(pod.total.path, "/u1");
}

#[test]
fn our_own_cgroup_is_found_in_either_version() {
    assert_eq!(own_cgroup("5:memory:/vk.slice/vk.service\n0::/other\n"), Some("/vk.slice/vk.service"));
    assert_eq!(own_cgroup("0::/system.slice/a:b.service\n"), Some("/system.slice/a:b.service"));
    assert_eq!(own_cgroup("5:memory:/\n0::/\n"), None, "everything is not ours");
    assert_eq!(own_cgroup("garbage"), None);
    assert_eq!(own_cgroup(""), None);
}

#[test]
fn what_a_container_has_on_the_pods_disk_is_its_layer_and_its_log() {
    let root = tempfile::tempdir().unwrap();
    let logs = root.path().join("ns_web_u1");
    fs::create_dir_all(logs.join("main")).unwrap();
    fs::write(logs.join("main/0.log"), vec![b'x'; 64 << 10]).unwrap();
    let stats = |name: &str, mountpoint: &Path| wire::ContainerStats {
        attributes: Some(wire::ContainerAttributes {
            metadata: Some(wire::ContainerMetadata { name: name.to_owned(), ..Default::default() }),
            ..Default::default()
        }),
        writable_layer: Some(wire::FilesystemUsage {
            fs_id: Some(wire::FilesystemIdentifier { mountpoint: mountpoint.display().to_string() }),
            used_bytes: Some(wire::UInt64Value { value: 1 << 20 }),
            ..Default::default()
        }),
        ..Default::default()
    };
    let of = |all: &[wire::ContainerStats]| disk_usage(all, root.path(), &logs);
    let same = of(&[stats("main", root.path()), stats("quiet", root.path())]);
    assert!((1 << 20) + (64 << 10) <= same["main"] && same["main"] < (1 << 20) + (128 << 10), "{same:?}");
    assert_eq!(same["quiet"], 1 << 20);
    // Layers on another disk are not the pod's volumes' matter.
    let other = of(&[stats("main", Path::new("/proc"))]);
    assert!(other["main"] < 128 << 10, "{other:?}");
}
