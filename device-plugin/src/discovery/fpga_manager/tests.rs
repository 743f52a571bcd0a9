use std::os::unix::fs::symlink;

use super::*;
use crate::device::Health;

/// A board with one FPGA whose regions' devices are given, and one who looks at it.
struct Machine {
    folder: tempfile::TempDir,
    looking: FpgaRegions,
    now: Instant,
}

const MANAGER: &str = "devices/platform/firmware:zynqmp-firmware/firmware:zynqmp-firmware:pcap";

impl Machine {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let roots = Roots {
            sys: folder.path().join("sys"),
            dev: folder.path().join("dev"),
            proc: folder.path().join("proc"),
        };
        let machine = Self { folder, looking: FpgaRegions::new(roots), now: Instant::now() };
        machine.class("fpga_manager", "fpga0", MANAGER);
        machine.set(&format!("{MANAGER}/fpga_manager/fpga0/state"), "operating\n");
        machine
    }

    /// A region of `device` with something in it that a userspace driver serves.
    fn region(&self, number: u32, device: &str) {
        self.class("fpga_region", &format!("region{number}"), device);
        self.set(&format!("{device}/a0000000.filter/uio/uio{number}/dev"), "240:0\n");
        self.write(&format!("dev/uio{number}"), "");
    }

    /// An entry of a class, as the kernel makes it: a folder below its device, and a link.
    fn class(&self, class: &str, name: &str, device: &str) {
        self.set(&format!("{device}/{class}/{name}/uevent"), "");
        self.link(&self.folder.path().join("sys").join(device), &format!("{device}/{class}/{name}/device"));
        self.link(
            &self.folder.path().join("sys").join(device).join(class).join(name),
            &format!("class/{class}/{name}"),
        );
    }

    fn write(&self, path: &str, value: &str) {
        let path = self.folder.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, value).unwrap();
    }

    fn set(&self, path: &str, value: &str) {
        self.write(&format!("sys/{path}"), value);
    }

    fn link(&self, target: &Path, path: &str) {
        let path = self.folder.path().join("sys").join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        symlink(target, path).unwrap();
    }

    /// Looks, so long after the last time that every fault of before is forgotten.
    fn look(&mut self) -> Vec<Device> {
        self.now += QUIET;
        self.looking.look(self.now)
    }
}

#[test]
fn a_region_is_offered_with_the_nodes_of_what_is_in_it() {
    let mut machine = Machine::new();
    machine.region(0, "devices/platform/fpga-full");
    let devices = machine.look();
    let [device] = devices.as_slice() else { panic!("{devices:#?}") };
    assert_eq!(device.resource.as_str(), "fpga.spillway.dev/region-fpga-full");
    assert_eq!((device.id.as_str(), &device.health), ("fpga-full-region0", &Health::Healthy));
    assert_eq!(*device.nodes, [PathBuf::from("/dev/uio0")]);

    let fits = "0123456789abcdef0123456789abcdef";
    machine.set("class/fpga_region/region0/compat_id", &format!("{fits}\n"));
    assert_eq!(machine.look()[0].resource.as_str(), format!("fpga.spillway.dev/region-{fits}"));
    machine.set("class/fpga_region/region0/compat_id", "nonsense\n");
    assert_eq!(machine.look(), []);
}

#[test]
fn only_a_manager_that_operates_is_well() {
    let mut machine = Machine::new();
    machine.region(0, "devices/platform/fpga-full");
    let state = format!("{MANAGER}/fpga_manager/fpga0/state");
    for (value, why) in [
        ("unknown\n", "the FPGA manager's state is \"unknown\""),
        ("write error\n", "the FPGA manager's state is \"write-error\""),
        ("", "state is empty"),
    ] {
        machine.set(&state, value);
        assert_eq!(machine.look()[0].health, Health::Unhealthy(why.to_owned()));
    }
    machine.set(&state, "operating\n");
    assert_eq!(machine.look()[0].health, Health::Healthy);
}

#[test]
fn the_nearest_manager_counts() {
    let mut machine = Machine::new();
    let (one, other) = ("devices/pci0000:00/0000:03:00.0", "devices/pci0000:00/0000:04:00.0");
    for (number, card) in [(1, one), (2, other)] {
        machine.class("fpga_manager", &format!("fpga{number}"), card);
        machine.set(&format!("{card}/fpga_manager/fpga{number}/state"), "operating\n");
        machine.region(number, card);
    }
    machine.set(&format!("{other}/fpga_manager/fpga2/state"), "unknown\n");
    machine.set(&format!("{MANAGER}/fpga_manager/fpga0/state"), "unknown\n");
    let devices = machine.look();
    assert_eq!(devices.len(), 2);
    assert_eq!(devices[0].health, Health::Healthy);
    assert!(!devices[1].health.is_healthy());
    assert_eq!(devices[0].accelerator.pci_address.as_deref(), Some("0000:03:00.0"));
}

#[test]
fn regions_of_other_back_ends_are_left_to_them() {
    let mut machine = Machine::new();
    // A DFL card: its own region, with ports, and those of its management engine.
    let card = "devices/pci0000:5d/0000:5e:00.0";
    machine.region(0, card);
    machine.set(&format!("{card}/fpga_region/region0/dfl-port.0/id"), "0");
    machine.region(1, &format!("{card}/fpga_region/region0/dfl-fme.0/dfl-fme-region.0"));
    assert_eq!(machine.look(), []);
}

#[test]
fn what_no_container_could_use_is_not_offered() {
    let mut machine = Machine::new();
    machine.region(0, "devices/platform/fpga-full");
    fs::remove_file(machine.folder.path().join("dev/uio0")).unwrap();
    assert_eq!(machine.look(), []);
    // Names come from folders that the kernel numbers: nothing else is a node.
    let inside = "devices/platform/fpga-full/a0000000.filter/uio";
    machine.set(&format!("{inside}/uio0evil/uevent"), "DEVNAME=../etc/passwd\n");
    machine.set(&format!("{inside}/mem/uevent"), "DEVNAME=mem\n");
    machine.write("dev/mem", "");
    machine.write("dev/uio0evil", "");
    assert_eq!(machine.look(), []);
}

#[test]
fn a_tree_without_end_is_not_walked_to_its_end() {
    let mut machine = Machine::new();
    machine.region(0, "devices/platform/fpga-full");
    machine.link(&machine.folder.path().join("sys"), "devices/platform/fpga-full/loop");
    let deep = format!("devices/platform/fpga-full/{}/uio/uio7/dev", ["x"; 8].join("/"));
    machine.set(&deep, "");
    machine.write("dev/uio7", "");
    assert_eq!(*machine.look()[0].nodes, [PathBuf::from("/dev/uio0")]);
}
