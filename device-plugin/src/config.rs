//! The configuration: one YAML file, which NVIDIA's device plugin and feature discovery would read, too, and which says more than they
//! know. Flags and environment variables of the same names go before the file ([`Overrides`]). What the file says is checked here
//! as far as it can be without devices; what depends on them is checked where devices meet it ([`crate::sharing`]).
//!
//! [`store`] holds the one in force and replaces it when a new one is sound.

mod fpga;
mod health;
mod parse;
mod shares;
pub mod store;
mod summary;

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::Deserialize;

pub use fpga::FpgaFunction;
pub use health::{CriticalXids, Health, Overridden};
pub use parse::word;
pub use shares::{DeviceRef, MemoryMode, MemoryShares, Replicated, Shared, SharedDevices, Sharing, Way};

use crate::{device::ResourceName, health::APPLICATION_XIDS};

/// Why a configuration was refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file can't be read.
    #[error("can't read the configuration {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// It is not what is expected, or asks for what can't be; each message has line and column where there is one.
    #[error("the configuration {name} is not valid: {}", messages.join("; "))]
    Invalid {
        /// The file, or what else it was read from.
        name: String,
        /// What is wrong, and where; at least one.
        messages: Vec<String>,
    },
}

/// A sound configuration, and what its author should know.
#[derive(Debug, Clone, PartialEq)]
pub struct Loaded {
    /// It.
    pub config: Config,
    /// What it says that has no effect.
    pub warnings: Vec<String>,
}

/// What the file says; everything has a default.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Config {
    /// The format's version.
    pub version: Version,
    /// What NVIDIA's programs have flags for.
    pub flags: Flags,
    /// Other names for GPUs and MIG devices.
    pub resources: Resources,
    /// Devices that several pods hold at once.
    pub sharing: Sharing,
    /// Accepted from NVIDIA's file; without effect.
    /// Channels between machines.
    pub imex: Imex,
    /// NVIDIA GPUs.
    pub gpu: Gpu,
    /// FPGAs.
    pub fpga: Fpga,
    /// Which devices a container gets where there is a choice.
    pub allocation: Allocation,
    /// When a device counts as sick, and what follows.
    pub health: Health,
}

/// The only version there is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
pub enum Version {
    /// NVIDIA's first.
    #[default]
    #[serde(rename = "v1")]
    V1,
}

/// How partitions of a GPU are offered.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MigStrategy {
    /// Not at all: a GPU is a GPU.
    #[default]
    None,
    /// As GPUs; all partitions of the machine are alike.
    Single,
    /// As a resource per profile, such as `nvidia.com/mig-1g.5gb`.
    Mixed,
}

/// How a container learns which devices are its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DeviceListStrategy {
    /// By an environment variable.
    Envvar,
    /// By files mounted into a folder.
    VolumeMounts,
    /// By CDI devices in annotations, for runtimes that read these.
    CdiAnnotations,
    /// By CDI devices in the container runtime interface.
    CdiCri,
}

/// What a device is called in a container's list.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DeviceIdStrategy {
    /// Its UUID.
    #[default]
    Uuid,
    /// Its index, such as `0`, or `0:1` for a partition.
    Index,
}

/// What finds GPUs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DiscoveryStrategy {
    /// NVML, where there is one.
    #[default]
    Auto,
    /// NVML.
    Nvml,
    /// Integrated GPUs; not supported.
    Tegra,
    /// GPUs that are passed through to virtual machines; not supported.
    Vfio,
}

/// What NVIDIA's programs have flags for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
#[allow(clippy::struct_excessive_bools, reason = "NVIDIA's flags are what they are")]
pub struct Flags {
    /// How partitions of a GPU are offered.
    pub mig_strategy: MigStrategy,
    /// Whether a machine without a working driver is an error that ends the agent, rather than a machine without GPUs.
    pub fail_on_init_error: bool,
    /// Where MPS keeps its pipes and logs, on the host.
    pub mps_root: Option<PathBuf>,
    /// Where NVIDIA's driver is installed on the host; `/` without it.
    pub nvidia_driver_root: Option<PathBuf>,
    nvidia_dev_root: Option<PathBuf>,
    /// Whether containers are given `GDRCopy`'s device node.
    #[serde(alias = "gdrCopyEnabled")]
    pub gdrcopy_enabled: bool,
    /// Whether containers are given `GPUDirect` Storage's device nodes.
    pub gds_enabled: bool,
    /// Whether containers are given the nodes of NVIDIA's network cards.
    pub mofed_enabled: bool,
    #[serde(rename = "useNodeFeatureAPI")]
    use_node_feature_api: Option<bool>,
    device_discovery_strategy: DiscoveryStrategy,
    /// What NVIDIA's device plugin alone has flags for.
    pub plugin: PluginFlags,
    /// What NVIDIA's feature discovery alone has flags for.
    pub gfd: GfdFlags,
}

impl Flags {
    /// Where NVIDIA's driver is installed, on the host.
    pub fn driver_root(&self) -> &Path {
        self.nvidia_driver_root.as_deref().unwrap_or(Path::new("/"))
    }

    /// Where NVIDIA's driver is installed, as this process sees it.
    pub fn driver_root_here(&self) -> &Path {
        self.plugin.container_driver_root.as_deref().unwrap_or(self.driver_root())
    }
}

/// What NVIDIA's device plugin has flags for.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct PluginFlags {
    /// Whether device nodes are part of the answer to the kubelet. They are by default, which NVIDIA's plugin does not do: access that a
    /// runtime's hook gives instead is lost at the next `systemctl daemon-reload`.
    pub pass_device_specs: bool,
    /// How a container learns which devices are its own; at least one way.
    #[serde(deserialize_with = "parse::one_or_many")]
    pub device_list_strategy: Vec<DeviceListStrategy>,
    /// What a device is called in the list.
    #[serde(rename = "deviceIDStrategy")]
    pub device_id_strategy: DeviceIdStrategy,
    /// What the keys of CDI annotations start with.
    pub cdi_annotation_prefix: String,
    #[serde(rename = "nvidiaCTKPath")]
    nvidia_ctk_path: Option<PathBuf>,
    /// Where the driver root is mounted for this process; where it is on the host without it.
    pub container_driver_root: Option<PathBuf>,
    kubelet_socket: Option<PathBuf>,
    cdi_feature_flags: Option<String>,
}

impl PluginFlags {
    /// Whether containers get their devices by this strategy, perhaps among others.
    pub fn lists_by(&self, strategy: DeviceListStrategy) -> bool {
        self.device_list_strategy.contains(&strategy)
    }

    /// Whether anybody reads CDI specifications.
    pub fn uses_cdi(&self) -> bool {
        self.lists_by(DeviceListStrategy::CdiAnnotations) || self.lists_by(DeviceListStrategy::CdiCri)
    }
}

impl Default for PluginFlags {
    fn default() -> Self {
        Self {
            pass_device_specs: true,
            device_list_strategy: vec![DeviceListStrategy::Envvar],
            device_id_strategy: DeviceIdStrategy::default(),
            cdi_annotation_prefix: "cdi.k8s.io/".to_owned(),
            nvidia_ctk_path: None,
            container_driver_root: None,
            kubelet_socket: None,
            cdi_feature_flags: None,
        }
    }
}

/// What NVIDIA's feature discovery has flags for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct GfdFlags {
    oneshot: bool,
    /// Whether the label `nvidia.com/gfd.timestamp` is left out.
    pub no_timestamp: bool,
    #[serde(deserialize_with = "parse::some_go_duration")]
    sleep_interval: Option<Duration>,
    output_file: Option<PathBuf>,
    /// The file that says what machine this is, instead of the one that the firmware's tables give.
    pub machine_type_file: Option<PathBuf>,
}

/// Other names for GPUs and MIG devices.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Resources {
    /// For whole GPUs, by product; the first that matches counts.
    pub gpus: Vec<Renaming>,
    /// For MIG devices, by profile.
    pub mig: Vec<Renaming>,
}

/// One other name.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Renaming {
    /// Part of a product or profile; `*` is anything.
    pub pattern: String,
    /// What such devices are asked for by.
    #[serde(deserialize_with = "parse::resource_name")]
    pub name: ResourceName,
}

/// Channels between the memories of several machines' GPUs. As with NVIDIA's plugin there is one for everybody, channel 0.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Imex {
    /// Those that every container with a GPU gets: none, or 0.
    #[serde(rename = "channelIDs")]
    pub channel_ids: Vec<u32>,
    /// A machine without the channel gives no GPU to anybody.
    pub required: bool,
}

impl Imex {
    /// The channel that is wanted, if one is.
    pub fn channel(&self) -> Option<u32> {
        self.channel_ids.first().copied()
    }

    fn mistakes(&self) -> Vec<String> {
        match self.channel_ids.as_slice() {
            [] | [0] => Vec::new(),
            other => vec![format!("imex.channelIDs: expected [] or [0], not {other:?}")],
        }
    }
}

/// NVIDIA GPUs, by NVML.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Gpu {
    /// Whether to look for any.
    pub enabled: bool,
    /// XIDs that don't make a GPU Unhealthy. Setting it replaces the default, which is the list of NVIDIA's device plugin.
    pub ignored_xids: Vec<u64>,
    /// XIDs that do, unless they are ignored.
    pub critical_xids: CriticalXids,
    /// How long a GPU must be without a fault before it counts as Healthy again, in seconds.
    pub recovery_seconds: u64,
}

impl Gpu {
    /// [`Gpu::recovery_seconds`] as a duration.
    pub fn recovery(&self) -> Duration {
        Duration::from_secs(self.recovery_seconds)
    }

    /// Whether this XID makes a GPU Unhealthy.
    pub fn is_critical(&self, xid: u64) -> bool {
        let named = match &self.critical_xids {
            CriticalXids::All => true,
            CriticalXids::Only(xids) => xids.contains(&xid),
        };
        named && !self.ignored_xids.contains(&xid)
    }
}

impl Default for Gpu {
    fn default() -> Self {
        Self {
            enabled: true,
            ignored_xids: APPLICATION_XIDS.to_vec(),
            critical_xids: CriticalXids::All,
            recovery_seconds: 300,
        }
    }
}

/// What of an FPGA is offered.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FpgaMode {
    /// Accelerator functions that are programmed already: a port, by the function that is in it.
    Af,
    /// Regions that are programmed for the pod: a port, by the interface that a bitstream must fit.
    #[default]
    Region,
    /// Regions whose user programs them: port and management engine.
    RegionDevel,
}

/// Which FPGAs a container gets where there is a choice.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Spread {
    /// The kubelet chooses.
    None,
    /// From the cards that are used least.
    Balanced,
    /// From the cards that are used already.
    #[default]
    Packed,
}

/// FPGAs, by sysfs.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Fpga {
    /// Whether to look for any.
    pub enabled: bool,
    /// What of them is offered.
    pub mode: FpgaMode,
    /// Which of them a container gets where there is a choice.
    pub allocation: Spread,
    /// In mode `region`: the functions that are put into ports before a container starts. Pods ask for `fpga.intel.com/af-…` then, as in mode
    /// `af`, and get one of these ports.
    pub functions: Vec<FpgaFunction>,
    /// Where bitstreams lie: `<interface id>/<function id>.gbs`.
    pub bitstream_folder: PathBuf,
}

impl Default for Fpga {
    fn default() -> Self {
        Self {
            enabled: true,
            mode: FpgaMode::default(),
            allocation: Spread::default(),
            functions: Vec::new(),
            bitstream_folder: PathBuf::from("/srv/intel.com/fpga"),
        }
    }
}

/// How replicas are chosen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ReplicaChoice {
    /// From the devices that are shared least.
    #[default]
    Distributed,
    /// From the devices that are shared already.
    Packed,
}

/// Which devices a container gets where there is a choice.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Allocation {
    /// Of devices that several pods share.
    pub replicas: ReplicaChoice,
}

/// What flags and environment say, which goes before the file. What is absent leaves the file its say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "each is the key of the same name")]
pub struct Overrides {
    pub mig_strategy: Option<MigStrategy>,
    pub fail_on_init_error: Option<bool>,
    pub mps_root: Option<PathBuf>,
    pub nvidia_driver_root: Option<PathBuf>,
    pub container_driver_root: Option<PathBuf>,
    pub gdrcopy_enabled: Option<bool>,
    pub gds_enabled: Option<bool>,
    pub mofed_enabled: Option<bool>,
    pub pass_device_specs: Option<bool>,
    pub device_list_strategy: Option<Vec<DeviceListStrategy>>,
    pub device_id_strategy: Option<DeviceIdStrategy>,
    pub cdi_annotation_prefix: Option<String>,
    /// `DP_DISABLE_HEALTHCHECKS` and `DP_ENABLE_HEALTHCHECKS`.
    pub health: Overridden,
}

impl Overrides {
    fn apply(&self, config: &mut Config) {
        fn set<T: Clone>(place: &mut T, value: Option<&T>) {
            if let Some(value) = value {
                place.clone_from(value);
            }
        }
        let flags = &mut config.flags;
        set(&mut flags.mig_strategy, self.mig_strategy.as_ref());
        set(&mut flags.fail_on_init_error, self.fail_on_init_error.as_ref());
        set(&mut flags.gdrcopy_enabled, self.gdrcopy_enabled.as_ref());
        set(&mut flags.gds_enabled, self.gds_enabled.as_ref());
        set(&mut flags.mofed_enabled, self.mofed_enabled.as_ref());
        let plugin = &mut flags.plugin;
        set(&mut plugin.pass_device_specs, self.pass_device_specs.as_ref());
        set(&mut plugin.device_list_strategy, self.device_list_strategy.as_ref());
        set(&mut plugin.device_id_strategy, self.device_id_strategy.as_ref());
        set(&mut plugin.cdi_annotation_prefix, self.cdi_annotation_prefix.as_ref());
        for (place, value) in [
            (&mut flags.mps_root, &self.mps_root),
            (&mut flags.nvidia_driver_root, &self.nvidia_driver_root),
            (&mut plugin.container_driver_root, &self.container_driver_root),
        ] {
            if value.is_some() {
                place.clone_from(value);
            }
        }
        self.health.apply(&mut config.gpu, &mut config.health);
    }
}

impl Config {
    /// Reads the YAML file at `path`, with `overrides` going before it.
    pub fn read(path: &Path, overrides: &Overrides) -> Result<Loaded, ConfigError> {
        let bytes = File::open(path)
            .and_then(parse::limited)
            .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        Self::load(&path.display().to_string(), &bytes, overrides)
    }

    /// Reads YAML from anywhere else, which is called `name` in messages, with `overrides` going before it.
    pub fn read_from(name: &str, input: impl io::Read, overrides: &Overrides) -> Result<Loaded, ConfigError> {
        let bytes =
            parse::limited(input).map_err(|source| ConfigError::Read { path: name.into(), source })?;
        Self::load(name, &bytes, overrides)
    }

    /// Makes the most of `bytes`, which came from what is called `name` in messages.
    pub fn load(name: &str, bytes: &[u8], overrides: &Overrides) -> Result<Loaded, ConfigError> {
        let invalid = |messages| ConfigError::Invalid { name: name.to_owned(), messages };
        let mut config = parse::document(bytes).map_err(|message| invalid(vec![message]))?;
        let settled = config.health.settle(&mut config.gpu);
        overrides.apply(&mut config);
        let mut mistakes = config.sharing.mistakes(config.flags.mig_strategy);
        mistakes.extend(settled.err());
        mistakes.extend(config.flags.mistakes());
        mistakes.extend(config.imex.mistakes());
        if mistakes.is_empty() {
            let warnings = config.without_effect();
            Ok(Loaded { config, warnings })
        } else {
            Err(invalid(mistakes))
        }
    }

    /// What is in force without any file.
    pub fn without_file(overrides: &Overrides) -> Result<Loaded, ConfigError> {
        Self::load("of flags and environment", b"", overrides)
    }
}

#[cfg(test)]
mod tests;
