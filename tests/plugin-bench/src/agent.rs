//! The agent as a process: how long things take, and what it needs.

use std::{
    fs,
    io::Write as _,
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
    pub(crate) fn resident_mib(&self) -> anyhow::Result<f64> {
        let status = self.file("status")?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kibibytes: f64 =
            line.and_then(|line| line.trim().strip_suffix(" kB")?.parse().ok()).context("no VmRSS")?;
        Ok(kibibytes / 1024.0)
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

    /// How much of one CPU it uses during `span`.
    pub(crate) async fn cpu_percent(&self, span: Duration) -> anyhow::Result<f64> {
        let (before, began) = (self.on_cpu()?, Instant::now());
        tokio::time::sleep(span).await;
        let used = Duration::from_nanos(self.on_cpu()?.saturating_sub(before));
        Ok(100.0 * used.as_secs_f64() / began.elapsed().as_secs_f64())
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
