//! Providers that are given sandboxes and containers, and what they are given: every decision is already in these values.

use std::{collections::BTreeMap, net::IpAddr, path::PathBuf, time::Duration};

use async_trait::async_trait;
use futures::stream::BoxStream;

use super::{
    Attach, Exec, Logs, PortForward, ProviderError, Stats, Version,
    facts::Facts,
    images::Images,
    observed::{ObservedPod, PodRef},
};

/// Runs sandboxes and containers, and marks them as this node's own. What it has not marked it neither lists nor touches.
#[async_trait]
pub trait ContainerRuntime: Send + Sync {
    /// The provider's name, as in `--provider`.
    fn name(&self) -> &'static str;

    /// Who answers.
    async fn version(&self) -> Result<Version, ProviderError>;

    /// Whether pods could be started now.
    async fn ping(&self) -> Result<(), ProviderError>;

    /// What the node's status tells of it, as far as it can say. Asked for every half minute.
    async fn facts(&self) -> Result<Facts, ProviderError> {
        Ok(Facts::default())
    }

    /// Runs commands, if the runtime can.
    fn exec(&self) -> Option<&dyn Exec> {
        None
    }

    /// Reads logs, if the runtime can.
    fn logs(&self) -> Option<&dyn Logs> {
        None
    }

    /// Attaches to containers, if the runtime can.
    fn attach(&self) -> Option<&dyn Attach> {
        None
    }

    /// Connects to ports of pods, if the runtime can.
    fn port_forward(&self) -> Option<&dyn PortForward> {
        None
    }

    /// Tells what pods use, if the runtime can.
    fn stats(&self) -> Option<&dyn Stats> {
        None
    }

    /// Tells of all images and removes them, if the runtime can.
    fn images(&self) -> Option<&dyn Images> {
        None
    }

    /// What exists of all pods of this node: the complete list, or an error. States are coarse (no exit codes, no addresses).
    async fn list(&self) -> Result<BTreeMap<PodRef, ObservedPod>, ProviderError>;

    /// All that exists of one pod, in full.
    async fn observe(&self, uid: &str) -> Result<ObservedPod, ProviderError>;

    /// Keeps house: what has to be looked after now and then, whatever pods do. Given the last complete list.
    async fn tend(&self, pods: &BTreeMap<PodRef, ObservedPod>) -> Result<(), ProviderError> {
        let _ = pods;
        Ok(())
    }

    /// UIDs of pods in which something ended, from now on. May end at any time; whoever listens then calls [`ContainerRuntime::list`] and
    /// starts again.
    async fn changes(&self) -> Result<BoxStream<'static, String>, ProviderError>;

    /// Makes and starts a sandbox. The name is (pod UID, attempt): a second one is [`ProviderError::Exists`].
    async fn create_sandbox(&self, sandbox: &SandboxSpec) -> Result<String, ProviderError>;

    /// Ends whatever runs in a sandbox and gives its address back. May be repeated.
    async fn stop_sandbox(&self, id: &str) -> Result<(), ProviderError>;

    /// Removes a sandbox and its containers. May be repeated.
    async fn remove_sandbox(&self, id: &str) -> Result<(), ProviderError>;

    /// Makes a container and does not start it. The name is (sandbox, name, attempt): a second one is [`ProviderError::Exists`].
    async fn create_container(
        &self,
        sandbox_id: &str,
        sandbox: &SandboxSpec,
        container: &ContainerSpec,
    ) -> Result<String, ProviderError>;

    /// Changes the limits of a running container. May be repeated.
    async fn update_container(&self, id: &str, resources: Resources) -> Result<(), ProviderError>;

    /// Changes the limits of the pod's cgroup; those that are `None` stay as they are. May be repeated.
    async fn update_pod(&self, uid: &str, cgroup: PodCgroup) -> Result<(), ProviderError>;

    /// How much of the CPU burstable pods ask for together, in the units of [`Resources::cpu_shares`]: what they all weigh beside each
    /// guaranteed pod, and beside those that ask for nothing. May be repeated.
    async fn weigh(&self, burstable_shares: u64) -> Result<(), ProviderError> {
        let _ = burstable_shares;
        Ok(())
    }

    /// Why pods can't have limits of their own beside their containers'; `None`: they can.
    async fn lacks_pod_limits(&self) -> Result<Option<&'static str>, ProviderError> {
        Ok(None)
    }

    /// Starts a container that was made.
    async fn start_container(&self, id: &str) -> Result<(), ProviderError>;

    /// The stop signal, and the kill signal after so many seconds. Returns when the container has ended. May be repeated, also while
    /// another call waits, with fewer seconds.
    async fn stop_container(&self, id: &str, grace_seconds: u64) -> Result<(), ProviderError>;

    /// Runs a command in a running container to its end, without input. A command that takes longer than `limit` is killed; without one it
    /// may go on as long as the container. Dropped, the call has no further effect but that.
    async fn exec_sync(
        &self,
        id: &str,
        command: &[String],
        limit: Option<Duration>,
    ) -> Result<CommandEnd, ProviderError>;

    /// Removes a container that has ended, and its log. May be repeated.
    async fn remove_container(&self, id: &str) -> Result<(), ProviderError>;

    /// Removes what is left of a pod outside its sandboxes: its cgroup, its log folder. May be repeated.
    async fn remove_pod(&self, uid: &str) -> Result<(), ProviderError>;

    /// Whether a runtime handler (empty: the default one) can make all that is mounted in a read-only mount read-only too.
    async fn recursive_read_only(&self, _handler: &str) -> Result<bool, ProviderError> {
        Ok(false)
    }

    /// The image, if the runtime has it.
    async fn image(&self, image: &str) -> Result<Option<Image>, ProviderError>;

    /// Fetches an image for a pod and returns what it resolved to.
    async fn pull(
        &self,
        pod: &Puller,
        image: &str,
        credentials: Option<&Credentials>,
    ) -> Result<Image, ProviderError>;
}

/// How a command in a container ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CommandEnd {
    /// By itself.
    Exited {
        /// The exit code.
        code: i32,
        /// What it wrote; the runtime may have cut it.
        stdout: Vec<u8>,
        /// What it wrote; the runtime may have cut it.
        stderr: Vec<u8>,
    },
    /// Its time was over.
    TimedOut,
}

/// An image that the runtime has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// What containers are made from.
    pub id: String,
    /// Bytes.
    pub size: u64,
    /// The user it runs as when the pod names none.
    pub user: ImageUser,
}

/// The user that an image names, or a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImageUser {
    /// By number; root when it names none.
    Id(i64),
    /// By a name that only its own `/etc/passwd` resolves.
    Name(String),
}

/// Whom an image is fetched for; some runtimes take from it where the image goes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Puller {
    /// The pod.
    pub pod: PodRef,
    /// Labels of the pod.
    pub labels: BTreeMap<String, String>,
    /// Annotations of the pod.
    pub annotations: BTreeMap<String, String>,
}

/// What a registry is shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// User.
    pub username: String,
    /// Password or token.
    pub password: String,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Credentials({}, …)", self.username)
    }
}

/// A pod's sandbox, decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SandboxSpec {
    /// Whose it is.
    pub pod: PodRef,
    /// Counts the pod's sandboxes from 0.
    pub attempt: u32,
    /// Labels of the pod, for those who look at the runtime.
    pub labels: BTreeMap<String, String>,
    /// Annotations of the pod; some runtimes take settings from them.
    pub annotations: BTreeMap<String, String>,
    /// The handler that the pod's `RuntimeClass` names; empty: the default one.
    pub runtime_handler: String,
    /// Empty on the node's network.
    pub hostname: String,
    /// `/etc/resolv.conf`, decided; `None`: the machine's.
    pub dns: Option<Dns>,
    /// Ports of the machine that lead to the pod.
    pub ports: Vec<HostPort>,
    /// The kernel settings of the pod's namespaces.
    pub sysctls: BTreeMap<String, String>,
    /// Which of the machine's namespaces are shared with the pod.
    pub namespaces: Namespaces,
    /// Whether a container of the pod is privileged.
    pub privileged: bool,
    /// Where the pod's cgroup is, relative to the node's, and its limits.
    pub cgroup: PodCgroup,
    /// What the containers have together, for runtimes that give a pod a machine of its own.
    pub resources: Resources,
    /// What such a runtime may take beside them.
    pub overhead: Option<Resources>,
    /// Huge pages that the pod may use: bytes by the size of a page.
    pub huge_pages: BTreeMap<u64, u64>,
    /// User, group and profiles of the pause process.
    pub security: SandboxSecurity,
}

/// Lines of `/etc/resolv.conf`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Dns {
    /// Addresses of servers.
    pub servers: Vec<String>,
    /// Search list.
    pub searches: Vec<String>,
    /// Options such as `ndots:5`.
    pub options: Vec<String>,
}

/// Transport of a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

/// A port of the machine that leads to the pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostPort {
    /// Transport.
    pub protocol: Protocol,
    /// In the pod.
    pub container_port: u16,
    /// On the machine.
    pub host_port: u16,
    /// Only on this address of the machine.
    pub host_ip: Option<IpAddr>,
}

/// Which namespaces a pod shares, and with whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[allow(clippy::struct_excessive_bools)] // One flag a namespace, as the pod has them.
pub struct Namespaces {
    /// The machine's network.
    pub host_network: bool,
    /// The machine's processes.
    pub host_pid: bool,
    /// The machine's IPC.
    pub host_ipc: bool,
    /// One process namespace for all containers of the pod.
    pub share_process: bool,
}

/// Quality of service, which is also where the pod's cgroup goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QosClass {
    /// Every container has limits for both, equal to its requests.
    Guaranteed,
    /// Something is requested.
    Burstable,
    /// Nothing is.
    BestEffort,
}

impl QosClass {
    /// As in the pod's status.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Guaranteed => "Guaranteed",
            Self::Burstable => "Burstable",
            Self::BestEffort => "BestEffort",
        }
    }
}

/// The pod's own cgroup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PodCgroup {
    /// Which branch it is in.
    pub qos: QosClass,
    /// Limits of all containers together.
    pub limits: Resources,
}

/// Limits of a cgroup, in the units of cgroup v1 (the runtime converts).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Resources {
    /// Relative weight, 2 … 262144.
    pub cpu_shares: u64,
    /// Microseconds in each period of 100 ms; `None`: as much as there is.
    pub cpu_quota_us: Option<i64>,
    /// Bytes; `None`: as much as there is.
    pub memory_bytes: Option<i64>,
    /// Who the kernel kills first when memory is short: -1000 … 1000.
    pub oom_score_adj: i64,
}

/// The period that CPU quotas count in.
pub const CPU_PERIOD_US: i64 = 100_000;

/// Security of the pause process.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SandboxSecurity {
    /// User ID.
    pub run_as_user: Option<i64>,
    /// Group ID.
    pub run_as_group: Option<i64>,
    /// Further groups.
    pub supplemental_groups: Vec<i64>,
    /// As [`ContainerSecurity::strict_groups`].
    pub strict_groups: bool,
    /// `SELinux` label.
    pub selinux: Option<Selinux>,
    /// System calls.
    pub seccomp: Option<Profile>,
    /// `AppArmor`.
    pub apparmor: Option<Profile>,
}

/// An `SELinux` label.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Selinux {
    /// User part.
    pub user: String,
    /// Role part.
    pub role: String,
    /// Type part.
    pub kind: String,
    /// Level part.
    pub level: String,
}

/// A seccomp or `AppArmor` profile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Profile {
    /// The runtime's own.
    RuntimeDefault,
    /// None.
    Unconfined,
    /// A named one on the machine: a file (seccomp), or one that the kernel has (`AppArmor`).
    Localhost(String),
}

/// A container, decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerSpec {
    /// The container's name in the pod.
    pub name: String,
    /// The restart count.
    pub attempt: u32,
    /// The image as the pod names it.
    pub image: String,
    /// What it resolved to.
    pub image_id: String,
    /// Empty: the image's entrypoint.
    pub command: Vec<String>,
    /// Empty: the image's, unless `command` is set.
    pub args: Vec<String>,
    /// Empty: the image's.
    pub working_dir: String,
    /// In order; later ones were already merged over earlier ones.
    pub env: Vec<(String, String)>,
    /// In order.
    pub mounts: Vec<Mount>,
    /// Keep standard input open.
    pub stdin: bool,
    /// Close it after the first client.
    pub stdin_once: bool,
    /// Run in a terminal.
    pub tty: bool,
    /// Limits.
    pub resources: Resources,
    /// Who it is and what it may.
    pub security: ContainerSecurity,
    /// The container whose processes it sees as its own; `None`: as the pod's [`Namespaces`] say.
    pub joins: Option<String>,
    /// Names of devices of the machine, as the Container Device Interface has them: `vendor.com/class=name`.
    pub devices: Vec<String>,
}

/// A folder or file of the machine, seen by a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// On the machine; empty for what is in an image.
    pub host_path: PathBuf,
    /// What is in an image, instead of a folder of the machine.
    pub image: Option<ImagePart>,
    /// In the container.
    pub container_path: String,
    /// May not be written to.
    pub read_only: bool,
    /// Nothing mounted below may be written to either.
    pub recursive_read_only: bool,
    /// Which later mounts cross over.
    pub propagation: Propagation,
    /// Of the node's making: where the machine has `SELinux`, the container's label is put on it.
    pub relabel: bool,
}

/// An image, or a part of it, as a mount.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ImagePart {
    /// As the runtime knows it.
    pub id: String,
    /// As the pod names it.
    pub name: String,
    /// Below its root; empty: all of it.
    pub sub_path: String,
}

/// Which later mounts cross a [`Mount`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Propagation {
    /// None.
    #[default]
    None,
    /// The machine's are seen by the container.
    HostToContainer,
    /// And the other way round.
    Bidirectional,
}

/// Who a container is and what it may.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(clippy::struct_excessive_bools)] // As the pod has them.
pub struct ContainerSecurity {
    /// The pod's, or else the image's: runtimes refuse a group without a user.
    pub user: ImageUser,
    /// Group ID.
    pub run_as_group: Option<i64>,
    /// Further groups.
    pub supplemental_groups: Vec<i64>,
    /// Take those of the image's `/etc/group` too (`Merge`) or not (`Strict`).
    pub strict_groups: bool,
    /// All devices and capabilities.
    pub privileged: bool,
    /// The image can't be written to.
    pub read_only_root: bool,
    /// Set-user-ID programs gain nothing.
    pub no_new_privileges: bool,
    /// Added, without `CAP_`.
    pub add_capabilities: Vec<String>,
    /// Dropped, without `CAP_`.
    pub drop_capabilities: Vec<String>,
    /// `SELinux` label.
    pub selinux: Option<Selinux>,
    /// System calls.
    pub seccomp: Option<Profile>,
    /// `AppArmor`.
    pub apparmor: Option<Profile>,
    /// Show all of `/proc` as it is.
    pub unmasked_proc: bool,
}
