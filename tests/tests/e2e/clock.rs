//! The agent's time of day jumps, far forwards and far backwards, while it serves the real kubelet. libfaketime, in the agent's own pod, makes
//! it jump: the machine's clock is everybody's. Nobody else's jumps with it.

use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use spillway_tests::standin::GpuStandin;

use crate::{
    Test,
    harness::{DEDICATED, Pool, allocatable, metric, metrics, wait, wait_gpus},
};

pub(crate) const TESTS: &[Test] =
    &[("clock::no_jump_of_the_clock_changes_what_is_offered", no_jump_of_the_clock_changes_what_is_offered)];

const GPU: &str = "nvidia.com/gpu";
/// Mounted into the agent's pod, as /host/driver/usr/lib.
const LIBRARIES: &str = "/opt/spillway-standin/driver/usr/lib";
/// The chart's `recoverySeconds` under test.
const RECOVERY: Duration = Duration::from_secs(12);

/// An agent whose time of day is another; the usual one when this is dropped.
struct Clock<'a>(&'a Pool);

impl<'a> Clock<'a> {
    fn of(pool: &'a Pool) -> anyhow::Result<Self> {
        let clock = Self(pool);
        pool.on(DEDICATED, &format!("cp /usr/lib/*/faketime/libfaketimeMT.so.1 {LIBRARIES}/"))?;
        clock.set("+0")?;
        clock.environment(&[
            "LD_PRELOAD=/host/driver/usr/lib/libfaketimeMT.so.1",
            "FAKETIME_TIMESTAMP_FILE=/host/driver/usr/lib/faketime",
            "FAKETIME_NO_CACHE=1",
            "FAKETIME_DONT_FAKE_MONOTONIC=1",
            "FAKETIME_FORCE_MONOTONIC_FIX=0",
            "NO_FAKE_STAT=1",
        ])?;
        Ok(clock)
    }

    fn environment(&self, variables: &[&str]) -> anyhow::Result<()> {
        let agent = ["-n", "spillway-system"];
        let set = ["set", "env", "daemonset/spillway-agent"];
        self.0.cluster.kubectl(&[&agent[..], &set, variables].concat())?;
        let status = ["rollout", "status", "daemonset/spillway-agent", "--timeout=120s"];
        self.0.cluster.kubectl(&[&agent[..], &status].concat())?;
        wait_gpus(self.0, 2)
    }

    /// `+36h`: so far from the truth.
    fn set(&self, offset: &str) -> anyhow::Result<()> {
        self.0.on(DEDICATED, &format!("cd {LIBRARIES}; echo '{offset}' >new; mv new faketime")).map(drop)
    }

    /// What the agent thinks that it is, in hours from the truth, by its log's last line.
    fn hours(&self) -> anyhow::Result<i64> {
        let log = ["-n", "spillway-system", "logs", "-l", "app.kubernetes.io/component=agent", "--tail=1"];
        let line = self.0.cluster.kubectl(&log)?;
        let line: serde_json::Value = serde_json::from_str(line.trim()).with_context(|| line.clone())?;
        let Some(said) = line["timestamp"].as_str() else { bail!("a line without a time: {line}") };
        let said: jiff::Timestamp = said.parse()?;
        let ahead = said.duration_since(jiff::Timestamp::now()).as_secs_f64() / 3600.0;
        #[expect(clippy::cast_possible_truncation, reason = "a few days at most")]
        Ok(ahead.round() as i64)
    }
}

impl Drop for Clock<'_> {
    fn drop(&mut self) {
        let names = [
            "LD_PRELOAD-",
            "FAKETIME_TIMESTAMP_FILE-",
            "FAKETIME_NO_CACHE-",
            "FAKETIME_DONT_FAKE_MONOTONIC-",
        ];
        let back =
            self.environment(&[&names[..], &["FAKETIME_FORCE_MONOTONIC_FIX-", "NO_FAKE_STAT-"]].concat());
        let files = self.0.on(DEDICATED, &format!("rm {LIBRARIES}/faketime {LIBRARIES}/libfaketimeMT.so.1"));
        for error in [back, files.map(drop)].into_iter().filter_map(Result::err) {
            eprintln!("    the agent's clock was not set back: {error:#}");
        }
    }
}

fn no_jump_of_the_clock_changes_what_is_offered(pool: &Pool) -> anyhow::Result<()> {
    wait_gpus(pool, 2)?;
    let namespace = pool.namespace("clock")?;
    let gpus = GpuStandin::at(&pool.cluster.machine(DEDICATED)?.path("/opt/spillway-standin"));
    let clock = Clock::of(pool)?;
    // Held, and idle all the time.
    namespace.holder("steady", GPU, 1)?;
    namespace.wait_ready("steady")?;
    let begin = Instant::now();
    for (temperature, hours) in [(51, 36), (52, -36)] {
        gpus.xid(1, 79)?;
        wait_gpus(pool, 1)?;
        let sick = Instant::now();
        clock.set(&format!("{hours:+}h"))?;
        gpus.set_temperature(1, temperature)?;
        let measured = format!(r#"spillway_device_temperature_celsius{{device="{}""#, GpuStandin::uuid(1));
        wait("a look after the jump", || {
            Ok((metric(pool, &measured)? == Some(i64::from(temperature))).then_some(()))
        })?;
        // Its time to recover is not over because the clock says so.
        let offered = allocatable(pool)?.remove(GPU).unwrap_or_default().len();
        ensure!(offered == 1 || sick.elapsed() >= RECOVERY, "{offered} GPUs after a jump by {hours} h");
        // Nor does it last any longer.
        wait_gpus(pool, 2).with_context(|| format!("it did not recover after a jump by {hours} h"))?;
        ensure!(clock.hours()? == hours, "the agent's clock has not jumped by {hours} h: {}", clock.hours()?);
        namespace.holder("next", GPU, 1)?;
        namespace.wait_ready("next").with_context(|| format!("after a jump by {hours} h"))?;
        namespace.kubectl(&["delete", "pod", "next"])?;
    }
    let idle = wait("the steady pod's idle time", || {
        let metrics = metrics(pool)?;
        let idle = metrics.lines().find(|line| {
            line.starts_with("spillway_container_device_held_idle_seconds_total{")
                && line.contains("pod=\"steady\"")
        });
        Ok(idle.and_then(|line| line.rsplit(' ').next()).map(str::parse::<f64>))
    })??;
    let most = begin.elapsed().as_secs_f64() + 60.0;
    ensure!((0.0..most).contains(&idle), "held idle for {idle} s within {most} s");

    // Back to the truth, the API server is told again: to a clock of yesterday its certificate was not valid yet.
    clock.set("+0")?;
    let count = || {
        let path = "jsonpath={.metadata.labels.nvidia\\.com/gpu\\.count}";
        pool.cluster.kubectl(&["get", "node", DEDICATED, "-o", path])
    };
    for (minor, there, expected) in [(2, true, "3"), (2, false, "2")] {
        let changed = if there { gpus.add(minor) } else { gpus.remove(minor) };
        changed?;
        wait(&format!("the label to say {expected} GPUs"), || Ok((count()? == expected).then_some(())))?;
    }
    let untouched = namespace.field("pod", "steady", ".status.containerStatuses[0].restartCount")?;
    ensure!(untouched == "0", "the steady pod was restarted");
    namespace.kubectl(&["delete", "pod", "steady"]).map(drop)
}
