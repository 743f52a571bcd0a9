//! What a cgroup's files are told: its weight and its limits, as either version has them.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use cgroups_rs::fs::{Cgroup, cpu::CpuController, error::Error, memory::MemController};

use crate::provider::runtime::{CPU_PERIOD_US, Resources};

/// The kernel's bounds of a cgroup's CPU shares.
pub(super) const LEAST_SHARES: u64 = 2;
const MOST_SHARES: u64 = 262_144;

/// Sets what is limited, and the weight.
pub(super) fn set(cgroup: &Cgroup, limits: Resources) -> Result<(), (&'static str, Error)> {
    weigh(cgroup, limits.cpu_shares)?;
    if let (Some(cpu), Some(quota)) = (cgroup.controller_of::<CpuController>(), limits.cpu_quota_us) {
        cpu.set_cfs_quota_and_period(Some(quota), Some(CPU_PERIOD_US.unsigned_abs()))
            .map_err(|error| ("the CPU limit", error))?;
    }
    if let (Some(memory), Some(bytes)) = (cgroup.controller_of::<MemController>(), limits.memory_bytes) {
        memory.set_limit(bytes).map_err(|error| ("the memory limit", error))?;
    }
    Ok(())
}

/// Sets the CPU weight if it is another one.
pub(super) fn weigh(cgroup: &Cgroup, shares: u64) -> Result<(), (&'static str, Error)> {
    let Some(cpu) = cgroup.controller_of::<CpuController>() else { return Ok(()) };
    let shares = shares.clamp(LEAST_SHARES, MOST_SHARES);
    // The crate writes the number as it is, in either version.
    let number = if cgroup.v2() { weight(shares) } else { shares };
    if cpu.shares().is_ok_and(|now| now == number) {
        return Ok(());
    }
    cpu.set_shares(number).map_err(|error| ("the CPU weight", error))
}

/// From 2 … 262144 to 1 … 10000, as `getCPUWeight` (`pkg/kubelet/cm/cgroup_manager_linux.go`).
fn weight(shares: u64) -> u64 {
    1 + (shares - LEAST_SHARES) * 9999 / (MOST_SHARES - LEAST_SHARES)
}

/// Limits huge pages to what is given, in bytes by the size of a page; there are none of other sizes. Where a folder has no such files
/// (another controller's, or none that is ours) nothing is to be limited.
pub(super) fn huge_pages(folder: &Path, given: &BTreeMap<u64, u64>) -> Result<(), (PathBuf, io::Error)> {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some(page) = name.to_str().and_then(page_bytes) else { continue };
        let bytes = given.get(&page).copied().unwrap_or(0);
        fs::write(entry.path(), bytes.to_string()).map_err(|error| (entry.path(), error))?;
    }
    Ok(())
}

/// The size of the pages that a file limits, by its name: `hugetlb.2MB.max`, in version 1 `hugetlb.2MB.limit_in_bytes`, and `.rsvd` before
/// these ends of what is only reserved.
fn page_bytes(file: &str) -> Option<u64> {
    let rest = file.strip_prefix("hugetlb.")?;
    let size = rest.strip_suffix(".max").or_else(|| rest.strip_suffix(".limit_in_bytes"))?;
    let size = size.strip_suffix(".rsvd").unwrap_or(size);
    let (number, shift) = [("KB", 10), ("MB", 20), ("GB", 30)]
        .into_iter()
        .find_map(|(unit, shift)| Some((size.strip_suffix(unit)?, shift)))?;
    number.parse::<u64>().ok()?.checked_mul(1 << shift)
}

#[cfg(test)]
mod tests {
    use cgroups_rs::fs::{Hierarchy, Subsystem};

    use super::*;

    /// A folder in place of the kernel's.
    #[derive(Debug)]
    struct Fake {
        root: PathBuf,
        v2: bool,
    }

    impl Hierarchy for Fake {
        fn subsystems(&self) -> Vec<Subsystem> {
            let (point, root) =
                if self.v2 { (self.root.clone(), "".into()) } else { (self.root.clone(), "/".into()) };
            vec![Subsystem::Cpu(CpuController::new(point, root, self.v2))]
        }

        fn root(&self) -> PathBuf {
            self.root.clone()
        }

        fn root_control_group(&self) -> Cgroup {
            unimplemented!()
        }

        fn parent_control_group(&self, _: &str) -> Cgroup {
            unimplemented!()
        }

        fn v2(&self) -> bool {
            self.v2
        }
    }

    #[test]
    fn weights_are_in_the_units_of_the_version() {
        let check = |v2: bool, shares: u64, expected: &str| {
            let folder = tempfile::tempdir().unwrap();
            let pod = folder.path().join("pod1");
            fs::create_dir(&pod).unwrap();
            let fake = Fake { root: folder.path().to_owned(), v2 };
            let limits = Resources { cpu_shares: shares, ..Resources::default() };
            set(&Cgroup::load(Box::new(fake), "pod1"), limits).unwrap();
            let file = pod.join(if v2 { "cpu.weight" } else { "cpu.shares" });
            assert_eq!(fs::read_to_string(file).unwrap(), expected, "{shares}");
        };
        check(false, 0, "2");
        check(false, 1024, "1024");
        check(true, 0, "1");
        check(true, 1024, "39");
        // 16 CPUs: more than the greatest weight, if it were written as it is.
        check(true, 16 * 1024, "625");
        check(true, u64::MAX, "10000");
    }

    #[test]
    fn a_weight_that_is_right_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("pod1/cpu.weight");
        fs::create_dir(folder.path().join("pod1")).unwrap();
        for (before, after) in [("1024\n", "39"), ("39\n", "39\n")] {
            fs::write(&file, before).unwrap();
            let fake = Fake { root: folder.path().to_owned(), v2: true };
            weigh(&Cgroup::load(Box::new(fake), "pod1"), 1024).unwrap();
            // The kernel ends the line, and we do not.
            assert_eq!(fs::read_to_string(&file).unwrap(), after);
        }
    }

    #[test]
    fn burstable_pods_weigh_what_they_ask_for_and_those_that_ask_for_nothing_next_to_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let hierarchy =
            || -> Box<dyn Hierarchy> { Box::new(Fake { root: folder.path().to_owned(), v2: false }) };
        let shares = |class: &str| {
            fs::read_to_string(folder.path().join(format!("spillway/{class}/cpu.shares"))).unwrap()
        };
        for burstable in [3072, 2] {
            super::super::weigh_classes(hierarchy, "spillway", burstable).unwrap();
            assert_eq!((shares("burstable"), shares("besteffort")), (burstable.to_string(), "2".to_owned()));
        }
    }

    #[test]
    fn huge_pages_are_only_those_that_are_given() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let text = |name: &str| fs::read_to_string(path(name)).unwrap();
        let limits = [
            "hugetlb.2MB.max",
            "hugetlb.2MB.rsvd.max",
            "hugetlb.1GB.max",
            "hugetlb.64KB.limit_in_bytes",
            "hugetlb.1GB.rsvd.limit_in_bytes",
        ];
        let others = ["hugetlb.2MB.current", "hugetlb.2MB.max_usage_in_bytes", "memory.max", "hugetlb.x.max"];
        for name in limits.into_iter().chain(others) {
            fs::write(path(name), "max").unwrap();
        }
        huge_pages(folder.path(), &[(2 << 20, 4 << 20)].into()).unwrap();
        assert_eq!(limits.map(text), ["4194304", "4194304", "0", "0", "0"]);
        assert_eq!(others.map(text), ["max"; 4]);
        huge_pages(&path("nothing"), &BTreeMap::new()).unwrap();
    }
}
