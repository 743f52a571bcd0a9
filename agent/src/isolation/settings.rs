//! What the command line says of isolation.

use std::path::PathBuf;

use clap::ValueEnum;

use super::{exempt::Exemption, program::Effect};

/// What becomes of an open that isn't allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// Nothing is looked at; what an earlier agent left in the kernel is removed.
    Off,
    /// It passes, and is counted and reported. Where the kernel can't, the agent says so and goes on without.
    Audit,
    /// It is refused, and counted and reported. Where the kernel can't, the agent does not start.
    Enforce,
}

impl Mode {
    pub(crate) fn effect(self) -> Effect {
        if self == Self::Enforce { Effect::Enforce } else { Effect::Audit }
    }
}

/// What holds while no agent runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum WhileAway {
    /// Everything stays as it is: running pods keep their devices, nobody gains one.
    Closed,
    /// An agent that is told to stop takes the filter away. One that is killed can't.
    Open,
}

/// Flags of isolation.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Isolation")]
pub struct IsolationArgs {
    /// Whether pods are kept from accelerators that the kubelet did not give them, in the kernel, whatever their container runtime lets
    /// them do. Needs Linux 6.1, a cgroup v2 hierarchy, a bpffs, `CAP_BPF` and `CAP_NET_ADMIN`. Without cgroup v2 there is only
    /// enforce, best effort, by the v1 devices controller: it needs `CAP_SYS_ADMIN` and writable cgroups.
    #[arg(long = "isolation", value_enum, value_name = "MODE", default_value_t = Mode::Audit, env = "SPILLWAY_ISOLATION")]
    pub mode: Mode,

    /// What holds between an agent's end and the next one's start.
    #[arg(
        long = "isolation-while-away",
        value_enum,
        value_name = "STATE",
        default_value_t = WhileAway::Closed,
        env = "SPILLWAY_ISOLATION_WHILE_AWAY"
    )]
    pub while_away: WhileAway,

    /// Pods that see every accelerator, as NAMESPACE, NAMESPACE/POD or NAMESPACE:KEY=VALUE+KEY=VALUE (labels), or only the nodes that
    /// follow: @/dev/NODE. POD and NODE may end with *. Several, separated by commas. Whoever may make such a pod is trusted with all
    /// accelerators.
    #[arg(
        long = "isolation-exempt",
        value_name = "WHO[@NODE]",
        value_delimiter = ',',
        env = "SPILLWAY_ISOLATION_EXEMPT"
    )]
    pub exempt: Vec<Exemption>,

    /// A mounted bpffs, as this process sees it: the filter is pinned there, so that it outlives the agent.
    #[arg(long, value_name = "FOLDER", default_value = "/sys/fs/bpf", env = "SPILLWAY_BPF_DIR")]
    pub bpf_dir: PathBuf,

    /// The host's cgroup file systems, as this process sees them.
    #[arg(long, value_name = "FOLDER", default_value = "/sys/fs/cgroup", env = "SPILLWAY_CGROUP_DIR")]
    pub cgroup_dir: PathBuf,

    /// The cgroup of all pods within the hierarchy, such as /kubepods.slice. Without it, the one that this agent's own pod is in, or
    /// else the only one of that name.
    #[arg(long, value_name = "CGROUP", env = "SPILLWAY_KUBEPODS_CGROUP")]
    pub kubepods_cgroup: Option<PathBuf>,

    /// UID of the pod that this process is in, if it is in one.
    #[arg(long, value_name = "UID", env = "SPILLWAY_POD_UID")]
    pub pod_uid: Option<String>,
}
