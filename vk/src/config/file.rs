//! The shape of the configuration file. Values are checked while they are parsed, so that every error carries its line.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use serde::{Deserialize, de::DeserializeOwned};
use serde_saphyr::{SnippetMode, UserMessageFormatter};

use super::{
    ConfigError,
    metadata::{AnnotationKey, LabelKey, LabelValue},
    resources::{Amount, Resources},
    taints::FileTaint,
};
use crate::{
    args,
    node::pressure::{Signal, Threshold},
    pod::resources,
    provider::cri::CriConfig,
};

/// The file, every key optional.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub(super) struct File {
    pub(super) node_name: Option<String>,
    #[serde(rename = "nodeIP")]
    pub(super) node_ip: Option<IpAddr>,
    pub(super) labels: BTreeMap<LabelKey, LabelValue>,
    pub(super) annotations: BTreeMap<AnnotationKey, String>,
    pub(super) taints: Vec<FileTaint>,
    pub(super) capacity: Resources,
    #[serde(rename = "clusterDNS")]
    pub(super) cluster_dns: Vec<IpAddr>,
    pub(super) cluster_domain: Option<String>,
    pub(super) resolv_conf: Option<PathBuf>,
    pub(super) provider: Option<String>,
    pub(super) cri: Option<CriConfig>,
    pub(super) max_pods: Option<u32>,
    pub(super) quota: Resources,
    pub(super) eviction_hard: Option<BTreeMap<SignalName, Limit>>,
    #[serde(rename = "imageGCHighThresholdPercent")]
    pub(super) image_gc_high_threshold_percent: Option<Percent>,
    #[serde(rename = "imageGCLowThresholdPercent")]
    pub(super) image_gc_low_threshold_percent: Option<Percent>,
    #[serde(rename = "imageMinimumGCAge")]
    pub(super) image_minimum_gc_age: Option<Span>,
    #[serde(rename = "imageMaximumGCAge")]
    pub(super) image_maximum_gc_age: Option<Span>,
    #[serde(rename = "imageGCAllImages")]
    pub(super) image_gc_all_images: bool,
    pub(super) nodes: Option<Vec<FileNode>>,
}

/// One of several nodes. What it leaves out is as beside `nodes`; labels, taints and so on come on top.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub(super) struct FileNode {
    pub(super) name: String,
    #[serde(rename = "nodeIP")]
    pub(super) node_ip: Option<IpAddr>,
    pub(super) kubelet_address: Option<IpAddr>,
    pub(super) kubelet_port: Option<u16>,
    pub(super) labels: BTreeMap<LabelKey, LabelValue>,
    pub(super) annotations: BTreeMap<AnnotationKey, String>,
    pub(super) taints: Vec<FileTaint>,
    pub(super) capacity: Resources,
    pub(super) quota: Resources,
    pub(super) max_pods: Option<u32>,
    pub(super) provider: Option<String>,
    pub(super) cri: Option<CriConfig>,
}

/// Parses `text`, which was read from `path`.
pub(super) fn parse<T: DeserializeOwned + Default>(path: &Path, text: &str) -> Result<T, ConfigError> {
    // A file of comments is one with nothing to say.
    if text.lines().all(|line| line.trim_start().starts_with('#') || line.trim().is_empty()) {
        return Ok(T::default());
    }
    serde_saphyr::from_str(text).map_err(|error| {
        let location = error.location();
        let formatter = UserMessageFormatter;
        let options = serde_saphyr::render_options! { snippets: SnippetMode::Off, formatter: &formatter };
        let message = error.without_snippet().render_with_options(options).replace('\n', " ");
        let (line, column) = location.map_or((0, 0), |location| (location.line(), location.column()));
        // It stands in front already.
        let message = message.trim_end_matches(&format!(" at line {line}, column {column}")).to_owned();
        ConfigError::Invalid { path: path.to_owned(), line, column, message }
    })
}

/// A signal that a kubelet knows, too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "String")]
pub(super) struct SignalName(pub(super) Signal);

impl TryFrom<String> for SignalName {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        Signal::named(&text).map(Self).ok_or_else(|| {
            format!(
                "{text:?} is no signal: memory.available, nodefs.available, nodefs.inodesFree, imagefs.available or pid.available"
            )
        })
    }
}

/// An amount, or a percentage.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(try_from = "String")]
pub(super) struct Limit(pub(super) Threshold);

impl TryFrom<String> for Limit {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        if let Some(percent) = text.strip_suffix('%') {
            let percent = percent.parse().ok().filter(|percent| (0.0..=100.0).contains(percent));
            return percent
                .map(|percent| Self(Threshold::Percent(percent)))
                .ok_or_else(|| format!("{text:?} is no percentage, such as 5%"));
        }
        let quantity = Quantity::from(Amount::try_from(text)?);
        let amount = resources::whole(&quantity).and_then(|amount| u64::try_from(amount).ok());
        amount
            .map(|amount| Self(Threshold::Amount(amount)))
            .ok_or_else(|| format!("{:?} is too much", quantity.0))
    }
}

/// 0 … 100.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(try_from = "u64")]
pub(super) struct Percent(pub(super) u8);

impl TryFrom<u64> for Percent {
    type Error = String;

    fn try_from(number: u64) -> Result<Self, String> {
        let percent = u8::try_from(number).ok().filter(|percent| *percent <= 100);
        percent.map(Self).ok_or_else(|| format!("{number} is no percentage: write 0 to 100"))
    }
}

/// A duration as Kubernetes writes it.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(try_from = "String")]
pub(super) struct Span(pub(super) Duration);

impl TryFrom<String> for Span {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        args::duration(&text).map(Self)
    }
}
