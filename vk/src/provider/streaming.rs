//! Streams that users open into pods: to a container's first process, and to ports. A provider answers with the URL of its streaming
//! server, to which the client's upgraded connection is proxied.

use async_trait::async_trait;
use http::Uri;

/// Streams of a container's first process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(clippy::struct_excessive_bools)] // As the request has them.
pub struct AttachRequest {
    /// Whether the container runs in a terminal. Excludes `stderr`.
    pub tty: bool,
    /// Connect standard input.
    pub stdin: bool,
    /// Connect standard output.
    pub stdout: bool,
    /// Connect standard error.
    pub stderr: bool,
}

/// Why there is nothing to stream from.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// The container or sandbox is unknown or not running.
    #[error("{0} is not running")]
    NotRunning(String),
    /// The provider failed.
    #[error("can't open streams to {what}")]
    Failed {
        /// The container or pod.
        what: String,
        /// The cause.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// Attaches to containers.
#[async_trait]
pub trait Attach: Send + Sync {
    /// Prepares streams to the first process of a container, by the ID in its status without the `scheme://` prefix.
    async fn attach(&self, container_id: &str, request: AttachRequest) -> Result<Uri, StreamError>;
}

/// Connects to ports of pods.
#[async_trait]
pub trait PortForward: Send + Sync {
    /// Prepares connections to ports of the pod of this UID. `ports` is what a WebSocket client asks for; others name theirs later.
    async fn port_forward(&self, pod_uid: &str, ports: &[u16]) -> Result<Uri, StreamError>;
}
