//! What the pods use: the runtime says what it knows (three lists, whatever the number of pods), and the cgroups' own files fill in what
//! it doesn't. Sandboxed runtimes have no cgroup of each container; there the runtime's numbers stand.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use async_trait::async_trait;
use futures::future::{join, try_join};
use jiff::Timestamp;
use spillway_proto::cri as wire;

use super::{CALL_TIMEOUT, Cri, cgroup::Reader, cgroup::Tree, convert, log_directory};
use crate::provider::{
    ProviderError, Stats,
    observed::PodRef,
    usage::{
        ContainerUsage, Cpu, FileSystem, FileUsage, GroupUsage, Interface, MachineUsage, Memory, PodUsage,
        Traffic, Usage,
    },
};

mod machine;

/// Files of a container's log that are looked at: the current one and some rotated ones.
const MAX_LOG_FILES: usize = 64;

/// What the runtime listed.
struct Listed {
    sandboxes: Vec<wire::PodSandbox>,
    containers: Vec<wire::Container>,
    /// By sandbox.
    of_sandboxes: HashMap<String, wire::PodSandboxStats>,
    /// By container.
    of_containers: HashMap<String, wire::ContainerStats>,
    images: Option<wire::FilesystemUsage>,
    problems: Vec<String>,
}

#[async_trait]
impl Stats for Cri {
    async fn usage(&self) -> Result<Usage, ProviderError> {
        let tree = self.tree().await?.clone();
        let listed = self.listed().await?;
        let log_root = self.log_root.clone();
        // Thousands of small files.
        tokio::task::spawn_blocking(move || {
            let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
            let reader = Reader::find(&mounts);
            Collector { tree, reader, log_root, time: Timestamp::now() }.usage(listed)
        })
        .await
        .map_err(|error| ProviderError::Failed { operation: "read usage", message: error.to_string() })
    }

    async fn disk_usage(&self, pod: &PodRef) -> Result<BTreeMap<String, u64>, ProviderError> {
        let stats = self.container_stats(Some(&pod.uid)).await?;
        let logs = log_directory(&self.log_root, pod);
        let root = self.log_root.clone();
        let read = tokio::task::spawn_blocking(move || disk_usage(&stats, &root, &logs)).await;
        read.map_err(|error| ProviderError::Failed { operation: "read usage", message: error.to_string() })
    }
}

/// Layers on a disk of their own are that disk's business.
fn disk_usage(stats: &[wire::ContainerStats], log_root: &Path, logs: &Path) -> BTreeMap<String, u64> {
    let device = |path: &Path| fs::metadata(existing(path)).map(|found| found.dev()).ok();
    let own = device(log_root);
    let bytes = |stats: &wire::ContainerStats, name: &str| {
        let layer = stats.writable_layer.as_ref().filter(|layer| {
            let place = layer.fs_id.as_ref().map(|id| Path::new(&id.mountpoint));
            place.is_none_or(|place| device(place) == own)
        });
        let written = layer.and_then(|layer| layer.used_bytes.as_ref()).map_or(0, |bytes| bytes.value);
        let logged = log_files(&logs.join(name.replace('/', "_")), Timestamp::now());
        written.saturating_add(logged.map_or(0, |files| files.bytes))
    };
    let named = stats.iter().filter_map(|stats| {
        let name = stats.attributes.as_ref()?.metadata.as_ref()?.name.clone();
        let bytes = bytes(stats, &name);
        Some((name, bytes))
    });
    named.collect()
}

impl Cri {
    /// Of all containers of this node, or of one pod's.
    async fn container_stats(&self, uid: Option<&str>) -> Result<Vec<wire::ContainerStats>, ProviderError> {
        let label_selector = convert::selector(&self.node, uid);
        let filter = wire::ContainerStatsFilter { label_selector, ..Default::default() };
        let request = wire::ListContainerStatsRequest { filter: Some(filter) };
        let mut client = self.runtime();
        let call = client.list_container_stats(request);
        Ok(self.call("ListContainerStats", CALL_TIMEOUT, call).await?.stats)
    }

    /// The file system of the images, if the runtime names one.
    pub(super) async fn image_fs(&self) -> Result<Option<wire::FilesystemUsage>, ProviderError> {
        let mut client = self.images.clone();
        let call = client.image_fs_info(wire::ImageFsInfoRequest {});
        Ok(self.call("ImageFsInfo", CALL_TIMEOUT, call).await?.image_filesystems.into_iter().next())
    }

    async fn listed(&self) -> Result<Listed, ProviderError> {
        let (sandboxes, containers) = try_join(self.sandboxes(None), self.containers(None)).await?;
        let label_selector = convert::selector(&self.node, None);
        let filter = wire::PodSandboxStatsFilter { label_selector, ..Default::default() };
        let request = wire::ListPodSandboxStatsRequest { filter: Some(filter) };
        let mut client = self.runtime();
        let stats = self.call("ListPodSandboxStats", CALL_TIMEOUT, client.list_pod_sandbox_stats(request));
        let (stats, images) = join(stats, self.image_fs()).await;
        let mut problems = Vec::new();
        let images = images.unwrap_or_else(|error| {
            problems.push(error.to_string());
            None
        });
        let mut of_sandboxes = HashMap::new();
        let mut of_containers = Vec::new();
        match stats {
            Ok(answer) => {
                for mut stats in answer.stats {
                    let Some(id) = stats.attributes.as_ref().map(|attributes| attributes.id.clone()) else {
                        continue;
                    };
                    if let Some(linux) = &mut stats.linux {
                        of_containers.append(&mut linux.containers);
                    }
                    of_sandboxes.insert(id, stats);
                }
            }
            // Runtimes from before that call, and those that fail it because of one sandbox.
            Err(error @ ProviderError::Unavailable { .. }) => return Err(error),
            Err(error) => {
                tracing::debug!(%error, "asking for containers' usage instead");
                match self.container_stats(None).await {
                    Ok(stats) => of_containers = stats,
                    Err(error) => problems.push(error.to_string()),
                }
            }
        }
        let of_containers = of_containers
            .into_iter()
            .filter_map(|stats| Some((stats.attributes.as_ref()?.id.clone(), stats)))
            .collect();
        Ok(Listed { sandboxes, containers, of_sandboxes, of_containers, images, problems })
    }
}

/// Puts together what was listed and what files say.
struct Collector {
    tree: Tree,
    reader: Option<Reader>,
    log_root: PathBuf,
    time: Timestamp,
}

impl Collector {
    fn usage(&self, mut listed: Listed) -> Usage {
        let mut file_systems: HashMap<String, Option<FileSystem>> = HashMap::new();
        let mut running: BTreeMap<String, Vec<wire::Container>> = BTreeMap::new();
        for container in std::mem::take(&mut listed.containers) {
            if container.state() == wire::ContainerState::ContainerRunning {
                running.entry(container.pod_sandbox_id.clone()).or_default().push(container);
            }
        }
        // The newest one of each pod.
        let mut sandboxes: BTreeMap<String, wire::PodSandbox> = BTreeMap::new();
        for sandbox in std::mem::take(&mut listed.sandboxes) {
            if sandbox.state() != wire::PodSandboxState::SandboxReady {
                continue;
            }
            let uid = sandbox.metadata.as_ref().map(|metadata| metadata.uid.clone()).unwrap_or_default();
            match sandboxes.get(&uid) {
                Some(newer) if newer.created_at >= sandbox.created_at => {}
                _ => drop(sandboxes.insert(uid, sandbox)),
            }
        }
        let pods = sandboxes
            .into_values()
            .filter_map(|sandbox| {
                let containers = running.remove(&sandbox.id).unwrap_or_default();
                self.pod(sandbox, containers, &mut listed, &mut file_systems)
            })
            .collect();
        Usage { machine: self.machine(&listed, &mut file_systems), pods, problems: listed.problems }
    }

    fn machine(
        &self,
        listed: &Listed,
        file_systems: &mut HashMap<String, Option<FileSystem>>,
    ) -> MachineUsage {
        let mut machine = machine::read(Path::new("/"), FileSystem::at(existing(&self.log_root)), self.time);
        machine.image_fs = listed.images.as_ref().and_then(|images| {
            let (used, file_system) = self.written(images, file_systems);
            Some((file_system?, used))
        });
        if let Some(reader) = &self.reader {
            if let Some(pods) = reader.read(&self.tree.branch(), self.time) {
                machine.system.push(("pods", pods));
            }
            let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
            if let Some(own) = own_cgroup(&own).and_then(|path| reader.read(path, self.time)) {
                machine.system.push(("kubelet", own));
            }
            machine.total.disks = reader.read("/", self.time).map(|root| root.disks).unwrap_or_default();
        }
        machine
    }

    fn pod(
        &self,
        sandbox: wire::PodSandbox,
        containers: Vec<wire::Container>,
        listed: &mut Listed,
        file_systems: &mut HashMap<String, Option<FileSystem>>,
    ) -> Option<PodUsage> {
        let metadata = sandbox.metadata?;
        // They become parts of paths.
        if [&metadata.uid, &metadata.namespace, &metadata.name].into_iter().any(|part| part.contains('/')) {
            return None;
        }
        let pod = PodRef { uid: metadata.uid, namespace: metadata.namespace, name: metadata.name };
        let stats = listed.of_sandboxes.remove(&sandbox.id).and_then(|stats| stats.linux).unwrap_or_default();
        let place = self
            .reader
            .as_ref()
            .and_then(|reader| self.tree.places(&pod.uid).into_iter().find(|place| reader.exists(place)));
        let names = match (&self.reader, &place) {
            (Some(reader), Some(place)) => reader.children(place),
            _ => Vec::new(),
        };
        let read = |id: &str| {
            let name = names.iter().find(|name| !id.is_empty() && name.contains(id))?;
            let path = format!("{}/{name}", place.as_ref()?);
            Some((self.reader.as_ref()?.read(&path, self.time)?, path))
        };
        let sandbox_group = read(&sandbox.id);
        let process = sandbox_group.as_ref().and_then(|(_, path)| self.reader.as_ref()?.process(path));
        let logs = log_directory(&self.log_root, &pod);
        let mut found: Vec<_> = containers
            .into_iter()
            .map(|container| {
                let told = listed.of_containers.remove(&container.id).unwrap_or_default();
                let name = container.metadata.unwrap_or_default().name;
                ContainerUsage {
                    total: match read(&container.id) {
                        Some((group, _)) => group,
                        None => group(&container.id, told.cpu.as_ref(), told.memory.as_ref(), self.time),
                    },
                    writable: told.writable_layer.map(|layer| self.written(&layer, file_systems)),
                    logs: log_files(&logs.join(name.replace('/', "_")), self.time),
                    created_at: time(container.created_at),
                    image: container.image.map(image_name).unwrap_or_default(),
                    id: container.id,
                    name,
                }
            })
            .collect();
        found.sort_by(|a, b| a.name.cmp(&b.name));
        let total = place.as_ref().and_then(|place| self.reader.as_ref()?.read(place, self.time));
        let total = total.unwrap_or_else(|| {
            let mut total = group(&pod.uid, stats.cpu.as_ref(), stats.memory.as_ref(), self.time);
            total.processes = stats.process.as_ref().and_then(|process| Some(process.process_count?.value));
            total
        });
        Some(PodUsage {
            pod,
            sandbox_id: sandbox.id,
            created_at: time(sandbox.created_at),
            total,
            sandbox: sandbox_group.map(|(group, _)| group),
            network: network(stats.network.as_ref(), process),
            containers: found,
        })
    }

    fn written(
        &self,
        layer: &wire::FilesystemUsage,
        file_systems: &mut HashMap<String, Option<FileSystem>>,
    ) -> (FileUsage, Option<FileSystem>) {
        let used = FileUsage {
            bytes: layer.used_bytes.as_ref().map_or(0, |bytes| bytes.value),
            inodes: layer.inodes_used.as_ref().map_or(0, |inodes| inodes.value),
            // The runtime measures now and then, and says 0 before it did.
            time: if layer.timestamp > 0 { time(layer.timestamp) } else { self.time },
        };
        let mountpoint = layer.fs_id.as_ref().map(|id| id.mountpoint.clone()).unwrap_or_default();
        let known = file_systems.entry(mountpoint);
        let file_system = known.or_insert_with_key(|path| FileSystem::at(Path::new(path)));
        (used, file_system.clone())
    }
}

/// The folder, or the nearest one above it that exists.
fn existing(path: &Path) -> &Path {
    path.ancestors().find(|path| path.exists()).unwrap_or(path)
}

/// Our own cgroup, from the text of `/proc/self/cgroup`; not the root, which is everything.
fn own_cgroup(text: &str) -> Option<&str> {
    let path = |line: &'_ str| -> Option<(bool, usize)> {
        let (_, rest) = line.split_once(':')?;
        let (controllers, path) = rest.split_once(':')?;
        let is_memory = controllers.split(',').any(|controller| controller == "memory");
        (is_memory || controllers.is_empty()).then_some((is_memory, path.len()))
    };
    let mut lines: Vec<_> = text.lines().filter_map(|line| Some((path(line)?, line))).collect();
    lines.sort_by_key(|((is_memory, _), _)| !is_memory);
    let ((_, length), line) = lines.first()?;
    let path = &line[line.len() - length..];
    (path != "/" && !path.is_empty()).then_some(path)
}

/// Out of the runtime's numbers alone. What has no cgroup is called by its ID.
fn group(
    id: &str,
    cpu: Option<&wire::CpuUsage>,
    memory: Option<&wire::MemoryUsage>,
    now: Timestamp,
) -> GroupUsage {
    let value = |value: &Option<wire::UInt64Value>| value.as_ref().map(|value| value.value);
    let looked =
        cpu.map(|cpu| cpu.timestamp).or(memory.map(|memory| memory.timestamp)).filter(|&time| time > 0);
    GroupUsage {
        path: format!("/{id}"),
        time: looked.map_or(now, time),
        cpu: cpu
            .and_then(|cpu| Some(Cpu { total_ns: value(&cpu.usage_core_nano_seconds)?, ..Cpu::default() })),
        memory: memory.and_then(|memory| {
            let working_set = value(&memory.working_set_bytes)?;
            Some(Memory {
                usage: value(&memory.usage_bytes).unwrap_or(working_set),
                working_set,
                rss: value(&memory.rss_bytes),
                // 0 is how containerd says that there is no limit.
                limit: value(&memory.available_bytes)
                    .filter(|&available| available > 0)
                    .map(|available| available.saturating_add(working_set)),
                faults: value(&memory.page_faults),
                major_faults: value(&memory.major_page_faults),
                ..Memory::default()
            })
        }),
        ..GroupUsage::default()
    }
}

/// The pod's interfaces. The runtime tells of the first one only, but does tell whether the pod has any of its own.
fn network(told: Option<&wire::NetworkUsage>, process: Option<u32>) -> Option<Vec<Interface>> {
    let told = told?;
    let text = process.and_then(|id| fs::read_to_string(format!("/proc/{id}/net/dev")).ok());
    let read = text.map(|text| machine::interfaces(&text)).unwrap_or_default();
    let read: Vec<_> = read.into_iter().filter(|interface| interface.name != "lo").collect();
    if !read.is_empty() {
        return Some(read);
    }
    let value = |value: &Option<wire::UInt64Value>| value.as_ref().map_or(0, |value| value.value);
    let interface = |told: &wire::NetworkInterfaceUsage| Interface {
        name: told.name.clone(),
        received: Traffic {
            bytes: value(&told.rx_bytes),
            errors: value(&told.rx_errors),
            ..Traffic::default()
        },
        sent: Traffic { bytes: value(&told.tx_bytes), errors: value(&told.tx_errors), ..Traffic::default() },
    };
    Some(told.default_interface.iter().chain(&told.interfaces).map(interface).collect())
}

fn log_files(folder: &Path, time: Timestamp) -> Option<FileUsage> {
    let mut used = FileUsage::none(time);
    // Not followed: what a link points at is not a log's size.
    for entry in fs::read_dir(folder).ok()?.flatten().take(MAX_LOG_FILES) {
        if let Ok(file) = entry.metadata() {
            used.bytes = used.bytes.saturating_add(file.blocks().saturating_mul(512));
            used.inodes += 1;
        }
    }
    Some(used)
}

fn time(nanoseconds: i64) -> Timestamp {
    Timestamp::from_nanosecond(nanoseconds.into()).unwrap_or_default()
}

/// As the pod names it, where the runtime remembers.
fn image_name(image: wire::ImageSpec) -> String {
    if image.user_specified_image.is_empty() { image.image } else { image.user_specified_image }
}

#[cfg(test)]
mod tests;
