//! What the cluster is made of, and where it comes from: Debian packages by name, and Go modules pinned under `tests/cluster/`
//! that are built once into `target/components`.

use std::{
    fs,
    io::{BufRead, BufReader, IsTerminal as _, Write as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use sha2::{Digest as _, Sha256};

/// Version of Kubernetes that `tests/cluster/kubernetes/go.mod` pins.
pub const KUBERNETES_VERSION: &str = "v1.35.4";

/// Version of containerd that `tests/cluster/containerd/go.mod` pins.
const CONTAINERD_VERSION: &str = "v2.2.9";

/// Version of the crate `youki`, which only a benchmark needs.
const YOUKI_VERSION: &str = "0.7.0";

/// A program that must be there, and the Debian package that brings it.
const TOOLS: &[(&str, &str)] = &[
    ("/usr/sbin/runc", "runc"),
    ("/usr/lib/cni/bridge", "containernetworking-plugins"),
    ("/usr/bin/busybox", "busybox-static"),
    ("/usr/sbin/ip", "iproute2"),
    ("/usr/sbin/iptables", "iptables"),
    ("/usr/sbin/conntrack", "conntrack"),
    ("/usr/bin/unshare", "util-linux"),
    ("/usr/bin/strip", "binutils"),
    ("/usr/bin/faketime", "faketime"),
    ("/usr/bin/strace", "strace"),
];

struct Module {
    /// Its folder under `tests/cluster`; what is behind a slash tells two apart that have the same one.
    name: &'static str,
    packages: &'static [&'static str],
    tags: &'static str,
    /// Whether it needs a C compiler: what opens shared libraries does.
    cgo: bool,
    /// Said before the first build, so that nobody thinks it hangs. Measured on two cores.
    minutes_cold: &'static str,
}

const MODULES: &[Module] = &[
    Module {
        name: "etcd",
        packages: &["go.etcd.io/etcd/server/v3"],
        tags: "",
        cgo: false,
        minutes_cold: "1 min",
    },
    Module {
        name: "containerd",
        packages: &[
            "github.com/containerd/containerd/v2/cmd/containerd",
            "github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2",
            "github.com/containerd/containerd/v2/cmd/ctr",
        ],
        tags: "urfave_cli_no_docs,no_btrfs,no_devmapper,no_zfs",
        cgo: false,
        minutes_cold: "2 min",
    },
    Module {
        name: "kubernetes",
        packages: &[
            "k8s.io/kubernetes/cmd/kube-apiserver",
            "k8s.io/kubernetes/cmd/kube-controller-manager",
            "k8s.io/kubernetes/cmd/kube-proxy",
            "k8s.io/kubernetes/cmd/kube-scheduler",
            "k8s.io/kubernetes/cmd/kubectl",
            "k8s.io/kubernetes/cmd/kubelet",
        ],
        tags: "",
        cgo: false,
        minutes_cold: "5 min",
    },
    Module {
        name: "coredns",
        packages: &["github.com/coredns/coredns"],
        tags: "",
        cgo: false,
        minutes_cold: "3 min",
    },
    Module {
        name: "prometheus",
        packages: &["github.com/prometheus/prometheus/cmd/promtool"],
        tags: "",
        cgo: false,
        minutes_cold: "5 min",
    },
    Module {
        name: "helm",
        packages: &["helm.sh/helm/v4/cmd/helm"],
        tags: "",
        cgo: false,
        minutes_cold: "2 min",
    },
];

/// What ours is compared with, which only tests need.
const PEER: Module = Module {
    name: "nvidia",
    packages: &[
        "github.com/NVIDIA/k8s-device-plugin/cmd/nvidia-device-plugin",
        "github.com/NVIDIA/k8s-device-plugin/cmd/gpu-feature-discovery",
    ],
    tags: "",
    cgo: true,
    minutes_cold: "3 min",
};

/// What reads the nodes' resource metrics, which only tests need.
const METRICS_SERVER: Module = Module {
    name: "metrics-server",
    packages: &["sigs.k8s.io/metrics-server/cmd/metrics-server"],
    tags: "",
    cgo: false,
    minutes_cold: "2 min",
};

/// What history is read from, which only tests need. It is made of nearly the same packages as promtool.
const PROMETHEUS: Module = Module {
    name: "prometheus/server",
    packages: &["github.com/prometheus/prometheus/cmd/prometheus"],
    tags: "",
    cgo: false,
    minutes_cold: "1 min",
};

/// What images are pulled from, which only tests need.
const REGISTRY: Module = Module {
    name: "registry",
    packages: &["github.com/distribution/distribution/v3/cmd/registry"],
    tags: "",
    cgo: false,
    minutes_cold: "2 min",
};

/// What the virtual node is compared with where nothing runs, which only its benchmark needs.
const KWOK: Module = Module {
    name: "kwok",
    packages: &["sigs.k8s.io/kwok/cmd/kwok"],
    tags: "",
    cgo: false,
    minutes_cold: "3 min",
};

/// Kubernetes' own test suite, its runner, and the programs of the images that its tests use.
const CONFORMANCE: Module = Module {
    name: "conformance",
    packages: &[
        "github.com/onsi/ginkgo/v2/ginkgo",
        "k8s.io/kubernetes/test/images/agnhost",
        "k8s.io/kubernetes/test/images/nonewprivs",
        "k8s.io/sample-apiserver",
        E2E_TEST,
    ],
    tags: "",
    cgo: false,
    minutes_cold: "6 min",
};

/// Tests that the virtual-kubelet library has for its users.
const VIRTUAL_KUBELET: Module = Module {
    name: "virtual-kubelet",
    packages: &[VIRTUAL_KUBELET_TEST],
    tags: "e2e",
    cgo: false,
    minutes_cold: "2 min",
};

const E2E_TEST: &str = "k8s.io/kubernetes/test/e2e";
const VIRTUAL_KUBELET_TEST: &str = "github.com/virtual-kubelet/virtual-kubelet/internal/test/e2e";

/// Packages whose tests are wanted, and the programs that they become.
const TEST_PROGRAMS: &[(&str, &str)] =
    &[(E2E_TEST, "e2e.test"), (VIRTUAL_KUBELET_TEST, "virtual-kubelet.test")];

/// What the images of Kubernetes' tests hold of Debian.
const CONFORMANCE_TOOLS: &[(&str, &str)] = &[
    ("/usr/bin/bash-static", "bash-static"),
    ("/usr/bin/curl", "curl"),
    ("/usr/bin/dig", "bind9-dnsutils"),
    ("/usr/bin/nc.openbsd", "netcat-openbsd"),
];

/// What a module with C in it is built with.
const COMPILER: &[(&str, &str)] = &[("/usr/bin/gcc", "gcc"), ("/usr/include/stdlib.h", "libc6-dev")];

/// Where the built components lie.
pub fn folder() -> PathBuf {
    crate::target().join("components")
}

/// Makes everything ready: packages, then components. Says what it does on standard error; does nothing twice.
///
/// # Errors
/// When this isn't root, a toolchain is missing, an installation fails, or a build fails: says what to do.
pub fn ensure() -> anyhow::Result<PathBuf> {
    require_root()?;
    ensure_tools(TOOLS)?;
    let out = folder();
    fs::create_dir_all(&out).with_context(|| format!("can't create {}", out.display()))?;
    let go = go_version()?;
    for module in MODULES {
        build(module, &go, &out)?;
    }
    Ok(out)
}

/// Makes NVIDIA's device plugin and feature discovery ready.
///
/// # Errors
/// As [`ensure`].
pub fn ensure_peer() -> anyhow::Result<()> {
    require_root()?;
    ensure_tools(COMPILER)?;
    let out = folder();
    fs::create_dir_all(&out).with_context(|| format!("can't create {}", out.display()))?;
    build(&PEER, &go_version()?, &out)
}

/// Makes metrics-server ready.
///
/// # Errors
/// As [`ensure`].
pub fn ensure_metrics_server() -> anyhow::Result<()> {
    require_root()?;
    build(&METRICS_SERVER, &go_version()?, &folder())
}

/// Makes Prometheus ready.
///
/// # Errors
/// As [`ensure`].
pub fn ensure_prometheus() -> anyhow::Result<()> {
    require_root()?;
    build(&PROMETHEUS, &go_version()?, &folder())
}

/// Makes the image registry ready.
///
/// # Errors
/// As [`ensure`].
pub fn ensure_registry() -> anyhow::Result<()> {
    require_root()?;
    // Tests that want it may begin at the same time.
    let path = folder().join(".registry.lock");
    let lock = fs::File::create(&path).with_context(|| format!("can't write {}", path.display()))?;
    lock.lock().with_context(|| format!("can't lock {}", path.display()))?;
    build(&REGISTRY, &go_version()?, &folder())
}

/// Makes Kubernetes' test suite ready. Returns the folder of Kubernetes' sources, from which it was built.
///
/// # Errors
/// As [`ensure`].
pub fn ensure_conformance() -> anyhow::Result<PathBuf> {
    require_root()?;
    ensure_tools(CONFORMANCE_TOOLS)?;
    build(&CONFORMANCE, &go_version()?, &folder())?;
    sources(&CONFORMANCE, "k8s.io/kubernetes")
}

/// Makes the virtual-kubelet library's tests ready, and tells where they are.
///
/// # Errors
/// As [`ensure`].
pub fn ensure_virtual_kubelet() -> anyhow::Result<PathBuf> {
    require_root()?;
    build(&VIRTUAL_KUBELET, &go_version()?, &folder())?;
    Ok(folder().join("virtual-kubelet.test"))
}

/// Makes kwok ready. Returns the folder of its sources, which has its stages.
///
/// # Errors
/// As [`ensure`].
pub fn ensure_kwok() -> anyhow::Result<PathBuf> {
    require_root()?;
    build(&KWOK, &go_version()?, &folder())?;
    sources(&KWOK, "sigs.k8s.io/kwok")
}

/// Makes youki ready, a low-level container runtime, and tells where it is.
///
/// # Errors
/// When it can't be built.
pub fn ensure_youki() -> anyhow::Result<PathBuf> {
    let root = folder().join(format!("youki-{YOUKI_VERSION}"));
    let program = root.join("bin/youki");
    if program.exists() {
        return Ok(program);
    }
    eprintln!("building youki from source (about 4 min on two cores, once)");
    let output = Command::new("cargo")
        .args(["install", "youki", "--version", YOUKI_VERSION, "--locked", "--no-default-features"])
        .args(["--features", "v1,v2", "--root"])
        .arg(&root)
        .stdin(Stdio::null())
        .output()
        .context("can't run cargo install")?;
    if !output.status.success() {
        bail!("cargo install youki failed:\n{}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(program)
}

/// Where the sources of a dependency of a module are.
fn sources(module: &Module, dependency: &str) -> anyhow::Result<PathBuf> {
    let output = Command::new("go")
        .args(["list", "-m", "-f", "{{.Dir}}", dependency])
        .current_dir(crate::repository().join("tests/cluster").join(folder_of(module)))
        .output()
        .context("can't run go list")?;
    if !output.status.success() {
        bail!("go list -m {dependency} failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()))
}

/// # Errors
/// When this process isn't root.
pub fn require_root() -> anyhow::Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!(
            "the cluster makes network namespaces, mounts and cgroups and needs root: run it as root, e.g. with `sudo -E env \
             \"PATH=$PATH\" cargo xtask …`; `cargo test --workspace` runs what needs no root"
        );
    }
    Ok(())
}

/// Installs the packages of those programs that are not there.
///
/// # Errors
/// When that fails, or this machine has no apt-get: names the packages.
pub(crate) fn ensure_tools(tools: &[(&str, &'static str)]) -> anyhow::Result<()> {
    let mut missing: Vec<_> =
        tools.iter().filter(|(path, _)| !Path::new(path).exists()).map(|(_, package)| *package).collect();
    missing.dedup();
    if missing.is_empty() {
        return Ok(());
    }
    if !Path::new("/usr/bin/apt-get").exists() {
        bail!(
            "this machine has no apt-get: install what these Debian packages hold, then run again: {}",
            missing.join(" ")
        );
    }
    eprintln!("installing Debian packages: {}", missing.join(" "));
    install(&missing).or_else(|_| {
        eprintln!("updating the package lists first");
        apt(&["update"])?;
        install(&missing)
    })
}

fn install(packages: &[&str]) -> anyhow::Result<()> {
    let mut arguments = vec!["install", "--yes", "--no-install-recommends"];
    arguments.extend(packages);
    apt(&arguments)
}

/// Runs apt-get without questions; its output is shown only when it fails.
///
/// # Errors
/// When it fails, with what it printed.
pub fn apt(arguments: &[&str]) -> anyhow::Result<()> {
    apt_in(Path::new("/"), arguments)
}

/// The same in a folder, which is where `download` puts packages.
pub(crate) fn apt_in(folder: &Path, arguments: &[&str]) -> anyhow::Result<()> {
    let output = Command::new("apt-get")
        .current_dir(folder)
        .args(["-qq", "-o", "Dpkg::Use-Pty=0"])
        .args(arguments)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .stdin(Stdio::null())
        .output()
        .context("can't run apt-get")?;
    if !output.status.success() {
        bail!("apt-get {} failed:\n{}", arguments.join(" "), String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}

fn go_version() -> anyhow::Result<String> {
    let output = Command::new("go").arg("version").output().ok().filter(|output| output.status.success());
    let Some(output) = output else {
        bail!(
            "`go` is not there: the Kubernetes components are built from source and need Go 1.26 or newer on the PATH (the tar ball \
             from go.dev)"
        );
    };
    let version = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    let minor = version
        .split_whitespace()
        .find_map(|word| word.strip_prefix("go1.")?.split('.').next()?.parse::<u32>().ok());
    match minor {
        Some(minor) if minor < 26 => {
            bail!("{version} is too old: the Kubernetes components need Go 1.26 or newer")
        }
        _ => Ok(version),
    }
}

fn linker_flags(module: &Module) -> String {
    let mut variables = Vec::new();
    if module.name == "containerd" {
        variables.push(format!("github.com/containerd/containerd/v2/version.Version={CONTAINERD_VERSION}"));
    }
    if matches!(module.name, "kubernetes" | "conformance") {
        // Without these a node reports v0.0.0-master.
        let mut parts = KUBERNETES_VERSION.trim_start_matches('v').split('.');
        let (major, minor) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        for package in ["k8s.io/component-base/version", "k8s.io/client-go/pkg/version"] {
            variables.push(format!("{package}.gitVersion={KUBERNETES_VERSION}"));
            variables.push(format!("{package}.gitMajor={major}"));
            variables.push(format!("{package}.gitMinor={minor}"));
            variables.push(format!("{package}.gitTreeState=clean"));
        }
    }
    variables.iter().fold("-s -w".to_owned(), |flags, variable| flags + " -X " + variable)
}

fn folder_of(module: &Module) -> &str {
    module.name.split('/').next().unwrap_or(module.name)
}

fn build(module: &Module, go: &str, out: &Path) -> anyhow::Result<()> {
    let source = crate::repository().join("tests/cluster").join(folder_of(module));
    let mut digest = Sha256::new();
    for file in ["go.mod", "go.sum"] {
        let path = source.join(file);
        digest.update(fs::read(&path).with_context(|| format!("can't read {}", path.display()))?);
    }
    digest.update(format!("{go}\n{}\n{}\n{}", module.packages.join(" "), module.tags, linker_flags(module)));
    let key = format!("{:x}", digest.finalize());
    let stamp = out.join(format!(".{}.stamp", module.name.replace('/', "-")));
    if fs::read_to_string(&stamp).is_ok_and(|found| found == key) {
        return Ok(());
    }
    eprintln!("building {} from source (about {} on two cores, once)", module.name, module.minutes_cold);
    let begin = Instant::now();
    for package in module.packages {
        // A module that is a program by itself would be named after its major version.
        let test = TEST_PROGRAMS.iter().find(|(tested, _)| tested == package).map(|(_, name)| *name);
        let name = test.unwrap_or(match *package {
            "go.etcd.io/etcd/server/v3" => "etcd",
            other => other.rsplit('/').next().unwrap_or(other),
        });
        // Replaced by a rename, so that a running cluster keeps its old program and a killed build leaves no half of one.
        let fresh = out.join(format!(".{name}.new"));
        let how: &[_] = if test.is_some() { &["test", "-c", "-vet=off"] } else { &["build"] };
        let mut child = Command::new("go")
            .args(how)
            .args(["-v", "-trimpath", "-tags", module.tags, "-ldflags", &linker_flags(module), "-o"])
            .arg(&fresh)
            .arg(package)
            .current_dir(&source)
            .env("CGO_ENABLED", if module.cgo { "1" } else { "0" })
            // Symbols of a library that is opened later, as NVIDIA's own builds leave them.
            .env("CGO_LDFLAGS", "-Wl,--export-dynamic -Wl,--unresolved-symbols=ignore-in-object-files")
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("can't run go build")?;
        let stderr = child.stderr.take().context("go build has no standard error")?;
        let printed = follow(stderr, name, begin);
        if !child.wait().context("can't wait for go build")?.success() {
            bail!("go build {package} failed in {}:\n{}", source.display(), printed.join("\n"));
        }
        fs::rename(&fresh, out.join(name))
            .with_context(|| format!("can't put {name} into {}", out.display()))?;
    }
    fs::write(&stamp, key).with_context(|| format!("can't write {}", stamp.display()))?;
    eprintln!("built {} in {:.0} s", module.name, begin.elapsed().as_secs_f64());
    Ok(())
}

/// Shows how many packages a build has compiled, in place on a terminal, every half minute elsewhere. Returns its last lines.
fn follow(stderr: impl std::io::Read, name: &str, begin: Instant) -> Vec<String> {
    let terminal = std::io::stderr().is_terminal();
    let every = if terminal { Duration::from_millis(200) } else { Duration::from_secs(30) };
    let (mut packages, mut shown, mut last) = (0_u32, Instant::now(), Vec::new());
    for line in BufReader::new(stderr).lines().map_while(Result::ok) {
        packages += 1;
        last.push(line);
        if last.len() > 40 {
            last.remove(0);
        }
        if shown.elapsed() > every {
            shown = Instant::now();
            let seconds = begin.elapsed().as_secs();
            if terminal {
                eprint!("\r  {name}: {packages} packages, {seconds} s ");
                let _ = std::io::stderr().flush();
            } else {
                eprintln!("  {name}: {packages} packages, {seconds} s");
            }
        }
    }
    if terminal {
        eprint!("\r\x1b[K");
    }
    last
}
