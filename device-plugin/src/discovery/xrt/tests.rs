use std::os::unix::fs::symlink;

use super::*;
use crate::device::Health;

const USER: &str = "0000:65:00.1";
const RESOURCE: &str = "amd.com/xilinx_u250_gen3x16_xdma_shell_4_1-0";

/// A machine with one card, and one who looks at it.
struct Machine {
    folder: tempfile::TempDir,
    looking: Xrt,
    now: Instant,
}

impl Machine {
    fn with_card() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let roots = Roots {
            sys: folder.path().join("sys"),
            dev: folder.path().join("dev"),
            proc: folder.path().join("proc"),
        };
        let machine = Self { folder, looking: Xrt::new(roots), now: Instant::now() };
        let (user, management) = ("devices/pci0000:64/0000:65:00.1", "devices/pci0000:64/0000:65:00.0");
        for (attribute, value) in [
            ("user_pf", ""),
            ("vendor", "0x10ee\n"),
            ("numa_node", "1\n"),
            ("board_name", "u250\n"),
            ("rom.u.15728640/VBNV", "xilinx_u250_gen3x16_xdma_shell_4_1\n"),
            ("rom.u.15728640/timestamp", "0\n"),
            ("drm/card1/dev", "226:1\n"),
            ("drm/renderD129/dev", "226:129\n"),
            ("ready", "0x1\n"),
            ("dev_offline", "0\n"),
            ("device_bad_state", "0\n"),
            ("mailbox_connect_state", "0x3\n"),
            ("mig_calibration", "0x0\n"),
            ("xclbinuuid", "00000000-0000-0000-0000-000000000000\n"),
        ] {
            machine.write(&format!("sys/{user}/{attribute}"), value);
        }
        for (attribute, value) in [("mgmt_pf", ""), ("vendor", "0x10ee\n"), ("instance", "25856\n")] {
            machine.write(&format!("sys/{management}/{attribute}"), value);
        }
        for node in ["dri/card1", "dri/renderD129", "xclmgmt25856"] {
            machine.write(&format!("dev/{node}"), "");
        }
        machine.link(&format!("../../../{user}"), USER);
        machine.link(&format!("../../../{management}"), "0000:65:00.0");
        machine
    }

    fn write(&self, path: &str, value: impl AsRef<[u8]>) {
        let path = self.folder.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, value).unwrap();
    }

    fn link(&self, target: &str, name: &str) {
        let folder = self.folder.path().join("sys/bus/pci/devices");
        fs::create_dir_all(&folder).unwrap();
        symlink(target, folder.join(name)).unwrap();
    }

    fn set(&self, attribute: &str, value: impl AsRef<[u8]>) {
        self.write(&format!("sys/bus/pci/devices/{USER}/{attribute}"), value);
    }

    /// Looks, so long after the last time that every fault of before is forgotten.
    fn look(&mut self) -> Vec<Device> {
        self.now += QUIET;
        self.looking.look(self.now)
    }

    fn health(&mut self) -> Result<(), String> {
        let devices = self.look();
        let [device] = devices.as_slice() else { panic!("{devices:#?}") };
        match &device.health {
            Health::Healthy => Ok(()),
            Health::Unhealthy(why) => Err(why.clone()),
        }
    }
}

#[test]
fn a_pod_gets_the_user_function_and_nothing_of_the_management_function() {
    let mut machine = Machine::with_card();
    let devices = machine.look();
    let [device] = devices.as_slice() else { panic!("{devices:#?}") };
    assert_eq!((device.id.as_str(), device.resource.as_str()), (USER, RESOURCE));
    assert_eq!(*device.nodes, [PathBuf::from("/dev/dri/renderD129")]);
    assert_eq!(device.health, Health::Healthy);
    assert_eq!(
        (device.accelerator.numa_node, device.accelerator.product.as_deref()),
        (Some(1), Some("u250"))
    );

    // The driver's number of the function: bus 0x65, device 0, function 1.
    machine.set("dma.qdma.u.23068672/name", "");
    machine.write("dev/xfpga/dma.qdma.u25857.0", "");
    let nodes = ["/dev/dri/renderD129", "/dev/xfpga/dma.qdma.u25857.0"].map(PathBuf::from);
    assert_eq!(*machine.look()[0].nodes, nodes);
}

#[test]
fn what_the_driver_says_is_the_cards_health() {
    let mut machine = Machine::with_card();
    for (attribute, bad, good, why) in [
        ("ready", "0x0", "0x1", "ready is not 1"),
        ("dev_offline", "1", "0", "dev_offline is 0x1"),
        ("device_bad_state", "1", "0", "device_bad_state is 0x1"),
        ("mailbox_connect_state", "0x2", "0x1", "the management function's driver does not answer"),
        ("ready", "", "0x1", "ready is empty"),
        ("dev_offline", "no", "0", "dev_offline is no number"),
    ] {
        machine.set(attribute, bad);
        assert!(machine.health().unwrap_err().contains(why), "{attribute}");
        machine.set(attribute, good);
        machine.health().unwrap();
    }
    for (value, why) in [(&b"\xff\xfe\0"[..], "ready is no text"), (&[b'1'; 5000], "ready is no attribute")] {
        machine.set("ready", value);
        assert!(machine.health().unwrap_err().contains(why), "{why}");
    }
    machine.set("ready", "0x1");
    machine.set("xclbinuuid", "a1b2c3d4-0000-0000-0000-000000000000\n");
    assert!(machine.health().unwrap_err().contains("not calibrated"), "a program is in it now");
    machine.set("mig_calibration", "0x1\n");
    machine.health().unwrap();
    let device = machine.folder.path().join("sys/bus/pci/devices").join(USER);
    for attribute in ["mailbox_connect_state", "device_bad_state", "mig_calibration", "dev_offline"] {
        fs::remove_file(device.join(attribute)).unwrap();
    }
    machine.health().expect("older releases have none of these");
    fs::remove_file(device.join("ready")).unwrap();
    assert_eq!(machine.health().unwrap_err(), "ready is absent");
    machine.set("ready", "0x1");
    fs::remove_file(machine.folder.path().join("dev/dri/renderD129")).unwrap();
    assert_eq!(machine.health().unwrap_err(), "the host has no /dev/dri/renderD129");
}

#[test]
fn logged_errors_count_when_they_come() {
    let mut machine = Machine::with_card();
    let log = |count: u32| [count.to_le_bytes().as_slice(), &[0xee; 60]].concat();
    machine.set("xocl_errors", log(1));
    machine.health().expect("they are older than this process");
    machine.set("xocl_errors", log(2));
    assert!(machine.health().unwrap_err().contains("2 kinds of errors"));
    machine.health().expect("nothing has come since");
    machine.set("xocl_errors", [1, 0]);
    machine.health().expect("a log that is cut off says nothing");
    machine.set("xocl_errors", vec![1; 5000]);
    assert!(machine.health().is_err(), "no attribute is that long");
}

#[test]
fn what_is_no_user_function_is_no_device() {
    let mut machine = Machine::with_card();
    machine.set("vendor", "0x8086\n");
    assert_eq!(machine.look(), []);
    machine.set("vendor", "0x10ee\n");
    machine.set("mgmt_pf", "");
    assert_eq!(machine.look(), [], "it must never be both");
}

#[test]
fn shells_make_resource_names() {
    let mut machine = Machine::with_card();
    let mut check = |vbnv: &str, timestamp: &str, expected: Option<&str>| {
        machine.set("rom.u.15728640/VBNV", vbnv);
        machine.set("rom.u.15728640/timestamp", timestamp);
        let devices = machine.look();
        assert_eq!(devices.first().map(|device| device.resource.as_str()), expected, "{vbnv:?}");
    };
    check("xilinx:u200:xdma:201830.1", "0x5bd5a8a5", Some("amd.com/xilinx-u200-xdma-201830.1-0x5bd5a8a5"));
    let long = "x".repeat(80);
    check(&long, "1542252769", Some(&format!("amd.com/{}-1542252769", "x".repeat(52))));
    check("../../..", "0", None);
    check("", "0", None);
    check("u200", "", None);
}
