//! What a process has and has used, as the kernel counts it.

use std::{fs, path::Path};

use anyhow::Context as _;

use crate::{
    bench::footprint::{self, Memory},
    cluster::{Cluster, machine::Machine},
    demo::report::count,
};

/// Clock ticks of a second in `/proc/PID/stat`: the same on all Linux systems.
const TICKS: f64 = 100.0;

/// One reading.
#[derive(Debug, Clone, Copy)]
pub(super) struct Usage {
    pub(super) memory: Memory,
    /// Seconds of CPU time since it started.
    pub(super) cpu: f64,
}

impl Usage {
    pub(super) fn resident_mib(&self) -> f64 {
        count(usize::try_from(self.memory.resident).unwrap_or(usize::MAX)) / 1024.0
    }

    pub(super) fn private_mib(&self) -> f64 {
        count(usize::try_from(self.memory.private).unwrap_or(usize::MAX)) / 1024.0
    }

    pub(super) fn peak_mib(&self) -> f64 {
        count(usize::try_from(self.memory.peak).unwrap_or(usize::MAX)) / 1024.0
    }
}

/// Of a component of a machine.
pub(super) fn usage(cluster: &Cluster, machine: &str, name: &str) -> anyhow::Result<Usage> {
    let process = cluster.process(machine, name)?;
    let id = process.id.filter(|id| id.alive()).with_context(|| format!("{name} is not running"))?;
    let folder = format!("/proc/{}", id.pid);
    let memory = footprint::of(Path::new(&format!("{folder}/status")))?;
    let stat = format!("{folder}/stat");
    let text = fs::read_to_string(&stat).with_context(|| format!("can't read {stat}"))?;
    let cpu = cpu_seconds(&text).with_context(|| format!("{stat} doesn't tell CPU time"))?;
    Ok(Usage { memory, cpu })
}

/// Reads `/proc/PID/stat` (proc(5)): user and system time.
fn cpu_seconds(stat: &str) -> Option<f64> {
    // The command's name may hold spaces and parentheses: count fields behind the last one.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let (user, system): (f64, f64) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    Some((user + system) / TICKS)
}

/// Bytes that a machine has received by its cable.
pub(super) fn received(machine: &Machine) -> anyhow::Result<f64> {
    let path = format!("/proc/{}/net/dev", machine.first.pid);
    let text = fs::read_to_string(&path).with_context(|| format!("can't read {path}"))?;
    received_in(&text, "eth0").with_context(|| format!("{path} has no eth0"))
}

fn received_in(text: &str, interface: &str) -> Option<f64> {
    let line = text.lines().find_map(|line| line.trim().strip_prefix(interface)?.strip_prefix(':'))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_files_are_read() {
        let stat = "7 (a (b) c) S 1 7 7 0 -1 4194560 1 2 3 4 250 50 0 0 20 0 9 0 100 1 1";
        assert_eq!(cpu_seconds(stat), Some(3.0));
        assert_eq!(cpu_seconds("7 (x"), None);
        let dev = "Inter-|   Receive\n face |bytes    packets\n    lo: 5 1 0\n  eth0: 1234 5 0 0\n";
        assert_eq!(received_in(dev, "eth0"), Some(1234.0));
        assert_eq!(received_in(dev, "eth1"), None);
    }
}
