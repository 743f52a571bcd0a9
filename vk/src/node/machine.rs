//! What this machine is, for the node's status. Reads below an injectable root; what can't be read is left empty or out.

use std::{collections::BTreeMap, path::Path};

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// Facts that don't change while we run.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Machine {
    pub(super) id: String,
    pub(super) system_uuid: String,
    pub(super) boot_id: String,
    pub(super) kernel_version: String,
    pub(super) os_image: String,
    /// `None`: there is none.
    pub(super) swap_bytes: Option<u64>,
    /// cpu, memory and ephemeral-storage.
    pub(super) capacity: BTreeMap<String, Quantity>,
}

impl Machine {
    pub(super) fn read(root: impl AsRef<Path>) -> Self {
        let root = root.as_ref();
        let text = |path: &str| {
            std::fs::read_to_string(root.join(path)).map(|text| text.trim().to_owned()).unwrap_or_default()
        };
        let first = |paths: &[&str]| {
            let mut texts = paths.iter().map(|path| text(path).trim_end_matches('\0').to_owned());
            texts.find(|text| !text.is_empty()).unwrap_or_default()
        };
        let mut capacity = BTreeMap::new();
        let cpus = text("proc/cpuinfo").lines().filter(|line| line.starts_with("processor")).count();
        if cpus > 0 {
            capacity.insert("cpu".to_owned(), Quantity(cpus.to_string()));
        }
        let meminfo = text("proc/meminfo");
        let kib = |name: &str| field(&meminfo, name).map(|kib| kib.trim_end_matches("kB").trim().to_owned());
        if let Some(kib) = kib("MemTotal:") {
            capacity.insert("memory".to_owned(), Quantity(format!("{kib}Ki")));
        }
        if let Ok(storage) = nix::sys::statvfs::statvfs(&root.join("var/lib")) {
            let bytes = storage.fragment_size().saturating_mul(storage.blocks());
            capacity.insert("ephemeral-storage".to_owned(), Quantity(format!("{}Ki", bytes / 1024)));
        }
        Self {
            id: first(&["etc/machine-id", "var/lib/dbus/machine-id"]),
            // In cAdvisor's order: not every machine has a BIOS.
            system_uuid: first(&[
                "sys/class/dmi/id/product_uuid",
                "proc/device-tree/system-id",
                "proc/device-tree/vm,uuid",
                "etc/machine-id",
            ]),
            boot_id: text("proc/sys/kernel/random/boot_id"),
            kernel_version: text("proc/sys/kernel/osrelease"),
            os_image: field(&text("etc/os-release"), "PRETTY_NAME=")
                .unwrap_or_default()
                .trim_matches('"')
                .to_owned(),
            swap_bytes: kib("SwapTotal:")
                .and_then(|kib| kib.parse::<u64>().ok()?.checked_mul(1024))
                .filter(|&bytes| bytes > 0),
            capacity,
        }
    }
}

fn field(text: &str, name: &str) -> Option<String> {
    text.lines().find_map(|line| line.strip_prefix(name)).map(|value| value.trim().to_owned())
}

/// As Kubernetes spells it.
pub(super) fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_a_folder_and_survives_what_is_missing() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        assert_eq!(Machine::read(root.path()), Machine::default());
        write("proc/cpuinfo", "processor\t: 0\nmodel name\t: x\n\nprocessor\t: 1\n");
        write("proc/meminfo", "MemTotal:       32780 kB\nMemFree: 1 kB\nSwapTotal:       4 kB\n");
        write("var/lib/dbus/machine-id", "abc\n");
        write("proc/device-tree/vm,uuid", "d-e-f\0");
        write("proc/sys/kernel/osrelease", "6.1.0-13\n");
        write("etc/os-release", "NAME=Debian\nPRETTY_NAME=\"Debian GNU/Linux 12\"\n");
        let machine = Machine::read(root.path());
        assert_eq!(machine.capacity["cpu"].0, "2");
        assert_eq!(machine.capacity["memory"].0, "32780Ki");
        assert_eq!(machine.swap_bytes, Some(4096));
        assert_eq!((machine.id.as_str(), machine.system_uuid.as_str()), ("abc", "d-e-f"));
        assert_eq!(
            (machine.kernel_version.as_str(), machine.os_image.as_str()),
            ("6.1.0-13", "Debian GNU/Linux 12")
        );
    }
}
