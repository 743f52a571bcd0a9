use std::{os::unix::fs::symlink, sync::Arc};

use spillway_device_plugin::{
    device::{Accelerator, Health, Replica},
    inventory::BackendState,
};
use tempfile::TempDir;

use super::*;

fn device(id: &str, nodes: &[&str], address: Option<&str>) -> Device {
    let mut accelerator = Accelerator::new(DeviceId::new(id).unwrap());
    accelerator.pci_address = address.map(str::to_owned);
    Device {
        id: DeviceId::new(id).unwrap(),
        resource: ResourceName::new("example.com/accelerator").unwrap(),
        health: Health::Healthy,
        nodes: nodes.iter().map(PathBuf::from).collect(),
        listed_in: None,
        accelerator: Arc::new(accelerator),
        partition: None,
        replica: None,
    }
}

/// A machine without devices. Nodes can't be made without root: the real `/dev` serves, where the kernel has its own in any container.
fn machine() -> (TempDir, Roots) {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let roots = Roots { sys: at("sys"), dev: "/dev".into(), proc: at("proc") };
    fs::create_dir_all(&roots.proc).unwrap();
    fs::create_dir_all(&roots.sys).unwrap();
    (folder, roots)
}

fn inventory(devices: Vec<Device>) -> Inventory {
    Inventory::default().with("test", BackendState::Running, devices).0
}

const NULL: Number = Number { major: 1, minor: 3 };
const ZERO: Number = Number { major: 1, minor: 5 };
const FULL: Number = Number { major: 1, minor: 7 };

#[test]
fn devices_are_known_by_their_nodes_and_what_only_one_has_is_exclusive() {
    let (_folder, roots) = machine();
    let found = inventory(vec![
        device("a", &["/dev/null", "/dev/zero"], None),
        device("b", &["/dev/zero"], None),
        device("c", &["/dev/full"], None),
        device("gone", &["/dev/null", "/dev/no-such-node"], None),
        device("link", &["/dev/fd"], None),
        device("escape", &["/dev/../dev/null"], None),
        device("elsewhere", &["/etc/passwd"], None),
    ]);
    let nodes = Nodes::look(&found, &roots);
    let of = |id: &str| {
        nodes.devices[&(ResourceName::new("example.com/accelerator").unwrap(), DeviceId::new(id).unwrap())]
            .clone()
    };
    assert_eq!(of("a"), Ok(BTreeSet::from([NULL, ZERO])));
    for (id, why) in [
        ("gone", "can't be looked at"),
        ("link", "no character device"),
        ("escape", "leaves /dev"),
        ("elsewhere", "not below /dev"),
    ] {
        assert!(of(id).unwrap_err().contains(why), "{id}");
    }
    // `gone` would have /dev/null, too, if the other one were there.
    assert_eq!(nodes.exclusive, BTreeSet::from([FULL]));
    assert!(nodes.rules.protects(NULL) && nodes.rules.protects(ZERO));
    assert!(!nodes.rules.protects(Number { major: 1, minor: 9 }), "/dev/urandom is nobody's");
    assert!(nodes.rules.protects(Number { major: 195, minor: 77 }), "a GPU that nobody has seen yet");
    assert_eq!(nodes.name(NULL), "/dev/null");
    assert_eq!(nodes.name(Number { major: 195, minor: 77 }), "character device 195:77");
}

#[test]
fn who_was_given_a_device_by_an_earlier_name_has_its_nodes() {
    let (_folder, roots) = machine();
    let share = |number: u32| Device {
        replica: Some(Replica { number, of: 2, memory_mib: None }),
        ..device(&format!("a::{number}"), &["/dev/null"], None)
    };
    let nodes = Nodes::look(&inventory(vec![share(0), share(1), device("b", &["/dev/zero"], None)]), &roots);
    let of = |resource: &str, id: &str| {
        nodes.of(&ResourceName::new(resource).unwrap(), &DeviceId::new(id).unwrap()).cloned()
    };
    for (resource, id, expected) in [
        ("example.com/accelerator", "a::1", Some(NULL)),
        ("example.com/accelerator", "a", Some(NULL)),
        ("example.com/accelerator.shared", "a::7", Some(NULL)),
        ("example.com/accelerator", "b::0", Some(ZERO)),
        ("example.com/accelerator", "c", None),
        ("example.org/accelerator", "b", None),
    ] {
        assert_eq!(of(resource, id), expected.map(|number| Ok(BTreeSet::from([number]))), "{resource} {id}");
    }
}

#[test]
fn dynamic_majors_are_what_the_kernel_says_now() {
    let (_folder, roots) = machine();
    let listed = |list: &str| {
        fs::write(roots.proc.join("devices"), list).unwrap();
        majors(&roots)
    };
    let list = "Character devices:\n  1 mem\n195 nvidia\n195 nvidiactl\n226 drm\n234 nvidia-caps\n510 nvidia-uvm\n511 dfl-fme\n  \
                x nvidia\n9999999999 nvidia\n\nBlock devices:\n  8 sd\n 66 nvidia-not-a-character-device\n";
    assert_eq!(listed(list), BTreeSet::from([195, 234, 510, 511]));
    for hostile in ["", "Character devices:", "\0\u{fffd}", "Character devices:\nnvidia\n \n"] {
        assert_eq!(listed(hostile), BTreeSet::new());
    }

    let uvm = |major| Number { major, minor: 0 };
    fs::write(roots.proc.join("devices"), "Character devices:\n510 nvidia-uvm\n").unwrap();
    let before = Nodes::look(&Inventory::default(), &roots);
    fs::write(roots.proc.join("devices"), "Character devices:\n509 nvidia-uvm\n510 tty\n").unwrap();
    let after = Nodes::look(&Inventory::default(), &roots);
    assert_eq!((before.rules.protects(uvm(510)), before.rules.protects(uvm(509))), (true, false));
    assert_eq!((after.rules.protects(uvm(510)), after.rules.protects(uvm(509))), (false, true));
}

#[test]
fn what_other_drivers_add_to_gpus_is_for_whoever_has_one() {
    let (_folder, roots) = machine();
    let registered = roots.sys.join("dev/char");
    fs::create_dir_all(&registered).unwrap();
    symlink("../../devices/virtual/nvidia-fs/nvidia-fs3", registered.join("240:3")).unwrap();
    symlink("../../devices/virtual/gdrdrv/gdrdrv", registered.join("241:0")).unwrap();
    symlink("../../devices/virtual/misc/vfio", registered.join("10:196")).unwrap();
    fs::write(roots.proc.join("devices"), "Character devices:\n 10 misc\n240 nvidia-fs\n241 gdrdrv\n")
        .unwrap();
    let found =
        inventory(vec![device("GPU", &["/dev/nvidia0"], None), device("other", &["/dev/null"], None)]);
    let nodes = Nodes::look(&found, &roots);
    let of = |id: &str| {
        let key = (ResourceName::new("example.com/accelerator").unwrap(), DeviceId::new(id).unwrap());
        nodes.devices[&key].clone()
    };
    let [gpu, storage, copies] = [(195, 0), (240, 3), (241, 0)].map(|(major, minor)| Number { major, minor });
    assert_eq!(of("GPU"), Ok(BTreeSet::from([gpu, storage, copies])));
    assert_eq!(of("other"), Ok(BTreeSet::from([NULL])));
    for number in [storage, copies, Number { minor: 1, ..copies }] {
        assert!(nodes.rules.protects(number), "{number}");
    }
}

#[test]
fn only_accelerators_minors_of_the_graphics_subsystem_are_protected() {
    let (_folder, roots) = machine();
    for (name, number, address, driver) in [
        ("renderD128", "226:128", "0000:17:00.0", "somebody"),
        ("renderD129", "226:129", "0000:65:00.0", "nvidia"),
        ("renderD130", "226:130", "0000:00:02.0", "i915"),
        ("renderD131", "rubbish", "0000:00:03.0", "nvidia"),
    ] {
        let card = roots.sys.join("class/drm").join(name);
        let (device, module) =
            (roots.sys.join("devices").join(address), roots.sys.join("drivers").join(driver));
        fs::create_dir_all(&card).unwrap();
        fs::create_dir_all(&device).unwrap();
        fs::create_dir_all(&module).unwrap();
        fs::write(card.join("dev"), format!("{number}\n")).unwrap();
        symlink(&module, device.join("driver")).unwrap();
        symlink(&device, card.join("device")).unwrap();
    }
    let nodes = Nodes::look(&inventory(vec![device("fpga", &["/dev/null"], Some("0000:17:00.0"))]), &roots);
    let render = |minor| Number { major: 226, minor };
    let protected: Vec<_> = (126..134).filter(|minor| nodes.rules.protects(render(*minor))).collect();
    assert_eq!(protected, [128, 129]);
    assert_eq!(nodes.devices.values().next().unwrap(), &Ok(BTreeSet::from([NULL, render(128)])));
    assert_eq!(nodes.name(render(129)), "/dev/dri/renderD129");
}

#[test]
fn management_nodes_are_no_devices() {
    let (_folder, roots) = machine();
    let mig = roots.proc.join("driver/nvidia/capabilities/mig");
    fs::create_dir_all(&mig).unwrap();
    fs::write(mig.join("config"), "DeviceFileMinor: 1\nDeviceFileMode: 256\n").unwrap();
    fs::write(mig.join("monitor"), "DeviceFileMinor: 2\n").unwrap();
    let minors = management(&roots.proc);
    assert_eq!(minors, BTreeSet::from([1, 2]));
    for (node, minor, is) in [
        ("/dev/nvidia-caps/nvidia-cap1", 1, true),
        ("/dev/nvidia-caps/nvidia-cap2", 2, true),
        ("/dev/nvidia-caps/nvidia-cap21", 21, false),
        ("/dev/nvidia1", 1, false),
        ("/dev/xclmgmt256", 0, true),
    ] {
        assert_eq!(is_management(Path::new(node), Number { major: 234, minor }, &minors), is, "{node}");
    }
}

/// What a driver has registered, as sysfs shows it.
fn register(roots: &Roots, number: &str, name: &str) {
    fs::create_dir_all(roots.sys.join("dev/char")).unwrap();
    symlink(Path::new("../../devices/virtual/made-up").join(name), roots.sys.join("dev/char").join(number))
        .unwrap();
}

#[test]
fn where_the_kernel_says_a_nodes_number_dev_is_not_believed() {
    let (_folder, roots) = machine();
    // As if somebody had exchanged the two in /dev.
    register(&roots, "1:3", "zero");
    register(&roots, "1:5", "null");
    register(&roots, "511:2", "xfpga!xvc_pub.u0");
    register(&roots, "rubbish", "nvidia0");
    register(&roots, "511:x", "dfl-port.0");
    let nodes = Nodes::look(&inventory(vec![device("a", &["/dev/null"], None)]), &roots);
    assert_eq!(nodes.devices.values().next().unwrap(), &Ok(BTreeSet::from([ZERO])));
    assert!(nodes.rules.protects(ZERO) && !nodes.rules.protects(NULL));
    // Accelerators' nodes are protected even if they were removed from /dev.
    assert!(nodes.rules.protects(Number { major: 511, minor: 2 }));
    assert_eq!(nodes.name(Number { major: 511, minor: 2 }), "/dev/xfpga/xvc_pub.u0");
    assert_eq!(nodes.doubts, BTreeSet::new());
}

#[test]
fn nvidias_nodes_have_their_numbers_where_a_driver_container_keeps_them() {
    let (folder, mut roots) = machine();
    roots.dev = folder.path().join("dev");
    let of = |roots: &Roots, node: &str| {
        let nodes = Nodes::look(&inventory(vec![device("a", &[node], None)]), roots);
        nodes.devices.into_values().next().unwrap()
    };
    let number = |major, minor| Ok(BTreeSet::from([Number { major, minor }]));
    assert_eq!(of(&roots, "/dev/nvidia3"), number(195, 3));
    assert!(of(&roots, "/dev/nvidia-uvm").is_err(), "its driver is not loaded");
    fs::write(roots.proc.join("devices"), "Character devices:\n507 nvidia-uvm\n508 nvidia-caps\n").unwrap();
    assert_eq!(of(&roots, "/dev/nvidia-uvm-tools"), number(507, 1));
    assert_eq!(of(&roots, "/dev/nvidia-caps/nvidia-cap12"), number(508, 12));
    assert!(of(&roots, "/dev/dfl-port.0").is_err(), "others' numbers are their drivers' to give");
}

#[test]
fn a_node_that_contradicts_the_kernel_is_no_devices() {
    let of = |roots: &Roots| {
        let nodes = Nodes::look(&inventory(vec![device("a", &["/dev/null"], None)]), roots);
        let doubts = nodes.doubts.len();
        (nodes.devices.into_values().next().unwrap(), nodes.rules.protects(NULL), doubts)
    };
    let (_folder, roots) = machine();
    assert_eq!(of(&roots), (Ok(BTreeSet::from([NULL])), true, 0), "nobody says anything else");
    fs::write(roots.proc.join("devices"), "Character devices:\n  1 mem\n").unwrap();
    let (found, protected, doubts) = of(&roots);
    assert!(found.unwrap_err().contains("1:3 of a device of the driver mem"));
    assert_eq!((protected, doubts), (false, 1), "or all pods would lose /dev/null");

    let (_folder, roots) = machine();
    register(&roots, "1:3", "ttyS0");
    let (found, protected, doubts) = of(&roots);
    assert!(found.unwrap_err().contains("1:3 of /dev/ttyS0"));
    assert_eq!((protected, doubts), (false, 1));
}
