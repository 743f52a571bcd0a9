use std::{fs, os::unix::fs::symlink, path::PathBuf};

use super::*;
use crate::{
    device::{DeviceId, Health, ResourceName},
    discovery::{dfl::Dfl, opae::Opae},
};

const INTERFACE: &str = "69528db6eb31577a8c3668f9faa081f6";
const FUNCTION: &str = "d8424dc4a4a3c413f89e433683f9040b";

/// Both drivers' names for the same things, below a card's PCI function.
trait Tree: Layout {
    /// The card's entry in the class.
    const REGION: &'static str;
    const INTERFACE_ID: &'static str;
    const ENGINE_ERRORS: [&'static str; 2];
    const TEMPERATURE: (&'static str, &'static str);
}

impl Tree for Dfl {
    const REGION: &'static str = "fpga_region/region0";
    const INTERFACE_ID: &'static str = "dfl-fme.0/dfl-fme-region.1/fpga_region/region1/compat_id";
    const ENGINE_ERRORS: [&'static str; 2] =
        ["dfl-fme.0/errors/fme_errors", "dfl-fme.0/errors/catfatal_errors"];
    const TEMPERATURE: (&'static str, &'static str) = ("dfl-fme.0/hwmon/hwmon3/temp1_input", "47500\n");
}

impl Tree for Opae {
    const REGION: &'static str = "fpga/intel-fpga-dev.0";
    const INTERFACE_ID: &'static str = "intel-fpga-fme.0/pr/interface_id";
    const ENGINE_ERRORS: [&'static str; 2] =
        ["intel-fpga-fme.0/errors/fme-errors/errors", "intel-fpga-fme.0/errors/catfatal_errors"];
    const TEMPERATURE: (&'static str, &'static str) = ("intel-fpga-fme.0/thermal_mgmt/temperature", "47\n");
}

/// A machine's `/sys` and `/dev`, built attribute by attribute, and one who looks at it.
struct Machine<T> {
    folder: tempfile::TempDir,
    looking: Option<IntelCards<T>>,
    now: Instant,
}

const PCI: &str = "devices/pci0000:5d/0000:5e:00.0";

impl<T: Tree> Machine<T> {
    /// One card at 0000:5e:00.0 on NUMA node 1 with `ports` ports.
    fn with_card(ports: u32) -> Self {
        let machine = Self { folder: tempfile::tempdir().unwrap(), looking: None, now: Instant::now() };
        machine.set(&format!("{PCI}/numa_node"), "1\n");
        machine.set_card(T::INTERFACE_ID, format!("{INTERFACE}\n"));
        for register in T::ENGINE_ERRORS {
            machine.set_card(register, "0x0\n");
        }
        if T::NAME == "dfl" {
            for register in ["nonfatal_errors", "pcie0_errors", "pcie1_errors"] {
                machine.set_card(&format!("dfl-fme.0/errors/{register}"), "0x0\n");
            }
        }
        machine.set_card(T::TEMPERATURE.0, T::TEMPERATURE.1);
        machine.node(&format!("{}0", T::ENGINE));
        for port in 0..ports {
            machine.port(&format!("{PCI}/{}", T::REGION), port, port);
        }
        machine.link("../..", &format!("{PCI}/{}/device", T::REGION));
        machine.link(&format!("../../{PCI}/{}", T::REGION), &format!("{}/{}0", T::CLASS, T::CARD));
        machine
    }

    fn port(&self, region: &str, kernel: u32, own: u32) {
        let port = format!("{}{kernel}", T::PORT);
        self.set(&format!("{region}/{port}/id"), format!("{own}\n"));
        self.set(&format!("{region}/{port}/afu_id"), format!("{FUNCTION}\n"));
        self.set(&format!("{region}/{port}/errors/errors"), "0x0\n");
        self.node(&port);
    }

    fn node(&self, name: &str) {
        fs::create_dir_all(self.folder.path().join("dev")).unwrap();
        fs::write(self.folder.path().join("dev").join(name), "").unwrap();
    }

    fn at(&self, path: &str) -> PathBuf {
        let path = self.folder.path().join("sys").join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        path
    }

    fn set(&self, path: &str, value: impl AsRef<[u8]>) {
        fs::write(self.at(path), value).unwrap();
    }

    fn set_card(&self, path: &str, value: impl AsRef<[u8]>) {
        self.set(&format!("{PCI}/{}/{path}", T::REGION), value);
    }

    fn remove_card(&self, path: &str) {
        let path = self.at(&format!("{PCI}/{}/{path}", T::REGION));
        if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }.unwrap();
    }

    fn link(&self, target: &str, path: &str) {
        symlink(target, self.at(path)).unwrap();
    }

    /// Looks, so long after the last time that every fault of before is forgotten.
    fn look_in(&mut self, mode: FpgaMode) -> Vec<Device> {
        self.now += Duration::from_mins(1);
        let roots = Roots {
            sys: self.folder.path().join("sys"),
            dev: self.folder.path().join("dev"),
            proc: self.folder.path().join("proc"),
        };
        let looking = self
            .looking
            .get_or_insert_with(|| IntelCards::new(roots, &Fpga::default(), Duration::from_secs(5)));
        looking.mode = mode;
        looking.look(self.now)
    }

    fn look(&mut self) -> Vec<Device> {
        self.look_in(FpgaMode::Region)
    }
}

fn summary(devices: &[Device]) -> Vec<(&str, &str, String)> {
    let nodes = |device: &Device| {
        device.nodes.iter().map(|node| node.to_str().unwrap()).collect::<Vec<_>>().join(" ")
    };
    devices.iter().map(|device| (device.resource.as_str(), device.id.as_str(), nodes(device))).collect()
}

fn unhealthy(device: &Device) -> &str {
    match &device.health {
        Health::Unhealthy(why) => why,
        Health::Healthy => panic!("{} is Healthy", device.id),
    }
}

fn modes<T: Tree>() {
    let mut machine = Machine::<T>::with_card(2);
    let port = |number: u32| format!("/dev/{}{number}", T::PORT);
    let region = format!("fpga.intel.com/region-{INTERFACE}");
    let devices = machine.look();
    assert_eq!(
        summary(&devices),
        [(region.as_str(), "0000:5e:00.0-port0", port(0)), (region.as_str(), "0000:5e:00.0-port1", port(1)),]
    );
    for device in &devices {
        assert_eq!(device.health, Health::Healthy);
        assert_eq!(
            device.accelerator.id.as_str(),
            "0000:5e:00.0",
            "the ports of a card have the card in common"
        );
        assert_eq!(device.unit(), &device.id, "but are not the same hardware");
        assert_eq!(device.accelerator.numa_node, Some(1));
        assert_eq!(device.accelerator.readings.temperature_celsius, Some(47));
    }

    let by_function = "fpga.intel.com/af-695.d84.aVKNtusxV3qMNmj5-qCB9thCTcSko8QT-J5DNoP5BAs";
    assert_eq!(
        summary(&machine.look_in(FpgaMode::Af)),
        [(by_function, "0000:5e:00.0-port0", port(0)), (by_function, "0000:5e:00.0-port1", port(1))]
    );

    let all = format!("/dev/{}0 {} {}", T::ENGINE, port(0), port(1));
    assert_eq!(summary(&machine.look_in(FpgaMode::RegionDevel)), [(region.as_str(), "0000:5e:00.0", all)]);
}

#[test]
fn functions_are_called_as_intels_plugin_calls_them() {
    let name = |interface, function| super::offer::function_resource(interface, function).unwrap();
    // What that plugin's own test expects (`TestGetAfuDevType`).
    assert_eq!(
        name("ce48969398f05f33946d560708be108a", FUNCTION).as_str(),
        "fpga.intel.com/af-ce4.d84.zkiWk5jwXzOUbVYHCL4QithCTcSko8QT-J5DNoP5BAs"
    );
    assert_eq!(
        name("bfac4d851ee856fe8c95865ce1bbaa2d", "f7df405cbd7acf7222f144b0b93acd18").as_str(),
        "fpga.intel.com/af-bfa.f7d.v6xNhR7oVv6MlYZc4buqLfffQFy9es9yIvFEsLk6zRg"
    );
}

#[test]
fn each_mode_offers_every_port_with_dfl() {
    modes::<Dfl>();
}

#[test]
fn each_mode_offers_every_port_with_opae() {
    modes::<Opae>();
}

#[test]
fn a_machine_without_fpgas_has_none() {
    let empty = tempfile::tempdir().unwrap();
    let roots =
        Roots { sys: empty.path().to_owned(), dev: empty.path().to_owned(), proc: empty.path().to_owned() };
    let mut looking = IntelCards::<Dfl>::new(roots, &Fpga::default(), Duration::from_secs(5));
    assert_eq!(looking.look(Instant::now()), []);
}

fn virtual_function<T: Tree>() {
    let mut machine = Machine::<T>::with_card(1);
    let function = "devices/pci0000:5d/0000:5e:00.1";
    let region = format!("{function}/{}/{}2", T::BELOW_FUNCTION, T::CARD);
    machine.port(&region, 4, 0);
    machine.link("../..", &format!("{region}/device"));
    machine.link("../0000:5e:00.0", &format!("{function}/physfn"));
    machine.link(&format!("../../{region}"), &format!("{}/{}2", T::CLASS, T::CARD));
    let devices = machine.look();
    assert_eq!(devices.len(), 2);
    assert_eq!(devices[1].id.as_str(), "0000:5e:00.1-port0");
    assert_eq!(devices[1].resource, devices[0].resource);
    assert_eq!(*devices[1].nodes, [PathBuf::from(format!("/dev/{}4", T::PORT))]);
    assert_eq!(devices[1].accelerator.id.as_str(), "0000:5e:00.0", "it is the same card");
    assert_eq!(devices[1].accelerator.numa_node, None, "but the function's own NUMA node");
    assert_eq!(machine.look_in(FpgaMode::RegionDevel).len(), 1, "who programs the card has all of it");
}

#[test]
fn the_ports_of_virtual_functions_are_the_cards() {
    virtual_function::<Dfl>();
    virtual_function::<Opae>();
}

#[test]
fn errors_and_nonsense_make_just_that_port_unhealthy() {
    let mut machine = Machine::<Dfl>::with_card(2);
    let mut check = |value: &[u8], part: &str| {
        machine.set_card("dfl-port.1/errors/errors", value);
        let devices = machine.look();
        assert_eq!(devices[0].health, Health::Healthy);
        assert!(unhealthy(&devices[1]).contains(part), "{:?}", devices[1].health);
    };
    check(b"0x4\n", "errors is 0x4");
    check(b"", "is empty");
    check(b"fine\n", "is no number");
    check(b"\xff\xfe\0", "is no text");
    machine.remove_card("dfl-port.1/errors/errors");
    assert_eq!(
        unhealthy(&machine.look()[1]),
        "errors is absent",
        "the driver shows its group whole or not at all"
    );
    machine.remove_card("dfl-port.1/errors");
    assert_eq!(machine.look()[1].health, Health::Healthy, "a card without error reporting is no sick card");
    machine.set_card("dfl-port.1/errors/errors", "0x0\n");
    assert!(machine.look().iter().all(|device| device.health.is_healthy()));

    machine.set_card("dfl-port.1/power_state", "0x6\n");
    assert!(unhealthy(&machine.look()[1]).contains("switched it off"));
    machine.set_card("dfl-port.1/power_state", "0x2\n");
    assert_eq!(machine.look()[1].health, Health::Healthy, "slow, but right");
    machine.set_card("dfl-port.1/power_state", "0x3\n");
    assert_eq!(unhealthy(&machine.look()[1]), "power_state is 0x3");

    fs::remove_file(machine.folder.path().join("dev/dfl-port.0")).unwrap();
    assert_eq!(unhealthy(&machine.look()[0]), "the host has no /dev/dfl-port.0");
}

#[test]
fn a_fault_of_the_card_is_one_of_all_its_ports() {
    let mut machine = Machine::<Dfl>::with_card(2);
    for (attribute, value, why) in [
        ("errors/catfatal_errors", "0x2", "catfatal_errors is 0x2"),
        ("errors/pcie1_errors", "0x10", "pcie1_errors is 0x10"),
        ("errors/nonfatal_errors", "much", "nonfatal_errors is no number: \"much\""),
        ("hwmon/hwmon3/temp1_crit_alarm", "1", "temp1_crit_alarm is 0x1"),
    ] {
        machine.set_card(&format!("dfl-fme.0/{attribute}"), value);
        for device in machine.look() {
            assert_eq!(unhealthy(&device), why);
        }
        machine.set_card(&format!("dfl-fme.0/{attribute}"), "0x0");
        assert!(machine.look().iter().all(|device| device.health.is_healthy()), "after {attribute}");
    }
    machine.set_card("dfl-fme.0/errors/nonfatal_errors", "0x5\n");
    for device in machine.look() {
        assert_eq!(device.health, Health::Healthy, "it is not fatal");
        assert_eq!(device.accelerator.readings.errors["nonfatal"], 2);
    }

    let mut machine = Machine::<Opae>::with_card(1);
    machine.set_card("intel-fpga-fme.0/errors/fme-errors/errors", "0x8");
    assert_eq!(unhealthy(&machine.look()[0]), "errors is 0x8");
    machine.remove_card("intel-fpga-fme.0/errors");
    assert_eq!(machine.look()[0].health, Health::Healthy);
}

#[test]
fn an_alarm_that_comes_and_goes_is_one() {
    let mut machine = Machine::<Dfl>::with_card(1);
    machine.set_card("dfl-fme.0/hwmon/hwmon3/temp1_crit_alarm", "1");
    machine.look();
    machine.set_card("dfl-fme.0/hwmon/hwmon3/temp1_crit_alarm", "0");
    let (now, looking) = (machine.now, machine.looking.as_mut().unwrap());
    assert!(!looking.look(now + Duration::from_secs(4))[0].health.is_healthy());
    assert!(looking.look(now + Duration::from_secs(5))[0].health.is_healthy());
}

#[test]
fn another_function_or_interface_is_another_resource() {
    let mut machine = Machine::<Dfl>::with_card(1);
    let before = machine.look_in(FpgaMode::Af).remove(0);
    machine.set_card("dfl-port.0/afu_id", "0".repeat(32));
    let after = machine.look_in(FpgaMode::Af).remove(0);
    assert_eq!((&before.id, after.health), (&after.id, Health::Healthy));
    assert!(after.resource.as_str().starts_with("fpga.intel.com/af-695.000."), "{}", after.resource);

    // In reset, or crashed: nobody must get what he thinks is that function.
    for nonsense in ["f".repeat(32).as_str(), "", "not an id"] {
        machine.set_card("dfl-port.0/afu_id", nonsense);
        let now = machine.look_in(FpgaMode::Af).remove(0);
        assert_eq!(now.resource, after.resource);
        unhealthy(&now);
        assert_eq!(machine.look_in(FpgaMode::Region)[0].health, Health::Healthy, "any function will do");
    }
    machine.set_card("dfl-port.0/afu_id", FUNCTION);
    assert_eq!(machine.look_in(FpgaMode::Af).remove(0).resource, before.resource);

    machine.set_card(Dfl::INTERFACE_ID, "1".repeat(32));
    let moved = machine.look().remove(0);
    assert_eq!(moved.resource.as_str(), format!("fpga.intel.com/region-{}", "1".repeat(32)));
    machine.set_card(Dfl::INTERFACE_ID, "f".repeat(32));
    assert_eq!(unhealthy(&machine.look()[0]), "the card's firmware does not answer");
}

#[test]
fn nobody_could_ask_for_a_port_with_a_bad_interface() {
    let mut machine = Machine::<Dfl>::with_card(1);
    for nonsense in ["", "\n", "0", "../../../etc/passwd", &"x".repeat(32), &"a".repeat(5000)] {
        machine.set_card(Dfl::INTERFACE_ID, nonsense);
        assert_eq!(machine.look(), [], "{nonsense:?}");
    }
    machine.set_card(Dfl::INTERFACE_ID, [0xff; 32]);
    assert_eq!(machine.look(), []);
    machine.set_card(Dfl::INTERFACE_ID, INTERFACE.to_uppercase());
    assert_eq!(machine.look().len(), 1);
}

#[test]
fn a_card_that_can_not_be_programmed_is_offered_by_what_is_in_it() {
    let mut machine = Machine::<Dfl>::with_card(1);
    machine.remove_card("dfl-fme.0/dfl-fme-region.1");
    for mode in [FpgaMode::Af, FpgaMode::Region, FpgaMode::RegionDevel] {
        let devices = machine.look_in(mode);
        let expected = format!("fpga.spillway.dev/afu-{FUNCTION}");
        assert_eq!(
            summary(&devices),
            [(expected.as_str(), "0000:5e:00.0-port0", "/dev/dfl-port.0".to_owned())],
            "{mode:?}"
        );
    }
    machine.remove_card("dfl-port.0/afu_id");
    assert_eq!(machine.look_in(FpgaMode::Af).len(), 1, "it is remembered");
    machine.looking = None;
    assert_eq!(machine.look_in(FpgaMode::Af), []);
}

#[test]
fn what_userspace_drivers_serve_of_a_port_goes_with_it() {
    let mut machine = Machine::<Dfl>::with_card(1);
    machine.set_card("dfl-port.0/dfl_dev.7/uio/uio3/name", "dfl-uio");
    machine.set_card("dfl-fme.0/dfl_dev.1/uio/uio0/name", "dfl-uio");
    machine.node("uio3");
    machine.node("uio0");
    assert_eq!(*machine.look()[0].nodes, [PathBuf::from("/dev/dfl-port.0"), PathBuf::from("/dev/uio3")]);
}

#[test]
fn device_ids_fit_whatever_the_kernel_says() {
    let mut machine = Machine::<Dfl>::with_card(1);
    for nonsense in ["", "-1", "99999999999", "0/../.."] {
        machine.set_card("dfl-port.0/id", nonsense);
        assert_eq!(machine.look()[0].id, DeviceId::new("dfl-port.0").unwrap(), "{nonsense:?}");
    }
}

#[test]
fn ports_are_reserved_for_the_functions_that_are_put_into_them() {
    let mut machine = Machine::<Dfl>::with_card(3);
    let wanted = |function: &str, ports| crate::config::FpgaFunction {
        interface: INTERFACE.to_owned(),
        function: function.to_owned(),
        ports,
    };
    let other = "0".repeat(32);
    let fpga = Fpga { functions: vec![wanted(&other, 1), wanted(FUNCTION, 1)], ..Fpga::default() };
    let roots = Roots {
        sys: machine.folder.path().join("sys"),
        dev: machine.folder.path().join("dev"),
        proc: machine.folder.path().join("proc"),
    };
    machine.looking = Some(IntelCards::new(roots, &fpga, Duration::from_secs(5)));
    let resources =
        |devices: &[Device]| devices.iter().map(|device| device.resource.clone()).collect::<Vec<_>>();
    let before = resources(&machine.look());
    let region = ResourceName::new(format!("fpga.intel.com/region-{INTERFACE}")).unwrap();
    assert_eq!(
        before,
        [
            function_resource(INTERFACE, &other).unwrap(),
            function_resource(INTERFACE, FUNCTION).unwrap(),
            region
        ]
    );
    // The first goes: the others keep what pods may hold them by, and what comes back is what it was.
    fs::rename(machine.at(&format!("{PCI}/{}/dfl-port.0", Dfl::REGION)), machine.at("dfl-port.0")).unwrap();
    assert_eq!(resources(&machine.look()), before[1..]);
    fs::rename(machine.at("dfl-port.0"), machine.at(&format!("{PCI}/{}/dfl-port.0", Dfl::REGION))).unwrap();
    assert_eq!(resources(&machine.look()), before);
}
