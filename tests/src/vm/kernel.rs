//! The kernel of the virtual machine: Debian's, downloaded and unpacked, never installed.

use std::{
    fs, io,
    path::{Component, Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, bail};

use crate::components;

/// Debian's package that depends on its current kernel.
const PACKAGE: &str = "linux-image-amd64";

/// What a cluster without hardware can need, below `lib/modules/VERSION/`; a quarter of the package.
const FOLDERS: &[&str] = &[
    "kernel/arch",
    "kernel/block",
    "kernel/crypto",
    "kernel/drivers/virtio",
    "kernel/fs",
    "kernel/lib",
    "kernel/mm",
    "kernel/net",
];
/// The same for a folder whose own files are wanted, not the folders in it.
const FILES_OF: &[&str] = &["", "kernel/drivers/net"];

/// A kernel on disk.
#[derive(Debug)]
pub(super) struct Kernel {
    /// As `uname -r` says it.
    pub(super) version: String,
    /// What is booted.
    pub(super) image: PathBuf,
    /// The folder that is `/lib/modules`.
    pub(super) modules: PathBuf,
}

impl Kernel {
    fn in_folder(root: &Path) -> anyhow::Result<Self> {
        let modules = root.join("lib/modules");
        let entries = fs::read_dir(&modules).with_context(|| format!("can't read {}", modules.display()))?;
        let versions: Vec<_> = entries
            .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
            .collect::<io::Result<_>>()?;
        let [version] = &versions[..] else {
            bail!("{} holds {} kernels instead of one", root.display(), versions.len())
        };
        let image = root.join(format!("boot/vmlinuz-{version}"));
        if !image.exists() {
            bail!("{} is not there", image.display());
        }
        Ok(Self { version: version.clone(), image, modules })
    }

    /// A file of its modules, as modules.dep names it.
    pub(super) fn module(&self, path: &str) -> PathBuf {
        self.modules.join(&self.version).join(path)
    }
}

/// The kernel in `folder/kernel`, downloaded when it isn't there.
///
/// # Errors
/// When Debian's package can't be had or unpacked.
pub(super) fn ensure(folder: &Path) -> anyhow::Result<Kernel> {
    let root = folder.join("kernel");
    if root.exists() {
        return Kernel::in_folder(&root).with_context(|| format!("delete {} and run again", root.display()));
    }
    let scratch = tempfile::tempdir_in(folder).context("can't make a temporary folder")?;
    download(scratch.path()).or_else(|_| {
        components::apt(&["update"])?;
        download(scratch.path())
    })?;
    let mut files = fs::read_dir(scratch.path())?.flatten().map(|entry| entry.path());
    let archive = files
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .context("apt-get download left no package")?;
    let fresh = scratch.path().join("root");
    unpack(&archive, &fresh)?;
    let kernel = Kernel::in_folder(&fresh)?;
    let depmod = Command::new("depmod").arg("-b").arg(&fresh).arg(&kernel.version).output()?;
    if !depmod.status.success() {
        bail!("depmod failed: {}", String::from_utf8_lossy(&depmod.stderr));
    }
    // Renamed into place when it is whole.
    fs::rename(&fresh, &root).with_context(|| format!("can't put {} in place", root.display()))?;
    Kernel::in_folder(&root)
}

fn download(folder: &Path) -> anyhow::Result<()> {
    let package = dependency()?;
    eprintln!("downloading Debian's {package}");
    components::apt_in(folder, &["download", &package])
}

/// The package that holds the kernel itself: its name has the version in it.
fn dependency() -> anyhow::Result<String> {
    let output = Command::new("apt-cache").args(["depends", PACKAGE]).output().context(
        "can't run apt-cache: the virtual machine's kernel is Debian's, and only had on a machine with its packages",
    )?;
    let listing = String::from_utf8_lossy(&output.stdout).into_owned();
    let found = listing.lines().find_map(|line| line.trim().strip_prefix("Depends: linux-image-"));
    found
        .map(|name| format!("linux-image-{name}"))
        .with_context(|| format!("apt-cache knows no {PACKAGE}: the virtual machine's kernel is Debian's, and only had on a machine with its packages"))
}

fn unpack(package: &Path, out: &Path) -> anyhow::Result<()> {
    let mut child = Command::new("dpkg-deb")
        .arg("--fsys-tarfile")
        .arg(package)
        .stdout(Stdio::piped())
        .spawn()
        .context("can't run dpkg-deb")?;
    let mut archive = tar::Archive::new(child.stdout.take().context("dpkg-deb has no standard output")?);
    fs::create_dir_all(out)?;
    for entry in archive.entries()? {
        let mut entry = entry.with_context(|| format!("can't read {}", package.display()))?;
        if entry.header().entry_type().is_file() && wanted(&entry.path()?) {
            entry.unpack_in(out).with_context(|| format!("can't unpack {}", package.display()))?;
        }
    }
    drop(archive);
    if !child.wait()?.success() {
        bail!("dpkg-deb --fsys-tarfile {} failed", package.display());
    }
    Ok(())
}

/// Whether a file of the package is needed.
fn wanted(path: &Path) -> bool {
    let path: PathBuf = path.components().filter(|part| *part != Component::CurDir).collect();
    if let Ok(file) = path.strip_prefix("boot") {
        return file.to_string_lossy().starts_with("vmlinuz-");
    }
    let Ok(below) = path.strip_prefix("lib/modules").or_else(|_| path.strip_prefix("usr/lib/modules")) else {
        return false;
    };
    let below: PathBuf = below.components().skip(1).collect();
    FOLDERS.iter().any(|folder| below.starts_with(folder))
        || FILES_OF.iter().any(|folder| below.parent() == Some(Path::new(folder)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_a_cluster_needs_is_unpacked() {
        let version = "./lib/modules/6.1.0-1-amd64";
        for path in ["./boot/vmlinuz-6.1.0-1-amd64", "lib/modules/6.1.0-1-amd64/modules.builtin"] {
            assert!(wanted(Path::new(path)), "{path}");
        }
        for path in ["kernel/fs/9p/9p.ko", "kernel/drivers/virtio/virtio.ko", "kernel/drivers/net/veth.ko"] {
            assert!(wanted(&Path::new(version).join(path)), "{path}");
        }
        for path in [
            "kernel/drivers/net/ethernet/intel/e1000/e1000.ko",
            "kernel/sound/core/snd.ko",
            "kernel/drivers/x.ko",
        ] {
            assert!(!wanted(&Path::new(version).join(path)), "{path}");
        }
        for path in ["./boot/config-6.1.0-1-amd64", "./usr/share/doc/x", "./etc/passwd"] {
            assert!(!wanted(Path::new(path)), "{path}");
        }
    }
}
