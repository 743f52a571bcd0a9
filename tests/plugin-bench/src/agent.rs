//! The agent as a process: how long things take, and what it needs.

use std::{
    fs,
    io::Write as _,
    path::Path,
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use tokio::process::{Child, Command};

use crate::{Measure, standin_kubelet::StandinKubelet};

/// A running agent; it ends with the value.
pub(crate) struct Agent {
    process: Child,
}

impl Agent {
    /// Starts it, and waits until all its devices are listed; how long that took.
    pub(crate) async fn start(
        command: &[String],
        kubelet: &StandinKubelet,
        measure: &Measure,
    ) -> anyhow::Result<(Self, Duration)> {
        let (program, arguments) = command.split_first().context("no agent was named")?;
        let began = Instant::now();
        let process = Command::new(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("can't start {program}"))?;
        listed(kubelet, measure).await?;
        Ok((Self { process }, began.elapsed()))
    }

    fn file(&self, name: &str) -> anyhow::Result<String> {
        let pid = self.process.id().context("the agent has ended")?;
        let path = format!("/proc/{pid}/{name}");
        fs::read_to_string(&path).with_context(|| format!("can't read {path}"))
    }

    /// Resident memory.
    pub(crate) fn memory(&self) -> anyhow::Result<Memory> {
        Ok(Memory::of(&self.file("smaps")?))
    }

    /// Time on a CPU, of all threads, in nanoseconds.
    fn on_cpu(&self) -> anyhow::Result<u64> {
        let pid = self.process.id().context("the agent has ended")?;
        let mut sum = 0;
        for task in fs::read_dir(format!("/proc/{pid}/task")).context("can't list the threads")?.flatten() {
            // A thread may end meanwhile.
            let text = fs::read_to_string(task.path().join("schedstat")).unwrap_or_default();
            sum += text.split_whitespace().next().and_then(|word| word.parse::<u64>().ok()).unwrap_or(0);
        }
        Ok(sum)
    }

    /// How much of one CPU it uses during `span`, and how much of that the stand-in of NVML does, which adds up its time in the file `spent`.
    pub(crate) async fn idle(&self, span: Duration, spent: &Path) -> anyhow::Result<Idle> {
        let standin = || -> anyhow::Result<u64> {
            let bytes = fs::read(spent).with_context(|| format!("can't read {}", spent.display()))?;
            Ok(u64::from_ne_bytes(bytes[..].try_into().context("no number of 64 bits")?))
        };
        let (before, standin_before, began) = (self.on_cpu()?, standin()?, Instant::now());
        tokio::time::sleep(span).await;
        let (after, standin_after) = (self.on_cpu()?, standin()?);
        let percent = |before: u64, after: u64| {
            let used = Duration::from_nanos(after.saturating_sub(before));
            100.0 * used.as_secs_f64() / began.elapsed().as_secs_f64()
        };
        Ok(Idle { percent: percent(before, after), standin_percent: percent(standin_before, standin_after) })
    }
}

/// Time on a CPU, in percent of one.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Idle {
    pub(crate) percent: f64,
    pub(crate) standin_percent: f64,
}

/// Resident memory in MiB, and what it is made of.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Memory {
    pub(crate) resident: f64,
    /// Heap, stacks, and what a program or library has changed of its own data.
    pub(crate) anonymous: f64,
    /// Pages of the program's file; the kernel drops them when it needs room.
    pub(crate) program: f64,
    /// Pages of libraries' files, which other processes use, too.
    pub(crate) libraries: f64,
}

impl Memory {
    /// Reads `/proc/PID/smaps` (proc(5)).
    fn of(smaps: &str) -> Self {
        let mut sum = Self::default();
        let (mut library, mut resident) = (false, 0.0);
        for line in smaps.lines() {
            let mut words = line.split_whitespace();
            let value =
                |word: Option<&str>| word.and_then(|word| word.parse::<f64>().ok()).unwrap_or(0.0) / 1024.0;
            match words.next() {
                Some("Rss:") => resident = value(words.next()),
                Some("Anonymous:") => {
                    let anonymous = value(words.next());
                    sum.resident += resident;
                    sum.anonymous += anonymous;
                    *(if library { &mut sum.libraries } else { &mut sum.program }) += resident - anonymous;
                }
                // A mapping's first line: addresses, permissions, offset, device, inode, path.
                Some(word) if !word.ends_with(':') => {
                    library = words.nth(4).is_some_and(|path| path.contains(".so"));
                }
                _ => {}
            }
        }
        sum
    }
}

/// Waits until all devices are listed; how long that took.
pub(crate) async fn listed(kubelet: &StandinKubelet, measure: &Measure) -> anyhow::Result<Duration> {
    let began = Instant::now();
    let (resource, count) = (&measure.resource, measure.devices);
    let all = kubelet
        .until("all devices", |seen| seen.devices(resource).is_some_and(|list| list.len() == count))
        .await;
    if all.devices(resource).is_none() {
        bail!("the agent lists nothing");
    }
    Ok(began.elapsed())
}

/// Makes devices sick one by one; the longest time until the kubelet knew.
pub(crate) async fn sicken(kubelet: &StandinKubelet, measure: &Measure) -> anyhow::Result<Option<Duration>> {
    let mut longest = None;
    for event in &measure.sicken {
        let (file, line) = event.split_once('=').context("--sicken wants FILE=LINE")?;
        let sick = |seen: &crate::standin_kubelet::Seen| {
            let list = seen.devices(&measure.resource).unwrap_or_default();
            list.iter().filter(|(_, health)| *health == "Unhealthy").count()
        };
        let before = sick(&kubelet.until("any list", |_| true).await);
        let began = Instant::now();
        let mut file = fs::File::options().create(true).append(true).open(file)?;
        file.write_all(format!("{line}\n").as_bytes())?;
        kubelet.until("an Unhealthy device", |seen| sick(seen) > before).await;
        longest = longest.max(Some(began.elapsed()));
    }
    Ok(longest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_told_apart_by_what_is_behind_it() {
        let mapping = |first: &str, rss: u32, anonymous: u32| {
            format!(
                "{first}\nSize: 9999 kB\nRss: {rss} kB\nPss: 1 kB\nAnonymous: {anonymous} kB\nVmFlags: rd mr\n"
            )
        };
        let smaps = [
            mapping("5560-5570 r-xp 00000000 fe:00 12 /usr/bin/spillway-agent", 3072, 0),
            mapping("5570-5580 rw-p 00000000 fe:00 12 /usr/bin/spillway-agent", 1024, 512),
            mapping("5590-55a0 rw-p 00000000 00:00 0 [heap]", 1024, 1024),
            mapping("7f00-7f10 r-xp 00000000 fe:00 13 /usr/lib/libc.so.6", 2048, 0),
            mapping("7f20-7f30 rw-p 00000000 00:00 0", 512, 512),
        ];
        let expected = Memory { resident: 7.5, anonymous: 2.0, program: 3.5, libraries: 2.0 };
        assert_eq!(Memory::of(&smaps.concat()), expected);
    }
}
