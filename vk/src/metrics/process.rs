//! What this process uses, by the names that Prometheus' client libraries have for it. Looked at when somebody asks; what can't be read is
//! left out.

use std::{fmt, fs, path::PathBuf};

use jiff::Timestamp;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric as _},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
};

/// The unit of times that the kernel tells programs, whatever it counts in itself.
const USER_HZ: f64 = 100.0;

/// Tells it.
#[derive(Debug)]
pub(crate) struct Process {
    /// Its folder in `/proc`.
    folder: PathBuf,
    started_at: Timestamp,
}

impl Process {
    /// This one, which has just started.
    pub(crate) fn own() -> Self {
        Self { folder: PathBuf::from("/proc/self"), started_at: Timestamp::now() }
    }

    fn read(&self, file: &str) -> String {
        fs::read_to_string(self.folder.join(file)).unwrap_or_default()
    }

    fn cpu_seconds(&self) -> Option<f64> {
        let stat = self.read("stat");
        // Behind the program's name, which may have anything in it: the state, ten numbers, and the times in programs and in the kernel.
        let mut times = stat.rsplit_once(") ")?.1.split(' ').skip(11).map(|ticks| ticks.parse::<f64>().ok());
        Some((times.next()?? + times.next()??) / USER_HZ)
    }

    fn gauges(&self) -> [(&'static str, &'static str, Option<i64>); 5] {
        let (status, limits) = (self.read("status"), self.read("limits"));
        let number = |text: &str, name: &str| -> Option<i64> {
            let value = text.lines().find_map(|line| line.strip_prefix(name))?;
            value.split_whitespace().next()?.parse().ok()
        };
        let bytes = |name| number(&status, name)?.checked_mul(1024);
        let open =
            fs::read_dir(self.folder.join("fd")).ok().and_then(|open| i64::try_from(open.count()).ok());
        [
            (
                "process_start_time_seconds",
                "Start time of the process since unix epoch in seconds",
                Some(self.started_at.as_second()),
            ),
            ("process_resident_memory_bytes", "Resident memory size in bytes", bytes("VmRSS:")),
            ("process_virtual_memory_bytes", "Virtual memory size in bytes", bytes("VmSize:")),
            ("process_open_fds", "Number of open file descriptors", open),
            ("process_max_fds", "Maximum number of open file descriptors", number(&limits, "Max open files")),
        ]
    }
}

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        if let Some(seconds) = self.cpu_seconds() {
            let (name, help) = ("process_cpu_seconds", "Total user and system CPU time spent in seconds");
            let descriptor = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            ConstCounter::new(seconds).encode(descriptor)?;
        }
        for (name, help, value) in self.gauges() {
            let Some(value) = value else { continue };
            let descriptor = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            ConstGauge::new(value).encode(descriptor)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::registry::Registry;

    use super::*;

    #[test]
    fn the_kernel_s_files_are_read_and_what_is_missing_is_left_out() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
        write("stat", "7 (a) b) S 1 7 7 0 -1 4194560 1 2 3 4 150 25 6 7 20 0 9 0 1234 99 88\n");
        write("status", "Name:\ta\nVmSize:\t    2048 kB\nVmRSS:\t     512 kB\n");
        fs::create_dir(folder.path().join("fd")).unwrap();
        fs::write(folder.path().join("fd/0"), "").unwrap();
        let mut registry = Registry::default();
        let (folder, started_at) = (folder.path().to_owned(), Timestamp::from_second(5).unwrap());
        registry.register_collector(Box::new(Process { folder, started_at }));
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        let samples: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
        assert_eq!(
            samples,
            [
                "process_cpu_seconds_total 1.75",
                "process_start_time_seconds 5",
                "process_resident_memory_bytes 524288",
                "process_virtual_memory_bytes 2097152",
                "process_open_fds 1",
            ]
        );
    }
}
