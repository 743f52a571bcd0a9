//! The container images of the tests and the demo, made here from what was built here: no registry, no image builder.
//!
//! This file says which images there are and what is in them, [`kubernetes`] which ones Kubernetes' own tests want; [`oci`] writes them,
//! [`libraries`] finds what a program links.

pub mod kubernetes;
pub mod libraries;
pub mod oci;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, bail};

use oci::{Entry, Spec};
use serde_json::Value;

/// An image in a tar, ready for `ctr -n k8s.io images import`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Full name with its tag, as pods and the runtime's configuration name it.
    pub name: String,
    /// The OCI layout, in a tar.
    pub tar: PathBuf,
}

/// The sandbox image of every runtime.
pub const PAUSE: &str = "spillway.test/pause:dev";
/// Debian's busybox with all its applets.
pub const BUSYBOX: &str = "spillway.test/busybox:dev";
/// The main job's program.
pub const TILES: &str = "spillway.test/tiles:dev";
/// The cluster's DNS server.
pub const COREDNS: &str = "spillway.test/coredns:dev";

/// A user that owns nothing, by number, since images need not have its name.
const NOBODY: &str = "65534:65534";
const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n";
const GROUP: &str = "root:x:0:\nnogroup:x:65534:\n";

/// Builds all images into `out`, or those alone that a dedicated node needs without cluster DNS. `binaries` is Cargo's folder with this
/// repository's programs, `components` the one with `coredns`. An image whose inputs did not change is left as it is.
///
/// # Errors
/// When a program is missing or can't be read, or a file can't be written.
pub fn build(binaries: &Path, components: &Path, out: &Path, bare: bool) -> anyhow::Result<Vec<Image>> {
    fs::create_dir_all(out).with_context(|| format!("can't create {}", out.display()))?;
    let _held = locked(out)?;
    let (agent_name, vk_name) = (chart_image("agent")?, chart_image("vk")?);
    let mut specs = vec![
        pause(out)?,
        busybox(BUSYBOX)?,
        agent(&agent_name, &stripped(&binaries.join("spillway-agent"), out)?)?,
    ];
    if !bare {
        specs.extend([
            vk(&vk_name, &stripped(&binaries.join("spillway-vk"), out)?)?,
            tiles(&stripped(&binaries.join("spillway-tiles"), out)?)?,
            coredns(&components.join("coredns"))?,
        ]);
    }
    specs.iter().map(|spec| oci::build(spec, out)).collect()
}

/// Held until the end: several clusters may start at a time.
fn locked(out: &Path) -> anyhow::Result<fs::File> {
    let lock =
        fs::File::create(out.join("lock")).with_context(|| format!("can't write to {}", out.display()))?;
    lock.lock().with_context(|| format!("can't lock {}", out.display()))?;
    Ok(lock)
}

fn pause(out: &Path) -> anyhow::Result<Spec> {
    Ok(Spec::new(PAUSE, ["/pause"]).user(NOBODY).entry("/pause", Entry::program(&pause_program(out)?)))
}

/// The program of the sandbox' image, compiled when its source is newer.
fn pause_program(out: &Path) -> anyhow::Result<PathBuf> {
    let source = crate::repository().join("tests/images/pause.rs");
    let program = out.join("pause");
    if modified(&program).ok() < modified(&source).ok() {
        eprintln!("compiling the pause program");
        let compiler = Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()))
            .args(["--edition", "2024", "-C", "opt-level=s", "-C", "panic=abort", "-C", "strip=symbols"])
            .args(["-C", "target-feature=+crt-static", "-o"])
            .args([&program, &source])
            .output()
            .context("can't run rustc")?;
        if !compiler.status.success() {
            bail!("rustc {} failed:\n{}", source.display(), String::from_utf8_lossy(&compiler.stderr));
        }
    }
    Ok(program)
}

/// Debian's busybox, and the names of its applets.
fn busybox_program() -> anyhow::Result<(PathBuf, Vec<String>)> {
    let program = ["/usr/bin/busybox", "/bin/busybox"]
        .into_iter()
        .map(PathBuf::from)
        .find(|path| path.exists())
        .context("there is no busybox on this machine: install Debian's package busybox-static")?;
    let list = Command::new(&program).arg("--list").output().context("can't run busybox --list")?;
    let applets = String::from_utf8_lossy(&list.stdout)
        .lines()
        .filter(|applet| *applet != "busybox")
        .map(str::to_owned)
        .collect();
    Ok((program, applets))
}

fn busybox(name: &str) -> anyhow::Result<Spec> {
    let (program, applets) = busybox_program()?;
    let mut spec = Spec::new(name, [])
        .command(["sh"])
        .entry("/bin/busybox", Entry::program(&program))
        .entry("/etc/passwd", Entry::text(PASSWD))
        .entry("/etc/group", Entry::text(GROUP))
        .entry("/root", Entry::Folder { mode: 0o700 })
        .entry("/tmp", Entry::Folder { mode: 0o1777 })
        .with_libraries(&program)?;
    for applet in applets {
        spec = spec.entry(&format!("/bin/{applet}"), Entry::Link("/bin/busybox".to_owned()));
    }
    Ok(spec)
}

fn agent(name: &str, program: &Path) -> anyhow::Result<Spec> {
    let libraries = libraries::linked_libraries(program)?;
    // The agent opens libnvidia-ml.so.1 while it runs; NVIDIA's needs more of the C library than the agent itself links.
    let beside = libraries
        .iter()
        .find(|library| library.ends_with("libc.so.6"))
        .and_then(|library| library.parent())
        .with_context(|| format!("{} does not link the C library", program.display()))?;
    let opened = ["libdl.so.2", "libgcc_s.so.1", "libm.so.6", "libpthread.so.0", "librt.so.1"];
    let opened = opened.iter().map(|library| beside.join(library)).filter(|library| library.exists());
    let spec = Spec::new(name, ["/usr/bin/spillway-agent"])
        .entry("/usr/bin/spillway-agent", Entry::program(program))
        .entry("/etc/nsswitch.conf", Entry::text("hosts: files dns\n"));
    Ok(spec.files(libraries.iter().cloned().chain(opened)))
}

fn vk(name: &str, program: &Path) -> anyhow::Result<Spec> {
    Spec::new(name, ["/usr/bin/spillway-vk"])
        .user(NOBODY)
        .entry("/usr/bin/spillway-vk", Entry::program(program))
        .entry("/etc/nsswitch.conf", Entry::text("hosts: files dns\n"))
        .entry("/etc/passwd", Entry::text(PASSWD))
        .entry("/tmp", Entry::Folder { mode: 0o1777 })
        .with_libraries(program)
}

fn tiles(program: &Path) -> anyhow::Result<Spec> {
    Spec::new(TILES, ["/usr/bin/spillway-tiles"])
        .user(NOBODY)
        .entry("/usr/bin/spillway-tiles", Entry::program(program))
        .with_libraries(program)
}

fn coredns(program: &Path) -> anyhow::Result<Spec> {
    Spec::new(COREDNS, ["/coredns"]).entry("/coredns", Entry::program(program)).with_libraries(program)
}

/// Builds an image that differs from [`BUSYBOX`] by its name only, and so is another one to every runtime.
///
/// # Errors
/// As [`build`].
pub fn variant(name: &str, out: &Path) -> anyhow::Result<Image> {
    fs::create_dir_all(out).with_context(|| format!("can't create {}", out.display()))?;
    let _held = locked(out)?;
    let spec = busybox(&format!("spillway.test/{name}:variant"))?;
    oci::build(&spec.environment("VARIANT", name), out)
}

/// Builds the image of metrics-server, which few tests want, into `out`.
///
/// # Errors
/// When the program is missing or can't be read, or a file can't be written.
pub fn metrics_server(components: &Path, out: &Path) -> anyhow::Result<Image> {
    let spec = Spec::new("spillway.test/metrics-server:dev", ["/metrics-server"])
        .entry("/metrics-server", Entry::program(&components.join("metrics-server")))
        .entry("/etc/nsswitch.conf", Entry::text("hosts: files dns\n"))
        .entry("/tmp", Entry::Folder { mode: 0o1777 });
    oci::build(&spec, out)
}

/// Builds the image of Prometheus, which few tests want, into `out`.
///
/// # Errors
/// When the program is missing or can't be read, or a file can't be written.
pub fn prometheus(components: &Path, out: &Path) -> anyhow::Result<Image> {
    let spec = Spec::new("spillway.test/prometheus:dev", ["/prometheus"])
        .entry("/prometheus", Entry::program(&components.join("prometheus")))
        .entry("/etc/nsswitch.conf", Entry::text("hosts: files dns\n"))
        .entry("/tmp", Entry::Folder { mode: 0o1777 });
    oci::build(&spec, out)
}

/// Builds the image of the chart's recorder, which few tests want, into `out`. `binaries` is Cargo's folder with `kubectl-spillway`.
///
/// # Errors
/// When the program is missing or can't be read, or a file can't be written.
pub fn recorder(binaries: &Path, out: &Path) -> anyhow::Result<Image> {
    fs::create_dir_all(out).with_context(|| format!("can't create {}", out.display()))?;
    let _held = locked(out)?;
    let program = stripped(&binaries.join("kubectl-spillway"), out)?;
    let spec = Spec::new(&chart_image("recorder")?, ["/usr/bin/kubectl-spillway"])
        .user(NOBODY)
        .entry("/usr/bin/kubectl-spillway", Entry::program(&program))
        .entry("/etc/nsswitch.conf", Entry::text("hosts: files dns\n"))
        .with_libraries(&program)?;
    oci::build(&spec, out)
}

/// The name that the Helm chart gives an image unless told otherwise: `agent`, `vk` or `recorder`.
fn chart_image(daemon: &str) -> anyhow::Result<String> {
    let chart = crate::repository().join("deploy/chart");
    let read = |file: &str| {
        let path = chart.join(file);
        let text = fs::read_to_string(&path).with_context(|| format!("can't read {}", path.display()))?;
        serde_saphyr::from_str::<Value>(&text).with_context(|| format!("{} is no YAML", path.display()))
    };
    let (about, values) = (read("Chart.yaml")?, read("values.yaml")?);
    let image = &values[daemon]["image"];
    let repository = image["repository"]
        .as_str()
        .with_context(|| format!("{}/values.yaml has no {daemon}.image.repository", chart.display()))?;
    let tag = image["tag"].as_str().filter(|tag| !tag.is_empty()).or(about["appVersion"].as_str());
    Ok(qualified(&format!("{repository}:{}", tag.unwrap_or("latest"))))
}

/// The name under which a runtime looks up an image: a first part that is no host means Docker's registry.
fn qualified(name: &str) -> String {
    match name.split_once('/') {
        Some((host, _)) if host.contains(['.', ':']) || host == "localhost" => name.to_owned(),
        Some(_) => format!("docker.io/{name}"),
        None => format!("docker.io/library/{name}"),
    }
}

/// A copy of a program without its debug information, which is most of a debug build. Made again when the program is newer.
fn stripped(program: &Path, out: &Path) -> anyhow::Result<PathBuf> {
    let name = program.file_name().with_context(|| format!("{} is no program", program.display()))?;
    let copy = out.join(name);
    let built = modified(program)
        .with_context(|| format!("{} is not there: build it with cargo first", program.display()))?;
    if modified(&copy).is_ok_and(|copied| copied > built) {
        return Ok(copy);
    }
    // Renamed into place, so that a run beside this one never reads half of it.
    let fresh = out.join(format!(".{}.{}", name.display(), std::process::id()));
    let strip = Command::new("strip")
        .arg("--strip-debug")
        .arg("-o")
        .args([&fresh, program])
        .output()
        .context("can't run strip: install Debian's package binutils")?;
    if !strip.status.success() {
        bail!("strip {} failed: {}", program.display(), String::from_utf8_lossy(&strip.stderr));
    }
    fs::rename(&fresh, &copy).with_context(|| format!("can't put {} in place", copy.display()))?;
    Ok(copy)
}

fn modified(path: &Path) -> anyhow::Result<std::time::SystemTime> {
    let read = fs::metadata(path).and_then(|data| data.modified());
    read.with_context(|| format!("can't read {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_under_which_a_runtime_looks() {
        assert_eq!(qualified("spillway-agent:1"), "docker.io/library/spillway-agent:1");
        assert_eq!(qualified("someone/spillway-agent:1"), "docker.io/someone/spillway-agent:1");
        assert_eq!(qualified("ghcr.io/someone/agent:1"), "ghcr.io/someone/agent:1");
        assert_eq!(qualified("registry:5000/agent:1"), "registry:5000/agent:1");
    }

    #[test]
    fn the_chart_names_its_images() {
        for (daemon, image) in [("agent", "agent:"), ("vk", "vk:"), ("recorder", "kubectl-spillway:")] {
            let name = chart_image(daemon).unwrap();
            assert!(name.contains(image), "{name}");
        }
    }
}
