//! The initial RAM file system of the virtual machine: busybox, the modules without which nothing can be mounted, and our first program.

use std::{
    collections::HashMap,
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context as _, bail};

use super::kernel::Kernel;
use crate::image::libraries;

const INIT: &str = include_str!("../../cluster/vm/init");
const BUSYBOX: &str = "/usr/bin/busybox";
const APPLETS: &[&str] = &["cat", "insmod", "ln", "mkdir", "mount", "poweroff", "sh", "sleep", "switch_root"];
/// The host's files come over virtio and 9p; the root is an overlay.
const MODULES: &[&str] = &["virtio_pci", "9pnet_virtio", "9p", "overlay"];

/// Writes it to `out`.
///
/// # Errors
/// When a module isn't among the kernel's, or a file can't be read or written.
pub(super) fn write(kernel: &Kernel, out: &Path) -> anyhow::Result<()> {
    let scratch = tempfile::tempdir().context("can't make a temporary folder")?;
    let root = scratch.path();
    for folder in ["bin", "dev", "lib", "proc", "sys"] {
        fs::create_dir(root.join(folder))?;
    }
    let busybox = Path::new(BUSYBOX);
    for file in libraries::linked_libraries(busybox)? {
        copy(&file, &root.join(file.strip_prefix("/").unwrap_or(&file)))?;
    }
    copy(busybox, &root.join("bin/busybox"))?;
    for applet in APPLETS {
        symlink("busybox", root.join("bin").join(applet))?;
    }
    let listing = kernel.module("modules.dep");
    let listing =
        fs::read_to_string(&listing).with_context(|| format!("can't read {}", listing.display()))?;
    let mut names = Vec::new();
    for path in in_order(&listing, MODULES)? {
        let name = path.rsplit('/').next().unwrap_or(path);
        copy(&kernel.module(path), &root.join("lib").join(name))?;
        names.push(format!("/lib/{name}\n"));
    }
    fs::write(root.join("modules"), names.concat())?;
    let init = root.join("init");
    fs::write(&init, INIT)?;
    fs::set_permissions(&init, fs::Permissions::from_mode(0o755))?;
    pack(root, out)
}

fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    if let Some(folder) = to.parent() {
        fs::create_dir_all(folder)?;
    }
    fs::copy(from, to).map(drop).with_context(|| format!("can't copy {} to {}", from.display(), to.display()))
}

/// The files of `modules` and all that they need, each after what it needs. `listing` is a modules.dep: `FILE: NEEDED …` a line.
fn in_order<'a>(listing: &'a str, modules: &[&str]) -> anyhow::Result<Vec<&'a str>> {
    fn add<'a>(path: &'a str, needs: &HashMap<&str, &'a str>, order: &mut Vec<&'a str>) {
        if !order.contains(&path) {
            for needed in needs.get(path).into_iter().flat_map(|needed| needed.split_whitespace()) {
                add(needed, needs, order);
            }
            order.push(path);
        }
    }
    let lines: Vec<_> = listing.lines().filter_map(|line| line.split_once(':')).collect();
    let needs: HashMap<_, _> = lines.iter().copied().collect();
    let mut order = Vec::new();
    for module in modules {
        let (path, _) = lines
            .iter()
            .find(|(path, _)| path.rsplit('/').next().is_some_and(|name| name == format!("{module}.ko")))
            .with_context(|| format!("the kernel has no module {module}"))?;
        add(path, &needs, &mut order);
    }
    Ok(order)
}

fn pack(root: &Path, out: &Path) -> anyhow::Result<()> {
    let file = fs::File::create(out).with_context(|| format!("can't create {}", out.display()))?;
    let status = Command::new("sh")
        .args(["-c", &format!("find . | {BUSYBOX} cpio -o -H newc 2>/dev/null")])
        .current_dir(root)
        .stdin(Stdio::null())
        .stdout(file)
        .status()
        .context("can't run sh")?;
    if !status.success() {
        bail!("busybox cpio failed: install Debian's package busybox-static");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LISTING: &str = "kernel/fs/9p/9p.ko: kernel/fs/netfs.ko kernel/net/9p/9pnet.ko\nkernel/fs/netfs.ko:\n\
                           kernel/net/9p/9pnet_virtio.ko: kernel/net/9p/9pnet.ko kernel/drivers/virtio/virtio.ko\n\
                           kernel/net/9p/9pnet.ko:\nkernel/drivers/virtio/virtio.ko:\n";

    #[test]
    fn each_module_comes_once_and_after_what_it_needs() {
        let expected = [
            "kernel/net/9p/9pnet.ko",
            "kernel/drivers/virtio/virtio.ko",
            "kernel/net/9p/9pnet_virtio.ko",
            "kernel/fs/netfs.ko",
            "kernel/fs/9p/9p.ko",
        ];
        assert_eq!(in_order(LISTING, &["9pnet_virtio", "9p"]).unwrap(), expected);
    }

    #[test]
    fn a_module_that_is_not_there_is_named() {
        assert!(in_order(LISTING, &["overlay"]).unwrap_err().to_string().contains("overlay"));
    }
}
