//! Stand-ins for accelerators, as folders: what a machine with GPUs and FPGAs would show, without either. Everything here is
//! simulated; nothing computes.
//!
//! A machine's stand-ins lie in one base folder: `driver/` is a driver root with our `libnvidia-ml.so.1` (the crate
//! `spillway-standin-nvml`, whose documentation says what its folder means), `sys/` a sysfs tree. Both may be changed while an agent
//! looks at them.

use std::{
    fs, io,
    io::Write as _,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use anyhow::Context as _;

mod fpga;

pub use fpga::{BoardStandin, FPGA_INTERFACE_ID, FpgaStandin, OpaeStandin, XrtStandin};

/// The NVML library's place below the driver root.
const LIBRARY: &str = "driver/usr/lib/x86_64-linux-gnu/libnvidia-ml.so.1";
/// What Cargo calls it.
const BUILT_LIBRARY: &str = "libnvidia_ml.so";
/// A version that nobody mistakes for a real driver's.
const DRIVER_VERSION: &str = "580.0.0-standin";
/// Majors of drivers whose real ones are dynamic: the low end of the kernel's range, which it reaches last.
const UVM_MAJOR: u32 = 390;
/// The NVIDIA driver's own major, and the minors of its control nodes.
const NVIDIA_MAJOR: u32 = 195;
const NVIDIACTL_MINOR: u32 = 255;
const MODESET_MINOR: u32 = 254;

/// Puts the stand-ins for `gpus` GPUs (the NVML library from `binaries`, and its folder) and `fpgas` FPGAs (a sysfs tree) into
/// `base`.
///
/// # Errors
/// When the library was not built, or a file can't be written.
pub fn install(base: &Path, binaries: &Path, gpus: u32, fpgas: u32) -> anyhow::Result<()> {
    let wrote = || format!("can't write the stand-ins to {}", base.display());
    let standin = GpuStandin::at(base);
    fs::create_dir_all(standin.folder().join("gpus")).with_context(wrote)?;
    fs::create_dir_all(base.join("proc/driver/nvidia")).with_context(wrote)?;
    let (built, library) = (binaries.join(BUILT_LIBRARY), base.join(LIBRARY));
    fs::copy(&built, &library).with_context(|| {
        format!("can't copy {}: build it with `cargo build -p spillway-standin-nvml`", built.display())
    })?;
    fs::write(standin.folder().join("driver-version"), DRIVER_VERSION).with_context(wrote)?;
    for minor in 0..gpus {
        standin.add(minor).with_context(wrote)?;
    }
    let standin = FpgaStandin::at(base);
    fs::create_dir_all(base.join("sys/class/fpga_region")).with_context(wrote)?;
    for number in 0..fpgas {
        standin.add(number).with_context(wrote)?;
    }
    Ok(())
}

/// The device nodes that go with them: path, major, minor. There is no driver behind any of them: opening one fails with ENXIO.
pub fn device_nodes(gpus: u32, fpgas: u32) -> Vec<(String, u32, u32)> {
    let control = [
        ("/dev/nvidiactl", NVIDIA_MAJOR, NVIDIACTL_MINOR),
        ("/dev/nvidia-modeset", NVIDIA_MAJOR, MODESET_MINOR),
        ("/dev/nvidia-uvm", UVM_MAJOR, 0),
        ("/dev/nvidia-uvm-tools", UVM_MAJOR, 1),
    ];
    let control = control.map(|(path, major, minor)| (path.to_owned(), major, minor));
    control
        .into_iter()
        .chain((0..gpus).map(GpuStandin::device_node))
        .chain((0..fpgas).map(FpgaStandin::device_node))
        .collect()
}

/// The GPUs of one machine, by minor number.
#[derive(Debug, Clone)]
pub struct GpuStandin {
    base: PathBuf,
}

impl GpuStandin {
    /// Those in `base`.
    pub fn at(base: &Path) -> Self {
        Self { base: base.to_owned() }
    }

    /// The UUID of the GPU with this minor number.
    pub fn uuid(minor: u32) -> String {
        format!("GPU-57a4d100-0000-4000-8000-{minor:012}")
    }

    /// The node that goes with it: path, major, minor.
    pub fn device_node(minor: u32) -> (String, u32, u32) {
        (format!("/dev/nvidia{minor}"), NVIDIA_MAJOR, minor)
    }

    /// Puts a GPU in: NVML's folder, and the kernel's list of devices bound to the driver.
    pub fn add(&self, minor: u32) -> io::Result<()> {
        let address = Self::pci_address(minor);
        let device = self.base.join("sys/bus/pci/devices").join(&address);
        fs::create_dir_all(&device)?;
        fs::write(device.join("numa_node"), "0\n")?;
        // Whole or not at all: the library may look at any moment.
        let new = self.folder().join(format!("new-{minor}"));
        fs::create_dir_all(&new)?;
        fs::write(new.join("bus-id"), format!("0000{}", address.to_uppercase()))?;
        fs::write(new.join("minor"), minor.to_string())?;
        fs::write(new.join("temperature"), "35")?;
        fs::create_dir_all(self.folder().join("gpus"))?;
        fs::rename(new, self.gpu(minor))?;
        let bound = self.base.join("sys/bus/pci/drivers/nvidia");
        fs::create_dir_all(&bound)?;
        symlink(Path::new("../../devices").join(&address), bound.join(&address))
    }

    /// Takes a GPU out, as an admin does who unbinds it from the driver.
    pub fn remove(&self, minor: u32) -> io::Result<()> {
        let address = Self::pci_address(minor);
        fs::remove_file(self.base.join("sys/bus/pci/drivers/nvidia").join(&address))?;
        fs::remove_dir_all(self.gpu(minor))?;
        fs::remove_dir_all(self.base.join("sys/bus/pci/devices").join(&address))
    }

    /// Reports a critical XID of a GPU.
    pub fn xid(&self, minor: u32, xid: u64) -> io::Result<()> {
        let mut events = fs::File::options().create(true).append(true).open(self.folder().join("xids"))?;
        events.write_all(format!("{} {xid}\n", Self::uuid(minor)).as_bytes())
    }

    /// Makes a GPU fall off the bus, or come back.
    pub fn set_lost(&self, minor: u32, lost: bool) -> io::Result<()> {
        let mark = self.gpu(minor).join("lost");
        if lost { fs::write(mark, "") } else { fs::remove_file(mark) }
    }

    /// Sets a GPU's temperature.
    pub fn set_temperature(&self, minor: u32, celsius: u32) -> io::Result<()> {
        fs::write(self.gpu(minor).join("temperature"), celsius.to_string())
    }

    /// What the driver wants done about a GPU (`nvmlDeviceGpuRecoveryAction_t`; 0: nothing).
    pub fn set_recovery_action(&self, minor: u32, action: u32) -> io::Result<()> {
        fs::write(self.gpu(minor).join("recovery-action"), action.to_string())
    }

    /// Loads or unloads the driver.
    pub fn set_driver_loaded(&self, loaded: bool) -> io::Result<()> {
        let version = self.folder().join("driver-version");
        if loaded { fs::write(version, DRIVER_VERSION) } else { fs::remove_file(version) }
    }

    fn folder(&self) -> PathBuf {
        self.base.join(format!("{LIBRARY}.d"))
    }

    fn gpu(&self, minor: u32) -> PathBuf {
        self.folder().join("gpus").join(Self::uuid(minor))
    }

    fn pci_address(minor: u32) -> String {
        format!("0000:{:02x}:00.0", 0x10 + minor)
    }
}
