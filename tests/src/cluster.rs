//! A real Kubernetes cluster on this machine: control plane, any number of real nodes, any number of serverless runtimes with a virtual
//! kubelet beside them. Every machine is a set of namespaces ([`machine`]); nothing is put on the host's network.
//!
//! The API server is reached from the host through one loopback port. Whatever a cluster starts is on record first ([`registry`]), so that
//! it ends with its owner, with [`Cluster::down`], or with the next run's sweep.

pub mod control_plane;
pub mod forward;
pub mod image_registry;
pub mod machine;
pub mod network;
pub mod node;
pub mod pki;
pub mod process;
pub mod registry;
pub mod serverless;
pub mod signals;
pub mod tools;

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, bail};
use nix::sys::signal::Signal;

use self::{
    machine::{Machine, ProcessId},
    pki::Pki,
    process::Process,
    registry::Record,
};
use crate::{components, image};

/// How long a step of the bring-up may take. Generous: it only matters when something is broken.
const STEP: Duration = Duration::from_mins(3);

/// inotify instances of a cluster with one dedicated and one virtual node: 24 were counted; and some more.
const INOTIFY_INSTANCES: usize = 40;

/// What a cluster shall consist of.
#[derive(Debug, Clone)]
pub struct Options {
    /// Real nodes, named `dedicated-1`, … unless they say otherwise.
    pub nodes: Vec<node::Options>,
    /// Serverless runtimes, each with a `spillway-vk` beside it that makes the virtual node of the same name.
    pub serverless: Vec<serverless::Options>,
    /// Without cluster DNS and the images of the virtual kubelet and the main job, which take minutes to load on a slow machine.
    pub bare: bool,
    /// More images for every machine, besides those that the tests of this repository use.
    pub images: Vec<image::Image>,
    /// Whether the cluster outlives the process that starts it.
    pub keep: bool,
    /// Whether to tell on standard error what happens.
    pub verbose: bool,
}

impl Options {
    /// One dedicated node and nothing else.
    pub fn bare() -> Self {
        Self { serverless: Vec::new(), bare: true, ..Self::default() }
    }
}

impl Default for Options {
    /// One dedicated node and one virtual node: the smallest hybrid pool.
    fn default() -> Self {
        Self {
            nodes: vec![node::Options::named("dedicated-1")],
            serverless: vec![serverless::Options::named("virtual-1")],
            bare: false,
            images: Vec::new(),
            keep: false,
            verbose: true,
        }
    }
}

/// A running cluster. Dropping it ends it, unless it is to be kept.
#[derive(Debug, Clone)]
pub struct Cluster {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    record: Mutex<Record>,
    verbose: bool,
    /// Whether this value ends the cluster when it goes.
    owned: bool,
}

impl Drop for Inner {
    fn drop(&mut self) {
        let record = self.record.get_mut().unwrap_or_else(PoisonError::into_inner);
        if self.owned
            && !record.keep
            && let Err(error) = registry::end(record)
        {
            eprintln!("cluster {} did not end cleanly: {error:#}", record.id);
        }
    }
}

impl Cluster {
    /// Starts a cluster and waits until every node is Ready and cluster DNS answers.
    ///
    /// # Errors
    /// When a component can't be started or doesn't become ready: names it and shows the end of its log. What was started is ended.
    pub fn up(options: &Options) -> anyhow::Result<Self> {
        components::require_root()?;
        registry::sweep()?;
        require_inotify()?;
        let components = components::folder();
        let binaries = current_binaries()?;
        let mut images = image::build(&binaries, &components, &crate::target().join("images"), options.bare)?;

        images.extend(options.images.iter().cloned());
        let id = unused_id()?;
        let folder = crate::target().join("cluster").join(&id);
        fs::create_dir_all(folder.join("log"))
            .with_context(|| format!("can't create {}", folder.display()))?;
        fs::create_dir_all(folder.join("shared"))?;
        let owner = i32::try_from(std::process::id())
            .ok()
            .and_then(ProcessId::of)
            .context("can't read /proc/self/stat")?;
        let record = Record {
            id,
            folder,
            owner,
            // Kept only once it is up: one that was killed half-way is swept.
            keep: false,
            machines: Vec::new(),
            forwarder: None,
            processes: Vec::new(),
        };
        record.save()?;
        let cluster = Self {
            inner: Arc::new(Inner { record: Mutex::new(record), verbose: options.verbose, owned: true }),
        };
        cluster.bring_up(options, &images)?;
        if options.keep {
            cluster.keep()?;
        }
        Ok(cluster)
    }

    /// A cluster that runs already, by its ID; the only one there is when `id` is `None`.
    ///
    /// # Errors
    /// When there is none, or several and no ID.
    pub fn attach(id: Option<&str>) -> anyhow::Result<Self> {
        let mut records: Vec<_> = registry::all()?
            .into_iter()
            .filter(|record| record.running() && id.is_none_or(|id| id == record.id))
            .collect();
        match (records.len(), id) {
            (1, _) => Ok(Self {
                inner: Arc::new(Inner { record: Mutex::new(records.remove(0)), verbose: true, owned: false }),
            }),
            (0, Some(id)) => {
                bail!("there is no running cluster {id}; `cargo xtask cluster status` lists them")
            }
            (0, None) => bail!("no cluster is running; `cargo xtask cluster up` starts one"),
            (n, _) => {
                bail!("{n} clusters are running; name one of those that `cargo xtask cluster status` lists")
            }
        }
    }

    fn bring_up(&self, options: &Options, images: &[image::Image]) -> anyhow::Result<()> {
        self.say("starting the control plane");
        let pki = Pki::create(&self.folder().join("pki"))?;
        control_plane::start(self, &pki, !options.bare)?;
        self.say("starting the machines");
        std::thread::scope(|scope| {
            let mut starting = Vec::new();
            for (index, node) in options.nodes.iter().enumerate() {
                let pki = &pki;
                starting.push(scope.spawn(move || node::start(self, pki, node, index, images)));
            }
            for (index, serverless) in options.serverless.iter().enumerate() {
                let (pki, index) = (&pki, options.nodes.len() + index);
                starting.push(scope.spawn(move || serverless::start(self, pki, serverless, index, images)));
            }
            starting.into_iter().try_for_each(|thread| {
                thread.join().map_err(|_| anyhow::anyhow!("a thread that started a machine panicked"))?
            })
        })?;
        if !options.nodes.is_empty() && !options.bare {
            self.say("waiting for cluster DNS");
            self.kubectl(&[
                "-n",
                "kube-system",
                "rollout",
                "status",
                "deployment/coredns",
                &format!("--timeout={}s", crate::patience(STEP).as_secs()),
            ])?;
        }
        Ok(())
    }

    /// Tells what happens, when that was asked for.
    pub fn say(&self, what: &str) {
        if self.inner.verbose {
            eprintln!("[{}] {what}", self.id());
        }
    }

    fn record(&self) -> MutexGuard<'_, Record> {
        self.inner.record.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn update<T>(&self, change: impl FnOnce(&mut Record) -> T) -> anyhow::Result<T> {
        let mut record = self.record();
        let result = change(&mut record);
        record.save()?;
        Ok(result)
    }

    /// `spw-` and four hex digits.
    pub fn id(&self) -> String {
        self.record().id.clone()
    }

    /// Everything the cluster keeps on disk.
    pub fn folder(&self) -> PathBuf {
        self.record().folder.clone()
    }

    /// The host's side of `/srv/shared`, which all machines see.
    pub fn shared(&self) -> PathBuf {
        self.folder().join("shared")
    }

    /// The administrator's kubeconfig; its server is a loopback port of the host.
    pub fn kubeconfig(&self) -> PathBuf {
        self.record().kubeconfig()
    }

    /// The cgroup below which everything of a machine's runtime must stay, as a path in each hierarchy: `/spw-1234/dedicated-1`.
    pub fn cgroup_root(&self, machine: &str) -> String {
        format!("/{}/{machine}", self.id())
    }

    /// A machine by its name; `control-plane` is one.
    ///
    /// # Errors
    /// When there is none of that name.
    pub fn machine(&self, name: &str) -> anyhow::Result<Machine> {
        let record = self.record();
        record.machines.iter().find(|machine| machine.name == name).cloned().with_context(|| {
            let names: Vec<_> = record.machines.iter().map(|machine| machine.name.as_str()).collect();
            format!("there is no machine {name:?}, but {}", names.join(", "))
        })
    }

    /// Every component, as it is now.
    pub fn processes(&self) -> Vec<Process> {
        self.record().processes.clone()
    }

    /// A component of a machine.
    ///
    /// # Errors
    /// When there is none of that name.
    pub fn process(&self, machine: &str, name: &str) -> anyhow::Result<Process> {
        let record = self.record();
        record
            .processes
            .iter()
            .find(|process| process.machine == machine && process.name == name)
            .cloned()
            .with_context(|| format!("there is no component {name:?} on machine {machine:?}"))
    }

    /// Makes a namespace that takes pods: the API server refuses them until their service account is there.
    ///
    /// # Errors
    /// When it can't be made, or gets no service account.
    pub fn create_namespace(&self, name: &str) -> anyhow::Result<()> {
        self.kubectl(&["create", "namespace", name])?;
        crate::wait_for(&format!("the service account of namespace {name}"), Duration::from_mins(2), || {
            self.kubectl(&["-n", name, "get", "serviceaccount", "default"]).map(|_| Some(()))
        })
    }

    /// Loads images into a machine's runtime.
    ///
    /// # Errors
    /// When there is no such machine, or its runtime takes one of them not.
    pub fn load_images(&self, machine: &str, images: &[image::Image]) -> anyhow::Result<()> {
        node::load_images(&self.machine(machine)?, images)
    }

    /// Starts a machine and puts it on record.
    pub(crate) fn start_machine(&self, name: &str) -> anyhow::Result<Machine> {
        let (folder, log) =
            (self.folder().join(name), self.folder().join("log").join(format!("{name}-machine.log")));
        let machine =
            Machine::start(name, &folder, &components::folder(), &current_binaries()?, &self.shared(), &log)?;
        self.update(|record| record.machines.push(machine.clone()))?;
        Ok(machine)
    }

    /// Starts a component and puts it on record.
    pub(crate) fn start_process(
        &self,
        machine: &Machine,
        name: &str,
        arguments: &[String],
    ) -> anyhow::Result<Process> {
        let process = Process {
            machine: machine.name.clone(),
            name: name.to_owned(),
            arguments: arguments.to_vec(),
            environment: std::collections::BTreeMap::new(),
            log: self.folder().join("log").join(format!("{}-{name}.log", machine.name)),
            id: None,
        };
        self.add_process(process)
    }

    /// The same for one whose environment or log differ.
    ///
    /// # Errors
    /// When it can't be started.
    pub fn add_process(&self, mut process: Process) -> anyhow::Result<Process> {
        process.start(&self.machine(&process.machine)?)?;
        self.update(|record| record.processes.push(process.clone()))?;
        Ok(process)
    }

    /// Starts a component again that has ended.
    ///
    /// # Errors
    /// When it runs, or can't be started.
    pub fn start(&self, machine: &str, name: &str) -> anyhow::Result<()> {
        let mut process = self.process(machine, name)?;
        process.start(&self.machine(machine)?)?;
        self.update(|record| {
            for entry in &mut record.processes {
                if entry.machine == machine && entry.name == name {
                    entry.id = process.id;
                }
            }
        })
    }

    /// Ends a component as a supervisor would: SIGTERM, and a minute's time.
    ///
    /// # Errors
    /// When it doesn't run or doesn't end.
    pub fn stop(&self, machine: &str, name: &str) -> anyhow::Result<()> {
        self.process(machine, name)?.end(Signal::SIGTERM, Duration::from_mins(1))
    }

    /// Ends a component that only one test needed, and takes it off the record.
    ///
    /// # Errors
    /// As [`Cluster::stop`]; it is off the record all the same.
    pub fn remove_process(&self, machine: &str, name: &str) -> anyhow::Result<()> {
        let ended = self.stop(machine, name);
        self.update(|record| {
            record.processes.retain(|process| (&*process.machine, &*process.name) != (machine, name));
        })?;
        ended
    }

    /// Kills a component with SIGKILL.
    ///
    /// # Errors
    /// When it doesn't run.
    pub fn kill(&self, machine: &str, name: &str) -> anyhow::Result<()> {
        self.process(machine, name)?.end(Signal::SIGKILL, Duration::from_mins(1))
    }

    /// Stops a component and starts it again.
    ///
    /// # Errors
    /// As [`Cluster::stop`] and [`Cluster::start`].
    pub fn restart(&self, machine: &str, name: &str) -> anyhow::Result<()> {
        self.stop(machine, name)?;
        self.start(machine, name)
    }

    /// Freezes a component with SIGSTOP.
    ///
    /// # Errors
    /// When it doesn't run.
    pub fn pause(&self, machine: &str, name: &str) -> anyhow::Result<()> {
        self.process(machine, name)?.signal(Signal::SIGSTOP)
    }

    /// Lets a frozen component go on.
    ///
    /// # Errors
    /// When it doesn't run.
    pub fn resume(&self, machine: &str, name: &str) -> anyhow::Result<()> {
        self.process(machine, name)?.signal(Signal::SIGCONT)
    }

    /// The last lines of each component's log that has ended, or of `only`.
    pub fn log_tails(&self, lines: usize, only: Option<&str>) -> String {
        let mut tails = Vec::new();
        for process in self.processes() {
            if only.map_or_else(|| process.running(), |only| process.name != only) {
                continue;
            }
            let state = if process.running() { "runs" } else { "has ended" };
            let (name, machine, log) = (&process.name, &process.machine, process.log.display());
            tails.push(format!("--- {name} on {machine} {state}; {log}:\n{}\n", process.log_tail(lines)));
        }
        tails.concat()
    }

    /// How a person uses and ends the cluster.
    pub fn usage(&self) -> String {
        let id = self.id();
        format!(
            "cluster {id} is up. Use it:\n  export KUBECONFIG={}\n  export PATH=$PATH:{}\n  kubectl get nodes -o wide\nlogs of all \
             components: {}\nend it:\n  cargo xtask cluster down {id}",
            self.kubeconfig().display(),
            components::folder().display(),
            self.folder().join("log").display(),
        )
    }

    /// Ends the cluster.
    ///
    /// # Errors
    /// When something survives.
    pub fn down(&self) -> anyhow::Result<()> {
        // Kept or not, from here on nobody needs it.
        let record = self.update(|record| {
            record.keep = false;
            record.clone()
        })?;
        registry::end(&record)
    }

    /// Lets the cluster outlive this process.
    ///
    /// # Errors
    /// When the record can't be written.
    pub fn keep(&self) -> anyhow::Result<()> {
        self.update(|record| record.keep = true)
    }
}

/// A cluster's daemons watch files; a host whose limit is reached fails them one by one, far from the cause.
fn require_inotify() -> anyhow::Result<()> {
    let limit = "/proc/sys/fs/inotify/max_user_instances";
    let allowed: usize = fs::read_to_string(limit)
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .with_context(|| format!("can't read {limit}"))?;
    let mut used = 0;
    for process in fs::read_dir("/proc").context("can't read /proc")?.flatten() {
        // Processes come and go, and what isn't one has no descriptors.
        let Ok(descriptors) = fs::read_dir(process.path().join("fd")) else { continue };
        let links = descriptors.flatten().filter_map(|descriptor| fs::read_link(descriptor.path()).ok());
        used += links.filter(|target| target.as_os_str() == "anon_inode:inotify").count();
    }
    if used + INOTIFY_INSTANCES > allowed {
        bail!(
            "{used} of {allowed} inotify instances are in use, and a cluster needs {INOTIFY_INSTANCES}: end another cluster, or \
             raise the limit with `sysctl -w fs.inotify.max_user_instances=1024`"
        );
    }
    Ok(())
}

fn unused_id() -> anyhow::Result<String> {
    let taken: Vec<_> = registry::all()?.into_iter().map(|record| record.id).collect();
    loop {
        let random =
            fs::read_to_string("/proc/sys/kernel/random/uuid").context("can't read a random UUID")?;
        let id = format!("spw-{}", random.get(..4).context("the kernel's UUID is too short")?);
        if !taken.contains(&id) {
            return Ok(id);
        }
    }
}

/// The folder with this repository's built programs: the one this program is in, without cargo's `deps`.
///
/// # Errors
/// When the running program has no path.
pub fn current_binaries() -> anyhow::Result<PathBuf> {
    let program = std::env::current_exe().context("can't tell where this program is")?;
    let folder = program.parent().context("this program is in no folder")?;
    Ok(if folder.ends_with("deps") { folder.parent().unwrap_or(folder) } else { folder }.to_owned())
}

/// Writes a file of a machine, with the folders above it.
pub(crate) fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).with_context(|| format!("can't create {}", folder.display()))?;
    }
    fs::write(path, text).with_context(|| format!("can't write {}", path.display()))
}
