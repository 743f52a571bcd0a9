//! What a process has and has used, as the kernel counts it.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::Context as _;

use super::summary;
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

/// Seconds of CPU time by who has used them.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Spent {
    /// The cluster's components; those of the same name together.
    components: BTreeMap<String, f64>,
    /// The whole machine.
    all: f64,
}

/// What has been used until now.
pub(super) fn spent(cluster: &Cluster) -> anyhow::Result<Spent> {
    let text = fs::read_to_string("/proc/stat").context("can't read /proc/stat")?;
    let mut spent =
        Spent { all: busy(&text).context("/proc/stat doesn't tell CPU time")?, ..Spent::default() };
    for process in cluster.processes() {
        let Some(id) = process.id.filter(|id| id.alive()) else { continue };
        let text = fs::read_to_string(format!("/proc/{}/stat", id.pid)).unwrap_or_default();
        *spent.components.entry(process.name).or_default() += cpu_seconds(&text).unwrap_or_default();
    }
    Ok(spent)
}

/// Reads the first line of `/proc/stat` (proc(5)): all but waiting, and what others took.
fn busy(stat: &str) -> Option<f64> {
    let fields: Vec<f64> =
        stat.lines().next()?.strip_prefix("cpu ")?.split_whitespace().flat_map(str::parse).collect();
    let [user, nice, system, _idle, _wait, interrupts, soft, ..] = fields[..] else { return None };
    Some((user + nice + system + interrupts + soft) / TICKS)
}

impl Spent {
    pub(super) fn since(&self, before: &Self) -> Self {
        let less =
            |(name, now): (&String, &f64)| (name.clone(), now - before.components.get(name).unwrap_or(&0.0));
        Self { components: self.components.iter().map(less).collect(), all: self.all - before.all }
    }

    /// Of each the median.
    pub(super) fn median(rounds: &[&Self]) -> Self {
        let middle = |of: &dyn Fn(&Self) -> f64| {
            summary::median(&rounds.iter().map(|round| of(round)).collect::<Vec<_>>())
        };
        let names = rounds.iter().flat_map(|round| round.components.keys().cloned());
        let of = |name: &str| middle(&|round| round.components.get(name).copied().unwrap_or(0.0));
        Self {
            components: names.filter_map(|name| Some((name.clone(), of(&name)?))).collect(),
            all: middle(&|round| round.all).unwrap_or(0.0),
        }
    }

    /// For people, in milliseconds; the largest first.
    pub(super) fn per_pod(&self, pods: f64) -> String {
        let one = |seconds: f64| format!("{:.0}", seconds / pods * 1000.0);
        let mut components: Vec<_> = self.components.iter().collect();
        components.sort_by(|a, b| b.1.total_cmp(a.1));
        let listed = components.iter().map(|(name, seconds)| format!("{name} {}", one(**seconds)));
        let rest = self.all - self.components.values().sum::<f64>();
        format!(
            "all {} = {}, shims, runtime, network plugins and what else runs here {}",
            one(self.all),
            listed.collect::<Vec<_>>().join(", "),
            one(rest)
        )
    }
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
        assert_eq!(busy("cpu  100 50 30 9999 7 10 10 0 0 0\ncpu0 1 1 1 1\n"), Some(2.0));
        assert_eq!(busy("intr 5"), None);
    }

    #[test]
    fn time_is_told_by_who_used_it() {
        let spent =
            |ours: f64, all: f64| Spent { components: BTreeMap::from([("vk".to_owned(), ours)]), all };
        let round = spent(3.0, 10.0).since(&spent(1.0, 4.0));
        assert_eq!(round, spent(2.0, 6.0));
        let middle = Spent::median(&[&round, &spent(1.0, 9.0), &spent(5.0, 3.0)]);
        assert_eq!(middle, round);
        assert_eq!(
            middle.per_pod(10.0),
            "all 600 = vk 200, shims, runtime, network plugins and what else runs here 400"
        );
    }
}
