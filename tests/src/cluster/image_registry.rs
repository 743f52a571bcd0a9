//! A real image registry on the control plane's machine: one that asks for user and password, over TLS with the cluster's authority, and
//! beside it one on the same images that asks for nothing.

use std::fs;

use anyhow::Context as _;

use super::{
    Cluster, STEP,
    control_plane::{self, arguments},
    network::CONTROL_PLANE,
    pki::Pki,
    write,
};
use crate::{components, image::Image};

/// Where a user and a password are needed.
pub const PRIVATE: &str = "10.201.0.1:5000";
/// Where nothing is.
pub const OPEN: &str = "10.201.0.1:5001";
/// Who may pull from [`PRIVATE`].
pub const USER: &str = "puller";
/// With this password.
pub const PASSWORD: &str = "right-here-1";

/// The same, as the registry wants it: bcrypt.
const HASH: &str = "$2a$05$Ox3g5Vl8zxQ.ikFv7bu8vunsYoM3YOPJajb211Dr3Z26MuWIPmDim";

/// A running registry; it ends with this value.
pub struct Registry {
    cluster: Cluster,
}

impl Registry {
    /// Starts it with these images, each under `<name>:1`, and tells the machines' runtimes whom to trust.
    ///
    /// # Errors
    /// When it can't be built, does not start, or takes an image not.
    pub fn start(cluster: &Cluster, machines: &[&str], images: &[(&str, &Image)]) -> anyhow::Result<Self> {
        components::ensure_registry()?;
        let pki = Pki::open(&cluster.folder().join("pki"))?;
        pki.sign("registry", "registry", &[], &[CONTROL_PLANE])?;
        let machine = cluster.machine(control_plane::MACHINE)?;
        let etc = machine.path("/etc/registry");
        for (from, to) in [("registry.crt", "tls.crt"), ("registry.key", "tls.key")] {
            write(&etc.join(to), &pki.read(from)?)?;
        }
        write(&etc.join("htpasswd"), &format!("{USER}:{HASH}\n"))?;
        let storage = "storage: {filesystem: {rootdirectory: /var/lib/registry}}";
        let private = format!(
            "version: 0.1\n{storage}\nlog: {{accesslog: {{disabled: false}}}}
http: {{addr: \"{PRIVATE}\", tls: {{certificate: /etc/registry/tls.crt, key: /etc/registry/tls.key}}}}
auth: {{htpasswd: {{realm: spillway, path: /etc/registry/htpasswd}}}}\n"
        );
        write(&etc.join("private.yaml"), &private)?;
        write(&etc.join("open.yaml"), &format!("version: 0.1\n{storage}\nhttp: {{addr: \"{OPEN}\"}}\n"))?;
        let registry = Self { cluster: cluster.clone() };
        for kind in ["private", "open"] {
            let serve = format!("env OTEL_TRACES_EXPORTER=none registry serve /etc/registry/{kind}.yaml");
            cluster.start_process(&machine, &format!("registry-{kind}"), &arguments(&serve))?;
        }
        for name in machines {
            let certs = cluster.machine(name)?.path("/etc/containerd/certs.d");
            write(&certs.join(PRIVATE).join("ca.crt"), &pki.read("ca.crt")?)?;
            let hosts = format!(
                "server = \"https://{PRIVATE}\"\n[host.\"https://{PRIVATE}\"]\nca = \"/etc/containerd/certs.d/{PRIVATE}/ca.crt\"\n"
            );
            write(&certs.join(PRIVATE).join("hosts.toml"), &hosts)?;
            let hosts = format!("server = \"http://{OPEN}\"\n[host.\"http://{OPEN}\"]\n");
            write(&certs.join(OPEN).join("hosts.toml"), &hosts)?;
        }
        let first = machines.first().context("a registry is for some machine")?;
        for (name, image) in images {
            registry.push(first, name, image)?;
        }
        Ok(registry)
    }

    /// Pushes with a namespace of the runtime's own, so that its pods' images are what they were.
    fn push(&self, machine: &str, name: &str, image: &Image) -> anyhow::Result<()> {
        let machine = self.cluster.machine(machine)?;
        let inside = machine.path("/var/tmp/pushed.tar");
        fs::copy(&image.tar, &inside).with_context(|| format!("can't copy {}", image.tar.display()))?;
        let (from, to) = (&image.name, format!("{OPEN}/{name}:1"));
        machine.shell(&format!(
            "ctr -n push images import --no-unpack /var/tmp/pushed.tar; ctr -n push images tag --force {from} {to}"
        ))?;
        crate::wait_for(&format!("the registry to take {name}"), STEP, || {
            machine.run("ctr", &["-n", "push", "images", "push", "--plain-http", &to]).map(|_| Some(()))
        })?;
        machine.shell(&format!("ctr -n push images rm {from} {to}; ctr namespaces rm push || true"))?;
        fs::remove_file(&inside).with_context(|| format!("can't delete {}", inside.display()))
    }

    /// The lines of the private registry's log, one a request.
    ///
    /// # Errors
    /// When it can't be read.
    pub fn requests(&self) -> anyhow::Result<Vec<String>> {
        let log = self.cluster.process(control_plane::MACHINE, "registry-private")?.log;
        let text = fs::read_to_string(&log).with_context(|| format!("can't read {}", log.display()))?;
        Ok(text.lines().filter(|line| line.contains(" HTTP/")).map(str::to_owned).collect())
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        for kind in ["private", "open"] {
            // With a failed start there may be none; the cluster ends what is left.
            let _ = self.cluster.remove_process(control_plane::MACHINE, &format!("registry-{kind}"));
        }
    }
}
