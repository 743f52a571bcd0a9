//! What is asked of a container's memory beside its limit: what a kubelet asks by default
//! (`pkg/kubelet/kuberuntime/kuberuntime_container_linux.go`: `singleProcessOOMKill: false`, swap behaviour `NoSwap`).

use std::path::Path;

use spillway_proto::cri as wire;

/// What the machine's cgroups can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::provider::cri) struct Memory {
    /// There is one hierarchy of version 2 for all.
    unified: bool,
    /// Swap can be limited.
    swap: bool,
}

impl Memory {
    /// `root`: the machine's `/`.
    pub(super) fn look(root: &Path, unified: bool) -> Self {
        let cgroups = root.join("sys/fs/cgroup");
        let file = if unified {
            // The root of the hierarchy has no such file; the cgroup that we are in ourselves is another one.
            let own = std::fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
            let own = own.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or_default();
            cgroups.join(own).join("memory.swap.max")
        } else {
            cgroups.join("memory/memory.memsw.limit_in_bytes")
        };
        Self { unified, swap: file.exists() }
    }

    /// When the memory of one of its processes runs out, the kernel ends all of them: no container lives on in parts.
    pub(in crate::provider::cri) fn of_sandbox(self, resources: &mut wire::LinuxContainerResources) {
        if self.unified {
            resources.unified.insert("memory.oom.group".to_owned(), "1".to_owned());
        }
    }

    /// The same, and no swap. With version 1 a limit counts both together; without a limit nothing holds swap back.
    pub(in crate::provider::cri) fn of_container(self, resources: &mut wire::LinuxContainerResources) {
        self.of_sandbox(resources);
        match (self.swap, self.unified) {
            (false, _) => {}
            (true, true) => drop(resources.unified.insert("memory.swap.max".to_owned(), "0".to_owned())),
            (true, false) => resources.memory_swap_limit_in_bytes = resources.memory_limit_in_bytes,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn swap_can_be_limited_where_the_kernel_has_the_file() {
        let root = tempfile::tempdir().unwrap();
        let put = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        let swap = |unified| Memory::look(root.path(), unified).swap;
        put("proc/self/cgroup", "0::/system.slice/spillway-vk.service\n");
        assert!(!swap(true) && !swap(false));
        put("sys/fs/cgroup/system.slice/spillway-vk.service/memory.swap.max", "max\n");
        assert!(swap(true) && !swap(false));
        put("sys/fs/cgroup/memory/memory.memsw.limit_in_bytes", "0\n");
        assert!(swap(false));
    }

    #[test]
    fn containers_die_whole_and_do_not_swap() {
        let check = |unified, swap, limit, sandbox: &[&str], container: &[&str], both: i64| {
            let asked = |ask: fn(Memory, &mut wire::LinuxContainerResources)| {
                let mut resources =
                    wire::LinuxContainerResources { memory_limit_in_bytes: limit, ..Default::default() };
                ask(Memory { unified, swap }, &mut resources);
                let mut files: Vec<_> =
                    resources.unified.iter().map(|(file, value)| format!("{file}={value}")).collect();
                files.sort();
                (files, resources.memory_swap_limit_in_bytes)
            };
            let texts = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
            assert_eq!(asked(Memory::of_sandbox), (texts(sandbox), 0), "{unified} {swap}");
            assert_eq!(asked(Memory::of_container), (texts(container), both), "{unified} {swap}");
        };
        let group = "memory.oom.group=1";
        check(true, true, 64, &[group], &[group, "memory.swap.max=0"], 0);
        check(true, false, 64, &[group], &[group], 0);
        check(false, true, 64, &[], &[], 64);
        check(false, true, 0, &[], &[], 0);
        check(false, false, 64, &[], &[], 0);
    }
}
