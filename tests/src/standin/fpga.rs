//! Stand-ins for FPGAs: the sysfs trees of the four kinds of drivers that the agent knows. Nothing is programmed, and behind no device
//! node is a driver.

use std::{
    fs, io,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

/// The interface that every stand-in Intel card has at first: pods ask for `fpga.intel.com/region-<this>`.
pub const FPGA_INTERFACE_ID: &str = "57a4d100000000000000000000000001";
/// The function that is in every port of theirs at first.
const FUNCTION_ID: &str = "57a4d1000000000000000000000000af";

/// Majors of drivers whose real ones are dynamic: the low end of the kernel's range, which it reaches last.
const DFL_PORT_MAJOR: u32 = 391;
const DFL_FME_MAJOR: u32 = 392;
const OPAE_MAJOR: u32 = 393;
const XCLMGMT_MAJOR: u32 = 394;
const UIO_MAJOR: u32 = 395;
/// The DRM subsystem's own major, and the first of our render nodes' minors: above those that real cards have.
const DRM_MAJOR: u32 = 226;
const RENDER_MINOR: u32 = 220;

/// A sysfs tree to write to.
#[derive(Debug, Clone)]
struct Sysfs(PathBuf);

impl Sysfs {
    fn of(base: &Path) -> Self {
        Self(base.join("sys"))
    }

    /// Sets an attribute. It is replaced, as a driver's answer is: nobody reads half of it.
    fn set(&self, path: &str, value: &str) -> io::Result<()> {
        let path = self.0.join(path);
        fs::create_dir_all(path.parent().unwrap_or(&self.0))?;
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(".new");
        let new = path.with_file_name(name);
        fs::write(&new, format!("{value}\n"))?;
        fs::rename(new, path)
    }

    fn set_all(&self, folder: &str, attributes: &[(&str, &str)]) -> io::Result<()> {
        attributes.iter().try_for_each(|(name, value)| self.set(&format!("{folder}/{name}"), value))
    }

    /// Makes an entry of a class for a device's folder, and links both as the kernel does.
    fn class(&self, class: &str, entry: &str, device: &str, below: &str) -> io::Result<()> {
        let folder = self.0.join(device).join(below);
        fs::create_dir_all(&folder)?;
        let up = "../".repeat(below.split('/').count());
        symlink(up.trim_end_matches('/'), folder.join("device"))?;
        let class = self.0.join("class").join(class);
        fs::create_dir_all(&class)?;
        symlink(Path::new("../..").join(device).join(below), class.join(entry))
    }
}

/// Cards of the kernel's DFL framework, each with one port, by number.
#[derive(Debug, Clone)]
pub struct FpgaStandin {
    sysfs: Sysfs,
}

impl FpgaStandin {
    /// Those in `base`.
    pub fn at(base: &Path) -> Self {
        Self { sysfs: Sysfs::of(base) }
    }

    /// What pods ask for to get one.
    pub fn resource() -> String {
        format!("fpga.intel.com/region-{FPGA_INTERFACE_ID}")
    }

    /// The node that goes with a card's port: path, major, minor.
    pub fn device_node(number: u32) -> (String, u32, u32) {
        (format!("/dev/dfl-port.{number}"), DFL_PORT_MAJOR, number)
    }

    /// The node of a card's management engine: path, major, minor.
    pub fn management_node(number: u32) -> (String, u32, u32) {
        (format!("/dev/dfl-fme.{number}"), DFL_FME_MAJOR, number)
    }

    /// Puts a card in.
    pub fn add(&self, number: u32) -> io::Result<()> {
        let (device, engine, port) = (Self::device(number), Self::engine(number), Self::port(number));
        self.sysfs.set(&format!("{device}/numa_node"), "0")?;
        self.set_interface(number, FPGA_INTERFACE_ID)?;
        for register in ["fme_errors", "catfatal_errors", "nonfatal_errors", "pcie0_errors", "pcie1_errors"] {
            self.sysfs.set(&format!("{engine}/errors/{register}"), "0x0")?;
        }
        let monitor = format!("{engine}/hwmon/hwmon{number}");
        self.sysfs.set_all(&monitor, &[("temp1_input", "41000"), ("temp1_crit_alarm", "0")])?;
        self.set_function(number, FUNCTION_ID)?;
        self.sysfs.set_all(&port, &[("id", "0"), ("power_state", "0x0"), ("errors/errors", "0x0")])?;
        self.sysfs.class("fpga_region", &format!("region{number}"), &device, "fpga_region/region0")
    }

    /// Takes a card out.
    pub fn remove(&self, number: u32) -> io::Result<()> {
        fs::remove_file(self.sysfs.0.join(format!("class/fpga_region/region{number}")))?;
        fs::remove_dir_all(self.sysfs.0.join(Self::device(number)))
    }

    /// Sets the error register of a card's port; zero is sane.
    pub fn set_errors(&self, number: u32, errors: u64) -> io::Result<()> {
        self.sysfs.set(&format!("{}/errors/errors", Self::port(number)), &format!("{errors:#x}"))
    }

    /// Whether a card is too hot.
    pub fn set_alarm(&self, number: u32, alarm: bool) -> io::Result<()> {
        let path = format!("{}/hwmon/hwmon{number}/temp1_crit_alarm", Self::engine(number));
        self.sysfs.set(&path, if alarm { "1" } else { "0" })
    }

    /// What a card's port has in it, as after programming.
    pub fn set_function(&self, number: u32, id: &str) -> io::Result<()> {
        self.sysfs.set(&format!("{}/afu_id", Self::port(number)), id)
    }

    /// What bitstreams of a card must fit, as after an update of the card.
    pub fn set_interface(&self, number: u32, id: &str) -> io::Result<()> {
        let region = format!("dfl-fme-region.{number}/fpga_region/region1/compat_id");
        self.sysfs.set(&format!("{}/{region}", Self::engine(number)), id)
    }

    /// The card's PCI device, below `sys`.
    fn device(number: u32) -> String {
        format!("devices/pci0000:5d/0000:{:02x}:00.0", 0x5e + number)
    }

    fn engine(number: u32) -> String {
        format!("{}/fpga_region/region0/dfl-fme.{number}", Self::device(number))
    }

    fn port(number: u32) -> String {
        format!("{}/fpga_region/region0/dfl-port.{number}", Self::device(number))
    }
}

/// Cards of Intel's own driver, each with one port, by number.
#[derive(Debug, Clone)]
pub struct OpaeStandin {
    sysfs: Sysfs,
}

impl OpaeStandin {
    /// Those in `base`.
    pub fn at(base: &Path) -> Self {
        Self { sysfs: Sysfs::of(base) }
    }

    /// The node that goes with a card's port: path, major, minor.
    pub fn device_node(number: u32) -> (String, u32, u32) {
        (format!("/dev/intel-fpga-port.{number}"), OPAE_MAJOR, number)
    }

    /// Puts a card with this interface in.
    pub fn add(&self, number: u32, interface: &str) -> io::Result<()> {
        let device = Self::device(number);
        let below = format!("fpga/intel-fpga-dev.{number}");
        let engine = format!("{device}/{below}/intel-fpga-fme.{number}");
        let port = format!("{device}/{below}/intel-fpga-port.{number}");
        self.sysfs.set_all(&engine, &[("pr/interface_id", interface), ("errors/catfatal_errors", "0x0")])?;
        self.sysfs.set_all(&port, &[("id", "0"), ("afu_id", FUNCTION_ID), ("errors/errors", "0x0")])?;
        self.sysfs.class("fpga", &format!("intel-fpga-dev.{number}"), &device, &below)
    }

    /// Takes a card out.
    pub fn remove(&self, number: u32) -> io::Result<()> {
        fs::remove_file(self.sysfs.0.join(format!("class/fpga/intel-fpga-dev.{number}")))?;
        fs::remove_dir_all(self.sysfs.0.join(Self::device(number)))
    }

    fn device(number: u32) -> String {
        format!("devices/pci0000:ae/0000:{:02x}:00.0", 0xaf + number)
    }
}

/// AMD cards, each a user function and a management function, by number.
#[derive(Debug, Clone)]
pub struct XrtStandin {
    sysfs: Sysfs,
}

impl XrtStandin {
    /// What pods ask for to get one.
    pub const RESOURCE: &'static str = "amd.com/standin_u250_gen3x16_base_4-0";

    /// Those in `base`.
    pub fn at(base: &Path) -> Self {
        Self { sysfs: Sysfs::of(base) }
    }

    /// The node that a pod gets with a card: path, major, minor.
    pub fn device_node(number: u32) -> (String, u32, u32) {
        (format!("/dev/dri/renderD{}", RENDER_MINOR + number), DRM_MAJOR, RENDER_MINOR + number)
    }

    /// The node that nobody gets: path, major, minor.
    pub fn management_node(number: u32) -> (String, u32, u32) {
        (format!("/dev/xclmgmt{number}"), XCLMGMT_MAJOR, number)
    }

    /// Puts a card in.
    pub fn add(&self, number: u32) -> io::Result<()> {
        let (management, user) = (Self::function(number, 0), Self::function(number, 1));
        let instance = number.to_string();
        let attributes = [("mgmt_pf", ""), ("vendor", "0x10ee"), ("instance", &instance)];
        self.sysfs.set_all(&format!("bus/pci/devices/{management}"), &attributes)?;
        let user = format!("bus/pci/devices/{user}");
        let render = format!("drm/renderD{}/uevent", RENDER_MINOR + number);
        let attributes = [
            ("vendor", "0x10ee"),
            ("rom.u.0/VBNV", "standin_u250_gen3x16_base_4"),
            ("rom.u.0/timestamp", "0"),
            ("ready", "0x1"),
            ("dev_offline", "0"),
            ("device_bad_state", "0"),
            ("mailbox_connect_state", "0x3"),
            (render.as_str(), ""),
            ("user_pf", ""),
        ];
        self.sysfs.set_all(&user, &attributes)
    }

    /// Whether a card's driver is ready.
    pub fn set_ready(&self, number: u32, ready: bool) -> io::Result<()> {
        let path = format!("bus/pci/devices/{}/ready", Self::function(number, 1));
        self.sysfs.set(&path, if ready { "0x1" } else { "0x0" })
    }

    /// Takes a card out.
    pub fn remove(&self, number: u32) -> io::Result<()> {
        for function in [0, 1] {
            fs::remove_dir_all(self.sysfs.0.join("bus/pci/devices").join(Self::function(number, function)))?;
        }
        Ok(())
    }

    fn function(number: u32, function: u32) -> String {
        format!("0000:{:02x}:00.{function}", 0xd0 + number)
    }
}

/// A board whose one FPGA is known by the kernel's own classes, with one region.
#[derive(Debug, Clone)]
pub struct BoardStandin {
    sysfs: Sysfs,
}

impl BoardStandin {
    /// What pods ask for to get the region.
    pub const RESOURCE: &'static str = "fpga.spillway.dev/region-standin-board";
    const DEVICE: &'static str = "devices/platform/standin-board";
    const MANAGER: &'static str = "devices/platform/standin-manager";
    /// Above the regions of the DFL stand-ins.
    const REGION: &'static str = "region90";

    /// That in `base`.
    pub fn at(base: &Path) -> Self {
        Self { sysfs: Sysfs::of(base) }
    }

    /// The node that goes with it: path, major, minor.
    pub fn device_node() -> (String, u32, u32) {
        ("/dev/uio90".to_owned(), UIO_MAJOR, 90)
    }

    /// Puts it in.
    pub fn add(&self) -> io::Result<()> {
        self.sysfs.class("fpga_manager", "fpga90", Self::MANAGER, "fpga_manager/fpga90")?;
        self.set_state("operating")?;
        self.sysfs.set(&format!("{}/a0000000.filter/uio/uio90/name", Self::DEVICE), "filter")?;
        self.sysfs.class("fpga_region", Self::REGION, Self::DEVICE, &format!("fpga_region/{}", Self::REGION))
    }

    /// What its manager says of it.
    pub fn set_state(&self, state: &str) -> io::Result<()> {
        self.sysfs.set(&format!("{}/fpga_manager/fpga90/state", Self::MANAGER), state)
    }

    /// Takes it out.
    pub fn remove(&self) -> io::Result<()> {
        fs::remove_file(self.sysfs.0.join("class/fpga_region").join(Self::REGION))?;
        fs::remove_file(self.sysfs.0.join("class/fpga_manager/fpga90"))?;
        fs::remove_dir_all(self.sysfs.0.join(Self::DEVICE))?;
        fs::remove_dir_all(self.sysfs.0.join(Self::MANAGER))
    }
}
