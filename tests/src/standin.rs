//! Stand-ins for accelerators, as folders: what a machine with GPUs and FPGAs would show, without either. Everything here is
//! simulated; nothing computes.
//!
//! A machine's stand-ins lie in one base folder: `driver/` is a driver root with our `libnvidia-ml.so.1` (the crate
//! `spillway-standin-nvml`, whose documentation says what its folder means), `sys/` a sysfs tree, `proc/` what
//! the driver shows in procfs. All of them may be changed while an agent looks at them.

use std::{fs, path::Path};

use anyhow::Context as _;

mod fpga;
mod gpu;

pub use fpga::{BoardStandin, FPGA_INTERFACE_ID, FpgaStandin, OpaeStandin, XrtStandin};
pub use gpu::{GpuStandin, MigStandin};

/// The NVML library's place below the driver root.
const LIBRARY: &str = "driver/usr/lib/x86_64-linux-gnu/libnvidia-ml.so.1";
/// What Cargo calls it.
const BUILT_LIBRARY: &str = "libnvidia_ml.so";
/// A version that nobody mistakes for a real driver's.
const DRIVER_VERSION: &str = "580.0.0-standin";
/// CUDA 13.0.
const CUDA_VERSION: &str = "13000";
/// Majors of drivers whose real ones are dynamic: the low end of the kernel's range, which it reaches last.
const UVM_MAJOR: u32 = 390;
const CAPS_MAJOR: u32 = 392;
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
    fs::create_dir_all(base.join("sys/bus/pci/devices")).with_context(wrote)?;
    let (built, library) = (binaries.join(BUILT_LIBRARY), base.join(LIBRARY));
    fs::copy(&built, &library).with_context(|| {
        format!("can't copy {}: build it with `cargo build -p spillway-standin-nvml`", built.display())
    })?;
    fs::write(standin.folder().join("cuda-version"), CUDA_VERSION).with_context(wrote)?;
    for minor in 0..gpus {
        standin.add(minor).with_context(wrote)?;
    }
    standin.set_driver_loaded(true).with_context(wrote)?;
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
