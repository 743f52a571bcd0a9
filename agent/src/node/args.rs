//! Flags about the Kubernetes API.

use std::path::PathBuf;

/// Something that is done through the API server. Each needs rights of its own (the chart has them) and can be left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Feature {
    /// Labels and the annotation on the node: get, list, watch and patch nodes.
    Labels,
    /// The node's condition `AcceleratorHealthy`: patch nodes/status.
    Condition,
    /// Events about the node and about pods: create and patch events.
    Events,
    /// The configuration that a label of the node picks: get, list and watch nodes.
    Config,
    /// Names and labels of the node's pods, for exemptions by label: list and watch pods.
    Pods,
}

/// What the agent does in the API, and how it gets there.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "The Kubernetes API")]
pub struct NodeArgs {
    /// This machine's node. Without it nothing is asked of the API server: no labels, no events, no condition.
    #[arg(long, value_name = "NAME", env = "NODE_NAME")]
    pub node_name: Option<String>,

    /// How to reach the API server. Without it: the service account of this pod.
    #[arg(long, value_name = "FILE", env = "KUBECONFIG")]
    pub kubeconfig: Option<PathBuf>,

    /// What to do in the API.
    #[arg(
        long,
        value_enum,
        value_name = "FEATURE",
        value_delimiter = ',',
        env = "SPILLWAY_NODE_FEATURES",
        default_value = "labels,condition,events,config,pods"
    )]
    pub node_features: Vec<Feature>,

    /// Labels that may be set; others that a back end proposes are left out.
    #[arg(
        long,
        value_name = "PREFIX",
        value_delimiter = ',',
        env = "SPILLWAY_LABEL_PREFIXES",
        default_value = "nvidia.com/,fpga.intel.com/,amd.com/,spillway.dev/"
    )]
    pub label_prefixes: Vec<String>,

    /// Take over labels that somebody else has set, such as NFD or GPU feature discovery, instead of leaving them alone.
    #[arg(long, env = "SPILLWAY_FORCE_LABELS")]
    pub force_labels: bool,

    /// A folder with one configuration per file: a mounted `ConfigMap`. Which one is used, the node's label says, at any time.
    #[arg(long, value_name = "FOLDER", env = "CONFIG_FILE_SRCDIR")]
    pub config_dir: Option<PathBuf>,

    /// The node's label that names a file of --config-dir.
    #[arg(long, value_name = "LABEL", env = "NODE_LABEL", default_value = "nvidia.com/device-plugin.config")]
    pub node_label: String,

    /// The file of --config-dir for a node without the label. Without it: the file `default`, or the only one, or none.
    #[arg(long, value_name = "NAME", env = "DEFAULT_CONFIG")]
    pub default_config: Option<String>,
}
