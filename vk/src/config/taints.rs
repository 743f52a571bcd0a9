//! Taints of a node object, as the API server takes them: one that it refuses would keep the node from being registered.

use k8s_openapi::api::core::v1::Taint;
use serde::Deserialize;

use super::{
    ConfigError,
    metadata::{LabelValue, is_qualified_name},
};
use crate::args::Args;

/// One further taint.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FileTaint {
    key: Key,
    #[serde(default)]
    value: Option<LabelValue>,
    effect: Effect,
}

impl From<FileTaint> for Taint {
    fn from(taint: FileTaint) -> Self {
        Self {
            key: taint.key.0,
            value: taint.value.map(String::from),
            effect: taint.effect.0,
            time_added: None,
        }
    }
}

/// The key of a taint.
#[derive(Debug, Clone, Deserialize)]
#[serde(try_from = "String")]
struct Key(String);

impl TryFrom<String> for Key {
    type Error = String;

    fn try_from(key: String) -> Result<Self, String> {
        if is_qualified_name(&key) {
            return Ok(Self(key));
        }
        Err(format!("{key:?} can't be the key of a taint, such as dedicated or example.com/dedicated"))
    }
}

/// A taint's effect that Kubernetes knows.
#[derive(Debug, Clone, Deserialize)]
#[serde(try_from = "String")]
struct Effect(String);

impl TryFrom<String> for Effect {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        match text.as_str() {
            "NoSchedule" | "NoExecute" | "PreferNoSchedule" => Ok(Self(text)),
            _ => Err(format!("{text:?} is no effect of a taint: NoSchedule, NoExecute or PreferNoSchedule")),
        }
    }
}

/// The provider's taint, unless it is disabled, and the file's.
pub(super) fn of<'a>(
    node: &str,
    args: &Args,
    provider: &str,
    file: impl Iterator<Item = &'a FileTaint>,
) -> Result<Vec<Taint>, ConfigError> {
    let mut taints = Vec::new();
    if !args.disable_taint {
        taints.push(own(args, provider)?);
    }
    taints.extend(file.cloned().map(Taint::from));
    for (index, one) in taints.iter().enumerate() {
        if taints[..index].iter().any(|other| (&one.key, &one.effect) == (&other.key, &other.effect)) {
            return Err(ConfigError::Value(format!(
                "taints: node {node:?} has two of key {:?} and effect {}, and may have one: leave one out (the node's own, with --disable-taint)",
                one.key, one.effect
            )));
        }
    }
    Ok(taints)
}

/// The provider's.
fn own(args: &Args, provider: &str) -> Result<Taint, ConfigError> {
    let given = |flag: &Option<String>, usual: &str| flag.clone().unwrap_or_else(|| usual.to_owned());
    let wrong = |flag: &str, problem: String| ConfigError::Value(format!("{flag}: {problem}"));
    let key = Key::try_from(given(&args.taint_key, "virtual-kubelet.io/provider"))
        .map_err(|problem| wrong("--taint-key (VKUBELET_TAINT_KEY)", problem))?;
    let value = LabelValue::try_from(given(&args.taint_value, provider))
        .map_err(|problem| wrong("--taint-value (VKUBELET_TAINT_VALUE)", problem))?;
    let effect = Effect::try_from(given(&args.taint_effect, "NoSchedule"))
        .map_err(|problem| wrong("--taint-effect (VKUBELET_TAINT_EFFECT)", problem))?;
    Ok(FileTaint { key, value: Some(value), effect }.into())
}
