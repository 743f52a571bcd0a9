//! NVIDIA GPUs: what NVML's stand-in reads, what the kernel shows in sysfs, and what the driver shows in procfs.

use std::{
    collections::BTreeMap,
    fs, io,
    io::Write as _,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use super::{CAPS_MAJOR, DRIVER_VERSION, LIBRARY, NVIDIA_MAJOR};

/// What every stand-in GPU is called: like no GPU that there is.
const NAME: &str = "NVIDIA Standin 40GB";
/// Its memory in MiB.
const MEMORY_MIB: u32 = 40960;

/// The GPUs of one machine, by minor number.
#[derive(Debug, Clone)]
pub struct GpuStandin {
    base: PathBuf,
}

/// A MIG device that a GPU is to have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MigStandin {
    /// The number of its GPU instance.
    pub gi: u32,
    /// The number of its compute instance.
    pub ci: u32,
    /// `1g.5gb`
    pub profile: &'static str,
}

impl MigStandin {
    /// One whose compute instance is all of its GPU instance.
    pub fn new(gi: u32, profile: &'static str) -> Self {
        Self { gi, ci: 0, profile }
    }

    /// Its UUID on the GPU with this minor number.
    pub fn uuid(self, minor: u32) -> String {
        format!("MIG-57a4d100-0000-5000-{:04}-{minor:06}{:03}{:03}", self.slices(), self.gi, self.ci)
    }

    /// The nodes that open it: path, major, minor; the GPU instance's first. Their minors are those of NVIDIA's driver.
    pub fn device_nodes(self, minor: u32) -> [(String, u32, u32); 2] {
        let gi = 3 + minor * 135 + self.gi * 9;
        [gi, gi + 1 + self.ci].map(|cap| (format!("/dev/nvidia-caps/nvidia-cap{cap}"), CAPS_MAJOR, cap))
    }

    /// Its slices of the GPU, by the profile's `Ng`.
    fn slices(self) -> u32 {
        self.field("g").unwrap_or(1)
    }

    /// Those of its compute instance, by the profile's `Nc`: all, where there is none.
    fn compute_slices(self) -> u32 {
        self.field("c").unwrap_or(self.slices())
    }

    /// A little less than the profile's `Ngb`, as on a real GPU.
    fn memory_mib(self) -> u32 {
        self.field("gb").map_or(MEMORY_MIB, |gigabytes| gigabytes * 1024) - 256
    }

    fn field(self, unit: &str) -> Option<u32> {
        self.profile.split(['.', '+', '-']).find_map(|field| field.strip_suffix(unit)?.parse().ok())
    }
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
        fs::write(device.join("class"), "0x030200\n")?;
        // What NVIDIA's own programs read besides. No GPU has this number; a configuration space without capabilities is no virtual GPU's.
        for (name, text) in [("vendor", "0x10de"), ("device", "0xffff"), ("resource", "0x0 0x0 0x0")] {
            fs::write(device.join(name), format!("{text}\n"))?;
        }
        fs::write(device.join("config"), [0; 256])?;
        // Whole or not at all: the library may look at any moment.
        let new = self.folder().join(format!("new-{minor}"));
        fs::create_dir_all(&new)?;
        for (name, value) in [
            ("bus-id", format!("0000{}", address.to_uppercase())),
            ("minor", minor.to_string()),
            ("name", NAME.to_owned()),
            ("compute-capability", "8.0".to_owned()),
            ("memory-total", MEMORY_MIB.to_string()),
            ("memory-used", "0".to_owned()),
            ("temperature", "35".to_owned()),
            ("temperature-slowdown", "90".to_owned()),
            ("power", "50000".to_owned()),
            ("utilization", "0".to_owned()),
            ("compute-mode", "0".to_owned()),
            ("ecc-corrected", "0".to_owned()),
            ("ecc-uncorrected", "0".to_owned()),
            ("mig-mode", "0".to_owned()),
        ] {
            fs::write(new.join(name), value)?;
        }
        fs::create_dir_all(self.folder().join("gpus"))?;
        fs::rename(new, self.gpu(minor))?;
        self.bind(&address)
    }

    /// Takes a GPU out, as an admin does who unbinds it from the driver.
    pub fn remove(&self, minor: u32) -> io::Result<()> {
        let address = Self::pci_address(minor);
        fs::remove_file(self.drivers().join(&address))?;
        fs::remove_dir_all(self.gpu(minor))?;
        fs::remove_dir_all(self.base.join("sys/bus/pci/devices").join(&address))
    }

    /// Reports a critical XID of a GPU.
    pub fn xid(&self, minor: u32, xid: u64) -> io::Result<()> {
        self.event(&Self::xid_line(minor, xid))
    }

    /// How a GPU's XID is written into [`GpuStandin::xids`].
    pub fn xid_line(minor: u32, xid: u64) -> String {
        format!("{} {xid}", Self::uuid(minor))
    }

    /// The file with the driver's version.
    pub fn driver_version(&self) -> PathBuf {
        self.folder().join("driver-version")
    }

    /// The file whose lines are XIDs.
    pub fn xids(&self) -> PathBuf {
        self.folder().join("xids")
    }

    /// From now on, for whoever loads the library after this, it adds up how long it works: nanoseconds of CPU time, as a number of 64 bits
    /// in this file.
    pub fn count_time(&self) -> io::Result<PathBuf> {
        let path = self.folder().join("spent");
        fs::write(&path, 0_u64.to_ne_bytes())?;
        Ok(path)
    }

    /// Reports a critical XID of one of a GPU's MIG devices.
    pub fn xid_of(&self, minor: u32, mig: MigStandin, xid: u64) -> io::Result<()> {
        self.event(&format!("{} {xid} {} {}", Self::uuid(minor), mig.gi, mig.ci))
    }

    /// Tells of something else than an XID (`nvmlEventType…`), if the GPU has such events.
    pub fn tell(&self, minor: u32, kind: u64) -> io::Result<()> {
        self.event(&format!("{} type={kind}", Self::uuid(minor)))
    }

    fn event(&self, line: &str) -> io::Result<()> {
        let mut events = fs::File::options().create(true).append(true).open(self.xids())?;
        events.write_all(format!("{line}\n").as_bytes())
    }

    /// Says on which NUMA node a GPU is.
    pub fn set_numa_node(&self, minor: u32, node: u32) -> io::Result<()> {
        let device = self.base.join("sys/bus/pci/devices").join(Self::pci_address(minor));
        fs::write(device.join("numa_node"), format!("{node}\n"))
    }

    /// Makes a GPU fall off the bus, or come back.
    pub fn set_lost(&self, minor: u32, lost: bool) -> io::Result<()> {
        let mark = self.gpu(minor).join("lost");
        if lost { fs::write(mark, "") } else { fs::remove_file(mark) }
    }

    /// Sets a GPU's temperature.
    pub fn set_temperature(&self, minor: u32, celsius: u32) -> io::Result<()> {
        self.set(minor, "temperature", celsius)
    }

    /// What the driver wants done about a GPU (`nvmlDeviceGpuRecoveryAction_t`; 0: nothing).
    pub fn set_recovery_action(&self, minor: u32, action: u32) -> io::Result<()> {
        self.set(minor, "recovery-action", action)
    }

    /// Sets one of a GPU's attributes; the stand-in library's documentation has the list.
    pub fn set(&self, minor: u32, attribute: &str, value: impl std::fmt::Display) -> io::Result<()> {
        let path = self.gpu(minor).join(attribute);
        if !self.gpu(minor).exists() {
            return Err(io::ErrorKind::NotFound.into());
        }
        fs::create_dir_all(path.parent().unwrap_or(&path))?;
        // Never half written: the library may look at any moment.
        let new = self.folder().join("new-value");
        fs::write(&new, value.to_string())?;
        fs::rename(new, path)
    }

    /// Connects two GPUs by this many links.
    pub fn connect(&self, one: u32, other: u32, links: u32) -> io::Result<()> {
        for link in 0..links {
            for (from, to) in [(one, other), (other, one)] {
                let remote = format!("up 0000{}", Self::pci_address(to).to_uppercase());
                // Links to each of the others have numbers of their own.
                self.set(from, &format!("nvlinks/{}", to * links + link), remote)?;
            }
        }
        Ok(())
    }

    /// Connects pairs of GPUs, each by so many links.
    pub fn connect_all(&self, pairs: &[(u32, u32, u32)]) -> io::Result<()> {
        let mut next = BTreeMap::new();
        for (one, other, links) in pairs {
            for (from, to) in [(one, other), (other, one)] {
                for _ in 0..*links {
                    let link = next.entry(*from).or_insert(0_u32);
                    let remote = format!("up 0000{}", Self::pci_address(*to).to_uppercase());
                    self.set(*from, &format!("nvlinks/{link}"), remote)?;
                    *link += 1;
                }
            }
        }
        Ok(())
    }

    /// Enables MIG on a GPU and partitions it so; without any it is enabled, and the GPU not partitioned.
    pub fn set_mig(&self, minor: u32, migs: &[MigStandin]) -> io::Result<()> {
        self.clear_mig(minor)?;
        for mig in migs {
            let folder = self.gpu(minor).join("mig").join(mig.uuid(minor));
            fs::create_dir_all(&folder)?;
            for (name, value) in [
                ("gi", mig.gi),
                ("ci", mig.ci),
                ("memory-total", mig.memory_mib()),
                ("multiprocessors", 14 * mig.slices()),
                ("slices-gi", mig.slices()),
                ("slices-ci", mig.compute_slices()),
                ("engines-copy", mig.slices()),
            ] {
                fs::write(folder.join(name), value.to_string())?;
            }
            fs::write(folder.join("profile"), mig.profile)?;
            let [gi, ci] = mig.device_nodes(minor).map(|(.., cap)| cap);
            let shown = self.capabilities(minor).join(format!("gi{}", mig.gi));
            fs::create_dir_all(shown.join(format!("ci{}", mig.ci)))?;
            let access =
                |minor| format!("DeviceFileMinor: {minor}\nDeviceFileMode: 256\nDeviceFileModify: 1\n");
            fs::write(shown.join("access"), access(gi))?;
            fs::write(shown.join(format!("ci{}/access", mig.ci)), access(ci))?;
        }
        self.set(minor, "mig-mode", 1)
    }

    /// Puts another compute instance in a MIG device's place, and returns its UUID.
    pub fn replace_mig(&self, minor: u32, mig: MigStandin) -> io::Result<String> {
        let folder = self.gpu(minor).join("mig");
        let uuid = mig.uuid(minor).replace("-0000-5000-", "-0001-5000-");
        fs::rename(folder.join(mig.uuid(minor)), folder.join(&uuid))?;
        let shown = self.capabilities(minor).join(format!("gi{}/ci{}", mig.gi, mig.ci));
        let new = shown.with_extension("new");
        fs::create_dir(&new)?;
        fs::copy(shown.join("access"), new.join("access"))?;
        fs::remove_dir_all(&shown)?;
        fs::rename(new, shown)?;
        Ok(uuid)
    }

    /// Disables MIG on a GPU.
    pub fn disable_mig(&self, minor: u32) -> io::Result<()> {
        self.clear_mig(minor)
    }

    fn clear_mig(&self, minor: u32) -> io::Result<()> {
        self.set(minor, "mig-mode", 0)?;
        for folder in [self.gpu(minor).join("mig"), self.capabilities(minor)] {
            if folder.exists() {
                fs::remove_dir_all(folder)?;
            }
        }
        Ok(())
    }

    /// Makes the driver hang: whoever asks it waits.
    pub fn set_hanging(&self, hanging: bool) -> io::Result<()> {
        let mark = self.folder().join("hang");
        if hanging { fs::write(mark, "") } else { fs::remove_file(mark) }
    }

    /// Loads or unloads the driver: with it go the GPUs that it drives, and what it shows.
    pub fn set_driver_loaded(&self, loaded: bool) -> io::Result<()> {
        let (version, shown) =
            (self.folder().join("driver-version"), self.base.join("proc/driver/nvidia/version"));
        if loaded {
            fs::write(shown, format!("NVRM version: {DRIVER_VERSION}\n"))?;
            fs::write(version, DRIVER_VERSION)?;
        } else {
            fs::remove_file(version)?;
            fs::remove_file(shown)?;
        }
        for entry in fs::read_dir(self.base.join("sys/bus/pci/devices"))? {
            let address = entry?.file_name();
            let address = address.to_string_lossy();
            let gpu = (0..).take(64).find(|minor| Self::pci_address(*minor) == address);
            if gpu.is_some_and(|minor| self.gpu(minor).exists()) {
                if loaded {
                    self.bind(&address)?;
                } else {
                    fs::remove_file(self.drivers().join(&*address))?;
                }
            }
        }
        Ok(())
    }

    fn bind(&self, address: &str) -> io::Result<()> {
        fs::create_dir_all(self.drivers())?;
        match symlink(Path::new("../../devices").join(address), self.drivers().join(address)) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            other => other,
        }
    }

    fn drivers(&self) -> PathBuf {
        self.base.join("sys/bus/pci/drivers/nvidia")
    }

    fn capabilities(&self, minor: u32) -> PathBuf {
        self.base.join(format!("proc/driver/nvidia/capabilities/gpu{minor}/mig"))
    }

    pub(super) fn folder(&self) -> PathBuf {
        self.base.join(format!("{LIBRARY}.d"))
    }

    fn gpu(&self, minor: u32) -> PathBuf {
        self.folder().join("gpus").join(Self::uuid(minor))
    }

    fn pci_address(minor: u32) -> String {
        format!("0000:{:02x}:00.0", 0x10 + minor)
    }
}
