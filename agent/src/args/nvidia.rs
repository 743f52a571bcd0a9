//! Flags and variables of NVIDIA's device plugin: the same names, the same meaning. An empty variable says nothing, as there.

use std::{ffi::OsString, path::PathBuf, str::FromStr};

use clap::{
    Args,
    builder::{OsStringValueParser, StringValueParser, TypedValueParser},
};
use spillway_device_plugin::config::{
    DeviceIdStrategy, DeviceListStrategy, MigStrategy, Overridden, Overrides, word,
};

const HEADING: &str = "As NVIDIA's device plugin (each goes before the file)";

/// A value, or an empty text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Maybe<T>(pub(super) Option<T>);

fn maybe<T: Clone + Send + Sync + 'static>(
    read: fn(&str) -> Result<T, String>,
) -> impl TypedValueParser<Value = Maybe<T>> {
    StringValueParser::new().try_map(move |text| -> Result<_, String> {
        if text.trim().is_empty() {
            Ok(Maybe(None))
        } else {
            read(text.trim()).map(|value| Maybe(Some(value)))
        }
    })
}

/// A path, or an empty text.
pub(super) fn maybe_path() -> impl TypedValueParser<Value = Maybe<PathBuf>> {
    OsStringValueParser::new().map(|text: OsString| Maybe((!text.is_empty()).then(|| PathBuf::from(text))))
}

/// As Go reads booleans.
fn boolean(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err("expected true or false".to_owned()),
    }
}

fn text(text: &str) -> Result<String, String> {
    String::from_str(text).map_err(|never| match never {})
}

fn strategies(list: &str) -> Result<Vec<DeviceListStrategy>, String> {
    list.split(',').map(|name| word(name.trim())).collect()
}

/// What goes before the file.
#[allow(clippy::doc_markdown, reason = "the texts are shown by --help")]
#[derive(Debug, Clone, Default, PartialEq, Eq, Args)]
#[command(next_help_heading = HEADING)]
pub struct NvidiaArgs {
    /// How partitions of a GPU are offered: none, single (as GPUs) or mixed (a resource per profile) [file: flags.migStrategy]
    #[arg(long, value_name = "STRATEGY", env = "MIG_STRATEGY", value_parser = maybe(word::<MigStrategy>))]
    pub mig_strategy: Option<Maybe<MigStrategy>>,

    /// Whether a machine without a working driver is an error that ends the agent [file: flags.failOnInitError]
    #[arg(
        long, value_name = "BOOL", env = "FAIL_ON_INIT_ERROR", value_parser = maybe(boolean),
        num_args = 0..=1, require_equals = true, default_missing_value = "true"
    )]
    pub fail_on_init_error: Option<Maybe<bool>>,

    /// Where NVIDIA's driver is installed on the host: / without it, or the root of a driver container [file: flags.nvidiaDriverRoot]
    #[arg(long, visible_alias = "driver-root", value_name = "FOLDER", env = "NVIDIA_DRIVER_ROOT", value_parser = maybe_path())]
    pub nvidia_driver_root: Option<Maybe<PathBuf>>,

    /// Where this process sees that folder: looked through for libnvidia-ml.so.1, before the loader's own folders. The same without it
    /// [file: flags.plugin.containerDriverRoot]
    #[arg(long, visible_alias = "driver-root-ctr-path", value_name = "FOLDER", env = "CONTAINER_DRIVER_ROOT", value_parser = maybe_path())]
    pub container_driver_root: Option<Maybe<PathBuf>>,

    /// Whether the kubelet is told the device nodes of a GPU; true without it [file: flags.plugin.passDeviceSpecs]
    #[arg(
        long, value_name = "BOOL", env = "PASS_DEVICE_SPECS", value_parser = maybe(boolean),
        num_args = 0..=1, require_equals = true, default_missing_value = "true"
    )]
    pub pass_device_specs: Option<Maybe<bool>>,

    /// How a container learns which GPUs are its own, one or several of: envvar, volume-mounts, cdi-annotations, cdi-cri; envvar without
    /// it [file: flags.plugin.deviceListStrategy]
    #[arg(long, value_name = "STRATEGY,…", env = "DEVICE_LIST_STRATEGY", value_parser = maybe(strategies))]
    pub device_list_strategy: Option<Maybe<Vec<DeviceListStrategy>>>,

    /// What a GPU is called in that list: uuid or index [file: flags.plugin.deviceIDStrategy]
    #[arg(long, value_name = "STRATEGY", env = "DEVICE_ID_STRATEGY", value_parser = maybe(word::<DeviceIdStrategy>))]
    pub device_id_strategy: Option<Maybe<DeviceIdStrategy>>,

    /// What the keys of CDI annotations start with; cdi.k8s.io/ without it [file: flags.plugin.cdiAnnotationPrefix]
    #[arg(long, value_name = "PREFIX", env = "CDI_ANNOTATION_PREFIX", value_parser = maybe(text))]
    pub cdi_annotation_prefix: Option<Maybe<String>>,

    /// Whether containers with a GPU are told to use GDRCopy [file: flags.gdrcopyEnabled]
    #[arg(
        long, value_name = "BOOL", env = "GDRCOPY_ENABLED", value_parser = maybe(boolean),
        num_args = 0..=1, require_equals = true, default_missing_value = "true"
    )]
    pub gdrcopy_enabled: Option<Maybe<bool>>,

    /// Whether containers with a GPU are told to use GPUDirect Storage [file: flags.gdsEnabled]
    #[arg(
        long, value_name = "BOOL", env = "GDS_ENABLED", value_parser = maybe(boolean),
        num_args = 0..=1, require_equals = true, default_missing_value = "true"
    )]
    pub gds_enabled: Option<Maybe<bool>>,

    /// Whether containers with a GPU are told to use NVIDIA's network cards [file: flags.mofedEnabled]
    #[arg(
        long, value_name = "BOOL", env = "MOFED_ENABLED", value_parser = maybe(boolean),
        num_args = 0..=1, require_equals = true, default_missing_value = "true"
    )]
    pub mofed_enabled: Option<Maybe<bool>>,

    /// Where MPS keeps its pipes and logs, on the host [file: flags.mpsRoot]
    #[arg(long, value_name = "FOLDER", env = "MPS_ROOT", value_parser = maybe_path())]
    pub mps_root: Option<Maybe<PathBuf>>,

    /// XIDs to ignore besides those of the file, or "all" [file: health.disabled, gpu.ignoredXids]
    #[arg(
        long,
        value_name = "XID,…",
        env = "DP_DISABLE_HEALTHCHECKS",
        default_value = "",
        hide_default_value = true
    )]
    pub disable_healthchecks: String,

    /// XIDs to heed in spite of that, or "all"
    #[arg(
        long,
        value_name = "XID,…",
        env = "DP_ENABLE_HEALTHCHECKS",
        default_value = "",
        hide_default_value = true
    )]
    pub enable_healthchecks: String,
}

impl NvidiaArgs {
    /// What goes before the file.
    ///
    /// # Errors
    /// What is no list of XIDs.
    pub(crate) fn overrides(&self) -> Result<Overrides, String> {
        fn value<T: Clone>(argument: Option<&Maybe<T>>) -> Option<T> {
            argument.and_then(|argument| argument.0.clone())
        }
        Ok(Overrides {
            mig_strategy: value(self.mig_strategy.as_ref()),
            fail_on_init_error: value(self.fail_on_init_error.as_ref()),
            mps_root: value(self.mps_root.as_ref()),
            nvidia_driver_root: value(self.nvidia_driver_root.as_ref()),
            container_driver_root: value(self.container_driver_root.as_ref()),
            gdrcopy_enabled: value(self.gdrcopy_enabled.as_ref()),
            gds_enabled: value(self.gds_enabled.as_ref()),
            mofed_enabled: value(self.mofed_enabled.as_ref()),
            pass_device_specs: value(self.pass_device_specs.as_ref()),
            device_list_strategy: value(self.device_list_strategy.as_ref()),
            device_id_strategy: value(self.device_id_strategy.as_ref()),
            cdi_annotation_prefix: value(self.cdi_annotation_prefix.as_ref()),
            health: Overridden::read(&self.disable_healthchecks, &self.enable_healthchecks)
                .map_err(|why| format!("DP_DISABLE_HEALTHCHECKS, DP_ENABLE_HEALTHCHECKS: {why}"))?,
        })
    }
}
