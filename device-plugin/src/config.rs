//! The optional configuration file: what to look for and when to distrust it. Where things lie on the machine is said by the
//! agent's flags, so that nothing can be set in two places.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::Deserialize;

use crate::health::APPLICATION_XIDS;

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
    /// The file is not what is expected; the message has line and column.
    #[error("the configuration {path} is not valid: {message}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// What is wrong, and where.
        message: String,
    },
}

/// What the file says; everything has a default.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Config {
    /// NVIDIA GPUs.
    pub gpu: Gpu,
    /// FPGAs of the kernel's DFL framework.
    pub fpga: Fpga,
}

/// NVIDIA GPUs, by NVML.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Gpu {
    /// Whether to look for any.
    pub enabled: bool,
    /// XIDs that don't make a GPU Unhealthy. Setting it replaces the default, which is the list of NVIDIA's device plugin.
    pub ignored_xids: Vec<u64>,
    /// How long a GPU must be without a fault before it counts as Healthy again, in seconds.
    pub recovery_seconds: u64,
}

impl Gpu {
    /// [`Gpu::recovery_seconds`] as a duration.
    pub fn recovery(&self) -> Duration {
        Duration::from_secs(self.recovery_seconds)
    }
}

impl Default for Gpu {
    fn default() -> Self {
        Self { enabled: true, ignored_xids: APPLICATION_XIDS.to_vec(), recovery_seconds: 300 }
    }
}

/// FPGAs, by the DFL sysfs tree.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Fpga {
    /// Whether to look for any.
    pub enabled: bool,
}

impl Default for Fpga {
    fn default() -> Self {
        Self { enabled: true }
    }
}

impl Config {
    /// Reads the YAML file at `path`.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let bytes = fs::read(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        Self::parse(&bytes).map_err(|message| ConfigError::Parse { path: path.to_owned(), message })
    }

    fn parse(bytes: &[u8]) -> Result<Self, String> {
        let text = std::str::from_utf8(bytes).map_err(|_| "it is not a text".to_owned())?;
        if text.lines().all(|line| line.trim().is_empty() || line.trim_start().starts_with('#')) {
            return Ok(Self::default());
        }
        serde_saphyr::from_str(text).map_err(|error| {
            // The parser adds an excerpt of the file below its message; one line is enough for a log.
            let message = error.to_string();
            let first = message.lines().next().unwrap_or_default();
            first.trim_start_matches("error: ").to_owned()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_said_has_its_default() {
        for empty in ["", "# nothing\n\n", "gpu: {}\n"] {
            assert_eq!(Config::parse(empty.as_bytes()).unwrap(), Config::default(), "{empty:?}");
        }
        let config = Config::parse(b"gpu:\n  ignoredXids: [13]\nfpga:\n  enabled: false\n").unwrap();
        assert_eq!(config.gpu, Gpu { ignored_xids: vec![13], ..Gpu::default() });
        assert!(!config.fpga.enabled);
    }

    #[test]
    fn mistakes_are_told_with_their_line() {
        let check = |text: &str, parts: &[&str]| {
            let message = Config::parse(text.as_bytes()).unwrap_err();
            assert!(parts.iter().all(|part| message.contains(part)), "{message:?} lacks one of {parts:?}");
            assert!(!message.contains('\n'), "{message:?}");
        };
        check("gpu:\n  enabled: true\n  ignoredXid: [13]\n", &["ignoredXid", "line 3"]);
        check("gpu:\n  recoverySeconds: soon\n", &["line 2"]);
        check("gpus: {}\n", &["gpus", "line 1"]);
        check("gpu: [\n", &["line"]);
        check("\u{0}\u{1}", &["line"]);
        assert_eq!(Config::parse(b"\xff\xfe").unwrap_err(), "it is not a text");
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = Config::read(Path::new("/nonexistent/agent.yaml")).unwrap_err();
        assert!(error.to_string().contains("/nonexistent/agent.yaml"), "{error}");
    }
}
