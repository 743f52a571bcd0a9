use std::os::unix::fs::symlink;

use super::*;

const INTERFACE: &str = "69528db6eb31577a8c3668f9faa081f6";

/// A machine's `/sys` and `/dev`, built attribute by attribute.
struct Machine(tempfile::TempDir);

impl Machine {
    /// One card at 0000:5e:00.0 on NUMA node 1 with `ports` ports.
    fn with_card(ports: u32) -> Self {
        let machine = Self(tempfile::tempdir().unwrap());
        let device = "devices/pci0000:5d/0000:5e:00.0";
        machine.set(&format!("{device}/numa_node"), "1\n");
        let region = format!("{device}/fpga_region/region0");
        machine.set(
            &format!("{region}/dfl-fme.0/dfl-fme-region.1/fpga_region/region1/compat_id"),
            format!("{INTERFACE}\n"),
        );
        machine.set(&format!("{region}/dfl-fme.0/errors/fme_errors"), "0x0\n");
        machine.set(&format!("{region}/dfl-fme.0/errors/catfatal_errors"), "0x0\n");
        machine.set(&format!("{region}/dfl-fme.0/hwmon/hwmon3/temp1_input"), "47500\n");
        for port in 0..ports {
            machine.port(&region, port, port);
        }
        machine.link("../..", &format!("{region}/device"));
        machine.link(&format!("../../{region}"), "class/fpga_region/region0");
        machine.link(
            &format!("../../{region}/dfl-fme.0/dfl-fme-region.1/fpga_region/region1"),
            "class/fpga_region/region1",
        );
        machine
    }

    fn port(&self, region: &str, kernel: u32, own: u32) {
        self.set(&format!("{region}/dfl-port.{kernel}/id"), format!("{own}\n"));
        self.set(&format!("{region}/dfl-port.{kernel}/errors/errors"), "0x0\n");
        let dev = self.0.path().join("dev");
        fs::create_dir_all(&dev).unwrap();
        fs::write(dev.join(format!("dfl-port.{kernel}")), "").unwrap();
    }

    fn at(&self, path: &str) -> PathBuf {
        let path = self.0.path().join("sys").join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        path
    }

    fn set(&self, path: &str, value: impl AsRef<[u8]>) {
        fs::write(self.at(path), value).unwrap();
    }

    fn link(&self, target: &str, path: &str) {
        symlink(target, self.at(path)).unwrap();
    }

    fn look(&self) -> Vec<Device> {
        let roots = Roots {
            sys: self.0.path().join("sys"),
            dev: self.0.path().join("dev"),
            proc: self.0.path().join("proc"),
        };
        DflBackend::new(roots, Duration::from_secs(5)).look()
    }
}

/// Where the card's attributes are.
const CARD: &str = "class/fpga_region/region0";

#[test]
fn every_port_of_a_card_is_a_device() {
    let devices = Machine::with_card(2).look();
    let expected = |port: u32| Device {
        id: DeviceId::new(format!("0000:5e:00.0-port{port}")).unwrap(),
        resource: ResourceName::new(format!("fpga.intel.com/region-{INTERFACE}")).unwrap(),
        health: Health::Healthy,
        nodes: vec![format!("/dev/dfl-port.{port}").into()],
        listed_in: None,
        accelerator: Arc::new(Accelerator {
            numa_node: Some(1),
            readings: Readings { temperature_celsius: Some(47), ..Readings::default() },
            ..Accelerator::new(DeviceId::new(format!("0000:5e:00.0-port{port}")).unwrap())
        }),
        partition: None,
        replica: None,
    };
    assert_eq!(devices, [expected(0), expected(1)]);
}

#[test]
fn a_machine_without_fpgas_has_none() {
    let empty = tempfile::tempdir().unwrap();
    let roots =
        Roots { sys: empty.path().to_owned(), dev: empty.path().to_owned(), proc: empty.path().to_owned() };
    assert_eq!(DflBackend::new(roots, Duration::from_secs(5)).look(), []);
}

#[test]
fn the_port_of_a_virtual_function_takes_the_cards_interface() {
    let machine = Machine::with_card(1);
    let function = "devices/pci0000:5d/0000:5e:00.1";
    machine.port(&format!("{function}/fpga_region/region2"), 4, 0);
    machine.link("../..", &format!("{function}/fpga_region/region2/device"));
    machine.link("../0000:5e:00.0", &format!("{function}/physfn"));
    machine.link(&format!("../../{function}/fpga_region/region2"), "class/fpga_region/region2");
    let devices = machine.look();
    assert_eq!(devices.len(), 2);
    assert_eq!(devices[1].id.as_str(), "0000:5e:00.1-port0");
    assert_eq!(devices[1].resource, devices[0].resource);
    assert_eq!(devices[1].nodes, [PathBuf::from("/dev/dfl-port.4")]);
}

#[test]
fn errors_and_nonsense_make_just_that_port_unhealthy() {
    let machine = Machine::with_card(2);
    let check = |value: &[u8], part: &str| {
        machine.set(&format!("{CARD}/dfl-port.1/errors/errors"), value);
        let devices = machine.look();
        assert_eq!(devices[0].health, Health::Healthy);
        let Health::Unhealthy(why) = &devices[1].health else { panic!("Healthy with {value:?}") };
        assert!(why.contains(part), "{why}");
    };
    check(b"0x4\n", "errors is 0x4");
    check(b"", "is empty");
    check(b"fine\n", "is no number");
    check(b"\xff\xfe\0", "invalid data");
    fs::remove_file(machine.at(&format!("{CARD}/dfl-port.1/errors/errors"))).unwrap();
    assert!(!machine.look()[1].health.is_healthy());
    // Written zero by an admin, the register says that the port is sane.
    machine.set(&format!("{CARD}/dfl-port.1/errors/errors"), "0x0\n");
    assert!(machine.look().iter().all(|device| device.health.is_healthy()));

    fs::remove_file(machine.0.path().join("dev/dfl-port.0")).unwrap();
    assert_eq!(machine.look()[0].health, Health::Unhealthy("the host has no /dev/dfl-port.0".to_owned()));
}

#[test]
fn a_fault_of_the_card_is_one_of_all_its_ports() {
    let machine = Machine::with_card(2);
    machine.set(&format!("{CARD}/dfl-fme.0/errors/catfatal_errors"), "0x2\n");
    for device in machine.look() {
        assert_eq!(device.health, Health::Unhealthy("catfatal_errors is 0x2".to_owned()));
    }
}

#[test]
fn without_an_interface_id_nobody_could_ask_for_a_port() {
    let compat_id = format!("{CARD}/dfl-fme.0/dfl-fme-region.1/fpga_region/region1/compat_id");
    let machine = Machine::with_card(1);
    for nonsense in ["", "\n", "0", "../../../etc/passwd", &"x".repeat(32), &"a".repeat(5000)] {
        machine.set(&compat_id, nonsense);
        assert_eq!(machine.look(), [], "{nonsense:?}");
    }
    machine.set(&compat_id, [0xff; 32]);
    assert_eq!(machine.look(), []);
    fs::remove_file(machine.at(&compat_id)).unwrap();
    assert_eq!(machine.look(), []);
    machine.set(&compat_id, INTERFACE.to_uppercase());
    assert_eq!(machine.look().len(), 1);
}
