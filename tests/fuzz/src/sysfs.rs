//! The four kinds of FPGA drivers' trees, spoiled by the bytes, behind the real back ends.

use std::{
    fs,
    path::{Component, Path},
    time::{Duration, Instant},
};

use arbitrary::{Result, Unstructured};
use spillway_device_plugin::{
    config::{Config, Fpga, FpgaMode, Overrides},
    device::Device,
    discovery::{
        Roots, dfl::Dfl, fpga_manager::FpgaRegions, intel::IntelCards, opae::Opae, poll::Look, xrt::Xrt,
    },
    inventory::{BackendState, Inventory},
};

use crate::tree::Tree;

const INTERFACE: &str = "57a4d100000000000000000000000001\n";
const FUNCTION: &str = "57a4d1000000000000000000000000af\n";
const DFL_CARD: &str = "devices/pci0000:5d/0000:5e:00.0";
const OPAE_CARD: &str = "devices/pci0000:5d/0000:5f:00.0";
const XRT_CARD: &str = "devices/pci0000:64/0000:65:00.1";
const BOARD: &str = "devices/platform/fpga-full";

/// Looks at a machine again and again while it is spoiled.
pub fn run(bytes: &[u8]) {
    let _ = tried(&mut Unstructured::new(bytes));
}

fn tried(bytes: &mut Unstructured<'_>) -> Result<()> {
    let mut tree = Tree::new();
    let which = bytes.arbitrary::<u8>()?;
    let fpga = setting(bytes)?;
    let kinds = [which & 1 != 0, which & 2 != 0, which & 4 != 0, which & 8 != 0];
    let makers = [dfl, opae, xrt, board];
    for make in kinds.iter().zip(makers).filter_map(|(wanted, make)| wanted.then_some(make)) {
        make(&mut tree);
    }
    if !kinds.contains(&true) {
        return Ok(());
    }
    let roots = Roots { sys: tree.at("sys"), dev: tree.at("dev"), proc: tree.at("proc") };
    let mut looking = Looking {
        dfl: IntelCards::new(roots.clone(), &fpga, Duration::from_secs(5)),
        opae: IntelCards::new(roots.clone(), &fpga, Duration::from_secs(5)),
        xrt: Xrt::new(roots.clone()),
        regions: FpgaRegions::new(roots),
    };
    let mut now = Instant::now();
    let mut spoiled = 0;
    for _ in 0..bytes.int_in_range(1..=3_u8)? {
        let edits = tree.spoil(bytes);
        spoiled += edits.unwrap_or(1);
        let devices = looking.look(now);
        sound(&tree, &fpga, &devices);
        if spoiled == 0 {
            let expected = usize::from(kinds[0]) * if fpga.mode == FpgaMode::RegionDevel { 1 } else { 2 }
                + kinds[1..].iter().filter(|wanted| **wanted).count();
            assert_eq!(devices.len(), expected, "{devices:#?}");
            assert!(devices.iter().all(|device| device.health.is_healthy()), "{devices:#?}");
        }
        edits?;
        now += Duration::from_secs(bytes.int_in_range(0..=20)?);
    }
    Ok(())
}

fn setting(bytes: &mut Unstructured<'_>) -> Result<Fpga> {
    let text = match bytes.int_in_range(0..=3_u8)? {
        0 => "{mode: af}".to_owned(),
        1 => "{mode: region}".to_owned(),
        2 => "{mode: regiondevel}".to_owned(),
        _ => {
            let (interface, function) = (INTERFACE.trim(), FUNCTION.trim());
            format!(
                "{{mode: region, functions: [{{interface: {interface}, function: {function}, ports: 1}}]}}"
            )
        }
    };
    let loaded = Config::load("a target", format!("fpga: {text}").as_bytes(), &Overrides::default());
    Ok(loaded.expect("a sound configuration").config.fpga)
}

struct Looking {
    dfl: IntelCards<Dfl>,
    opae: IntelCards<Opae>,
    xrt: Xrt,
    regions: FpgaRegions,
}

impl Looking {
    /// As the agent does it: each back end's devices go into the inventory, which has each once.
    fn look(&mut self, now: Instant) -> Vec<Device> {
        let found = [
            ("dfl", self.dfl.look(now)),
            ("opae", self.opae.look(now)),
            ("xrt", self.xrt.look(now)),
            ("fpga_manager", self.regions.look(now)),
        ];
        let mut inventory = Inventory::default();
        for (name, devices) in found {
            (inventory, _) = inventory.with(name, BackendState::Running, devices);
        }
        inventory.devices().cloned().collect()
    }
}

/// What must be true of devices whatever sysfs says.
fn sound(tree: &Tree, fpga: &Fpga, devices: &[Device]) {
    for device in devices {
        for node in device.nodes.iter() {
            let below = node.strip_prefix("/dev").unwrap_or_else(|_| panic!("{} is no node", node.display()));
            assert!(
                below.components().all(|part| matches!(part, Component::Normal(_))),
                "{}",
                node.display()
            );
            assert!(tree.at("dev").join(below).exists(), "the host has no {}", node.display());
            let name = below.to_str().expect("a node's name is a text");
            let management = ["xclmgmt", "nvidia-cap"].iter().any(|name| below.starts_with(name));
            assert!(!management && !name.contains("xclmgmt"), "{} is for nobody", node.display());
            if fpga.mode != FpgaMode::RegionDevel {
                assert!(!name.contains("-fme."), "who has {} programs every port", node.display());
            }
        }
        if device.health.is_healthy() {
            assert!(!device.nodes.is_empty(), "{} is Healthy without a node", device.id);
            well(tree, device);
        }
    }
}

/// A Healthy port has no error that is shown in its own registers.
fn well(tree: &Tree, device: &Device) {
    let name = device.nodes[0].file_name().and_then(|name| name.to_str()).unwrap_or_default();
    if !name.starts_with("dfl-port.") || device.nodes.len() != 1 {
        return;
    }
    let port = tree.at("sys").join(DFL_CARD).join("fpga_region/region0").join(name);
    // Only the port that the name is of: others may have been copied elsewhere.
    let link = fs::read_link(tree.at("sys/class/fpga_region/region0"));
    if !port.join("id").is_file()
        || link.ok().as_deref() != Some(Path::new(&format!("../../{DFL_CARD}/fpga_region/region0")))
    {
        return;
    }
    let copies = fs::read_dir(tree.at("sys/class/fpga_region")).map(Iterator::count).unwrap_or_default();
    if copies > 1 {
        return;
    }
    if port.join("errors").is_dir() {
        let errors = fs::read(port.join("errors/errors")).unwrap_or_default();
        let text = String::from_utf8_lossy(&errors);
        let digits = text.trim().trim_start_matches("0x").trim_start_matches('+');
        assert!(
            !digits.is_empty() && digits.bytes().all(|digit| digit == b'0'),
            "{} is Healthy with {text:?}",
            device.id
        );
    }
}

fn dfl(tree: &mut Tree) {
    let region = format!("sys/{DFL_CARD}/fpga_region/region0");
    tree.set(&format!("sys/{DFL_CARD}/numa_node"), "0\n");
    tree.set(&format!("{region}/dfl-fme.0/dfl-fme-region.1/fpga_region/region1/compat_id"), INTERFACE);
    for register in ["fme_errors", "catfatal_errors", "nonfatal_errors", "pcie0_errors", "pcie1_errors"] {
        tree.set(&format!("{region}/dfl-fme.0/errors/{register}"), "0x0\n");
    }
    for (name, value) in
        [("temp1_input", "41000\n"), ("temp1_crit_alarm", "0\n"), ("power1_input", "61000000\n")]
    {
        tree.set(&format!("{region}/dfl-fme.0/hwmon/hwmon3/{name}"), value);
    }
    for port in 0..2 {
        let folder = format!("{region}/dfl-port.{port}");
        tree.set(&format!("{folder}/id"), format!("{port}\n"));
        tree.set(&format!("{folder}/afu_id"), FUNCTION);
        tree.set(&format!("{folder}/power_state"), "0x0\n");
        tree.set(&format!("{folder}/errors/errors"), "0x0\n");
        tree.set(&format!("dev/dfl-port.{port}"), "");
    }
    tree.set("dev/dfl-fme.0", "");
    tree.class("fpga_region", "region0", DFL_CARD, "fpga_region/region0");
}

fn opae(tree: &mut Tree) {
    let card = format!("sys/{OPAE_CARD}/fpga/intel-fpga-dev.0");
    tree.set(&format!("sys/{OPAE_CARD}/numa_node"), "1\n");
    tree.set(&format!("{card}/intel-fpga-fme.0/pr/interface_id"), INTERFACE);
    for register in ["fme-errors/errors", "catfatal_errors", "nonfatal_errors", "pcie0_errors", "bbs_errors"]
    {
        tree.set(&format!("{card}/intel-fpga-fme.0/errors/{register}"), "0x0\n");
    }
    tree.set(&format!("{card}/intel-fpga-fme.0/thermal_mgmt/temperature"), "47\n");
    tree.set(&format!("{card}/intel-fpga-fme.0/power_mgmt/consumed"), "30\n");
    tree.set(&format!("{card}/intel-fpga-port.0/id"), "0\n");
    tree.set(&format!("{card}/intel-fpga-port.0/afu_id"), FUNCTION);
    tree.set(&format!("{card}/intel-fpga-port.0/errors/errors"), "0x0\n");
    tree.set("dev/intel-fpga-port.0", "");
    tree.set("dev/intel-fpga-fme.0", "");
    tree.class("fpga", "intel-fpga-dev.0", OPAE_CARD, "fpga/intel-fpga-dev.0");
}

fn xrt(tree: &mut Tree) {
    for (name, value) in [
        ("user_pf", ""),
        ("vendor", "0x10ee\n"),
        ("numa_node", "1\n"),
        ("board_name", "u250\n"),
        ("rom.u.15728640/VBNV", "xilinx_u250_gen3x16_xdma_shell_4_1\n"),
        ("rom.u.15728640/timestamp", "0\n"),
        ("drm/renderD129/dev", "226:129\n"),
        ("ready", "0x1\n"),
        ("dev_offline", "0\n"),
        ("device_bad_state", "0\n"),
        ("mailbox_connect_state", "0x3\n"),
        ("mig_calibration", "0x0\n"),
        ("xclbinuuid", "00000000-0000-0000-0000-000000000000\n"),
        ("xocl_errors", "\0\0\0\0"),
    ] {
        tree.set(&format!("sys/{XRT_CARD}/{name}"), value);
    }
    tree.set("dev/dri/renderD129", "");
    tree.set("dev/xclmgmt25856", "");
    tree.link("sys/bus/pci/devices/0000:65:00.1", &format!("../../../{XRT_CARD}"));
}

fn board(tree: &mut Tree) {
    tree.set(&format!("sys/{BOARD}/numa_node"), "0\n");
    tree.set(&format!("sys/{BOARD}/fpga_region/region5/compat_id"), INTERFACE);
    tree.set(&format!("sys/{BOARD}/a0000000.filter/uio/uio4/dev"), "240:0\n");
    tree.set(&format!("sys/{BOARD}/fpga_manager/fpga0/state"), "operating\n");
    tree.set("dev/uio4", "");
    tree.class("fpga_region", "region5", BOARD, "fpga_region/region5");
    tree.class("fpga_manager", "fpga0", BOARD, "fpga_manager/fpga0");
}
