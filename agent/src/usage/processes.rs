//! Which pod a process belongs to, by `/proc/PID/cgroup`. That file's paths are relative to the reader's cgroup namespace, and the folders
//! above pods differ from node to node, so only the pod's own folder is looked at: `pod<uid>` with the kubelet's cgroupfs driver,
//! `kubepods-burstable-pod<uid with underscores>.slice` with systemd's.

use std::{
    collections::BTreeMap,
    fs::File,
    io::Read as _,
    path::{Path, PathBuf},
};

use crate::{holders::is_uid, isolation::cgroup::pod_uid};

/// A line for each hierarchy, of a path each.
const LIMIT: u64 = 64 << 10;
/// More processes than accelerators of one machine have.
const PROCESSES: usize = 10_000;

/// The processes of a machine, below an injectable root.
#[derive(Debug, Clone)]
pub struct Processes {
    proc: PathBuf,
}

impl Processes {
    /// Those that `proc` shows.
    pub fn at(proc: &Path) -> Self {
        Self { proc: proc.to_owned() }
    }

    /// The UID of the pod that a process is in. None when there is no such process, or it is in no pod.
    pub fn pod(&self, pid: u32) -> Option<String> {
        let file = File::open(self.proc.join(pid.to_string()).join("cgroup")).ok()?;
        let mut text = Vec::new();
        file.take(LIMIT).read_to_end(&mut text).ok()?;
        pod_in(&String::from_utf8_lossy(&text))
    }

    /// The pods of these processes.
    pub fn pods(&self, pids: impl IntoIterator<Item = u32>) -> BTreeMap<u32, String> {
        pids.into_iter().take(PROCESSES).filter_map(|pid| Some((pid, self.pod(pid)?))).collect()
    }
}

/// The pod's UID in the text of a `/proc/PID/cgroup`.
pub fn pod_in(text: &str) -> Option<String> {
    text.lines().find_map(|line| {
        // hierarchy:controllers:path; the last two may hold colons.
        let path = line.splitn(3, ':').nth(2)?;
        // The outermost: below its own cgroup a pod may make others, of any name.
        path.split('/').find_map(pod_of)
    })
}

fn pod_of(folder: &str) -> Option<String> {
    // systemd's units of other things may begin like a pod's cgroup: podman-1.scope.
    let is_unit = [".scope", ".service"].iter().any(|end| folder.ends_with(end));
    pod_uid(folder).filter(|uid| !is_unit && is_uid(uid))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use proptest::prelude::*;

    use super::*;

    const UID: &str = "3cf197f2-d979-44d7-8edd-9229db5bc9af";

    #[test]
    fn pods_are_found_under_every_spelling() {
        for (line, uid) in [
            ("0::/kubepods/burstable/pod3cf197f2-d979-44d7-8edd-9229db5bc9af/f1a4085b", UID),
            ("0::/../../pod3cf197f2-d979-44d7-8edd-9229db5bc9af/f1a4085b", UID),
            ("8:pids:/spw/dedicated-1/kubepods/pod3cf197f2-d979-44d7-8edd-9229db5bc9af/x\n0::/\n", UID),
            (
                "0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod3cf197f2_d979_44d7_8edd_9229db5bc9af.slice/cri-containerd-f1.scope",
                UID,
            ),
            ("1:name=systemd:/kubelet.slice/kubepods-pod3cf197f2_d979_44d7_8edd_9229db5bc9af.slice/x:y", UID),
            (
                "0::/kubepods/besteffort/podafc3cd3256489053d5b35fa89af7eef4/x",
                "afc3cd3256489053d5b35fa89af7eef4",
            ),
        ] {
            assert_eq!(pod_in(line).as_deref(), Some(uid), "{line}");
        }
        for line in [
            "",
            "0::/",
            "0::/system.slice/containerd.service",
            "0::/user.slice/podman-1.scope",
            "0::/machine.slice/libpod-0123.slice",
            "podx",
            "0::/pod",
        ] {
            assert_eq!(pod_in(line), None, "{line}");
        }
    }

    #[test]
    fn a_process_that_is_gone_is_in_no_pod() {
        let proc = tempfile::tempdir().unwrap();
        fs::create_dir(proc.path().join("7")).unwrap();
        fs::write(proc.path().join("7/cgroup"), format!("0::/kubepods/pod{UID}/x\n")).unwrap();
        fs::create_dir(proc.path().join("8")).unwrap();
        fs::write(proc.path().join("8/cgroup"), b"0::/\xff\xfe\n").unwrap();
        let processes = Processes::at(proc.path());
        assert_eq!(processes.pods([7, 8, 9]), BTreeMap::from([(7, UID.to_owned())]));
    }

    proptest! {
        #[test]
        fn no_text_yields_what_is_no_uid(text in "\\PC{0,60}", prefix in "0::/(kubepods/pod|kubepods-pod)") {
            for text in [text.clone(), format!("{prefix}{text}")] {
                if let Some(uid) = pod_in(&text) {
                    prop_assert!(is_uid(&uid));
                }
            }
        }
    }
}
