//! What the machine uses, from `/proc` below an injectable root. Interfaces are those of our own network namespace, which is the
//! runtime's.

use std::{fs, path::Path};

use jiff::Timestamp;

use super::super::cgroup::parse_pressure;
use crate::provider::usage::{Cpu, FileSystem, GroupUsage, Interface, MachineUsage, Memory, Traffic};

/// Ticks a second in `/proc/stat`.
const USER_HZ: u64 = 100;
/// Interfaces that belong to pods or lead nowhere, as a kubelet leaves them out.
const NOT_THE_MACHINE_S: [&str; 4] = ["lo", "veth", "docker", "nerdctl"];

/// All of it but the cgroups' and the image file system.
pub(super) fn read(root: &Path, root_fs: Option<FileSystem>, time: Timestamp) -> MachineUsage {
    let text = |path: &str| fs::read_to_string(root.join(path)).unwrap_or_default();
    let stat = text("proc/stat");
    let booted_at = stat
        .lines()
        .find_map(|line| line.strip_prefix("btime ")?.trim().parse().ok())
        .and_then(|seconds| Timestamp::from_second(seconds).ok())
        .unwrap_or_default();
    let (meminfo, vmstat) = (text("proc/meminfo"), text("proc/vmstat"));
    let most = |path: &str| text(path).trim().parse::<i64>().ok();
    let pressure = |what: &str| fs::read_to_string(root.join("proc/pressure").join(what)).ok();
    let pressures = ["cpu", "memory", "io"].map(|what| pressure(what).map(|text| parse_pressure(&text)));
    MachineUsage {
        booted_at,
        total: GroupUsage {
            path: "/".to_owned(),
            time,
            cpu: cpu(&stat),
            memory: memory(&meminfo, &vmstat),
            swap: kib(&meminfo, "SwapTotal:")
                .zip(kib(&meminfo, "SwapFree:"))
                .map(|(total, free)| total.saturating_sub(free)),
            pressure: match pressures {
                [Some(cpu), Some(memory), Some(io)] => Some([cpu, memory, io]),
                _ => None,
            },
            ..GroupUsage::default()
        },
        free_swap: kib(&meminfo, "SwapFree:"),
        network: interfaces(&text("proc/self/net/dev"))
            .into_iter()
            .filter(|interface| !NOT_THE_MACHINE_S.iter().any(|name| interface.name.starts_with(name)))
            .collect(),
        root_fs,
        max_pids: most("proc/sys/kernel/pid_max")
            .into_iter()
            .chain(most("proc/sys/kernel/threads-max"))
            .min(),
        pids: text("proc/loadavg")
            .split(' ')
            .nth(3)
            .and_then(|counts| counts.split_once('/')?.1.parse().ok()),
        processors: stat
            .lines()
            .filter(|line| {
                line.strip_prefix("cpu")
                    .is_some_and(|rest| rest.starts_with(|digit: char| digit.is_ascii_digit()))
            })
            .count() as u64,
        ..MachineUsage::default()
    }
}

fn cpu(stat: &str) -> Option<Cpu> {
    let line = stat.lines().find_map(|line| line.strip_prefix("cpu "))?;
    let ticks: Vec<u64> = line.split_whitespace().map_while(|ticks| ticks.parse().ok()).collect();
    // user nice system idle iowait irq softirq steal; guests are in user already.
    let &[user, nice, system, _, _, irq, softirq, ..] = ticks.as_slice() else { return None };
    let in_ns = |ticks: u64| ticks.saturating_mul(1_000_000_000 / USER_HZ);
    let (user, system) =
        (in_ns(user.saturating_add(nice)), in_ns(system.saturating_add(irq).saturating_add(softirq)));
    Some(Cpu {
        total_ns: user.saturating_add(system),
        user_ns: Some(user),
        system_ns: Some(system),
        ..Cpu::default()
    })
}

/// As a kubelet reckons for the root of version 2: what isn't free is used, and files not used lately could be.
fn memory(meminfo: &str, vmstat: &str) -> Option<Memory> {
    let total = kib(meminfo, "MemTotal:")?;
    let usage = total.saturating_sub(kib(meminfo, "MemFree:")?);
    let inactive_file = kib(meminfo, "Inactive(file):");
    let count = |key: &str| {
        vmstat.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
    };
    Some(Memory {
        usage,
        working_set: usage.saturating_sub(inactive_file.unwrap_or(0)),
        rss: kib(meminfo, "AnonPages:"),
        cache: kib(meminfo, "Cached:"),
        mapped: kib(meminfo, "Mapped:"),
        active_file: kib(meminfo, "Active(file):"),
        inactive_file,
        limit: Some(total),
        faults: count("pgfault"),
        major_faults: count("pgmajfault"),
        oom_kills: count("oom_kill"),
        ..Memory::default()
    })
}

fn kib(meminfo: &str, key: &str) -> Option<u64> {
    let value = meminfo.lines().find_map(|line| line.strip_prefix(key))?;
    value.trim().trim_end_matches("kB").trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// From the text of a `/proc/<pid>/net/dev`.
pub(super) fn interfaces(text: &str) -> Vec<Interface> {
    let interface = |line: &str| {
        let (name, numbers) = line.split_once(':')?;
        let numbers: Vec<u64> = numbers.split_whitespace().map_while(|number| number.parse().ok()).collect();
        let &[
            bytes,
            packets,
            errors,
            dropped,
            _,
            _,
            _,
            _,
            sent_bytes,
            sent_packets,
            sent_errors,
            sent_dropped,
            ..,
        ] = numbers.as_slice()
        else {
            return None;
        };
        let traffic = |bytes, packets, errors, dropped| Traffic {
            bytes,
            packets: Some(packets),
            errors,
            dropped: Some(dropped),
        };
        Some(Interface {
            name: name.trim().to_owned(),
            received: traffic(bytes, packets, errors, dropped),
            sent: traffic(sent_bytes, sent_packets, sent_errors, sent_dropped),
        })
    };
    text.lines().skip(2).filter_map(interface).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proc_is_read_and_what_is_missing_is_left_out() {
        let root = tempfile::tempdir().unwrap();
        let nothing = read(root.path(), None, Timestamp::UNIX_EPOCH);
        assert_eq!((nothing.total.cpu, nothing.total.memory, nothing.pids), (None, None, None));
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write("proc/stat", "cpu  10 1 5 900 50 2 3 4 0 0\ncpu0 1\ncpu1 1\nintr 1\nbtime 1700000000\n");
        write(
            "proc/meminfo",
            "MemTotal: 1000 kB\nMemFree: 400 kB\nInactive(file): 100 kB\nAnonPages: 50 kB\nSwapTotal: 10 kB\nSwapFree: 4 kB\n",
        );
        write("proc/vmstat", "pgfault_x 1\npgfault 77\npgmajfault 7\n");
        write(
            "proc/self/net/dev",
            "Inter-| Receive\n face |bytes\n    lo: 1 1 0 0 0 0 0 0 1 1 0 0 0 0 0 0\n  eth0:10 2 1 3 0 0 0 0 20 4 5 6 0 0 0 0\n\
             veth1: 1 1 0 0 0 0 0 0 1 1 0 0 0 0 0 0\n  bad: 1 x\n",
        );
        write("proc/loadavg", "0.00 0.01 0.05 2/345 678\n");
        write("proc/sys/kernel/pid_max", "4194304\n");
        write("proc/sys/kernel/threads-max", "1000\n");
        let machine = read(root.path(), None, Timestamp::UNIX_EPOCH);
        assert_eq!(machine.booted_at, Timestamp::from_second(1_700_000_000).unwrap());
        assert_eq!(machine.total.cpu.unwrap().total_ns, 210_000_000);
        let memory = machine.total.memory.unwrap();
        assert_eq!((memory.usage, memory.working_set), (600 * 1024, 500 * 1024));
        assert_eq!((memory.limit, memory.faults), (Some(1000 * 1024), Some(77)));
        assert_eq!((machine.total.swap, machine.free_swap), (Some(6 * 1024), Some(4 * 1024)));
        assert_eq!(machine.network.len(), 1);
        let eth0 = &machine.network[0];
        assert_eq!((eth0.name.as_str(), eth0.received.bytes, eth0.sent.errors), ("eth0", 10, 5));
        assert_eq!(eth0.sent.dropped, Some(6));
        assert_eq!((machine.max_pids, machine.pids, machine.processors), (Some(1000), Some(345), 2));
    }
}
