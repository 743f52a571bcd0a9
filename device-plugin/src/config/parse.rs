//! From bytes to values, with line and column where something is wrong, and the checks that need no devices. Bytes are hostile.

use std::{
    fmt,
    io::{self, Read},
    marker::PhantomData,
    time::Duration,
};

use serde::{
    Deserialize, Deserializer,
    de::{
        DeserializeOwned, Error, IntoDeserializer as _, SeqAccess, Unexpected, Visitor,
        value::{Error as ValueError, SeqAccessDeserializer, StrDeserializer},
    },
};

use super::{Config, DiscoveryStrategy, Flags};
use crate::device::ResourceName;

/// The domain of names that have none, as in NVIDIA's file.
const DEFAULT_DOMAIN: &str = "nvidia.com";

/// No `ConfigMap` holds more.
const SIZE_LIMIT: usize = 1024 * 1024;

/// Where in the file something was said. All places are equal: what a configuration says does not depend on where.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Place {
    line: u64,
    column: u64,
}

impl PartialEq for Place {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Place {}

impl From<serde_saphyr::Location> for Place {
    fn from(location: serde_saphyr::Location) -> Self {
        Self { line: location.line(), column: location.column() }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "line {} column {}", self.line, self.column)
    }
}

/// All of it, or so much that it is refused for its size.
pub(super) fn limited(input: impl Read) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    input.take(SIZE_LIMIT as u64 + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The whole file. One that says nothing says nothing wrong.
pub(super) fn document(bytes: &[u8]) -> Result<Config, String> {
    if bytes.len() > SIZE_LIMIT {
        return Err("it is larger than 1 MiB".to_owned());
    }
    let text = std::str::from_utf8(bytes).map_err(|_| "it is not a text".to_owned())?;
    if text.lines().all(|line| line.trim().is_empty() || line.trim_start().starts_with('#')) {
        return Ok(Config::default());
    }
    serde_saphyr::from_str(text).map_err(|error| {
        // The parser adds an excerpt of the file below its message; one line is enough for a log.
        let message = error.to_string();
        let first = message.lines().next().unwrap_or_default();
        first.trim_start_matches("error: ").to_owned()
    })
}

/// A single word, such as one of [`super::MigStrategy`]'s, as a flag gives it.
///
/// # Errors
/// What would have been understood.
pub fn word<T: DeserializeOwned>(text: &str) -> Result<T, String> {
    let input: StrDeserializer<'_, ValueError> = text.into_deserializer();
    T::deserialize(input).map_err(|error| error.to_string())
}

/// A resource's name, with or without NVIDIA's domain.
pub(super) fn resource_name<'de, D: Deserializer<'de>>(input: D) -> Result<ResourceName, D::Error> {
    let name = String::deserialize(input)?;
    let full = if name.contains('/') { name } else { format!("{DEFAULT_DOMAIN}/{name}") };
    ResourceName::new(full).map_err(Error::custom)
}

/// One value, or a list of them that has at least one.
pub(super) fn one_or_many<'de, D, T>(input: D) -> Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    struct OneOrMany<T>(PhantomData<T>);

    impl<'de, T: Deserialize<'de>> Visitor<'de> for OneOrMany<T> {
        type Value = Vec<T>;

        fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
            formatter.write_str("a name, or a list of names")
        }

        fn visit_str<E: Error>(self, name: &str) -> Result<Vec<T>, E> {
            Ok(vec![T::deserialize(name.into_deserializer())?])
        }

        fn visit_seq<A: SeqAccess<'de>>(self, names: A) -> Result<Vec<T>, A::Error> {
            let names = Vec::deserialize(SeqAccessDeserializer::new(names))?;
            if names.is_empty() { Err(Error::invalid_length(0, &"at least one name")) } else { Ok(names) }
        }
    }

    input.deserialize_any(OneOrMany(PhantomData))
}

/// A duration as Go prints it, such as `60s` or `1m30s`.
pub(super) fn some_go_duration<'de, D: Deserializer<'de>>(input: D) -> Result<Option<Duration>, D::Error> {
    let Some(text) = Option::<String>::deserialize(input)? else { return Ok(None) };
    go_duration(&text)
        .map(Some)
        .ok_or_else(|| Error::invalid_value(Unexpected::Str(&text), &"a duration such as 60s or 1m30s"))
}

fn go_duration(text: &str) -> Option<Duration> {
    let mut rest = text.trim();
    let mut whole = Duration::ZERO;
    if rest == "0" {
        return Some(whole);
    }
    while !rest.is_empty() {
        let digits = rest.find(|letter: char| !letter.is_ascii_digit()).filter(|digits| *digits > 0)?;
        let number: u64 = rest[..digits].parse().ok()?;
        let unit_end = rest[digits..]
            .find(|letter: char| letter.is_ascii_digit())
            .map_or(rest.len(), |end| digits + end);
        let part = match &rest[digits..unit_end] {
            "ms" => Duration::from_millis(number),
            "s" => Duration::from_secs(number),
            "m" => Duration::from_secs(number.checked_mul(60)?),
            "h" => Duration::from_secs(number.checked_mul(3600)?),
            _ => return None,
        };
        whole = whole.checked_add(part)?;
        rest = &rest[unit_end..];
    }
    (!text.trim().is_empty()).then_some(whole)
}

impl Flags {
    /// What can't be.
    pub(super) fn mistakes(&self) -> Vec<String> {
        let mut mistakes = Vec::new();
        if matches!(self.device_discovery_strategy, DiscoveryStrategy::Tegra | DiscoveryStrategy::Vfio) {
            mistakes.push("flags.deviceDiscoveryStrategy: only auto and nvml are supported".to_owned());
        }
        let prefix = &self.plugin.cdi_annotation_prefix;
        let sound =
            prefix.strip_suffix('/').is_some_and(|domain| ResourceName::new(format!("{domain}/x")).is_ok());
        if !sound && prefix != "cdi.k8s.io/" {
            mistakes.push(format!(
                "flags.plugin.cdiAnnotationPrefix: {prefix:?} is not what an annotation's key can start with, such as cdi.k8s.io/"
            ));
        }
        for (key, path) in [
            ("mpsRoot", &self.mps_root),
            ("nvidiaDriverRoot", &self.nvidia_driver_root),
            ("plugin.containerDriverRoot", &self.plugin.container_driver_root),
        ] {
            if path.as_ref().is_some_and(|path| !path.is_absolute()) {
                mistakes.push(format!("flags.{key}: expected a path that starts with /"));
            }
        }
        mistakes
    }
}

impl Config {
    /// Keys of NVIDIA's programs that are set to something that is not done here.
    pub(super) fn without_effect(&self) -> Vec<String> {
        let (flags, plugin, gfd) = (&self.flags, &self.flags.plugin, &self.flags.gfd);
        let keys = [
            (
                "flags.nvidiaDevRoot",
                flags.nvidia_dev_root.as_ref().is_some_and(|root| root.as_os_str() != "/"),
            ),
            ("flags.useNodeFeatureAPI", flags.use_node_feature_api == Some(true)),
            ("flags.plugin.nvidiaCTKPath", plugin.nvidia_ctk_path.is_some()),
            ("flags.plugin.kubeletSocket", plugin.kubelet_socket.is_some()),
            (
                "flags.plugin.cdiFeatureFlags",
                plugin.cdi_feature_flags.as_ref().is_some_and(|flags| !flags.is_empty()),
            ),
            ("flags.gfd.oneshot", gfd.oneshot),
            ("flags.gfd.sleepInterval", gfd.sleep_interval.is_some()),
            ("flags.gfd.outputFile", gfd.output_file.is_some()),
            ("health.eventTypes", self.health.has_event_types()),
        ];
        let set: Vec<_> = keys.into_iter().filter_map(|(key, set)| set.then_some(key)).collect();
        let mut warnings = Vec::new();
        if !set.is_empty() {
            warnings
                .push(format!("accepted as in NVIDIA's file, but without effect here: {}", set.join(", ")));
        }
        if !plugin.pass_device_specs && !plugin.uses_cdi() {
            warnings.push(
                "flags.plugin.passDeviceSpecs is false and no CDI strategy is listed: containers reach their GPUs only if NVIDIA's \
                 runtime hook lets them, and lose them at the next systemctl daemon-reload"
                    .to_owned(),
            );
        }
        warnings
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_go_prints_them() {
        for (text, seconds) in
            [("60s", 60.0), ("1m30s", 90.0), ("1h0m0s", 3600.0), ("500ms", 0.5), ("0", 0.0)]
        {
            assert_eq!(go_duration(text), Some(Duration::from_secs_f64(seconds)), "{text}");
        }
        for bad in ["", "60", "s", "1x", "-1s", "1s2", "99999999999999999999s", "6000000000000000000h"] {
            assert_eq!(go_duration(bad), None, "{bad}");
        }
    }
}
