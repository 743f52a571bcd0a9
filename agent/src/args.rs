//! Command line and environment.

mod nvidia;

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use clap::{Parser, Subcommand};
use spillway_daemon::DaemonArgs;

pub use self::nvidia::{Maybe, NvidiaArgs};
use crate::{holders, isolation::settings::IsolationArgs, neighbours, node::NodeArgs};

/// Offers a machine's GPUs and FPGAs to its kubelet, and keeps track of their health.
///
/// Runs as root on the machine of the kubelet, usually as a pod of the Helm chart: it needs to write to the kubelet's device plugin folder,
/// and to read the host's sysfs and the names of its device nodes. In the cluster it needs no right to serve devices; --node-features says what else it can
/// do, and with which rights.
#[derive(Debug, Clone, Parser)]
#[command(name = "spillway-agent", version, max_term_width = 110)]
pub struct Args {
    /// What to do instead of serving the kubelet.
    #[command(subcommand)]
    pub command: Option<Command>,

    /// YAML file that says which devices to look for, how to offer and share them, and when to distrust them. The file of NVIDIA's device
    /// plugin is understood. Everything in it has a default; a change is put in force without a restart.
    #[arg(long, visible_alias = "config-file", value_name = "FILE", env = "SPILLWAY_CONFIG")]
    pub config: Option<PathBuf>,

    /// The same, as NVIDIA's device plugin calls it.
    #[arg(long, hide = true, value_name = "FILE", env = "CONFIG_FILE", value_parser = nvidia::maybe_path())]
    pub nvidia_config_file: Option<Maybe<PathBuf>>,

    /// Seconds between two looks at the devices, 1 to 30. Critical errors of GPUs are reported at once, whatever this is.
    #[arg(
        long, value_name = "SECONDS", default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=30),
        env = "SPILLWAY_REFRESH_SECONDS"
    )]
    pub refresh_seconds: u64,

    /// Seconds that stopping may take.
    #[arg(long, value_name = "SECONDS", default_value_t = 10, env = "SPILLWAY_GRACE_SECONDS")]
    pub grace_seconds: u64,

    /// The kubelet's device plugin folder. It is the same on every node, whatever the kubelet's root folder.
    #[arg(
        long,
        value_name = "FOLDER",
        default_value = "/var/lib/kubelet/device-plugins",
        env = "SPILLWAY_DEVICE_PLUGIN_DIR",
        help_heading = "The machine"
    )]
    pub device_plugin_dir: PathBuf,

    /// The kubelet's folder of DRA drivers' sockets, as this process sees it: `plugins_registry` below the kubelet's root folder. A DRA driver
    /// there that hands out the same devices is left alone.
    #[arg(
        long,
        value_name = "FOLDER",
        default_value = "/var/lib/kubelet/plugins_registry",
        env = "SPILLWAY_PLUGINS_REGISTRY_DIR",
        help_heading = "The machine"
    )]
    pub plugins_registry_dir: PathBuf,

    /// Socket of the kubelet's pod resources API, as this process sees it: pod-resources/kubelet.sock below the kubelet's root folder. Names
    /// of pods come from it, and what the kubelet's device checkpoint says is checked against it.
    #[arg(
        long,
        value_name = "SOCKET",
        default_value = "/var/lib/kubelet/pod-resources/kubelet.sock",
        env = "SPILLWAY_POD_RESOURCES_SOCKET",
        help_heading = "The machine"
    )]
    pub pod_resources_socket: PathBuf,

    /// Folder of all pods' logs, as this process sees it: the names of its folders tell which pod has which UID.
    #[arg(
        long,
        value_name = "FOLDER",
        default_value = "/var/log/pods",
        env = "SPILLWAY_POD_LOGS_DIR",
        help_heading = "The machine"
    )]
    pub pod_logs_dir: PathBuf,

    /// The folder of CDI specifications that container runtimes read. Written to only with a CDI strategy.
    #[arg(
        long,
        value_name = "FOLDER",
        default_value = "/var/run/cdi",
        env = "SPILLWAY_CDI_DIR",
        help_heading = "The machine"
    )]
    pub cdi_dir: PathBuf,

    /// Where this process sees the folder of MPS' pipes and logs (--mps-root on the host), and of the socket of `spillway-agent mps`. Used only
    /// with sharing.mps.
    #[arg(
        long,
        value_name = "FOLDER",
        default_value = "/mps",
        env = "SPILLWAY_MPS_DIR",
        help_heading = "The machine"
    )]
    pub mps_dir: PathBuf,

    /// The host's sysfs, as this process sees it.
    #[arg(
        long,
        value_name = "FOLDER",
        default_value = "/sys",
        env = "SPILLWAY_SYS_ROOT",
        help_heading = "The machine"
    )]
    pub sys_root: PathBuf,

    /// The host's device nodes, as this process sees them. They are only looked at; containers get the host's /dev/... in any case.
    #[arg(
        long,
        value_name = "FOLDER",
        default_value = "/dev",
        env = "SPILLWAY_DEV_ROOT",
        help_heading = "The machine"
    )]
    pub dev_root: PathBuf,

    /// The host's procfs, as this process sees it, for what drivers show in its `driver` folder: which device node stands for which
    /// MIG device.
    #[arg(
        long,
        value_name = "FOLDER",
        default_value = "/proc",
        env = "SPILLWAY_PROC_ROOT",
        help_heading = "The machine"
    )]
    pub proc_root: PathBuf,

    /// What goes before the file.
    #[command(flatten)]
    pub nvidia: NvidiaArgs,

    /// What is done in the Kubernetes API.
    #[command(flatten)]
    pub node: NodeArgs,

    /// Who may open which device node.
    #[command(flatten)]
    pub isolation: IsolationArgs,

    /// What both daemons take.
    #[command(flatten)]
    pub daemon: DaemonArgs,
}

/// What to do instead of serving the kubelet.
#[derive(Debug, Clone, PartialEq, Eq, Subcommand)]
pub enum Command {
    /// Says whether a configuration file is sound, and what it asks for. Needs no machine with devices.
    Check {
        /// The file; - is standard input.
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
    /// Keeps NVIDIA's MPS control daemons running that the agent of this machine asks for with sharing.mps, in a process of its own: their
    /// clients outlive the agent, and end with this. Needs the driver (--container-driver-root) and the GPUs.
    Mps,
    /// Takes away what isolation left in the kernel: its program, and every pin. Refused while an agent runs on this machine: it would put
    /// them back.
    Uninstall {
        /// In the cluster: switches isolation off in all agents of this `DaemonSet`, and waits until each has removed its own.
        #[arg(long, value_name = "NAMESPACE/NAME")]
        everywhere: Option<String>,
    },
}

impl Args {
    /// The configuration file, if there is one.
    pub(crate) fn config_file(&self) -> Option<&Path> {
        let nvidia = self.nvidia_config_file.as_ref().and_then(|path| path.0.as_deref());
        self.config.as_deref().filter(|path| !path.as_os_str().is_empty()).or(nvidia)
    }

    /// Time between two looks at the devices.
    pub(crate) fn refresh(&self) -> Duration {
        Duration::from_secs(self.refresh_seconds)
    }

    /// Where the kubelet keeps who holds what.
    pub(crate) fn kubelet_paths(&self) -> holders::Paths {
        holders::Paths {
            device_plugins: self.device_plugin_dir.clone(),
            pod_resources: self.pod_resources_socket.clone(),
            pod_logs: self.pod_logs_dir.clone(),
        }
    }

    /// Where others who serve devices have their sockets.
    pub(crate) fn neighbour_folders(&self) -> neighbours::Folders {
        neighbours::Folders {
            device_plugins: self.device_plugin_dir.clone(),
            plugins_registry: self.plugins_registry_dir.clone(),
            pod_resources: self.pod_resources_socket.clone(),
        }
    }

    /// How long stopping may take.
    pub(crate) fn grace(&self) -> Duration {
        Duration::from_secs(self.grace_seconds)
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;
    use spillway_device_plugin::config::{DeviceListStrategy, MigStrategy, Overridden, Overrides};

    use super::*;

    #[test]
    fn the_command_line_is_consistent_and_every_flag_has_an_environment_variable() {
        let command = Args::command();
        command.clone().debug_assert();
        for argument in command.get_arguments() {
            assert!(argument.get_env().is_some(), "--{} has none", argument.get_id());
            assert!(argument.get_help().is_some(), "--{} has no help", argument.get_id());
        }
    }

    #[test]
    fn nonsense_is_refused_with_the_flag() {
        for (flag, value) in [
            ("--refresh-seconds", "0"),
            ("--refresh-seconds", "31"),
            ("--admin-address", "nowhere"),
            ("--mig-strategy", "some"),
            ("--device-list-strategy", "envvar,cdi"),
            ("--device-id-strategy", "name"),
            ("--isolation", "some"),
            ("--isolation-exempt", "kube-system,No/Such"),
        ] {
            let error = Args::try_parse_from(["spillway-agent", flag, value]).unwrap_err();
            assert!(error.to_string().contains(flag), "{error}");
        }
    }

    #[test]
    fn nvidias_flags_become_what_goes_before_the_file() {
        let parse = |flags: &[&str]| {
            let line = ["spillway-agent"].iter().chain(flags);
            Args::try_parse_from(line).unwrap().nvidia.overrides().unwrap()
        };
        assert_eq!(parse(&[]), Overrides::default());
        assert_eq!(parse(&["--mig-strategy", "", "--container-driver-root="]), Overrides::default());
        let said = parse(&[
            "--mig-strategy=single",
            "--pass-device-specs",
            "--fail-on-init-error=0",
            "--device-list-strategy=envvar,cdi-cri",
            "--nvidia-driver-root=/run/nvidia/driver",
            "--disable-healthchecks=79",
        ]);
        let expected = Overrides {
            mig_strategy: Some(MigStrategy::Single),
            pass_device_specs: Some(true),
            fail_on_init_error: Some(false),
            device_list_strategy: Some(vec![DeviceListStrategy::Envvar, DeviceListStrategy::CdiCri]),
            nvidia_driver_root: Some("/run/nvidia/driver".into()),
            health: Overridden { ignored: vec![79], ..Overridden::default() },
            ..Overrides::default()
        };
        assert_eq!(said, expected);
    }

    #[test]
    fn the_file_may_be_named_as_nvidia_does() {
        let file = |flags: &[&str]| {
            let line = ["spillway-agent"].iter().chain(flags);
            Args::try_parse_from(line).unwrap().config_file().map(Path::to_owned)
        };
        assert_eq!(file(&["--config-file", "/a"]), Some("/a".into()));
        assert_eq!(file(&["--nvidia-config-file", "/b"]), Some("/b".into()));
        assert_eq!(file(&["--nvidia-config-file", "/b", "--config", "/a"]), Some("/a".into()));
        assert_eq!(file(&["--nvidia-config-file="]), None);
    }
}
