//! Between the core's values and the wire's. Pure.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    path::Path,
};

use jiff::Timestamp;
use spillway_proto::cri as wire;

use crate::provider::{
    observed::{Container, Exit, ObservedPod, PodRef, Sandbox, State, User},
    runtime::{
        CPU_PERIOD_US, ContainerSecurity, ContainerSpec, Dns, Image, ImageUser, Mount, Namespaces, Profile,
        Propagation, Protocol, Resources, SandboxSpec, Selinux,
    },
};

/// Ownership mark: the virtual node's name, on every sandbox and container.
pub(super) const NODE_LABEL: &str = "spillway.dev/node";
// What crictl and log collectors look for.
const POD_NAME_LABEL: &str = "io.kubernetes.pod.name";
const POD_NAMESPACE_LABEL: &str = "io.kubernetes.pod.namespace";
const POD_UID_LABEL: &str = "io.kubernetes.pod.uid";
const CONTAINER_NAME_LABEL: &str = "io.kubernetes.container.name";
/// The restart count; also what a kubelet calls it.
const RESTART_COUNT_ANNOTATION: &str = "io.kubernetes.container.restartCount";
/// The image as the pod names it. What the runtime tells of images is its own names for them.
const IMAGE_ANNOTATION: &str = "spillway.dev/image";

/// Whose things a list shall have: this node's, or one pod's of it.
pub(super) fn selector(node: &str, uid: Option<&str>) -> HashMap<String, String> {
    let node = (NODE_LABEL.to_owned(), node.to_owned());
    let uid = uid.map(|uid| (POD_UID_LABEL.to_owned(), uid.to_owned()));
    std::iter::once(node).chain(uid).collect()
}

fn marks(node: &str, pod: &PodRef) -> [(String, String); 4] {
    [
        (NODE_LABEL.to_owned(), node.to_owned()),
        (POD_NAME_LABEL.to_owned(), pod.name.clone()),
        (POD_NAMESPACE_LABEL.to_owned(), pod.namespace.clone()),
        (POD_UID_LABEL.to_owned(), pod.uid.clone()),
    ]
}

/// The pod's labels and our marks. These come last: a pod's own labels must not pass for them.
pub(super) fn labels(node: &str, pod: &PodRef, labels: &BTreeMap<String, String>) -> HashMap<String, String> {
    labels.clone().into_iter().chain(marks(node, pod)).collect()
}

pub(super) fn identity(pod: &PodRef, attempt: u32) -> wire::PodSandboxMetadata {
    wire::PodSandboxMetadata {
        name: pod.name.clone(),
        uid: pod.uid.clone(),
        namespace: pod.namespace.clone(),
        attempt,
    }
}

/// What the runtime is sent of a sandbox.
pub fn sandbox_config(
    node: &str,
    sandbox: &SandboxSpec,
    log_directory: &Path,
    cgroup_parent: String,
) -> wire::PodSandboxConfig {
    let security = &sandbox.security;
    wire::PodSandboxConfig {
        metadata: Some(identity(&sandbox.pod, sandbox.attempt)),
        hostname: sandbox.hostname.clone(),
        log_directory: log_directory.to_string_lossy().into_owned(),
        dns_config: sandbox.dns.as_ref().map(dns),
        port_mappings: sandbox
            .ports
            .iter()
            .map(|port| wire::PortMapping {
                protocol: protocol(port.protocol).into(),
                container_port: port.container_port.into(),
                host_port: port.host_port.into(),
                host_ip: port.host_ip.map(|ip| ip.to_string()).unwrap_or_default(),
            })
            .collect(),
        labels: labels(node, &sandbox.pod, &sandbox.labels),
        annotations: sandbox.annotations.clone().into_iter().collect(),
        linux: Some(wire::LinuxPodSandboxConfig {
            cgroup_parent,
            security_context: Some(wire::LinuxSandboxSecurityContext {
                namespace_options: Some(namespaces(sandbox.namespaces)),
                selinux_options: security.selinux.as_ref().map(selinux),
                run_as_user: security.run_as_user.map(int),
                run_as_group: security.run_as_group.map(int),
                readonly_rootfs: false,
                supplemental_groups: security.supplemental_groups.clone(),
                privileged: sandbox.privileged,
                seccomp: security.seccomp.as_ref().map(profile),
                apparmor: security.apparmor.as_ref().map(profile),
                supplemental_groups_policy: groups_policy(security.strict_groups).into(),
            }),
            sysctls: sandbox.sysctls.clone().into_iter().collect(),
            overhead: Some(sandbox.overhead.as_ref().map(resources).unwrap_or_default()),
            resources: Some(resources(&sandbox.resources)),
        }),
    }
}

/// What the runtime is sent of a container in it.
pub fn container_config(
    node: &str,
    sandbox: &SandboxSpec,
    container: &ContainerSpec,
) -> wire::ContainerConfig {
    let mut security = container_security(sandbox.namespaces, &container.security);
    if let (Some(target), Some(options)) = (&container.joins, &mut security.namespace_options) {
        options.pid = wire::NamespaceMode::Target.into();
        options.target_id.clone_from(target);
    }
    let mut labels: HashMap<String, String> = marks(node, &sandbox.pod).into_iter().collect();
    labels.insert(CONTAINER_NAME_LABEL.to_owned(), container.name.clone());
    wire::ContainerConfig {
        metadata: Some(wire::ContainerMetadata { name: container.name.clone(), attempt: container.attempt }),
        image: Some(wire::ImageSpec {
            image: container.image_id.clone(),
            user_specified_image: container.image.clone(),
            ..Default::default()
        }),
        command: container.command.clone(),
        args: container.args.clone(),
        working_dir: container.working_dir.clone(),
        envs: container
            .env
            .iter()
            .map(|(key, value)| wire::KeyValue { key: key.clone(), value: value.clone() })
            .collect(),
        mounts: container.mounts.iter().map(mount).collect(),
        devices: Vec::new(),
        labels,
        annotations: HashMap::from([
            (RESTART_COUNT_ANNOTATION.to_owned(), container.attempt.to_string()),
            (IMAGE_ANNOTATION.to_owned(), container.image.clone()),
        ]),
        log_path: format!("{}/{}.log", container.name, container.attempt),
        stdin: container.stdin,
        stdin_once: container.stdin_once,
        tty: container.tty,
        linux: Some(wire::LinuxContainerConfig {
            resources: Some(resources(&container.resources)),
            security_context: Some(security),
        }),
        cdi_devices: container.devices.iter().map(|name| wire::CdiDevice { name: name.clone() }).collect(),
        stop_signal: 0,
    }
}

fn container_security(
    shared: Namespaces,
    security: &ContainerSecurity,
) -> wire::LinuxContainerSecurityContext {
    // A kubelet's lists of what is hidden in /proc and /sys; empty ones hide nothing.
    let (masked, readonly) = if security.unmasked_proc || security.privileged {
        (Vec::new(), Vec::new())
    } else {
        (MASKED.map(str::to_owned).to_vec(), READONLY.map(str::to_owned).to_vec())
    };
    let (uid, username) = match &security.user {
        ImageUser::Id(uid) => (Some(int(*uid)), String::new()),
        ImageUser::Name(name) => (None, name.clone()),
    };
    wire::LinuxContainerSecurityContext {
        capabilities: Some(wire::Capability {
            add_capabilities: security.add_capabilities.clone(),
            drop_capabilities: security.drop_capabilities.clone(),
            add_ambient_capabilities: Vec::new(),
        }),
        privileged: security.privileged,
        namespace_options: Some(namespaces(shared)),
        selinux_options: security.selinux.as_ref().map(selinux),
        run_as_user: uid,
        run_as_username: username,
        run_as_group: security.run_as_group.map(int),
        readonly_rootfs: security.read_only_root,
        supplemental_groups: security.supplemental_groups.clone(),
        no_new_privs: security.no_new_privileges,
        masked_paths: masked,
        readonly_paths: readonly,
        seccomp: security.seccomp.as_ref().map(profile),
        apparmor: security.apparmor.as_ref().map(profile),
        supplemental_groups_policy: groups_policy(security.strict_groups).into(),
    }
}

fn groups_policy(strict: bool) -> wire::SupplementalGroupsPolicy {
    if strict { wire::SupplementalGroupsPolicy::Strict } else { wire::SupplementalGroupsPolicy::Merge }
}

const MASKED: [&str; 12] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];

const READONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

fn int(value: i64) -> wire::Int64Value {
    wire::Int64Value { value }
}

fn dns(dns: &Dns) -> wire::DnsConfig {
    wire::DnsConfig {
        servers: dns.servers.clone(),
        searches: dns.searches.clone(),
        options: dns.options.clone(),
    }
}

fn protocol(protocol: Protocol) -> wire::Protocol {
    match protocol {
        Protocol::Tcp => wire::Protocol::Tcp,
        Protocol::Udp => wire::Protocol::Udp,
        Protocol::Sctp => wire::Protocol::Sctp,
    }
}

fn namespaces(shared: Namespaces) -> wire::NamespaceOption {
    use wire::NamespaceMode::{Container, Node, Pod};
    let pid = match (shared.host_pid, shared.share_process) {
        (true, _) => Node,
        (false, true) => Pod,
        (false, false) => Container,
    };
    wire::NamespaceOption {
        network: (if shared.host_network { Node } else { Pod }).into(),
        pid: pid.into(),
        ipc: (if shared.host_ipc { Node } else { Pod }).into(),
        target_id: String::new(),
    }
}

fn selinux(label: &Selinux) -> wire::SeLinuxOption {
    wire::SeLinuxOption {
        user: label.user.clone(),
        role: label.role.clone(),
        r#type: label.kind.clone(),
        level: label.level.clone(),
    }
}

fn profile(profile: &Profile) -> wire::SecurityProfile {
    use wire::security_profile::ProfileType;
    let (kind, localhost_ref) = match profile {
        Profile::RuntimeDefault => (ProfileType::RuntimeDefault, String::new()),
        Profile::Unconfined => (ProfileType::Unconfined, String::new()),
        Profile::Localhost(name) => (ProfileType::Localhost, name.clone()),
    };
    wire::SecurityProfile { profile_type: kind.into(), localhost_ref }
}

pub(super) fn resources(resources: &Resources) -> wire::LinuxContainerResources {
    wire::LinuxContainerResources {
        cpu_period: CPU_PERIOD_US,
        cpu_quota: resources.cpu_quota_us.unwrap_or(0),
        cpu_shares: i64::try_from(resources.cpu_shares).unwrap_or(i64::MAX),
        memory_limit_in_bytes: resources.memory_bytes.unwrap_or(0),
        oom_score_adj: resources.oom_score_adj,
        ..Default::default()
    }
}

fn mount(mount: &Mount) -> wire::Mount {
    let propagation = match mount.propagation {
        Propagation::None => wire::MountPropagation::PropagationPrivate,
        Propagation::HostToContainer => wire::MountPropagation::PropagationHostToContainer,
        Propagation::Bidirectional => wire::MountPropagation::PropagationBidirectional,
    };
    wire::Mount {
        container_path: mount.container_path.clone(),
        host_path: mount.host_path.to_string_lossy().into_owned(),
        readonly: mount.read_only,
        selinux_relabel: mount.relabel,
        propagation: propagation.into(),
        recursive_read_only: mount.recursive_read_only,
        image: mount.image.as_ref().map(|part| wire::ImageSpec {
            image: part.id.clone(),
            user_specified_image: part.name.clone(),
            ..Default::default()
        }),
        image_sub_path: mount.image.as_ref().map(|part| part.sub_path.clone()).unwrap_or_default(),
    }
}

pub(super) fn image_spec(image: &str) -> wire::ImageSpec {
    wire::ImageSpec { image: image.to_owned(), user_specified_image: image.to_owned(), ..Default::default() }
}

pub(super) fn image(image: wire::Image) -> Image {
    let user = match (image.uid, image.username) {
        (Some(uid), _) => ImageUser::Id(uid.value),
        (None, name) if name.is_empty() => ImageUser::Id(0),
        (None, name) => ImageUser::Name(name),
    };
    Image { id: image.id, size: image.size, user }
}

/// In which pod of this node something ended. Whatever else happens is our own doing.
pub(super) fn event_uid(node: &str, event: &wire::ContainerEventResponse) -> Option<String> {
    if event.container_event_type() != wire::ContainerEventType::ContainerStoppedEvent {
        return None;
    }
    let of = |labels: &HashMap<String, String>| {
        (labels.get(NODE_LABEL).map(String::as_str) == Some(node))
            .then(|| labels.get(POD_UID_LABEL).cloned())
            .flatten()
    };
    event
        .pod_sandbox_status
        .as_ref()
        .and_then(|sandbox| of(&sandbox.labels))
        .or_else(|| event.containers_statuses.iter().find_map(|container| of(&container.labels)))
}

/// The complete list, by pod. What is listed was selected by our mark; without the others it is not ours after all.
pub(super) fn pods(
    sandboxes: Vec<wire::PodSandbox>,
    containers: Vec<wire::Container>,
) -> BTreeMap<PodRef, ObservedPod> {
    let mut pods: BTreeMap<PodRef, ObservedPod> = BTreeMap::new();
    for sandbox in sandboxes {
        let Some(pod) = owner(&sandbox.labels) else { continue };
        pods.entry(pod).or_default().sandboxes.push(Sandbox {
            attempt: sandbox.metadata.as_ref().map_or(0, |metadata| metadata.attempt),
            ready: sandbox.state() == wire::PodSandboxState::SandboxReady,
            created_at: timestamp(sandbox.created_at).unwrap_or_default(),
            id: sandbox.id,
            ips: Vec::new(),
            runtime_handler: sandbox.runtime_handler,
        });
    }
    for container in containers {
        let Some(pod) = owner(&container.labels) else { continue };
        let state = match container.state() {
            wire::ContainerState::ContainerCreated => State::Created,
            wire::ContainerState::ContainerRunning => {
                State::Running { started_at: timestamp(container.created_at).unwrap_or_default() }
            }
            wire::ContainerState::ContainerExited => State::Exited(Exit {
                code: 0,
                reason: String::new(),
                message: String::new(),
                started_at: None,
                finished_at: None,
            }),
            wire::ContainerState::ContainerUnknown => State::Unknown,
        };
        let metadata = container.metadata.unwrap_or_default();
        pods.entry(pod).or_default().containers.push(Container {
            id: container.id,
            sandbox_id: container.pod_sandbox_id,
            name: metadata.name,
            attempt: metadata.attempt,
            state,
            image: String::new(),
            image_id: container.image_ref,
            asked_image: None,
            user: None,
            resources: None,
        });
    }
    for pod in pods.values_mut() {
        newest_first(pod);
    }
    pods
}

pub(super) fn owner(labels: &HashMap<String, String>) -> Option<PodRef> {
    Some(PodRef {
        uid: labels.get(POD_UID_LABEL)?.clone(),
        namespace: labels.get(POD_NAMESPACE_LABEL)?.clone(),
        name: labels.get(POD_NAME_LABEL)?.clone(),
    })
}

fn newest_first(pod: &mut ObservedPod) {
    pod.sandboxes.sort_by_key(|sandbox| std::cmp::Reverse((sandbox.attempt, sandbox.created_at)));
    pod.containers.sort_by_key(|container| std::cmp::Reverse(container.attempt));
}

/// One pod from full statuses; containers come with the ID of their sandbox, which their status lacks.
pub(super) fn observed(
    sandboxes: impl Iterator<Item = wire::PodSandboxStatus>,
    containers: impl Iterator<Item = (String, wire::ContainerStatus)>,
) -> ObservedPod {
    let mut pod = ObservedPod {
        sandboxes: sandboxes.map(sandbox).collect(),
        containers: containers.map(|(sandbox_id, status)| container(sandbox_id, status)).collect(),
    };
    newest_first(&mut pod);
    pod
}

fn sandbox(status: wire::PodSandboxStatus) -> Sandbox {
    let network = status.network.clone().unwrap_or_default();
    let ips: Vec<IpAddr> = std::iter::once(network.ip)
        .chain(network.additional_ips.into_iter().map(|ip| ip.ip))
        .filter_map(|ip| ip.parse().ok())
        .collect();
    Sandbox {
        attempt: status.metadata.as_ref().map_or(0, |metadata| metadata.attempt),
        ready: status.state() == wire::PodSandboxState::SandboxReady,
        created_at: timestamp(status.created_at).unwrap_or_default(),
        id: status.id,
        ips,
        runtime_handler: status.runtime_handler,
    }
}

fn container(sandbox_id: String, status: wire::ContainerStatus) -> Container {
    let state = match status.state() {
        wire::ContainerState::ContainerCreated => State::Created,
        wire::ContainerState::ContainerRunning => {
            State::Running { started_at: timestamp(status.started_at).unwrap_or_default() }
        }
        wire::ContainerState::ContainerExited => State::Exited(Exit {
            code: status.exit_code,
            reason: status.reason,
            message: status.message,
            started_at: timestamp(status.started_at),
            finished_at: timestamp(status.finished_at),
        }),
        wire::ContainerState::ContainerUnknown => State::Unknown,
    };
    let metadata = status.metadata.unwrap_or_default();
    let image = status.image.unwrap_or_default();
    Container {
        id: status.id,
        sandbox_id,
        name: metadata.name,
        attempt: metadata.attempt,
        state,
        // The runtime's name for it, as a kubelet tells it: in full, by the first tag.
        image: if image.image.is_empty() { image.user_specified_image } else { image.image },
        image_id: status.image_ref,
        asked_image: status.annotations.get(IMAGE_ANNOTATION).cloned(),
        user: status.user.and_then(|user| user.linux).map(|user| User {
            uid: user.uid,
            gid: user.gid,
            supplemental_groups: user.supplemental_groups,
        }),
        resources: status.resources.and_then(|resources| resources.linux).map(|linux| Resources {
            cpu_shares: u64::try_from(linux.cpu_shares).unwrap_or(0),
            cpu_quota_us: (linux.cpu_quota > 0).then(|| per_period(linux.cpu_quota, linux.cpu_period)),
            memory_bytes: (linux.memory_limit_in_bytes > 0).then_some(linux.memory_limit_in_bytes),
            oom_score_adj: linux.oom_score_adj,
        }),
    }
}

/// A quota in the period that we count in.
fn per_period(quota: i64, period: i64) -> i64 {
    if period > 0 && period != CPU_PERIOD_US { quota.saturating_mul(CPU_PERIOD_US) / period } else { quota }
}

/// Nanoseconds since 1970; 0 is "never".
fn timestamp(nanoseconds: i64) -> Option<Timestamp> {
    (nanoseconds > 0).then(|| Timestamp::from_nanosecond(nanoseconds.into()).ok()).flatten()
}

#[cfg(test)]
mod tests;
