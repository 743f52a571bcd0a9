//! Tests in a virtual machine: another kernel (Debian's), cgroup v2 alone or v1 alone, all capabilities, two NUMA nodes.
//!
//! The machine's root is this machine's own file system, read-only, with memory over it: whatever was built here runs there, and nothing
//! that it writes lasts but `target/vm/results`. QEMU emulates the processor, so that it needs no `/dev/kvm`, and is slow:
//! [`crate::patience`] stretches all limits. It owns the machine, not what runs in it; it builds nothing.

mod initrd;
mod kernel;

use std::{
    ffi::OsStr,
    fs::{self, File},
    io::{self, Read as _, Write as _},
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};

use crate::{components, image};

/// What boots it. The kernel is no package to install here: it is unpacked below `target`, away from this machine's boot loader.
const TOOLS: &[(&str, &str)] = &[
    ("/usr/bin/qemu-system-x86_64", "qemu-system-x86"),
    ("/usr/sbin/modprobe", "kmod"),
    ("/usr/bin/setpriv", "util-linux"),
];

const GUEST: &str = include_str!("../cluster/vm/guest.sh");

/// Without a filter: what depends on the kernel, the cgroup version or the NUMA nodes, and one test of the whole way from a driver to a
/// container. A name or the beginning of one.
const BY_DEFAULT: &[&str] = &["isolation", "topology", "agent::pods_get_exactly_their_devices"];

/// Tests that a dedicated node is enough for: less than half of what there is to start.
const ON_BARE_POOL: &[&str] = &["agent", "fpga", "gpu", "isolation", "sharing", "topology", "usage"];

/// How many times slower than the processor its emulation is taken to be.
const PATIENCE: u32 = 6;

/// All that can be emulated but what costs more than it gives: vectors are slower than the plain code that programs have for processors
/// without, each access switch (smap) and each level of page tables (la57) slows every page fault.
const PROCESSOR: &str = "max,-avx,-avx2,-la57,-smap,-smep,-pku,-umip";

/// The last two of these: the emulated time stamp counter is sound, and reading any other clock is a system call that leaves the emulator.
const KERNEL_ARGUMENTS: &str =
    "console=ttyS0 loglevel=4 panic=-1 mitigations=off clocksource=tsc tsc=reliable";

/// How long the tests may take, and how much longer the machine lives than they.
const LIMIT: Duration = Duration::from_mins(80);
const LIMIT_OF_MACHINE: Duration = Duration::from_mins(83);

/// The filter that means the tests of the kernel's part alone, which need no cluster and half a minute.
pub const KERNEL: &str = "kernel";

/// Which cgroups a machine has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cgroups {
    /// Version 1 alone, the devices controller among them.
    V1,
    /// Version 2 alone.
    V2,
}

impl Cgroups {
    /// What tests/cluster/vm/init reads from the kernel's command line.
    fn argument(self) -> &'static str {
        match self {
            Self::V1 => "spillway.cgroups=1",
            Self::V2 => "spillway.cgroups=2",
        }
    }
}

/// Runs isolation's tests in the kernel, from the test program `kernel`: the v1 controller's on v1 alone, all others on v2 alone.
///
/// # Errors
/// When something is missing, a machine doesn't come to an end by itself, or a test fails.
pub fn run_kernel(kernel: &Path) -> anyhow::Result<()> {
    let complete = "export SPILLWAY_TEST_KERNEL=1\n".to_owned();
    let controller = || "controller::".to_owned();
    for (cgroups, arguments) in
        [(Cgroups::V2, vec!["--skip".to_owned(), controller()]), (Cgroups::V1, vec![controller()])]
    {
        boot(cgroups, || Ok(vec![complete.clone(), run_line(kernel, &arguments)]))?;
    }
    Ok(())
}

/// Runs end-to-end tests whose name contains `filter`, by default some, from the program `tests`, when everything that they need is
/// built. Their output comes out while they run.
///
/// # Errors
/// When something is missing, the machine doesn't come to an end by itself, or a test fails.
pub fn run(tests: &Path, filter: Option<&str>) -> anyhow::Result<()> {
    boot(Cgroups::V2, || {
        // Not there: it would take minutes, and be lost.
        let binaries = crate::cluster::current_binaries()?;
        image::build(&binaries, &components::folder(), &crate::target().join("images"), false)?;
        let (arguments, names) = selection(tests, filter)?;
        let mut script = Vec::new();
        if among(ON_BARE_POOL, &names) {
            script.push(format!("export {}=1\n", crate::BARE_POOL));
        }
        script.push(run_line(tests, &arguments));
        Ok(script)
    })
}

/// Runs what `script` gives in a machine.
fn boot(cgroups: Cgroups, script: impl FnOnce() -> anyhow::Result<Vec<String>>) -> anyhow::Result<()> {
    components::require_root()?;
    components::ensure_tools(TOOLS)?;
    let folder = crate::target().join("vm");
    fs::create_dir_all(&folder).with_context(|| format!("can't create {}", folder.display()))?;
    let lock = folder.join("lock");
    let lock = File::create(&lock).with_context(|| format!("can't create {}", lock.display()))?;
    if lock.try_lock().is_err() {
        bail!("another virtual machine of this folder runs: wait for its end");
    }
    let kernel = kernel::ensure(&folder)?;
    let script = script()?;
    let initrd = folder.join("initrd");
    initrd::write(&kernel, &initrd)?;
    let results = folder.join("results");
    if results.exists() {
        fs::remove_dir_all(&results).with_context(|| format!("can't delete {}", results.display()))?;
    }
    fs::create_dir_all(results.join("log"))?;
    let write = |name: &str, text: &str| crate::cluster::write(&results.join(name), text);
    write("guest.sh", GUEST)?;
    write("settings", &settings(&kernel.modules, &crate::target().join("cluster")))?;
    write("command", &(environment() + &script.concat()))?;

    eprintln!(
        "starting a virtual machine: Linux {}, cgroup {cgroups:?}, two NUMA nodes, emulated",
        kernel.version
    );
    let console = folder.join("console.log");
    let begin = Instant::now();
    let machine =
        qemu(&kernel, cgroups, &initrd, &results, &console).spawn().context("can't run setpriv and QEMU")?;
    follow(machine, LIMIT_OF_MACHINE)?;
    eprintln!(
        "the virtual machine ended after {:.0} s; logs: {}",
        begin.elapsed().as_secs_f64(),
        results.join("log").display()
    );
    let status = fs::read_to_string(results.join("status")).unwrap_or_default();
    match status.trim() {
        "0" => Ok(()),
        "" => bail!(
            "the virtual machine ended before the tests did; the end of {}:\n{}",
            console.display(),
            crate::cluster::process::log_tail(&console, 20)
        ),
        "124" => bail!("the tests in the virtual machine took longer than {} min", LIMIT.as_secs() / 60),
        status => bail!("tests failed in the virtual machine (exit status {status})"),
    }
}

/// The arguments that make the test program run what was asked for, and the names of these tests.
fn selection(tests: &Path, filter: Option<&str>) -> anyhow::Result<(Vec<String>, Vec<String>)> {
    let list = |filter: Option<&str>| {
        let output = Command::new(tests).arg("--list").args(filter).output();
        let output = output.with_context(|| format!("can't run {}", tests.display()))?;
        let listing = String::from_utf8_lossy(&output.stdout).into_owned();
        anyhow::Ok(
            listing.lines().filter_map(|line| line.strip_suffix(": test")).map(str::to_owned).collect(),
        )
    };
    let listed: Vec<String> = list(filter)?;
    let (names, others) = match filter {
        Some(_) => (listed, Vec::new()),
        None => listed.into_iter().partition(|name| among(BY_DEFAULT, std::slice::from_ref(name))),
    };
    if names.is_empty() {
        bail!("no end-to-end test has {:?} in its name", filter.unwrap_or_default());
    }
    // A test program takes one filter, but any number of tests to skip.
    let arguments = match filter {
        Some(filter) => vec![filter.to_owned()],
        None => skipping(&others),
    };
    Ok((arguments, names))
}

fn skipping(others: &[String]) -> Vec<String> {
    let skipped = others.iter().flat_map(|name| ["--skip".to_owned(), name.clone()]);
    ["--exact".to_owned()].into_iter().chain(skipped).collect()
}

/// Whether all `names` begin with one of `beginnings`.
fn among(beginnings: &[&str], names: &[String]) -> bool {
    names.iter().all(|name| beginnings.iter().any(|beginning| name.starts_with(beginning)))
}

/// What guest.sh reads first.
fn settings(modules: &Path, clusters: &Path) -> String {
    format!("modules={}\nclusters={}\n", quoted(modules.as_os_str()), quoted(clusters.as_os_str()))
}

/// The beginning of the script that runs in the machine: where, and with which environment. It ends with the first failure.
fn environment() -> String {
    let mut variables = vec![
        (crate::CLUSTER_TESTS, "1".to_owned()),
        (crate::PATIENCE, PATIENCE.to_string()),
        // Not on the overlay: there a device node is asked for twice, once below it, and an audit counts both.
        ("TMPDIR", "/dev/shm".to_owned()),
        // Two threads of kubectl wait for each other's emulated interrupts longer than they gain.
        ("GOMAXPROCS", "1".to_owned()),
    ];
    if let Some(target) = std::env::var_os("CARGO_TARGET_DIR") {
        variables.push(("CARGO_TARGET_DIR", quoted(&target)));
    }
    let exports: Vec<_> = variables.iter().map(|(name, value)| format!("export {name}={value}\n")).collect();
    format!("set -e\ncd {}\n{}", quoted(crate::repository().as_os_str()), exports.concat())
}

/// The line that runs a test program. SIGTERM makes it end its cluster, whose logs are then saved.
fn run_line(program: &Path, arguments: &[String]) -> String {
    let words = std::iter::once(program.as_os_str()).chain(arguments.iter().map(OsStr::new));
    let words: Vec<_> = words.map(quoted).collect();
    format!("timeout --kill-after=60 {} {}\n", LIMIT.as_secs(), words.join(" "))
}

/// A word of a shell script that means exactly this.
fn quoted(word: &OsStr) -> String {
    format!("'{}'", word.to_string_lossy().replace('\'', "'\\''"))
}

/// QEMU, unstarted. It ends with the thread that starts it.
fn qemu(kernel: &kernel::Kernel, cgroups: Cgroups, initrd: &Path, results: &Path, console: &Path) -> Command {
    let shared = |folder: &Path, tag: &str, options: &str| {
        // QEMU's own syntax: a comma in a value is written twice.
        let folder = folder.display().to_string().replace(',', ",,");
        format!("local,path={folder},mount_tag={tag},security_model=none,multidevs=remap{options}")
    };
    let mut command = Command::new("setpriv");
    // Emulated processors that wait for each other while the host runs neither burn more than a second thread gives.
    let threads = if busy() { "tcg,thread=single" } else { "tcg,thread=multi" };
    command
        .args(["--pdeathsig", "KILL", "qemu-system-x86_64"])
        .args(["-nodefaults", "-display", "none", "-no-reboot", "-accel", threads, "-cpu", PROCESSOR])
        .args(["-m", "8G", "-smp", "2,sockets=2,cores=1,threads=1"])
        .args([
            "-object",
            "memory-backend-ram,id=memory0,size=4G",
            "-numa",
            "node,nodeid=0,cpus=0,memdev=memory0",
        ])
        .args([
            "-object",
            "memory-backend-ram,id=memory1,size=4G",
            "-numa",
            "node,nodeid=1,cpus=1,memdev=memory1",
        ])
        .args(["-append", &format!("{KERNEL_ARGUMENTS} {}", cgroups.argument())])
        .arg("-kernel")
        .arg(&kernel.image)
        .arg("-initrd")
        .arg(initrd)
        .args(["-virtfs", &shared(Path::new("/"), "host", ",readonly=on")])
        .args(["-virtfs", &shared(results, "results", "")])
        // First the kernel's console, then what the tests print.
        .args(["-serial", &format!("file:{}", console.display()), "-serial", "stdio"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    command
}

/// Whether this host has more to do than it has processors for.
fn busy() -> bool {
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load: f64 = load.split(' ').next().and_then(|load| load.parse().ok()).unwrap_or_default();
    let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    u32::try_from(processors).is_ok_and(|processors| load > 2.0 * f64::from(processors))
}

/// Shows what a machine prints, until it ends or its time is over.
fn follow(mut machine: Child, limit: Duration) -> anyhow::Result<()> {
    let begin = Instant::now();
    let mut printed = machine.stdout.take().context("QEMU has no standard output")?;
    let copying = std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(count @ 1..) = printed.read(&mut buffer) {
            let mut out = io::stdout().lock();
            // If nobody listens any more, the machine must not wait for that.
            let _ = out.write_all(&buffer[..count]).and_then(|()| out.flush());
        }
    });
    let status = loop {
        if let Some(status) = machine.try_wait().context("can't wait for QEMU")? {
            break status;
        }
        if begin.elapsed() > limit {
            machine.kill().context("can't kill QEMU")?;
            machine.wait().context("can't wait for QEMU")?;
            bail!("the virtual machine did not end within {} min and was killed", limit.as_secs() / 60);
        }
        std::thread::sleep(Duration::from_millis(100));
    };
    let _ = copying.join();
    if !status.success() {
        bail!("QEMU ended with {status}");
    }
    Ok(())
}

#[cfg(test)]
mod tests;
