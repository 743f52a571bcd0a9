//! What runs the pods. The core above knows these traits and no runtime or cloud; a provider is one module below.
//!
//! Providers are of two kinds: a [`ContainerRuntime`] is given sandboxes and containers, so that order, restarts and volumes stay in
//! the core; a [`PodService`] is given whole pods. Both answer with the same [`observed`] values, from which one status builder
//! writes what a kubelet would.
//!
//! Optional abilities are separate traits, asked for by value: a provider that can't exec returns `None` from
//! [`Provider::exec`], and whoever asked gets a clear refusal.

pub mod cri;
pub mod facts;
pub mod images;
pub mod none;
pub mod observed;
pub mod runtime;
pub mod service;
pub mod streaming;
pub mod usage;

use std::{sync::Arc, time::SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;

pub use self::{
    runtime::ContainerRuntime,
    service::PodService,
    streaming::{Attach, AttachRequest, PortForward, StreamError},
    usage::Stats,
};

/// A provider of either kind.
#[derive(Clone)]
pub enum Provider {
    /// Sandboxes and containers.
    Runtime(Arc<dyn ContainerRuntime>),
    /// Whole pods.
    PodService(Arc<dyn PodService>),
}

/// What answers behind a provider: in the node's status `containerRuntimeVersion` is `name://version`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Version {
    /// Such as `containerd`. Also the scheme of container IDs in a pod's status.
    pub name: String,
    /// Such as `2.2.9`.
    pub version: String,
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}://{}", self.name, self.version)
    }
}

/// Why a provider did not do what it was asked to.
#[derive(Debug, thiserror::Error)]
pub enum ProviderError {
    /// What the call names is not there (any more).
    #[error("{operation}: {what} does not exist")]
    NotFound {
        /// The call.
        operation: &'static str,
        /// Its object.
        what: String,
    },
    /// The name is taken by something that exists or is just being made.
    #[error("{operation}: {message}")]
    Exists {
        /// The call.
        operation: &'static str,
        /// As the provider says it.
        message: String,
    },
    /// The provider can't be reached, or did not answer in time.
    #[error("{operation}: the provider does not answer: {message}")]
    Unavailable {
        /// The call.
        operation: &'static str,
        /// What was tried and how it failed.
        message: String,
    },
    /// The provider refused or failed.
    #[error("{operation}: {message}")]
    Failed {
        /// The call.
        operation: &'static str,
        /// As the provider says it, for the user to read.
        message: String,
    },
}

impl ProviderError {
    /// What the provider itself said, without the name of our call: what a pod's user can do something about.
    pub fn message(&self) -> String {
        match self {
            Self::Exists { message, .. } | Self::Failed { message, .. } => message.clone(),
            Self::NotFound { .. } | Self::Unavailable { .. } => self.to_string(),
        }
    }
}

impl Provider {
    /// The provider's name, as in `--provider`.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Runtime(runtime) => runtime.name(),
            Self::PodService(service) => service.name(),
        }
    }

    /// Who answers behind the provider.
    pub async fn version(&self) -> Result<Version, ProviderError> {
        match self {
            Self::Runtime(runtime) => runtime.version().await,
            Self::PodService(service) => service.version().await,
        }
    }

    /// Whether pods could be started now; the error is what the node's Ready condition says.
    pub async fn ping(&self) -> Result<(), ProviderError> {
        match self {
            Self::Runtime(runtime) => runtime.ping().await,
            Self::PodService(service) => service.ping().await,
        }
    }

    /// What the node's status tells of the provider.
    pub async fn facts(&self) -> Result<facts::Facts, ProviderError> {
        match self {
            Self::Runtime(runtime) => runtime.facts().await,
            Self::PodService(service) => service.facts().await,
        }
    }

    /// Reads logs, if the provider can.
    pub fn logs(&self) -> Option<&dyn Logs> {
        match self {
            Self::Runtime(runtime) => runtime.logs(),
            Self::PodService(service) => service.logs(),
        }
    }

    /// Runs commands in containers, if the provider can.
    pub fn exec(&self) -> Option<&dyn Exec> {
        match self {
            Self::Runtime(runtime) => runtime.exec(),
            Self::PodService(service) => service.exec(),
        }
    }

    /// Attaches to containers, if the provider can.
    pub fn attach(&self) -> Option<&dyn Attach> {
        match self {
            Self::Runtime(runtime) => runtime.attach(),
            Self::PodService(service) => service.attach(),
        }
    }

    /// Connects to ports of pods, if the provider can.
    pub fn port_forward(&self) -> Option<&dyn PortForward> {
        match self {
            Self::Runtime(runtime) => runtime.port_forward(),
            Self::PodService(service) => service.port_forward(),
        }
    }

    /// Tells what pods use, if the provider can.
    pub fn stats(&self) -> Option<&dyn Stats> {
        match self {
            Self::Runtime(runtime) => runtime.stats(),
            Self::PodService(service) => service.stats(),
        }
    }
}

/// Which log lines to send, and how. The query of the kubelet's `/containerLogs`, checked.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct LogOptions {
    /// Go on with what the container writes from now on, until it ends.
    pub follow: bool,
    /// Only the last so many lines.
    pub tail_lines: Option<u64>,
    /// Stop after so many bytes.
    pub limit_bytes: Option<u64>,
    /// Put the RFC 3339 time before each line.
    pub timestamps: bool,
    /// Only lines written at this time or later.
    pub since: Option<SystemTime>,
    /// Only this stream; both without it.
    pub stream: Option<LogSource>,
}

/// One of a container's two output streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogSource {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// Why logs could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The provider has no such container any more.
    #[error("container {0} has no logs: it is unknown to the provider")]
    NotFound(String),
    /// The provider failed.
    #[error("can't read the logs of container {id}")]
    Failed {
        /// The provider's ID of the container.
        id: String,
        /// The cause.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// Reads container logs.
#[async_trait]
pub trait Logs: Send + Sync {
    /// Opens the log of one container, by the ID in its status without the `scheme://` prefix. The stream yields what the client
    /// shall see, and ends when the log does (or the container, when following).
    async fn logs(
        &self,
        container_id: &str,
        options: &LogOptions,
    ) -> Result<BoxStream<'static, std::io::Result<Bytes>>, LogError>;
}

/// A command to run in a container.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(clippy::struct_excessive_bools)] // As the request has them.
pub struct ExecRequest {
    /// Program and arguments; never empty.
    pub command: Vec<String>,
    /// Allocate a terminal. Excludes `stderr`.
    pub tty: bool,
    /// Connect standard input.
    pub stdin: bool,
    /// Connect standard output.
    pub stdout: bool,
    /// Connect standard error.
    pub stderr: bool,
}

/// Why a command could not be started.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    /// The container is unknown or not running.
    #[error("container {0} is not running")]
    NotRunning(String),
    /// The provider failed.
    #[error("can't run a command in container {id}")]
    Failed {
        /// The provider's ID of the container.
        id: String,
        /// The cause.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// Runs commands in containers.
#[async_trait]
pub trait Exec: Send + Sync {
    /// Prepares an interactive exec and returns the URL of the streaming server to which the client's upgraded connection is
    /// proxied.
    async fn exec(&self, container_id: &str, request: &ExecRequest) -> Result<http::Uri, ExecError>;
}
