//! A pod's life with nobody around it: the workers' own decisions in the workers' order, without a runtime, an API server or a file
//! system. It tells what hostile pods would do; `tests/fuzz` asks.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ConfigMap, Container, Pod, PodSpec, PodStatus, Secret};

use super::{
    Settings, admission,
    env::{self, Runtime},
    ephemeral,
    files::PodFolder,
    ledger::Need,
    lifecycle::{self, CrashLoops, Plan, Start},
    network,
    objects::Objects,
    probe::{self, Healths, action},
    spec::{self, OwnFiles},
    status::{self, Facts, Verdict, Waiting},
    volumes::{self, Content, Tokens},
    worker,
};
use crate::provider::{
    observed::{self, Exit, ObservedPod, Sandbox, State},
    runtime::{ContainerSpec, Image, ImageUser, Mount, SandboxSpec},
};

/// How many steps a life has at most.
const STEPS: usize = 64;

/// What a pod finds.
pub struct Stage<'a> {
    /// Of the node.
    pub settings: &'a Settings,
    /// Bytes of memory that the machine has.
    pub machine_memory: i64,
    /// In the pod's namespace.
    pub config_maps: &'a [ConfigMap],
    /// In the pod's namespace.
    pub secrets: &'a [Secret],
    /// How its containers end, one after the other; then they run on.
    pub exit_codes: &'a [i32],
    /// When it begins.
    pub now: Timestamp,
}

/// What became of the pod.
#[derive(Debug, Default)]
pub struct Life {
    /// Each status that would be written; the last one of a pod that is refused is the first.
    pub statuses: Vec<PodStatus>,
    /// Why the pod as a whole is not begun.
    pub waits: Option<String>,
    /// Why containers are not started, by name.
    pub waiting: BTreeMap<String, String>,
    /// The sandboxes that would be made.
    pub sandboxes: Vec<SandboxSpec>,
    /// The containers that would be made.
    pub containers: Vec<ContainerSpec>,
    /// What would be written on the machine: files of volumes, folders, termination messages.
    pub written: Vec<PathBuf>,
    /// Paths that the pod may name itself.
    pub host_paths: Vec<PathBuf>,
    /// Parts of volumes, as they would be looked for in them.
    pub sub_paths: Vec<String>,
    /// Seconds that it has to end.
    pub grace_seconds: u64,
}

/// Plays it.
pub fn rehearse(pod: &Pod, stage: &Stage<'_>) -> Life {
    let mut life = Life { grace_seconds: worker::grace_seconds(pod), ..Life::default() };
    if let Some(refusal) = admission::refuse(pod) {
        let verdict = Verdict { reason: refusal.reason, message: refusal.message };
        life.statuses.push(status::rejected(pod, &verdict, stage.now));
        return life;
    }
    let default = PodSpec::default();
    let spec = pod.spec.as_ref().unwrap_or(&default);
    let _ = Need::of(spec);
    let scene = Scene {
        pod,
        spec,
        stage,
        folder: PodFolder::new(&stage.settings.root_dir, &spec::pod_ref(pod).uid),
        objects: Objects::given(stage.config_maps, stage.secrets),
        runtime: Runtime {
            host_ips: stage.settings.host_ips.clone(),
            pod_ips: vec![[10, 1, 0, 9].into()],
            ..Runtime::default()
        },
    };
    match scene.begin(&mut life) {
        Ok(paths) => scene.play(&paths, &mut life),
        Err(why) => life.waits = Some(why),
    }
    life
}

struct Scene<'a> {
    pod: &'a Pod,
    spec: &'a PodSpec,
    stage: &'a Stage<'a>,
    folder: PodFolder,
    objects: Objects,
    runtime: Runtime,
}

impl Scene<'_> {
    /// Everything before the first sandbox. Where volumes are.
    fn begin(&self, life: &mut Life) -> Result<BTreeMap<String, PathBuf>, String> {
        let mut paths = BTreeMap::new();
        for volume in self.spec.volumes.iter().flatten() {
            let content = volumes::content(self.pod, volume, &self.objects, &Tokens::new(), &self.runtime)
                .map_err(|error| error.to_string())?;
            let own = self.folder.volume(&volume.name);
            let path = match content {
                Content::Host { path, .. } => {
                    life.host_paths.push(path.clone());
                    path
                }
                Content::Files { files, .. } => {
                    life.written.extend(files.keys().map(|file| own.join(file)));
                    own
                }
                Content::Empty { .. } => own,
            };
            if !life.host_paths.contains(&path) {
                life.written.push(path.clone());
            }
            paths.insert(volume.name.clone(), path);
        }
        network::hostname(self.pod, &self.stage.settings.cluster_domain)?;
        Ok(paths)
    }

    fn play(&self, paths: &BTreeMap<String, PathBuf>, life: &mut Life) {
        let mut seen = ObservedPod::default();
        let mut loops = CrashLoops::default();
        let healths = Healths::default();
        let mut now = self.stage.now;
        let mut codes = self.stage.exit_codes.iter();
        let mut waiting = BTreeMap::new();
        for _ in 0..STEPS {
            seen = lifecycle::with_history(seen, self.pod.status.as_ref());
            self.report(life, &seen, &waiting, now);
            match lifecycle::plan(self.spec, &seen, &healths, &mut loops, now) {
                Plan::MakeSandbox(attempt) => {
                    let Some(sandbox) = self.sandbox(attempt) else { return };
                    life.sandboxes.push(sandbox);
                    let ips = self.runtime.pod_ips.clone();
                    let id = format!("sandbox-{attempt}");
                    seen.sandboxes.insert(0, Sandbox { id, attempt, ready: true, created_at: now, ips });
                }
                Plan::Finished => return,
                Plan::Run { start, wait, .. } => {
                    let starts = start.iter().filter(|start| !waiting.contains_key(&start.name));
                    let mut begun = false;
                    for start in starts.cloned().collect::<Vec<_>>() {
                        begun = true;
                        match self.container(&start, paths, life) {
                            Ok(container) => {
                                seen.containers.insert(0, running(&container, &seen, now));
                                life.containers.push(container);
                            }
                            Err(message) => {
                                life.waiting.insert(start.name.clone(), message.clone());
                                let reason = "CreateContainerConfigError".to_owned();
                                waiting.insert(start.name, Waiting { reason, message });
                            }
                        }
                    }
                    if begun {
                        continue;
                    }
                    let running =
                        seen.containers.iter_mut().filter(|container| container.is_running()).last();
                    match (running, codes.next(), wait.iter().map(|wait| wait.until).min()) {
                        (Some(container), Some(code), _) => container.state = ended(*code, now),
                        (_, _, Some(until)) => now = until,
                        _ => return,
                    }
                }
            }
        }
    }

    fn report(
        &self,
        life: &mut Life,
        seen: &ObservedPod,
        waiting: &BTreeMap<String, Waiting>,
        now: Timestamp,
    ) {
        life.statuses.push(status::build(&Facts {
            pod: self.pod,
            seen,
            waiting,
            healths: Some(&Healths::default()),
            resize: &status::Resize::default(),
            memory_requests: &BTreeMap::new(),
            deep_read_only: true,
            host_ips: &self.stage.settings.host_ips,
            scheme: "rehearsal",
            ended: false,
            verdict: None,
            now,
        }));
    }

    fn sandbox(&self, attempt: u32) -> Option<SandboxSpec> {
        let settings = self.stage.settings;
        let hostname = network::hostname(self.pod, &settings.cluster_domain).ok()?;
        let machine = network::parse_resolv_conf("nameserver 10.0.0.2\n");
        let (dns, _) = network::dns(self.pod, &machine, &settings.cluster_dns, &settings.cluster_domain);
        Some(spec::sandbox(self.pod, attempt, String::new(), hostname.kernel, dns))
    }

    fn container(
        &self,
        start: &Start,
        paths: &BTreeMap<String, PathBuf>,
        life: &mut Life,
    ) -> Result<ContainerSpec, String> {
        let container = ephemeral::named(self.pod, &start.name).ok_or("there is no such container")?;
        let container = container.as_ref();
        let image = Image { id: "sha256:1".to_owned(), size: 0, user: ImageUser::Id(1) };
        if let Some(why) = spec::refuses_root(self.spec, container, &image) {
            return Err(why);
        }
        let services = BTreeMap::from([("KUBERNETES_SERVICE_HOST".to_owned(), "10.96.0.1".to_owned())]);
        let env = env::resolve(self.pod, container, &self.objects, &self.runtime, &services)
            .map_err(|error| error.to_string())?;
        let mut mounts = Vec::new();
        for used in spec::volume_uses(self.spec, container, &env, true)? {
            let Some(path) = paths.get(&used.volume) else { continue };
            life.sub_paths.extend(used.sub_path.clone());
            mounts.push(Mount { host_path: path.clone(), ..used.mount });
        }
        let hostname = network::hostname(self.pod, &self.stage.settings.cluster_domain)?;
        network::hosts(self.pod, &hostname, &self.runtime.pod_ips);
        let own = OwnFiles {
            hosts: self.folder.hosts(),
            termination_log: self.folder.termination_log(&container.name, start.attempt),
        };
        life.written.extend([own.hosts.clone(), own.termination_log.clone()]);
        actions(container);
        let memory = self.stage.machine_memory;
        spec::container(self.spec, container, start.attempt, &image, env, mounts, &own, memory)
            .map_err(|error| error.to_string())
    }
}

/// What would be asked of the container while it runs.
fn actions(container: &Container) {
    let ip = "10.1.0.9";
    for kind in [probe::Kind::Startup, probe::Kind::Liveness, probe::Kind::Readiness] {
        if let Some(probe) = kind.of(container) {
            let _ = action::of_probe(probe, container, ip);
            probe::Tally::default().count(false, probe);
        }
    }
    let hooks = container.lifecycle.iter().flat_map(|hooks| hooks.post_start.iter().chain(&hooks.pre_stop));
    for hook in hooks {
        let _ = action::of_hook(hook, container, ip);
    }
}

fn running(container: &ContainerSpec, seen: &ObservedPod, now: Timestamp) -> observed::Container {
    observed::Container {
        id: format!("{}-{}", container.name, container.attempt),
        sandbox_id: seen.sandbox().map(|sandbox| sandbox.id.clone()).unwrap_or_default(),
        name: container.name.clone(),
        attempt: container.attempt,
        state: State::Running { started_at: now },
        image: container.image.clone(),
        image_id: container.image_id.clone(),
        user: None,
        resources: None,
    }
}

fn ended(code: i32, now: Timestamp) -> State {
    let (reason, message) = ("Error".to_owned(), String::new());
    State::Exited(Exit { code, reason, message, started_at: Some(now), finished_at: Some(now) })
}

/// Where the files of a pod may be.
pub fn folder(root: &Path, pod: &Pod) -> PathBuf {
    root.join("pods").join(spec::pod_ref(pod).uid)
}
