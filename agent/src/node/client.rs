//! The way to the API server: connecting, waiting between tries, and saying what went wrong once instead of every time.

use std::{error::Error as _, future::Future, path::PathBuf, time::Duration};

use http::{HeaderValue, Request, header::AUTHORIZATION};
use kube::{
    Client, Config,
    client::ClientBuilder,
    config::{KubeConfigOptions, Kubeconfig},
};
use tokio_util::sync::CancellationToken;
use tower::util::MapRequestLayer;

use super::NodeArgs;

/// What one request may take.
const REQUEST_WITHIN: Duration = Duration::from_secs(10);
/// Between two tries, at first and at most.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_mins(1));

/// Why something in the API was not done.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// There is no way to the API server.
    #[error(
        "no access to the Kubernetes API: mount a service account's token, or give --kubeconfig; or leave out --node-name"
    )]
    Access(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The kubeconfig can't be used.
    #[error("can't use the kubeconfig {path}")]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: kube::config::KubeconfigError,
    },
    /// A request failed.
    #[error("can't {what}")]
    Request {
        /// What was asked for.
        what: &'static str,
        /// What the API server, or the way there, says.
        source: Box<kube::Error>,
    },
    /// A request was not answered.
    #[error("can't {what}: no answer within {} s", REQUEST_WITHIN.as_secs())]
    Silent {
        /// What was asked for.
        what: &'static str,
    },
}

impl NodeError {
    /// With all causes, each said once, and what to do where that is clear.
    pub(super) fn told(&self) -> String {
        if let Some(status) = self.status() {
            let hint = match status.code {
                403 => {
                    " (give the agent's service account the right, or leave the feature out of --node-features)"
                }
                _ => "",
            };
            return format!("{self}: {}{hint}", status.message);
        }
        let mut line = self.to_string();
        let mut cause = self.source();
        while let Some(error) = cause {
            let text = error.to_string();
            if !line.contains(&text) {
                line = format!("{line}: {text}");
            }
            cause = error.source();
        }
        line
    }

    pub(super) fn status(&self) -> Option<&kube::core::Status> {
        match self {
            Self::Request { source, .. } => match &**source {
                kube::Error::Api(status) => Some(status),
                _ => None,
            },
            _ => None,
        }
    }
}

/// A client, as soon as there is one; none when stopped first.
pub(super) async fn connect(args: &NodeArgs, stop: &CancellationToken) -> Option<Client> {
    let mut trouble = Trouble::new("the node is left alone");
    loop {
        match client(args).await {
            Ok(client) => return Some(client),
            Err(error) => trouble.tell(&error),
        }
        stop.run_until_cancelled(trouble.pause()).await?;
    }
}

async fn client(args: &NodeArgs) -> Result<Client, NodeError> {
    let mut config = match &args.kubeconfig {
        Some(path) => {
            let failed = |source| NodeError::Kubeconfig { path: path.clone(), source };
            let kubeconfig = Kubeconfig::read_from(path).map_err(failed)?;
            Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.map_err(failed)?
        }
        None => Config::incluster().map_err(|error| NodeError::Access(error.into()))?,
    };
    config.connect_timeout = Some(REQUEST_WITHIN);
    let token = match config.auth_info.token {
        Some(_) => None,
        None => config.auth_info.token_file.take().map(|path| TokenFile { path: path.into(), last: None }),
    };
    let builder = ClientBuilder::try_from(config).map_err(|error| NodeError::Access(error.into()))?;
    Ok(match token {
        Some(mut token) => {
            builder.with_layer(&MapRequestLayer::new(move |request| token.add(request))).build()
        }
        None => builder.build(),
    })
}

/// A token that the kubelet renews now and then. It is read for each request, of which there are few: kube reads it again when the time of
/// day says so, which after a jump backwards is too late.
#[derive(Debug, Clone)]
struct TokenFile {
    path: PathBuf,
    /// Used where it can't be read.
    last: Option<HeaderValue>,
}

impl TokenFile {
    fn add<B>(&mut self, mut request: Request<B>) -> Request<B> {
        let read = std::fs::read_to_string(&self.path).ok();
        let value = read.and_then(|token| HeaderValue::try_from(format!("Bearer {}", token.trim())).ok());
        if let Some(mut value) = value {
            value.set_sensitive(true);
            self.last = Some(value);
        }
        if let Some(value) = self.last.clone() {
            request.headers_mut().insert(AUTHORIZATION, value);
        }
        request
    }
}

/// A request that is answered in time.
pub(super) async fn ask<T>(
    what: &'static str,
    request: impl Future<Output = kube::Result<T>>,
) -> Result<T, NodeError> {
    tokio::time::timeout(REQUEST_WITHIN, request)
        .await
        .map_err(|_| NodeError::Silent { what })?
        .map_err(|source| NodeError::Request { what, source: Box::new(source) })
}

/// Runs `task`, but no longer than until `stop`.
pub(super) async fn until(task: impl Future<Output = ()>, stop: CancellationToken) {
    stop.run_until_cancelled(task).await;
}

/// A series of failures: told when they are news, with growing pauses between.
#[derive(Debug)]
pub(super) struct Trouble {
    consequence: &'static str,
    said: String,
    next: Duration,
}

impl Trouble {
    /// None yet. `consequence`: what it means that it fails.
    pub(super) fn new(consequence: &'static str) -> Self {
        Self { consequence, said: String::new(), next: RETRY.0 }
    }

    /// It failed.
    pub(super) fn tell(&mut self, error: &NodeError) {
        let line = error.told();
        if self.said != line {
            tracing::warn!(consequence = self.consequence, "{line}; trying again");
            self.said = line;
        }
    }

    /// It worked.
    pub(super) fn over(&mut self) {
        if !self.said.is_empty() {
            tracing::info!(before = self.said, "the API server takes it again");
        }
        *self = Self::new(self.consequence);
    }

    /// Whether it failed last time.
    pub(super) fn lasts(&self) -> bool {
        !self.said.is_empty()
    }

    /// How long to wait now: longer each time.
    pub(super) fn delay(&mut self) -> Duration {
        let delay = self.next;
        self.next = (delay * 2).min(RETRY.1);
        delay
    }

    /// Waits that long.
    pub(super) async fn pause(&mut self) {
        tokio::time::sleep(self.delay()).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_says_what_to_do_and_no_cause_twice() {
        let status = kube::core::Status::failure("nodes \"n\" is forbidden", "Forbidden").with_code(403);
        let error =
            NodeError::Request { what: "label the node", source: Box::new(kube::Error::Api(status.boxed())) };
        let told = error.told();
        assert!(told.starts_with("can't label the node: "), "{told}");
        assert!(told.contains("--node-features"), "{told}");
        assert_eq!(told.matches("forbidden").count(), 1, "{told}");
    }

    #[test]
    fn a_renewed_token_is_used_at_once_whatever_the_time_of_day() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut token = TokenFile { path: file.path().to_owned(), last: None };
        let mut sent = || token.add(Request::new(())).headers().get(AUTHORIZATION).cloned();
        std::fs::write(file.path(), "first\n").unwrap();
        assert_eq!(sent().unwrap(), "Bearer first");
        std::fs::write(file.path(), "second").unwrap();
        assert_eq!(sent().unwrap(), "Bearer second");
        std::fs::remove_file(file.path()).unwrap();
        assert_eq!(sent().unwrap(), "Bearer second");
    }

    #[test]
    fn pauses_grow_and_start_over_when_it_worked() {
        let mut trouble = Trouble::new("nothing");
        trouble.tell(&NodeError::Silent { what: "ask" });
        let delays: Vec<_> = (0..8).map(|_| trouble.delay().as_secs()).collect();
        assert_eq!(delays, [1, 2, 4, 8, 16, 32, 60, 60]);
        assert!(trouble.lasts());
        trouble.over();
        assert_eq!((trouble.lasts(), trouble.delay()), (false, RETRY.0));
    }
}
