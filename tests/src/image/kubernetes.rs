//! The images that Kubernetes' own tests run, by the names that `test/utils/image/manifest.go` of Kubernetes 1.35 gives them, with what its
//! `test/images/*/Dockerfile` put in: the same programs, on files of this machine instead of Alpine's.

use std::path::{Path, PathBuf};

use anyhow::Context as _;

use super::{
    Image, busybox_program, libraries, oci,
    oci::{Entry, Spec},
};

const REGISTRY: &str = "registry.k8s.io/e2e-test-images";
const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\nuser-defined-in-image:x:1000:1000::/home:/bin/sh\n";
const GROUP: &str = "root:x:0:\nnogroup:x:65534:\nuser-defined-in-image:x:1000:\ngroup-defined-in-image:x:50000:user-defined-in-image\n";

/// What agnhost's image has besides agnhost and busybox.
const TOOLS: [&str; 6] =
    ["/usr/bin/curl", "/usr/bin/dig", "/usr/bin/getent", "/usr/bin/nc.openbsd", "/usr/bin/ss", "/bin/ip"];

/// Builds the images of the tests for nodes into `out`. `source` is Kubernetes' source folder, `components` the one with `agnhost` and `nonewprivs`.
///
/// # Errors
/// When a program is missing or can't be read, or a file can't be written.
pub fn build(source: &Path, components: &Path, out: &Path) -> anyhow::Result<Vec<Image>> {
    std::fs::create_dir_all(out).with_context(|| format!("can't create {}", out.display()))?;
    let mut specs = Vec::new();
    for tag in ["2.55", "2.59"] {
        specs.push(agnhost(&format!("{REGISTRY}/agnhost:{tag}"), source, components)?);
    }
    for tag in ["1.36.1-1", "1.37.0-1"] {
        specs.push(shell(Spec::new(&format!("{REGISTRY}/busybox:{tag}"), []).command(["sh"]))?);
    }
    specs.push(shell(Spec::new(&format!("{REGISTRY}/nonroot:1.4"), []).command(["sh"]).user("1234"))?);
    let nnp = Entry::File { source: components.join("nonewprivs"), mode: 0o6755 };
    specs.push(
        shell(Spec::new(&format!("{REGISTRY}/nonewprivs:1.3"), []).command(["nnp"]))?
            .entry("/usr/local/bin/nnp", nnp),
    );
    // Whatever a test does to it, it is not the runtime's own, which is pinned.
    specs.push(
        Spec::new("registry.k8s.io/pause:3.10.1", ["/pause"])
            .user("65535:65535")
            .entry("/pause", Entry::program(&super::pause_program(out)?)),
    );
    specs.iter().map(|spec| oci::build(spec, out)).collect()
}

/// Builds those that tests of whole clusters want besides.
///
/// # Errors
/// As [`build`].
pub fn build_more(source: &Path, components: &Path, out: &Path) -> anyhow::Result<Vec<Image>> {
    let mut specs = Vec::new();
    for animal in ["nautilus", "kitten"] {
        let files = source.join(format!("test/images/{animal}/html"));
        let mut spec =
            agnhost(&format!("{REGISTRY}/{animal}:1.7"), source, components)?.command(["test-webserver"]);
        for file in [format!("{animal}.jpg"), "data.json".to_owned()] {
            let entry = Entry::File { source: files.join(&file), mode: 0o644 };
            spec = spec.entry(&format!("/{file}"), entry);
        }
        specs.push(spec);
    }
    // A stand-in: the tests want a web server of two versions, and don't look at it.
    for tag in ["1.14-4", "1.15-4"] {
        let name = format!("{REGISTRY}/nginx:{tag}");
        specs.push(agnhost(&name, source, components)?.command(["test-webserver"]));
    }
    specs
        .push(with_tools(shell(Spec::new(&format!("{REGISTRY}/jessie-dnsutils:1.7"), []).command(["sh"]))?)?);
    specs.push(
        Spec::new(&format!("{REGISTRY}/sample-apiserver:1.29.2"), ["/sample-apiserver"])
            .entry("/sample-apiserver", Entry::program(&components.join("sample-apiserver")))
            .entry("/tmp", Entry::Folder { mode: 0o1777 }),
    );
    specs.push(
        Spec::new("registry.k8s.io/etcd:3.6.6-0", [])
            .command(["etcd"])
            .entry("/usr/local/bin/etcd", Entry::program(&components.join("etcd")))
            .entry("/tmp", Entry::Folder { mode: 0o1777 }),
    );
    specs.iter().map(|spec| oci::build(spec, out)).collect()
}

fn agnhost(name: &str, source: &Path, components: &Path) -> anyhow::Result<Spec> {
    let porter = source.join("test/images/agnhost/porter");
    let text = |file: &str| Entry::File { source: porter.join(file), mode: 0o644 };
    let spec = shell(Spec::new(name, ["/agnhost"]).command(["pause"]))?
        .entry("/agnhost", Entry::program(&components.join("agnhost")))
        .entry("/agnhost-2", Entry::Link("agnhost".to_owned()))
        .entry("/localhost.crt", text("localhost.crt"))
        .entry("/localhost.key", text("localhost.key"))
        .entry("/uploads", Entry::Folder { mode: 0o755 })
        .entry("/bin/nc", Entry::Link("/usr/bin/nc.openbsd".to_owned()))
        // Debian's busybox as a shell would take its own `nc`.
        .entry("/bin/sh", Entry::Link("/bin/bash".to_owned()));
    with_tools(spec)
}

fn with_tools(mut spec: Spec) -> anyhow::Result<Spec> {
    for tool in TOOLS.map(Path::new) {
        spec = spec.entry(&tool.to_string_lossy(), Entry::program(tool)).with_libraries(tool)?;
    }
    Ok(spec)
}

/// Busybox' applets and the users of Kubernetes' images. `/bin/sh` is busybox', as some tests compare its very messages; who asks the
/// PATH for `sh` gets bash, since busybox' of Debian drops variables whose names are none in a shell, such as `data-1`.
fn shell(mut spec: Spec) -> anyhow::Result<Spec> {
    let (busybox, applets) = busybox_program()?;
    for applet in applets {
        spec = spec.entry(&format!("/bin/{applet}"), Entry::Link("/bin/busybox".to_owned()));
    }
    let bash = PathBuf::from("/usr/bin/bash-static");
    let libraries = libraries::linked_libraries(&busybox)?;
    Ok(spec
        .files(libraries)
        .entry("/bin/busybox", Entry::program(&busybox))
        .entry("/bin/bash", Entry::program(&bash))
        .entry("/usr/local/bin/sh", Entry::Link("/bin/bash".to_owned()))
        .entry("/etc/passwd", Entry::text(PASSWD))
        .entry("/etc/group", Entry::text(GROUP))
        .entry("/etc/nsswitch.conf", Entry::text("hosts: files dns\n"))
        .entry("/home", Entry::Folder { mode: 0o755 })
        .entry("/root", Entry::Folder { mode: 0o700 })
        .entry("/tmp", Entry::Folder { mode: 0o1777 }))
}
